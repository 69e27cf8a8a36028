//! The direct recipe: the agents stream the source's snapshot to the target, several parts at once, while both
//! may be written.
//!
//! Read [`recipe`] top to bottom. What each step makes is written down before it is made; undo takes it back,
//! newest first, the source's share before ours.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, SessionId},
    operation::{InitMethod, Phase, SchemaSync},
    v1,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::{
    disk,
    gates::Gates,
    manual::{self, Prepared},
    members::Joined,
    native,
    preflight::{TargetTables, Wanted},
    two_phase::apply::give_back,
};
use crate::{
    breakpoint::crash_point,
    lifecycle::NodeEvent,
    mesh::Source,
    operations::{Context, Milestone, Recipe, Work},
    rooms::Rooms,
    snapshot::{files::read::Opened, indexes::Builder},
    store::{ledger, nodes, notes},
    telemetry,
};

/// How often the session on the source is renewed.
const RENEW: Duration = Duration::from_secs(1);
/// How often the end is told to a source that does not answer.
const CLOSE_TRIES: u32 = 10;

/// What the operator asked for.
#[derive(Debug, Clone)]
pub struct DirectPlan {
    /// The other end.
    pub source: NodeId,
    /// How rows are copied: never [`InitMethod::Auto`].
    pub method: InitMethod,
    /// Why so, where the operator left it open.
    pub method_reason: String,
    /// What the node was restored from, where that was done by hand.
    pub prepared: Option<Prepared>,
    /// Tables, directions, width.
    pub wanted: Wanted,
    /// The publication of the whole database serves; otherwise one of the target's own.
    pub shared_publication: bool,
    /// The same selection, as messages carry it.
    pub selection: v1::Selection,
    /// What an operator has signed: the source opens to nothing else.
    pub signed: v1::SignedIntent,
    /// Nodes that replicate both ways with the source, and shall with this one.
    pub members: Vec<v1::MeshMember>,
    /// Bytes a second; 0: no limit.
    pub max_rate: u64,
    /// auto, none, lz4, zstd, zstd:LEVEL.
    pub compress: String,
    /// Schema and rows come from a snapshot in files.
    pub from: Option<FromFiles>,
}

/// A snapshot in files that a node is initialized from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromFiles {
    /// Its directory on this agent's host.
    pub input: String,
    /// What was written since comes too; otherwise rows alone are loaded, and the source is not asked.
    pub subscribes: bool,
}

/// The session on the source, as the target holds it.
pub(super) struct OpenedSession {
    pub(super) id: SessionId,
    pub(super) reply: v1::OpenSessionReply,
    pub(super) lost: watch::Receiver<Option<Failure>>,
    _renewing: Renewing,
}

/// A session that is renewed for as long as this lives.
pub(super) type Renewing = AbortOnDropHandle<()>;

/// A direct initialization under way.
pub struct Direct {
    pub(super) rooms: Rooms,
    pub(super) source: Source,
    pub(super) plan: DirectPlan,
    pub(super) facts: v1::ExamineReply,
    pub(super) here: TargetTables,
    pub(super) session: Option<OpenedSession>,
    pub(super) archive: Option<PathBuf>,
    pub(super) builder: Option<Builder>,
    pub(super) building: Option<AbortOnDropHandle<Result<(), Failure>>>,
    pub(super) counts: Vec<v1::TableRows>,
    /// Rows that were restored by hand, as far as they were counted.
    pub(super) restored_rows: u64,
    /// For each node that this one's changes go to: the slot made for it.
    pub(super) reverse_slots: Vec<(NodeId, String)>,
    pub(super) subscription: String,
    pub(super) members: Vec<Joined>,
    /// How long the source holds the session without hearing from this node; none: there is no session yet.
    pub(super) lease: Option<Duration>,
    /// How often it was begun anew, since the source had lost the snapshot.
    pub(super) anew: u32,
    /// Where tables stand that were copied in a later snapshot.
    pub(super) gates: Gates,
    /// The source was asked for a session, and may be opening it.
    pub(super) is_opening: bool,
    /// Steps may have been run before, and stopped half-way.
    pub(super) goes_on: bool,
    /// The snapshot it comes from, if it lies in files.
    pub(super) files: Option<Arc<Opened>>,
    /// Why a session was given up, by whichever node.
    pub(super) lost: watch::Sender<Option<Failure>>,
}

