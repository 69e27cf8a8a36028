//! The agent's own certificate while it runs: read again when its files change or on SIGHUP, and warned about
//! before it ends.
//!
//! What is read is checked before it replaces anything; what cannot be used is told once, and all goes on as it was.
//! New connections use the new certificate at once, those there are are dialled anew and finish what runs on them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    wire::identity::{Identity, Live},
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    config::Config,
    mesh::{Peers, Revocations, own_is_revoked},
    telemetry,
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How soon what could not be used is tried again, although its files are the same.
const RETRY: Duration = Duration::from_secs(60);
/// How often a certificate that ends soon is spoken of.
const REMIND: Duration = Duration::from_secs(24 * 3600);
const DAY_SECONDS: i64 = 86_400;
/// With less than this left, a certificate ends soon.
const SOON_DAYS: i64 = 14;

/// Looks after the certificate files of one agent. Clones share the identity.
#[derive(Debug, Clone)]
pub struct Certificates {
    config: Arc<Config>,
    identity: Identity,
    revocations: Revocations,
}

/// What the files held when they were last looked at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Seen {
    identity: u64,
    lists: u64,
}

impl Certificates {
    /// Looks after the files that `[pki]` names.
    pub fn new(config: Arc<Config>, identity: Identity, revocations: Revocations) -> Self {
        Self { config, identity, revocations }
    }

    /// Takes `pki.crl` in, follows the files and signals, and warns, until `stop`.
    pub async fn run(self, peers: Peers, stop: CancellationToken) {
        let relinking = Box::pin(peers.relink_when_renewed());
        stop.run_until_cancelled(async { tokio::join!(self.follow(), relinking, self.remind()) }).await;
    }

    /// Reads certificate, key, roots and revocation lists again, and logs what came of it; says whether anything was
    /// new.
    ///
    /// What cannot be used is left aside, and all goes on as before; then the first reason is returned.
    pub fn reload(&self, why: &str) -> Result<bool, Failure> {
        let identity = self.read_identity();
        let lists = self.read_lists();
        let lists_are_new = matches!(lists, Ok(true));
        self.tell(&identity.clone().map(|is_new| is_new || lists_are_new), why);
        if lists.is_err() {
            self.tell(&lists, why);
        }
        Ok(identity? | lists?)
    }

    fn read_identity(&self) -> Result<bool, Failure> {
        let pki = &self.config.pki;
        let read = self.identity.reload(&pki.cert, &pki.key, &pki.ca, Timestamp::now());
        read.map_err(|error| error.explain())
    }

    fn read_lists(&self) -> Result<bool, Failure> {
        let Some(path) = &self.config.pki.crl else { return Ok(false) };
        let pem = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(Code::RevocationsRefused, format!("cannot read {}", path.display())).caused_by(&error)
        })?;
        match self.revocations.take(&pem, &path.display().to_string()) {
            Ok(news) => Ok(news > 0),
            // A newer one came from a peer: the file need not be handed to every agent.
            Err(failure) if failure.code == Code::RevocationsOlder => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    async fn follow(&self) {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hang_up = hang_ups();
        let lists = self.read_lists();
        if lists.is_err() {
            self.tell(&lists, "start");
        }
        let mut taken = self.look().await;
        let mut last = taken;
        // They may have changed since the agent read them to start.
        match self.read_identity() {
            Ok(false) => {}
            read => self.tell(&read, "start"),
        }
        // A certificate may become good with time, and a new root makes lists good.
        let mut again = lists.is_err().then(|| Instant::now() + RETRY);
        loop {
            let why = tokio::select! {
                () = next(&mut hang_up) => Some("SIGHUP"),
                _ = tick.tick() => None,
            };
            let seen = self.look().await;
            // Files are replaced one after the other: only what has come to rest is read.
            let why = why.or((seen == last && seen != taken).then_some("files changed"));
            last = seen;
            if let Some(why) = why {
                taken = seen;
                again = self.reload(why).is_err().then(|| Instant::now() + RETRY);
            } else if again.is_some_and(|at| at <= Instant::now()) {
                let (identity, lists) = (self.read_identity(), self.read_lists());
                again = (identity.is_err() || lists.is_err()).then(|| Instant::now() + RETRY);
                // The same trouble is not told again.
                if again.is_none() {
                    self.tell(&identity, "became good");
                }
            }
        }
    }

    /// A sign of what the files hold; one that cannot be read counts as empty.
    async fn look(&self) -> Seen {
        let pki = &self.config.pki;
        let sign = async |files: Vec<&PathBuf>| {
            let mut hash = Xxh3::new();
            for file in files {
                hash.update(&tokio::fs::read(file).await.unwrap_or_default());
                hash.update(b"\0");
            }
            hash.digest()
        };
        Seen { identity: sign(vec![&pki.cert, &pki.key, &pki.ca]).await, lists: sign(pki.crl.iter().collect()).await }
    }

    fn tell(&self, reloaded: &Result<bool, Failure>, why: &str) {
        match reloaded {
            Ok(is_new) => {
                let until = self.identity.live().until().to_string();
                info!(
                    event = "agent.reloaded",
                    reason = why,
                    details.is_new = *is_new,
                    details.valid_until = until,
                    "certificates read again"
                );
            }
            Err(failure) => {
                warn!(
                    event = "pki.reload_failed",
                    reason = why,
                    error = telemetry::failure(failure),
                    "all goes on with what was read before"
                );
            }
        }
    }

    /// Speaks of a certificate that ends soon, or that was revoked: at once, and once a day.
    async fn remind(&self) {
        let mut changes = self.identity.watch();
        let mut told = None::<(Code, Instant)>;
        loop {
            let trouble = trouble(&self.identity, &changes.borrow_and_update().clone(), Timestamp::now());
            match trouble {
                Some(failure) if told.is_none_or(|(code, at)| code != failure.code || at.elapsed() >= REMIND) => {
                    told = Some((failure.code, Instant::now()));
                    match failure.code {
                        Code::CertificateExpires => {
                            warn!(
                                event = "pki.cert_expiring",
                                error = telemetry::failure(&failure),
                                "the certificate expires soon"
                            );
                        }
                        Code::RevocationsOverdue => {
                            warn!(
                                event = "pki.list_overdue",
                                error = telemetry::failure(&failure),
                                "an old revocation list goes on counting"
                            );
                        }
                        _ => error!(
                            event = "pki.unusable",
                            error = telemetry::failure(&failure),
                            "peers refuse this agent, or it refuses them"
                        ),
                    }
                }
                Some(_) => {}
                None => told = None,
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(3600)) => {}
            }
        }
    }
}

