//! The one endpoint of an agent: QUIC and TCP on the same port number.
//!
//! Between two agents there is one QUIC connection, whoever dialled it; both ends open streams on it. The
//! first byte of a stream says what it carries: [`RPC_STREAM`], [`BULK_STREAM`] or [`LINK_STREAM`]. The TCP listener beside it
//! speaks gRPC (ALPN `h2`) for steepctl and any standard client. Everything that arrives comes out of one
//! [`Arrivals`].
//!
//! What a stranger can make us hold is bounded: handshakes under way, their duration, streams a connection.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use quinn::{
    IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::AsyncBufReadExt as _,
    net::{TcpListener, TcpStream, lookup_host},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    datagram::{LEAVING, buffers},
    handshakes,
    identity::{self, Expect, Identity, PeerId, peer_in},
    io::{Io, Used},
    standing::{self, chain_of, watched},
    verify::{Verdict, refusal_in, tls_in},
};
use crate::{
    failure::{Code, Explain, Failure},
    ids::NodeId,
};

/// First byte of a stream that carries gRPC.
pub const RPC_STREAM: u8 = 0x01;
/// First byte of a stream that carries blocks.
pub const BULK_STREAM: u8 = 0x02;
/// First byte of a stream that carries a replication link.
pub const LINK_STREAM: u8 = 0x03;

const QUIC_ALPN: &[u8] = b"steep/1";
const TCP_ALPN: &[u8] = b"h2";
/// TLS wants a name; ours is never looked at, identities are in the URI.
const TLS_NAME: &str = "member.steep.internal";

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const HANDSHAKES_AT_ONCE: usize = 64;
const ARRIVALS_WAITING: usize = 64;
/// Debian's default of 208 KiB loses packets from 100 MB/s on.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Never above 2.4 MiB: quinn closes a connection at 1,024 holes in one stream.
const STREAM_WINDOW: u32 = 2 << 20;
const STREAMS_AT_ONCE: u32 = 128;
/// At most 6,500: ten segments must stay below 65,507 bytes, or the kernel loses them silently.
const LARGEST_MTU: u16 = 6_000;

/// Why an endpoint could not listen, or a peer could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// TLS refuses our own settings.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The name does not resolve.
    #[error("cannot find {address}")]
    Unknown {
        /// As configured.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody answered.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// As dialled.
        address: String,
        /// What happened instead.
        reason: String,
    },
    /// One end refused the other's certificate.
    #[error("{address}: {}", .failure.message)]
    Refused {
        /// As dialled.
        address: String,
        /// Who refused whom, and why.
        failure: Failure,
    },
    /// The connection is gone.
    #[error("the connection to {peer} is gone: {reason}")]
    Gone {
        /// Who was at the other end.
        peer: PeerId,
        /// Why it ended.
        reason: String,
    },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Listen { .. } => Code::ConfigInvalid,
            Self::Tls(_) => Code::CertificateUnusable,
            Self::Unknown { .. } | Self::Unreachable { .. } => Code::PeerUnreachable,
            Self::Refused { failure, .. } => failure.code,
            Self::Gone { .. } => Code::StreamBroken,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::Listen { address, .. } => Some(format!("end what else listens on {address}, or change mesh.listen")),
            Self::Refused { failure, .. } => Some(failure.hint.clone()),
            _ => None,
        }
    }
}

/// What comes in from peers.
#[derive(Debug)]
pub struct Arrivals {
    /// Streams for the gRPC server.
    pub rpc: mpsc::Receiver<Io>,
    /// Streams whose opener wants blocks.
    pub bulk: mpsc::Receiver<Io>,
    /// Streams whose opener's PostgreSQL wants to replicate from ours.
    pub link: mpsc::Receiver<Io>,
    /// Connections that peers have dialled.
    pub connections: mpsc::Receiver<Connection>,
}

#[derive(Debug, Clone)]
struct Inbox {
    rpc: mpsc::Sender<Io>,
    bulk: mpsc::Sender<Io>,
    link: mpsc::Sender<Io>,
    connections: mpsc::Sender<Connection>,
}

/// Listens and dials for one agent. Clones share the socket.
#[derive(Debug, Clone)]
pub struct Endpoint {
    quic: quinn::Endpoint,
    identity: Arc<Identity>,
    inbox: Inbox,
    tasks: TaskTracker,
    stop: CancellationToken,
    address: SocketAddr,
}

