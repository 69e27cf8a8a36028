//! Replication slots of the local server, and the marks in its WAL they are measured by.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::{failure::Code, ids::NodeId, lsn::Lsn};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Row, types::PgLsn};

use super::{
    connect::{Session, field},
    ddl::SlotName,
    error::{Doing, Error, doing},
};

/// How long a slot may stay in use after its walsender was told to end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// The database it decodes; empty for a physical slot.
    pub database: String,
    /// The output plugin; empty for a physical slot.
    pub plugin: String,
    /// How it fares.
    pub progress: SlotProgress,
}

/// How a slot fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotProgress {
    /// All before it has been received and stored by the slot's reader; none for a physical slot.
    pub confirmed_flush: Option<Lsn>,
    /// Somebody reads it now.
    pub is_active: bool,
    /// Who.
    pub active_pid: Option<i32>,
    /// WAL kept back by it.
    pub retained_bytes: u64,
    /// WAL its reader has not confirmed; none for a physical slot.
    pub unconfirmed_bytes: Option<u64>,
    /// PostgreSQL's word: reserved, extended, unreserved, lost; empty: it keeps nothing yet.
    pub wal_status: String,
    /// WAL that can still be written before the slot is at risk; none: no limit is set.
    pub safe_wal_bytes: Option<i64>,
    /// Since when nobody reads it; none: somebody does, or the server does not know (before 17).
    pub inactive_since: Option<Timestamp>,
    /// PostgreSQL's word for why it gave the slot up; empty: it did not, or does not say (before 17).
    pub invalidation_reason: String,
    /// Transactions since the oldest row version it keeps; none: it keeps none.
    pub xmin_age: Option<u64>,
}

impl SlotProgress {
    /// WAL it needs is gone: nobody can read on from it.
    pub fn is_lost(&self) -> bool {
        self.wal_status == "lost"
    }
}

impl Slot {
    /// Steep made it for `peer`: its name holds the peer's, and 12 digits of an operation's id.
    pub fn is_kept_for(&self, peer: &NodeId) -> bool {
        let rest = self.name.strip_prefix("steep_").and_then(|rest| rest.strip_prefix(&peer.sanitized()));
        rest.is_some_and(|rest| rest.len() == 13 && rest.starts_with('_'))
    }

    fn read(row: &Row) -> Result<Self, Error> {
        let is_active: bool = field(row, "is_active")?;
        Ok(Self {
            name: field(row, "name")?,
            database: field(row, "database")?,
            plugin: field(row, "plugin")?,
            progress: SlotProgress {
                confirmed_flush: lsn_field(row, "confirmed_flush")?,
                is_active,
                active_pid: field(row, "active_pid")?,
                retained_bytes: field::<Option<i64>>(row, "retained_bytes")?
                    .map_or(0, |bytes| u64::try_from(bytes).unwrap_or(0)),
                unconfirmed_bytes: field::<Option<i64>>(row, "unconfirmed_bytes")?
                    .map(|bytes| u64::try_from(bytes).unwrap_or(0)),
                wal_status: field(row, "wal_status")?,
                safe_wal_bytes: field(row, "safe_wal_bytes")?,
                inactive_since: field::<Option<Timestamp>>(row, "inactive_since")?.filter(|_| !is_active),
                invalidation_reason: field(row, "invalidation_reason")?,
                xmin_age: field::<Option<i64>>(row, "xmin_age")?.map(|age| u64::try_from(age).unwrap_or(0)),
            },
        })
    }
}

/// Reads an LSN column that may be null.
pub(super) fn lsn_field(row: &Row, name: &str) -> Result<Option<Lsn>, Error> {
    Ok(field::<Option<PgLsn>>(row, name)?.map(|lsn| Lsn(lsn.into())))
}

fn about(what: &str, name: &str) -> Doing {
    doing(format!("{what} slot {name}")).privilege(Code::ReplicationPrivilege)
}

/// All slots of the server.
pub async fn list(session: &Session) -> Result<Vec<Slot>, Error> {
    read(session, doing("list slots"), None).await
}

/// Fails with [`Error::BadSlotName`] where PostgreSQL takes no slot of this name.
pub fn check_name(name: &str) -> Result<(), Error> {
    SlotName::parse(name)?;
    Ok(())
}

/// One slot, if it is there.
pub async fn find(session: &Session, name: &str) -> Result<Option<Slot>, Error> {
    Ok(read(session, about("look at", name), Some(name)).await?.pop())
}

