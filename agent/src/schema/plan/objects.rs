//! Plans schemas, types and sequences.

use std::collections::BTreeSet;

use steep_protocol::names::{TableName, quote_identifier, quote_literal};

use super::{Planner, Step, StepKind, Trial, collation_sql, effect::Effect, keys};
use crate::schema::{
    catalog::{Constraint, Definition, Domain, Object, ObjectKey, ObjectKind, Range, Sequence},
    clause::{self, Unsafe},
    compare,
};

impl Planner<'_> {
    /// Labels that the source's enums have and the target's do not, each beside the one it stands beside there.
    ///
    /// They come before everything else: a label may be used only after its statement is committed.
    pub(super) fn enum_values(&mut self) {
        for (key, object) in &self.source.objects {
            let (Definition::Enum(wanted), Some(Definition::Enum(there))) =
                (&object.definition, self.target.objects.get(key).map(|object| &object.definition))
            else {
                continue;
            };
            if !is_subsequence(there, wanted) {
                let why = "a label cannot be dropped, renamed or moved without rewriting the rows that hold it";
                self.refused_objects.insert(key.clone(), why.to_owned());
                continue;
            }
            let mut labels = there.clone();
            for (at, label) in wanted.iter().enumerate() {
                if labels.contains(label) {
                    continue;
                }
                let before = at.checked_sub(1).and_then(|at| wanted.get(at));
                let place = match (before, labels.first()) {
                    (Some(before), _) => format!(" AFTER {}", quote_literal(before)),
                    (None, Some(first)) => format!(" BEFORE {}", quote_literal(first)),
                    (None, None) => String::new(),
                };
                labels.insert(at, label.clone());
                let sql = format!("ALTER TYPE {} ADD VALUE {}{place}", key.name.sql(), quote_literal(label));
                let is_last = labels.len() == wanted.len();
                let fingerprint = if is_last { object.fingerprint.clone() } else { String::new() };
                let after = Object { fingerprint, definition: Definition::Enum(labels.clone()) };
                self.object_step(StepKind::AddEnumValue, key, sql, after);
            }
        }
    }

    /// Schemas in which something will be made and, as far as is known, nothing is yet.
    pub(super) fn schemas(&mut self) {
        let there: BTreeSet<&str> = schemas_of(self.target.tables.keys(), self.target.objects.keys()).collect();
        let wanted: BTreeSet<&str> = schemas_of(self.source.tables.keys(), self.source.objects.keys()).collect();
        for schema in wanted.difference(&there) {
            self.push(Step {
                kind: StepKind::CreateSchema,
                table: None,
                object: None,
                sql: format!("CREATE SCHEMA IF NOT EXISTS {}", quote_identifier(schema)),
                outside_transaction: false,
                trial: Trial::Same,
                undo: None,
                effects: vec![Effect::Nothing],
            });
        }
    }

    /// Types the target lacks, each after those it is made of.
    pub(super) fn types(&mut self) {
        let mut waiting: Vec<(&ObjectKey, &Object)> = self.source.objects.iter().collect();
        waiting.retain(|(key, _)| key.kind != ObjectKind::Sequence && !self.target.objects.contains_key(*key));
        // A multirange type shares a range's name with nobody.
        while !waiting.is_empty() {
            let names: BTreeSet<TableName> = waiting.iter().map(|(key, _)| key.name.clone()).collect();
            let is_ready = |(key, object): &(&ObjectKey, &Object)| {
                parts_of(&object.definition).iter().all(|part| *part == key.name || !names.contains(part))
            };
            let (mut ready, blocked): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_ready);
            waiting = blocked;
            if ready.is_empty() {
                // Types made of each other: none can be first.
                ready.append(&mut waiting);
            }
            for (key, object) in ready {
                match create_type(key, &object.definition) {
                    Ok(statements) => self.create_type_by(key, object, statements),
                    Err(error) => {
                        let why = format!("{error}, so it is not put in a statement");
                        self.refused_objects.insert(key.clone(), why);
                    }
                }
            }
        }
    }

    fn create_type_by(&mut self, key: &ObjectKey, object: &Object, statements: Vec<String>) {
        for sql in statements {
            self.object_step(StepKind::CreateType, key, sql, object.clone());
        }
    }

    /// Sequences nobody owns. Those of columns come with their tables.
    pub(super) fn sequences(&mut self) {
        for (key, object) in &self.source.objects {
            let Definition::Sequence(sequence) = &object.definition else { continue };
            if sequence.owned_by.is_some() || self.target.objects.contains_key(key) {
                continue;
            }
            match create_sequence(key, sequence) {
                Some(sql) => self.object_step(StepKind::CreateSequence, key, sql, object.clone()),
                None => drop(self.refused_objects.insert(key.clone(), "its type cannot be read".to_owned())),
            }
        }
    }

    /// Whether a column of this type has conditions, so that adding one rewrites the table.
    pub(super) fn is_conditional(&self, type_name: &str) -> bool {
        let Some((schema, name)) = clause::type_text(type_name).and_then(|read| read.named) else { return false };
        let key = ObjectKey { kind: ObjectKind::Domain, name: TableName::new(schema, name) };
        match self.model.objects.get(&key).map(|object| &object.definition) {
            Some(Definition::Domain(domain)) => {
                domain.not_null || !domain.checks.is_empty() || self.is_conditional(&domain.base)
            }
            _ => false,
        }
    }

    /// Objects of the source that the model lacks or has otherwise, and of the target that nobody asked for.
    pub(super) fn unsettled_objects(&self) -> Vec<(ObjectKey, Option<&Object>, Option<&Object>)> {
        let mut found = Vec::new();
        for (key, object) in &self.source.objects {
            let there = compare::counterpart(key, object, &self.model);
            let there = there.and_then(|key| self.model.objects.get(key));
            if !there.is_some_and(|there| compare::are_same(object, there)) {
                found.push((key.clone(), Some(object), there));
            }
        }
        for (key, object) in &self.model.objects {
            if compare::counterpart(key, object, self.source).is_none() {
                found.push((key.clone(), None, Some(object)));
            }
        }
        found
    }

    /// The statement for a sequence that a column owns, if the source knows one.
    pub(super) fn owned_sequence(&self, table: &TableName, column: &str) -> Option<(ObjectKey, Object, String)> {
        let (key, object, sequence) = keys::sequence_of(self.source, table, column)?;
        let sql = create_sequence(key, sequence)?;
        Some((key.clone(), object.clone(), sql))
    }
}

