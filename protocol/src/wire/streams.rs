//! Counts the streams of one connection, so that none has too many and an old one knows when nobody needs it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    endpoint::{BULK_STREAM, RPC_STREAM},
    limits::{BULK_PER_CONNECTION, STREAMS_PER_CONNECTION},
};

/// The streams of one connection. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Streams(Arc<Open>);

#[derive(Debug, Default)]
struct Open {
    all: AtomicUsize,
    rpc: AtomicUsize,
    /// Those of a peer that wants blocks of us.
    asked_for_blocks: AtomicUsize,
}

/// One stream; it counts until this drops.
#[derive(Debug)]
pub(super) struct Counted {
    open: Arc<Open>,
    kind: u8,
    is_peers: bool,
}

impl Streams {
    /// One more stream of `kind`, unless there are too many. `is_peers`: the peer has opened it.
    pub(super) fn one_more(&self, kind: u8, is_peers: bool) -> Option<Counted> {
        let counted = Counted { open: Arc::clone(&self.0), kind, is_peers };
        let open = &self.0;
        let all = open.all.fetch_add(1, Ordering::AcqRel);
        if kind == RPC_STREAM {
            open.rpc.fetch_add(1, Ordering::AcqRel);
        }
        let wants_blocks = kind == BULK_STREAM && is_peers;
        let blocks = if wants_blocks { open.asked_for_blocks.fetch_add(1, Ordering::AcqRel) } else { 0 };
        // Dropped here, it takes back what it has counted.
        (all < STREAMS_PER_CONNECTION && blocks < BULK_PER_CONNECTION).then_some(counted)
    }

    /// How many streams carry gRPC, and how many anything else.
    pub(super) fn open(&self) -> (usize, usize) {
        let rpc = self.0.rpc.load(Ordering::Acquire);
        (rpc, self.0.all.load(Ordering::Acquire).saturating_sub(rpc))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.all.fetch_sub(1, Ordering::AcqRel);
        if self.kind == RPC_STREAM {
            self.open.rpc.fetch_sub(1, Ordering::AcqRel);
        }
        if self.kind == BULK_STREAM && self.is_peers {
            self.open.asked_for_blocks.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_count_until_they_are_gone_and_no_further_than_their_limits() {
        let streams = Streams::default();
        let mut blocks: Vec<_> =
            (0..BULK_PER_CONNECTION).map(|_| streams.one_more(BULK_STREAM, true).expect("there is room")).collect();
        assert!(streams.one_more(BULK_STREAM, true).is_none(), "a peer's bulk streams are fewer");
        let ours = streams.one_more(BULK_STREAM, false).expect("our own cost us nothing");
        let rest: Vec<_> = std::iter::from_fn(|| streams.one_more(RPC_STREAM, true)).collect();
        assert_eq!(streams.open(), (rest.len(), BULK_PER_CONNECTION + 1));
        assert_eq!(rest.len() + BULK_PER_CONNECTION + 1, STREAMS_PER_CONNECTION);
        drop((ours, rest));
        blocks.pop();
        assert!(streams.one_more(BULK_STREAM, true).is_some());
        drop(blocks);
        assert_eq!(streams.open(), (0, 0));
    }
}
