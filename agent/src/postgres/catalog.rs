//! What the server and the database are: limits, privileges, schemas, roles, extensions.
//!
//! Reads catalogs and settings only; tables have a file of their own ([`super::tables`]).

use std::path::PathBuf;

use steep_protocol::names::TableName;
use tokio_postgres::Row;

use super::{
    connect::{Session, count_field, field},
    error::{Error, doing},
    version::Version,
};

/// What the server is, what it allows, and how much of that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its version.
    pub version: Version,
    /// Its version as it prints it: "18.4 (Debian 18.4-1)".
    pub version_text: String,
    /// Made at initdb; a copy of the data directory has it too.
    pub system_identifier: u64,
    /// The database's oid; with the system identifier it says whether two databases are one.
    pub database_oid: u32,
    /// The database's name.
    pub database: String,
    /// The database's encoding: "UTF8".
    pub encoding: String,
    /// Size of the whole database.
    pub database_bytes: u64,
    /// A standby.
    pub is_in_recovery: bool,
    /// Bytes of a page; 8192 unless the server was built otherwise.
    pub block_size: u32,
    /// minimal, replica or logical.
    pub wal_level: String,
    /// Setting `max_replication_slots`.
    pub max_replication_slots: u32,
    /// Slots there are.
    pub used_replication_slots: u32,
    /// Setting `max_wal_senders`.
    pub max_wal_senders: u32,
    /// Walsenders that run.
    pub used_wal_senders: u32,
    /// Setting `max_logical_replication_workers`.
    pub max_logical_replication_workers: u32,
    /// Enabled subscriptions of the whole server, each of which takes one worker.
    pub used_logical_replication_workers: u32,
    /// Setting `max_worker_processes`.
    pub max_worker_processes: u32,
    /// How many origins can be in use: `max_active_replication_origins`, before 18 `max_replication_slots`.
    pub max_origins: u32,
    /// Origins there are.
    pub used_origins: u32,
    /// Setting `max_slot_wal_keep_size`; none: no limit.
    pub max_slot_wal_keep_bytes: Option<u64>,
    /// Setting `old_snapshot_threshold`, in minutes; none: snapshots are kept for as long as they are needed.
    pub snapshot_minutes: Option<u32>,
    /// Setting `max_sync_workers_per_subscription`.
    pub max_sync_workers: u32,
    /// Setting `max_connections`.
    pub max_connections: u32,
    /// Sessions there are.
    pub used_connections: u32,
    /// How many locks all sessions together can hold, at the least.
    pub lock_slots: u32,
}

/// Reads what the server is.
pub async fn server_facts(session: &Session) -> Result<ServerFacts, Error> {
    let reading = doing("read what the server is");
    let row = session.one(reading, sql!("catalog/read_server_facts.sql"), &[]).await?;
    Ok(ServerFacts {
        version: Version::from_number(small(&row, "version_number")?),
        version_text: field(&row, "version_text")?,
        system_identifier: field::<i64>(&row, "system_identifier")?.cast_unsigned(),
        database_oid: field(&row, "database_oid")?,
        database: field(&row, "database")?,
        encoding: field(&row, "encoding")?,
        database_bytes: count_field(&row, "database_bytes")?,
        block_size: small(&row, "block_size")?,
        is_in_recovery: field(&row, "is_in_recovery")?,
        wal_level: field(&row, "wal_level")?,
        max_replication_slots: small(&row, "max_replication_slots")?,
        used_replication_slots: small(&row, "used_replication_slots")?,
        max_wal_senders: small(&row, "max_wal_senders")?,
        used_wal_senders: small(&row, "used_wal_senders")?,
        max_logical_replication_workers: small(&row, "max_logical_replication_workers")?,
        used_logical_replication_workers: small(&row, "used_logical_replication_workers")?,
        max_worker_processes: small(&row, "max_worker_processes")?,
        max_origins: small(&row, "max_origins")?,
        used_origins: small(&row, "used_origins")?,
        max_slot_wal_keep_bytes: field::<Option<i64>>(&row, "max_slot_wal_keep_bytes")?.map(i64::cast_unsigned),
        snapshot_minutes: field::<Option<i32>>(&row, "snapshot_minutes")?.and_then(|minutes| minutes.try_into().ok()),
        max_sync_workers: small(&row, "max_sync_workers")?,
        max_connections: small(&row, "max_connections")?,
        used_connections: small(&row, "used_connections")?,
        lock_slots: small(&row, "lock_slots")?,
    })
}

