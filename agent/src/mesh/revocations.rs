//! Revocation lists on their way from agent to agent.
//!
//! Agents tell each other the numbers of the lists they go by; who hears of a newer one fetches it. A list is
//! believed for its signature, never for who sent it. Those in force are kept in `revocations` below
//! `node.state_dir`, so that a restarted agent goes by them before it hears anything.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    v1::{self, RevocationNumber},
    wire::{
        identity::Identity,
        revocation::{self, MAX_LIST_BYTES, RevocationList},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Peers;
use crate::telemetry;

/// The most authorities a peer may speak of at once: a mesh has two, four while its root is exchanged.
const MOST_AUTHORITIES: usize = 16;
/// Peers whose word waits to be followed up; they say it again every second.
const CLAIMS_WAITING: usize = 64;
/// How long a peer may take to hand over its lists.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// A peer whose lists could not be had or believed is not asked again for so long.
const DISTRUST: Duration = Duration::from_secs(30);

/// The lists this agent goes by. Clones share them.
#[derive(Debug, Clone)]
pub struct Revocations {
    identity: Identity,
    dir: PathBuf,
    claims: mpsc::Sender<Claim>,
}

/// A peer says that it knows newer lists.
#[derive(Debug)]
struct Claim {
    peer: NodeId,
}

/// What peers have said and nobody has followed up yet.
#[derive(Debug)]
pub struct Claims {
    revocations: Revocations,
    waiting: mpsc::Receiver<Claim>,
}

impl Revocations {
    /// Goes by the lists kept below `state_dir`. What cannot be read or believed there is told and left alone.
    pub fn open(identity: Identity, state_dir: &Path) -> (Self, Claims) {
        let (claims, waiting) = mpsc::channel(CLAIMS_WAITING);
        let revocations = Self { identity, dir: state_dir.join("revocations"), claims };
        for path in kept(&revocations.dir) {
            let read = fs::read_to_string(&path).map_err(|error| unreadable(&path, &error));
            if let Err(failure) = read.and_then(|pem| revocations.apply(&pem).map_err(|error| error.explain())) {
                let file = path.display().to_string();
                warn!(
                    event = "pki.revocations_refused",
                    details.file = file,
                    error = telemetry::failure(&failure),
                    "kept list left alone"
                );
            }
        }
        (revocations.clone(), Claims { revocations, waiting })
    }

    /// Which lists are in force here.
    pub fn numbers(&self) -> Vec<RevocationNumber> {
        let live = self.identity.live();
        let number = |list: &Arc<RevocationList>| RevocationNumber {
            authority: list.authority().to_owned(),
            number: list.number(),
        };
        live.lists().map(number).collect()
    }

    /// The lists a caller who knows `known` has not seen yet.
    pub fn newer_than(&self, known: &[RevocationNumber]) -> Vec<String> {
        let live = self.identity.live();
        let is_news = |list: &&Arc<RevocationList>| {
            !known.iter().any(|known| known.authority == list.authority() && known.number >= list.number())
        };
        live.lists().filter(is_news).map(|list| list.pem().to_owned()).collect()
    }

    /// Takes note of the lists `peer` goes by; newer ones are fetched by whoever runs [`Claims::run`].
    ///
    /// Cheap, and to be called with every sign of life that carries numbers.
    pub fn heard(&self, peer: &NodeId, numbers: &[RevocationNumber]) {
        let known = self.numbers();
        let is_news = |told: &RevocationNumber| {
            !known.iter().any(|known| known.authority == told.authority && known.number >= told.number)
        };
        if numbers.iter().take(MOST_AUTHORITIES).any(is_news) {
            // When too many wait, this one is told again with the peer's next sign of life.
            let _ = self.claims.try_send(Claim { peer: peer.clone() });
        }
    }

    /// Goes by the lists in `pem` from now on and keeps them; says how many were new.
    ///
    /// Connections of what they revoke end at once. `from` is for the log. All are refused where one is bad; of
    /// good ones each that is new counts, and an older one than is in force is an error.
    pub fn take(&self, pem: &str, from: &str) -> Result<u32, Failure> {
        let was_revoked = self.identity.live().is_revoked();
        let news = self.apply(pem).map_err(|error| error.explain())?;
        for list in &news {
            info!(
                event = "pki.revocations_learnt",
                details.authority = list.issuer(),
                details.number = list.number(),
                details.revoked = list.serials().len(),
                details.from = from,
                "a newer revocation list is in force"
            );
            if let Err(error) = self.keep(list) {
                let failure = Failure::new(Code::StateDirUnwritable, "cannot keep a revocation list").caused_by(&error);
                warn!(
                    event = "pki.revocations_unkept",
                    error = telemetry::failure(&failure),
                    "the list is in force, but only until this agent ends"
                );
            }
        }
        if self.identity.live().is_revoked() && !was_revoked {
            let failure = own_is_revoked(&self.identity);
            error!(
                event = "pki.revoked",
                error = telemetry::failure(&failure),
                "peers will not talk to this agent any more"
            );
        }
        Ok(news.len() as u32)
    }

    fn apply(&self, pem: &str) -> Result<Vec<RevocationList>, revocation::Error> {
        let (mut news, mut older) = (Vec::new(), None);
        for list in self.identity.read_lists(pem)? {
            match self.identity.learn(list.clone()) {
                Ok(true) => news.push(list),
                Ok(false) => {}
                Err(error) => older = Some(error),
            }
        }
        match older {
            Some(error) if news.is_empty() => Err(error),
            _ => Ok(news),
        }
    }

    /// Writes a list beside its place and moves it there, so that a crash leaves the old or the new one.
    fn keep(&self, list: &RevocationList) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        // The key identifier is hexadecimal: it cannot lead out of the directory.
        let path = self.dir.join(format!("{}.pem", list.authority()));
        let beside = path.with_extension("new");
        fs::write(&beside, list.pem())?;
        fs::File::open(&beside)?.sync_all()?;
        fs::rename(&beside, &path)
    }
}