/// The recipe for the plan's method.
pub fn recipe_for(plan: &DirectPlan) -> Recipe<Direct> {
    match plan.method {
        InitMethod::Snapshot => native::recipe(plan),
        InitMethod::Manual => manual::recipe(plan),
        InitMethod::Direct | InitMethod::Auto | InitMethod::TwoPhase | InitMethod::RowsAlone => recipe(plan),
    }
}

/// The direct recipe, read top to bottom. Undo runs bottom to top.
fn recipe(plan: &DirectPlan) -> Recipe<Direct> {
    let (both_ways, has_members) = (!plan.wanted.one_way, !plan.members.is_empty());
    if let Some(from) = &plan.from {
        return recipe_from_files(from, both_ways);
    }
    let mut recipe = Recipe::<Direct>::new()
        .step("check both nodes", Phase::Preflight, |direct, context| direct.check_both_nodes(context).boxed());
    if plan.wanted.schema_sync == SchemaSync::Auto {
        // No undo: it only adds, and what it adds the operator wanted.
        recipe = recipe.step("sync schema", Phase::Schema, |direct, context| direct.sync_schema(context).boxed());
    }
    if has_members {
        // Undo: each member drops its slot, and its publication or the tables added to it.
        recipe = recipe.step("join members", Phase::Snapshot, |direct, context| direct.join_members(context).boxed());
    }
    recipe = recipe
        // Undo: the source lets run again what it paused, and drops slot, publication, snapshot and locks.
        .step("open session", Phase::Snapshot, |direct, context| direct.open_session(context).boxed());
    if both_ways {
        // Undo: our slot and publication are dropped.
        recipe = recipe.step("publish on target", Phase::Schema, |direct, context| direct.publish(context).boxed());
    }
    recipe = load(recipe)
        // Undo: our subscription is dropped; the source drops its slot itself.
        .step("subscribe", Phase::CatchingUp, |direct, context| direct.subscribe(context).boxed());
    if has_members {
        // Undo: our subscriptions are dropped; the members drop their slots themselves.
        recipe = recipe.step("subscribe to members", Phase::CatchingUp, |direct, context| {
            direct.subscribe_to_members(context).boxed()
        });
    }
    follow(recipe, both_ways)
}

/// The same with a snapshot in files for the source of schema and rows.
fn recipe_from_files(from: &FromFiles, both_ways: bool) -> Recipe<Direct> {
    let mut recipe = Recipe::<Direct>::new()
        .step("verify snapshot", Phase::Preflight, |direct, context| direct.verify_files(context).boxed())
        .step("check target", Phase::Preflight, |direct, context| direct.check_target(context).boxed());
    if !from.subscribes {
        return load(recipe).step("verify", Phase::Verify, |direct, context| direct.verify_rows(context).boxed());
    }
    // Undo: the source drops the slot it made for us; that of the snapshot stays as it is.
    recipe = recipe.step("open session", Phase::Snapshot, |direct, context| direct.borrow_slot(context).boxed());
    if both_ways {
        // Undo: our slot and publication are dropped.
        recipe = recipe.step("publish on target", Phase::Schema, |direct, context| direct.publish(context).boxed());
    }
    // Undo: our subscription is dropped; the source drops its slot itself.
    let subscribed =
        load(recipe).step("subscribe", Phase::CatchingUp, |direct, context| direct.subscribe(context).boxed());
    follow(subscribed, both_ways)
}

/// Everything as of the snapshot.
fn load(recipe: Recipe<Direct>) -> Recipe<Direct> {
    recipe
        // Undo: what the restore made is dropped.
        .step("create tables", Phase::Schema, |direct, context| direct.create_tables(context).boxed())
        // Undo: tables that were there before are emptied.
        .step("copy tables", Phase::Copy, |direct, context| direct.copy_tables(context).boxed())
        .step("build indexes", Phase::Indexes, |direct, context| direct.build_indexes(context).boxed())
        .step("move sequences", Phase::Sequences, |direct, context| direct.move_sequences(context).boxed())
}

