//! The session of a member: a node that replicates both ways with the source, and has to with the newcomer. It holds a
//! slot, but no snapshot: the rows come from the source.
//!
//! The slot is made before the source's snapshot, so that it has all that is not in it.

use std::sync::Arc;

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId, SessionId},
    names::TableName,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Held, Neighbour, Role, Scope, Sessions, already_ended, held::NewHeld, publish, slot_name};
use crate::{
    cleanup::{Effect, Member},
    parts::TablePlan,
    postgres::{self, Purpose, Session as Connection, links, replication, slots, tables},
};

/// What a newcomer asks of a member.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// The operation it is for.
    pub op: OperationId,
    /// All nodes this one replicates with both ways.
    pub neighbours: Vec<Neighbour>,
    /// The tables the preflight agreed on.
    pub tables: Vec<TableName>,
    /// Every table of the database: the shared publication serves.
    pub whole_database: bool,
    /// The slot here that the source reads.
    pub source_slot: String,
    /// What an operator has signed for it.
    pub scope: Scope,
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

impl Sessions {
    /// Publishes the tables, makes the slot and holds both for `target`. One operation has at most one session here; asked for
    /// again, it is the same.
    ///
    /// What an error leaves behind is written down; the target closes the operation, or the janitor cleans up.
    pub async fn join(&self, target: &NodeId, request: JoinRequest) -> Result<Arc<Held>, Failure> {
        let _turn = self.opening.lock().await;
        let op = request.op;
        if let Some(held) = self.opened_before(target, op) {
            return Ok(held);
        }
        let opening = self.serve(op)?;
        self.refuse_second_newcomer(op)?;
        let look = self.database.session(Purpose::Watch).await.map_err(explain)?;
        same_mesh(&look, &request.neighbours).await?;
        let found = tables::find(&look, &request.tables).await.map_err(explain)?;
        if let Some(missing) = request.tables.iter().find(|name| !found.iter().any(|table| table.name == **name)) {
            return Err(Failure::new(Code::SchemaChanged, format!("table {missing} is gone")));
        }
        let members: Vec<Member> = tables::published(&found).into_iter().map(Into::into).collect();
        let publication = if request.whole_database { "steep".to_owned() } else { format!("steep_only_{target}") };
        publish(&self.cleanup, &look, op, &publication, &members).await?;
        let slot = slot_name(target, op);
        let session = Effect::Session { slot: slot.clone(), record: serde_json::Value::Null };
        self.cleanup.make(op, &format!("session for {target}"), &session, async { Ok(()) }).await?;
        let effect = Effect::Slot { name: slot.clone(), peer: Some(target.clone()) };
        let made = async {
            let never = CancellationToken::new();
            let patience = self.settings.slot_timeout;
            replication::create_slot(&self.database, op, &slot, patience, &never).await.map_err(explain)
        };
        let lsn = self.cleanup.make(op, &format!("session for {target}"), &effect, made).await?;
        let marker = slots::emit_marker(&look, &slot).await.map_err(explain)?;
        let held = Arc::new(Held::new(NewHeld {
            id: SessionId::generate(),
            opened_at: Timestamp::now(),
            op,
            target: target.clone(),
            slot: slot.clone(),
            lsn,
            publication,
            scope: request.scope,
            snapshot: String::new(),
            // Nothing is read from here.
            tables: found.into_iter().map(|table| (table, TablePlan { starts: Vec::new(), pages: 0 })).collect(),
            role: Role::Member { source_slot: request.source_slot, marker },
            one_way: false,
            parallel: 0,
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
        info!(event = "slot.created", op_id = %op, slot, lsn = %lsn, peer = %target, session = %held.id, "joined");
        self.look_after_from_now_on(&held, opening);
        Ok(held)
    }

    /// A newcomer learns of all nodes it has to replicate with; two at once would not learn of each other.
    pub(super) fn refuse_second_newcomer(&self, op: OperationId) -> Result<(), Failure> {
        match self.newcomer().filter(|(running, _)| *running != op) {
            None => Ok(()),
            Some((running, node)) => {
                let text = format!("{node} is being made a part of the mesh (operation {running})");
                let hint = format!("steepctl op watch {running} follows it; start again when it has ended");
                Err(Failure::new(Code::OperationRunning, text).hint(hint))
            }
        }
    }

    /// The node that is being made a part of the mesh with this one's help, and by which operation.
    pub fn newcomer(&self) -> Option<(OperationId, NodeId)> {
        let open = self.open.iter().find(|open| !open.held.one_way)?;
        Some((open.held.op, open.held.target.clone()))
    }
}

/// Fails unless this node replicates both ways with exactly `neighbours`.
pub(super) async fn same_mesh(look: &Connection, neighbours: &[Neighbour]) -> Result<(), Failure> {
    let links = links::list(look).await.map_err(explain)?;
    let is_one = |name: &str| neighbours.iter().any(|neighbour| neighbour.subscription == name);
    let missing = neighbours.iter().find(|neighbour| {
        !links.iter().any(|link| link.name == neighbour.subscription && link.is_mutual && link.is_enabled)
    });
    let text = match (missing, links.iter().find(|link| !is_one(&link.name))) {
        (None, None) => return Ok(()),
        (Some(gone), _) => format!("subscription {} is gone or disabled", gone.subscription),
        (None, Some(new)) => format!("there is a subscription {} that was not there before", new.name),
    };
    Err(Failure::new(Code::MeshIncomplete, format!("the mesh changed since it was looked at: {text}"))
        .hint("start the node again"))
}