/// What is wrong with our own certificate or the lists we go by, or soon will be; the worst alone.
pub fn trouble(identity: &Identity, live: &Live, now: Timestamp) -> Option<Failure> {
    if live.is_revoked() {
        return Some(own_is_revoked(identity));
    }
    let node = identity.me().node().map_or("NODE", |node| node.as_str());
    expiry(node, live.until(), now).or_else(|| {
        let overdue = live.lists().find(|list| list.until() < now)?;
        let text =
            format!("the revocation list of {:?} was to be replaced before {}", overdue.issuer(), overdue.until());
        Some(Failure::new(Code::RevocationsOverdue, text))
    })
}

/// The warning about the certificate of `node` that is good until `until`, if it is time for one.
pub fn expiry(node: &str, until: Timestamp, now: Timestamp) -> Option<Failure> {
    let left = until.as_second() - now.as_second();
    let hint = format!("steepctl pki renew {node}, then put the new files in place: the agent reads them by itself");
    if left < 0 {
        let text = format!("the certificate of {node} has expired at {until}");
        return Some(Failure::new(Code::CertificateExpired, text).hint(hint));
    }
    let days = left / DAY_SECONDS;
    let in_time = match days {
        0 => "today".to_owned(),
        1 => "in 1 day".to_owned(),
        days => format!("in {days} days"),
    };
    let text = format!("the certificate of {node} expires {in_time}");
    (days < SOON_DAYS).then(|| Failure::new(Code::CertificateExpires, text).hint(hint))
}

#[cfg(unix)]
type HangUps = Option<tokio::signal::unix::Signal>;
#[cfg(not(unix))]
type HangUps = ();

#[cfg(unix)]
fn hang_ups() -> HangUps {
    use tokio::signal::unix::{SignalKind, signal};
    signal(SignalKind::hangup()).ok()
}

#[cfg(not(unix))]
fn hang_ups() -> HangUps {}

/// Waits for the next SIGHUP; for ever where there are none.
#[cfg(unix)]
async fn next(signals: &mut HangUps) {
    if let Some(signals) = signals
        && signals.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(not(unix))]
async fn next(_: &mut HangUps) {
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_spoken_of_when_less_than_two_weeks_are_left() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().expect("a moment");
        let cases = [
            ("2026-07-01T00:00:00Z", None, ""),
            ("2026-06-15T00:00:00Z", None, ""),
            ("2026-06-14T23:59:59Z", Some(Code::CertificateExpires), "expires in 13 days"),
            ("2026-06-02T00:00:01Z", Some(Code::CertificateExpires), "expires in 1 day"),
            ("2026-06-01T00:00:00Z", Some(Code::CertificateExpires), "expires today"),
            ("2026-05-31T23:59:59Z", Some(Code::CertificateExpired), "has expired at 2026-05-31"),
        ];
        for (until, code, says) in cases {
            let found = expiry("node_a", until.parse().expect("a moment"), now);
            assert_eq!(found.as_ref().map(|failure| failure.code), code, "{until}");
            let Some(failure) = found else { continue };
            assert!(failure.message.contains(says), "{failure}");
            assert!(failure.hint.contains("steepctl pki renew node_a"), "{}", failure.hint);
        }
    }
}
