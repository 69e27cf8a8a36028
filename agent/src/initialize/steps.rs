//! The steps of the direct recipe, in its order.

use std::{collections::BTreeMap, time::Duration};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, SessionId},
    lsn::Lsn,
    names::TableName,
    v1,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::warn;

use super::{
    direct::{Direct, unless_lost},
    findings::verdict,
    mesh,
    messages::table_name,
    preflight,
    reach::Reach,
    start::method_checks,
    subscribe::{self, Inflow},
};
use crate::{
    breakpoint::crash_point,
    cleanup::Effect,
    lifecycle::NodeEvent,
    mesh::Source,
    operations::Context,
    parts::TablePlan,
    postgres::{
        self, Purpose,
        ddl::OriginFilter,
        replication,
        sequences::{self, NewPosition, SequenceScope},
        slots,
    },
    session::{publish, slot_name},
    snapshot::receive::{CopyJob, TableJob, copy_tables},
    store::ledger,
    telemetry,
};

/// How often a waiting step looks again.
pub(super) const LOOK: Duration = Duration::from_millis(100);
const FIRST_LOOK: Duration = Duration::from_millis(10);

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

impl Direct {
    /// Looks again, now that the operation is the only one: what was true for the request may have changed.
    pub(super) async fn check_both_nodes(&mut self, context: &Context) -> Result<(), Failure> {
        let wanted = &self.plan.wanted;
        let link = self.rooms.config.replication.link.as_str();
        let selection = self.plan.selection.clone();
        let examined = self.source.examine(&self.plan.signed, selection, wanted.one_way, wanted.parallel, link);
        self.facts = examined.await?;
        let source = self.plan.source.as_str();
        let (mut checks, here) = preflight::examine_target(&self.rooms, source, &self.facts, wanted).await?;
        self.here = here;
        checks.extend(method_checks(&self.rooms, &self.plan, &self.facts).await?);
        self.same_members()?;
        let (source_node, signed) = (&self.plan.source, &self.plan.signed);
        checks.extend(mesh::examine_members(&self.rooms, context.op, source_node, signed, &self.facts).await?);
        checks.extend(self.facts.checks.iter().cloned());
        verdict(&format!("cannot start {} from {source}", self.rooms.me), &checks)?;
        self.note_facts(context).await
    }

