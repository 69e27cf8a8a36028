//! Names what differs between two versions of a table, and shows them side by side.
//!
//! The sides are `left` and `right`; whoever prints them says which node is which. All texts are safe to print.

use std::collections::BTreeSet;

use steep_protocol::names::{escape_controls, readable_identifier};

use super::catalog::{Attached, Column, Constraint, Index, Policy, Shape, Table};

/// Which side of a table differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Aspect {
    /// A column is there on one side only.
    Column,
    /// A column's type.
    Type,
    /// A column's default.
    Default,
    /// Whether a column takes null.
    Nullability,
    /// A column's identity.
    Identity,
    /// Whether and from what a column is generated.
    Generated,
    /// A column's collation.
    Collation,
    /// A type that values are of, directly or in parts.
    ValueType,
    /// The order of columns, and nothing else of them.
    Order,
    /// It is a partitioned table on one side only.
    Kind,
    /// How it is partitioned.
    PartitionKey,
    /// Which rows of its parent it takes.
    Bound,
    /// What it inherits from.
    Parents,
    /// It is unlogged on one side only.
    Persistence,
    /// How its rows are named in the WAL.
    ReplicaIdentity,
    /// The primary key.
    PrimaryKey,
    /// A unique constraint.
    Unique,
    /// A foreign key.
    ForeignKey,
    /// Nulls are taken no more, and may be there.
    NotNull,
    /// A check.
    Check,
    /// An exclusion constraint.
    Exclusion,
    /// An index of no constraint.
    Index,
    /// A trigger.
    Trigger,
    /// Row security.
    RowSecurity,
    /// A policy of row security.
    Policy,
    /// A rule.
    Rule,
    /// Something a newer version wrote down and this one cannot read.
    Unknown,
}

impl Aspect {
    /// The word for it: in JSON, and before a name in texts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Column => "column",
            Self::Type => "type",
            Self::Default => "default",
            Self::Nullability => "nullability",
            Self::Identity => "identity",
            Self::Generated => "generated",
            Self::Collation => "collation",
            Self::ValueType => "value_type",
            Self::Order => "column_order",
            Self::Kind => "kind",
            Self::PartitionKey => "partition_key",
            Self::Bound => "partition_bound",
            Self::Parents => "parents",
            Self::Persistence => "persistence",
            Self::ReplicaIdentity => "replica_identity",
            Self::PrimaryKey => "primary_key",
            Self::Unique => "unique",
            Self::ForeignKey => "foreign_key",
            Self::NotNull => "not_null",
            Self::Check => "check",
            Self::Exclusion => "exclusion",
            Self::Index => "index",
            Self::Trigger => "trigger",
            Self::RowSecurity => "row_security",
            Self::Policy => "policy",
            Self::Rule => "rule",
            Self::Unknown => "unknown",
        }
    }

    /// It belongs to one column.
    pub fn is_of_column(self) -> bool {
        self <= Self::Collation
    }

    /// Replication between the two sides would stop, or rows would not mean the same.
    pub fn is_blocking(self) -> bool {
        self.is_of_column()
            || matches!(
                self,
                Self::ValueType
                    | Self::NotNull
                    | Self::Kind
                    | Self::PartitionKey
                    | Self::ReplicaIdentity
                    | Self::PrimaryKey
                    | Self::Unknown
            )
    }

    fn of_constraint(constraint: &Constraint) -> Self {
        match constraint.kind.as_str() {
            "p" => Self::PrimaryKey,
            "u" => Self::Unique,
            "f" => Self::ForeignKey,
            "x" => Self::Exclusion,
            "n" => Self::NotNull,
            _ => Self::Check,
        }
    }

    /// For people: "primary key".
    fn spoken(self) -> String {
        self.as_str().replace('_', " ")
    }
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which side of the table.
    pub aspect: Aspect,
    /// The column, constraint, index, …; empty where the table itself is meant. Not escaped: it is a name.
    pub name: String,
    /// As it is on the left; none: not there.
    pub left: Option<String>,
    /// As it is on the right; none: not there.
    pub right: Option<String>,
}

