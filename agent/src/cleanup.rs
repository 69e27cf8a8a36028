//! Everything an operation makes outside its own tables, and how each of it is undone.
//!
//! An [`Effect`] is written down as an intent row *before* it happens, with all that is needed to take it back.
//! Undoing walks the rows backwards and touches nothing they do not name. It may be repeated: what is gone
//! already counts as undone. Rows that could not be undone stay, and the janitor tries them again.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    names::TableName,
};
use tracing::{info, warn};

use crate::{
    breakpoint::crash_point,
    config::Snapshots,
    keeper::Keepers,
    link::Links,
    mesh::{Peers, Source},
    postgres::{
        self, Database, Purpose, Session, activity, ddl, inventory,
        inventory::{CreatedObject, Inventory},
        marks, origins, publications,
        slots::{self, SyncSlots},
        staging, subscriptions, tables,
    },
    store::{
        Store,
        intents::{self, Intent},
    },
    telemetry,
};

mod detour;
mod files;
mod sessions;

use sessions::SESSION;

pub use detour::{Contents, Detour, Stage, held_tables};

/// How long what a detour brings back may stand still, where it is finished because the rest was given up.
const DETOUR_PATIENCE: Duration = Duration::from_secs(60);
/// How long taking a fence away may wait for whoever uses its table, until it is tried again.
const FENCE_PATIENCE: Duration = Duration::from_secs(5);

/// A table in a publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The table.
    pub table: TableName,
    /// It is a partitioned table, whose partitions go with it.
    pub partitioned: bool,
}

impl From<ddl::TableRef> for Member {
    fn from(table: ddl::TableRef) -> Self {
        Self { table: table.name, partitioned: table.is_partitioned }
    }
}

impl From<&Member> for ddl::TableRef {
    fn from(member: &Member) -> Self {
        Self { name: member.table.clone(), is_partitioned: member.partitioned }
    }
}

/// Something an operation makes or changes on this node, or has a peer make.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Effect {
    /// A replication slot on this node.
    Slot {
        /// Its name.
        name: String,
        /// The node it was made for: a replication link lets nobody else read it.
        #[serde(default)]
        peer: Option<NodeId>,
    },
    /// Slots that a subscriber's PostgreSQL makes on this node for the time it copies tables by itself.
    SyncSlots {
        /// How they are named.
        of: SyncSlots,
    },
    /// The mark of a preparation in this database.
    Mark {
        /// The preparation's short id.
        id: String,
    },
    /// A publication, made or enlarged.
    Publication {
        /// Its name.
        name: String,
        /// It was not there before.
        created: bool,
        /// Tables it did not hold before.
        added: Vec<Member>,
    },
    /// A subscription on this node.
    Subscription {
        /// Its name.
        name: String,
    },
    /// A subscription on this node that is disabled for a moment, and has to run again.
    Pause {
        /// Its name.
        subscription: String,
    },
    /// A replication origin on this node.
    Origin {
        /// Its name.
        name: String,
    },
    /// A restore that makes objects: what was there before it, and tables it will make.
    Schema {
        /// Every object before.
        before: Inventory,
        /// Tables the restore makes, if it is committed.
        markers: Vec<TableName>,
    },
    /// Objects a restore has made.
    Objects {
        /// All of them.
        created: Vec<CreatedObject>,
    },
    /// Rows put into tables that were there, and empty, before.
    Rows {
        /// The tables.
        tables: Vec<Member>,
    },
    /// A subscription that skips tables, or reads another slot, until these are where the others are.
    Detour(Detour),
    /// Tables of ours that rows are copied into first.
    Staged {
        /// The tables.
        tables: Vec<TableName>,
    },
    /// Tables that applications may not change.
    Fence {
        /// The name of its triggers and their function.
        name: String,
    },
    /// What is held open here for a peer, and the keeper of its snapshot.
    Session {
        /// The slot it is for.
        slot: String,
        /// All that the agent's next run needs to go on with it; null until it is open.
        record: Value,
    },
    /// A directory with the files of a snapshot.
    Directory {
        /// Its path; in an object store `s3://BUCKET/PREFIX`.
        path: String,
        /// It was there before, empty, and stays.
        #[serde(default)]
        was_there: bool,
    },
    /// What a peer holds and makes for this operation.
    PeerSession {
        /// The peer.
        node: NodeId,
    },
}

