//! Comparisons, plans and histories of schemas as messages.

use steep_protocol::{names::escape_controls, time, v1};

use crate::{
    drift::{Pair, Side, told},
    schema::{
        compare::{Comparison, TableComparison},
        diff::{self, Aspect, Difference},
        plan::{Hazard, Step},
    },
    store::fingerprints::TableChange,
};

/// Two nodes compared; every row of each table `with_rows`. Nobody is said to have answered yet.
pub fn comparison(pair: &Pair, comparison: &Comparison, with_rows: bool) -> v1::CompareSchemasReply {
    let (left, right) = (pair.own.environment.node_id.as_str(), pair.other.environment.node_id.as_str());
    let tables = comparison.tables.iter().map(|(name, compared)| {
        let rows = match (pair.own.catalog.tables.get(name), pair.other.catalog.tables.get(name)) {
            (Some(own), Some(other)) if with_rows => diff::rows(own, other),
            (Some(own), None) if with_rows => diff::rows(own, &Default::default()),
            (None, Some(other)) if with_rows => diff::rows(&Default::default(), other),
            _ => Vec::new(),
        };
        let of_types = compared.differences.iter().filter(|one| with_rows && one.aspect == Aspect::ValueType);
        let rows = rows.into_iter().chain(of_types.cloned().map(diff::Row::differing)).collect();
        v1::TableComparison { table: Some(told::name(name)), ..table(compared, rows, left, right) }
    });
    let is_different = |verdict: &str| verdict != "MATCH";
    let objects = comparison.objects.iter().map(|(key, compared)| v1::ObjectComparison {
        kind: key.kind.as_str().into(),
        object: Some(told::name(&key.name)),
        verdict: compared.verdict.as_str().into(),
        left: compared.left.clone(),
        right: compared.right.clone(),
    });
    let environment = comparison.environment.iter().map(|one| v1::EnvironmentDifference {
        name: escape_controls(&one.name),
        left: one.left.clone(),
        right: one.right.clone(),
        is_harmless: one.is_harmless,
    });
    v1::CompareSchemasReply {
        served_by: String::new(),
        left: Some(side(&pair.own)),
        right: Some(side(&pair.other)),
        tables: tables.collect(),
        objects: objects.filter(|one| is_different(&one.verdict)).collect(),
        environment: environment.collect(),
    }
}

fn side(side: &Side) -> v1::SideView {
    v1::SideView {
        node_id: side.environment.node_id.to_string(),
        captured_at: Some(time::message(side.environment.captured_at)),
        is_cached: side.cached.is_some(),
        reason: side.cached.as_ref().map(ToString::to_string).unwrap_or_default(),
        is_complete: side.environment.is_complete,
        server_version: version(side.catalog.environment.server_version_num),
    }
}

/// "18.4" of 180004.
fn version(number: i64) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

fn table(compared: &TableComparison, rows: Vec<diff::Row>, left: &str, right: &str) -> v1::TableComparison {
    v1::TableComparison {
        table: None,
        verdict: compared.verdict.as_str().into(),
        qualifier: compared.qualifier.map(|one| one.as_str().to_owned()).unwrap_or_default(),
        is_blocking: compared.is_blocking(),
        differences: compared.differences.iter().map(|one| difference(one, left, right)).collect(),
        rows: rows.into_iter().map(side_by_side).collect(),
    }
}

fn difference(one: &Difference, left: &str, right: &str) -> v1::SchemaDifference {
    v1::SchemaDifference {
        aspect: one.aspect.as_str().into(),
        name: one.name.clone(),
        left: one.left.clone(),
        right: one.right.clone(),
        is_blocking: one.aspect.is_blocking(),
        summary: one.summary(left, right),
    }
}

fn side_by_side(row: diff::Row) -> v1::SideBySide {
    v1::SideBySide {
        mark: row.mark.as_char().to_string(),
        aspect: row.aspect.as_str().into(),
        name: row.name,
        left: row.left.unwrap_or_default(),
        right: row.right.unwrap_or_default(),
    }
}

/// A step of a plan.
pub fn plan_step(step: &Step) -> v1::PlanStep {
    v1::PlanStep {
        kind: step.kind.as_str().into(),
        title: step.title(),
        sql: step.printable(),
        outside_transaction: step.outside_transaction,
        reversal: step.kind.reversal().into(),
    }
}

/// What a plan leaves to hands.
pub fn plan_hazard(hazard: &Hazard) -> v1::PlanHazard {
    v1::PlanHazard {
        object: hazard.object.clone(),
        what: hazard.what.clone(),
        why: hazard.why.clone(),
        by_hand: hazard.by_hand.clone(),
    }
}

/// A change of a table, without what it was.
pub fn change(change: &TableChange) -> v1::SchemaChange {
    v1::SchemaChange {
        id: change.id,
        table: Some(told::name(&change.table)),
        change: change.change.clone(),
        fingerprint: change.fingerprint.clone(),
        shape: change.shape.clone(),
        noticed_at: Some(time::message(change.noticed_at)),
        differences: Vec::new(),
    }
}
