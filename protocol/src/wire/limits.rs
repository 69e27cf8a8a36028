//! How much anybody may make this agent hold, and how often somebody wanted more: every number with its reason.
//!
//! Before its certificate was judged somebody is an address, afterwards an identity. What one of them does above a
//! limit costs that one alone; each refusal is counted by its reason ([`Refusals`]).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A handshake, with the first words after it: a round trip takes half a second at worst, a loaded machine some more.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes under way from everybody. Each costs some 30 KiB and one descriptor; of a thousand descriptors, which
/// is the usual limit, enough are left for the work. Above it the oldest is dropped: an honest one takes
/// milliseconds, so that it is through before a flood has pushed it out.
pub const HANDSHAKES_AT_ONCE: usize = 256;
/// Handshakes under way from one address: a target may open 16 streams at once over TCP, and some nodes may stand
/// behind one address. Above it the oldest of that address is dropped.
pub const HANDSHAKES_PER_ADDRESS: usize = 64;
/// From so many QUIC handshakes on, an address must first prove that it is its own: a forged one costs us nothing then.
pub const QUIC_UNPROVEN: usize = 32;
/// What quinn may hold of packets of handshakes nobody has looked at yet.
pub const QUIC_INCOMING_BYTES: u64 = 4 << 20;

/// Connections of one agent: two while both ends dial at once, more while old ones drain. Above it the oldest is
/// closed: the newest is the one its agent knows of.
pub const CONNECTIONS_PER_NODE: usize = 4;
/// gRPC connections over TCP of one identity: every steepctl that watches has one. Above it a new one is refused.
pub const CALLERS_PER_IDENTITY: usize = 64;
/// Streams of one connection, in both directions together: 16 parts, requests, replication links, and room.
pub const STREAMS_PER_CONNECTION: usize = 128;
/// Bulk streams a peer has open on one connection: each costs a session of PostgreSQL. A target has 16 at most, and
/// one for the schema; parts that end and begin overlap.
pub const BULK_PER_CONNECTION: usize = 24;
/// One stream's bytes on the way. Never above 2.4 MiB: quinn closes a connection at 1,024 holes in one stream.
pub const STREAM_WINDOW: u32 = 2 << 20;
/// One connection's bytes on the way, each direction: what all its bulk streams can fill and nobody reads, and eight
/// streams more, so that requests still come through.
pub const CONNECTION_WINDOW: u32 = (BULK_PER_CONNECTION as u32 + 8) * STREAM_WINDOW;
/// Datagrams waiting to be read or sent, on one connection; the rest is lost, as datagrams are.
pub const DATAGRAM_BYTES_WAITING: usize = 256 << 10;
/// The largest frame on a control stream: a datagram, or the reason for an end.
pub const MAX_FRAME_BYTES: usize = 2_048;
/// Streams and connections that wait to be picked up by the rooms.
pub const ARRIVALS_WAITING: usize = 64;
/// Datagrams over TCP that wait to be read, on one connection.
pub const DATAGRAMS_WAITING: usize = 64;

/// A peer that has said nothing for so long is gone.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);
/// How often we say something, so that nobody thinks so of us: two of three may get lost.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// The largest message either side takes; rows never travel in messages.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The largest message that tells of schemas: a table's definition is as long as somebody made it, and so is a list of
/// thousands. Taken by those who asked, one at a time.
pub const MAX_SCHEMA_BYTES: usize = 32 << 20;
/// The request that opens a bulk stream: names of tables and columns.
pub const MAX_BULK_REQUEST_BYTES: u32 = 1 << 20;
/// All headers of one request. A signed intent fits in it: [`crate::intent::MAX_BYTES`], a third more as text.
pub const HEADER_LIST_BYTES: u32 = 96 << 10;
/// Bytes of messages on the way, one gRPC connection.
pub const MESSAGE_WINDOW: u32 = 1 << 20;
/// Requests at once on one gRPC connection.
pub const REQUESTS_PER_CONNECTION: usize = 64;
/// Requests nobody has answered yet, of one identity on all its connections: with the largest message in each of
/// them they hold 256 MiB.
pub const REQUESTS_PER_IDENTITY: usize = 64;
/// Streams opened and reset again that wait for our attention (HTTP/2 rapid reset); above it the connection ends.
pub const RESETS_WAITING: usize = 32;
/// Requests a second of one identity, for as long as it likes. The busiest honest ones are scripts that poll.
pub const REQUESTS_A_SECOND: f64 = 200.0;
/// Requests of one identity in one go.
pub const REQUESTS_IN_ONE_GO: f64 = 1_000.0;
/// Refusals a second after which a connection is not worth its packets …
pub const REFUSALS_A_SECOND: f64 = 100.0;
/// … once so many have gathered: then it is cut.
pub const REFUSALS_IN_ONE_GO: f64 = 2_000.0;
/// From a connection to its first byte, for gRPC over TCP.
pub const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(10);
/// From a request's headers to its last byte: 4 MiB on a slow line.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// What is left to say on a bulk stream whose session has ended, to a reader that stands still.
pub const LAST_WORDS_LIMIT: Duration = Duration::from_secs(10);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident $label:literal)+) => {
        /// Why somebody was refused or cut off.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[$doc])* $name),+
        }

        impl Refusal {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name among the metrics.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }
        }
    };
}

reasons! {
    /// TLS failed: no TLS, no certificate, a bad one, another protocol.
    Handshake "handshake"
    /// It took longer than [`HANDSHAKE_LIMIT`].
    HandshakeSlow "handshake_slow"
    /// Newer handshakes pushed it out.
    HandshakeCrowd "handshake_crowd"
    /// A newer connection of the same agent pushed it out, or there were [`CALLERS_PER_IDENTITY`].
    Connections "connections"
    /// A stream above its connection's limit.
    Streams "streams"
    /// A stream that says nothing of what it carries, or of a kind nobody knows.
    StreamUnknown "stream_unknown"
    /// A stream for a connection that is not there.
    ConnectionUnknown "connection_unknown"
    /// A frame that cannot be.
    Frame "frame"
    /// A datagram that nobody had time for.
    Datagram "datagram"
    /// Nothing was said on a connection that was made to ask something.
    FirstByte "first_byte"
    /// More requests than [`REQUESTS_A_SECOND`].
    RequestRate "request_rate"
    /// More requests than [`REQUESTS_PER_IDENTITY`] at once.
    RequestsAtOnce "requests_at_once"
    /// A request that did not end.
    RequestSlow "request_slow"
    /// A connection that went on asking what was refused.
    Cut "cut"
}

/// How often each limit was met since the start.
#[derive(Debug)]
pub struct Refusals([AtomicU64; Refusal::ALL.len()]);

impl Default for Refusals {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Refusals {
    /// One more.
    pub(super) fn count(&self, reason: Refusal) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often `reason` was met.
    pub fn of(&self, reason: Refusal) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// All reasons by label.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Refusal::ALL.iter().map(|reason| (reason.label(), self.of(*reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_counted_for_itself() {
        let refusals = Refusals::default();
        for reason in Refusal::ALL {
            refusals.count(*reason);
        }
        refusals.count(Refusal::Frame);
        for (label, count) in refusals.all() {
            assert_eq!(count, if label == "frame" { 2 } else { 1 }, "{label}");
        }
    }
}
