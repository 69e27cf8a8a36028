//! What can go wrong with the agent's memory.

use std::fmt;

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain, Failure},
    ids::{NodeId, OperationId},
    operation::OperationStatus,
};

use super::identity::{Identity, Owner};
use crate::{
    lifecycle::IllegalMove,
    postgres::{self, error::Cause},
};

/// Why something could not be remembered or recalled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL could not be asked, or said no.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// The server is a standby: nothing can be written there.
    #[error("database {database} is on a standby, where the agent cannot keep its memory")]
    Standby {
        /// The database.
        database: String,
    },
    /// The schema has migrations this agent has never heard of.
    #[error("schema steep_repl of database {database} is at version {found}, this agent knows versions up to {known}")]
    TooNew {
        /// The database.
        database: String,
        /// The newest migration applied.
        found: i32,
        /// The newest this agent has.
        known: i32,
    },
    /// A migration was applied whose text is not this agent's.
    #[error("migration {version} ({name}) of schema steep_repl in database {database} is not the one this agent has")]
    OtherHistory {
        /// The database.
        database: String,
        /// Its number.
        version: i32,
        /// Its name.
        name: String,
    },
    /// The database belongs to another node or mesh.
    #[error("database {database} belongs to {owner}, not to {us}")]
    Foreign {
        /// The database.
        database: String,
        /// The node it belongs to, and that node's mesh.
        owner: String,
        /// Who we are.
        us: Owner,
    },
    /// The memory of this node was found in another database than the one it was written in.
    #[error("the memory of {node} was written in {recorded}, but this is {found}")]
    Moved {
        /// Who we are.
        node: NodeId,
        /// Where it was written.
        recorded: Identity,
        /// Where it was found.
        found: Identity,
    },
    /// Another agent is at work on the database.
    #[error("another agent serves the database of {node}: {holder}")]
    Taken {
        /// Who we are.
        node: NodeId,
        /// The other one.
        holder: Box<Holder>,
        /// This agent held the database before its connection was lost: then the other one may be nobody but
        /// that connection, which the server has not missed yet.
        held_before: bool,
    },
    /// An operation keeps the target busy.
    #[error("operation {op_id} ({kind}) already runs on {target}")]
    AlreadyRunning {
        /// That operation.
        op_id: OperationId,
        /// What it does.
        kind: String,
        /// The node.
        target: NodeId,
    },
    /// The id was used for something else before.
    #[error("operation {op_id} was begun before, with another request")]
    IdReused {
        /// The id.
        op_id: OperationId,
    },
    /// The node's state does not allow it.
    #[error(transparent)]
    IllegalMove(#[from] IllegalMove),
    /// The operation's status does not allow it.
    #[error("operation {op_id} cannot become {to}")]
    IllegalStatus {
        /// The operation.
        op_id: OperationId,
        /// What it was to become.
        to: OperationStatus,
        /// The database's own words.
        #[source]
        source: Box<postgres::Error>,
    },
    /// Nobody has heard of the operation.
    #[error("no operation {0} is known")]
    UnknownOperation(String),
    /// More than one operation fits.
    #[error("{} operations begin with {prefix}: {}", fitting.len(), list(fitting))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// Some of those that fit.
        fitting: Vec<OperationId>,
    },
    /// A row that must be there is not.
    #[error("{0} is not in schema steep_repl")]
    Missing(String),
    /// A value this version cannot make sense of.
    #[error("cannot read {what} in schema steep_repl")]
    Unreadable {
        /// Which.
        what: String,
        /// Why not.
        #[source]
        source: Cause,
    },
}

impl Error {
    /// The connection is gone or never came to be; a later try may succeed.
    pub fn is_connection_loss(&self) -> bool {
        matches!(self, Self::Postgres(error) if error.is_connection_loss())
    }
}

