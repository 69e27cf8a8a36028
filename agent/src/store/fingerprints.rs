//! What tables, types and sequences look like: of this node as captured, of others as they told.
//!
//! The database makes fingerprints and compares them byte by byte (migration `0008_fingerprints.sql`); here they are
//! captured page by page, read and remembered. Definitions are JSON documents as that file describes them; what they
//! mean is not known here. What others told never touches this node's own rows, of which captures are the only author.

use jiff::Timestamp;
use serde_json::{Value, json};
use steep_protocol::{ids::NodeId, names::TableName};
use tokio_postgres::Row;

use super::{Error, Store, row::word};
use crate::postgres::{
    connect::{Params, field},
    sql,
};

/// Tables captured by one statement: about a tenth of a second, so that other calls of the store get their turn.
const PAGE: i32 = 500;

/// What came of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Tables, types and sequences that were added, changed or dropped since the last one.
    pub changed: u64,
    /// SHA-256 of all names and fingerprints, 64 hexadecimal digits: equal where schemas are equal.
    pub digest: String,
    /// False: the role may not read all catalogs, and everything is as it last was; or a new table is locked by
    /// somebody. The definition of the environment says which.
    pub is_complete: bool,
}

/// A table as it was when captured.
#[derive(Debug, Clone, PartialEq)]
pub struct TableFingerprint {
    /// Its name.
    pub table: TableName,
    /// Columns it has.
    pub column_count: i32,
    /// SHA-256 of `columns`, as all of them 64 hexadecimal digits.
    pub fingerprint: String,
    /// The same with the columns in the order of their names.
    pub fingerprint_sorted: String,
    /// SHA-256 of `definition`.
    pub shape: String,
    /// Its columns.
    pub columns: Value,
    /// Everything else that makes it.
    pub definition: Value,
    /// When this form was first seen, by the clock of its node.
    pub captured_at: Timestamp,
}

/// A type or sequence as it was when captured.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectFingerprint {
    /// enum, domain, composite, range or sequence.
    pub kind: String,
    /// Its name.
    pub object: TableName,
    /// SHA-256 of the definition (of a sequence: without its plan), 64 hexadecimal digits.
    pub fingerprint: String,
    /// What makes it.
    pub definition: Value,
    /// When this form was first seen, by the clock of its node.
    pub captured_at: Timestamp,
}

/// Names and fingerprints without definitions, to tell what has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// None: a table; else the kind of an [`ObjectFingerprint`].
    pub kind: Option<String>,
    /// Its name.
    pub name: TableName,
    /// Of its columns, or of the object.
    pub fingerprint: String,
    /// Of a table's other parts.
    pub shape: Option<String>,
}

/// The database of a node, and how its schema is as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct EnvironmentFingerprint {
    /// The node.
    pub node_id: NodeId,
    /// SHA-256 of the definition without the server's version.
    pub fingerprint: String,
    /// Encoding, locale, extensions, server version.
    pub definition: Value,
    /// As in [`Captured`].
    pub digest: String,
    /// How many tables it has.
    pub tables: i32,
    /// As in [`Captured`]; the definition says what could not be read.
    pub is_complete: bool,
    /// When the node was last looked at, by its own clock.
    pub captured_at: Timestamp,
}

/// A change of one of this node's tables.
#[derive(Debug, Clone, PartialEq)]
pub struct TableChange {
    /// Grows with every change.
    pub id: i64,
    /// The table.
    pub table: TableName,
    /// added, changed or dropped.
    pub change: String,
    /// What it was from then on; of a dropped table what it had been.
    pub fingerprint: String,
    /// The same of its other parts.
    pub shape: String,
    /// Its columns.
    pub columns: Value,
    /// Everything else.
    pub definition: Value,
    /// When it was noticed.
    pub noticed_at: Timestamp,
}

/// Captures all tables, types and sequences of this node.
///
/// Many short statements, each a transaction: a table that changes meanwhile is seen before or after, and the digest
/// is of what was seen. Dropped half-way, it has captured some tables; the next one goes on from there.
pub async fn capture(store: &Store) -> Result<Captured, Error> {
    let node = store.owner().node.as_str();
    let what = "capture the tables";
    let (mut last, mut changed) = (0_u32, 0);
    loop {
        let row = store.one(what, sql!("store/capture_page.sql"), &[&node, &last, &PAGE]).await?;
        changed += i64::from(field::<i32>(&row, "changed")?);
        match field::<Option<u32>>(&row, "last_relid")? {
            Some(next) if field::<i32>(&row, "tables")? == PAGE => last = next,
            _ => break,
        }
    }
    let row = store.one(what, sql!("store/capture_objects.sql"), &[&node]).await?;
    changed += i64::from(field::<i32>(&row, "changed")?);
    let row = store.one(what, sql!("store/finish_capture.sql"), &[&node]).await?;
    changed += i64::from(field::<i32>(&row, "changed")?);
    Ok(Captured {
        changed: u64::try_from(changed).unwrap_or(0),
        digest: field(&row, "digest")?,
        is_complete: field(&row, "is_complete")?,
    })
}

