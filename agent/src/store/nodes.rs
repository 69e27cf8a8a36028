//! This node's row: where it is in its life. The only place that moves a node's state.

use jiff::Timestamp;
use serde_json::json;
use steep_protocol::{
    failure::Failure,
    ids::{NodeId, OperationId},
    node::NodeState,
};
use tokio_postgres::Row;

use super::{
    Actor, Error, Store, audit,
    control::{Held, doing},
    identity::Owner,
    row::{optional_operation, optional_word, word},
};
use crate::{
    lifecycle::{self, NodeEvent},
    postgres::{Session, connect::field, sql},
};

/// A node as its agent last wrote it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node_id: NodeId,
    /// Where it is in its life.
    pub init_state: NodeState,
    /// The node it was, or is being, initialized from.
    pub init_source_node: Option<NodeId>,
    /// When its last initialization began.
    pub init_started_at: Option<Timestamp>,
    /// When it last became synchronized; none while an initialization has not.
    pub init_completed_at: Option<Timestamp>,
    /// The operation that last moved its state.
    pub op_id: Option<OperationId>,
    /// ok, busy, warn, error or unknown.
    pub health: String,
    /// Why health is not ok; empty when it is.
    pub health_reason: String,
    /// When its agent last said how it is.
    pub last_seen: Timestamp,
    /// The agent's version.
    pub agent_version: String,
    /// The server's version.
    pub postgres_version: String,
}

/// A move that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// The state before.
    pub from: NodeState,
    /// The state now.
    pub to: NodeState,
}

/// This node's row.
pub async fn own(store: &Store) -> Result<NodeRow, Error> {
    let node = store.owner().node.as_str();
    match store.maybe("read the node's state", sql!("store/find_node.sql"), &[&node]).await? {
        Some(row) => read(&row),
        None => Err(missing(node)),
    }
}

/// Moves this node's state by `event`, and writes the move to the audit log in the same transaction.
///
/// `op` is the operation it happens in, which is remembered with the node; none keeps the one remembered. Fails with
/// [`Error::IllegalMove`] where `event` cannot happen to a node in its present state; nothing is changed then.
pub async fn advance(store: &Store, event: NodeEvent, op: Option<OperationId>, actor: &Actor) -> Result<Moved, Error> {
    let mut held = store.transaction().await?;
    let moved = advance_within(&mut held, &store.owner().node, event, op, actor).await;
    held.end(moved).await
}

/// Says that this node is diverged, for `failure`: moves it there, unless it is there already, and writes the cause down,
/// in one transaction. Returns the move, if one was made.
///
/// Fails with [`Error::IllegalMove`] where it cannot diverge in its present state; nothing is changed then.
pub async fn diverge(store: &Store, failure: &Failure, actor: &Actor) -> Result<Option<Moved>, Error> {
    let mut held = store.transaction().await?;
    let moved = diverge_within(&mut held, &store.owner().node, failure, actor).await;
    held.end(moved).await
}

async fn diverge_within(
    held: &mut Held<'_>,
    node: &NodeId,
    failure: &Failure,
    actor: &Actor,
) -> Result<Option<Moved>, Error> {
    let moved = match state_of(held, node.as_str()).await? {
        NodeState::Diverged => None,
        _ => Some(advance_within(held, node, NodeEvent::Diverged, None, actor).await?),
    };
    let failure = serde_json::to_value(failure).expect("a failure is plain data");
    held.execute("write down why the node is diverged", sql!("store/diverge.sql"), &[&failure]).await?;
    Ok(moved)
}

/// The node's state, which nobody else changes before the transaction ends.
async fn state_of(held: &mut Held<'_>, node: &str) -> Result<NodeState, Error> {
    let rows = held.rows("move the node's state", sql!("store/lock_node.sql"), &[&node]).await?;
    word(rows.first().ok_or_else(|| missing(node))?, "init_state")
}

async fn advance_within(
    held: &mut Held<'_>,
    node: &NodeId,
    event: NodeEvent,
    op: Option<OperationId>,
    actor: &Actor,
) -> Result<Moved, Error> {
    let what = "move the node's state";
    let id = node.as_str();
    let from = state_of(held, id).await?;
    let to = lifecycle::next(from, event)?;
    let op_id = op.map(|op| op.uuid());
    held.execute(what, sql!("store/move_node.sql"), &[&id, &to.as_str(), &op_id]).await?;
    if from == NodeState::Diverged {
        held.execute(what, sql!("store/end_divergence.sql"), &[]).await?;
    }
    let detail = json!({ "previous_state": from, "new_state": to });
    audit::append_within(held, actor, "init.state_change", id, op, &detail).await?;
    Ok(Moved { from, to })
}

/// Says which node this one is initialized from; none: no other.
pub async fn set_source(store: &Store, source: Option<&NodeId>) -> Result<(), Error> {
    let node = store.owner().node.as_str();
    let source = source.map(NodeId::as_str);
    let set = store.execute("set the node's source", sql!("store/set_node_source.sql"), &[&node, &source]).await?;
    if set == 1 { Ok(()) } else { Err(missing(node)) }
}

/// Says how this node is, as of now. `health` is one of ok, busy, warn, error, unknown; `reason` is empty for ok.
pub async fn set_health(store: &Store, health: &str, reason: &str) -> Result<(), Error> {
    let node = store.owner().node.as_str();
    let what = "set the node's health";
    let set = store.execute(what, sql!("store/set_node_health.sql"), &[&node, &health, &reason]).await?;
    if set == 1 { Ok(()) } else { Err(missing(node)) }
}

/// Makes this node's row where there is none.
pub(super) async fn ensure_own(session: &Session, owner: &Owner) -> Result<(), Error> {
    let ensuring = doing("write the node's row");
    let versions = (env!("CARGO_PKG_VERSION"), session.version().to_string());
    let sql = sql!("store/ensure_own_node.sql");
    session.execute(ensuring, sql, &[&owner.node.as_str(), &versions.0, &versions.1]).await?;
    Ok(())
}

fn missing(node: &str) -> Error {
    Error::Missing(format!("the row of node {node}"))
}

fn read(row: &Row) -> Result<NodeRow, Error> {
    Ok(NodeRow {
        node_id: word(row, "node_id")?,
        init_state: word(row, "init_state")?,
        init_source_node: optional_word(row, "init_source_node")?,
        init_started_at: field(row, "init_started_at")?,
        init_completed_at: field(row, "init_completed_at")?,
        op_id: optional_operation(row, "op_id")?,
        health: field(row, "health")?,
        health_reason: field(row, "health_reason")?,
        last_seen: field(row, "last_seen")?,
        agent_version: field(row, "agent_version")?,
        postgres_version: field(row, "postgres_version")?,
    })
}
