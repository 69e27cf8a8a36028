//! Makes the connection to each peer, and decides which one is used where there are two.
//!
//! A connection is used once both ends have said hello over it. Dialled anew is who is reached with an older certificate of
//! ours, and who is reached over TCP although QUIC is wanted.

use std::{sync::Arc, time::Duration};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    v1,
    wire::{
        connection::Connection,
        rpc::{self, PeerChannel},
    },
};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{
    peers::{Peers, latest},
    transport::{self, Candidate},
};
use crate::telemetry;

/// How long a peer may take to say who it is.
const GREETING: Duration = Duration::from_secs(3);
/// How long a connection that is no longer wanted stays at least; then until nothing runs on it any more.
const GRACE: Duration = Duration::from_secs(30);
/// Why such a connection is closed.
pub(super) const REPLACED: &str = "another connection between us is in use";
/// How soon a peer is dialled again that could not be reached with our new certificate.
const RELINK: Duration = Duration::from_secs(2);

/// A connection over which both ends have said hello.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) channel: PeerChannel,
    /// We have dialled it; else the peer did.
    dialled: bool,
    /// When both ends had said hello.
    made: Instant,
    /// Which run of which agent is at the other end.
    pub(super) instance_id: String,
    /// What it called itself then: higher than any earlier run did.
    generation: u64,
}

impl Link {
    fn candidate(&self) -> Candidate<'_> {
        let Self { instance_id, generation, dialled, made, .. } = self;
        let transport = self.connection.transport();
        Candidate { instance_id, generation: *generation, transport, dialled: *dialled, made: *made }
    }
}

impl Peers {
    fn address_of(&self, node: &NodeId) -> Option<String> {
        self.look(|gossip, _| gossip.member(node).map(|member| member.run.address.clone()))
    }

    /// The connection to `node`: the one there is, or a new one.
    pub(super) async fn link(&self, node: &NodeId) -> Result<Link, Failure> {
        if let Some(link) = self.live_link(node) {
            return Ok(link);
        }
        let address = self.address_of(node).ok_or_else(|| self.unknown(node.as_str()))?;
        // One dial at a time for each peer; whoever waited finds the link made.
        let turn = Arc::clone(self.dialling.entry(node.clone()).or_default().value());
        let _turn = turn.lock().await;
        if let Some(link) = self.live_link(node) {
            return Ok(link);
        }
        self.dial(node, &address).await
    }

    /// Connects to `node` and uses the new connection from now on.
    async fn dial(&self, node: &NodeId, address: &str) -> Result<Link, Failure> {
        let reach = |failure: Failure| {
            let told = format!("cannot reach the agent of {node} at {address}");
            Failure { message: told, ..failure.clone() }.cause(failure.message)
        };
        let connection = self.endpoint.dial(address, node).await.map_err(|error| reach(error.explain()))?;
        self.greet_dialled(node, connection).await.map_err(reach)
    }

    /// Says hello over a connection we dialled to `node`, and returns the one that is used from now on.
    pub(super) async fn greet_dialled(&self, node: &NodeId, connection: Connection) -> Result<Link, Failure> {
        let link = self.greet(node, connection, true).await?;
        Ok(self.use_one_of(node, link))
    }

    /// Uses the better of `new` and what there is; the other one is closed once nothing runs on it.
    fn use_one_of(&self, node: &NodeId, new: Link) -> Link {
        // The peer may still speak on one that we do not use.
        self.listen(node.clone(), new.connection.clone());
        // With a newer certificate of ours the old one has had its day.
        let stays = |old: &Link| {
            old.connection.generation() >= new.connection.generation()
                && transport::old_stays(old.candidate(), new.candidate(), &self.me, node)
        };
        let (used, loser) = match self.live_link(node) {
            Some(old) if stays(&old) => (old, Some(new)),
            old => {
                self.links.insert(node.clone(), new.clone());
                let transport = new.connection.transport();
                info!(event = "mesh.connected", peer = %node, details.dialled = new.dialled, details.transport = %transport.carrier, "connected to a peer");
                self.told.tell(node, transport);
                let (peers, peer, over) = (self.clone(), node.clone(), new.connection.clone());
                self.spawn(async move { peers.upgrade(peer, over).await });
                (new, old)
            }
        };
        if let Some(Link { connection, .. }) = loser {
            self.spawn(async move { connection.retire(GRACE, REPLACED).await });
        }
        used
    }

