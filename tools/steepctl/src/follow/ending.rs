//! How an operation ended, in words and as an exit code.

use steep_protocol::{
    failure::{Code, Failure},
    operation::{InitMethod, OperationStatus},
    v1,
};

use super::Followed;
use crate::{
    output::{Output, exit_code::Exit, safe, style::Tone},
    units,
};

/// What the operator wanted of the operation they followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That it reaches its goal.
    Completion,
    /// That it stops and cleans up.
    Cancellation,
}

/// Says how it ended, where that is not said yet, and turns it into the command's result.
pub fn conclude(out: &Output, followed: Followed, wanted: Wanted) -> Result<Exit, Failure> {
    let (operation, is_told) = match followed {
        Followed::Detached => return Ok(Exit::Detached),
        Followed::Ended { operation, is_told } => (operation, is_told),
    };
    let status = operation.status.parse::<OperationStatus>();
    match (status, wanted) {
        (Ok(OperationStatus::Completed), Wanted::Completion)
        | (Ok(OperationStatus::Cancelled), Wanted::Cancellation) => {
            match is_told {
                true if out.is_json() => {}
                true => out.talk(&summary(&operation)),
                false => out.data(&summary(&operation))?,
            }
            Ok(Exit::Success)
        }
        (Ok(OperationStatus::Completed), Wanted::Cancellation) => Err(Failure::new(
            Code::NothingRuns,
            format!("operation {} was done before it could be cancelled", operation.op_id),
        )
        .hint(format!("steepctl node show {}", operation.target))),
        (Ok(OperationStatus::Cancelled), Wanted::Completion) => {
            let failure = Failure::new(Code::Cancelled, format!("operation {} was cancelled", operation.op_id));
            Err(failure.hint(format!("steepctl op show {}", operation.op_id)))
        }
        (Ok(OperationStatus::Interrupted), _) => Err(own_failure(&operation).unwrap_or_else(|| {
            let message = format!("the agent of {} ended while operation {} ran", operation.target, operation.op_id);
            Failure::new(Code::Interrupted, message)
        })),
        (Ok(OperationStatus::Failed | OperationStatus::Running | OperationStatus::Cancelling) | Err(_), _) => {
            Err(own_failure(&operation).unwrap_or_else(|| {
                let message = format!("operation {} ended as {:?}", operation.op_id, operation.status);
                Failure::new(Code::Internal, message).hint(format!("steepctl op show {}", operation.op_id))
            }))
        }
    }
}

fn own_failure(operation: &v1::Operation) -> Option<Failure> {
    operation.failure.clone().map(Failure::from)
}

/// `node_b SYNCHRONIZED in 8m32s: 88,213,311 rows, 181.0 GiB, 23 tables, 412.0 MiB/s`
fn summary(operation: &v1::Operation) -> String {
    let took = match (units::moment(operation.started_at.as_ref()), units::moment(operation.ended_at.as_ref())) {
        (Some(started), Some(ended)) => Some(units::since(started, ended)),
        _ => None,
    };
    let in_time = took.map(|took| format!(" in {}", units::duration(took))).unwrap_or_default();
    let target = safe(&operation.target);
    if operation.status == OperationStatus::Cancelled.as_str() {
        let undone = Tone::Warn.paint("cancelled and cleaned up");
        return format!("{target}: operation {} {undone} after{}", operation.op_id, in_time.replacen(" in", "", 1));
    }
    let state = match operation.kind.as_str() {
        "init" if operation.method == InitMethod::RowsAlone.as_str() => {
            format!("{} and replicates with nobody", Tone::Good.paint("holds the rows"))
        }
        "snapshot" => return format!("snapshot of {target} {}{in_time}", Tone::Good.paint("complete")),
        "init" => Tone::Good.paint("SYNCHRONIZED"),
        "reinit" => Tone::Good.paint("REINITIALIZED"),
        "remove" => return format!("{target} {}{in_time}; its data stays", Tone::Good.paint("removed")),
        kind => Tone::Good.paint(&format!("{} completed", safe(kind))),
    };
    let mut facts = Vec::new();
    if let Some(progress) = &operation.progress {
        facts.push(units::counted(progress.rows_copied, "row"));
        if progress.bytes_copied > 0 {
            facts.push(units::bytes(progress.bytes_copied));
        }
        if progress.tables_done > 0 {
            facts.push(units::counted(progress.tables_done.into(), "table"));
        }
    }
    let facts = if facts.is_empty() { String::new() } else { format!(": {}", facts.join(", ")) };
    format!("{target} {state}{in_time}{facts}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Color, Format, Talk, exit_code};
    use anstream::adapter::strip_str;

    fn ended(status: &str) -> v1::Operation {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        v1::Operation {
            op_id: "0192".into(),
            kind: "init".into(),
            target: "node_b".into(),
            status: status.into(),
            started_at: at(1_000),
            ended_at: at(1_512),
            progress: Some(v1::Progress {
                rows_copied: 88_213_311,
                bytes_copied: 194_347_270_144,
                tables_done: 23,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_completed_initialization_says_state_duration_and_rows() {
        let text = strip_str(&summary(&ended("completed"))).to_string();
        assert_eq!(text, "node_b SYNCHRONIZED in 8m32s: 88,213,311 rows, 181.0 GiB, 23 tables");
        let text = strip_str(&summary(&ended("cancelled"))).to_string();
        assert_eq!(text, "node_b: operation 0192 cancelled and cleaned up after 8m32s");
    }

    #[test]
    fn what_was_wanted_decides_whether_an_ending_is_a_failure() {
        let out = Output::new(Format::Json, Color::Never, Talk::Quiet);
        let result = |status, wanted| {
            conclude(&out, Followed::Ended { operation: Box::new(ended(status)), is_told: true }, wanted)
        };
        let code = |status, wanted| result(status, wanted).map_err(|failure| exit_code::of(&failure));
        assert_eq!(code("completed", Wanted::Completion), Ok(Exit::Success));
        assert_eq!(code("cancelled", Wanted::Cancellation), Ok(Exit::Success));
        assert_eq!(code("cancelled", Wanted::Completion), Err(4));
        assert_eq!(code("completed", Wanted::Cancellation), Err(9));
        assert_eq!(code("failed", Wanted::Completion), Err(1));
        assert_eq!(code("interrupted", Wanted::Completion), Err(1));
        assert_eq!(code("from a newer agent", Wanted::Completion), Err(1));
    }
}
