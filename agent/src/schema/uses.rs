//! Which types and sequences tables use: what their columns are of, and what their texts name. Pure.

use std::collections::BTreeSet;

use steep_protocol::names::{TableName, quote_identifier, readable_identifier};

use super::{
    catalog::{Catalog, Definition, Object, ObjectKey, Table},
    compare::{Comparison, Verdict, describe},
    diff::{Aspect, Difference},
};

impl Catalog {
    /// The types and sequences of it that `tables` use, also through other types.
    pub fn used_by(&self, tables: &BTreeSet<TableName>) -> BTreeSet<ObjectKey> {
        let mut text: String = self
            .tables
            .iter()
            .filter(|(name, _)| tables.contains(*name))
            .flat_map(|(_, table)| texts(table))
            .flat_map(|text| [text, "\n"])
            .collect();
        let mut used = BTreeSet::new();
        loop {
            let is_new = |(key, object): &(&ObjectKey, &Object)| {
                !used.contains(*key) && (is_named(key, &text) || belongs_to(object, tables))
            };
            let more: Vec<_> = self.objects.iter().filter(is_new).collect();
            if more.is_empty() {
                return used;
            }
            text = more.iter().flat_map(|(_, object)| made_of(&object.definition)).collect();
            used.extend(more.into_iter().map(|(key, _)| key.clone()));
        }
    }
}

/// Lets a table that is on both sides answer for the types its rows are made of: values that one side does not take would
/// stop replication as a column of another type does.
pub fn blame_types(comparison: &mut Comparison, left: &Catalog, right: &Catalog) {
    let differing = comparison.objects.iter().filter(|(_, object)| object.verdict == Verdict::Mismatch);
    let types: Vec<_> = differing
        .filter_map(|(key, _)| {
            let (one, other) = (left.objects.get(key)?, right.objects.get(key)?);
            Some((key, type_difference(key, &one.definition, &other.definition)?))
        })
        .collect();
    if types.is_empty() {
        return;
    }
    for (name, compared) in &mut comparison.tables {
        if matches!(compared.verdict, Verdict::LocalOnly | Verdict::RemoteOnly) {
            continue;
        }
        let used = left.used_by(&BTreeSet::from([name.clone()]));
        for (_, difference) in types.iter().filter(|(key, _)| used.contains(*key)) {
            compared.verdict = Verdict::Mismatch;
            compared.qualifier = None;
            compared.differences.push(difference.clone());
        }
    }
}

/// In what a type differs. Of an enum's labels those that the other side lacks; a sequence is no type.
fn type_difference(key: &ObjectKey, left: &Definition, right: &Definition) -> Option<Difference> {
    let (left, right) = match (left, right) {
        (Definition::Sequence(_), _) | (_, Definition::Sequence(_)) => return None,
        (Definition::Enum(one), Definition::Enum(other)) => {
            let lacking = |of: &[String], there: &[String]| {
                let labels: Vec<_> = of.iter().filter(|label| !there.contains(label)).cloned().collect();
                (!labels.is_empty()).then(|| describe(&Definition::Enum(labels)))
            };
            match (lacking(one, other), lacking(other, one)) {
                (None, None) => (Some(describe(left)), Some(describe(right))),
                apart => apart,
            }
        }
        _ => (Some(describe(left)), Some(describe(right))),
    };
    Some(Difference { aspect: Aspect::ValueType, name: key.to_string(), left, right })
}

fn texts(table: &Table) -> impl Iterator<Item = &str> {
    let columns = table.columns.iter().flat_map(|column| {
        [Some(&column.type_name), column.default.as_ref(), column.expression.as_ref()].into_iter().flatten()
    });
    let shape = &table.shape;
    let constraints = shape.constraints.iter().map(|constraint| &constraint.definition);
    let indexes = shape.indexes.iter().map(|index| &index.definition);
    columns.chain(constraints).chain(indexes).chain(&shape.partition_key).map(String::as_str)
}

/// What a type names in its turn.
fn made_of(definition: &Definition) -> Vec<String> {
    let mut texts: Vec<String> = match definition {
        Definition::Enum(_) | Definition::Sequence(_) => Vec::new(),
        Definition::Domain(domain) => {
            let checks = domain.checks.iter().map(|check| check.definition.clone());
            [domain.base.clone()].into_iter().chain(domain.default.clone()).chain(checks).collect()
        }
        Definition::Composite(attributes) => attributes.iter().map(|attribute| attribute.type_name.clone()).collect(),
        Definition::Range(range) => vec![range.subtype.clone()],
    };
    texts.iter_mut().for_each(|text| text.push('\n'));
    texts
}

