//! The rooms of one agent, wired together once its PostgreSQL was reached: what recipes and services work with.

use std::sync::Arc;

use steep_protocol::ids::NodeId;

use crate::{
    cleanup::Cleanup,
    config::Config,
    drift::Drift,
    link::{Links, Publisher},
    mesh::Peers,
    operations::Operations,
    postgres::{Database, subscriptions::Subscription},
    session::{Sessions, Snapshots},
    store::Store,
    troubles::Troubles,
};

/// The rooms of one agent. Clones share them.
#[derive(Debug, Clone)]
pub struct Rooms {
    /// This node.
    pub me: NodeId,
    /// The configuration.
    pub config: Arc<Config>,
    /// What the agent remembers.
    pub store: Store,
    /// The local PostgreSQL.
    pub database: Database,
    /// The other agents.
    pub peers: Peers,
    /// Side effects and their undoing.
    pub cleanup: Cleanup,
    /// What is held open for peers.
    pub sessions: Sessions,
    /// Snapshots held for backups made by hand.
    pub snapshots: Snapshots,
    /// What runs here.
    pub operations: Operations,
    /// Replication links of this node's subscriptions.
    pub links: Links,
    /// Replication links to this node's PostgreSQL.
    pub publisher: Publisher,
    /// How schemas compare.
    pub drift: Drift,
    /// What is wrong with replication, as last found.
    pub troubles: Troubles,
}

impl Rooms {
    /// Bytes of its source's WAL that a subscription of this node has not applied; none: nobody knows.
    ///
    /// The source says it best: a worker that waits for a lock does not know what it was not sent. Where the source is
    /// silent, or of an older version, the worker's own word counts.
    pub fn lag_of(&self, subscription: &Subscription) -> Option<u64> {
        let source = subscription.name.strip_prefix("steep_from_")?;
        let heard = self.peers.headlines().into_iter().find(|peer| peer.node_id == source && peer.health != "unknown");
        let followers = heard.map(|peer| peer.followers).unwrap_or_default();
        let told = followers.iter().find(|follower| follower.node_id == self.me.as_str());
        let told = told.map(|follower| follower.lag_bytes);
        told.max(subscription.lag_bytes())
    }
}
