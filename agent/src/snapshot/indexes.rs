//! Builds what stands on the rows: keys and indexes of a table as soon as its rows are in, while others still
//! copy; everything that ties tables together (foreign keys, triggers, rules, policies, views' data) at the end.
//!
//! The definitions are the source's own, from the archive its pg_dump made inside the session's snapshot;
//! pg_restore replays them, chosen entry by entry.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    names::{TableName, escape_controls},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    operations::Context,
    postgres::{
        self, Database, Purpose, ddl,
        dump::{Programs, RestoreRequest, Section, TocEntry},
    },
};

/// Tables whose keys and indexes are built by one run of pg_restore, where they are small.
const BATCH: usize = 32;

/// How many deadlocks with applications are lost before it is no accident any more.
const MOST_DEADLOCKS: u32 = 30;

/// PostgreSQL's catalogs, by the oid pg_dump lists them under.
const PG_CLASS: u32 = 1259;
const PG_CONSTRAINT: u32 = 2606;

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
}

#[derive(Debug)]
struct Shared {
    programs: Programs,
    database: Database,
    op: OperationId,
    archive: PathBuf,
    settings: Vec<(&'static str, String)>,
    /// By table: its entries, in the archive's order.
    of_table: BTreeMap<u32, Vec<TocEntry>>,
    /// What belongs to no single table, in the archive's order.
    rest: Vec<TocEntry>,
    names: BTreeMap<u32, TableName>,
    context: Context,
}

impl Builder {
    /// Sorts the archive's later half by table. `maintenance_work_mem` is for each of `at_once` builds.
    pub fn new(
        programs: Programs,
        database: Database,
        context: &Context,
        archive: &Path,
        entries: Vec<TocEntry>,
        owned: &[Owned],
        maintenance_work_mem: u64,
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
        let settings = vec![
            ("maintenance_work_mem", format!("{}kB", maintenance_work_mem / 1024)),
            ("synchronous_commit", "off".to_owned()),
        ];
        let names = owned.iter().map(|owned| (owned.table, owned.name.clone())).collect();
        let shared = Shared {
            programs,
            database,
            op: context.op,
            archive: archive.to_owned(),
            settings,
            of_table,
            rest,
            names,
            context: context.clone(),
        };
        Self { shared: Arc::new(shared) }
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
                        builds.spawn(async move { builder.build(&tables).await });
                    }
                }
                Some(built) = builds.join_next() => built.unwrap_or_else(|error| {
                    Err(Failure::new(Code::Internal, "building indexes ended unexpectedly").caused_by(&error))
                })?,
            }
        }
        Ok(())
    }

    async fn build(&self, tables: &[u32]) -> Result<(), Failure> {
        let shared = &self.shared;
        let entries: Vec<_> = tables.iter().filter_map(|oid| shared.of_table.get(oid)).flatten().collect();
        self.restore(&entries).await?;
        self.analyze(tables).await
    }

    async fn analyze(&self, tables: &[u32]) -> Result<(), Failure> {
        let names: Vec<_> = tables.iter().filter_map(|oid| self.shared.names.get(oid)).cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        let session =
            self.shared.database.session(Purpose::Ddl(self.shared.op)).await.map_err(|error| error.explain())?;
        session.run(&ddl::analyze(&names)).await.map_err(|error| error.explain())?;
        session.close().await;
        Ok(())
    }

    /// Replays what belongs to no single table. Call once every table is built.
    pub async fn build_rest(&self) -> Result<(), Failure> {
        self.restore(&self.shared.rest.iter().collect::<Vec<_>>()).await
    }

    async fn restore(&self, entries: &[&TocEntry]) -> Result<(), Failure> {
        let mut left = entries;
        let mut deadlocks = 0;
        while !left.is_empty() {
            let Err(error) = self.restore_once(left).await else { break };
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

    async fn restore_once(&self, entries: &[&TocEntry]) -> Result<(), postgres::Error> {
        let shared = &self.shared;
        let settings: Vec<_> = shared.settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // Dropping the future kills pg_restore; its backends end with the operation's cleanup.
        let cancelled = CancellationToken::new();
        let request = RestoreRequest {
            archive: &shared.archive,
            entries,
            single_transaction: false,
            op: shared.op,
            settings: &settings,
            then: &[],
            cancelled: &cancelled,
        };
        shared.programs.restore(&shared.database, &request).await
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