/// Everything known of `node`, without definitions; tables first.
pub async fn hashes(store: &Store, node: &NodeId) -> Result<Vec<Hashes>, Error> {
    let sql = sql!("store/list_schema_hashes.sql");
    let rows = store.rows("list the fingerprints of a node", sql, &[&node.as_str()]).await?;
    let read = |row| {
        Ok(Hashes {
            kind: field(row, "kind")?,
            name: name(row, "object_schema", "object_name")?,
            fingerprint: field(row, "fingerprint")?,
            shape: field(row, "shape")?,
        })
    };
    rows.iter().map(read).collect()
}

/// The tables known of `node` that come after `after` by name (none: from the first), at most `limit`.
pub async fn tables(
    store: &Store,
    node: &NodeId,
    after: Option<&TableName>,
    limit: i64,
) -> Result<Vec<TableFingerprint>, Error> {
    let (schema, table) = parts(after);
    let sql = sql!("store/list_table_fingerprints.sql");
    let params: Params<'_> = &[&node.as_str(), &schema, &table, &limit.max(0)];
    let rows = store.rows("read the fingerprints of a node", sql, params).await?;
    rows.iter().map(table_fingerprint).collect()
}

/// Those of `names` that are known of `node`.
pub async fn find_tables(store: &Store, node: &NodeId, names: &[TableName]) -> Result<Vec<TableFingerprint>, Error> {
    let (schemas, tables) = columns(names.iter());
    let sql = sql!("store/find_table_fingerprints.sql");
    let rows = store.rows("read fingerprints of a node", sql, &[&node.as_str(), &schemas, &tables]).await?;
    rows.iter().map(table_fingerprint).collect()
}

/// The types and sequences known of `node`.
pub async fn objects(store: &Store, node: &NodeId) -> Result<Vec<ObjectFingerprint>, Error> {
    let sql = sql!("store/list_schema_objects.sql");
    let rows = store.rows("read the types and sequences of a node", sql, &[&node.as_str()]).await?;
    let read = |row| {
        Ok(ObjectFingerprint {
            kind: field(row, "kind")?,
            object: name(row, "object_schema", "object_name")?,
            fingerprint: field(row, "fingerprint")?,
            definition: field(row, "definition")?,
            captured_at: field(row, "captured_at")?,
        })
    };
    rows.iter().map(read).collect()
}