impl Difference {
    fn new(aspect: Aspect, name: &str, left: Option<String>, right: Option<String>) -> Self {
        let safe = |text: Option<String>| text.map(|text| escape_controls(&text));
        Self { aspect, name: name.to_owned(), left: safe(left), right: safe(right) }
    }

    /// In a few words: "column loyalty_tier missing on node_b", "default of created_at differs".
    pub fn summary(&self, left: &str, right: &str) -> String {
        let name = readable_identifier(&self.name);
        let what = self.aspect.spoken();
        if self.aspect.is_of_column() && self.aspect != Aspect::Column {
            return match self.aspect {
                Aspect::Generated => format!("generation of {name} differs"),
                _ => format!("{what} of {name} differs"),
            };
        }
        let thing = if self.name.is_empty() { what } else { format!("{what} {name}") };
        match (self.aspect, &self.left, &self.right) {
            // The name says what kind of type it is.
            (Aspect::ValueType, Some(more), None) => format!("{} has more on {left}: {more}", self.name),
            (Aspect::ValueType, None, Some(more)) => format!("{} has more on {right}: {more}", self.name),
            (Aspect::ValueType, ..) => format!("{} differs", self.name),
            (Aspect::Order, ..) => "columns stand in another order".to_owned(),
            (Aspect::Persistence, Some(first), _) => {
                format!("it is unlogged on {} only", if first == "unlogged" { left } else { right })
            }
            (Aspect::Kind, Some(first), _) => {
                format!("it is partitioned on {} only", if first.starts_with("part") { left } else { right })
            }
            (Aspect::Unknown, ..) => "it differs in something this version does not know".to_owned(),
            _ if self.name.is_empty() => format!("{thing} differs"),
            (_, Some(_), None) => format!("{thing} missing on {right}"),
            (_, None, _) => format!("{thing} exists only on {right}"),
            (_, Some(_), Some(_)) => format!("{thing} differs"),
        }
    }
}

/// Everything in which two versions of a table differ, columns first.
pub fn differences(left: &Table, right: &Table) -> Vec<Difference> {
    let mut found = Vec::new();
    for column in &left.columns {
        match right.column(&column.name) {
            None => found.push(Difference::new(Aspect::Column, &column.name, Some(described(column)), None)),
            Some(other) => found.extend(column_differences(column, other)),
        }
    }
    let extra = right.columns.iter().filter(|column| left.column(&column.name).is_none());
    found.extend(extra.map(|column| Difference::new(Aspect::Column, &column.name, None, Some(described(column)))));
    if found.is_empty() && names(left) != names(right) {
        let listed = |table: &Table| Some(names(table).join(", "));
        found.push(Difference::new(Aspect::Order, "", listed(left), listed(right)));
    }
    shape_differences(&left.shape, &right.shape, &mut found);
    found
}

fn names(table: &Table) -> Vec<String> {
    table.columns.iter().map(|column| readable_identifier(&column.name)).collect()
}

fn column_differences(left: &Column, right: &Column) -> Vec<Difference> {
    let nullability = |column: &Column| Some(if column.not_null { "NOT NULL" } else { "NULL" }.to_owned());
    let pairs = [
        (Aspect::Type, Some(left.type_name.clone()), Some(right.type_name.clone())),
        (Aspect::Default, left.default.clone(), right.default.clone()),
        (Aspect::Nullability, nullability(left), nullability(right)),
        (Aspect::Identity, identity(left), identity(right)),
        (Aspect::Generated, generated(left), generated(right)),
        (Aspect::Collation, left.collation.clone(), right.collation.clone()),
    ];
    let differing = pairs.into_iter().filter(|(_, left, right)| left != right);
    differing.map(|(aspect, one, other)| Difference::new(aspect, &left.name, one, other)).collect()
}

fn identity(column: &Column) -> Option<String> {
    column.identity.as_deref().map(|letter| match letter {
        "a" => "GENERATED ALWAYS AS IDENTITY".to_owned(),
        _ => "GENERATED BY DEFAULT AS IDENTITY".to_owned(),
    })
}

