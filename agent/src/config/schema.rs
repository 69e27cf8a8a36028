//! `[schema]`: who may see and change how this node's tables look.

use serde::Deserialize;
use steep_protocol::operation::Role;

/// `[schema]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schema {
    /// The least role that may have DDL run here by `schema sync`.
    pub sync_role: Role,
    /// Whether other nodes' agents are told.
    pub share: Share,
}

impl Default for Schema {
    fn default() -> Self {
        Self { sync_role: Role::Admin, share: Share::All }
    }
}

/// `schema.share`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Of every table: names, columns, constraints, no rows.
    #[default]
    All,
    /// Nothing: drift is not noticed, and nothing can be compared with this node.
    None,
}