    pub(super) async fn open_session(&mut self, context: &Context) -> Result<(), Failure> {
        if self.session.is_some() {
            return Ok(());
        }
        let request = v1::OpenSessionRequest {
            op_id: context.op.to_string(),
            tables: self.facts.tables.clone(),
            one_way: self.plan.wanted.one_way,
            part_bytes: 0,
            whole_database: self.plan.shared_publication,
            parallel: self.plan.wanted.parallel,
            members: self.with_me_if_again(self.plan.members.iter().map(|member| member.node.clone())),
        };
        let effect = Effect::PeerSession { node: self.plan.source.clone() };
        self.is_opening = true;
        let opened = self.source.open_session(&self.plan.signed, request);
        let reply = self.rooms.cleanup.make(context.op, "open session", &effect, opened).await?;
        let id = reply.session_id.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))?;
        self.take_positions(&reply)?;
        crash_point!("session opened");
        self.note_session(context, &reply).await?;
        self.hold_session(context, id, reply);
        Ok(())
    }

    /// The others of a mesh; those that this node is one of already must hear its name too.
    pub(super) fn with_me_if_again(&self, others: impl Iterator<Item = String>) -> Vec<String> {
        let wanted = &self.plan.wanted;
        let me = (wanted.again && !wanted.one_way).then(|| self.rooms.me.to_string());
        others.chain(me).collect()
    }

    /// For each node that gets this one's changes: the publication with the tables that are here, and the slot for the way
    /// back, before any table is made: what is written into one from its first moment on is then sent.
    pub(super) async fn publish(&mut self, context: &Context) -> Result<(), Failure> {
        let look = self.rooms.database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        let kept = self.kept_tables();
        self.reverse_slots.clear();
        for node in self.both_ways_with() {
            publish(&self.rooms.cleanup, &look, context.op, &self.publication_for(&node), &kept).await?;
            let slot = slot_name(&node, context.op);
            let patience = self.rooms.config.copy.slot_timeout;
            let effect = Effect::Slot { name: slot.clone(), peer: Some(node.clone()) };
            let made = async {
                // Its name holds this operation's id; what an earlier try has made begins as early as it must.
                if self.goes_on && slots::find(&look, &slot).await.map_err(explain)?.is_some() {
                    return Ok(());
                }
                let never = CancellationToken::new();
                let made = replication::create_slot(&self.rooms.database, context.op, &slot, patience, &never).await;
                made.map(drop).map_err(explain)
            };
            self.rooms.cleanup.make(context.op, "publish on target", &effect, made).await?;
            self.reverse_slots.push((node, slot));
        }
        Ok(())
    }

    pub(super) fn publication_for(&self, node: &NodeId) -> String {
        if self.plan.shared_publication { "steep".to_owned() } else { format!("steep_only_{node}") }
    }

    pub(super) async fn copy_tables(&mut self, context: &Context) -> Result<(), Failure> {
        self.advance(context, NodeEvent::CopyBegan).await?;
        let landed = ledger::parts(&self.rooms.store, context.op).await.map_err(|error| error.explain())?;
        let lost = self.lost();
        let workers = self.plan.wanted.parallel as usize;
        let (from, tables) = self.rows_to_copy()?;
        let job = CopyJob {
            op: context.op,
            from,
            tables,
            landed,
            workers,
            max_rate: self.plan.max_rate,
            database: self.rooms.database.clone(),
            cleanup: self.rooms.cleanup.clone(),
        };
        let (finished, ready) = mpsc::unbounded_channel();
        let builder = self.builder.clone();
        let mut building = AbortOnDropHandle::new(tokio::spawn(async move {
            match builder {
                Some(builder) => builder.build_as_ready(ready, workers.div_ceil(2)).await,
                None => Ok(()),
            }
        }));
        let this = &*self;
        let copied = async {
            // Counted while rows are copied, whose sessions often wait for the disk. Where that fails, it is done after them:
            // if the copy fails too, its own words say more.
            let counting = async {
                let told = |failure: &Failure| {
                    warn!(op_id = %context.op, error = telemetry::failure(failure), "rows could not be counted beside the copy");
                };
                Ok(this.counts_at_snapshot().await.inspect_err(told).ok())
            };
            let ((), counted) = tokio::try_join!(copy_tables(job, context, finished), counting)?;
            crash_point!("all copied");
            let counts = match counted {
                Some(counts) => counts,
                None => this.counts_at_snapshot().await?,
            };
            if this.counts.is_empty() {
                // Before the snapshot goes, in which alone they can be counted.
                this.note_counts(context, &counts).await?;
            }
            // The locks go as soon as the last row is read and counted, while indexes are still built.
            this.let_rows_go().await?;
            Ok(counts)
        };
        let mut copied = Box::pin(unless_lost(lost, copied));
        let (counts, built) = tokio::select! {
            copied = &mut copied => (copied?, None),
            built = &mut building => {
                // An index that fails need not wait for the copy; one that is done early has nothing more to do.
                ended(built)?;
                ((&mut copied).await?, Some(()))
            }
        };
        drop(copied);
        self.counts = counts;
        self.building = built.is_none().then_some(building);
        Ok(())
    }

    /// Rows of each table at the last snapshot, unless they were counted before.
    async fn counts_at_snapshot(&self) -> Result<Vec<v1::TableRows>, Failure> {
        if self.counts.is_empty() {
            return Ok(self.of_last_snapshot(self.count_at_snapshot().await?));
        }
        Ok(self.counts.clone())
    }

    pub(super) async fn build_indexes(&mut self, _: &Context) -> Result<(), Failure> {
        let lost = self.lost();
        let building = self.building.take();
        let builder = self.builder.clone();
        let workers = self.plan.wanted.parallel as usize;
        unless_lost(lost, async {
            match (building, &builder) {
                (Some(building), _) => ended(building.await)?,
                // All that was ready when the copy ended is built; or the copy was done before this was begun again.
                (None, Some(builder)) => builder.build_all(workers.div_ceil(2)).await?,
                (None, None) => {}
            }
            match builder {
                Some(builder) => builder.build_rest().await,
                None => Ok(()),
            }
        })
        .await
    }

    pub(super) async fn move_sequences(&mut self, _: &Context) -> Result<(), Failure> {
        self.set_sequences_ahead().await
    }

    /// Sets every sequence ahead of the source's and the members', in its own direction; never back.
    pub(super) async fn set_sequences_ahead(&self) -> Result<(), Failure> {
        let mut all = vec![self.sequences_of_source().await?];
        for member in &self.members {
            all.push(member.node.read_sequences(member.session).await?);
        }
        for theirs in all {
            self.set_ahead_of(&theirs).await?;
        }
        Ok(())
    }

    async fn set_ahead_of(&self, theirs: &[v1::SequencePosition]) -> Result<(), Failure> {
        let session = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let ours = sequences::read(&session, SequenceScope::WholeDatabase).await.map_err(explain)?;
        let ours: BTreeMap<_, _> = ours.into_iter().map(|sequence| (sequence.name.clone(), sequence)).collect();
        let margin = i64::from(self.rooms.config.copy.sequence_margin);
        let ahead = theirs.iter().filter_map(|theirs| {
            let name = table_name(theirs.sequence.as_ref()?);
            let now = ours.get(&name)?.last_value;
            let value = ahead_of(theirs, margin);
            let is_further = if theirs.increment > 0 { value > now } else { value < now };
            is_further.then_some(NewPosition { name, value, is_called: true })
        });
        let positions: Vec<_> = ahead.collect();
        sequences::set(&session, &positions).await.map_err(explain)
    }

    pub(super) async fn subscribe(&mut self, context: &Context) -> Result<(), Failure> {
        self.check_unchanged().await?;
        self.check_alike().await?;
        self.advance(context, NodeEvent::RowsInPlace).await?;
        let reply = &self.session().reply;
        // One way, everything the source has belongs here, wherever it came from.
        let origin = if self.plan.wanted.one_way { OriginFilter::Any } else { OriginFilter::None };
        let source = &self.plan.source;
        let reach = &Reach::told(source, &reply.link, &reply.database, &reply.conninfo)?;
        // A physical copy ends later than the slot begins.
        let begin = self.adopted().await?.map(|adopted| adopted.branch.lsn).unwrap_or_default();
        let (slot, publication) = (&reply.slot, &reply.publication);
        let gates = &self.gates.of_source();
        let inflow = Inflow { source, slot, publication, reach, origin, begin, gates };
        crash_point!("before subscribe");
        self.subscription = subscribe::subscribe(&self.rooms, context.op, &inflow).await?;
        Ok(())
    }

    /// No DDL may have slipped in since the snapshot: rows of another shape would stop the subscription.
    pub(super) async fn check_unchanged(&self) -> Result<(), Failure> {
        let now = self.source.describe_tables(self.session().id).await?;
        for then in &self.facts.tables {
            let name = then.table.as_ref().map(table_name).expect("a table has its name");
            let Some(now) = now.iter().find(|table| table.oid == then.oid && table.table == then.table) else {
                return Err(Failure::new(
                    Code::SchemaChanged,
                    format!("table {name} was dropped or renamed on the source"),
                ));
            };
            if now.columns != then.columns {
                return Err(Failure::new(
                    Code::SchemaChanged,
                    format!("the columns of {name} changed on the source during the copy"),
                ));
            }
        }
        Ok(())
    }

    pub(super) async fn catch_up(&mut self, _: &Context) -> Result<(), Failure> {
        let lost = self.session().lost.clone();
        unless_lost(lost, async {
            crash_point!("catching up");
            self.catch_up_with(&self.source, self.session().id, &self.subscription).await?;
            self.pass_gates(&self.subscription).await?;
            for member in &self.members {
                self.catch_up_with(&member.node, member.session, &member.subscription).await?;
                self.pass_gates(&member.subscription).await?;
            }
            Ok(())
        })
        .await
    }

    /// Waits until all that `node` has committed by now is applied here.
    async fn catch_up_with(&self, node: &Source, session: SessionId, subscription: &str) -> Result<(), Failure> {
        let marker = node.write_marker().await?;
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let mut vigil = subscribe::Vigil::over(subscription, self.goes_on);
        let mut waiting = Waiting::new(self.rooms.config.copy.catch_up_timeout);
        loop {
            let progress = node.slot_progress(session).await?;
            let confirmed: Lsn = progress.confirmed_lsn.parse().unwrap_or_default();
            if confirmed >= marker {
                return Ok(());
            }
            vigil.check(&look, &self.rooms.me).await?;
            waiting.still(confirmed, || format!("{subscription} waits for {}", node.node()))?;
            waiting.pause().await;
        }
    }

    pub(super) async fn replicate_back(&mut self, _: &Context) -> Result<(), Failure> {
        let lost = self.session().lost.clone();
        unless_lost(lost, async {
            self.replicate_to(&self.source, self.session().id).await?;
            for member in &self.members {
                self.replicate_to(&member.node, member.session).await?;
            }
            Ok(())
        })
        .await
    }

    /// Has `node` subscribe to this one, and waits until it has all that was committed here by then.
    async fn replicate_to(&self, node: &Source, session: SessionId) -> Result<(), Failure> {
        let made = self.reverse_slots.iter().find(|(target, _)| target == node.node());
        let (_, slot) = made.expect("the slots for the way back were made before the copy");
        let reach = Reach::own(&self.rooms)?.to_message();
        let subscription = node.subscribe(slot, &self.publication_for(node.node()), reach).await?;
        crash_point!("subscribed back");
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let marker = slots::emit_marker(&look, slot).await.map_err(explain)?;
        let mut waiting = Waiting::new(self.rooms.config.copy.catch_up_timeout);
        loop {
            let progress = slots::progress(&look, slot).await.map_err(explain)?;
            let gone = || Failure::new(Code::SlotLost, format!("slot {slot} is gone"));
            let confirmed = progress.ok_or_else(gone)?.confirmed_flush.unwrap_or_default();
            if confirmed >= marker {
                return Ok(());
            }
            // The other end says so when its subscription has stopped.
            node.slot_progress(session).await?;
            waiting.still(confirmed, || format!("{subscription} on {} waits for {}", node.node(), self.rooms.me))?;
            waiting.pause().await;
        }
    }

    /// Rows counted on the source inside the snapshot, against rows committed here part by part: both stand at
    /// the slot's own LSN, whatever has been written since.
    pub(super) async fn check_counts(&self, context: &Context) -> Result<(), Failure> {
        let parts = ledger::parts(&self.rooms.store, context.op).await.map_err(|error| error.explain())?;
        let mut landed = BTreeMap::<&TableName, u64>::new();
        for part in &parts {
            *landed.entry(&part.table).or_default() += part.rows;
        }
        for counted in &self.counts {
            let table = self.facts.tables.iter().find(|table| table.oid == counted.oid);
            let Some(name) = table.and_then(|table| table.table.as_ref()).map(table_name) else { continue };
            let here = landed.get(&name).copied().unwrap_or_default();
            if here != counted.rows {
                let text = format!(
                    "{name} held {} rows on {} at the snapshot, {here} were copied",
                    counted.rows, self.plan.source
                );
                return Err(Failure::new(Code::CountsDiffer, text));
            }
        }
        Ok(())
    }

    pub(super) async fn verify(&mut self, context: &Context) -> Result<(), Failure> {
        self.check_counts(context).await?;
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let of_members = self.members.iter().map(|member| &member.subscription);
        for subscription in of_members.chain([&self.subscription]) {
            subscribe::Vigil::over(subscription, self.goes_on).check(&look, &self.rooms.me).await?;
        }
        self.tell_misfits(context).await?;
        crash_point!("verified");
        // Whatever was loaded under them has been sent past the way back by now.
        self.rooms.cleanup.drop_origins(context.op).await
    }
}

