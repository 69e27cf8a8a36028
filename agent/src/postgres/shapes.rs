//! Tables, types and sequences as they are now, as documents: what `steep_repl`'s functions say within a session's own
//! transaction, uncommitted changes of that transaction included. What the documents mean is not known here.

use std::collections::BTreeMap;

use serde_json::Value;
use steep_protocol::names::TableName;

use super::{
    connect::{Session, count_field, field},
    error::{Doing, Error, doing},
};

/// A table's documents.
#[derive(Debug, Clone, PartialEq)]
pub struct TableShape {
    /// Its name.
    pub name: TableName,
    /// SHA-256 of `columns`, as all of them 64 hexadecimal digits.
    pub fingerprint: String,
    /// The same with the columns in the order of their names.
    pub fingerprint_sorted: String,
    /// SHA-256 of `shape`.
    pub shape_fingerprint: String,
    /// Its columns.
    pub columns: Value,
    /// Everything else that makes it.
    pub shape: Value,
}

/// A type's or sequence's document.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectShape {
    /// enum, domain, composite, range or sequence.
    pub kind: String,
    /// Its name.
    pub name: TableName,
    /// SHA-256 of the definition.
    pub fingerprint: String,
    /// What makes it.
    pub definition: Value,
}

/// The tables called `names`, those that are there; none: all tables.
///
/// Fails with PostgreSQL's words where a table is dropped meanwhile; another try sees it gone.
pub async fn tables(session: &Session, names: Option<&[TableName]>) -> Result<Vec<TableShape>, Error> {
    let (schemas, tables) = pairs(names);
    let asking = doing("read how tables look");
    let rows = session.rows(asking, sql!("fingerprint/read_table_shapes.sql"), &[&schemas, &tables]).await?;
    let read = |row| {
        Ok(TableShape {
            name: TableName::new(field::<String>(row, "table_schema")?, field::<String>(row, "table_name")?),
            fingerprint: field(row, "fingerprint")?,
            fingerprint_sorted: field(row, "fingerprint_sorted")?,
            shape_fingerprint: field(row, "shape")?,
            columns: field(row, "column_definitions")?,
            shape: field(row, "shape_definition")?,
        })
    };
    rows.iter().map(read).collect()
}

fn pairs(names: Option<&[TableName]>) -> (Option<Vec<&str>>, Option<Vec<&str>>) {
    let schemas = names.map(|names| names.iter().map(|name| name.schema.as_str()).collect());
    (schemas, names.map(|names| names.iter().map(|name| name.name.as_str()).collect()))
}

/// All types and sequences of users' own.
pub async fn objects(session: &Session) -> Result<Vec<ObjectShape>, Error> {
    let asking = doing("read how types and sequences look");
    let rows = session.rows(asking, sql!("fingerprint/read_object_shapes.sql"), &[]).await?;
    let read = |row| {
        Ok(ObjectShape {
            kind: field(row, "kind")?,
            name: TableName::new(field::<String>(row, "object_schema")?, field::<String>(row, "object_name")?),
            fingerprint: field(row, "fingerprint")?,
            definition: field(row, "definition")?,
        })
    };
    rows.iter().map(read).collect()
}

/// The database itself, and the catalogs this role may not read.
pub async fn environment(session: &Session) -> Result<(Value, Vec<String>), Error> {
    let asking = doing("read what the database is");
    let row = session.one(asking, sql!("fingerprint/read_environment_shape.sql"), &[]).await?;
    Ok((field(&row, "definition")?, field(&row, "unreadable")?))
}

/// Bytes that the rows of `names` take, partitions included.
pub async fn sizes(session: &Session, names: &[TableName]) -> Result<BTreeMap<TableName, u64>, Error> {
    let (schemas, tables) = pairs(Some(names));
    let asking = doing("measure tables");
    let rows = session.rows(asking, sql!("fingerprint/measure_tables.sql"), &[&schemas, &tables]).await?;
    let read = |row| {
        let name = TableName::new(field::<String>(row, "table_schema")?, field::<String>(row, "table_name")?);
        Ok((name, count_field(row, "size_bytes")?))
    };
    rows.iter().map(read).collect()
}

/// Whether `table` has a constraint called `name`.
pub async fn has_constraint(session: &Session, table: &TableName, name: &str) -> Result<bool, Error> {
    let asking = doing(format!("look for a constraint of {table}"));
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&table.schema, &table.name, &name];
    let row = session.one(asking, sql!("fingerprint/find_constraint.sql"), &params).await?;
    field(&row, "found")
}

/// Whether an index is the leftover of a build that failed, which nobody is at work on.
pub async fn is_leftover(session: &Session, schema: &str, index: &str) -> Result<bool, Error> {
    let asking = doing(format!("look at index {}", TableName::new(schema, index)));
    let row = session.one(asking, sql!("fingerprint/find_leftover_index.sql"), &[&schema, &index]).await?;
    field(&row, "found")
}

/// Takes the lock under which this node's schema is changed, unless somebody has it. Held until the session ends.
pub async fn try_lock(session: &Session) -> Result<bool, Error> {
    let row = session.one(doing("lock the schema"), sql!("fingerprint/try_schema_lock.sql"), &[]).await?;
    field(&row, "taken")
}

/// Lets go of that lock at once: PostgreSQL takes its time to notice that a session has ended.
pub async fn unlock(session: &Session) -> Result<(), Error> {
    session.one(doing("unlock the schema"), "select pg_catalog.pg_advisory_unlock_all()", &[]).await.map(drop)
}

/// Runs one statement of a plan by itself: through the extended protocol, which takes no second one.
pub(crate) async fn run_planned(session: &Session, statement: &str, doing: Doing) -> Result<(), Error> {
    session.execute(doing, statement, &[]).await.map(drop)
}
