//! One connection to each peer, and the headline each last gave.
//!
//! Any end may dial; of two connections between the same agents one is used ([`super::transport`]) and the other is
//! closed a little later, when nothing uses it any more. Once a second each peer is asked
//! for its headline, so that any agent can speak of all nodes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dashmap::DashMap;
use futures::future::join_all;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{MeshName, NodeId},
    v1::{self, peers_client::PeersClient},
    version,
    wire::{
        bulk::BlockSource,
        connection::Transport,
        endpoint::{BULK_STREAM, Connection, Endpoint},
        rpc::{self, MAX_MESSAGE_BYTES, PeerChannel},
    },
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::transport::{self, Candidate, Told};
use crate::config;

/// How often a peer is asked for its headline.
const POLL: Duration = Duration::from_secs(1);
/// How long a peer may take to answer that.
const POLL_LIMIT: Duration = Duration::from_secs(3);
/// A peer that has not answered for so long is not called up any more.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// Who still has a connection in hand that is no longer wanted may begin something on it for so long.
const GRACE: Duration = Duration::from_secs(30);
/// Why such a connection is closed.
const REPLACED: &str = "another connection between us is in use";

/// What this agent tells a peer of itself.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Makes this run of the agent unmistakable.
    pub instance_id: String,
    /// 0 until PostgreSQL was reached.
    pub system_identifier: u64,
    /// The database that is this node.
    pub database: String,
    /// How the node fares.
    pub headline: v1::NodeHeadline,
    /// PostgreSQL answers, and so can the agent.
    pub is_serving: bool,
}

#[derive(Debug, Clone)]
struct Link {
    connection: Connection,
    channel: PeerChannel,
    /// We have dialled it; else the peer did.
    dialled: bool,
    made: Instant,
}

impl Link {
    async fn over(connection: Connection, dialled: bool) -> Result<Self, Failure> {
        let channel = rpc::over(&connection).await?;
        Ok(Self { connection, channel, dialled, made: Instant::now() })
    }

    fn candidate(&self) -> Candidate {
        Candidate { transport: self.connection.transport(), dialled: self.dialled, made: self.made }
    }
}

#[derive(Debug, Clone)]
struct View {
    reply: v1::HelloReply,
    heard: Instant,
}

/// The other agents. Clones share everything.
#[derive(Debug, Clone)]
pub struct Peers {
    endpoint: Endpoint,
    me: NodeId,
    addresses: Arc<BTreeMap<NodeId, String>>,
    links: Arc<DashMap<NodeId, Link>>,
    dialling: Arc<DashMap<NodeId, Arc<Mutex<()>>>>,
    views: Arc<DashMap<NodeId, View>>,
    told: Told,
    facts: watch::Receiver<Facts>,
    tasks: TaskTracker,
}

impl Peers {
    /// Knows the configured peers; call [`Peers::run`] to keep in touch with them.
    pub fn new(endpoint: Endpoint, me: NodeId, peers: &[config::Peer], facts: watch::Receiver<Facts>) -> Self {
        let addresses = peers.iter().map(|peer| (peer.id.clone(), peer.address.clone())).collect();
        Self {
            endpoint,
            me,
            addresses: Arc::new(addresses),
            links: Arc::default(),
            dialling: Arc::default(),
            views: Arc::default(),
            told: Told::default(),
            facts,
            tasks: TaskTracker::new(),
        }
    }

    /// This agent's node.
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    /// The mesh this agent belongs to.
    pub fn mesh(&self) -> &MeshName {
        &self.endpoint.identity().me().mesh
    }

    /// All nodes but this one.
    pub fn names(&self) -> impl Iterator<Item = &NodeId> {
        self.addresses.keys()
    }

    /// Whether `node` belongs to the mesh as far as this agent knows.
    pub fn knows(&self, node: &NodeId) -> bool {
        *node == self.me || self.addresses.contains_key(node)
    }

    /// What this agent tells of itself now.
    pub fn facts(&self) -> Facts {
        self.facts.borrow().clone()
    }

    /// The failure for a node nobody has heard of.
    pub fn unknown(&self, node: &str) -> Failure {
        let known: Vec<_> = std::iter::once(&self.me).chain(self.names()).map(NodeId::as_str).collect();
        Failure::new(Code::UnknownNode, format!("{} knows no node {node:?}", self.me))
            .cause(format!("it knows {}", known.join(", ")))
    }

