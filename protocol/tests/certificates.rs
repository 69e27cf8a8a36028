//! Certificates that must be refused, by both ends, over TCP and QUIC; made with rcgen, shown by clients and servers
//! that check nothing themselves.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use steep_protocol::{
    failure::{Code, Explain as _},
    wire::{
        endpoint::{self, Endpoint},
        identity::{Expect, Identity},
        rpc,
    },
};
use time::{Duration as Days, OffsetDateTime};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const SOON: Duration = Duration::from_secs(10);
const NODE: &str = "spiffe://acme/node/node_b";
const ADMIN: &str = "spiffe://acme/operator/admin/alice";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

/// The authorities of mesh acme, and some that nobody should trust.
struct Authorities {
    root: Authority,
    nodes: Authority,
    operators: Authority,
    /// Another mesh's, under acme's own root.
    nodes_of_other_mesh: Authority,
    /// All names right, another root.
    forged_nodes: Authority,
}

fn params(name: &str, from: i64, until: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() + Days::days(from);
    params.not_after = OffsetDateTime::now_utc() + Days::days(until);
    params
}

fn authority(name: &str, above: Option<&Authority>) -> Authority {
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
    fn new() -> Self {
        let root = authority("steep acme root", None);
        let forged_root = authority("steep acme root", None);
        Self {
            nodes: authority("steep acme nodes", Some(&root)),
            operators: authority("steep acme operators", Some(&root)),
            nodes_of_other_mesh: authority("steep other nodes", Some(&root)),
            forged_nodes: authority("steep acme nodes", Some(&forged_root)),
            root,
        }
    }
}

/// A certificate with its key, as a peer would show it.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    key: KeyPair,
}

impl Shown {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

fn leaf(issuer: Option<&Authority>, uris: &[&str], usages: &[Usage], days: (i64, i64)) -> Shown {
    let mut params = params("node_b", days.0, days.1);
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
    Shown { chain, pem, key }
}

const BOTH: &[Usage] = &[Usage::ServerAuth, Usage::ClientAuth];
const NOW: (i64, i64) = (-1, 30);

/// What must be refused, and the code by which whoever sees it says so.
fn bad(all: &Authorities) -> Vec<(&'static str, Shown, Code)> {
    use Code::{CertificateExpired, CertificateRefused, WrongMesh};
    let nodes = Some(&all.nodes);
    vec![
        ("expired", leaf(nodes, &[NODE], BOTH, (-30, -1)), CertificateExpired),
        ("not valid yet", leaf(nodes, &[NODE], BOTH, (1, 30)), CertificateExpired),
        ("forged authority", leaf(Some(&all.forged_nodes), &[NODE], BOTH, NOW), CertificateRefused),
        ("self-signed", leaf(None, &[NODE], BOTH, NOW), CertificateRefused),
        ("another mesh", leaf(Some(&all.nodes_of_other_mesh), &["spiffe://other/node/node_b"], BOTH, NOW), WrongMesh),
        (
            "another mesh's name from our authority",
            leaf(nodes, &["spiffe://other/node/node_b"], BOTH, NOW),
            CertificateRefused,
        ),
        ("two URIs", leaf(nodes, &[NODE, "spiffe://acme/node/node_c"], BOTH, NOW), CertificateRefused),
        ("no URI", leaf(nodes, &[], BOTH, NOW), CertificateRefused),
        ("no mesh's URI", leaf(nodes, &["https://acme/node/node_b"], BOTH, NOW), CertificateRefused),
        ("no key usage", leaf(nodes, &[NODE], &[], NOW), CertificateRefused),
        ("for code", leaf(nodes, &[NODE], &[Usage::CodeSigning], NOW), CertificateRefused),
        ("node issued by operators", leaf(Some(&all.operators), &[NODE], BOTH, NOW), CertificateRefused),
        ("operator issued by nodes", leaf(nodes, &[ADMIN], &[Usage::ClientAuth], NOW), CertificateRefused),
        ("operator that would serve", leaf(Some(&all.operators), &[ADMIN], BOTH, NOW), CertificateRefused),
        ("issued by the root itself", leaf(Some(&all.root), &[NODE], BOTH, NOW), CertificateRefused),
        (
            "an unknown role",
            leaf(Some(&all.operators), &["spiffe://acme/operator/king/alice"], &[Usage::ClientAuth], NOW),
            CertificateRefused,
        ),
    ]
}

/// Writes `shown` to files and loads it as an agent would.
fn identity(all: &Authorities, shown: &Shown) -> Arc<Identity> {
    use std::os::unix::fs::OpenOptionsExt as _;
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("steep-certificates-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder can be made");
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).mode(0o600).truncate(true).open(&path).expect("it can be made");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("it can be written");
        path
    };
    let (cert, key, ca) =
        (write("a.pem", &shown.pem), write("a.key", &shown.key.serialize_pem()), write("ca.pem", &all.root.pem));
    let loaded = Identity::load(&cert, &key, &ca);
    std::fs::remove_dir_all(&dir).expect("it is ours");
    Arc::new(loaded.expect("a good identity"))
}

