//! The snapshot service.

use std::time::Duration;

use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    intent::Order,
    v1::{
        ApplySnapshotReply, ApplySnapshotRequest, DeleteSnapshotReply, DeleteSnapshotRequest, GenerateSnapshotReply,
        GenerateSnapshotRequest, ListSnapshotsReply, ListSnapshotsRequest, Snapshot, VerifySnapshotReply,
        VerifySnapshotRequest, snapshots_client::SnapshotsClient, snapshots_server::Snapshots,
    },
    wire::rpc::{failure_of, status_of},
};
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::Rpc,
    forward::{Owner, answer},
};
use crate::{
    initialize::two_phase::{apply, generate, shelf},
    rooms::Rooms,
    snapshot::files::{manifest::snapshot_id, read::Depth, verify},
    store::audit,
};

/// How long peers may take when all are asked.
const ALL_LIMIT: Duration = Duration::from_secs(3);
/// Files looked at at once.
const LOOKING: usize = 4;

/// Answers for this node, forwards for others.
#[derive(Debug)]
pub struct Service(pub Door);

#[tonic::async_trait]
impl Snapshots for Service {
    async fn generate(
        &self,
        request: Request<GenerateSnapshotRequest>,
    ) -> Result<Response<GenerateSnapshotReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SnapshotsGenerate).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SnapshotsClient::new(channel).generate(asked)).await;
        }
        let order = Order::to_generate(&request).map_err(|failure| status_of(&failure))?;
        self.0.heed(&caller, &order).await?;
        let rooms = self.0.rooms()?;
        let actor = caller.actor();
        let started = match self.takes_work(&rooms) {
            Ok(()) => Box::pin(generate::start(&rooms, &request, &actor, caller.signed())).await,
            Err(drained) => Err(drained),
        };
        let detail = json!({
            "output": request.output, "through": caller.through.as_ref().map(ToString::to_string),
            "refused": started.as_ref().err().map(ToString::to_string),
        });
        let op = started.as_ref().ok().map(|(op, _)| *op);
        audit::append(&rooms.store, &actor, "snapshot.generate", &request.node_id, op, &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let (op, checks) = match started {
            Ok(started) => started,
            Err(failure) => return Err(self.0.refuse(&caller, failure).await),
        };
        let (served_by, snapshot_id) = (self.0.me(), snapshot_id(op));
        Ok(Response::new(GenerateSnapshotReply { served_by, op_id: op.to_string(), snapshot_id, checks }))
    }

    async fn apply(&self, request: Request<ApplySnapshotRequest>) -> Result<Response<ApplySnapshotReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SnapshotsApply).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.target, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SnapshotsClient::new(channel).apply(asked)).await;
        }
        let order = Order::to_apply(&request, false).map_err(|failure| status_of(&failure))?;
        self.0.heed(&caller, &order).await?;
        let rooms = self.0.rooms()?;
        let actor = caller.actor();
        let started = match self.takes_work(&rooms) {
            Ok(()) => Box::pin(apply::start(&rooms, &request, &actor, caller.signed())).await,
            Err(drained) => Err(drained),
        };
        let detail = json!({
            "input": request.input, "source": request.source, "force": request.force,
            "no_subscribe": request.no_subscribe, "through": caller.through.as_ref().map(ToString::to_string),
            "refused": started.as_ref().err().map(ToString::to_string),
        });
        let op = started.as_ref().ok().and_then(|started| started.op);
        audit::append(&rooms.store, &actor, "snapshot.apply", &request.target, op, &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let started = match started {
            Ok(started) => started,
            Err(failure) => return Err(self.0.refuse(&caller, failure).await),
        };
        Ok(Response::new(ApplySnapshotReply {
            served_by: self.0.me(),
            op_id: started.op.map(|op| op.to_string()).unwrap_or_default(),
            checks: started.checks,
            tables: started.tables,
        }))
    }

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Result<Response<ListSnapshotsReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SnapshotsList).await?;
        let request = request.into_inner();
        if !request.node_id.is_empty()
            && let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await?
        {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SnapshotsClient::new(channel).list(asked)).await;
        }
        let mut reply = ListSnapshotsReply { served_by: self.0.me(), ..ListSnapshotsReply::default() };
        let asks_all = request.node_id.is_empty() && caller.through.is_none();
        match self.own(&request).await {
            Ok(snapshots) => reply.snapshots = snapshots,
            Err(status) if !asks_all => return Err(status),
            Err(_) => reply.missing_nodes.push(self.0.me()),
        }
        if asks_all {
            let ask = |channel| {
                let asked = self.0.on_behalf_of(&caller, request.clone());
                async move {
                    let answered = SnapshotsClient::new(channel).list(asked).await;
                    answered.map(Response::into_inner).map_err(|status| failure_of(&status))
                }
            };
            let (answers, silent) = self.0.peers.ask_all(ALL_LIMIT, ask).await;
            reply.missing_nodes.extend(silent.iter().map(ToString::to_string));
            reply.snapshots.extend(answers.into_iter().flat_map(|answer| answer.snapshots));
        }
        Ok(Response::new(reply))
    }

    async fn verify(&self, request: Request<VerifySnapshotRequest>) -> Result<Response<VerifySnapshotReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SnapshotsVerify).await?;
        let request = request.into_inner();
        if !request.node_id.is_empty()
            && let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await?
        {
            // As long as there are files to read.
            let asked = self.0.on_behalf_of(&caller, request);
            let answered = SnapshotsClient::new(channel).verify(asked).await;
            return answered.map_err(|status| {
                let failure = failure_of(&status);
                status_of(&if status.details().is_empty() {
                    failure.cause(format!("asked of {node}"))
                } else {
                    failure
                })
            });
        }
        let rooms = self.0.rooms()?;
        let verified = Box::pin(self.look_at(&rooms, &request)).await;
        verified.map(Response::new).map_err(|failure| status_of(&failure))
    }

    async fn delete(&self, request: Request<DeleteSnapshotRequest>) -> Result<Response<DeleteSnapshotReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SnapshotsDelete).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SnapshotsClient::new(channel).delete(asked)).await;
        }
        let order = Order::to_delete_snapshot(&request, caller.signed().order.op_id);
        self.0.heed(&caller, &order.map_err(|failure| status_of(&failure))?).await?;
        let rooms = self.0.rooms()?;
        self.0.spend(&caller, &rooms, None).await?;
        let deleted = shelf::delete(&rooms, &request.snapshot_id, &caller.actor(), "by order of an operator").await;
        let deleted = deleted.map_err(|failure| status_of(&failure))?;
        let message = shelf::message(&rooms, &deleted, false).await.map_err(|failure| status_of(&failure))?;
        Ok(Response::new(DeleteSnapshotReply { served_by: self.0.me(), snapshot: Some(message) }))
    }
}