/// The databases of all nodes whose schema is known, this one's too once it was captured.
pub async fn environments(store: &Store) -> Result<Vec<EnvironmentFingerprint>, Error> {
    let rows = store.rows("list the nodes whose schema is known", sql!("store/list_environments.sql"), &[]).await?;
    let read = |row| {
        Ok(EnvironmentFingerprint {
            node_id: word(row, "node_id")?,
            fingerprint: field(row, "fingerprint")?,
            definition: field(row, "definition")?,
            digest: field(row, "digest")?,
            tables: field(row, "tables")?,
            is_complete: field(row, "is_complete")?,
            captured_at: field(row, "captured_at")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Remembers what another node told of some of its tables.
pub async fn save_tables(store: &Store, node: &NodeId, told: &[TableFingerprint]) -> Result<(), Error> {
    let row = |told: &TableFingerprint| {
        json!({
            "table_schema": told.table.schema,
            "table_name": told.table.name,
            "column_count": told.column_count,
            "fingerprint": told.fingerprint,
            "fingerprint_sorted": told.fingerprint_sorted,
            "shape": told.shape,
            "column_definitions": told.columns,
            "shape_definition": told.definition,
            "captured_at": told.captured_at.to_string(),
        })
    };
    let rows = Value::Array(told.iter().map(row).collect());
    let sql = sql!("store/save_table_fingerprints.sql");
    store.execute("remember the tables of another node", sql, &[&node.as_str(), &rows]).await?;
    Ok(())
}

/// Forgets tables another node no longer has.
pub async fn delete_tables(store: &Store, node: &NodeId, gone: &[TableName]) -> Result<(), Error> {
    let (schemas, tables) = columns(gone.iter());
    let sql = sql!("store/delete_table_fingerprints.sql");
    store.execute("forget tables of another node", sql, &[&node.as_str(), &schemas, &tables]).await?;
    Ok(())
}

/// Remembers what another node told of some of its types and sequences.
pub async fn save_objects(store: &Store, node: &NodeId, told: &[ObjectFingerprint]) -> Result<(), Error> {
    let row = |told: &ObjectFingerprint| {
        json!({
            "kind": told.kind,
            "object_schema": told.object.schema,
            "object_name": told.object.name,
            "fingerprint": told.fingerprint,
            "definition": told.definition,
            "captured_at": told.captured_at.to_string(),
        })
    };
    let rows = Value::Array(told.iter().map(row).collect());
    let sql = sql!("store/save_schema_objects.sql");
    store.execute("remember the types of another node", sql, &[&node.as_str(), &rows]).await?;
    Ok(())
}

/// Forgets types and sequences (kind and name) another node no longer has.
pub async fn delete_objects(store: &Store, node: &NodeId, gone: &[(String, TableName)]) -> Result<(), Error> {
    let kinds: Vec<&str> = gone.iter().map(|(kind, _)| kind.as_str()).collect();
    let (schemas, names) = columns(gone.iter().map(|(_, name)| name));
    let sql = sql!("store/delete_schema_objects.sql");
    store.execute("forget types of another node", sql, &[&node.as_str(), &kinds, &schemas, &names]).await?;
    Ok(())
}

/// Remembers what another node told of its database: last, so that its digest is believed when its tables are there.
pub async fn save_environment(store: &Store, told: &EnvironmentFingerprint) -> Result<(), Error> {
    let EnvironmentFingerprint { node_id, fingerprint, definition, digest, tables, is_complete, captured_at } = told;
    let sql = sql!("store/save_environment.sql");
    let node = node_id.as_str();
    let what = "remember the database of another node";
    store.execute(what, sql, &[&node, fingerprint, definition, digest, tables, is_complete, captured_at]).await?;
    Ok(())
}

/// Forgets all that was known of another node's schema.
pub async fn forget(store: &Store, node: &NodeId) -> Result<(), Error> {
    store.execute("forget the schema of another node", sql!("store/forget_schema.sql"), &[&node.as_str()]).await?;
    Ok(())
}

/// How this node's tables (or one of them) changed, newest first, at most `limit` changes, all of them before the
/// one with id `before`.
pub async fn history(
    store: &Store,
    table: Option<&TableName>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<TableChange>, Error> {
    let (schema, name_of_table) = parts(table);
    let sql = sql!("store/list_schema_history.sql");
    let params: Params<'_> = &[&schema, &name_of_table, &before, &limit.max(0)];
    let rows = store.rows("read the history of tables", sql, params).await?;
    let read = |row| {
        Ok(TableChange {
            id: field(row, "id")?,
            table: name(row, "table_schema", "table_name")?,
            change: field(row, "change")?,
            fingerprint: field(row, "fingerprint")?,
            shape: field(row, "shape")?,
            columns: field(row, "column_definitions")?,
            definition: field(row, "shape_definition")?,
            noticed_at: field(row, "noticed_at")?,
        })
    };
    rows.iter().map(read).collect()
}

fn table_fingerprint(row: &Row) -> Result<TableFingerprint, Error> {
    Ok(TableFingerprint {
        table: name(row, "table_schema", "table_name")?,
        column_count: field(row, "column_count")?,
        fingerprint: field(row, "fingerprint")?,
        fingerprint_sorted: field(row, "fingerprint_sorted")?,
        shape: field(row, "shape")?,
        columns: field(row, "column_definitions")?,
        definition: field(row, "shape_definition")?,
        captured_at: field(row, "captured_at")?,
    })
}

fn name(row: &Row, schema: &str, table: &str) -> Result<TableName, Error> {
    Ok(TableName::new(field::<String>(row, schema)?, field::<String>(row, table)?))
}

fn parts(name: Option<&TableName>) -> (Option<&str>, Option<&str>) {
    (name.map(|name| name.schema.as_str()), name.map(|name| name.name.as_str()))
}

/// Schemas and names, each as an array for SQL.
fn columns<'a>(names: impl Iterator<Item = &'a TableName>) -> (Vec<&'a str>, Vec<&'a str>) {
    names.map(|name| (name.schema.as_str(), name.name.as_str())).unzip()
}
