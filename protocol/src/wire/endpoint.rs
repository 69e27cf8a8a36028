//! The one endpoint of an agent: QUIC and TCP on the same port number.
//!
//! Between two agents there is one connection, whoever dialled it; both ends open streams on it. The first byte of
//! a stream says what it carries: [`RPC_STREAM`], [`BULK_STREAM`] or [`LINK_STREAM`]. QUIC carries a connection, or TCP
//! where UDP is blocked ([`choice`](super::choice)). The TCP listener also speaks gRPC (ALPN `h2`) for steepctl and any
//! standard client. Everything that arrives comes out of one [`Arrivals`].
//!
//! What anybody can make us hold is bounded by [`limits`](super::limits).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quinn::VarInt;
use tokio::{
    net::{TcpListener, TcpStream, lookup_host},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

pub use super::{
    choice::Preference,
    connection::{Carrier, Connection, Transport, Why},
    error::Error,
};
use super::{
    choice::{self, SILENCE_LASTS},
    connection::Link,
    datagram::LEAVING,
    error::{refusal_in, tls_in},
    gate::{Gate, Handshake},
    handshakes,
    identity::{Expect, Identity, PeerId},
    io::Io,
    limits::{ARRIVALS_WAITING, FIRST_BYTE_LIMIT, HANDSHAKE_LIMIT, QUIC_UNPROVEN, Refusal, Refusals},
    quic,
    standing::{self, Standing},
    streams::Counted,
    tcp,
    tls::{self, Arrived, Sorted},
};
use crate::{failure::Failure, ids::NodeId};

/// First byte of a stream that carries gRPC.
pub const RPC_STREAM: u8 = 0x01;
/// First byte of a stream that carries blocks.
pub const BULK_STREAM: u8 = 0x02;
/// First byte of a stream that carries a replication link.
pub const LINK_STREAM: u8 = 0x03;

/// What agents speak to each other, over QUIC and over TCP.
pub(super) const ALPN: &[u8] = b"steep/1";
/// What gRPC clients speak, over TCP.
pub(super) const CALLER_ALPN: &[u8] = b"h2";
/// TLS wants a name; ours is never looked at, identities are in the URI.
pub(super) const TLS_NAME: &str = "member.steep.internal";

/// After a connection could not be accepted, for want of descriptors as a rule.
const BREATH: Duration = Duration::from_millis(50);

/// What comes in from peers.
#[derive(Debug)]
pub struct Arrivals {
    /// Streams for the gRPC server, and what holds its callers to their limits.
    pub rpc: Calls,
    /// Streams whose opener wants blocks.
    pub bulk: mpsc::Receiver<Io>,
    /// Streams whose opener's PostgreSQL wants to replicate from ours.
    pub link: mpsc::Receiver<Io>,
    /// Connections that peers have dialled.
    pub connections: mpsc::Receiver<Connection>,
}

/// Streams for [`rpc::serve`](super::rpc::serve).
#[derive(Debug)]
pub struct Calls {
    pub(super) streams: mpsc::Receiver<Io>,
    pub(super) gate: Gate,
}

impl Calls {
    /// The next stream, for whoever serves no gRPC on it.
    pub async fn recv(&mut self) -> Option<Io> {
        self.streams.recv().await
    }

    /// A stream that has come already.
    pub fn try_recv(&mut self) -> Result<Io, mpsc::error::TryRecvError> {
        self.streams.try_recv()
    }
}

#[derive(Debug, Clone)]
struct Inbox {
    rpc: mpsc::Sender<Io>,
    bulk: mpsc::Sender<Io>,
    link: mpsc::Sender<Io>,
    connections: mpsc::Sender<Connection>,
}

/// Listens and dials for one agent. Clones share the sockets.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `None`: TCP alone.
    quic: Option<quinn::Endpoint>,
    identity: Arc<Identity>,
    preference: Preference,
    inbox: Inbox,
    gate: Gate,
    /// Connections over TCP by their names.
    over_tcp: Arc<Mutex<HashMap<u128, Connection>>>,
    /// Addresses that have answered over TCP, but not over UDP, and since when.
    silent: Arc<Mutex<HashMap<String, Instant>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    address: SocketAddr,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Endpoint {
    /// Listens on `address` (`host:port`) for QUIC and TCP; see [`Endpoint::bind_for`].
    pub async fn bind(address: &str, identity: Arc<Identity>) -> Result<(Self, Arrivals), Error> {
        Self::bind_for(address, identity, Preference::Auto).await
    }

    /// Listens on `address` (`host:port`): on TCP always, for QUIC on UDP of the same number as `preference` says.
    pub async fn bind_for(
        address: &str,
        identity: Arc<Identity>,
        preference: Preference,
    ) -> Result<(Self, Arrivals), Error> {
        let listen = |source| Error::Listen { address: address.to_owned(), source };
        let wanted = lookup_host(address).await.map_err(listen)?.next();
        let wanted = wanted.ok_or_else(|| listen(io::ErrorKind::AddrNotAvailable.into()))?;
        let tcp = TcpListener::bind(wanted).await.map_err(listen)?;
        let bound = tcp.local_addr().map_err(listen)?;
        let quic = match preference {
            Preference::Tcp => None,
            Preference::Auto | Preference::Quic => Some(quic::listen(bound, &identity)?),
        };
        let alpn: &[&[u8]] = if preference == Preference::Quic { &[CALLER_ALPN] } else { &[CALLER_ALPN, ALPN] };
        let acceptor = identity.server_config(alpn).map_err(Error::Tls)?;

        let (rpc, streams) = mpsc::channel(ARRIVALS_WAITING);
        let (bulk, bulk_out) = mpsc::channel(ARRIVALS_WAITING);
        let (link, link_out) = mpsc::channel(ARRIVALS_WAITING);
        let (connections, connections_out) = mpsc::channel(ARRIVALS_WAITING);
        let gate = Gate::default();
        let endpoint = Self {
            quic,
            identity,
            preference,
            inbox: Inbox { rpc, bulk, link, connections },
            gate: gate.clone(),
            over_tcp: Arc::default(),
            silent: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            address: bound,
        };
        if let Some(quic) = endpoint.quic.clone() {
            endpoint.tasks.spawn(endpoint.clone().accept_quic(quic));
        }
        endpoint.tasks.spawn(endpoint.clone().accept_tcp(tcp, TlsAcceptor::from(Arc::new(acceptor))));
        let rpc = Calls { streams, gate };
        Ok((endpoint, Arrivals { rpc, bulk: bulk_out, link: link_out, connections: connections_out }))
    }

    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who we are to everybody we talk to.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What this endpoint dials and takes.
    pub fn preference(&self) -> Preference {
        self.preference
    }

    /// How often each limit was met.
    pub fn refusals(&self) -> &Refusals {
        self.gate.refusals()
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Dials `node` at `address` and returns the connection once both ends' certificates were judged here.
    ///
    /// Over QUIC the other end may still refuse ours: that shows in the first stream, as [`Error::Refused`].
    pub async fn dial(&self, address: &str, node: &NodeId) -> Result<Connection, Error> {
        choice::dial(self, address, &Expect::Node(node.clone())).await
    }

    /// Dials whichever node of our mesh answers at `address`; its certificate says which one that is.
    pub async fn dial_any(&self, address: &str) -> Result<Connection, Error> {
        choice::dial(self, address, &Expect::AnyNode).await
    }

    /// [`Endpoint::dial`] over QUIC, whatever is preferred.
    pub async fn dial_quic(&self, address: &str, node: &NodeId) -> Result<Connection, Error> {
        self.dial_over_quic(address, &Expect::Node(node.clone())).await
    }

    pub(super) async fn dial_over_quic(&self, address: &str, expect: &Expect) -> Result<Connection, Error> {
        let Some(endpoint) = &self.quic else {
            return Err(Error::unreachable(address, "mesh.transport is tcp"));
        };
        let mut last = Error::unreachable(address, "the name has no address");
        for to in resolve(address).await? {
            let generation = self.identity.live().generation();
            match quic::dial(endpoint, &self.identity, address, to, expect).await {
                Ok((quic, peer)) => {
                    locked(&self.silent).remove(address);
                    let connection = Connection::new(Link::Quic(quic.clone()), peer, Why::First, generation);
                    self.serve_quic(connection.clone(), quic);
                    return Ok(connection);
                }
                Err(error @ Error::Refused { .. }) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Dials over TCP, because of `why`.
    pub(super) async fn dial_over_tcp(&self, address: &str, expect: &Expect, why: Why) -> Result<Connection, Error> {
        let to = resolve(address).await?;
        let flags = self.takes() | if why == Why::UdpSilent { tcp::UDP_SILENT } else { 0 };
        let dialled = tcp::dial(&self.identity, address, &to, expect, flags).await?;
        let why = match dialled.flags & tcp::TAKES_QUIC {
            0 if why == Why::UdpSilent => Why::ConfiguredThere,
            _ => why,
        };
        Ok(self.serve_tcp(dialled.control, dialled.peer, why, dialled.running))
    }

    /// What this end says of itself on a control stream.
    fn takes(&self) -> u8 {
        if self.preference == Preference::Tcp { 0 } else { tcp::TAKES_QUIC }
    }

    /// No answer came from `address` over UDP, not long ago.
    pub(super) fn udp_is_silent(&self, address: &str) -> bool {
        locked(&self.silent).get(address).is_some_and(|since| since.elapsed() < SILENCE_LASTS)
    }

    pub(super) fn udp_was_silent(&self, address: &str) {
        let mut silent = locked(&self.silent);
        silent.retain(|_, since| since.elapsed() < SILENCE_LASTS);
        silent.insert(address.to_owned(), Instant::now());
    }

    /// Stops accepting and dialling, says goodbye to the peers, and waits until every task of the endpoint has ended.
    pub async fn close(&self) {
        self.close_with(LEAVING).await;
    }

    /// The same with another reason than a goodbye.
    pub async fn close_with(&self, reason: &str) {
        self.stop.cancel();
        for connection in self.gate.connections() {
            connection.close(reason);
        }
        if let Some(quic) = &self.quic {
            quic.close(VarInt::from_u32(0), reason.as_bytes());
        }
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(quic) = &self.quic {
            quic.wait_idle().await;
        }
    }

    async fn accept_quic(self, quic: quinn::Endpoint) {
        while let Some(Some(incoming)) = self.stop.run_until_cancelled(quic.accept()).await {
            let from = incoming.remote_address().ip();
            if self.gate.handshakes() >= QUIC_UNPROVEN && incoming.may_retry() {
                // The dialler comes back by itself, with a proof of its address.
                let _ = incoming.retry();
                continue;
            }
            let (endpoint, handshake) = (self.clone(), self.gate.begin(from));
            self.tasks.spawn(async move {
                let generation = endpoint.identity.live().generation();
                let shaken = endpoint.shake(handshake, "quic", from, async { incoming.await }, refusal_in);
                let Some(shaken) = shaken.await else { return };
                match quic::peer_of(&shaken) {
                    Ok(peer) => {
                        let connection = Connection::new(Link::Quic(shaken.clone()), peer, Why::First, generation);
                        endpoint.serve_quic(connection.clone(), shaken);
                        let _ = endpoint.inbox.connections.send(connection).await;
                    }
                    Err(error) => debug!(%error, "connection refused"),
                }
            });
        }
    }

    /// Waits for a handshake, and says why it failed; not too often, so that a flood does not fill the disk. `judged`
    /// finds who refused whom in an error.
    async fn shake<T, E: std::fmt::Display>(
        &self,
        handshake: Handshake,
        transport: &str,
        from: IpAddr,
        shaken: impl Future<Output = Result<T, E>>,
        judged: fn(&E) -> Option<Failure>,
    ) -> Option<T> {
        match self.stop.run_until_cancelled(handshake.hold(shaken)).await?? {
            Ok(shaken) => Some(shaken),
            Err(error) => {
                self.gate.count(Refusal::Handshake);
                handshakes::refused(judged(&error).as_ref());
                if self.gate.may_complain() {
                    warn!(event = "rpc.denied", details.transport = transport, reason = %error, details.from = %from, "handshake refused");
                }
                None
            }
        }
    }

    /// Takes in what comes on a QUIC connection, and ends it when its certificate is no longer good enough.
    fn serve_quic(&self, connection: Connection, quic: quinn::Connection) {
        self.gate.connected(connection.clone());
        let endpoint = self.clone();
        self.tasks.spawn(async move {
            let streams = async {
                while let Ok((send, recv)) = quic.accept_bi().await {
                    let (endpoint, connection) = (endpoint.clone(), connection.clone());
                    endpoint.tasks.clone().spawn(async move { endpoint.take_in_quic(&connection, send, recv).await });
                }
            };
            let watched = standing::watch_over(&connection, quic::chain_of(&quic), &endpoint.identity);
            endpoint.stop.run_until_cancelled(async { tokio::join!(streams, watched) }).await;
        });
    }

    async fn take_in_quic(&self, connection: &Connection, send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let mut kind = [0];
        match timeout(HANDSHAKE_LIMIT, recv.read_exact(&mut kind)).await {
            Ok(Ok(())) => {
                let io = |counted| Io::quic(connection.peer().clone(), send, recv, counted);
                self.take_in(connection, kind[0], io).await;
            }
            Ok(Err(_)) | Err(_) => self.gate.count(Refusal::StreamUnknown),
        }
    }

    /// Takes in a stream of a connection over TCP.
    pub(super) async fn take_in_tcp(
        &self,
        connection: &Connection,
        control: &tcp::Control,
        kind: u8,
        stream: TlsStream<TcpStream>,
        standing: Standing,
    ) {
        let io = |counted| Io::tcp(connection.peer().clone(), stream, standing, control.end(), counted);
        self.take_in(connection, kind, io).await;
    }

    async fn take_in(&self, connection: &Connection, kind: u8, io: impl FnOnce(Counted) -> Io) {
        let to = match kind {
            RPC_STREAM => &self.inbox.rpc,
            BULK_STREAM => &self.inbox.bulk,
            LINK_STREAM => &self.inbox.link,
            _ => return self.gate.count(Refusal::StreamUnknown),
        };
        match connection.streams().one_more(kind, true) {
            // Where the rooms are closed already, the stream ends here.
            Some(counted) => drop(to.send(io(counted)).await),
            None => self.gate.count(Refusal::Streams),
        }
    }

    async fn accept_tcp(self, listener: TcpListener, acceptor: TlsAcceptor) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            let Ok((stream, from)) = accepted else {
                sleep(BREATH).await;
                continue;
            };
            let (endpoint, acceptor, handshake) = (self.clone(), acceptor.clone(), self.gate.begin(from.ip()));
            self.tasks.spawn(async move {
                let accepted = tls::accept(acceptor, stream, &endpoint.identity);
                if let Some(sorted) = endpoint.shake(handshake, "tcp", from.ip(), accepted, tls_in).await {
                    endpoint.take_in_sorted(sorted).await;
                }
            });
        }
    }

    async fn take_in_sorted(&self, sorted: Sorted) {
        let Sorted { peer, standing, arrived, stream, generation } = sorted;
        let of_peer = |name: u128| {
            let found = locked(&self.over_tcp).get(&name).cloned();
            found.filter(|connection| *connection.peer() == peer)
        };
        match arrived {
            Arrived::Caller => {
                let Some(calling) = self.gate.calling(&peer.who) else { return };
                let io = Io::caller(peer, stream, standing, calling, (FIRST_BYTE_LIMIT, self.gate.refusals()));
                let _ = self.inbox.rpc.send(io).await;
            }
            Arrived::Control { name, flags } => {
                // Operators have nothing to open streams for; a name is random and meant once.
                if peer.node().is_none() || locked(&self.over_tcp).contains_key(&name) {
                    return self.gate.count(Refusal::ConnectionUnknown);
                }
                let why = match flags {
                    _ if self.preference == Preference::Tcp => Why::Configured,
                    flags if flags & tcp::UDP_SILENT != 0 => Why::UdpSilent,
                    _ => Why::ConfiguredThere,
                };
                // The socket is gone already: so is the peer.
                let answered = tcp::answering(&self.identity, stream, name, generation, self.takes());
                let Ok((control, running)) = answered else { return };
                let connection = self.serve_tcp(control, peer, why, running);
                let _ = self.inbox.connections.send(connection).await;
            }
            Arrived::Wanted { name, ticket } => match of_peer(name).as_ref().map(Connection::link) {
                Some(Link::Tcp(control)) if control.brought(ticket, stream, standing) => {}
                _ => self.gate.count(Refusal::ConnectionUnknown),
            },
            Arrived::Stream { name, kind } => match of_peer(name) {
                Some(connection) => {
                    let Link::Tcp(control) = connection.link() else { return };
                    self.take_in_tcp(&connection, control, kind, stream, standing).await;
                }
                None => self.gate.count(Refusal::ConnectionUnknown),
            },
        }
    }

    /// Takes in what comes on a connection over TCP, and ends it when the certificate on its control stream is no longer
    /// good enough.
    fn serve_tcp(&self, control: tcp::Control, peer: PeerId, why: Why, running: tcp::Running) -> Connection {
        let connection = Connection::new(Link::Tcp(control.clone()), peer, why, control.generation());
        locked(&self.over_tcp).insert(control.name(), connection.clone());
        self.gate.connected(connection.clone());
        if self.stop.is_cancelled() {
            connection.close(LEAVING);
        }
        let (endpoint, served) = (self.clone(), connection.clone());
        self.tasks.spawn(async move {
            let watched = standing::watch_over(&served, running.chain(), &endpoint.identity);
            tokio::join!(tcp::run(&endpoint, &served, &control, running), watched);
            locked(&endpoint.over_tcp).remove(&control.name());
        });
        connection
    }
}

/// Dials a TCP listener for gRPC; for steepctl and other clients that are no agents.
pub(super) async fn dial_caller(address: &str, identity: &Identity, expect: Expect) -> Result<Io, Error> {
    tls::dial_caller(identity, address, &resolve(address).await?, expect).await
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, Error> {
    let unknown = |source| Error::Unknown { address: address.to_owned(), source };
    let found: Vec<_> = match timeout(HANDSHAKE_LIMIT, lookup_host(address)).await {
        Ok(found) => found.map_err(unknown)?.collect(),
        Err(_) => return Err(unknown(io::ErrorKind::TimedOut.into())),
    };
    if found.is_empty() { Err(unknown(io::ErrorKind::NotFound.into())) } else { Ok(found) }
}

/// The address a peer on this machine would dial for a listener on `bound`.
pub fn reachable(bound: SocketAddr) -> SocketAddr {
    match bound.ip() {
        ip if !ip.is_unspecified() => bound,
        ip if ip.is_ipv4() => SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())),
        _ => SocketAddr::from((Ipv6Addr::LOCALHOST, bound.port())),
    }
}