fn generated(column: &Column) -> Option<String> {
    let letter = column.generated.as_deref()?;
    let kept = if letter == "v" { "VIRTUAL" } else { "STORED" };
    Some(format!("GENERATED ALWAYS AS ({}) {kept}", column.expression.as_deref().unwrap_or_default()))
}

/// A column as a line of a table's definition would say it, without its name.
pub fn described(column: &Column) -> String {
    let mut text = column.type_name.clone();
    if let Some(collation) = &column.collation {
        text.push_str(&format!(" COLLATE {collation}"));
    }
    if column.not_null {
        text.push_str(" NOT NULL");
    }
    if let Some(default) = &column.default {
        text.push_str(&format!(" DEFAULT {default}"));
    }
    for part in [identity(column), generated(column)].into_iter().flatten() {
        text.push_str(&format!(" {part}"));
    }
    escape_controls(&text)
}

fn shape_differences(left: &Shape, right: &Shape, found: &mut Vec<Difference>) {
    let kind = |shape: &Shape| Some(if shape.kind == "p" { "partitioned table" } else { "table" }.to_owned());
    let persistence = |shape: &Shape| Some(if shape.persistence == "u" { "unlogged" } else { "permanent" }.to_owned());
    let parents = |shape: &Shape| (!shape.parents.is_empty()).then(|| shape.parents.join(", "));
    let security = |shape: &Shape| {
        let (enabled, forced) = shape.row_security;
        let words = match (enabled, forced) {
            (false, false) => "disabled",
            (true, false) => "enabled",
            (false, true) => "disabled, forced",
            (true, true) => "enabled, forced",
        };
        Some(words.to_owned())
    };
    let named = |shape: &Shape| Some(shape.replica_identity.to_string());
    let pairs = [
        (Aspect::Kind, kind(left), kind(right)),
        (Aspect::PartitionKey, left.partition_key.clone(), right.partition_key.clone()),
        (Aspect::Bound, left.bound.clone(), right.bound.clone()),
        (Aspect::Parents, parents(left), parents(right)),
        (Aspect::Persistence, persistence(left), persistence(right)),
        (Aspect::ReplicaIdentity, named(left), named(right)),
    ];
    let differing = pairs.into_iter().filter(|(_, left, right)| left != right);
    found.extend(differing.map(|(aspect, one, other)| Difference::new(aspect, "", one, other)));
    let constraint = |item: &Constraint| (Aspect::of_constraint(item), item.name.clone(), item.definition.clone());
    items(&left.constraints, &right.constraints, constraint, found);
    items(&left.indexes, &right.indexes, index_item, found);
    items(&left.triggers, &right.triggers, |item| attached_item(Aspect::Trigger, item), found);
    if left.row_security != right.row_security {
        found.push(Difference::new(Aspect::RowSecurity, "", security(left), security(right)));
    }
    items(&left.policies, &right.policies, policy_item, found);
    items(&left.rules, &right.rules, |item| attached_item(Aspect::Rule, item), found);
}

type Item = (Aspect, String, String);

fn index_item(index: &Index) -> Item {
    let note = if index.valid { "" } else { " (invalid)" };
    (Aspect::Index, index.name.clone(), format!("{}{note}", index.definition))
}

fn attached_item(aspect: Aspect, item: &Attached) -> Item {
    let note = match item.enabled.as_str() {
        "O" => "",
        "D" => " (disabled)",
        "R" => " (for replicated rows)",
        _ => " (always)",
    };
    (aspect, item.name.clone(), format!("{}{note}", item.definition))
}

fn policy_item(policy: &Policy) -> Item {
    let command = match policy.command.as_str() {
        "r" => "SELECT",
        "a" => "INSERT",
        "w" => "UPDATE",
        "d" => "DELETE",
        _ => "ALL",
    };
    let kind = if policy.permissive { "PERMISSIVE" } else { "RESTRICTIVE" };
    let mut text = format!("{kind} FOR {command} TO {}", policy.roles.join(", "));
    if let Some(using) = &policy.using {
        text.push_str(&format!(" USING ({using})"));
    }
    if let Some(check) = &policy.check {
        text.push_str(&format!(" WITH CHECK ({check})"));
    }
    (Aspect::Policy, policy.name.clone(), text)
}

