//! What this node keeps for others: how it tells them of their slots, and what it notices about these slots itself.

use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    v1,
};
use tracing::warn;

use super::rules::{Fate, Told};
use crate::{
    postgres::{
        self, Session, activity,
        slots::{self, Slot},
    },
    rooms::Rooms,
    session::is_slot_for,
    store::{
        self,
        follows::{self, KeptSlot, LostSlot},
    },
    troubles::ToldSlots,
};

/// More slots than anybody reads at one node.
const MOST: usize = 64;

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

fn remember(error: store::Error) -> Failure {
    error.explain()
}

/// How the slots fare that `caller` asks for, as last looked at; of those that are not kept for it nothing is told.
pub fn tell(rooms: &Rooms, caller: &NodeId, asked: &[String]) -> Result<v1::FollowSlotsReply, Failure> {
    let Some(told) = rooms.troubles.found().told else {
        let text = format!("PostgreSQL of {} does not answer its agent now", rooms.me);
        return Err(Failure::new(Code::PostgresUnreachable, text));
    };
    let is_theirs = |name: &&String| {
        is_slot_for(name, Some(caller)) || told.kept_for.get(*name).is_some_and(|node| node == caller.as_str())
    };
    let names = asked.iter().filter(is_theirs).take(MOST);
    let released = |name: &String| {
        let reason = "it was taken away with a node or an operation".into();
        v1::FollowedSlot {
            name: name.clone(),
            fate: Fate::Released.as_str().into(),
            reason,
            ..v1::FollowedSlot::default()
        }
    };
    let slots = names.map(|name| told.slots.get(name).cloned().unwrap_or_else(|| released(name)));
    Ok(v1::FollowSlotsReply { slots: slots.collect(), run: told.run, look: told.look })
}

/// How a slot fares that was made here, whether it is there or not.
fn fate(name: &str, slot: Option<&Slot>, lost: Option<&String>, starving: Option<&String>) -> v1::FollowedSlot {
    let (fate, reason) = match (lost, slot) {
        (Some(reason), _) => (Fate::Lost, reason.clone()),
        (None, Some(slot)) if slot.progress.is_lost() => (Fate::Lost, why_lost(slot)),
        (None, Some(_)) => match starving {
            Some(file) => (Fate::Starved, missing(file)),
            None => (Fate::Good, String::new()),
        },
        (None, None) => (Fate::Missing, String::new()),
    };
    let progress = slot.map(|slot| &slot.progress);
    let confirmed = progress.and_then(|progress| progress.confirmed_flush);
    v1::FollowedSlot {
        name: name.into(),
        fate: fate.as_str().into(),
        reason,
        unconfirmed_bytes: progress.and_then(|progress| progress.unconfirmed_bytes).unwrap_or_default(),
        confirmed_lsn: confirmed.map(|lsn| lsn.to_string()).unwrap_or_default(),
    }
}

/// What a source has told; none where it says something this version does not know.
pub(super) fn read(told: &v1::FollowedSlot, reply: &v1::FollowSlotsReply) -> Option<Told> {
    Some(Told {
        run: reply.run.clone(),
        look: reply.look,
        fate: Fate::told(&told.fate)?,
        reason: told.reason.clone(),
        unconfirmed_bytes: told.unconfirmed_bytes,
        confirmed: told.confirmed_lsn.parse().unwrap_or_default(),
    })
}

/// What became of a slot that PostgreSQL gave up.
pub fn why_lost(slot: &Slot) -> String {
    match slot.progress.invalidation_reason.as_str() {
        // Before 17 there is one reason for a logical slot on a primary.
        "" | "wal_removed" => "PostgreSQL removed WAL it needed (max_slot_wal_keep_size)".into(),
        "idle_timeout" => "nobody read it for idle_replication_slot_timeout".into(),
        reason => format!("PostgreSQL invalidated it: {reason}"),
    }
}

fn missing(file: &str) -> String {
    format!("{file} is not in pg_wal")
}

/// Remembers from look to look what was told.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    looks: u64,
    told: BTreeSet<String>,
    /// Gone, or starved, when looked at last: once is no proof.
    gone_before: BTreeSet<String>,
    starved_before: BTreeMap<String, String>,
}

/// What was seen of this node's own slots.
pub(super) struct Look {
    /// Slots of this database that Steep made, and the node each is kept for.
    pub(super) ours: Vec<(Slot, String)>,
}

