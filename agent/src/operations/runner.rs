//! Runs recipes: each step is written down before it is believed; whatever ends an operation early, what it
//! had made is undone before it is called ended.
//!
//! ```text
//!  begin ─> step ─> step ─> … ─> complete ─> completed
//!             │ fails, is cancelled, or the agent drains
//!             └──> undo ─> abandon ─> failed | cancelled
//! ```

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use dashmap::DashMap;
use futures::{Stream, StreamExt as _, stream};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    operation::{OperationStatus, Phase},
    v1,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{Context, Feed, FeedEvent, Milestone, Progress, Recipe, Work, gauges::Gauges};
use crate::{
    breakpoint::Breakpoints,
    metrics::Metrics,
    store::{
        self, Actor, Store,
        events::Event,
        operations::{Begun, NewOperation, Operation},
        progress::InitProgress,
        steps::StepStatus,
    },
    telemetry,
};

/// How often an undo that could not be done is tried again while the operation waits for it.
const UNDO_PAUSE: Duration = Duration::from_secs(2);
/// Tries before the rest is left to the janitor.
const UNDO_TRIES: u32 = 5;
/// One try of an undo.
const UNDO_LIMIT: Duration = Duration::from_secs(30);
/// Progress goes to watchers this often, and to the database every fourth time.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Whether operations of this kind copy rows: their progress is told, and their phases.
fn copies_rows(kind: &str) -> bool {
    matches!(kind, "init" | "reinit")
}

/// Whether a request began an operation or found the one it had begun before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// Began now.
    New,
    /// The same request was made before; nothing new was begun.
    Same,
}

/// What a watcher is told.
#[derive(Debug, Clone)]
pub enum Told {
    /// Something happened.
    Milestone(FeedEvent),
    /// How far it is.
    Progress(v1::Progress),
    /// How it ended; nothing follows.
    Ended(Box<Operation>),
}

#[derive(Debug, Clone)]
struct Running {
    kind: String,
    target: NodeId,
    feed: Arc<Feed>,
    stop: CancellationToken,
    why: Arc<OnceLock<Failure>>,
    done: watch::Receiver<bool>,
}

/// The operations of this agent. Clones share them.
#[derive(Debug, Clone)]
pub struct Operations {
    store: Store,
    running: Arc<DashMap<OperationId, Running>>,
    tasks: TaskTracker,
    breakpoints: Breakpoints,
    metrics: Metrics,
}

impl Operations {
    /// None run yet. Specs stop them with `breakpoints`.
    pub fn new(store: Store, breakpoints: Breakpoints, metrics: Metrics) -> Self {
        Self { store, running: Arc::default(), tasks: TaskTracker::new(), breakpoints, metrics }
    }

    /// Begins an operation, or finds the one the same request began before.
    ///
    /// Fails with [`Code::OperationRunning`], naming it, while another one runs on the target.
    pub async fn start<W: Work>(
        &self,
        new: NewOperation,
        actor: Actor,
        workers: u32,
        recipe: Recipe<W>,
        work: W,
    ) -> Result<Started, Failure> {
        let op = new.op_id;
        match store::operations::begin(&self.store, &new).await.map_err(|error| error.explain())? {
            Begun::Same(_) => return Ok(Started::Same),
            Begun::New(_) => {}
        }
        let progress = Progress::new(workers);
        let (source, store, metrics) = (new.source.to_string(), self.store.clone(), self.metrics.clone());
        let feed = Arc::new(Feed::new(op, source, actor.clone(), store, metrics, progress));
        let (done, done_seen) = watch::channel(false);
        let running = Running {
            kind: new.kind.clone(),
            target: new.target.clone(),
            feed: Arc::clone(&feed),
            stop: CancellationToken::new(),
            why: Arc::default(),
            done: done_seen,
        };
        let context = Context { op, actor, feed, cancelled: running.stop.clone() };
        self.running.insert(op, running.clone());
        let gauges = Gauges::of(self.metrics.clone(), &new);
        let operations = self.clone();
        self.tasks.spawn(async move {
            let reporter = tokio_util::task::AbortOnDropHandle::new(operations.tasks.spawn(operations.clone().report(
                context.clone(),
                gauges.clone(),
                copies_rows(&new.kind),
            )));
            let status = operations.run(&new, &context, &running, recipe, work).await;
            drop(reporter);
            gauges.ended(status, context.feed.elapsed());
            operations.running.remove(&op);
            // Watchers see the end in the store; nobody may be watching.
            let _ = done.send(true);
        });
        Ok(Started::New)
    }

    /// Tells an operation to stop and clean up. Watch it to see the end.
    pub async fn cancel(&self, op: OperationId, actor: &Actor) -> Result<(), Failure> {
        let Some(running) = self.running.get(&op).map(|running| running.clone()) else {
            return Err(Failure::new(Code::NothingRuns, format!("operation {op} does not run")));
        };
        let why = Failure::new(Code::Cancelled, format!("cancelled by {}", actor.name));
        if running.why.set(why).is_ok() {
            store::operations::set_status(&self.store, op, OperationStatus::Cancelling)
                .await
                .map_err(|error| error.explain())?;
            running.stop.cancel();
        }
        Ok(())
    }

