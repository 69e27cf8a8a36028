//! Runs a plan on this node's database: tried first, then in as few transactions as PostgreSQL allows.
//!
//! Each transaction is looked at before it is committed. A statement that cannot share one (a label, an index built beside
//! the work that goes on, a proof) is run alone, and what it leaves when it fails is removed. Whatever fails stops the plan:
//! all before it stays, and adds only.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use steep_protocol::{
    ids::{NodeId, OperationId},
    names::{TableName, escape_controls, quote_identifier},
};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    Error, look,
    trial::{self, Tried},
};
use crate::{
    postgres::{Purpose, Session, ddl, error::doing, shapes},
    schema::{
        Plan,
        plan::{Effect, Step, StepKind},
    },
    store::{Actor, Store, audit},
};

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a lock that keeps others waiting too.
    pub lock: Duration,
    /// For a lock that keeps nobody waiting: of index builds and proofs.
    pub quiet_lock: Duration,
    /// For a statement under locks.
    pub statement: Duration,
    /// For an index build or a proof.
    pub build: Duration,
    /// How often a lock is waited for.
    pub tries: u32,
    /// Before the second try; twice as long before each other.
    pub pause: Duration,
    /// Tables of at most so many bytes are read in the trial, so that rows that break the plan show before anything is kept.
    pub small_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lock: Duration::from_secs(2),
            quiet_lock: Duration::from_secs(60),
            statement: Duration::from_secs(30),
            build: Duration::from_secs(6 * 60 * 60),
            tries: 4,
            pause: Duration::from_millis(250),
            small_bytes: 32 << 20,
        }
    }
}

/// On whose word, and from where, a plan is applied.
#[derive(Debug, Clone)]
pub struct Order {
    /// The operation it belongs to.
    pub op: OperationId,
    /// The node whose schema is followed.
    pub source: NodeId,
    /// Who wants it.
    pub actor: Actor,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// How many statements were run for good.
    pub statements: usize,
    /// The tables they were about.
    pub tables: BTreeSet<TableName>,
    /// What is left to an operator.
    pub hazards: usize,
}

/// Applies `plan` to the database of `store`.
///
/// Refuses, with nothing changed, where the database is not what the plan was made for ([`Error::Stale`]), where another
/// sync runs ([`Error::Running`]), where the trial fails or gives something else, and where a lock is held for too long.
/// After [`Error::Stopped`] the statements before the failed one are applied.
///
/// Not cancel-safe: dropped, it leaves what was committed, and maybe an index that a next sync finds invalid.
pub async fn apply(store: &Store, plan: &Plan, order: &Order, limits: &Limits) -> Result<Applied, Error> {
    let session = store.database().session(Purpose::Ddl(order.op)).await?;
    let node = store.owner().node.clone();
    if !shapes::try_lock(&session).await? {
        return Err(Error::Running { node });
    }
    let mut sync =
        Sync { session, store, plan, order, limits, small: BTreeSet::new(), applied: 0, removed: Vec::new() };
    let done = sync.run(&node).await;
    let applied = sync.applied;
    // A session that is broken has let go of it, or will.
    drop(shapes::unlock(&sync.session).await);
    sync.session.close().await;
    if applied > 0 {
        let told = tell(store, plan, order, applied, done.as_ref().err()).await;
        // What stopped the plan says more than what kept it from being written down.
        if let (Ok(()), Err(error)) = (&done, told) {
            return Err(error);
        }
    }
    done.map(|()| Applied { statements: applied, tables: plan.tables(), hazards: plan.hazards.len() })
}

struct Sync<'a> {
    session: Session,
    store: &'a Store,
    plan: &'a Plan,
    order: &'a Order,
    limits: &'a Limits,
    small: BTreeSet<TableName>,
    /// Steps that are applied for good.
    applied: usize,
    /// Statements that took back what a failed one had needed.
    removed: Vec<String>,
}