/// Everything since.
fn follow(recipe: Recipe<Direct>, both_ways: bool) -> Recipe<Direct> {
    let mut recipe = recipe.step("catch up", Phase::CatchingUp, |direct, context| direct.catch_up(context).boxed());
    if both_ways {
        // Undo: the source and every member drop their subscription.
        recipe =
            recipe.step("replicate back", Phase::CatchingUp, |direct, context| direct.replicate_back(context).boxed());
    }
    recipe.step("verify", Phase::Verify, |direct, context| direct.verify(context).boxed())
}

impl Direct {
    /// Nothing done yet.
    pub fn new(rooms: Rooms, source: Source, plan: DirectPlan) -> Self {
        Self {
            rooms,
            source,
            plan,
            facts: v1::ExamineReply::default(),
            here: TargetTables::default(),
            session: None,
            archive: None,
            builder: None,
            building: None,
            counts: Vec::new(),
            restored_rows: 0,
            reverse_slots: Vec::new(),
            subscription: String::new(),
            members: Vec::new(),
            lease: None,
            anew: 0,
            gates: Gates::default(),
            is_opening: false,
            goes_on: false,
            files: None,
            lost: watch::Sender::new(None),
        }
    }

    /// Moves the node to its next state and tells it; where it is there already, since this was run before, nothing
    /// happens.
    pub(super) async fn advance(&self, context: &Context, event: NodeEvent) -> Result<(), Failure> {
        if self.goes_on {
            let own = nodes::own(&self.rooms.store).await.map_err(|error| error.explain())?;
            if own.init_state == event.leads_to() {
                return Ok(());
            }
        }
        let moved = nodes::advance(&self.rooms.store, event, Some(context.op), &context.actor).await;
        let moved = moved.map_err(|error| error.explain())?;
        let mut told = Milestone::new("init.state_change", format!("{} is {}", self.rooms.me, moved.to));
        told.previous_state = moved.from.to_string();
        told.new_state = moved.to.to_string();
        context.announce(told).await;
        Ok(())
    }

    pub(super) fn session(&self) -> &OpenedSession {
        self.session.as_ref().expect("the session was opened by an earlier step")
    }

    /// Keeps the session alive from now on; `lost` tells when the source has given it up.
    pub(super) fn hold_session(&mut self, context: &Context, id: SessionId, reply: v1::OpenSessionReply) {
        let lease = Duration::from_secs(reply.lease_seconds);
        self.lease = Some(lease);
        let (lost, _renewing) = (self.lost.subscribe(), self.renewed(context, self.source.clone(), id, lease));
        self.session = Some(OpenedSession { id, reply, lost, _renewing });
    }

