//! The course of one operation: its steps, what is done when one of them stops, and its end.
//!
//! What passes by itself (a network that breaks, a server that restarts) is waited out, and the step that stopped is run
//! again; whatever else ends an operation early, what it had made is undone. An agent that is told to end leaves it where
//! it stands, if it can be gone on with.

use std::{panic::AssertUnwindSafe, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::FutureExt as _;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    operation::{OperationStatus, Phase},
};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::{
    Context, Milestone, Operations, Recipe, Work,
    runner::{Running, UNDO_PAUSE, copies_rows},
};
use crate::{
    store::{self, operations::NewOperation, steps::StepStatus},
    telemetry,
};

/// Tries of an undo before the rest is left to the janitor.
const UNDO_TRIES: u32 = 5;
/// One try of an undo.
const UNDO_LIMIT: Duration = Duration::from_secs(30);
/// The first pause before a step that stopped is run again; every further one is twice as long …
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// What has run for so long since it went on, is interrupted anew.
const LONG: Duration = Duration::from_secs(30);

/// Where an operation is taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// At its beginning.
    AtTheStart,
    /// Where an earlier run of the agent, or an earlier try, has come to.
    WhereItStopped,
}

/// One operation on its way.
pub(super) struct Course<'a, W> {
    pub(super) operations: &'a Operations,
    pub(super) new: &'a NewOperation,
    pub(super) context: &'a Context,
    pub(super) running: &'a Running,
    pub(super) recipe: Recipe<W>,
    pub(super) work: W,
    /// The step it is in.
    at: Option<&'static str>,
    phase: Option<(Phase, Instant)>,
    /// Watchers were told that it does not go on at the moment.
    is_waiting: bool,
    /// When it last went on.
    went_on: Option<Instant>,
}

impl<'a, W: Work> Course<'a, W> {
    pub(super) fn new(
        operations: &'a Operations,
        new: &'a NewOperation,
        context: &'a Context,
        running: &'a Running,
        recipe: Recipe<W>,
        work: W,
    ) -> Self {
        Self {
            operations,
            new,
            context,
            running,
            recipe,
            work,
            at: None,
            phase: None,
            is_waiting: false,
            went_on: None,
        }
    }

    /// Runs it to its end, or to that of the agent.
    pub(super) async fn run(mut self, from: Entry) -> OperationStatus {
        let (new, context) = (self.new, self.context);
        if from == Entry::AtTheStart {
            let from = if new.source == new.target { String::new() } else { format!(" from {}", new.source) };
            let told = format!("{} of {}{from} started by {}", new.kind, new.target, context.actor.name);
            context.announce(Milestone::new(&format!("{}.started", new.kind), told)).await;
        }
        let ended = self.through(from).await;
        let took = context.feed.elapsed();
        let (status, milestone, failure) = match ended {
            Ok(rows) => {
                let told = Milestone::new(&format!("{}.completed", new.kind), self.work.done());
                (OperationStatus::Completed, told.copied(rows, context.feed.view().bytes_copied), None)
            }
            Err(_) if self.is_left() => {
                let told = format!("the agent of {} ends; its next run goes on from here", new.target);
                context.announce(Milestone::new("init.interrupted", told)).await;
                self.operations.leave(context).await;
                return OperationStatus::Interrupted;
            }
            Err(failure) => {
                self.mark_failed().await;
                let why = self.running.why.get().cloned().unwrap_or_else(|| self.work.advise(failure));
                let why = self.take_back(why).await;
                let (status, word) = match why.code {
                    Code::Cancelled => (OperationStatus::Cancelled, "cancelled"),
                    _ => (OperationStatus::Failed, "failed"),
                };
                let mut told =
                    Milestone::new(&format!("{}.{word}", new.kind), format!("{} of {} {word}", new.kind, new.target));
                told = told.phase(context.feed.progress(|progress| progress.phase()));
                told.failure = Some(why.clone());
                (status, told, Some(why))
            }
        };
        self.operations.finish(context, status, failure.as_ref(), copies_rows(&new.kind)).await;
        context.announce(milestone.took(took)).await;
        status
    }

    /// The agent was told to end, nobody has cancelled, and the next run can go on.
    fn is_left(&self) -> bool {
        let why = self.running.why.get();
        why.is_some_and(|why| why.code == Code::Interrupted) && self.work.outlives_the_agent()
    }

