//! Makes the tables that are missing on the target, and readies those that are there.
//!
//! The source's own pg_dump gives the definitions, taken inside the session's snapshot; pg_restore replays the part
//! before the rows here, in one transaction, so that all of it is made or nothing.

use std::{collections::BTreeSet, path::Path};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    names::TableName,
    v1::{self, bulk_request::Want},
};
use tokio::{fs::OpenOptions, io::AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::{
    direct::{Direct, unless_lost},
    findings::Findings,
    messages::{table_message, table_name},
};
use crate::{
    breakpoint::crash_point,
    cleanup::{Effect, Member},
    operations::Context,
    postgres::{
        self, Purpose, Session, catalog, ddl,
        dump::{Programs, RestoreRequest, Section, TocEntry},
        inventory, rows,
        tables::TableKind,
    },
    rooms::Rooms,
    snapshot::indexes::{Builder, Owned},
};

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// This node's pg_restore, which has to be as new as the source's pg_dump: an older one cannot read what that writes.
async fn programs(rooms: &Rooms, session: &Session, facts: &v1::ExamineReply) -> Result<Programs, postgres::Error> {
    let needed = session.version().major().max(u16::try_from(facts.pg_dump_major).unwrap_or(u16::MAX));
    Programs::find(rooms.database.config(), needed).await
}

/// A finding where the source's schema could not be restored here.
pub(super) async fn check_programs(
    rooms: &Rooms,
    session: &Session,
    findings: &mut Findings,
    facts: &v1::ExamineReply,
) {
    if let Err(error) = programs(rooms, session, facts).await {
        let failure = error.explain();
        findings.error(failure.code, failure.message, failure.hint);
    }
}

impl Direct {
    pub(super) async fn create_tables(&mut self, context: &Context) -> Result<(), Failure> {
        Box::pin(unless_lost(self.lost(), self.create_missing_tables(context))).await?;
        crash_point!("tables made");
        let kept = self.kept_tables();
        // Emptied once, they are written to by others.
        let was_emptied = !self.rooms.cleanup.pending(context.op, "rows").await?.is_empty();
        if !kept.is_empty() && !was_emptied {
            self.empty_kept_tables(context, &kept).await?;
            let effect = Effect::Rows { tables: kept };
            self.rooms.cleanup.make(context.op, "create tables", &effect, async { Ok(()) }).await?;
        }
        // Already now, so that whoever writes here before the end does not collide with the source's rows.
        self.set_sequences_ahead().await
    }

    /// Empties what `--force` allows; otherwise makes sure that nobody has written since the preflight, when the
    /// tables were not published yet.
    async fn empty_kept_tables(&self, context: &Context, kept: &[Member]) -> Result<(), Failure> {
        if self.plan.wanted.force {
            return self.rooms.cleanup.empty(context.op, kept).await;
        }
        let session = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let plain: Vec<_> = self
            .here
            .existing
            .values()
            .filter(|table| table.kind == TableKind::Plain)
            .map(|table| table.name.clone())
            .collect();
        match rows::which_hold_any(&session, &plain).await.map_err(explain)?.first() {
            None => Ok(()),
            Some(table) => Err(Failure::new(Code::TargetNotEmpty, format!("somebody wrote into {table} just now"))),
        }
    }

    /// Tables that were here before, by their outermost names.
    pub(super) fn kept_tables(&self) -> Vec<Member> {
        self.members(|name| self.here.existing.contains_key(name))
    }

    /// The selected tables that a publication names, those of them that `holds` says.
    fn members(&self, holds: impl Fn(&TableName) -> bool) -> Vec<Member> {
        let named = self.facts.tables.iter().filter(|table| !table.is_partition).filter_map(|table| {
            let name = table.table.as_ref().map(table_name)?;
            Some(Member { table: name, partitioned: table.kind == "p" })
        });
        named.filter(|member| holds(&member.table)).collect()
    }

    async fn create_missing_tables(&mut self, context: &Context) -> Result<(), Failure> {
        let names: Vec<TableName> =
            self.facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name)).collect();
        let missing: Vec<_> = names.iter().filter(|name| !self.here.existing.contains_key(name)).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let session = self.rooms.database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        let programs = programs(&self.rooms, &session, &self.facts).await.map_err(explain)?;
        let archive = self.archive_path(context);
        if self.goes_on && self.made_before(context, &session).await? {
            return self.ready_builder(context).await;
        }
        self.archive = Some(archive.clone());
        self.fetch_archive(&archive, &missing).await?;
        let entries = programs.list(&archive).await.map_err(explain)?;

        self.create_missing_schemas(context, &session, &missing).await?;
        let schemas = catalog::schemas(&session).await.map_err(explain)?;
        let is_there = |theirs: &&v1::SourceSchema| schemas.iter().any(|ours| ours.name == theirs.name);
        let there: BTreeSet<u32> = self.facts.schemas.iter().filter(is_there).map(|schema| schema.oid).collect();
        let wanted: Vec<_> = entries
            .iter()
            .filter(|entry| entry.section == Section::PreData)
            .filter(|entry| !(entry.kind == "SCHEMA" && there.contains(&entry.object_oid)))
            .collect();
        let before = inventory::take(&session).await.map_err(explain)?;
        let effect = Effect::Schema { before: before.clone(), markers: missing.clone() };
        // Published in the transaction that makes them: nobody can write into them a moment too early.
        let members: Vec<_> = self.members(|name| missing.contains(name)).iter().map(Into::into).collect();
        let publications: BTreeSet<_> = self.both_ways_with().iter().map(|node| self.publication_for(node)).collect();
        let published: Vec<_> =
            publications.iter().filter_map(|name| ddl::add_to_publication(name, &members)).collect();
        let cancelled = CancellationToken::new();
        let request = RestoreRequest {
            archive: &archive,
            entries: &wanted,
            single_transaction: true,
            as_script: false,
            op: context.op,
            settings: &[],
            then: &published,
            cancelled: &cancelled,
        };
        let restored = async { programs.restore(&self.rooms.database, &request).await.map_err(explain) };
        self.rooms.cleanup.make(context.op, "create tables", &effect, restored).await?;
        let created = inventory::created_since(&session, &before, &missing).await.map_err(explain)?;
        self.rooms.cleanup.make(context.op, "create tables", &Effect::Objects { created }, async { Ok(()) }).await?;
        session.close().await;
        self.build_from(context, programs, entries).await
    }

    /// Whether the restore of an earlier try was committed; what it made is written down. If not, nothing of it is there.
    async fn made_before(&self, context: &Context, session: &Session) -> Result<bool, Failure> {
        let cleanup = &self.rooms.cleanup;
        let restores = cleanup.pending(context.op, "schema").await?;
        let Some(Effect::Schema { before, markers }) = restores.first() else { return Ok(false) };
        let created = inventory::created_since(session, before, markers).await.map_err(explain)?;
        if created.is_empty() {
            cleanup.undo_kind(context.op, "schema").await?;
            return Ok(false);
        }
        // Twice is no harm: what is gone already counts as dropped.
        cleanup.make(context.op, "create tables", &Effect::Objects { created }, async { Ok(()) }).await?;
        Ok(true)
    }

    /// Readies what builds indexes on tables that were made here, as far as an earlier run has not built them.
    pub(super) async fn ready_builder(&mut self, context: &Context) -> Result<(), Failure> {
        let names = self.facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name));
        let missing: Vec<_> = names.filter(|name| !self.here.existing.contains_key(name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let session = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let programs = programs(&self.rooms, &session, &self.facts).await.map_err(explain)?;
        let archive = self.archive_path(context);
        if !archive.exists() {
            self.fetch_archive(&archive, &missing).await?;
        }
        let entries = programs.list(&archive).await.map_err(explain)?;
        self.build_from(context, programs, entries).await
    }

    async fn build_from(
        &mut self,
        context: &Context,
        programs: Programs,
        entries: Vec<TocEntry>,
    ) -> Result<(), Failure> {
        let archive = self.archive_path(context);
        self.archive = Some(archive.clone());
        let owned: Vec<_> = self.facts.tables.iter().filter_map(owned).collect();
        let memory = self.rooms.config.copy.maintenance_work_mem;
        let (database, store) = (self.rooms.database.clone(), self.rooms.store.clone());
        let before = self.built_before(context).await?;
        let builder = Builder::new(programs, database, store, context, &archive, entries, &owned, memory);
        self.builder = Some(builder.going_on(before));
        Ok(())
    }

    /// A dump of chosen tables holds no schemas; those they need are made first, in plain form.
    async fn create_missing_schemas(
        &self,
        context: &Context,
        session: &Session,
        missing: &[TableName],
    ) -> Result<(), Failure> {
        /// The catalog of schemas, by its oid.
        const PG_NAMESPACE: u32 = 2615;
        if !self.dumps_only_missing() {
            return Ok(());
        }
        let there = catalog::schemas(session).await.map_err(explain)?;
        let wanted: BTreeSet<&str> = missing.iter().map(|table| table.schema.as_str()).collect();
        let mut created = Vec::new();
        for name in wanted.into_iter().filter(|name| !there.iter().any(|schema| schema.name == **name)) {
            session.run(&ddl::create_schema(name)).await.map_err(explain)?;
            let now = catalog::schemas(session).await.map_err(explain)?;
            let made = now.iter().find(|schema| schema.name == name).map(|schema| (PG_NAMESPACE, schema.oid));
            // PostgreSQL's own name for it, by which it is known again when it has to go.
            created.extend(inventory::identify(session, made.into_iter()).await.map_err(explain)?);
        }
        if created.is_empty() {
            return Ok(());
        }
        self.rooms.cleanup.make(context.op, "create tables", &Effect::Objects { created }, async { Ok(()) }).await
    }

    /// Tables are chosen one by one: because the operator did, or because others are here already.
    fn dumps_only_missing(&self) -> bool {
        !self.here.existing.is_empty() || !self.plan.wanted.selection.tables.is_empty()
    }

    fn archive_wanted(&self, missing: &[TableName]) -> Want {
        let selection = &self.plan.wanted.selection;
        let only_missing = self.dumps_only_missing();
        Want::Dump(v1::FetchDump {
            session_id: self.session().id.to_string(),
            only: if only_missing { missing.iter().map(table_message).collect() } else { Vec::new() },
            without: if only_missing { Vec::new() } else { selection.exclude.iter().map(table_message).collect() },
            schemas: if only_missing { Vec::new() } else { selection.schemas.clone() },
        })
    }

    async fn fetch_archive(&self, archive: &Path, missing: &[TableName]) -> Result<(), Failure> {
        let state_dir = &self.rooms.config.node.state_dir;
        let unwritable = |error: std::io::Error| {
            Failure::new(Code::StateDirUnwritable, format!("cannot write {}", archive.display())).caused_by(&error)
        };
        tokio::fs::create_dir_all(state_dir).await.map_err(unwritable)?;
        // Under its own name only when it is whole: whoever goes on later relies on it.
        let part = archive.with_extension("part");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        options.mode(0o600);
        let mut file = options.open(&part).await.map_err(unwritable)?;
        match self.archive_in_files().await? {
            Some(whole) => file.write_all(&whole).await.map_err(unwritable)?,
            None => {
                let mut blocks = self.source.fetch(self.archive_wanted(missing)).await?;
                while let Some(block) = blocks.next().await.map_err(|error| self.source.explain(error))? {
                    file.write_all(&block).await.map_err(unwritable)?;
                }
            }
        }
        file.flush().await.map_err(unwritable)?;
        file.sync_all().await.map_err(unwritable)?;
        tokio::fs::rename(&part, archive).await.map_err(unwritable)
    }
}

fn owned(table: &v1::SourceTable) -> Option<Owned> {
    Some(Owned {
        table: table.oid,
        name: table.table.as_ref().map(table_name)?,
        indexes: table.index_oids.clone(),
        constraints: table.constraint_oids.clone(),
    })
    // A partitioned table holds no rows to wait for; its indexes tie partitions together at the end.
    .filter(|_| table.kind != "p")
}
