//! The mesh a newcomer enters: who replicates both ways with the source, and whether each of them does so with every
//! other. Looks, and changes nothing.
//!
//! PostgreSQL's catalogs say who a node replicates with; nobody keeps a list. Each node judges its own part, so that a
//! pair is whole when both say so; a half mesh is refused, naming the pair.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use steep_protocol::{
    failure::{Code, Explain as _, Failure, Family},
    ids::{NodeId, OperationId},
    names::TableName,
    operation::SchemaSync,
    v1,
};
use tokio::time::timeout;

use super::{
    apart,
    findings::Findings,
    messages::table_name,
    preflight::{self, Wanted},
    shapes::Pair,
    subscribe::name_for,
};
use crate::{
    mesh::Source,
    postgres::{
        self, Purpose, Session, catalog,
        catalog::{RoleFacts, ServerFacts},
        links::{self, Link},
        tables::{self, TableKind},
    },
    rooms::Rooms,
    session::Neighbour,
    store::removals,
};

/// How long a member may take to examine itself.
const EXAMINE_LIMIT: Duration = Duration::from_secs(60);

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// A node, and the subscription others have to it.
pub fn neighbour(node: NodeId) -> Neighbour {
    let subscription = name_for(node.as_str());
    Neighbour { node, subscription }
}

/// What a node applies from others must not be lost on the way to `target`: its part of the source's preflight, for both
/// ways. Returns those the target has to replicate with too.
pub(super) async fn check_source(
    rooms: &Rooms,
    session: &Session,
    findings: &mut Findings,
    target: &NodeId,
    tables: &[TableName],
    again: bool,
) -> Result<Vec<v1::MeshMember>, Failure> {
    check_quiet(rooms, findings, target).await?;
    let links = links::list(session).await.map_err(explain)?;
    let mut members = Vec::new();
    for link in &links {
        if let Some(node) = judge(rooms, findings, link, target, tables, again) {
            members.push(v1::MeshMember { node: node.to_string(), slot: link.slot.clone() });
        }
    }
    Ok(members)
}

/// Facts and findings about this node, which replicates both ways with the source of a newcomer.
pub async fn examine_member(
    rooms: &Rooms,
    target: &NodeId,
    request: &v1::ExamineMemberRequest,
    again: bool,
) -> Result<v1::ExamineMemberReply, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let server = catalog::server_facts(&session).await.map_err(explain)?;
    let role = catalog::role_facts(&session).await.map_err(explain)?;
    let facts = request.source_facts.clone().unwrap_or_default();
    let mut findings = Findings::about(&rooms.me);
    let wanted = Wanted {
        selection: Default::default(),
        one_way: false,
        parallel: 0,
        force: false,
        schema_sync: SchemaSync::Strict,
        again,
    };
    preflight::check_state(rooms, &mut findings).await?;
    preflight::check_server(&mut findings, &server, &wanted);
    preflight::check_publisher(&mut findings, &server, &role, 1);
    check_joined(&mut findings, &server, &role);
    preflight::check_blockers(&session, &mut findings).await?;
    check_quiet(rooms, &mut findings, target).await?;

    let tables = with_rows(&facts);
    let found = links::list(&session).await.map_err(explain)?;
    let with: BTreeSet<NodeId> =
        found.iter().filter_map(|link| judge(rooms, &mut findings, link, target, &tables, again)).collect();
    let others: BTreeSet<&str> = request.members.iter().map(String::as_str).chain([request.source.as_str()]).collect();
    for other in others.iter().filter(|other| **other != rooms.me.as_str()) {
        let is_told = found.iter().any(|link| link.name == name_for(other));
        if !is_told {
            let text =
                format!("{} does not replicate from {other}, though both replicate with {}", rooms.me, request.source);
            findings.error(Code::MeshIncomplete, text, Code::MeshIncomplete.hint());
        }
    }
    for stranger in with.iter().filter(|node| !others.contains(node.as_str())) {
        let text = format!("{} replicates with {stranger}, and {} does not", rooms.me, request.source);
        findings.error(Code::MeshIncomplete, text, Code::MeshIncomplete.hint());
    }

    let names: Vec<TableName> = facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name)).collect();
    let existing = tables::find(&session, &names).await.map_err(explain)?;
    let existing = existing.into_iter().map(|table| (table.name.clone(), table)).collect();
    let pair = Pair { source: &request.source, one_way: false, target: server.version };
    pair.check(&mut findings, &facts, &existing);
    Ok(v1::ExamineMemberReply {
        system_identifier: server.system_identifier,
        database: server.database,
        checks: findings.into_checks(),
    })
}

