//! Who is doing what on the server, as far as it stands in our way or we in theirs.

use std::{fmt, time::Duration};

use steep_protocol::{
    ids::OperationId,
    names::{TableName, escape_controls},
};
use tokio::time::{Instant, sleep};

use super::{
    connect::{Purpose, Session, count_field, field},
    ddl::quote_literal,
    error::{Error, doing},
};

/// How often we look whether sessions we ended are gone.
const ENDING: Duration = Duration::from_millis(20);
/// How long they may take to end.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(10);

/// A transaction that keeps a slot from being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// A session whose transaction has written and is still open.
    Writer {
        /// Its process.
        pid: i32,
        /// How long its transaction is open.
        age: Duration,
        /// Its user.
        user: String,
        /// Its database; empty: none.
        database: String,
        /// `active`, `idle in transaction`, …
        state: String,
        /// The beginning of what it runs or last ran.
        query: String,
    },
    /// A prepared transaction nobody has ended.
    Prepared {
        /// Its name.
        gid: String,
        /// How long ago it was prepared.
        age: Duration,
        /// Its owner.
        owner: String,
        /// Its database.
        database: String,
    },
}

impl Blocker {
    /// How long it has been open.
    pub fn age(&self) -> Duration {
        match self {
            Self::Writer { age, .. } | Self::Prepared { age, .. } => *age,
        }
    }

    /// The statement that would end it.
    pub fn hint(&self) -> String {
        match self {
            Self::Writer { pid, .. } => format!("wait for it, or end it: select pg_terminate_backend({pid})"),
            Self::Prepared { gid, database, .. } => {
                let gid = escape_controls(&quote_literal(gid));
                let database = escape_controls(database);
                format!("in database {database}: commit prepared {gid}, or rollback prepared {gid}")
            }
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writer { pid, age, user, database, state, query } => write!(
                f,
                "process {pid} of {} in database {}, {state}, its transaction open for {}s: {}",
                escape_controls(user),
                escape_controls(database),
                age.as_secs(),
                one_line(query)
            ),
            Self::Prepared { gid, age, owner, database } => write!(
                f,
                "prepared transaction {} of {} in database {}, {}s old",
                escape_controls(gid),
                escape_controls(owner),
                escape_controls(database),
                age.as_secs()
            ),
        }
    }
}

/// A query shortened to what fits a line.
fn one_line(query: &str) -> String {
    let words = query.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = words.chars().take(80).collect();
    if short.len() < words.len() {
        short.push('…');
    }
    escape_controls(&short)
}

/// A session that waits for a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// Its process.
    pub pid: i32,
    /// The beginning of what it tries to run, on one line.
    pub query: String,
    /// Its user.
    pub user: String,
    /// What it calls itself; ours name their operation.
    pub application: String,
    /// The table it waits for; none: something else.
    pub table: Option<TableName>,
    /// The lock it asks for: "AccessExclusiveLock".
    pub mode: String,
    /// How long it has waited.
    pub waited: Duration,
}

/// Transactions open for at least `older_than` that have written, oldest first. A new slot waits for them.
pub async fn writers(session: &Session, older_than: Duration) -> Result<Vec<Blocker>, Error> {
    writers_but(session, older_than, &[]).await
}

async fn writers_but(session: &Session, older_than: Duration, not: &[i32]) -> Result<Vec<Blocker>, Error> {
    let looking = doing("look for open transactions");
    let rows = session.rows(looking, sql!("catalog/list_writers.sql"), &[&older_than.as_secs_f64(), &not]).await?;
    rows.iter()
        .map(|row| {
            Ok(Blocker::Writer {
                pid: field(row, "pid")?,
                age: seconds(field(row, "age_seconds")?),
                user: field(row, "user_name")?,
                database: field(row, "database")?,
                state: field(row, "state")?,
                query: field(row, "query")?,
            })
        })
        .collect()
}

/// Prepared transactions, oldest first. A new slot waits for them.
pub async fn prepared_transactions(session: &Session) -> Result<Vec<Blocker>, Error> {
    let looking = doing("look for prepared transactions");
    let rows = session.rows(looking, sql!("catalog/list_prepared_transactions.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Blocker::Prepared {
                gid: field(row, "gid")?,
                age: seconds(field(row, "age_seconds")?),
                owner: field(row, "owner")?,
                database: field(row, "database")?,
            })
        })
        .collect()
}

