//! Certificates in, TLS settings out; and who a peer is, from its certificate alone.
//!
//! A certificate carries exactly one URI: `spiffe://<mesh>/node/<node id>` or
//! `spiffe://<mesh>/operator/<role>/<name>`. The authority that issued it, the URI and the key usage must all
//! agree on the class, or the handshake is refused. Common names and DNS names authorize nothing.
//!
//! TLS 1.3 only, both ends show certificates, no early data, no resumption (a resumed session would skip
//! the checks). One crypto provider, chosen in [`provider`].

use std::{fmt, fs, io, path::Path, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::verify::{ClientVerifier, ServerVerifier, Verdict};
use crate::{
    failure::{Code, Explain},
    ids::{MeshName, NodeId},
    operation::Role,
};

/// The largest certificate or key file we read.
const MAX_PEM_BYTES: u64 = 256 * 1024;

/// Why an identity cannot be used, or a peer's certificate was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds no certificate or key we understand.
    #[error("{}: {reason}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A key file is open to other users.
    #[error("{} can be read by other users (mode {mode:03o})", .path.display())]
    KeyOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key does not belong to the certificate, or TLS refuses the pair.
    #[error("{} and {} do not belong together", .cert.display(), .key.display())]
    Mismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What TLS said.
        source: rustls::Error,
    },
    /// The certificate's contents break our rules.
    #[error("certificate refused: {0}")]
    Refused(String),
    /// The certificate is good, but of another mesh.
    #[error("certificate of mesh {theirs} refused: this is mesh {ours}")]
    OtherMesh {
        /// The mesh in the certificate.
        theirs: MeshName,
        /// Our own.
        ours: MeshName,
    },
    /// The peer is not whom we meant to reach.
    #[error("expected {expected}, but its certificate says {found}")]
    NotExpected {
        /// Whom we dialled.
        expected: String,
        /// Who answered.
        found: String,
    },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Unreadable { .. } | Self::Unusable { .. } | Self::Mismatch { .. } => Code::CertificateUnusable,
            Self::KeyOpen { .. } => Code::KeyFileOpen,
            Self::Refused(_) => Code::CertificateRefused,
            Self::OtherMesh { .. } => Code::WrongMesh,
            Self::NotExpected { .. } => Code::IdentityMismatch,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::KeyOpen { path, .. } => Some(format!("chmod 600 {}", path.display())),
            _ => None,
        }
    }
}

/// Who somebody is: their mesh, and what they are in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerId {
    /// The trust domain.
    pub mesh: MeshName,
    /// Node or operator.
    pub who: Who,
}

/// A node's agent, or a person (or their automation).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// The agent of this node.
    Node(NodeId),
    /// Somebody who runs steepctl.
    Operator {
        /// What they may do.
        role: Role,
        /// Their name.
        name: String,
    },
}

impl PeerId {
    /// The URI a certificate carries for this identity.
    pub fn uri(&self) -> String {
        match &self.who {
            Who::Node(node) => format!("spiffe://{}/node/{node}", self.mesh),
            Who::Operator { role, name } => format!("spiffe://{}/operator/{role}/{name}", self.mesh),
        }
    }

    /// Reads the identity in a certificate's URI.
    pub fn from_uri(uri: &str) -> Result<Self, Error> {
        let refuse = || Error::Refused(format!("{uri:?} is no identity of a mesh"));
        let rest = uri.strip_prefix("spiffe://").ok_or_else(refuse)?;
        let mut parts = rest.split('/');
        let mesh = parts.next().and_then(|mesh| mesh.parse().ok()).ok_or_else(refuse)?;
        let who = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("node"), Some(node), None, _) => Who::Node(node.parse().map_err(|_| refuse())?),
            (Some("operator"), Some(role), Some(name), None) => {
                // An operator's name obeys the rule of node names: it stands in logs and audit rows.
                let name: NodeId = name.parse().map_err(|_| refuse())?;
                Who::Operator { role: role.parse().map_err(|_| refuse())?, name: name.into() }
            }
            _ => return Err(refuse()),
        };
        Ok(Self { mesh, who })
    }

    /// The node id, if this is a node.
    pub fn node(&self) -> Option<&NodeId> {
        match &self.who {
            Who::Node(node) => Some(node),
            Who::Operator { .. } => None,
        }
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Node(node) => write!(f, "node {node}"),
            Who::Operator { role, name } => write!(f, "{name} ({role})"),
        }
    }
}

/// The common name of a mesh's authority for `class` (`root`, `nodes` or `operators`).
pub fn authority_name(mesh: &MeshName, class: &str) -> String {
    format!("steep {mesh} {class}")
}

/// Whom a dialler means to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// The agent of exactly this node.
    Node(NodeId),
    /// Any node's agent of our mesh.
    AnyNode,
}