fn ended(built: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    built.unwrap_or_else(|error| {
        Err(Failure::new(Code::Internal, "building indexes ended unexpectedly").caused_by(&error))
    })
}

/// Gives up when nothing has moved for too long.
pub(super) struct Waiting {
    limit: Duration,
    pause: Duration,
    moved: Instant,
    last: Lsn,
}

impl Waiting {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, pause: FIRST_LOOK, moved: Instant::now(), last: Lsn::default() }
    }

    /// Until it is time to look again: soon at first, as most waiting is short.
    pub(super) async fn pause(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LOOK);
    }

    pub(super) fn still(&mut self, at: Lsn, who: impl FnOnce() -> String) -> Result<(), Failure> {
        if at > self.last {
            (self.last, self.moved) = (at, Instant::now());
        }
        if self.moved.elapsed() < self.limit {
            return Ok(());
        }
        Err(Failure::new(Code::CatchUpStalled, format!("{}: nothing moved for {} s", who(), self.limit.as_secs())))
    }
}

/// The tables to copy, largest first.
pub(super) fn table_jobs(tables: &[v1::SourceTable], planned: &[v1::SessionTable]) -> Result<Vec<TableJob>, Failure> {
    let mut jobs = Vec::new();
    for table in tables.iter().filter(|table| table.kind != "p") {
        let name = table.table.as_ref().map(table_name).expect("a table has its name");
        let plan = planned.iter().find(|planned| planned.oid == table.oid && !planned.part_starts.is_empty());
        let plan =
            plan.ok_or_else(|| Failure::new(Code::BadRequest, format!("the source planned no parts of {name}")))?;
        let stored = || table.columns.iter().filter(|column| column.generated.is_empty());
        jobs.push(TableJob {
            oid: table.oid,
            into: name.clone(),
            name,
            columns: stored().map(|column| column.name.clone()).collect(),
            binary: stored().all(|column| column.binary_safe),
            plan: TablePlan { starts: plan.part_starts.clone(), pages: plan.pages },
            rows_estimate: plan.rows_estimate,
        });
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.plan.pages));
    Ok(jobs)
}

