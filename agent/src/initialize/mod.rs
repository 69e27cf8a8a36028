//! How a node comes to be synchronized: preflight, recipe, and the source's part in it.
//!
//! [`preflight`] looks whether both nodes can do it and changes nothing; [`direct`] is the recipe, read top to
//! bottom; [`steps`] its longer steps; [`subscribe`] makes subscriptions on either end; [`start`] is the door.

pub mod direct;
pub mod findings;
pub mod preflight;
pub mod source;
pub mod start;
pub mod steps;
pub mod subscribe;

use std::sync::Arc;

use steep_protocol::ids::NodeId;

use crate::{
    cleanup::Cleanup, config::Config, mesh::Peers, operations::Operations, postgres::Database, session::Sessions,
    store::Store,
};

/// The rooms of one agent, once its PostgreSQL was reached. Clones share them.
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
}
