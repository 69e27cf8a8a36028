//! What a certificate file says: whose it is, who issued it, until when, for what, and whether its key fits.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use sha2::{Digest as _, Sha256};
use steep_protocol::{
    ids::MeshName,
    wire::{
        identity::{PeerId, identity_in},
        revocation::CertificateDer,
    },
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    pem::Pem,
    prelude::FromDer as _,
    x509::X509Name,
};

use super::{Error, files};

/// Whose a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// A node's or an operator's, as agents would accept it.
    Peer(PeerId),
    /// An authority's.
    Authority {
        /// The mesh in its name; nothing for an authority that is not ours.
        mesh: Option<MeshName>,
        /// `root`, `nodes` or `operators`; empty for an authority that is not ours.
        class: String,
    },
    /// Nobody's: agents would refuse it.
    Refused(String),
}

/// Whether a certificate is good at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// It is.
    Valid {
        /// For so long.
        seconds_left: u64,
    },
    /// Not before `from`.
    NotYet {
        /// The first good moment.
        from: Timestamp,
    },
    /// No longer.
    Expired {
        /// The last good moment.
        since: Timestamp,
    },
}

/// The key file beside a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyBeside {
    /// There is none.
    Missing,
    /// It is the certificate's own.
    Fits(PathBuf),
    /// It is not; the reason.
    Wrong(PathBuf, String),
}

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Inspected {
    /// Whose it is.
    pub class: Class,
    /// The subject's common name, or the whole subject where it has none.
    pub subject: String,
    /// The issuer's, likewise.
    pub issuer: String,
    /// First good moment.
    pub from: Timestamp,
    /// Last good moment.
    pub until: Timestamp,
    /// What the key is for: `serverAuth`, `clientAuth`, …
    pub purposes: Vec<&'static str>,
    /// `URI:…`, `DNS:…`, `IP:…`.
    pub names: Vec<String>,
    /// In hexadecimal, as certificates are listed elsewhere.
    pub serial: String,
    /// SHA-256 over the certificate, `AB:CD:…`.
    pub fingerprint: String,
    /// Common names of the certificates behind the first.
    pub chain: Vec<String>,
    /// The key file beside it.
    pub key: KeyBeside,
    /// The public key (SubjectPublicKeyInfo).
    pub public_key: Vec<u8>,
    /// The key identifier of an authority, in hexadecimal.
    pub key_id: Option<String>,
    /// The key identifier of the authority that issued it.
    pub authority_key: Option<String>,
}

impl Inspected {
    /// Whether it is good at `now`.
    pub fn validity_at(&self, now: Timestamp) -> Validity {
        if now < self.from {
            Validity::NotYet { from: self.from }
        } else if now > self.until {
            Validity::Expired { since: self.until }
        } else {
            Validity::Valid { seconds_left: crate::units::since(now, self.until).as_secs() }
        }
    }
}

/// Reads the certificate (the first, with those behind it) in the PEM file at `path`.
pub fn file(path: &Path) -> Result<Inspected, Error> {
    let text = files::read(path)?;
    let unusable = |reason: &str| Error::Unusable { path: path.to_owned(), reason: reason.to_owned() };
    let mut certificates = Vec::new();
    let mut holds_key = false;
    for pem in Pem::iter_from_buffer(text.as_bytes()) {
        let pem = pem.map_err(|_| unusable("holds damaged PEM"))?;
        match pem.label.as_str() {
            "CERTIFICATE" => certificates.push(pem.contents),
            label => holds_key |= label.ends_with("PRIVATE KEY"),
        }
    }
    let Some((first, behind)) = certificates.split_first() else {
        let reason = if holds_key {
            "is a private key; look at the certificate beside it"
        } else {
            "holds no certificate in PEM form"
        };
        return Err(unusable(reason));
    };
    let parse = |der: &[u8]| -> Result<Parsed, Error> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|_| unusable("holds a damaged certificate"))?;
        Parsed::of(&cert).ok_or_else(|| unusable("holds a certificate with impossible times"))
    };
    let parsed = parse(first)?;
    let chain = behind.iter().map(|der| parse(der).map(|cert| cert.subject)).collect::<Result<_, _>>()?;
    let class = if parsed.is_authority {
        authority_class(&parsed.subject)
    } else {
        match identity_in(&first.as_slice().into()) {
            Ok(peer) => Class::Peer(peer),
            Err(error) => Class::Refused(error.to_string()),
        }
    };
    Ok(Inspected {
        class,
        subject: parsed.subject,
        issuer: parsed.issuer,
        from: parsed.from,
        until: parsed.until,
        purposes: parsed.purposes,
        names: parsed.names,
        serial: parsed.serial,
        fingerprint: fingerprint(first),
        chain,
        key: key_beside(path, &parsed.public_key),
        public_key: parsed.public_key,
        key_id: parsed.key_id,
        authority_key: parsed.authority_key,
    })
}