/// Everything open for at least `waited` that a slot made by process `not` would wait for, oldest first.
pub(super) async fn blockers(session: &Session, waited: Duration, not: i32) -> Result<Vec<Blocker>, Error> {
    let mut blockers = prepared_transactions(session).await?;
    blockers.retain(|blocker| blocker.age() >= waited);
    blockers.extend(writers_but(session, waited, &[not]).await?);
    blockers.sort_by_key(|blocker| std::cmp::Reverse(blocker.age()));
    Ok(blockers)
}

/// Sessions that wait behind one of the processes `pids`, longest first.
pub async fn waiting_behind(session: &Session, pids: &[i32]) -> Result<Vec<Waiter>, Error> {
    let looking = doing("look for sessions that wait for our locks");
    let rows = session.rows(looking, sql!("catalog/list_waiters.sql"), &[&pids]).await?;
    rows.iter()
        .map(|row| {
            let table = TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?);
            Ok(Waiter {
                pid: field(row, "pid")?,
                query: one_line(field(row, "query")?),
                user: field(row, "user_name")?,
                application: field(row, "application")?,
                table: Some(table).filter(|table| !table.name.is_empty()),
                mode: field(row, "mode")?,
                waited: seconds(field(row, "waited_seconds")?),
            })
        })
        .collect()
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}

/// Ends every session that works for `op` on this database, and waits until they are gone; returns how many there were.
///
/// Our sessions name their operation in `application_name`, pg_dump's and pg_restore's too. One that does not end
/// within ten seconds is [`Error::StillInUse`].
pub async fn terminate(session: &Session, op: OperationId) -> Result<u64, Error> {
    terminate_named(session, &format!("-{}", op.short())).await
}

/// Ends the sessions that read for `op`, its keeper's not among them, and waits until they are gone.
pub async fn terminate_readers(session: &Session, op: OperationId) -> Result<(), Error> {
    for purpose in [Purpose::CopyOut(op), Purpose::Dump(op), Purpose::Slot(op)] {
        terminate_named(session, &purpose.to_string()).await?;
    }
    Ok(())
}

/// Connections of ours to this database, as (what for, what they do, how many).
pub async fn own_connections(session: &Session) -> Result<Vec<(String, String, u64)>, Error> {
    let rows = session.rows(doing("count our connections"), sql!("catalog/count_own_connections.sql"), &[]).await?;
    rows.iter()
        .map(|row| Ok((field(row, "purpose")?, field(row, "state")?, count_field(row, "connections")?)))
        .collect()
}

/// Transactions since the oldest row version that keepers of ours hold, by the twelve digits of their operation.
pub async fn keeper_ages(session: &Session) -> Result<Vec<(String, u64)>, Error> {
    let rows = session.rows(doing("look how old snapshots are"), sql!("catalog/list_keeper_ages.sql"), &[]).await?;
    rows.iter().map(|row| Ok((field(row, "digits")?, count_field(row, "xmin_age")?))).collect()
}

/// When the server was started, in its own words.
pub async fn started_at(session: &Session) -> Result<String, Error> {
    let sql = "select pg_catalog.pg_postmaster_start_time()::text as started";
    field(&session.one(doing("read when the server was started"), sql, &[]).await?, "started")
}

/// Ends sessions of ours whose name ends with `suffix`.
pub(super) async fn terminate_named(session: &Session, suffix: &str) -> Result<u64, Error> {
    let deadline = Instant::now() + TERMINATION_TIMEOUT;
    let mut most = 0;
    loop {
        let ending = doing("end an operation's sessions");
        let rows = session.rows(ending, sql!("catalog/terminate_sessions.sql"), &[&suffix]).await?;
        most = most.max(rows.len());
        let Some(left) = rows.first() else { return Ok(most as u64) };
        if Instant::now() >= deadline {
            let name: &str = field(left, "application_name")?;
            return Err(Error::StillInUse { object: format!("session {name}"), pid: field(left, "pid")? });
        }
        sleep(ENDING).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocker_fits_a_line_and_cannot_redraw_a_terminal() {
        let blocker = Blocker::Writer {
            pid: 7,
            age: Duration::from_secs(61),
            user: "shop".to_owned(),
            database: "shop".to_owned(),
            state: "idle in transaction".to_owned(),
            query: format!("insert into\n  t\u{1b}[31m values ({})", "x".repeat(200)),
        };
        let text = blocker.to_string();
        assert!(text.contains("process 7 of shop") && text.contains("open for 61s: insert into t"), "{text}");
        assert!(!text.contains('\n') && !text.contains('\u{1b}') && text.ends_with('…'), "{text}");
    }
}
