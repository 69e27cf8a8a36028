//! What can go wrong between the agent and its PostgreSQL, in words an operator can act on.
//!
//! PostgreSQL's own words are kept: its message, detail and hint become causes, its SQLSTATE travels with the
//! failure. What a SQLSTATE means may depend on what was being tried, so every question to the server says so.

use std::{borrow::Cow, fmt, io, path::PathBuf, time::Duration};

use steep_protocol::{
    failure::{Code, Explain, Failure},
    names::{escape_controls, readable_identifier},
};

use tokio_postgres::error::{DbError, Severity};

use super::{activity::Blocker, version::Version};

/// A cause whose type matters to nobody.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why something asked of the local PostgreSQL did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers there, or the server is starting or stopping: worth another try.
    #[error("cannot reach PostgreSQL at {address}")]
    Unreachable {
        /// host:port, or the socket directory and port.
        address: String,
        /// What the network or the server said.
        #[source]
        source: Cause,
    },
    /// The server answers, but not this user on this database: trying again changes nothing.
    #[error("PostgreSQL at {address} refuses user {user} on database {dbname}")]
    Refused {
        /// host:port, or the socket directory and port.
        address: String,
        /// The user tried.
        user: String,
        /// The database tried.
        dbname: String,
        /// What the server said.
        #[source]
        source: Cause,
    },
    /// The connection ended while something was under way.
    #[error("lost the connection to PostgreSQL while trying to {doing}")]
    Lost {
        /// What was under way.
        doing: String,
        /// How it ended.
        #[source]
        source: Cause,
    },
    /// PostgreSQL said no.
    #[error("cannot {doing}")]
    Denied {
        /// What was tried.
        doing: String,
        /// What it means here.
        code: Code,
        /// PostgreSQL's own words.
        #[source]
        source: Box<Refusal>,
    },
    /// The answer is not what this version of the agent can read.
    #[error("cannot {doing}: the answer cannot be read")]
    Unreadable {
        /// What was tried.
        doing: String,
        /// Where it failed.
        #[source]
        source: Cause,
    },
    /// The snapshot to be imported is gone, or too old to read.
    #[error("snapshot {snapshot} is gone")]
    SnapshotLost {
        /// Its name.
        snapshot: String,
        /// PostgreSQL's own words.
        #[source]
        source: Box<Refusal>,
    },
    /// Open transactions kept a slot from being made for as long as we were ready to wait.
    #[error("cannot create slot {slot}: waited {}s for {}", waited.as_secs(), describe_blockers(blockers))]
    SlotBlocked {
        /// The slot.
        slot: String,
        /// How long we waited.
        waited: Duration,
        /// Who kept it from being made, oldest first; empty: they ended just then.
        blockers: Vec<Blocker>,
    },
    /// A slot, origin or subscription stays in somebody's use.
    #[error("{object} is still in use by process {pid}")]
    StillInUse {
        /// What: "slot steep_node_b_…".
        object: String,
        /// Who; 0: not known.
        pid: i32,
    },
    /// We were told to stop.
    #[error("told to stop while trying to {doing}")]
    Cancelled {
        /// What was under way.
        doing: String,
    },
    /// The server's version cannot do it.
    #[error("PostgreSQL {version} has no {what}")]
    Unsupported {
        /// What it lacks.
        what: &'static str,
        /// Its version.
        version: Version,
    },
    /// A name PostgreSQL would not take for a slot or origin.
    #[error("{0:?} is no name for a slot: 1 to 63 of a-z, 0-9 and '_' are")]
    BadSlotName(String),
    /// The password file cannot be read.
    #[error("cannot read the password file {}", path.display())]
    Passfile {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others may read the password file, so libpq would ignore it, and so do we.
    #[error("the password file {} can be read by others", path.display())]
    PassfileOpen {
        /// Where it is.
        path: PathBuf,
    },
    /// No pg_dump and pg_restore that are at least as new as the server.
    #[error("no pg_dump and pg_restore of version {needed} or later: found {found}")]
    ProgramsMissing {
        /// The server's major version.
        needed: u16,
        /// What was found instead, and where.
        found: String,
    },
    /// pg_dump or pg_restore failed.
    #[error("{program} failed ({status})")]
    Program {
        /// pg_dump or pg_restore.
        program: &'static str,
        /// How it ended.
        status: String,
        /// The first lines it wrote about its errors.
        complaints: Vec<String>,
        /// The entry of the archive at which it lost a deadlock; all before it is made.
        deadlock_at: Option<i32>,
    },
    /// pg_dump or pg_restore could not be run, or its output not be read.
    #[error("cannot {doing}")]
    ProgramIo {
        /// What was tried.
        doing: String,
        /// dump or restore.
        code: Code,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The connection is gone or never came to be; a later try on a new one may succeed.
    pub fn is_connection_loss(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Lost { .. })
    }

    /// PostgreSQL's five letters, where PostgreSQL said no.
    pub fn sqlstate(&self) -> Option<&str> {
        self.refusal().map(|refusal| refusal.sqlstate.as_str())
    }

    /// What was to be made was there before.
    pub fn is_there_already(&self) -> bool {
        self.sqlstate() == Some("42710")
    }

    /// PostgreSQL's own words, where it said no.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Denied { source, .. } | Self::SnapshotLost { source, .. } => Some(source),
            Self::Unreachable { source, .. } | Self::Refused { source, .. } | Self::Lost { source, .. } => {
                source.downcast_ref()
            }
            _ => None,
        }
    }

    /// Cancelled by a cancel request or a token of ours.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled { .. }) || self.sqlstate() == Some("57014")
    }

    /// Trying again may succeed without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } | Self::StillInUse { .. } => true,
            Self::Denied { source, .. } => source.is_transient(),
            Self::Refused { .. } | Self::Passfile { .. } | Self::PassfileOpen { .. } => false,
            _ => self.code().is_retryable(),
        }
    }
}

