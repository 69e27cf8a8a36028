//! The door: parse, authorize, call, reply. Decides nothing.
//!
//! [`gate`] stands before everything and [`authorize`] says who may ask what; [`orders`]
//! holds what was signed against what is asked. [`forward`] sends a request that names another node to that node's
//! agent, once; [`nodes`], [`operations`], [`mesh`], [`peers`], [`certificates`], [`agents`], [`schemas`], [`slots`], [`snapshots`] and [`sequences`] are the services,
//! [`events`] what agents logged; [`http`] answers probes and [`scrape`] Prometheus; [`meter`] counts requests; [`reply`]
//! and [`compared`] turn rows into messages.

pub mod agents;
pub mod authorize;
pub mod certificates;
pub mod compared;
pub mod events;
pub mod forward;
pub mod gate;
pub mod http;
pub mod mesh;
pub mod meter;
pub mod nodes;
pub mod operations;
pub mod orders;
pub mod peers;
pub mod preparations;
pub mod reply;
pub mod schemas;
pub mod scrape;
pub mod sequences;
pub mod slots;
pub mod snapshots;

use std::sync::Arc;

use axum::middleware;
use steep_protocol::{
    failure::{Code, Failure, Family},
    v1::{
        agents_server::AgentsServer, certificates_server::CertificatesServer, mesh_server::MeshServer,
        nodes_server::NodesServer, operations_server::OperationsServer, peers_server::PeersServer,
        preparations_server::PreparationsServer, schemas_server::SchemasServer, sequences_server::SequencesServer,
        slots_server::SlotsServer, snapshots_server::SnapshotsServer,
    },
    wire::{
        identity::PeerId,
        rpc::{MAX_MESSAGE_BYTES, status_of},
    },
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, service::Routes};

use self::authorize::{Caller, Denied, Rpc};
use crate::{
    mesh::Peers,
    rooms::Rooms,
    store::denials::{Denial, Denials},
    upkeep::Upkeep,
};

/// What every service needs: the peers, the agent as a program, and the rooms once PostgreSQL was reached.
#[derive(Debug, Clone)]
pub struct Door {
    peers: Peers,
    rooms: watch::Receiver<Option<Arc<Rooms>>>,
    denials: Denials,
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
        Self {
            peers,
            rooms,
            denials: Denials::default(),
            upkeep,
            stop,
            readers: Arc::new(Semaphore::new(events::READERS)),
        }
    }

    /// What was denied here.
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    /// All services, behind the gate.
    pub fn routes(&self) -> Routes {
        let gate = middleware::from_fn_with_state(self.clone(), gate::pass);
        let routes = self.services().into_axum_router().layer(gate).into();
        meter::measured(routes, self.upkeep.metrics.clone())
    }

    fn services(&self) -> Routes {
        const LIMIT: usize = MAX_MESSAGE_BYTES;
        Routes::new(NodesServer::new(nodes::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(OperationsServer::new(operations::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(MeshServer::new(mesh::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(PeersServer::new(peers::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(CertificatesServer::new(certificates::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(AgentsServer::new(agents::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(SchemasServer::new(schemas::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(PreparationsServer::new(preparations::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(SlotsServer::new(slots::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(SnapshotsServer::new(snapshots::Service(self.clone())).max_decoding_message_size(LIMIT))
            .add_service(SequencesServer::new(sequences::Service(self.clone())).max_decoding_message_size(LIMIT))
    }

    /// Who asks, as the gate has found out.
    async fn admit<T>(&self, request: &Request<T>, rpc: Rpc) -> Result<Caller, Status> {
        match request.extensions().get::<Caller>() {
            Some(caller) if caller.rpc == rpc => Ok(caller.clone()),
            other => {
                let text = format!("{} was called around the gate, or wired to another method", rpc.name());
                let peer = other.map(|caller| caller.peer.clone());
                let failure = Failure::new(Code::Denied, text);
                let denied = Denied { peer, who: "nobody".into(), rpc, failure };
                self.tell(&denied).await;
                Err(status_of(&denied.failure))
            }
        }
    }

    /// Refuses what a caller asks for. What they may not ask is counted, logged and audited as a denial.
    async fn refuse(&self, caller: &Caller, failure: Failure) -> Status {
        if failure.code.family() != Family::Permission {
            return status_of(&failure);
        }
        let who = PeerId { mesh: caller.peer.mesh.clone(), who: caller.who.clone() }.to_string();
        let denied = Denied { peer: Some(caller.peer.clone()), who, rpc: caller.rpc, failure };
        self.tell(&denied).await;
        status_of(&denied.failure)
    }

    async fn tell(&self, denied: &Denied) {
        self.upkeep.metrics.rpc_rejected.of(["authz"]).inc();
        let rooms = self.rooms.borrow().clone();
        let denial =
            Denial { peer: denied.peer.as_ref(), who: &denied.who, rpc: denied.rpc.name(), failure: &denied.failure };
        self.denials.tell(rooms.as_ref().map(|rooms| &rooms.store), denial).await;
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
