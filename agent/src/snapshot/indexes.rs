//! Builds what stands on the rows: keys and indexes of a table as soon as its rows are in, while others still
//! copy; everything that ties tables together (foreign keys, triggers, rules, policies, views' data) at the end.
//!
//! The definitions are the source's own, from the archive its pg_dump made inside the session's snapshot;
//! pg_restore replays them, chosen entry by entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    names::{TableName, escape_controls},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::warn;

use super::walwriter;

use crate::{
    breakpoint::crash_point,
    operations::Context,
    postgres::{
        self, Database, Purpose, Session, ddl,
        dump::{Programs, RestoreRequest, Section, TocEntry},
        tables,
    },
    store::{Store, notes},
};

/// Tables whose keys and indexes are built by one run of pg_restore, where they are small.
const BATCH: usize = 32;

/// Under this name, and the table's oid on the source, it is written down that a table's indexes are about to be built …
pub const BEGUN: &str = "indexes.begun/";
/// … and that they are built.
pub const BUILT: &str = "indexes.built/";
/// In place of a table's oid: all that belongs to no single table.
const REST: u32 = 0;

/// How many deadlocks with applications are lost before it is no accident any more.
const MOST_DEADLOCKS: u32 = 30;

/// PostgreSQL's catalogs, by the oid pg_dump lists them under.
const PG_CLASS: u32 = 1259;
const PG_CONSTRAINT: u32 = 2606;

