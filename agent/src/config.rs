//! Every key of `agent.toml`: what it means, its default, and what is wrong with a value.
//!
//! `deploy/agent.example.toml` documents the same keys for operators; a test holds the two together. For its
//! local PostgreSQL the agent also honours libpq's environment (`PGHOST`, `PGPORT`, `PGUSER`, `PGDATABASE`,
//! `PGPASSFILE`), below the file.

use std::{
    env, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use steep_protocol::{
    failure::{Code, Explain},
    ids::NodeId,
    wire::{
        choice::Preference,
        identity::{self, Identity, Who},
        trust::Policy,
    },
};

mod quantity;
mod replication;
mod schema;
mod snapshots;
mod watch;

use self::quantity::{duration, size, some_duration};
pub use self::{
    quantity::{parse_duration, parse_size},
    replication::*,
    schema::*,
    snapshots::*,
    watch::*,
};

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Key, place and reason.
        reason: String,
    },
    /// A value that cannot work.
    #[error("{}: {key}: {reason}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// The certificate, key or root cannot be used.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The certificate is somebody else's.
    #[error("{}: {key}: the certificate names {found}, but node.id is {id}", .path.display())]
    NotMine {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: &'static str,
        /// Whom it names.
        found: String,
        /// Who we are.
        id: NodeId,
    },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Unreadable { .. } | Self::Malformed { .. } | Self::Value { .. } => Code::ConfigInvalid,
            Self::Identity(error) => error.code(),
            Self::NotMine { .. } => Code::IdentityMismatch,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => {
                Some("give the file with --config FILE; deploy/agent.example.toml is a start".into())
            }
            Self::Identity(error) => error.better_hint(),
            Self::NotMine { id, .. } => Some(format!("steepctl pki issue node {id}")),
            _ => None,
        }
    }
}

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the file lies; relative paths in it start from its directory.
    #[serde(skip)]
    pub path: PathBuf,
    /// This node.
    pub node: Node,
    /// The other agents.
    pub mesh: Mesh,
    /// Certificates.
    pub pki: Pki,
    /// The local PostgreSQL.
    #[serde(default)]
    pub postgres: Postgres,
    /// How other nodes' PostgreSQL reach ours.
    #[serde(default)]
    pub replication: Replication,
    /// Who may see and change how tables look.
    #[serde(default)]
    pub schema: Schema,
    /// How tables are copied.
    #[serde(default)]
    pub copy: Copy,
    /// Where snapshots in files may lie.
    #[serde(default)]
    pub snapshots: Snapshots,
    /// When this node counts as diverged.
    #[serde(default)]
    pub watch: Watch,
    /// What slots for other nodes may cost this one.
    #[serde(default)]
    pub budget: Budget,
    /// What is looked after unasked.
    #[serde(default)]
    pub cleanup: Cleanup,
    /// The HTTP port for probes.
    #[serde(default)]
    pub http: Http,
    /// The log.
    #[serde(default)]
    pub log: Log,
}

/// `[node]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// This node's id, the one its certificate names.
    pub id: NodeId,
    /// Where the agent keeps files while it works (schema dumps).
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
}

/// `[mesh]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    /// `host:port` to listen on, the same number for UDP and TCP.
    #[serde(default = "default_listen")]
    pub listen: String,
    /// `host:port` at which the other agents reach this one. Default: `listen`, with the name of this machine where
    /// that says no address.
    pub advertise: Option<String>,
    /// What carries the connections to other agents.
    #[serde(default)]
    pub transport: Preference,
    /// `host:port` of agents through which this one joins the mesh; any one that answers is enough. None: it waits to
    /// be called.
    #[serde(default)]
    pub seeds: Vec<String>,
}

/// `[pki]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pki {
    /// The node's certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM, mode 0600.
    pub key: PathBuf,
    /// The mesh's root certificate, PEM; while the root is exchanged, both.
    pub ca: PathBuf,
    /// Revocation lists handed to this agent, PEM. Others come from its peers.
    pub crl: Option<PathBuf>,
    /// Nobody is let in any more when a list should have been replaced so long ago. Default: never so.
    #[serde(default, deserialize_with = "some_duration")]
    pub crl_overdue_limit: Option<Duration>,
}

