//! How far the last initialization is or came, for whoever asks in SQL and after a restart.

use jiff::Timestamp;
use steep_protocol::{ids::OperationId, operation::Phase, v1};

use super::{
    Error, Store,
    row::{operation, word},
};
use crate::postgres::{
    connect::{count_field, field},
    sql,
};

/// One row of `steep_repl.init_progress`; the names are its columns.
#[derive(Debug, Clone, PartialEq)]
pub struct InitProgress {
    /// The operation.
    pub op_id: OperationId,
    /// What it is busy with.
    pub phase: Phase,
    /// 0 to 100.
    pub overall_percent: f64,
    /// Tables to copy.
    pub tables_total: u32,
    /// Tables copied.
    pub tables_completed: u32,
    /// One of the tables being copied: the one furthest from done.
    pub current_table: Option<String>,
    /// How far that table is, 0 to 100.
    pub current_table_percent: f64,
    /// Rows that have landed.
    pub rows_copied: u64,
    /// Bytes of COPY data that have landed.
    pub bytes_copied: u64,
    /// Rows a second, over the last seconds.
    pub throughput_rows_sec: f64,
    /// Workers.
    pub parallel_workers: u32,
    /// Seconds until it is done; none: not known.
    pub eta_seconds: Option<u64>,
    /// Why it ended early.
    pub error_message: Option<String>,
    /// When the operation began; none: not stored yet.
    pub started_at: Option<Timestamp>,
    /// When this was stored; none: not yet.
    pub updated_at: Option<Timestamp>,
}

impl InitProgress {
    /// What `view` says about `op`.
    pub fn of(op: OperationId, view: &v1::Progress) -> Self {
        let busy = view.workers.iter().filter(|worker| !worker.table.is_empty());
        let current = busy.min_by(|a, b| a.table_percent.total_cmp(&b.table_percent));
        Self {
            op_id: op,
            phase: view.phase.parse().unwrap_or(Phase::Preflight),
            overall_percent: view.overall_percent,
            tables_total: view.tables_total,
            tables_completed: view.tables_done,
            current_table: current.map(|worker| worker.table.clone()),
            current_table_percent: current.map_or(0.0, |worker| worker.table_percent),
            rows_copied: view.rows_copied,
            bytes_copied: view.bytes_copied,
            throughput_rows_sec: view.rows_per_second,
            parallel_workers: u32::try_from(view.workers.len()).unwrap_or(u32::MAX),
            eta_seconds: view.eta_seconds,
            error_message: None,
            started_at: None,
            updated_at: None,
        }
    }

    /// The same at the end of the operation: nothing moves any more, and what completed is whole.
    #[must_use]
    pub fn ended(self, error_message: Option<String>, completed: bool) -> Self {
        Self {
            overall_percent: if completed { 100.0 } else { self.overall_percent },
            current_table: None,
            current_table_percent: 0.0,
            throughput_rows_sec: 0.0,
            eta_seconds: completed.then_some(0),
            error_message,
            ..self
        }
    }
}

/// Stores how far this node's initialization is, in place of what was stored before.
pub async fn save(store: &Store, progress: &InitProgress) -> Result<(), Error> {
    let node = store.owner().node.as_str();
    let op_id = progress.op_id.uuid();
    let counts = [progress.tables_total, progress.tables_completed, progress.parallel_workers];
    let [total, completed, workers] = counts.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
    let percents = [progress.overall_percent, progress.current_table_percent, progress.throughput_rows_sec];
    let [overall, of_table, rows_per_second] = percents.map(|number| number as f32);
    let [rows, bytes] =
        [progress.rows_copied, progress.bytes_copied].map(|count| i64::try_from(count).unwrap_or(i64::MAX));
    let eta = progress.eta_seconds.map(|seconds| i32::try_from(seconds).unwrap_or(i32::MAX));
    store
        .execute(
            "store the progress",
            sql!("store/save_progress.sql"),
            &[
                &node,
                &op_id,
                &progress.phase.as_str(),
                &overall,
                &total,
                &completed,
                &progress.current_table,
                &of_table,
                &rows,
                &bytes,
                &rows_per_second,
                &workers,
                &eta,
                &progress.error_message,
            ],
        )
        .await
        .map(drop)
}

/// How far this node's last initialization is or came; none: none was begun.
pub async fn load(store: &Store) -> Result<Option<InitProgress>, Error> {
    let node = store.owner().node.as_str();
    let row = store.maybe("read the progress", sql!("store/find_progress.sql"), &[&node]).await?;
    let Some(row) = row else { return Ok(None) };
    let small = |column| Ok::<u32, Error>(u32::try_from(field::<i32>(&row, column)?).unwrap_or(0));
    let real = |column| Ok::<f64, Error>(f64::from(field::<f32>(&row, column)?));
    Ok(Some(InitProgress {
        op_id: operation(&row, "op_id")?,
        phase: word(&row, "phase")?,
        overall_percent: real("overall_percent")?,
        tables_total: small("tables_total")?,
        tables_completed: small("tables_completed")?,
        current_table: field(&row, "current_table")?,
        current_table_percent: real("current_table_percent")?,
        rows_copied: count_field(&row, "rows_copied")?,
        bytes_copied: count_field(&row, "bytes_copied")?,
        throughput_rows_sec: real("throughput_rows_sec")?,
        parallel_workers: small("parallel_workers")?,
        eta_seconds: field::<Option<i32>>(&row, "eta_seconds")?.and_then(|seconds| u64::try_from(seconds).ok()),
        error_message: field(&row, "error_message")?,
        started_at: field(&row, "started_at")?,
        updated_at: field(&row, "updated_at")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> v1::Progress {
        let worker = |table: &str, table_percent| v1::WorkerProgress {
            table: table.to_owned(),
            table_percent,
            ..v1::WorkerProgress::default()
        };
        v1::Progress {
            phase: "copy".to_owned(),
            overall_percent: 41.5,
            tables_total: 7,
            tables_done: 3,
            rows_per_second: 900.0,
            eta_seconds: Some(12),
            workers: vec![worker("", 0.0), worker("public.a", 80.0), worker("public.b", 20.0)],
            ..v1::Progress::default()
        }
    }

    #[test]
    fn the_current_table_is_the_one_furthest_from_done_and_idle_workers_do_not_count() {
        let progress = InitProgress::of(OperationId::generate(), &view());
        assert_eq!(progress.current_table.as_deref(), Some("public.b"));
        assert_eq!((progress.phase, progress.parallel_workers, progress.tables_completed), (Phase::Copy, 3, 3));
    }

    #[test]
    fn only_what_completed_ends_at_a_hundred_percent() {
        let progress = InitProgress::of(OperationId::generate(), &view());
        let completed = progress.clone().ended(None, true);
        assert_eq!((completed.overall_percent, completed.eta_seconds), (100.0, Some(0)));
        let failed = progress.ended(Some("no".to_owned()), false);
        assert_eq!((failed.overall_percent, failed.eta_seconds), (41.5, None));
        assert_eq!((failed.error_message.as_deref(), failed.current_table), (Some("no"), None));
    }
}
