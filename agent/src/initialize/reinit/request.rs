//! Starting a reinitialization of tables: the request is checked against both nodes first, so that whoever asks hears at
//! once what is wrong; then it becomes an operation.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    intent::Verified,
    node::NodeState,
    operation::{InitMethod, Role, SchemaSync},
    v1,
    wire::{compress::Compression, identity::Who},
};

use super::{
    Reinit, ReinitPlan,
    examine::{Found, Look, examine},
    recipe,
};
use crate::{
    initialize::{
        direct::DirectPlan,
        findings::verdict,
        mesh,
        preflight::Wanted,
        resume::{Chosen, Noted},
        start::{planned_tables, refuse_second, selection_of, was_started},
        subscribe::name_for,
    },
    lifecycle::{self, NodeEvent},
    mesh::Source,
    postgres::{Purpose, subscriptions},
    rooms::Rooms,
    store::{
        Actor, nodes,
        operations::{NewOperation, Operation},
        signed_intents::{self, Claim},
    },
};

/// What was asked for, as it is kept with the operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Asked {
    one_way: bool,
    parallel: u32,
    in_place: bool,
    was: NodeState,
    max_rate: u64,
    compress: String,
    selection: Chosen,
    #[serde(default)]
    shared_publication: bool,
}

impl Asked {
    /// What `plan` does.
    fn of(plan: &ReinitPlan) -> Self {
        let direct = &plan.direct;
        Self {
            one_way: direct.wanted.one_way,
            parallel: direct.wanted.parallel,
            in_place: plan.in_place,
            was: plan.was,
            max_rate: direct.max_rate,
            compress: direct.compress.clone(),
            selection: Chosen::of(&direct.wanted.selection),
            shared_publication: direct.shared_publication,
        }
    }

    /// As it is kept.
    fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("what was asked is plain data")
    }

    fn plan(self, source: NodeId, signed: v1::SignedIntent, members: Vec<v1::MeshMember>) -> ReinitPlan {
        let wanted = Wanted {
            selection: self.selection.as_selection(),
            one_way: self.one_way,
            parallel: self.parallel,
            force: true,
            schema_sync: SchemaSync::Strict,
            again: true,
        };
        let direct = DirectPlan {
            method: InitMethod::Direct,
            method_reason: String::new(),
            prepared: None,
            source,
            wanted,
            shared_publication: self.shared_publication,
            selection: self.selection.to_message(),
            signed,
            members,
            max_rate: self.max_rate,
            compress: self.compress,
            from: None,
        };
        ReinitPlan { direct, in_place: self.in_place, was: self.was }
    }
}

/// Goes on with `left`, which an earlier run of this agent has not ended, from what its notes say; false: it cannot.
pub(in crate::initialize) async fn go_on(rooms: &Rooms, left: Operation, noted: Noted) -> Result<bool, Failure> {
    let Ok(asked) = serde_json::from_value::<Asked>(left.request.clone()) else { return Ok(false) };
    let plan = asked.plan(left.source.clone(), noted.signed, noted.members);
    let recipe = recipe(&plan);
    if recipe.names() != noted.steps {
        return Ok(false);
    }
    let workers = plan.direct.wanted.parallel;
    let mut work = Reinit::new(rooms.clone(), Source::new(rooms.peers.clone(), left.source.clone(), left.op_id), plan);
    work.direct.lease = noted.lease;
    Box::pin(rooms.operations.resume(left, Actor::agent(&rooms.me), workers, recipe, work)).await?;
    Ok(true)
}

/// What a request came to.
#[derive(Debug, Default)]
pub struct Answer {
    /// The operation; absent for a dry run.
    pub op: Option<OperationId>,
    /// Every finding of the preflight.
    pub checks: Vec<v1::Check>,
    /// The tables, largest first.
    pub tables: Vec<v1::PlannedTable>,
    /// Foreign keys that are looked at again afterwards.
    pub keys: Vec<String>,
    /// Tables that go on replicating.
    pub others: u64,
}

