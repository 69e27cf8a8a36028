//! Small messages beside the streams of a connection: sent at once, lost without notice, never fragmented.
//!
//! For what is repeated or made good by somebody else anyway, such as membership. Also here: what a connection knows
//! of its own health.

use std::time::Duration;

use bytes::Bytes;
use quinn::TransportConfig;

use super::endpoint::Connection;

/// The reason an agent closes its connections with when it ends or leaves the mesh.
pub const LEAVING: &str = "the agent leaves the mesh";
/// Fits every connection: QUIC's smallest packet is 1,200 bytes, of which it and a datagram's frame take up to 40.
pub const LARGEST_DATAGRAM: usize = 1_150;

/// Datagrams wait here until they are read; the oldest is dropped for a new one.
const WAITING_BYTES: usize = 256 << 10;

pub(super) fn buffers(config: &mut TransportConfig) {
    config.datagram_receive_buffer_size(Some(WAITING_BYTES)).datagram_send_buffer_size(WAITING_BYTES);
}

impl Connection {
    /// Sends `bytes` if they fit into one packet; says whether they were sent, not whether they arrive.
    pub fn send_datagram(&self, bytes: Bytes) -> bool {
        self.quic.send_datagram(bytes).is_ok()
    }

    /// The next datagram from the peer; nothing once the connection has ended. Cancel-safe.
    pub async fn receive_datagram(&self) -> Option<Bytes> {
        self.quic.read_datagram().await.ok()
    }

    /// Tells connections of this process apart.
    pub fn id(&self) -> usize {
        self.quic.stable_id()
    }

    /// What carries the connection: "quic".
    pub fn transport(&self) -> &'static str {
        "quic"
    }

    /// Round-trip time, as the transport measures it.
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// How many packets have come from the peer; it grows as long as the peer lives, idle or not.
    pub fn packets_received(&self) -> u64 {
        self.quic.stats().udp_rx.datagrams
    }

    /// The peer has closed the connection because it ends or leaves the mesh.
    pub fn was_left(&self) -> bool {
        match self.quic.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => close.reason == LEAVING.as_bytes(),
            _ => false,
        }
    }
}
