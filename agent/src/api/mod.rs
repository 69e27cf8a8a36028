//! The door: parse, authorize, call, reply. Decides nothing.
//!
//! [`authorize`] says who may ask what; [`forward`] sends a request that names another node to that node's
//! agent, once; [`nodes`], [`operations`], [`mesh`], [`peers`], [`certificates`] and [`agents`] are the services,
//! [`events`] what agents logged; [`http`] answers probes and [`scrape`] Prometheus; [`meter`] counts requests; [`reply`]
//! turns rows into messages.

pub mod agents;
pub mod authorize;
pub mod certificates;
pub mod events;
pub mod forward;
pub mod http;
pub mod mesh;
pub mod meter;
pub mod nodes;
pub mod operations;
pub mod peers;
pub mod reply;
pub mod scrape;

use std::sync::Arc;

use steep_protocol::{
    failure::{Code, Failure},
    v1::{
        agents_server::AgentsServer, certificates_server::CertificatesServer, mesh_server::MeshServer,
        nodes_server::NodesServer, operations_server::OperationsServer,
        peers_server::PeersServer,
    },
    wire::rpc::{MAX_MESSAGE_BYTES, status_of},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, service::Routes};

use self::authorize::{Caller, Rpc};
use crate::{mesh::Peers, rooms::Rooms, upkeep::Upkeep};

/// What every service needs: the peers, the agent as a program, and the rooms once PostgreSQL was reached.
#[derive(Debug, Clone)]
pub struct Door {
    peers: Peers,
    rooms: watch::Receiver<Option<Arc<Rooms>>>,
    upkeep: Upkeep,
    /// Streams without an end of their own end with it.
    stop: CancellationToken,
    /// Places for readers of events.
    readers: Arc<Semaphore>,
}

impl Door {
    /// `rooms` holds nothing until PostgreSQL was reached for the first time.
    pub fn new(
        peers: Peers,
        rooms: watch::Receiver<Option<Arc<Rooms>>>,
        upkeep: Upkeep,
        stop: CancellationToken,
    ) -> Self {
        Self { peers, rooms, upkeep, stop, readers: Arc::new(Semaphore::new(events::READERS)) }
    }

    /// All services.
    pub fn routes(&self) -> Routes {
        const LIMIT: usize = MAX_MESSAGE_BYTES;
        let routes = Routes::new(NodesServer::new(nodes::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(OperationsServer::new(operations::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(MeshServer::new(mesh::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(PeersServer::new(peers::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(CertificatesServer::new(certificates::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(AgentsServer::new(agents::Service(self.clone())).max_decoding_message_size(LIMIT));
        meter::measured(routes, self.upkeep.metrics.clone())
    }

    /// Who asks, provided that they may; denials are logged and audited.
    async fn admit<T>(&self, request: &Request<T>, rpc: Rpc) -> Result<Caller, Status> {
        match authorize::admit(request, rpc) {
            Ok(caller) => Ok(caller),
            Err(denied) => {
                self.upkeep.metrics.rpc_rejected.of(["authz"]).inc();
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