impl Sync<'_> {
    async fn run(&mut self, node: &NodeId) -> Result<(), Error> {
        self.wait_at_most(self.limits.lock, self.limits.statement).await?;
        self.check_target(node).await?;
        if self.plan.steps.is_empty() {
            return Ok(());
        }
        // Written down first: whoever dies half-way has said what they were about to do.
        let planned = json!({
            "source": self.order.source.as_str(),
            "statements": self.plan.steps.iter().map(Step::printable).collect::<Vec<_>>(),
        });
        audit::append(self.store, &self.order.actor, "schema.sync_began", node.as_str(), Some(self.order.op), &planned)
            .await?;
        self.remove_helpers().await?;
        self.measure().await?;
        let labels = self.plan.steps.iter().take_while(|step| step.kind == StepKind::AddEnumValue).count();
        self.try_all(labels > 0).await?;
        while self.applied < labels {
            self.alone().await.map_err(|error| self.stopped(error))?;
        }
        if labels > 0 {
            self.try_all(false).await?;
        }
        while self.applied < self.plan.steps.len() {
            let done = if self.plan.steps[self.applied].outside_transaction {
                self.alone().await
            } else {
                self.together().await
            };
            if done.is_err() {
                // Best effort: what is left is removed by the next sync.
                drop(self.remove_helpers().await);
            }
            done.map_err(|error| self.stopped(error))?;
        }
        self.check_result().await
    }

    async fn wait_at_most(&self, lock: Duration, statement: Duration) -> Result<(), Error> {
        let ms = |duration: Duration| format!("{}ms", duration.as_millis());
        self.session.run(&ddl::set_session("lock_timeout", &ms(lock))).await?;
        self.session.run(&ddl::set_session("statement_timeout", &ms(statement))).await?;
        Ok(())
    }

    /// The database is what the plan was made for.
    async fn check_target(&self, node: &NodeId) -> Result<(), Error> {
        let known = self.plan.target.tables.keys().chain(self.plan.source.tables.keys());
        let known: BTreeSet<_> = known.cloned().collect();
        // No other table is looked at: somebody may hold it locked.
        let names: Vec<_> = known.iter().cloned().collect();
        let found = look::catalog(&self.session, Some(&names)).await?;
        if found.digest() == self.plan.target_digest { Ok(()) } else { Err(Error::Stale { node: node.clone() }) }
    }

    /// What a sync that was killed left to prove columns by.
    async fn remove_helpers(&self) -> Result<(), Error> {
        for (table, helper) in &self.plan.helpers {
            if self.plan.target.tables.contains_key(table)
                && shapes::has_constraint(&self.session, table, helper).await?
            {
                let sql = format!("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}", table.sql(), quote_identifier(helper));
                shapes::run_planned(&self.session, &sql, doing(format!("remove a leftover on {table}"))).await?;
            }
        }
        Ok(())
    }

    async fn measure(&mut self) -> Result<(), Error> {
        let names: Vec<_> = self.plan.tables().into_iter().collect();
        let sizes = shapes::sizes(&self.session, &names).await?;
        let is_small = |name: &TableName| sizes.get(name).is_none_or(|size| *size <= self.limits.small_bytes);
        self.small = names.into_iter().filter(is_small).collect();
        Ok(())
    }

    async fn try_all(&self, is_lenient: bool) -> Result<(), Error> {
        let tried =
            Tried { session: &self.session, plan: self.plan, small: &self.small, applied: self.applied, is_lenient };
        let mut attempt = 1;
        loop {
            match tried.run().await {
                Err(error) if error.is_lock_timeout() && attempt < self.limits.tries => self.back_off(attempt).await,
                Err(Error::TrialFailed { step, applied, source }) if source.sqlstate() == Some("55P03") => {
                    return Err(Error::Locked { step, tries: attempt, applied, source });
                }
                done => return done,
            }
            attempt += 1;
        }
    }

    async fn back_off(&self, attempt: u32) {
        sleep(self.limits.pause * 2_u32.saturating_pow(attempt - 1)).await;
    }

    /// Runs the next steps that can share a transaction, and looks at them before they are kept.
    async fn together(&mut self) -> Result<(), Error> {
        let steps = &self.plan.steps[self.applied..];
        let count = steps.iter().take_while(|step| !step.outside_transaction).count();
        let mut attempt = 1;
        loop {
            self.session.begin().await?;
            let ran = self.run_steps(&steps[..count], self.applied + count).await;
            match ran {
                Ok(()) => {
                    self.session.commit().await?;
                    self.applied += count;
                    return Ok(());
                }
                Err(error) => {
                    // The error in hand says more than a failed rollback could; a lost session rolls back by itself.
                    drop(self.session.rollback().await);
                    if !error.is_lock_timeout() || attempt >= self.limits.tries {
                        return Err(error);
                    }
                }
            }
            self.back_off(attempt).await;
            attempt += 1;
        }
    }

    async fn run_steps(&self, steps: &[Step], until: usize) -> Result<(), Error> {
        for step in steps {
            shapes::run_planned(&self.session, &step.sql, doing(step.title())).await?;
        }
        let expected = self.plan.expected(|at, _| at < until);
        match trial::unlike(&self.session, self.plan, &expected).await? {
            Some(what) => Err(Error::TrialDiffers { what, applied: self.applied }),
            None => Ok(()),
        }
    }

    /// Runs the next step by itself.
    async fn alone(&mut self) -> Result<(), Error> {
        let plan = self.plan;
        let step = &plan.steps[self.applied];
        for effect in &step.effects {
            if let Effect::IndexGone(table, index) = effect
                && !shapes::is_leftover(&self.session, &table.schema, index).await?
            {
                // Somebody builds it, or has: it is not ours to drop.
                return Err(Error::Stale { node: self.store.owner().node.clone() });
            }
        }
        self.wait_at_most(self.limits.quiet_lock, self.limits.build).await?;
        let mut attempt = 1;
        let ran = loop {
            let ran = shapes::run_planned(&self.session, &step.sql, doing(step.title())).await;
            let Err(error) = ran else { break Ok(()) };
            let is_last = error.sqlstate() != Some("55P03") || attempt >= self.limits.tries;
            // An index of that name is somebody else's.
            let is_ours = error.sqlstate() != Some("42P07") && error.refusal().is_some();
            let is_index = step.kind == StepKind::CreateIndex;
            if is_ours && (is_last || is_index) {
                self.undo(step).await;
                if !is_last {
                    self.removed.clear();
                }
            }
            if is_last {
                break Err(error);
            }
            self.back_off(attempt).await;
            attempt += 1;
        };
        self.wait_at_most(self.limits.lock, self.limits.statement).await?;
        ran?;
        self.applied += 1;
        Ok(())
    }

    /// Removes what `step` left, and with a proof that failed all constraints this plan has added and not proven.
    async fn undo(&mut self, step: &Step) {
        let is_proof = step.kind == StepKind::ValidateConstraint;
        let unproven = self.plan.steps[self.applied..].iter().filter(|other| is_proof && other.kind == step.kind);
        let all: Vec<&String> = match is_proof {
            true => unproven.filter_map(|step| step.undo.as_ref()).collect(),
            false => step.undo.iter().collect(),
        };
        for sql in all {
            self.remove(sql).await;
        }
    }

    async fn remove(&mut self, sql: &str) {
        let undone = shapes::run_planned(&self.session, sql, doing("remove what a failed statement left")).await;
        if let Err(error) = undone {
            let error = &error as &dyn std::error::Error;
            warn!(op_id = %self.order.op, error, "a failed statement left something behind");
        } else {
            self.removed.push(sql.to_owned());
        }
    }

    fn stopped(&self, error: Error) -> Error {
        let steps = &self.plan.steps[self.applied..];
        let (source, target) = (&self.order.source, &self.store.owner().node);
        Error::Stopped {
            step: steps.first().map(Step::title).unwrap_or_default(),
            applied: self.applied,
            planned: self.plan.steps.len(),
            left: steps.iter().map(Step::printable).collect(),
            removed: self.removed.iter().map(|sql| escape_controls(sql)).collect(),
            next: format!("steepctl schema plan {source} {target}"),
            source: Box::new(error),
        }
    }

    /// Everything is as planned.
    async fn check_result(&self) -> Result<(), Error> {
        let expected = self.plan.expected(|_, _| true);
        match trial::unlike(&self.session, self.plan, &expected).await? {
            Some(what) => Err(Error::Unsettled { what }),
            None => Ok(()),
        }
    }
}