/// Our own certificate, its key, and the root we trust.
#[derive(Clone)]
pub struct Identity {
    me: PeerId,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads our certificate (with its chain), its key and the mesh's root from PEM files.
    ///
    /// The certificate must already be one that we would accept from a peer, so that a mistake shows here and
    /// not as a refused handshake elsewhere. Its validity is left to the handshake: clocks move.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> Result<Self, Error> {
        let chain = read_certificates(cert)?;
        refuse_open_key(key)?;
        let private = PrivateKeyDer::from_pem_slice(&read_pem(key)?)
            .map_err(|error| Error::Unusable { path: key.into(), reason: format!("holds no private key ({error})") })?;
        let mismatch = |source| Error::Mismatch { cert: cert.into(), key: key.into(), source };
        let me = identity_in(&chain[0])?;
        let certified = CertifiedKey::from_der(chain, private, &provider()).map_err(mismatch)?;
        let mut roots = RootCertStore::empty();
        for root in read_certificates(ca)? {
            roots.add(root).map_err(|error| Error::Unusable {
                path: ca.into(),
                reason: format!("holds no usable root certificate ({error})"),
            })?;
        }
        Ok(Self { me, key: Arc::new(certified), roots: Arc::new(roots) })
    }

    /// Who we are.
    pub fn me(&self) -> &PeerId {
        &self.me
    }

    /// What judges chains of certificates that are shown to us: they lead to our roots and may be a client's.
    pub(super) fn chains(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    /// Our certificate, its chain and key.
    pub(super) fn key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    /// Settings for accepting connections that speak `alpn`.
    pub(super) fn server_config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, rustls::Error> {
        let verifier = Arc::new(ClientVerifier { inner: self.chains()?, mesh: self.me.mesh.clone() });
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(config)
    }

    /// Settings for dialling somebody who speaks `alpn`.
    ///
    /// Why we refused the other end's certificate, if we did, is left in `verdict`: the errors that come out of
    /// a handshake are too poor to tell.
    pub(super) fn client_config(
        &self,
        alpn: &[&[u8]],
        expect: Expect,
        verdict: &Verdict,
    ) -> Result<ClientConfig, rustls::Error> {
        let verifier = Arc::new(ServerVerifier {
            roots: Arc::clone(&self.roots),
            mesh: self.me.mesh.clone(),
            expect,
            verdict: Arc::clone(verdict),
        });
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }
}

/// The one crypto provider.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn read_pem(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |source| Error::Unreadable { path: path.into(), source };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_PEM_BYTES {
        return Err(Error::Unusable { path: path.into(), reason: format!("{length} bytes is no PEM file") });
    }
    fs::read(path).map_err(unreadable)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read_pem(path)?;
    let unusable = |reason: String| Error::Unusable { path: path.into(), reason };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(format!("holds a damaged certificate ({error})")))?;
    if chain.is_empty() {
        return Err(unusable("holds no certificate".into()));
    }
    Ok(chain)
}

#[cfg(unix)]
fn refuse_open_key(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = fs::metadata(path).map_err(|source| Error::Unreadable { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(Error::KeyOpen { path: path.into(), mode }) }
}

#[cfg(not(unix))]
fn refuse_open_key(_path: &Path) -> Result<(), Error> {
    Ok(())
}

/// The identity in a certificate, provided that URI, issuer and key usage agree on its class.
///
/// Does not verify the signature chain: the handshake has, or the caller owns the file.
pub fn identity_in(certificate: &CertificateDer<'_>) -> Result<PeerId, Error> {
    let refuse = |reason: &str| Error::Refused(reason.to_owned());
    let (_, cert) = X509Certificate::from_der(certificate).map_err(|_| refuse("it is no X.509 certificate"))?;
    if cert.is_ca() {
        return Err(refuse("it belongs to an authority, not to a node or an operator"));
    }
    let mut uris = Vec::new();
    let mut usage = None;
    for extension in cert.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                uris.extend(names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) => Some(*uri),
                    _ => None,
                }));
            }
            ParsedExtension::ExtendedKeyUsage(found) => usage = Some(found.clone()),
            _ => {}
        }
    }
    let [uri] = uris[..] else {
        return Err(Error::Refused(format!("it carries {} URIs where exactly one is wanted", uris.len())));
    };
    let peer = PeerId::from_uri(uri)?;
    let usage = usage.ok_or_else(|| refuse("it does not say what its key is for"))?;
    let (class, may_serve) = match peer.who {
        Who::Node(_) => ("nodes", true),
        Who::Operator { .. } => ("operators", false),
    };
    if !usage.client_auth || usage.server_auth != may_serve || usage.any {
        return Err(Error::Refused(format!("its key usage does not fit {uri}")));
    }
    let issuer = cert.issuer().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    if issuer != authority_name(&peer.mesh, class) {
        return Err(Error::Refused(format!("{uri} was issued by {issuer:?}, which issues no {class}")));
    }
    Ok(peer)
}

/// Who is at the other end of a finished handshake.
pub(super) fn peer_in(chain: Option<&[CertificateDer<'_>]>) -> Result<PeerId, Error> {
    let leaf = chain.and_then(|chain| chain.first());
    identity_in(leaf.ok_or_else(|| Error::Refused("no certificate was shown".into()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_from_its_uri_and_nothing_else_is_one() {
        for uri in ["spiffe://acme/node/node_a", "spiffe://acme/operator/admin/alice"] {
            assert_eq!(PeerId::from_uri(uri).expect("an identity").uri(), uri);
        }
        for bad in [
            "",
            "https://acme/node/node_a",
            "spiffe://acme",
            "spiffe://acme/node",
            "spiffe://acme/node/",
            "spiffe://acme/node/node_a/x",
            "spiffe://acme/node/Node A",
            "spiffe:///node/node_a",
            "spiffe://acme/operator/root/alice",
            "spiffe://acme/operator/admin",
            "spiffe://acme/operator/admin/alice/x",
            "spiffe://acme/operator/admin/a\u{1b}b",
        ] {
            assert!(PeerId::from_uri(bad).is_err(), "{bad:?}");
        }
    }
}