/// Checks a request against both nodes and, unless it is a dry run, starts the operation.
///
/// A dry run answers with findings even when they speak against it; otherwise they are the failure. `verified` orders
/// what the request asks for; asked twice, it starts once.
pub async fn start(
    rooms: &Rooms,
    request: &v1::ReinitNodeRequest,
    actor: &Actor,
    verified: &Verified,
) -> Result<Answer, Failure> {
    let (op, mut plan) = plan_of(rooms, request, verified).await?;
    if was_started(rooms, op, verified).await? {
        return Ok(Answer { op: Some(op), ..Answer::default() });
    }
    refuse_unconfirmed(request, verified)?;
    refuse_second(rooms, op)?;
    refuse_while_served(rooms)?;
    let own = nodes::own(&rooms.store).await.map_err(|error| error.explain())?;
    lifecycle::next(own.init_state, NodeEvent::ReinitBegan).map_err(|_| {
        let text = format!("no table of {} can be copied again: it is {}", rooms.me, own.init_state);
        Failure::new(Code::IllegalState, text).hint(format!("steepctl node show {}", rooms.me))
    })?;
    plan.was = own.init_state;
    let source = Source::new(rooms.peers.clone(), plan.direct.source.clone(), op);
    let link = rooms.config.replication.link.as_str();
    let (selection, wanted) = (plan.direct.selection.clone(), &plan.direct.wanted);
    let asked = v1::ExamineRequest {
        op_id: op.to_string(),
        selection: Some(selection),
        one_way: wanted.one_way,
        parallel: wanted.parallel,
        link: link.to_owned(),
        count_rows: request.dry_run,
    };
    let facts = source.ask_about(&plan.direct.signed, asked).await?;
    let look = Look { in_place: plan.in_place, counts: request.dry_run };
    let Found { mut checks, here, keys, others } =
        examine(rooms, plan.direct.source.as_str(), &facts, wanted, &look).await?;
    checks.extend(mesh::examine_members(rooms, op, &plan.direct.source, &plan.direct.signed, &facts).await?);
    checks.extend(facts.checks.iter().cloned());
    let mut tables = planned_tables(rooms, &facts, &here);
    tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    if request.dry_run {
        return Ok(Answer { op: None, checks, tables, keys, others });
    }
    plan.direct.members = facts.members;
    refuse_second(rooms, op)?;
    verdict(&format!("cannot copy tables of {} again from {}", rooms.me, plan.direct.source), &checks)?;
    let new = NewOperation {
        op_id: op,
        kind: "reinit".into(),
        target: rooms.me.clone(),
        source: plan.direct.source.clone(),
        method: InitMethod::Direct,
        request: Asked::of(&plan).to_json(),
        started_by: actor.to_string(),
    };
    match signed_intents::claim(&rooms.store, verified, Some(op)).await.map_err(|error| error.explain())? {
        Claim::First | Claim::Again => {}
        Claim::Used => return Err(signed_intents::used(verified)),
    }
    let workers = plan.direct.wanted.parallel;
    let recipe = recipe(&plan);
    let work = Reinit::new(rooms.clone(), source, plan);
    Box::pin(rooms.operations.start(new, actor.clone(), workers, recipe, work)).await?;
    Ok(Answer { op: Some(op), checks, tables, keys, others })
}

/// Whoever is initialized from this node would get tables as they are in the middle of it.
fn refuse_while_served(rooms: &Rooms) -> Result<(), Failure> {
    let Some(held) = rooms.sessions.list().into_iter().next() else { return Ok(()) };
    let text = format!("{} holds a session for {}, which copies from it", rooms.me, held.target);
    Err(Failure::new(Code::OperationRunning, text).hint(format!("steepctl op watch {} follows that", held.op)))
}

/// An operator destroys rows only with the node's name typed; an admin is taken at their word.
fn refuse_unconfirmed(request: &v1::ReinitNodeRequest, verified: &Verified) -> Result<(), Failure> {
    let is_admin = matches!(verified.signer.who, Who::Operator { role: Role::Admin, .. });
    if request.dry_run || verified.order.confirmed || is_admin {
        return Ok(());
    }
    let text = format!("{} has not confirmed that rows on {} are replaced", verified.signer, request.target);
    Err(Failure::new(Code::ConfirmationNeeded, text))
}

async fn plan_of(
    rooms: &Rooms,
    request: &v1::ReinitNodeRequest,
    verified: &Verified,
) -> Result<(OperationId, ReinitPlan), Failure> {
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    let op: OperationId = request.op_id.parse().map_err(|error| bad(format!("{error}")))?;
    let source: NodeId = request.source.parse().map_err(|_| rooms.peers.unknown(&request.source))?;
    if source == rooms.me {
        return Err(Failure::new(Code::SourceIsTarget, format!("cannot copy tables of {source} from itself")));
    }
    if !rooms.peers.knows(&source) {
        return Err(rooms.peers.unknown(source.as_str()));
    }
    let compression: Compression = request.compress.parse().map_err(|error| bad(format!("{error}")))?;
    let parallel = if request.parallel == 0 { rooms.config.copy.parallel } else { request.parallel };
    if !(1..=16).contains(&parallel) {
        return Err(bad(format!("--parallel {parallel} is not between 1 and 16")));
    }
    let selection = request.selection.clone().unwrap_or_default();
    if selection.tables.is_empty() && selection.schemas.is_empty() {
        return Err(bad("neither tables nor a schema is named".into()));
    }
    let session = rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
    let found = subscriptions::find(&session, &name_for(source.as_str())).await.map_err(|error| error.explain())?;
    let not_there = || {
        let text = format!("{} does not replicate from {source}", rooms.me);
        Failure::new(Code::NotReplicated, text).hint(format!("steepctl node show {}", rooms.me))
    };
    let found = found.ok_or_else(not_there)?;
    if found.is_mutual == request.one_way {
        let ways = if found.is_mutual { "both ways" } else { "one way" };
        return Err(bad(format!("{} and {source} replicate {ways}, and the request says otherwise", rooms.me)));
    }
    let asked = Asked {
        one_way: request.one_way,
        parallel,
        in_place: request.in_place,
        was: NodeState::Synchronized,
        max_rate: request.max_rate,
        compress: compression.to_string(),
        selection: Chosen::of(&selection_of(&selection)),
        shared_publication: found.publications.iter().any(|name| name == "steep"),
    };
    // Who else is in the mesh, the source will say.
    Ok((op, asked.plan(source, verified.signed.clone(), Vec::new())))
}
