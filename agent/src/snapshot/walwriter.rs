//! Has PostgreSQL's walwriter write and flush WAL while rows are loaded and indexes built.
//!
//! The walwriter sleeps for 200 ms at a time. COPY fills the WAL buffers many times in these, and then writes and flushes WAL
//! itself while every other session waits. An asynchronous commit wakes the walwriter where a megabyte or more waits
//! (`wal_writer_flush_after`), so a session of its own makes one whenever as much was loaded.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use steep_protocol::ids::OperationId;
use tokio::{sync::Notify, time::sleep};
use tracing::debug;

use crate::postgres::{Database, Error, Purpose, Session, copy, ddl};

/// So much is loaded between two wakings: what makes the walwriter flush, by default.
const EVERY: u64 = 1 << 20;

/// What takes less has few WAL buffers to wait for.
const SHORT: Duration = Duration::from_secs(1);
/// How often it is looked whether WAL waits: at 100 MB/s every second time that it does.
const LOOK: Duration = Duration::from_millis(20);

/// Counts what is loaded, by all sessions.
#[derive(Debug, Default)]
pub struct Waker {
    loaded: AtomicU64,
    due: Notify,
}

impl Waker {
    /// So much more was handed to COPY.
    pub fn loaded(&self, bytes: u64) {
        let before = self.loaded.fetch_add(bytes, Ordering::Relaxed);
        if before / EVERY != (before + bytes) / EVERY {
            self.due.notify_one();
        }
    }

    /// Wakes the walwriter as often as that is due, until it is dropped. Where it cannot, loading is slower and no worse.
    pub async fn run(&self, database: &Database, op: OperationId) {
        if let Err(error) = self.wake(database, op).await {
            debug!(op_id = %op, reason = %error, "the walwriter is not woken any more");
        }
    }

    async fn wake(&self, database: &Database, op: OperationId) -> Result<(), Error> {
        // What is small is loaded without another session.
        self.due.notified().await;
        let session = open(database, op).await?;
        loop {
            copy::wake_walwriter(&session).await?;
            self.due.notified().await;
        }
    }
}

/// Wakes the walwriter whenever a megabyte of WAL waits, until it is dropped: for statements that write WAL of which nobody
/// here sees how much. Where it cannot, they are slower and no worse.
pub async fn keep_awake(database: &Database, op: OperationId) {
    let watch = async {
        sleep(SHORT).await;
        let session = open(database, op).await?;
        loop {
            copy::wake_walwriter_if_due(&session).await?;
            sleep(LOOK).await;
        }
    };
    let Err::<(), Error>(error) = watch.await else { return };
    debug!(op_id = %op, reason = %error, "the walwriter is not woken any more");
}

async fn open(database: &Database, op: OperationId) -> Result<Session, Error> {
    let session = database.session(Purpose::CopyIn(op)).await?;
    session.run(&ddl::set_session("synchronous_commit", "off")).await?;
    Ok(session)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_due_once_for_every_mebibyte_and_not_for_less() {
        let waker = Waker::default();
        let is_due = || waker.due.notified().now_or_never().is_some();
        waker.loaded(EVERY - 1);
        assert!(!is_due());
        waker.loaded(1);
        assert!(is_due() && !is_due());
        // What is overdue is due once: one waking is for all that waits.
        waker.loaded(EVERY * 3);
        waker.loaded(EVERY * 3);
        assert!(is_due() && !is_due());
    }
}