fn small(row: &Row, name: &str) -> Result<u32, Error> {
    Ok(u32::try_from(field::<i32>(row, name)?).unwrap_or(0))
}

/// Whether the server's own processes find the file at `path`; `Ok(false)`: they see no such file.
///
/// Fails with [`Error::Denied`] and SQLSTATE 42501 where they may not go there.
pub async fn server_finds(session: &Session, path: &str) -> Result<bool, Error> {
    let looking = doing(format!("have the server look for {path}"));
    let row = session.one(looking, sql!("catalog/find_server_file.sql"), &[&path]).await?;
    field(&row, "is_there")
}

/// What the role we connect as may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleFacts {
    /// Its name.
    pub name: String,
    /// It may do everything.
    pub is_superuser: bool,
    /// It may make slots and walsenders.
    pub may_replicate: bool,
    /// No row is hidden from it.
    pub bypasses_row_security: bool,
    /// It may create subscriptions (also needs [`Self::may_create_in_database`]).
    pub may_create_subscription: bool,
    /// It may create schemas and publications.
    pub may_create_in_database: bool,
    /// It may set `session_replication_role`, so that user triggers stay quiet during a load.
    pub may_set_replication_role: bool,
    /// It may create, use and drop replication origins.
    pub may_use_origins: bool,
}

/// Reads what our role may do.
pub async fn role_facts(session: &Session) -> Result<RoleFacts, Error> {
    let reading = doing("read what our role may do");
    let row = session.one(reading, sql!("catalog/read_role_facts.sql"), &[]).await?;
    Ok(RoleFacts {
        name: field(&row, "name")?,
        is_superuser: field(&row, "is_superuser")?,
        may_replicate: field(&row, "may_replicate")?,
        bypasses_row_security: field(&row, "bypasses_row_security")?,
        may_create_subscription: field(&row, "may_create_subscription")?,
        may_create_in_database: field(&row, "may_create_in_database")?,
        may_set_replication_role: field(&row, "may_set_replication_role")?,
        may_use_origins: field(&row, "may_use_origins")?,
    })
}

/// A schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// Its oid, as an archive of pg_dump names it.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// Schemas of the users' own.
pub async fn schemas(session: &Session) -> Result<Vec<Schema>, Error> {
    let rows = session.rows(doing("list schemas"), sql!("catalog/list_schemas.sql"), &[]).await?;
    rows.iter().map(|row| Ok(Schema { oid: field(row, "oid")?, name: field(row, "name")? })).collect()
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// Its name.
    pub name: String,
    /// The table that has it.
    pub table: TableName,
    /// That table's oid.
    pub table_oid: u32,
    /// The table it points at.
    pub references: TableName,
    /// That table's oid.
    pub references_oid: u32,
}

/// Foreign keys that begin or end at one of the tables with these oids.
pub async fn foreign_keys(session: &Session, oids: &[u32]) -> Result<Vec<ForeignKey>, Error> {
    let rows = session.rows(doing("list foreign keys"), sql!("catalog/list_foreign_keys.sql"), &[&oids]).await?;
    rows.iter()
        .map(|row| {
            Ok(ForeignKey {
                name: field(row, "name")?,
                table: TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?),
                table_oid: field(row, "table_oid")?,
                references: TableName::new(
                    field::<String>(row, "referenced_schema")?,
                    field::<String>(row, "referenced_name")?,
                ),
                references_oid: field(row, "referenced_oid")?,
            })
        })
        .collect()
}

