//! The publisher's end: opens a walsender for a peer, for the slot that was made for it, and watches what it says.
//!
//! Who may read what stands in our intents: a slot was made for one node, together with its publications. Everything
//! else is refused, logged and audited. A peer that comes back takes its slot over from its own session of before,
//! which may not know yet that its other end is gone.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    v1,
    wire::{io::Io, link},
};
use tokio::{
    io::split,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Links,
    commands::{Command, Scope},
    relay,
    startup::Refused,
    traffic::{Counted, Counters, End, Meter},
};
use crate::{
    postgres::{
        Database, Purpose, slots,
        walsender::{self, Opening, Walsender},
    },
    store::{
        Actor, Store, audit,
        intents::{self, SlotOf},
    },
    telemetry,
};

/// How long a stream may stay without its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Sessions one peer may have open: links are few, and DDL about subscriptions is short.
const SESSIONS_AT_ONCE: usize = 16;
/// How long a session of before may take to let go of its slot.
const TAKE_OVER: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);
/// The same denial is written down once in so long: PostgreSQL repeats itself every few seconds.
const SAME_DENIAL: Duration = Duration::from_secs(60);
/// Denials remembered for that.
const DENIALS: usize = 1_000;

/// Serves links to this node's PostgreSQL. Clones share what is open.
#[derive(Debug, Clone)]
pub struct Publisher {
    database: Database,
    store: Store,
    links: Links,
    meter: Meter,
    open: Arc<DashMap<NodeId, usize>>,
    streaming: Arc<DashMap<String, Streaming>>,
    denied: Arc<DashMap<String, Instant>>,
    next: Arc<AtomicU64>,
}

/// A session that reads a slot.
#[derive(Debug, Clone)]
struct Streaming {
    number: u64,
    end: CancellationToken,
    ended: CancellationToken,
}

/// One session as it is served.
struct Session<'a> {
    publisher: &'a Publisher,
    caller: &'a NodeId,
    scope: Scope,
    streaming: Streaming,
    /// Done once rows of a table were read: no session may do that for longer than it is allowed.
    reads_rows: CancellationToken,
}

impl Publisher {
    /// Serves the peers of this node from now on; counts together with `links`.
    pub fn new(database: Database, store: Store, links: &Links) -> Self {
        Self {
            database,
            store,
            links: links.clone(),
            meter: links.meter().clone(),
            open: Arc::default(),
            streaming: Arc::default(),
            denied: Arc::default(),
            next: Arc::default(),
        }
    }

    /// Serves one stream to its end. Dropping the future closes both sides.
    pub async fn serve(&self, mut io: Io) {
        let Some(caller) = io.peer().node().cloned() else { return };
        let request = match link::accept(&mut io, REQUEST_LIMIT).await {
            Ok(request) => request,
            Err(error) => {
                debug!(%error, peer = %caller, "a link without a request");
                return;
            }
        };
        let counters = self.meter.of(&caller, End::Publisher);
        let Some(_turn) = Turn::take(&self.open, &caller) else {
            let text = format!("{caller} has {SESSIONS_AT_ONCE} sessions open already");
            let failure =
                Failure::new(Code::LinkDenied, text).hint("they end with PostgreSQL's own sessions; try again");
            drop(link::answer(&mut io, Err(&failure)).await);
            return;
        };
        match self.open(&caller, &request).await {
            Ok((scope, walsender)) => {
                if link::answer(&mut io, Ok(())).await.is_ok() {
                    self.carry(&caller, &request, scope, walsender, io, &counters).await;
                }
            }
            Err(failure) => {
                counters.refused();
                if failure.code == Code::LinkDenied {
                    self.write_down(&caller, &request.slot, &failure.message).await;
                }
                drop(link::answer(&mut io, Err(&failure)).await);
            }
        }
    }

    async fn open(&self, caller: &NodeId, request: &v1::LinkRequest) -> Result<(Scope, Walsender), Failure> {
        let denied = |why: String| Failure::new(Code::LinkDenied, why);
        let own = &self.database.config().dbname;
        if request.database != *own {
            return Err(denied(format!("{caller} asks for database {:?}, links lead to {own:?}", request.database)));
        }
        let opening = Opening::asked_for(&request.application_name, &request.client_encoding, &request.options);
        let opening =
            opening.map_err(|reason| denied(format!("{caller} asks for a session it may not have: {reason}")))?;
        let known = intents::slot_of(&self.store, &request.slot).await.map_err(|error| error.explain())?;
        let scope = match known {
            Some(SlotOf { peer: Some(peer), publications }) if peer == caller.as_str() => {
                Scope { slot: request.slot.clone(), publications, copying: self.links.copying(&request.slot) }
            }
            _ => return Err(denied(format!("slot {:?} was not made for {caller}", request.slot))),
        };
        let walsender = walsender::open(&self.database, &opening).await.map_err(|error| error.explain())?;
        Ok((scope, walsender))
    }

