//! What tells a physical copy of a server from that server, and what it still has of it.
//!
//! A copy shares everything with its source, the system identifier included, up to the point where its recovery ended: there it
//! began a timeline of its own. Its history file names that point exactly: every record before it is in the copy, no record
//! after it is. WAL files of both hold the same bytes up to there, unless the copy had written on its source's timeline before.

use steep_protocol::{failure::Code, lsn::Lsn};
use tokio_postgres::types::PgLsn;

use super::{
    connect::{Session, field},
    ddl,
    error::{Doing, Error, doing},
    publications, subscriptions,
};

/// As much WAL is compared at the most.
const LONGEST_SPAN: u64 = 16 << 20;

/// How far a server that was copied has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// It replays WAL.
    pub is_in_recovery: bool,
    /// It will do so for ever, until somebody promotes it.
    pub is_standby: bool,
    /// It starts workers for enabled subscriptions.
    pub has_workers: bool,
}

/// Where a copy left its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    /// The source's timeline.
    pub timeline: u32,
    /// What was written before is in the copy.
    pub lsn: Lsn,
}

/// A subscription, in whichever database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// Its database.
    pub database: String,
    /// Its name.
    pub name: String,
    /// A worker runs for it, or would.
    pub is_enabled: bool,
    /// The session's own database.
    pub is_here: bool,
}

fn as_superuser(what: &'static str) -> Doing {
    doing(what).privilege(Code::SubscribePrivilege)
}

/// How far the server has come.
pub async fn stage(session: &Session) -> Result<Stage, Error> {
    let row = session.one(as_superuser("look how far the copy is"), sql!("copies/read_stage.sql"), &[]).await?;
    Ok(Stage {
        is_in_recovery: field(&row, "is_in_recovery")?,
        is_standby: field(&row, "is_standby")?,
        has_workers: field(&row, "has_workers")?,
    })
}

/// The timeline the server writes on.
pub async fn timeline(session: &Session) -> Result<u32, Error> {
    Ok(Files::of(session).await?.timeline)
}

/// Where the server left the timeline before its own; none: it is on the first, or does not know any more.
pub async fn branch(session: &Session) -> Result<Option<Branch>, Error> {
    let timeline = timeline(session).await?;
    let sql = "select pg_catalog.pg_read_file('pg_wal/' || $1::text || '.history', 0, 1048576, true) as history";
    let row = session.one(as_superuser("read a timeline's history"), sql, &[&format!("{timeline:08X}")]).await?;
    let history: Option<String> = field(&row, "history")?;
    Ok(history.and_then(|history| last_branch(&history)))
}

/// The last line of a timeline's history: the timeline before, where it was left, and why.
fn last_branch(history: &str) -> Option<Branch> {
    let mut lines = history.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut words = lines.next_back()?.split_whitespace();
    Some(Branch { timeline: words.next()?.parse().ok()?, lsn: words.next()?.parse().ok()? })
}

/// SHA-256 of the WAL before `lsn`: of at most 16 MiB, from no earlier than the beginning of the file that holds it; of
/// `timeline`, or of the server's own where that file was begun anew. None: neither is kept any more.
pub async fn wal_digest(session: &Session, timeline: u32, lsn: Lsn) -> Result<Option<Vec<u8>>, Error> {
    let files = Files::of(session).await?;
    let (from, length) = files.span_before(lsn);
    for timeline in [timeline, files.timeline] {
        let name = files.name(timeline, lsn);
        let reading = doing("read a WAL file").privilege(Code::WalUnreadable);
        let row = session.one(reading, sql!("copies/digest_wal.sql"), &[&name, &from, &length]).await?;
        if let Some(digest) = field::<Option<Vec<u8>>>(&row, "digest")? {
            return Ok(Some(digest));
        }
    }
    Ok(None)
}

/// How the server names its WAL files.
#[derive(Debug, Clone, Copy)]
struct Files {
    timeline: u32,
    segment_bytes: u64,
}

impl Files {
    async fn of(session: &Session) -> Result<Self, Error> {
        let row = session.one(doing("read the timeline"), sql!("copies/read_timeline.sql"), &[]).await?;
        let timeline: String = field(&row, "timeline")?;
        let segment_bytes: i32 = field(&row, "segment_bytes")?;
        Ok(Self {
            timeline: u32::from_str_radix(&timeline, 16).unwrap_or(0),
            segment_bytes: u64::try_from(segment_bytes).unwrap_or(0).max(1),
        })
    }

    /// The file that holds the byte before `lsn`.
    fn name(self, timeline: u32, lsn: Lsn) -> String {
        let (segment, in_each) = (lsn.0.saturating_sub(1) / self.segment_bytes, (1 << 32) / self.segment_bytes);
        format!("{timeline:08X}{:08X}{:08X}", segment / in_each, segment % in_each)
    }

    /// Where to begin in that file, and how many bytes there are from there to `lsn`.
    fn span_before(self, lsn: Lsn) -> (i64, i64) {
        let end = lsn.0.saturating_sub(1) % self.segment_bytes + 1;
        let from = end.saturating_sub(LONGEST_SPAN);
        (from.cast_signed(), (end - from).cast_signed())
    }
}

/// Takes the advisory lock `key` for as long as the session lives, or until [`let_go`].
pub async fn hold(session: &Session, key: i64) -> Result<(), Error> {
    let sql = "select pg_catalog.pg_advisory_lock($1::bigint)";
    session.execute(doing("take an advisory lock"), sql, &[&key]).await.map(drop)
}