fn belongs_to(object: &Object, tables: &BTreeSet<TableName>) -> bool {
    match &object.definition {
        Definition::Sequence(sequence) => sequence.owned_by.as_ref().is_some_and(|(table, _)| tables.contains(table)),
        _ => false,
    }
}

/// Whether `text` names the object, in any of the ways PostgreSQL quotes.
fn is_named(key: &ObjectKey, text: &str) -> bool {
    let ways = |part: &str| BTreeSet::from([readable_identifier(part), quote_identifier(part)]);
    let names = ways(&key.name.schema);
    names.iter().any(|schema| ways(&key.name.name).iter().any(|name| holds(text, &format!("{schema}.{name}"))))
}

/// `name` stands in `text` and is no part of a longer one.
fn holds(text: &str, name: &str) -> bool {
    let is_of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '"' | '.');
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + name.len()..].chars().next());
        !before.is_some_and(is_of_name) && !after.is_some_and(is_of_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{
        catalog::{Attribute, Column, ObjectKind, Sequence},
        compare::compare,
    };

    fn table(columns: &[(&str, &str)]) -> Table {
        let columns = columns.iter().map(|(name, type_name)| Column {
            name: (*name).into(),
            type_name: (*type_name).into(),
            default: None,
            not_null: false,
            identity: None,
            generated: None,
            expression: None,
            collation: None,
        });
        Table { columns: columns.collect(), ..Table::default() }
    }

    fn object(kind: ObjectKind, name: &str, definition: Definition) -> (ObjectKey, Object) {
        let key = ObjectKey { kind, name: TableName::new("app", name) };
        (key, Object { fingerprint: String::new(), definition })
    }

    fn labels(labels: &[&str]) -> Definition {
        Definition::Enum(labels.iter().map(|label| (*label).to_owned()).collect())
    }

    fn catalog() -> Catalog {
        let part = Attribute { name: "a".into(), type_name: "app.mood[]".into(), collation: None };
        let owned = Sequence { owned_by: Some((TableName::new("app", "t"), "id".into())), ..Sequence::default() };
        let objects = [
            object(ObjectKind::Enum, "mood", labels(&["a"])),
            object(ObjectKind::Enum, "mood2", labels(&["a"])),
            object(ObjectKind::Enum, "order", labels(&["a"])),
            object(ObjectKind::Composite, "pair", Definition::Composite(vec![part])),
            object(ObjectKind::Sequence, "t_id_seq", Definition::Sequence(owned)),
            object(ObjectKind::Sequence, "loose", Definition::Sequence(Sequence::default())),
        ];
        let t = table(&[("id", "integer"), ("p", "app.pair")]);
        let tables = [("t", t), ("u", table(&[("o", r#"app."order""#)]))];
        let tables = tables.map(|(name, table)| (TableName::new("app", name), table));
        Catalog { tables: tables.into(), objects: objects.into(), ..Catalog::default() }
    }

    fn used(catalog: &Catalog, name: &str) -> Vec<String> {
        let used = catalog.used_by(&BTreeSet::from([TableName::new("app", name)]));
        used.into_iter().map(|key| key.name.name).collect()
    }

    #[test]
    fn a_table_uses_its_types_what_they_are_made_of_and_its_own_sequence_and_nothing_else() {
        assert_eq!(used(&catalog(), "t"), ["mood", "pair", "t_id_seq"]);
        assert_eq!(used(&catalog(), "u"), ["order"]);
    }

    #[test]
    fn tables_answer_for_the_types_of_their_values() {
        let (left, mut right) = (catalog(), catalog());
        let (key, more) = object(ObjectKind::Enum, "mood", labels(&["a", "b"]));
        right.objects.insert(key, more);
        let mut compared = compare(&left, &right);
        blame_types(&mut compared, &left, &right);
        let of = |name: &str| &compared.tables[&TableName::new("app", name)];
        assert_eq!(of("u").verdict, Verdict::Match);
        assert_eq!(of("t").verdict, Verdict::Mismatch);
        let found = &of("t").differences[0];
        assert_eq!((found.left.as_deref(), found.right.as_deref()), (None, Some("enum ('b')")));
        assert_eq!(found.summary("here", "there"), "enum app.mood has more on there: enum ('b')");
        assert!(of("t").is_blocking());
    }
}
