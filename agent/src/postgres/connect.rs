//! Opens connections to the local PostgreSQL, each with a purpose in its name and all settings pinned.
//!
//! What a role, database or server has configured must not change what our statements mean or end a session
//! that holds a snapshot; so every connection sets the settings it depends on in its start-up packet.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use steep_protocol::{failure::Code, ids::OperationId};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{
    Client, Config, NoTls, Row, SimpleQueryMessage,
    types::{FromSql, ToSql},
};

use super::{
    cancel::Canceller,
    ddl::{self, Statement},
    error::{Cause, Doing, Error, Refusal, doing, passes_by_itself},
    passfile,
    replication::Duplex,
    version::Version,
};
use crate::config;

/// How long a connection attempt may take, from dialling to the first answer.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What every connection speaks, but for the rows of COPY.
const UTF8: &str = "UTF8";

/// Settings every connection of ours depends on. `transaction_timeout` is set later, where it exists: an unknown
/// setting in a start-up packet is fatal.
pub(super) const PINS: &[(&str, &str)] = &[
    ("row_security", "off"),
    ("client_encoding", UTF8),
    ("DateStyle", "ISO,YMD"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("TimeZone", "UTC"),
    ("search_path", ""),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("standard_conforming_strings", "on"),
    ("jit", "off"),
];

/// Where the local PostgreSQL is and who we are to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// A host name or address, or the directory of a unix socket.
    pub host: String,
    /// The port, also part of a unix socket's name.
    pub port: u16,
    /// The database this node is.
    pub dbname: String,
    /// The role the agent connects as.
    pub user: String,
    /// libpq's password file; none: no password is offered.
    pub passfile: Option<PathBuf>,
    /// Where pg_dump and pg_restore are; none: looked for in the usual places.
    pub bin_dir: Option<PathBuf>,
}

impl PostgresConfig {
    /// What `agent.toml` says.
    pub fn of(settings: &config::Postgres) -> Self {
        let config::Postgres { host, port, dbname, user, passfile, bin_dir } = settings.clone();
        Self { host, port, dbname, user, passfile, bin_dir }
    }

    /// For people: `db1:5432`, or `/run/postgresql:5432` for a unix socket.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The host is a directory, hence a unix socket.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    pub(super) fn client_config(&self, purpose: Purpose) -> Result<Config, Error> {
        // A parallel plan would take the database's workers away from its users, and feed one COPY no faster.
        let pins = match purpose {
            Purpose::CopyOut(_) => [PINS, &[("max_parallel_workers_per_gather", "0")]].concat(),
            _ => PINS.to_vec(),
        };
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .dbname(&self.dbname)
            .user(&self.user)
            .application_name(purpose.to_string())
            .options(ddl::startup_options(&pins))
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives_idle(Duration::from_secs(30));
        if let Some(path) = &self.passfile
            && let Some(password) = passfile::password_for(path, self)?
        {
            config.password(password);
        }
        Ok(config)
    }
}

/// What a connection is for; PostgreSQL shows it as the connection's `application_name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The agent's own schema; also holds the lock that keeps a second agent out.
    Control,
    /// Looking: checks, lag, progress.
    Watch,
    /// Holding locks and a snapshot for a peer.
    Keeper(OperationId),
    /// Reading rows for a peer.
    CopyOut(OperationId),
    /// Loading rows.
    CopyIn(OperationId),
    /// Making and dropping objects.
    Ddl(OperationId),
    /// Making a replication slot.
    Slot(OperationId),
    /// pg_dump.
    Dump(OperationId),
    /// pg_restore.
    Restore(OperationId),
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, op) = match self {
            Self::Control => return f.write_str("steep-control"),
            Self::Watch => return f.write_str("steep-watch"),
            Self::Keeper(op) => ("keeper", op),
            Self::CopyOut(op) => ("copy-out", op),
            Self::CopyIn(op) => ("copy-in", op),
            Self::Ddl(op) => ("ddl", op),
            Self::Slot(op) => ("slot", op),
            Self::Dump(op) => ("dump", op),
            Self::Restore(op) => ("restore", op),
        };
        write!(f, "steep-{word}-{}", op.short())
    }
}

/// The local PostgreSQL: opens sessions. Cheap to clone; holds no connection itself.
#[derive(Debug, Clone)]
pub struct Database {
    config: Arc<PostgresConfig>,
}

impl Database {
    /// The database `config` points at. Connects to nothing yet.
    pub fn new(config: PostgresConfig) -> Self {
        Self { config: Arc::new(config) }
    }

    /// Where it is.
    pub fn config(&self) -> &PostgresConfig {
        &self.config
    }

