//! Going on with an initialization that stopped half-way: in the next run of the agent, or after a network or a server was
//! away.
//!
//! What steps have learned is written down as notes before they count as done; here it is read back, in [`Direct::take_up`].
//! The session on the source lives on while nobody renews it for less than its lease, so the copy goes on in the same
//! snapshot: what the ledger has is not copied again. Without its session there is no going on.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, SessionId},
    names::TableName,
    node::NodeState,
    operation::{InitMethod, OperationStatus, SchemaSync},
    v1,
};
use tracing::info;

use super::{
    direct::{Direct, DirectPlan, FromFiles, recipe_for},
    gates::Gates,
    manual::Prepared,
    members::Joined,
    messages::{table_message, table_name},
    preflight::{TargetTables, Wanted},
    reinit, subscribe,
    two_phase::again,
};
use crate::{
    mesh::Source,
    operations::Context,
    postgres::{self, Purpose, activity, selection::Selection, tables},
    rooms::Rooms,
    session::slot_name,
    store::{
        self, Actor, Store, ledger, nodes,
        notes::{self, Notes},
        operations::{self, Operation},
        signed_intents,
        steps::{self, StepStatus},
    },
};

/// What the source said at the preflight: [`v1::ExamineReply`].
const FACTS: &str = "facts";
/// The tables that were here before: [`v1::Selection`].
const EXISTING: &str = "existing";
/// The session on the source: [`v1::OpenSessionReply`].
const SESSION: &str = "session";
/// Rows counted in the snapshot: [`v1::CountRowsReply`].
const COUNTS: &str = "counts";
/// Where tables stand that were copied in a later snapshot: [`Gates`], as JSON.
const GATES: &str = "gates";
/// The source was asked for another session in place of the one noted; empty.
const REOPENING: &str = "reopening";
/// A member's session, by its node: [`v1::JoinMemberReply`].
const JOINED: &str = "joined/";

fn explain(error: store::Error) -> Failure {
    error.explain()
}

/// What was asked for, as it is kept with the operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    one_way: bool,
    parallel: u32,
    force: bool,
    schema_sync: SchemaSync,
    max_rate: u64,
    compress: String,
    selection: Chosen,
    /// Before there was more than one, it was direct.
    #[serde(default = "direct")]
    method: InitMethod,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prepared: Option<Prepared>,
    /// A snapshot in files, and how it is applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<FromFiles>,
}

fn direct() -> InitMethod {
    InitMethod::Direct
}

/// Chosen tables, as they are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Chosen {
    tables: Vec<TableName>,
    schemas: Vec<String>,
    exclude: Vec<TableName>,
}

impl Chosen {
    pub(super) fn of(selection: &Selection) -> Self {
        let Selection { tables, schemas, exclude } = selection.clone();
        Self { tables, schemas, exclude }
    }

    pub(super) fn as_selection(&self) -> Selection {
        let Self { tables, schemas, exclude } = self.clone();
        Selection { tables, schemas, exclude }
    }

    /// As agents tell each other.
    pub(super) fn to_message(&self) -> v1::Selection {
        let messages = |names: &[TableName]| names.iter().map(table_message).collect();
        v1::Selection {
            tables: messages(&self.tables),
            schemas: self.schemas.clone(),
            exclude: messages(&self.exclude),
        }
    }
}

impl Asked {
    /// What `plan` does.
    pub fn of(plan: &DirectPlan) -> Self {
        Self {
            one_way: plan.wanted.one_way,
            parallel: plan.wanted.parallel,
            force: plan.wanted.force,
            schema_sync: plan.wanted.schema_sync,
            max_rate: plan.max_rate,
            compress: plan.compress.clone(),
            selection: Chosen::of(&plan.wanted.selection),
            method: plan.method,
            prepared: plan.prepared.clone(),
            from: plan.from.clone(),
        }
    }

