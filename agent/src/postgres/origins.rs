//! Replication origins: names under which loaded rows are written, so that nothing sends them back.
//!
//! A session that set up an origin marks all it commits; subscriptions with `origin = none` skip it. Up to 18 one
//! origin serves one session at a time.

use std::time::Duration;

use steep_protocol::{failure::Code, lsn::Lsn};
use tokio::time::{Instant, sleep};
use tokio_postgres::types::PgLsn;

use super::{
    connect::{Session, field},
    error::{Doing, Error, doing},
    slots::lsn_field,
};

/// How long an origin may stay in use after its session was closed.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// An origin and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its name.
    pub name: String,
    /// The remote position it has replayed to; none: nothing yet.
    pub remote_lsn: Option<Lsn>,
}

fn about(what: &str, name: &str) -> Doing {
    doing(format!("{what} origin {name}")).limit(Code::OriginsTooFew)
}

/// Creates an origin, unless it is there already.
pub async fn create(session: &Session, name: &str) -> Result<(), Error> {
    session.execute(about("create", name), sql!("replication/create_origin.sql"), &[&name]).await?;
    Ok(())
}

/// Drops an origin and says whether it was there; waits up to ten seconds for its last session to end.
pub async fn drop(session: &Session, name: &str) -> Result<bool, Error> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        match session.execute(about("drop", name), sql!("replication/drop_origin.sql"), &[&name]).await {
            Ok(dropped) => return Ok(dropped > 0),
            Err(error) if error.sqlstate() == Some("42704") => return Ok(false),
            Err(error) if error.sqlstate() == Some("55006") && Instant::now() < deadline => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Marks all that `session` commits from now on as coming from the origin.
pub async fn set_up(session: &Session, name: &str) -> Result<(), Error> {
    let sql = "select pg_catalog.pg_replication_origin_session_setup($1::text)";
    session.execute(about("use", name), sql, &[&name]).await?;
    Ok(())
}

/// How far the origin of this session has come, as far as it is on disk here; 0/0: nothing was ever applied.
pub async fn session_progress(session: &Session) -> Result<Lsn, Error> {
    let sql = "select pg_catalog.pg_replication_origin_session_progress(true) as applied";
    let row = session.one(doing("read how far an origin has come"), sql, &[]).await?;
    Ok(lsn_field(&row, "applied")?.unwrap_or_default())
}

/// Says that an origin has come as far as `lsn` of its publisher. Nothing may use it meanwhile.
pub async fn advance(session: &Session, name: &str, lsn: Lsn) -> Result<(), Error> {
    let lsn = PgLsn::from(lsn.0);
    session.execute(about("advance", name), sql!("replication/advance_origin.sql"), &[&name, &lsn]).await?;
    Ok(())
}

/// Takes the session's origin away again.
pub async fn reset(session: &Session) -> Result<(), Error> {
    let sql = "select pg_catalog.pg_replication_origin_session_reset()";
    session.execute(doing("leave the session's origin"), sql, &[]).await?;
    Ok(())
}

/// Origins whose name begins with `prefix`.
pub async fn list(session: &Session, prefix: &str) -> Result<Vec<Origin>, Error> {
    let rows = session.rows(doing("list origins"), sql!("replication/list_origins.sql"), &[&prefix]).await?;
    rows.iter().map(|row| Ok(Origin { name: field(row, "name")?, remote_lsn: lsn_field(row, "remote_lsn")? })).collect()
}