    /// Looks for a way back to QUIC while `over_tcp` is used.
    async fn upgrade(&self, node: NodeId, over_tcp: Connection) {
        let Some(address) = self.address_of(&node) else { return };
        let is_used = || self.live_link(&node).is_some_and(|link| link.connection.id() == over_tcp.id());
        let Some(quic) = transport::back_to_quic(&self.endpoint, &address, &node, &over_tcp, is_used).await else {
            return;
        };
        if let Err(failure) = self.greet_dialled(&node, quic).await {
            warn!(event = "mesh.transport", peer = %node, error = telemetry::failure(&failure), "QUIC answers, but not its requests");
        }
    }

    async fn greet(&self, node: &NodeId, connection: Connection, dialled: bool) -> Result<Link, Failure> {
        let greeted = async {
            let channel = rpc::over(&connection).await?;
            let silent =
                |_| Failure::new(Code::PeerSilent, format!("{node} did not say hello in {} s", GREETING.as_secs()));
            let said = timeout(GREETING, self.hello(&channel)).await.map_err(silent)?;
            let reply = said.map_err(|failure| connection.refusal().unwrap_or(failure))?;
            self.understands(node, reply.protocol)?;
            self.is_the_only(node, &reply.instance_id).await?;
            Ok((channel, reply))
        };
        match greeted.await {
            Ok((channel, reply)) => {
                self.revocations.heard(node, &reply.revocations);
                self.gossip(|gossip, now| gossip.outgrow(reply.your_generation, latest(), now));
                let v1::HelloReply { instance_id, generation, .. } = reply;
                Ok(Link { connection, channel, dialled, made: Instant::now(), instance_id, generation })
            }
            Err(failure) => {
                connection.close("we do not take part in one mesh");
                Err(failure)
            }
        }
    }

    /// The connection to `node`, if there is one.
    pub(super) fn live_link(&self, node: &NodeId) -> Option<Link> {
        let link = self.links.get(node)?;
        (!link.connection.is_closed()).then(|| link.clone())
    }

    pub(super) async fn adopt(&self, connection: Connection) {
        let Some(node) = connection.peer().node().cloned() else {
            connection.close("only agents speak QUIC here; use TCP");
            return;
        };
        match self.greet(&node, connection, false).await {
            Ok(link) => drop(self.use_one_of(&node, link)),
            Err(failure) => self.tell_refused(&node, &failure),
        }
    }

    /// Dials every peer anew that we are connected to with an older certificate of ours, whenever there is a new one.
    ///
    /// Requests go over the new connection from then on; what runs on the old one may finish.
    pub async fn relink_when_renewed(&self) {
        let mut changes = self.identity().watch();
        loop {
            let generation = changes.borrow_and_update().generation();
            let is_old = |link: &Link| link.connection.generation() < generation && !link.connection.is_closed();
            let old: Vec<_> = self.links.iter().filter(|link| is_old(link)).map(|link| link.key().clone()).collect();
            let mut is_done = true;
            for node in old {
                let Some(address) = self.address_of(&node) else { continue };
                let turn = Arc::clone(self.dialling.entry(node.clone()).or_default().value());
                let _turn = turn.lock().await;
                if !self.live_link(&node).is_some_and(|link| is_old(&link)) {
                    continue;
                }
                match self.dial(&node, &address).await {
                    Ok(new) if new.connection.generation() >= generation => {}
                    // The old one goes on; its peer may be about to read a new root.
                    _ => is_done = false,
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(RELINK), if !is_done => {}
            }
        }
    }
}
