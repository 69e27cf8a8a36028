//! The arithmetic of progress (pure): percents that never go back, rates over the last seconds, an ETA.
//!
//! How far a table is, is counted in heap bytes: those of finished parts are known exactly, and within a part
//! the share of COPY bytes tells, by the bytes a heap page gave in the parts before. So a percentage never
//! passes 100, whatever TOAST and compression do.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use steep_protocol::{operation::Phase, v1};

/// Rates are averages over this long.
const WINDOW: Duration = Duration::from_secs(5);
/// COPY bytes a heap byte gives, until a part has told better.
const FIRST_GUESS: f64 = 0.9;
/// Where in the overall percent each phase begins; the last one ends at 100.
const PHASE_STARTS: [(Phase, f64); 8] = [
    (Phase::Preflight, 0.0),
    (Phase::Snapshot, 1.0),
    (Phase::Schema, 2.0),
    (Phase::Copy, 4.0),
    (Phase::Indexes, 74.0),
    (Phase::Sequences, 92.0),
    (Phase::CatchingUp, 93.0),
    (Phase::Verify, 98.0),
];

#[derive(Debug, Default)]
struct Table {
    name: String,
    heap_bytes: u64,
    heap_done: u64,
    rows_estimate: u64,
    rows: u64,
    bytes: u64,
    is_done: bool,
}

#[derive(Debug, Default)]
struct Worker {
    table: Option<u32>,
    part_heap: u64,
    part_rows: u64,
    part_bytes: u64,
    meter: Meter,
}

/// Rows and bytes over the last seconds.
#[derive(Debug, Default)]
struct Meter {
    samples: VecDeque<(Duration, u64, u64)>,
}

impl Meter {
    /// Takes the totals at `now`; returns rows and bytes a second.
    fn sample(&mut self, now: Duration, rows: u64, bytes: u64) -> (f64, f64) {
        self.samples.push_back((now, rows, bytes));
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(at, ..)| now.saturating_sub(*at) > WINDOW) {
            self.samples.pop_front();
        }
        let Some((at, rows_then, bytes_then)) = self.samples.front() else { return (0.0, 0.0) };
        let seconds = now.saturating_sub(*at).as_secs_f64();
        if seconds < 0.05 {
            return (0.0, 0.0);
        }
        (rows.saturating_sub(*rows_then) as f64 / seconds, bytes.saturating_sub(*bytes_then) as f64 / seconds)
    }
}

/// How far an operation is. Time comes in as "since it began".
#[derive(Debug)]
pub struct Progress {
    phase: Phase,
    highest: f64,
    tables: BTreeMap<u32, Table>,
    workers: Vec<Worker>,
    total: Meter,
    copy_began: Option<(Duration, f64)>,
    retained_wal_bytes: u64,
    indexes_total: u32,
    indexes_done: u32,
    parts_done: u64,
}

impl Progress {
    /// At the start, with room for `workers`.
    pub fn new(workers: u32) -> Self {
        Self {
            phase: Phase::Preflight,
            highest: 0.0,
            tables: BTreeMap::new(),
            workers: (0..workers).map(|_| Worker::default()).collect(),
            total: Meter::default(),
            copy_began: None,
            retained_wal_bytes: 0,
            indexes_total: 0,
            indexes_done: 0,
            parts_done: 0,
        }
    }

    /// The operation is in `phase` now.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The tables are planned anew.
    pub fn forget_tables(&mut self) {
        self.drop_open_parts();
        self.tables.clear();
        self.parts_done = 0;
    }

    /// A table will be copied; `heap_bytes` and `rows_estimate` as the plan has them.
    pub fn plan_table(&mut self, oid: u32, name: String, heap_bytes: u64, rows_estimate: u64) {
        let table = Table { name, heap_bytes: heap_bytes.max(1), rows_estimate, ..Table::default() };
        self.tables.insert(oid, table);
    }

    /// So many indexes and constraints will be made.
    pub fn plan_indexes(&mut self, count: u32) {
        (self.indexes_total, self.indexes_done) = (count, 0);
    }

    /// No worker is at work; what each of them had begun is lost.
    pub fn drop_open_parts(&mut self) {
        for worker in &mut self.workers {
            worker.table = None;
            (worker.part_rows, worker.part_bytes) = (0, 0);
        }
    }

