//! The native recipe, `--method snapshot`: PostgreSQL's own first copy, looked after.
//!
//! The subscription copies each table by itself, in a snapshot of its own, into tables that are complete: no snapshot of the
//! source is held for all of them. Its rows bear an origin, so that nothing goes back to where it came from. What PostgreSQL
//! does not do is done here: it is looked at before, shown while it goes on, given up where it fails again and again, and
//! taken back, with the slots it leaves on the source.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    lsn::Lsn,
    names::TableName,
    operation::{Phase, SchemaSync},
    v1,
};
use tokio::time::Instant;

use super::{
    direct::{Direct, DirectPlan, unless_lost},
    findings::Findings,
    messages::table_name,
    reach::Reach,
    steps::Waiting,
    subscribe::{self, Inflow},
};
use crate::{
    breakpoint::crash_point,
    lifecycle::NodeEvent,
    operations::{Context, Milestone, Recipe},
    postgres::{
        self, Purpose, Session,
        catalog::{self, ServerFacts},
        ddl::{self, OriginFilter},
        rows,
        subscriptions::{self, TableCopy},
    },
};

/// So many errors while no table comes further say that it will not get over them. PostgreSQL tries again every few seconds.
const ERRORS_TOO_MANY: u64 = 3;
/// Tables whose statistics are gathered by one statement.
const ANALYZED_AT_ONCE: usize = 100;

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// The native recipe, read top to bottom. Undo runs bottom to top.
pub(super) fn recipe(plan: &DirectPlan) -> Recipe<Direct> {
    let both_ways = !plan.wanted.one_way;
    let mut recipe = Recipe::<Direct>::new()
        .step("check both nodes", Phase::Preflight, |direct, context| direct.check_both_nodes(context).boxed());
    if plan.wanted.schema_sync == SchemaSync::Auto {
        // No undo: it only adds, and what it adds the operator wanted.
        recipe = recipe.step("sync schema", Phase::Schema, |direct, context| direct.sync_schema(context).boxed());
    }
    // Undo: the source drops slot, publication, snapshot and locks.
    recipe = recipe.step("open session", Phase::Snapshot, |direct, context| direct.open_session(context).boxed());
    if both_ways {
        // Undo: our slot and publication are dropped.
        recipe = recipe.step("publish on target", Phase::Schema, |direct, context| direct.publish(context).boxed());
    }
    recipe = recipe
        // Undo: what the restore made is dropped.
        .step("create tables", Phase::Schema, |direct, context| direct.create_tables(context).boxed())
        // PostgreSQL copies into tables that are complete.
        .step("build indexes", Phase::Schema, |direct, context| direct.build_indexes(context).boxed())
        // Undo: our subscription is dropped, the source drops the slots it used; tables that were there are emptied.
        .step("copy tables", Phase::Copy, |direct, context| direct.copy_natively(context).boxed())
        .step("move sequences", Phase::Sequences, |direct, context| direct.move_sequences(context).boxed())
        .step("catch up", Phase::CatchingUp, |direct, context| direct.catch_up(context).boxed());
    if both_ways {
        // Undo: the source drops its subscription.
        recipe =
            recipe.step("replicate back", Phase::CatchingUp, |direct, context| direct.replicate_back(context).boxed());
    }
    recipe.step("verify", Phase::Verify, |direct, context| direct.verify_native(context).boxed())
}

/// What the native copy needs beyond what every method does.
pub(super) fn check(findings: &mut Findings, server: &ServerFacts, facts: &v1::ExamineReply) {
    let others: Vec<_> = facts.members.iter().map(|member| member.node.as_str()).collect();
    findings.must(others.is_empty(), Code::MethodInMesh, "no third node replicates both ways", || {
        format!(
            "the source replicates both ways with {}: PostgreSQL does not say how far into their changes the snapshots go \
             in which it copies each table",
            others.join(", ")
        )
    });
    findings.must(server.max_sync_workers > 0, Code::WorkersTooFew, "a worker may copy tables", || {
        "max_sync_workers_per_subscription is 0".into()
    });
    let workers = server.max_logical_replication_workers.min(server.max_worker_processes);
    let used = server.used_logical_replication_workers;
    findings.must(used.saturating_add(2) <= workers, Code::WorkersTooFew, "workers to copy tables", || {
        format!("{used} of {workers} logical replication workers are in use; to apply and to copy takes 2 more")
    });
}