    /// As it is kept.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("what was asked is plain data")
    }

    /// The request that would ask for the same again as `operation` did; none: it is no initialization.
    pub fn again(operation: &Operation) -> Option<v1::StartNodeRequest> {
        let asked: Self = serde_json::from_value(operation.request.clone()).ok()?;
        let plan = asked.plan(operation.source.clone(), v1::SignedIntent::default(), Vec::new());
        let can_be_started = operation.kind == "init" && plan.method != InitMethod::Manual && plan.from.is_none();
        can_be_started.then(|| v1::StartNodeRequest {
            target: operation.target.to_string(),
            source: operation.source.to_string(),
            selection: Some(plan.selection),
            one_way: plan.wanted.one_way,
            parallel: plan.wanted.parallel,
            force: plan.wanted.force,
            max_rate: plan.max_rate,
            compress: plan.compress,
            method: plan.method.to_string(),
            schema_sync: match plan.wanted.schema_sync {
                SchemaSync::Strict => String::new(),
                asked => asked.as_str().to_owned(),
            },
            ..v1::StartNodeRequest::default()
        })
    }

    fn plan(self, source: NodeId, signed: v1::SignedIntent, members: Vec<v1::MeshMember>) -> DirectPlan {
        let selection = self.selection.to_message();
        let wanted = Wanted {
            selection: self.selection.as_selection(),
            one_way: self.one_way,
            parallel: self.parallel,
            force: self.force,
            schema_sync: self.schema_sync,
            again: false,
        };
        DirectPlan {
            source,
            method: self.method,
            method_reason: String::new(),
            prepared: self.prepared,
            // Of a snapshot too: one of chosen tables has a publication of its own.
            shared_publication: wanted.selection.is_whole_database(),
            wanted,
            selection,
            signed,
            members,
            max_rate: self.max_rate,
            compress: self.compress,
            from: self.from,
        }
    }
}

/// What the notes of an operation, and the store, say of it.
pub(super) struct Noted {
    /// Its steps, in order.
    pub(super) steps: Vec<String>,
    /// The operator's order.
    pub(super) signed: v1::SignedIntent,
    /// The other nodes of the mesh it was planned for.
    pub(super) members: Vec<v1::MeshMember>,
    /// How long its session on the source is held without being renewed; none: there is none yet.
    pub(super) lease: Option<Duration>,
}

/// Goes on with `left`, which an earlier run of this agent has not ended; false: there is no going on, and what it made
/// is to be undone.
pub async fn go_on(rooms: &Rooms, left: &Operation) -> Result<bool, Failure> {
    if left.kind == "snapshot" {
        return Box::pin(again::go_on(rooms, left)).await;
    }
    let is_kind = matches!(left.kind.as_str(), "init" | "reinit");
    if !is_kind || !matches!(left.status, OperationStatus::Running | OperationStatus::Interrupted) {
        return Ok(false);
    }
    let op = left.op_id;
    let planned = steps::list(&rooms.store, op).await.map_err(explain)?;
    let is_through = !planned.is_empty() && planned.iter().all(|step| step.status == StepStatus::Done);
    let own = nodes::own(&rooms.store).await.map_err(explain)?;
    let known = notes::load(&rooms.store, op).await.map_err(explain)?;
    if is_through && known.is_empty() && own.init_state == NodeState::Synchronized && own.op_id == Some(op) {
        // Only its end was not written down any more.
        operations::finish(&rooms.store, op, OperationStatus::Completed, None).await.map_err(explain)?;
        info!(event = "init.completed", op_id = %op, "an operation had reached its end before the agent's");
        return Ok(true);
    }
    let Some(facts) = read::<v1::ExamineReply>(&known, FACTS) else { return Ok(false) };
    let Some(order) = signed_intents::find(&rooms.store, op).await.map_err(explain)? else { return Ok(false) };
    let noted = Noted {
        steps: planned.into_iter().map(|step| step.name).collect(),
        signed: order.signed,
        members: facts.members,
        lease: read::<v1::OpenSessionReply>(&known, SESSION).map(|reply| Duration::from_secs(reply.lease_seconds)),
    };
    match left.kind.as_str() {
        "reinit" => Box::pin(reinit::request::go_on(rooms, left.clone(), noted)).await,
        _ => Box::pin(initialize(rooms, left.clone(), noted)).await,
    }
}

async fn initialize(rooms: &Rooms, left: Operation, noted: Noted) -> Result<bool, Failure> {
    let Ok(asked) = serde_json::from_value::<Asked>(left.request.clone()) else { return Ok(false) };
    let plan = asked.plan(left.source.clone(), noted.signed, noted.members);
    let recipe = recipe_for(&plan);
    // Another version of the agent may take other steps.
    if recipe.names() != noted.steps {
        return Ok(false);
    }
    let source = Source::new(rooms.peers.clone(), plan.source.clone(), left.op_id);
    let mut work = Direct::new(rooms.clone(), source, plan);
    work.lease = noted.lease;
    let (actor, workers) = (Actor::agent(&rooms.me), work.plan.wanted.parallel);
    Box::pin(rooms.operations.resume(left, actor, workers, recipe, work)).await?;
    Ok(true)
}

fn read<M: prost::Message + Default>(notes: &Notes, name: &str) -> Option<M> {
    M::decode(notes.get(name)?.as_slice()).ok()
}