/// Asks every member of the source's mesh to examine itself, all at once; one that cannot be asked is a finding too.
pub(super) async fn examine_members(
    rooms: &Rooms,
    op: OperationId,
    source: &NodeId,
    signed: &v1::SignedIntent,
    facts: &v1::ExamineReply,
) -> Result<Vec<v1::Check>, Failure> {
    if facts.members.is_empty() {
        return Ok(Vec::new());
    }
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let here = catalog::server_facts(&session).await.map_err(explain)?;
    let asked = facts.members.iter().map(|member| async move {
        let answered = async {
            let node: NodeId = member.node.parse().map_err(|_| rooms.peers.unknown(&member.node))?;
            let request = v1::ExamineMemberRequest {
                op_id: op.to_string(),
                source: source.to_string(),
                members: facts.members.iter().map(|member| member.node.clone()).collect(),
                source_facts: Some(facts.clone()),
            };
            Source::new(rooms.peers.clone(), node, op).examine_member(signed, request).await
        };
        let silent = || Failure::new(Code::PeerSilent, format!("no answer in {} s", EXAMINE_LIMIT.as_secs()));
        (&member.node, timeout(EXAMINE_LIMIT, answered).await.unwrap_or_else(|_| Err(silent())))
    });
    let mut checks = Vec::new();
    for (node, answer) in join_all(asked).await {
        let mut findings = Findings::about(node);
        match answer {
            Ok(reply) => {
                let theirs = (reply.system_identifier, reply.database.as_str());
                let member = node.parse().map_err(|_| rooms.peers.unknown(node))?;
                apart::check(rooms, &session, &mut findings, &here, (&member, theirs)).await?;
                checks.extend(reply.checks);
            }
            Err(failure) if matches!(failure.code.family(), Family::Connection | Family::Timeout) => {
                let text = format!("{node} replicates with {source} and cannot be asked: {}", failure.message);
                findings.error(Code::MemberUnreachable, text, Code::MemberUnreachable.hint());
            }
            Err(failure) => findings.error(failure.code, failure.message, failure.hint),
        }
        checks.extend(findings.into_checks());
    }
    Ok(checks)
}

/// A node that shall be in a mesh may not get changes from outside it: they would go no further. And one that was removed
/// has to be done with that.
pub(super) async fn check_target(
    rooms: &Rooms,
    session: &Session,
    findings: &mut Findings,
    source: &str,
    wanted: &Wanted,
) -> Result<(), Failure> {
    let found = links::list(session).await.map_err(explain)?;
    let other = found.iter().find(|link| link.name != name_for(source));
    findings.must(wanted.one_way || other.is_none(), Code::OutsideChanges, "no changes from elsewhere", || {
        let other = other.map(|link| link.name.clone()).unwrap_or_default();
        format!("the node already replicates from another one ({other}), whose changes would not reach {source}")
    });
    let unfinished = removals::unfinished(&rooms.store).await.map_err(|error| error.explain())?;
    let is_left = !unfinished.iter().any(|removal| removal.node == rooms.me && !removal.is_done);
    findings.must(is_left, Code::RemovalPending, "no removal is under way", || {
        format!("{} was removed, and that is not done yet", rooms.me)
    });
    Ok(())
}

