//! Notices by itself when tables that replicate between two nodes no longer fit.
//!
//! Every few seconds this node's schema is captured; its digest rides on the node's headline. Where another node's digest
//! is not the same, what has changed there is fetched and the tables that replicate between the two are compared. Both
//! ends look, so that one of them says so while the other is down.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::NodeId,
    names::TableName,
    node::NodeState,
    v1,
};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::Drift;
use crate::{
    metrics::Metrics,
    postgres::{self, Purpose, Session, publications, selection::Selection, slots, subscriptions},
    schema::compare::{Comparison, Verdict},
    store::nodes,
    telemetry,
};

/// Between two looks, at least and at most: half a minute after a DDL somebody must have said so.
const PAUSE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(15));
/// A look takes at most one part in so many of the time.
const SHARE: u32 = 20;
/// How much of a digest a headline carries.
pub const DIGITS: usize = 16;
/// Differences of one table told in one event.
const MOST_TOLD: usize = 20;

/// Who replicates with this node, and what.
#[derive(Debug, Default)]
struct Relations {
    peers: Vec<NodeId>,
    tables: Vec<TableName>,
}

/// What the last comparison with a node was made of: while it is the same, so is the outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Basis {
    own: String,
    theirs: String,
    tables: Vec<TableName>,
}

/// Looks for ever.
pub async fn keep(drift: &Drift, metrics: &Metrics) {
    let mut watcher = Watcher { drift, metrics, look: None, compared: BTreeMap::new(), told: BTreeMap::new() };
    let mut trouble = String::new();
    loop {
        let began = Instant::now();
        let now = match watcher.round().await {
            Ok(()) => String::new(),
            Err(failure) => {
                watcher.look = None;
                if failure.message != trouble {
                    warn!(
                        event = "check.schema_unread",
                        error = telemetry::failure(&failure),
                        "schemas could not be compared"
                    );
                }
                failure.message
            }
        };
        trouble = now;
        sleep((began.elapsed() * SHARE).clamp(PAUSE.0, PAUSE.1)).await;
    }
}

struct Watcher<'a> {
    drift: &'a Drift,
    metrics: &'a Metrics,
    look: Option<Session>,
    compared: BTreeMap<NodeId, Basis>,
    /// What was last said of each table, by node.
    told: BTreeMap<NodeId, BTreeMap<TableName, Vec<String>>>,
}

