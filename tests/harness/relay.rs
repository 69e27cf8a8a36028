//! A stretch of network between two nodes that a spec can cut, slow down and make lossy, in each direction.
//!
//! A [`Relay`] stands before one address and passes on TCP and UDP of the same port number; a [`Line`] is the relays of two
//! nodes, each in front of the other, with their agents told to dial those. What a cut holds back of TCP is passed on when
//! it ends, as a network's retransmissions would; of UDP it is lost.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use xtask::cluster::server::USER;

use crate::{background, node::Node};

const PACKET: usize = 64 << 10;

/// Where a relay passes things on to.
#[derive(Debug, Clone)]
enum Beyond {
    /// An agent's port, TCP and UDP.
    Agent(SocketAddr),
    /// A server's socket, TCP alone.
    Server(PathBuf),
}

/// One direction of a relay.
#[derive(Debug)]
struct Way {
    tcp: watch::Sender<bool>,
    udp: AtomicBool,
    delay_ms: AtomicU64,
    /// Of a thousand datagrams.
    lost: AtomicU32,
    /// Decides which ones; the same in every run.
    dice: AtomicU64,
}

impl Way {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tcp: watch::Sender::new(true),
            udp: AtomicBool::new(true),
            delay_ms: AtomicU64::new(0),
            lost: AtomicU32::new(0),
            dice: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
        })
    }

    fn open(&self, tcp: bool, udp: bool) {
        self.tcp.send_replace(tcp);
        self.udp.store(udp, Ordering::Release);
    }

    async fn is_open_for_tcp(&self) {
        // The sender lives as long as we do.
        let _ = self.tcp.subscribe().wait_for(|is_open| *is_open).await;
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.load(Ordering::Acquire))
    }

    fn loses_datagram(&self) -> bool {
        if !self.udp.load(Ordering::Acquire) {
            return true;
        }
        let step = |x: u64| {
            let x = x ^ (x << 13);
            let x = x ^ (x >> 7);
            x ^ (x << 17)
        };
        let seen = self.dice.fetch_update(Ordering::AcqRel, Ordering::Acquire, |x| Some(step(x))).unwrap_or_default();
        (seen >> 20) % 1000 < u64::from(self.lost.load(Ordering::Acquire))
    }
}

/// Stands before one address. Ends with its last clone; what it carries breaks then.
#[derive(Debug, Clone)]
struct Relay {
    address: SocketAddr,
    there: Arc<Way>,
    back: Arc<Way>,
    /// What was passed on over UDP and TCP, both directions.
    moved: Arc<[AtomicU64; 2]>,
    /// Which UDP ports it sends from; another number, other ports.
    ports: Arc<AtomicU64>,
    _tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Tasks(tokio::task::JoinHandle<()>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Relay {
    async fn before(beyond: Beyond) -> Self {
        let task = background::runtime().spawn(async move {
            let (tcp, udp) = both().await.expect("a port is free for TCP and UDP");
            let (there, back) = (Way::new(), Way::new());
            let address = tcp.local_addr().expect("it is bound");
            let moved = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let (ways, counts) = ((Arc::clone(&there), Arc::clone(&back)), Arc::clone(&moved));
            let ports = Arc::new(AtomicU64::new(0));
            let chosen = Arc::clone(&ports);
            let serving = tokio::spawn(async move {
                let over_udp = async {
                    match &beyond {
                        Beyond::Agent(to) => pass_udp(Arc::new(udp), *to, &ways, &counts, &chosen).await,
                        Beyond::Server(_) => std::future::pending().await,
                    }
                };
                tokio::join!(pass_tcp(tcp, &beyond, &ways, &counts), over_udp);
            });
            Self { address, there, back, moved, ports, _tasks: Arc::new(Tasks(serving)) }
        });
        task.await.expect("a relay starts without a panic")
    }
}

/// One number for TCP and UDP, below what the kernel gives to others.
async fn both() -> io::Result<(TcpListener, UdpSocket)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for attempt in 0..200u64 {
        let seed = u64::from(std::process::id()) * 31 + attempt * 7_919 + NEXT.fetch_add(1, Ordering::Relaxed) * 101;
        let port = 10_000 + u16::try_from(seed % 9_000).expect("below 9,000");
        let tcp = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(tcp) => tcp,
            Err(error) => {
                last = error;
                continue;
            }
        };
        match UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(udp) => return Ok((tcp, udp)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

static NEXT: AtomicU64 = AtomicU64::new(0);

type Ways = (Arc<Way>, Arc<Way>);

async fn pass_tcp(listener: TcpListener, beyond: &Beyond, ways: &Ways, moved: &Arc<[AtomicU64; 2]>) {
    let mut pairs = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { continue };
                let (beyond, ways, moved) = (beyond.clone(), ways.clone(), Arc::clone(moved));
                pairs.spawn(async move {
                    // The other end's absence shows as a closed connection.
                    let _ = pass_stream(near, &beyond, &ways, &moved).await;
                });
            }
            Some(_) = pairs.join_next() => {}
        }
    }
}

