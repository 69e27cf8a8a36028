//! What a node can be: the eight states of its life.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where a node is in its life. Which moves are legal is the agent's `lifecycle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Steep has not initialized it, or its initialization was cancelled.
    Uninitialized,
    /// Checks, slot, snapshot and schema are being made.
    Preparing,
    /// Rows are being copied.
    Copying,
    /// The copy is complete; what changed meanwhile is being applied.
    CatchingUp,
    /// It holds all data and replicates.
    Synchronized,
    /// It replicated once; now replication to it has stopped or brings what does not fit.
    Diverged,
    /// An operation failed; the cause is recorded with it.
    Failed,
    /// Some or all of its tables are being copied again.
    Reinitializing,
}

impl NodeState {
    /// All states, in the order of a node's life.
    pub const ALL: [Self; 8] = [
        Self::Uninitialized,
        Self::Preparing,
        Self::Copying,
        Self::CatchingUp,
        Self::Synchronized,
        Self::Diverged,
        Self::Failed,
        Self::Reinitializing,
    ];

    /// The word for it in SQL, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uninitialized => "uninitialized",
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::CatchingUp => "catching_up",
            Self::Synchronized => "synchronized",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
            Self::Reinitializing => "reinitializing",
        }
    }

    /// An operation is at work on the node.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Preparing | Self::Copying | Self::CatchingUp | Self::Reinitializing)
    }
}

/// A text that is no node state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no node state")]
pub struct BadNodeState(String);

impl FromStr for NodeState {
    type Err = BadNodeState;
    fn from_str(text: &str) -> Result<Self, BadNodeState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| BadNodeState(text.to_owned()))
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
