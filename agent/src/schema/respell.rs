//! A table of another server, to be written down by this one: what differs then is more than text.
//!
//! Versions of PostgreSQL may write one expression in two ways. So the other's table is made here, in a scratch schema and
//! a transaction that is rolled back, and its texts are read back as this server writes them. Pure: who runs the statements
//! is [`crate`]'s room `drift`.

use steep_protocol::names::TableName;

use super::{
    catalog::{Catalog, Column, Index, OWNED_SEQUENCE, Shape, Table},
    clause,
    plan::{Plan, plan},
};

/// Where such tables are made.
const SCRATCH: &str = "steep_scratch";

/// The name under which a table called `name` is made.
pub fn scratch_name(name: &TableName) -> TableName {
    TableName::new(SCRATCH, &name.name)
}

/// The statements that make `table` as `name`'s scratch; `here` knows this server's types.
pub fn scratch_plan(name: &TableName, table: &Table, here: &Catalog) -> Plan {
    let scratch = scratch_name(name);
    let columns = table.columns.iter().map(|column| Column {
        default: column.default.clone().filter(|default| default != OWNED_SEQUENCE),
        identity: None,
        ..column.clone()
    });
    let indexes = table.shape.indexes.iter().filter_map(|index| {
        let text = clause::index(&index.definition, &index.name, &name.schema, &name.name).ok()?;
        let unique = if text.unique { "UNIQUE " } else { "" };
        let own = steep_protocol::names::quote_identifier(&index.name);
        let definition = format!("CREATE {unique}INDEX {own} ON {} {}", scratch.sql(), text.rest);
        Some(Index { definition, valid: true, ..index.clone() })
    });
    let checks = table.shape.constraints.iter().filter(|constraint| constraint.kind == "c");
    let shape = Shape {
        kind: table.shape.kind.clone(),
        partition_key: table.shape.partition_key.clone(),
        constraints: checks.cloned().collect(),
        indexes: indexes.collect(),
        ..Shape::default()
    };
    let scratch_table = Table { columns: columns.collect(), shape, ..Table::default() };
    let target = Catalog {
        objects: here.objects.clone(),
        environment: here.environment.clone(),
        server_major: here.server_major,
        ..Catalog::default()
    };
    let mut source = target.clone();
    source.tables.insert(scratch, scratch_table);
    plan(&source, &target)
}

/// `table`, called `name`, with the texts that its scratch shows.
pub fn respelled(name: &TableName, table: &Table, written: &Table) -> Table {
    let scratch = scratch_name(name);
    let mut table = table.clone();
    for column in &mut table.columns {
        let Some(here) = written.column(&column.name) else { continue };
        if column.default.is_some() && column.default.as_deref() != Some(OWNED_SEQUENCE) {
            column.default.clone_from(&here.default);
        }
        column.expression.clone_from(&here.expression);
    }
    let checks = table.shape.constraints.iter_mut().filter(|constraint| constraint.kind == "c");
    for constraint in checks {
        let here = written.shape.constraints.iter().find(|here| here.name == constraint.name);
        if let Some(here) = here.filter(|here| here.validated == constraint.validated) {
            constraint.definition.clone_from(&here.definition);
        }
    }
    for index in &mut table.shape.indexes {
        let Some(here) = written.shape.indexes.iter().find(|here| here.name == index.name) else { continue };
        let theirs = clause::index(&index.definition, &index.name, &name.schema, &name.name);
        let ours = clause::index(&here.definition, &index.name, &scratch.schema, &scratch.name);
        if let (Ok(theirs), Ok(ours)) = (theirs, ours) {
            let head = index.definition.len() - theirs.rest.len();
            index.definition = format!("{}{}", &index.definition[..head], ours.rest);
        }
    }
    table.shape.partition_key.clone_from(&written.shape.partition_key);
    table
}
