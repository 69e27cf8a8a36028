//! The door of an initialization from a snapshot: the manifest is read and both nodes are looked at first, so that whoever
//! asks hears at once what is wrong; then it becomes an operation.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    intent::{PEER_INPUT, Verified},
    operation::{InitMethod, Role, SchemaSync},
    v1,
    wire::identity::Who,
};
use tracing::warn;

use crate::{
    initialize::{
        direct::{Direct, DirectPlan, FromFiles, recipe_for},
        findings::verdict,
        messages::{table_message, table_name},
        preflight::{self, TargetTables, Wanted},
        resume::Asked,
        start::{Answer, planned_tables, refuse_second, was_started},
    },
    lifecycle::{self, NodeEvent},
    mesh::Source,
    postgres::selection::Selection,
    rooms::Rooms,
    snapshot::files::{manifest::Manifest, peer::Holder, read::Opened},
    storage::{Place, SOURCE},
    store::{
        Actor, nodes,
        operations::{self, NewOperation},
        signed_intents::{self, Claim},
    },
};

/// Whoever asks for an initialization waits no longer for what another agent is to send.
pub(super) const START_PATIENCE: Duration = Duration::from_secs(10);

/// The snapshot in `input`, whose manifest is believed.
pub async fn open(rooms: &Rooms, input: &str) -> Result<Arc<Opened>, Failure> {
    open_within(rooms, input, rooms.config.copy.session_lease).await
}

/// The same for somebody who waits for the answer: a store that is away is not waited for.
pub async fn glance_at(rooms: &Rooms, input: &str) -> Result<Arc<Opened>, Failure> {
    open_within(rooms, input, START_PATIENCE).await
}

async fn open_within(rooms: &Rooms, input: &str, patience: Duration) -> Result<Arc<Opened>, Failure> {
    let (identity, settings) = (rooms.peers.identity(), rooms.config.snapshots.within(patience));
    match Place::named(input, &settings).map_err(|error| error.explain())? {
        Place::Directory(directory) => Opened::open(directory, identity).await,
        Place::Bucket(bucket) => Opened::in_bucket(*bucket, patience, identity).await,
    }
}

/// The snapshot in `input`, which may lie with the agent of `source` and was lent to its operation then; nothing of it is
/// waited for longer than `patience`.
pub(super) async fn open_for(
    rooms: &Rooms,
    input: &str,
    source: &Source,
    patience: Duration,
) -> Result<Arc<Opened>, Failure> {
    let Some(id) = input.strip_prefix(PEER_INPUT) else { return open_within(rooms, input, patience).await };
    let opened = Opened::with_peer(Holder::new(source.clone(), patience), rooms.peers.identity()).await?;
    let Manifest { snapshot_id, op_id, node, .. } = &opened.manifest;
    if (snapshot_id == id || op_id == id) && node == source.node().as_str() {
        return Ok(opened);
    }
    let text = format!("{} sent the manifest of {snapshot_id} of {node} for {id}", source.node());
    Err(Failure::new(Code::ManifestRefused, text))
}

/// What the source said of itself when the snapshot was made.
pub(super) async fn facts_of(opened: &Arc<Opened>) -> Result<v1::ExamineReply, Failure> {
    let bytes = opened.file(SOURCE).await?;
    v1::ExamineReply::decode(&bytes[..])
        .map_err(|error| Failure::new(Code::ManifestRefused, format!("{SOURCE} cannot be read")).caused_by(&error))
}

/// Checks a request and starts the operation; asked twice, it starts once.
pub async fn start(
    rooms: &Rooms,
    request: &v1::ApplySnapshotRequest,
    actor: &Actor,
    verified: &Verified,
) -> Result<Answer, Failure> {
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    let op: OperationId = request.op_id.parse().map_err(|error| bad(format!("{error}")))?;
    if was_started(rooms, op, verified).await? {
        return Ok(answer(op, request, Vec::new(), Vec::new()));
    }
    refuse_unconfirmed(request, verified)?;
    refuse_second(rooms, op)?;
    let named: NodeId = request.source.parse().map_err(|error| bad(format!("{error}")))?;
    if named == rooms.me {
        return Err(Failure::new(Code::SourceIsTarget, format!("cannot start {named} from a snapshot of itself")));
    }
    let is_lent = request.input.starts_with(PEER_INPUT);
    if (is_lent || !request.no_subscribe) && !rooms.peers.knows(&named) {
        return Err(rooms.peers.unknown(named.as_str()));
    }
    let source = Source::new(rooms.peers.clone(), named, op);
    if !is_lent {
        return begin(rooms, request, actor, verified, source).await;
    }
    source.lend_files(&verified.signed).await?;
    let begun = begin(rooms, request, actor, verified, source.clone()).await;
    if begun.is_err() && operations::find(&rooms.store, op).await.is_ok_and(|found| found.is_none()) {
        give_back(&source, "nothing was begun").await;
    }
    begun
}

/// The files are read no more. Where that cannot be told, what was signed is good for them until the snapshot goes.
pub(in crate::initialize) async fn give_back(source: &Source, why: &str) {
    if let Err(failure) = source.close_session(false, why).await {
        warn!(peer = %source.node(), reason = %failure, "a snapshot's files could not be given back");
    }
}

