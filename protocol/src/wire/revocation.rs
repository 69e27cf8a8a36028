//! Revocation lists: which certificates of an authority are no longer good, signed by that authority.
//!
//! A list is judged once, when it comes in: it must be signed by a mesh's authority for nodes or operators, whose
//! certificate travels with it and was signed by one of our roots. From then on only its numbers count. It does not
//! know how lists travel nor where they are kept.

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::Timestamp;
pub use rustls::pki_types::CertificateDer;
use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
use x509_parser::{
    oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
    prelude::{CertificateRevocationList, FromDer, ParsedExtension, X509Certificate},
    x509::X509Name,
};

use super::identity::authority_name;
use crate::{
    failure::{Code, Explain},
    ids::MeshName,
};

/// The largest text of lists we read: some ten thousand certificates.
pub const MAX_LIST_BYTES: usize = 1 << 20;

/// Why a revocation list is not believed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It cannot be read, or was not signed by an authority of our mesh.
    #[error("revocation list refused: {0}")]
    Refused(String),
    /// We have a newer one.
    #[error("revocation list {number} of {authority} refused: number {known} is known here")]
    Older {
        /// Whose list.
        authority: String,
        /// Its number.
        number: u64,
        /// The number we have.
        known: u64,
    },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Refused(_) => Code::RevocationsRefused,
            Self::Older { .. } => Code::RevocationsOlder,
        }
    }
}

/// A certificate's serial number, in hexadecimal without leading zeros.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(String);

impl Serial {
    /// From the bytes of a certificate, most significant first.
    pub fn of(bytes: &[u8]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let short = hex.trim_start_matches('0');
        Self(if short.is_empty() { "0".into() } else { short.to_owned() })
    }

    /// The serial number of a certificate.
    pub fn in_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(certificate).ok()?;
        Some(Self::of(cert.raw_serial()))
    }

    /// In hexadecimal.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes, most significant first.
    pub fn to_bytes(&self) -> Vec<u8> {
        let padded = format!("{}{}", if self.0.len() % 2 == 1 { "0" } else { "" }, self.0);
        let byte = |at| u8::from_str_radix(&padded[at..at + 2], 16).expect("only hexadecimal digits are in it");
        (0..padded.len()).step_by(2).map(byte).collect()
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no serial number: up to 40 hexadecimal digits are expected, with colons or without")]
pub struct NoSerial(String);

impl FromStr for Serial {
    type Err = NoSerial;

    fn from_str(text: &str) -> Result<Self, NoSerial> {
        let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        if !(1..=42).contains(&digits.len()) || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(NoSerial(text.to_owned()));
        }
        let short = digits.trim_start_matches('0');
        Ok(Self(if short.is_empty() { "0".into() } else { short.to_owned() }))
    }
}

/// A list that was signed by an authority of our mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    authority: String,
    issuer: String,
    number: u64,
    from: Timestamp,
    until: Timestamp,
    serials: BTreeSet<Serial>,
    pem: String,
    issuer_der: CertificateDer<'static>,
}

impl RevocationList {
    /// Reads every list in `pem`, in which each stands with the certificate of the authority that signed it.
    ///
    /// All are refused where one is bad. A text without any list is refused as well.
    pub fn read(pem: &str, mesh: &MeshName, roots: &[CertificateDer<'_>]) -> Result<Vec<Self>, Error> {
        let refuse = |reason: String| Error::Refused(reason);
        if pem.len() > MAX_LIST_BYTES {
            return Err(refuse(format!("{} bytes are more than the {MAX_LIST_BYTES} we read", pem.len())));
        }
        let issuers: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| refuse(format!("a damaged certificate stands in it ({error})")))?;
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| refuse(format!("it is damaged ({error})")))?;
        if lists.is_empty() {
            return Err(refuse("no list in PEM form (X509 CRL) stands in it".into()));
        }
        lists.iter().map(|list| Self::judge(list, &issuers, mesh, roots)).collect()
    }

    fn judge(
        der: &CertificateRevocationListDer<'_>,
        issuers: &[CertificateDer<'static>],
        mesh: &MeshName,
        roots: &[CertificateDer<'_>],
    ) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Refused(reason.to_owned());
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|_| refuse("it is damaged"))?;
        if !rest.is_empty() {
            return Err(refuse("something stands behind its end"));
        }
        let issuer = common_name(list.issuer());
        if !["nodes", "operators"].iter().any(|class| issuer == authority_name(mesh, class)) {
            return Err(Error::Refused(format!("{issuer:?} is no authority of mesh {mesh}")));
        }
        // Delta lists and lists with a scope would have to be understood to be believed.
        if list.extensions().iter().any(|extension| extension.critical) {
            return Err(refuse("it has a critical extension, which ours never have"));
        }
        let signer = issuers.iter().find(|issuer_der| {
            let Ok((_, cert)) = X509Certificate::from_der(issuer_der) else { return false };
            cert.subject().as_raw() == list.issuer().as_raw() && list.verify_signature(cert.public_key()).is_ok()
        });
        let signer = signer.ok_or_else(|| {
            Error::Refused(format!("it was not signed by {issuer:?}, or that authority's certificate is not with it"))
        })?;
        let authority = authority_key(signer, roots)?;
        let number = list.crl_number().ok_or_else(|| refuse("it has no number"))?;
        let number = u64::try_from(number).map_err(|_| refuse("its number is too large"))?;
        let at = |time: i64| Timestamp::from_second(time).map_err(|_| refuse("its times are impossible"));
        let until = list.next_update().ok_or_else(|| refuse("it does not say until when it is good"))?;
        Ok(Self {
            authority,
            number,
            from: at(list.last_update().timestamp())?,
            until: at(until.timestamp())?,
            serials: list.iter_revoked_certificates().map(|entry| Serial::of(entry.raw_serial())).collect(),
            pem: format!("{}{}", armored("X509 CRL", der), armored("CERTIFICATE", signer)),
            issuer_der: signer.clone(),
            issuer,
        })
    }

    /// The key identifier of the authority that signed it: lists are numbered for each key.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The authority's common name.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A newer list of the same authority has a higher number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When it was signed.
    pub fn from(&self) -> Timestamp {
        self.from
    }

    /// When a newer one should be there.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// The certificates it revokes.
    pub fn serials(&self) -> &BTreeSet<Serial> {
        &self.serials
    }

    /// The list and its authority's certificate, as [`RevocationList::read`] takes them.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Whether its authority still stands under one of `roots`.
    pub(super) fn is_issued_under(&self, roots: &[CertificateDer<'_>]) -> bool {
        authority_key(&self.issuer_der, roots).is_ok()
    }
}

