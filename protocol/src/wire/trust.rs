//! Whom we trust at this moment: the mesh's roots, and the certificates that were revoked under them.
//!
//! A [`Trust`] never changes; the identity exchanges it for another one while handshakes go on. It answers two
//! questions: may this certificate come in now, and may a connection that it opened stay.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rustls::{
    CertificateError, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    identity::provider,
    revocation::{self, RevocationList, Serial},
};

/// How strict time is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A connection whose certificate has expired may go on for so long.
    pub after_expiry: Duration,
    /// A connection may go on for so long when the root above its certificate is no longer trusted: time to dial anew.
    pub after_distrust: Duration,
    /// Nobody comes in any more when a revocation list should have been replaced so long ago. Nothing: it stays in
    /// force, however old.
    pub lists_overdue: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { after_expiry: Duration::from_secs(3600), after_distrust: Duration::from_secs(60), lists_overdue: None }
    }
}

/// What of a certificate is looked at again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    /// The common name of the authority that issued it.
    pub(super) issuer: String,
    pub(super) serial: Serial,
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

impl Leaf {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(certificate).ok()?;
        let issuer = cert.issuer().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
        Some(Self {
            issuer: issuer.to_owned(),
            serial: Serial::of(cert.raw_serial()),
            from: Timestamp::from_second(cert.validity().not_before.timestamp()).ok()?,
            until: Timestamp::from_second(cert.validity().not_after.timestamp()).ok()?,
        })
    }
}

/// Why an open connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The other end's certificate was revoked.
    Revoked,
    /// It expired too long ago.
    Expired,
    /// No root that is still trusted stands above it.
    Untrusted,
}

impl Ended {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Revoked => "its certificate was revoked",
            Self::Expired => "its certificate expired long ago",
            Self::Untrusted => "its certificate was issued under a root that is no longer trusted",
        }
    }
}

/// Roots, and what was revoked under them.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) anchors: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    lists: BTreeMap<String, Arc<RevocationList>>,
    revoked: HashSet<(String, Serial)>,
    pub(super) policy: Policy,
}

impl Trust {
    /// Trusts `roots`; fails where one of them is no certificate of an authority.
    pub(super) fn new(roots: Vec<CertificateDer<'static>>) -> Result<Self, rustls::Error> {
        let mut anchors = RootCertStore::empty();
        for root in &roots {
            anchors.add(root.clone())?;
        }
        let anchors = Arc::new(anchors);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&anchors), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let (lists, revoked) = Default::default();
        Ok(Self { roots, anchors, clients, lists, revoked, policy: Policy::default() })
    }

    /// The same lists and policy under other roots; lists whose authority stands under none of them are left out.
    pub(super) fn under(&self, roots: Vec<CertificateDer<'static>>) -> Result<Self, rustls::Error> {
        let mut trust = Self { policy: self.policy, ..Self::new(roots)? };
        let still = self.lists.values().filter(|list| list.is_issued_under(&trust.roots));
        trust.lists = still.map(|list| (list.authority().to_owned(), Arc::clone(list))).collect();
        trust.gather();
        Ok(trust)
    }

    /// Takes a list over; says whether it was new. An older one than is known is an error.
    pub(super) fn learn(&mut self, list: Arc<RevocationList>) -> Result<bool, revocation::Error> {
        if let Some(known) = self.lists.get(list.authority()) {
            if known.number() > list.number() {
                return Err(revocation::Error::Older {
                    authority: list.issuer().to_owned(),
                    number: list.number(),
                    known: known.number(),
                });
            }
            if known.number() == list.number() {
                return Ok(false);
            }
        }
        self.lists.insert(list.authority().to_owned(), list);
        self.gather();
        Ok(true)
    }

    fn gather(&mut self) {
        let entries = self
            .lists
            .values()
            .flat_map(|list| list.serials().iter().map(|serial| (list.issuer().to_owned(), serial.clone())));
        self.revoked = entries.collect();
    }

    pub(super) fn lists(&self) -> impl Iterator<Item = &Arc<RevocationList>> {
        self.lists.values()
    }

    /// Whether the certificate was revoked.
    ///
    /// The authority is told by its name alone: of two authorities of one name, as there are while roots are
    /// exchanged, either may revoke what the other issued. Serial numbers are random and never the same.
    pub(super) fn has_revoked(&self, leaf: &Leaf) -> bool {
        self.revoked.contains(&(leaf.issuer.clone(), leaf.serial.clone()))
    }

    /// Whether `leaf` may come in at `now`, once its chain has been verified.
    pub(super) fn admit(&self, leaf: &Leaf, now: Timestamp) -> Result<(), CertificateError> {
        if self.has_revoked(leaf) {
            return Err(CertificateError::Revoked);
        }
        let Some(patience) = self.policy.lists_overdue else { return Ok(()) };
        let is_overdue = |list: &Arc<RevocationList>| after(list.until(), patience) < now;
        if self.lists.values().any(|list| list.issuer() == leaf.issuer && is_overdue(list)) {
            return Err(CertificateError::UnknownRevocationStatus);
        }
        Ok(())
    }

    /// Verifies signatures, validity and key usage of somebody who asks.
    pub(super) fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.clients.verify_client_cert(leaf, chain, now)?;
        self.admit_der(leaf, now)
    }

    /// Verifies signatures, validity and key usage of somebody who answers.
    pub(super) fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.anchors, chain, now, algorithms)?;
        self.admit_der(leaf, now)
    }

    fn admit_der(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let leaf = Leaf::of(leaf).ok_or(CertificateError::BadEncoding)?;
        Ok(self.admit(&leaf, moment(now))?)
    }

    /// Why a connection that `chain` opened has to end at `now`, or until when it may stay as things are.
    pub(super) fn standing(
        &self,
        leaf: &Leaf,
        chain: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> Result<Timestamp, Ended> {
        if self.has_revoked(leaf) {
            return Err(Ended::Revoked);
        }
        let end = after(leaf.until, self.policy.after_expiry);
        if end <= now {
            return Err(Ended::Expired);
        }
        // Its time is judged above; here only signatures count.
        let within = now.min(leaf.until).as_second().max(0) as u64;
        let within = UnixTime::since_unix_epoch(Duration::from_secs(within));
        let Some((first, behind)) = chain.split_first() else { return Err(Ended::Untrusted) };
        match self.clients.verify_client_cert(first, behind, within) {
            Ok(_) => Ok(end),
            Err(_) => Err(Ended::Untrusted),
        }
    }
}

fn after(at: Timestamp, more: Duration) -> Timestamp {
    let seconds = i64::try_from(more.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(at.as_second().saturating_add(seconds)).unwrap_or(Timestamp::MAX)
}

/// The same moment in jiff's words.
pub(super) fn moment(at: UnixTime) -> Timestamp {
    i64::try_from(at.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok()).unwrap_or(Timestamp::MAX)
}

/// The same moment in rustls' words; years before 1970 are 1970.
pub(super) fn unix(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(at.as_second().max(0) as u64))
}