    /// Renews the session `id` of `node` from now on; what the steps wait for is given up when the node gives it up, or
    /// has not been reached for its `lease`.
    pub(super) fn renewed(&self, context: &Context, node: Source, id: SessionId, lease: Duration) -> Renewing {
        let is_source = node.node() == self.source.node();
        let (tell, context) = (self.lost.clone(), context.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut last = Instant::now();
            loop {
                sleep(RENEW).await;
                match node.renew(id).await {
                    Ok(renewed) => {
                        last = Instant::now();
                        if is_source {
                            context.feed.progress(|progress| progress.retained(renewed.retained_wal_bytes));
                        }
                        if let Some(failure) = renewed.failure {
                            tell.send_replace(Some(failure.into()));
                        }
                    }
                    Err(failure) if failure.code == Code::SessionUnknown => {
                        tell.send_replace(Some(failure));
                    }
                    Err(failure) if last.elapsed() > lease => {
                        let (node, seconds) = (node.node(), lease.as_secs());
                        let text =
                            format!("{node} could not be reached for {seconds} s, so that its session has ended");
                        tell.send_replace(Some(Failure::new(Code::SessionExpired, text).cause(failure.message)));
                    }
                    Err(failure) => {
                        // The lease is long; what needs the source now will say so itself.
                        warn!(op_id = %context.op, error = telemetry::failure(&failure), "the session could not be renewed");
                    }
                }
            }
        }))
    }

    /// All nodes this one will replicate with both ways, the source first; none for one way.
    pub(super) fn both_ways_with(&self) -> Vec<NodeId> {
        let source = (!self.plan.wanted.one_way).then(|| self.plan.source.clone());
        source.into_iter().chain(self.members.iter().map(|member| member.node.node().clone())).collect()
    }

    fn is_rows_alone(&self) -> bool {
        self.plan.from.as_ref().is_some_and(|from| !from.subscribes)
    }

    async fn rows_copied(&self, context: &Context) -> Result<u64, Failure> {
        let totals = ledger::totals(&self.rooms.store, context.op).await.map_err(|error| error.explain())?;
        Ok(totals.iter().map(|table| table.rows).sum())
    }

    /// The rows are there to stay. The node replicates with nobody, which is what uninitialized means.
    async fn complete_rows(&mut self, context: &Context) -> Result<u64, Failure> {
        crash_point!("before kept");
        self.rooms.cleanup.keep(context.op).await?;
        nodes::set_source(&self.rooms.store, None).await.map_err(|error| error.explain())?;
        self.advance(context, NodeEvent::Undone).await?;
        if self.has_lent_files() {
            give_back(&self.source, "the rows are loaded").await;
        }
        self.forget_archive();
        notes::forget(&self.rooms.store, context.op).await.map_err(|error| error.explain())?;
        self.rows_copied(context).await
    }

    pub(super) fn forget_archive(&mut self) {
        let Some(path) = self.archive.take() else { return };
        // One that was not fetched to its end has another name.
        drop(std::fs::remove_file(path.with_extension("part")));
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(path = %path.display(), reason = %error, "a schema archive could not be removed");
        }
    }
}

/// Whether what failed may be well again without anybody's help: a network, an agent or a server that is away.
fn passes(failure: &Failure) -> bool {
    match failure.code {
        Code::PeerUnreachable | Code::PeerSilent | Code::StreamBroken => true,
        // That PostgreSQL could not reach another one is for somebody to mend.
        Code::PostgresUnreachable => !failure.sqlstate.as_deref().is_some_and(|state| state.starts_with("08")),
        _ => false,
    }
}

/// Runs `work`, unless the source gives the session up first.
pub(super) async fn unless_lost<T>(
    mut lost: watch::Receiver<Option<Failure>>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        done = work => match (done, lost.borrow().clone()) {
            // What broke because the session was lost is told by its cause.
            (Err(_), Some(failure)) => Err(failure),
            (done, _) => done,
        },
        failure = async {
            match lost.wait_for(Option::is_some).await {
                Ok(failure) => failure.clone(),
                Err(_) => None,
            }
        } => Err(failure.unwrap_or_else(|| Failure::new(Code::Internal, "nobody renews the session any more"))),
    }
}

#[async_trait]
impl Work for Direct {
    async fn begin(&mut self, context: &Context) -> Result<(), Failure> {
        self.advance(context, NodeEvent::Started).await?;
        let source = self.plan.source.clone();
        nodes::set_source(&self.rooms.store, Some(&source)).await.map_err(|error| error.explain())?;
        if !self.plan.method_reason.is_empty() {
            let told = format!("method {}: {}", self.plan.method, self.plan.method_reason);
            context.announce(Milestone::new("init.method_chosen", told).phase(Phase::Preflight)).await;
        }
        Ok(())
    }

    async fn resume(&mut self, context: &Context, done: &[String]) -> Result<(), Failure> {
        Box::pin(self.take_up(context, done)).await
    }

    fn goes_on_after(&self, failure: &Failure) -> Option<Duration> {
        // What died while it opened the session, opens the same or another one when it is asked again.
        let while_opening = self.is_opening.then_some(self.rooms.config.copy.session_lease);
        self.lease.or(while_opening).filter(|_| passes(failure))
    }