async fn pass_stream(near: TcpStream, beyond: &Beyond, ways: &Ways, moved: &[AtomicU64; 2]) -> io::Result<()> {
    near.set_nodelay(true)?;
    ways.0.is_open_for_tcp().await;
    let (near_in, near_out) = near.into_split();
    match beyond {
        Beyond::Agent(to) => {
            let far = TcpStream::connect(to).await?;
            far.set_nodelay(true)?;
            let (far_in, far_out) = far.into_split();
            tokio::try_join!(pump(near_in, far_out, &ways.0, moved), pump(far_in, near_out, &ways.1, moved))?;
        }
        Beyond::Server(socket) => {
            let (far_in, far_out) = UnixStream::connect(socket).await?.into_split();
            tokio::try_join!(pump(near_in, far_out, &ways.0, moved), pump(far_in, near_out, &ways.1, moved))?;
        }
    }
    Ok(())
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: &Way,
    moved: &[AtomicU64; 2],
) -> io::Result<()> {
    let mut piece = vec![0; PACKET];
    loop {
        let length = from.read(&mut piece).await?;
        // An end travels the same way as bytes do.
        sleep(way.delay()).await;
        way.is_open_for_tcp().await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&piece[..length]).await?;
        moved[1].fetch_add(length as u64, Ordering::Relaxed);
    }
}

async fn pass_udp(socket: Arc<UdpSocket>, to: SocketAddr, ways: &Ways, moved: &Arc<[AtomicU64; 2]>, ports: &AtomicU64) {
    let mut known: std::collections::HashMap<SocketAddr, Arc<UdpSocket>> = std::collections::HashMap::new();
    let mut tasks = JoinSet::new();
    let mut piece = vec![0; PACKET];
    let mut chosen = 0;
    loop {
        // A datagram nobody could take comes back as an error of the next one.
        let Ok((length, from)) = socket.recv_from(&mut piece).await else { continue };
        let now = ports.load(Ordering::Acquire);
        if chosen != now {
            // What comes back to the old ports finds nobody.
            (chosen, tasks) = (now, JoinSet::new());
            known.clear();
        }
        let far = match known.get(&from) {
            Some(far) => Arc::clone(far),
            None => {
                let Ok(far) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
                if far.connect(to).await.is_err() {
                    continue;
                }
                let far = Arc::new(far);
                known.insert(from, Arc::clone(&far));
                let (near, back, moved) = (Arc::clone(&socket), Arc::clone(&ways.1), Arc::clone(moved));
                let receiving = Arc::clone(&far);
                tasks.spawn(async move {
                    let mut piece = vec![0; PACKET];
                    loop {
                        let Ok(length) = receiving.recv(&mut piece).await else { continue };
                        if !back.loses_datagram() {
                            let datagram = piece[..length].to_vec();
                            moved[0].fetch_add(length as u64, Ordering::Relaxed);
                            after(back.delay(), Arc::clone(&near), Some(from), datagram).await;
                        }
                    }
                });
                far
            }
        };
        if !ways.0.loses_datagram() {
            moved[0].fetch_add(length as u64, Ordering::Relaxed);
            after(ways.0.delay(), far, None, piece[..length].to_vec()).await;
        }
    }
}

/// Sends a datagram after `delay`, without waiting for it; what the network loses is lost.
async fn after(delay: Duration, socket: Arc<UdpSocket>, to: Option<SocketAddr>, datagram: Vec<u8>) {
    let sending = async move {
        let _ = match to {
            Some(to) => socket.send_to(&datagram, to).await,
            None => socket.send(&datagram).await,
        };
    };
    if delay.is_zero() {
        return sending.await;
    }
    let at = Instant::now() + delay;
    tokio::spawn(async move {
        sleep_until(at).await;
        sending.await;
    });
}

