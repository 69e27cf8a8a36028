//! The links of this node's subscriptions: made with a subscription, found again at start, gone with it.
//!
//! A link's secret lies in the connection string of its subscription and nowhere else, so what PostgreSQL has is what
//! there is: [`Links::restore`] reads it, and takes down what no subscription uses any more.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use dashmap::DashMap;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    names::TableName,
};
use tokio::sync::Mutex;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{info, warn};

use super::{
    near::Door,
    place::{Account, PORT, Place},
    startup::Secret,
    tables::Copying,
    traffic::{End, Meter, Traffic},
};
use crate::{
    config::Config,
    mesh::Peers,
    postgres::{
        self, Database, Purpose, Session, catalog,
        conninfo::Conninfo,
        slots::SyncSlots,
        subscriptions::{self, Linked},
    },
    telemetry,
};

/// The links of this node's subscriptions. Clones share them.
#[derive(Debug, Clone)]
pub struct Links {
    place: Place,
    peers: Peers,
    open: Arc<DashMap<String, Open>>,
    meter: Meter,
    /// What subscribers of this node's slots may copy by themselves, by the slot.
    copying: Arc<DashMap<String, Copying>>,
    /// Directories are made, looked at and swept by one at a time.
    turn: Arc<Mutex<()>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Open {
    peer: NodeId,
    /// Its subscription was seen in the catalog. Until then the link waits for it.
    is_used: bool,
    _stop: DropGuard,
}

impl Links {
    /// None are open yet. All of them end with `stop`.
    pub fn new(config: &Config, peers: Peers, stop: CancellationToken) -> Self {
        Self {
            place: Place::new(&config.socket_dir(), &config.node.id),
            peers,
            open: Arc::default(),
            meter: Meter::default(),
            copying: Arc::default(),
            turn: Arc::default(),
            tasks: TaskTracker::new(),
            stop,
        }
    }

    /// Makes a link to `database` of `peer` for a subscription that will be made, and returns its connection string,
    /// which alone holds the secret.
    pub async fn offer(
        &self,
        local: &Database,
        peer: &NodeId,
        database: &str,
        slot: &str,
        subscription: &str,
    ) -> Result<Conninfo, Failure> {
        let _turn = self.turn.lock().await;
        // A link of that name is one whose subscription was dropped by hand just now.
        self.close(subscription);
        let dir = self.place.make(peer, account(local).await?)?;
        let secret = Secret::random()?;
        let conninfo = conninfo(&dir, peer, database, &secret);
        self.listen(peer, database, slot, subscription, secret, false)?;
        Ok(conninfo)
    }

    /// Opens the links of all subscriptions that have one, closes those whose subscription is gone, and removes what an
    /// earlier run left. `may_move`: connection strings follow a changed `replication.socket_dir`.
    ///
    /// A link that cannot be opened is logged, and tried again by the next call.
    pub async fn restore(&self, local: &Database, may_move: bool) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let explain = |error: postgres::Error| error.explain();
        let session = local.session(Purpose::Watch).await.map_err(explain)?;
        let found = subscriptions::linked(&session).await.map_err(explain)?;
        let server = account(local).await?;
        let ours: Vec<_> = found.iter().filter_map(|linked| Some((linked, self.known(linked)?))).collect();
        for (linked, known) in &ours {
            if let Some(mut open) = self.open.get_mut(&linked.name) {
                open.is_used = true;
                continue;
            }
            if let Err(failure) = self.reopen(&session, linked, known, server, may_move).await {
                warn!(
                    event = "mesh.link_refused", details.peer = %known.peer, details.subscription = linked.name,
                    error = telemetry::failure(&failure), "a replication link could not be opened"
                );
            }
        }
        let gone = |name: &str, open: &Open| open.is_used && !ours.iter().any(|(linked, _)| linked.name == *name);
        let gone: Vec<_> =
            self.open.iter().filter(|open| gone(open.key(), open)).map(|open| open.key().clone()).collect();
        gone.iter().for_each(|name| self.close(name));
        if may_move {
            let mut wanted: Vec<_> = self.open.iter().map(|open| open.peer.clone()).collect();
            wanted.extend(ours.iter().map(|(_, known)| known.peer.clone()));
            self.place.sweep(&wanted);
        }
        session.close().await;
        Ok(())
    }

    async fn reopen(
        &self,
        session: &Session,
        linked: &Linked,
        known: &Known,
        server: Option<Account>,
        may_move: bool,
    ) -> Result<(), Failure> {
        let dir = self.place.of(&known.peer);
        let has_moved = Path::new(&known.host) != dir;
        if has_moved && !may_move {
            return Ok(());
        }
        self.place.make(&known.peer, server)?;
        self.listen(&known.peer, &known.database, &linked.slot, &linked.name, known.secret.clone(), true)?;
        if has_moved {
            let conninfo = conninfo(&dir, &known.peer, &known.database, &known.secret);
            subscriptions::reconnect(session, &linked.name, &conninfo).await.map_err(|error| error.explain())?;
            info!(event = "mesh.link_moved", details.subscription = linked.name, "a replication link has moved");
        }
        Ok(())
    }