fn node_a(all: &Authorities) -> Arc<Identity> {
    identity(all, &leaf(Some(&all.nodes), &["spiffe://acme/node/node_a"], BOTH, NOW))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Takes any server for good.
#[derive(Debug)]
struct Gullible;

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

fn client(shown: Option<&Shown>, alpn: &[u8], versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
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
fn server(shown: &Shown, alpn: &[u8]) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions that exist")
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), shown.key())
        .expect("a pair");
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Whether an agent at `address` lets a client over TCP in: it then waits for the client's first words.
async fn is_let_in_over_tcp(address: SocketAddr, config: ClientConfig) -> bool {
    let stream = TcpStream::connect(address).await.expect("somebody listens");
    let name = ServerName::try_from("anybody.example").expect("a name");
    let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await else { return false };
    // In TLS 1.3 the client is done before the server has judged it: a refusal shows with the first byte read.
    let mut byte = [0];
    !matches!(timeout(Duration::from_millis(700), stream.read(&mut byte)).await, Ok(Ok(0) | Err(_)))
}

async fn is_let_in_over_quic(address: SocketAddr, config: ClientConfig) -> bool {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3 it is");
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
    let connecting = endpoint
        .connect_with(quinn::ClientConfig::new(Arc::new(crypto)), address, "anybody.example")
        .expect("good settings");
    let Ok(connection) = connecting.await else { return false };
    timeout(Duration::from_millis(700), connection.closed()).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_lets_nobody_in_with_a_bad_certificate() {
    let all = Authorities::new();
    let (agent, mut arrivals) = Endpoint::bind("127.0.0.1:0", node_a(&all)).await.expect("a port is free");
    let address = agent.address();

    let good_node = leaf(Some(&all.nodes), &[NODE], BOTH, NOW);
    let good_admin = leaf(Some(&all.operators), &[ADMIN], &[Usage::ClientAuth], NOW);
    for good in [&good_node, &good_admin] {
        assert!(is_let_in_over_tcp(address, client(Some(good), b"h2", TLS13)).await, "a good one comes in");
        arrivals.rpc.recv().await.expect("it has arrived");
    }
    assert!(is_let_in_over_quic(address, client(Some(&good_node), b"steep/1", TLS13)).await, "a good one comes in");
    arrivals.connections.recv().await.expect("it has arrived");

    for (name, shown, _) in bad(&all) {
        assert!(!is_let_in_over_tcp(address, client(Some(&shown), b"h2", TLS13)).await, "{name} over TCP");
        assert!(!is_let_in_over_quic(address, client(Some(&shown), b"steep/1", TLS13)).await, "{name} over QUIC");
    }
    assert!(!is_let_in_over_tcp(address, client(None, b"h2", TLS13)).await, "no certificate at all, over TCP");
    assert!(!is_let_in_over_quic(address, client(None, b"steep/1", TLS13)).await, "no certificate at all, over QUIC");
    let tls12 = client(Some(&good_node), b"h2", &[&rustls::version::TLS12]);
    assert!(!is_let_in_over_tcp(address, tls12).await, "TLS 1.2");
    let foreign = client(Some(&good_node), b"http/1.1", TLS13);
    assert!(!is_let_in_over_tcp(address, foreign).await, "another protocol");
    assert!(arrivals.rpc.try_recv().is_err() && arrivals.connections.try_recv().is_err(), "nothing reached the rooms");
    agent.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_said_to_who_does_not_speak_tls() {
    let all = Authorities::new();
    let (agent, mut arrivals) = Endpoint::bind("127.0.0.1:0", node_a(&all)).await.expect("a port is free");
    for words in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 200]] {
        let mut stream = TcpStream::connect(agent.address()).await.expect("somebody listens");
        tokio::io::AsyncWriteExt::write_all(&mut stream, words).await.expect("it can be written");
        let mut answer = Vec::new();
        // At most a TLS alert (0x15) comes back, then the end.
        let read = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
        assert!(read.is_err() || answer.len() <= 7 && answer.first().is_none_or(|byte| *byte == 0x15), "{answer:?}");
    }
    assert!(arrivals.rpc.try_recv().is_err());
    agent.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_refuses_a_bad_server_and_says_why() {
    let all = Authorities::new();
    let me = node_a(&all);
    let (agent, _arrivals) = Endpoint::bind("127.0.0.1:0", Arc::clone(&me)).await.expect("a port is free");
    let node_b = "node_b".parse().expect("a node");
    let mut cases = bad(&all);
    let another = leaf(Some(&all.nodes), &["spiffe://acme/node/node_c"], BOTH, NOW);
    cases.push(("another node", another, Code::IdentityMismatch));
    let operator = leaf(Some(&all.operators), &[ADMIN], &[Usage::ClientAuth], NOW);
    // WebPKI itself refuses it, before our own rules: it may not serve.
    cases.push(("an operator", operator, Code::CertificateRefused));
    for (name, shown, code) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let acceptor = TlsAcceptor::from(Arc::new(server(&shown, b"h2")));
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("somebody dials");
            let stream = acceptor.accept(stream).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(stream);
        });
        let expect = Expect::Node("node_b".parse().expect("a node"));
        let failure = rpc::connect_tcp(&address, &me, expect).await.expect_err(name);
        assert_eq!(failure.code, code, "{name} over TCP: {failure}");
        serving.await.expect("it ends");

        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(server(&shown, b"steep/1")).expect("TLS 1.3");
        let quic = quinn::Endpoint::server(
            quinn::ServerConfig::with_crypto(Arc::new(crypto)),
            SocketAddr::from(([127, 0, 0, 1], 0)),
        )
        .expect("a socket");
        let address = quic.local_addr().expect("it is bound").to_string();
        let serving = tokio::spawn(async move {
            if let Some(incoming) = quic.accept().await {
                let _ = incoming.await;
            }
        });
        let error = agent.dial(&address, &node_b).await.expect_err(name);
        assert!(matches!(error, endpoint::Error::Refused { .. }), "{name} over QUIC: {error}");
        assert_eq!(error.explain().code, code, "{name} over QUIC: {error}");
        serving.abort();
    }
    agent.close().await;
}

