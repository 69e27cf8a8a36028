//! What can go wrong when a schema is brought up to date.

use steep_protocol::{
    failure::{Code, Explain, Failure},
    ids::NodeId,
    names::escape_controls,
};

use crate::{postgres, schema::BadDocument, store};

/// Why a plan was not applied, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// PostgreSQL could not be asked, or said no to a question.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// It could not be written down.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A document cannot be read.
    #[error("cannot read how a schema looks")]
    Unreadable(#[from] BadDocument),
    /// The role cannot see every table.
    #[error("the agent's role may not read {}", catalogs.join(", "))]
    Unseen {
        /// What it may not read.
        catalogs: Vec<String>,
    },
    /// Another sync holds the lock.
    #[error("another schema sync runs on {node}")]
    Running {
        /// The node.
        node: NodeId,
    },
    /// The target is not what the plan was made for.
    #[error("the schema of {node} changed since the plan was made; nothing was changed")]
    Stale {
        /// The node.
        node: NodeId,
    },
    /// A statement failed in the trial.
    #[error("a trial of the plan failed to {step}; {}", kept(*applied))]
    TrialFailed {
        /// Which.
        step: String,
        /// How many statements had been applied for good.
        applied: usize,
        /// What PostgreSQL said.
        #[source]
        source: postgres::Error,
    },
    /// The statements do something else than the plan says.
    #[error("a trial of the plan did not give what was planned: {what}; {}", kept(*applied))]
    TrialDiffers {
        /// What differs: "table public.orders: default of total differs".
        what: String,
        /// How many statements had been applied for good.
        applied: usize,
    },
    /// Somebody holds a lock.
    #[error("waited {tries} times for a lock to {step}; {}", kept(*applied))]
    Locked {
        /// What was tried.
        step: String,
        /// How often.
        tries: u32,
        /// How many statements had been applied for good.
        applied: usize,
        /// What PostgreSQL said.
        #[source]
        source: postgres::Error,
    },
    /// A statement failed for good.
    #[error("failed to {step}: {applied} of {planned} statements are applied")]
    Stopped {
        /// Which.
        step: String,
        /// How many before it are applied.
        applied: usize,
        /// How many there are.
        planned: usize,
        /// The statements that are not applied, safe to print; the failed one first.
        left: Vec<String>,
        /// What was taken back: constraints that are not proven, indexes that are not valid. Safe to print.
        removed: Vec<String>,
        /// `steepctl schema plan …`.
        next: String,
        /// What happened.
        #[source]
        source: Box<Error>,
    },
    /// Everything was applied, and the result is not what was planned.
    #[error("all statements are applied, and the target is not what was planned: {what}")]
    Unsettled {
        /// What differs.
        what: String,
    },
}

fn kept(applied: usize) -> String {
    match applied {
        0 => "nothing was changed".to_owned(),
        some => format!("{some} statements that only add labels were applied before"),
    }
}

impl Error {
    /// Somebody held a lock for longer than we wait.
    pub(super) fn is_lock_timeout(&self) -> bool {
        matches!(self, Self::Postgres(error) | Self::TrialFailed { source: error, .. } if error.sqlstate() == Some("55P03"))
    }
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Postgres(_) if self.is_lock_timeout() => Code::SchemaLocked,
            Self::Postgres(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Unreadable(_) => Code::SchemaUnreadable,
            Self::Unseen { .. } => Code::SelectPrivilege,
            Self::Running { .. } => Code::SchemaSyncRunning,
            Self::Stale { .. } => Code::SchemaPlanStale,
            Self::TrialFailed { .. } | Self::TrialDiffers { .. } => Code::SchemaTrialFailed,
            Self::Locked { .. } => Code::SchemaLocked,
            Self::Stopped { .. } => Code::SchemaSyncStopped,
            Self::Unsettled { .. } => Code::SchemaUnsettled,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::Postgres(error) => error.better_hint(),
            Self::Store(error) => error.better_hint(),
            Self::Unseen { catalogs } => {
                Some(format!("grant select on pg_catalog.{} to the agent's role", catalogs.join(", pg_catalog.")))
            }
            Self::Stopped { next, .. } => Some(format!("{next} shows what is left to do")),
            _ => None,
        }
    }

    fn explain(&self) -> Failure {
        let mut failure = match self {
            Self::Postgres(error) if self.is_lock_timeout() => {
                let cause = error.explain();
                let text = format!("somebody holds a lock: {}; nothing was changed", cause.message);
                let mut failure = Failure::new(Code::SchemaLocked, text);
                (failure.sqlstate, failure.causes) = (cause.sqlstate, cause.causes);
                failure
            }
            Self::Postgres(error) => error.explain(),
            Self::Store(error) => error.explain(),
            Self::TrialFailed { source, .. } | Self::Locked { source, .. } => told_by(self, source.explain()),
            Self::Stopped { left, removed, source, .. } => {
                let mut failure = told_by(self, source.explain());
                failure.causes.extend(removed.iter().map(|statement| format!("taken back: {statement};")));
                failure.causes.extend(left.iter().map(|statement| format!("not applied: {statement}")));
                failure
            }
            Self::Unreadable(bad) => Failure::new(self.code(), self.to_string()).caused_by(bad),
            _ => Failure::new(self.code(), self.to_string()),
        };
        failure.retryable = match self {
            Self::Postgres(error) => error.is_retryable(),
            Self::Store(_) => failure.retryable,
            _ => self.code().is_retryable(),
        };
        failure.message = escape_controls(&failure.message);
        match self.better_hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// Our words, with what PostgreSQL said as the causes.
fn told_by(error: &Error, cause: Failure) -> Failure {
    let mut failure = Failure::new(error.code(), error.to_string());
    failure.sqlstate = cause.sqlstate;
    failure.causes = std::iter::once(cause.message).chain(cause.causes).collect();
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_stopped_says_what_is_applied_what_is_not_and_what_to_type() {
        let source = Box::new(Error::Unsettled { what: "table public.t: it differs".to_owned() });
        let stopped = Error::Stopped {
            step: "create index on public.t".to_owned(),
            applied: 2,
            planned: 4,
            left: vec!["CREATE INDEX \"i\" ON \"public\".\"t\" (a);".to_owned()],
            removed: Vec::new(),
            next: "steepctl schema plan node_a node_b".to_owned(),
            source,
        };
        let failure = stopped.explain();
        assert_eq!(failure.code, Code::SchemaSyncStopped);
        assert_eq!(failure.message, "failed to create index on public.t: 2 of 4 statements are applied");
        assert!(failure.causes.iter().any(|cause| cause.starts_with("not applied: CREATE INDEX")), "{failure:?}");
        assert!(failure.hint.contains("steepctl schema plan node_a node_b"), "{failure:?}");
    }
}