impl Endpoint {
    /// Listens on `address` (`host:port`), QUIC on UDP and gRPC on TCP, same number.
    pub async fn bind(address: &str, identity: Arc<Identity>) -> Result<(Self, Arrivals), Error> {
        let listen = |source| Error::Listen { address: address.to_owned(), source };
        let wanted = lookup_host(address).await.map_err(listen)?.next();
        let wanted = wanted.ok_or_else(|| listen(io::ErrorKind::AddrNotAvailable.into()))?;
        let tcp = TcpListener::bind(wanted).await.map_err(listen)?;
        let bound = tcp.local_addr().map_err(listen)?;
        let udp = udp_socket(bound).map_err(listen)?;

        let tls = identity.server_config(&[QUIC_ALPN]).map_err(Error::Tls)?;
        let tls = QuicServerConfig::try_from(tls).map_err(|error| Error::Tls(general(&error)))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(transport());
        server.max_incoming(HANDSHAKES_AT_ONCE);
        let mut settings = quinn::EndpointConfig::default();
        settings.max_udp_payload_size(LARGEST_MTU).map_err(|error| Error::Tls(general(&error)))?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let quic = quinn::Endpoint::new(settings, Some(server), udp, runtime).map_err(listen)?;

        let (rpc, rpc_out) = mpsc::channel(ARRIVALS_WAITING);
        let (bulk, bulk_out) = mpsc::channel(ARRIVALS_WAITING);
        let (link, link_out) = mpsc::channel(ARRIVALS_WAITING);
        let (connections, connections_out) = mpsc::channel(ARRIVALS_WAITING);
        let inbox = Inbox { rpc, bulk, link, connections };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let endpoint = Self { quic, identity, inbox, tasks, stop, address: bound };
        let acceptor = endpoint.identity.server_config(&[TCP_ALPN]).map_err(Error::Tls)?;
        endpoint.tasks.spawn(endpoint.clone().accept_quic());
        endpoint.tasks.spawn(endpoint.clone().accept_tcp(tcp, TlsAcceptor::from(Arc::new(acceptor))));
        Ok((endpoint, Arrivals { rpc: rpc_out, bulk: bulk_out, link: link_out, connections: connections_out }))
    }

    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who we are to everybody we talk to.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Dials `node` at `address` and returns the connection once both ends' certificates were judged here.
    ///
    /// The other end may still refuse ours: that shows in the first stream, as [`Error::Refused`].
    pub async fn dial(&self, address: &str, node: &NodeId) -> Result<Connection, Error> {
        self.dial_expecting(address, &Expect::Node(node.clone())).await
    }

    /// Dials whichever node of our mesh answers at `address`; its certificate says which one that is.
    pub async fn dial_any(&self, address: &str) -> Result<Connection, Error> {
        self.dial_expecting(address, &Expect::AnyNode).await
    }

