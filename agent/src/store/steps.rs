//! The steps of an operation. A step is marked running before it begins, so that a crash leaves it named.

use std::str::FromStr;

use jiff::Timestamp;
use steep_protocol::ids::OperationId;

use super::{Error, Store, row::word};
use crate::postgres::{connect::field, sql};

/// How a step fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepStatus {
    /// Not begun.
    Pending,
    /// Under way.
    Running,
    /// Reached its goal.
    Done,
    /// What it did was taken back.
    Undone,
    /// Gave up.
    Failed,
}

impl StepStatus {
    const ALL: [Self; 5] = [Self::Pending, Self::Running, Self::Done, Self::Undone, Self::Failed];

    /// The word for it in SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Undone => "undone",
            Self::Failed => "failed",
        }
    }
}

/// A text that is no step's status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no status of a step")]
pub struct BadStepStatus(String);

impl FromStr for StepStatus {
    type Err = BadStepStatus;
    fn from_str(text: &str) -> Result<Self, BadStepStatus> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| BadStepStatus(text.to_owned()))
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationStep {
    /// As operators see it.
    pub name: String,
    /// How it fares.
    pub status: StepStatus,
    /// When it began; none: it has not.
    pub started_at: Option<Timestamp>,
    /// When it ended; none: it has not.
    pub ended_at: Option<Timestamp>,
}

/// Writes down the steps `op` will take, in order. Those written before stay as they are.
pub async fn plan(store: &Store, op: OperationId, names: &[&str]) -> Result<(), Error> {
    let sql = sql!("store/plan_steps.sql");
    store.execute("write down the operation's steps", sql, &[&op.uuid(), &names]).await.map(drop)
}

/// Says how a step fares; a running one becomes the operation's current step.
///
/// Fails with [`Error::Missing`] for a step that was not planned.
pub async fn mark(store: &Store, op: OperationId, name: &str, status: StepStatus) -> Result<(), Error> {
    let what = "mark a step";
    let row = store.one(what, sql!("store/mark_step.sql"), &[&op.uuid(), &name, &status.as_str()]).await?;
    match field::<i64>(&row, "marked")? {
        1 => Ok(()),
        _ => Err(Error::Missing(format!("step {name:?} of operation {op}"))),
    }
}

/// The steps of `op`, in order.
pub async fn list(store: &Store, op: OperationId) -> Result<Vec<OperationStep>, Error> {
    let rows = store.rows("list the operation's steps", sql!("store/list_steps.sql"), &[&op.uuid()]).await?;
    rows.iter()
        .map(|row| {
            Ok(OperationStep {
                name: field(row, "name")?,
                status: word(row, "status")?,
                started_at: field(row, "started_at")?,
                ended_at: field(row, "ended_at")?,
            })
        })
        .collect()
}