    async fn carry(
        &self,
        caller: &NodeId,
        request: &v1::LinkRequest,
        scope: Scope,
        walsender: Walsender,
        io: Io,
        counters: &Arc<Counters>,
    ) {
        let _open = counters.opened();
        let (slot, subscription) = (request.slot.as_str(), request.subscription.as_str());
        info!(event = "mesh.link_up", details.peer = %caller, details.slot = slot, details.subscription = subscription, "a peer replicates from this node");
        let ended = CancellationToken::new();
        let _ended = ended.clone().drop_guard();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let end = CancellationToken::new();
        let streaming = Streaming { number, end: end.clone(), ended };
        let reads_rows = CancellationToken::new();
        let may_end = scope.copying.as_ref().map(|copying| copying.ended.clone());
        let no_longer = async {
            reads_rows.cancelled().await;
            match may_end {
                Some(ended) => ended.cancelled().await,
                None => pending().await,
            }
        };
        let mut session = Session { publisher: self, caller, scope, streaming, reads_rows: reads_rows.clone() };
        let (from_peer, to_peer) = split(Counted::new(io, Arc::clone(counters)));
        let (from_server, to_server) = split(walsender.stream);
        let (say, last_word) = oneshot::channel();
        let up = async {
            let end = relay::up(from_peer, to_server, &mut session).await;
            if let relay::End::Refused(reason) = end {
                counters.refused();
                let failure =
                    Failure::new(Code::LinkDenied, format!("{caller} says what a link does not carry: {reason}"));
                self.write_down(caller, slot, &failure.message).await;
                // Nobody listens any more where the server was faster.
                drop(say.send(Refused::from(&failure).to_bytes()));
            } else if let relay::End::Broken(error) = end {
                debug!(%error, peer = %caller, "a link broke");
                // Nothing will be heard of the peer: the server need not go on either.
                drop(say.send(Vec::new()));
            }
        };
        let both = async { tokio::join!(up, relay::down(from_server, to_peer, walsender.said, last_word)).1 };
        let reason = tokio::select! {
            moved = both => moved.map_or_else(|error| error.to_string(), |()| String::new()),
            () = no_longer => "the session in which tables may be copied has ended".to_owned(),
            () = end.cancelled() => "the peer has come back on another session".to_owned(),
        };
        self.streaming.remove_if(slot, |_, streaming| streaming.number == number);
        info!(event = "mesh.link_down", details.peer = %caller, details.slot = slot, details.subscription = subscription, reason, "a peer's replication has ended");
    }

    /// Logs and audits a denial, the same one not again and again.
    async fn write_down(&self, caller: &NodeId, slot: &str, reason: &str) {
        self.denied.retain(|_, at| at.elapsed() < SAME_DENIAL);
        if self.denied.len() >= DENIALS
            || self.denied.insert(format!("{caller}\0{slot}\0{reason}"), Instant::now()).is_some()
        {
            return;
        }
        let failure = Failure::new(Code::LinkDenied, reason);
        warn!(event = "mesh.link_denied", details.peer = %caller, details.slot = slot, error = telemetry::failure(&failure), "a peer was denied");
        let detail = json!({ "slot": slot, "reason": reason });
        if let Err(error) = audit::append(&self.store, &Actor::node(caller), "link.denied", slot, None, &detail).await {
            warn!(reason = %error, "a denial could not be audited");
        }
    }
}

impl relay::Judge for Session<'_> {
    async fn judge(&mut self, text: &str) -> Result<(), String> {
        match self.scope.judge(text) {
            Ok(Command::Stream) => {
                self.take_over().await;
                Ok(())
            }
            Ok(Command::CopyRows) => {
                self.reads_rows.cancel();
                Ok(())
            }
            Ok(Command::Question | Command::DropSlot | Command::Copy) => Ok(()),
            Err(reason) => Err(format!("{reason} (in: {})", beginning(text))),
        }
    }
}

impl Session<'_> {
    /// Ends the session of the same peer that reads the slot now, and waits until the server has let go of it. Where it
    /// does not, PostgreSQL will say that the slot is in use, and the subscriber tries again.
    async fn take_over(&self) {
        let before = self.publisher.streaming.insert(self.scope.slot.clone(), self.streaming.clone());
        let let_go = async {
            if let Some(before) = before {
                before.end.cancel();
                before.ended.cancelled().await;
            }
            let Ok(look) = self.publisher.database.session(Purpose::Watch).await else { return };
            while let Ok(Some(slot)) = slots::progress(&look, &self.scope.slot).await
                && slot.is_active
            {
                sleep(LOOK).await;
            }
        };
        if timeout(TAKE_OVER, let_go).await.is_err() {
            debug!(slot = self.scope.slot, peer = %self.caller, "a session of before does not end");
        }
    }
}

/// Tells whoever asks for a link before this node's PostgreSQL was reached to come again.
pub async fn not_yet(mut io: Io) {
    let failure = Failure::new(Code::PostgresUnreachable, "the publisher's agent has not reached its PostgreSQL yet");
    if link::accept(&mut io, REQUEST_LIMIT).await.is_ok() {
        drop(link::answer(&mut io, Err(&failure)).await);
    }
}

/// Enough of a text to know it again, safe to log.
fn beginning(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// One of the sessions a peer may have.
struct Turn<'a> {
    open: &'a DashMap<NodeId, usize>,
    peer: NodeId,
}

impl<'a> Turn<'a> {
    fn take(open: &'a DashMap<NodeId, usize>, peer: &NodeId) -> Option<Self> {
        let mut taken = open.entry(peer.clone()).or_default();
        if *taken >= SESSIONS_AT_ONCE {
            return None;
        }
        *taken += 1;
        Some(Self { open, peer: peer.clone() })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(mut taken) = self.open.get_mut(&self.peer) {
            *taken -= 1;
        }
    }
}