    /// The operation that runs on this node now, if any. One that changes another node is not counted.
    pub fn current(&self) -> Option<(OperationId, v1::Progress)> {
        let me = &self.store.owner().node;
        let own = self.running.iter().find(|running| running.target == *me)?;
        Some((*own.key(), own.feed.view()))
    }

    /// Whether `op` runs now.
    pub fn is_running(&self, op: OperationId) -> bool {
        self.running.contains_key(&op)
    }

    /// How far `op` is, if it runs.
    pub fn progress(&self, op: OperationId) -> Option<v1::Progress> {
        self.running.get(&op).map(|running| running.feed.view())
    }

    /// Ends every operation: what it made is undone, and it is marked failed. For an agent that shuts down.
    pub async fn drain(&self) {
        for running in self.running.iter() {
            let why = Failure::new(Code::Interrupted, "the agent was told to end");
            if running.why.set(why).is_ok() {
                running.stop.cancel();
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// All of an operation's history after `cursor`, then what happens, until it has ended.
    pub async fn watch(
        &self,
        op: OperationId,
        cursor: u64,
    ) -> Result<impl Stream<Item = Result<Told, Failure>> + Send + use<>, Failure> {
        let explain = |error: store::Error| error.explain();
        store::operations::find(&self.store, op).await.map_err(explain)?.ok_or_else(|| unknown(&op.to_string()))?;
        let watching = Watching {
            operations: self.clone(),
            op,
            cursor,
            running: self.running.get(&op).map(|running| running.clone()),
            queue: Vec::new(),
            told_end: false,
        };
        Ok(stream::unfold(watching, |mut watching| async move {
            let told = watching.next().await?;
            Some((told, watching))
        })
        .fuse())
    }

    /// Of an initialization progress is logged and stored; anything else takes moments.
    async fn report(self, context: Context, gauges: Gauges, is_init: bool) {
        if !is_init {
            return;
        }
        let mut tick = interval(PROGRESS_EVERY * 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut last_logged = Instant::now();
        loop {
            tick.tick().await;
            let view = context.feed.view();
            gauges.tell(&view);
            if last_logged.elapsed() >= Duration::from_secs(10) {
                last_logged = Instant::now();
                tracing::info!(
                    event = "init.progress",
                    op_id = %context.op,
                    phase = view.phase.as_str(),
                    overall_progress = view.overall_percent,
                    rows_copied = view.rows_copied,
                    bytes_copied = view.bytes_copied,
                    "under way"
                );
            }
            let row = InitProgress::of(context.op, &view);
            if let Err(error) = store::progress::save(&self.store, &row).await {
                warn!(op_id = %context.op, reason = %error, "progress could not be stored");
            }
        }
    }

    async fn run<W: Work>(
        &self,
        new: &NewOperation,
        context: &Context,
        running: &Running,
        recipe: Recipe<W>,
        mut work: W,
    ) -> OperationStatus {
        let started = format!("{} of {} from {} started by {}", new.kind, new.target, new.source, context.actor.name);
        context.announce(Milestone::new(&format!("{}.started", new.kind), started)).await;
        let ended = match self.steps(context, running, &recipe, &mut work).await {
            Ok(()) => work.complete(context).await,
            Err(failure) => Err(failure),
        };
        let took = context.feed.elapsed();
        let (status, milestone, failure) = match ended {
            Ok(rows) => {
                let told = Milestone::new(&format!("{}.completed", new.kind), work.done());
                (OperationStatus::Completed, told.copied(rows, context.feed.view().bytes_copied), None)
            }
            Err(failure) => {
                let why = running.why.get().cloned().unwrap_or(failure);
                let why = self.take_back(context, &mut work, why).await;
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
        self.finish(context, status, failure.as_ref(), copies_rows(&new.kind)).await;
        context.announce(milestone.took(took)).await;
        status
    }

    async fn steps<W: Work>(
        &self,
        context: &Context,
        running: &Running,
        recipe: &Recipe<W>,
        work: &mut W,
    ) -> Result<(), Failure> {
        let explain = |error: store::Error| error.explain();
        store::steps::plan(&self.store, context.op, &recipe.names()).await.map_err(explain)?;
        work.begin(context).await?;
        let mut phase: Option<(Phase, Instant)> = None;
        for step in &recipe.steps {
            if !copies_rows(&running.kind) {
                context.feed.progress(|progress| progress.enter(step.phase));
                context.announce(Milestone::new(&format!("{}.step", running.kind), step.name)).await;
            } else if phase.is_none_or(|(current, _)| current != step.phase) {
                end_phase(context, phase).await;
                phase = Some((step.phase, Instant::now()));
                context.feed.progress(|progress| progress.enter(step.phase));
                context.announce(Milestone::new("init.phase_started", step.name).phase(step.phase)).await;
            }
            let mark = |status| store::steps::mark(&self.store, context.op, step.name, status);
            mark(StepStatus::Running).await.map_err(explain)?;
            let ran = tokio::select! {
                biased;
                () = running.stop.cancelled() => Err(Failure::new(Code::Cancelled, "stopped")),
                ran = async {
                    (step.run)(work, context).await?;
                    self.breakpoints.after(step.name).await
                } => ran,
            };
            if let Err(failure) = ran {
                if let Err(error) = mark(StepStatus::Failed).await {
                    warn!(op_id = %context.op, reason = %error, "a failed step could not be marked");
                }
                return Err(failure);
            }
            mark(StepStatus::Done).await.map_err(explain)?;
        }
        end_phase(context, phase).await;
        Ok(())
    }

    /// Undoes everything. What cannot be undone now stays written down, for the janitor; the failure says so.
    async fn take_back<W: Work>(&self, context: &Context, work: &mut W, why: Failure) -> Failure {
        let mut left = None;
        for attempt in 1..=UNDO_TRIES {
            let undone = timeout(UNDO_LIMIT, work.undo(context)).await.unwrap_or_else(|_| {
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
        while let Err(failure) = work.abandon(context, &why).await {
            warn!(op_id = %context.op, error = telemetry::failure(&failure), "the node's state could not be written");
            if !failure.retryable || self.tasks.is_closed() {
                break;
            }
            sleep(UNDO_PAUSE).await;
        }
        why
    }

    async fn finish(&self, context: &Context, status: OperationStatus, failure: Option<&Failure>, is_init: bool) {
        let row = InitProgress::of(context.op, &context.feed.view());
        let row = row.ended(failure.map(|failure| failure.message.clone()), status == OperationStatus::Completed);
        if is_init && let Err(error) = store::progress::save(&self.store, &row).await {
            warn!(op_id = %context.op, reason = %error, "progress could not be stored");
        }
        while let Err(error) = store::operations::finish(&self.store, context.op, status, failure).await {
            warn!(op_id = %context.op, reason = %error, "the end of the operation could not be written");
            if !error.explain().retryable || self.tasks.is_closed() {
                break;
            }
            sleep(UNDO_PAUSE).await;
        }
    }
}

async fn end_phase(context: &Context, phase: Option<(Phase, Instant)>) {
    if let Some((phase, began)) = phase {
        let told = Milestone::new("init.phase_completed", format!("{phase} done"));
        context.announce(told.phase(phase).took(began.elapsed())).await;
    }
}

/// The failure for an operation nobody has heard of.
pub fn unknown(op: &str) -> Failure {
    Failure::new(Code::OperationUnknown, format!("no operation {op} is known"))
}

struct Watching {
    operations: Operations,
    op: OperationId,
    cursor: u64,
    running: Option<Running>,
    queue: Vec<FeedEvent>,
    told_end: bool,
}

impl Watching {
    async fn next(&mut self) -> Option<Result<Told, Failure>> {
        loop {
            if let Some(event) = self.queue.pop() {
                self.cursor = event.cursor;
                return Some(Ok(Told::Milestone(event)));
            }
            if self.told_end {
                return None;
            }
            let Some(running) = self.running.clone() else { return Some(self.rest_and_end().await) };
            let mut changes = running.feed.changes();
            self.queue = running.feed.after(self.cursor);
            self.queue.reverse();
            if !self.queue.is_empty() {
                continue;
            }
            let mut done = running.done.clone();
            tokio::select! {
                _ = done.wait_for(|done| *done) => self.running = None,
                _ = changes.changed() => {}
                () = sleep(PROGRESS_EVERY) => return Some(Ok(Told::Progress(running.feed.view()))),
            }
        }
    }

    /// What the store still knows of it, then its end.
    async fn rest_and_end(&mut self) -> Result<Told, Failure> {
        const PAGE: i64 = 500;
        let store = &self.operations.store;
        let explain = |error: store::Error| error.explain();
        let events = store::events::after(store, self.op, self.cursor, PAGE).await.map_err(explain)?;
        let mut events: Vec<_> = events.into_iter().map(feed_event).collect();
        events.reverse();
        self.queue = events;
        if let Some(event) = self.queue.pop() {
            self.cursor = event.cursor;
            return Ok(Told::Milestone(event));
        }
        let ended = store::operations::find(store, self.op).await.map_err(explain)?;
        self.told_end = true;
        Ok(Told::Ended(Box::new(ended.ok_or_else(|| unknown(&self.op.to_string()))?)))
    }
}

fn feed_event(event: Event) -> FeedEvent {
    let milestone = serde_json::from_value(event.body)
        .unwrap_or_else(|_| Milestone::new(&event.event, "written by another version"));
    FeedEvent { cursor: event.cursor, at: event.at, milestone }
}
