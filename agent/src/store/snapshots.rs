//! Snapshots this node's agent wrote into files: where they lie, what they keep on the server, and until when.

use jiff::Timestamp;
use serde_json::Value;
use steep_protocol::{ids::OperationId, lsn::Lsn};
use tokio_postgres::Row;

use super::{Error, Store, row::operation};
use crate::postgres::{
    connect::{count_field, field},
    sql,
};

/// A snapshot, as it is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The operation that made it.
    pub op_id: OperationId,
    /// The node it is of.
    pub source_node: String,
    /// Where the slot begins; none: it is not made yet.
    pub lsn: Option<Lsn>,
    /// Its directory.
    pub storage: String,
    /// generating, complete, failed or deleted.
    pub status: String,
    /// What it holds; none: it is not complete.
    pub manifest: Option<Value>,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// The slot that keeps what was written since; empty: it is not made yet.
    pub slot: String,
    /// The publication that holds its tables; empty: it is not made yet.
    pub publication: String,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When it was complete.
    pub completed_at: Option<Timestamp>,
    /// When slot and files go.
    pub expires_at: Option<Timestamp>,
    /// It was told that this is soon.
    pub is_warned: bool,
}

impl Snapshot {
    /// It can be applied.
    pub fn is_complete(&self) -> bool {
        self.status == "complete"
    }
}

/// A snapshot of this node is about to be made by `op`, in `storage`.
pub async fn begin(store: &Store, op: OperationId, storage: &str, expires_at: Timestamp) -> Result<(), Error> {
    let (sql, node) = (sql!("store/begin_snapshot.sql"), store.owner().node.clone());
    let params = [&op.uuid() as _, &node.as_str() as _, &storage as _, &expires_at as _];
    store.execute("write down a snapshot", sql, &params).await.map(drop)
}

/// Where it begins, and what keeps the rest.
pub async fn place(store: &Store, op: OperationId, lsn: Lsn, slot: &str, publication: &str) -> Result<(), Error> {
    let sql = sql!("store/place_snapshot.sql");
    let lsn = tokio_postgres::types::PgLsn::from(lsn.0);
    store.execute("write down a snapshot", sql, &[&op.uuid(), &lsn, &slot, &publication]).await.map(drop)
}

/// It is complete, and holds what `manifest` says.
pub async fn complete(store: &Store, op: OperationId, manifest: &Value, bytes: u64) -> Result<(), Error> {
    let (sql, bytes) = (sql!("store/complete_snapshot.sql"), i64::try_from(bytes).unwrap_or(i64::MAX));
    store.execute("write down a snapshot", sql, &[&op.uuid(), &manifest, &bytes]).await.map(drop)
}

/// It is `failed` or `deleted`.
pub async fn end(store: &Store, op: OperationId, status: &str) -> Result<(), Error> {
    let sql = sql!("store/end_snapshot.sql");
    store.execute("write down that a snapshot is gone", sql, &[&op.uuid(), &status]).await.map(drop)
}

/// It was told that it expires soon.
pub async fn warned(store: &Store, op: OperationId) -> Result<(), Error> {
    let sql = sql!("store/warn_snapshot.sql");
    store.execute("write down that a snapshot expires", sql, &[&op.uuid()]).await.map(drop)
}

/// Those there are, newest first; `all`: also those that failed or were deleted. At most 1000.
pub async fn list(store: &Store, all: bool) -> Result<Vec<Snapshot>, Error> {
    let rows = store.rows("list snapshots", sql!("store/list_snapshots.sql"), &[&all]).await?;
    rows.iter().map(read).collect()
}

/// Where a snapshot of this node lies, and whether it can be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Its directory.
    pub storage: String,
    /// generating, complete, failed or deleted.
    pub status: String,
    /// When its files go.
    pub expires_at: Option<Timestamp>,
}

/// Where the snapshot lies that people know by `id`; none: there is none.
pub async fn place_of(store: &Store, id: &str) -> Result<Option<Place>, Error> {
    let row = store.maybe("find a snapshot", sql!("store/find_snapshot_place.sql"), &[&id]).await?;
    let place = |row: Row| {
        Ok(Place {
            storage: field(&row, "storage")?,
            status: field(&row, "status")?,
            expires_at: field(&row, "expires_at")?,
        })
    };
    row.map(place).transpose()
}

fn read(row: &Row) -> Result<Snapshot, Error> {
    let lsn: Option<String> = field(row, "lsn")?;
    Ok(Snapshot {
        op_id: operation(row, "snapshot_id")?,
        source_node: field(row, "source_node")?,
        lsn: lsn.and_then(|lsn| lsn.parse().ok()),
        storage: field(row, "storage")?,
        status: field(row, "status")?,
        manifest: field(row, "manifest")?,
        size_bytes: count_field(row, "size_bytes")?,
        slot: field(row, "slot_name")?,
        publication: field(row, "publication_name")?,
        created_at: field(row, "created_at")?,
        completed_at: field(row, "completed_at")?,
        expires_at: field(row, "expires_at")?,
        is_warned: field(row, "is_warned")?,
    })
}
