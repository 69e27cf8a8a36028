//! Signatures that are worth something outside any connection: made with a certificate's key, judged by its chain.
//!
//! What is signed begins with a text of its own, so that no signature made for a TLS handshake ever passes for one of
//! these, nor the other way round.

use std::time::Duration;

use jiff::Timestamp;
use rustls::{
    CertificateError, SignatureScheme,
    pki_types::{CertificateDer, UnixTime},
    server::danger::ClientCertVerifier,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    identity::{Identity, PeerId, identity_in, provider},
    verify::explain_tls,
};
use crate::failure::Failure;

/// How far clocks may stand apart before a certificate counts as expired, or as not valid yet.
pub const GRACE: Duration = Duration::from_secs(300);
/// Leaf, authority, and one between; what is longer is none of ours.
const LONGEST_CHAIN: usize = 4;

/// A signature and the certificates that say whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// By its number in TLS 1.3.
    pub scheme: u16,
    /// As the scheme writes it.
    pub bytes: Vec<u8>,
    /// DER: the signer's certificate first.
    pub chain: Vec<Vec<u8>>,
}

/// Why something could not be signed, or a signature is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Our own key makes no signature that others can check.
    #[error("the key of {0} cannot sign")]
    CannotSign(PeerId),
    /// The bytes are not what was signed, or it was another key.
    #[error("the signature does not fit")]
    DoesNotFit,
    /// The certificates do not lead to our root, or may not be used now.
    #[error("{}", .0.message)]
    Chain(Failure),
}

/// Signs `context`, a zero byte and `message` with our own key.
pub fn sign(identity: &Identity, context: &str, message: &[u8]) -> Result<Signature, Error> {
    let cannot = || Error::CannotSign(identity.me().clone());
    let certified = identity.key();
    let offered = provider().signature_verification_algorithms.supported_schemes();
    let signer = certified.key.choose_scheme(&offered).ok_or_else(cannot)?;
    let bytes = signer.sign(&signed_bytes(context, message)).map_err(|_| cannot())?;
    let chain = certified.cert.iter().map(|der| der.to_vec()).collect();
    Ok(Signature { scheme: u16::from(signer.scheme()), bytes, chain })
}

/// Who signed, provided that the certificate is one we would let in at `now`, give or take [`GRACE`].
///
/// The certificate's mesh and class are the caller's to judge.
pub fn verify(
    identity: &Identity,
    context: &str,
    message: &[u8],
    signature: &Signature,
    now: Timestamp,
) -> Result<PeerId, Error> {
    let chain: Vec<_> = signature.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    let Some((leaf, above)) = chain.split_first().filter(|_| chain.len() <= LONGEST_CHAIN) else {
        return Err(Error::DoesNotFit);
    };
    let verifier = identity.chains().map_err(|error| Error::Chain(explain_tls(&error)))?;
    judge(&*verifier, leaf, above, now).map_err(|error| Error::Chain(explain_tls(&error)))?;
    let peer = identity_in(leaf).map_err(|error| Error::Chain(crate::failure::Explain::explain(&error)))?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Error::DoesNotFit)?;
    let key = &parsed.tbs_certificate.subject_pki.subject_public_key.data;
    let signed = signed_bytes(context, message);
    let scheme = SignatureScheme::from(signature.scheme);
    let mapping = provider().signature_verification_algorithms.mapping;
    let algorithms = mapping.iter().filter(|(known, _)| *known == scheme).flat_map(|(_, algorithms)| *algorithms);
    // A key of another kind does not read as one of the algorithm's.
    let mut fitting = algorithms.filter(|algorithm| algorithm.verify_signature(key, &signed, &signature.bytes).is_ok());
    fitting.next().map(|_| peer).ok_or(Error::DoesNotFit)
}

/// Judges the chain now and, where only the time is against it, at the nearest moment within [`GRACE`].
fn judge(
    verifier: &dyn ClientCertVerifier,
    leaf: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    now: Timestamp,
) -> Result<(), rustls::Error> {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    use rustls::Error::InvalidCertificate;
    let grace = GRACE.as_secs().cast_signed();
    let at = |moved: i64| {
        let seconds = now.as_second().saturating_add(moved).max(0).cast_unsigned();
        verifier.verify_client_cert(leaf, above, UnixTime::since_unix_epoch(Duration::from_secs(seconds))).map(drop)
    };
    match at(0) {
        Err(InvalidCertificate(Expired | ExpiredContext { .. })) => at(-grace),
        Err(InvalidCertificate(NotValidYet | NotValidYetContext { .. })) => at(grace),
        judged => judged,
    }
}

fn signed_bytes(context: &str, message: &[u8]) -> Vec<u8> {
    [context.as_bytes(), &[0], message].concat()
}
