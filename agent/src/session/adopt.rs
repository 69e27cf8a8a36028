//! The session on a snapshot that lies in files: the rows are there already, so it holds a slot and neither snapshot nor
//! locks.
//!
//! The snapshot's own slot is never read: each target gets a copy of it, which begins where the snapshot ends. So one
//! snapshot serves any number of targets, and one that failed has used nothing up.

use std::sync::Arc;

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId, SessionId},
    lsn::Lsn,
    names::TableName,
};
use tracing::info;

use super::{
    Held, OpenRequest, Role, Scope, Sessions, WHOLE_DATABASE, already_ended, held::NewHeld, join::same_mesh, publish,
    publish::tables_as_agreed, slot_name,
};
use crate::{
    breakpoint::crash_point,
    cleanup::{Effect, Member},
    parts::TablePlan,
    postgres::{self, Purpose, Session as Connection, publications, slots, tables},
};

/// What a snapshot in files keeps on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNames {
    /// The slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
}

/// The names of what a session makes: those of a snapshot in files, or those of its target.
pub(super) fn names_for(request: &OpenRequest, target: &NodeId) -> FileNames {
    let of_target = || FileNames {
        slot: slot_name(target, request.op),
        publication: if request.whole_database { WHOLE_DATABASE.to_owned() } else { format!("steep_only_{target}") },
    };
    request.for_files.clone().unwrap_or_else(of_target)
}

/// What a target asks for.
#[derive(Debug, Clone)]
pub struct AdoptRequest {
    /// The operation it is for.
    pub op: OperationId,
    /// The operation that made the snapshot.
    pub snapshot: OperationId,
    /// The slot it keeps.
    pub slot: String,
    /// Where that began.
    pub lsn: Lsn,
    /// The publication that held its tables then.
    pub publication: String,
    /// Its tables, as (oid, name).
    pub tables: Vec<(u32, TableName)>,
    /// What an operator has signed for it.
    pub scope: Scope,
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

fn stale(text: String) -> Failure {
    Failure::new(Code::SnapshotStale, text)
}

impl Sessions {
    /// Opens a session for `target` on a snapshot of this node. One operation has at most one; asked for again, it is the
    /// same.
    ///
    /// Fails with [`Code::SnapshotSlotLost`] where the slot is gone or past the snapshot, with [`Code::SnapshotStale`] where
    /// the snapshot's tables are not what is published now. What an error leaves behind is written down.
    pub async fn adopt(&self, target: &NodeId, request: AdoptRequest) -> Result<Arc<Held>, Failure> {
        let _turn = self.opening.lock().await;
        let op = request.op;
        if let Some(held) = self.opened_before(target, op) {
            return Ok(held);
        }
        let opening = self.serve(op)?;
        let look = self.database.session(Purpose::Watch).await.map_err(explain)?;
        if !request.scope.one_way {
            self.refuse_second_newcomer(op)?;
            same_mesh(&look, &[]).await.map_err(|failure| {
                let text = "this node receives changes of others, which the snapshot's target would miss";
                Failure::new(Code::SnapshotOneWay, text).cause(failure.message)
            })?;
        }
        check_slot(&look, &request.slot, request.lsn).await?;
        let found = tables_as_agreed(&look, &request.tables).await.map_err(|failure| stale(failure.message))?;
        let members: Vec<Member> = tables::published(&found).into_iter().map(Into::into).collect();
        check_published(&look, &request.publication, &members).await?;
        // Nothing is added; but whoever would drop it sees that it is needed.
        publish(&self.cleanup, &look, op, &request.publication, &members).await?;
        let slot = slot_name(target, op);
        let session = Effect::Session { slot: slot.clone(), record: serde_json::Value::Null };
        self.cleanup.make(op, &format!("session for {target}"), &session, async { Ok(()) }).await?;
        let effect = Effect::Slot { name: slot.clone(), peer: Some(target.clone()) };
        let made = async {
            match slots::find(&look, &slot).await.map_err(explain)? {
                Some(made) => Ok(made.progress.confirmed_flush.unwrap_or_default()),
                None => slots::copy(&look, &request.slot, &slot).await.map_err(explain),
            }
        };
        self.cleanup.make(op, &format!("session for {target}"), &effect, made).await?;
        // Whatever happened to the snapshot's slot meanwhile, its copy has to begin early enough.
        check_slot(&look, &slot, request.lsn).await?;
        let held = Arc::new(Held::new(NewHeld {
            id: SessionId::generate(),
            opened_at: Timestamp::now(),
            op,
            target: target.clone(),
            slot: slot.clone(),
            lsn: request.lsn,
            publication: request.publication,
            one_way: request.scope.one_way,
            scope: request.scope,
            snapshot: String::new(),
            // Nothing is read from here.
            tables: found.into_iter().map(|table| (table, TablePlan { starts: Vec::new(), pages: 0 })).collect(),
            role: Role::Files { snapshot: request.snapshot },
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
        crash_point!("snapshot lent");
        let lsn = request.lsn;
        info!(event = "slot.created", op_id = %op, slot, lsn = %lsn, peer = %target, session = %held.id, "snapshot lent");
        self.look_after_from_now_on(&held, opening);
        Ok(held)
    }

    /// The operation that applies the snapshot `op` made, while it does.
    pub fn applying(&self, snapshot: OperationId) -> Option<OperationId> {
        let open = self.open.iter().find(|open| open.held.role == Role::Files { snapshot })?;
        Some(open.held.op)
    }
}

/// A slot that sends everything after `lsn` is alive and has sent nothing of it.
async fn check_slot(look: &Connection, name: &str, lsn: Lsn) -> Result<(), Failure> {
    let lost = |text: String| Err(Failure::new(Code::SnapshotSlotLost, text));
    let Some(slot) = slots::find(look, name).await.map_err(explain)? else {
        return lost(format!("slot {name} is gone: it expired, or was dropped"));
    };
    let confirmed = slot.progress.confirmed_flush.unwrap_or_default();
    match (slot.progress.is_lost(), confirmed > lsn) {
        (true, _) => lost(format!("slot {name} lost WAL it still needs")),
        (_, true) => lost(format!("slot {name} stands at {confirmed}, past the snapshot's {lsn}")),
        _ => Ok(()),
    }
}

/// The publication holds the snapshot's tables as it did, and none that its target would not know.
async fn check_published(look: &Connection, name: &str, members: &[Member]) -> Result<(), Failure> {
    if !publications::exists(look, name).await.map_err(explain)? {
        return Err(stale(format!("publication {name} was dropped since the snapshot was made")));
    }
    let now = publications::tables(look, name).await.map_err(explain)?;
    if let Some(gone) = members.iter().find(|member| !now.iter().any(|table| table.name == member.table)) {
        return Err(stale(format!("{} was taken out of publication {name} since the snapshot was made", gone.table)));
    }
    match now.iter().find(|table| !members.iter().any(|member| member.table == table.name)) {
        Some(new) => Err(stale(format!("{} came into publication {name} since the snapshot was made", new.name))),
        None => Ok(()),
    }
}
