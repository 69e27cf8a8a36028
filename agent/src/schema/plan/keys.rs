//! Who belongs to whom: parents of tables, sequences of columns, indexes of replica identities.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use steep_protocol::names::{TableName, parse_table};

use crate::schema::{
    catalog::{Catalog, Definition, Object, ObjectKey, Sequence, Table},
    clause,
};

/// The tables that `table` inherits from.
pub(super) fn parents_of(table: &Table) -> Vec<TableName> {
    table.shape.parents.iter().filter_map(|text| parse_table(text).ok()).collect()
}

/// The sequences that belong to a column.
pub(super) fn sequences_of<'a>(
    catalog: &'a Catalog,
    table: &'a TableName,
    column: &'a str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a Object, &'a Sequence)> {
    catalog.objects.iter().filter_map(move |(key, object)| match &object.definition {
        Definition::Sequence(sequence) => {
            let owner = sequence.owned_by.as_ref()?;
            (owner.0 == *table && owner.1 == column).then_some((key, object, sequence))
        }
        _ => None,
    })
}

/// The one sequence that belongs to a column; of several, the one named as PostgreSQL would name it.
pub(super) fn sequence_of<'a>(
    catalog: &'a Catalog,
    table: &'a TableName,
    column: &'a str,
) -> Option<(&'a ObjectKey, &'a Object, &'a Sequence)> {
    let usual = format!("{}_{column}_seq", table.name);
    let mut found: Vec<_> = sequences_of(catalog, table, column).collect();
    found.sort_by_key(|(key, ..)| key.name.name != usual);
    found.into_iter().next()
}

/// The unique index, free or of a constraint, whose columns are `columns`.
pub(super) fn index_on(name: &TableName, table: &Table, columns: &[String]) -> Option<String> {
    let is_key = |text: &str| clause::column_list(text).is_some_and(|list| list == columns);
    let constraint =
        table.shape.constraints.iter().find(|it| ["p", "u"].contains(&it.kind.as_str()) && is_key(&it.definition));
    let free = || {
        table.shape.indexes.iter().find(|it| {
            it.valid
                && clause::index(&it.definition, &it.name, &name.schema, &name.name)
                    .is_ok_and(|text| text.unique && is_key(text.rest) && !text.rest.contains(" WHERE "))
        })
    };
    constraint.map(|it| it.name.clone()).or_else(|| free().map(|it| it.name.clone()))
}

/// A name of at most 63 bytes that begins with `stem` and is the same for the same `parts` only.
pub(super) fn derived_name(stem: &str, parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.join("\0").as_bytes());
    let mut tail = String::from("_");
    for byte in &digest[..6] {
        let _ = write!(tail, "{byte:02x}");
    }
    let mut end = stem.len().min(63 - tail.len());
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &stem[..end])
}
