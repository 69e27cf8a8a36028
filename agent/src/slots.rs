//! The slots of this node's server: what each is there for, which are orphans, and dropping one.
//!
//! A slot is known by the intent that was written down before it was made, by its name, and by what the other nodes say of
//! their subscriptions. What cannot be asked is never taken for an orphan.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    v1::{self, peers_client::PeersClient},
    wire::rpc::failure_of,
};
use tracing::warn;

use crate::{
    postgres::{
        self, Session,
        slots::{self, Slot},
    },
    rooms::Rooms,
    store::{
        self, Actor, audit,
        follows::{self, KeptSlot},
        intents,
        preparations::{self, Preparation},
        snapshots::{self, Snapshot},
    },
};

/// How long the other nodes may take to say what their subscriptions read.
const LIMIT: Duration = Duration::from_secs(2);

/// What a slot is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A subscription of a known node reads it.
    Subscription,
    /// An operation needs it, or its undoing will take it away.
    Operation,
    /// It is kept for a backup made by hand.
    Prepared,
    /// A snapshot in files needs it until it is deleted or expires.
    Snapshot,
    /// Whoever may need it cannot be asked.
    Undecided,
    /// Named like Steep's, and nobody needs it.
    Orphan,
    /// Steep has not made it.
    Foreign,
}

impl Purpose {
    /// The word for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Subscription => "subscription",
            Self::Operation => "operation",
            Self::Prepared => "prepared",
            Self::Snapshot => "snapshot",
            Self::Undecided => "undecided",
            Self::Orphan => "orphan",
            Self::Foreign => "foreign",
        }
    }
}

/// A slot and what it is there for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The slot.
    pub slot: Slot,
    /// The node it is kept for, if one is known.
    pub target: String,
    /// What for.
    pub purpose: Purpose,
    /// How we know, in one sentence.
    pub why: String,
    /// The operation that needs it.
    pub op: Option<OperationId>,
}