/// Tells the log and the audit what was done, also when it stopped half-way.
async fn tell(store: &Store, plan: &Plan, order: &Order, applied: usize, error: Option<&Error>) -> Result<(), Error> {
    let done = &plan.steps[..applied];
    let mut subjects: Vec<String> = Vec::new();
    for step in done {
        let subject = match (&step.table, &step.object) {
            (Some(table), _) => table.to_string(),
            (None, Some(object)) => object.name.to_string(),
            (None, None) => continue,
        };
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    for table in &subjects {
        let is_of = |step: &&Step| {
            step.table.as_ref().is_some_and(|name| name.to_string() == *table)
                || step.object.as_ref().is_some_and(|object| object.name.to_string() == *table)
        };
        let statements = done.iter().filter(is_of).count();
        let (op, source) = (&order.op, &order.source);
        info!(
            event = "schema.sync_applied", op_id = %op, table, source_node = %source, details.statements = statements,
            "schema brought up to date"
        );
    }
    let detail = json!({
        "source": order.source.as_str(),
        "statements": done.iter().map(Step::printable).collect::<Vec<_>>(),
        "planned": plan.steps.len(),
        "hazards": plan.hazards.len(),
        "source_digest": plan.source_digest,
        "target_digest": plan.target_digest,
        "error": error.map(ToString::to_string),
    });
    let target = store.owner().node.as_str();
    audit::append(store, &order.actor, "schema.sync_applied", target, Some(order.op), &detail).await?;
    Ok(())
}