/// The agents of two nodes, which know nobody else, start again; each is reached by the other at its address here alone.
pub async fn reached_at(nodes: [(&Node, &str); 2]) {
    for (node, _) in nodes {
        node.stop_agent();
    }
    for ((node, own), (other, others)) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
        // What it remembers of the other one counts as well.
        let id = other.id();
        node.sql(&format!("update steep_repl.nodes set address = '{others}' where node_id = '{id}'")).await;
        let path = node.agent_toml();
        let toml = std::fs::read_to_string(&path).expect("the agent is configured");
        let toml = replaced(&toml, "seeds = ", &format!("seeds = [{others:?}]\nadvertise = {own:?}"));
        std::fs::write(&path, toml).expect("a file can be written");
    }
    for (node, _) in nodes {
        node.start_agent();
    }
}

/// The line of `toml` that begins with `key` gives way to `line`.
fn replaced(toml: &str, key: &str, line: &str) -> String {
    assert!(toml.lines().any(|old| old.starts_with(key)), "{key:?} is not in {toml}");
    toml.lines().map(|old| if old.starts_with(key) { line } else { old }).flat_map(|line| [line, "\n"]).collect()
}

/// The network between two nodes: their agents, and each PostgreSQL as the other subscribes to it.
#[derive(Debug)]
pub struct Line {
    ids: [String; 2],
    /// In front of each node: its agent, its server.
    before: [[Relay; 2]; 2],
}

impl Line {
    /// Puts the agents of `a` and `b`, which know nobody else, on this line; they start again for it.
    pub async fn between(a: &Node, b: &Node) -> Self {
        let mut before = Vec::new();
        for node in [a, b] {
            let agent = Relay::before(Beyond::Agent(node.address().parse().expect("an address"))).await;
            let socket = node.host().join(format!(".s.PGSQL.{}", node.port()));
            before.push([agent, Relay::before(Beyond::Server(socket)).await]);
        }
        let before: [[Relay; 2]; 2] = before.try_into().expect("two nodes");
        let [at_a, at_b] = [&before[0], &before[1]].map(|relays| relays[0].address.to_string());
        for (node, relays) in [(a, &before[0]), (b, &before[1])] {
            let conninfo = format!("host=127.0.0.1 port={} user={USER}", relays[1].address.port());
            node.reconfigure_agent(|toml| replaced(&toml, "conninfo = ", &format!("conninfo = {conninfo:?}")));
        }
        reached_at([(a, &at_a), (b, &at_b)]).await;
        Self { ids: [a.id().to_owned(), b.id().to_owned()], before }
    }

    /// What `from` sends to `to`, to the agent and to the server: in front of `to` on its way there, in front of `from` on
    /// its way back.
    fn ways<'a>(&'a self, from: &Node, to: &Node) -> impl Iterator<Item = &'a Arc<Way>> {
        let place = |node: &Node| self.ids.iter().position(|id| id == node.id()).expect("a node on this line");
        let (of_to, of_from) = (&self.before[place(to)], &self.before[place(from)]);
        of_to.iter().map(|relay| &relay.there).chain(of_from.iter().map(|relay| &relay.back))
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Way>> {
        self.before.iter().flatten().flat_map(|relay| [&relay.there, &relay.back])
    }

    /// Nothing arrives any more, in either direction.
    pub fn cut(&self) {
        self.all().for_each(|way| way.open(false, false));
    }

    /// Nothing that `from` sends reaches `to`.
    pub fn cut_from(&self, from: &Node, to: &Node) {
        self.ways(from, to).for_each(|way| way.open(false, false));
    }

    /// Everything passes again, at once and whole.
    pub fn heal(&self) {
        for way in self.all() {
            way.delay_ms.store(0, Ordering::Release);
            way.lost.store(0, Ordering::Release);
            way.open(true, true);
        }
    }

    /// UDP gets lost in both directions, TCP passes.
    pub fn block_udp(&self) {
        self.all().for_each(|way| way.open(true, false));
    }

    /// Every UDP connection goes on from another port, as behind a NAT that has forgotten it.
    pub fn forget_ports(&self) {
        for relay in self.before.iter().flatten() {
            relay.ports.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Everything takes `delay` longer in each direction, and of a thousand datagrams `lost` get lost.
    pub fn weather(&self, delay: Duration, lost: u32) {
        for way in self.all() {
            way.delay_ms.store(u64::try_from(delay.as_millis()).expect("not for ever"), Ordering::Release);
            way.lost.store(lost, Ordering::Release);
        }
    }

    /// Bytes that passed between the agents so far, over UDP and over TCP.
    pub fn moved(&self) -> [u64; 2] {
        let sum =
            |carrier: usize| self.before.iter().map(|relays| relays[0].moved[carrier].load(Ordering::Relaxed)).sum();
        [sum(0), sum(1)]
    }
}