fn list(operations: &[OperationId]) -> String {
    operations.iter().map(OperationId::to_string).collect::<Vec<_>>().join(", ")
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            // Nobody cancelled an operation by it: an administrator ended a statement of ours.
            Self::Postgres(error) if error.is_cancelled() => Code::StoreFailed,
            Self::Postgres(error) => error.code(),
            Self::Standby { .. } => Code::InRecovery,
            Self::TooNew { .. } => Code::StoreTooNew,
            Self::OtherHistory { .. } | Self::Missing(_) | Self::Unreadable { .. } => Code::StoreFailed,
            Self::Foreign { .. } | Self::Moved { .. } => Code::ForeignDatabase,
            Self::Taken { .. } => Code::NodeIdTaken,
            Self::AlreadyRunning { .. } => Code::OperationRunning,
            Self::IdReused { .. } => Code::BadRequest,
            Self::IllegalMove(error) => error.code(),
            Self::IllegalStatus { .. } => Code::IllegalState,
            Self::UnknownOperation(_) => Code::OperationUnknown,
            Self::Ambiguous { .. } => Code::AmbiguousOperation,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::Postgres(error) if error.sqlstate() == Some("42501") => Some(
                "schema steep_repl must belong to the agent's role: grant create on database DATABASE to ROLE; \
                 or create schema steep_repl authorization ROLE"
                    .to_owned(),
            ),
            Self::Postgres(error) => error.better_hint(),
            Self::OtherHistory { .. } => {
                Some("run the agent that made the schema, or one released after it".to_owned())
            }
            Self::Moved { recorded, found, .. } => Some(moved_hint(recorded, found)),
            Self::Foreign { .. } => Some(
                "a copy of a server that was prepared: steep-agent adopt-copy --config FILE --prepare-id ID; else point this agent \
                 at its own database; to give the database up: drop schema steep_repl cascade"
                    .to_owned(),
            ),
            Self::Taken { holder, .. } => {
                Some(format!("stop that agent; if none runs: select pg_terminate_backend({})", holder.pid))
            }
            Self::AlreadyRunning { op_id, target, .. } => {
                Some(format!("steepctl op watch {op_id} follows it; steepctl node cancel {target} stops it"))
            }
            Self::IdReused { .. } => Some("ask with a new operation id".to_owned()),
            Self::IllegalStatus { op_id, .. } => Some(format!("steepctl op show {op_id} says how it is")),
            Self::Missing(_) | Self::Unreadable { .. } => {
                Some("was schema steep_repl changed by hand, or by a newer agent? restart the agent".to_owned())
            }
            Self::Standby { .. }
            | Self::TooNew { .. }
            | Self::IllegalMove(_)
            | Self::UnknownOperation(_)
            | Self::Ambiguous { .. } => None,
        }
    }

    fn explain(&self) -> Failure {
        let mut failure = match self {
            Self::Postgres(error) => error.explain(),
            Self::IllegalStatus { source, .. } => {
                let mut failure = Failure::new(self.code(), self.to_string());
                failure.causes.extend(source.refusal().map(|refusal| refusal.message.clone()));
                failure
            }
            _ => {
                let failure = Failure::new(self.code(), self.to_string());
                match std::error::Error::source(self) {
                    Some(source) => failure.caused_by(source),
                    None => failure,
                }
            }
        };
        failure.code = self.code();
        failure.retryable = match self {
            Self::Postgres(error) => error.is_retryable(),
            Self::Taken { held_before, .. } => *held_before,
            Self::OtherHistory { .. } | Self::Missing(_) | Self::Unreadable { .. } => false,
            _ => self.code().is_retryable(),
        };
        failure.hint = self.better_hint().unwrap_or_else(|| self.code().hint().to_owned());
        failure
    }
}

fn moved_hint(recorded: &Identity, found: &Identity) -> String {
    let adopt = format!(
        "update steep_repl.identity set system_identifier = '{}', database = current_database()",
        found.system_identifier
    );
    if recorded.system_identifier == found.system_identifier {
        format!("a clone needs a node id of its own: drop schema steep_repl cascade; a database only renamed: {adopt}")
    } else {
        format!("a restored copy needs a node id of its own: drop schema steep_repl cascade; after pg_upgrade: {adopt}")
    }
}

/// The session of another agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its server process.
    pub pid: i32,
    /// Its `application_name`; empty: not ours to see.
    pub application_name: String,
    /// The address it comes from.
    pub client: String,
    /// Its role.
    pub user_name: String,
    /// Since when; none: not ours to see.
    pub since: Option<Timestamp>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if !self.application_name.is_empty() {
            let application = steep_protocol::names::escape_controls(&self.application_name);
            write!(f, " ({application} of role {} from {}", self.user_name, self.client)?;
            if let Some(since) = self.since {
                write!(f, ", since {since:.0}")?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(system_identifier: u64, database: &str) -> Identity {
        Identity { system_identifier, database: database.to_owned() }
    }

    #[test]
    fn an_unreachable_database_may_be_asked_again() {
        let source = "connection refused".into();
        let error = Error::from(postgres::Error::Unreachable { address: "/run:5432".to_owned(), source });
        let failure = error.explain();
        assert!(error.is_connection_loss() && failure.retryable, "{failure:?}");
        assert_eq!(failure.code, Code::PostgresUnreachable);
    }

    #[test]
    fn a_busy_target_is_told_with_the_command_that_follows_what_runs_there() {
        let op_id = OperationId::generate();
        let target = "node_b".parse().expect("a name");
        let failure = Error::AlreadyRunning { op_id, kind: "init".to_owned(), target }.explain();
        assert_eq!(failure.code, Code::OperationRunning);
        assert!(failure.message.contains(&op_id.to_string()) && failure.message.contains("node_b"), "{failure:?}");
        assert!(failure.hint.contains(&format!("steepctl op watch {op_id}")), "{failure:?}");
        assert!(!failure.retryable);
    }

    #[test]
    fn a_clone_and_a_restored_copy_are_told_apart_in_the_hint() {
        let node: NodeId = "node_a".parse().expect("a name");
        let hint = |recorded, found| Error::Moved { node: node.clone(), recorded, found }.explain().hint;
        let cloned = hint(identity(7, "shop"), identity(7, "shop_copy"));
        assert!(cloned.contains("renamed") && cloned.contains("system_identifier = '7'"), "{cloned}");
        let restored = hint(identity(7, "shop"), identity(8, "shop"));
        assert!(restored.contains("pg_upgrade") && restored.contains("system_identifier = '8'"), "{restored}");
    }

    #[test]
    fn a_statement_ended_by_an_administrator_does_not_count_as_a_cancelled_operation() {
        let error = Error::from(postgres::Error::Cancelled { doing: "store an event".to_owned() });
        assert_eq!(error.code(), Code::StoreFailed);
    }

    #[test]
    fn another_agents_session_is_named_with_all_that_helps_to_find_it() {
        let holder = Holder {
            pid: 41,
            application_name: "steep-control".to_owned(),
            client: "10.0.0.7".to_owned(),
            user_name: "steep_agent".to_owned(),
            since: Some(Timestamp::UNIX_EPOCH),
        };
        let expected = "process 41 (steep-control of role steep_agent from 10.0.0.7, since 1970-01-01T00:00:00Z)";
        assert_eq!(holder.to_string(), expected);
        let hidden = Holder { application_name: String::new(), ..holder };
        assert_eq!(hidden.to_string(), "process 41");
    }
}