/// Writes `message` down under `name`.
async fn note(store: &Store, context: &Context, name: &str, message: &impl prost::Message) -> Result<(), Failure> {
    notes::save(store, context.op, name, &message.encode_to_vec()).await.map_err(explain)
}

impl Direct {
    /// Where the schema archive of this operation is.
    pub(super) fn archive_path(&self, context: &Context) -> PathBuf {
        self.rooms.config.node.state_dir.join(format!("{}.dump", context.op))
    }

    pub(super) async fn note_facts(&self, context: &Context) -> Result<(), Failure> {
        let tables = self.here.existing.keys().map(table_message).collect();
        note(&self.rooms.store, context, EXISTING, &v1::Selection { tables, ..v1::Selection::default() }).await?;
        // Last: with the facts there is a going on.
        note(&self.rooms.store, context, FACTS, &self.facts).await
    }

    pub(super) async fn note_session(&self, context: &Context, reply: &v1::OpenSessionReply) -> Result<(), Failure> {
        note(&self.rooms.store, context, SESSION, reply).await?;
        notes::forget_some(&self.rooms.store, context.op, &[REOPENING]).await.map_err(explain)
    }

    /// The session as it was last noted.
    pub(super) async fn noted_session(&self, context: &Context) -> Result<Option<v1::OpenSessionReply>, Failure> {
        let known = notes::load(&self.rooms.store, context.op).await.map_err(explain)?;
        Ok(read(&known, SESSION))
    }

    /// The session that is noted may be another one in the next moment.
    pub(super) async fn note_reopening(&self, context: &Context) -> Result<(), Failure> {
        notes::save(&self.rooms.store, context.op, REOPENING, &[]).await.map_err(explain)
    }

    pub(super) async fn note_gates(&self, context: &Context, gates: &Gates) -> Result<(), Failure> {
        let body = serde_json::to_vec(gates).expect("gates are plain data");
        notes::save(&self.rooms.store, context.op, GATES, &body).await.map_err(explain)
    }

    pub(super) async fn note_joined(
        &self,
        context: &Context,
        node: &NodeId,
        reply: &v1::JoinMemberReply,
    ) -> Result<(), Failure> {
        note(&self.rooms.store, context, &format!("{JOINED}{node}"), reply).await
    }

    pub(super) async fn note_counts(&self, context: &Context, counts: &[v1::TableRows]) -> Result<(), Failure> {
        note(&self.rooms.store, context, COUNTS, &v1::CountRowsReply { tables: counts.to_vec() }).await
    }

    /// Knows again what the steps `done`, and any that stopped half-way, had learned; makes sure that nothing works for
    /// this operation any more, and that the sessions on the other nodes are still held.
    pub(super) async fn take_up(&mut self, context: &Context, done: &[String]) -> Result<(), Failure> {
        self.goes_on = true;
        self.building = None;
        self.builder = None;
        let is_done = |step: &str| done.iter().any(|name| name == step);
        let known = notes::load(&self.rooms.store, context.op).await.map_err(explain)?;
        self.open_files().await?;
        self.recall(context, &known).await?;
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        // Of an agent that was killed some sessions may still be at it, and pg_restore too.
        activity::terminate(&look, context.op).await.map_err(|error| error.explain())?;
        // Once all is done the others may have let go already.
        if !is_done("verify") {
            self.reattach(context, &known).await?;
        }
        if is_done("create tables") && !is_done("build indexes") {
            self.ready_builder(context).await?;
        }
        Ok(())
    }

    async fn recall(&mut self, context: &Context, known: &Notes) -> Result<(), Failure> {
        let Some(facts) = read::<v1::ExamineReply>(known, FACTS) else { return Ok(()) };
        self.facts = facts;
        let existing = read::<v1::Selection>(known, EXISTING).unwrap_or_default();
        let names: Vec<_> = existing.tables.iter().map(table_name).collect();
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        let found = tables::find(&look, &names).await.map_err(|error: postgres::Error| error.explain())?;
        let existing = found.into_iter().map(|table| (table.name.clone(), table)).collect();
        self.here = TargetTables { existing, ..TargetTables::default() };
        self.gates = Gates::noted(known.get(GATES).map(Vec::as_slice))?;
        if let Some(counts) = read::<v1::CountRowsReply>(known, COUNTS) {
            self.counts = counts.tables;
        }
        let archive = self.archive_path(context);
        self.archive = archive.exists().then_some(archive);
        if let Some(reply) = read::<v1::OpenSessionReply>(known, SESSION) {
            self.lease = Some(Duration::from_secs(reply.lease_seconds));
            self.subscription = subscribe::name_for(self.plan.source.as_str());
            self.show_copied(context, &reply).await?;
        }
        Ok(())
    }

