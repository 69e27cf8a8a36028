//! Names and tables as messages between agents carry them.

use steep_protocol::{names::TableName, v1};

use crate::postgres::tables::{Column, Table, TableKind};

/// A name from a message.
pub fn table_name(name: &v1::TableName) -> TableName {
    TableName::new(&name.schema, &name.name)
}

/// A name for a message.
pub fn table_message(name: &TableName) -> v1::TableName {
    v1::TableName { schema: name.schema.clone(), name: name.name.clone() }
}

/// A table as messages between agents describe it.
pub fn source_table(table: &Table) -> v1::SourceTable {
    let column = |column: &Column| v1::SourceColumn {
        name: column.name.clone(),
        r#type: column.type_name.clone(),
        not_null: column.not_null,
        generated: column.generated.clone(),
        identity: column.identity.clone(),
        binary_safe: column.binary_safe,
    };
    v1::SourceTable {
        table: Some(table_message(&table.name)),
        oid: table.oid,
        kind: if table.kind == TableKind::Partitioned { "p".into() } else { "r".into() },
        columns: table.columns.iter().map(column).collect(),
        bytes: table.bytes,
        rows_estimate: table.rows_estimate,
        is_partition: table.is_partition,
        index_oids: table.index_oids.clone(),
        constraint_oids: table.constraint_oids.clone(),
        replica_identity: table.replica_identity.as_str().to_owned(),
        identity_columns: table.identity_columns.clone(),
        rows: None,
        root: table.root.as_ref().map(table_message),
    }
}