/// Where the target's sequence is to stand: `margin` steps (and what sessions may have cached) past the source's.
fn ahead_of(sequence: &v1::SequencePosition, margin: i64) -> i64 {
    let steps = margin.saturating_add(sequence.cache).saturating_mul(sequence.increment);
    sequence.last_value.saturating_add(steps).clamp(sequence.min_value, sequence.max_value)
}

/// Where the source publishes and how a plan is shown; used by dry runs too.
pub(super) fn is_binary(table: &v1::SourceTable) -> bool {
    table.columns.iter().filter(|column| column.generated.is_empty()).all(|column| column.binary_safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_moves_ahead_in_its_own_direction_and_never_past_its_end() {
        let at = |last_value, increment, cache| v1::SequencePosition {
            last_value,
            increment,
            cache,
            min_value: -5000,
            max_value: 5000,
            ..v1::SequencePosition::default()
        };
        assert_eq!(ahead_of(&at(10, 1, 1), 1000), 1011);
        assert_eq!(ahead_of(&at(10, 1, 50), 1000), 1060);
        assert_eq!(ahead_of(&at(-10, -2, 1), 1000), -2012);
        assert_eq!(ahead_of(&at(4900, 1, 1), 1000), 5000);
        assert_eq!(ahead_of(&at(0, i64::MAX, i64::MAX), 1000), 5000);
    }
}
