//! Brings the events of one operation, from whichever agent can tell, without losing or repeating any.
//!
//! An agent may restart and a network may break while the operation lives on: the stream is opened again from
//! the last cursor, over all peers, until a minute has passed without anything new.

use std::time::Duration;

use steep_protocol::{
    failure::{Code, Failure, Family},
    v1::{OperationEvent, operation_event::What},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::client::{Client, Events};

/// How long we look for an agent that can tell.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so long a silence a new connection has to show that the agent is still there.
const SILENCE: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// What the watcher hears.
#[derive(Debug)]
pub(super) enum News {
    /// Something happened to the operation.
    Event(Box<OperationEvent>),
    /// Nobody can tell at the moment, and why.
    Lost(String),
    /// Somebody can tell again.
    Found,
}

/// Sends events to `news` until the last one; returns only when it gives up.
pub(super) async fn run(mut client: Client<'_>, op_id: String, news: mpsc::Sender<News>) -> Failure {
    let mut feed = Feed { op_id, news, cursor: 0, lost_since: None, pause: FIRST_PAUSE };
    loop {
        let failure = match client.watch(&feed.op_id, feed.cursor).await {
            Ok(events) => match feed.forward(events).await {
                // The watcher has seen the end and leaves; nothing more will be asked of us.
                Stopped::Ended => return std::future::pending().await,
                Stopped::Silent => {
                    client.hang_up();
                    continue;
                }
                Stopped::Broken(failure) => failure,
            },
            Err(failure) => failure,
        };
        client.hang_up();
        if let Some(failure) = feed.wait_or_give_up(failure).await {
            return failure;
        }
    }
}

/// Why a stream brings no more events.
enum Stopped {
    /// The last one came.
    Ended,
    /// None came for long, which says nothing about the operation; the agent was there all the time, or its
    /// machine died without a word: a new connection tells which.
    Silent,
    /// It broke.
    Broken(Failure),
}

struct Feed {
    op_id: String,
    news: mpsc::Sender<News>,
    cursor: u64,
    lost_since: Option<Instant>,
    pause: Duration,
}

impl Feed {
    /// Passes events on while they come.
    async fn forward(&mut self, mut events: Events) -> Stopped {
        loop {
            let event = match timeout(SILENCE, events.next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Stopped::Broken(Failure::new(Code::StreamBroken, "the agent ended the stream")),
                Ok(Err(failure)) => return Stopped::Broken(failure),
                Err(_) => {
                    self.found().await;
                    return Stopped::Silent;
                }
            };
            self.found().await;
            // Progress has no place in the order of milestones: it may come without a cursor of its own.
            self.cursor = self.cursor.max(event.cursor);
            let is_last = matches!(event.what, Some(What::Ended(_)));
            self.tell(News::Event(Box::new(event))).await;
            if is_last {
                return Stopped::Ended;
            }
        }
    }

    async fn found(&mut self) {
        self.pause = FIRST_PAUSE;
        if self.lost_since.take().is_some() {
            self.tell(News::Found).await;
        }
    }

    /// Waits before the next attempt; or returns the failure to end with.
    async fn wait_or_give_up(&mut self, failure: Failure) -> Option<Failure> {
        // An agent that asks others for the operation does not find it while the one that runs it restarts.
        let may_pass = matches!(failure.code.family(), Family::Connection | Family::Timeout)
            || failure.code == Code::OperationUnknown;
        if !may_pass {
            return Some(failure);
        }
        let lost_since = match self.lost_since {
            Some(since) => since,
            None => {
                let now = Instant::now();
                self.lost_since = Some(now);
                self.tell(News::Lost(failure.message.clone())).await;
                now
            }
        };
        if lost_since.elapsed() >= PATIENCE {
            let op_id = &self.op_id;
            let lost = Failure::new(
                Code::PeerUnreachable,
                format!("cannot follow operation {op_id} any longer; it may still run"),
            );
            let lost = lost.cause(failure.message);
            let lost = failure.causes.into_iter().fold(lost, Failure::cause);
            return Some(lost.hint(format!("steepctl op watch {op_id}")));
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        None
    }

    async fn tell(&self, news: News) {
        // A watcher that has left needs no news.
        let _ = self.news.send(news).await;
    }
}
