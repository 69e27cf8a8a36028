//! The schema service.

use std::{collections::BTreeMap, pin::Pin};

use futures::{Stream, StreamExt as _};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    intent::Order,
    names::{TableName, readable_identifier},
    operation::Role,
    v1::{
        self, CaptureSchemaReply, CaptureSchemaRequest, CompareSchemasReply, CompareSchemasRequest,
        ExportSchemaRequest, FetchSchemaRequest, PlanSchemaReply, PlanSchemaRequest, SchemaHistoryReply,
        SchemaHistoryRequest, SchemaPage, SyncSchemaReply, SyncSchemaRequest, schemas_client::SchemasClient,
        schemas_server::Schemas,
    },
    wire::{
        identity::{PeerId, Who},
        rpc::{MAX_SCHEMA_BYTES, PeerChannel, failure_of, status_of},
    },
};
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::{Caller, Rpc},
    compared,
    forward::{Owner, answer},
};
use crate::{
    drift::{Drift, Pair, apply, told as schema_told},
    initialize::start::selection_of,
    postgres::selection::Selection,
    schema::{catalog::Table, diff::differences},
    store::fingerprints::{self, TableChange},
};

/// Changes in one answer, if nothing else is asked for, and at most.
const CHANGES: (u32, u32) = (50, 500);

/// Answers for this node, forwards for others.
#[derive(Debug)]
pub struct Service(pub Door);

fn client(channel: PeerChannel) -> SchemasClient<PeerChannel> {
    SchemasClient::new(channel).max_decoding_message_size(MAX_SCHEMA_BYTES)
}

fn told(failure: Failure) -> Status {
    status_of(&failure)
}

/// Which tables a message means; none said: all.
fn chosen(selection: Option<v1::Selection>) -> Selection {
    selection.as_ref().map(selection_of).unwrap_or_default()
}