impl Effect {
    fn kind_and_name(&self) -> (&'static str, String) {
        match self {
            Self::Slot { name, .. } => ("slot", name.clone()),
            Self::SyncSlots { of } => ("sync_slots", of.to_string()),
            Self::Mark { id } => ("mark", id.clone()),
            Self::Publication { name, .. } => ("publication", name.clone()),
            Self::Subscription { name } => ("subscription", name.clone()),
            Self::Pause { subscription } => ("pause", subscription.clone()),
            Self::Origin { name } => ("origin", name.clone()),
            Self::Schema { .. } => ("schema", String::new()),
            Self::Objects { created } => ("objects", format!("{} objects", created.len())),
            Self::Rows { tables } => ("rows", format!("{} tables", tables.len())),
            Self::Detour(detour) => ("detour", detour.subscription.clone()),
            Self::Staged { tables } => ("staged", format!("{} tables", tables.len())),
            Self::Fence { name } => ("fence", name.clone()),
            Self::Session { slot, .. } => (SESSION, slot.clone()),
            Self::Directory { path, .. } => ("directory", path.clone()),
            Self::PeerSession { node } => ("peer_session", node.to_string()),
        }
    }
}

/// Writes down what one operation is about to do, and undoes it.
#[derive(Debug, Clone)]
pub struct Cleanup {
    store: Store,
    database: Database,
    peers: Peers,
    links: Links,
    keepers: Keepers,
    places: Snapshots,
}

impl Cleanup {
    /// For operations on this node.
    pub fn new(
        store: Store,
        database: Database,
        peers: Peers,
        links: Links,
        keepers: &Keepers,
        places: &Snapshots,
    ) -> Self {
        Self { store, database, peers, links, keepers: keepers.clone(), places: places.clone() }
    }

    /// Writes `effect` down, does it, and marks it as there. After an error the row stays: nobody knows how
    /// far the effect came. Tried again, what has a name of its own keeps its first row, which tells how it was before.
    pub async fn make<T>(
        &self,
        op: OperationId,
        step: &str,
        effect: &Effect,
        make: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let (kind, name) = effect.kind_and_name();
        let detail = serde_json::to_value(effect).expect("an effect is plain data");
        let id = intents::plan(&self.store, op, step, kind, &name, &detail).await.map_err(|error| error.explain())?;
        let made = make.await?;
        crash_point!("made, not marked");
        if intents::live(&self.store, id).await.map_err(|error| error.explain())? {
            return Ok(made);
        }
        // The operation was undone while this was being made, and nobody will look at the row again.
        let session = self.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        self.undo_effect(&session, op, effect.clone()).await?;
        Err(Failure::new(Code::Cancelled, format!("operation {op} was undone while {kind} {name} was being made")))
    }

    /// What `op` has written down of one kind and not undone, newest first: it is there, or may be.
    pub async fn pending(&self, op: OperationId, kind: &str) -> Result<Vec<Effect>, Failure> {
        let pending = intents::pending(&self.store, op).await.map_err(|error| error.explain())?;
        pending.iter().filter(|intent| intent.kind == kind).map(effect_of).collect()
    }

    /// What the operation made is there to stay.
    pub async fn keep(&self, op: OperationId) -> Result<(), Failure> {
        let sessions = self.pending(op, SESSION).await?;
        intents::keep(&self.store, op).await.map_err(|error| error.explain())?;
        self.settle_sessions(&sessions).await
    }

    /// A slot that `op` made for nobody yet is `peer`'s from now on: a replication link lets it read it.
    pub async fn give_slot(&self, op: OperationId, slot: &str, peer: &NodeId) -> Result<(), Failure> {
        let explain = |error: postgres::Error| error.explain();
        let effect = Effect::Slot { name: slot.to_owned(), peer: Some(peer.clone()) };
        let detail = serde_json::to_value(&effect).expect("an effect is plain data");
        let session = self.database.session(Purpose::Watch).await.map_err(explain)?;
        intents::revise(&session, op, "slot", slot, &detail).await.map_err(explain)
    }

    /// What `op` wrote down of one kind was there before: it is another's, and nobody undoes it.
    pub async fn disown(&self, op: OperationId, kind: &str) -> Result<(), Failure> {
        let pending = intents::pending(&self.store, op).await.map_err(|error| error.explain())?;
        for intent in pending.iter().filter(|intent| intent.kind == kind) {
            intents::undone(&self.store, intent.id).await.map_err(|error| error.explain())?;
        }
        Ok(())
    }

    /// Drops the origins of the load sessions: once the rows are in and sent past, nobody needs them, and a server
    /// has few.
    pub async fn drop_origins(&self, op: OperationId) -> Result<(), Failure> {
        let pending = intents::pending(&self.store, op).await.map_err(|error| error.explain())?;
        let session = self.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        for intent in pending.iter().filter(|intent| intent.kind == "origin") {
            origins::drop(&session, &intent.name).await.map_err(|error| error.explain())?;
            intents::undone(&self.store, intent.id).await.map_err(|error| error.explain())?;
        }
        Ok(())
    }

