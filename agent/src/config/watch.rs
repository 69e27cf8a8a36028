//! `[watch]`, `[budget]` and `[cleanup]`: when a node counts as diverged, what others may cost it, and how often it looks.

use std::time::Duration;

use serde::Deserialize;

use super::quantity::{duration, some_size};

/// `[watch]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// Bytes of a source's WAL this node may be behind. Default: any.
    #[serde(deserialize_with = "some_size")]
    pub lag_limit: Option<u64>,
    /// For how long it may be further behind before it is DIVERGED.
    #[serde(deserialize_with = "duration")]
    pub lag_for: Duration,
    /// For how long tables that replicate here may differ before it is.
    #[serde(deserialize_with = "duration")]
    pub drift_for: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self { lag_limit: None, lag_for: Duration::from_secs(300), drift_for: Duration::from_secs(30) }
    }
}

/// `[cleanup]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cleanup {
    /// So often the agent looks for what has expired, and for what nobody needs any more. At least a second.
    #[serde(deserialize_with = "duration")]
    pub every: Duration,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self { every: Duration::from_secs(60) }
    }
}

/// `[budget]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// WAL that a slot of ours may keep back. Default: any.
    #[serde(deserialize_with = "some_size")]
    pub retained_wal: Option<u64>,
    /// Free space that slots of ours must leave where pg_wal is. Default: none.
    #[serde(deserialize_with = "some_size")]
    pub disk_free: Option<u64>,
    /// Transactions since the oldest row version that slots and snapshots of ours may keep. Default: any.
    pub xmin_age: Option<u64>,
    /// What is done about a slot of ours when a budget is nearly spent.
    pub on_exceeded: OnExceeded,
}

/// `budget.on_exceeded`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExceeded {
    /// It is told.
    #[default]
    Warn,
    /// It is told, and the slot that costs most is dropped: the node that reads it has to be initialized again.
    DropSlot,
}
