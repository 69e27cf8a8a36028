//! One byte stream to an authenticated peer, whatever carries it.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{
    gate::Calling,
    identity::PeerId,
    limits::{Refusal, Refusals},
    standing::Standing,
    streams::Counted,
    trust::Ended,
};

/// A two-way byte stream and who is at its other end.
///
/// gRPC handlers find the [`PeerId`] in a request's extensions.
#[derive(Debug)]
pub struct Io {
    peer: PeerId,
    carrier: Carrier,
    end: CancellationToken,
    reading: Pin<Box<WaitForCancellationFutureOwned>>,
    writing: Pin<Box<WaitForCancellationFutureOwned>>,
    first_byte: Option<FirstByte>,
    _held: Held,
}

#[derive(Debug)]
enum Carrier {
    /// Ends with its connection, which is watched over as a whole.
    Quic {
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    },
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        watched: Watched,
    },
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

impl Carrier {
    fn tls(stream: TlsStream<TcpStream>, standing: Standing) -> Self {
        let watched = Watched { ended: Some(Box::pin(standing.ended())), why: None };
        Self::Tls { stream: Box::new(stream), watched }
    }
}

/// What counts as long as the stream is there.
#[derive(Debug)]
#[expect(dead_code, reason = "held for what their drop does")]
enum Held {
    Stream(Counted),
    Caller(Calling),
    Nothing,
}

/// Somebody connected to say something: until they have, the clock runs.
#[derive(Debug)]
struct FirstByte {
    limit: Pin<Box<Sleep>>,
    refusals: Arc<Refusals>,
}

impl Io {
    fn new(peer: PeerId, carrier: Carrier, end: CancellationToken, held: Held) -> Self {
        let reading = Box::pin(end.clone().cancelled_owned());
        let writing = Box::pin(end.clone().cancelled_owned());
        Self { peer, carrier, end, reading, writing, first_byte: None, _held: held }
    }

    /// A stream of a QUIC connection, which ends it.
    pub(super) fn quic(peer: PeerId, send: quinn::SendStream, recv: quinn::RecvStream, counted: Counted) -> Self {
        Self::new(peer, Carrier::Quic { send, recv }, CancellationToken::new(), Held::Stream(counted))
    }

    /// A stream of a TCP connection, which ends it with `end`.
    pub(super) fn tcp(
        peer: PeerId,
        stream: TlsStream<TcpStream>,
        standing: Standing,
        end: &CancellationToken,
        counted: Counted,
    ) -> Self {
        Self::new(peer, Carrier::tls(stream, standing), end.child_token(), Held::Stream(counted))
    }

    /// A client's connection, whose first byte is waited for at most `limit`; `refusals` counts those that were late.
    pub(super) fn caller(
        peer: PeerId,
        stream: TlsStream<TcpStream>,
        standing: Standing,
        calling: Calling,
        (limit, refusals): (Duration, &Arc<Refusals>),
    ) -> Self {
        let held = Held::Caller(calling);
        let mut io = Self::new(peer, Carrier::tls(stream, standing), CancellationToken::new(), held);
        io.first_byte = Some(FirstByte { limit: Box::pin(sleep(limit)), refusals: Arc::clone(refusals) });
        io
    }

    /// A connection that a client has dialled.
    pub(super) fn called(peer: PeerId, stream: TlsStream<TcpStream>, standing: Standing) -> Self {
        Self::new(peer, Carrier::tls(stream, standing), CancellationToken::new(), Held::Nothing)
    }

    /// Writes all of `bytes`, which QUIC keeps as they are until they have arrived.
    pub(super) async fn write_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        match &mut self.carrier {
            Carrier::Quic { send, .. } => tokio::select! {
                biased;
                () = self.writing.as_mut() => Err(ended()),
                written = send.write_chunk(bytes) => Ok(written?),
            },
            Carrier::Tls { .. } => self.write_all(&bytes).await,
        }
    }

    /// Who is at the other end, by certificate.
    pub fn peer(&self) -> &PeerId {
        &self.peer
    }
}

/// Where a request came from: who asked, and the way to cut them off.
#[derive(Debug, Clone)]
pub struct Origin {
    pub(super) peer: PeerId,
    pub(super) end: CancellationToken,
}

impl Connected for Io {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        Origin { peer: self.peer.clone(), end: self.end.clone() }
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection has ended")
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.reading.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(ended()));
        }
        let before = buf.filled().len();
        let read = match &mut me.carrier {
            Carrier::Quic { recv, .. } => AsyncRead::poll_read(Pin::new(recv), cx, buf),
            Carrier::Tls { stream, watched } => match watched.poll(cx) {
                Ok(()) => Pin::new(stream).poll_read(cx, buf),
                Err(error) => Poll::Ready(Err(error)),
            },
        };
        if buf.filled().len() > before {
            me.first_byte = None;
        } else if read.is_pending()
            && let Some(first) = &mut me.first_byte
            && first.limit.as_mut().poll(cx).is_ready()
        {
            first.refusals.count(Refusal::FirstByte);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        if me.writing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(ended()));
        }
        match &mut me.carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_write(Pin::new(send), cx, buf),
            Carrier::Tls { stream, watched } => match watched.poll(cx) {
                Ok(()) => Pin::new(stream).poll_write(cx, buf),
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.writing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(ended()));
        }
        match &mut me.carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_flush(Pin::new(send), cx),
            Carrier::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.writing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(ended()));
        }
        match &mut me.carrier {
            Carrier::Quic { send, .. } => AsyncWrite::poll_shutdown(Pin::new(send), cx),
            Carrier::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
