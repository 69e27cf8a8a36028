//! Foreign keys looked at again: rows loaded as a replica were never held against them.

use steep_protocol::{failure::Code, names::TableName};

use super::{
    connect::{Session, count_field, field},
    ddl,
    error::{Error, doing},
};

/// A foreign key, and what it demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCheck {
    /// Its name.
    pub name: String,
    /// The table it was made on.
    pub table: TableName,
    /// The table it refers to.
    pub references: TableName,
    pub(super) is_partitioned: bool,
    pub(super) is_referenced_partitioned: bool,
    /// The row `c` refers to something, in SQL.
    pub(super) is_set: String,
    /// The row `r` is what `c` refers to, in SQL.
    pub(super) is_met: String,
}

/// The foreign keys that begin or end at one of the tables with these oids.
pub async fn list(session: &Session, oids: &[u32]) -> Result<Vec<KeyCheck>, Error> {
    let rows = session.rows(doing("list foreign keys"), sql!("reinit/list_key_conditions.sql"), &[&oids]).await?;
    rows.iter()
        .map(|row| {
            let name = |schema, table| -> Result<TableName, Error> {
                Ok(TableName::new(field::<String>(row, schema)?, field::<String>(row, table)?))
            };
            Ok(KeyCheck {
                name: field(row, "name")?,
                table: name("schema_name", "table_name")?,
                references: name("referenced_schema", "referenced_name")?,
                is_partitioned: field(row, "is_partitioned")?,
                is_referenced_partitioned: field(row, "is_referenced_partitioned")?,
                is_set: field(row, "is_set")?,
                is_met: field(row, "is_met")?,
            })
        })
        .collect()
}

/// How many rows refer to a row that is not there.
pub async fn without_parent(session: &Session, key: &KeyCheck) -> Result<u64, Error> {
    let statement = ddl::switch::rows_without_parent(key, "count(*) as rows");
    let looking = doing(format!("look at foreign key {}", key.name)).privilege(Code::SelectPrivilege);
    let row = session.one(looking, statement.as_str(), &[]).await?;
    count_field(&row, "rows")
}

/// The query that shows these rows.
pub fn query(key: &KeyCheck) -> String {
    ddl::switch::rows_without_parent(key, "c.*").as_str().to_owned()
}