    /// A part of `heap_bytes` was committed before, by an earlier run of the agent or an earlier try.
    pub fn part_was_done(&mut self, table: u32, heap_bytes: u64, rows: u64, bytes: u64) {
        self.parts_done += 1;
        if let Some(table) = self.tables.get_mut(&table) {
            table.rows += rows;
            table.bytes += bytes;
            table.heap_done = (table.heap_done + heap_bytes).min(table.heap_bytes);
        }
    }

    /// Parts that are committed.
    pub fn parts_done(&self) -> u64 {
        self.parts_done
    }

    /// So many of them are made.
    pub fn indexes_made(&mut self, count: u32) {
        self.indexes_done = (self.indexes_done + count).min(self.indexes_total);
    }

    /// WAL the source keeps back for the operation.
    pub fn retained(&mut self, bytes: u64) {
        self.retained_wal_bytes = bytes;
    }

    /// `worker` (from 0) begins a part of `heap_bytes`.
    pub fn part_began(&mut self, worker: usize, table: u32, heap_bytes: u64) {
        let worker = &mut self.workers[worker];
        worker.table = Some(table);
        worker.part_heap = heap_bytes;
        (worker.part_rows, worker.part_bytes) = (0, 0);
    }

    /// `worker`'s part has come to `bytes` of COPY data. Rows are not counted on the way: they are guessed from
    /// what the table has shown so far, and exact when the part is done.
    pub fn part_moved(&mut self, worker: usize, bytes: u64) {
        let part_heap = self.workers[worker].part_heap as f64;
        let table = self.workers[worker].table.and_then(|oid| self.tables.get(&oid));
        let rows = table.map_or(0.0, |table| match (table.rows, table.bytes) {
            (rows, counted) if rows > 0 && counted > 0 => bytes as f64 * rows as f64 / counted as f64,
            // Wide rows give far more COPY bytes than heap bytes: never more rows than this share of the heap holds.
            _ => {
                let heap = (bytes as f64 / self.ratio(table)).min(part_heap);
                table.rows_estimate as f64 * heap / table.heap_bytes as f64
            }
        });
        let worker = &mut self.workers[worker];
        (worker.part_rows, worker.part_bytes) = (rows as u64, bytes);
    }

    /// `worker`'s part is committed.
    pub fn part_done(&mut self, worker: usize, rows: u64, bytes: u64) {
        self.parts_done += 1;
        let worker = &mut self.workers[worker];
        if let Some(table) = worker.table.and_then(|oid| self.tables.get_mut(&oid)) {
            table.rows += rows;
            table.bytes += bytes;
            table.heap_done = (table.heap_done + worker.part_heap).min(table.heap_bytes);
        }
        worker.table = None;
        (worker.part_rows, worker.part_bytes) = (0, 0);
    }

    /// All parts of a table are committed; returns its rows and bytes.
    pub fn table_done(&mut self, oid: u32) -> (u64, u64) {
        let Some(table) = self.tables.get_mut(&oid) else { return (0, 0) };
        table.is_done = true;
        table.heap_done = table.heap_bytes;
        (table.rows, table.bytes)
    }

    /// Rows committed or on their way, over all tables.
    pub fn rows(&self) -> u64 {
        self.tables.values().map(|table| table.rows).sum::<u64>()
            + self.workers.iter().map(|w| w.part_rows).sum::<u64>()
    }

    fn bytes(&self) -> u64 {
        self.tables.values().map(|table| table.bytes).sum::<u64>()
            + self.workers.iter().map(|w| w.part_bytes).sum::<u64>()
    }

    /// COPY bytes a heap byte of `table` gives.
    fn ratio(&self, table: &Table) -> f64 {
        let of = |bytes: u64, heap: u64| (heap > 0 && bytes > 0).then(|| bytes as f64 / heap as f64);
        of(table.bytes, table.heap_done)
            .or_else(|| {
                let all = self.tables.values().fold((0, 0), |sum, t| (sum.0 + t.bytes, sum.1 + t.heap_done));
                of(all.0, all.1)
            })
            .unwrap_or(FIRST_GUESS)
    }

    /// Heap bytes of `oid` that are done, those of parts under way by their share.
    fn heap_done(&self, oid: u32, table: &Table) -> f64 {
        let ratio = self.ratio(table);
        let under_way: f64 = self
            .workers
            .iter()
            .filter(|worker| worker.table == Some(oid))
            .map(|worker| (worker.part_bytes as f64 / ratio).min(0.99 * worker.part_heap as f64))
            .sum();
        (table.heap_done as f64 + under_way).min(table.heap_bytes as f64)
    }

