//! Runs recipes: each step is written down before it is believed; whatever ends an operation early, what it
//! had made is undone before it is called ended.
//!
//! ```text
//!  begin ─> step ─> step ─> … ─> complete ─> completed
//!             │ │ is interrupted, or the agent ends
//!             │ └──> waits ─> resume ─> that step again ─> …
//!             │ fails, or is cancelled
//!             └──> undo ─> abandon ─> failed | cancelled
//! ```

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use dashmap::DashMap;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    operation::OperationStatus,
    v1,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    Context, Feed, Progress, Recipe, Work,
    course::{Course, Entry},
    gauges::Gauges,
    watching::feed_event,
};
use crate::{
    breakpoint::Breakpoints,
    metrics::Metrics,
    store::{
        self, Actor, Store,
        operations::{Begun, NewOperation, Operation},
        progress::InitProgress,
    },
};

/// How often an undo that could not be done is tried again while the operation waits for it.
pub(super) const UNDO_PAUSE: Duration = Duration::from_secs(2);
/// Progress goes to watchers this often, and to the database every fourth time.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Whether operations of this kind copy rows: their progress is told, and their phases.
pub(super) fn copies_rows(kind: &str) -> bool {
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

#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) kind: String,
    target: NodeId,
    pub(super) feed: Arc<Feed>,
    pub(super) stop: CancellationToken,
    pub(super) why: Arc<OnceLock<Failure>>,
    pub(super) done: watch::Receiver<bool>,
}

/// The operations of this agent. Clones share them.
#[derive(Debug, Clone)]
pub struct Operations {
    pub(super) store: Store,
    pub(super) running: Arc<DashMap<OperationId, Running>>,
    pub(super) tasks: TaskTracker,
    pub(super) breakpoints: Breakpoints,
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
        match store::operations::begin(&self.store, &new).await.map_err(|error| error.explain())? {
            Begun::Same(_) => return Ok(Started::Same),
            Begun::New(_) => {}
        }
        let (source, store, metrics) = (new.source.to_string(), self.store.clone(), self.metrics.clone());
        let feed = Feed::new(new.op_id, source, actor.clone(), store, metrics, Progress::new(workers));
        self.launch(new, actor, feed, recipe, work, Entry::AtTheStart);
        Ok(Started::New)
    }

    /// Goes on with an operation that an earlier run of this agent has left unfinished.
    pub async fn resume<W: Work>(
        &self,
        left: Operation,
        actor: Actor,
        workers: u32,
        recipe: Recipe<W>,
        work: W,
    ) -> Result<(), Failure> {
        let (explain, op) = (|error: store::Error| error.explain(), left.op_id);
        let told = store::events::after(&self.store, op, 0, i64::MAX).await.map_err(explain)?;
        store::operations::set_status(&self.store, op, OperationStatus::Running).await.map_err(explain)?;
        let Operation { kind, target, source, method, request, started_by, started_at, .. } = left;
        let new = NewOperation { op_id: op, kind, target, source, method, request, started_by };
        let (source, store, metrics) = (new.source.to_string(), self.store.clone(), self.metrics.clone());
        let feed = Feed::new(op, source, actor.clone(), store, metrics, Progress::new(workers));
        let feed = feed.going_on(started_at, told.into_iter().map(feed_event).collect());
        self.launch(new, actor, feed, recipe, work, Entry::WhereItStopped);
        Ok(())
    }

    fn launch<W: Work>(&self, new: NewOperation, actor: Actor, feed: Feed, recipe: Recipe<W>, work: W, from: Entry) {
        let (op, feed) = (new.op_id, Arc::new(feed));
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
            let course = Course::new(&operations, &new, &context, &running, recipe, work);
            let status = Box::pin(course.run(from)).await;
            drop(reporter);
            gauges.ended(status, context.feed.elapsed());
            operations.running.remove(&op);
            // Watchers see the end in the store; nobody may be watching.
            let _ = done.send(true);
        });
    }

    /// Tells an operation to stop and clean up. Watch it to see the end.
    pub async fn cancel(&self, op: OperationId, actor: &Actor) -> Result<(), Failure> {
        let Some(running) = self.running.get(&op).map(|running| running.clone()) else {
            return Err(Failure::new(Code::NothingRuns, format!("operation {op} does not run")));
        };
        if running.why.get().is_none() {
            let status = OperationStatus::Cancelling;
            store::operations::set_status(&self.store, op, status).await.map_err(|error| error.explain())?;
            // Only what is written down is heeded by the next run of the agent, should this one die meanwhile.
            let _ = running.why.set(Failure::new(Code::Cancelled, format!("cancelled by {}", actor.name)));
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

    /// Stops every operation, for an agent that ends: what the next run can go on with is left as it is; of the rest
    /// what it made is undone, and it is marked failed.
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

    /// Writes down that the next run of the agent is to go on with it.
    pub(super) async fn leave(&self, context: &Context) {
        let status = OperationStatus::Interrupted;
        if let Err(error) = store::operations::set_status(&self.store, context.op, status).await {
            // It finds that out by itself.
            warn!(op_id = %context.op, reason = %error, "that the operation was interrupted could not be written");
        }
    }

    pub(super) async fn finish(
        &self,
        context: &Context,
        status: OperationStatus,
        failure: Option<&Failure>,
        is_init: bool,
    ) {
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

/// The failure for an operation nobody has heard of.
pub fn unknown(op: &str) -> Failure {
    Failure::new(Code::OperationUnknown, format!("no operation {op} is known"))
}
