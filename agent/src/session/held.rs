//! One open session: its slot, its snapshot, and the connections that read in it.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId, SessionId},
    lsn::Lsn,
    names::TableName,
};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{
    keeper::Keeper,
    parts::TablePlan,
    postgres::{self, Database, Reader, selection::Selection, tables::Table},
    telemetry,
};

/// What an operator has signed for a session, and so all that it gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// The tables.
    pub selection: Selection,
    /// The target's changes must not come back.
    pub one_way: bool,
}

impl Scope {
    /// Whether the schema of all that the selection means may be read with these choices of pg_dump, `tables` being
    /// those of the session.
    pub fn allows_dump(&self, request: &DumpChoice<'_>, mut tables: impl FnMut(&TableName) -> bool) -> bool {
        if !request.only.is_empty() {
            return request.only.iter().all(&mut tables);
        }
        let Selection { tables: chosen, schemas, exclude } = &self.selection;
        chosen.is_empty() && request.schemas == schemas && exclude.iter().all(|table| request.without.contains(table))
    }
}

/// Which part of a schema is to be dumped.
#[derive(Debug, Clone, Copy)]
pub struct DumpChoice<'a> {
    /// Only these tables; empty: all.
    pub only: &'a [TableName],
    /// Without these.
    pub without: &'a [TableName],
    /// Only these schemas; empty: all.
    pub schemas: &'a [String],
}

/// What this node is to the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The rows come from here.
    Source {
        /// Of every node whose changes are applied here: up to there its WAL is in the snapshot.
        positions: Vec<(NodeId, Lsn)>,
    },
    /// It replicates both ways with the source, and shall with the target.
    Member {
        /// The slot here that the source reads.
        source_slot: String,
        /// Written after the session's slot was made.
        marker: Lsn,
    },
    /// The rows are there already, from a backup made by hand.
    Prepared,
    /// The rows come from a snapshot of this node that lies in files.
    Files {
        /// The operation that made it.
        snapshot: OperationId,
    },
}

/// What a snapshot of this node shows: what was committed before these places, and nothing later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// In this node's WAL.
    pub lsn: Lsn,
    /// In the WAL of every node whose changes are applied here.
    pub positions: Vec<(NodeId, Lsn)>,
}

impl Moment {
    /// Whether `later` shows all that this shows.
    pub(super) fn is_in(&self, later: &Self) -> bool {
        let has = |(node, at): &(NodeId, Lsn)| later.positions.iter().any(|(other, now)| other == node && now >= at);
        later.lsn >= self.lsn && self.positions.iter().all(has)
    }
}

/// A session about to be open.
pub(super) struct NewHeld {
    pub(super) id: SessionId,
    pub(super) opened_at: Timestamp,
    pub(super) op: OperationId,
    pub(super) target: NodeId,
    pub(super) slot: String,
    pub(super) lsn: Lsn,
    pub(super) publication: String,
    pub(super) scope: Scope,
    pub(super) snapshot: String,
    pub(super) tables: Vec<(Table, TablePlan)>,
    pub(super) role: Role,
    pub(super) one_way: bool,
    pub(super) parallel: u32,
    pub(super) gate: Option<Moment>,
    pub(super) lacks_readers: bool,
    pub(super) database: Database,
    pub(super) keeper: Option<Keeper>,
    pub(super) idle: Vec<Reader>,
}

/// A session that is open.
#[derive(Debug)]
pub struct Held {
    /// Its id.
    pub id: SessionId,
    /// When it was opened, by this run of the agent or an earlier one.
    pub opened_at: Timestamp,
    /// The operation it serves.
    pub op: OperationId,
    /// For whom.
    pub target: NodeId,
    /// The slot made for it.
    pub slot: String,
    /// The slot's consistent point.
    pub lsn: Lsn,
    /// The publication that holds its tables.
    pub publication: String,
    /// What may be read through it.
    pub scope: Scope,
    /// The snapshot parts are read in; empty on a member.
    pub snapshot: String,
    /// Its tables and their parts.
    pub tables: Vec<(Table, TablePlan)>,
    /// What this node is to the operation.
    pub role: Role,
    /// Nothing is sent back.
    pub one_way: bool,
    /// What the snapshot shows, if that is later than where the slot begins: an earlier one was lost.
    pub gate: Option<Moment>,
    /// As many streams read at once.
    pub(super) parallel: u32,
    /// Its readers ended with the run before; they have to be ready before any DDL waits.
    pub(super) lacks_readers: bool,
    pub(super) database: Database,
    pub(super) keeper: AsyncMutex<Option<Keeper>>,
    pub(super) idle: Mutex<Vec<Reader>>,
    pub(super) renewed: Mutex<Instant>,
    pub(super) retained_bytes: AtomicU64,
    pub(super) failure: OnceLock<Failure>,
    /// Errors of the subscription for the way back that do not count; none: there is no such subscription yet.
    back: Mutex<Option<u64>>,
    pub(super) ended: CancellationToken,
}