    /// What the connection string of a subscription says, if its link is ours.
    fn known(&self, linked: &Linked) -> Option<Known> {
        let get = |key: &str| linked.conninfo.get(key);
        let (host, peer) = (get("host")?, get("user")?.parse::<NodeId>().ok()?);
        let is_ours = Path::new(host).file_name()?.to_str()? == self.place.name_of(&peer);
        let secret = Secret::known(get("password")?);
        is_ours.then_some(Known { host: host.to_owned(), peer, database: get("dbname")?.to_owned(), secret })
    }

    fn listen(
        &self,
        peer: &NodeId,
        database: &str,
        slot: &str,
        subscription: &str,
        secret: Secret,
        is_used: bool,
    ) -> Result<(), Failure> {
        let listener = self.place.listen(peer)?;
        let door = Arc::new(Door {
            peer: peer.clone(),
            database: database.to_owned(),
            slot: slot.to_owned(),
            subscription: subscription.to_owned(),
            secret,
            peers: self.peers.clone(),
            counters: self.meter.of(peer, End::Subscriber),
            told: AtomicBool::new(false),
        });
        let stop = self.stop.child_token();
        self.tasks.spawn(door.keep(listener, stop.clone()));
        let open = Open { peer: peer.clone(), is_used, _stop: stop.drop_guard() };
        self.open.insert(subscription.to_owned(), open);
        Ok(())
    }

    /// Closes the link of a subscription that is gone, and removes its socket. Nothing happens where there is none.
    pub fn close(&self, subscription: &str) {
        if let Some((_, open)) = self.open.remove(subscription) {
            self.place.remove(&open.peer);
        }
    }

    /// Whether the local PostgreSQL could reach the socket of a link to `peer`; fails with what is in the way.
    pub async fn probe(&self, local: &Database, session: &Session, peer: &NodeId) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let server = account(local).await?;
        let was_there = self.place.of(peer).exists();
        let dir = self.place.make(peer, server)?;
        let file = dir.join("here");
        let written = std::fs::write(&file, "").map_err(|error| {
            let text = format!("{} cannot be written", dir.display());
            Failure::new(Code::LinkSocketUnusable, text).caused_by(&error)
        });
        let found = match written {
            Ok(()) => catalog::server_finds(session, &file.to_string_lossy()).await.map_err(|error| error.explain()),
            Err(failure) => Err(failure),
        };
        drop(std::fs::remove_file(&file));
        let closed = Place::closed_to(&dir, server);
        if !was_there {
            self.place.remove(peer);
        }
        match found {
            Ok(true) => Ok(()),
            Ok(false) => {
                let text =
                    format!("PostgreSQL does not see {}: it runs on another machine or in a container", dir.display());
                let hint = "run the agent beside PostgreSQL, with replication.socket_dir where both see it; or set \
                            replication.link = \"direct\" on the other node";
                Err(Failure::new(Code::LinkUnreachable, text).hint(hint))
            }
            Err(failure) if failure.sqlstate.as_deref() == Some("42501") => Err(unreachable(&dir, closed.as_deref())),
            Err(failure) => Err(failure),
        }
    }

    /// Lets the subscription that reads `slot` of this node copy tables by itself, until the session has ended.
    ///
    /// `slots` are those its workers make, `tables` what they may read, as (oid, name).
    pub fn let_copy(&self, slot: &str, slots: SyncSlots, tables: Vec<(u32, TableName)>, ended: CancellationToken) {
        self.copying.retain(|_, copying| copying.is_allowed());
        self.copying.insert(slot.to_owned(), Copying { slots, tables, ended });
    }

    /// What the subscription that reads `slot` of this node may copy by itself now.
    pub(super) fn copying(&self, slot: &str) -> Option<Copying> {
        self.copying.get(slot).map(|copying| copying.clone()).filter(Copying::is_allowed)
    }

    /// What went through the links of this node, as subscriber and as publisher, since the agent started.
    pub fn traffic(&self) -> Vec<Traffic> {
        self.meter.read()
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Waits until every link has ended, for an agent that has cancelled the token.
    pub async fn ended(&self) {
        self.open.clear();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A link as a subscription's connection string has it.
struct Known {
    host: String,
    peer: NodeId,
    database: String,
    secret: Secret,
}

async fn account(local: &Database) -> Result<Option<Account>, Failure> {
    local.server_account().await.map_err(|error| error.explain())
}

fn conninfo(dir: &Path, peer: &NodeId, database: &str, secret: &Secret) -> Conninfo {
    Conninfo::default()
        .with("host", dir.to_string_lossy())
        .with("port", PORT.to_string())
        .with("user", peer.as_str())
        .with("dbname", database)
        .with("password", secret.text())
        .pinned()
}

fn unreachable(dir: &Path, closed: Option<&Path>) -> Failure {
    let way = match closed {
        Some(closed) => format!("its account may not enter {}", closed.display()),
        None => format!("its account may not enter {}", dir.display()),
    };
    Failure::new(Code::LinkUnreachable, format!("PostgreSQL cannot reach the socket of the replication link: {way}"))
}
