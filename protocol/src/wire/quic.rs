//! QUIC: the settings of both ends, the socket, dialling, and one connection.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

use super::{
    endpoint::{ALPN, BULK_STREAM, TLS_NAME},
    error::{Error, general, refusal_in},
    identity::{self, Expect, Identity, PeerId, peer_in},
    io::Io,
    limits::{
        CONNECTION_WINDOW, DATAGRAM_BYTES_WAITING, HANDSHAKE_LIMIT, HANDSHAKES_AT_ONCE, KEEP_ALIVE,
        QUIC_INCOMING_BYTES, SILENT_AFTER, STREAM_WINDOW, STREAMS_PER_CONNECTION,
    },
    standing::Chain,
    streams::Counted,
    verify::Verdict,
};
use crate::failure::Explain as _;

/// Debian's default of 208 KiB loses packets from 100 MB/s on.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// At most 6,500: ten segments must stay below 65,507 bytes, or the kernel loses them silently.
const LARGEST_MTU: u16 = 6_000;

/// Listens on `address` over UDP.
#[expect(clippy::result_large_err, reason = "it is asked once, at the start")]
pub(super) fn listen(address: SocketAddr, identity: &Identity) -> Result<quinn::Endpoint, Error> {
    let listen = |source| Error::Listen { address: address.to_string(), source };
    let udp = udp_socket(address).map_err(listen)?;
    let tls = identity.server_config(&[ALPN]).map_err(Error::Tls)?;
    let tls = QuicServerConfig::try_from(tls).map_err(|error| Error::Tls(general(&error)))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(transport());
    server.max_incoming(HANDSHAKES_AT_ONCE);
    server.incoming_buffer_size_total(QUIC_INCOMING_BYTES);
    let mut settings = quinn::EndpointConfig::default();
    settings.max_udp_payload_size(LARGEST_MTU).map_err(|error| Error::Tls(general(&error)))?;
    quinn::Endpoint::new(settings, Some(server), udp, Arc::new(quinn::TokioRuntime)).map_err(listen)
}

/// Dials whom we expect at `to`; waits at most [`HANDSHAKE_LIMIT`].
pub(super) async fn dial(
    endpoint: &quinn::Endpoint,
    identity: &Identity,
    address: &str,
    to: SocketAddr,
    expect: &Expect,
) -> Result<(quinn::Connection, PeerId), Error> {
    let verdict = Verdict::default();
    let tls = identity.client_config(&[ALPN], expect.clone(), &verdict).map_err(Error::Tls)?;
    let tls = QuicClientConfig::try_from(tls).map_err(|error| Error::Tls(general(&error)))?;
    let mut client = quinn::ClientConfig::new(Arc::new(tls));
    client.transport_config(transport());
    let connecting =
        endpoint.connect_with(client, to, TLS_NAME).map_err(|error| Error::unreachable(address, error.to_string()))?;
    match timeout(HANDSHAKE_LIMIT, connecting).await {
        Err(_) => Err(Error::unreachable(address, format!("no answer over UDP in {} s", HANDSHAKE_LIMIT.as_secs()))),
        Ok(Err(error)) => match verdict.get().cloned().or_else(|| refusal_in(&error)) {
            Some(failure) => Err(Error::Refused { address: address.into(), failure }),
            None => Err(Error::unreachable(address, error.to_string())),
        },
        Ok(Ok(quic)) => match peer_of(&quic) {
            Ok(peer) => Ok((quic, peer)),
            Err(error) => Err(Error::Refused { address: address.into(), failure: error.explain() }),
        },
    }
}

/// Who is at the other end.
pub(super) fn peer_of(quic: &quinn::Connection) -> Result<PeerId, identity::Error> {
    peer_in(chain_of(quic).as_deref())
}

/// What the other end has shown.
pub(super) fn chain_of(quic: &quinn::Connection) -> Option<Chain> {
    quic.peer_identity()?.downcast::<Chain>().ok().map(|chain| *chain)
}

pub(super) fn is_local(quic: &quinn::Connection) -> bool {
    let remote = quic.remote_address().ip();
    remote.is_loopback() || quic.local_ip().is_some_and(|local| local == remote)
}

/// Opens a stream of `kind`.
pub(super) async fn open(quic: &quinn::Connection, peer: &PeerId, kind: u8, counted: Counted) -> Result<Io, Error> {
    let (mut send, recv) = quic.open_bi().await.map_err(|error| ended(quic, peer, &error))?;
    // Control above bulk, so that a copy never delays a question.
    let priority = if kind == BULK_STREAM { 0 } else { 1 };
    let gone = |reason: String| Error::Gone { peer: peer.clone(), reason };
    send.set_priority(priority).map_err(|error| gone(error.to_string()))?;
    match send.write_all(&[kind]).await {
        Ok(()) => Ok(Io::quic(peer.clone(), send, recv, counted)),
        Err(quinn::WriteError::ConnectionLost(error)) => Err(ended(quic, peer, &error)),
        Err(error) => Err(gone(error.to_string())),
    }
}

fn ended(quic: &quinn::Connection, peer: &PeerId, error: &quinn::ConnectionError) -> Error {
    match refusal_in(error) {
        Some(failure) => Error::Refused { address: quic.remote_address().to_string(), failure },
        None => Error::Gone { peer: peer.clone(), reason: error.to_string() },
    }
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
    let milliseconds = |duration: Duration| VarInt::from_u32(duration.as_millis() as u32);
    config
        .max_idle_timeout(Some(IdleTimeout::from(milliseconds(SILENT_AFTER))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES_WAITING))
        .datagram_send_buffer_size(DATAGRAM_BYTES_WAITING)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_CONNECTION as u32))
        .max_concurrent_uni_streams(VarInt::from_u32(16))
        .mtu_discovery_config(Some(mtu));
    Arc::new(config)
}