    /// Opens a connection.
    ///
    /// Fails with [`Error::Unreachable`] where another try may succeed (nobody listens, the server starts or has
    /// no connection left) and with [`Error::Refused`] where it will not. Dropping the future closes the connection.
    pub async fn session(&self, purpose: Purpose) -> Result<Session, Error> {
        let config = self.config.client_config(purpose)?;
        let attempt = timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await;
        let attempt = attempt.map_err(|elapsed| self.unreachable(elapsed))?;
        let (client, connection) = attempt.map_err(|error| self.not_connected(error))?;
        self.introduce(client, connection, purpose).await
    }

    /// Opens a connection over `stream`, which leads to the server. Fails like [`Database::session`].
    pub(super) async fn session_over<S>(&self, stream: S, purpose: Purpose) -> Result<Session, Error>
    where
        S: Duplex + 'static,
    {
        let config = self.config.client_config(purpose)?;
        let attempt = timeout(CONNECT_TIMEOUT, config.connect_raw(stream, NoTls)).await;
        let attempt = attempt.map_err(|elapsed| self.unreachable(elapsed))?;
        let (client, connection) = attempt.map_err(|error| self.not_connected(error))?;
        self.introduce(client, connection, purpose).await
    }

    async fn introduce<C>(&self, client: Client, connection: C, purpose: Purpose) -> Result<Session, Error>
    where
        C: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    {
        let task = ConnectionTask::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%purpose, error = &error as &dyn std::error::Error, "connection ended");
            }
        });
        Session::introduce(self.clone(), client, task, purpose).await
    }

    /// User and group of the server's processes, as the operating system knows them; `None` where the server is not
    /// reached over a unix socket.
    #[cfg(unix)]
    pub async fn server_account(&self) -> Result<Option<(u32, u32)>, Error> {
        if !self.config.is_socket() {
            return Ok(None);
        }
        let path = std::path::Path::new(&self.config.host).join(format!(".s.PGSQL.{}", self.config.port));
        let stream = tokio::net::UnixStream::connect(path).await.map_err(|source| self.unreachable(source))?;
        // Of a listening socket these are the credentials of who listens.
        let listener = stream.peer_cred().map_err(|source| self.unreachable(source))?;
        Ok(Some((listener.uid(), listener.gid())))
    }

    pub(super) fn unreachable(&self, source: impl Into<Cause>) -> Error {
        Error::Unreachable { address: self.config.address(), source: source.into() }
    }

    /// What it means that a connection attempt failed.
    pub(super) fn not_connected(&self, error: tokio_postgres::Error) -> Error {
        let refused = |source| Error::Refused {
            address: self.config.address(),
            user: self.config.user.clone(),
            dbname: self.config.dbname.clone(),
            source,
        };
        match error.as_db_error().map(Refusal::from) {
            Some(refusal) if passes_by_itself(&refusal.sqlstate) => self.unreachable(refusal),
            Some(refusal) => refused(refusal.into()),
            // The library could not give what the server asked for, such as a password.
            None if ["authentication", "invalid configuration"].iter().any(|w| error.to_string().starts_with(w)) => {
                refused(error.into())
            }
            None => self.unreachable(error),
        }
    }
}

/// The task that moves a connection's bytes. Ends with its owner.
pub(super) struct ConnectionTask(JoinHandle<()>);

impl ConnectionTask {
    pub(super) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// Waits for a connection whose client is gone to say goodbye.
    async fn join(mut self) {
        if timeout(Duration::from_secs(2), &mut self.0).await.is_err() {
            tracing::debug!("connection did not close in time");
        }
    }
}

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        // A connection whose client is gone would first read a running COPY to its end.
        self.0.abort();
    }
}

/// One connection to the local PostgreSQL.
///
/// Dropping it closes the connection at once; PostgreSQL rolls back what was open. A statement that runs on the
/// server notices only when it next talks to the client: cancel it first where that matters.
pub struct Session {
    database: Database,
    client: Client,
    task: ConnectionTask,
    purpose: Purpose,
    backend_pid: i32,
    version: Version,
    encoding: String,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}, pid {})", self.purpose, self.backend_pid)
    }
}

impl Session {
    async fn introduce(
        database: Database,
        client: Client,
        task: ConnectionTask,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        let asking = doing("ask the server who it is");
        let sql = sql!("catalog/introduce_session.sql");
        let row = client.query_one(sql, &[]).await.map_err(|error| asking.failed(error))?;
        let number: i32 = field(&row, "version_number")?;
        let backend_pid = field(&row, "backend_pid")?;
        let version = Version::from_number(u32::try_from(number).unwrap_or_default());
        let encoding = field(&row, "encoding")?;
        Ok(Self { database, client, task, purpose, backend_pid, version, encoding })
    }