impl Direct {
    pub(super) async fn copy_natively(&mut self, context: &Context) -> Result<(), Failure> {
        self.advance(context, NodeEvent::CopyBegan).await?;
        self.check_unchanged().await?;
        self.check_alike().await?;
        // The definitions are read: from here on each table has a snapshot of its own, and its own locks.
        self.source.release_snapshot(self.session().id).await?;
        self.plan_tables(context);
        self.subscription = self.let_subscription_copy(context).await?;
        let lost = self.session().lost.clone();
        Box::pin(unless_lost(lost, self.watch_copies(context))).await?;
        crash_point!("all copied");
        self.check_unchanged().await?;
        self.analyze(context).await?;
        self.advance(context, NodeEvent::RowsInPlace).await
    }

    fn plan_tables(&self, context: &Context) {
        context.feed.progress(|progress| {
            progress.forget_tables();
            for table in self.facts.tables.iter().filter(|table| table.kind != "p") {
                let name = table.table.as_ref().map(table_name).expect("a table has its name");
                progress.plan_table(table.oid, name.to_string(), table.bytes, table.rows_estimate);
            }
        });
    }

    /// Makes the subscription, has the source let it copy, and lets it run.
    async fn let_subscription_copy(&self, context: &Context) -> Result<String, Failure> {
        let (reply, id) = (&self.session().reply, self.session().id);
        // One way, everything the source has belongs here, wherever it came from.
        let origin = if self.plan.wanted.one_way { OriginFilter::Any } else { OriginFilter::None };
        let source = &self.plan.source;
        let reach = &Reach::told(source, &reply.link, &reply.database, &reply.conninfo)?;
        let (slot, publication, begin) = (&reply.slot, &reply.publication, Lsn::default());
        let inflow = Inflow { source, slot, publication, reach, origin, begin, gates: &[] };
        crash_point!("before subscribe");
        let made = subscribe::create(&self.rooms, context.op, &inflow, true).await?;
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let server = catalog::server_facts(&look).await.map_err(explain)?;
        // Before its first worker makes a slot there.
        self.source.copy_natively(id, made.oid, server.system_identifier).await?;
        if !made.is_enabled {
            subscribe::start(&self.rooms, context.op, &made, begin).await?;
        }
        Ok(made.name)
    }

    /// Waits until every table is copied and follows the source.
    async fn watch_copies(&self, context: &Context) -> Result<(), Failure> {
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let mut vigil = subscribe::Vigil::over(&self.subscription, self.goes_on);
        let mut waiting = Waiting::new(self.rooms.config.copy.catch_up_timeout);
        let mut shown = Shown::new(&self.facts.tables, self.plan.wanted.parallel);
        let mut errors = Errors::default();
        loop {
            let copies = subscriptions::table_copies(&look, &self.subscription).await.map_err(explain)?;
            shown.show(&copies, context).await;
            if copies.iter().all(|copy| copy.is_ready) {
                return Ok(());
            }
            // Where the source is away, that is the reason, and it is waited out.
            self.source.slot_progress(self.session().id).await?;
            vigil.check(&look, &self.rooms.me).await?;
            self.judge_errors(&look, &copies, &mut errors, shown.moves, context).await?;
            waiting.still(Lsn(shown.moves), || format!("{} copies tables", self.subscription))?;
            waiting.pause().await;
        }
    }