/// Looks at snapshot and node, and starts the operation.
async fn begin(
    rooms: &Rooms,
    request: &v1::ApplySnapshotRequest,
    actor: &Actor,
    verified: &Verified,
    source: Source,
) -> Result<Answer, Failure> {
    let op = source.operation();
    let opened = open_for(rooms, &request.input, &source, START_PATIENCE).await?;
    let (node, ..) = opened.manifest.origin()?;
    if node != *source.node() {
        let text = format!("the snapshot is of {node}, not of {}", request.source);
        return Err(Failure::new(Code::BadRequest, text));
    }
    let facts = facts_of(&opened).await?;
    let plan = plan_of(rooms, request, verified, &opened, &facts, node)?;
    let (checks, here) = examine(rooms, &plan, &facts).await?;
    let tables = planned_tables(rooms, &facts, &here);
    let own = nodes::own(&rooms.store).await.map_err(|error| error.explain())?;
    lifecycle::next(own.init_state, NodeEvent::Started).map_err(|_| {
        let text = format!("cannot start {}: it is {}", rooms.me, own.init_state);
        Failure::new(Code::IllegalState, text).hint(format!("steepctl node show {}", rooms.me))
    })?;
    verdict(&format!("cannot start {} from {}", rooms.me, opened.manifest.snapshot_id), &checks)?;
    let new = NewOperation {
        op_id: op,
        kind: "init".into(),
        target: rooms.me.clone(),
        source: plan.source.clone(),
        method: plan.method,
        request: Asked::of(&plan).to_json(),
        started_by: actor.to_string(),
    };
    match signed_intents::claim(&rooms.store, verified, Some(op)).await.map_err(|error| error.explain())? {
        Claim::First | Claim::Again => {}
        Claim::Used => return Err(signed_intents::used(verified)),
    }
    let (workers, recipe) = (plan.wanted.parallel, recipe_for(&plan));
    let work = Direct::new(rooms.clone(), source, plan);
    Box::pin(rooms.operations.start(new, actor.clone(), workers, recipe, work)).await?;
    Ok(answer(op, request, checks, tables))
}

fn method_of(request: &v1::ApplySnapshotRequest) -> InitMethod {
    if request.no_subscribe { InitMethod::RowsAlone } else { InitMethod::TwoPhase }
}

fn answer(
    op: OperationId,
    request: &v1::ApplySnapshotRequest,
    checks: Vec<v1::Check>,
    tables: Vec<v1::PlannedTable>,
) -> Answer {
    let (method, method_reason) = (method_of(request), String::new());
    Answer { op: Some(op), checks, tables, mesh: Vec::new(), method, method_reason }
}

fn plan_of(
    rooms: &Rooms,
    request: &v1::ApplySnapshotRequest,
    verified: &Verified,
    opened: &Opened,
    facts: &v1::ExamineReply,
    source: NodeId,
) -> Result<DirectPlan, Failure> {
    let parallel = if request.parallel == 0 { rooms.config.copy.parallel } else { request.parallel };
    if !(1..=16).contains(&parallel) {
        return Err(Failure::new(Code::BadRequest, format!("--parallel {parallel} is not between 1 and 16")));
    }
    // What was left out when it was made is not in the archive of its schema either.
    let chosen = facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name));
    let tables = if opened.manifest.whole_database { Vec::new() } else { chosen.collect() };
    let selection = v1::Selection { tables: tables.iter().map(table_message).collect(), ..v1::Selection::default() };
    let wanted = Wanted {
        selection: Selection { tables, ..Selection::default() },
        one_way: request.one_way || request.no_subscribe,
        parallel,
        force: request.force,
        schema_sync: SchemaSync::Strict,
        again: false,
    };
    Ok(DirectPlan {
        source,
        method: method_of(request),
        method_reason: String::new(),
        prepared: None,
        shared_publication: opened.manifest.publication == "steep",
        wanted,
        selection,
        signed: verified.signed.clone(),
        members: Vec::new(),
        max_rate: 0,
        compress: "auto".into(),
        from: Some(FromFiles { input: request.input.clone(), subscribes: !request.no_subscribe }),
    })
}

/// Findings about this node as the target of a snapshot.
pub(super) async fn examine(
    rooms: &Rooms,
    plan: &DirectPlan,
    facts: &v1::ExamineReply,
) -> Result<(Vec<v1::Check>, TargetTables), Failure> {
    let source = plan.source.as_str();
    let (mut checks, here) = preflight::examine_target(rooms, source, facts, &plan.wanted).await?;
    let speaks_against = |code: Code, message: String| v1::Check {
        code: code.to_string(),
        severity: "error".into(),
        node_id: rooms.me.to_string(),
        message,
        hint: code.hint().into(),
    };
    let missing = facts.tables.len() - here.existing.len().min(facts.tables.len());
    if !here.existing.is_empty() && missing > 0 {
        let text = format!("{} of the snapshot's tables are here, {missing} are missing", here.existing.len());
        checks.push(speaks_against(Code::SnapshotPartly, text));
    }
    if !plan.wanted.one_way && facts.server_version_num < 160_000 {
        checks.push(speaks_against(Code::TwoWayUnsupported, format!("{source} runs PostgreSQL 15")));
    }
    Ok((checks, here))
}

/// An operator destroys rows only with the target's name typed; an admin is taken at their word.
fn refuse_unconfirmed(request: &v1::ApplySnapshotRequest, verified: &Verified) -> Result<(), Failure> {
    let is_admin = matches!(verified.signer.who, Who::Operator { role: Role::Admin, .. });
    if !request.force || verified.order.confirmed || is_admin {
        return Ok(());
    }
    let text = format!("{} has not confirmed that tables on {} are emptied", verified.signer, request.target);
    Err(Failure::new(Code::ConfirmationNeeded, text))
}
