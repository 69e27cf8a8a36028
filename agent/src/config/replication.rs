//! `[replication]`: how the nodes' PostgreSQL servers reach each other.

use std::path::PathBuf;

use serde::Deserialize;

/// `[replication]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Replication {
    /// Connection string by which the *other* nodes' PostgreSQL servers reach this node's. Never a password:
    /// it is stored in the other database's catalog. Default: host, port and user of `[postgres]`. Used with
    /// [`LinkMode::Direct`].
    pub conninfo: Option<String>,
    /// How the *other* nodes' PostgreSQL servers reach this node's.
    pub link: LinkMode,
    /// Where the sockets of this node's own links lie. Default: `link` in `node.state_dir`.
    pub socket_dir: Option<PathBuf>,
    /// What this node's PostgreSQL adds when it reaches others directly: certificates, a passfile.
    pub local_conninfo: Option<String>,
}

/// `replication.link`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkMode {
    /// Through the agents.
    #[default]
    Mesh,
    /// PostgreSQL to PostgreSQL.
    Direct,
}

impl LinkMode {
    /// The word for it between agents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Direct => "direct",
        }
    }

    /// What another agent means; one that says nothing knows the direct way only.
    pub fn told(text: &str) -> Option<Self> {
        match text {
            "mesh" => Some(Self::Mesh),
            "direct" | "" => Some(Self::Direct),
            _ => None,
        }
    }
}