/// What is known about slots beyond the server's own list.
#[derive(Debug, Default)]
struct Known {
    made: Vec<KeptSlot>,
    prepared: Vec<Preparation>,
    /// Slots of snapshots in files, and until when.
    snapshots: BTreeMap<String, String>,
    running: Vec<OperationId>,
    peers: Vec<NodeId>,
    /// Who reads a slot: the node and what it says.
    readers: BTreeMap<String, (NodeId, v1::NeededSlot)>,
    silent: Vec<NodeId>,
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

fn remember(error: store::Error) -> Failure {
    error.explain()
}

/// Every slot of this node's server.
pub async fn list(rooms: &Rooms) -> Result<Vec<Listed>, Failure> {
    let session = rooms.database.session(postgres::Purpose::Watch).await.map_err(explain)?;
    let there = slots::list(&session).await.map_err(explain)?;
    let known = known(rooms, &session, &there).await?;
    session.close().await;
    Ok(there.into_iter().map(|slot| judge(slot, &known)).collect())
}

async fn known(rooms: &Rooms, session: &Session, there: &[Slot]) -> Result<Known, Failure> {
    let names: Vec<String> =
        there.iter().filter(|slot| is_named_like_ours(&slot.name)).map(|slot| slot.name.clone()).collect();
    let made = follows::slots(&rooms.store).await.map_err(remember)?;
    let is_running = |op: OperationId| rooms.operations.is_running(op) || rooms.sessions.serves(op);
    let running = made.iter().map(|made| made.op_id).filter(|op| is_running(*op)).collect();
    let prepared = preparations::list(&rooms.store).await.map_err(remember)?;
    let kept = snapshots::list(&rooms.store, false).await.map_err(remember)?.into_iter();
    let until = |kept: &Snapshot| kept.expires_at.map_or_else(|| "it is deleted".to_owned(), |at| at.to_string());
    let kept = kept.filter(Snapshot::is_complete).map(|kept| (kept.slot.clone(), until(&kept))).collect();
    let mut known =
        Known { snapshots: kept, made, prepared, running, peers: rooms.peers.names().collect(), ..Known::default() };
    if names.is_empty() {
        return Ok(known);
    }
    let request = v1::NeedSlotsRequest { slots: names.clone() };
    let ask = |channel| {
        let request = request.clone();
        async move {
            let answered = PeersClient::new(channel).need_slots(request).await;
            answered.map(tonic::Response::into_inner).map_err(|status| failure_of(&status))
        }
    };
    let (answers, silent) = rooms.peers.ask_all(LIMIT, ask).await;
    known.silent = silent;
    let own = need(rooms, session, &names).await?;
    for reply in answers.into_iter().chain([own]) {
        let Ok(node) = reply.node_id.parse::<NodeId>() else { continue };
        known.readers.extend(reply.needed.into_iter().map(|needed| (needed.name.clone(), (node.clone(), needed))));
    }
    Ok(known)
}

/// Which of these slots, of another server, subscriptions of this node's server read.
pub async fn need_told(rooms: &Rooms, names: &[String]) -> Result<v1::NeedSlotsReply, Failure> {
    let session = rooms.database.session(postgres::Purpose::Watch).await.map_err(explain)?;
    let told = need(rooms, &session, names).await;
    session.close().await;
    told
}

async fn need(rooms: &Rooms, session: &Session, names: &[String]) -> Result<v1::NeedSlotsReply, Failure> {
    let needed = slots::needed(session, names).await.map_err(explain)?;
    let needed = needed.into_iter().map(|needed| v1::NeededSlot {
        name: needed.name,
        subscription: needed.subscription,
        enabled: needed.is_enabled,
    });
    Ok(v1::NeedSlotsReply { node_id: rooms.me.to_string(), needed: needed.collect() })
}

/// `steep_…`, or what a table synchronization worker leaves: `pg_16401_sync_16390_7710788945299280709`.
fn is_named_like_ours(name: &str) -> bool {
    name.starts_with("steep_") || is_of_a_sync(name)
}

fn is_of_a_sync(name: &str) -> bool {
    let parts: Vec<&str> = name.split('_').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    matches!(parts[..], ["pg", sub, "sync", rel, system] if [sub, rel, system].iter().all(is_number))
}

fn judge(slot: Slot, known: &Known) -> Listed {
    if let Some(prepared) = known.prepared.iter().find(|prepared| prepared.slot == slot.name) {
        let target = prepared.target.as_ref().map(ToString::to_string).unwrap_or_default();
        let (id, until) = (prepared.id(), prepared.expires_at);
        let why = format!("kept until {until:.0} for a backup made by hand (preparation {id})");
        return Listed { slot, target, purpose: Purpose::Prepared, why, op: None };
    }
    let made = known.made.iter().rev().find(|made| made.name == slot.name);
    let named = || known.peers.iter().find(|peer| slot.is_kept_for(peer)).map(ToString::to_string);
    let written = made.map(|made| made.peer.clone()).filter(|peer| !peer.is_empty());
    let reader = known.readers.get(&slot.name);
    let target = written.or_else(named).or_else(|| reader.map(|(node, _)| node.to_string())).unwrap_or_default();
    let pending = made.filter(|made| !made.is_kept);
    let op = pending.map(|made| made.op_id).filter(|op| known.running.contains(op));
    let (purpose, why) = match (pending, reader) {
        _ if !is_named_like_ours(&slot.name) => (Purpose::Foreign, "Steep has not made it".to_owned()),
        (Some(made), _) if op.is_some() => (Purpose::Operation, format!("operation {} needs it", made.op_id)),
        (_, Some((node, needed))) => {
            let disabled = if needed.enabled { "" } else { ", and is disabled" };
            (Purpose::Subscription, format!("subscription {} of {node} reads it{disabled}", needed.subscription))
        }
        (Some(made), None) => {
            let why = format!("left by operation {}, whose undoing takes it away within a minute", made.op_id);
            (Purpose::Operation, why)
        }
        (None, None) => unread(&slot, &target, known),
    };
    Listed { slot, target, purpose, why, op }
}

/// No subscription that we know of reads it.
fn unread(slot: &Slot, target: &str, known: &Known) -> (Purpose, String) {
    if let Some(until) = known.snapshots.get(&slot.name) {
        return (Purpose::Snapshot, format!("a snapshot in files may be applied until {until}"));
    }
    if let Some(pid) = slot.progress.active_pid {
        return (Purpose::Undecided, format!("process {pid} reads it, for no subscription that is known"));
    }
    let is_silent = |node: &&NodeId| target.is_empty() || node.as_str() == target;
    if let Some(silent) = known.silent.iter().find(is_silent) {
        return (Purpose::Undecided, format!("{silent} cannot be asked whether it needs it"));
    }
    let why = match target {
        "" if is_of_a_sync(&slot.name) => "no known node copies a table by it any more".to_owned(),
        "" => "no operation has made it that is known here, and no known node reads it".to_owned(),
        node if known.peers.iter().any(|peer| peer.as_str() == node) => {
            format!("{node} has no subscription that reads it")
        }
        node => format!("{node} is no member of the mesh any more"),
    };
    (Purpose::Orphan, why)
}

/// Drops slot `name` by order of `actor`, and returns what it was.
///
/// Fails with [`Code::SlotUnknown`]; with [`Code::SlotNeeded`] where an operation needs it, and without `force` also where a node
/// may need it or somebody reads it; without `force` with [`Code::SlotForeign`] where Steep has not made it. Nothing is changed then.
pub async fn drop(rooms: &Rooms, name: &str, force: bool, actor: &Actor) -> Result<Listed, Failure> {
    let session = rooms.database.session(postgres::Purpose::Watch).await.map_err(explain)?;
    let unknown = || {
        Failure::new(Code::SlotUnknown, format!("{} has no slot {name}", rooms.me))
            .hint(format!("steepctl slot list {}", rooms.me))
    };
    let slot = slots::find(&session, name).await.map_err(explain)?.ok_or_else(unknown)?;
    let known = known(rooms, &session, std::slice::from_ref(&slot)).await?;
    let listed = judge(slot, &known);
    refuse(&rooms.me, &listed, force)?;
    let is_dropped = match force && listed.purpose != Purpose::Foreign {
        true => slots::drop(&session, name).await,
        false => slots::drop_unread(&session, name).await,
    };
    if !is_dropped.map_err(explain)? {
        return Err(unknown());
    }
    if listed.purpose != Purpose::Foreign {
        let reason = format!("dropped by {actor}");
        follows::lose(&rooms.store, &rooms.me, name, &listed.target, &reason).await.map_err(remember)?;
        intents::settle(&rooms.store, "slot", name).await.map_err(remember)?;
    }
    let detail =
        json!({ "node": listed.target, "purpose": listed.purpose.as_str(), "why": listed.why, "force": force });
    audit::append(&rooms.store, actor, "slot.drop", name, None, &detail).await.map_err(remember)?;
    warn!(
        event = "slot.dropped",
        slot = name,
        peer = listed.target,
        actor = actor.to_json().to_string(),
        "a slot was dropped by an operator"
    );
    Ok(listed)
}

fn refuse(me: &NodeId, listed: &Listed, force: bool) -> Result<(), Failure> {
    let name = &listed.slot.name;
    let by_force = format!("steepctl slot drop {me} {name} --force");
    let needed = |text: String, hint: String| Err(Failure::new(Code::SlotNeeded, text).hint(hint));
    let loses = match listed.target.as_str() {
        "" => "whoever reads it loses".to_owned(),
        node => format!("{node} would lose"),
    };
    let loses = format!("{loses} what is written on {me} from now on, and what it has not received yet");
    match (listed.purpose, &listed.op) {
        (Purpose::Operation, Some(op)) => {
            needed(format!("slot {name} is needed: {}", listed.why), format!("steepctl op cancel {op}"))
        }
        (Purpose::Prepared, _) => needed(
            format!("slot {name} is needed: {}", listed.why),
            format!("steepctl node prepare {me} --cancel {name} takes it back"),
        ),
        _ if force => Ok(()),
        (Purpose::Foreign, _) => {
            let text = format!("slot {name} of {me} was not made by Steep: somebody else may need it");
            Err(Failure::new(Code::SlotForeign, text).hint(format!("if nobody does: {by_force}")))
        }
        (Purpose::Snapshot, _) => needed(
            format!("slot {name} is needed: {}", listed.why),
            "steepctl snapshot list shows the snapshot; steepctl snapshot delete ID takes both away".to_owned(),
        ),
        (Purpose::Subscription | Purpose::Undecided, _) => needed(
            format!("slot {name} may be needed: {}; {loses}", listed.why),
            format!("steepctl node remove takes a node out in order; or, it is lost then: {by_force}"),
        ),
        (Purpose::Operation | Purpose::Orphan, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
