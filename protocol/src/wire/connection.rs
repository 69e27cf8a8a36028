//! One connection to an authenticated peer, over QUIC or over TCP; both ends open streams on it.

use std::{fmt, time::Duration};

use quinn::VarInt;
use tokio::time::{Instant, sleep};

use super::{
    error::{Error, refusal_in},
    identity::PeerId,
    io::Io,
    quic,
    streams::Streams,
    tcp,
};
use crate::failure::Failure;

/// A request may run so long on a connection that is no longer used for new ones; the longest waits for slots.
const LONGEST_REQUEST: Duration = Duration::from_secs(600);
/// How often a connection that drains is looked at.
const DRAIN_LOOK: Duration = Duration::from_secs(1);

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// One QUIC connection with all streams in it.
    Quic,
    /// One TCP connection with TLS for each stream.
    Tcp,
}

impl Carrier {
    /// `quic` or `tcp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a connection is carried by what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// QUIC comes first, and works.
    First,
    /// This agent's `mesh.transport` says so.
    Configured,
    /// The other agent's `mesh.transport` says so.
    ConfiguredThere,
    /// Nothing answered over UDP, which whoever dialled has tried.
    UdpSilent,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::First => "it works",
            Self::Configured => "mesh.transport of this agent",
            Self::ConfiguredThere => "mesh.transport of the other agent",
            Self::UdpSilent => "no answer over UDP",
        })
    }
}

/// What carries a connection, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// QUIC or TCP.
    pub carrier: Carrier,
    /// For people who wonder.
    pub why: Why,
}

/// One connection to an authenticated peer. Clones share it.
///
/// It ends with [`Connection::close`] or when the peer is not heard of for ten seconds, and all its streams with it.
#[derive(Debug, Clone)]
pub struct Connection {
    link: Link,
    peer: PeerId,
    streams: Streams,
    why: Why,
    /// Of our own certificate, when this was made.
    generation: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Link {
    Quic(quinn::Connection),
    Tcp(tcp::Control),
}

impl Connection {
    pub(super) fn new(link: Link, peer: PeerId, why: Why, generation: u64) -> Self {
        Self { link, peer, streams: Streams::default(), why, generation }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Who is at the other end, by certificate.
    pub fn peer(&self) -> &PeerId {
        &self.peer
    }

    /// What carries it, and why.
    pub fn transport(&self) -> Transport {
        let carrier = match self.link {
            Link::Quic(_) => Carrier::Quic,
            Link::Tcp(_) => Carrier::Tcp,
        };
        Transport { carrier, why: self.why }
    }

    /// Which of our certificates it was made with, see [`Live::generation`](super::identity::Live::generation).
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The connection has ended; dial anew.
    pub fn is_closed(&self) -> bool {
        match &self.link {
            Link::Quic(quic) => quic.close_reason().is_some(),
            Link::Tcp(control) => control.is_closed(),
        }
    }

    /// Why the other end refused our certificate, if that is how the connection ended.
    pub fn refusal(&self) -> Option<Failure> {
        match &self.link {
            Link::Quic(quic) => quic.close_reason().as_ref().and_then(refusal_in),
            Link::Tcp(control) => control.refusal(),
        }
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        match &self.link {
            Link::Quic(quic) => drop(quic.closed().await),
            Link::Tcp(control) => control.closed().await,
        }
    }

    /// Ends the connection and every stream on it.
    pub fn close(&self, reason: &str) {
        match &self.link {
            Link::Quic(quic) => quic.close(VarInt::from_u32(0), reason.as_bytes()),
            Link::Tcp(control) => control.close(reason),
        }
    }

    /// No stream lives on it, of whichever end.
    pub fn is_idle(&self) -> bool {
        self.streams.open() == (0, 0)
    }

    /// Waits until nothing runs on it any more, at least for `grace`, then closes it.
    ///
    /// For a connection that another one has replaced: who still has it in hand may begin something within `grace`.
    /// Blocks and replication may go on for as long as they like, requests for ten minutes.
    pub async fn retire(&self, grace: Duration, reason: &str) {
        let drained = async {
            sleep(grace).await;
            let began = Instant::now();
            loop {
                let (rpc, other) = self.streams.open();
                if other == 0 && (rpc == 0 || began.elapsed() > LONGEST_REQUEST) {
                    break;
                }
                sleep(DRAIN_LOOK).await;
            }
        };
        tokio::select! {
            () = drained => self.close(reason),
            () = self.closed() => {}
        }
    }

    /// Both ends are on one machine, so that compressing what goes between them is wasted work.
    pub fn is_local(&self) -> bool {
        match &self.link {
            Link::Quic(quic) => quic::is_local(quic),
            Link::Tcp(control) => control.is_local(),
        }
    }

    /// Opens a stream of `kind` ([`RPC_STREAM`](super::endpoint::RPC_STREAM),
    /// [`BULK_STREAM`](super::endpoint::BULK_STREAM) or [`LINK_STREAM`](super::endpoint::LINK_STREAM)).
    pub async fn open(&self, kind: u8) -> Result<Io, Error> {
        let full = || Error::Gone { peer: self.peer.clone(), reason: "it has too many streams open".into() };
        let counted = self.streams.one_more(kind, false).ok_or_else(full)?;
        match &self.link {
            Link::Quic(quic) => quic::open(quic, &self.peer, kind, counted).await,
            // A handshake of its own: too large to lie in every caller.
            Link::Tcp(control) => Box::pin(control.open(&self.peer, kind, counted)).await,
        }
    }
}
