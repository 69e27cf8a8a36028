//! One connection over QUIC or TCP: what it carries, which one is taken, how its end is noticed; and what becomes of
//! those who want too much.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use steep_protocol::{
    failure::{Code, Explain as _},
    ids::NodeId,
    v1,
    wire::{
        bulk::{BlockSink, BlockSource},
        compress::{Codec, Compression},
        connection::{Carrier, Connection, Transport, Why},
        datagram::{LARGEST_DATAGRAM, LEAVING},
        endpoint::{Arrivals, BULK_STREAM, Endpoint, Preference, RPC_STREAM},
        identity::{Expect, Identity},
        limits::{
            BULK_PER_CONNECTION, CONNECTIONS_PER_NODE, MAX_FRAME_BYTES, REQUESTS_IN_ONE_GO, REQUESTS_PER_IDENTITY,
            Refusal,
        },
        rpc, tcp,
    },
};
use time::{Duration as Days, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;

const SOON: Duration = Duration::from_secs(10);

/// The authorities of mesh acme.
struct Pki {
    root_pem: String,
    nodes: (Issuer<'static, KeyPair>, String),
    operators: (Issuer<'static, KeyPair>, String),
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - Days::days(1);
    params.not_after = OffsetDateTime::now_utc() + Days::days(1);
    params
}

fn authority(name: &str, above: Option<&Issuer<'static, KeyPair>>) -> (Issuer<'static, KeyPair>, String) {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(if above.is_none() { 1 } else { 0 }));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key can be made");
    let cert = match above {
        None => params.self_signed(&key),
        Some(above) => params.signed_by(&key, above),
    };
    let pem = cert.expect("it can be signed").pem();
    (Issuer::new(params, key), pem)
}

impl Pki {
    fn new() -> Self {
        let (root, root_pem) = authority("steep acme root", None);
        Self {
            nodes: authority("steep acme nodes", Some(&root)),
            operators: authority("steep acme operators", Some(&root)),
            root_pem,
        }
    }

    fn node(&self, id: &str) -> Arc<Identity> {
        self.issue(&self.nodes, &format!("spiffe://acme/node/{id}"), &[Usage::ServerAuth, Usage::ClientAuth]).0
    }

    fn viewer(&self, name: &str) -> Arc<Identity> {
        self.issue(&self.operators, &format!("spiffe://acme/operator/viewer/{name}"), &[Usage::ClientAuth]).0
    }

    /// The identity, and its chain and key as PEM.
    fn issue(
        &self,
        issuer: &(Issuer<'static, KeyPair>, String),
        uri: &str,
        usages: &[Usage],
    ) -> (Arc<Identity>, String, String) {
        use std::os::unix::fs::OpenOptionsExt as _;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut params = params("leaf");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        let key = KeyPair::generate().expect("a key can be made");
        let cert = params.signed_by(&key, &issuer.0).expect("it can be signed");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("steep-transport-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder can be made");
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            let mut options = std::fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).mode(0o600).truncate(true).open(&path).expect("it can be made");
            std::io::Write::write_all(&mut file, text.as_bytes()).expect("it can be written");
            path
        };
        let chain = format!("{}{}", cert.pem(), issuer.1);
        let loaded = Identity::load(
            &write("a.pem", &chain),
            &write("a.key", &key.serialize_pem()),
            &write("ca.pem", &self.root_pem),
        );
        std::fs::remove_dir_all(&dir).expect("it is ours");
        (Arc::new(loaded.expect("a good identity")), chain, key.serialize_pem())
    }
}

async fn agent(identity: Arc<Identity>, preference: Preference) -> (Endpoint, Arrivals) {
    Endpoint::bind_for("127.0.0.1:0", identity, preference).await.expect("a port is free")
}

fn id(text: &str) -> NodeId {
    text.parse().expect("a node")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("it happens soon")
}

/// Passes TCP on, and no UDP; can be made to stand still.
struct TcpOnly {
    address: String,
    flows: watch::Sender<bool>,
}

impl TcpOnly {
    async fn before(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let flows = watch::Sender::new(true);
        let watched = flows.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut watched = watched.subscribe();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    let stands_still = async { drop(watched.wait_for(|flows| !flows).await) };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => return,
                        () = stands_still => {}
                    }
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { address, flows }
    }
}

