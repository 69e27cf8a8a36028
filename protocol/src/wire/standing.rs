//! Whether the certificate that opened a connection is still good enough for the connection to stay.
//!
//! A handshake is judged once; a connection lives for weeks. It ends at once when its certificate is revoked, an hour
//! after the certificate has expired, and a minute after the root above it is trusted no more, so that whoever got a
//! new certificate in time has dialled anew by then.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep},
};
use tokio_rustls::TlsStream;
use tracing::info;

use super::{
    connection::Connection,
    identity::{Error, Identity, Live, PeerId, peer_in},
    trust::{Ended, Leaf},
};

/// Clocks are set: no sleep is longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// A certificate and those behind it.
pub(super) type Chain = Vec<CertificateDer<'static>>;

/// Closes `connection` when its certificate is no longer good enough; returns when it has ended, however.
pub(super) async fn watch_over(connection: &Connection, chain: Option<Chain>, identity: &Identity) {
    // Without a certificate there is no connection.
    let Some(standing) = chain.and_then(|chain| Standing::of(Some(&chain[..]), identity)) else { return };
    tokio::select! {
        () = connection.closed() => {}
        ended = standing.ended() => {
            let why = ended.as_str();
            info!(event = "pki.connection_closed", peer = %connection.peer(), reason = why, "connection closed");
            connection.close(why);
        }
    }
}

/// Who is at the other end of a finished handshake, and what ends the stream when their certificate is no longer good
/// enough.
pub(super) fn standing_of(stream: &TlsStream<TcpStream>, identity: &Identity) -> Result<(PeerId, Standing), Error> {
    let chain = stream.get_ref().1.peer_certificates();
    let (peer, standing) = (peer_in(chain)?, Standing::of(chain, identity));
    let standing = standing.ok_or_else(|| Error::Refused("no certificate was shown".into()))?;
    Ok((peer, standing))
}

/// The other end's certificate, watched over for as long as the connection lives.
#[derive(Debug)]
pub(super) struct Standing {
    chain: Chain,
    leaf: Leaf,
    live: watch::Receiver<Arc<Live>>,
}

impl Standing {
    /// Of a chain that a handshake has verified.
    pub(super) fn of(chain: Option<&[CertificateDer<'_>]>, identity: &Identity) -> Option<Self> {
        let chain: Chain = chain?.iter().map(|der| der.clone().into_owned()).collect();
        Some(Self { leaf: Leaf::of(chain.first()?)?, live: identity.watch(), chain })
    }

    /// Returns when the connection has to end, with the reason.
    pub(super) async fn ended(mut self) -> Ended {
        let mut untrusted_since = None::<Instant>;
        loop {
            let live = Arc::clone(&self.live.borrow_and_update());
            let judged = live.trust().standing(&self.leaf, &self.chain, Timestamp::now());
            let wait = match judged {
                Ok(until) => {
                    untrusted_since = None;
                    let left = until.as_second().saturating_sub(Timestamp::now().as_second()).max(0) as u64;
                    Duration::from_secs(left) + Duration::from_millis(50)
                }
                Err(Ended::Untrusted) => {
                    let since = *untrusted_since.get_or_insert_with(Instant::now);
                    match live.trust().policy.after_distrust.checked_sub(since.elapsed()) {
                        Some(left) if !left.is_zero() => left,
                        _ => return Ended::Untrusted,
                    }
                }
                Err(ended) => return ended,
            };
            tokio::select! {
                changed = self.live.changed() => if changed.is_err() {
                    // Nobody is left who could revoke anything: the program ends.
                    std::future::pending::<()>().await;
                },
                () = sleep(wait.min(LONGEST_SLEEP)) => {}
            }
        }
    }
}