    /// Progress goes on from what has landed.
    async fn show_copied(&self, context: &Context, reply: &v1::OpenSessionReply) -> Result<(), Failure> {
        let parts = ledger::parts(&self.rooms.store, context.op).await.map_err(explain)?;
        if parts.is_empty() {
            return Ok(());
        }
        let jobs = match &self.files {
            None => super::steps::table_jobs(&self.facts.tables, &reply.tables)?,
            Some(_) => self.rows_to_copy()?.1,
        };
        crate::snapshot::receive::show_copied(&jobs, &parts, context);
        Ok(())
    }

    /// Makes sure that every session is still held, and renews it from now on.
    async fn reattach(&mut self, context: &Context, known: &Notes) -> Result<(), Failure> {
        for member in self.plan.members.clone() {
            let Some(reply) = read::<v1::JoinMemberReply>(known, &format!("{JOINED}{}", member.node)) else { continue };
            let node: NodeId = member.node.parse().map_err(|_| self.rooms.peers.unknown(&member.node))?;
            if self.members.iter().any(|joined| *joined.node.node() == node) {
                continue;
            }
            let node = Source::new(self.rooms.peers.clone(), node, context.op);
            let session = session_of(&reply.session_id)?;
            self.still_held(&node, session).await?;
            let lease = Duration::from_secs(reply.lease_seconds);
            let renewing = self.renewed(context, node.clone(), session, lease);
            self.members.push(Joined::again(node, session, reply, renewing));
        }
        if let Some(reply) = read::<v1::OpenSessionReply>(known, SESSION) {
            let session = session_of(&reply.session_id)?;
            let held = self.still_held(&self.source.clone(), session).await;
            held.map_err(|failure| match known.contains_key(REOPENING) {
                // Then the source has one that was never heard of here.
                true if failure.code == Code::Interrupted => Failure { code: Code::SnapshotLost, ..failure },
                _ => failure,
            })?;
            self.take_positions(&reply)?;
            if self.session.is_none() {
                self.hold_session(context, session, reply);
            }
        }
        let op = context.op;
        self.reverse_slots =
            self.both_ways_with().into_iter().map(|node| (node.clone(), slot_name(&node, op))).collect();
        Ok(())
    }

    /// Fails with [`Code::SnapshotLost`] when `node` has lost the snapshot of `session`, and with [`Code::Interrupted`] when
    /// it has let go of all of it.
    async fn still_held(&self, node: &Source, session: SessionId) -> Result<(), Failure> {
        let gone = match node.renew(session).await {
            Ok(renewed) => match renewed.failure.map(Failure::from) {
                None => return Ok(()),
                // Then it can begin anew.
                Some(failure) if failure.code == Code::SnapshotLost => return Err(failure),
                Some(failure) => failure,
            },
            Err(failure) if failure.code == Code::SessionUnknown => failure,
            Err(failure) => return Err(failure),
        };
        let text = format!("{} holds the session of this operation no longer, so that it cannot go on", node.node());
        let failure = Failure::new(Code::Interrupted, text).cause(gone.message);
        Err(failure.hint(format!("steepctl node resume {} starts it anew", self.rooms.me)))
    }

    /// Tables whose indexes are being built or are built, by the oids they have on the source.
    pub(super) async fn built_before(&self, context: &Context) -> Result<[BTreeSet<u32>; 2], Failure> {
        let known = notes::load(&self.rooms.store, context.op).await.map_err(explain)?;
        let oids = |beginning: &str| {
            let names = known.keys().filter_map(|name| name.strip_prefix(beginning)?.parse().ok());
            names.collect::<BTreeSet<u32>>()
        };
        Ok([oids(crate::snapshot::indexes::BEGUN), oids(crate::snapshot::indexes::BUILT)])
    }
}

fn session_of(text: &str) -> Result<SessionId, Failure> {
    text.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_asked_comes_back_as_it_was_kept() {
        let kept = json!({
            "one_way": true, "parallel": 3, "force": false, "schema_sync": "auto", "max_rate": 5, "compress": "none", "method": "snapshot",
            "selection": {
                "tables": [TableName::new("public", "orders")], "schemas": ["shop"], "exclude": [TableName::new("a", "b c")],
            },
        });
        let asked: Asked = serde_json::from_value(kept.clone()).expect("it can be read");
        let source: NodeId = "node_a".parse().expect("a name");
        let plan = asked.clone().plan(source, v1::SignedIntent::default(), Vec::new());
        assert_eq!(plan.selection.exclude[0].name, "b c");
        assert_eq!(Asked::of(&plan), asked);
        assert_eq!(asked.to_json(), kept);
    }
}
