//! Tables as an operation must know them: columns, sizes, and what speaks against copying them.

use std::collections::{HashMap, HashSet};

use steep_protocol::names::TableName;
use tokio_postgres::Row;

use super::{
    connect::{Session, count_field, field},
    ddl::TableRef,
    error::{Error, doing},
    selection::{Candidate, Selected, Selection},
};

/// The blanks behind a shorter `char(n)` than this are too few to look for.
const WIDTH_WORTH_A_LOOK: u32 = 16;

/// What sort of table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// A table that holds rows itself; also a leaf partition.
    Plain,
    /// A partitioned table: its partitions hold the rows.
    Partitioned,
    /// Rows are elsewhere; cannot be replicated.
    Foreign,
}

impl TableKind {
    /// PostgreSQL's relkind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "r",
            Self::Partitioned => "p",
            Self::Foreign => "f",
        }
    }
}

/// How a row is named when its UPDATE or DELETE is replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// Not at all: once published, they fail.
    Missing,
    /// By a key.
    Index,
    /// By a key with a generated column, which is never sent: they fail, at once or where they are applied.
    Generated,
    /// By the whole row.
    Full,
    /// By the whole row, which has a generated column: 18 and later refuse to publish that.
    FullGenerated,
}

impl ReplicaIdentity {
    const NAMES: [(Self, &'static str); 5] = [
        (Self::Missing, "missing"),
        (Self::Index, "index"),
        (Self::Generated, "generated"),
        (Self::Full, "full"),
        (Self::FullGenerated, "full_generated"),
    ];

    /// From its name in messages; an unknown one is as good as none.
    pub fn parse(name: &str) -> Self {
        Self::NAMES.iter().find(|(_, known)| *known == name).map_or(Self::Missing, |(identity, _)| *identity)
    }

    /// Its name in messages.
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(identity, _)| *identity == self).map_or("", |(_, name)| name)
    }
}

/// A table in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// PostgreSQL's oid.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// What sort of table it is.
    pub kind: TableKind,
    /// Unlogged: its changes are in no WAL, so it cannot be replicated.
    pub is_unlogged: bool,
    /// A partition of another table.
    pub is_partition: bool,
    /// The table at the top, for a partition.
    pub root: Option<TableName>,
    /// Columns in their order, without dropped ones.
    pub columns: Vec<Column>,
    /// Heap, TOAST and maps, without indexes; 0 for a partitioned table.
    pub bytes: u64,
    /// Pages of the heap alone.
    pub heap_pages: u32,
    /// The planner's estimate.
    pub rows_estimate: u64,
    /// Indexes and foreign keys it has.
    pub indexes: u32,
    /// Oids of its indexes.
    pub index_oids: Vec<u32>,
    /// Oids of its primary key, unique and exclusion constraints.
    pub constraint_oids: Vec<u32>,
    /// How UPDATE and DELETE name a row for replication. Full for a partitioned table: its partitions decide.
    pub replica_identity: ReplicaIdentity,
    /// The columns of the key that names a row, by name in order; empty where none does.
    pub identity_columns: Vec<String>,
    /// Row security would hide rows from our role.
    pub row_security_hides: bool,
    /// Our role may read it.
    pub may_select: bool,
    /// Our role may publish it: it is the owner, or a member of the owner, or superuser.
    pub may_publish: bool,
    /// Its owner.
    pub owner: String,
    /// Changes when the table is rewritten or truncated.
    pub file_node: u32,
}

impl Table {
    fn read(row: &Row) -> Result<Self, Error> {
        let kind: &str = field(row, "kind")?;
        let root_name: Option<String> = field(row, "root_name")?;
        let root_schema: Option<String> = field(row, "root_schema")?;
        Ok(Self {
            oid: field(row, "oid")?,
            name: TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?),
            kind: match kind {
                "p" => TableKind::Partitioned,
                "f" => TableKind::Foreign,
                _ => TableKind::Plain,
            },
            is_unlogged: field::<&str>(row, "persistence")? == "u",
            is_partition: field(row, "is_partition")?,
            root: root_schema.zip(root_name).map(|(schema, name)| TableName::new(schema, name)),
            columns: Vec::new(),
            bytes: count_field(row, "bytes")?,
            heap_pages: u32::try_from(field::<i64>(row, "heap_pages")?).unwrap_or(0),
            rows_estimate: count_field(row, "rows_estimate")?,
            indexes: u32::try_from(field::<i64>(row, "indexes")?).unwrap_or(0),
            index_oids: field(row, "index_oids")?,
            constraint_oids: field(row, "constraint_oids")?,
            replica_identity: ReplicaIdentity::parse(field(row, "replica_identity")?),
            identity_columns: field(row, "identity_columns")?,
            row_security_hides: field(row, "row_security_hides")?,
            may_select: field(row, "may_select")?,
            may_publish: field(row, "may_publish")?,
            owner: field(row, "owner")?,
            file_node: field(row, "file_node")?,
        })
    }

    /// The table as publications and TRUNCATE take it.
    pub fn to_ref(&self) -> TableRef {
        TableRef { name: self.name.clone(), is_partitioned: self.kind == TableKind::Partitioned }
    }
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// As `format_type()` writes it, schema and all: "character varying(10)", "public.mood", "integer[]".
    pub type_name: String,
    /// It takes no nulls.
    pub not_null: bool,
    /// `attgenerated`: "", "s" or "v".
    pub generated: String,
    /// `attidentity`: "", "a" or "d".
    pub identity: String,
    /// It has a default of its own.
    pub has_default: bool,
    /// Its binary form is the same on every supported version and every database.
    pub binary_safe: bool,
}

