//! Copies some tables of a node again, while all its others replicate.
//!
//! Read [`recipe`] top to bottom. The rows come into tables beside the old ones; one transaction then puts them in their
//! place, so that readers see the old rows or the new ones. From before that moment until the new rows have caught up, the
//! node's subscriptions take a detour ([`crate::cleanup::Detour`]): no change of these tables is applied twice or not at
//! all, and none of any other is held up for longer than that takes. [`request`] is the door, [`examine`] looks, [`steps`]
//! are the longer steps.

mod anew;
mod examine;
pub mod request;
mod steps;

pub(super) use examine::check_slots_alive;

use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    node::NodeState,
    operation::Phase,
};

use super::{
    direct::{Direct, DirectPlan},
    disk,
};
use crate::{
    breakpoint::crash_point,
    cleanup::held_tables,
    lifecycle::NodeEvent,
    mesh::Source,
    operations::{Context, Recipe, Work},
    postgres::staging::Staged,
    rooms::Rooms,
    store::{ledger, nodes, notes},
};

/// What the operator asked for.
#[derive(Debug, Clone)]
pub(super) struct ReinitPlan {
    /// Source, tables, members, width.
    direct: DirectPlan,
    /// The tables are emptied first, and copied into.
    in_place: bool,
    /// The state the node was in.
    was: NodeState,
}

/// A reinitialization of tables under way.
pub struct Reinit {
    direct: Direct,
    in_place: bool,
    was: NodeState,
    /// The tables that hold rows; where they are copied in place, nothing stands beside them.
    tables: Vec<Staged>,
}

/// The recipe, read top to bottom. Undo finishes the detours, then takes back the rest, newest first.
fn recipe(plan: &ReinitPlan) -> Recipe<Reinit> {
    let (both_ways, has_members) = (!plan.direct.wanted.one_way, !plan.direct.members.is_empty());
    let mut recipe = Recipe::<Reinit>::new()
        .step("check both nodes", Phase::Preflight, |reinit, context| reinit.check_both_nodes(context).boxed());
    if both_ways {
        // Undo: applications may write again.
        recipe = recipe.step("fence writers", Phase::Snapshot, |reinit, context| reinit.fence_writers(context).boxed());
    }
    if has_members {
        // Undo: each member drops its slot.
        recipe =
            recipe.step("join members", Phase::Snapshot, |reinit, context| reinit.direct.join_members(context).boxed());
    }
    // Undo: the source drops slot, snapshot and locks.
    recipe =
        recipe.step("open session", Phase::Snapshot, |reinit, context| reinit.direct.open_session(context).boxed());
    if plan.in_place {
        // From the emptying on there is no way back; undo leaves the tables held.
        recipe = recipe
            .step("hold tables", Phase::Snapshot, |reinit, context| reinit.hold_tables(context).boxed())
            .step("empty tables", Phase::Schema, |reinit, context| reinit.empty_tables(context).boxed())
            .step("copy tables", Phase::Copy, |reinit, context| reinit.copy_tables(context).boxed())
            .step("open tables", Phase::Indexes, |reinit, context| reinit.open_tables(context).boxed());
    } else {
        recipe = recipe
            // Undo: the tables beside are dropped.
            .step("stage tables", Phase::Schema, |reinit, context| reinit.stage_tables(context).boxed())
            .step("copy tables", Phase::Copy, |reinit, context| reinit.copy_tables(context).boxed())
            // Undo: what was skipped meanwhile is brought to the old rows.
            .step("hold tables", Phase::Indexes, |reinit, context| reinit.hold_tables(context).boxed())
            // Undo: none; the new rows stay.
            .step("switch tables", Phase::Indexes, |reinit, context| reinit.switch_tables(context).boxed());
    }
    recipe
        .step("move sequences", Phase::Sequences, |reinit, _| reinit.direct.set_sequences_ahead().boxed())
        .step("catch up", Phase::CatchingUp, |reinit, context| reinit.catch_up(context).boxed())
        .step("verify", Phase::Verify, |reinit, context| reinit.verify(context).boxed())
}

