//! One connection to each peer, and who the peers are.
//!
//! Any end may dial; of two connections between the same agents one is used ([`super::transport`]) and the other is
//! closed a little later, when nothing uses it any more ([`super::links`]). Both ends say hello first on every connection: nothing that comes over it is believed before, so two agents with one node id find out. Who the peers
//! are, gossip tells; what it wants told is carried by [`super::carrier`].

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dashmap::DashMap;
use futures::future::join_all;
use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{MeshName, NodeId},
    v1::{self, peers_client::PeersClient},
    version,
    wire::{
        bulk::BlockSource,
        connection::Transport,
        endpoint::{BULK_STREAM, Connection, Endpoint, LINK_STREAM},
        identity::Identity,
        io::Io,
        rpc::{self, MAX_MESSAGE_BYTES, PeerChannel},
    },
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Revocations,
    carrier::Outbox,
    gossip::{Gossip, Output},
    links::Link,
    membership::Run,
    seeds::Seeds,
    transport::Told,
};

/// How long an agent whose node id somebody else uses has to show that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// Clocks may differ; a generation further ahead than this was made up.
const CLOCKS_DIFFER_MS: u64 = 24 * 60 * 60 * 1_000;

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

/// The other agents. Clones share everything.
#[derive(Debug, Clone)]
pub struct Peers {
    pub(super) endpoint: Endpoint,
    pub(super) me: NodeId,
    pub(super) address: Arc<str>,
    gossip: Arc<Mutex<Gossip>>,
    began: Instant,
    pub(super) wake: Arc<Notify>,
    pub(super) links: Arc<DashMap<NodeId, Link>>,
    pub(super) dialling: Arc<DashMap<NodeId, Arc<tokio::sync::Mutex<()>>>>,
    pub(super) outbox: Outbox,
    pub(super) seeds: Arc<Seeds>,
    pub(super) told: Told,
    pub(super) arrived: Arc<watch::Sender<u64>>,
    pub(super) facts: watch::Receiver<Facts>,
    pub(super) revocations: Revocations,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Peers {
    /// Knows nobody yet; call [`Peers::run`] to join the mesh through one of `seeds` and to be reached at `address`.
    pub fn new(
        endpoint: Endpoint,
        me: NodeId,
        address: String,
        seeds: &[String],
        facts: watch::Receiver<Facts>,
        revocations: Revocations,
    ) -> Self {
        let run = Run::new(me.clone(), address.clone(), wall_clock());
        let gossip = Gossip::new(run, rand::random());
        Self {
            endpoint,
            me,
            address: address.into(),
            gossip: Arc::new(Mutex::new(gossip)),
            began: Instant::now(),
            wake: Arc::default(),
            links: Arc::default(),
            dialling: Arc::default(),
            outbox: Outbox::default(),
            seeds: Arc::new(Seeds::new(seeds)),
            told: Told::default(),
            arrived: Arc::default(),
            facts,
            revocations,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// This agent's node.
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    /// `host:port` at which others reach this agent.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The mesh this agent belongs to.
    pub fn mesh(&self) -> &MeshName {
        &self.endpoint.identity().me().mesh
    }

    /// Our own certificate and whom it makes us trust.
    pub fn identity(&self) -> &Identity {
        self.endpoint.identity()
    }

    /// The revocation lists in force.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// All nodes but this one, also those that are down, until they are forgotten.
    pub fn names(&self) -> impl Iterator<Item = NodeId> {
        let names: Vec<_> = self.look(|gossip, _| gossip.members().map(|member| member.run.node.clone()).collect());
        names.into_iter()
    }

    /// Changes whenever somebody has come, or come back.
    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrived.subscribe()
    }

    /// Whether `node` belongs to the mesh as far as this agent knows.
    pub fn knows(&self, node: &NodeId) -> bool {
        *node == self.me || self.look(|gossip, _| gossip.member(node).is_some())
    }

    /// What this agent tells of itself now.
    pub fn facts(&self) -> Facts {
        self.facts.borrow().clone()
    }

    /// The failure for a node nobody has heard of.
    pub fn unknown(&self, node: &str) -> Failure {
        let known: Vec<_> = std::iter::once(self.me.clone()).chain(self.names()).map(String::from).collect();
        Failure::new(Code::UnknownNode, format!("{} knows no node {node:?}", self.me))
            .cause(format!("it knows {}", known.join(", ")))
    }

    /// Joins the mesh and keeps in touch with its members until `stop`; takes over connections that peers have dialled.
    pub async fn run(self, mut dialled: mpsc::Receiver<Connection>, stop: CancellationToken) {
        self.begin();
        while let Some(Some(connection)) = stop.run_until_cancelled(dialled.recv()).await {
            let peers = self.clone();
            self.spawn(async move { peers.adopt(connection).await });
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs `task` until it ends or the agent does.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(task).await });
    }

    /// Lets `play` change gossip's state, then does what gossip wants done.
    pub(super) fn gossip<T>(&self, play: impl FnOnce(&mut Gossip, Duration) -> T) -> T {
        let (played, outputs) = {
            let mut gossip = self.gossip.lock().unwrap_or_else(PoisonError::into_inner);
            let played = play(&mut gossip, self.now());
            (played, gossip.outputs())
        };
        for output in outputs {
            match output {
                Output::Datagram { to, bytes } => self.send(to, bytes),
                Output::Exchange(with) => self.begin_exchange(with),
                Output::Changed(change) => self.tell_change(&change),
            }
        }
        played
    }

    /// Reads gossip's state.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Gossip, Duration) -> T) -> T {
        look(&self.gossip.lock().unwrap_or_else(PoisonError::into_inner), self.now())
    }

