//! Watching an operation: its history from a cursor on, then what happens, until it has ended.
//!
//! A watcher whose agent ends without the operation having ended is told nothing: its stream just stops, and it asks again
//! from its last cursor.

use futures::{Stream, StreamExt as _, stream};
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::OperationId,
    operation::OperationStatus,
    v1,
};
use tokio::time::sleep;

use super::{
    FeedEvent, Milestone, Operations,
    runner::{PROGRESS_EVERY, Running, unknown},
};
use crate::store::{self, events::Event, operations::Operation};

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

impl Operations {
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
            let Some(running) = self.running.clone() else { return self.rest_and_end().await.transpose() };
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
    async fn rest_and_end(&mut self) -> Result<Option<Told>, Failure> {
        const PAGE: i64 = 500;
        let store = &self.operations.store;
        let explain = |error: store::Error| error.explain();
        let events = store::events::after(store, self.op, self.cursor, PAGE).await.map_err(explain)?;
        let mut events: Vec<_> = events.into_iter().map(feed_event).collect();
        events.reverse();
        self.queue = events;
        if let Some(event) = self.queue.pop() {
            self.cursor = event.cursor;
            return Ok(Some(Told::Milestone(event)));
        }
        self.told_end = true;
        let found = store::operations::find(store, self.op).await.map_err(explain)?;
        let ended = found.ok_or_else(|| unknown(&self.op.to_string()))?;
        // The next run of the agent goes on with it.
        Ok((ended.status != OperationStatus::Interrupted).then(|| Told::Ended(Box::new(ended))))
    }
}

pub(super) fn feed_event(event: Event) -> FeedEvent {
    let milestone = serde_json::from_value(event.body)
        .unwrap_or_else(|_| Milestone::new(&event.event, "written by another version"));
    FeedEvent { cursor: event.cursor, at: event.at, milestone }
}