/// The key identifier of an authority, provided that one of `roots` signed its certificate.
fn authority_key(der: &CertificateDer<'_>, roots: &[CertificateDer<'_>]) -> Result<String, Error> {
    let refuse = |reason: &str| Error::Refused(format!("the authority that signed it {reason}"));
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| refuse("has a damaged certificate"))?;
    let may_sign = cert.key_usage().ok().flatten().is_some_and(|usage| usage.value.crl_sign());
    if !cert.is_ca() || !may_sign {
        return Err(refuse("may not sign lists"));
    }
    let is_ours = roots.iter().any(|root| {
        let Ok((_, root)) = X509Certificate::from_der(root) else { return false };
        root.subject().as_raw() == cert.issuer().as_raw() && cert.verify_signature(Some(root.public_key())).is_ok()
    });
    if !is_ours {
        return Err(refuse("does not stand under a root that is trusted here"));
    }
    let found = cert.get_extension_unique(&OID_X509_EXT_SUBJECT_KEY_IDENTIFIER).ok().flatten();
    match found.map(|extension| extension.parsed_extension()) {
        Some(ParsedExtension::SubjectKeyIdentifier(key)) if key.0.len() <= 32 => {
            Ok(key.0.iter().map(|byte| format!("{byte:02x}")).collect())
        }
        _ => Err(refuse("has no key identifier")),
    }
}

fn common_name(name: &X509Name<'_>) -> String {
    name.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
}

/// DER as PEM (RFC 7468): 64 characters a line.
fn armored(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(der.len() * 4 / 3);
    for group in der.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let is_padding = at > group.len();
            text.push(if is_padding { '=' } else { char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]) });
        }
    }
    let lines: Vec<_> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_reads_the_same_however_it_is_written() {
        let serial = Serial::of(&[0, 0x0a, 0xbc]);
        assert_eq!(serial.as_str(), "abc");
        assert_eq!(serial.to_bytes(), [0x0a, 0xbc]);
        for text in ["abc", "0ABC", "00:0a:bc", "0a:bc"] {
            assert_eq!(text.parse(), Ok(serial.clone()), "{text}");
        }
        for bad in ["", "xyz", "node_a", "12 34", &"a".repeat(43)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
        assert_eq!(Serial::of(&[0]).to_bytes(), [0]);
    }

    #[test]
    fn what_is_armored_reads_back() {
        for length in 0..100u8 {
            let der: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            let pem = armored("CERTIFICATE", &der);
            if length > 0 {
                let read = CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is PEM");
                assert_eq!(&*read, &der[..], "{length}");
            }
        }
    }

    #[test]
    fn a_text_without_a_good_list_is_refused_with_the_reason() {
        let mesh = "acme".parse().expect("a mesh");
        let read = |text: &str| RevocationList::read(text, &mesh, &[]).expect_err("refused").to_string();
        assert!(read("").contains("no list"));
        assert!(read("hello").contains("no list"));
        assert!(read(&"x".repeat(MAX_LIST_BYTES + 1)).contains("more than"));
        assert!(read(&armored("X509 CRL", &[0x30, 3, 1, 2, 3])).contains("damaged"));
        assert!(read("-----BEGIN X509 CRL-----\n!!!\n-----END X509 CRL-----\n").contains("damaged"));
    }
}
