//! Starting an initialization: the request is checked against both nodes first, so that whoever asks hears at
//! once what is wrong; then it becomes an operation.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    intent::Verified,
    operation::{BadWord, InitMethod, Role, SchemaSync},
    v1,
    wire::{compress::Compression, identity::Who},
};

use super::{
    choose::choose,
    direct::{Direct, DirectPlan, recipe_for},
    drifted::may_sync,
    findings::{Findings, verdict},
    mesh,
    messages::table_name,
    native,
    preflight::{self, TargetTables, Wanted},
    resume::Asked,
    steps::is_binary,
};
use crate::{
    config::LargeTables,
    lifecycle::{self, NodeEvent},
    mesh::Source,
    parts::{self, PAGE_BYTES},
    postgres::{self, Purpose, catalog, selection::Selection},
    rooms::Rooms,
    store::{
        self, Actor, nodes,
        operations::{self, NewOperation},
        signed_intents::{self, Claim},
    },
};

/// What a request came to.
#[derive(Debug)]
pub struct Answer {
    /// The operation; absent for a dry run.
    pub op: Option<OperationId>,
    /// Every finding of the preflight.
    pub checks: Vec<v1::Check>,
    /// The plan.
    pub tables: Vec<v1::PlannedTable>,
    /// All nodes the target will replicate with both ways, the source first; none for one way.
    pub mesh: Vec<String>,
    /// How rows are copied; auto: it was said when the operation began.
    pub method: InitMethod,
    /// Why so, where that was left open.
    pub method_reason: String,
}

/// Checks a request against both nodes and, unless it is a dry run, starts the operation.
///
/// A dry run answers with findings even when they speak against it; otherwise they are the failure. `verified` orders
/// what the request asks for; asked twice, it starts once.
pub async fn start(
    rooms: &Rooms,
    request: &v1::StartNodeRequest,
    actor: &Actor,
    verified: &Verified,
) -> Result<Answer, Failure> {
    let (op, mut plan) = plan_of(rooms, request, verified)?;
    if was_started(rooms, op, verified).await? {
        let (method, method_reason) = (plan.method, String::new());
        return Ok(Answer {
            op: Some(op),
            checks: Vec::new(),
            tables: Vec::new(),
            mesh: Vec::new(),
            method,
            method_reason,
        });
    }
    refuse_unconfirmed(request, verified)?;
    refuse_second(rooms, op)?;
    let source = Source::new(rooms.peers.clone(), plan.source.clone(), op);
    let link = rooms.config.replication.link.as_str();
    let (selection, wanted) = (plan.selection.clone(), &plan.wanted);
    let facts = source.examine(&plan.signed, selection, wanted.one_way, wanted.parallel, link).await?;
    (plan.method, plan.method_reason) = choose(plan.method, &facts, rooms.config.copy.snapshot_above);
    let (mut checks, here) = preflight::examine_target(rooms, plan.source.as_str(), &facts, &plan.wanted).await?;
    checks.extend(method_checks(rooms, &plan, &facts).await?);
    checks.extend(mesh::examine_members(rooms, op, &plan.source, &plan.signed, &facts).await?);
    checks.extend(facts.checks.iter().cloned());
    let tables = planned_tables(rooms, &facts, &here);
    let both_ways = (!plan.wanted.one_way).then(|| plan.source.to_string());
    let mesh = both_ways.into_iter().chain(facts.members.iter().map(|member| member.node.clone())).collect();
    let (method, method_reason) = (plan.method, plan.method_reason.clone());
    if request.dry_run {
        return Ok(Answer { op: None, checks, tables, mesh, method, method_reason });
    }
    plan.members = facts.members;
    let own = nodes::own(&rooms.store).await.map_err(|error| error.explain())?;
    // Another one may have begun meanwhile; then that is the reason, not what it has made here so far.
    refuse_second(rooms, op)?;
    lifecycle::next(own.init_state, NodeEvent::Started).map_err(|_| {
        let text = format!("cannot start {}: it is {}", rooms.me, own.init_state);
        Failure::new(Code::IllegalState, text).hint(format!("steepctl node show {}", rooms.me))
    })?;
    verdict(&format!("cannot start {} from {}", rooms.me, plan.source), &checks)?;
    let new = NewOperation {
        op_id: op,
        kind: "init".into(),
        target: rooms.me.clone(),
        source: plan.source.clone(),
        method,
        request: Asked::of(&plan).to_json(),
        started_by: actor.to_string(),
    };
    match signed_intents::claim(&rooms.store, verified, Some(op)).await.map_err(|error| error.explain())? {
        Claim::First | Claim::Again => {}
        Claim::Used => return Err(signed_intents::used(verified)),
    }
    let workers = plan.wanted.parallel;
    let recipe = recipe_for(&plan);
    let work = Direct::new(rooms.clone(), source, plan);
    Box::pin(rooms.operations.start(new, actor.clone(), workers, recipe, work)).await?;
    Ok(Answer { op: Some(op), checks, tables, mesh, method, method_reason })
}