    /// Tells of the first error of a table's worker, and gives up where there is one after the other.
    async fn judge_errors(
        &self,
        look: &Session,
        copies: &[TableCopy],
        errors: &mut Errors,
        moves: u64,
        context: &Context,
    ) -> Result<(), Failure> {
        let found = subscriptions::find(look, &self.subscription).await.map_err(explain)?;
        let Some(now) = found.map(|found| found.copy_errors) else { return Ok(()) };
        let many = errors.since_something_moved(now, moves);
        let failing = copies.iter().find(|copy| copy.has_begun && !copy.has_rows && copy.so_far.is_none());
        let Some(copy) = failing.filter(|_| many > 0) else { return Ok(()) };
        if many < ERRORS_TOO_MANY && context.feed.has_told("init.table_failed", &copy.name.to_string()) {
            return Ok(());
        }
        let failure = self.why_it_fails(look, &copy.name, many).await?;
        if many >= ERRORS_TOO_MANY {
            return Err(failure);
        }
        let text = format!("{} could not be copied; PostgreSQL tries again", copy.name);
        let mut told = Milestone::new("init.table_failed", text).table(&copy.name).phase(Phase::Copy);
        told.failure = Some(failure);
        context.announce(told.took(errors.began.elapsed())).await;
        Ok(())
    }

    /// PostgreSQL keeps a worker's error in its log alone; what can be seen from outside is told with it.
    async fn why_it_fails(&self, look: &Session, table: &TableName, times: u64) -> Result<Failure, Failure> {
        let (me, source) = (&self.rooms.me, &self.plan.source);
        self.check_unchanged().await?;
        let text = match times {
            1 => format!("PostgreSQL on {me} could not copy {table}"),
            _ => format!("PostgreSQL on {me} could not copy {table}, {times} times"),
        };
        let hint = format!(
            "PostgreSQL's log on {me} says why; mend it and start the node again, or copy in another way: steepctl node \
             start {me} --from {source} --method direct"
        );
        let mut failure = Failure::new(Code::NativeCopyFailing, text).hint(hint);
        for (name, words) in self.differences().await?.into_iter().filter(|(name, _)| name == table) {
            failure = failure.cause(format!("{name} is not the same on {source}: {words}"));
        }
        if !rows::which_hold_any(look, std::slice::from_ref(table)).await.map_err(explain)?.is_empty() {
            let text = format!("{table} holds rows that were written on {me}: a key of theirs may be in the way");
            failure = failure.cause(text);
        }
        Ok(failure)
    }

    /// The planner knows nothing of tables that were filled while nobody looked.
    async fn analyze(&self, context: &Context) -> Result<(), Failure> {
        let session = self.rooms.database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        let plain = self.facts.tables.iter().filter(|table| table.kind != "p");
        let names: Vec<_> = plain.filter_map(|table| table.table.as_ref().map(table_name)).collect();
        for some in names.chunks(ANALYZED_AT_ONCE) {
            session.run(&ddl::analyze(some)).await.map_err(explain)?;
        }
        session.close().await;
        Ok(())
    }

    /// Every table follows the source, none has changed, and no worker has met an error. Rows cannot be counted: the
    /// tables were copied at as many moments, and have gone on since.
    pub(super) async fn verify_native(&mut self, context: &Context) -> Result<(), Failure> {
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let copies = subscriptions::table_copies(&look, &self.subscription).await.map_err(explain)?;
        for table in self.facts.tables.iter().filter(|table| table.kind != "p") {
            let name = table.table.as_ref().map(table_name).expect("a table has its name");
            if !copies.iter().any(|copy| copy.name == name && copy.is_ready) {
                let text = format!("subscription {} on {} does not carry {name}", self.subscription, self.rooms.me);
                return Err(Failure::new(Code::NotReplicated, text));
            }
        }
        self.check_unchanged().await?;
        self.verify(context).await
    }
}

/// Errors of the workers that copy tables.
struct Errors {
    began: Instant,
    /// Their number, and how much had moved, when something last moved.
    at: Option<(u64, u64)>,
}

impl Default for Errors {
    fn default() -> Self {
        Self { began: Instant::now(), at: None }
    }
}

impl Errors {
    fn since_something_moved(&mut self, now: u64, moves: u64) -> u64 {
        match self.at {
            Some((then, before)) if before == moves => now.saturating_sub(then),
            _ => {
                self.at = Some((now, moves));
                0
            }
        }
    }
}

/// What has been shown of each table so far.
struct Shown {
    tables: BTreeMap<TableName, ShownTable>,
    /// The table that each place shows.
    places: Vec<Option<TableName>>,
    /// Grows whenever a table has come further.
    moves: u64,
}