    /// Time as gossip counts it.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// When gossip's moment `at` was, by the clock on the wall.
    pub(super) fn time_of(&self, at: Duration) -> Timestamp {
        let ago = self.now().saturating_sub(at);
        Timestamp::now() - ago
    }

    /// The instant of gossip's moment `at`.
    pub(super) fn instant_of(&self, at: Duration) -> Instant {
        self.began + at
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

    /// Opens a stream for a replication link to `node`'s PostgreSQL.
    pub async fn open_link(&self, node: &NodeId) -> Result<Io, Failure> {
        self.link(node).await?.connection.open(LINK_STREAM).await.map_err(|error| error.explain())
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

    /// Answers a hello of `node`, or refuses a peer whose node id is already in use by another agent.
    pub async fn admit(&self, node: &NodeId, hello: &v1::HelloRequest) -> Result<v1::HelloReply, Failure> {
        self.understands(node, hello.protocol)?;
        self.is_the_only(node, &hello.instance_id).await?;
        self.revocations.heard(node, &hello.revocations);
        let facts = self.facts();
        let run = self.look(|gossip, _| gossip.me().clone());
        Ok(v1::HelloReply {
            protocol: version::PROTOCOL,
            instance_id: facts.instance_id,
            system_identifier: facts.system_identifier,
            database: facts.database,
            headline: Some(facts.headline),
            generation: run.generation,
            address: run.address,
            your_generation: self.look(|gossip, _| gossip.view().earliest(node)),
            revocations: self.revocations.numbers(),
        })
    }

    pub(super) fn understands(&self, node: &NodeId, protocol: u32) -> Result<(), Failure> {
        if version::understands(protocol) {
            return Ok(());
        }
        let text = format!("{node} speaks protocol {protocol}, {} speaks {}", self.me, version::PROTOCOL);
        Err(Failure::new(Code::ProtocolMismatch, text))
    }

    /// Fails when another agent that calls itself `node` lives; the one that does not answer was its earlier run.
    pub(super) async fn is_the_only(&self, node: &NodeId, instance_id: &str) -> Result<(), Failure> {
        if *node == self.me {
            let is_me = self.facts.borrow().instance_id == instance_id;
            return if is_me { Ok(()) } else { Err(taken(node, "the agent you called", "you")) };
        }
        let Some(other) = self.live_link(node).filter(|link| link.instance_id != instance_id) else { return Ok(()) };
        let answered = timeout(SIGN_OF_LIFE, self.hello(&other.channel)).await;
        match answered {
            Ok(Ok(reply)) if reply.instance_id == other.instance_id => {
                Err(taken(node, &format!("an agent at {}", reply.address), "you"))
            }
            _ => {
                // What still waits for an answer over it need not wait until it is known to be dead.
                other.connection.close("another run of this agent has come");
                Ok(())
            }
        }
    }

    /// Asks who is at the other end of `channel`, and says who we are.
    pub(super) async fn hello(&self, channel: &PeerChannel) -> Result<v1::HelloReply, Failure> {
        let facts = self.facts();
        let run = self.look(|gossip, _| gossip.me().clone());
        let request = v1::HelloRequest {
            protocol: version::PROTOCOL,
            instance_id: facts.instance_id,
            system_identifier: facts.system_identifier,
            database: facts.database,
            generation: run.generation,
            address: run.address,
            revocations: self.revocations.numbers(),
        };
        let answered = PeersClient::new(channel.clone()).hello(request).await;
        Ok(answered.map_err(|status| rpc::failure_of(&status))?.into_inner())
    }

    /// Asks every peer the same at once, each for at most `limit`; returns answers and who gave none.
    ///
    /// Peers that are down are not asked, and counted among those.
    pub async fn ask_all<T, F>(&self, limit: Duration, ask: impl Fn(PeerChannel) -> F) -> (Vec<T>, Vec<NodeId>)
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let ask = &ask;
        let members: Vec<_> = self.look(|gossip, _| gossip.members().cloned().collect());
        let asked = members.iter().map(|member| async move {
            if !member.liveness.may_answer() {
                return (&member.run.node, None);
            }
            let answer = async { ask(self.channel(&member.run.node).await?).await };
            (&member.run.node, timeout(limit, answer).await.ok())
        });
        let (mut answers, mut silent) = (Vec::new(), Vec::new());
        for (node, answer) in join_all(asked).await {
            match answer {
                Some(Ok(answer)) => answers.push(answer),
                Some(Err(_)) | None => silent.push(node.clone()),
            }
        }
        (answers, silent)
    }
}

/// Milliseconds since 1970.
pub(super) fn wall_clock() -> u64 {
    Timestamp::now().as_millisecond().try_into().unwrap_or_default()
}

/// The highest generation that a clock could give by now.
pub(super) fn latest() -> u64 {
    wall_clock() + CLOCKS_DIFFER_MS
}

fn taken(node: &NodeId, one: &str, other: &str) -> Failure {
    Failure::new(Code::NodeIdTaken, format!("two agents call themselves {node}: {one} and {other}"))
}