    /// Undoes at once what `op` made of one kind; the rest stays.
    ///
    /// Goes on after an error and returns the first one; what failed stays written down.
    pub async fn undo_kind(&self, op: OperationId, kind: &str) -> Result<(), Failure> {
        let pending = intents::pending(&self.store, op).await.map_err(|error| error.explain())?;
        let session = self.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        let of_kind: Vec<_> = pending.into_iter().filter(|intent| intent.kind == kind).collect();
        self.undo_all(&session, op, &of_kind).await
    }

    /// What the operation made, even what was kept, is to be undone after all.
    pub async fn reopen(&self, op: OperationId) -> Result<(), Failure> {
        intents::reopen(&self.store, op).await.map_err(|error| error.explain())
    }

    /// Undoes all that `op` made on this node and had its peer make.
    ///
    /// Goes on after an error and returns the first one; what failed stays written down.
    pub async fn undo(&self, op: OperationId) -> Result<(), Failure> {
        let mut pending = intents::pending(&self.store, op).await.map_err(|error| error.explain())?;
        if pending.is_empty() {
            return Ok(());
        }
        // Our own subscriptions first: one that copies its tables makes slots on its publisher for as long as it runs. Then
        // the peer: its subscription must be gone before anything is emptied here.
        pending.sort_by_key(|intent| match intent.kind.as_str() {
            "subscription" => 0,
            "peer_session" => 1,
            _ => 2,
        });
        let session = self.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        activity::terminate(&session, op).await.map_err(|error| error.explain())?;
        // What a subscription needs to come back from its detour is the operation's; nothing of that may go before.
        self.finish_detours(op, DETOUR_PATIENCE).await?;
        pending.retain(|intent| intent.kind != "detour");
        self.undo_all(&session, op, &pending).await
    }

