//! Completing a node that was restored from a backup made by hand: the request is checked against both nodes first; then it
//! becomes an operation.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    intent::Verified,
    lsn::{BadLsn, Lsn},
    operation::InitMethod,
    v1,
};

use super::{
    direct::{Direct, DirectPlan, recipe_for},
    findings::verdict,
    manual::{self, Prepared},
    resume::Asked,
    start::{refuse_second, was_started},
};
use crate::{
    lifecycle::{self, NodeEvent},
    mesh::Source,
    rooms::Rooms,
    store::{
        Actor, nodes,
        operations::NewOperation,
        signed_intents::{self, Claim},
    },
};

/// Checks a request against both nodes, and starts the operation; returns it with every finding. `verified` orders what the
/// request asks for; asked twice, it starts once.
pub async fn complete(
    rooms: &Rooms,
    request: &v1::CompleteNodeRequest,
    actor: &Actor,
    verified: &Verified,
) -> Result<(OperationId, Vec<v1::Check>), Failure> {
    let (op, plan) = plan_of(rooms, request, verified)?;
    if was_started(rooms, op, verified).await? {
        return Ok((op, Vec::new()));
    }
    refuse_second(rooms, op)?;
    let source = Source::new(rooms.peers.clone(), plan.source.clone(), op);
    let link = rooms.config.replication.link.as_str();
    let facts = source.examine(&plan.signed, plan.selection.clone(), plan.wanted.one_way, 1, link).await?;
    let (mut checks, _) = manual::examine(rooms, plan.source.as_str(), &facts, &plan.wanted).await?;
    checks.extend(facts.checks.iter().cloned());
    let own = nodes::own(&rooms.store).await.map_err(|error| error.explain())?;
    refuse_second(rooms, op)?;
    lifecycle::next(own.init_state, NodeEvent::Started).map_err(|_| {
        let text = format!("cannot complete {}: it is {}", rooms.me, own.init_state);
        Failure::new(Code::IllegalState, text).hint(format!("steepctl node show {}", rooms.me))
    })?;
    verdict(&format!("cannot complete {} from {}", rooms.me, plan.source), &checks)?;
    let new = NewOperation {
        op_id: op,
        kind: "init".into(),
        target: rooms.me.clone(),
        source: plan.source.clone(),
        method: InitMethod::Manual,
        request: Asked::of(&plan).to_json(),
        started_by: actor.to_string(),
    };
    match signed_intents::claim(&rooms.store, verified, Some(op)).await.map_err(|error| error.explain())? {
        Claim::First | Claim::Again => {}
        Claim::Used => return Err(signed_intents::used(verified)),
    }
    let recipe = recipe_for(&plan);
    let work = Direct::new(rooms.clone(), source, plan);
    Box::pin(rooms.operations.start(new, actor.clone(), 1, recipe, work)).await?;
    Ok((op, checks))
}

fn plan_of(
    rooms: &Rooms,
    request: &v1::CompleteNodeRequest,
    verified: &Verified,
) -> Result<(OperationId, DirectPlan), Failure> {
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    let op: OperationId = request.op_id.parse().map_err(|error| bad(format!("{error}")))?;
    let source: NodeId = request.source.parse().map_err(|_| rooms.peers.unknown(&request.source))?;
    if source == rooms.me {
        return Err(Failure::new(Code::SourceIsTarget, format!("cannot complete {source} from itself")));
    }
    if !rooms.peers.knows(&source) {
        return Err(rooms.peers.unknown(source.as_str()));
    }
    let source_lsn: Option<Lsn> = match request.source_lsn.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|error: BadLsn| bad(format!("--source-lsn: {error}")))?),
    };
    let selection = request.selection.clone().unwrap_or_default();
    let wanted = manual::wanted(&selection, request.one_way);
    let plan = DirectPlan {
        source,
        method: InitMethod::Manual,
        method_reason: String::new(),
        prepared: Some(Prepared { id: request.prepare_id.clone(), source_lsn }),
        shared_publication: wanted.selection.is_whole_database(),
        wanted,
        selection,
        signed: verified.signed.clone(),
        members: Vec::new(),
        max_rate: 0,
        compress: "none".into(),
        from: None,
    };
    Ok((op, plan))
}