impl Reinit {
    fn new(rooms: Rooms, source: Source, plan: ReinitPlan) -> Self {
        let ReinitPlan { direct, in_place, was } = plan;
        Self { direct: Direct::new(rooms, source, direct), in_place, was, tables: Vec::new() }
    }

    fn rooms(&self) -> &Rooms {
        &self.direct.rooms
    }

    fn let_go(&mut self) {
        self.direct.session = None;
        self.direct.members.clear();
    }
}

#[async_trait]
impl Work for Reinit {
    async fn begin(&mut self, context: &Context) -> Result<(), Failure> {
        self.direct.advance(context, NodeEvent::ReinitBegan).await
    }

    async fn resume(&mut self, context: &Context, done: &[String]) -> Result<(), Failure> {
        Box::pin(self.direct.take_up(context, done)).await?;
        self.tables = self.staged(context);
        Ok(())
    }

    fn goes_on_after(&self, failure: &Failure) -> Option<Duration> {
        self.direct.goes_on_after(failure)
    }

    async fn begin_anew(&mut self, context: &Context, failure: &Failure) -> Result<Vec<&'static str>, Failure> {
        Box::pin(self.copy_anew(context, failure)).await
    }

    fn advise(&self, failure: Failure) -> Failure {
        let (me, source) = (&self.rooms().me, &self.direct.plan.source);
        disk::advise(failure, me, source, &format!("steepctl node reinit {me} for the same tables"))
    }

    fn outlives_the_agent(&self) -> bool {
        self.direct.outlives_the_agent()
    }

    async fn complete(&mut self, context: &Context) -> Result<u64, Failure> {
        let totals = ledger::totals(&self.rooms().store, context.op).await.map_err(|error| error.explain())?;
        // All it made was for the way: the slots, the session, the origins.
        self.let_go();
        self.rooms().cleanup.undo(context.op).await?;
        crash_point!("reinit undone");
        self.direct.advance(context, NodeEvent::CaughtUp).await?;
        notes::forget(&self.rooms().store, context.op).await.map_err(|error| error.explain())?;
        Ok(totals.iter().map(|table| table.rows).sum())
    }

    fn done(&self) -> String {
        let count = self.tables.len();
        let tables = if count == 1 { "1 table".to_owned() } else { format!("{count} tables") };
        format!("{tables} of {} copied again from {}", self.rooms().me, self.direct.plan.source)
    }

    async fn undo(&mut self, context: &Context) -> Result<(), Failure> {
        let undone = self.rooms().cleanup.undo(context.op).await;
        self.let_go();
        undone
    }

    async fn abandon(&mut self, context: &Context, _: &Failure) -> Result<(), Failure> {
        notes::forget(&self.rooms().store, context.op).await.map_err(|error| error.explain())?;
        let own = nodes::own(&self.rooms().store).await.map_err(|error| error.explain())?;
        if own.init_state != NodeState::Reinitializing {
            return Ok(());
        }
        let event = state_after(!held_tables(&self.rooms().database).await?.is_empty(), self.was);
        self.direct.advance(context, event).await
    }
}

/// What a node is whose reinitialization was given up: what it was before, unless tables stand still.
pub fn state_after(holds_tables: bool, was: NodeState) -> NodeEvent {
    match was {
        NodeState::Failed => NodeEvent::Failed,
        NodeState::Synchronized if !holds_tables => NodeEvent::CaughtUp,
        _ => NodeEvent::Diverged,
    }
}

/// The failure for tables that could not be brought up to date.
fn stand_still(node: &str, tables: &[steep_protocol::names::TableName]) -> Failure {
    let names: Vec<_> = tables.iter().map(ToString::to_string).collect();
    let text = format!("{} on {node}: changes were skipped that nobody has any more", names.join(", "));
    Failure::new(Code::TablesStandStill, text).hint(format!("steepctl node reinit {node} --tables {}", names.join(",")))
}
