//! Makes replication slots: plain ones, and ones that export the snapshot they begin after.
//!
//! Only `CREATE_REPLICATION_SLOT` on a replication connection gives a snapshot that fits its slot. The client
//! library has no such connections, so a small adapter asks for one in the start-up message. Whatever goes wrong,
//! no half-made slot is left behind.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use steep_protocol::{failure::Code, ids::OperationId, lsn::Lsn};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_util::sync::CancellationToken;

use super::{
    activity,
    connect::{CONNECT_TIMEOUT, ConnectionTask, Database, PostgresConfig, Purpose, Session},
    ddl::{self, SlotLife, SlotName},
    error::{Error, Refusal, doing},
    slots,
};

/// A slot just made, and its snapshot, which lives until this is released or dropped.
#[derive(Debug)]
pub struct ExportedSlot {
    /// The slot's name.
    pub name: String,
    /// Its consistent point: the snapshot shows exactly what committed before, the slot sends what committed after.
    pub lsn: Lsn,
    /// The snapshot's name, for `set transaction snapshot`.
    pub snapshot: String,
    connection: ReplicationConnection,
}

impl ExportedSlot {
    /// The walsender that holds the snapshot.
    pub fn backend_pid(&self) -> i32 {
        self.connection.backend_pid
    }

    /// Lets go of the snapshot; those who imported it keep it, and the slot stays.
    pub fn release(self) {
        drop(self.connection);
    }
}

/// Makes slot `name` and exports the snapshot it begins after.
///
/// PostgreSQL first waits for every transaction that has written and is still open. After `patience` it fails with
/// [`Error::SlotBlocked`], which names them. Nothing is left of the slot after any error or after `cancelled`. Not
/// cancel-safe: end it through `cancelled`.
pub async fn create_slot_exporting(
    database: &Database,
    op: OperationId,
    name: &str,
    patience: Duration,
    cancelled: &CancellationToken,
) -> Result<ExportedSlot, Error> {
    exporting(database, op, (name, SlotLife::Lasting), patience, cancelled).await
}

/// Exports a snapshot and says where it stands, by a slot `name` that goes when the snapshot is released; waits and fails
/// like [`create_slot_exporting`].
pub async fn export_snapshot(
    database: &Database,
    op: OperationId,
    name: &str,
    patience: Duration,
    cancelled: &CancellationToken,
) -> Result<ExportedSlot, Error> {
    exporting(database, op, (name, SlotLife::Temporary), patience, cancelled).await
}

async fn exporting(
    database: &Database,
    op: OperationId,
    (name, life): (&str, SlotLife),
    patience: Duration,
    cancelled: &CancellationToken,
) -> Result<ExportedSlot, Error> {
    let name = SlotName::parse(name)?;
    let watch = database.session(Purpose::Watch).await?;
    let connection = ReplicationConnection::open(database, Purpose::Slot(op)).await?;
    let making = Making { watch: &watch, slot: &name, pid: connection.backend_pid, patience, cancelled };
    let (lsn, snapshot) = making.carry_out(connection.create_slot(&name, life)).await?;
    Ok(ExportedSlot { name: name.as_str().to_owned(), lsn, snapshot, connection })
}

/// Makes slot `name` without a snapshot and returns where it begins; waits and fails like [`create_slot_exporting`].
pub async fn create_slot(
    database: &Database,
    op: OperationId,
    name: &str,
    patience: Duration,
    cancelled: &CancellationToken,
) -> Result<Lsn, Error> {
    let name = SlotName::parse(name)?;
    let watch = database.session(Purpose::Watch).await?;
    let session = database.session(Purpose::Slot(op)).await?;
    let making = Making { watch: &watch, slot: &name, pid: session.backend_pid(), patience, cancelled };
    making.carry_out(create_plainly(&session, &name)).await
}

async fn create_plainly(session: &Session, name: &SlotName) -> Result<Lsn, Error> {
    let creating = doing(format!("create slot {}", name.as_str())).privilege(Code::ReplicationPrivilege);
    let row = session.one(creating, sql!("replication/create_slot.sql"), &[&name.as_str()]).await?;
    slots::lsn_field(&row, "lsn").map(Option::unwrap_or_default)
}