fn describe_blockers(blockers: &[Blocker]) -> String {
    match blockers {
        [] => "open transactions".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } | Self::Refused { .. } | Self::Lost { .. } => Code::PostgresUnreachable,
            Self::Denied { code, .. } | Self::ProgramIo { code, .. } => *code,
            Self::Unreadable { .. } => Code::Internal,
            Self::SnapshotLost { .. } => Code::SnapshotLost,
            Self::SlotBlocked { blockers, .. } => match blockers.first() {
                Some(Blocker::Prepared { .. }) => Code::PreparedTransaction,
                _ => Code::LongTransaction,
            },
            Self::StillInUse { .. } => Code::StillInUse,
            Self::Cancelled { .. } => Code::Cancelled,
            Self::Unsupported { .. } => Code::VersionUnsupported,
            Self::BadSlotName(_) => Code::BadRequest,
            Self::Passfile { .. } => Code::ConfigInvalid,
            Self::PassfileOpen { .. } => Code::KeyFileOpen,
            Self::ProgramsMissing { .. } => Code::PgDumpMissing,
            Self::Program { program, .. } if *program == "pg_dump" => Code::DumpFailed,
            Self::Program { .. } => Code::RestoreFailed,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::Refused { dbname, .. } => Some(match self.sqlstate() {
                Some("3D000") => {
                    let dbname = readable_identifier(dbname);
                    format!("create the database: create database {dbname}; or correct postgres.dbname in agent.toml")
                }
                _ => "correct [postgres] in agent.toml, or let the user in: pg_hba.conf".to_owned(),
            }),
            Self::Passfile { .. } => Some("correct postgres.passfile in agent.toml".to_owned()),
            Self::PassfileOpen { path } => Some(format!("chmod 600 {}", path.display())),
            Self::StillInUse { pid, .. } if *pid != 0 => Some(format!("select pg_terminate_backend({pid})")),
            Self::SlotBlocked { blockers, .. } => blockers.first().map(Blocker::hint),
            Self::Denied { source, .. } if source.sqlstate.starts_with("08") => Some(
                "see that the other node's agent and PostgreSQL run and are reached: steepctl mesh matrix; where its agent.toml has \
                 replication.link = \"direct\", see its replication.conninfo and pg_hba.conf"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    fn explain(&self) -> Failure {
        let mut failure = Failure::new(self.code(), self.to_string());
        failure.retryable = self.is_retryable();
        match self {
            Self::SlotBlocked { blockers, .. } => failure.causes.extend(blockers.iter().map(Blocker::to_string)),
            Self::Program { complaints, .. } => failure.causes.extend(complaints.iter().cloned()),
            _ => {}
        }
        match self.refusal() {
            Some(refusal) => {
                failure.causes.extend(refusal.lines());
                failure.sqlstate = Some(refusal.sqlstate.clone());
            }
            None => {
                if let Some(source) = std::error::Error::source(self) {
                    failure = failure.caused_by(source);
                }
            }
        }
        match self.better_hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// What PostgreSQL said when it said no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Five letters: "42501".
    pub sqlstate: String,
    /// The message, without "ERROR:".
    pub message: String,
    /// DETAIL, where there was one.
    pub detail: Option<String>,
    /// HINT, where there was one.
    pub hint: Option<String>,
    /// CONTEXT: for COPY it names table and line.
    pub context: Option<String>,
    /// The server closed the connection over it.
    pub is_fatal: bool,
}

impl Refusal {
    fn is_transient(&self) -> bool {
        // 08: another server away; 40: serialization, deadlock; 53: out of something; 55: in use, locked; 57: an operator.
        ["08", "40", "53", "55", "57"].iter().any(|class| self.sqlstate.starts_with(class))
    }

    /// Message, detail and hint, a line each, safe to print.
    fn lines(&self) -> impl Iterator<Item = String> {
        let context = self.context.as_ref().filter(|context| context.starts_with("COPY "));
        [
            Some(self.to_string()),
            self.detail.clone(),
            context.map(|context| context.lines().next().unwrap_or_default().to_owned()),
            self.hint.as_ref().map(|hint| format!("PostgreSQL's hint: {hint}")),
        ]
        .into_iter()
        .flatten()
        // Where the other end of a connection has gone without a word, PostgreSQL's own sentence ends with a colon.
        .map(|line| escape_controls(line.trim_end().trim_end_matches(':')))
        .filter(|line| !line.is_empty())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl From<&DbError> for Refusal {
    fn from(error: &DbError) -> Self {
        Self {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            context: error.where_().map(str::to_owned),
            is_fatal: matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic)),
        }
    }
}

/// What is being tried, and what PostgreSQL's refusals mean then.
#[derive(Debug, Clone)]
pub(crate) struct Doing {
    what: Cow<'static, str>,
    otherwise: Code,
    privilege: Code,
    limit: Code,
    missing: Option<Code>,
}

/// Names what is being tried: "read the tables' columns".
pub(crate) fn doing(what: impl Into<Cow<'static, str>>) -> Doing {
    Doing {
        what: what.into(),
        otherwise: Code::Internal,
        privilege: Code::LoadPrivilege,
        limit: Code::NoFreeSlot,
        missing: None,
    }
}

impl Doing {
    /// What a refusal means that no rule knows.
    pub(crate) fn or(mut self, code: Code) -> Self {
        self.otherwise = code;
        self
    }

    /// What a missing privilege means.
    pub(crate) fn privilege(mut self, code: Code) -> Self {
        self.privilege = code;
        self
    }

    /// What a configured limit means that is used up.
    pub(crate) fn limit(mut self, code: Code) -> Self {
        self.limit = code;
        self
    }

    /// What it means that a table or column named is not there.
    pub(crate) fn missing(mut self, code: Code) -> Self {
        self.missing = Some(code);
        self
    }

    /// The error this is, now that the client library reported `error`.
    pub(crate) fn failed(self, error: tokio_postgres::Error) -> Error {
        let doing = self.what.into_owned();
        // The one refusal for want of a privilege that means something else has no SQLSTATE of its own.
        let by_row_security = error.as_db_error().and_then(DbError::routine) == Some("check_enable_rls");
        let Some(refusal) = error.as_db_error().map(Refusal::from) else {
            return if is_misread(&error) {
                Error::Unreadable { doing, source: error.into() }
            } else {
                Error::Lost { doing, source: error.into() }
            };
        };
        let code = match refusal.sqlstate.as_str() {
            _ if refusal.is_fatal => return Error::Lost { doing, source: refusal.into() },
            // The server could not reach another server: only "create subscription" and its like say so.
            state if state.starts_with("08") => Code::PostgresUnreachable,
            "42501" if by_row_security => Code::RowSecurity,
            "42501" => self.privilege,
            "42P01" | "42703" => self.missing.unwrap_or(self.otherwise),
            "2F003" => Code::SubscribePrivilege,
            "53400" => self.limit,
            "42710" => Code::ObjectExists,
            "53100" => Code::DiskTooSmall,
            "72000" => Code::SnapshotLost,
            "57014" => Code::Cancelled,
            _ => self.otherwise,
        };
        Error::Denied { doing, code, source: Box::new(refusal) }
    }
}

/// A server that says this to a newcomer may let it in later: it starts, stops, or is full.
pub(super) fn passes_by_itself(sqlstate: &str) -> bool {
    sqlstate.starts_with("08") || sqlstate.starts_with("57P") || sqlstate.starts_with("53")
}

/// The library could not read a value, which says nothing about the connection.
fn is_misread(error: &tokio_postgres::Error) -> bool {
    let text = error.to_string();
    ["error deserializing", "error serializing", "invalid column", "expected ", "query returned"]
        .iter()
        .any(|beginning| text.starts_with(beginning))
}

#[cfg(test)]
mod tests;
