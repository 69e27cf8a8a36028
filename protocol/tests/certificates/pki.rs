//! Authorities, certificates and lists as the tests want them, and ends of connections that check nothing.

use std::{
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use steep_protocol::wire::{
    identity::{Error, Identity},
    revocation::{self, Serial},
};
use time::{Duration as Days, OffsetDateTime};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) const SOON: Duration = Duration::from_secs(10);
pub(crate) const NODE: &str = "spiffe://acme/node/node_b";
pub(crate) const ADMIN: &str = "spiffe://acme/operator/admin/alice";

pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pem: String,
}

/// The authorities of mesh acme, and some that nobody should trust.
pub(crate) struct Authorities {
    pub(crate) root: Authority,
    pub(crate) nodes: Authority,
    pub(crate) operators: Authority,
    /// Another mesh's, under acme's own root.
    pub(crate) nodes_of_other_mesh: Authority,
    /// All names right, another root.
    pub(crate) forged_nodes: Authority,
    /// A certificate of node_b that was revoked.
    pub(crate) revoked: Shown,
}

pub(crate) fn params(name: &str, from: i64, until: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() + Days::days(from);
    params.not_after = OffsetDateTime::now_utc() + Days::days(until);
    params.use_authority_key_identifier_extension = true;
    params
}

/// A revocation list of `issuer`, good for `days`, in PEM without the authority's certificate.
pub(crate) fn list(issuer: &Authority, number: u64, revoked: &[Serial], days: (i64, i64)) -> String {
    let entry = |serial: &Serial| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&serial.to_bytes()),
        revocation_time: OffsetDateTime::now_utc(),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: OffsetDateTime::now_utc() + Days::days(days.0),
        next_update: OffsetDateTime::now_utc() + Days::days(days.1),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&issuer.issuer).expect("it can be signed").pem().expect("it is PEM")
}

/// The same with the authority's certificate, as agents take it.
pub(crate) fn full_list(issuer: &Authority, number: u64, revoked: &[Serial]) -> String {
    format!("{}{}", list(issuer, number, revoked, NOW), issuer.pem)
}

pub(crate) fn authority(name: &str, above: Option<&Authority>) -> Authority {
    let mut params = params(name, -100, 100);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(if above.is_none() { 1 } else { 0 }));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key can be made");
    let cert = match above {
        None => params.self_signed(&key),
        Some(above) => params.signed_by(&key, &above.issuer),
    };
    let cert = cert.expect("it can be signed");
    Authority { der: cert.der().clone(), pem: cert.pem(), issuer: Issuer::new(params, key) }
}

impl Authorities {
    pub(crate) fn new() -> Self {
        let root = authority("steep acme root", None);
        let forged_root = authority("steep acme root", None);
        let nodes = authority("steep acme nodes", Some(&root));
        Self {
            revoked: leaf(Some(&nodes), &[NODE], BOTH, NOW),
            nodes,
            operators: authority("steep acme operators", Some(&root)),
            nodes_of_other_mesh: authority("steep other nodes", Some(&root)),
            forged_nodes: authority("steep acme nodes", Some(&forged_root)),
            root,
        }
    }
}

/// A certificate with its key, as a peer would show it.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) pem: String,
    key: Vec<u8>,
    pub(crate) key_pem: String,
}

impl Shown {
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    pub(crate) fn serial(&self) -> Serial {
        Serial::in_certificate(&self.chain[0]).expect("a certificate")
    }
}

/// A certificate good from and to so many days from now.
pub(crate) fn leaf(issuer: Option<&Authority>, uris: &[&str], usages: &[Usage], days: (i64, i64)) -> Shown {
    leaf_for(issuer, uris, usages, Days::days(days.0), Days::days(days.1))
}

pub(crate) fn leaf_for(issuer: Option<&Authority>, uris: &[&str], usages: &[Usage], from: Days, until: Days) -> Shown {
    let mut params = params("node_b", 0, 0);
    params.not_before = OffsetDateTime::now_utc() + from;
    params.not_after = OffsetDateTime::now_utc() + until;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
    let key = KeyPair::generate().expect("a key can be made");
    let cert = match issuer {
        None => params.self_signed(&key),
        Some(issuer) => params.signed_by(&key, &issuer.issuer),
    };
    let cert = cert.expect("it can be signed");
    let chain = std::iter::once(cert.der().clone()).chain(issuer.map(|issuer| issuer.der.clone())).collect();
    let pem = format!("{}{}", cert.pem(), issuer.map(|issuer| issuer.pem.as_str()).unwrap_or_default());
    Shown { chain, pem, key: key.serialize_der(), key_pem: key.serialize_pem() }
}

