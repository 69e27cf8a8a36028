//! Denials: counted, logged and audited, without letting whoever is denied write our logs full.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dashmap::DashMap;
use serde_json::json;
use steep_protocol::{
    failure::{Code, Failure},
    wire::identity::PeerId,
};
use tokio::time::Instant;
use tracing::warn;

use super::{Actor, Store, audit};
use crate::telemetry;

/// Of the same denials of one peer, one is told in so long; the next one told says how many were not.
const ONE_IN: Duration = Duration::from_secs(10);
/// So many peers, calls and reasons are told apart.
const TOLD_APART: usize = 1024;

/// Something that was asked and denied.
#[derive(Debug, Clone, Copy)]
pub struct Denial<'a> {
    /// Whose certificate the connection has shown; none: it had no identity.
    pub peer: Option<&'a PeerId>,
    /// In whose name it was asked.
    pub who: &'a str,
    /// What, as the protocol names it.
    pub rpc: &'static str,
    /// Why not.
    pub failure: &'a Failure,
}

/// What is denied here. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Denials {
    counts: Arc<DashMap<(&'static str, Code), u64>>,
    told: Arc<DashMap<Key, Told>>,
}

type Key = (Option<PeerId>, &'static str, Code);

#[derive(Debug)]
struct Told {
    at: Instant,
    /// Since then, and not told.
    kept_back: u64,
}

impl Denials {
    /// Counts a denial; logs and audits it unless that was done for the same a moment ago. Without `store` there is no
    /// audit log yet.
    pub async fn tell(&self, store: Option<&Store>, denial: Denial<'_>) {
        let Denial { peer, who, rpc, failure } = denial;
        let total = self.count(rpc, failure.code);
        let Some(kept_back) = self.is_due((peer.cloned(), rpc, failure.code)) else { return };
        warn!(
            event = "rpc.denied",
            details.caller = who,
            details.rpc = rpc,
            details.total = total,
            details.kept_back = kept_back,
            error = telemetry::failure(failure),
            "denied"
        );
        let Some(store) = store else { return };
        let detail = json!({
            "caller": who, "certificate": peer.map(PeerId::uri), "rpc": rpc,
            "code": failure.code, "reason": failure.message, "total": total, "kept_back": kept_back,
        });
        let actor = Actor::agent(&store.owner().node);
        if let Err(error) = audit::append(store, &actor, "rpc.denied", who, None, &detail).await {
            warn!(reason = %error, "a denial could not be audited");
        }
    }

    /// How often each call was denied for each reason since the agent started.
    pub fn counts(&self) -> BTreeMap<(&'static str, Code), u64> {
        self.counts.iter().map(|count| (*count.key(), *count.value())).collect()
    }

    fn count(&self, rpc: &'static str, code: Code) -> u64 {
        let mut count = self.counts.entry((rpc, code)).or_default();
        *count += 1;
        *count
    }

    /// How many of the same were kept back since the last one told, where it is time to tell one.
    fn is_due(&self, key: Key) -> Option<u64> {
        if self.told.len() >= TOLD_APART {
            self.told.retain(|_, told| told.at.elapsed() < ONE_IN);
        }
        let Some(mut told) = self.told.get_mut(&key) else {
            // Beyond the bound they are counted only.
            let fits = self.told.len() < TOLD_APART;
            if fits {
                self.told.insert(key, Told { at: Instant::now(), kept_back: 0 });
            }
            return fits.then_some(0);
        };
        if told.at.elapsed() < ONE_IN {
            told.kept_back += 1;
            return None;
        }
        told.at = Instant::now();
        Some(std::mem::take(&mut told.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_denial_is_told_once_in_a_while_and_always_counted() {
        let denials = Denials::default();
        let key = |node: &str| {
            let peer = PeerId::from_uri(&format!("spiffe://m/node/{node}")).expect("an identity");
            (Some(peer), "steep.v1.Nodes/Start", Code::Denied)
        };
        for expected in [Some(0), None, None] {
            assert_eq!(denials.is_due(key("node_a")), expected);
            denials.count("steep.v1.Nodes/Start", Code::Denied);
        }
        assert_eq!(denials.is_due(key("node_b")), Some(0), "another peer's is told at once");
        tokio::time::advance(ONE_IN).await;
        assert_eq!(denials.is_due(key("node_a")), Some(2), "and then how many were not");
        assert_eq!(denials.counts()[&("steep.v1.Nodes/Start", Code::Denied)], 3);
        for number in 0..2 * TOLD_APART {
            denials.is_due(key(&format!("n{number}")));
        }
        assert!(denials.told.len() <= TOLD_APART);
    }
}
