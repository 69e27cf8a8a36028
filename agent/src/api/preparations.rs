//! The service of backups made by hand.

use std::time::Duration;

use steep_protocol::{
    failure::{Explain as _, Failure},
    intent::Order,
    v1::{
        ChangePreparationReply, ChangePreparationRequest, CompleteNodeReply, CompleteNodeRequest,
        ListPreparationsReply, ListPreparationsRequest, PrepareReply, PrepareRequest,
        preparations_client::PreparationsClient, preparations_server::Preparations,
    },
    wire::rpc::status_of,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::Rpc,
    forward::{Owner, answer},
};
use crate::{
    initialize::{complete, prepare},
    store::audit,
};

/// What is made for a backup waits for transactions, for no longer than this in all.
const PREPARE_LIMIT: Duration = Duration::from_secs(300);

/// Answers for this node, forwards for others.
#[derive(Debug)]
pub struct Service(pub Door);

type Answer<T> = Result<Response<T>, Status>;

fn refused(failure: Failure) -> Status {
    status_of(&failure)
}

#[tonic::async_trait]
impl Preparations for Service {
    async fn prepare(&self, request: Request<PrepareRequest>) -> Answer<PrepareReply> {
        let caller = self.0.admit(&request, Rpc::PreparationsPrepare).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, PreparationsClient::new(channel).prepare(asked)).await;
        }
        let op = caller.signed().order.op_id;
        self.0.heed(&caller, &Order::to_prepare(&request, op).map_err(refused)?).await?;
        let rooms = self.0.rooms()?;
        self.0.upkeep.drain.refuse(&rooms.me, "keeps nothing new for others").map_err(refused)?;
        self.0.spend(&caller, &rooms, Some(op)).await?;
        let actor = caller.actor();
        // Not dropped half-way with its caller: what is half made is taken back.
        let (asked, by, within) = (request.clone(), actor.clone(), rooms.clone());
        let making = tokio::spawn(async move { Box::pin(prepare::prepare(&within, &asked, op, &by)).await });
        let made = match timeout(PREPARE_LIMIT, making).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => return Err(Status::internal(error.to_string())),
            Err(_) => return Err(Status::deadline_exceeded("the slot is still being made")),
        };
        let detail = serde_json::json!({
            "purpose": request.purpose, "for": request.target, "expires_seconds": request.expires_seconds,
            "refused": made.as_ref().err().map(ToString::to_string),
        });
        audit::append(&rooms.store, &actor, "node.prepare", &request.node_id, Some(op), &detail)
            .await
            .map_err(|error| refused(error.explain()))?;
        let preparation = made.map_err(refused)?;
        Ok(Response::new(PrepareReply { served_by: self.0.me(), preparation: Some(preparation) }))
    }

    async fn list(&self, request: Request<ListPreparationsRequest>) -> Answer<ListPreparationsReply> {
        let caller = self.0.admit(&request, Rpc::PreparationsList).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, PreparationsClient::new(channel).list(asked)).await;
        }
        let preparations = prepare::list(&*self.0.rooms()?).await.map_err(refused)?;
        Ok(Response::new(ListPreparationsReply { served_by: self.0.me(), preparations }))
    }

    async fn change(&self, request: Request<ChangePreparationRequest>) -> Answer<ChangePreparationReply> {
        let caller = self.0.admit(&request, Rpc::PreparationsChange).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, PreparationsClient::new(channel).change(asked)).await;
        }
        let op = caller.signed().order.op_id;
        self.0.heed(&caller, &Order::to_change_prepared(&request, op).map_err(refused)?).await?;
        let rooms = self.0.rooms()?;
        self.0.spend(&caller, &rooms, None).await?;
        let changed = prepare::change(&rooms, &request, &caller.actor()).await.map_err(refused)?;
        Ok(Response::new(ChangePreparationReply { served_by: self.0.me(), preparation: Some(changed) }))
    }

    async fn complete(&self, request: Request<CompleteNodeRequest>) -> Answer<CompleteNodeReply> {
        let caller = self.0.admit(&request, Rpc::PreparationsComplete).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.target, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, PreparationsClient::new(channel).complete(asked)).await;
        }
        self.0.heed(&caller, &Order::to_complete(&request).map_err(refused)?).await?;
        let rooms = self.0.rooms()?;
        let actor = caller.actor();
        let answered = match self.0.upkeep.drain.refuse(&rooms.me, "starts no operation") {
            Ok(()) => Box::pin(complete::complete(&rooms, &request, &actor, caller.signed())).await,
            Err(drained) => Err(drained),
        };
        let detail = serde_json::json!({
            "source": request.source, "prepare_id": request.prepare_id,
            "through": caller.through.as_ref().map(ToString::to_string),
            "refused": answered.as_ref().err().map(ToString::to_string),
        });
        let op = answered.as_ref().ok().map(|(op, _)| *op);
        audit::append(&rooms.store, &actor, "node.complete", &request.target, op, &detail)
            .await
            .map_err(|error| refused(error.explain()))?;
        let (op, checks) = match answered {
            Ok(answered) => answered,
            Err(failure) => return Err(self.0.refuse(&caller, failure).await),
        };
        Ok(Response::new(CompleteNodeReply { served_by: self.0.me(), op_id: op.to_string(), checks }))
    }
}