    fn overall(&self) -> f64 {
        let (heap, done) = self.tables.iter().fold((0.0, 0.0), |sum, (oid, table)| {
            (sum.0 + table.heap_bytes as f64, sum.1 + self.heap_done(*oid, table))
        });
        let copied = if heap > 0.0 { done / heap } else { 0.0 };
        let indexed =
            if self.indexes_total > 0 { f64::from(self.indexes_done) / f64::from(self.indexes_total) } else { copied };
        let start = |wanted: Phase| {
            PHASE_STARTS.iter().find(|(phase, _)| *phase == wanted).expect("every phase has its start").1
        };
        match self.phase {
            Phase::Copy | Phase::Indexes => {
                let (copy, indexes, end) = (start(Phase::Copy), start(Phase::Indexes), start(Phase::Sequences));
                copy + (indexes - copy) * copied + (end - indexes) * indexed
            }
            phase => start(phase),
        }
    }

    /// What watchers see at `now`. Percent never goes back from one call to the next.
    pub fn view(&mut self, now: Duration) -> v1::Progress {
        self.highest = self.highest.max(self.overall()).min(99.9);
        if self.phase == Phase::Copy && self.copy_began.is_none() {
            self.copy_began = Some((now, self.highest));
        }
        let (rows, bytes) = (self.rows(), self.bytes());
        let (rows_per_second, bytes_per_second) = self.total.sample(now, rows, bytes);
        let remaining: f64 = self
            .tables
            .iter()
            .map(|(oid, table)| (table.heap_bytes as f64 - self.heap_done(*oid, table)).max(0.0) * self.ratio(table))
            .sum();
        v1::Progress {
            phase: self.phase.as_str().into(),
            overall_percent: (self.highest * 10.0).floor() / 10.0,
            tables_total: self.tables.len() as u32,
            tables_done: self.tables.values().filter(|table| table.is_done).count() as u32,
            rows_copied: rows,
            bytes_copied: bytes,
            bytes_expected: bytes + remaining as u64,
            rows_per_second,
            bytes_per_second,
            eta_seconds: self.eta(now),
            workers: self.worker_views(now),
            retained_wal_bytes: self.retained_wal_bytes,
            indexes_total: self.indexes_total,
            indexes_done: self.indexes_done,
        }
    }

    fn eta(&self, now: Duration) -> Option<u64> {
        let (began, percent_then) = self.copy_began?;
        let (elapsed, gained) = (now.saturating_sub(began).as_secs_f64(), self.highest - percent_then);
        (elapsed >= 1.0 && gained >= 0.5).then(|| (elapsed * (100.0 - self.highest) / gained).ceil() as u64)
    }

    fn worker_views(&mut self, now: Duration) -> Vec<v1::WorkerProgress> {
        let tables: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                let table = worker.table.and_then(|oid| Some((oid, self.tables.get(&oid)?)));
                table.map(|(oid, table)| {
                    let share = self.heap_done(oid, table) / table.heap_bytes as f64;
                    (table.name.clone(), share, (table.heap_bytes as f64 * self.ratio(table)) as u64)
                })
            })
            .collect();
        let views = self.workers.iter_mut().zip(tables).enumerate().map(|(index, (worker, table))| {
            let (rows, bytes) = worker.meter.rising(now, worker.part_rows, worker.part_bytes);
            let (name, share, expected) = table.unwrap_or_default();
            v1::WorkerProgress {
                worker: index as u32 + 1,
                table: name,
                table_percent: (share * 1000.0).floor() / 10.0,
                table_bytes: (expected as f64 * share) as u64,
                table_bytes_expected: expected,
                rows_per_second: rows,
                bytes_per_second: bytes,
            }
        });
        views.collect()
    }
}

