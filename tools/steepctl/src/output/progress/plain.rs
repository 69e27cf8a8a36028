//! Progress as plain `key=value` lines: one per milestone, progress at most every ten seconds. Stable, for logs and scripts.
//!
//! ```text
//! 2026-11-22T10:04:41Z init.progress op=0192f3ac-… node=node_b phase=copy overall=3.1 bytes=6023020544 …
//! 2026-11-22T10:06:02Z init.table_complete op=0192f3ac-… node=node_b table=public.customers rows_copied=1204332 …
//! ```

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use steep_protocol::v1::{self, operation_event::What};

use super::{super::safe, Subject};
use crate::units;

const BETWEEN_PROGRESS: Duration = Duration::from_secs(10);

/// Turns events into lines.
#[derive(Debug)]
pub struct Plain {
    subject: Subject,
    last_progress: Option<Timestamp>,
    told_end: bool,
}

impl Plain {
    /// Lines about this operation.
    pub fn new(subject: Subject) -> Self {
        Self { subject, last_progress: None, told_end: false }
    }

    /// The line for `event`; nothing for progress too soon after the last.
    pub fn line(&mut self, event: &v1::OperationEvent) -> Option<String> {
        let at = units::moment(event.at.as_ref()).unwrap_or_default();
        match event.what.as_ref()? {
            What::Milestone(milestone) => {
                self.told_end |= ends(&milestone.event);
                Some(self.milestone(at, milestone))
            }
            What::Progress(progress) => {
                let due = self.last_progress.is_none_or(|last| units::since(last, at) >= BETWEEN_PROGRESS);
                due.then(|| {
                    self.last_progress = Some(at);
                    self.progress(at, progress)
                })
            }
            What::Ended(operation) => (!self.told_end).then(|| self.ended(at, operation)),
        }
    }

    fn begin(&self, at: Timestamp, event: &str) -> Line {
        let mut line = Line(format!("{} {}", units::rfc3339(at), value(event)));
        line.text("op", &self.subject.op_id);
        line.text("node", &self.subject.target);
        line
    }

    fn milestone(&self, at: Timestamp, milestone: &v1::Milestone) -> String {
        let mut line = self.begin(at, &milestone.event);
        line.text("phase", &milestone.phase);
        line.text("table", &milestone.table);
        if milestone.event.ends_with(".step") {
            line.text("step", &milestone.message);
        }
        line.number("rows_copied", milestone.rows_copied);
        line.number("bytes_copied", milestone.bytes_copied);
        line.number("duration_ms", milestone.duration_ms);
        if !milestone.table.is_empty() || !milestone.phase.is_empty() {
            line.percent(milestone.overall_percent);
        }
        line.text("previous_state", &milestone.previous_state.to_uppercase());
        line.text("new_state", &milestone.new_state.to_uppercase());
        if milestone.event == "init.completed" {
            line.text("state", "SYNCHRONIZED");
        }
        if let Some(failure) = &milestone.failure {
            line.text("code", &failure.code);
            line.text("error", &failure.message);
        } else if [".started", ".interrupted", ".restarted"].iter().any(|end| milestone.event.ends_with(end))
            || (milestone.event.starts_with("remove.") && !milestone.event.ends_with(".step"))
        {
            line.text("message", &milestone.message);
        }
        line.0
    }

    fn progress(&self, at: Timestamp, progress: &v1::Progress) -> String {
        let mut line = self.begin(at, "init.progress");
        line.text("phase", &progress.phase);
        line.percent(progress.overall_percent);
        line.number("bytes", Some(progress.bytes_copied));
        line.number("bytes_total", Some(progress.bytes_expected));
        line.number("rows_copied", Some(progress.rows_copied));
        line.number("rate_bps", Some(progress.bytes_per_second.max(0.0) as u64));
        line.number("tables_done", Some(progress.tables_done.into()));
        line.number("tables", Some(progress.tables_total.into()));
        line.number("eta_s", progress.eta_seconds);
        line.0
    }

    fn ended(&self, at: Timestamp, operation: &v1::Operation) -> String {
        let mut line = self.begin(at, &format!("{}.{}", operation.kind, operation.status));
        if let Some(failure) = &operation.failure {
            line.text("code", &failure.code);
            line.text("error", &failure.message);
        }
        line.0
    }
}

/// Whether a milestone says how its operation ended.
fn ends(event: &str) -> bool {
    matches!(event.rsplit('.').next(), Some("completed" | "failed" | "cancelled"))
}

