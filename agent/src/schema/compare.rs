//! Gives each table and object of two nodes a verdict.
//!
//! The fingerprints decide; the documents say what it is that differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use steep_protocol::names::{TableName, escape_controls};

use super::{
    catalog::{Catalog, Definition, Domain, Environment, Object, ObjectKey, Range, Sequence, Table},
    diff::{Aspect, Difference, differences},
};

/// How a table or object of two nodes compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// The same.
    Match,
    /// Not the same.
    Mismatch,
    /// On the left only.
    LocalOnly,
    /// On the right only.
    RemoteOnly,
}

impl Verdict {
    /// The word for it: `MATCH`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Match => "MATCH",
            Self::Mismatch => "MISMATCH",
            Self::LocalOnly => "LOCAL_ONLY",
            Self::RemoteOnly => "REMOTE_ONLY",
        }
    }
}

/// What makes a verdict less than it seems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Qualifier {
    /// The same columns in another order: rows are replicated by name.
    OrderOnly,
    /// Expressions that two versions of PostgreSQL write in two ways.
    TextOnly,
}

impl Qualifier {
    /// The word for it: `ORDER_ONLY`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrderOnly => "ORDER_ONLY",
            Self::TextOnly => "TEXT_ONLY",
        }
    }
}

/// A table of two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableComparison {
    /// How it compares.
    pub verdict: Verdict,
    /// What makes that less than it seems.
    pub qualifier: Option<Qualifier>,
    /// What differs; empty where it is on one node only.
    pub differences: Vec<Difference>,
}

impl TableComparison {
    /// Replication between the two would stop, or rows would not mean the same.
    pub fn is_blocking(&self) -> bool {
        match self.verdict {
            Verdict::Match => false,
            Verdict::LocalOnly | Verdict::RemoteOnly => true,
            Verdict::Mismatch => self.differences.iter().any(|difference| difference.aspect.is_blocking()),
        }
    }

    /// What may be left as it is.
    pub fn warnings(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(|difference| !difference.aspect.is_blocking())
    }
}

/// A type or sequence of two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectComparison {
    /// How it compares.
    pub verdict: Verdict,
    /// As it is on the left, safe to print; none: not there.
    pub left: Option<String>,
    /// As it is on the right.
    pub right: Option<String>,
}

/// A property of two databases that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentDifference {
    /// `encoding`, `extension postgis`, …
    pub name: String,
    /// On the left; none: not there.
    pub left: Option<String>,
    /// On the right.
    pub right: Option<String>,
    /// It may be so: the servers' versions.
    pub is_harmless: bool,
}

/// Two nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Every table of either.
    pub tables: BTreeMap<TableName, TableComparison>,
    /// Every type and sequence of either.
    pub objects: BTreeMap<ObjectKey, ObjectComparison>,
    /// What differs between the databases themselves.
    pub environment: Vec<EnvironmentDifference>,
}

impl Comparison {
    /// How many tables have `verdict`.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.tables.values().filter(|table| table.verdict == verdict).count()
    }

    /// Every table and object is the same.
    pub fn is_match(&self) -> bool {
        self.tables.values().all(|table| table.verdict == Verdict::Match)
            && self.objects.values().all(|object| object.verdict == Verdict::Match)
    }
}

/// Compares two nodes: `left` is the one that asks.
pub fn compare(left: &Catalog, right: &Catalog) -> Comparison {
    let names: BTreeSet<_> = left.tables.keys().chain(right.tables.keys()).collect();
    let tables = names.into_iter().map(|name| {
        let compared = match (left.tables.get(name), right.tables.get(name)) {
            (Some(one), Some(other)) => compare_tables(one, other),
            (one, _) => one_sided(one.is_some()),
        };
        (name.clone(), compared)
    });
    let mut objects = BTreeMap::new();
    for (key, object) in &left.objects {
        let other = counterpart(key, object, right).and_then(|key| right.objects.get(key));
        objects.insert(key.clone(), compare_objects(Some(object), other));
    }
    let extra = right.objects.iter().filter(|(key, object)| counterpart(key, object, left).is_none());
    for (key, object) in extra {
        objects.insert(key.clone(), compare_objects(None, Some(object)));
    }
    Comparison {
        tables: tables.collect(),
        objects,
        environment: compare_environments(&left.environment, &right.environment),
    }
}

fn one_sided(is_left: bool) -> TableComparison {
    let verdict = if is_left { Verdict::LocalOnly } else { Verdict::RemoteOnly };
    TableComparison { verdict, qualifier: None, differences: Vec::new() }
}

