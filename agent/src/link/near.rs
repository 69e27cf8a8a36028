//! The subscriber's end: a socket that speaks PostgreSQL's protocol just long enough to know who is there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    v1,
    wire::{io::Io, link},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::startup::{self, Knock, Refused, Secret, Startup, WELCOME};
use super::traffic::{Counted, Counters};
use crate::{mesh::Peers, telemetry};

/// How long a client may take to show the secret.
const KNOCK_LIMIT: Duration = Duration::from_secs(5);
/// How long the publisher's agent may take to open a session.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Clients that have not shown the secret yet; more are turned away.
const KNOCKING_AT_ONCE: usize = 16;
/// Sessions of one link: the walreceiver's, and those of DDL about its subscription.
const SESSIONS_AT_ONCE: usize = 8;
const TO_PEER_BYTES: usize = 8 << 10;
const FROM_PEER_BYTES: usize = 128 << 10;

/// One link of a subscription of this node.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) peer: NodeId,
    pub(super) database: String,
    pub(super) slot: String,
    pub(super) subscription: String,
    pub(super) secret: Secret,
    pub(super) peers: Peers,
    pub(super) counters: Arc<Counters>,
    /// The last session could not be opened, and the log says why.
    pub(super) told: AtomicBool,
}

impl Door {
    /// Lets clients in until `stop`; ends every session with it.
    pub(super) async fn keep(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        let (knocking, open) = (Arc::new(Semaphore::new(KNOCKING_AT_ONCE)), Arc::new(Semaphore::new(SESSIONS_AT_ONCE)));
        let sessions = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of files, most likely; it passes.
                    debug!(%error, "a client of a link could not be taken");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Over the limit: dropping the socket is the answer.
            let Ok(permit) = Arc::clone(&knocking).try_acquire_owned() else { continue };
            let (door, open, stop) = (Arc::clone(&self), Arc::clone(&open), stop.clone());
            sessions.spawn(async move {
                let mut stream = stream;
                let served = async {
                    let knock = timeout(KNOCK_LIMIT, startup::hear(&mut stream, &door.secret)).await;
                    drop(permit);
                    let Ok(Ok(knock)) = knock else { return };
                    door.answer(&mut stream, knock, &open).await;
                };
                stop.run_until_cancelled(served).await;
            });
        }
        sessions.close();
        sessions.wait().await;
    }

    async fn answer(&self, stream: &mut UnixStream, knock: Knock, open: &Semaphore) {
        let refused = match knock {
            Knock::Nobody => return,
            Knock::Refused(refused) => refused,
            Knock::Client(startup) => match (self.check(&startup), open.try_acquire()) {
                (Err(refused), _) => refused,
                (Ok(()), Err(_)) => Refused::new("53300", "Steep: this link has no session left"),
                (Ok(()), Ok(_permit)) => match self.open(&startup).await {
                    Ok(io) => return self.carry(stream, io).await,
                    Err(failure) => {
                        self.counters.refused();
                        self.tell(&failure);
                        return say(stream, &Refused::from(&failure)).await;
                    }
                },
            },
        };
        self.counters.refused();
        warn!(
            event = "mesh.link_refused", details.peer = %self.peer, details.subscription = self.subscription,
            reason = refused.message, "a client of a replication link was refused"
        );
        say(stream, &refused).await;
    }

    /// Whoever has the secret has a connection string of ours; this notices one that was changed.
    fn check(&self, startup: &Startup) -> Result<(), Refused> {
        if startup.replication != "database" {
            return Err(Refused::new("08004", "Steep: a link carries logical replication and nothing else"));
        }
        if startup.user != self.peer.as_str() {
            return Err(Refused::new("28000", format!("Steep: this link leads to {}", self.peer)));
        }
        if startup.database != self.database {
            let text = format!("Steep: this link leads to database {:?}", self.database);
            return Err(Refused::new("3D000", text));
        }
        Ok(())
    }

    async fn open(&self, startup: &Startup) -> Result<Io, Failure> {
        let request = v1::LinkRequest {
            database: self.database.clone(),
            slot: self.slot.clone(),
            subscription: self.subscription.clone(),
            application_name: startup.application_name.clone(),
            client_encoding: startup.client_encoding.clone(),
            options: startup.options.clone(),
        };
        let opening = async { link::request(self.peers.open_link(&self.peer).await?, &request, OPEN_LIMIT).await };
        let silent = || Failure::new(Code::PeerSilent, "its agent does not answer");
        let opened = timeout(OPEN_LIMIT, opening).await.unwrap_or_else(|_| Err(silent()));
        opened.map_err(|failure| match failure.code {
            Code::PeerSilent | Code::StreamBroken => {
                let text = format!("the link to {}: {}", self.peer, failure.message);
                Failure { message: text, ..failure }
            }
            _ => failure,
        })
    }

    async fn carry(&self, stream: &mut UnixStream, io: Io) {
        self.told.store(false, Ordering::Relaxed);
        let _session = self.counters.opened();
        info!(
            event = "mesh.link_up", details.peer = %self.peer, details.subscription = self.subscription,
            "a replication link is up"
        );
        let mut io = Counted::new(io, Arc::clone(&self.counters));
        let carried = async {
            stream.write_all(WELCOME).await?;
            copy_bidirectional_with_sizes(stream, &mut io, TO_PEER_BYTES, FROM_PEER_BYTES).await
        };
        let reason = match carried.await {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        info!(
            event = "mesh.link_down", details.peer = %self.peer, details.subscription = self.subscription, reason,
            "a replication link has ended"
        );
    }

    /// PostgreSQL tries again every few seconds: the log is told the first time.
    fn tell(&self, failure: &Failure) {
        if !self.told.swap(true, Ordering::Relaxed) {
            warn!(
                event = "mesh.link_refused", details.peer = %self.peer, details.subscription = self.subscription,
                error = telemetry::failure(failure), "a replication link could not be opened; PostgreSQL tries again"
            );
        }
    }
}

async fn say(stream: &mut UnixStream, refused: &Refused) {
    let said = async {
        stream.write_all(&refused.to_bytes()).await?;
        stream.shutdown().await?;
        // Closing with words of the client unread would take ours away from it.
        let mut rest = [0; 256];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whoever does not listen loses nothing.
    drop(timeout(Duration::from_secs(1), said).await);
}