#[tonic::async_trait]
impl Schemas for Service {
    async fn capture(&self, request: Request<CaptureSchemaRequest>) -> Result<Response<CaptureSchemaReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SchemasCapture).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, client(channel).capture(asked)).await;
        }
        let drift = self.0.rooms()?.drift.clone();
        let captured = drift.capture().await.map_err(told)?;
        let environment = drift.environment(drift.me()).await.map_err(told)?;
        let environment = environment.as_ref().map(schema_told::environment);
        Ok(Response::new(CaptureSchemaReply { served_by: self.0.me(), environment, changed: captured.changed }))
    }

    async fn compare(&self, request: Request<CompareSchemasRequest>) -> Result<Response<CompareSchemasReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SchemasCompare).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.left, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, client(channel).compare(asked)).await;
        }
        let drift = self.0.rooms()?.drift.clone();
        let other = self.other(&request.right)?;
        let chosen = chosen(request.selection);
        let mut pair = drift.pair(&other, &chosen, true).await.map_err(told)?;
        are_there(&chosen, &pair)?;
        let comparison = pair.compare(&drift).await.map_err(told)?;
        let mut compared = compared::comparison(&pair, &comparison, request.with_rows);
        compared.served_by = self.0.me();
        Ok(Response::new(compared))
    }

    async fn plan(&self, request: Request<PlanSchemaRequest>) -> Result<Response<PlanSchemaReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SchemasPlan).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.target, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, client(channel).plan(asked)).await;
        }
        let drift = self.0.rooms()?.drift.clone();
        let source = self.other(&request.source)?;
        let chosen = chosen(request.selection);
        let mut pair = drift.pair(&source, &chosen, false).await.map_err(told)?;
        are_there(&chosen, &pair)?;
        // Texts that only another version writes otherwise are no reason to change anything.
        pair.compare(&drift).await.map_err(told)?;
        let plan = pair.plan().await.map_err(told)?;
        Ok(Response::new(PlanSchemaReply {
            served_by: self.0.me(),
            source: request.source,
            target: request.target,
            source_digest: plan.source_digest.clone(),
            target_digest: plan.target_digest.clone(),
            steps: plan.steps.iter().map(compared::plan_step).collect(),
            hazards: plan.hazards.iter().map(compared::plan_hazard).collect(),
        }))
    }

    async fn sync(&self, request: Request<SyncSchemaRequest>) -> Result<Response<SyncSchemaReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SchemasSync).await?;
        let request = request.into_inner();
        if let Owner::Peer(_, channel) = self.0.owner(&request.target, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            // An index may take hours to build; the target's word counts, however late.
            return client(channel).sync(asked).await.map_err(|status| status_of(&failure_of(&status)));
        }
        let rooms = self.0.rooms()?;
        self.may_change(&caller, rooms.config.schema.sync_role).await?;
        let op = caller.signed().order.op_id;
        let order = Order::to_sync(&request, op).map_err(told)?;
        self.0.heed(&caller, &order).await?;
        self.0.spend(&caller, &rooms, None).await?;
        let source = self.other(&request.source)?;
        let chosen = chosen(request.selection);
        let mut pair = rooms.drift.pair(&source, &chosen, false).await.map_err(told)?;
        pair.compare(&rooms.drift).await.map_err(told)?;
        let plan = pair.plan().await.map_err(told)?;
        if (&plan.source_digest, &plan.target_digest) != (&request.source_digest, &request.target_digest) {
            let whose = if plan.source_digest == request.source_digest { rooms.me.clone() } else { source };
            return Err(told(Failure::new(
                Code::SchemaPlanStale,
                format!("the schema of {whose} changed since the plan was shown; nothing was changed"),
            )));
        }
        let ordered = apply::Order { op, source, actor: caller.actor() };
        // On its own: whoever asked may go away, and a plan is not to end half-way because of that.
        let running = tokio::spawn(async move {
            let applied = apply::apply(&rooms.store, &plan, &ordered, &apply::Limits::default()).await;
            // Whatever came of it, others shall see it soon.
            drop(rooms.drift.capture().await);
            applied.map(|_| plan)
        });
        let ended = |error| told(Failure::new(Code::Internal, "the sync ended unexpectedly").caused_by(&error));
        let plan = running.await.map_err(ended)?.map_err(|error| told(error.explain()))?;
        Ok(Response::new(SyncSchemaReply {
            served_by: self.0.me(),
            applied: plan.steps.iter().map(compared::plan_step).collect(),
            hazards: plan.hazards.iter().map(compared::plan_hazard).collect(),
        }))
    }

    type ExportStream = Pages;

    async fn export(&self, request: Request<ExportSchemaRequest>) -> Result<Response<Pages>, Status> {
        let caller = self.0.admit(&request, Rpc::SchemasExport).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            let pages = answer(&node, client(channel).export(asked)).await?.into_inner();
            let pages = pages.map(|page| page.map_err(|status| status_of(&failure_of(&status))));
            return Ok(Response::new(pages.boxed()));
        }
        let served_by = self.0.me();
        let pages = pages(&self.0, FetchSchemaRequest::default()).await?.into_inner();
        let pages = pages.map(move |page| page.map(|page| SchemaPage { served_by: served_by.clone(), ..page }));
        Ok(Response::new(pages.boxed()))
    }

    async fn history(&self, request: Request<SchemaHistoryRequest>) -> Result<Response<SchemaHistoryReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SchemasHistory).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, client(channel).history(asked)).await;
        }
        let rooms = self.0.rooms()?;
        rooms.drift.capture().await.map_err(told)?;
        let table = request.table.map(|name| TableName::new(name.schema, name.name));
        let before = (request.before > 0).then_some(request.before);
        let limit = if request.limit == 0 { CHANGES.0 } else { request.limit.min(CHANGES.1) };
        let read = |table: Option<TableName>, before: Option<i64>, limit: u32| {
            let store = rooms.store.clone();
            async move {
                let read = fingerprints::history(&store, table.as_ref(), before, i64::from(limit)).await;
                read.map_err(|error| told(error.explain()))
            }
        };
        let changes = read(table, before, limit).await?;
        let mut listed = Vec::new();
        let mut later: BTreeMap<&TableName, usize> = BTreeMap::new();
        for change in &changes {
            listed.push(compared::change(change));
            if let Some(at) = later.insert(&change.table, listed.len() - 1) {
                listed[at].differences = changed(change, &changes[at]);
            }
        }
        // The form before the oldest listed change of each table.
        for (table, at) in later {
            let earlier = read(Some(table.clone()), Some(changes[at].id), 1).await?;
            if let Some(earlier) = earlier.first() {
                listed[at].differences = changed(earlier, &changes[at]);
            }
        }
        Ok(Response::new(SchemaHistoryReply { served_by: self.0.me(), changes: listed }))
    }
}

