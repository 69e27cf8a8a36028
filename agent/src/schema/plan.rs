//! What would bring a target up to date with its source, statement by statement, and what an operator has to do by hand.
//!
//! A plan only adds: objects, columns, room in types, indexes, constraints. It never drops what holds data, narrows,
//! renames, or touches rows, rights, triggers, policies or functions; whatever differs there is a [`Hazard`]. Planning
//! keeps a model of the target and changes it with every step, so what the model lacks in the end is exactly what the
//! plan does not settle, and what it holds is what a trial must find ([`Plan::expected`]).
//!
//! Texts of the source (types, defaults, definitions) pass [`super::clause`] before they stand in a statement; names are
//! always quoted. Statements are meant to be run one at a time through the extended protocol.

mod columns;
mod create;
mod effect;
mod hazards;
mod indexes;
mod keys;
mod objects;
mod order;
mod runs;

use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::names::{TableName, escape_controls, quote_identifier};

pub use self::{effect::Effect, hazards::Hazard};
use super::{
    catalog::{Catalog, Object, ObjectKey},
    clause::{self, Unsafe},
    diff::Aspect,
};

/// An ordered list of statements, and what they do not settle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// [`Catalog::digest`] of the source the plan was made of.
    pub source_digest: String,
    /// [`Catalog::digest`] of the target the plan was made for.
    pub target_digest: String,
    /// What to run, in order.
    pub steps: Vec<Step>,
    /// What differs and is left to an operator.
    pub hazards: Vec<Hazard>,
    /// Constraints that only help to prove others, by table; whoever finds one left drops it first.
    pub helpers: Vec<(TableName, String)>,
    /// The target the plan was made for.
    pub target: Catalog,
    /// The source it was made of.
    pub source: Catalog,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepKind {
    /// Adds a label to an enum.
    AddEnumValue,
    /// Makes a schema.
    CreateSchema,
    /// Makes a type.
    CreateType,
    /// Makes a sequence, or gives one to its column.
    CreateSequence,
    /// Makes a table with what belongs to it.
    CreateTable,
    /// Adds a column.
    AddColumn,
    /// Lets a column hold null.
    DropNotNull,
    /// Widens a column's type.
    WidenType,
    /// Sets or drops a default.
    SetDefault,
    /// Removes the leftover of an index whose build failed.
    DropInvalidIndex,
    /// Builds an index.
    CreateIndex,
    /// Adds a constraint for rows to come.
    AddConstraint,
    /// Proves a constraint for the rows that are there.
    ValidateConstraint,
    /// Forbids null in a column.
    SetNotNull,
    /// Says how rows are named in the WAL.
    ReplicaIdentity,
}

impl StepKind {
    /// The word for it in JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddEnumValue => "add_enum_value",
            Self::CreateSchema => "create_schema",
            Self::CreateType => "create_type",
            Self::CreateSequence => "create_sequence",
            Self::CreateTable => "create_table",
            Self::AddColumn => "add_column",
            Self::DropNotNull => "drop_not_null",
            Self::WidenType => "widen_type",
            Self::SetDefault => "set_default",
            Self::DropInvalidIndex => "drop_invalid_index",
            Self::CreateIndex => "create_index",
            Self::AddConstraint => "add_constraint",
            Self::ValidateConstraint => "validate_constraint",
            Self::SetNotNull => "set_not_null",
            Self::ReplicaIdentity => "replica_identity",
        }
    }

    /// How it could be taken back, for whoever reads the plan.
    pub fn reversal(self) -> &'static str {
        match self {
            Self::AddEnumValue => "cannot be taken back: PostgreSQL drops no label",
            Self::CreateSchema | Self::CreateType | Self::CreateSequence => "reversible: drop what was made",
            Self::CreateTable => "reversible while the table is empty: drop table",
            Self::AddColumn => "reversible: alter table … drop column",
            Self::DropNotNull => "reversible while no row holds null: set not null",
            Self::WidenType => "reversible while every value fits the narrower type",
            Self::SetDefault => "reversible: set the default it had",
            Self::DropInvalidIndex => "nothing to take back: the index was never valid",
            Self::CreateIndex => "reversible: drop index concurrently",
            Self::AddConstraint | Self::ValidateConstraint => "reversible: alter table … drop constraint",
            Self::SetNotNull => "reversible: drop not null",
            Self::ReplicaIdentity => "reversible: alter table … replica identity",
        }
    }
}

/// Whether a step can be tried in a transaction that is rolled back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// As it is.
    Same,
    /// By this statement, and only where the table is small: it reads its rows under a lock.
    IfSmall(String),
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// The table it is about.
    pub table: Option<TableName>,
    /// The type or sequence it is about.
    pub object: Option<ObjectKey>,
    /// One statement, without a semicolon.
    pub sql: String,
    /// It cannot run in a transaction with others.
    pub outside_transaction: bool,
    /// How it is tried.
    pub trial: Trial,
    /// Removes what it, or the step before that it completes, leaves when it fails.
    pub undo: Option<String>,
    /// What it makes of the target.
    pub effects: Vec<Effect>,
}

impl Step {
    /// For people and logs: "create index on public.orders".
    pub fn title(&self) -> String {
        let what = self.kind.as_str().replace('_', " ");
        match (&self.table, &self.object) {
            (Some(table), _) => format!("{what} on {table}"),
            (None, Some(object)) => format!("{what}: {object}"),
            (None, None) => what,
        }
    }

    /// Its statement, safe to print; where `\u{…}` stands in it, it is only to be read.
    pub fn printable(&self) -> String {
        format!("{};", clause::printable(&self.sql).unwrap_or_else(|| escape_controls(&self.sql)))
    }
}

