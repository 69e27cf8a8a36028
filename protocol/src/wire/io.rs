//! One byte stream to an authenticated peer, whatever carries it.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use super::{identity::PeerId, standing::Standing, trust::Ended};

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
    /// Ends with its connection, which is watched over as a whole.
    Quic {
        send: quinn::SendStream,
        recv: quinn::RecvStream,
        _used: Used,
    },
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        watched: Watched,
    },
}

/// Counted among the streams of a connection for as long as it lives.
#[derive(Debug)]
pub(super) struct Used(Arc<AtomicUsize>);

impl Used {
    pub(super) fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends a stream when the other end's certificate is no longer good enough for it.
struct Watched {
    ended: Option<Pin<Box<dyn Future<Output = Ended> + Send + Sync>>>,
    why: Option<Ended>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.why).finish()
    }
}

impl Watched {
    fn poll(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(ended) = &mut self.ended
            && let Poll::Ready(why) = ended.as_mut().poll(cx)
        {
            (self.ended, self.why) = (None, Some(why));
        }
        match self.why {
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.as_str())),
            None => Ok(()),
        }
    }
}

impl Io {
    pub(super) fn quic(peer: PeerId, send: quinn::SendStream, recv: quinn::RecvStream, used: Used) -> Self {
        Self { peer, carrier: Carrier::Quic { send, recv, _used: used } }
    }

    pub(super) fn tls(peer: PeerId, stream: TlsStream<TcpStream>, standing: Standing) -> Self {
        let watched = Watched { ended: Some(Box::pin(standing.ended())), why: None };
        Self { peer, carrier: Carrier::Tls { stream: Box::new(stream), watched } }
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
            Carrier::Tls { stream, watched } => match watched.poll(cx) {
                Ok(()) => Pin::new(stream).poll_read(cx, buf),
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_write(Pin::new(send), cx, buf),
            Carrier::Tls { stream, watched } => match watched.poll(cx) {
                Ok(()) => Pin::new(stream).poll_write(cx, buf),
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_flush(Pin::new(send), cx),
            Carrier::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_shutdown(Pin::new(send), cx),
            Carrier::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
