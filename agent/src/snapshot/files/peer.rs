//! The files of a snapshot that lies with another agent, as they come over the network.
//!
//! A file is one run of bytes, however often the way breaks: after a cut it goes on at the byte after the last one that is
//! here, for as long as it is worth waiting. Nothing is kept on this host's disk. Does not know what the files hold; that
//! they are what the manifest says, whoever reads them makes sure.

use std::{
    io::{self, Read},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use steep_protocol::failure::{Code, Failure};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{mesh::Source, telemetry};

/// Blocks between the network and whoever reads.
const AHEAD: usize = 2;
/// Between two tries to reach the other agent.
const PAUSE: Duration = Duration::from_secs(1);

/// The agent that holds a snapshot, asked on behalf of one operation.
#[derive(Debug, Clone)]
pub struct Holder {
    source: Source,
    patience: Duration,
}

impl Holder {
    /// Asks `source`; where nothing comes for `patience`, a file is given up.
    pub fn new(source: Source, patience: Duration) -> Self {
        Self { source, patience }
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
                    event = "snapshot.file_cut", op_id = %self.source.operation(), peer = %self.source.node(),
                    details.file = name, details.bytes = at, error = telemetry::failure(&failure),
                    "a file stopped amid its way; it goes on once the agent can be reached"
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
        let mut blocks = self.source.fetch_file(name, *at).await?;
        while let Some(block) = blocks.next().await.map_err(|error| self.source.explain(error))? {
            if std::mem::take(is_cut) {
                info!(
                    event = "snapshot.file_resumed", op_id = %self.source.operation(), peer = %self.source.node(),
                    details.file = name, details.bytes = *at, "a file goes on where it stopped"
                );
            }
            *at += block.len() as u64;
            if to.send(Ok(block)).await.is_err() {
                break;
            }
            // What whoever reads takes its time for is no silence of the other agent.
            *last = Instant::now();
        }
        Ok(())
    }
}

/// Whether the other agent, or the way to it, may be there again by itself.
fn passes(failure: &Failure) -> bool {
    let away = [Code::PeerUnreachable, Code::PeerSilent, Code::StreamBroken, Code::PostgresUnreachable];
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