async fn read(session: &Session, doing: Doing, name: Option<&str>) -> Result<Vec<Slot>, Error> {
    let rows = session.rows(doing, sql!("replication/list_slots.sql"), &[&name]).await?;
    rows.iter().map(Slot::read).collect()
}

/// How a slot fares, if it is there.
pub async fn progress(session: &Session, name: &str) -> Result<Option<SlotProgress>, Error> {
    Ok(find(session, name).await?.map(|slot| slot.progress))
}

/// Whether `slot`, which nobody reads, has a change of `publication` to send that was made here, and not loaded or applied
/// under an origin.
pub async fn has_own_changes(session: &Session, slot: &str, publication: &str) -> Result<bool, Error> {
    let sql = sql!("replication/find_own_change.sql");
    Ok(session.maybe(about("look into", slot), sql, &[&slot, &publication]).await?.is_some())
}

/// Drops a slot whoever reads it, and says whether it was there.
///
/// Ends the walsender that reads it, again and again while a subscription reconnects, for up to ten seconds.
/// Only for slots we made: their names begin with `steep_`.
pub async fn drop(session: &Session, name: &str) -> Result<bool, Error> {
    drop_patiently(session, name, name.starts_with("steep_")).await
}

async fn drop_patiently(session: &Session, name: &str, is_ours: bool) -> Result<bool, Error> {
    let name = SlotName::parse(name)?;
    let name = name.as_str();
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let Some(slot) = find(session, name).await? else { return Ok(false) };
        if let Some(pid) = slot.progress.active_pid
            && is_ours
        {
            terminate(session, pid).await?;
        }
        let sql = "select pg_catalog.pg_drop_replication_slot($1::text)";
        match session.execute(about("drop", name), sql, &[&name]).await {
            Ok(_) => return Ok(true),
            // It vanished meanwhile.
            Err(error) if error.sqlstate() == Some("42704") => return Ok(true),
            Err(error) if error.sqlstate() == Some("55006") => {
                if Instant::now() >= deadline {
                    let pid = slot.progress.active_pid.unwrap_or_default();
                    return Err(Error::StillInUse { object: format!("slot {name}"), pid });
                }
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The slots that the table synchronization workers of one subscription make here for themselves, as PostgreSQL names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSlots {
    /// The subscription, by its oid on the subscriber.
    pub subscription: u32,
    /// The subscriber's server.
    pub system_identifier: u64,
}

impl SyncSlots {
    /// Whether `slot` is one of them.
    pub fn holds(&self, slot: &str) -> bool {
        let rest = slot.strip_prefix(&format!("pg_{}_sync_", self.subscription));
        let table = rest.and_then(|rest| rest.strip_suffix(&format!("_{}", self.system_identifier)));
        table.is_some_and(|table| table.parse::<u32>().is_ok_and(|oid| oid.to_string() == table))
    }
}

impl fmt::Display for SyncSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pg_{}_sync_*_{}", self.subscription, self.system_identifier)
    }
}

/// Drops all of `slots` that are there, whoever reads them.
pub async fn drop_syncs(session: &Session, slots: &SyncSlots) -> Result<(), Error> {
    for slot in list(session).await?.into_iter().filter(|slot| slots.holds(&slot.name)) {
        drop_patiently(session, &slot.name, true).await?;
    }
    Ok(())
}

/// Drops a slot that nobody reads, whoever made it, and says whether it was there; [`Error::StillInUse`] where somebody does.
pub async fn drop_unread(session: &Session, name: &str) -> Result<bool, Error> {
    let sql = "select pg_catalog.pg_drop_replication_slot($1::text)";
    match session.execute(about("drop", name), sql, &[&name]).await {
        Ok(_) => Ok(true),
        Err(error) if error.sqlstate() == Some("42704") => Ok(false),
        Err(error) if error.sqlstate() == Some("55006") => {
            let reader = find(session, name).await?.and_then(|slot| slot.progress.active_pid);
            Err(Error::StillInUse { object: format!("slot {name}"), pid: reader.unwrap_or_default() })
        }
        Err(error) => Err(error),
    }
}

/// Slots that nobody reads and whose WAL is not there any more, although PostgreSQL still counts on it; with the first
/// file that is missing. None where the role may not look into pg_wal.
pub async fn starved(session: &Session) -> Result<Vec<(String, String)>, Error> {
    // PostgreSQL asks for the privilege before the first row, whatever a condition says.
    let may = "select pg_catalog.has_function_privilege('pg_catalog.pg_ls_waldir()', 'execute') as may";
    if !field::<bool>(&session.one(doing("look whether pg_wal may be looked at"), may, &[]).await?, "may")? {
        return Ok(Vec::new());
    }
    let looking = doing("look whether the WAL of slots is there");
    let rows = session.rows(looking, sql!("replication/list_starved_slots.sql"), &[]).await?;
    rows.iter().map(|row| Ok((field(row, "name")?, field(row, "file")?))).collect()
}

/// Makes slot `copy`, which begins exactly where `slot` stands, and returns that point; `slot` stays as it is.
pub async fn copy(session: &Session, slot: &str, copy: &str) -> Result<Lsn, Error> {
    let (slot, copy) = (SlotName::parse(slot)?, SlotName::parse(copy)?);
    let copying = doing(format!("copy slot {}", slot.as_str())).privilege(Code::ReplicationPrivilege);
    let row = session.one(copying, sql!("replication/copy_slot.sql"), &[&slot.as_str(), &copy.as_str()]).await?;
    lsn_field(&row, "lsn").map(Option::unwrap_or_default)
}

/// A slot that a subscription of this server reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// The slot, on whichever server.
    pub name: String,
    /// The subscription, in whichever database.
    pub subscription: String,
    /// It runs, or would.
    pub is_enabled: bool,
}

