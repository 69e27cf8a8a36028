//! Long work: what was asked for, how it fares, how it ended. One at a time on a target.

use jiff::Timestamp;
use serde_json::Value;
use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    operation::{InitMethod, OperationStatus},
};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Error, Store,
    row::{operation, word},
};
use crate::postgres::{connect::field, sql};

/// An operation about to begin.
#[derive(Debug, Clone, PartialEq)]
pub struct NewOperation {
    /// Made by whoever asks.
    pub op_id: OperationId,
    /// What it does: "init".
    pub kind: String,
    /// The node it works on.
    pub target: NodeId,
    /// The node the rows come from.
    pub source: NodeId,
    /// How the rows come.
    pub method: InitMethod,
    /// All that was asked, enough to go on with it after a crash.
    pub request: Value,
    /// "alice (operator)".
    pub started_by: String,
}

/// An operation as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Its id.
    pub op_id: OperationId,
    /// What it does: "init".
    pub kind: String,
    /// The node it works on.
    pub target: NodeId,
    /// The node the rows come from.
    pub source: NodeId,
    /// How the rows come.
    pub method: InitMethod,
    /// All that was asked.
    pub request: Value,
    /// How it fares.
    pub status: OperationStatus,
    /// The step it is in, or was in when it ended; none: none began.
    pub step: Option<String>,
    /// "alice (operator)".
    pub started_by: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended; none: it has not.
    pub ended_at: Option<Timestamp>,
    /// Why it failed or was cancelled.
    pub failure: Option<Failure>,
}

impl Operation {
    fn was_asked_as(&self, new: &NewOperation) -> bool {
        (&self.kind, &self.target, &self.source, self.method, &self.request)
            == (&new.kind, &new.target, &new.source, new.method, &new.request)
    }
}

/// Whether an operation began.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// It began now.
    New(Operation),
    /// The same request began it before.
    Same(Operation),
}

/// Begins an operation, or finds the one the same request began before.
///
/// Fails with [`Error::AlreadyRunning`], naming it, while another one keeps the target busy, and with
/// [`Error::IdReused`] when the id was used for another request.
pub async fn begin(store: &Store, new: &NewOperation) -> Result<Begun, Error> {
    let what = "begin the operation";
    let id = new.op_id.uuid();
    let (target, source) = (new.target.as_str(), new.source.as_str());
    // What stood in the way may have ended by the time it is looked for.
    loop {
        let begun = store
            .maybe(
                what,
                sql!("store/begin_operation.sql"),
                &[&id, &new.kind, &target, &source, &new.method.as_str(), &new.request, &new.started_by],
            )
            .await?;
        if let Some(row) = begun {
            return read(&row).map(Begun::New);
        }
        if let Some(before) = find(store, new.op_id).await? {
            let same = before.was_asked_as(new);
            return if same { Ok(Begun::Same(before)) } else { Err(Error::IdReused { op_id: new.op_id }) };
        }
        if let Some(row) = store.maybe(what, sql!("store/find_active_operation.sql"), &[&target]).await? {
            let Operation { op_id, kind, target, .. } = read(&row)?;
            return Err(Error::AlreadyRunning { op_id, kind, target });
        }
    }
}

/// Moves an operation that has not ended to another status.
///
/// Fails with [`Error::IllegalStatus`] where the database refuses the move; the same status again is no move.
pub async fn set_status(store: &Store, op: OperationId, status: OperationStatus) -> Result<(), Error> {
    finish(store, op, status, None).await
}

/// Ends an operation, with the reason where it did not complete. May be repeated.
///
/// Fails with [`Error::IllegalStatus`] when it has ended otherwise already.
pub async fn finish(
    store: &Store,
    op: OperationId,
    status: OperationStatus,
    failure: Option<&Failure>,
) -> Result<(), Error> {
    let failure = failure.map(|failure| serde_json::to_value(failure).expect("a failure is plain data"));
    let sql = sql!("store/set_operation_status.sql");
    let moved = store.execute("set the operation's status", sql, &[&op.uuid(), &status.as_str(), &failure]).await;
    match moved {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::UnknownOperation(op.to_string())),
        // check_violation: the trigger's word for an illegal move.
        Err(Error::Postgres(source)) if source.sqlstate() == Some("23514") => {
            Err(Error::IllegalStatus { op_id: op, to: status, source: Box::new(source) })
        }
        Err(other) => Err(other),
    }
}