#[tokio::test]
async fn health_and_reflection_answer_members_only() {
    let all = Authorities::new();
    let (agent, arrivals) = Endpoint::bind("127.0.0.1:0", node_a(&all)).await.expect("a port is free");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        rpc::serve(tonic::service::Routes::default(), arrivals.rpc, stopped).await.expect("it serves");
    });
    let address = agent.address().to_string();
    let vera =
        identity(&all, &leaf(Some(&all.operators), &["spiffe://acme/operator/viewer/vera"], &[Usage::ClientAuth], NOW));
    let channel = rpc::connect_tcp(&address, &vera, Expect::AnyNode).await.expect("a viewer is a member");
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    for service in ["", "steep.v1.Nodes", "steep.v1.Operations", "steep.v1.Peers"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let reply = health.check(request).await.expect("health answers").into_inner();
        assert_eq!(reply.status(), tonic_health::pb::health_check_response::ServingStatus::Serving, "{service:?}");
    }
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut replies = reflection
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .expect("reflection answers")
        .into_inner();
    let reply = replies.message().await.expect("a reply").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = reply.message_response else { panic!("{reply:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["steep.v1.Nodes", "steep.v1.Operations", "steep.v1.Peers", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    drop((health, reflection, replies));
    stop.send(()).expect("it still serves");
    timeout(SOON, serving).await.expect("it ends").expect("without a panic");
    agent.close().await;
}
