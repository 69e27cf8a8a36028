//! The mesh service.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use steep_protocol::{
    ids::NodeId,
    operation::Action,
    v1::{
        ForgetReply, ForgetRequest, JoinReply, JoinRequest, LeaveReply, LeaveRequest, LinksRequest, ListMembersReply,
        ListMembersRequest, MatrixReply, MatrixRequest, PingReply, PingRequest, mesh_client::MeshClient,
        mesh_server::Mesh, peers_client::PeersClient,
    },
    wire::rpc::{failure_of, status_of},
};
use tonic::{Request, Response, Status};
use tracing::warn;

use super::{
    Door,
    authorize::{Caller, Rpc},
    forward::{Owner, answer},
};
use crate::store::audit;

/// How long peers may take when all are asked for their links.
const LIMIT: Duration = Duration::from_secs(3);

/// Answers for this agent, forwards for others.
#[derive(Debug)]
pub struct Service(pub Door);

#[tonic::async_trait]
impl Mesh for Service {
    async fn list(&self, request: Request<ListMembersRequest>) -> Result<Response<ListMembersReply>, Status> {
        self.0.admit(&request, Rpc::MeshList).await?;
        let peers = &self.0.peers;
        let mut members = peers.members();
        members.sort_by(|one, other| one.node_id.cmp(&other.node_id));
        let mesh = peers.mesh().to_string();
        Ok(Response::new(ListMembersReply { served_by: self.0.me(), mesh, members, seeds: peers.seed_addresses() }))
    }

    async fn matrix(&self, request: Request<MatrixRequest>) -> Result<Response<MatrixReply>, Status> {
        self.0.admit(&request, Rpc::MeshMatrix).await?;
        let asked = self.0.peers.ask_all(LIMIT, |channel| async move {
            let asked = PeersClient::new(channel).links(LinksRequest {}).await;
            asked.map(Response::into_inner).map_err(|status| failure_of(&status))
        });
        let (mut rows, missing) = asked.await;
        rows.push(self.0.peers.own_links());
        rows.sort_by(|one, other| one.node_id.cmp(&other.node_id));
        let missing_nodes = missing.iter().map(NodeId::to_string).collect();
        Ok(Response::new(MatrixReply { served_by: self.0.me(), rows, missing_nodes }))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        self.0.admit(&request, Rpc::MeshPing).await?;
        let peers = &self.0.peers;
        let wanted = &request.get_ref().node_id;
        let nodes: Vec<NodeId> = if wanted.is_empty() {
            peers.names().collect()
        } else {
            let known = wanted.parse().ok().filter(|node| peers.knows(node) && node != peers.me());
            vec![known.ok_or_else(|| status_of(&peers.unknown(wanted)))?]
        };
        let mut nodes = join_all(nodes.iter().map(|node| peers.ping(node))).await;
        nodes.sort_by(|one, other| one.node_id.cmp(&other.node_id));
        Ok(Response::new(PingReply { served_by: self.0.me(), nodes }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let caller = self.0.admit(&request, Rpc::MeshJoin).await?;
        let seed = request.into_inner().seed;
        let joined = self.0.peers.join(&seed).await;
        let refused = joined.as_ref().err().map(ToString::to_string);
        self.audit(&caller, "mesh.join", &seed, json!({ "refused": refused })).await;
        let (node, members) = joined.map_err(|failure| status_of(&failure))?;
        Ok(Response::new(JoinReply { served_by: self.0.me(), node_id: node.to_string(), members: members as u32 }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let caller = self.0.admit(&request, Rpc::MeshLeave).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, MeshClient::new(channel).leave(asked)).await;
        }
        self.0.heed_about_me(&caller, Action::MeshLeave).await?;
        self.audit(&caller, "mesh.leave", &request.node_id, json!({})).await;
        self.0.peers.leave();
        Ok(Response::new(LeaveReply { served_by: self.0.me(), node_id: request.node_id }))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<ForgetReply>, Status> {
        let caller = self.0.admit(&request, Rpc::MeshForget).await?;
        let node_id = request.into_inner().node_id;
        let peers = &self.0.peers;
        let node: NodeId = node_id.parse().map_err(|_| status_of(&peers.unknown(&node_id)))?;
        let forgotten = peers.forget(&node);
        let refused = forgotten.as_ref().err().map(ToString::to_string);
        self.audit(&caller, "mesh.forget", &node_id, json!({ "refused": refused })).await;
        forgotten.map_err(|failure| status_of(&failure))?;
        Ok(Response::new(ForgetReply { served_by: self.0.me(), node_id }))
    }
}

impl Service {
    /// Writes to the audit log, where PostgreSQL has been reached; the mesh is there without it.
    async fn audit(&self, caller: &Caller, what: &str, target: &str, mut detail: serde_json::Value) {
        let Some(rooms) = self.0.rooms.borrow().clone() else { return };
        detail["through"] = json!(caller.through.as_ref().map(ToString::to_string));
        if let Err(error) = audit::append(&rooms.store, &caller.actor(), what, target, None, &detail).await {
            warn!(reason = %error, details.action = what, "it could not be audited");
        }
    }
}