impl Keeping {
    /// Looks at the slots of this node, tells what is new, and publishes what is wrong.
    pub(super) async fn look(&mut self, rooms: &Rooms, session: &Session) -> Result<Look, Failure> {
        let there = slots::list(session).await.map_err(explain)?;
        let made = follows::slots(&rooms.store).await.map_err(remember)?;
        let dbname = &rooms.database.config().dbname;
        let peers: Vec<NodeId> = rooms.peers.names().collect();
        let owner = |slot: &Slot| {
            let written = made.iter().find(|made| made.name == slot.name && !made.peer.is_empty());
            let named = || peers.iter().find(|peer| slot.is_kept_for(peer)).map(ToString::to_string);
            written.map(|made| made.peer.clone()).or_else(named).unwrap_or_default()
        };
        let is_made = |slot: &Slot| is_slot_for(&slot.name, None) || made.iter().any(|made| made.name == slot.name);
        let ours = there.iter().filter(|slot| slot.database == *dbname && is_made(slot));
        let ours: Vec<(Slot, String)> = ours.map(|slot| (slot.clone(), owner(slot))).collect();
        let starved = match ours.iter().any(|(slot, _)| !slot.progress.is_active) {
            true => slots::starved(session).await.map_err(explain)?.into_iter().collect(),
            false => BTreeMap::new(),
        };
        let is_settled = |slot: &str, file: &String| self.starved_before.get(slot) == Some(file);
        let starving: BTreeMap<_, _> =
            starved.iter().filter(|(slot, file)| is_settled(slot, file)).map(|(a, b)| (a.clone(), b.clone())).collect();
        self.starved_before = starved;
        let mut troubles = Vec::new();
        for (slot, target) in &ours {
            if slot.progress.is_lost() {
                let why = why_lost(slot);
                self.tell_lost(rooms, &slot.name, target, &why).await?;
                let text = format!("slot {}, kept for {}, is lost: {why}", slot.name, known(target));
                troubles.push(Failure::new(Code::SlotLost, text));
            } else if let Some(file) = starving.get(&slot.name) {
                let text = format!(
                    "WAL that slot {}, kept for {}, needs is gone: {}",
                    slot.name,
                    known(target),
                    missing(file)
                );
                troubles.push(Failure::new(Code::WalMissing, text));
            }
        }
        for gone in self.gone(&there, &made) {
            let text = format!("slot {}, kept for {}, is gone", gone.name, known(&gone.peer));
            if self.told.insert(format!("gone {}", gone.name)) {
                warn!(
                    event = "slot.gone",
                    slot = gone.name,
                    peer = gone.peer,
                    "a slot that was kept for a node is gone"
                );
            }
            troubles.push(Failure::new(Code::SlotGone, text));
        }
        let mut kept_for: BTreeMap<_, _> = made.iter().map(|made| (made.name.clone(), made.peer.clone())).collect();
        let mut lost = BTreeMap::new();
        for LostSlot { name, target, reason } in follows::lost(&rooms.store, &rooms.me).await.map_err(remember)? {
            kept_for.insert(name.clone(), target);
            lost.insert(name, reason);
        }
        let names =
            made.iter().map(|made| &made.name).chain(lost.keys()).chain(ours.iter().map(|(slot, _)| &slot.name));
        let told = names.map(|name| {
            let slot = there.iter().find(|slot| slot.name == *name);
            (name.clone(), fate(name, slot, lost.get(name), starving.get(name)))
        });
        let slots = told.collect();
        self.looks += 1;
        let started = activity::started_at(session).await.map_err(explain)?;
        let run = format!("{} {started}", rooms.peers.facts().instance_id);
        let told = ToldSlots { run, look: self.looks, slots, kept_for };
        rooms.troubles.find(|found| (found.kept, found.told) = (troubles, Some(told)));
        Ok(Look { ours })
    }

    async fn tell_lost(&mut self, rooms: &Rooms, slot: &str, target: &str, why: &str) -> Result<(), Failure> {
        if !self.told.contains(slot) {
            follows::lose(&rooms.store, &rooms.me, slot, target, why).await.map_err(remember)?;
            warn!(event = "slot.lost", slot, peer = target, reason = why, "a slot that is kept for a node is lost");
            self.told.insert(slot.to_owned());
        }
        Ok(())
    }

    /// Slots that were made, kept, and are gone for longer than a removal needs to write that down.
    fn gone<'a>(&mut self, there: &[Slot], made: &'a [KeptSlot]) -> Vec<&'a KeptSlot> {
        let is_there = |name: &str| there.iter().any(|slot| slot.name == name);
        let gone: Vec<&KeptSlot> = made.iter().filter(|made| made.is_kept && !is_there(&made.name)).collect();
        let settled = gone.iter().copied().filter(|gone| self.gone_before.contains(&gone.name)).collect();
        self.gone_before = gone.iter().map(|gone| gone.name.clone()).collect();
        settled
    }
}

pub(super) fn known(node: &str) -> &str {
    if node.is_empty() { "a node nobody knows" } else { node }
}