/// Blocks sent by `from` to `to` on a stream that `to` opens.
async fn blocks_arrive(opener: &Connection, sender: &mut Arrivals) {
    let want = v1::BulkRequest { want: Some(v1::bulk_request::Want::Dump(v1::FetchDump::default())) };
    let opened = soon(opener.open(BULK_STREAM)).await.expect("a stream opens");
    let mut source = BlockSource::request(opened, &want).await.expect("it takes a request");
    let io = soon(sender.bulk.recv()).await.expect("the stream arrives");
    let (request, io) = BlockSink::accept(io, SOON).await.expect("with its request");
    assert_eq!(request, want);
    let sending = tokio::spawn(async move {
        let mut sink = BlockSink::new(io, Compression::Auto, true);
        for number in 0..20u8 {
            sink.send(vec![number; 300_000]).await.expect("it is taken");
        }
        sink.finish(20).await.expect("it ends");
    });
    let mut blocks = 0;
    while let Some(block) = soon(source.next()).await.expect("whole blocks") {
        assert_eq!(block, vec![blocks; 300_000]);
        blocks += 1;
    }
    assert_eq!((blocks, source.trailer().expect("an end").rows), (20, 20));
    drop(source);
    soon(sending).await.expect("it was sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_carries_the_same_over_quic_and_tcp_whoever_dialled() {
    for (preference, carrier) in [(Preference::Quic, Carrier::Quic), (Preference::Tcp, Carrier::Tcp)] {
        let pki = Pki::new();
        let (a, mut at_a) = agent(pki.node("node_a"), preference).await;
        let (b, mut at_b) = agent(pki.node("node_b"), preference).await;
        let ours = a.dial(&b.address().to_string(), &id("node_b")).await.expect("b listens");
        let theirs = soon(at_b.connections.recv()).await.expect("b hears of it");
        for connection in [&ours, &theirs] {
            assert_eq!(connection.transport().carrier, carrier);
            assert!(connection.is_local() && !connection.is_closed());
        }
        assert_eq!((ours.peer().node(), theirs.peer().node()), (Some(&id("node_b")), Some(&id("node_a"))));

        blocks_arrive(&ours, &mut at_b).await;
        blocks_arrive(&theirs, &mut at_a).await;
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            for bytes in [Bytes::from_static(b"are you there?"), vec![7; LARGEST_DATAGRAM].into()] {
                assert!(from.send_datagram(bytes.clone()), "it is sent");
                assert_eq!(soon(to.receive_datagram()).await, Some(bytes));
            }
            assert!(!from.send_datagram(vec![0; LARGEST_DATAGRAM + 1].into()), "it is too large");
            assert!(from.packets_received() > 0 && !from.was_left());
            let measured = async {
                while from.rtt().is_zero() {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            soon(measured).await;
        }

        // Its end is the end of every stream, at both ends.
        let mut streams = Vec::new();
        for (opener, arrivals) in [(&ours, &mut at_b), (&theirs, &mut at_a)] {
            streams.push(opener.open(RPC_STREAM).await.expect("a stream opens"));
            streams.push(soon(arrivals.rpc.recv()).await.expect("it arrives"));
        }
        theirs.close(LEAVING);
        for stream in &mut streams {
            let read = soon(stream.read(&mut [0; 10])).await;
            assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        }
        soon(ours.closed()).await;
        assert!(ours.is_closed() && theirs.is_closed() && ours.was_left() && !theirs.was_left());
        assert_eq!(soon(ours.receive_datagram()).await, None);
        ours.open(RPC_STREAM).await.expect_err("nothing opens on it any more");
        soon(a.close()).await;
        soon(b.close()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_is_taken_where_it_answers_and_tcp_where_it_does_not() {
    let pki = Pki::new();
    let (a, _at_a) = agent(pki.node("node_a"), Preference::Auto).await;
    let (b, mut at_b) = agent(pki.node("node_b"), Preference::Auto).await;
    let direct = a.dial(&b.address().to_string(), &id("node_b")).await.expect("b listens");
    assert_eq!(direct.transport(), Transport { carrier: Carrier::Quic, why: Why::First });

    let blocked = TcpOnly::before(b.address()).await;
    let began = Instant::now();
    let over_tcp = a.dial(&blocked.address, &id("node_b")).await.expect("TCP passes");
    assert_eq!(over_tcp.transport(), Transport { carrier: Carrier::Tcp, why: Why::UdpSilent });
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_millis(1500), "QUIC had its time");
    let began = Instant::now();
    let again = a.dial(&blocked.address, &id("node_b")).await.expect("TCP passes");
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for the same UDP twice: {:?}", began.elapsed());
    for _ in 0..3 {
        soon(at_b.connections.recv()).await.expect("b hears of each");
    }
    blocks_arrive(&again, &mut at_b).await;
    a.dial_quic(&blocked.address, &id("node_b")).await.expect_err("UDP is still blocked");
    let back = a.dial_quic(&b.address().to_string(), &id("node_b")).await.expect("here it is not");
    assert_eq!(back.transport().carrier, Carrier::Quic);

    // An agent that opens no UDP port says so itself: there is nothing to complain of.
    let (c, mut at_c) = agent(pki.node("node_c"), Preference::Tcp).await;
    let to_c = a.dial(&c.address().to_string(), &id("node_c")).await.expect("c listens");
    assert_eq!(to_c.transport(), Transport { carrier: Carrier::Tcp, why: Why::ConfiguredThere });
    let from_a = soon(at_c.connections.recv()).await.expect("c hears of it");
    assert_eq!(from_a.transport(), Transport { carrier: Carrier::Tcp, why: Why::Configured });
    std::net::UdpSocket::bind(c.address()).expect("its UDP port is free");

    // Nobody at all: both reasons are told.
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = nobody.local_addr().expect("it is bound").to_string();
    drop(nobody);
    let failure = a.dial(&address, &id("node_d")).await.expect_err("nobody listens").explain();
    assert_eq!(failure.code, Code::PeerUnreachable);
    assert!(failure.message.contains("over UDP") && failure.message.contains("over TCP"), "{failure}");
    for endpoint in [a, b, c] {
        soon(endpoint.close()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_replaced_stays_until_what_was_sent_on_it_is_read() {
    for preference in [Preference::Quic, Preference::Tcp] {
        let pki = Pki::new();
        let (a, mut at_a) = agent(pki.node("node_a"), preference).await;
        let (b, _at_b) = agent(pki.node("node_b"), preference).await;
        let ours = b.dial(&a.address().to_string(), &id("node_a")).await.expect("a listens");
        let theirs = soon(at_a.connections.recv()).await.expect("a hears of it");
        let opened = ours.open(BULK_STREAM).await.expect("a stream opens");
        let mut source = BlockSource::request(opened, &v1::BulkRequest::default()).await.expect("it takes a request");
        let io = soon(at_a.bulk.recv()).await.expect("it arrives");
        let sending = tokio::spawn(async move {
            let (_, io) = BlockSink::accept(io, SOON).await.expect("with its request");
            let mut sink = BlockSink::new(io, Compression::Fixed(Codec::Raw), true);
            sink.send(vec![7; 500_000]).await.expect("it is taken");
            sink.finish(1).await
        });
        let retiring = tokio::spawn(async move { theirs.retire(Duration::ZERO, "replaced").await });
        // Everything is sent, and nothing of it read; the sender looks several times.
        sleep(Duration::from_secs(3)).await;
        assert!(!retiring.is_finished() && !ours.is_closed(), "the reader is waited for");
        assert_eq!(soon(source.next()).await.expect("a whole block").expect("one").len(), 500_000);
        assert_eq!(soon(source.next()).await.expect("an end"), None);
        drop(source);
        soon(sending).await.expect("no panic").expect("it was read");
        soon(retiring).await.expect("no panic");
        soon(ours.closed()).await;
        soon(b.close()).await;
        soon(a.close()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stands_still_is_noticed_and_its_streams_end() {
    let pki = Pki::new();
    let (a, _at_a) = agent(pki.node("node_a"), Preference::Tcp).await;
    let (b, mut at_b) = agent(pki.node("node_b"), Preference::Tcp).await;
    let line = TcpOnly::before(b.address()).await;
    let ours = a.dial(&line.address, &id("node_b")).await.expect("b listens");
    let theirs = soon(at_b.connections.recv()).await.expect("b hears of it");
    let mut stream = ours.open(RPC_STREAM).await.expect("a stream opens");
    // Longer than the limit: who speaks is not taken for dead.
    sleep(Duration::from_secs(12)).await;
    assert!(!ours.is_closed() && !theirs.is_closed());
    line.flows.send_replace(false);
    let began = Instant::now();
    timeout(Duration::from_secs(14), async { tokio::join!(ours.closed(), theirs.closed()) })
        .await
        .expect("both notice");
    assert!(began.elapsed() > Duration::from_secs(6), "not at the first silence");
    soon(stream.read(&mut [0])).await.expect_err("the stream is gone");
    soon(a.close()).await;
    soon(b.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_nobody_reads_hold_up_no_request() {
    for preference in [Preference::Quic, Preference::Tcp] {
        let pki = Pki::new();
        let (a, mut at_a) = agent(pki.node("node_a"), preference).await;
        let (b, _at_b) = agent(pki.node("node_b"), preference).await;
        tokio::spawn(rpc::serve(tonic::service::Routes::default(), at_a.rpc, std::future::pending()));
        let connection = b.dial(&a.address().to_string(), &id("node_a")).await.expect("a listens");
        let mut never_read = Vec::new();
        for _ in 0..BULK_PER_CONNECTION {
            let want = v1::BulkRequest::default();
            let io = connection.open(BULK_STREAM).await.expect("a stream opens");
            never_read.push(BlockSource::request(io, &want).await.expect("it takes a request"));
        }
        let mut sending = tokio::task::JoinSet::new();
        for _ in 0..BULK_PER_CONNECTION {
            let io = soon(at_a.bulk.recv()).await.expect("it arrives");
            sending.spawn(async move {
                let (_, io) = BlockSink::accept(io, SOON).await.expect("with its request");
                let mut sink = BlockSink::new(io, Compression::Fixed(Codec::Raw), true);
                // For ever, if somebody took it.
                while sink.send(vec![7; 512 << 10]).await.is_ok() {}
            });
        }
        let channel = rpc::over(&connection).await.expect("requests go beside them");
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        for _ in 0..20 {
            let asked = health.check(tonic_health::pb::HealthCheckRequest::default());
            timeout(Duration::from_secs(2), asked).await.expect("it is answered soon").expect("and well");
        }
        assert!(sending.try_join_next().is_none(), "the senders wait");
        // One stream more than a peer may have breaks, and nothing else.
        let mut more = connection.open(BULK_STREAM).await.expect("it seems to open");
        let read = soon(more.read(&mut [0; 1])).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        assert!(a.refusals().of(Refusal::Streams) >= 1);
        health.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("still");
        drop(never_read);
        soon(async { while sending.join_next().await.is_some() {} }).await;
        soon(b.close()).await;
        soon(a.close()).await;
    }
}

/// Takes any server for good, shows `chain`.
fn raw_client(chain: &str, key: &str, alpn: &[u8]) -> TlsConnector {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().expect("a chain");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version that exists")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(gullible::Gullible(provider)))
        .with_client_auth_cert(chain, key)
        .expect("a pair");
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsConnector::from(Arc::new(config))
}

mod gullible {
    use std::sync::Arc;

    use rustls::{
        DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::CryptoProvider,
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub(super) struct Gullible(pub(super) Arc<CryptoProvider>);

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
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_dropped_and_counted_and_nobody_else_notices() {
    let pki = Pki::new();
    let (a, mut at_a) = agent(pki.node("node_a"), Preference::Auto).await;
    let address = a.address();
    let issue = |uri: &str| pki.issue(&pki.nodes, uri, &[Usage::ServerAuth, Usage::ClientAuth]);
    let (identity, chain, key) = issue("spiffe://acme/node/node_b");
    let (_, other_chain, other_key) = issue("spiffe://acme/node/node_c");
    let client = raw_client(&chain, &key, b"steep/1");
    let other = raw_client(&other_chain, &other_key, b"steep/1");
    let name = 7u128.to_le_bytes();
    let connect = async |client: &TlsConnector, words: &[u8]| {
        let stream = TcpStream::connect(address).await.expect("somebody listens");
        let mut stream =
            client.connect("x.example".try_into().expect("a name"), stream).await.expect("a good certificate");
        stream.write_all(words).await.expect("it can be written");
        stream.flush().await.expect("it can be written");
        stream
    };
    let ends = async |mut stream: tokio_rustls::client::TlsStream<TcpStream>| {
        let mut rest = Vec::new();
        let _ = soon(stream.read_to_end(&mut rest)).await;
    };
    // A connection by hand, and streams on it.
    let mut control = connect(&client, &[&[tcp::CONTROL_STREAM][..], &name, &[1]].concat()).await;
    let mut hello = [0; 4];
    soon(control.read_exact(&mut hello)).await.expect("it is answered");
    assert_eq!(hello, [0, 1, 0, 1], "a hello of one byte: it takes QUIC");
    let good = connect(&client, &[&[RPC_STREAM][..], &name].concat()).await;
    soon(at_a.rpc.recv()).await.expect("a stream of it arrives");

    let cases: [(&str, &TlsConnector, Vec<u8>, Refusal); 6] = [
        ("an unknown kind", &client, [&[0x77][..], &name].concat(), Refusal::StreamUnknown),
        (
            "a connection that is not there",
            &client,
            [&[RPC_STREAM][..], &8u128.to_le_bytes()].concat(),
            Refusal::ConnectionUnknown,
        ),
        ("somebody else's connection", &other, [&[BULK_STREAM][..], &name].concat(), Refusal::ConnectionUnknown),
        (
            "a stream nobody wants",
            &client,
            [&[tcp::WANTED_STREAM][..], &name, &[9; 8]].concat(),
            Refusal::ConnectionUnknown,
        ),
        (
            "a name that is taken",
            &client,
            [&[tcp::CONTROL_STREAM][..], &name, &[1]].concat(),
            Refusal::ConnectionUnknown,
        ),
        (
            "somebody else's name",
            &other,
            [&[tcp::CONTROL_STREAM][..], &name, &[1]].concat(),
            Refusal::ConnectionUnknown,
        ),
    ];
    for (what, client, words, reason) in cases {
        let before = a.refusals().of(reason);
        ends(connect(client, &words).await).await;
        assert_eq!(a.refusals().of(reason), before + 1, "{what}");
    }
    // It breaks off amid its first words.
    let before = a.refusals().of(Refusal::Handshake);
    let mut short = connect(&client, &[RPC_STREAM, 1, 2]).await;
    short.shutdown().await.expect("it can be");
    ends(short).await;
    assert_eq!(a.refusals().of(Refusal::Handshake), before + 1);
    // A frame too large ends the connection and its streams.
    let length = u16::try_from(MAX_FRAME_BYTES + 1).expect("small").to_le_bytes();
    control.write_all(&[&[1][..], &length].concat()).await.expect("it can be written");
    ends(control).await;
    ends(good).await;
    assert_eq!(a.refusals().of(Refusal::Frame), 1);
    // Garbage over UDP, to a port that speaks QUIC.
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
    for length in [1usize, 20, 1200, 5000] {
        for byte in [0u8, 0x40, 0xc3, 0xff] {
            udp.send_to(&vec![byte; length], address).await.expect("it can be sent");
        }
    }
    // Others come in all the while; of one agent's connections the newest stay.
    let (b, _at_b) = Endpoint::bind("127.0.0.1:0", identity).await.expect("a port is free");
    let mut held = Vec::new();
    for _ in 0..=CONNECTIONS_PER_NODE {
        held.push(b.dial(&address.to_string(), &id("node_a")).await.expect("a still listens"));
    }
    soon(held[0].closed()).await;
    assert!(!held.last().expect("some").is_closed());
    // Either end may have been the one that closed it.
    let refused = [&a, &b].map(|endpoint| endpoint.refusals().of(Refusal::Connections));
    assert!(refused.iter().sum::<u64>() >= 1, "{refused:?}");
    let closing = held.last().expect("some").open(0x66).await.expect("it seems to open");
    drop(closing);
    soon(b.close()).await;
    soon(a.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_too_much_is_told_so_and_then_cut_off_while_others_are_answered() {
    let pki = Pki::new();
    let (a, at_a) = agent(pki.node("node_a"), Preference::Auto).await;
    tokio::spawn(rpc::serve(tonic::service::Routes::default(), at_a.rpc, std::future::pending()));
    let address = a.address().to_string();
    let health = async |identity: &Arc<Identity>| {
        let channel = rpc::connect_tcp(&address, identity, Expect::AnyNode).await.expect("a member comes in");
        tonic_health::pb::health_client::HealthClient::new(channel)
    };
    let (loud, quiet) = (pki.viewer("loud"), pki.viewer("quiet"));
    let mut asking = health(&loud).await;
    let mut refused = 0;
    for _ in 0..2 * REQUESTS_IN_ONE_GO as u32 {
        if let Err(status) = asking.check(tonic_health::pb::HealthCheckRequest::default()).await {
            let failure = rpc::failure_of(&status);
            assert_eq!(failure.code, Code::TooManyRequests, "{failure}");
            assert!(failure.message.contains("loud") && !failure.hint.is_empty(), "{failure}");
            refused += 1;
        }
    }
    assert!(refused > 0 && a.refusals().of(Refusal::RequestRate) >= refused);
    let mut other = health(&quiet).await;
    other.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("others are answered");
    // It goes on all the same, on one connection after the other.
    let cut = async {
        while a.refusals().of(Refusal::Cut) == 0 {
            let _ = asking.check(tonic_health::pb::HealthCheckRequest::default()).await;
        }
    };
    timeout(Duration::from_secs(30), cut).await.expect("it is cut off");
    other.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("others are answered");

    // Requests that never end: as many as one identity may have open, and no more.
    let (_, chain, key) = pki.issue(&pki.operators, "spiffe://acme/operator/viewer/slow", &[Usage::ClientAuth]);
    let client = raw_client(&chain, &key, b"h2");
    let stream = TcpStream::connect(a.address()).await.expect("somebody listens");
    let mut stream = client.connect("x.example".try_into().expect("a name"), stream).await.expect("a member");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it can be written");
    let path = b"/grpc.health.v1.Health/Check";
    let mut headers = vec![0x83, 0x86, 0x44, path.len() as u8];
    headers.extend_from_slice(path);
    headers.extend_from_slice(b"\x41\x01x\x5f\x10application/grpc");
    for number in 0..REQUESTS_PER_IDENTITY as u32 {
        let length = u32::try_from(headers.len()).expect("small").to_be_bytes();
        let opening = [&length[1..], &[1, 4], &(2 * number + 1).to_be_bytes(), &headers].concat();
        stream.write_all(&opening).await.expect("it can be written");
    }
    stream.flush().await.expect("it can be written");
    let second = TcpStream::connect(a.address()).await.expect("somebody listens");
    let mut second = client.connect("x.example".try_into().expect("a name"), second).await.expect("a member");
    second.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it can be written");
    let refused = async {
        let mut number = 1u32;
        while a.refusals().of(Refusal::RequestsAtOnce) == 0 {
            let length = u32::try_from(headers.len()).expect("small").to_be_bytes();
            let opening = [&length[1..], &[1, 4], &number.to_be_bytes(), &headers].concat();
            second.write_all(&opening).await.expect("it can be written");
            second.flush().await.expect("it can be written");
            number += 2;
            sleep(Duration::from_millis(20)).await;
        }
    };
    soon(refused).await;
    other.check(tonic_health::pb::HealthCheckRequest::default()).await.expect("others are answered");
    drop((stream, second, asking, other));
    soon(a.close()).await;
}
