//! Rows in bulk: COPY out of a table as a stream, COPY into a table as a sink.
//!
//! The hot path of the whole agent. A row leaves the server as one buffer and is handed on as it is; blocks going in
//! are written as they are. Flow control is the connection's own: who reads slowly makes the server write slowly.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{SinkExt, Stream};
use tokio_postgres::{CopyInSink, CopyOutStream};

use super::{
    connect::Session,
    ddl::Statement,
    error::{Doing, Error},
};

/// Begins to read what `statement` (of [`super::ddl::copy_out`]) selects.
///
/// To stop before the end, cancel through the session's [`super::Canceller`]: a dropped stream leaves the server
/// writing, and the session busy, until the table ends.
pub async fn copy_out(session: &Session, statement: &Statement) -> Result<CopyOut, Error> {
    let doing = statement.doing();
    let stream = session.client().copy_out(statement.as_str()).await.map_err(|error| doing.clone().failed(error))?;
    Ok(CopyOut { stream: Box::pin(stream), doing })
}

/// Rows as PostgreSQL's COPY writes them.
///
/// Each item is one CopyData message: a row of text with its newline; or a binary tuple, where the first also
/// carries the file header and one more, the last, is the two-byte trailer (alone with the header where no row is).
/// Their concatenation is exactly what [`copy_in`] takes.
pub struct CopyOut {
    stream: Pin<Box<CopyOutStream>>,
    doing: Doing,
}

impl Stream for CopyOut {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.stream.as_mut().poll_next(cx));
        Poll::Ready(next.map(|row| row.map_err(|error| self.doing.clone().failed(error))))
    }
}

/// Begins to load rows by `statement` (of [`super::ddl::copy_in`]).
///
/// PostgreSQL reports a bad row only at [`CopyIn::finish`]; what was sent after it was in vain.
pub async fn copy_in(session: &Session, statement: &Statement) -> Result<CopyIn, Error> {
    let doing = statement.doing();
    let sink = session.client().copy_in(statement.as_str()).await.map_err(|error| doing.clone().failed(error))?;
    Ok(CopyIn { sink: Box::pin(sink), doing })
}

/// Takes rows in PostgreSQL's COPY form. Dropped before [`CopyIn::finish`], the COPY fails and keeps nothing.
pub struct CopyIn {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    doing: Doing,
}

impl CopyIn {
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
        finished.map_err(|error| self.doing.failed(error))
    }

    /// A sink that does not take blocks any more says only that it is closed; the server may have said why.
    async fn reason(&mut self, error: tokio_postgres::Error) -> Error {
        match self.sink.as_mut().finish().await {
            Err(said) if said.as_db_error().is_some() => self.doing.clone().failed(said),
            _ => self.doing.clone().failed(error),
        }
    }
}