/// `[postgres]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Postgres {
    /// Host name, address, or the directory of its unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The database that is this node.
    pub dbname: String,
    /// The agent's role.
    pub user: String,
    /// A password file in libpq's format.
    pub passfile: Option<PathBuf>,
    /// Where pg_dump and pg_restore lie. Default: looked for.
    pub bin_dir: Option<PathBuf>,
}

/// `[copy]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Copy {
    /// Streams at once when this node is the target, 1 to 16.
    pub parallel: u32,
    /// A peer that does not renew its session for so long loses it.
    #[serde(deserialize_with = "duration")]
    pub session_lease: Duration,
    /// Heap bytes a part aims at when this node is the source.
    #[serde(deserialize_with = "size")]
    pub part_size: u64,
    /// What to do when a DDL on the source waits behind the copy's locks.
    pub on_blocked_ddl: OnBlockedDdl,
    /// For building indexes on the target: what all that are built at once may take together.
    #[serde(deserialize_with = "size")]
    pub maintenance_work_mem: u64,
    /// How far ahead of the source's the target's sequences are set, in steps.
    pub sequence_margin: u32,
    /// How long to wait for transactions that keep the slot from being made.
    #[serde(deserialize_with = "duration")]
    pub slot_timeout: Duration,
    /// How long the target may stand still while it catches up.
    #[serde(deserialize_with = "duration")]
    pub catch_up_timeout: Duration,
    /// When this node is the target and no method was asked for: tables larger than this together are copied by PostgreSQL
    /// itself, each in a snapshot of its own.
    #[serde(deserialize_with = "size")]
    pub snapshot_above: u64,
    /// When this node is the target: a table of at least so many bytes is large.
    #[serde(deserialize_with = "size")]
    pub large_table_threshold: u64,
    /// What is done about large tables where no method was asked for.
    pub large_table_method: LargeTables,
}

/// `copy.large_table_method`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LargeTables {
    /// They are copied like all others, in as many parts as they are large.
    Copy,
    /// The node is not started: a backup made by hand brings them.
    PgDump,
}

/// `copy.on_blocked_ddl`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBlockedDdl {
    /// End the initialization, so that the DDL and everything queued behind it goes on.
    Fail,
    /// Go on copying; the DDL, and later readers and writers of that table, wait.
    Wait,
}

/// `[http]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Where `/livez`, `/readyz` and `/healthz` answer. Loopback only.
    pub listen: SocketAddr,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// error, warn, info, debug or trace.
    pub level: Level,
    /// json or text.
    pub format: Format,
}

/// `log.level`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One flat JSON object a line, by `deploy/schemas/log-event.schema.json`.
    Json,
    /// For people.
    Text,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/steep".into()
}

fn default_listen() -> String {
    "0.0.0.0:7432".into()
}

impl Default for Postgres {
    fn default() -> Self {
        let from = |name: &str, or: &str| env::var(name).unwrap_or_else(|_| or.to_owned());
        let user = from("PGUSER", "steep_agent");
        Self {
            host: from("PGHOST", "/var/run/postgresql"),
            port: env::var("PGPORT").ok().and_then(|port| port.parse().ok()).unwrap_or(5432),
            dbname: from("PGDATABASE", "postgres"),
            user,
            passfile: env::var_os("PGPASSFILE").map(PathBuf::from),
            bin_dir: None,
        }
    }
}

impl Default for Copy {
    fn default() -> Self {
        Self {
            parallel: 4,
            session_lease: Duration::from_secs(15 * 60),
            part_size: 64 << 20,
            on_blocked_ddl: OnBlockedDdl::Fail,
            maintenance_work_mem: 512 << 20,
            sequence_margin: 1000,
            slot_timeout: Duration::from_secs(30),
            catch_up_timeout: Duration::from_secs(10 * 60),
            snapshot_above: 4 << 40,
            large_table_threshold: 10 << 30,
            large_table_method: LargeTables::Copy,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7433)) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Json }
    }
}