pub(crate) const BOTH: &[Usage] = &[Usage::ServerAuth, Usage::ClientAuth];
pub(crate) const NOW: (i64, i64) = (-1, 30);

/// The files of one identity, in a folder that is gone with this.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn with(shown: &Shown, ca: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("steep-certificates-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder can be made");
        let folder = Self(dir);
        folder.put(shown);
        folder.write("ca.pem", ca);
        folder
    }

    /// Replaces certificate and key.
    pub(crate) fn put(&self, shown: &Shown) {
        self.write("a.pem", &shown.pem);
        self.write("a.key", &shown.key_pem);
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).create(true).mode(0o600).truncate(true);
        let mut file = options.open(self.path(name)).expect("it can be made");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("it can be written");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn load(&self) -> Identity {
        Identity::load(&self.path("a.pem"), &self.path("a.key"), &self.path("ca.pem")).expect("a good identity")
    }

    pub(crate) fn reload(&self, identity: &Identity) -> Result<bool, Error> {
        identity.reload(&self.path("a.pem"), &self.path("a.key"), &self.path("ca.pem"), Timestamp::now())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Loads `shown` as an agent would, which goes by the list that revokes [`Authorities::revoked`].
pub(crate) fn identity(all: &Authorities, shown: &Shown) -> Arc<Identity> {
    let identity = Folder::with(shown, &all.root.pem).load();
    learn(&identity, &full_list(&all.nodes, 1, &[all.revoked.serial()])).expect("a good list");
    Arc::new(identity)
}

/// Goes by the one list in `pem`.
pub(crate) fn learn(identity: &Identity, pem: &str) -> Result<bool, revocation::Error> {
    let mut lists = identity.read_lists(pem)?;
    assert_eq!(lists.len(), 1, "one list is learnt at a time");
    identity.learn(lists.remove(0))
}

pub(crate) fn node(all: &Authorities, node: &str) -> Shown {
    leaf(Some(&all.nodes), &[&format!("spiffe://acme/node/{node}")], BOTH, NOW)
}

pub(crate) fn node_a(all: &Authorities) -> Arc<Identity> {
    identity(all, &node(all, "node_a"))
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Takes any server for good.
#[derive(Debug)]
pub(crate) struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) fn client(
    shown: Option<&Shown>,
    alpn: &[u8],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("versions that exist")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match shown {
        Some(shown) => builder.with_client_auth_cert(shown.chain.clone(), shown.key()).expect("a pair"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// A server that shows `shown` and takes any client.
pub(crate) fn server(shown: &Shown, alpn: &[u8]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions that exist")
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), shown.key())
        .expect("a pair");
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

pub(crate) const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A client over TCP that shows `shown`; whether it is let in is yet to be seen.
pub(crate) async fn over_tcp(address: SocketAddr, shown: &Shown) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.expect("somebody listens");
    let name = ServerName::try_from("anybody.example").expect("a name");
    let config = client(Some(shown), b"h2", TLS13);
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake")
}

/// Whether an agent at `address` lets a client over TCP in: it then waits for the client's first words.
pub(crate) async fn is_let_in_over_tcp(address: SocketAddr, config: ClientConfig) -> bool {
    let stream = TcpStream::connect(address).await.expect("somebody listens");
    let name = ServerName::try_from("anybody.example").expect("a name");
    let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await else { return false };
    // In TLS 1.3 the client is done before the server has judged it: a refusal shows with the first byte read.
    let mut byte = [0];
    !matches!(timeout(Duration::from_millis(700), stream.read(&mut byte)).await, Ok(Ok(0) | Err(_)))
}

pub(crate) async fn is_let_in_over_quic(address: SocketAddr, config: ClientConfig) -> bool {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3 it is");
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
    let connecting = endpoint
        .connect_with(quinn::ClientConfig::new(Arc::new(crypto)), address, "anybody.example")
        .expect("good settings");
    let Ok(connection) = connecting.await else { return false };
    timeout(Duration::from_millis(700), connection.closed()).await.is_err()
}