/// Findings about this node that the method gives reason for.
pub(super) async fn method_checks(
    rooms: &Rooms,
    plan: &DirectPlan,
    facts: &v1::ExamineReply,
) -> Result<Vec<v1::Check>, Failure> {
    let mut findings = Findings::about(&rooms.me);
    if plan.method == InitMethod::Snapshot {
        let explain = |error: postgres::Error| error.explain();
        let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let server = catalog::server_facts(&session).await.map_err(explain)?;
        native::check(&mut findings, &server, facts);
    }
    let was_left_open = !plan.method_reason.is_empty();
    if was_left_open && rooms.config.copy.large_table_method == LargeTables::PgDump {
        check_large(&mut findings, rooms, plan.source.as_str(), facts);
    }
    Ok(findings.into_checks())
}

fn check_large(findings: &mut Findings, rooms: &Rooms, source: &str, facts: &v1::ExamineReply) {
    let threshold = rooms.config.copy.large_table_threshold;
    let large: Vec<_> = facts.tables.iter().filter(|table| table.kind != "p" && table.bytes >= threshold).collect();
    let Some(name) = large.first().and_then(|table| table.table.as_ref()).map(table_name) else { return };
    let text = format!("{} tables are larger than copy.large_table_threshold, {name} among them", large.len());
    let hint = format!(
        "steepctl node prepare {source} --for pg_dump --target {} (copy.large_table_method); or name a method: --method direct",
        rooms.me
    );
    findings.error(Code::LargeTable, text, hint);
}

/// Whether this very order began its operation before.
pub(super) async fn was_started(rooms: &Rooms, op: OperationId, verified: &Verified) -> Result<bool, Failure> {
    let explain = |error: store::Error| error.explain();
    match signed_intents::find(&rooms.store, op).await.map_err(explain)? {
        None => Ok(false),
        Some(before) if before.is(verified) => Ok(operations::find(&rooms.store, op).await.map_err(explain)?.is_some()),
        Some(_) => Err(signed_intents::used(verified)),
    }
}

/// An operator destroys rows only with the target's name typed; an admin is taken at their word.
fn refuse_unconfirmed(request: &v1::StartNodeRequest, verified: &Verified) -> Result<(), Failure> {
    let is_admin = matches!(verified.signer.who, Who::Operator { role: Role::Admin, .. });
    if !request.force || request.dry_run || verified.order.confirmed || is_admin {
        return Ok(());
    }
    let text = format!("{} has not confirmed that tables on {} are emptied", verified.signer, request.target);
    Err(Failure::new(Code::ConfirmationNeeded, text))
}

pub(super) fn refuse_second(rooms: &Rooms, op: OperationId) -> Result<(), Failure> {
    match rooms.operations.current() {
        Some((running, _)) if running != op => {
            let text = format!("operation {running} already runs on {}", rooms.me);
            let hint = format!("steepctl op watch {running} follows it; steepctl node cancel {} stops it", rooms.me);
            Err(Failure::new(Code::OperationRunning, text).hint(hint))
        }
        _ => Ok(()),
    }
}

