//! Small messages beside the streams of a connection: sent at once, lost without notice, never fragmented.
//!
//! For what is repeated or made good by somebody else anyway, such as membership. Also here: what a connection knows
//! of its own health.

use std::time::Duration;

use bytes::Bytes;

use super::connection::{Connection, Link};

/// The reason an agent closes its connections with when it ends or leaves the mesh.
pub const LEAVING: &str = "the agent leaves the mesh";
/// Fits every connection: QUIC's smallest packet is 1,200 bytes, of which it and a datagram's frame take up to 40.
pub const LARGEST_DATAGRAM: usize = 1_150;

impl Connection {
    /// Sends `bytes`, at most [`LARGEST_DATAGRAM`]; says whether they were sent, not whether they arrive.
    pub fn send_datagram(&self, bytes: Bytes) -> bool {
        bytes.len() <= LARGEST_DATAGRAM
            && match self.link() {
                Link::Quic(quic) => quic.send_datagram(bytes).is_ok(),
                Link::Tcp(control) => control.send_datagram(bytes),
            }
    }

    /// The next datagram from the peer; nothing once the connection has ended. Cancel-safe.
    pub async fn receive_datagram(&self) -> Option<Bytes> {
        match self.link() {
            Link::Quic(quic) => quic.read_datagram().await.ok(),
            Link::Tcp(control) => control.receive_datagram().await,
        }
    }

    /// Tells connections of this process apart.
    pub fn id(&self) -> usize {
        match self.link() {
            Link::Quic(quic) => quic.stable_id(),
            Link::Tcp(control) => control.id(),
        }
    }

    /// Round-trip time, as the transport measures it; over TCP that of the last keep-alive, zero before the first.
    pub fn rtt(&self) -> Duration {
        match self.link() {
            Link::Quic(quic) => quic.rtt(),
            Link::Tcp(control) => control.rtt(),
        }
    }

    /// How many packets have come from the peer; it grows as long as the peer lives, idle or not.
    pub fn packets_received(&self) -> u64 {
        match self.link() {
            Link::Quic(quic) => quic.stats().udp_rx.datagrams,
            Link::Tcp(control) => control.frames_received(),
        }
    }

    /// The peer has closed the connection because it ends or leaves the mesh.
    pub fn was_left(&self) -> bool {
        match self.link() {
            Link::Quic(quic) => match quic.close_reason() {
                Some(quinn::ConnectionError::ApplicationClosed(close)) => close.reason == LEAVING.as_bytes(),
                _ => false,
            },
            Link::Tcp(control) => control.goodbye() == Some(LEAVING),
        }
    }
}
