//! Which parts of which tables have landed: a row each, written in the transaction that loaded the part's rows.

use steep_protocol::{ids::OperationId, names::TableName};
use tokio_postgres::Row;

use super::{Error, Store, control::doing, row::operation};
use crate::postgres::{
    Session,
    connect::{count_field, field},
    sql,
};

/// A part that has landed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedPart {
    /// The operation it was copied for.
    pub op_id: OperationId,
    /// Its table.
    pub table: TableName,
    /// Its number within the table, from 0.
    pub part: u32,
    /// Rows loaded.
    pub rows: u64,
    /// Bytes of COPY data.
    pub bytes: u64,
    /// XXH3 over its blocks.
    pub hash: u64,
}

/// What has landed of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableTotal {
    /// The table.
    pub table: TableName,
    /// Parts.
    pub parts: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of COPY data.
    pub bytes: u64,
}

/// Remembers a part in the transaction open on `session`, which is the one that loads its rows.
///
/// Fails when the part was recorded before: then its rows must not be committed a second time.
pub async fn record(session: &Session, copied: &CopiedPart) -> Result<(), Error> {
    let CopiedPart { op_id, table, part, rows, bytes, hash } = copied;
    let part = i32::try_from(*part).unwrap_or(i32::MAX);
    let (rows, bytes) = (signed(*rows), signed(*bytes));
    let recording = doing(format!("record part {part} of {table}"));
    let sql = sql!("store/record_copied_part.sql");
    let hash = hash.cast_signed();
    session.execute(recording, sql, &[&op_id.uuid(), &table.schema, &table.name, &part, &rows, &bytes, &hash]).await?;
    Ok(())
}

/// Forgets what `op` has copied: its rows are gone.
pub async fn forget(store: &Store, op: OperationId) -> Result<(), Error> {
    let sql = sql!("store/forget_copied_parts.sql");
    store.execute("forget the copied parts", sql, &[&op.uuid()]).await.map(drop)
}

/// Forgets what `op` has copied of `tables`: their rows are gone.
pub async fn forget_tables(store: &Store, op: OperationId, tables: &[TableName]) -> Result<(), Error> {
    let (schemas, names): (Vec<_>, Vec<_>) = tables.iter().map(|table| (&table.schema, &table.name)).unzip();
    let sql = sql!("store/forget_copied_parts_of_tables.sql");
    store.execute("forget the copied parts", sql, &[&op.uuid(), &schemas, &names]).await.map(drop)
}

/// The parts `op` has copied, by table and number.
pub async fn parts(store: &Store, op: OperationId) -> Result<Vec<CopiedPart>, Error> {
    let rows = store.rows("read the copied parts", sql!("store/list_copied_parts.sql"), &[&op.uuid()]).await?;
    rows.iter()
        .map(|row| {
            Ok(CopiedPart {
                op_id: operation(row, "op_id")?,
                table: table(row)?,
                part: field::<i32>(row, "part")?.cast_unsigned(),
                rows: count_field(row, "row_count")?,
                bytes: count_field(row, "byte_count")?,
                hash: field::<i64>(row, "hash")?.cast_unsigned(),
            })
        })
        .collect()
}

/// What `op` has copied, by table.
pub async fn totals(store: &Store, op: OperationId) -> Result<Vec<TableTotal>, Error> {
    let rows = store.rows("add up the copied parts", sql!("store/sum_copied_parts.sql"), &[&op.uuid()]).await?;
    rows.iter()
        .map(|row| {
            Ok(TableTotal {
                table: table(row)?,
                parts: count_field(row, "parts")?,
                rows: count_field(row, "row_count")?,
                bytes: count_field(row, "byte_count")?,
            })
        })
        .collect()
}

fn table(row: &Row) -> Result<TableName, Error> {
    Ok(TableName::new(field::<String>(row, "table_schema")?, field::<String>(row, "table_name")?))
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
