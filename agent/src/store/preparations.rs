//! What this node is prepared for: backups made by hand, and until when their slots are kept.

use jiff::Timestamp;
use prost::Message as _;
use steep_protocol::{
    ids::{NodeId, OperationId},
    lsn::Lsn,
    v1,
};
use tokio_postgres::{Row, types::PgLsn};

use super::{
    Error, Store,
    row::{operation, optional_operation},
};
use crate::postgres::{connect::field, sql};

/// A preparation that is not over.
#[derive(Debug, Clone, PartialEq)]
pub struct Preparation {
    /// Its id; what it made is written down under it.
    pub op: OperationId,
    /// What the backup is: "pg_dump", "pg_basebackup", "storage-snapshot".
    pub purpose: String,
    /// The node to be completed from it; none: not said.
    pub target: Option<NodeId>,
    /// The slot that keeps what is written from its beginning on.
    pub slot: String,
    /// The publication made for it.
    pub publication: String,
    /// Which tables.
    pub selection: v1::Selection,
    /// Where the slot begins; none: it is not made yet.
    pub lsn: Option<Lsn>,
    /// The exported snapshot that is held; empty: none is.
    pub snapshot: String,
    /// Who asked.
    pub prepared_by: String,
    /// When.
    pub prepared_at: Timestamp,
    /// Until when it is kept.
    pub expires_at: Timestamp,
    /// When it was told that it expires soon.
    pub warned_at: Option<Timestamp>,
    /// The operation that last began to complete a node from it.
    pub taken_by: Option<OperationId>,
}

impl Preparation {
    /// The short id it is known by to operators.
    pub fn id(&self) -> String {
        self.op.short()
    }

    /// The backup is a copy of the whole server, file by file.
    pub fn is_physical(&self) -> bool {
        self.purpose != "pg_dump"
    }
}

/// A change to a preparation.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// It is kept until then.
    pub expires_at: Option<Timestamp>,
    /// Its snapshot is not held any more.
    pub is_released: bool,
    /// It was told that it expires soon.
    pub is_warned: bool,
    /// This operation completes a node from it.
    pub taken_by: Option<OperationId>,
}

/// Writes a preparation down before anything of it is made.
pub async fn plan(store: &Store, new: &Preparation) -> Result<(), Error> {
    let target = new.target.as_ref().map(ToString::to_string).unwrap_or_default();
    let (op, selection) = (new.op.uuid(), new.selection.encode_to_vec());
    let written: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
        [&op, &new.purpose, &target, &new.slot, &new.publication, &selection, &new.prepared_by, &new.expires_at];
    store.execute("write a preparation down", sql!("store/plan_preparation.sql"), &written).await.map(drop)
}

/// All of it is made.
pub async fn ready(store: &Store, op: OperationId, lsn: Lsn, snapshot: &str) -> Result<(), Error> {
    let lsn = PgLsn::from(lsn.0);
    let sql = sql!("store/ready_preparation.sql");
    store.execute("write a preparation down", sql, &[&op.uuid(), &lsn, &snapshot]).await.map(drop)
}

/// Those that are not over, oldest first.
pub async fn list(store: &Store) -> Result<Vec<Preparation>, Error> {
    store.rows("list preparations", sql!("store/list_preparations.sql"), &[]).await?.iter().map(read).collect()
}

/// Changes one that is not over; false: there is no such.
pub async fn change(store: &Store, op: OperationId, change: &Change) -> Result<bool, Error> {
    let Change { expires_at, is_released, is_warned, taken_by } = change;
    let taken_by = taken_by.map(|op| op.uuid());
    let sql = sql!("store/change_preparation.sql");
    let given: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&op.uuid(), expires_at, is_released, is_warned, &taken_by];
    Ok(store.execute("change a preparation", sql, &given).await? == 1)
}

/// It is over.
pub async fn end(store: &Store, op: OperationId, why: &str) -> Result<bool, Error> {
    Ok(store.execute("end a preparation", sql!("store/end_preparation.sql"), &[&op.uuid(), &why]).await? == 1)
}

/// At the start of an agent: what was half made is over.
pub async fn strike_half(store: &Store) -> Result<(), Error> {
    store.execute("look over preparations", sql!("store/strike_half_preparations.sql"), &[]).await.map(drop)
}

fn read(row: &Row) -> Result<Preparation, Error> {
    let selection: Vec<u8> = field(row, "selection")?;
    let unreadable = |error: prost::DecodeError| Error::Unreadable { what: "selection".into(), source: error.into() };
    let target: String = field(row, "target_node")?;
    Ok(Preparation {
        op: operation(row, "op_id")?,
        purpose: field(row, "purpose")?,
        target: target.parse().ok(),
        slot: field(row, "slot_name")?,
        publication: field(row, "publication")?,
        selection: v1::Selection::decode(&selection[..]).map_err(unreadable)?,
        lsn: field::<Option<PgLsn>>(row, "lsn")?.map(|lsn| Lsn(lsn.into())),
        snapshot: field(row, "snapshot")?,
        prepared_by: field(row, "prepared_by")?,
        prepared_at: field(row, "prepared_at")?,
        expires_at: field(row, "expires_at")?,
        warned_at: field(row, "warned_at")?,
        taken_by: optional_operation(row, "taken_by")?,
    })
}