fn is_subsequence(part: &[String], whole: &[String]) -> bool {
    let mut left = whole.iter();
    part.iter().all(|label| left.any(|other| other == label))
}

fn schemas_of<'a>(
    tables: impl Iterator<Item = &'a TableName>,
    objects: impl Iterator<Item = &'a ObjectKey>,
) -> impl Iterator<Item = &'a str> {
    tables.map(|name| name.schema.as_str()).chain(objects.map(|key| key.name.schema.as_str()))
}

/// The types outside pg_catalog that a type is made of.
fn parts_of(definition: &Definition) -> Vec<TableName> {
    let texts: Vec<&str> = match definition {
        Definition::Enum(_) | Definition::Sequence(_) => Vec::new(),
        Definition::Domain(domain) => vec![&domain.base],
        Definition::Composite(attributes) => attributes.iter().map(|part| part.type_name.as_str()).collect(),
        Definition::Range(range) => vec![&range.subtype],
    };
    let named = texts.into_iter().filter_map(|text| clause::type_text(text)?.named);
    named.map(|(schema, name)| TableName::new(schema, name)).collect()
}

const NO_TYPE: Unsafe = Unsafe("a type that cannot be read");

pub(super) fn checked_type(text: &str) -> Result<&str, Unsafe> {
    clause::type_text(text).map(|_| text).ok_or(NO_TYPE)
}

