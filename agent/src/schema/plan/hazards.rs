//! Names what a plan leaves to an operator: why, and what can be done by hand.

use steep_protocol::names::{TableName, readable_identifier};

use super::Planner;
use crate::schema::{
    catalog::{Object, ObjectKey},
    compare,
    diff::{Aspect, Difference, differences},
};

/// Something that differs and that no step settles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hazard {
    /// The table it is about.
    pub table: Option<TableName>,
    /// The table, type or sequence, safe to print: `table public.orders`.
    pub object: String,
    /// What differs, the source on the left; none: the whole object.
    pub difference: Option<Difference>,
    /// What differs, in a few words: "column total: type differs (numeric(10,2) on the source, integer on the target)".
    pub what: String,
    /// Why nothing is done about it.
    pub why: String,
    /// What an operator can do.
    pub by_hand: String,
    /// Replication between the two would stop over it, or rows not mean the same.
    pub is_blocking: bool,
}

impl Hazard {
    /// In one line: "table public.orders: type of total differs: narrowing could lose values".
    pub fn headline(&self) -> String {
        format!("{}: {}: {}", self.object, self.what, self.why)
    }
}

impl Planner<'_> {
    /// Everything in which the model still differs from the source.
    pub(super) fn hazards(&self) -> Vec<Hazard> {
        let mut found: Vec<Hazard> = self.unsettled_objects().into_iter().map(|it| self.object_hazard(it)).collect();
        for (name, table) in &self.source.tables {
            match self.model.tables.get(name) {
                None => found.push(self.absent_table(name)),
                Some(there) => {
                    let differing = differences(table, there).into_iter();
                    found.extend(differing.map(|difference| self.difference_hazard(name, difference)));
                }
            }
        }
        let extra = self.model.tables.keys().filter(|name| !self.source.tables.contains_key(*name));
        found.extend(extra.map(extra_table));
        found
    }

    fn object_hazard(&self, (key, wanted, there): (ObjectKey, Option<&Object>, Option<&Object>)) -> Hazard {
        let name = &key.name;
        let text = |object: Option<&Object>| object.map(|object| compare::describe(&object.definition));
        let refused = self.refused_objects.get(&key).cloned();
        let (what, why, by_hand) = match (text(wanted), text(there)) {
            (Some(wanted), Some(there)) => (
                format!("it differs ({wanted} on the source, {there} on the target)"),
                refused.unwrap_or_else(|| "what is made of it would change its meaning".to_owned()),
                format!("alter the {} {name} on either node until both say the same", key.kind.as_str()),
            ),
            (Some(wanted), None) => (
                format!("it is missing on the target ({wanted})"),
                refused.unwrap_or_else(|| "what it belongs to is not made either".to_owned()),
                format!("create the {} {name} on the target, or settle what it belongs to", key.kind.as_str()),
            ),
            (None, _) => (
                "it exists only on the target".to_owned(),
                "nothing is ever dropped".to_owned(),
                format!("drop {} {name} on the target if nothing needs it", sql_kind(&key)),
            ),
        };
        let is_blocking = wanted.is_some() && key.kind != crate::schema::catalog::ObjectKind::Sequence;
        Hazard { table: None, object: key.to_string(), difference: None, what, why, by_hand, is_blocking }
    }

    fn absent_table(&self, name: &TableName) -> Hazard {
        let refused = self.refusals.get(&(name.clone(), Aspect::Kind, String::new())).cloned();
        Hazard {
            table: Some(name.clone()),
            object: format!("table {name}"),
            difference: None,
            what: "it is missing on the target".to_owned(),
            why: refused.unwrap_or_else(|| "it could not be planned".to_owned()),
            by_hand: format!("create {name} on the target as it is on the source: pg_dump --schema-only -t {name}"),
            is_blocking: true,
        }
    }

    fn difference_hazard(&self, name: &TableName, difference: Difference) -> Hazard {
        let key = (name.clone(), difference.aspect, difference.name.clone());
        let refused = self.refusals.get(&key).cloned();
        let sides = match (&difference.left, &difference.right) {
            (Some(left), Some(right)) => format!(" ({left} on the source, {right} on the target)"),
            _ => String::new(),
        };
        Hazard {
            table: Some(name.clone()),
            object: format!("table {name}"),
            what: format!("{}{sides}", difference.summary("the source", "the target")),
            why: refused.unwrap_or_else(|| why(&difference).to_owned()),
            by_hand: by_hand(name, &difference),
            is_blocking: difference.aspect.is_blocking(),
            difference: Some(difference),
        }
    }
}

fn extra_table(name: &TableName) -> Hazard {
    Hazard {
        table: Some(name.clone()),
        object: format!("table {name}"),
        difference: None,
        what: "it exists only on the target".to_owned(),
        why: "nothing is ever dropped".to_owned(),
        by_hand: format!(
            "create it on the source, or leave it out; drop table {name} only if it was not renamed on the source and \
             nobody needs its rows"
        ),
        is_blocking: false,
    }
}

