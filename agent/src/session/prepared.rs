//! What is held for a backup that somebody makes by hand: at first a snapshot, in the end a session for the node that is
//! completed from it.
//!
//! The slot is the preparation's, not the session's: when the session ends without success, the slot stays for another try.
//! Both outlive the agent, the snapshot not its server: rows can then not be compared any more.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use jiff::Timestamp;
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::{NodeId, OperationId, SessionId},
    lsn::Lsn,
    names::TableName,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{Held, Role, Scope, Sessions, already_ended, held::NewHeld, publish::tables_as_agreed};
use crate::{
    breakpoint::crash_point,
    cleanup::Effect,
    keeper::{Keeper, Keepers},
    parts::TablePlan,
    postgres::{self, Purpose},
    telemetry,
};

/// How often it is told that the snapshot of a preparation is still wanted.
const RENEW: Duration = Duration::from_secs(1);

/// Snapshots held for backups, by the preparation: each by a keeper, so that they outlive the agent. Clones share them.
#[derive(Debug, Clone)]
pub struct Snapshots {
    keepers: Keepers,
    /// None: it is being made.
    held: Arc<DashMap<OperationId, Option<Kept>>>,
}

#[derive(Debug)]
struct Kept {
    keeper: Arc<Keeper>,
    _renewing: AbortOnDropHandle<()>,
}

impl Snapshots {
    /// None are held yet.
    pub fn new(keepers: Keepers) -> Self {
        Self { keepers, held: Arc::default() }
    }

    /// The keepers of this agent.
    pub(super) fn keepers(&self) -> Keepers {
        self.keepers.clone()
    }

    /// Starts what will hold the snapshot of preparation `op`, and locks `tables` against DDL. After an error
    /// [`Snapshots::release`] ends it.
    pub async fn lock(&self, op: OperationId, tables: Vec<TableName>, patience: Duration) -> Result<Keeper, Failure> {
        self.held.insert(op, None);
        let keeper = self.keepers.start(op).await?;
        keeper.lock(tables, patience).await?;
        Ok(keeper)
    }

    /// Has `keeper` hold `snapshot` for preparation `op`; returns the name under which others may import it.
    pub async fn hold(&self, op: OperationId, keeper: Keeper, snapshot: &str) -> Result<String, Failure> {
        // The slot is the preparation's: it stays where the snapshot goes.
        let exported = keeper.hold(snapshot, "").await?;
        self.look_after(op, keeper);
        Ok(exported)
    }

    /// Goes on holding `snapshot` for preparation `op` after a run of the agent that has ended; false: it is gone.
    pub async fn take_up(&self, op: OperationId, snapshot: &str) -> bool {
        let Ok(keeper) = self.keepers.attach(op).await else { return false };
        let is_same = keeper.renew().await.is_ok_and(|held| held == snapshot);
        if is_same {
            self.look_after(op, keeper);
        }
        is_same
    }

    fn look_after(&self, op: OperationId, keeper: Keeper) {
        let keeper = Arc::new(keeper);
        let renewing = tokio::spawn(self.clone().renew(op, Arc::clone(&keeper)));
        self.held.insert(op, Some(Kept { keeper, _renewing: AbortOnDropHandle::new(renewing) }));
    }

    /// Says that the snapshot is still wanted, until it is gone.
    async fn renew(self, op: OperationId, keeper: Arc<Keeper>) {
        loop {
            tokio::time::sleep(RENEW).await;
            if let Err(failure) = keeper.renew().await {
                warn!(
                    event = "snapshot.session_failed", op_id = %op, error = telemetry::failure(&failure),
                    "the snapshot of a preparation is gone; its slot stays"
                );
                break;
            }
        }
        // Dropping its own handle ends this task at its next await, of which there is none.
        self.held.remove(&op);
    }

    /// Whether the snapshot of `op` is still held.
    pub fn holds(&self, op: OperationId) -> bool {
        self.held.get(&op).is_some_and(|held| held.is_some())
    }

    /// Whether the keeper of the operation with these twelve digits holds the snapshot of a preparation, or will.
    pub(super) fn wants(&self, digits: &str) -> bool {
        self.held.iter().any(|held| held.key().short() == digits)
    }

    /// Lets go of the snapshot of `op`, if there is one; whoever has imported it keeps it.
    pub async fn release(&self, op: OperationId) {
        match self.held.remove(&op) {
            Some((_, Some(kept))) => kept.keeper.let_go().await,
            // It may have been started.
            Some((_, None)) => self.keepers.let_go(op).await,
            None => {}
        }
    }
}

/// What a node asks for that is completed from a backup.
#[derive(Debug, Clone)]
pub struct TakeRequest {
    /// The operation it is for.
    pub op: OperationId,
    /// The slot that was prepared, and where it begins.
    pub slot: (String, Lsn),
    /// The publication that was prepared.
    pub publication: String,
    /// The tables the preflight agreed on, as (oid, name).
    pub tables: Vec<(u32, TableName)>,
    /// The snapshot that is still held for it; empty: none is.
    pub snapshot: String,
    /// What an operator has signed for it.
    pub scope: Scope,
}

impl Sessions {
    /// Opens a session for `target` on a slot that was prepared. Asked for again, it is the same.
    pub async fn take(&self, target: &NodeId, request: TakeRequest) -> Result<Arc<Held>, Failure> {
        let _turn = self.opening.lock().await;
        let op = request.op;
        if let Some(held) = self.opened_before(target, op) {
            return Ok(held);
        }
        let opening = self.serve(op)?;
        let look = self.database.session(Purpose::Watch).await.map_err(|error: postgres::Error| error.explain())?;
        let one_way = request.scope.one_way;
        if !one_way {
            self.refuse_second_newcomer(op)?;
        }
        let found = tables_as_agreed(&look, &request.tables).await?;
        let (slot, lsn) = request.slot;
        let session = Effect::Session { slot: slot.clone(), record: serde_json::Value::Null };
        self.cleanup.make(op, &format!("session for {target}"), &session, async { Ok(()) }).await?;
        let held = Arc::new(Held::new(NewHeld {
            id: SessionId::generate(),
            opened_at: Timestamp::now(),
            op,
            target: target.clone(),
            slot: slot.clone(),
            lsn,
            publication: request.publication,
            scope: request.scope,
            snapshot: request.snapshot,
            // No part of them is read from here.
            tables: found.into_iter().map(|table| (table, TablePlan { starts: Vec::new(), pages: 0 })).collect(),
            role: Role::Prepared,
            one_way,
            parallel: 1,
            gate: None,
            lacks_readers: false,
            database: self.database.clone(),
            keeper: None,
            idle: Vec::new(),
        }));
        if !self.serves(op) {
            return Err(already_ended(op));
        }
        self.note(&held, false).await?;
        crash_point!("slot taken");
        info!(event = "slot.taken", op_id = %op, slot, lsn = %lsn, peer = %target, session = %held.id, "a prepared slot is taken");
        self.look_after_from_now_on(&held, opening);
        Ok(held)
    }
}
