//! An object that is being written: in pieces, one of them on its way while the next is gathered.
//!
//! What fits into one piece is sent in one request. Blocks: it is written where that is allowed, within the runtime.

use std::{
    io::{self, Write},
    mem,
};

use object_store::{
    ObjectStoreExt as _, PutPayload,
    multipart::{MultipartStore as _, PartId},
};
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Error,
    bucket::{Bucket, refusal, told},
};

/// Bytes of a piece: the least a store takes, of 10,000 at most. There are two of each file that is being written.
const PIECE_BYTES: usize = 5 << 20;

/// An object that is being written. Dropped before it is finished, what was sent of it is given up.
#[derive(Debug)]
pub struct NewObject {
    bucket: Bucket,
    name: String,
    runtime: Handle,
    stop: CancellationToken,
    gathered: Vec<u8>,
    /// Once there is more than one piece.
    upload: Option<String>,
    sent: Vec<PartId>,
    sending: Option<JoinHandle<object_store::Result<PartId>>>,
    bytes: u64,
}

impl NewObject {
    pub(super) fn new(bucket: Bucket, name: &str, stop: CancellationToken) -> Self {
        Self {
            bucket,
            name: name.to_owned(),
            runtime: Handle::current(),
            stop,
            gathered: Vec::new(),
            upload: None,
            sent: Vec::new(),
            sending: None,
            bytes: 0,
        }
    }

    fn failed(&self, error: object_store::Error) -> Error {
        told("write", &self.bucket.address_of(&self.name), error)
    }

    /// Waits for the store, unless nobody wants the object any more.
    fn wait<T>(&self, work: impl Future<Output = object_store::Result<T>>) -> Result<T, Error> {
        let waited = async {
            tokio::select! {
                done = work => Some(done),
                () = self.stop.cancelled() => None,
            }
        };
        match self.runtime.block_on(waited) {
            Some(done) => done.map_err(|error| self.failed(error)),
            None => {
                let source = io::Error::new(io::ErrorKind::BrokenPipe, "nobody wants it any more");
                Err(Error::Io { doing: "write", path: self.bucket.address_of(&self.name).into(), source })
            }
        }
    }

    /// Waits until the piece that is on its way has arrived.
    fn settle(&mut self) -> Result<(), Error> {
        let Some(mut sending) = self.sending.take() else { return Ok(()) };
        let sent = self.wait(async { (&mut sending).await.unwrap_or_else(|error| Err(error.into())) });
        sending.abort();
        self.sent.push(sent?);
        Ok(())
    }

    /// Sends what was gathered as a piece of an upload.
    fn send(&mut self) -> Result<(), Error> {
        self.settle()?;
        let path = self.bucket.path_of(&self.name);
        let upload = match &self.upload {
            Some(upload) => upload.clone(),
            None => {
                let begun = self.wait(self.bucket.store.create_multipart(&path))?;
                self.upload.insert(begun).clone()
            }
        };
        let (store, number) = (self.bucket.store.clone(), self.sent.len());
        let piece = PutPayload::from(mem::take(&mut self.gathered));
        self.sending = Some(self.runtime.spawn(async move { store.put_part(&path, &upload, number, piece).await }));
        Ok(())
    }

    /// It is whole: from now on it is there. After an error nothing of it is.
    pub fn finish(mut self) -> Result<(), Error> {
        let path = self.bucket.path_of(&self.name);
        if self.upload.is_none() {
            let all = PutPayload::from(mem::take(&mut self.gathered));
            return self.wait(self.bucket.store.put(&path, all)).map(drop);
        }
        if !self.gathered.is_empty() {
            self.send()?;
        }
        self.settle()?;
        let upload = self.upload.clone().unwrap_or_default();
        let (bucket, parts) = (self.bucket.clone(), mem::take(&mut self.sent));
        let (name, bytes) = (self.name.clone(), self.bytes);
        self.wait(async {
            match bucket.store.complete_multipart(&path, &upload, parts).await {
                // Asked twice, because the first answer was lost, a store may know of no such upload any more.
                Err(error) if is_gone(&error) && bucket.has(&name, bytes).await => Ok(()),
                done => done.map(drop),
            }
        })?;
        self.upload = None;
        Ok(())
    }
}

fn is_gone(error: &object_store::Error) -> bool {
    refusal(error).is_some_and(|refused| refused.code == "NoSuchUpload")
}

impl Write for NewObject {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gathered.is_empty() {
            // Grown as it fills, it would hold room for eight.
            self.gathered.reserve_exact(PIECE_BYTES);
        }
        let taken = bytes.len().min(PIECE_BYTES - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..taken]);
        self.bytes += taken as u64;
        if self.gathered.len() == PIECE_BYTES {
            self.send().map_err(io::Error::other)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewObject {
    fn drop(&mut self) {
        if let Some(sending) = self.sending.take() {
            sending.abort();
        }
        let Some(upload) = self.upload.take() else { return };
        let (bucket, path) = (self.bucket.clone(), self.bucket.path_of(&self.name));
        // Whoever undoes the operation looks for what this does not reach.
        drop(self.runtime.spawn(async move { bucket.abort(&path, &upload).await }));
    }
}