    /// Tries until it is done, or until what stops it does not pass.
    async fn through(&mut self, from: Entry) -> Result<u64, Failure> {
        let pauses = || {
            let pauses = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE);
            pauses.with_jitter().without_max_times().build()
        };
        let mut from = from;
        let mut pause = pauses();
        let mut stopped: Option<(Instant, u64)> = None;
        loop {
            self.went_on = None;
            // A defect of ours is a failure like any other: what was made is taken back, and nobody waits for ever.
            let attempt = AssertUnwindSafe(self.attempt(from)).catch_unwind().await;
            let failure = match attempt.unwrap_or_else(|_| Err(self.defect())) {
                Ok(rows) => return Ok(rows),
                Err(failure) => failure,
            };
            if self.running.stop.is_cancelled() {
                return Err(failure);
            }
            from = Entry::WhereItStopped;
            let failure = match self.begun_anew(failure).await {
                Ok(()) => continue,
                Err(failure) => failure,
            };
            let Some(limit) = self.work.goes_on_after(&failure) else { return Err(failure) };
            // Whatever came further meanwhile, or ran for long, shows that it is worth while.
            let moved = self.moved().await;
            let ran = self.went_on.is_some_and(|went_on| went_on.elapsed() >= LONG);
            let since = match stopped {
                Some((since, before)) if before == moved && !ran => since,
                _ => {
                    pause = pauses();
                    Instant::now()
                }
            };
            if !std::mem::replace(&mut self.is_waiting, true) {
                let told = format!("interrupted, goes on by itself as soon as it can: {}", failure.message);
                self.context.announce(Milestone::new("init.interrupted", told)).await;
            }
            stopped = Some((since, moved));
            if since.elapsed() >= limit {
                return Err(failure.cause(format!("it did not pass within {} s", limit.as_secs())));
            }
            let stop = &self.running.stop;
            stop.run_until_cancelled(sleep(pause.next().unwrap_or(LONGEST_PAUSE))).await;
        }
    }

    fn defect(&self) -> Failure {
        let step = self.at.unwrap_or("the end");
        Failure::new(
            Code::Internal,
            format!("{step:?} has met a defect of the agent (agent.defect in its log says where)"),
        )
    }

    /// Has steps begin once more whose work `failure` has cost; returns why not, where it is not so or does not work.
    async fn begun_anew(&mut self, failure: Failure) -> Result<(), Failure> {
        let context = self.context;
        let begun = self.work.begin_anew(context, &failure);
        let Some(begun) = self.running.stop.run_until_cancelled(begun).await else { return Err(failure) };
        let steps = match begun {
            Ok(steps) if steps.is_empty() => return Err(failure),
            Ok(steps) => steps,
            // Whether it passes says whether this is tried again.
            Err(error) if error.code == failure.code => return Err(error),
            Err(error) => return Err(error.cause(failure.message)),
        };
        let told = format!("{}; begins anew with {}", failure.message, steps[0]);
        context.announce(Milestone::new("init.restarted", told)).await;
        self.is_waiting = true;
        Ok(())
    }

    /// Grows with everything that is done for good.
    async fn moved(&mut self) -> u64 {
        let op = self.context.op;
        let steps = store::steps::list(&self.operations.store, op).await.unwrap_or_default();
        let done = steps.iter().filter(|step| step.status == StepStatus::Done).count() as u64;
        done + self.context.feed.progress(|progress| progress.parts_done())
    }

    async fn attempt(&mut self, from: Entry) -> Result<u64, Failure> {
        let done = match from {
            Entry::AtTheStart => {
                let names = self.recipe.names();
                let planned = store::steps::plan(&self.operations.store, self.context.op, &names).await;
                planned.map_err(|error| error.explain())?;
                self.work.begin(self.context).await?;
                Vec::new()
            }
            Entry::WhereItStopped => self.take_up().await?,
        };
        for index in 0..self.recipe.steps.len() {
            let name = self.recipe.steps[index].name;
            if !done.iter().any(|done| done == name) {
                self.step(index).await?;
            }
        }
        self.end_phase().await;
        self.work.complete(self.context).await
    }

    /// Returns the steps that are done, once the work knows again what they had learned.
    async fn take_up(&mut self) -> Result<Vec<String>, Failure> {
        let explain = |error: store::Error| error.explain();
        let context = self.context;
        let steps = store::steps::list(&self.operations.store, context.op).await.map_err(explain)?;
        let done = steps.into_iter().filter(|step| step.status == StepStatus::Done).map(|step| step.name);
        let done: Vec<_> = done.collect();
        let next = self.recipe.steps.iter().find(|step| !done.iter().any(|done| done == step.name));
        self.at = next.map(|step| step.name);
        if let Some(next) = next.or(self.recipe.steps.last()) {
            context.feed.progress(|progress| progress.enter(next.phase));
        }
        let resumed = tokio::select! {
            biased;
            () = self.running.stop.cancelled() => Err(Failure::new(Code::Cancelled, "stopped")),
            resumed = self.work.resume(context, &done) => resumed,
        };
        resumed?;
        let at = next.map_or("its end", |step| step.name);
        self.went_on = Some(Instant::now());
        let told = match std::mem::take(&mut self.is_waiting) {
            true => format!("goes on with {at}"),
            false => format!("the agent has started again and goes on with {at}"),
        };
        context.announce(Milestone::new("init.resumed", told)).await;
        Ok(done)
    }

    async fn step(&mut self, index: usize) -> Result<(), Failure> {
        let (operations, context) = (self.operations, self.context);
        let (name, phase) = (self.recipe.steps[index].name, self.recipe.steps[index].phase);
        self.at = Some(name);
        if !copies_rows(&self.running.kind) {
            context.feed.progress(|progress| progress.enter(phase));
            context.announce(Milestone::new(&format!("{}.step", self.running.kind), name)).await;
        } else if self.phase.is_none_or(|(current, _)| current != phase) {
            self.end_phase().await;
            self.phase = Some((phase, Instant::now()));
            context.feed.progress(|progress| progress.enter(phase));
            context.announce(Milestone::new("init.phase_started", name).phase(phase)).await;
        }
        let mark = |status| store::steps::mark(&operations.store, context.op, name, status);
        mark(StepStatus::Running).await.map_err(|error| error.explain())?;
        let (run, work, stop) = (self.recipe.steps[index].run, &mut self.work, &self.running.stop);
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Failure::new(Code::Cancelled, "stopped")),
            ran = async {
                run(work, context).await?;
                operations.breakpoints.after(name).await
            } => ran?,
        }
        mark(StepStatus::Done).await.map_err(|error| error.explain())?;
        self.at = None;
        Ok(())
    }

    async fn end_phase(&mut self) {
        if let Some((phase, began)) = self.phase.take() {
            let told = Milestone::new("init.phase_completed", format!("{phase} done"));
            self.context.announce(told.phase(phase).took(began.elapsed())).await;
        }
    }

    async fn mark_failed(&mut self) {
        let Some(name) = self.at else { return };
        let (store, op) = (&self.operations.store, self.context.op);
        if let Err(error) = store::steps::mark(store, op, name, StepStatus::Failed).await {
            warn!(op_id = %op, reason = %error, "a failed step could not be marked");
        }
    }

    /// Undoes everything. What cannot be undone now stays written down, for the janitor; the failure says so.
    async fn take_back(&mut self, why: Failure) -> Failure {
        let context = self.context;
        let mut left = None;
        for attempt in 1..=UNDO_TRIES {
            let undone = timeout(UNDO_LIMIT, self.work.undo(context)).await.unwrap_or_else(|_| {
                Err(Failure::new(Code::PeerSilent, format!("cleaning up took longer than {} s", UNDO_LIMIT.as_secs())))
            });
            match undone {
                Ok(()) => {
                    left = None;
                    break;
                }
                Err(failure) => {
                    warn!(op_id = %context.op, attempt, error = telemetry::failure(&failure), "cleaning up failed");
                    left = Some(failure);
                    sleep(UNDO_PAUSE).await;
                }
            }
        }
        let why = match left {
            None => why,
            Some(left) => {
                let why = why
                    .cause(format!("not everything could be cleaned up yet, it will be tried again: {}", left.message));
                // An operation whose traces remain is no clean cancel.
                if why.code == Code::Cancelled { Failure { code: Code::Interrupted, ..why } } else { why }
            }
        };
        while let Err(failure) = self.work.abandon(context, &why).await {
            warn!(op_id = %context.op, error = telemetry::failure(&failure), "the node's state could not be written");
            if !failure.retryable || self.operations.tasks.is_closed() {
                break;
            }
            sleep(UNDO_PAUSE).await;
        }
        why
    }
}
