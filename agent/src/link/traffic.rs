//! What goes through links, counted for each peer and direction of replication.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use dashmap::DashMap;
use steep_protocol::ids::NodeId;
use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};

/// Which end of a link this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// Its PostgreSQL subscribes.
    Subscriber,
    /// Its PostgreSQL publishes.
    Publisher,
}

/// What went through the links with one peer, at one end, since this agent started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// The peer.
    pub peer: NodeId,
    /// Which end this node is.
    pub end: End,
    /// Sessions opened.
    pub sessions: u64,
    /// Sessions open now.
    pub open: u64,
    /// Sessions or commands refused.
    pub refused: u64,
    /// Bytes to the peer.
    pub bytes_sent: u64,
    /// Bytes from the peer.
    pub bytes_received: u64,
}

/// The counters of one peer and end.
#[derive(Debug, Default)]
pub(super) struct Counters {
    sessions: AtomicU64,
    open: AtomicU64,
    refused: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a session as open until the value drops.
    pub(super) fn opened(self: &Arc<Self>) -> OpenSession {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenSession(Arc::clone(self))
    }
}

/// A session that is open.
#[derive(Debug)]
pub(super) struct OpenSession(Arc<Counters>);

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All counters of this agent. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter {
    counters: Arc<DashMap<(NodeId, End), Arc<Counters>>>,
}

impl Meter {
    pub(super) fn of(&self, peer: &NodeId, end: End) -> Arc<Counters> {
        Arc::clone(self.counters.entry((peer.clone(), end)).or_default().value())
    }

    /// What was counted, by peer.
    pub(super) fn read(&self) -> Vec<Traffic> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let traffic = self.counters.iter().map(|entry| {
            let ((peer, end), counters) = entry.pair();
            Traffic {
                peer: peer.clone(),
                end: *end,
                sessions: value(&counters.sessions),
                open: value(&counters.open),
                refused: value(&counters.refused),
                bytes_sent: value(&counters.sent),
                bytes_received: value(&counters.received),
            }
        });
        let mut all: Vec<_> = traffic.collect();
        all.sort_by(|one, other| (&one.peer, one.end).cmp(&(&other.peer, other.end)));
        all
    }
}

/// A stream to a peer whose bytes are counted.
pub(super) struct Counted<S> {
    stream: S,
    counters: Arc<Counters>,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S, counters: Arc<Counters>) -> Self {
        Self { stream, counters }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, counters } = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(stream).poll_read(cx, buf);
        counters.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, counters } = self.get_mut();
        let polled = Pin::new(stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            counters.sent.fetch_add(*written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_and_sessions_are_counted_by_peer_and_end() {
        let meter = Meter::default();
        let node: NodeId = "node_b".parse().expect("a name");
        let counters = meter.of(&node, End::Publisher);
        let session = counters.opened();
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut counted = Counted::new(ours, Arc::clone(&counters));
        counted.write_all(b"seven b").await.expect("it fits");
        theirs.write_all(b"two").await.expect("it fits");
        let mut three = [0; 3];
        counted.read_exact(&mut three).await.expect("they are there");
        let read = |open| Traffic {
            peer: node.clone(),
            end: End::Publisher,
            sessions: 1,
            open,
            refused: 0,
            bytes_sent: 7,
            bytes_received: 3,
        };
        assert_eq!(meter.read(), [read(1)]);
        drop(session);
        assert_eq!(meter.read(), [read(0)]);
    }
}