/// A schema, page by page.
pub type Pages = Pin<Box<dyn Stream<Item = Result<SchemaPage, Status>> + Send>>;

/// This node's schema for whoever knows `asked`.
pub(super) async fn pages(door: &Door, asked: FetchSchemaRequest) -> Result<Response<Pages>, Status> {
    let drift: Drift = door.rooms()?.drift.clone();
    let pages = drift.answer(asked).await.map_err(told)?;
    let pages = pages.map(|page| page.map_err(told));
    Ok(Response::new(pages.take_until(door.stop.clone().cancelled_owned()).boxed()))
}

impl Service {
    /// The node that this one is compared with.
    fn other(&self, name: &str) -> Result<NodeId, Status> {
        let peers = &self.0.peers;
        let node = name.parse::<NodeId>().ok().filter(|node| peers.knows(node));
        let node = node.ok_or_else(|| told(peers.unknown(name)))?;
        if node == *peers.me() {
            let text = format!("{node} cannot be compared with itself");
            return Err(told(
                Failure::new(Code::BadRequest, text).hint("name two nodes: steepctl schema compare node_a node_b"),
            ));
        }
        Ok(node)
    }

    /// DDL is for admins, unless the configuration says otherwise.
    async fn may_change(&self, caller: &Caller, least: Role) -> Result<(), Status> {
        match &caller.who {
            Who::Operator { role, .. } if *role >= least => Ok(()),
            who => {
                let who = PeerId { mesh: caller.peer.mesh.clone(), who: who.clone() };
                let text = format!("{who} may not change the schema of {}: it needs role {least}", self.0.me());
                let failure = Failure::new(Code::Denied, text).hint(
                    "ask with the certificate of an admin, or set schema.sync_role = \"operator\" in the target's agent.toml",
                );
                Err(self.0.refuse(caller, failure).await)
            }
        }
    }
}

/// Tables and schemas that were named and that neither node has are a mistake.
fn are_there(chosen: &Selection, pair: &Pair) -> Result<(), Status> {
    let is_nowhere = |name: &&TableName| {
        !pair.own.catalog.tables.contains_key(*name) && !pair.other.catalog.tables.contains_key(*name)
    };
    let (here, there) = (&pair.own.catalog, &pair.other.catalog);
    let is_in = |schema: &String| {
        let tables = here.tables.keys().chain(there.tables.keys());
        let objects = here.objects.keys().chain(there.objects.keys()).map(|key| &key.name);
        tables.chain(objects).any(|name| name.schema == *schema)
    };
    if let Some(schema) = chosen.schemas.iter().find(|schema| !is_in(schema)) {
        let (own, other) = (&pair.own.environment.node_id, &pair.other.environment.node_id);
        let text = format!("neither {own} nor {other} has a table in a schema {}", readable_identifier(schema));
        return Err(told(Failure::new(Code::BadRequest, text).hint(
            "check the spelling, and capital letters too; steepctl schema compare without --schemas lists all tables",
        )));
    }
    match chosen.tables.iter().find(is_nowhere) {
        None => Ok(()),
        Some(name) => {
            let (own, other) = (&pair.own.environment.node_id, &pair.other.environment.node_id);
            let text = format!("neither {own} nor {other} has a table {name}");
            Err(told(
                Failure::new(Code::BadRequest, text)
                    .hint(format!("steepctl schema compare {own} {other} --all lists all tables")),
            ))
        }
    }
}

/// What changed from one form of a table to the next, in a few words.
fn changed(before: &TableChange, after: &TableChange) -> Vec<String> {
    if before.change == "dropped" || after.change == "dropped" {
        return Vec::new();
    }
    let parse = |change: &TableChange| Table::parse(&change.table, &change.columns, &change.definition);
    // A form that a later version wrote down is listed without words.
    let (Ok(before), Ok(after)) = (parse(before), parse(after)) else { return Vec::new() };
    differences(&before, &after)
        .iter()
        .map(|difference| difference.summary("the table before", "the table now"))
        .collect()
}