    async fn begin_anew(&mut self, context: &Context, failure: &Failure) -> Result<Vec<&'static str>, Failure> {
        Box::pin(self.copy_anew(context, failure)).await
    }

    fn advise(&self, failure: Failure) -> Failure {
        let (me, source) = (&self.rooms.me, &self.plan.source);
        let next = match (self.plan.method, &self.plan.from) {
            (InitMethod::Manual, _) => format!("steepctl node complete {me} --source {source}"),
            (_, Some(_)) => format!("steepctl snapshot apply {me} once more"),
            _ => format!("steepctl node resume {me}"),
        };
        disk::advise(failure, me, source, &next)
    }

    fn outlives_the_agent(&self) -> bool {
        self.lease.is_some()
    }

    async fn complete(&mut self, context: &Context) -> Result<u64, Failure> {
        if self.is_rows_alone() {
            return self.complete_rows(context).await;
        }
        crash_point!("before close");
        // The others first: what they made must not end with its lease once we call this node synchronized.
        for node in self.members.iter().map(|member| &member.node).chain([&self.source]) {
            let mut tries = 0;
            while let Err(failure) = node.close_session(true, "the node is synchronized").await {
                tries += 1;
                if !failure.retryable || tries == CLOSE_TRIES {
                    return Err(failure);
                }
                sleep(RENEW).await;
            }
        }
        self.members.clear();
        self.session = None;
        crash_point!("before synchronized");
        self.rooms.cleanup.keep(context.op).await?;
        self.advance(context, NodeEvent::CaughtUp).await?;
        crash_point!("synchronized");
        self.forget_archive();
        notes::forget(&self.rooms.store, context.op).await.map_err(|error| error.explain())?;
        match self.plan.method {
            InitMethod::Snapshot => Ok(context.feed.progress(|progress| progress.rows())),
            InitMethod::Manual => Ok(self.restored_rows),
            InitMethod::Direct | InitMethod::Auto | InitMethod::TwoPhase | InitMethod::RowsAlone => {
                self.rows_copied(context).await
            }
        }
    }

    fn done(&self) -> String {
        match self.is_rows_alone() {
            false => format!("{} is synchronized", self.rooms.me),
            true => format!("{} holds the rows of the snapshot, and replicates with nobody", self.rooms.me),
        }
    }

    async fn undo(&mut self, context: &Context) -> Result<(), Failure> {
        // Whatever still runs for us must not make anything new meanwhile.
        self.building = None;
        self.session = None;
        self.members.clear();
        self.rooms.cleanup.undo(context.op).await?;
        self.forget_archive();
        notes::forget(&self.rooms.store, context.op).await.map_err(|error| error.explain())
    }

    async fn abandon(&mut self, context: &Context, why: &Failure) -> Result<(), Failure> {
        let own = nodes::own(&self.rooms.store).await.map_err(|error| error.explain())?;
        let event = if why.code == Code::Cancelled { NodeEvent::Undone } else { NodeEvent::Failed };
        if own.init_state.is_active() {
            self.advance(context, event).await?;
        }
        nodes::set_source(&self.rooms.store, None).await.map_err(|error| error.explain())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_away_is_waited_for_and_what_somebody_has_to_mend_is_not() {
        let failed = |code, sqlstate: Option<&str>| Failure {
            sqlstate: sqlstate.map(str::to_owned),
            ..Failure::new(code, "it failed")
        };
        for code in [Code::PeerUnreachable, Code::PeerSilent, Code::StreamBroken, Code::PostgresUnreachable] {
            assert!(passes(&failed(code, None)), "{code:?}");
        }
        // The server stops or starts.
        assert!(passes(&failed(Code::PostgresUnreachable, Some("57P01"))));
        // It cannot reach another one.
        assert!(!passes(&failed(Code::PostgresUnreachable, Some("08006"))));
        for code in [Code::SessionUnknown, Code::SessionExpired, Code::SnapshotLost, Code::SlotLost, Code::CopyFailed] {
            assert!(!passes(&failed(code, None)), "{code:?}");
        }
    }
}