    async fn undo_all(&self, session: &Session, op: OperationId, pending: &[Intent]) -> Result<(), Failure> {
        let mut first = None;
        for intent in pending {
            match self.undo_one(session, op, intent).await {
                Ok(()) => intents::undone(&self.store, intent.id).await.map_err(|error| error.explain())?,
                Err(failure) => {
                    warn!(
                        event = "agent.cleanup", op_id = %op, details.kind = %intent.kind, details.name = %intent.name,
                        error = telemetry::failure(&failure), "could not be undone"
                    );
                    first.get_or_insert(failure);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Undoes what operations that have ended left behind; for start-up and the janitor.
    ///
    /// `is_running` is asked after the rows were read: whatever writes rows counts as running before its first.
    pub async fn sweep(&self, is_running: impl Fn(OperationId) -> bool) -> Result<(), Failure> {
        let open = intents::open_operations(&self.store).await.map_err(|error| error.explain())?;
        for op in open {
            if is_running(op) {
                continue;
            }
            info!(event = "agent.cleanup", op_id = %op, "cleaning up after an operation that ended early");
            if let Err(failure) = self.undo(op).await {
                warn!(event = "agent.cleanup", op_id = %op, error = telemetry::failure(&failure), "will be tried again");
            }
        }
        Ok(())
    }

    async fn undo_one(&self, session: &Session, op: OperationId, intent: &Intent) -> Result<(), Failure> {
        self.undo_effect(session, op, effect_of(intent)?).await
    }

    async fn undo_effect(&self, session: &Session, op: OperationId, effect: Effect) -> Result<(), Failure> {
        let explain = |error: postgres::Error| error.explain();
        match effect {
            Effect::Slot { name, .. } => slots::drop(session, &name).await.map(drop).map_err(explain),
            Effect::SyncSlots { of } => slots::drop_syncs(session, &of).await.map_err(explain),
            Effect::Mark { id } => marks::remove(session, &id).await.map_err(explain),
            Effect::Subscription { name } => {
                // Its link first: where tables are being copied, PostgreSQL would ask a publisher that may not answer to drop
                // the slots for that; its own agent does.
                self.links.close(&name);
                subscriptions::drop(session, &name).await.map(drop).map_err(explain)
            }
            Effect::Pause { subscription } => subscriptions::resume(session, &subscription).await.map_err(explain),
            Effect::Origin { name } => origins::drop(session, &name).await.map(drop).map_err(explain),
            Effect::Publication { name, created, added } => {
                self.undo_publication(session, op, &name, created, &added).await
            }
            Effect::Schema { before, markers } => {
                let created = inventory::created_since(session, &before, &markers).await.map_err(explain)?;
                drop_objects(session, &created).await
            }
            Effect::Objects { created } => drop_objects(session, &created).await,
            Effect::Rows { tables } => self.empty(op, &tables).await,
            Effect::Detour(_) => Box::pin(self.finish_detours(op, DETOUR_PATIENCE)).await,
            Effect::Staged { tables } => staging::drop(session, &tables).await.map_err(explain),
            Effect::Fence { name } => self.take_fence_away(op, &name).await,
            Effect::Session { .. } => {
                self.keepers.let_go(op).await;
                Ok(())
            }
            Effect::Directory { path, was_there } => self.remove_files(&path, was_there).await,
            Effect::PeerSession { node } => {
                let source = Source::new(self.peers.clone(), node, op);
                source.close_session(false, "the operation was undone").await
            }
        }
    }

    async fn take_fence_away(&self, op: OperationId, name: &str) -> Result<(), Failure> {
        let explain = |error: postgres::Error| error.explain();
        let session = self.database.session(Purpose::Ddl(op)).await.map_err(explain)?;
        session.begin().await.map_err(explain)?;
        staging::be_patient(&session, FENCE_PATIENCE).await.map_err(explain)?;
        session.run(&ddl::switch::drop_fence(name)).await.map_err(explain)?;
        session.commit().await.map_err(explain)
    }

    async fn undo_publication(
        &self,
        session: &Session,
        op: OperationId,
        name: &str,
        created: bool,
        added: &[Member],
    ) -> Result<(), Failure> {
        let explain = |error: postgres::Error| error.explain();
        let others = intents::others_with_publication(&self.store, op, name).await.map_err(|error| error.explain())?;
        if others.is_read || !publications::exists(session, name).await.map_err(explain)? {
            return Ok(());
        }
        if created || others.was_kept {
            session.run(&ddl::drop_publication(name)).await.map_err(explain)?;
            return intents::settle(&self.store, "publication", name).await.map_err(|error| error.explain());
        }
        let held = publications::tables(session, name).await.map_err(explain)?;
        let members: Vec<_> =
            added.iter().filter(|member| held.iter().any(|table| table.name == member.table)).map(Into::into).collect();
        match ddl::remove_from_publication(name, &members) {
            Some(statement) => session.run(&statement).await.map_err(explain),
            None => Ok(()),
        }
    }

    /// Empties tables so that no peer hears of it: under an origin of its own, which subscriptions filter.
    pub async fn empty(&self, op: OperationId, members: &[Member]) -> Result<(), Failure> {
        let explain = |error: postgres::Error| error.explain();
        let session = self.database.session(Purpose::Ddl(op)).await.map_err(explain)?;
        let there = tables::find(&session, &members.iter().map(|member| member.table.clone()).collect::<Vec<_>>())
            .await
            .map_err(explain)?;
        let refs: Vec<ddl::TableRef> = members
            .iter()
            .filter(|member| there.iter().any(|table| table.name == member.table))
            .map(Into::into)
            .collect();
        if refs.is_empty() {
            return Ok(());
        }
        let origin = format!("steep_empty_{}", op.short());
        origins::create(&session, &origin).await.map_err(explain)?;
        let emptied = async {
            origins::set_up(&session, &origin).await?;
            session.run(&ddl::truncate(&refs)).await?;
            origins::reset(&session).await
        };
        let emptied = emptied.await.map_err(explain);
        session.close().await;
        let session = self.database.session(Purpose::Ddl(op)).await.map_err(explain)?;
        origins::drop(&session, &origin).await.map_err(explain)?;
        emptied
    }
}

fn effect_of(intent: &Intent) -> Result<Effect, Failure> {
    serde_json::from_value(intent.detail.clone()).map_err(|error| {
        let text = format!("intent {} of kind {} was written by another version", intent.id, intent.kind);
        Failure::new(Code::Internal, text).caused_by(&error)
    })
}

async fn drop_objects(session: &Session, created: &[CreatedObject]) -> Result<(), Failure> {
    let left = inventory::drop_objects(session, created).await.map_err(|error| error.explain())?;
    match left.first() {
        None => Ok(()),
        Some(first) => {
            let text = format!("{} objects could not be dropped, {} among them", left.len(), first.object.identity);
            Err(Failure::new(Code::ObjectExists, text)
                .cause(first.reason.clone())
                .hint(format!("drop {} {} yourself", first.object.kind, first.object.identity)))
        }
    }
}

#[cfg(test)]
mod tests;
