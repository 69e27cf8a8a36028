//! What happened in an operation, once each, in order.

use jiff::Timestamp;
use serde_json::Value;
use steep_protocol::ids::OperationId;

use super::{Error, Store};
use crate::postgres::{
    connect::{count_field, field},
    sql,
};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Grows with every event of this node.
    pub cursor: u64,
    /// When it was stored.
    pub at: Timestamp,
    /// A name of the log event schema: "init.started".
    pub event: String,
    /// What there is to say about it.
    pub body: Value,
}

/// Stores an event and returns its cursor. One that `may_go` is lost where the server crashes within a second, and waits
/// for no disk.
pub async fn append(store: &Store, op: OperationId, event: &str, body: &Value, may_go: bool) -> Result<u64, Error> {
    let sql = sql!("store/append_event.sql");
    let row = store.one("store an event", sql, &[&op.uuid(), &event, &body, &may_go]).await?;
    Ok(count_field(&row, "cursor")?)
}

/// What happened in `op` after `cursor` (0: everything), oldest first, at most `limit` events.
pub async fn after(store: &Store, op: OperationId, cursor: u64, limit: i64) -> Result<Vec<Event>, Error> {
    let cursor = i64::try_from(cursor).unwrap_or(i64::MAX);
    let sql = sql!("store/list_events.sql");
    let rows = store.rows("read the operation's events", sql, &[&op.uuid(), &cursor, &limit.max(0)]).await?;
    rows.iter()
        .map(|row| {
            Ok(Event {
                cursor: count_field(row, "cursor")?,
                at: field(row, "at")?,
                event: field(row, "event")?,
                body: field(row, "body")?,
            })
        })
        .collect()
}