impl Watcher<'_> {
    async fn round(&mut self) -> Result<(), Failure> {
        let captured = self.drift.capture().await?;
        self.metrics.schema_captured.of([]).set(seconds_since_1970());
        let relations = self.relations().await?;
        self.forget_others(&relations.peers);
        // Tables of a node that is being made differ until they are done; who makes it looks for itself.
        let own = nodes::own(self.drift.store()).await.map_err(|error| error.explain())?;
        for peer in relations.peers.iter().filter(|_| !own.init_state.is_active()) {
            let heard = self.drift.peers().headlines().into_iter().find(|row| row.node_id == peer.as_str());
            let is_being_made = |row: &v1::NodeHeadline| row.state.parse().is_ok_and(NodeState::is_active);
            if heard.as_ref().is_some_and(is_being_made) {
                continue;
            }
            let theirs = heard.map(|row| row.schema_digest).unwrap_or_default();
            let basis = Basis { own: captured.digest.clone(), theirs, tables: relations.tables.clone() };
            // Nothing is known of a peer that was never heard; what it has heard of itself comes with its headline.
            if basis.theirs.is_empty() || self.compared.get(peer) == Some(&basis) {
                continue;
            }
            match self.compare(peer, &basis).await {
                Ok(()) => drop(self.compared.insert(peer.clone(), basis)),
                // It has just gone, or is about to tell another digest: the next round asks again.
                Err(failure) if failure.retryable => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    async fn relations(&mut self) -> Result<Relations, Failure> {
        let explain = |error: postgres::Error| error.explain();
        let session = match &mut self.look {
            Some(session) if !session.is_closed() => session,
            look => look.insert(self.drift.store().database().session(Purpose::Watch).await.map_err(explain)?),
        };
        let slots = slots::list(session).await.map_err(explain)?;
        let sources: BTreeSet<String> =
            subscriptions::list(session).await.map_err(explain)?.into_iter().map(|found| found.name).collect();
        let tables = publications::replicated_tables(session).await.map_err(explain)?;
        let is_related = |peer: &NodeId| {
            sources.contains(&format!("steep_from_{}", peer.sanitized()))
                || slots.iter().any(|slot| slot.is_kept_for(peer))
        };
        Ok(Relations { peers: self.drift.peers().names().filter(is_related).collect(), tables })
    }

    async fn compare(&mut self, peer: &NodeId, basis: &Basis) -> Result<(), Failure> {
        if basis.own.starts_with(&basis.theirs) || basis.tables.is_empty() {
            self.conclude(peer, BTreeMap::new());
            self.count(peer, &Comparison::default());
            return Ok(());
        }
        let chosen = Selection { tables: basis.tables.clone(), ..Selection::default() };
        let mut pair = self.drift.pair(peer, &chosen, false).await?;
        let comparison = pair.compare(self.drift).await?;
        let mut found = BTreeMap::new();
        for (table, compared) in comparison.tables.iter().filter(|(_, compared)| compared.is_blocking()) {
            let (here, there) = (self.drift.me().as_str(), peer.as_str());
            let words = match compared.verdict {
                Verdict::LocalOnly => vec![format!("missing on {there}")],
                Verdict::RemoteOnly => vec![format!("missing on {here}")],
                _ => compared.differences.iter().take(MOST_TOLD).map(|one| one.summary(here, there)).collect(),
            };
            found.insert(table.clone(), words);
        }
        self.count(peer, &comparison);
        self.conclude(peer, found);
        Ok(())
    }

    /// Says what is new, and what is over.
    fn conclude(&mut self, peer: &NodeId, found: BTreeMap<TableName, Vec<String>>) {
        let before = self.told.remove(peer).unwrap_or_default();
        for (table, differences) in found.iter().filter(|(table, words)| before.get(*table) != Some(*words)) {
            warn!(
                event = "schema.mismatch_detected", %table, source_node = %peer,
                details.differences = differences.join("; "), "a replicated table is not the same on two nodes"
            );
        }
        for table in before.keys().filter(|table| !found.contains_key(*table)) {
            info!(event = "check.schema_matches", %table, details.peer = %peer, "a replicated table fits again");
        }
        let misfits: Vec<_> = found.keys().cloned().collect();
        self.drift.notice(|noticed| {
            if misfits.is_empty() {
                noticed.misfits.remove(peer);
            } else {
                noticed.misfits.insert(peer.clone(), misfits);
            }
        });
        if !found.is_empty() {
            self.told.insert(peer.clone(), found);
        }
    }

    fn count(&self, peer: &NodeId, comparison: &Comparison) {
        for verdict in [Verdict::Match, Verdict::Mismatch, Verdict::LocalOnly, Verdict::RemoteOnly] {
            let status = verdict.as_str().to_lowercase();
            self.metrics.schema_tables.of([peer.as_str(), &status]).set(comparison.count(verdict) as f64);
        }
        self.metrics.schema_compared.of([peer.as_str()]).set(seconds_since_1970());
    }

    /// Nodes that no longer replicate with this one are nobody's trouble.
    fn forget_others(&mut self, peers: &[NodeId]) {
        let gone: Vec<NodeId> = self.compared.keys().filter(|peer| !peers.contains(peer)).cloned().collect();
        for peer in gone {
            self.compared.remove(&peer);
            self.conclude(&peer, BTreeMap::new());
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of this century fit")]
fn seconds_since_1970() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1e3
}