/// One operation.
pub async fn find(store: &Store, op: OperationId) -> Result<Option<Operation>, Error> {
    let row = store.maybe("find the operation", sql!("store/find_operation.sql"), &[&op.uuid()]).await?;
    row.as_ref().map(read).transpose()
}

/// The one operation whose id begins with `prefix`, or whose short name `prefix` is.
///
/// Fails with [`Error::UnknownOperation`] when none fits and with [`Error::Ambiguous`] when several do.
pub async fn find_prefix(store: &Store, prefix: &str) -> Result<Operation, Error> {
    const SHOWN: i64 = 5;
    let Some(written) = as_written(prefix) else { return Err(Error::UnknownOperation(prefix.to_owned())) };
    let sql = sql!("store/find_operations_by_prefix.sql");
    let rows = store.rows("find the operation", sql, &[&written, &SHOWN]).await?;
    let mut fitting = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    match (fitting.pop(), fitting.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(Error::UnknownOperation(prefix.to_owned())),
        (Some(last), false) => {
            fitting.push(last);
            let fitting = fitting.into_iter().map(|operation| operation.op_id).collect();
            Err(Error::Ambiguous { prefix: prefix.to_owned(), fitting })
        }
    }
}

/// How PostgreSQL writes the beginning of an id; none where `prefix` begins no id.
fn as_written(prefix: &str) -> Option<String> {
    let written = prefix.to_ascii_lowercase();
    let fits = written.len() <= Uuid::nil().hyphenated().to_string().len();
    let plain = written.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (fits && plain && !written.is_empty()).then_some(written)
}

/// Operations, newest first, at most `limit`.
pub async fn list(store: &Store, limit: i64) -> Result<Vec<Operation>, Error> {
    let rows = store.rows("list the operations", sql!("store/list_operations.sql"), &[&limit.max(0)]).await?;
    rows.iter().map(read).collect()
}

/// Operations that have not ended, oldest first.
pub async fn unfinished(store: &Store) -> Result<Vec<Operation>, Error> {
    let sql = sql!("store/list_unfinished_operations.sql");
    store.rows("list the unfinished operations", sql, &[]).await?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<Operation, Error> {
    Ok(Operation {
        op_id: operation(row, "op_id")?,
        kind: field(row, "kind")?,
        target: word(row, "target")?,
        source: word(row, "source")?,
        method: word(row, "method")?,
        request: field(row, "request")?,
        status: word(row, "status")?,
        step: field(row, "step")?,
        started_by: field(row, "started_by")?,
        started_at: field(row, "started_at")?,
        ended_at: field(row, "ended_at")?,
        failure: field::<Option<Value>>(row, "failure")?.map(read_failure),
    })
}

/// A failure as stored; one that a newer version wrote keeps at least its words.
pub(super) fn read_failure(stored: Value) -> Failure {
    let words = stored.get("message").and_then(Value::as_str).unwrap_or("the reason cannot be read").to_owned();
    serde_json::from_value(stored).unwrap_or_else(|_| Failure::new(Code::Internal, words))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_beginning_of_an_id_is_digits_and_dashes() {
        let cases = [
            ("0190", Some("0190")),
            ("0190F3C2-", Some("0190f3c2-")),
            ("", None),
            ("%", None),
            ("node_b", None),
            ("0190f3c2-aaaa-7bbb-8ccc-0123456789ab", Some("0190f3c2-aaaa-7bbb-8ccc-0123456789ab")),
            ("0190f3c2-aaaa-7bbb-8ccc-0123456789abc", None),
        ];
        for (prefix, expected) in cases {
            assert_eq!(as_written(prefix).as_deref(), expected, "{prefix}");
        }
    }

    #[test]
    fn a_failure_of_a_newer_version_keeps_its_words() {
        let newer = json!({ "code": "STP-9999", "message": "new trouble" });
        assert_eq!(read_failure(newer).message, "new trouble");
        let ours = Failure::new(Code::TargetNotEmpty, "node_b is not empty").cause("public.orders holds 3 rows");
        assert_eq!(read_failure(serde_json::to_value(&ours).expect("json")), ours);
    }
}
