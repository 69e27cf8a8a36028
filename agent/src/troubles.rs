//! What keeps this node from replicating, and what it keeps for others from being of use: as last found.
//!
//! Found by the watcher ([`crate::health`]), told by whoever is asked how the node fares.

use std::{collections::BTreeMap, sync::Arc};

use steep_protocol::{failure::Failure, v1::FollowedSlot};
use tokio::sync::watch;

/// What was found last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// What keeps this node from replicating, worst first; none: nobody has looked yet.
    pub own: Option<Vec<Failure>>,
    /// What is wrong with slots that this node keeps for others.
    pub kept: Vec<Failure>,
    /// What Steep's slots cost this server nearly more than they may.
    pub budgets: Vec<Failure>,
    /// How every slot fares that was made here for another node; none: PostgreSQL was not asked, or did not answer.
    pub told: Option<ToldSlots>,
}

/// What is told to those who read slots of this node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToldSlots {
    /// Which run of this agent and of its PostgreSQL.
    pub run: String,
    /// How often this run has looked.
    pub look: u64,
    /// Each slot by its name.
    pub slots: BTreeMap<String, FollowedSlot>,
    /// The node each is, or was, kept for, where that is written down: a slot that was prepared is not named for a node.
    pub kept_for: BTreeMap<String, String>,
}

/// The last findings. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Troubles {
    found: Arc<watch::Sender<Found>>,
}

impl Troubles {
    /// What was found last.
    pub fn found(&self) -> Found {
        self.found.borrow().clone()
    }

    /// Takes over what was found now.
    pub fn find(&self, change: impl FnOnce(&mut Found)) {
        self.found.send_modify(change);
    }
}
