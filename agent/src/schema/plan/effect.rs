//! What a step makes of the target, as a change of its model.

use steep_protocol::names::TableName;

use crate::schema::catalog::{Catalog, Column, Constraint, Index, Object, ObjectKey, ReplicaIdentity, Table};

use super::keys::parents_of;

/// A change of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that documents show.
    Nothing,
    /// A type or sequence is as given.
    Object(ObjectKey, Object),
    /// A table is there.
    Table(TableName, Box<Table>),
    /// A table is a partition.
    Attached {
        /// The partition.
        table: TableName,
        /// Its parent, as SQL names it.
        parent: String,
        /// Its bound.
        bound: String,
        /// Columns that its root fills.
        identities: Vec<(String, String)>,
    },
    /// A table and all that inherits from it have a column.
    Column(TableName, Column),
    /// The type of a column, there and below.
    Type(TableName, String, String),
    /// Whether a column takes null, there and below.
    NotNull(TableName, String, bool),
    /// A default, there alone.
    Default(TableName, String, Option<String>),
    /// A constraint is as given.
    Constraint(TableName, Constraint),
    /// A constraint, of a kind and name, became something else.
    ConstraintGone(TableName, String, String),
    /// An index is as given.
    Index(TableName, Index),
    /// An index became part of another.
    IndexGone(TableName, String),
    /// An index of a partitioned table, and the parts it took over.
    IndexOver(TableName, Index, Vec<(TableName, String)>),
    /// How rows are named.
    ReplicaIdentity(TableName, ReplicaIdentity),
}

impl Effect {
    /// Changes `model` so.
    pub(super) fn apply(&self, model: &mut Catalog) {
        match self {
            Self::Nothing => {}
            Self::Object(key, object) => drop(model.objects.insert(key.clone(), object.clone())),
            Self::Table(name, table) => drop(model.tables.insert(name.clone(), (**table).clone())),
            Self::Attached { table, parent, bound, identities } => change(model, table, |table| {
                table.shape.parents = vec![parent.clone()];
                table.shape.bound = Some(bound.clone());
                for (column, identity) in identities {
                    on_column(table, column, |column| column.identity = Some(identity.clone()));
                }
            }),
            Self::Column(name, column) => below(model, name, &|table| {
                if table.column(&column.name).is_none() {
                    table.columns.push(column.clone());
                }
            }),
            Self::Type(name, column, type_name) => below(model, name, &|table| {
                on_column(table, column, |column| column.type_name.clone_from(type_name));
            }),
            Self::NotNull(name, column, not_null) => below(model, name, &|table| {
                on_column(table, column, |column| column.not_null = *not_null);
            }),
            Self::Default(name, column, default) => change(model, name, |table| {
                on_column(table, column, |column| column.default.clone_from(default));
            }),
            Self::Constraint(name, constraint) => change(model, name, |table| {
                let constraints = &mut table.shape.constraints;
                constraints.retain(|other| (&other.kind, &other.name) != (&constraint.kind, &constraint.name));
                constraints.push(constraint.clone());
                constraints.sort_by(|one, other| (&one.kind, &one.name).cmp(&(&other.kind, &other.name)));
                // A constraint made of an index takes it over.
                if constraint.kind == "u" {
                    table.shape.indexes.retain(|index| index.name != constraint.name);
                }
            }),
            Self::ConstraintGone(name, kind, constraint) => change(model, name, |table| {
                table.shape.constraints.retain(|other| (&other.kind, &other.name) != (kind, constraint));
            }),
            Self::Index(name, index) => change(model, name, |table| put_index(table, index)),
            Self::IndexGone(name, index) => change(model, name, |table| drop_index(table, index)),
            Self::IndexOver(name, index, parts) => {
                change(model, name, |table| put_index(table, index));
                for (part, index) in parts {
                    change(model, part, |table| drop_index(table, index));
                }
            }
            Self::ReplicaIdentity(name, identity) => {
                change(model, name, |table| table.shape.replica_identity = identity.clone());
            }
        }
    }
}

fn put_index(table: &mut Table, index: &Index) {
    drop_index(table, &index.name);
    table.shape.indexes.push(index.clone());
    table.shape.indexes.sort_by(|one, other| one.name.cmp(&other.name));
}

fn drop_index(table: &mut Table, name: &str) {
    table.shape.indexes.retain(|index| index.name != name);
}

fn on_column(table: &mut Table, name: &str, change: impl FnOnce(&mut Column)) {
    if let Some(column) = table.columns.iter_mut().find(|column| column.name == name) {
        change(column);
    }
}

/// Changes one table; its fingerprints are of what it was.
fn change(model: &mut Catalog, name: &TableName, change: impl FnOnce(&mut Table)) {
    if let Some(table) = model.tables.get_mut(name) {
        change(table);
        table.fingerprint.clear();
        table.fingerprint_sorted.clear();
        table.shape_fingerprint.clear();
    }
}

/// Changes a table and everything that inherits from it.
fn below(model: &mut Catalog, name: &TableName, each: &impl Fn(&mut Table)) {
    change(model, name, each);
    for child in children(model, name) {
        below(model, &child, each);
    }
}

/// The tables that inherit from `name` directly.
pub(super) fn children(catalog: &Catalog, name: &TableName) -> Vec<TableName> {
    let is_child = |(child, table): &(&TableName, &Table)| *child != name && parents_of(table).contains(name);
    catalog.tables.iter().filter(is_child).map(|(child, _)| child.clone()).collect()
}
