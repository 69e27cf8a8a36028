//! Certificates that must be refused, by both ends, over TCP and QUIC; made with rcgen, shown by clients and servers
//! that check nothing themselves.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rcgen::ExtendedKeyUsagePurpose as Usage;
use steep_protocol::{
    failure::{Code, Explain as _},
    wire::{
        endpoint::{self, Endpoint},
        identity::Expect,
        rpc,
    },
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::pki::{
    ADMIN, Authorities, BOTH, NODE, NOW, SOON, Shown, TLS13, authority, client, identity, is_let_in_over_quic,
    is_let_in_over_tcp, leaf, node_a, server,
};

/// What must be refused, and the code by which whoever sees it says so.
fn bad(all: &Authorities) -> Vec<(&'static str, Shown, Code)> {
    use Code::{CertificateExpired, CertificateRefused, CertificateRevoked, WrongMesh};
    let nodes = Some(&all.nodes);
    let deeper = authority("steep acme nodes", nodes);
    let mut below = leaf(Some(&deeper), &[NODE], BOTH, NOW);
    below.chain.push(all.nodes.der.clone());
    vec![
        ("revoked", all.revoked.clone(), CertificateRevoked),
        ("an authority below the authority", below, CertificateRefused),
        ("node and operator at once", leaf(nodes, &[NODE, ADMIN], BOTH, NOW), CertificateRefused),
        ("for any use", leaf(nodes, &[NODE], &[Usage::Any], NOW), CertificateRefused),
        ("a node that may only ask", leaf(nodes, &[NODE], &[Usage::ClientAuth], NOW), CertificateRefused),
        ("a node that may only serve", leaf(nodes, &[NODE], &[Usage::ServerAuth], NOW), CertificateRefused),
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
    for service in ["", "steep.v1.Nodes", "steep.v1.Operations", "steep.v1.Peers", "steep.v1.Certificates"] {
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
