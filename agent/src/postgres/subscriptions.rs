//! Subscriptions of the local database and how their workers fare.
//!
//! The connection string of a subscription may hold a password: only that of a replication link is read back, for it is
//! where the link's secret is kept.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::{failure::Code, lsn::Lsn, names::TableName};
use tokio::time::{Instant, sleep};
use tokio_postgres::{
    Row,
    types::{PgLsn, ToSql},
};

use super::{
    connect::{Session, count_field, field},
    conninfo::Conninfo,
    ddl,
    error::{Doing, Error, doing},
    slots::lsn_field,
    unseen,
};

/// How long a worker may take to end after its subscription was disabled.
const WORKER_TIMEOUT: Duration = Duration::from_secs(15);

/// A subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// PostgreSQL's oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its worker runs, or will be started again when it ends.
    pub is_enabled: bool,
    /// It asks only for what was written on its publisher; never before 16.
    pub is_mutual: bool,
    /// The slot it reads; none: detached.
    pub slot: Option<String>,
    /// The publications it asked for.
    pub publications: Vec<String>,
    /// The apply worker; none: none runs now.
    pub worker_pid: Option<i32>,
    /// The last position received; none: no worker runs, or nothing was received.
    pub received_lsn: Option<Lsn>,
    /// The last end of the publisher's WAL the worker heard of and reported back.
    pub latest_end_lsn: Option<Lsn>,
    /// When the worker last heard from the publisher.
    pub last_message_at: Option<Timestamp>,
    /// Errors while applying, ever since statistics were reset.
    pub apply_errors: u64,
    /// Errors while it copied tables by itself, ever since statistics were reset.
    pub copy_errors: u64,
    /// Tables it carries.
    pub tables: u64,
    /// Tables of these that are past their first copy.
    pub tables_ready: u64,
}

impl Subscription {
    /// Bytes received but not yet applied and confirmed; `None` while no worker runs.
    pub fn lag_bytes(&self) -> Option<u64> {
        let (received, confirmed) = (self.received_lsn?, self.latest_end_lsn?);
        Some(received.0.saturating_sub(confirmed.0))
    }

    fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            oid: field(row, "oid")?,
            name: field(row, "name")?,
            is_enabled: field(row, "is_enabled")?,
            is_mutual: field(row, "is_mutual")?,
            slot: field(row, "slot")?,
            publications: field(row, "publications")?,
            worker_pid: field(row, "worker_pid")?,
            received_lsn: lsn_field(row, "received_lsn")?,
            latest_end_lsn: lsn_field(row, "latest_end_lsn")?,
            last_message_at: field(row, "last_message_at")?,
            apply_errors: count_field(row, "apply_errors")?,
            copy_errors: count_field(row, "copy_errors")?,
            tables: count_field(row, "tables")?,
            tables_ready: count_field(row, "tables_ready")?,
        })
    }

    /// The origin PostgreSQL keeps for it.
    pub fn origin(&self) -> String {
        format!("pg_{}", self.oid)
    }
}

/// All subscriptions of the database.
pub async fn list(session: &Session) -> Result<Vec<Subscription>, Error> {
    read(session, doing("list subscriptions"), None).await
}

/// One subscription, if it is there.
pub async fn find(session: &Session, name: &str) -> Result<Option<Subscription>, Error> {
    Ok(read(session, doing(format!("look at subscription {name}")), Some(name)).await?.pop())
}

async fn read(session: &Session, doing: Doing, name: Option<&str>) -> Result<Vec<Subscription>, Error> {
    let rows = session.rows(doing, sql!("replication/list_subscriptions.sql"), &[&name]).await?;
    rows.iter().map(Subscription::read).collect()
}

/// A subscription whose publisher is reached through a replication link, or may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    /// Its name.
    pub name: String,
    /// The slot it reads.
    pub slot: String,
    /// Its connection string.
    pub conninfo: Conninfo,
}

/// Subscriptions of ours that reach their publisher over a unix socket; those without a slot are left out.
pub async fn linked(session: &Session) -> Result<Vec<Linked>, Error> {
    let reading = doing("read how subscriptions reach their publishers").privilege(Code::SubscribePrivilege);
    let rows = session.rows(reading, sql!("replication/list_linked_subscriptions.sql"), &[]).await?;
    let mut found = Vec::new();
    for row in &rows {
        // One that libpq could not read either is none of ours.
        if let Ok(conninfo) = Conninfo::parse(field(row, "conninfo")?) {
            found.push(Linked { name: field(row, "name")?, slot: field(row, "slot")?, conninfo });
        }
    }
    Ok(found)
}