impl Config {
    /// Reads and checks a file. The files it names are not opened yet, see [`Config::identity`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.into(), source })?;
        let mut config = Self::parse(&text, path)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        for file in [&mut config.pki.cert, &mut config.pki.key, &mut config.pki.ca] {
            *file = directory.join(&*file);
        }
        let optional = [
            &mut config.pki.crl,
            &mut config.postgres.passfile,
            &mut config.postgres.bin_dir,
            &mut config.replication.socket_dir,
            &mut config.snapshots.s3.credentials,
            &mut config.snapshots.s3.ca,
        ];
        for file in optional.into_iter().flatten() {
            *file = directory.join(&*file);
        }
        config.node.state_dir = directory.join(&config.node.state_dir);
        Ok(config)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let malformed = |error: toml::de::Error| Error::Malformed { path: path.into(), reason: place(text, &error) };
        let mut config: Self = toml::from_str(text).map_err(malformed)?;
        config.path = path.into();
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |key, reason: String| Err(Error::Value { path: self.path.clone(), key, reason });
        if let Err(reason) = host_and_port(&self.mesh.listen) {
            return wrong("mesh.listen", reason);
        }
        if let Some(Err(reason)) = self.mesh.advertise.as_deref().map(host_and_port) {
            return wrong("mesh.advertise", reason);
        }
        if let Some(Err(reason)) = self.mesh.seeds.iter().map(|seed| host_and_port(seed)).find(Result::is_err) {
            return wrong("mesh.seeds", reason);
        }
        if !(1..=16).contains(&self.copy.parallel) {
            return wrong("copy.parallel", format!("{} is not between 1 and 16", self.copy.parallel));
        }
        if self.copy.part_size < 1 << 20 {
            return wrong("copy.part_size", "at least 1MiB is needed".into());
        }
        let s3 = &self.snapshots.s3;
        if let Some(Err(reason)) = s3.endpoint.as_deref().map(|endpoint| s3.check(endpoint)) {
            return wrong("snapshots.s3.endpoint", reason);
        }
        if !self.http.listen.ip().is_loopback() {
            return wrong("http.listen", format!("{} is not a loopback address", self.http.listen));
        }
        let conninfo = self.replication.conninfo.as_deref().unwrap_or_default();
        if conninfo.to_lowercase().contains("password") {
            return wrong("replication.conninfo", "it holds a password; use a passfile beside the other server".into());
        }
        let local = self.replication.local_conninfo.as_deref().unwrap_or_default();
        if local.to_lowercase().contains("password") {
            return wrong("replication.local_conninfo", "it holds a password; name a passfile instead".into());
        }
        Ok(())
    }

    /// Loads the certificate files and makes sure that they are this node's.
    pub fn identity(&self) -> Result<Identity, Error> {
        let policy = Policy { lists_overdue: self.pki.crl_overdue_limit, ..Policy::default() };
        let identity = Identity::load(&self.pki.cert, &self.pki.key, &self.pki.ca)?.with_policy(policy);
        match &identity.me().who {
            Who::Node(id) if *id == self.node.id => Ok(identity),
            _ => Err(Error::NotMine {
                path: self.path.clone(),
                key: "pki.cert",
                found: identity.me().to_string(),
                id: self.node.id.clone(),
            }),
        }
    }

    /// Where the sockets of replication links lie, as an absolute path.
    pub fn socket_dir(&self) -> PathBuf {
        let dir = self.replication.socket_dir.clone().unwrap_or_else(|| self.node.state_dir.join("link"));
        std::path::absolute(&dir).unwrap_or(dir)
    }

    /// Where others reach this agent, which listens on `port`.
    pub fn advertised(&self, port: u16) -> String {
        if let Some(address) = &self.mesh.advertise {
            return address.clone();
        }
        let (host, _) = self.mesh.listen.rsplit_once(':').unwrap_or((&self.mesh.listen, ""));
        match host {
            "0.0.0.0" | "[::]" => format!("{}:{port}", rustix::system::uname().nodename().to_string_lossy()),
            host => format!("{host}:{port}"),
        }
    }
}

fn host_and_port(text: &str) -> Result<(), String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => {
            port.parse::<u16>().map(drop).map_err(|_| format!("{text:?}: {port:?} is no port"))
        }
        _ => Err(format!("{text:?} has no port; HOST:PORT is expected")),
    }
}

/// toml's message with the line it speaks of, on one line.
fn place(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', ", ");
    match error.span() {
        Some(span) => {
            let before = &text[..span.start.min(text.len())];
            let line = before.matches('\n').count() + 1;
            let section = before.lines().rev().find(|line| line.trim_start().starts_with('[')).map(str::trim);
            let section = section.map(|name| format!(", in {name}")).unwrap_or_default();
            format!("line {line}{section}: {message}")
        }
        None => message,
    }
}

#[cfg(test)]
mod tests;
