//! What this node follows, and what it keeps for others: subscriptions and slots as they are written down here, held
//! against what PostgreSQL has; and slots that are past mending.

use std::collections::BTreeMap;

use serde_json::Value;
use steep_protocol::{
    failure::Failure,
    ids::{NodeId, OperationId},
};

use super::{Error, Store, operations::read_failure, row::operation};
use crate::postgres::{
    connect::{count_field, field},
    sql,
};

/// A subscription of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// Its name.
    pub name: String,
    /// PostgreSQL has it.
    pub is_there: bool,
    /// Its worker runs, or will be started again when it ends.
    pub is_enabled: bool,
    /// The slot it reads; empty: detached, or not there.
    pub slot: String,
    /// The apply worker; none: none runs now.
    pub worker_pid: Option<i32>,
    /// Errors while applying, ever since statistics were reset.
    pub apply_errors: u64,
    /// Conflicts by their kind, ever since statistics were reset (18 and later).
    pub conflicts: BTreeMap<String, u64>,
    /// An operation makes it, or holds it still for a moment.
    pub is_in_hand: bool,
    /// The slot it reads is past mending, and why.
    pub lost: Option<String>,
}

/// A slot that is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSlot {
    /// Its name.
    pub name: String,
    /// The node it was made for; empty: its row was written by an agent that did not note it.
    pub peer: String,
    /// The operation that made it.
    pub op_id: OperationId,
    /// That operation has succeeded.
    pub is_kept: bool,
}

/// A slot that does not carry all that was written since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSlot {
    /// Its name.
    pub name: String,
    /// The node it was kept for; empty: nobody knew.
    pub target: String,
    /// What became of it.
    pub reason: String,
}

/// Every subscription of ours.
pub async fn subscriptions(store: &Store) -> Result<Vec<Followed>, Error> {
    let rows = store.rows("look at what this node follows", sql!("store/list_followed.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Followed {
                name: field(row, "name")?,
                is_there: field(row, "is_there")?,
                is_enabled: field(row, "is_enabled")?,
                slot: field(row, "slot")?,
                worker_pid: field(row, "worker_pid")?,
                apply_errors: count_field(row, "apply_errors")?,
                conflicts: serde_json::from_value(field(row, "conflicts")?).unwrap_or_default(),
                is_in_hand: field(row, "is_in_hand")?,
                lost: field(row, "lost")?,
            })
        })
        .collect()
}

/// Every slot that is written down, and neither undone nor given up.
pub async fn slots(store: &Store) -> Result<Vec<KeptSlot>, Error> {
    let rows = store.rows("read which slots were made", sql!("store/list_kept_slots.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(KeptSlot {
                name: field(row, "name")?,
                peer: field(row, "peer")?,
                op_id: operation(row, "op_id")?,
                is_kept: field(row, "is_kept")?,
            })
        })
        .collect()
}

/// Slot `slot` of `source`, kept for `target`, does not carry all that was written since; the first reason stays.
pub async fn lose(store: &Store, source: &NodeId, slot: &str, target: &str, reason: &str) -> Result<(), Error> {
    let params = [&source.as_str() as _, &slot as _, &target as _, &reason as _];
    store.execute("write down that a slot is lost", sql!("store/lose_slot.sql"), &params).await.map(drop)
}

/// Slots that `source` had and that are past mending, and why.
pub async fn lost(store: &Store, source: &NodeId) -> Result<Vec<LostSlot>, Error> {
    let sql = sql!("store/list_lost_slots.sql");
    let rows = store.rows("read which slots are lost", sql, &[&source.as_str()]).await?;
    rows.iter()
        .map(|row| {
            Ok(LostSlot { name: field(row, "name")?, target: field(row, "target")?, reason: field(row, "reason")? })
        })
        .collect()
}

/// What this node is diverged for, if it is by the agent's own finding.
pub async fn divergence(store: &Store) -> Result<Option<Failure>, Error> {
    let row = store.maybe("read why the node is diverged", sql!("store/find_divergence.sql"), &[]).await?;
    row.map(|row| Ok(read_failure(field::<Value>(&row, "failure")?))).transpose()
}
