//! The steps of the recipe, in its order.

use std::{collections::BTreeMap, time::Duration};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    lsn::{BadLsn, Lsn},
    names::TableName,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::info;

use super::{
    Reinit,
    examine::{Found, Look, examine},
    stand_still,
};
use crate::{
    breakpoint::crash_point,
    cleanup::{Contents, Detour, Effect, Stage, held_tables},
    initialize::{
        direct::unless_lost,
        findings::verdict,
        mesh,
        messages::table_name,
        steps::{Waiting, table_jobs},
        subscribe::name_for,
    },
    operations::Context,
    postgres::{
        self, Purpose, Session,
        ddl::{self, switch},
        keys, origins, rows, slots,
        staging::{self, Staged},
        subscriptions,
        tables::TableKind,
    },
    snapshot::receive::{CopyJob, Rows, copy_tables},
    store::{
        intents,
        ledger::{self, CopiedPart},
    },
};

/// A transaction of ours waits for locks so long; whoever waits behind it, no longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries to get a lock, everybody else gets theirs.
const BETWEEN: Duration = Duration::from_millis(500);
/// What PostgreSQL says when a lock was waited for too long, or two waited for each other.
const BLOCKED: [&str; 2] = ["55P03", "40P01"];

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

impl Reinit {
    /// Looks again, now that the operation is the only one: what was true for the request may have changed.
    pub(super) async fn check_both_nodes(&mut self, context: &Context) -> Result<(), Failure> {
        let in_place = self.in_place;
        let direct = &mut self.direct;
        let plan = &direct.plan;
        let link = direct.rooms.config.replication.link.as_str();
        let (wanted, selection) = (&plan.wanted, plan.selection.clone());
        let examined = direct.source.examine(&plan.signed, selection, wanted.one_way, wanted.parallel, link);
        direct.facts = examined.await?;
        let source = plan.source.as_str();
        let found = examine(&direct.rooms, source, &direct.facts, wanted, &Look { in_place, counts: false }).await?;
        let Found { mut checks, here, .. } = found;
        direct.here = here;
        direct.same_members()?;
        let members = mesh::examine_members(&direct.rooms, context.op, &plan.source, &plan.signed, &direct.facts);
        checks.extend(members.await?);
        checks.extend(direct.facts.checks.iter().cloned());
        verdict(&format!("cannot copy tables of {} again from {source}", direct.rooms.me), &checks)?;
        self.tables = self.staged(context);
        self.direct.note_facts(context).await
    }

    /// The tables that hold rows, and where these come first.
    pub(super) fn staged(&self, context: &Context) -> Vec<Staged> {
        let short = context.op.short().to_string();
        let plain = self.direct.facts.tables.iter().filter(|table| table.kind != "p").enumerate();
        let staged = plain.filter_map(|(number, table)| {
            let stored = table.columns.iter().filter(|column| column.generated.is_empty());
            let columns = stored.map(|column| column.name.clone()).collect();
            let name = table.table.as_ref().map(table_name)?;
            Some(Staged { table: name, stage: staging::stage_name(&short, number), columns })
        });
        staged.collect()
    }

    fn names(&self) -> Vec<TableName> {
        self.tables.iter().map(|staged| staged.table.clone()).collect()
    }

    /// Applications may not change the tables from now on, and the source gets all they wrote before: its snapshot then has
    /// everything that the new rows are to hold.
    pub(super) async fn fence_writers(&mut self, context: &Context) -> Result<(), Failure> {
        let rooms = self.rooms();
        let name = format!("steep_fence_{}", context.op.short());
        let source = &self.direct.plan.source;
        let plain: Vec<TableName> = self
            .direct
            .here
            .existing
            .values()
            .filter(|table| table.kind == TableKind::Plain)
            .map(|table| table.name.clone())
            .collect();
        // One that an earlier try may have made; what was written since will be waited for too.
        rooms.cleanup.undo_kind(context.op, "fence").await?;
        let effect = Effect::Fence { name: name.clone() };
        let fencing = self.put_fence(context, &name, &plain);
        rooms.cleanup.make(context.op, "fence writers", &effect, fencing).await?;
        let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let marker = slots::emit_marker(&look, &context.op.to_string()).await.map_err(explain)?;
        let mut waiting = Waiting::new(rooms.config.copy.catch_up_timeout);
        loop {
            let kept = slots::list(&look).await.map_err(explain)?;
            let mut confirmed = kept
                .iter()
                .filter(|slot| slot.is_kept_for(source))
                .map(|slot| slot.progress.confirmed_flush.unwrap_or_default());
            let Some(slowest) = confirmed.by_ref().min() else {
                let text = format!("there is no slot for {source}, which would get what was written here");
                return Err(Failure::new(Code::NotReplicated, text));
            };
            if slowest >= marker {
                return Ok(());
            }
            waiting.still(slowest, || format!("{source} does not get what was written here"))?;
            waiting.pause().await;
        }
    }