fn collate(collation: Option<&String>) -> String {
    collation.map(|name| format!(" COLLATE {}", collation_sql(name))).unwrap_or_default()
}

fn create_type(key: &ObjectKey, definition: &Definition) -> Result<Vec<String>, Unsafe> {
    let name = key.name.sql();
    match definition {
        Definition::Enum(labels) => {
            let labels: Vec<_> = labels.iter().map(|label| quote_literal(label)).collect();
            Ok(vec![format!("CREATE TYPE {name} AS ENUM ({})", labels.join(", "))])
        }
        Definition::Domain(domain) => create_domain(&name, domain),
        Definition::Composite(attributes) => {
            let part = |part: &crate::schema::catalog::Attribute| {
                let type_name = checked_type(&part.type_name)?;
                Ok(format!("{} {type_name}{}", quote_identifier(&part.name), collate(part.collation.as_ref())))
            };
            let parts: Vec<String> = attributes.iter().map(part).collect::<Result<_, Unsafe>>()?;
            Ok(vec![format!("CREATE TYPE {name} AS ({})", parts.join(", "))])
        }
        Definition::Range(range) => create_range(&name, range).map(|sql| vec![sql]),
        Definition::Sequence(_) => Ok(Vec::new()),
    }
}

fn create_domain(name: &str, domain: &Domain) -> Result<Vec<String>, Unsafe> {
    let mut sql = format!("CREATE DOMAIN {name} AS {}", checked_type(&domain.base)?);
    sql.push_str(&collate(domain.collation.as_ref()));
    if let Some(default) = &domain.default {
        sql.push_str(&format!(" DEFAULT ({})", clause::expression(default)?));
    }
    if domain.not_null {
        sql.push_str(" NOT NULL");
    }
    let mut later = Vec::new();
    for check in &domain.checks {
        let text = clause::clause(&check.definition, "CHECK")?;
        let constraint = format!("CONSTRAINT {} {text}", quote_identifier(&check.name));
        if is_unproven(check) {
            later.push(format!("ALTER DOMAIN {name} ADD {constraint}"));
        } else {
            sql.push_str(&format!(" {constraint}"));
        }
    }
    Ok([vec![sql], later].concat())
}

fn is_unproven(check: &Constraint) -> bool {
    !check.validated && check.definition.ends_with(" NOT VALID")
}

fn create_range(name: &str, range: &Range) -> Result<String, Unsafe> {
    let mut parts = vec![format!("SUBTYPE = {}", checked_type(&range.subtype)?)];
    if let Some(opclass) = &range.opclass {
        parts.push(format!("SUBTYPE_OPCLASS = {}", collation_sql(opclass)));
    }
    if let Some(collation) = &range.collation {
        parts.push(format!("COLLATION = {}", collation_sql(collation)));
    }
    if let Some(multirange) = &range.multirange {
        parts.push(format!("MULTIRANGE_TYPE_NAME = {}", checked_type(multirange)?));
    }
    Ok(format!("CREATE TYPE {name} AS RANGE ({})", parts.join(", ")))
}

/// What a sequence begins with, how far it goes and how.
pub(super) fn sequence_options(sequence: &Sequence) -> String {
    let mut text = String::new();
    if let Some(plan) = &sequence.plan {
        text.push_str(&format!(
            " INCREMENT BY {} MINVALUE {} MAXVALUE {} START WITH {} CACHE {}",
            plan.increment, plan.min, plan.max, plan.start, plan.cache
        ));
    }
    if sequence.cycle {
        text.push_str(" CYCLE");
    }
    text
}

fn create_sequence(key: &ObjectKey, sequence: &Sequence) -> Option<String> {
    let type_name = ["smallint", "integer", "bigint"].into_iter().find(|name| *name == sequence.type_name)?;
    Some(format!("CREATE SEQUENCE {} AS {type_name}{}", key.name.sql(), sequence_options(sequence)))
}
