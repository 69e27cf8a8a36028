//! Rows in bulk: COPY out of a table as a stream, COPY into a table as a sink.
//!
//! The hot path of the whole agent. A row leaves the server as one buffer and is handed on as it is; blocks going in
//! are written as they are. Flow control is the connection's own: who reads slowly makes the server write slowly.

use std::{ops::Deref, pin::Pin};

use bytes::Bytes;
use futures::{SinkExt, StreamExt as _};
use steep_protocol::ids::OperationId;
use tokio::sync::{Mutex, MutexGuard, mpsc};
use tokio_postgres::{CopyInSink, CopyOutStream};

use super::{
    connect::{Database, Purpose, Session},
    ddl::Statement,
    error::{Doing, Error, doing},
    gather::{Block, Gathering},
    replication::dial,
};

/// A session that rows are read through.
#[derive(Debug)]
pub struct Reader {
    session: Session,
    blocks: Mutex<mpsc::Receiver<Block>>,
}

impl Database {
    /// Opens a session to read rows through. Fails like [`Database::session`].
    pub async fn reader(&self, op: OperationId) -> Result<Reader, Error> {
        let stream = dial(self.config()).await.map_err(|source| self.unreachable(source))?;
        let (stream, blocks) = Gathering::over(stream);
        let session = self.session_over(stream, Purpose::CopyOut(op)).await?;
        Ok(Reader { session, blocks: Mutex::new(blocks) })
    }
}

impl Deref for Reader {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Reader {
    /// Begins to read what `statement` (of [`super::ddl::copy_out`]) selects.
    ///
    /// To stop before the end, cancel through the session's [`super::Canceller`] and drop the reader: one that was not
    /// read to the end leaves the server writing, and its next rows would be these.
    pub async fn copy_out(&self, statement: &Statement) -> Result<CopyOut<'_>, Error> {
        let doing = statement.doing();
        let blocks = self.blocks.lock().await;
        // Understood before the server speaks otherwise: its names are UTF-8.
        let prepared = self.client().prepare(statement.as_str()).await.map_err(|error| doing.clone().failed(error))?;
        self.speak_as_stored().await?;
        let stream = self.client().copy_out(&prepared).await.map_err(|error| doing.clone().failed(error))?;
        Ok(CopyOut { session: &self.session, stream: Box::pin(stream), blocks, has_ended: false, messages: 0, doing })
    }
}

/// Rows as PostgreSQL's COPY writes them.
///
/// The concatenation of all blocks is exactly what [`copy_in`] takes: rows of text, each with its newline; or binary
/// tuples behind the file header and before the two-byte trailer. Text is in the database's own encoding.
pub struct CopyOut<'a> {
    session: &'a Session,
    stream: Pin<Box<CopyOutStream>>,
    blocks: MutexGuard<'a, mpsc::Receiver<Block>>,
    has_ended: bool,
    messages: u64,
    doing: Doing,
}

impl CopyOut<'_> {
    /// The next rows, cut on the edge of one; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut block = None;
        if !self.has_ended {
            block = tokio::select! {
                biased;
                // None: the connection is gone, of which the stream knows more.
                Some(block) = self.blocks.recv() => Some(block),
                ended = self.stream.next() => {
                    if let Some(Err(error)) = ended {
                        return Err(self.doing.clone().failed(error));
                    }
                    self.has_ended = true;
                    self.session.speak_utf8().await?;
                    None
                }
            };
        }
        // The last one lay ready before the library heard of the end.
        let Some(block) = block.or_else(|| self.blocks.try_recv().ok()) else { return Ok(None) };
        self.messages += block.messages;
        Ok(Some(block.bytes))
    }

    /// Messages read so far. PostgreSQL sends one for a row; in binary one more, the trailer, while the file header comes
    /// with the first of them.
    pub fn messages(&self) -> u64 {
        self.messages
    }
}

/// Begins to load rows by `statement` (of [`super::ddl::copy_in`]).
///
/// PostgreSQL reports a bad row only at [`CopyIn::finish`]; what was sent after it was in vain.
pub async fn copy_in<'a>(session: &'a Session, statement: &Statement) -> Result<CopyIn<'a>, Error> {
    let doing = statement.doing();
    let prepared = session.client().prepare(statement.as_str()).await.map_err(|error| doing.clone().failed(error))?;
    session.speak_as_stored().await?;
    let sink = session.client().copy_in(&prepared).await.map_err(|error| doing.clone().failed(error))?;
    Ok(CopyIn { session, sink: Box::pin(sink), doing })
}

/// Makes PostgreSQL's walwriter write and flush what waits; `session` commits asynchronously.
pub async fn wake_walwriter(session: &Session) -> Result<(), Error> {
    session.execute(doing("wake the walwriter"), sql!("copies/wake_walwriter.sql"), &[]).await.map(drop)
}

/// The same, where a megabyte or more waits.
pub async fn wake_walwriter_if_due(session: &Session) -> Result<(), Error> {
    session.execute(doing("wake the walwriter"), sql!("copies/wake_walwriter_if_due.sql"), &[]).await.map(drop)
}

/// Takes rows in PostgreSQL's COPY form, text in the database's own encoding. Dropped before [`CopyIn::finish`], the COPY
/// fails and keeps nothing.
pub struct CopyIn<'a> {
    session: &'a Session,
    sink: Pin<Box<CopyInSink<Bytes>>>,
    doing: Doing,
}

impl CopyIn<'_> {
    /// Sends a block; rows may be cut anywhere. At most 1 GiB.
    pub async fn send(&mut self, block: Bytes) -> Result<(), Error> {
        // Feed, not send: a flush after every block would wait for the socket each time.
        let fed = self.sink.feed(block).await;
        match fed {
            Ok(()) => Ok(()),
            Err(error) => Err(self.reason(error).await),
        }
    }

    /// Ends the COPY and returns the rows loaded.
    pub async fn finish(mut self) -> Result<u64, Error> {
        let finished = self.sink.as_mut().finish().await;
        let rows = finished.map_err(|error| self.doing.failed(error))?;
        self.session.speak_utf8().await?;
        Ok(rows)
    }

    /// A sink that does not take blocks any more says only that it is closed; the server may have said why.
    async fn reason(&mut self, error: tokio_postgres::Error) -> Error {
        match self.sink.as_mut().finish().await {
            Err(said) if said.as_db_error().is_some() => self.doing.clone().failed(said),
            _ => self.doing.clone().failed(error),
        }
    }
}