    /// Keeps in touch with every peer until `stop`; takes over connections that peers have dialled.
    pub async fn run(self, mut dialled: mpsc::Receiver<Connection>, stop: CancellationToken) {
        for node in self.addresses.keys() {
            let (peers, node, stop) = (self.clone(), node.clone(), stop.clone());
            self.tasks.spawn(async move { stop.run_until_cancelled(peers.keep_in_touch(&node)).await });
        }
        while let Some(Some(connection)) = stop.run_until_cancelled(dialled.recv()).await {
            let (peers, stop) = (self.clone(), stop.clone());
            self.tasks.spawn(async move { stop.run_until_cancelled(peers.adopt(connection)).await });
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A channel to `node`'s agent: over the connection there is, or a new one.
    pub async fn channel(&self, node: &NodeId) -> Result<PeerChannel, Failure> {
        Ok(self.link(node).await?.channel)
    }

    /// A client for `node`'s peer service.
    pub async fn client(&self, node: &NodeId) -> Result<PeersClient<PeerChannel>, Failure> {
        let channel = self.channel(node).await?;
        Ok(PeersClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Opens a stream of blocks from `node`.
    pub async fn fetch(&self, node: &NodeId, request: v1::bulk_request::Want) -> Result<BlockSource, Failure> {
        let link = self.link(node).await?;
        let io = link.connection.open(BULK_STREAM).await.map_err(|error| error.explain())?;
        let request = v1::BulkRequest { want: Some(request) };
        BlockSource::request(io, &request).await.map_err(|error| error.explain())
    }

    /// Whether the peer shares this machine, so that compression is wasted.
    pub fn is_local(&self, node: &NodeId) -> bool {
        self.links.get(node).is_some_and(|link| link.connection.is_local())
    }

    /// What carries the connection to `node`, and why; `None` while there is none.
    pub fn transport(&self, node: &NodeId) -> Option<Transport> {
        self.live_link(node).map(|link| link.connection.transport())
    }

    /// How often peers and others met one of our limits, by its name.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.endpoint.refusals().all()
    }

    /// What each peer last said, as (headline, age); a peer never heard of has an empty one.
    pub fn headlines(&self) -> Vec<v1::NodeHeadline> {
        self.addresses.iter().map(|(node, address)| self.headline(node, address)).collect()
    }

    fn headline(&self, node: &NodeId, address: &str) -> v1::NodeHeadline {
        match self.views.get(node) {
            Some(view) if view.heard.elapsed() < SILENT_AFTER => view.reply.headline.clone().unwrap_or_default(),
            Some(view) => v1::NodeHeadline {
                health: "unknown".into(),
                health_reason: format!("not heard of for {} s", view.heard.elapsed().as_secs()),
                ..view.reply.headline.clone().unwrap_or_default()
            },
            None => v1::NodeHeadline {
                node_id: node.to_string(),
                health: "unknown".into(),
                health_reason: "not heard of since this agent started".into(),
                address: address.to_owned(),
                ..v1::NodeHeadline::default()
            },
        }
    }

    /// Refuses a peer whose node id is already in use by another agent or another database.
    pub fn admit(&self, node: &NodeId, hello: &v1::HelloRequest) -> Result<(), Failure> {
        if !version::understands(hello.protocol) {
            return Err(Failure::new(
                Code::ProtocolMismatch,
                format!("{node} speaks protocol {}, {} speaks {}", hello.protocol, self.me, version::PROTOCOL),
            ));
        }
        if *node == self.me && hello.instance_id != self.facts().instance_id {
            return Err(taken(node, "the agent you called", "you"));
        }
        let Some(view) = self.views.get(node) else { return Ok(()) };
        let same_run = view.reply.instance_id == hello.instance_id;
        let both_known = view.reply.system_identifier != 0 && hello.system_identifier != 0;
        let other_database = both_known
            && (view.reply.system_identifier != hello.system_identifier || view.reply.database != hello.database);
        if !same_run && other_database && view.heard.elapsed() < SILENT_AFTER {
            let address = self.addresses.get(node).map(String::as_str).unwrap_or("another address");
            return Err(taken(node, &format!("an agent at {address}"), "you, with another database"));
        }
        Ok(())
    }

    async fn link(&self, node: &NodeId) -> Result<Link, Failure> {
        if let Some(link) = self.live_link(node) {
            return Ok(link);
        }
        let Some(address) = self.addresses.get(node) else { return Err(self.unknown(node.as_str())) };
        // One dial at a time for each peer; whoever waited finds the link made.
        let turn = Arc::clone(self.dialling.entry(node.clone()).or_default().value());
        let _turn = turn.lock().await;
        if let Some(link) = self.live_link(node) {
            return Ok(link);
        }
        let reach = |failure: Failure| {
            let told = format!("cannot reach the agent of {node} at {address}");
            Failure { message: told, ..failure.clone() }.cause(failure.message)
        };
        let connection = self.endpoint.dial(address, node).await.map_err(|error| reach(error.explain()))?;
        let link = Link::over(connection, true).await.map_err(reach)?;
        Ok(self.use_one_of(node, link))
    }

    /// Uses the better of `new` and what there is; the other one is closed once nothing runs on it.
    fn use_one_of(&self, node: &NodeId, new: Link) -> Link {
        let old = self.live_link(node);
        let stays = |old: &Link| transport::old_stays(old.candidate(), new.candidate(), &self.me, node);
        let (used, loser) = match old {
            Some(old) if stays(&old) => (old, Some(new)),
            old => {
                self.links.insert(node.clone(), new.clone());
                let transport = new.connection.transport();
                info!(event = "mesh.peer_up", peer = %node, details.dialled = new.dialled, details.transport = %transport.carrier, "connected to a peer");
                self.told.tell(node, transport);
                self.tasks.spawn(self.clone().upgrade(node.clone(), new.connection.clone()));
                (new, old)
            }
        };
        if let Some(Link { connection, .. }) = loser {
            self.tasks.spawn(async move { connection.retire(GRACE, REPLACED).await });
        }
        used
    }

    /// Looks for a way back to QUIC while `over_tcp` is used.
    async fn upgrade(self, node: NodeId, over_tcp: Connection) {
        let Some(address) = self.addresses.get(&node) else { return };
        let is_used = || self.transport(&node) == Some(over_tcp.transport());
        let Some(quic) = transport::back_to_quic(&self.endpoint, address, &node, &over_tcp, is_used).await else {
            return;
        };
        match Link::over(quic, true).await {
            Ok(link) => drop(self.use_one_of(&node, link)),
            Err(failure) => {
                warn!(event = "mesh.transport", peer = %node, error = crate::telemetry::failure(&failure), "QUIC answers, but not its requests")
            }
        }
    }

    fn live_link(&self, node: &NodeId) -> Option<Link> {
        let link = self.links.get(node)?;
        (!link.connection.is_closed()).then(|| link.clone())
    }

    async fn adopt(&self, connection: Connection) {
        let Some(node) = connection.peer().node().cloned() else {
            connection.close("only agents speak QUIC here; use TCP");
            return;
        };
        if let Ok(link) = Link::over(connection, false).await {
            self.use_one_of(&node, link);
        }
    }

    async fn keep_in_touch(&self, node: &NodeId) {
        let mut tick = interval(POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_up = true;
        loop {
            tick.tick().await;
            let heard = match timeout(POLL_LIMIT, self.hello(node)).await {
                Ok(heard) => heard,
                Err(_) => {
                    Err(Failure::new(Code::PeerSilent, format!("{node} did not answer in {} s", POLL_LIMIT.as_secs())))
                }
            };
            match heard {
                Ok(reply) => {
                    was_up = true;
                    self.views.insert(node.clone(), View { reply, heard: Instant::now() });
                }
                Err(failure) if was_up => {
                    was_up = false;
                    warn!(event = "mesh.peer_down", peer = %node, error = crate::telemetry::failure(&failure), "peer does not answer");
                }
                Err(_) => {}
            }
        }
    }

    async fn hello(&self, node: &NodeId) -> Result<v1::HelloReply, Failure> {
        let facts = self.facts();
        let request = v1::HelloRequest {
            protocol: version::PROTOCOL,
            instance_id: facts.instance_id,
            system_identifier: facts.system_identifier,
            database: facts.database,
        };
        let link = self.link(node).await?;
        let answered = PeersClient::new(link.channel).hello(request).await;
        let reply = answered
            .map_err(|status| link.connection.refusal().unwrap_or_else(|| rpc::failure_of(&status)))?
            .into_inner();
        if !version::understands(reply.protocol) {
            return Err(Failure::new(
                Code::ProtocolMismatch,
                format!("{node} speaks protocol {}, {} speaks {}", reply.protocol, self.me, version::PROTOCOL),
            ));
        }
        Ok(reply)
    }

    /// Asks every peer the same at once, each for at most `limit`; returns answers and who gave none.
    pub async fn ask_all<T, F>(&self, limit: Duration, ask: impl Fn(PeerChannel) -> F) -> (Vec<T>, Vec<NodeId>)
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let ask = &ask;
        let asked = self.addresses.keys().map(|node| async move {
            let answer = async { ask(self.channel(node).await?).await };
            (node, timeout(limit, answer).await)
        });
        let (mut answers, mut silent) = (Vec::new(), Vec::new());
        for (node, answer) in join_all(asked).await {
            match answer {
                Ok(Ok(answer)) => answers.push(answer),
                Ok(Err(_)) | Err(_) => silent.push(node.clone()),
            }
        }
        (answers, silent)
    }
}

fn taken(node: &NodeId, one: &str, other: &str) -> Failure {
    Failure::new(Code::NodeIdTaken, format!("two agents call themselves {node}: {one} and {other}"))
}
