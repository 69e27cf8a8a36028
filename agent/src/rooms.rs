//! The rooms of one agent, wired together once its PostgreSQL was reached: what recipes and services work with.

use std::sync::Arc;

use steep_protocol::ids::NodeId;

use crate::{
    cleanup::Cleanup,
    config::Config,
    link::{Links, Publisher},
    mesh::Peers,
    operations::Operations,
    postgres::Database,
    session::Sessions,
    store::Store,
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
    /// What runs here.
    pub operations: Operations,
    /// Replication links of this node's subscriptions.
    pub links: Links,
    /// Replication links to this node's PostgreSQL.
    pub publisher: Publisher,
}