/// A slot being made by the server process `pid`, watched from another session.
struct Making<'a> {
    watch: &'a Session,
    slot: &'a SlotName,
    pid: i32,
    patience: Duration,
    cancelled: &'a CancellationToken,
}

impl Making<'_> {
    async fn carry_out<T>(&self, create: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let error = tokio::select! {
            made = create => match made {
                Ok(made) => return Ok(made),
                // It was there before us: not ours to drop.
                Err(error) if error.is_there_already() => return Err(error),
                Err(error) => error,
            },
            () = sleep(self.patience) => self.blocked().await,
            () = self.cancelled.cancelled() => {
                Error::Cancelled { doing: format!("create slot {}", self.slot.as_str()) }
            }
        };
        if let Err(left) = self.undo().await {
            tracing::warn!(
                slot = self.slot.as_str(),
                error = &left as &dyn std::error::Error,
                "a half-made slot may be left"
            );
        }
        Err(error)
    }

    async fn blocked(&self) -> Error {
        let slot = self.slot.as_str().to_owned();
        let found = match activity::blockers(self.watch, self.patience, self.pid).await {
            // Those who wrote later may block it too: it is made in several rounds.
            Ok(older) if older.is_empty() => activity::blockers(self.watch, Duration::ZERO, self.pid).await,
            found => found,
        };
        match found {
            Ok(blockers) => Error::SlotBlocked { slot, waited: self.patience, blockers },
            Err(error) => error,
        }
    }

    /// A process that waits for a lock does not notice that its client is gone: end it, then drop what it made.
    async fn undo(&self) -> Result<(), Error> {
        let ending = doing(format!("end process {}", self.pid));
        self.watch.execute(ending, "select pg_catalog.pg_terminate_backend($1::integer, 5000)", &[&self.pid]).await?;
        slots::drop(self.watch, self.slot.as_str()).await?;
        Ok(())
    }
}

/// A connection in replication mode: simple queries and replication commands only.
struct ReplicationConnection {
    client: Client,
    _task: ConnectionTask,
    backend_pid: i32,
}

impl std::fmt::Debug for ReplicationConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReplicationConnection(pid {})", self.backend_pid)
    }
}

impl ReplicationConnection {
    async fn open(database: &Database, purpose: Purpose) -> Result<Self, Error> {
        let config = database.config().client_config(purpose)?;
        let connecting = async {
            let stream = dial(database.config()).await;
            let stream = stream.map_err(|source| database.unreachable(source))?;
            config
                .connect_raw(AskForReplication::over(stream), NoTls)
                .await
                .map_err(|error| not_a_walsender(database, error))
        };
        let connected = timeout(CONNECT_TIMEOUT, connecting).await;
        let (client, connection) = connected.map_err(|elapsed| database.unreachable(elapsed))??;
        let task = ConnectionTask::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%purpose, error = &error as &dyn std::error::Error, "connection ended");
            }
        });
        let asking = doing("ask the server who it is");
        let answer = client.simple_query("select pg_catalog.pg_backend_pid()").await;
        let answer = answer.map_err(|error| asking.failed(error))?;
        let backend_pid = first_row(&answer).and_then(|row| row.get(0)?.parse().ok()).unwrap_or_default();
        Ok(Self { client, _task: task, backend_pid })
    }

    async fn create_slot(&self, name: &SlotName, life: SlotLife) -> Result<(Lsn, String), Error> {
        let statement = ddl::create_exporting_slot(name, life);
        let answer = self.client.simple_query(statement.as_str()).await;
        let answer = answer.map_err(|error| statement.doing().failed(error))?;
        read_slot(&answer).ok_or_else(|| Error::Unreadable {
            doing: format!("create slot {}", name.as_str()),
            source: "no consistent point or snapshot in it".into(),
        })
    }
}

