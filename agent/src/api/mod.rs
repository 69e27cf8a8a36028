//! The door: parse, authorize, call, reply. Decides nothing.
//!
//! [`authorize`] says who may ask what; [`forward`] sends a request that names another node to that node's
//! agent, once; [`nodes`], [`operations`], [`mesh`], [`peers`] and [`certificates`] are the services; [`http`] answers probes; [`reply`]
//! turns rows into messages.

pub mod authorize;
pub mod certificates;
pub mod forward;
pub mod http;
pub mod mesh;
pub mod nodes;
pub mod operations;
pub mod peers;
pub mod reply;

use std::sync::Arc;

use steep_protocol::{
    failure::{Code, Failure},
    v1::{
        certificates_server::CertificatesServer, mesh_server::MeshServer, nodes_server::NodesServer, operations_server::OperationsServer,
        peers_server::PeersServer,
    },
    wire::rpc::{MAX_MESSAGE_BYTES, status_of},
};
use tokio::sync::watch;
use tonic::{Request, Status, service::Routes};

use self::authorize::{Caller, Rpc};
use crate::{mesh::Peers, rooms::Rooms};

/// What every service needs: the peers, and the rooms once PostgreSQL was reached.
#[derive(Debug, Clone)]
pub struct Door {
    peers: Peers,
    rooms: watch::Receiver<Option<Arc<Rooms>>>,
}

impl Door {
    /// `rooms` holds nothing until PostgreSQL was reached for the first time.
    pub fn new(peers: Peers, rooms: watch::Receiver<Option<Arc<Rooms>>>) -> Self {
        Self { peers, rooms }
    }

    /// All services.
    pub fn routes(&self) -> Routes {
        Routes::new(NodesServer::new(nodes::Service(self.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(
                OperationsServer::new(operations::Service(self.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(MeshServer::new(mesh::Service(self.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(PeersServer::new(peers::Service(self.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(
                CertificatesServer::new(certificates::Service(self.clone()))
                    .max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
    }

    /// Who asks, provided that they may; denials are logged and audited.
    async fn admit<T>(&self, request: &Request<T>, rpc: Rpc) -> Result<Caller, Status> {
        match authorize::admit(request, rpc) {
            Ok(caller) => Ok(caller),
            Err(denied) => {
                let rooms = self.rooms.borrow().clone();
                authorize::tell_denied(rooms, &denied.who, rpc, &denied.failure).await;
                Err(status_of(&denied.failure))
            }
        }
    }

    fn rooms(&self) -> Result<Arc<Rooms>, Status> {
        self.rooms.borrow().clone().ok_or_else(|| {
            let text = format!("the agent of {} has not reached its PostgreSQL yet", self.peers.me());
            status_of(&Failure::new(Code::PostgresUnreachable, text))
        })
    }

    fn me(&self) -> String {
        self.peers.me().to_string()
    }
}