fn plan_of(
    rooms: &Rooms,
    request: &v1::StartNodeRequest,
    verified: &Verified,
) -> Result<(OperationId, DirectPlan), Failure> {
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    let op: OperationId = request.op_id.parse().map_err(|error| bad(format!("{error}")))?;
    let source: NodeId = request.source.parse().map_err(|_| rooms.peers.unknown(&request.source))?;
    if source == rooms.me {
        return Err(Failure::new(Code::SourceIsTarget, format!("cannot start {source} from itself")));
    }
    if !rooms.peers.knows(&source) {
        return Err(rooms.peers.unknown(source.as_str()));
    }
    let method = match request.method.as_str() {
        "" => InitMethod::Auto,
        word => word.parse().map_err(|error: BadWord| bad(format!("--method: {error}")))?,
    };
    if method == InitMethod::Manual {
        let failure = bad("a node is not started from a backup made by hand, but completed".into());
        return Err(failure.hint(format!("steepctl node prepare {source} --for pg_dump begins it")));
    }
    if matches!(method, InitMethod::TwoPhase | InitMethod::RowsAlone) {
        let text = "a snapshot in files is written first and applied later, by commands of their own".to_owned();
        return Err(bad(text).hint(format!(
            "steepctl snapshot generate {source} --dir DIR; then: steepctl snapshot apply {} --input DIR",
            request.target
        )));
    }
    let compression: Compression = request.compress.parse().map_err(|error| bad(format!("{error}")))?;
    let parallel = if request.parallel == 0 { rooms.config.copy.parallel } else { request.parallel };
    if !(1..=16).contains(&parallel) {
        return Err(bad(format!("--parallel {parallel} is not between 1 and 16")));
    }
    let schema_sync = match request.schema_sync.as_str() {
        "" => SchemaSync::Strict,
        word => word.parse().map_err(|error: BadWord| bad(format!("--schema-sync: {error}")))?,
    };
    let selection = request.selection.clone().unwrap_or_default();
    let wanted = Wanted {
        selection: selection_of(&selection),
        one_way: request.one_way,
        parallel,
        force: request.force,
        schema_sync,
        again: false,
    };
    may_sync(rooms, &wanted, &verified.signer.who)?;
    let plan = DirectPlan {
        source,
        method,
        method_reason: String::new(),
        prepared: None,
        shared_publication: wanted.selection.is_whole_database(),
        wanted,
        selection,
        signed: verified.signed.clone(),
        // Who else is in the mesh, the source will say.
        members: Vec::new(),
        max_rate: request.max_rate,
        compress: compression.to_string(),
        from: None,
    };
    Ok((op, plan))
}

/// A selection from a message.
pub fn selection_of(selection: &v1::Selection) -> Selection {
    Selection {
        tables: selection.tables.iter().map(table_name).collect(),
        schemas: selection.schemas.clone(),
        exclude: selection.exclude.iter().map(table_name).collect(),
    }
}

pub(super) fn planned_tables(rooms: &Rooms, facts: &v1::ExamineReply, here: &TargetTables) -> Vec<v1::PlannedTable> {
    let planned = |table: &v1::SourceTable| {
        let pages = u32::try_from(table.bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        let name = table.table.as_ref().map(table_name)?;
        Some(v1::PlannedTable {
            source_rows: table.rows,
            target_rows: here.rows.get(&name).copied().unwrap_or_default(),
            table: table.table.clone(),
            rows_estimate: table.rows_estimate,
            bytes: table.bytes,
            parts: parts::cut(pages, rooms.config.copy.part_size).starts.len() as u32,
            format: if is_binary(table) { "binary".into() } else { "text".into() },
        })
    };
    facts.tables.iter().filter(|table| table.kind != "p").filter_map(planned).collect()
}