/// Compares two versions of a table.
pub fn compare_tables(left: &Table, right: &Table) -> TableComparison {
    let shapes_agree = left.shape_fingerprint == right.shape_fingerprint;
    let columns_agree = left.fingerprint == right.fingerprint;
    // Documents that were not fingerprinted can still be compared.
    let is_fingerprinted = !left.fingerprint.is_empty() && !right.fingerprint.is_empty();
    if is_fingerprinted && shapes_agree && columns_agree {
        return TableComparison { verdict: Verdict::Match, qualifier: None, differences: Vec::new() };
    }
    let mut differences = differences(left, right);
    if differences.is_empty() && !is_fingerprinted {
        return TableComparison { verdict: Verdict::Match, qualifier: None, differences };
    }
    if differences.is_empty() {
        let unknown = Difference { aspect: Aspect::Unknown, name: String::new(), left: None, right: None };
        differences.push(unknown);
    }
    let is_order_only = differences.iter().all(|difference| difference.aspect == Aspect::Order);
    let qualifier = is_order_only.then_some(Qualifier::OrderOnly);
    TableComparison { verdict: Verdict::Mismatch, qualifier, differences }
}

fn compare_objects(left: Option<&Object>, right: Option<&Object>) -> ObjectComparison {
    let verdict = match (left, right) {
        (Some(one), Some(other)) if are_same(one, other) => Verdict::Match,
        (Some(_), Some(_)) => Verdict::Mismatch,
        (Some(_), None) => Verdict::LocalOnly,
        _ => Verdict::RemoteOnly,
    };
    let text = |object: Option<&Object>| object.map(|object| describe(&object.definition));
    ObjectComparison { verdict, left: text(left), right: text(right) }
}

/// The object of another catalog that is the same thing: of its name, or a sequence of the same column, however called.
pub(super) fn counterpart<'a>(key: &ObjectKey, object: &Object, other: &'a Catalog) -> Option<&'a ObjectKey> {
    let owner = |object: &Object| match &object.definition {
        Definition::Sequence(sequence) => sequence.owned_by.clone(),
        _ => None,
    };
    let wanted = owner(object);
    if let Some((same, there)) = other.objects.get_key_value(key)
        && owner(there) == wanted
    {
        return Some(same);
    }
    let mut of_column = other.objects.iter().filter(|(_, there)| wanted.is_some() && owner(there) == wanted);
    of_column.next().map(|(key, _)| key).or_else(|| {
        let same = other.objects.get_key_value(key)?;
        // One that belongs to a column of its own is not it.
        (owner(same.1).is_none() || wanted.is_none()).then_some(same.0)
    })
}

/// The same but for where a sequence begins and how much a session takes of it.
pub(super) fn are_same(left: &Object, right: &Object) -> bool {
    if !left.fingerprint.is_empty() && !right.fingerprint.is_empty() {
        return left.fingerprint == right.fingerprint;
    }
    match (&left.definition, &right.definition) {
        (Definition::Sequence(one), Definition::Sequence(other)) => {
            let steps = |of: &Sequence| of.plan.map(|plan| (plan.increment, plan.min, plan.max));
            let is_known = one.plan.is_some() && other.plan.is_some();
            Sequence { plan: None, ..one.clone() } == Sequence { plan: None, ..other.clone() }
                && (!is_known || steps(one) == steps(other))
        }
        (one, other) => one == other,
    }
}

/// A type or sequence in a line.
pub fn describe(definition: &Definition) -> String {
    let text = match definition {
        Definition::Enum(labels) => {
            let quoted: Vec<_> = labels.iter().map(|label| format!("'{}'", label.replace('\'', "''"))).collect();
            format!("enum ({})", quoted.join(", "))
        }
        Definition::Domain(domain) => describe_domain(domain),
        Definition::Composite(attributes) => {
            let parts: Vec<_> = attributes.iter().map(|part| format!("{} {}", part.name, part.type_name)).collect();
            format!("composite ({})", parts.join(", "))
        }
        Definition::Range(range) => describe_range(range),
        Definition::Sequence(sequence) => {
            let cycle = if sequence.cycle { " cycle" } else { "" };
            let owner = sequence.owned_by.as_ref();
            let owner = owner.map(|(table, column)| format!(" owned by {table}.{column}")).unwrap_or_default();
            let steps = sequence.plan.map(|plan| format!(" by {} from {} to {}", plan.increment, plan.min, plan.max));
            format!("sequence of {}{}{cycle}{owner}", sequence.type_name, steps.unwrap_or_default())
        }
    };
    escape_controls(&text)
}

