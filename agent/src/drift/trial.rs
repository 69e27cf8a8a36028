//! Runs a plan's statements in a transaction that is rolled back, and holds what they give against what was planned.

use std::collections::BTreeSet;

use steep_protocol::names::TableName;

use super::{Error, deparse, look};
use crate::{
    postgres::{self, Session, error::doing, shapes},
    schema::{
        Catalog, Plan,
        catalog::Table,
        compare::{self, Qualifier, Verdict},
        diff,
        plan::{Step, Trial},
    },
};

/// What is tried, and on which database.
pub(super) struct Tried<'a> {
    pub(super) session: &'a Session,
    pub(super) plan: &'a Plan,
    /// Tables whose rows may be read under a lock.
    pub(super) small: &'a BTreeSet<TableName>,
    /// How many steps are applied already.
    pub(super) applied: usize,
    /// Labels that the plan adds are not usable in the transaction that adds them: what needs them is left out.
    pub(super) is_lenient: bool,
}

impl Tried<'_> {
    /// Tries every step that is not applied, within one transaction, and rolls it back.
    pub(super) async fn run(&self) -> Result<(), Error> {
        self.session.begin().await?;
        let tried = self.run_within().await;
        match (&tried, self.session.rollback().await) {
            (Err(_), _) | (Ok(()), Ok(())) => tried,
            (Ok(()), Err(error)) => Err(error.into()),
        }
    }

    async fn run_within(&self) -> Result<(), Error> {
        let mut ran: Vec<bool> = vec![true; self.applied];
        let mut has_left_out = false;
        for step in &self.plan.steps[self.applied..] {
            let Some(sql) = self.statement(step) else {
                ran.push(false);
                continue;
            };
            match self.attempt(step, sql).await {
                Ok(()) => ran.push(true),
                Err(error) if self.may_leave_out(&error, has_left_out) => {
                    has_left_out = true;
                    ran.push(false);
                }
                Err(source) => {
                    return Err(Error::TrialFailed { step: step.title(), applied: self.applied, source });
                }
            }
        }
        let expected = self.plan.expected(|at, _| ran.get(at).copied().unwrap_or(false));
        match unlike(self.session, self.plan, &expected).await? {
            Some(what) => Err(Error::TrialDiffers { what, applied: self.applied }),
            None => Ok(()),
        }
    }

    fn statement<'s>(&self, step: &'s Step) -> Option<&'s str> {
        match &step.trial {
            Trial::Same => Some(&step.sql),
            Trial::IfSmall(sql) => {
                let is_small = step.table.as_ref().is_none_or(|table| self.small.contains(table));
                is_small.then_some(sql)
            }
        }
    }

    async fn attempt(&self, step: &Step, sql: &str) -> Result<(), postgres::Error> {
        if !self.is_lenient {
            return shapes::run_planned(self.session, sql, doing(step.title())).await;
        }
        let control = || doing("try a statement");
        shapes::run_planned(self.session, "savepoint steep_step", control()).await?;
        let ran = shapes::run_planned(self.session, sql, doing(step.title())).await;
        let end = if ran.is_ok() { "release savepoint steep_step" } else { "rollback to savepoint steep_step" };
        if ran.as_ref().is_err_and(|error| error.refusal().is_none()) {
            return ran;
        }
        shapes::run_planned(self.session, end, control()).await?;
        ran
    }

    /// It needs a label that is added in this very transaction, or something that needed one.
    fn may_leave_out(&self, error: &postgres::Error, has_left_out: bool) -> bool {
        let state = error.sqlstate().unwrap_or_default();
        self.is_lenient && (state == "55P04" || has_left_out && ["42P01", "42703", "42704"].contains(&state))
    }
}

/// In what the database is not as `expected`, as far as `plan` changes it; none: in nothing.
pub(super) async fn unlike(session: &Session, plan: &Plan, expected: &Catalog) -> Result<Option<String>, Error> {
    let touched = touched(plan, expected);
    let names: Vec<_> = touched.iter().cloned().collect();
    let found = look::catalog(session, Some(&names)).await?;
    let expected = expected.about(&touched);
    let compared = compare::compare(&expected, &found);
    for (name, table) in &compared.tables {
        if table.verdict == Verdict::Match || table.qualifier == Some(Qualifier::OrderOnly) {
            continue;
        }
        let mut differences = table.differences.clone();
        // The plan's texts are another version's, and this server writes them in its own way.
        if plan.source.server_major != plan.target.server_major
            && let (Some(wanted), Some(here)) = (expected.tables.get(name), found.tables.get(name))
            && let Some(written) = deparse::in_our_words(session, name, wanted, &found).await?
        {
            differences = diff::differences(&written, here);
            if differences.iter().all(|difference| difference.aspect == diff::Aspect::Order) {
                continue;
            }
        }
        let what = match table.verdict {
            Verdict::LocalOnly => "it is not there".to_owned(),
            Verdict::RemoteOnly => "it is there".to_owned(),
            _ => diff::summary(&differences, "the plan", "the target"),
        };
        return Ok(Some(format!("table {name}: {what}")));
    }
    if let Some(name) = forged(plan, &expected, &found) {
        return Ok(Some(format!("table {name}: it has another fingerprint than on the source")));
    }
    let object = compared.objects.iter().find(|(_, object)| object.verdict != Verdict::Match);
    Ok(object.map(|(key, _)| format!("{key} is not as planned")))
}

/// A table that is all that the plan makes of it, of which nothing is left to hands, and that has not the source's fingerprints:
/// then the source's documents are not those it was fingerprinted from.
fn forged(plan: &Plan, expected: &Catalog, found: &Catalog) -> Option<TableName> {
    if plan.source.server_major != plan.target.server_major {
        return None;
    }
    let complete = plan.expected(|_, _| true);
    let is_complete = |name: &TableName| {
        let (now, then) = (expected.tables.get(name), complete.tables.get(name));
        now.zip(then).is_some_and(|(now, then)| (&now.columns, &now.shape) == (&then.columns, &then.shape))
    };
    let has_hazards = |name: &TableName| plan.hazards.iter().any(|hazard| hazard.table.as_ref() == Some(name));
    let differs = |(name, table): &(&TableName, &Table)| {
        plan.source.tables.get(*name).is_some_and(|wanted| {
            (&wanted.fingerprint_sorted, &wanted.shape_fingerprint)
                != (&table.fingerprint_sorted, &table.shape_fingerprint)
        })
    };
    let mut whole = found.tables.iter().filter(|(name, _)| is_complete(name) && !has_hazards(name));
    whole.find(differs).map(|(name, _)| name.clone())
}

/// The tables that the plan is about, and those that change with them.
fn touched(plan: &Plan, expected: &Catalog) -> BTreeSet<TableName> {
    let changed = expected.tables.iter().filter(|(name, table)| plan.target.tables.get(*name) != Some(*table));
    let mut touched = plan.tables();
    touched.extend(changed.map(|(name, _)| name.clone()));
    touched
}
