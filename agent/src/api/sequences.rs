//! The sequence service.

use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    intent::Order,
    v1::{
        CheckSequencesReply, CheckSequencesRequest, ReadNodeSequencesReply, ReadNodeSequencesRequest, SequencePosition,
        SyncSequencesReply, SyncSequencesRequest, sequences_client::SequencesClient, sequences_server::Sequences,
    },
    wire::rpc::status_of,
};
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::{Caller, Rpc},
    forward::{Owner, answer},
};
use crate::sequences;

/// Answers for this node, forwards for others.
#[derive(Debug)]
pub struct Service(pub Door);

#[tonic::async_trait]
impl Sequences for Service {
    async fn read(
        &self,
        request: Request<ReadNodeSequencesRequest>,
    ) -> Result<Response<ReadNodeSequencesReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SequencesRead).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SequencesClient::new(channel).read(asked)).await;
        }
        let read = sequences::read(&*self.0.rooms()?).await.map_err(|failure| status_of(&failure))?;
        Ok(Response::new(ReadNodeSequencesReply { served_by: self.0.me(), sequences: read }))
    }

    async fn check(&self, request: Request<CheckSequencesRequest>) -> Result<Response<CheckSequencesReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SequencesCheck).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.target, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SequencesClient::new(channel).check(asked)).await;
        }
        let rooms = self.0.rooms()?;
        let (_, theirs) = self.theirs(&request.source, &caller).await?;
        let checked = sequences::check(&rooms, &theirs, request.margin).await.map_err(|failure| status_of(&failure))?;
        let margin = sequences::margin_of(&rooms, request.margin);
        Ok(Response::new(CheckSequencesReply { served_by: self.0.me(), sequences: checked, margin }))
    }

    async fn sync(&self, request: Request<SyncSequencesRequest>) -> Result<Response<SyncSequencesReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SequencesSync).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.target, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SequencesClient::new(channel).sync(asked)).await;
        }
        let op = caller.signed().order.op_id;
        let order = Order::to_sync_sequences(&request, op).map_err(|failure| status_of(&failure))?;
        self.0.heed(&caller, &order).await?;
        let rooms = self.0.rooms()?;
        let (source, theirs) = self.theirs(&request.source, &caller).await?;
        self.0.spend(&caller, &rooms, None).await?;
        let synced = sequences::sync(&rooms, &source, &theirs, request.margin, op, &caller.actor()).await;
        let (moved, left) = synced.map_err(|failure| status_of(&failure))?;
        Ok(Response::new(SyncSequencesReply { served_by: self.0.me(), moved, left }))
    }
}

impl Service {
    /// Where the source's sequences stand, asked in the operator's name.
    async fn theirs(&self, source: &str, caller: &Caller) -> Result<(NodeId, Vec<SequencePosition>), Status> {
        let peers = &self.0.peers;
        let node = source.parse::<NodeId>().ok().filter(|node| peers.knows(node));
        let node = node.ok_or_else(|| status_of(&peers.unknown(source)))?;
        if node == *peers.me() {
            let text = format!("{node} cannot be compared with itself");
            return Err(status_of(&Failure::new(Code::SourceIsTarget, text)));
        }
        let channel = peers.channel(&node).await.map_err(|failure| status_of(&failure))?;
        let asked = self.0.on_behalf_of(caller, ReadNodeSequencesRequest { node_id: node.to_string() });
        let read = answer(&node, SequencesClient::new(channel).read(asked)).await?;
        Ok((node, read.into_inner().sequences))
    }
}
