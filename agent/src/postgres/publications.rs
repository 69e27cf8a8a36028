//! Publications of the local database.

use super::{
    connect::{Session, field},
    ddl::TableRef,
    error::{Error, doing},
};
use steep_protocol::names::TableName;

/// Whether a publication is there.
pub async fn exists(session: &Session, name: &str) -> Result<bool, Error> {
    let sql = "select from pg_catalog.pg_publication p where p.pubname = $1::text";
    Ok(session.maybe(doing(format!("look for publication {name}")), sql, &[&name]).await?.is_some())
}

/// The names of all publications.
pub async fn list(session: &Session) -> Result<Vec<String>, Error> {
    let sql = "select p.pubname::text as name from pg_catalog.pg_publication p order by p.pubname";
    session.rows(doing("list publications"), sql, &[]).await?.iter().map(|row| field(row, "name")).collect()
}

/// The tables a publication names; partitioned tables stand for their partitions.
pub async fn tables(session: &Session, name: &str) -> Result<Vec<TableRef>, Error> {
    let reading = doing(format!("read the tables of publication {name}"));
    let rows = session.rows(reading, sql!("replication/list_publication_tables.sql"), &[&name]).await?;
    rows.iter()
        .map(|row| {
            Ok(TableRef {
                name: TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?),
                is_partitioned: field(row, "is_partitioned")?,
            })
        })
        .collect()
}

/// Every table that replicates to or from this database by Steep's doing; partitioned tables stand for their partitions.
pub async fn replicated_tables(session: &Session) -> Result<Vec<TableName>, Error> {
    let sql = sql!("replication/list_replicated_tables.sql");
    let rows = session.rows(doing("list the tables that replicate"), sql, &[]).await?;
    let read = |row| Ok(TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?));
    rows.iter().map(read).collect()
}