/// Every certificate in the PEM file at `path`, as it is signed.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = files::read(path)?;
    let unusable = |reason: &str| Error::Unusable { path: path.to_owned(), reason: reason.to_owned() };
    let mut found = Vec::new();
    for pem in Pem::iter_from_buffer(text.as_bytes()) {
        let pem = pem.map_err(|_| unusable("holds damaged PEM"))?;
        if pem.label == "CERTIFICATE" {
            found.push(pem.contents.into());
        }
    }
    Ok(found)
}

struct Parsed {
    subject: String,
    issuer: String,
    from: Timestamp,
    until: Timestamp,
    purposes: Vec<&'static str>,
    names: Vec<String>,
    serial: String,
    is_authority: bool,
    public_key: Vec<u8>,
    key_id: Option<String>,
    authority_key: Option<String>,
}

impl Parsed {
    fn of(cert: &X509Certificate<'_>) -> Option<Self> {
        let mut purposes = Vec::new();
        let mut names = Vec::new();
        let (mut key_id, mut authority_key) = (None, None);
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    let all = [
                        (usage.any, "any"),
                        (usage.server_auth, "serverAuth"),
                        (usage.client_auth, "clientAuth"),
                        (usage.code_signing, "codeSigning"),
                        (usage.email_protection, "emailProtection"),
                        (usage.time_stamping, "timeStamping"),
                        (usage.ocsp_signing, "ocspSigning"),
                    ];
                    purposes.extend(all.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)));
                }
                ParsedExtension::KeyUsage(usage) => {
                    let all = [
                        (usage.digital_signature(), "digitalSignature"),
                        (usage.key_cert_sign(), "keyCertSign"),
                        (usage.crl_sign(), "cRLSign"),
                    ];
                    purposes.extend(all.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)));
                }
                ParsedExtension::SubjectAlternativeName(found) => {
                    names.extend(found.general_names.iter().map(general_name));
                }
                ParsedExtension::SubjectKeyIdentifier(key) => key_id = Some(hexadecimal(key.0)),
                ParsedExtension::AuthorityKeyIdentifier(found) => {
                    authority_key = found.key_identifier.as_ref().map(|key| hexadecimal(key.0));
                }
                _ => {}
            }
        }
        let validity = cert.validity();
        Some(Self {
            subject: common_name(cert.subject()),
            issuer: common_name(cert.issuer()),
            from: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
            until: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
            purposes,
            names,
            serial: cert.raw_serial_as_string(),
            is_authority: cert.is_ca(),
            public_key: cert.public_key().raw.to_vec(),
            key_id,
            authority_key,
        })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn common_name(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    common.map_or_else(|| name.to_string(), str::to_owned)
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => format!("IP:{}", std::net::Ipv4Addr::from(v4)),
            (_, Ok(v6)) => format!("IP:{}", std::net::Ipv6Addr::from(v6)),
            _ => "IP:?".into(),
        },
        other => other.to_string(),
    }
}

/// `steep MESH root`, `steep MESH nodes`, `steep MESH operators`.
fn authority_class(subject: &str) -> Class {
    let mut words = subject.split(' ');
    if let (Some("steep"), Some(mesh), Some(class @ ("root" | "nodes" | "operators")), None) =
        (words.next(), words.next(), words.next(), words.next())
        && let Ok(mesh) = mesh.parse()
    {
        return Class::Authority { mesh: Some(mesh), class: class.to_owned() };
    }
    Class::Authority { mesh: None, class: String::new() }
}

fn key_beside(path: &Path, public_key: &[u8]) -> KeyBeside {
    let key_path = path.with_extension("key");
    if key_path == path || key_path.symlink_metadata().is_err() {
        return KeyBeside::Missing;
    }
    match files::read(&key_path) {
        Err(Error::Unreadable { source, .. }) => KeyBeside::Wrong(key_path, format!("cannot be read: {source}")),
        Err(error) => KeyBeside::Wrong(key_path, error.to_string()),
        Ok(pem) => match KeyPair::from_pem(&pem) {
            Err(_) => KeyBeside::Wrong(key_path, "holds no private key we know".into()),
            Ok(key) if key.subject_public_key_info() == public_key => KeyBeside::Fits(key_path),
            Ok(_) => KeyBeside::Wrong(key_path, "belongs to another certificate".into()),
        },
    }
}

fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}