fn first_row(messages: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

fn read_slot(messages: &[SimpleQueryMessage]) -> Option<(Lsn, String)> {
    let row = first_row(messages)?;
    let lsn = row.try_get("consistent_point").ok()??.parse().ok()?;
    let snapshot = row.try_get("snapshot_name").ok()??.to_owned();
    Some((lsn, snapshot))
}

/// A connection in replication mode is refused for reasons of its own.
fn not_a_walsender(database: &Database, error: tokio_postgres::Error) -> Error {
    let refusal = error.as_db_error().map(Refusal::from);
    let code = match refusal.as_ref().map(|refusal| refusal.sqlstate.as_str()) {
        Some("53300") => Code::NoFreeWalSender,
        Some("42501") => Code::ReplicationPrivilege,
        _ => return database.not_connected(error),
    };
    match refusal {
        Some(refusal) => {
            Error::Denied { doing: "open a replication connection".to_owned(), code, source: Box::new(refusal) }
        }
        None => database.not_connected(error),
    }
}

/// Bytes both ways, whatever carries them.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Connects to the server and says nothing yet.
pub(super) async fn dial(config: &PostgresConfig) -> io::Result<Box<dyn Duplex>> {
    #[cfg(unix)]
    if config.is_socket() {
        let path = std::path::Path::new(&config.host).join(format!(".s.PGSQL.{}", config.port));
        return Ok(Box::new(tokio::net::UnixStream::connect(path).await?));
    }
    let stream = TcpStream::connect((config.host.as_str(), config.port)).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

/// A stream that adds `replication=database` to the start-up message, the first thing written, and is then itself.
struct AskForReplication<S> {
    stream: S,
    opening: Opening,
}

enum Opening {
    /// Nothing was written yet.
    Before,
    /// The changed message is on its way: these bytes of it are left.
    Sending(Vec<u8>),
    /// All that follows passes unchanged.
    Done,
}

impl<S> AskForReplication<S> {
    fn over(stream: S) -> Self {
        Self { stream, opening: Opening::Before }
    }
}

/// The start-up message with one more parameter: length, protocol version, then names and values.
fn with_replication(startup: &[u8]) -> Option<Vec<u8>> {
    const PARAMETER: &[u8] = b"replication\0database\0";
    let (head, parameters) = startup.split_at_checked(8)?;
    let length = u32::try_from(startup.len()).ok()?;
    if head[..4] != length.to_be_bytes() || head[4..] != 196_608_u32.to_be_bytes() {
        return None;
    }
    let longer = length + u32::try_from(PARAMETER.len()).ok()?;
    Some([&longer.to_be_bytes(), &head[4..], PARAMETER, parameters].concat())
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AskForReplication<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, opening } = self.get_mut();
        loop {
            match opening {
                Opening::Before => {
                    let changed = with_replication(bytes).ok_or(io::ErrorKind::InvalidData)?;
                    *opening = Opening::Sending(changed);
                }
                Opening::Sending(left) => {
                    let written = ready!(Pin::new(&mut *stream).poll_write(cx, left))?;
                    left.drain(..written);
                    if left.is_empty() {
                        *opening = Opening::Done;
                        return Poll::Ready(Ok(bytes.len()));
                    }
                    if written == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                }
                Opening::Done => return Pin::new(stream).poll_write(cx, bytes),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AskForReplication<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn startup() -> Vec<u8> {
        let parameters = b"user\0steep\0database\0shop\0\0";
        let length = u32::try_from(8 + parameters.len()).expect("a short message");
        [&length.to_be_bytes(), &196_608_u32.to_be_bytes(), &parameters[..]].concat()
    }

    #[tokio::test]
    async fn the_startup_message_asks_for_replication_however_it_is_cut() {
        for capacity in [1, 7, 4096] {
            let (ours, mut theirs) = tokio::io::duplex(capacity);
            let reader = tokio::spawn(async move {
                let mut seen = Vec::new();
                theirs.read_to_end(&mut seen).await.map(|_| seen)
            });
            let mut stream = AskForReplication::over(ours);
            stream.write_all(&startup()).await.expect("to write");
            stream.write_all(b"then nothing is changed").await.expect("to write");
            drop(stream);
            let seen = reader.await.expect("the reader").expect("to read");
            let message =
                usize::try_from(u32::from_be_bytes(seen[..4].try_into().expect("four bytes"))).expect("a size");
            assert_eq!(&seen[8..message], b"replication\0database\0user\0steep\0database\0shop\0\0");
            assert_eq!(&seen[message..], b"then nothing is changed");
        }
    }

    #[test]
    fn what_is_no_startup_message_is_left_alone() {
        let mut ssl_request = 8_u32.to_be_bytes().to_vec();
        ssl_request.extend(80_877_103_u32.to_be_bytes());
        for bytes in [&b""[..], b"short", &ssl_request, &startup()[..20]] {
            assert_eq!(with_replication(bytes), None);
        }
    }
}
