//! Writes the files of a snapshot: compressed and hashed on a thread of their own, while the next block is read.

use std::io::{self, Write};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use steep_protocol::failure::{Code, Explain as _, Failure};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    codec::Codec,
    manifest::{FileEntry, hex},
};
use crate::storage::{Error, NewPart, Place};

/// Blocks between reading and writing: one is compressed while the next arrives.
const AHEAD: usize = 2;

/// A file as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// As the manifest has it.
    pub entry: FileEntry,
    /// Bytes before they were compressed.
    pub expanded_bytes: u64,
}

/// A file that is being written. Dropped before it is finished, nothing of it stays.
pub struct Sink {
    /// None says that all was sent; a channel that just closes says that the rest will never come.
    blocks: mpsc::Sender<Option<Bytes>>,
    writing: JoinHandle<Result<Written, Error>>,
    /// Whoever drops it waits for no store.
    _stop: DropGuard,
}

impl Sink {
    /// Begins the file `name`.
    pub fn begin(place: &Place, name: &str, codec: Codec) -> Self {
        let (blocks, arriving) = mpsc::channel(AHEAD);
        let (place, name, stop) = (place.clone(), name.to_owned(), CancellationToken::new());
        let stopped = stop.clone();
        let writing = spawn_blocking(move || write(&place, name, stopped, codec, arriving));
        Self { blocks, writing, _stop: stop.drop_guard() }
    }

    /// One more block. After an error nothing of the file is left.
    pub async fn send(&mut self, block: Bytes) -> Result<(), Failure> {
        match self.blocks.send(Some(block)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(ended((&mut self.writing).await).err().unwrap_or_else(stopped)),
        }
    }

    /// All was sent: the file is there when this returns.
    pub async fn finish(mut self) -> Result<Written, Failure> {
        // Whoever does not listen any more has failed, and says so.
        let _ = self.blocks.send(None).await;
        ended((&mut self.writing).await)
    }
}

fn stopped() -> Failure {
    Failure::new(Code::Internal, "a file was ended before its rows")
}

fn ended(written: Result<Result<Written, Error>, tokio::task::JoinError>) -> Result<Written, Failure> {
    match written {
        Ok(Ok(written)) => Ok(written),
        Ok(Err(error)) => Err(error.explain()),
        Err(error) => Err(Failure::new(Code::Internal, "writing a file ended unexpectedly").caused_by(&error)),
    }
}

/// Writes a small file at once.
pub async fn whole(place: &Place, name: &str, bytes: Vec<u8>) -> Result<FileEntry, Failure> {
    let mut sink = Sink::begin(place, name, Codec::None);
    sink.send(bytes.into()).await?;
    Ok(sink.finish().await?.entry)
}

fn write(
    place: &Place,
    name: String,
    stop: CancellationToken,
    codec: Codec,
    mut blocks: mpsc::Receiver<Option<Bytes>>,
) -> Result<Written, Error> {
    let file = place.create(&name, stop)?;
    let path = format!("{}/{name}", place.address());
    // What a store says comes through whatever compresses before it.
    let failed = |source: io::Error| match source.downcast::<Error>() {
        Ok(error) => error,
        Err(source) => Error::Io { doing: "write", path: path.clone().into(), source },
    };
    let mut encoder = codec.writer(Hashed { file, bytes: 0, sha256: Sha256::new() }).map_err(failed)?;
    let mut expanded_bytes = 0;
    loop {
        match blocks.blocking_recv() {
            Some(Some(block)) => {
                expanded_bytes += block.len() as u64;
                encoder.write_all(&block).map_err(failed)?;
            }
            Some(None) => break,
            None => return Err(failed(io::Error::new(io::ErrorKind::BrokenPipe, "the rows ended too early"))),
        }
    }
    let Hashed { file, bytes, sha256 } = encoder.finish().map_err(failed)?;
    file.finish()?;
    Ok(Written { entry: FileEntry { name, bytes, sha256: hex(&sha256.finalize()) }, expanded_bytes })
}

/// A file and the hash of what was written to it.
struct Hashed {
    file: NewPart,
    bytes: u64,
    sha256: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, block: &[u8]) -> io::Result<usize> {
        let written = self.file.write(block)?;
        self.sha256.update(&block[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
