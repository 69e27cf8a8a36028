//! The files of a snapshot that lies with another agent, or in an object store, as they come over the network.
//!
//! A file is one run of bytes, however often the way breaks: after a cut it goes on at the byte after the last one that is
//! here, for as long as it is worth waiting. Nothing is kept on this host's disk. Does not know what the files hold; that
//! they are what the manifest says, whoever reads them makes sure.

use std::{
    io::{self, Read},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    wire::bulk::BlockSource,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{mesh::Source, storage::Bucket, telemetry};

/// Blocks between the network and whoever reads.
const AHEAD: usize = 2;
/// Between two tries to reach who holds it.
const PAUSE: Duration = Duration::from_secs(1);

/// Who holds a snapshot.
#[derive(Debug, Clone)]
pub struct Holder {
    far: Far,
    patience: Duration,
}

#[derive(Debug, Clone)]
enum Far {
    /// An agent, asked on behalf of one operation.
    Peer(Box<Source>),
    /// An object store.
    Bucket(Box<Bucket>),
}

impl Far {
    fn name(&self) -> String {
        match self {
            Self::Peer(source) => source.node().to_string(),
            Self::Bucket(bucket) => bucket.address().to_owned(),
        }
    }

    fn operation(&self) -> Option<String> {
        match self {
            Self::Peer(source) => Some(source.operation().to_string()),
            Self::Bucket(_) => None,
        }
    }
}

impl Holder {
    /// Asks `source`; where nothing comes for `patience`, a file is given up.
    pub fn new(source: Source, patience: Duration) -> Self {
        Self { far: Far::Peer(Box::new(source)), patience }
    }

    /// Asks the store of `bucket`, likewise.
    pub fn in_bucket(bucket: Bucket, patience: Duration) -> Self {
        Self { far: Far::Bucket(Box::new(bucket)), patience }
    }

    /// Where it is in an object store.
    pub(super) fn bucket(&self) -> Option<&Bucket> {
        match &self.far {
            Far::Peer(_) => None,
            Far::Bucket(bucket) => Some(bucket),
        }
    }

    /// Begins to read the file `name`, which ends when the handle is dropped.
    pub(super) fn begin(&self, name: &str) -> (Arriving, AbortOnDropHandle<()>) {
        let (to, blocks) = mpsc::channel(AHEAD);
        let fetching = tokio::spawn(self.clone().pass_on(name.to_owned(), to));
        (Arriving { blocks, rest: Bytes::new(), failure: None }, AbortOnDropHandle::new(fetching))
    }

    /// All of the file `name`, if it is small: of one with more than `most` bytes there is more than that.
    pub(super) async fn whole(&self, name: &str, most: u64) -> Result<Vec<u8>, Failure> {
        let (mut arriving, _fetching) = self.begin(name);
        let mut bytes = Vec::new();
        while let Some(block) = arriving.blocks.recv().await {
            bytes.extend_from_slice(&block?);
            if bytes.len() as u64 > most {
                break;
            }
        }
        Ok(bytes)
    }

    /// What comes after the first `at` bytes of the file `name`.
    async fn blocks(&self, name: &str, at: u64) -> Result<BoxStream<'_, Result<Bytes, Failure>>, Failure> {
        match &self.far {
            Far::Bucket(bucket) => {
                let blocks = bucket.read(name, at).await.map_err(|error| error.explain())?;
                Ok(blocks.map(|block| block.map_err(|error| error.explain())).boxed())
            }
            Far::Peer(source) => {
                let blocks = source.fetch_file(name, at).await?;
                let next = async |mut blocks: BlockSource| {
                    let block = blocks.next().await.map_err(|error| source.explain(error)).transpose();
                    block.map(|block| (block, blocks))
                };
                Ok(stream::unfold(blocks, next).boxed())
            }
        }
    }

    async fn pass_on(self, name: String, to: mpsc::Sender<Result<Bytes, Failure>>) {
        let (mut at, mut last, mut is_cut) = (0, Instant::now(), false);
        while let Err(failure) = self.from(&name, &mut at, &mut last, &mut is_cut, &to).await {
            if !passes(&failure) || last.elapsed() > self.patience {
                // Whoever does not listen any more does not ask why.
                let _ = to.send(Err(failure)).await;
                return;
            }
            if !std::mem::replace(&mut is_cut, true) {
                warn!(
                    event = "snapshot.file_cut",
                    op_id = self.far.operation(),
                    peer = self.far.name(),
                    details.file = name,
                    details.bytes = at,
                    error = telemetry::failure(&failure),
                    "a file stopped amid its way; it goes on once whoever holds it can be reached"
                );
            }
            sleep(PAUSE).await;
        }
    }

    /// Passes on what comes after the first `at` bytes, and counts them.
    async fn from(
        &self,
        name: &str,
        at: &mut u64,
        last: &mut Instant,
        is_cut: &mut bool,
        to: &mpsc::Sender<Result<Bytes, Failure>>,
    ) -> Result<(), Failure> {
        let mut blocks = self.blocks(name, *at).await?;
        while let Some(block) = blocks.next().await.transpose()? {
            if std::mem::take(is_cut) {
                info!(
                    event = "snapshot.file_resumed",
                    op_id = self.far.operation(),
                    peer = self.far.name(),
                    details.file = name,
                    details.bytes = *at,
                    "a file goes on where it stopped"
                );
            }
            *at += block.len() as u64;
            if to.send(Ok(block)).await.is_err() {
                break;
            }
            // What whoever reads takes its time for is no silence of the other end.
            *last = Instant::now();
        }
        Ok(())
    }
}

/// Whether the other end, or the way to it, may be there again by itself.
fn passes(failure: &Failure) -> bool {
    let away = [
        Code::PeerUnreachable,
        Code::PeerSilent,
        Code::StreamBroken,
        Code::PostgresUnreachable,
        Code::StoreUnreachable,
    ];
    away.contains(&failure.code)
}

/// A file as it comes, to be read where waiting holds up nobody.
pub(super) struct Arriving {
    blocks: mpsc::Receiver<Result<Bytes, Failure>>,
    rest: Bytes,
    /// Why the rest will not come.
    pub(super) failure: Option<Failure>,
}

impl Read for Arriving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.blocks.blocking_recv() {
                None => return Ok(0),
                Some(Ok(block)) => self.rest = block,
                Some(Err(failure)) => {
                    let text = failure.message.clone();
                    self.failure = Some(failure);
                    return Err(io::Error::other(text));
                }
            }
        }
        let length = self.rest.len().min(into.len());
        self.rest.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}
