//! What an operation can be: its status, its phases, and how an initialization copies.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it in SQL, logs and JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl FromStr for $name {
            type Err = BadWord;
            fn from_str(text: &str) -> Result<Self, BadWord> {
                Self::ALL.iter().copied().find(|w| w.as_str() == text)
                    .ok_or_else(|| BadWord {
                        word: text.to_owned(),
                        known: Self::ALL.iter().map(|w| w.as_str()).collect(),
                    })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// A text that is none of the words expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is none of {}", known.join(", "))]
pub struct BadWord {
    word: String,
    known: Vec<&'static str>,
}

words! {
    /// How an operation fares.
    OperationStatus {
        /// Its agent is at work on it.
        Running = "running",
        /// It was told to stop and is cleaning up.
        Cancelling = "cancelling",
        /// It reached its goal.
        Completed = "completed",
        /// It gave up; the failure says why. What it had made was undone.
        Failed = "failed",
        /// It was told to stop; what it had made was undone.
        Cancelled = "cancelled",
        /// Its agent ended before it did.
        Interrupted = "interrupted",
    }
}

impl InitMethod {
    /// Those that `node start` can be asked for; the others begin with commands of their own.
    pub fn of_start() -> impl Iterator<Item = Self> {
        let has_own = |method: &Self| matches!(method, Self::Manual | Self::TwoPhase | Self::RowsAlone);
        Self::ALL.iter().copied().filter(move |method| !has_own(method))
    }
}

impl OperationStatus {
    /// Nothing more will happen to it.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

words! {
    /// What an initialization is busy with; the words of the log event schema.
    Phase {
        /// Looking whether both nodes can do it.
        Preflight = "preflight",
        /// Locks, slot and exported snapshot on the source.
        Snapshot = "snapshot",
        /// Tables made on the target.
        Schema = "schema",
        /// Rows copied.
        Copy = "copy",
        /// Indexes, constraints, triggers.
        Indexes = "indexes",
        /// Sequences moved ahead.
        Sequences = "sequences",
        /// What changed meanwhile applied.
        CatchingUp = "catching_up",
        /// Counts compared.
        Verify = "verify",
    }
}

words! {
    /// How a node is initialized.
    InitMethod {
        /// Steep picks, and says which and why.
        Auto = "auto",
        /// PostgreSQL's own first copy: the subscription copies each table by itself.
        Snapshot = "snapshot",
        /// The agents stream the snapshot in parallel.
        Direct = "direct",
        /// From a backup made by hand.
        Manual = "manual",
        /// From a snapshot in files, made before.
        TwoPhase = "two-phase",
        /// The rows of such a snapshot alone: nothing is replicated.
        RowsAlone = "rows-alone",
    }
}

words! {
    /// What an operator's certificate allows.
    Role {
        /// May look.
        Viewer = "viewer",
        /// May run operations.
        Operator = "operator",
        /// May do everything.
        Admin = "admin",
    }
}

words! {
    /// What an initialization does about tables that differ between its two nodes.
    SchemaSync {
        /// Refuses.
        Strict = "strict",
        /// Brings the target's tables up to date first, as far as adding can.
        Auto = "auto",
    }
}

words! {
    /// What an operator can order by a signed intent.
    Action {
        /// Check two nodes and plan; change nothing.
        NodePlan = "node.plan",
        /// Initialize a node from another.
        NodeStart = "node.start",
        /// Check whether tables of a node can be copied again; change nothing.
        NodePlanReinit = "node.plan_reinit",
        /// Copy tables of a node again.
        NodeReinit = "node.reinit",
        /// Cancel what runs on a node.
        NodeCancel = "node.cancel",
        /// Take a node out of replication.
        NodeRemove = "node.remove",
        /// Cancel one operation.
        OperationCancel = "operation.cancel",
        /// Have an agent read its files again.
        AgentReload = "agent.reload",
        /// Have an agent take no new work.
        AgentDrain = "agent.drain",
        /// Have it take work again.
        AgentUndrain = "agent.undrain",
        /// Set how much an agent logs.
        AgentLogLevel = "agent.log_level",
        /// Have an agent say goodbye to the mesh.
        MeshLeave = "mesh.leave",
        /// Bring a node's schema up to date with another's.
        SchemaSync = "schema.sync",
        /// Prepare a node for a backup made by hand.
        NodePrepare = "node.prepare",
        /// Change what a node is prepared for, or take it back.
        NodeChangePrepared = "node.change_prepared",
        /// Make a node replicate that was restored from a backup made by hand.
        NodeComplete = "node.complete",
        /// Drop a replication slot of a node.
        SlotDrop = "slot.drop",
        /// Move a node's sequences ahead of another's.
        SequenceSync = "seq.sync",
        /// Write a snapshot of a node into files.
        SnapshotGenerate = "snapshot.generate",
        /// Initialize a node from a snapshot in files.
        SnapshotApply = "snapshot.apply",
        /// Drop a snapshot's slot and files.
        SnapshotDelete = "snapshot.delete",
    }
}

impl Action {
    /// The least role that may order it.
    pub fn role(self) -> Role {
        match self {
            Self::NodePlan
            | Self::NodeStart
            | Self::NodePlanReinit
            | Self::NodeReinit
            | Self::NodeCancel
            | Self::NodeRemove
            | Self::OperationCancel
            | Self::AgentDrain
            | Self::AgentUndrain
            | Self::AgentLogLevel
            | Self::MeshLeave
            | Self::NodePrepare
            | Self::NodeChangePrepared
            | Self::NodeComplete
            | Self::SlotDrop
            | Self::SequenceSync
            | Self::SnapshotGenerate
            | Self::SnapshotApply
            // A node's configuration may ask for more.
            | Self::SchemaSync => Role::Operator,
            Self::AgentReload | Self::SnapshotDelete => Role::Admin,
        }
    }
}