impl Service {
    /// A drained agent starts nothing.
    fn takes_work(&self, rooms: &Rooms) -> Result<(), Failure> {
        self.0.upkeep.drain.refuse(&rooms.me, "starts no operation")
    }

    async fn own(&self, request: &ListSnapshotsRequest) -> Result<Vec<Snapshot>, Status> {
        let rooms = self.0.rooms()?;
        let is_one = !request.snapshot_id.is_empty();
        let listed = shelf::list(&rooms, request.all || is_one).await.map_err(|failure| status_of(&failure))?;
        let mut snapshots = Vec::new();
        for known in listed.iter().filter(|known| !is_one || snapshot_id(known.op_id) == request.snapshot_id) {
            snapshots.push(shelf::message(&rooms, known, is_one).await.map_err(|failure| status_of(&failure))?);
        }
        Ok(snapshots)
    }

    async fn look_at(&self, rooms: &Rooms, request: &VerifySnapshotRequest) -> Result<VerifySnapshotReply, Failure> {
        let input = match request.input.starts_with("snap_") {
            false => request.input.clone(),
            true => {
                let found = shelf::find(rooms, &request.input).await?;
                if !found.is_complete() {
                    let text = format!("{} of {}: {}", request.input, rooms.me, found.status);
                    return Err(Failure::new(Code::SnapshotIncomplete, text));
                }
                found.storage
            }
        };
        let opened = match request.manifest_only {
            true => apply::glance_at(rooms, &input).await?,
            false => apply::open(rooms, &input).await?,
        };
        let rows_counted = match request.manifest_only {
            true => None,
            false => Some(verify::verify(&opened, Depth::Rows, LOOKING, |_| {}).await?),
        };
        let mut snapshot = shelf::of_manifest(&opened.manifest, true);
        snapshot.location = input;
        Ok(VerifySnapshotReply {
            served_by: self.0.me(),
            signed_by: format!("node {}", opened.manifest.node),
            format_version: opened.manifest.format_version,
            snapshot: Some(snapshot),
            rows_counted,
        })
    }
}