struct ShownTable {
    oid: u32,
    heap_bytes: u64,
    began: Option<Instant>,
    is_done: bool,
    inserted_before: Option<u64>,
    rows: u64,
    bytes: u64,
}

impl Shown {
    fn new(tables: &[v1::SourceTable], places: u32) -> Self {
        let shown = tables.iter().filter(|table| table.kind != "p").filter_map(|table| {
            let (oid, heap_bytes) = (table.oid, table.bytes.max(1));
            let shown =
                ShownTable { oid, heap_bytes, began: None, is_done: false, inserted_before: None, rows: 0, bytes: 0 };
            Some((table.table.as_ref().map(table_name)?, shown))
        });
        Self { tables: shown.collect(), places: vec![None; places as usize], moves: 0 }
    }

    async fn show(&mut self, copies: &[TableCopy], context: &Context) {
        for copy in copies {
            let Some(shown) = self.tables.get_mut(&copy.name) else { continue };
            let inserted_before = *shown.inserted_before.get_or_insert(copy.rows_inserted);
            if copy.has_begun && shown.began.is_none() && !shown.is_done {
                shown.began = Some(Instant::now());
                self.moves += 1;
                if !context.feed.has_told("init.table_started", &copy.name.to_string()) {
                    let told = Milestone::new("init.table_started", format!("{} began", copy.name));
                    context.announce(told.table(&copy.name).phase(Phase::Copy)).await;
                }
            }
            if let Some((rows, bytes)) = copy.so_far.filter(|so_far| so_far.1 > shown.bytes) {
                (shown.rows, shown.bytes) = (rows, bytes);
                self.moves += 1;
                let (oid, heap_bytes) = (shown.oid, shown.heap_bytes);
                if let Some(place) = take_place(&mut self.places, &copy.name, oid, heap_bytes, context) {
                    context.feed.progress(|progress| progress.part_moved(place, bytes));
                }
            }
            if copy.is_ready && !shown.is_done {
                shown.is_done = true;
                shown.rows = shown.rows.max(copy.rows_inserted.saturating_sub(inserted_before));
                self.moves += 1;
                let (oid, heap_bytes, rows, bytes) = (shown.oid, shown.heap_bytes, shown.rows, shown.bytes);
                match take_place(&mut self.places, &copy.name, oid, heap_bytes, context) {
                    Some(place) => {
                        context.feed.part_done(place, rows, bytes);
                        self.places[place] = None;
                    }
                    None => context.feed.progress(|progress| progress.part_was_done(oid, heap_bytes, rows, bytes)),
                }
                let took = shown.began.map(|began| began.elapsed()).unwrap_or_default();
                let (rows, bytes) = context.feed.progress(|progress| progress.table_done(oid));
                if !context.feed.has_told("init.table_complete", &copy.name.to_string()) {
                    let told = Milestone::new("init.table_complete", format!("{} copied", copy.name));
                    let told = told.table(&copy.name).phase(Phase::Copy).copied(rows, bytes);
                    context.announce(told.took(took)).await;
                }
            }
        }
    }
}

/// The place that shows `table`, a free one where it has none yet; none: all are taken by others.
fn take_place(
    places: &mut [Option<TableName>],
    table: &TableName,
    oid: u32,
    heap_bytes: u64,
    context: &Context,
) -> Option<usize> {
    if let Some(place) = places.iter().position(|taken| taken.as_ref() == Some(table)) {
        return Some(place);
    }
    let place = places.iter().position(Option::is_none)?;
    places[place] = Some(table.clone());
    context.feed.progress(|progress| progress.part_began(place, oid, heap_bytes));
    Some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_count_only_while_no_table_comes_further() {
        let mut errors = Errors::default();
        assert_eq!(errors.since_something_moved(7, 0), 0, "what was before does not count");
        assert_eq!(errors.since_something_moved(8, 0), 1);
        assert_eq!(errors.since_something_moved(9, 0), 2);
        assert_eq!(errors.since_something_moved(9, 1), 0, "a table came further");
        assert_eq!(errors.since_something_moved(10, 1), 1);
    }
}
