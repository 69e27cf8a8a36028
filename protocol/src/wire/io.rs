//! One byte stream to an authenticated peer, whatever carries it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use super::identity::PeerId;

/// A two-way byte stream and who is at its other end.
///
/// gRPC handlers find the [`PeerId`] in a request's extensions.
#[derive(Debug)]
pub struct Io {
    peer: PeerId,
    carrier: Carrier,
}

#[derive(Debug)]
enum Carrier {
    Quic { send: quinn::SendStream, recv: quinn::RecvStream },
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    pub(super) fn quic(peer: PeerId, send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        Self { peer, carrier: Carrier::Quic { send, recv } }
    }

    pub(super) fn tls(peer: PeerId, stream: TlsStream<TcpStream>) -> Self {
        Self { peer, carrier: Carrier::Tls(Box::new(stream)) }
    }

    /// Who is at the other end, by certificate.
    pub fn peer(&self) -> &PeerId {
        &self.peer
    }
}

impl Connected for Io {
    type ConnectInfo = PeerId;

    fn connect_info(&self) -> PeerId {
        self.peer.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().carrier {
            Carrier::Quic { recv, .. } => AsyncRead::poll_read(Pin::new(recv), cx, buf),
            Carrier::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_write(Pin::new(send), cx, buf),
            Carrier::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_flush(Pin::new(send), cx),
            Carrier::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_shutdown(Pin::new(send), cx),
            Carrier::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
