//! The shape of long work: named steps over one state, read top to bottom.
//!
//! A step's undo is not a function beside it: every side effect writes an intent row before it happens, and
//! undoing an operation walks those rows backwards ([`crate::cleanup`]). So an operation is undone the same way
//! whether a step failed, somebody cancelled, or the agent died and another run of it found the rows.
//!
//! Every step may be run again after it stopped half-way, in this run of the agent or the next: it looks first what is
//! there already.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::BoxFuture;
use steep_protocol::{failure::Failure, ids::OperationId, operation::Phase};
use tokio_util::sync::CancellationToken;

use super::{Feed, Milestone};
use crate::store::Actor;

/// What a step knows of the operation it belongs to.
#[derive(Debug, Clone)]
pub struct Context {
    /// The operation.
    pub op: OperationId,
    /// Who asked for it.
    pub actor: Actor,
    /// Where progress and milestones go.
    pub feed: Arc<Feed>,
    /// Done once the operation shall stop. Steps are dropped where they stand; only work that must not be
    /// dropped half-way needs to look.
    pub cancelled: CancellationToken,
}

impl Context {
    /// Announces a milestone; it is stored before watchers see it.
    pub async fn announce(&self, milestone: Milestone) {
        self.feed.announce(milestone).await;
    }
}

/// The state a recipe's steps share, and what frames them.
#[async_trait]
pub trait Work: Send + 'static {
    /// Before the first step: the node leaves its old state.
    async fn begin(&mut self, context: &Context) -> Result<(), Failure>;

    /// Instead of [`Work::begin`], where an earlier run of the agent or an earlier try came as far as the steps `done`:
    /// finds out again what they had learned, and that what they hold is still there. May be repeated.
    async fn resume(&mut self, context: &Context, done: &[String]) -> Result<(), Failure>;

    /// How long to try again after `failure`, going on where it stopped; none: there is no going on.
    fn goes_on_after(&self, failure: &Failure) -> Option<Duration>;

    /// Where `failure` has cost all that some steps had done, and they can be run once more: undoes what they made, marks them
    /// as pending and returns their names; none: it is not so. May be repeated.
    async fn begin_anew(&mut self, _context: &Context, _failure: &Failure) -> Result<Vec<&'static str>, Failure> {
        Ok(Vec::new())
    }

    /// What ends it, with what is to be done then, where only this work knows.
    fn advise(&self, failure: Failure) -> Failure {
        failure
    }

    /// Whether it can be left as it is when the agent ends, and gone on with by the next run.
    fn outlives_the_agent(&self) -> bool;

    /// After the last step: the node is where it was meant to be. Returns rows copied.
    async fn complete(&mut self, context: &Context) -> Result<u64, Failure>;

    /// What has come of it, for people; asked once it is complete.
    fn done(&self) -> String;

    /// Undoes everything; called after a failure or a cancel, when no step runs any more.
    async fn undo(&mut self, context: &Context) -> Result<(), Failure>;

    /// After the undo: the node's state says how it ended.
    async fn abandon(&mut self, context: &Context, why: &Failure) -> Result<(), Failure>;
}

type Run<W> = for<'a> fn(&'a mut W, &'a Context) -> BoxFuture<'a, Result<(), Failure>>;

/// One step.
pub struct Step<W> {
    /// As operators see it.
    pub name: &'static str,
    /// The phase it belongs to, for log and progress.
    pub phase: Phase,
    pub(super) run: Run<W>,
}

/// Steps in order.
pub struct Recipe<W> {
    pub(super) steps: Vec<Step<W>>,
}

impl<W: Work> Recipe<W> {
    /// A recipe without steps.
    pub fn new() -> Self {
        Self { steps: Vec::new() }
    }

    /// With one more step at the end.
    #[must_use]
    pub fn step(mut self, name: &'static str, phase: Phase, run: Run<W>) -> Self {
        self.steps.push(Step { name, phase, run });
        self
    }

    /// The steps' names, in order.
    pub fn names(&self) -> Vec<&'static str> {
        self.steps.iter().map(|step| step.name).collect()
    }
}

impl<W: Work> Default for Recipe<W> {
    fn default() -> Self {
        Self::new()
    }
}