/// What a node needs that a newcomer's changes come to: a worker, an origin, the right to subscribe.
pub(super) fn check_joined(findings: &mut Findings, server: &ServerFacts, role: &RoleFacts) {
    preflight::check_workers(findings, server, 1);
    let free = server.max_origins.saturating_sub(server.used_origins);
    findings.must(free >= 1, Code::OriginsTooFew, "a replication origin is free", || {
        format!("all {} replication origins are in use", server.max_origins)
    });
    preflight::check_may_subscribe(findings, role);
}

/// The tables of the source that hold rows, as subscriptions list them.
pub(super) fn with_rows(facts: &v1::ExamineReply) -> Vec<TableName> {
    facts
        .tables
        .iter()
        .filter(|table| table.kind != "p")
        .filter_map(|table| table.table.as_ref().map(table_name))
        .collect()
}

/// The same of tables of this node.
pub(super) fn that_hold_rows(tables: &[tables::Table]) -> Vec<TableName> {
    tables.iter().filter(|table| table.kind == TableKind::Plain).map(|table| table.name.clone()).collect()
}

/// One newcomer at a time, and none whose removal is not finished.
async fn check_quiet(rooms: &Rooms, findings: &mut Findings, target: &NodeId) -> Result<(), Failure> {
    if let Some((op, node)) = rooms.sessions.newcomer() {
        let text = format!("{node} is being made a part of the mesh through {}", rooms.me);
        findings.error(Code::OperationRunning, text, format!("steepctl op watch {op}; start again when it has ended"));
    }
    let unfinished = removals::unfinished(&rooms.store).await.map_err(|error| error.explain())?;
    for removal in unfinished.iter().filter(|removal| removal.node == *target) {
        let waits_for = match removal.pending.is_empty() {
            true => rooms.me.to_string(),
            false => removal.pending.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", "),
        };
        let text = format!("{target} was removed, and that is not done yet on {waits_for}");
        findings.error(Code::RemovalPending, text, Code::RemovalPending.hint());
    }
    Ok(())
}

/// The node behind `link`, if all is well with it.
fn judge(
    rooms: &Rooms,
    findings: &mut Findings,
    link: &Link,
    target: &NodeId,
    tables: &[TableName],
    again: bool,
) -> Option<NodeId> {
    let name = &link.name;
    let me = &rooms.me;
    if *name == name_for(target.as_str()) {
        if again {
            return None;
        }
        let text = format!("a subscription {name} from {target} exists already");
        findings.error(Code::IllegalState, text, format!("steepctl node remove {target} takes it away"));
        return None;
    }
    let node = rooms.peers.names().find(|node| name_for(node.as_str()) == *name);
    let Some(node) = node else {
        let text = format!("{me} replicates with a node it does not know as a peer ({name})");
        findings.error(Code::MemberUnreachable, text, Code::MemberUnreachable.hint());
        return None;
    };
    if !link.is_mutual {
        let text = format!("{me} follows {node} one way: its changes would not reach {target}");
        findings.error(Code::OutsideChanges, text, Code::OutsideChanges.hint());
        return None;
    }
    if !link.is_enabled || link.slot.is_empty() {
        let text = format!("subscription {name} on {me} is disabled");
        findings.error(Code::MeshIncomplete, text, format!("on {me}: alter subscription {name} enable"));
        return None;
    }
    let (selected, carried): (BTreeSet<_>, BTreeSet<_>) = (tables.iter().collect(), link.tables.iter().collect());
    if let Some(table) = selected.difference(&carried).next() {
        let text = format!("{me} does not get {table} from {node}, though it is selected");
        findings.error(Code::MeshTablesDiffer, text, Code::MeshTablesDiffer.hint());
    }
    // Of what is copied again, others go on as they are.
    if let Some(table) = carried.difference(&selected).next().filter(|_| !again) {
        let text = format!("{me} gets {table} from {node}, though it is not selected");
        findings.error(Code::MeshTablesDiffer, text, Code::MeshTablesDiffer.hint());
    }
    Some(node)
}