/// Of sessions that build.
type Settings = Vec<(&'static str, String)>;

/// What may be built on which table.
#[derive(Debug, Clone)]
pub struct Owned {
    /// The table's oid on the source.
    pub table: u32,
    /// Its name.
    pub name: TableName,
    /// Oids of its indexes on the source.
    pub indexes: Vec<u32>,
    /// Oids of its primary key, unique and exclusion constraints on the source.
    pub constraints: Vec<u32>,
}

/// Builds indexes on the target.
#[derive(Debug, Clone)]
pub struct Builder {
    shared: Arc<Shared>,
    /// Tables an earlier run has begun with: some of their indexes may be there.
    begun: Arc<BTreeSet<u32>>,
    /// Tables that are done, by it or by this one.
    built: Arc<Mutex<BTreeSet<u32>>>,
}

#[derive(Debug)]
struct Shared {
    programs: Programs,
    database: Database,
    store: Store,
    op: OperationId,
    archive: PathBuf,
    /// For all builds together.
    memory: u64,
    /// By table: its entries, in the archive's order.
    of_table: BTreeMap<u32, Vec<TocEntry>>,
    /// What belongs to no single table, in the archive's order.
    rest: Vec<TocEntry>,
    names: BTreeMap<u32, TableName>,
    context: Context,
}

impl Builder {
    /// Sorts the archive's later half by table. `memory` is what all builds that run at once may take together.
    #[expect(clippy::too_many_arguments, reason = "each is another thing to build with")]
    pub fn new(
        programs: Programs,
        database: Database,
        store: Store,
        context: &Context,
        archive: &Path,
        entries: Vec<TocEntry>,
        owned: &[Owned],
        memory: u64,
    ) -> Self {
        let mut of_table = BTreeMap::<u32, Vec<TocEntry>>::new();
        let mut rest = Vec::new();
        for entry in entries.into_iter().filter(|entry| entry.section == Section::PostData) {
            let owner = owned.iter().find(|owned| match entry.catalog_oid {
                PG_CLASS => owned.indexes.contains(&entry.object_oid),
                PG_CONSTRAINT => owned.constraints.contains(&entry.object_oid),
                _ => false,
            });
            match owner {
                Some(owned) => of_table.entry(owned.table).or_default().push(entry),
                None => rest.push(entry),
            }
        }
        let count = of_table.values().map(Vec::len).sum::<usize>() + rest.len();
        context.feed.progress(|progress| progress.plan_indexes(count as u32));
        let names = owned.iter().map(|owned| (owned.table, owned.name.clone())).collect();
        let shared = Shared {
            programs,
            database,
            store,
            op: context.op,
            archive: archive.to_owned(),
            memory,
            of_table,
            rest,
            names,
            context: context.clone(),
        };
        Self { shared: Arc::new(shared), begun: Arc::default(), built: Arc::default() }
    }

    /// Where an earlier run of the agent, or an earlier try, has `begun` with tables, and is done with those `built`.
    #[must_use]
    pub fn going_on(self, [begun, built]: [BTreeSet<u32>; 2]) -> Self {
        let made: usize = built.iter().map(|table| self.entries_of(*table).len()).sum();
        self.shared.context.feed.progress(|progress| progress.indexes_made(made as u32));
        Self { begun: Arc::new(begun), built: Arc::new(Mutex::new(built)), ..self }
    }

    fn entries_of(&self, table: u32) -> &[TocEntry] {
        match table {
            REST => &self.shared.rest,
            table => self.shared.of_table.get(&table).map_or(&[], Vec::as_slice),
        }
    }

    /// Builds on every table that is not done, `at_once` at a time.
    pub async fn build_all(&self, at_once: usize) -> Result<(), Failure> {
        let (ready, tables) = mpsc::unbounded_channel();
        for table in self.shared.names.keys() {
            // Nobody has closed the other end.
            let _ = ready.send(*table);
        }
        drop(ready);
        self.build_as_ready(tables, at_once).await
    }

    /// Builds on each table that `ready` names, `at_once` at a time, until `ready` is closed.
    ///
    /// Dropping the future kills what runs.
    pub async fn build_as_ready(&self, mut ready: mpsc::UnboundedReceiver<u32>, at_once: usize) -> Result<(), Failure> {
        let mut builds = JoinSet::new();
        let mut open = true;
        while open || !builds.is_empty() {
            let mut tables = Vec::new();
            tokio::select! {
                taken = ready.recv_many(&mut tables, BATCH), if open && builds.len() < at_once => {
                    open = taken > 0;
                    if open {
                        let builder = self.clone();
                        builds.spawn(async move { builder.build(&tables, at_once).await });
                    }
                }
                Some(built) = builds.join_next() => built.unwrap_or_else(|error| {
                    Err(Failure::new(Code::Internal, "building indexes ended unexpectedly").caused_by(&error))
                })?,
            }
        }
        Ok(())
    }

    async fn build(&self, tables: &[u32], at_once: usize) -> Result<(), Failure> {
        let left = |table: &&u32| !self.is_built(**table);
        let (again, fresh): (Vec<u32>, Vec<u32>) =
            tables.iter().filter(left).copied().partition(|table| self.begun.contains(table));
        self.note(BEGUN, &fresh).await?;
        let entries: Vec<_> = fresh.iter().flat_map(|table| self.entries_of(*table)).collect();
        let done = [&again[..], &fresh[..]].concat();
        let settings = self.settings(&done, at_once).await?;
        let (database, op) = (self.shared.database.clone(), self.shared.op);
        let waking = AbortOnDropHandle::new(tokio::spawn(async move { walwriter::keep_awake(&database, op).await }));
        self.restore(&entries, &settings).await?;
        crash_point!("indexes built");
        self.restore_what_is_missing(&again, &settings).await?;
        drop(waking);
        self.analyze(&done).await?;
        self.are_built(&done).await
    }

    /// For sessions that build on `tables`, beside `at_once` - 1 others.
    async fn settings(&self, tables: &[u32], at_once: usize) -> Result<Settings, Failure> {
        let has_more = |table: &&u32| !self.is_built(**table) && !self.entries_of(**table).is_empty();
        let left = self.shared.names.keys().filter(has_more).count();
        let mut settings = usual_settings(share(self.shared.memory, at_once, left));
        let of_some = tables.iter().filter(|table| !self.entries_of(**table).is_empty());
        let names: Vec<_> = of_some.filter_map(|oid| self.shared.names.get(oid)).cloned().collect();
        if names.is_empty() {
            return Ok(settings);
        }
        let session = self.session().await?;
        if tables::lie_in_memory(&session, &names).await.map_err(|error| error.explain())? {
            // Since PostgreSQL 18 other processes read ahead, and hand over what the operating system has in memory anyway:
            // an index of ten million rows takes 3.0 s without, 3.6 s with them.
            settings.push(("effective_io_concurrency", "0".to_owned()));
        }
        session.close().await;
        Ok(settings)
    }

    async fn session(&self) -> Result<Session, Failure> {
        self.shared.database.session(Purpose::Ddl(self.shared.op)).await.map_err(|error| error.explain())
    }

    fn is_built(&self, table: u32) -> bool {
        self.built.lock().unwrap_or_else(PoisonError::into_inner).contains(&table)
    }

    async fn are_built(&self, tables: &[u32]) -> Result<(), Failure> {
        self.note(BUILT, tables).await?;
        self.built.lock().unwrap_or_else(PoisonError::into_inner).extend(tables);
        Ok(())
    }

    async fn note(&self, what: &str, tables: &[u32]) -> Result<(), Failure> {
        let names: Vec<_> = tables.iter().map(|table| format!("{what}{table}")).collect();
        if names.is_empty() {
            return Ok(());
        }
        notes::save_all(&self.shared.store, self.shared.op, &names, &[]).await.map_err(|error| error.explain())
    }

    async fn analyze(&self, tables: &[u32]) -> Result<(), Failure> {
        let names: Vec<_> = tables.iter().filter_map(|oid| self.shared.names.get(oid)).cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        let session = self.session().await?;
        session.run(&ddl::analyze(&names)).await.map_err(|error| error.explain())?;
        session.close().await;
        Ok(())
    }

    /// Replays what belongs to no single table. Call once every table is built.
    pub async fn build_rest(&self) -> Result<(), Failure> {
        if self.is_built(REST) {
            return Ok(());
        }
        let settings = usual_settings(self.shared.memory);
        if self.begun.contains(&REST) {
            self.restore_what_is_missing(&[REST], &settings).await?;
        } else {
            self.note(BEGUN, &[REST]).await?;
            self.restore(&self.shared.rest.iter().collect::<Vec<_>>(), &settings).await?;
        }
        crash_point!("rest built");
        self.are_built(&[REST]).await
    }

    /// Replays the entries of `tables` one by one, each in a transaction of its own: an earlier run has made some of them,
    /// and nobody knows which.
    async fn restore_what_is_missing(&self, tables: &[u32], settings: &Settings) -> Result<(), Failure> {
        for entry in tables.iter().flat_map(|table| self.entries_of(*table)) {
            let mut deadlocks = 0;
            loop {
                match self.restore_once(&[entry], true, settings).await {
                    Ok(()) => break,
                    Err(error) if is_there(&error, &entry.kind) => break,
                    Err(error) if error.sqlstate() == Some("40P01") && deadlocks < MOST_DEADLOCKS => deadlocks += 1,
                    Err(error) => return Err(error.explain()),
                }
            }
            self.shared.context.feed.progress(|progress| progress.indexes_made(1));
        }
        Ok(())
    }

    async fn restore(&self, entries: &[&TocEntry], settings: &Settings) -> Result<(), Failure> {
        let mut left = entries;
        let mut deadlocks = 0;
        while !left.is_empty() {
            let Err(error) = self.restore_once(left, false, settings).await else { break };
            deadlocks += 1;
            left = match resumed(&error, left) {
                Some(rest) if deadlocks <= MOST_DEADLOCKS => rest,
                _ => return Err(error.explain()),
            };
            let (op, entry) = (self.shared.op, escape_controls(&left[0].label));
            warn!(event = "snapshot.deadlock_lost", op_id = %op, details.entry = entry, "an application won a deadlock");
        }
        self.shared.context.feed.progress(|progress| progress.indexes_made(entries.len() as u32));
        Ok(())
    }

    async fn restore_once(
        &self,
        entries: &[&TocEntry],
        as_script: bool,
        settings: &Settings,
    ) -> Result<(), postgres::Error> {
        let shared = &self.shared;
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // Dropping the future kills pg_restore; its backends end with the operation's cleanup.
        let cancelled = CancellationToken::new();
        let request = RestoreRequest {
            archive: &shared.archive,
            entries,
            single_transaction: as_script,
            as_script,
            op: shared.op,
            settings: &settings,
            then: &[],
            cancelled: &cancelled,
        };
        shared.programs.restore(&shared.database, &request).await
    }
}

/// What one build may take of `memory`, while indexes are still to be built on `left` tables, `at_once` at a time.
fn share(memory: u64, at_once: usize, left: usize) -> u64 {
    memory / at_once.min(left).max(1) as u64
}

/// With `memory` for one build.
fn usual_settings(memory: u64) -> Settings {
    vec![("maintenance_work_mem", format!("{}kB", memory / 1024)), ("synchronous_commit", "off".to_owned())]
}

/// Whether `error` says that what an entry of this kind would make is there already. Each entry is made in one
/// transaction, so what is there of it is whole.
fn is_there(error: &postgres::Error, kind: &str) -> bool {
    match error.sqlstate() {
        // An index; a constraint, trigger, rule or policy.
        Some("42P07" | "42710") => true,
        // A second primary key.
        Some("42P16") => kind == "CONSTRAINT",
        _ => false,
    }
}

/// What is left to make after `error`, if that was a deadlock with an application, which locks tables in an order of
/// its own. The statement that lost was rolled back.
fn resumed<'a, 'e>(error: &postgres::Error, entries: &'a [&'e TocEntry]) -> Option<&'a [&'e TocEntry]> {
    match error {
        postgres::Error::Program { deadlock_at: Some(lost), .. } => {
            let at = entries.iter().position(|entry| entry.dump_id == *lost)?;
            Some(&entries[at..])
        }
        // As one script: all of it was rolled back.
        _ => (error.sqlstate() == Some("40P01")).then_some(entries),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::error::Refusal;

    #[test]
    fn the_last_table_to_build_on_has_all_the_memory() {
        let shares: Vec<_> = (0..5).rev().map(|left| share(600, 3, left)).collect();
        assert_eq!(shares, [200, 200, 300, 600, 600]);
    }

    #[test]
    fn what_is_there_already_is_told_from_what_cannot_be_made() {
        let denied = |sqlstate: &str| postgres::Error::Denied {
            doing: "restore the schema".to_owned(),
            code: Code::RestoreFailed,
            source: Box::new(Refusal {
                sqlstate: sqlstate.to_owned(),
                message: "no".to_owned(),
                detail: None,
                hint: None,
                context: None,
                is_fatal: false,
            }),
        };
        for (sqlstate, kind, expected) in [
            ("42P07", "INDEX", true),
            ("42710", "FK CONSTRAINT", true),
            ("42710", "TRIGGER", true),
            ("42P16", "CONSTRAINT", true),
            ("42P16", "INDEX", false),
            ("23505", "CONSTRAINT", false),
            ("42P01", "INDEX", false),
        ] {
            assert_eq!(is_there(&denied(sqlstate), kind), expected, "{sqlstate} of {kind}");
        }
    }
}