    async fn dial_expecting(&self, address: &str, expect: &Expect) -> Result<Connection, Error> {
        let mut last = Error::Unreachable { address: address.into(), reason: "the name has no address".into() };
        for to in resolve(address).await? {
            match self.dial_one(address, to, expect).await {
                Ok(connection) => return Ok(connection),
                Err(error @ Error::Refused { .. }) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_one(&self, address: &str, to: SocketAddr, expect: &Expect) -> Result<Connection, Error> {
        let verdict = Verdict::default();
        let generation = self.identity.live().generation();
        let tls = self.identity.client_config(&[QUIC_ALPN], expect.clone(), &verdict).map_err(Error::Tls)?;
        let tls = QuicClientConfig::try_from(tls).map_err(|error| Error::Tls(general(&error)))?;
        let mut client = quinn::ClientConfig::new(Arc::new(tls));
        client.transport_config(transport());
        let unreachable = |reason: String| Error::Unreachable { address: address.into(), reason };
        let connecting =
            self.quic.connect_with(client, to, TLS_NAME).map_err(|error| unreachable(error.to_string()))?;
        match timeout(HANDSHAKE_LIMIT, connecting).await {
            Err(_) => Err(unreachable(format!("no answer over UDP in {} s", HANDSHAKE_LIMIT.as_secs()))),
            Ok(Err(error)) => match verdict.get().cloned().or_else(|| refusal_in(&error)) {
                Some(failure) => Err(Error::Refused { address: address.into(), failure }),
                None => Err(unreachable(error.to_string())),
            },
            Ok(Ok(quic)) => {
                let refused =
                    |error: identity::Error| Error::Refused { address: address.into(), failure: error.explain() };
                let connection = Connection::new(quic, generation).map_err(refused)?;
                self.tasks.spawn(self.clone().accept_streams(connection.clone()));
                Ok(connection)
            }
        }
    }

    /// Stops accepting and dialling, says goodbye to the peers, and waits until every task of the endpoint has ended.
    pub async fn close(&self) {
        self.close_with(LEAVING).await;
    }

    /// The same with another reason than a goodbye.
    pub async fn close_with(&self, reason: &str) {
        self.stop.cancel();
        self.quic.close(VarInt::from_u32(0), reason.as_bytes());
        self.tasks.close();
        self.tasks.wait().await;
        self.quic.wait_idle().await;
    }

    async fn accept_quic(self) {
        while let Some(Some(incoming)) = self.stop.run_until_cancelled(self.quic.accept()).await {
            let endpoint = self.clone();
            self.tasks.spawn(async move {
                let generation = endpoint.identity.live().generation();
                let shaken = timeout(HANDSHAKE_LIMIT, async { incoming.await }).await;
                match shaken {
                    Ok(Ok(quic)) => match Connection::new(quic, generation) {
                        Ok(connection) => {
                            if endpoint.inbox.connections.send(connection.clone()).await.is_ok() {
                                endpoint.accept_streams(connection).await;
                            }
                        }
                        Err(error) => debug!(%error, "connection refused"),
                    },
                    Ok(Err(error)) => {
                        handshakes::refused(refusal_in(&error).as_ref());
                        warn!(event = "rpc.denied", details.transport = "quic", reason = %error, "handshake refused");
                    }
                    Err(_) => debug!("handshake took too long"),
                }
            });
        }
    }

    async fn accept_streams(self, connection: Connection) {
        let served = async {
            loop {
                let Ok((send, recv)) = connection.quic.accept_bi().await else { break };
                let (inbox, peer) = (self.inbox.clone(), connection.peer.clone());
                let used = Used::of(&connection.streams);
                self.tasks.spawn(async move {
                    if let Err(error) = sort_stream(&inbox, peer, send, recv, used).await {
                        debug!(%error, "stream dropped");
                    }
                });
            }
        };
        let watched = standing::watch_over(&connection, chain_of(&connection.quic), &self.identity);
        self.stop.run_until_cancelled(async { tokio::join!(served, watched) }).await;
    }

    async fn accept_tcp(self, listener: TcpListener, acceptor: TlsAcceptor) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_AT_ONCE));
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            let Ok((stream, from)) = accepted else { continue };
            // Over the limit: dropping the socket is the answer.
            let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
            let (acceptor, inbox, identity) = (acceptor.clone(), self.inbox.clone(), Arc::clone(&self.identity));
            self.tasks.spawn(async move {
                let shaken = timeout(HANDSHAKE_LIMIT, accept_tls(acceptor, stream, &identity)).await;
                drop(permit);
                match shaken {
                    Ok(Ok(io)) => drop(inbox.rpc.send(io).await),
                    Ok(Err(error)) => {
                        handshakes::refused(tls_in(&error).as_ref());
                        warn!(event = "rpc.denied", details.transport = "tcp", reason = %error, details.from = %from, "handshake refused");
                    }
                    Err(_) => debug!(%from, "handshake took too long"),
                }
            });
        }
    }
}

async fn accept_tls(acceptor: TlsAcceptor, stream: TcpStream, identity: &Identity) -> io::Result<Io> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    watched(TlsStream::from(stream), identity).map_err(io::Error::other)
}

async fn sort_stream(
    inbox: &Inbox,
    peer: PeerId,
    send: quinn::SendStream,
    mut recv: quinn::RecvStream,
    used: Used,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut kind = [0];
    timeout(HANDSHAKE_LIMIT, recv.read_exact(&mut kind)).await??;
    let to = match kind[0] {
        RPC_STREAM => &inbox.rpc,
        BULK_STREAM => &inbox.bulk,
        LINK_STREAM => &inbox.link,
        other => return Err(format!("streams of kind {other:#04x} are unknown").into()),
    };
    Ok(to.send(Io::quic(peer, send, recv, used)).await?)
}

