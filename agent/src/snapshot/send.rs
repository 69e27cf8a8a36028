//! Sends what a target asks for on a bulk stream: a part of a table, the dump of the schema, or a file of a snapshot.
//!
//! Reads inside the session's exported snapshot, so all parts show one moment of the database; files need no session, but
//! were lent to the target's operation. When the target
//! lets go of the stream, the COPY behind it is cancelled, not just abandoned.

use std::time::Duration;

use steep_protocol::{
    failure::{Code, Explain as _, Failure, Family},
    ids::{NodeId, OperationId, SessionId},
    names::TableName,
    v1::{self, bulk_request::Want},
    wire::{
        bulk::{self, BLOCK_BYTES, BlockSink},
        compress::Compression,
        io::Io,
        limits::LAST_WORDS_LIMIT,
    },
};
use tokio::{io::AsyncReadExt as _, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{files::lent, unpad::Unpadding};
use crate::{
    breakpoint::crash_point,
    mesh::Peers,
    metrics::Metrics,
    postgres::{
        self, Reader,
        ddl::{self, CopyFormat, PageRange},
        dump::{DumpRequest, Programs},
    },
    session::{DumpChoice, Sessions},
    store::{
        Store,
        denials::{Denial, Denials},
    },
};

/// How long a stream may stay without its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Serves bulk streams of this node's sessions.
#[derive(Debug, Clone)]
pub struct Sender {
    sessions: Sessions,
    peers: Peers,
    database: postgres::Database,
    store: Store,
    denials: Denials,
    metrics: Metrics,
}

/// Why a transfer ended before its end.
enum Broken {
    /// We could not go on; the target is told.
    Here(Failure),
    /// The target has gone.
    There(bulk::Error),
}

impl From<bulk::Error> for Broken {
    fn from(error: bulk::Error) -> Self {
        Self::There(error)
    }
}

impl From<postgres::Error> for Broken {
    fn from(error: postgres::Error) -> Self {
        Self::Here(error.explain())
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Here(failure)
    }
}

impl Sender {
    /// For the sessions of this node.
    pub fn new(
        sessions: Sessions,
        peers: Peers,
        database: postgres::Database,
        store: Store,
        denials: Denials,
        metrics: Metrics,
    ) -> Self {
        Self { sessions, peers, database, store, denials, metrics }
    }

    /// Serves one stream to its end.
    pub async fn serve(&self, io: Io) {
        let peer = io.peer().clone();
        let Some(caller) = peer.node().cloned() else { return };
        let (request, io) = match BlockSink::accept(io, REQUEST_LIMIT).await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "a bulk stream without a request");
                return;
            }
        };
        let is_local = self.peers.is_local(&caller);
        let compression = match &request.want {
            Some(Want::Part(part)) => part.compress.parse().unwrap_or(Compression::Auto),
            _ => Compression::Auto,
        };
        let mut sink = BlockSink::new(io, compression, is_local);
        let session = match &request.want {
            Some(Want::Part(part)) => Some(part.session_id.clone()),
            Some(Want::Dump(dump)) => Some(dump.session_id.clone()),
            Some(Want::File(_)) | None => None,
        };
        let has_session = session.is_some();
        let ended = session.and_then(|session| self.ending(&caller, &session));
        let sent = match request.want {
            Some(Want::Part(part)) => self.send_part(&caller, &part, &mut sink).await,
            Some(Want::Dump(dump)) => self.send_dump(&caller, &dump, &mut sink).await,
            Some(Want::File(file)) => self.send_file(&caller, &file, &mut sink).await,
            None => Err(Failure::new(Code::BadRequest, "the stream asks for nothing this agent knows").into()),
        };
        let closing = async {
            match sent {
                Ok(rows) => sink.finish(rows).await,
                Err(Broken::Here(failure)) => {
                    if failure.code.family() == Family::Permission {
                        let who = peer.to_string();
                        let denial = Denial { peer: Some(&peer), who: &who, rpc: "bulk", failure: &failure };
                        self.denials.tell(Some(&self.store), denial).await;
                    }
                    sink.fail(&failure).await
                }
                Err(Broken::There(error)) => Err(error),
            }
        };
        // While the session lives, its target may take its time; afterwards a reader that stands still is let go.
        let too_slow = async {
            match ended {
                Some(ended) => ended.cancelled().await,
                None if has_session => {}
                // Files have no session; their reader may take as long as one may be silent.
                None => sleep(self.sessions.lease()).await,
            }
            sleep(LAST_WORDS_LIMIT).await;
        };
        tokio::select! {
            closed = closing => if let Err(error) = closed {
                debug!(%error, peer = %caller, "a bulk stream broke");
            },
            () = too_slow => debug!(peer = %caller, "a bulk stream is not read to its end"),
        }
    }

    async fn send_file(&self, caller: &NodeId, want: &v1::FetchFile, sink: &mut BlockSink) -> Result<u64, Broken> {
        let op: OperationId = want.op_id.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))?;
        let mut file = lent::open(&self.store, caller, op, &want.name, want.offset).await?;
        let sent = self.metrics.files_sent.of([caller.as_str()]);
        loop {
            let mut block = vec![0; BLOCK_BYTES];
            let mut filled = 0;
            while filled < block.len() {
                let read = file.read(&mut block[filled..]).await.map_err(|error| {
                    Failure::new(Code::SnapshotStorage, format!("cannot read {}", want.name)).caused_by(&error)
                })?;
                if read == 0 {
                    break;
                }
                filled += read;
            }
            if filled == 0 {
                return Ok(0);
            }
            block.truncate(filled);
            sink.send(block).await?;
            sent.inc_by(filled as u64);
            crash_point!("amid sending a file");
        }
    }

    /// What tells the end of `session`; `None` where there is no such session.
    fn ending(&self, caller: &NodeId, session: &str) -> Option<CancellationToken> {
        let held = self.sessions.get(caller, session_id(session).ok()?).ok()?;
        Some(held.ended().clone())
    }

    async fn send_part(&self, caller: &NodeId, part: &v1::FetchPart, sink: &mut BlockSink) -> Result<u64, Broken> {
        let held = self.sessions.get(caller, session_id(&part.session_id)?)?;
        let unknown = || Failure::new(Code::BadRequest, format!("session {} has no such part", held.id));
        let (table, plan) = held.table(part.table_oid).ok_or_else(unknown)?;
        let (from, to) = plan.range(part.part as usize).ok_or_else(unknown)?;
        let missing = |name| Failure::new(Code::SchemaChanged, format!("{} has no column {name:?}", table.name));
        let of_name = |name: &String| table.columns.iter().find(|column| column.name == *name && column.is_copied());
        let columns = part.columns.iter().map(|name| of_name(name).ok_or_else(|| missing(name)));
        let columns = columns.collect::<Result<Vec<_>, Failure>>()?;
        let unpadding = if part.binary { Unpadding::of(&columns) } else { None };
        let format = if part.binary { CopyFormat::Binary } else { CopyFormat::Text };
        let pages = (plan.starts.len() > 1).then_some(PageRange { from, to });
        let statement = ddl::copy_out(&table.name, &part.columns, format, pages);
        let reader = held.reader().await?;
        let canceller = reader.canceller();
        let copied = tokio::select! {
            copied = copy_rows(&reader, &statement, part.binary, unpadding, sink) => copied,
            () = held.ended().cancelled() => Err(held.why_ended().into()),
        };
        match copied {
            Ok(rows) => {
                held.give_back(reader);
                Ok(rows)
            }
            Err(broken) => {
                if let Err(error) = canceller.cancel().await {
                    debug!(%error, "a COPY could not be cancelled; its connection ends anyway");
                }
                Err(broken)
            }
        }
    }

    async fn send_dump(&self, caller: &NodeId, request: &v1::FetchDump, sink: &mut BlockSink) -> Result<u64, Broken> {
        let held = self.sessions.get(caller, session_id(&request.session_id)?)?;
        let names = |tables: &[v1::TableName]| {
            tables.iter().map(|table| TableName::new(&table.schema, &table.name)).collect::<Vec<_>>()
        };
        let (only, without) = (names(&request.only), names(&request.without));
        let choice = DumpChoice { only: &only, without: &without, schemas: &request.schemas };
        if !held.scope.allows_dump(&choice, |name| held.tables.iter().any(|(table, _)| table.name == *name)) {
            let text = format!("{caller} asks for the schema of more than the tables of session {}", held.id);
            return Err(Failure::new(Code::IntentExceeded, text).into());
        }
        // The version is the server's; a reader in the snapshot knows it.
        let reader = held.reader().await?;
        let programs = Programs::find(self.database.config(), reader.version().major()).await?;
        held.give_back(reader);
        let dump = DumpRequest {
            snapshot: &held.snapshot,
            only: &only,
            without: &without,
            schemas: &request.schemas,
            op: held.op,
        };
        let mut dump = programs.dump_schema(&self.database, &dump)?;
        let sent = async {
            let mut block = vec![0; BLOCK_BYTES];
            loop {
                let read = dump.read(&mut block).await.map_err(|error| {
                    Failure::new(Code::DumpFailed, "the output of pg_dump could not be read").caused_by(&error)
                })?;
                if read == 0 {
                    return Ok::<_, Broken>(());
                }
                sink.send(block[..read].to_vec()).await?;
            }
        };
        tokio::select! {
            sent = sent => sent?,
            () = held.ended().cancelled() => return Err(held.why_ended().into()),
        }
        dump.finish().await?;
        Ok(0)
    }
}

/// Sends the rows that `statement` selects; returns how many.
async fn copy_rows(
    reader: &Reader,
    statement: &ddl::Statement,
    binary: bool,
    mut unpadding: Option<Unpadding>,
    sink: &mut BlockSink,
) -> Result<u64, Broken> {
    let mut rows = reader.copy_out(statement).await?;
    while let Some(mut block) = rows.next().await? {
        crash_point!("amid sending");
        if let Some(unpadding) = &mut unpadding {
            unpadding.shorten(&mut block)?;
        }
        sink.send(block).await?;
    }
    Ok(if binary { rows.messages().saturating_sub(1) } else { rows.messages() })
}

fn session_id(text: &str) -> Result<SessionId, Failure> {
    text.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))
}