impl Plan {
    /// The target as the steps chosen by `run` leave it, without fingerprints where anything changed.
    pub fn expected(&self, run: impl Fn(usize, &Step) -> bool) -> Catalog {
        let mut model = self.target.clone();
        for (_, step) in self.steps.iter().enumerate().filter(|(at, step)| run(*at, step)) {
            step.effects.iter().for_each(|effect| effect.apply(&mut model));
        }
        model
    }

    /// Every table a step is about.
    pub fn tables(&self) -> BTreeSet<TableName> {
        self.steps.iter().filter_map(|step| step.table.clone()).collect()
    }

    /// Nothing to do, and nothing left to do.
    pub fn is_settled(&self) -> bool {
        self.steps.is_empty() && self.hazards.is_empty()
    }

    /// As a script an operator may read and run with psql.
    pub fn script(&self) -> String {
        let mut text = String::new();
        for hazard in &self.hazards {
            text.push_str(&format!("-- by hand: {}\n--   {}\n", hazard.headline(), hazard.by_hand));
        }
        for step in &self.steps {
            let alone = if step.outside_transaction { "; outside a transaction" } else { "" };
            text.push_str(&format!("\n-- {} ({}{alone})\n{}\n", step.title(), step.kind.reversal(), step.printable()));
        }
        text
    }
}

/// Plans what would bring `target` up to date with `source`.
pub fn plan(source: &Catalog, target: &Catalog) -> Plan {
    let mut planner = Planner::new(source, target);
    planner.enum_values();
    planner.schemas();
    planner.types();
    planner.sequences();
    planner.create_tables(false);
    planner.add_columns();
    planner.relax();
    planner.widen();
    planner.defaults();
    planner.create_tables(true);
    planner.indexes();
    planner.unique_constraints();
    planner.add_constraints();
    planner.require_not_null();
    planner.validations();
    planner.finish_not_null();
    planner.replica_identities();
    let hazards = planner.hazards();
    Plan {
        source_digest: source.digest(),
        target_digest: target.digest(),
        steps: planner.steps,
        hazards,
        helpers: planner.helpers,
        target: target.clone(),
        source: source.clone(),
    }
}

/// A plan in the making.
struct Planner<'a> {
    source: &'a Catalog,
    /// The target as it was.
    target: &'a Catalog,
    /// The target as the steps so far leave it.
    model: Catalog,
    steps: Vec<Step>,
    /// Why something is not planned, by table, aspect and name.
    refusals: BTreeMap<(TableName, Aspect, String), String>,
    /// Why an object is not made.
    refused_objects: BTreeMap<ObjectKey, String>,
    /// The source's tables, each after those it is a part of.
    order: Vec<TableName>,
    /// Columns whose helper constraint is to be dropped once it has proven them.
    unfinished: Vec<(TableName, String)>,
    /// Steps that prove constraints, for when all are there.
    validations: Vec<Step>,
    /// Constraints that only help to prove others, by table.
    helpers: Vec<(TableName, String)>,
}

impl<'a> Planner<'a> {
    fn new(source: &'a Catalog, target: &'a Catalog) -> Self {
        Self {
            source,
            target,
            model: target.clone(),
            steps: Vec::new(),
            refusals: BTreeMap::new(),
            refused_objects: BTreeMap::new(),
            order: order::parents_first(source),
            unfinished: Vec::new(),
            validations: Vec::new(),
            helpers: Vec::new(),
        }
    }

    /// Adds a step that can share a transaction.
    fn step(&mut self, kind: StepKind, table: &TableName, sql: String, effect: Effect) {
        self.push(Step {
            kind,
            table: Some(table.clone()),
            object: None,
            sql,
            outside_transaction: false,
            trial: Trial::Same,
            undo: None,
            effects: vec![effect],
        });
    }

    /// Adds a step about a type or sequence.
    fn object_step(&mut self, kind: StepKind, key: &ObjectKey, sql: String, object: Object) {
        self.push(Step {
            kind,
            table: None,
            object: Some(key.clone()),
            sql,
            outside_transaction: kind == StepKind::AddEnumValue,
            trial: Trial::Same,
            undo: None,
            effects: vec![Effect::Object(key.clone(), object)],
        });
    }

    fn push(&mut self, step: Step) {
        step.effects.iter().for_each(|effect| effect.apply(&mut self.model));
        self.steps.push(step);
    }

    /// Remembers why a difference stays.
    fn refuse(&mut self, table: &TableName, aspect: Aspect, name: &str, why: impl Into<String>) {
        self.refusals.insert((table.clone(), aspect, name.to_owned()), why.into());
    }

    fn refuse_text(&mut self, table: &TableName, aspect: Aspect, name: &str, error: Unsafe) {
        self.refuse(table, aspect, name, format!("{error}, so it is not put in a statement"));
    }

    /// The source's tables that are in the model too, parents first.
    fn shared_tables(&self) -> Vec<TableName> {
        self.order.iter().filter(|name| self.model.tables.contains_key(*name)).cloned().collect()
    }

    /// Those that the target had before.
    fn old_tables(&self) -> Vec<TableName> {
        self.order.iter().filter(|name| self.target.tables.contains_key(*name)).cloned().collect()
    }
}

/// A collation as documents name it, ready for SQL.
fn collation_sql(name: &str) -> String {
    // The schema's name may hold a dot too; then the statement fails, or the trial shows another collation.
    let (schema, name) = name.split_once('.').unwrap_or(("pg_catalog", name));
    format!("{}.{}", quote_identifier(schema), quote_identifier(name))
}

#[cfg(test)]
mod tests;