/// Which of these slots of other servers subscriptions of this one read.
pub async fn needed(session: &Session, slots: &[String]) -> Result<Vec<Needed>, Error> {
    let looking = doing("look which slots subscriptions read");
    let rows = session.rows(looking, sql!("replication/list_needed_slots.sql"), &[&slots]).await?;
    rows.iter()
        .map(|row| {
            Ok(Needed {
                name: field(row, "name")?,
                subscription: field(row, "subscription")?,
                is_enabled: field(row, "is_enabled")?,
            })
        })
        .collect()
}

async fn terminate(session: &Session, pid: i32) -> Result<(), Error> {
    let ending = doing(format!("end process {pid}")).privilege(Code::ReplicationPrivilege);
    session.execute(ending, "select pg_catalog.pg_terminate_backend($1::integer)", &[&pid]).await?;
    Ok(())
}

/// Writes a mark into the WAL and returns its end: every transaction that committed before the call lies below.
pub async fn emit_marker(session: &Session, content: &str) -> Result<Lsn, Error> {
    let sql = "select pg_catalog.pg_logical_emit_message(true, 'steep', $1::text) as lsn";
    let row = session.one(doing("write a marker into the WAL"), sql, &[&content]).await?;
    Ok(Lsn(field::<PgLsn>(&row, "lsn")?.into()))
}

/// WAL the server writes a day, as it did since its statistics were reset; none: too short a time to say.
pub async fn wal_bytes_a_day(session: &Session) -> Result<Option<u64>, Error> {
    let row = session.one(doing("read how much WAL is written"), sql!("replication/measure_wal.sql"), &[]).await?;
    Ok(field::<Option<i64>>(&row, "bytes_a_day")?.and_then(|bytes| u64::try_from(bytes).ok()))
}

/// Where the server writes its WAL now.
pub async fn current_lsn(session: &Session) -> Result<Lsn, Error> {
    let sql = "select pg_catalog.pg_current_wal_lsn() as lsn";
    let row = session.one(doing("read where the WAL ends"), sql, &[]).await?;
    Ok(Lsn(field::<PgLsn>(&row, "lsn")?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_of_a_subscriptions_workers_are_told_from_all_others() {
        let slots = SyncSlots { subscription: 16403, system_identifier: 7712316283025208135 };
        assert!(slots.holds("pg_16403_sync_16400_7712316283025208135"));
        for other in [
            "pg_16404_sync_16400_7712316283025208135",
            "pg_16403_sync_16400_7712316283025208136",
            "pg_16403_sync__7712316283025208135",
            "pg_16403_sync_016400_7712316283025208135",
            "pg_16403_sync_+1_7712316283025208135",
            "pg_16403_sync_1_2_7712316283025208135",
            "steep_node_b_0123456789ab",
        ] {
            assert!(!slots.holds(other), "{other}");
        }
    }
}