fn describe_domain(domain: &Domain) -> String {
    let mut text = format!("domain over {}", domain.base);
    if let Some(collation) = &domain.collation {
        let _ = write!(text, " COLLATE {collation}");
    }
    if domain.not_null {
        text.push_str(" NOT NULL");
    }
    if let Some(default) = &domain.default {
        let _ = write!(text, " DEFAULT {default}");
    }
    for check in &domain.checks {
        let _ = write!(text, " {} {}", check.name, check.definition);
    }
    text
}

fn describe_range(range: &Range) -> String {
    let mut text = format!("range of {}", range.subtype);
    let parts = [("opclass", &range.opclass), ("collation", &range.collation), ("multirange", &range.multirange)];
    for (name, value) in parts {
        if let Some(value) = value {
            let _ = write!(text, " {name} {value}");
        }
    }
    text
}

/// What differs between two databases themselves; last, and harmless, the servers' versions.
pub fn compare_environments(left: &Environment, right: &Environment) -> Vec<EnvironmentDifference> {
    let mut found = Vec::new();
    let mut look = |name: &str, one: Option<&str>, other: Option<&str>, is_harmless: bool| {
        if one != other {
            let text = |side: Option<&str>| side.map(escape_controls);
            let (left, right) = (text(one), text(other));
            found.push(EnvironmentDifference { name: escape_controls(name), left, right, is_harmless });
        }
    };
    look("encoding", Some(&left.encoding), Some(&right.encoding), false);
    look("locale provider", Some(&left.provider), Some(&right.provider), false);
    look("collate", Some(&left.collate), Some(&right.collate), false);
    look("ctype", Some(&left.ctype), Some(&right.ctype), false);
    look("locale", left.locale.as_deref(), right.locale.as_deref(), false);
    look("collation version", left.collation_version.as_deref(), right.collation_version.as_deref(), false);
    let extensions: BTreeSet<_> = left.extensions.keys().chain(right.extensions.keys()).collect();
    for name in extensions {
        let version = |side: &Environment| side.extensions.get(name).cloned();
        look(&format!("extension {name}"), version(left).as_deref(), version(right).as_deref(), false);
    }
    let version = |side: &Environment| Some(side.server_version_num.to_string());
    look("server version", version(left).as_deref(), version(right).as_deref(), true);
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(columns: serde_json::Value) -> Table {
        let shape = json!({ "kind": "r", "persistence": "p", "replident": "d", "rls": [false, false] });
        Table::parse(&TableName::new("public", "t"), &columns, &shape).expect("a document")
    }

    #[test]
    fn a_table_of_one_node_is_told_by_the_side_it_is_on() {
        let mut left = Catalog::default();
        left.tables.insert(TableName::new("public", "t"), table(json!([])));
        let right = Catalog::default();
        let verdict = |one, other| {
            let compared: Comparison = compare(one, other);
            compared.tables.values().next().map(|table| (table.verdict, table.is_blocking()))
        };
        assert_eq!(verdict(&left, &right), Some((Verdict::LocalOnly, true)));
        assert_eq!(verdict(&right, &left), Some((Verdict::RemoteOnly, true)));
        assert_eq!(verdict(&left, &left), Some((Verdict::Match, false)));
    }

    #[test]
    fn another_order_of_columns_is_a_mismatch_that_blocks_nothing() {
        let left = table(json!([["a", "text", null, false], ["b", "text", null, false]]));
        let right = table(json!([["b", "text", null, false], ["a", "text", null, false]]));
        let compared = compare_tables(&left, &right);
        assert_eq!((compared.verdict, compared.qualifier), (Verdict::Mismatch, Some(Qualifier::OrderOnly)));
        assert!(!compared.is_blocking());
    }

    #[test]
    fn fingerprints_that_differ_where_no_document_does_are_never_a_match() {
        let one = Table { fingerprint: "a".repeat(64), ..table(json!([])) };
        let other = Table { fingerprint: "b".repeat(64), ..table(json!([])) };
        let compared = compare_tables(&one, &other);
        assert_eq!(compared.verdict, Verdict::Mismatch);
        assert!(compared.is_blocking() && compared.differences[0].aspect == Aspect::Unknown);
    }

    #[test]
    fn the_versions_of_servers_may_differ_and_their_encodings_may_not() {
        let left = Environment { encoding: "UTF8".into(), server_version_num: 150_018, ..Environment::default() };
        let right = Environment { encoding: "LATIN1".into(), server_version_num: 180_004, ..Environment::default() };
        let found = compare_environments(&left, &right);
        let told: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.is_harmless)).collect();
        assert_eq!(told, [("encoding", false), ("server version", true)]);
    }
}