    async fn put_fence(&self, context: &Context, fence: &str, names: &[TableName]) -> Result<(), Failure> {
        let rooms = self.rooms();
        let source = self.direct.plan.source.as_str();
        let session = rooms.database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        let mut tries = Tries::until(rooms.config.copy.slot_timeout);
        loop {
            session.begin().await.map_err(explain)?;
            staging::be_patient(&session, PATIENCE).await.map_err(explain)?;
            match staging::put_fence(&session, fence, source, names).await {
                Ok(()) => break,
                Err(error) => tries.again(&session, explain(error)).await?,
            }
        }
        session.commit().await.map_err(explain)?;
        session.close().await;
        Ok(())
    }

    pub(super) async fn stage_tables(&mut self, context: &Context) -> Result<(), Failure> {
        let rooms = self.rooms();
        let stages: Vec<_> = self.tables.iter().map(|staged| staged.stage.clone()).collect();
        // An earlier try may have made some of them.
        rooms.cleanup.undo_kind(context.op, "staged").await?;
        let session = rooms.database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        let making = async {
            for staged in &self.tables {
                staging::create(&session, staged).await.map_err(explain)?;
            }
            Ok(())
        };
        rooms.cleanup.make(context.op, "stage tables", &Effect::Staged { tables: stages }, making).await?;
        crash_point!("tables staged");
        session.close().await;
        Ok(())
    }

    pub(super) async fn copy_tables(&mut self, context: &Context) -> Result<(), Failure> {
        let direct = &self.direct;
        let (session, lost) = (direct.session().id, direct.session().lost.clone());
        let source = direct.source.clone();
        let mut jobs = table_jobs(&direct.facts.tables, &direct.session().reply.tables)?;
        if !self.in_place {
            for job in &mut jobs {
                let staged = self.tables.iter().find(|staged| staged.table == job.name);
                job.into = staged.expect("every table to copy is staged").stage.clone();
            }
        }
        let job = CopyJob {
            op: context.op,
            from: Rows::Peer { source: Box::new(source.clone()), session, compress: direct.plan.compress.clone() },
            tables: jobs,
            workers: direct.plan.wanted.parallel as usize,
            max_rate: direct.plan.max_rate,
            database: direct.rooms.database.clone(),
            cleanup: direct.rooms.cleanup.clone(),
            landed: self.landed(context).await?,
        };
        // Indexes are there already, or come with the switch.
        let (finished, _nobody) = mpsc::unbounded_channel();
        let copied = async {
            copy_tables(job, context, finished).await?;
            crash_point!("all copied");
            let mut counts = direct.counts.clone();
            if counts.is_empty() {
                counts = source.count_rows(session).await?;
                direct.note_counts(context, &counts).await?;
            }
            source.release_snapshot(session).await?;
            Ok(counts)
        };
        let counts = Box::pin(unless_lost(lost, copied)).await?;
        self.direct.counts = counts;
        self.direct.check_counts(context).await
    }

    /// The parts that an earlier try has copied. Tables beside are unlogged: a crash of PostgreSQL has emptied all of them.
    async fn landed(&self, context: &Context) -> Result<Vec<CopiedPart>, Failure> {
        let rooms = self.rooms();
        let landed = ledger::parts(&rooms.store, context.op).await.map_err(|error| error.explain())?;
        let held_rows = |staged: &&Staged| landed.iter().any(|part| part.table == staged.table && part.rows > 0);
        let filled: Vec<_> = self.tables.iter().filter(held_rows).map(|staged| staged.stage.clone()).collect();
        if self.in_place || filled.is_empty() {
            return Ok(landed);
        }
        let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        if rows::which_hold_any(&look, &filled).await.map_err(explain)?.len() == filled.len() {
            return Ok(landed);
        }
        info!(op_id = %context.op, "PostgreSQL has crashed, and what was copied beside the tables went with it");
        ledger::forget(&rooms.store, context.op).await.map_err(|error| error.explain())?;
        Ok(Vec::new())
    }