impl Meter {
    /// Like [`Meter::sample`], for totals that begin anew with every part.
    fn rising(&mut self, now: Duration, rows: u64, bytes: u64) -> (f64, f64) {
        if self.samples.back().is_some_and(|(_, _, bytes_then)| bytes < *bytes_then) {
            self.samples.clear();
        }
        self.sample(now, rows, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_copy_goes_from_the_start_of_its_phase_to_that_of_the_next_and_never_back() {
        let mut progress = Progress::new(1);
        progress.plan_table(1, "public.t".into(), 1000, 200);
        progress.plan_indexes(1);
        progress.enter(Phase::Copy);
        let mut last = 0.0;
        for part in 0..10u32 {
            progress.part_began(0, 1, 100);
            for step in 1..=20u64 {
                // Far more COPY bytes than heap bytes: as TOAST would give.
                progress.part_moved(0, step * 100);
                let view = progress.view(SECOND * (part * 20 + step as u32));
                assert!(view.overall_percent >= last, "went back from {last} to {}", view.overall_percent);
                assert!(view.workers[0].table_percent <= 100.0);
                last = view.overall_percent;
            }
            progress.part_done(0, 20, 2000);
        }
        assert_eq!(progress.table_done(1), (200, 20_000));
        assert!((73.9..=74.0).contains(&progress.view(SECOND * 300).overall_percent));
        progress.indexes_made(1);
        assert!((91.9..=92.0).contains(&progress.view(SECOND * 301).overall_percent));
    }

    #[test]
    fn rows_that_are_guessed_are_never_more_than_the_table_is_said_to_hold() {
        let mut progress = Progress::new(2);
        progress.plan_table(1, "public.wide".into(), 1000, 200);
        progress.plan_table(2, "public.of_no_known_size".into(), 0, 7);
        progress.part_began(0, 1, 500);
        progress.part_began(1, 2, 0);
        for worker in [0, 1] {
            progress.part_moved(worker, 90_000);
        }
        assert_eq!(progress.rows(), 100, "half of the heap holds half of the rows");
        progress.part_done(0, 90, 90_000);
        progress.part_began(0, 1, 500);
        progress.part_moved(0, 50_000);
        assert_eq!(progress.rows(), 140, "as many rows a byte as the first half had");
    }

    #[test]
    fn a_copy_that_goes_on_shows_what_had_landed_and_nothing_that_was_open() {
        let mut progress = Progress::new(2);
        progress.plan_table(1, "public.t".into(), 1000, 200);
        progress.enter(Phase::Copy);
        progress.part_began(0, 1, 500);
        progress.part_done(0, 100, 4000);
        progress.part_began(1, 1, 500);
        progress.part_moved(1, 2000);
        let before = progress.view(SECOND);
        progress.forget_tables();
        progress.plan_table(1, "public.t".into(), 1000, 200);
        progress.part_was_done(1, 500, 100, 4000);
        let after = progress.view(SECOND * 2);
        assert_eq!((after.rows_copied, after.bytes_copied, after.bytes_expected), (100, 4000, 8000));
        assert!(after.workers.iter().all(|worker| worker.table.is_empty()), "{:?}", after.workers);
        assert_eq!(before.overall_percent, after.overall_percent, "it never goes back");
        assert_eq!(progress.parts_done(), 1);
    }

    #[test]
    fn what_is_expected_grows_exact_as_parts_finish() {
        let mut progress = Progress::new(1);
        progress.plan_table(1, "public.t".into(), 1000, 200);
        progress.enter(Phase::Copy);
        progress.part_began(0, 1, 500);
        progress.part_done(0, 10, 2000);
        assert_eq!(progress.view(SECOND).bytes_expected, 4000);
    }

    #[test]
    fn rates_and_eta_follow_the_last_seconds() {
        let mut progress = Progress::new(1);
        progress.plan_table(1, "public.t".into(), 900_000, 9000);
        progress.enter(Phase::Copy);
        progress.view(Duration::ZERO);
        progress.part_began(0, 1, 900_000);
        let mut view = progress.view(SECOND);
        for second in 2..=10u64 {
            progress.part_moved(0, second * 900);
            view = progress.view(SECOND * second as u32);
        }
        assert!((view.rows_per_second - 10.0).abs() < 0.5, "{}", view.rows_per_second);
        assert!((view.bytes_per_second - 900.0).abs() < 10.0, "{}", view.bytes_per_second);
    }

    #[test]
    fn a_plan_without_tables_is_no_division_by_zero() {
        let mut progress = Progress::new(4);
        progress.enter(Phase::Copy);
        let view = progress.view(SECOND);
        assert!(view.overall_percent.is_finite() && view.bytes_expected == 0);
    }
}