/// Lets go of the advisory lock `key`.
pub async fn let_go(session: &Session, key: i64) -> Result<(), Error> {
    let sql = "select pg_catalog.pg_advisory_unlock($1::bigint)";
    session.execute(doing("let go of an advisory lock"), sql, &[&key]).await.map(drop)
}

/// Whether somebody holds the advisory lock `key` in this database.
pub async fn sees(session: &Session, key: i64) -> Result<bool, Error> {
    field(&session.one(doing("look for an advisory lock"), sql!("copies/sees_lock.sql"), &[&key]).await?, "is_seen")
}

/// The node the database says it belongs to; none: it does not say.
pub async fn owner(session: &Session) -> Result<Option<String>, Error> {
    let sql = "select pg_catalog.to_regclass('steep_repl.identity') is not null as is_there";
    let looking = || doing("look whose database it is");
    if !field::<bool>(&session.one(looking(), sql, &[]).await?, "is_there")? {
        return Ok(None);
    }
    let sql = "select i.node_id::text as node_id from steep_repl.identity i where i.only_row";
    session.maybe(looking(), sql, &[]).await?.as_ref().map(|row| field(row, "node_id")).transpose()
}

/// Subscriptions of the whole server.
pub async fn inherited(session: &Session) -> Result<Vec<Inherited>, Error> {
    let rows = session.rows(doing("list subscriptions"), sql!("copies/list_subscriptions.sql"), &[]).await?;
    let read = |row| {
        Ok(Inherited {
            database: field(row, "database")?,
            name: field(row, "name")?,
            is_enabled: field(row, "is_enabled")?,
            is_here: field(row, "is_here")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Of `tables`, given by their oids, those that were written to since the copy was started first.
pub async fn written(session: &Session, tables: &[u32]) -> Result<Vec<String>, Error> {
    let looking = doing("look which tables were written to");
    let rows = session.rows(looking, sql!("copies/list_written_tables.sql"), &[&tables]).await?;
    rows.iter().map(|row| field(row, "name")).collect()
}

/// Takes back transactions of this database that were prepared on the source: they come again once they are committed there.
///
/// What is taken back counts as written; so statistics, in which [`written`] looks, begin anew where there were any.
pub async fn roll_back_prepared(session: &Session) -> Result<(), Error> {
    let sql =
        "select p.gid as gid from pg_catalog.pg_prepared_xacts p where p.database = pg_catalog.current_database()";
    let rows = session.rows(doing("list prepared transactions"), sql, &[]).await?;
    for row in &rows {
        session.run(&ddl::rollback_prepared(&field::<String>(row, "gid")?)).await?;
    }
    if !rows.is_empty() {
        let counting = || doing("count anew what is written");
        // The first has this session's own counts told, which would come after the second otherwise.
        for sql in ["select pg_catalog.pg_stat_force_next_flush()", "select pg_catalog.pg_stat_reset()"] {
            session.execute(counting(), sql, &[]).await?;
        }
    }
    Ok(())
}

/// Drops the slots that came with the copy's files; `lsn`: where it left its source.
pub async fn drop_slots(session: &Session, lsn: Lsn) -> Result<(), Error> {
    let dropping = doing("drop copied slots").privilege(Code::ReplicationPrivilege);
    session.execute(dropping, sql!("copies/drop_slots.sql"), &[&PgLsn::from(lsn.0)]).await.map(drop)
}

/// Drops what else Steep and subscriptions have made on the source: subscriptions without a word to their publishers,
/// publications, origins, and the agent's memory. To be run in a transaction.
pub async fn forget_source(session: &Session) -> Result<(), Error> {
    for subscription in inherited(session).await?.iter().filter(|one| one.is_here) {
        let name = &subscription.name;
        session.run(&ddl::strand_subscription(name)).await?;
        subscriptions::drop(session, name).await?;
    }
    let is_ours = |name: &String| name == "steep" || name.starts_with("steep_");
    for publication in publications::list(session).await?.into_iter().filter(is_ours) {
        session.run(&ddl::drop_publication(&publication)).await?;
    }
    session.execute(as_superuser("drop copied origins"), sql!("copies/drop_origins.sql"), &[]).await?;
    let forgetting = || as_superuser("drop the memory of the source");
    session.batch(forgetting(), "drop extension if exists steep_repl cascade").await?;
    session.batch(forgetting(), "drop schema if exists steep_repl cascade").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_history_says_where_the_timeline_before_was_left() {
        let history = "1\t0/3000000\tno recovery target specified\n\n2\t0/5A12B8\tno recovery target specified\n";
        assert_eq!(last_branch(history), Some(Branch { timeline: 2, lsn: Lsn(0x5A_12B8) }));
        for none in ["", "\n", "# a remark\n", "1\n", "x\t0/0\n"] {
            assert_eq!(last_branch(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_position_between_two_wal_files_belongs_to_the_end_of_the_first() {
        let files = Files { timeline: 1, segment_bytes: 1 << 24 };
        let cases = [
            (0x300_0028, "000000010000000000000003", (0, 0x28)),
            (0x300_0000, "000000010000000000000002", (0, 1 << 24)),
            (0x1_0000_0000, "0000000100000000000000FF", (0, 1 << 24)),
            (0x1_0000_0001, "000000010000000100000000", (0, 1)),
        ];
        for (lsn, name, span) in cases {
            assert_eq!((files.name(1, Lsn(lsn)), files.span_before(Lsn(lsn))), (name.to_owned(), span), "{lsn:x}");
        }
        let large = Files { segment_bytes: 1 << 30, ..files };
        assert_eq!(large.span_before(Lsn(0x4200_0000)), (0x100_0000, 1 << 24), "not a whole gigabyte");
    }
}
