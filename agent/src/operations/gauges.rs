//! What the metrics tell of an initialization while it runs, and that it has ended.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use steep_protocol::{operation::OperationStatus, v1};

use crate::{metrics::Metrics, store::operations::NewOperation};

/// The gauges of one operation; of those that are no initialization it tells nothing.
#[derive(Debug, Clone)]
pub(super) struct Gauges {
    metrics: Metrics,
    is_init: bool,
    target: String,
    source: String,
    method: String,
    /// Percent and bytes when last looked at; none: it has ended, and nothing is told any more.
    last: Arc<Mutex<Option<(f64, u64)>>>,
}

impl Gauges {
    /// For `new`, which begins now.
    pub(super) fn of(metrics: Metrics, new: &NewOperation) -> Self {
        let gauges = Self {
            metrics,
            is_init: new.kind == "init",
            target: new.target.to_string(),
            source: new.source.to_string(),
            method: new.method.to_string(),
            last: Arc::new(Mutex::new(Some((-1.0, 0)))),
        };
        if gauges.is_init {
            gauges.metrics.init_running.of([&gauges.method]).inc();
        }
        gauges
    }

    /// How far it is now.
    pub(super) fn tell(&self, view: &v1::Progress) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = last.as_mut().filter(|_| self.is_init) else { return };
        let target = self.target.as_str();
        self.metrics.init_progress.of([target, &self.source]).set(view.overall_percent / 100.0);
        match view.eta_seconds {
            Some(eta) => {
                self.metrics.init_eta.of([target]).set(eta as f64);
            }
            None => self.metrics.init_eta.remove([target]),
        }
        let copying: std::collections::BTreeSet<_> =
            view.workers.iter().map(|worker| worker.table.as_str()).filter(|table| !table.is_empty()).collect();
        let (done, copying) = (view.tables_done, copying.len() as u32);
        let pending = view.tables_total.saturating_sub(done + copying);
        for (status, count) in [("done", done), ("copying", copying), ("pending", pending)] {
            self.metrics.init_tables.of([target, status]).set(f64::from(count));
        }
        let now = (view.overall_percent, view.bytes_copied);
        if *before != now {
            *before = now;
            self.metrics.init_last_progress.of([target]).set(Timestamp::now().as_duration().as_secs_f64());
        }
    }

    /// It has ended.
    pub(super) fn ended(&self, status: OperationStatus, took: Duration) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if !self.is_init {
            return;
        }
        let (target, method) = (self.target.as_str(), self.method.as_str());
        self.metrics.init_running.of([method]).dec();
        // Only this run of the agent has ended, where the next one goes on with it.
        if status.has_ended() {
            self.metrics.inits.of([method, status.as_str()]).inc();
            self.metrics.init_duration.of([method, status.as_str()]).observe(took.as_secs_f64());
        }
        self.metrics.init_progress.remove([target, &self.source]);
        self.metrics.init_eta.remove([target]);
        self.metrics.init_last_progress.remove([target]);
        for status in ["done", "copying", "pending"] {
            self.metrics.init_tables.remove([target, status]);
        }
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::{ids::OperationId, operation::InitMethod};

    use super::*;

    #[test]
    fn an_initialization_is_told_while_it_runs_and_counted_when_it_ends() {
        let metrics = Metrics::default();
        let new = NewOperation {
            op_id: OperationId::generate(),
            kind: "init".into(),
            target: "node_b".parse().expect("a name"),
            source: "node_a".parse().expect("a name"),
            method: InitMethod::Direct,
            request: serde_json::json!({}),
            started_by: "alice".into(),
        };
        let gauges = Gauges::of(metrics.clone(), &new);
        let worker = |table: &str| v1::WorkerProgress { table: table.into(), ..v1::WorkerProgress::default() };
        gauges.tell(&v1::Progress {
            overall_percent: 25.0,
            tables_total: 5,
            tables_done: 1,
            workers: vec![worker("public.a"), worker("public.a"), worker("public.b"), worker("")],
            ..v1::Progress::default()
        });
        let text = metrics.text();
        for line in [
            "steep_init_running{method=\"direct\"} 1.0",
            "steep_init_progress_ratio{target=\"node_b\",source=\"node_a\"} 0.25",
            "steep_init_tables{target=\"node_b\",status=\"copying\"} 2.0",
            "steep_init_tables{target=\"node_b\",status=\"pending\"} 2.0",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        gauges.ended(OperationStatus::Completed, Duration::from_secs(3));
        let text = metrics.text();
        assert!(text.contains("steep_init_total{method=\"direct\",result=\"completed\"} 1"), "{text}");
        assert!(text.contains("steep_init_running{method=\"direct\"} 0.0"), "{text}");
        assert!(!text.contains("steep_init_progress_ratio{"), "{text}");
    }
}