/// Things of the same name and kind are the same thing; a constraint of another kind is another one.
fn items<T>(left: &[T], right: &[T], item: impl Fn(&T) -> Item, found: &mut Vec<Difference>) {
    let (left, right): (Vec<Item>, Vec<Item>) = (left.iter().map(&item).collect(), right.iter().map(&item).collect());
    let keys: BTreeSet<(Aspect, &str)> = left.iter().chain(&right).map(|(a, name, _)| (*a, name.as_str())).collect();
    let text = |side: &[Item], key: (Aspect, &str)| {
        side.iter().find(|(aspect, name, _)| (*aspect, name.as_str()) == key).map(|(_, _, text)| text.clone())
    };
    for key in keys {
        let (one, other) = (text(&left, key), text(&right, key));
        if one != other {
            found.push(Difference::new(key.0, key.1, one, other));
        }
    }
}

/// All differences in one line: `column loyalty_tier missing on node_b; default of created_at differs`.
pub fn summary(differences: &[Difference], left: &str, right: &str) -> String {
    let told: Vec<_> = differences.iter().map(|difference| difference.summary(left, right)).collect();
    told.join("; ")
}

/// How a line of two sides stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// `=`: the same.
    Same,
    /// `+`: on the left only, so that the right would gain it.
    LeftOnly,
    /// `-`: on the right only.
    RightOnly,
    /// `~`: on both, and not the same.
    Differs,
}

impl Mark {
    /// The character before the line.
    pub fn as_char(self) -> char {
        match self {
            Self::Same => '=',
            Self::LeftOnly => '+',
            Self::RightOnly => '-',
            Self::Differs => '~',
        }
    }

    fn of(left: Option<&str>, right: Option<&str>) -> Self {
        match (left, right) {
            (Some(one), Some(other)) if one == other => Self::Same,
            (Some(_), None) => Self::LeftOnly,
            (None, Some(_)) => Self::RightOnly,
            _ => Self::Differs,
        }
    }
}

/// One line of two sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// How it stands out.
    pub mark: Mark,
    /// What the line is about; a column's line is about the whole column.
    pub aspect: Aspect,
    /// The column's name, or what differs and its name: `index customers_tier_idx`. Safe to print.
    pub name: String,
    /// The left side; none: not there.
    pub left: Option<String>,
    /// The right side; none: not there.
    pub right: Option<String>,
}

impl Row {
    /// A line about something beside the table's own.
    pub fn differing(difference: Difference) -> Self {
        let Difference { aspect, name, left, right } = difference;
        Self { mark: Mark::Differs, aspect, name, left, right }
    }
}

/// A table side by side: every column in the left's order, then what else differs.
pub fn rows(left: &Table, right: &Table) -> Vec<Row> {
    let extra = right.columns.iter().filter(|column| left.column(&column.name).is_none());
    let columns = left.columns.iter().chain(extra).map(|column| {
        let side = |table: &Table| table.column(&column.name).map(described);
        row(Aspect::Column, readable_identifier(&column.name), side(left), side(right))
    });
    let differing = differences(left, right).into_iter().filter(|difference| !difference.aspect.is_of_column());
    let others = differing.map(|difference| {
        let spoken = difference.aspect.spoken();
        let name = if difference.name.is_empty() {
            spoken
        } else {
            format!("{spoken} {}", readable_identifier(&difference.name))
        };
        row(difference.aspect, name, difference.left, difference.right)
    });
    columns.chain(others).collect()
}

fn row(aspect: Aspect, name: String, left: Option<String>, right: Option<String>) -> Row {
    Row { mark: Mark::of(left.as_deref(), right.as_deref()), aspect, name, left, right }
}

#[cfg(test)]
mod tests;
