//! What is held for a backup that somebody makes by hand: at first a snapshot, in the end a session for the node that is
//! completed from it.
//!
//! The slot is the preparation's, not the session's: when the session ends without success, the slot stays for another try. The
//! session goes on over the end of the agent, the snapshot does not: rows can then not be compared any more.

use std::sync::Arc;

use dashmap::DashMap;
use jiff::Timestamp;
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::{NodeId, OperationId, SessionId},
    lsn::Lsn,
    names::TableName,
};
use tracing::info;

use super::{Held, Role, Scope, Sessions, already_ended, held::NewHeld, publish::tables_as_agreed};
use crate::{
    breakpoint::crash_point,
    cleanup::Effect,
    parts::TablePlan,
    postgres::{self, Purpose, Session as Connection},
};

/// Snapshots held for backups, by the preparation. They end with the agent. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Snapshots(Arc<DashMap<OperationId, Connection>>);

impl Snapshots {
    /// Holds the snapshot and the locks of `keeper` for preparation `op`.
    pub fn hold(&self, op: OperationId, keeper: Connection) {
        self.0.insert(op, keeper);
    }

    /// Whether the snapshot of `op` is still held.
    pub fn holds(&self, op: OperationId) -> bool {
        self.0.get(&op).is_some_and(|keeper| !keeper.is_closed())
    }

    /// Lets go of the snapshot of `op`, if there is one; whoever has imported it keeps it.
    pub async fn release(&self, op: OperationId) {
        if let Some((_, keeper)) = self.0.remove(&op) {
            keeper.close().await;
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
