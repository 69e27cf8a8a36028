//! What watchers of an operation see: milestones, stored before they are told and never dropped, and progress
//! that replaces the progress before it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use steep_protocol::{failure::Failure, ids::OperationId, operation::Phase, v1};
use tokio::{sync::watch, time::Instant};
use tracing::{error, info, warn};

use super::Progress;
use crate::{
    metrics::Metrics,
    store::{self, Actor, Store},
    telemetry,
};

/// Something that happened once. The fields are those of the log event schema.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Milestone {
    /// `init.started`, `init.table_complete`, …
    pub event: String,
    /// The phase it belongs to; empty: none.
    pub phase: String,
    /// `schema.table`, safe to print; empty: not about a table.
    pub table: String,
    /// Rows, where the event counts them.
    pub rows_copied: Option<u64>,
    /// Bytes, where the event counts them.
    pub bytes_copied: Option<u64>,
    /// How long it took, where the event ends something.
    pub duration_ms: Option<u64>,
    /// Overall percent when it happened.
    pub overall_percent: f64,
    /// For `init.state_change`.
    pub previous_state: String,
    /// For `init.state_change`.
    pub new_state: String,
    /// For failures.
    pub failure: Option<Failure>,
    /// A line for people.
    pub message: String,
}

impl Milestone {
    /// An event with a line for people.
    pub fn new(event: &str, message: impl Into<String>) -> Self {
        Self { event: event.into(), message: message.into(), ..Self::default() }
    }

    /// In `phase`.
    #[must_use]
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = phase.as_str().into();
        self
    }

    /// About `table`.
    #[must_use]
    pub fn table(mut self, table: impl ToString) -> Self {
        self.table = table.to_string();
        self
    }

    /// Having taken `duration`.
    #[must_use]
    pub fn took(mut self, duration: Duration) -> Self {
        self.duration_ms = Some(duration.as_millis() as u64);
        self
    }

    /// Having copied so much.
    #[must_use]
    pub fn copied(mut self, rows: u64, bytes: u64) -> Self {
        (self.rows_copied, self.bytes_copied) = (Some(rows), Some(bytes));
        self
    }
}

/// One thing a watcher is told.
#[derive(Debug, Clone)]
pub struct FeedEvent {
    /// Where it stands in the operation's history.
    pub cursor: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What.
    pub milestone: Milestone,
}

#[derive(Debug)]
struct Shared {
    progress: Progress,
    history: Vec<FeedEvent>,
}

/// The feed of one running operation.
#[derive(Debug)]
pub struct Feed {
    op: OperationId,
    source: String,
    actor: Actor,
    store: Store,
    metrics: Metrics,
    began: Instant,
    shared: Mutex<Shared>,
    changes: watch::Sender<u64>,
}

impl Feed {
    /// A feed without history.
    pub fn new(
        op: OperationId,
        source: String,
        actor: Actor,
        store: Store,
        metrics: Metrics,
        progress: Progress,
    ) -> Self {
        Self {
            op,
            source,
            actor,
            store,
            metrics,
            began: Instant::now(),
            shared: Mutex::new(Shared { progress, history: Vec::new() }),
            changes: watch::Sender::new(0),
        }
    }

    /// The feed of an operation that began at `started_at` and has told `history` already.
    #[must_use]
    pub fn going_on(mut self, started_at: Timestamp, history: Vec<FeedEvent>) -> Self {
        let ago = Duration::try_from(Timestamp::now().duration_since(started_at)).unwrap_or_default();
        self.began = self.began.checked_sub(ago).unwrap_or(self.began);
        self.shared.get_mut().unwrap_or_else(PoisonError::into_inner).history = history;
        self
    }

    /// Whether `event` was told of `table`, by this run of the agent or an earlier one.
    pub fn has_told(&self, event: &str, table: &str) -> bool {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.history.iter().any(|told| told.milestone.event == event && told.milestone.table == table)
    }

    /// Changes the progress; cheap enough for every block.
    pub fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner).progress)
    }

    /// A part is committed: `worker`'s, with so many rows and bytes.
    pub fn part_done(&self, worker: usize, rows: u64, bytes: u64) {
        self.progress(|progress| progress.part_done(worker, rows, bytes));
        let me = self.store.owner().node.as_str();
        self.metrics.init_rows.of([me]).inc_by(rows);
        self.metrics.init_bytes.of([me]).inc_by(bytes);
    }

    /// The node it copies from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The progress as of now.
    pub fn view(&self) -> v1::Progress {
        let now = self.began.elapsed();
        self.progress(|progress| progress.view(now))
    }

    /// How long the operation has run.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Stores a milestone, logs it, then tells watchers.
    ///
    /// When the store cannot be written the milestone is still told and logged: the operation itself will
    /// notice the lost database soon enough.
    pub async fn announce(&self, mut milestone: Milestone) {
        milestone.overall_percent = self.view().overall_percent;
        let body = serde_json::to_value(&milestone).unwrap_or_else(|_| json!({}));
        // There are two of each table, and its rows wait for them; with its rows a crash takes them away, and they are told anew.
        let may_go = !milestone.table.is_empty() && milestone.failure.is_none();
        let stored = store::events::append(&self.store, self.op, &milestone.event, &body, may_go).await;
        self.log(&milestone);
        if let Err(error) = &stored {
            warn!(event = "agent.log", op_id = %self.op, reason = %error, "a milestone could not be stored");
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let last = shared.history.last().map_or(0, |event| event.cursor);
        let cursor = stored.unwrap_or(last + 1);
        shared.history.push(FeedEvent { cursor, at: Timestamp::now(), milestone });
        drop(shared);
        self.changes.send_modify(|count| *count += 1);
    }

    /// What happened after `cursor`.
    pub fn after(&self, cursor: u64) -> Vec<FeedEvent> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.history.iter().filter(|event| event.cursor > cursor).cloned().collect()
    }

    /// Tells when something was announced.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn log(&self, told: &Milestone) {
        let text = |text: &String| (!text.is_empty()).then(|| text.clone());
        let failure = told.failure.as_ref().map(telemetry::failure);
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    event = told.event.as_str(),
                    op_id = %self.op,
                    source_node = self.source.as_str(),
                    actor = self.actor.to_json().to_string(),
                    phase = text(&told.phase),
                    table = text(&told.table),
                    rows_copied = told.rows_copied,
                    bytes_copied = told.bytes_copied,
                    duration_ms = told.duration_ms,
                    overall_progress = told.overall_percent,
                    previous_state = text(&told.previous_state),
                    new_state = text(&told.new_state),
                    error = failure,
                    "{}",
                    told.message
                )
            };
        }
        if told.failure.is_some() && !told.event.ends_with(".cancelled") {
            line!(error);
        } else if told.event.ends_with(".interrupted") {
            line!(warn);
        } else {
            line!(info);
        }
    }
}
