//! The subscriptions that make a mesh: which of them filter by origin, what they carry, and how one is held still.
//!
//! Only what Steep made (`steep_from_…`), and only from 16 on: before there is no origin filter, and no mesh.

use std::time::Duration;

use steep_protocol::{lsn::Lsn, names::TableName};
use tokio::time::{Instant, sleep};

use super::{
    connect::{Database, Purpose, Session, field},
    ddl,
    error::{Error, doing},
    origins, subscriptions,
};

/// How often we look whether the workers of a subscription have ended.
const ENDING: Duration = Duration::from_millis(10);

/// A subscription of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// PostgreSQL's oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// It runs, or would.
    pub is_enabled: bool,
    /// The slot it reads on its publisher; empty: detached.
    pub slot: String,
    /// It asks only for what was written on its publisher: half of a pair that replicates both ways.
    pub is_mutual: bool,
    /// The tables it carries: those that hold rows, partitions as themselves.
    pub tables: Vec<TableName>,
}

impl Link {
    /// The origin PostgreSQL keeps for it.
    pub fn origin(&self) -> String {
        format!("pg_{}", self.oid)
    }
}

/// All subscriptions of ours in this database; none before 16.
pub async fn list(session: &Session) -> Result<Vec<Link>, Error> {
    if !session.version().has_origin_filter() {
        return Ok(Vec::new());
    }
    let rows = session.rows(doing("list subscriptions"), sql!("replication/list_links.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            let (schemas, names): (Vec<String>, Vec<String>) =
                (field(row, "schema_names")?, field(row, "table_names")?);
            Ok(Link {
                oid: field(row, "oid")?,
                name: field(row, "name")?,
                is_enabled: field(row, "is_enabled")?,
                slot: field(row, "slot")?,
                is_mutual: field(row, "is_mutual")?,
                tables: schemas.into_iter().zip(names).map(|(schema, name)| TableName::new(schema, name)).collect(),
            })
        })
        .collect()
}

/// A subscription whose workers are gone and cannot come back: its origin is ours for as long as this lives.
#[derive(Debug)]
pub struct Still {
    session: Session,
    name: String,
    /// Up to there its publisher's WAL is applied, and on disk, here.
    pub applied: Lsn,
}

impl Still {
    /// Whether nothing was applied since it was taken, and nothing can be: asks the server once more.
    pub async fn holds(&self) -> Result<bool, Error> {
        Ok(origins::session_progress(&self.session).await? == self.applied)
    }

    /// Whether all of its tables have come exactly so far: none is copied by itself, or waits for what the others have.
    pub async fn is_whole(&self) -> Result<bool, Error> {
        let found = subscriptions::find(&self.session, &self.name).await?;
        Ok(found.is_some_and(|found| found.tables == found.tables_ready))
    }

    /// Lets workers use the origin again. After an error they can once the server has noticed that we are gone.
    pub async fn release(self) -> Result<(), Error> {
        // Told, not only closed: a worker that comes a moment too early would wait for seconds before it tries again.
        let reset = origins::reset(&self.session).await;
        self.session.close().await;
        reset
    }
}

/// Disables `link` and waits until nothing applies for it any more, at most until `deadline`; then takes its origin, so
/// that no worker could apply anything even if somebody enabled it, and reads how far it has come.
///
/// Fails with [`Error::StillInUse`] when a worker does not end in time, as amid a large transaction. The subscription
/// stays disabled after any error: whoever calls this has written down that it must be enabled again.
pub async fn hold_still(database: &Database, watch: &Session, link: &Link, deadline: Instant) -> Result<Still, Error> {
    watch.run(&ddl::disable_subscription(&link.name)).await?;
    while let Some(pid) = workers(watch, &link.name).await?.first().copied() {
        if Instant::now() >= deadline {
            return Err(Error::StillInUse { object: format!("subscription {}", link.name), pid });
        }
        sleep(ENDING).await;
    }
    let session = database.session(Purpose::Watch).await?;
    loop {
        match origins::set_up(&session, &link.origin()).await {
            Ok(()) => break,
            // A worker that is gone from the list may hold it for a moment longer.
            Err(error) if error.sqlstate() == Some("55006") && Instant::now() < deadline => sleep(ENDING).await,
            Err(error) => return Err(error),
        }
    }
    let applied = origins::session_progress(&session).await?;
    Ok(Still { session, name: link.name.clone(), applied })
}

async fn workers(session: &Session, name: &str) -> Result<Vec<i32>, Error> {
    let looking = doing(format!("look at the workers of subscription {name}"));
    let rows = session.rows(looking, sql!("replication/list_subscription_workers.sql"), &[&name]).await?;
    rows.iter().map(|row| field(row, "pid")).collect()
}