    /// From now on nothing that is replicated touches the tables, until they have their new rows.
    pub(super) async fn hold_tables(&mut self, context: &Context) -> Result<(), Failure> {
        self.direct.check_unchanged().await?;
        let look = self.rooms().database.session(Purpose::Watch).await.map_err(explain)?;
        let reply = &self.direct.session().reply;
        let lsn =
            |text: &str| text.parse::<Lsn>().map_err(|error: BadLsn| Failure::new(Code::BadRequest, error.to_string()));
        let source =
            (self.direct.source.node().clone(), self.direct.session().id, reply.slot.clone(), lsn(&reply.lsn)?);
        let mut ways = vec![source];
        for member in &self.direct.members {
            let begin = member.begin.expect("the source told it when its session was opened");
            ways.push((member.node.node().clone(), member.session, member.reply.slot.clone(), begin));
        }
        let begun = self.rooms().cleanup.detours(context.op).await?;
        for (publisher, session, slot, snapshot) in ways {
            let subscription = name_for(publisher.as_str());
            let mut begun = begun.iter().filter(|detour| detour.stage != Stage::Planned);
            if let Some(detour) = begun.find(|detour| detour.subscription == subscription) {
                if (detour.session, detour.snapshot) != (session, snapshot) {
                    // The rows come from another snapshot than they were emptied for.
                    let detour = Detour { session, slot, snapshot, ..detour.clone() };
                    self.rooms().cleanup.redirect(context.op, &detour).await?;
                }
                continue;
            }
            let found = subscriptions::find(&look, &subscription).await.map_err(explain)?;
            let own_slot = found.and_then(|found| found.slot);
            let gone = || Failure::new(Code::NotReplicated, format!("subscription {subscription} has no slot"));
            let detour = Detour {
                own_slot: own_slot.ok_or_else(gone)?,
                subscription,
                publisher,
                session,
                slot,
                snapshot,
                tables: self.names(),
                stands_at: Lsn::default(),
                contents: Contents::Old,
                stage: Stage::Planned,
            };
            self.rooms().cleanup.hold_tables(context.op, detour).await?;
            crash_point!("tables held");
        }
        Ok(())
    }

    /// One transaction in which the new rows take the place of the old ones, on all tables at once. Readers wait for nothing;
    /// whoever writes, for its end. Under an origin, so that no other node hears of it.
    pub(super) async fn switch_tables(&mut self, context: &Context) -> Result<(), Failure> {
        let rooms = self.rooms();
        let detours = rooms.cleanup.detours(context.op).await?;
        if detours.iter().any(|detour| detour.contents == Contents::New) {
            // An earlier try came so far.
            return self.open_fence(context).await;
        }
        let session = self.replica_session(context).await?;
        let mut tries = Tries::until(rooms.config.copy.slot_timeout);
        while let Err(failure) = self.switch_once(&session, context).await {
            tries.again(&session, failure).await?;
        }
        crash_point!("tables switched");
        end_replica_session(session).await?;
        self.open_fence(context).await
    }

    /// The new rows are the source's: what applications write on them goes its usual way again.
    async fn open_fence(&self, context: &Context) -> Result<(), Failure> {
        let rooms = self.rooms();
        let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let mut tries = Tries::until(rooms.config.copy.slot_timeout);
        while let Err(failure) = rooms.cleanup.undo_kind(context.op, "fence").await {
            tries.again(&look, failure).await?;
        }
        Ok(())
    }

    async fn switch_once(&self, session: &Session, context: &Context) -> Result<(), Failure> {
        session.begin().await.map_err(explain)?;
        staging::be_patient(session, PATIENCE).await.map_err(explain)?;
        session.run(&switch::lock_against_writers(&self.names())).await.map_err(explain)?;
        for staged in &self.tables {
            let rows = staging::replace(session, staged).await.map_err(explain)?;
            let expected = self.counted(&staged.table);
            if rows != expected {
                let text = format!("{} has {expected} rows in the snapshot, {rows} came", staged.table);
                return Err(Failure::new(Code::CountsDiffer, text));
            }
        }
        let stages: Vec<_> = self.tables.iter().map(|staged| staged.stage.clone()).collect();
        staging::drop(session, &stages).await.map_err(explain)?;
        intents::tell_contents(session, context.op, Contents::New.as_str()).await.map_err(explain)?;
        session.commit().await.map_err(explain)
    }

    /// Rows of a table in the source's snapshot.
    fn counted(&self, name: &TableName) -> u64 {
        let tables = &self.direct.facts.tables;
        let oids: BTreeMap<u32, u64> = self.direct.counts.iter().map(|counted| (counted.oid, counted.rows)).collect();
        let table = tables.iter().find(|table| table.table.as_ref().map(table_name).as_ref() == Some(name));
        table.and_then(|table| oids.get(&table.oid)).copied().unwrap_or_default()
    }

    /// A session that writes as replication does: no trigger fires, and nothing is sent on.
    async fn replica_session(&self, context: &Context) -> Result<Session, Failure> {
        let rooms = self.rooms();
        let session = rooms.database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        let origin = format!("steep_switch_{}", context.op.short());
        let effect = Effect::Origin { name: origin.clone() };
        let making = async { origins::create(&session, &origin).await.map_err(explain) };
        rooms.cleanup.make(context.op, "switch tables", &effect, making).await?;
        origins::set_up(&session, &origin).await.map_err(explain)?;
        session.run(&ddl::set_session("session_replication_role", "replica")).await.map_err(explain)?;
        Ok(session)
    }

