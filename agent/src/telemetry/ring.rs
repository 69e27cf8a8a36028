//! The last some thousand events this agent logged, for whoever asks what happened lately.
//!
//! Kept in memory only: a run of the agent remembers its own. Each has a number that grows by one, so that a reader who
//! comes back knows what it has had, and hears of what it has missed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::watch;

/// As many events are kept.
pub const KEPT: usize = 8192;

/// One event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place: 1 is the first this run logged.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// error, warn or info.
    pub level: &'static str,
    /// Its name by the schema of log events.
    pub event: String,
    /// A line for people.
    pub message: String,
    /// The whole record, one JSON object.
    pub json: Arc<str>,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Oldest first.
    pub records: Vec<Record>,
    /// As many were forgotten between where the reader was and the first of these.
    pub missed: u64,
}

#[derive(Debug, Default)]
struct Kept {
    records: VecDeque<Record>,
    /// The number of the last one taken in.
    last: u64,
}

/// The events kept.
#[derive(Debug)]
pub struct Ring {
    kept: Mutex<Kept>,
    most: usize,
    changes: watch::Sender<u64>,
}

impl Ring {
    /// Keeps the last `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { kept: Mutex::default(), most, changes: watch::Sender::new(0) }
    }

    /// Takes one in; its number is given here.
    pub(super) fn push(&self, record: Record) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let number = kept.last;
        if kept.records.len() == self.most {
            kept.records.pop_front();
        }
        kept.records.push_back(Record { number, ..record });
        drop(kept);
        self.changes.send_replace(number);
    }

    /// At most `most` events after `number`; 0: from the oldest kept, which misses nothing.
    pub fn after(&self, number: u64, most: usize) -> Read {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let first = kept.last + 1 - kept.records.len() as u64;
        let missed = if number == 0 { 0 } else { first.saturating_sub(number + 1) };
        let skip = (number + 1).saturating_sub(first);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Read { records: kept.records.iter().skip(skip).take(most).cloned().collect(), missed }
    }

    /// The number of the last event.
    pub fn last(&self) -> u64 {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// Tells when there is one more.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> Record {
        Record {
            number: 0,
            at: Timestamp::UNIX_EPOCH,
            level: "info",
            event: "agent.ready".into(),
            message: message.into(),
            json: "{}".into(),
        }
    }

    #[test]
    fn a_reader_that_comes_back_misses_nothing_or_hears_how_much() {
        let ring = Ring::new(3);
        let numbers = |read: &Read| read.records.iter().map(|record| record.number).collect::<Vec<_>>();
        assert_eq!(ring.after(0, 9), Read { records: vec![], missed: 0 });
        for message in ["a", "b", "c"] {
            ring.push(record(message));
        }
        let all = ring.after(0, 9);
        assert_eq!((numbers(&all), all.missed), (vec![1, 2, 3], 0));
        let page = ring.after(1, 1);
        assert_eq!((numbers(&page), page.missed), (vec![2], 0));
        for message in ["d", "e"] {
            ring.push(record(message));
        }
        let back = ring.after(1, 9);
        assert_eq!((numbers(&back), back.missed), (vec![3, 4, 5], 1), "number 2 is forgotten");
        assert_eq!(ring.after(0, 9).missed, 0, "who was never there has missed nothing");
        assert_eq!(numbers(&ring.after(5, 9)), Vec::<u64>::new());
        assert_eq!(numbers(&ring.after(99, 9)), Vec::<u64>::new(), "a number of another run");
        assert_eq!(ring.last(), 5);
    }
}