/// What PostgreSQL has counted for every subscription, as (its name, PostgreSQL's name of the count, how many).
pub async fn counters(session: &Session) -> Result<Vec<(String, String, u64)>, Error> {
    let counting = doing("read what was counted for subscriptions");
    let rows = session.rows(counting, sql!("replication/list_subscription_counters.sql"), &[]).await?;
    rows.iter().map(|row| Ok((field(row, "name")?, field(row, "counter")?, count_field(row, "counted")?))).collect()
}

/// A table that a subscription copies by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableCopy {
    /// The table.
    pub name: TableName,
    /// It is copied, and follows its publisher like all others.
    pub is_ready: bool,
    /// Its rows are in, or more than that.
    pub has_rows: bool,
    /// Its worker has begun.
    pub has_begun: bool,
    /// Rows and bytes of the COPY under way; none: none is.
    pub so_far: Option<(u64, u64)>,
    /// Rows that were ever inserted, as far as PostgreSQL has counted them by now.
    pub rows_inserted: u64,
}

/// The tables of a subscription that copies them by itself.
pub async fn table_copies(session: &Session, name: &str) -> Result<Vec<TableCopy>, Error> {
    let looking = doing(format!("look how far subscription {name} has copied its tables"));
    let rows = session.rows(looking, sql!("replication/list_table_copies.sql"), &[&name]).await?;
    let count = |row: &Row, name: &str| {
        Ok::<_, Error>(field::<Option<i64>>(row, name)?.map(|count| u64::try_from(count).unwrap_or(0)))
    };
    rows.iter()
        .map(|row| {
            let state: &str = field(row, "state")?;
            Ok(TableCopy {
                name: TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?),
                is_ready: state == "r",
                has_rows: matches!(state, "f" | "s" | "r"),
                has_begun: state != "i",
                so_far: count(row, "rows_so_far")?.zip(count(row, "bytes_so_far")?),
                rows_inserted: count(row, "rows_inserted")?.unwrap_or_default(),
            })
        })
        .collect()
}

/// Tells a subscription that does not run that what was committed before `at` is in the rows of `table` already; false: it
/// runs, or does not carry the table.
pub async fn set_table(session: &Session, name: &str, table: &TableName, at: Lsn) -> Result<bool, Error> {
    let telling = doing(format!("tell subscription {name} where {table} stands")).privilege(Code::SubscribePrivilege);
    let given: [&(dyn ToSql + Sync); 4] = [&name, &table.schema, &table.name, &PgLsn::from(at.0)];
    let set = session.execute(telling, sql!("replication/set_subscribed_table.sql"), &given).await?;
    Ok(set == 1)
}

/// Runs what [`ddl::create_subscription`] rendered; its text is shown and logged nowhere.
pub async fn create(session: &Session, statement: &ddl::Statement) -> Result<(), Error> {
    unseen::run(session, statement).await
}

/// Gives a subscription another connection string. Its worker, if one runs, starts anew with it.
pub async fn reconnect(session: &Session, name: &str, conninfo: &Conninfo) -> Result<(), Error> {
    unseen::run(session, &ddl::move_subscription(name, conninfo)).await
}

/// Disables a subscription and waits until its worker has ended, so that nothing is being applied any more.
pub async fn stop(session: &Session, name: &str) -> Result<(), Error> {
    session.run(&ddl::disable_subscription(name)).await?;
    let deadline = Instant::now() + WORKER_TIMEOUT;
    while let Some(pid) = find(session, name).await?.and_then(|subscription| subscription.worker_pid) {
        if Instant::now() >= deadline {
            return Err(Error::StillInUse { object: format!("subscription {name}"), pid });
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Lets a subscription run again; one that is gone needs nothing.
pub async fn resume(session: &Session, name: &str) -> Result<(), Error> {
    match find(session, name).await? {
        Some(_) => session.run(&ddl::enable_subscription(name)).await,
        None => Ok(()),
    }
}

/// Drops a subscription and says whether it was there. Never asks the publisher: its slot is for the publisher's
/// own agent to drop.
pub async fn drop(session: &Session, name: &str) -> Result<bool, Error> {
    if find(session, name).await?.is_none() {
        return Ok(false);
    }
    session.run(&ddl::disable_subscription(name)).await?;
    session.run(&ddl::detach_subscription_slot(name)).await?;
    session.run(&ddl::drop_subscription(name)).await?;
    Ok(true)
}