    /// In place: the rows go for good, with what readers could see.
    pub(super) async fn empty_tables(&mut self, context: &Context) -> Result<(), Failure> {
        let session = self.replica_session(context).await?;
        let mut tries = Tries::until(self.rooms().config.copy.slot_timeout);
        while let Err(error) = self.empty_once(&session, context).await {
            tries.again(&session, explain(error)).await?;
        }
        crash_point!("tables emptied");
        end_replica_session(session).await
    }

    async fn empty_once(&self, session: &Session, context: &Context) -> Result<(), postgres::Error> {
        session.begin().await?;
        staging::be_patient(session, PATIENCE).await?;
        let oids: Vec<u32> = self.direct.here.existing.values().map(|table| table.oid).collect();
        let keys = keys::list(session, &oids).await?;
        for staged in &self.tables {
            let from_elsewhere = keys.iter().any(|key| key.references == staged.table && key.table != staged.table);
            let is_partition = self.direct.here.existing.get(&staged.table).is_some_and(|table| table.is_partition);
            // TRUNCATE would want the tables that refer to it too, which nobody named; a partition is referred to as its table.
            if from_elsewhere || is_partition {
                session.run(&switch::delete_rows(&staged.table)).await?;
            } else {
                let table = ddl::TableRef { name: staged.table.clone(), is_partitioned: false };
                session.run(&ddl::truncate(&[table])).await?;
            }
        }
        intents::tell_contents(session, context.op, Contents::Neither.as_str()).await?;
        session.commit().await
    }

    /// In place: the rows are there.
    pub(super) async fn open_tables(&mut self, context: &Context) -> Result<(), Failure> {
        let session = self.rooms().database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        intents::tell_contents(&session, context.op, Contents::New.as_str()).await.map_err(explain)?;
        session.close().await;
        self.open_fence(context).await
    }

    /// Waits until the new rows are where all others are, and every subscription is on its own slot again.
    pub(super) async fn catch_up(&mut self, context: &Context) -> Result<(), Failure> {
        let rooms = self.rooms();
        rooms.cleanup.finish_detours(context.op, rooms.config.copy.catch_up_timeout).await?;
        let held = held_tables(&rooms.database).await?;
        let names = self.names();
        let left: Vec<_> = held.into_iter().filter(|table| names.contains(table)).collect();
        crash_point!("caught up");
        if left.is_empty() { Ok(()) } else { Err(stand_still(rooms.me.as_str(), &left)) }
    }

    /// Holds the rows against the foreign keys that nothing was held against while they were copied and replicated.
    pub(super) async fn verify(&mut self, context: &Context) -> Result<(), Failure> {
        let rooms = self.rooms();
        // Cancelled with the operation, however long it takes.
        let session = rooms.database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        session.run(&switch::vacuum(&self.names())).await.map_err(explain)?;
        let oids: Vec<u32> = self.direct.here.existing.values().map(|table| table.oid).collect();
        let mut failure: Option<Failure> = None;
        for key in keys::list(&session, &oids).await.map_err(explain)? {
            let rows = keys::without_parent(&session, &key).await.map_err(explain)?;
            if rows == 0 {
                continue;
            }
            let text =
                format!("{rows} rows of {} refer by {} to rows that {} has not", key.table, key.name, key.references);
            let shown = keys::query(&key);
            failure = Some(match failure {
                None => Failure::new(Code::RowsWithoutParent, format!("the tables are copied, but {text}"))
                    .hint(format!("on {}: {shown}", rooms.me)),
                Some(failure) => failure.cause(format!("also {text}: {shown}")),
            });
        }
        failure.map_or(Ok(()), Err)
    }
}

async fn end_replica_session(session: Session) -> Result<(), Failure> {
    origins::reset(&session).await.map_err(explain)?;
    session.close().await;
    Ok(())
}

/// Tries again while others hold a lock, up to a limit.
struct Tries {
    deadline: Instant,
}

impl Tries {
    fn until(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit }
    }

    /// Rolls back what failed; returns after a while if it failed for want of a lock and may be tried again.
    async fn again(&mut self, session: &Session, failure: Failure) -> Result<(), Failure> {
        if !failure.sqlstate.as_deref().is_some_and(|state| BLOCKED.contains(&state)) {
            return Err(failure);
        }
        session.rollback().await.map_err(explain)?;
        if Instant::now() >= self.deadline {
            return Err(Failure { code: Code::SwitchBlocked, ..failure }.hint(Code::SwitchBlocked.hint()));
        }
        sleep(BETWEEN).await;
        Ok(())
    }
}
