//! What gossip's datagrams begin with, how changes are written into one, and the keys of what is told.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use steep_protocol::{v1, wire::datagram::LARGEST_DATAGRAM};

// The first byte of a datagram: what it is, and in which version.
pub(super) const SWIM: u8 = 1;
pub(super) const CHANGES: u8 = 2;
pub(super) const HASH: u8 = 3;

/// What key a goodbye is written under.
pub const LEAVING: &str = "leaving";
/// The key of [`v1::GossipNode`].
pub const NODE: &str = "node";
/// The key of [`v1::GossipRevocations`].
pub const REVOCATIONS: &str = "crl";
/// The key of [`v1::NodeHeadline`].
pub const HEADLINE: &str = "headline";

/// A datagram that tells `deltas`; none where they do not fit into one: the next comparison brings them.
pub(super) fn changes(deltas: Vec<v1::NodeDelta>) -> Option<Bytes> {
    let changes = v1::GossipChanges { deltas };
    if changes.encoded_len() >= LARGEST_DATAGRAM {
        return None;
    }
    let mut bytes = BytesMut::with_capacity(changes.encoded_len() + 1);
    bytes.put_u8(CHANGES);
    changes.encode(&mut bytes).expect("a buffer that grows takes everything");
    Some(bytes.freeze())
}