/// Dials a TCP listener for gRPC; for steepctl and other clients that are no agents.
pub(super) async fn dial_tcp(address: &str, identity: &Identity, expect: Expect) -> Result<Io, Error> {
    let unreachable = |reason: String| Error::Unreachable { address: address.to_owned(), reason };
    let verdict = Verdict::default();
    let tls = identity.client_config(&[TCP_ALPN], expect, &verdict).map_err(Error::Tls)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let name = TLS_NAME.try_into().expect("a constant DNS name");
    let shaken = timeout(HANDSHAKE_LIMIT, async {
        let found = resolve(address).await?;
        let stream = TcpStream::connect(&found[..]).await.map_err(|error| unreachable(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
        let refused = |error: io::Error| match verdict.get().cloned().or_else(|| tls_in(&error)) {
            Some(failure) => Error::Refused { address: address.to_owned(), failure },
            None => unreachable(error.to_string()),
        };
        let mut stream = connector.connect(name, stream).await.map_err(refused)?;
        // In TLS 1.3 we are done before the server has judged our certificate. Its first words (HTTP/2 settings, or
        // an alert) say what it thinks; left to HTTP/2, an alert would come out as "connection closed".
        match stream.fill_buf().await {
            Ok([]) => Err(unreachable("it closed the connection".into())),
            Ok(_) => Ok(stream),
            Err(error) => Err(refused(error)),
        }
    });
    let stream = shaken.await.map_err(|_| unreachable(format!("no answer in {} s", HANDSHAKE_LIMIT.as_secs())))??;
    watched(TlsStream::from(stream), identity)
        .map_err(|error| Error::Refused { address: address.to_owned(), failure: error.explain() })
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, Error> {
    let unknown = |source| Error::Unknown { address: address.to_owned(), source };
    let found: Vec<_> = lookup_host(address).await.map_err(unknown)?.collect();
    if found.is_empty() { Err(unknown(io::ErrorKind::NotFound.into())) } else { Ok(found) }
}

/// One QUIC connection to an authenticated peer. Clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(super) quic: quinn::Connection,
    peer: PeerId,
    /// Of our own certificate, when this was made.
    generation: u64,
    /// How many streams live on it.
    streams: Arc<AtomicUsize>,
}

impl Connection {
    fn new(quic: quinn::Connection, generation: u64) -> Result<Self, identity::Error> {
        let peer = peer_in(chain_of(&quic).as_deref().map(Vec::as_slice))?;
        Ok(Self { quic, peer, generation, streams: Arc::default() })
    }

    /// Which of our certificates it was made with, see [`identity::Live::generation`].
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// No stream lives on it, of whichever end.
    pub fn is_idle(&self) -> bool {
        self.streams.load(Ordering::Relaxed) == 0
    }

    /// Who is at the other end, by certificate.
    pub fn peer(&self) -> &PeerId {
        &self.peer
    }

    /// The connection has ended; dial anew.
    pub fn is_closed(&self) -> bool {
        self.quic.close_reason().is_some()
    }

    /// Why the other end refused our certificate, if that is how the connection ended.
    pub fn refusal(&self) -> Option<Failure> {
        self.quic.close_reason().as_ref().and_then(refusal_in)
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        self.quic.closed().await;
    }

    /// Ends the connection and every stream on it.
    pub fn close(&self, reason: &str) {
        self.quic.close(VarInt::from_u32(0), reason.as_bytes());
    }

    /// Both ends are on one machine, so that compressing what goes between them is wasted work.
    pub fn is_local(&self) -> bool {
        let remote = self.quic.remote_address().ip();
        remote.is_loopback() || self.quic.local_ip().is_some_and(|local| local == remote)
    }

    /// Opens a stream of `kind` ([`RPC_STREAM`], [`BULK_STREAM`] or [`LINK_STREAM`]).
    pub async fn open(&self, kind: u8) -> Result<Io, Error> {
        let (mut send, recv) = self.quic.open_bi().await.map_err(|error| self.ended(&error))?;
        // Control above bulk, so that a copy never delays a question.
        let priority = if kind == BULK_STREAM { 0 } else { 1 };
        let gone = |reason: String| Error::Gone { peer: self.peer.clone(), reason };
        send.set_priority(priority).map_err(|error| gone(error.to_string()))?;
        match send.write_all(&[kind]).await {
            Ok(()) => Ok(Io::quic(self.peer.clone(), send, recv, Used::of(&self.streams))),
            Err(quinn::WriteError::ConnectionLost(error)) => Err(self.ended(&error)),
            Err(error) => Err(gone(error.to_string())),
        }
    }

    fn ended(&self, error: &quinn::ConnectionError) -> Error {
        match refusal_in(error) {
            Some(failure) => Error::Refused { address: self.quic.remote_address().to_string(), failure },
            None => Error::Gone { peer: self.peer.clone(), reason: error.to_string() },
        }
    }
}

fn general(error: &dyn std::error::Error) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

fn udp_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel gives what net.core.rmem_max allows; less than asked for is slower, not wrong.
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    if address == SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port())) {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(LARGEST_MTU);
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(10_000))))
        .keep_alive_interval(Some(Duration::from_secs(3)))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(16 * STREAM_WINDOW))
        .send_window(u64::from(16 * STREAM_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_AT_ONCE))
        .max_concurrent_uni_streams(VarInt::from_u32(16))
        .mtu_discovery_config(Some(mtu));
    buffers(&mut config);
    Arc::new(config)
}