fn sql_kind(key: &ObjectKey) -> &'static str {
    use crate::schema::catalog::ObjectKind::{Domain, Sequence};
    match key.kind {
        Domain => "domain",
        Sequence => "sequence",
        _ => "type",
    }
}

fn why(difference: &Difference) -> &'static str {
    match (difference.aspect, &difference.left) {
        (Aspect::Order, _) => "rows are replicated by name: nothing has to be done",
        (Aspect::Trigger | Aspect::Policy | Aspect::RowSecurity | Aspect::Rule, _) => {
            "triggers, rules and policies run code or decide who sees rows: they are never touched"
        }
        (Aspect::Unknown, _) => "a newer version wrote something down that this one cannot read",
        (_, None) => "nothing is ever dropped",
        (Aspect::Type, _) => "only a wider type of the same kind can be set without rewriting or losing values",
        (Aspect::Collation, _) => "another collation would order and compare what is there differently",
        (Aspect::Identity | Aspect::Generated, _) => "how values come about is never changed",
        (Aspect::PrimaryKey, _) => "a key is never changed: rows are named by it",
        (Aspect::Exclusion, _) => "rows that are there may exclude each other: it is never added or changed",
        (Aspect::Kind | Aspect::PartitionKey | Aspect::Bound | Aspect::Parents, _) => {
            "partitioning and inheritance are never changed: rows would have to move"
        }
        (Aspect::Persistence, _) => "the whole table would be rewritten",
        _ => "changing it would mean dropping what is there",
    }
}

fn by_hand(table: &TableName, difference: &Difference) -> String {
    let name = readable_identifier(&difference.name);
    let left = difference.left.as_deref();
    let on_target = |what: String| format!("on the target: alter table {table} {what}");
    let added = |what: &str| match left {
        Some(text) if difference.right.is_some() => {
            on_target(format!("drop constraint {name}, add constraint {name} {text}"))
        }
        Some(text) => on_target(format!("add constraint {name} {text}")),
        None => on_target(format!("drop {what} {name}")),
    };
    match difference.aspect {
        Aspect::Column if left.is_none() => {
            format!(
                "add {name} on the source; or, if nobody needs its values and it was not renamed on the source, {}",
                on_target(format!("drop column {name}"))
            )
        }
        Aspect::Column => on_target(format!("add column {name} {}", left.unwrap_or_default())),
        Aspect::Type => on_target(format!(
            "alter column {name} type {} (this reads, and may rewrite, every row, and fails where a value does not fit)",
            left.unwrap_or_default()
        )),
        Aspect::Default => match left {
            Some("nextval(owned)") | None => format!("give column {name} of {table} the same default on both nodes"),
            Some(text) => on_target(format!("alter column {name} set default {text}")),
        },
        Aspect::Nullability => {
            on_target(format!("alter column {name} {} not null", if left == Some("NOT NULL") { "set" } else { "drop" }))
        }
        Aspect::Identity | Aspect::Generated | Aspect::Collation => {
            format!("make column {name} of {table} anew on one of the two nodes, and fill it")
        }
        Aspect::ValueType => format!("bring {} to the same on both nodes", difference.name),
        Aspect::Order => "nothing".to_owned(),
        Aspect::PrimaryKey
        | Aspect::Unique
        | Aspect::ForeignKey
        | Aspect::NotNull
        | Aspect::Check
        | Aspect::Exclusion => added("constraint"),
        Aspect::Index => match left {
            Some(text) if difference.right.is_some() => {
                format!(
                    "on the target: drop index concurrently {}; {text}",
                    TableName::new(&table.schema, &difference.name)
                )
            }
            Some(text) => format!("on the target: {text}"),
            None => {
                format!("on the target: drop index concurrently {}", TableName::new(&table.schema, &difference.name))
            }
        },
        Aspect::Persistence => {
            on_target(if left == Some("unlogged") { "set unlogged" } else { "set logged" }.to_owned())
        }
        Aspect::ReplicaIdentity => on_target(format!("replica identity …: {} is wanted", left.unwrap_or_default())),
        Aspect::Trigger | Aspect::Policy | Aspect::Rule => match left {
            Some(text) => format!("on the target, if it is wanted there: {text}"),
            None => format!("drop it on the target, or make it on the source: {name}"),
        },
        Aspect::RowSecurity => format!("enable or disable row level security of {table} on one of the two nodes"),
        Aspect::Kind | Aspect::PartitionKey | Aspect::Bound | Aspect::Parents => {
            format!("make {table} anew on the target as it is on the source, and move its rows")
        }
        Aspect::Unknown => "use the newer version of the agents on both nodes".to_owned(),
    }
}