/// A trigger and its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// Its name.
    pub name: String,
    /// The table it was made on.
    pub table: TableName,
}

/// Triggers (`enable always`, `enable replica`) of these tables that also fire for rows which are loaded or applied.
pub async fn always_triggers(session: &Session, oids: &[u32]) -> Result<Vec<Trigger>, Error> {
    let rows = session.rows(doing("list triggers"), sql!("catalog/list_always_triggers.sql"), &[&oids]).await?;
    let read = |row| {
        let table = TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?);
        Ok(Trigger { name: field(row, "name")?, table })
    };
    rows.iter().map(read).collect()
}

/// Roles of the server, without PostgreSQL's own.
pub async fn roles(session: &Session) -> Result<Vec<String>, Error> {
    let sql = "select r.rolname::text as name from pg_catalog.pg_roles r where r.rolname !~ '^pg_' order by r.rolname";
    names(session, "list roles", sql, &[]).await
}

/// Roles that own something or are granted something: of everything, or of the tables with these oids.
pub async fn roles_needed(session: &Session, tables: Option<&[u32]>) -> Result<Vec<String>, Error> {
    names(session, "list the roles a restore needs", sql!("catalog/list_needed_roles.sql"), &[&tables]).await
}

/// Extensions installed, without plpgsql and our own.
pub async fn extensions(session: &Session) -> Result<Vec<String>, Error> {
    let sql = "select e.extname::text as name from pg_catalog.pg_extension e \
               where e.extname not in ('plpgsql', 'steep_repl') order by 1";
    names(session, "list extensions", sql, &[]).await
}

/// Extensions that could be installed: their packages are there.
pub async fn available_extensions(session: &Session) -> Result<Vec<String>, Error> {
    let sql = "select e.name::text as name from pg_catalog.pg_available_extensions e order by e.name";
    names(session, "list available extensions", sql, &[]).await
}

async fn names(
    session: &Session,
    what: &'static str,
    sql: &str,
    params: super::connect::Params<'_>,
) -> Result<Vec<String>, Error> {
    let rows = session.rows(doing(what), sql, params).await?;
    rows.iter().map(|row| field(row, "name")).collect()
}

/// How many large objects there are; counted up to a million.
pub async fn large_objects(session: &Session) -> Result<u64, Error> {
    let sql = "select count(*) as objects from (select from pg_catalog.pg_largeobject_metadata limit 1000000) o";
    let row = session.one(doing("count large objects"), sql, &[]).await?;
    count_field(&row, "objects")
}

/// Where the database's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPaths {
    /// Setting `data_directory`; none: our role may not know.
    pub data_directory: Option<PathBuf>,
    /// The database's own tablespace; none: inside the data directory.
    pub default_tablespace: Option<PathBuf>,
    /// All tablespaces outside the data directory.
    pub tablespaces: Vec<PathBuf>,
}

impl DiskPaths {
    /// Every directory the server keeps files in, as far as it is known; `pg_wal` by itself, as it may lead elsewhere.
    pub fn all(self) -> Vec<PathBuf> {
        let wal = self.data_directory.as_ref().map(|directory| directory.join("pg_wal"));
        self.data_directory.into_iter().chain(wal).chain(self.tablespaces).filter(|path| path.is_absolute()).collect()
    }
}

/// Reads where the database's files are, as the server sees them.
pub async fn disk_paths(session: &Session) -> Result<DiskPaths, Error> {
    let row = session.one(doing("read where the files are"), sql!("catalog/list_disk_paths.sql"), &[]).await?;
    let default_tablespace: Option<String> = field(&row, "default_tablespace")?;
    Ok(DiskPaths {
        data_directory: field::<Option<String>>(&row, "data_directory")?.map(PathBuf::from),
        default_tablespace: default_tablespace.filter(|path| !path.is_empty()).map(PathBuf::from),
        tablespaces: field::<Vec<String>>(&row, "tablespaces")?.into_iter().map(PathBuf::from).collect(),
    })
}