/// Why nobody talks to an agent with this identity.
pub fn own_is_revoked(identity: &Identity) -> Failure {
    Failure::new(Code::CertificateRevoked, format!("the certificate of {} was revoked", identity.me()))
}

fn kept(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "pem")).collect()
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Code::RevocationsRefused, format!("cannot read {}", path.display())).caused_by(error)
}

impl Claims {
    /// Fetches what peers know and this agent does not, one peer at a time, until `stop`.
    pub async fn run(mut self, peers: Peers, stop: CancellationToken) {
        let mut distrusted: HashMap<NodeId, Instant> = HashMap::new();
        while let Some(Some(Claim { peer })) = stop.run_until_cancelled(self.waiting.recv()).await {
            distrusted.retain(|_, since| since.elapsed() < DISTRUST);
            if distrusted.contains_key(&peer) {
                continue;
            }
            let fetching = timeout(FETCH_LIMIT, self.fetch(&peers, &peer));
            let fetched = match stop.run_until_cancelled(fetching).await {
                None => break,
                Some(Ok(fetched)) => fetched,
                Some(Err(_)) => Err(Failure::new(Code::PeerSilent, format!("{peer} did not hand over its lists"))),
            };
            if let Err(failure) = fetched {
                warn!(event = "pki.revocations_refused", peer = %peer, error = telemetry::failure(&failure), "the lists of a peer were not taken over");
                distrusted.insert(peer, Instant::now());
            }
        }
    }

    async fn fetch(&self, peers: &Peers, peer: &NodeId) -> Result<(), Failure> {
        let known = self.revocations.numbers();
        let mut client = peers.client(peer).await?;
        let fetched = client.fetch_revocations(v1::FetchRevocationsRequest { known }).await;
        let lists = fetched.map_err(|status| steep_protocol::wire::rpc::failure_of(&status))?.into_inner().lists;
        for pem in lists.iter().take(MOST_AUTHORITIES).filter(|pem| pem.len() <= MAX_LIST_BYTES) {
            match self.revocations.take(pem, peer.as_str()) {
                // The peer's word is older than ours by now.
                Err(failure) if failure.code == Code::RevocationsOlder => {}
                taken => drop(taken?),
            }
        }
        Ok(())
    }
}