struct Line(String);

impl Line {
    fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.push(key, &value(text));
        }
    }

    fn number(&mut self, key: &str, number: Option<u64>) {
        if let Some(number) = number {
            self.push(key, &number.to_string());
        }
    }

    fn percent(&mut self, percent: f64) {
        self.push("overall", units::percent(percent).trim_end_matches('%'));
    }

    fn push(&mut self, key: &str, value: &str) {
        write!(self.0, " {key}={value}").expect("a string takes all text");
    }
}

/// Escaped, and in double quotes where a reader would otherwise not see where it ends.
fn value(text: &str) -> String {
    let text = safe(text);
    if text.contains([' ', '"', '=', '\\']) {
        format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Plain {
        Plain::new(Subject { op_id: "0192f3ac-7d21".into(), target: "node_b".into(), source: "node_a".into() })
    }

    fn event(seconds: i64, what: What) -> v1::OperationEvent {
        let at = prost_types::Timestamp { seconds: 1_763_000_000 + seconds, nanos: 0 };
        v1::OperationEvent { cursor: 1, at: Some(at), what: Some(what) }
    }

    fn progress(percent: f64) -> What {
        What::Progress(v1::Progress {
            phase: "copy".into(),
            overall_percent: percent,
            bytes_copied: 6_023_020_544,
            bytes_expected: 194_347_270_144,
            bytes_per_second: 602_302_054.4,
            eta_seconds: Some(313),
            tables_total: 23,
            ..Default::default()
        })
    }

    #[test]
    fn a_milestone_is_one_line_of_keys_and_values() {
        let milestone = v1::Milestone {
            event: "init.table_complete".into(),
            phase: "copy".into(),
            table: "public.customers".into(),
            rows_copied: Some(1_204_332),
            duration_ms: Some(58_211),
            overall_percent: 9.87,
            ..Default::default()
        };
        assert_eq!(
            plain().line(&event(0, What::Milestone(milestone))).as_deref(),
            Some(
                "2025-11-13T02:13:20Z init.table_complete op=0192f3ac-7d21 node=node_b phase=copy \
                 table=public.customers rows_copied=1204332 duration_ms=58211 overall=9.8"
            )
        );
    }

    #[test]
    fn a_step_is_named() {
        let milestone = v1::Milestone {
            event: "snapshot.step".into(),
            message: "write tables".into(),
            overall_percent: 4.0,
            ..Default::default()
        };
        assert_eq!(
            plain().line(&event(0, What::Milestone(milestone))).as_deref(),
            Some("2025-11-13T02:13:20Z snapshot.step op=0192f3ac-7d21 node=node_b step=\"write tables\"")
        );
    }

    #[test]
    fn progress_is_told_at_once_and_then_every_ten_seconds_at_most() {
        let mut plain = plain();
        let told: Vec<bool> =
            [0, 1, 9, 10, 11, 20].map(|second| plain.line(&event(second, progress(3.1))).is_some()).into();
        assert_eq!(told, [true, false, false, true, false, true]);
        assert_eq!(
            plain.line(&event(40, progress(3.1))).as_deref(),
            Some(
                "2025-11-13T02:14:00Z init.progress op=0192f3ac-7d21 node=node_b phase=copy overall=3.1 \
                 bytes=6023020544 bytes_total=194347270144 rows_copied=0 rate_bps=602302054 tables_done=0 tables=23 eta_s=313"
            )
        );
    }

    #[test]
    fn a_hostile_name_stays_one_value_on_one_line() {
        let milestone = v1::Milestone {
            event: "init.table_started".into(),
            table: "public.\"a b\"\nop=forged \u{1b}[2J".into(),
            ..Default::default()
        };
        let line = plain().line(&event(0, What::Milestone(milestone))).expect("a milestone is always told");
        assert!(line.contains(r#"table="public.\"a b\"\\u{a}op=forged \\u{1b}[2J""#), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn the_end_is_told_once() {
        let ended =
            || What::Ended(v1::Operation { kind: "init".into(), status: "failed".into(), ..Default::default() });
        let mut with_milestone = plain();
        let failed = v1::Milestone { event: "init.failed".into(), ..Default::default() };
        assert!(with_milestone.line(&event(0, What::Milestone(failed))).is_some());
        assert!(with_milestone.line(&event(0, ended())).is_none());
        let line = plain().line(&event(0, ended())).expect("without a milestone the end itself is told");
        assert!(line.contains("init.failed"), "{line}");
    }
}