    /// The server process that serves this connection.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// The server's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Has the server speak the database's own encoding, in which rows are copied byte by byte: not every character of
    /// every encoding comes back from UTF-8 as it was, and in SQL_ASCII bytes are no characters.
    ///
    /// Our statements are UTF-8: none may hold a name meanwhile, and [`Session::speak_utf8`] must follow. A rollback does
    /// as well.
    pub(super) async fn speak_as_stored(&self) -> Result<(), Error> {
        self.speak(&self.encoding).await
    }

    /// Has the server speak UTF-8 again.
    pub(super) async fn speak_utf8(&self) -> Result<(), Error> {
        self.speak(UTF8).await
    }

    async fn speak(&self, encoding: &str) -> Result<(), Error> {
        // It never speaks anything else.
        if self.encoding == UTF8 {
            return Ok(());
        }
        self.run(&ddl::set_session("client_encoding", encoding)).await
    }

    /// What it is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The connection is gone.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Something that can cancel what runs on this session, from any task.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(self.client.cancel_token(), self.database.clone())
    }

    /// Says goodbye and waits until the connection is closed.
    pub async fn close(self) {
        let Self { client, task, .. } = self;
        drop(client);
        task.join().await;
    }

    /// Runs one statement that returns nothing we read.
    pub async fn run(&self, statement: &Statement) -> Result<(), Error> {
        let done = self.client.batch_execute(statement.as_str()).await;
        done.map_err(|error| statement.doing().failed(error))
    }

    /// Begins a transaction.
    pub async fn begin(&self) -> Result<(), Error> {
        self.run(&ddl::begin()).await
    }

    /// Begins a read-only transaction that sees exactly what the exported `snapshot` shows.
    ///
    /// Fails with [`Error::SnapshotLost`] when nobody holds that snapshot any more; no transaction is open then.
    pub async fn begin_snapshot(&self, snapshot: &str) -> Result<(), Error> {
        self.run(&ddl::begin_snapshot()).await?;
        let taken = self.run(&ddl::set_snapshot(snapshot)).await;
        let Err(error) = taken else { return Ok(()) };
        if !error.is_connection_loss() {
            self.rollback().await?;
        }
        match error {
            // 22023 up to 16, 42704 from 17 on.
            Error::Denied { source, .. } if ["22023", "42704"].contains(&source.sqlstate.as_str()) => {
                Err(Error::SnapshotLost { snapshot: snapshot.to_owned(), source })
            }
            other => Err(other),
        }
    }

    /// Exports the open transaction's snapshot; others can import it for as long as the transaction stays open.
    pub async fn export_snapshot(&self) -> Result<String, Error> {
        let exporting = doing("export the snapshot").or(Code::SnapshotLost);
        let row = self.one(exporting, "select pg_catalog.pg_export_snapshot() as snapshot", &[]).await?;
        field(&row, "snapshot")
    }

    /// Commits the open transaction.
    pub async fn commit(&self) -> Result<(), Error> {
        self.run(&ddl::commit()).await
    }

    /// Rolls the open transaction back; harmless where none is open.
    pub async fn rollback(&self) -> Result<(), Error> {
        self.run(&ddl::rollback()).await
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) async fn rows(&self, doing: Doing, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        self.client.query(sql, params).await.map_err(|error| doing.failed(error))
    }

    pub(crate) async fn one(&self, doing: Doing, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        self.client.query_one(sql, params).await.map_err(|error| doing.failed(error))
    }

    pub(crate) async fn maybe(&self, doing: Doing, sql: &str, params: Params<'_>) -> Result<Option<Row>, Error> {
        self.client.query_opt(sql, params).await.map_err(|error| doing.failed(error))
    }

    pub(crate) async fn execute(&self, doing: Doing, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        self.client.execute(sql, params).await.map_err(|error| doing.failed(error))
    }

    /// Runs a text of several statements without parameters; for the store's migrations.
    pub(crate) async fn batch(&self, doing: Doing, sql: &'static str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(|error| doing.failed(error))
    }

    /// The rows of a rendered statement, values as text.
    pub(super) async fn texts(&self, statement: &Statement) -> Result<Vec<Vec<Option<String>>>, Error> {
        let answer = self.client.simple_query(statement.as_str()).await;
        let messages = answer.map_err(|error| statement.doing().failed(error))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }
}

/// Parameters of a query.
pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Reads one column of a row.
pub(crate) fn field<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, Error> {
    row.try_get(name).map_err(|error| doing(format!("read column {name}")).failed(error))
}

/// Reads a count or size, which PostgreSQL has only with a sign.
pub(crate) fn count_field(row: &Row, name: &str) -> Result<u64, Error> {
    Ok(u64::try_from(field::<i64>(row, name)?).unwrap_or(0))
}
