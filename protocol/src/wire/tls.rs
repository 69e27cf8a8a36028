//! TCP connections with TLS: how they are dialled and accepted, and what each turns out to be.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::{
    endpoint::{CALLER_ALPN, TLS_NAME},
    error::{Error, tls_in},
    identity::{Expect, Identity, PeerId},
    io::Io,
    limits::HANDSHAKE_LIMIT,
    standing::{Standing, standing_of},
    tcp::{CONTROL_STREAM, WANTED_STREAM},
    verify::Verdict,
};
use crate::failure::Explain as _;

/// One whose handshake is done, whoever dialled.
pub(super) type Stream = TlsStream<TcpStream>;

/// What a TCP connection turned out to be.
#[derive(Debug)]
pub(super) enum Arrived {
    /// A gRPC client's.
    Caller,
    /// A connection named `name`, by somebody with these flags.
    Control { name: u128, flags: u8 },
    /// A stream we have asked for.
    Wanted { name: u128, ticket: u64 },
    /// A stream of a connection.
    Stream { name: u128, kind: u8 },
}

/// A TCP connection whose handshake is done, and that has said what it is.
#[derive(Debug)]
pub(super) struct Sorted {
    pub(super) peer: PeerId,
    pub(super) standing: Standing,
    pub(super) arrived: Arrived,
    pub(super) stream: Stream,
    /// Of our own certificate, when the handshake began.
    pub(super) generation: u64,
}

/// Takes a TCP connection that somebody has made.
pub(super) async fn accept(acceptor: TlsAcceptor, stream: TcpStream, identity: &Identity) -> io::Result<Sorted> {
    let generation = identity.live().generation();
    stream.set_nodelay(true)?;
    let mut stream = TlsStream::from(acceptor.accept(stream).await?);
    let (peer, standing) = standing_of(&stream, identity).map_err(io::Error::other)?;
    let arrived = sort(&mut stream).await?;
    Ok(Sorted { peer, standing, arrived, stream, generation })
}

/// Reads what a TCP connection with a finished handshake is.
async fn sort(stream: &mut Stream) -> io::Result<Arrived> {
    if stream.get_ref().1.alpn_protocol() == Some(CALLER_ALPN) {
        return Ok(Arrived::Caller);
    }
    let kind = stream.read_u8().await?;
    let name = stream.read_u128_le().await?;
    Ok(match kind {
        CONTROL_STREAM => Arrived::Control { name, flags: stream.read_u8().await? },
        WANTED_STREAM => Arrived::Wanted { name, ticket: stream.read_u64_le().await? },
        kind => Arrived::Stream { name, kind },
    })
}

/// Dials one TCP connection with TLS. In TLS 1.3 that is done before the other end has judged our certificate.
pub(super) async fn connect(
    identity: &Identity,
    alpn: &[u8],
    address: &str,
    to: &[SocketAddr],
    expect: Expect,
) -> Result<Stream, Error> {
    let verdict = Verdict::default();
    let tls = identity.client_config(&[alpn], expect, &verdict).map_err(Error::Tls)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let name = TLS_NAME.try_into().expect("a constant DNS name");
    let unreachable = |error: io::Error| Error::unreachable(address, error.to_string());
    let stream = TcpStream::connect(to).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let stream = connector.connect(name, stream).await.map_err(|error| match verdict.get().cloned() {
        Some(failure) => Error::Refused { address: address.to_owned(), failure },
        None => refused(address, error),
    })?;
    Ok(TlsStream::from(stream))
}

/// Who has answered at `address`, and whether they may stay.
#[expect(clippy::result_large_err, reason = "the callers are futures of this error anyway")]
pub(super) fn answered(address: &str, stream: &Stream, identity: &Identity) -> Result<(PeerId, Standing), Error> {
    standing_of(stream, identity)
        .map_err(|error| Error::Refused { address: address.to_owned(), failure: error.explain() })
}

pub(super) fn refused(address: &str, error: io::Error) -> Error {
    match tls_in(&error) {
        Some(failure) => Error::Refused { address: address.to_owned(), failure },
        None => Error::unreachable(address, error.to_string()),
    }
}

pub(super) fn too_slow(address: &str) -> Error {
    Error::unreachable(address, format!("no answer over TCP in {} s", HANDSHAKE_LIMIT.as_secs()))
}

/// Dials a listener for gRPC; for steepctl and other clients that are no agents.
pub(super) async fn dial_caller(
    identity: &Identity,
    address: &str,
    to: &[SocketAddr],
    expect: Expect,
) -> Result<Io, Error> {
    let shaken = async {
        let mut stream = connect(identity, CALLER_ALPN, address, to, expect).await?;
        let (peer, standing) = answered(address, &stream, identity)?;
        // Its first words (HTTP/2 settings, or an alert) say what the other end thinks of our certificate; left to
        // HTTP/2, an alert would come out as "connection closed".
        match stream.fill_buf().await {
            Ok([]) => Err(Error::unreachable(address, "it closed the connection")),
            Ok(_) => Ok(Io::called(peer, stream, standing)),
            Err(error) => Err(refused(address, error)),
        }
    };
    timeout(HANDSHAKE_LIMIT, shaken).await.map_err(|_| too_slow(address))?
}
