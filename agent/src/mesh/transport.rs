//! Which of two connections to a peer is used, what carries it, and the way back from TCP to QUIC.
//!
//! QUIC is better than TCP, whoever dialled; of two alike the one dialled by the smaller node id is used, when both
//! ends dialled without knowing of each other. Both ends decide by these rules, so they agree.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use dashmap::DashMap;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    wire::{
        choice::Preference,
        connection::{Carrier, Connection, Transport, Why},
        endpoint::Endpoint,
    },
};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

/// Connections made within so long of each other were made without knowing of each other.
const TOGETHER: Duration = Duration::from_secs(3);
/// After so long QUIC is tried again over a connection that TCP carries …
const FIRST_RETRY: Duration = Duration::from_secs(30);
/// … and at least as often later on.
const LAST_RETRY: Duration = Duration::from_secs(300);

/// A connection that could be used.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// To which run of the peer's agent.
    pub instance_id: &'a str,
    /// Higher than any earlier run's.
    pub generation: u64,
    /// What carries it.
    pub transport: Transport,
    /// This agent has dialled it.
    pub dialled: bool,
    /// When it was made.
    pub made: Instant,
}

/// Whether `old` stays in use although `new` has just been made; `me` speaks to `peer`.
pub fn old_stays(old: Candidate<'_>, new: Candidate<'_>, me: &NodeId, peer: &NodeId) -> bool {
    if old.instance_id != new.instance_id {
        // Of runs that follow each other quickly, the last is not always the last one that is heard.
        return old.generation > new.generation;
    }
    let are_twins = new.made.saturating_duration_since(old.made) < TOGETHER;
    match (old.transport.carrier, new.transport.carrier) {
        (Carrier::Tcp, Carrier::Quic) => false,
        // TCP made later on: whoever dialled it has lost QUIC, even when this end does not know yet.
        (Carrier::Quic, Carrier::Tcp) => are_twins,
        // Whoever dials again has lost the old one; whoever dials later as well.
        _ => old.dialled != new.dialled && old.dialled == (me < peer) && are_twins,
    }
}

/// What was told of each peer's transport, so that it is told once. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<DashMap<NodeId, ()>>);

impl Told {
    /// Logs that UDP to `peer` is blocked, or that it works again.
    pub fn tell(&self, peer: &NodeId, transport: Transport) {
        match (transport.carrier, transport.why) {
            (Carrier::Tcp, Why::UdpSilent) if self.0.insert(peer.clone(), ()).is_none() => {
                let failure = Failure::new(Code::UdpBlocked, format!("no answer from {peer} over UDP, but over TCP"));
                warn!(event = "mesh.transport", peer = %peer, details.transport = "tcp", error = crate::telemetry::failure(&failure), "UDP is blocked: TCP is used");
            }
            (Carrier::Quic, _) if self.0.remove(peer).is_some() => {
                info!(event = "mesh.transport", peer = %peer, details.transport = "quic", "UDP works again: QUIC is used");
            }
            _ => {}
        }
    }
}

/// Dials `peer` at `address` over QUIC, again and again, until that works, and returns the new connection; `None` once
/// `over_tcp` is not used any more, or where TCP is what somebody wants.
pub async fn back_to_quic(
    endpoint: &Endpoint,
    address: &str,
    peer: &NodeId,
    over_tcp: &Connection,
    is_used: impl Fn() -> bool,
) -> Option<Connection> {
    let Transport { carrier: Carrier::Tcp, why: Why::UdpSilent } = over_tcp.transport() else { return None };
    if endpoint.preference() != Preference::Auto {
        return None;
    }
    let pauses = ExponentialBuilder::default()
        .with_min_delay(FIRST_RETRY)
        .with_max_delay(LAST_RETRY)
        .with_jitter()
        .without_max_times()
        .build();
    for pause in pauses {
        tokio::select! {
            () = sleep(pause.min(LAST_RETRY)) => {}
            () = over_tcp.closed() => return None,
        }
        if !is_used() {
            return None;
        }
        if let Ok(connection) = endpoint.dial_quic(address, peer).await {
            return Some(connection);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn both_ends_keep_the_same_of_two_connections() {
        let [a, b]: [NodeId; 2] = ["node_a", "node_b"].map(|id| id.parse().expect("a node"));
        let now = Instant::now();
        // Who dialled first and with what, who second and with what, how much later; which one stays in use.
        let cases = [
            ("a", Carrier::Quic, "b", Carrier::Quic, 0, "first"),
            ("b", Carrier::Quic, "a", Carrier::Quic, 0, "second"),
            ("a", Carrier::Quic, "b", Carrier::Quic, 10, "second"),
            ("b", Carrier::Quic, "b", Carrier::Quic, 10, "second"),
            ("a", Carrier::Tcp, "b", Carrier::Quic, 0, "second"),
            ("a", Carrier::Tcp, "b", Carrier::Quic, 30, "second"),
            ("b", Carrier::Quic, "a", Carrier::Tcp, 2, "first"),
            ("b", Carrier::Quic, "a", Carrier::Tcp, 20, "second"),
            ("a", Carrier::Tcp, "b", Carrier::Tcp, 1, "first"),
        ];
        for case in cases {
            let (first, carried, second, then_carried, seconds, stays) = case;
            for (me, peer) in [(&a, &b), (&b, &a)] {
                let candidate = |by: &str, carrier, after| Candidate {
                    instance_id: "one",
                    generation: 7,
                    transport: Transport { carrier, why: Why::First },
                    dialled: me.as_str().ends_with(by),
                    made: now + Duration::from_secs(after),
                };
                let (old, new) = (candidate(first, carried, 0), candidate(second, then_carried, seconds));
                assert_eq!(old_stays(old, new, me, peer), stays == "first", "{me}: {case:?}");
                let later = |candidate| Candidate { instance_id: "two", generation: 8, ..candidate };
                assert!(!old_stays(old, later(new), me, peer), "{me}: {case:?}, started anew");
                assert!(old_stays(later(old), new, me, peer), "{me}: {case:?}, heard late");
            }
        }
    }
}