impl Column {
    /// COPY can carry it: it is not computed from others.
    pub fn is_copied(&self) -> bool {
        self.generated.is_empty()
    }

    /// PostgreSQL fills its values up with blanks, to a length that matters.
    pub fn is_padded(&self) -> bool {
        let width = self.type_name.strip_prefix("character(").and_then(|rest| rest.strip_suffix(')'));
        width.and_then(|width| width.parse().ok()).is_some_and(|width: u32| width >= WIDTH_WORTH_A_LOOK)
    }
}

/// Finds the tables `selection` means and describes them.
pub async fn select(session: &Session, selection: &Selection) -> Result<Selected<Table>, Error> {
    let rows = session.rows(doing("list tables"), sql!("catalog/list_tables.sql"), &[]).await?;
    let candidates = rows.iter().map(read_candidate).collect::<Result<Vec<_>, Error>>()?;
    let schemas = super::catalog::schemas(session).await?.into_iter().map(|schema| schema.name).collect();
    let chosen = selection.choose(&candidates, &schemas);
    let oids: Vec<u32> = chosen.tables.iter().map(|candidate| candidate.oid).collect();
    let tables = describe(session, &oids).await?;
    Ok(chosen.with_tables(tables))
}

fn read_candidate(row: &Row) -> Result<Candidate, Error> {
    Ok(Candidate {
        oid: field(row, "oid")?,
        name: TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?),
        root_oid: field(row, "root_oid")?,
        is_extension_config: field(row, "is_extension_config")?,
    })
}

/// Describes the tables with these oids, ordered by name; an oid that is no table (any more) is left out.
pub async fn describe(session: &Session, oids: &[u32]) -> Result<Vec<Table>, Error> {
    let reading = doing("read the shape of tables");
    let rows = session.rows(reading.clone(), sql!("catalog/describe_tables.sql"), &[&oids]).await?;
    let mut tables = rows.iter().map(Table::read).collect::<Result<Vec<_>, Error>>()?;
    let at: HashMap<u32, usize> = tables.iter().enumerate().map(|(at, table)| (table.oid, at)).collect();
    for row in session.rows(reading, sql!("catalog/describe_columns.sql"), &[&oids]).await? {
        if let Some(at) = at.get(&field(&row, "table_oid")?) {
            tables[*at].columns.push(Column {
                name: field(&row, "name")?,
                type_name: field(&row, "type_name")?,
                not_null: field(&row, "not_null")?,
                generated: field(&row, "generated")?,
                identity: field(&row, "identity")?,
                has_default: field(&row, "has_default")?,
                binary_safe: field(&row, "binary_safe")?,
            });
        }
    }
    Ok(tables)
}

/// Describes those of the tables named that are there.
pub async fn find(session: &Session, names: &[TableName]) -> Result<Vec<Table>, Error> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let looking = doing("look for tables by name");
    let rows = session.rows(looking, sql!("catalog/find_tables.sql"), &[&schemas, &tables]).await?;
    let oids = rows.iter().map(|row| field(row, "oid")).collect::<Result<Vec<u32>, Error>>()?;
    describe(session, &oids).await
}

/// The tables to name in a publication so that it covers all of `tables`: partitions go with the table at their top.
pub fn published(tables: &[Table]) -> Vec<TableRef> {
    let names: HashSet<&TableName> = tables.iter().map(|table| &table.name).collect();
    let on_its_own = |table: &&Table| table.root.as_ref().is_none_or(|root| !names.contains(root));
    tables.iter().filter(|table| table.kind != TableKind::Foreign).filter(on_its_own).map(Table::to_ref).collect()
}

/// Whether the operating system probably has the files of these tables in memory: what was just written, and is no larger
/// together than `effective_cache_size` says that it keeps.
pub async fn lie_in_memory(session: &Session, names: &[TableName]) -> Result<bool, Error> {
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    let measuring = doing("measure tables by name");
    let row = session.one(measuring, sql!("catalog/lie_in_memory.sql"), &[&schemas, &tables]).await?;
    field(&row, "do_so")
}