impl Held {
    pub(super) fn new(new: NewHeld) -> Self {
        Self {
            id: new.id,
            opened_at: new.opened_at,
            op: new.op,
            target: new.target,
            slot: new.slot,
            lsn: new.lsn,
            publication: new.publication,
            scope: new.scope,
            snapshot: new.snapshot,
            tables: new.tables,
            role: new.role,
            one_way: new.one_way,
            gate: new.gate,
            parallel: new.parallel,
            lacks_readers: new.lacks_readers,
            database: new.database,
            keeper: AsyncMutex::new(new.keeper),
            idle: Mutex::new(new.idle),
            renewed: Mutex::new(Instant::now()),
            retained_bytes: AtomicU64::new(0),
            failure: OnceLock::new(),
            back: Mutex::new(None),
            ended: CancellationToken::new(),
        }
    }

    /// The table with this oid, if it belongs to the session.
    pub fn table(&self, oid: u32) -> Option<&(Table, TablePlan)> {
        self.tables.iter().find(|(table, _)| table.oid == oid)
    }

    /// A connection that reads inside the snapshot; give it back with [`Held::give_back`].
    pub async fn reader(&self) -> Result<Reader, Failure> {
        self.still_good()?;
        if self.snapshot.is_empty() {
            return Err(Failure::new(Code::SnapshotLost, format!("the session of {} has no snapshot", self.op)));
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = idle.filter(|connection| !connection.is_closed()) {
            return Ok(connection);
        }
        let explain = |error: postgres::Error| error.explain();
        let connection = self.database.reader(self.op).await.map_err(explain)?;
        connection.begin_snapshot(&self.snapshot).await.map_err(explain)?;
        Ok(connection)
    }

    /// Takes back a connection whose last statement went well.
    pub fn give_back(&self, connection: Reader) {
        if !self.ended.is_cancelled() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }

    /// Done once the session has ended, so that streams stop.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// The subscription for the way back is made; the `errors` it had so far do not count.
    pub fn not_counting(&self, errors: u64) {
        *self.back.lock().unwrap_or_else(PoisonError::into_inner) = Some(errors);
    }

    /// Errors of the subscription for the way back that do not count; none: it is not made yet.
    pub fn errors_before(&self) -> Option<u64> {
        *self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the session can no longer keep its promise, if so.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// What to say to whoever still wanted something when it ended.
    pub fn why_ended(&self) -> Failure {
        let ended = || Failure::new(Code::SessionUnknown, format!("session {} has ended", self.id));
        self.failure().cloned().unwrap_or_else(ended)
    }

    /// How long its snapshot is held; none: it has none, or holds it no more.
    pub fn snapshot_age(&self) -> Option<Duration> {
        // Whoever uses the keeper at this moment has one.
        let is_kept = self.keeper.try_lock().map_or(true, |keeper| keeper.is_some());
        let age = Timestamp::now().duration_since(self.opened_at);
        is_kept.then(|| Duration::try_from(age).unwrap_or_default())
    }

    /// WAL its slot keeps back.
    pub fn retained_bytes(&self) -> u64 {
        self.retained_bytes.load(Ordering::Relaxed)
    }

    fn still_good(&self) -> Result<(), Failure> {
        self.failure.get().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    pub(super) fn renew(&self) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn idle_for(&self) -> Duration {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Lets go of snapshot and locks; the slot stays.
    pub async fn release(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Some(keeper) = self.keeper.lock().await.take() {
            keeper.let_go().await;
        }
    }

    pub(super) async fn fail(&self, failure: Failure) {
        error!(
            event = "snapshot.session_failed", op_id = %self.op, peer = %self.target,
            error = telemetry::failure(&failure), "a session can no longer keep its promise"
        );
        // The first cause counts.
        let _ = self.failure.set(failure);
        self.ended.cancel();
        self.release().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_snapshot_shows_what_an_earlier_one_showed_of_every_node() {
        let [c, d]: [NodeId; 2] = ["node_c", "node_d"].map(|name| name.parse().expect("a node"));
        let moment = |lsn, positions: &[(&NodeId, u64)]| Moment {
            lsn: Lsn(lsn),
            positions: positions.iter().map(|(node, at)| ((*node).clone(), Lsn(*at))).collect(),
        };
        let first = moment(5, &[(&c, 70), (&d, 0)]);
        for (later, is_later) in [
            (first.clone(), true),
            (moment(6, &[(&d, 3), (&c, 71)]), true),
            (moment(4, &[(&c, 70), (&d, 0)]), false),
            (moment(6, &[(&c, 69), (&d, 0)]), false),
            (moment(6, &[(&c, 70)]), false),
        ] {
            assert_eq!(first.is_in(&later), is_later, "{later:?}");
        }
    }
}
