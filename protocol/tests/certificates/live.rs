//! Certificates and roots exchanged while endpoints serve and dial: nothing notices, and nothing bad is taken over.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rcgen::ExtendedKeyUsagePurpose as Usage;
use steep_protocol::{
    failure::{Code, Explain as _},
    ids::NodeId,
    wire::{
        endpoint::{Arrivals, Endpoint},
        identity::{Expect, Identity},
        revocation::Serial,
        rpc,
        trust::Policy,
    },
};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::pki::{
    ADMIN, Authorities, Authority, BOTH, Folder, NOW, SOON, Shown, TLS13, authority, client, is_let_in_over_quic,
    is_let_in_over_tcp, leaf, node, over_tcp,
};

/// An agent that answers health questions, over QUIC and TCP.
struct Serving {
    endpoint: Endpoint,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
    /// Keeps connections that were dialled to it.
    kept: JoinHandle<()>,
}

impl Serving {
    async fn start(identity: Identity) -> Self {
        let (endpoint, arrivals) = Endpoint::bind("127.0.0.1:0", Arc::new(identity)).await.expect("a port is free");
        let Arrivals { rpc: calls, mut connections, .. } = arrivals;
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            rpc::serve(tonic::service::Routes::default(), calls, stopped).await.expect("it serves");
        });
        let kept = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(connection) = connections.recv().await {
                all.push(connection);
            }
        });
        Self { endpoint, stop, served, kept }
    }

    fn address(&self) -> String {
        self.endpoint.address().to_string()
    }

    async fn end(self) {
        let Self { endpoint, stop, served, kept } = self;
        endpoint.close().await;
        // Nobody can bring connections any more.
        drop((endpoint, stop));
        timeout(SOON, served).await.expect("it ends").expect("without a panic");
        timeout(SOON, kept).await.expect("it ends").expect("without a panic");
    }
}

/// Calls without end, each over a new connection and one over an old one, until stopped; counts them in `made`.
async fn calls(
    from: Endpoint,
    to: String,
    node: NodeId,
    operator: Arc<Identity>,
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
) {
    let ask = async |channel| {
        let reply = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        reply.map(drop).map_err(|status| rpc::failure_of(&status))
    };
    let lasting = from.dial(&to, &node).await.expect("the first connection");
    let lasting = rpc::over(&lasting).await.expect("the first channel");
    while !stop.load(Ordering::Relaxed) {
        let done = made.load(Ordering::Relaxed);
        let connection = from.dial(&to, &node).await.unwrap_or_else(|error| panic!("call {done} over QUIC: {error}"));
        let channel = rpc::over(&connection).await.unwrap_or_else(|error| panic!("call {done} over QUIC: {error}"));
        ask(channel).await.unwrap_or_else(|error| panic!("call {done} over QUIC: {error}"));
        connection.close("done");
        let channel = rpc::connect_tcp(&to, &operator, Expect::Node(node.clone())).await;
        let channel = channel.unwrap_or_else(|error| panic!("call {done} over TCP: {error}"));
        ask(channel).await.unwrap_or_else(|error| panic!("call {done} over TCP: {error}"));
        ask(lasting.clone()).await.unwrap_or_else(|error| panic!("call {done} on the old connection: {error}"));
        made.fetch_add(3, Ordering::Relaxed);
    }
}

/// The serial number of the certificate an agent shows.
async fn shown_at(address: SocketAddr, me: &Shown) -> Serial {
    let stream = over_tcp(address, me).await;
    let chain = stream.get_ref().1.peer_certificates().expect("a chain");
    Serial::in_certificate(&chain[0]).expect("a certificate")
}

/// Two agents that call each other, and an operator, all with files of their own.
struct Mesh {
    a: (Folder, Identity, Serving),
    b: (Folder, Identity, Serving),
    alice: (Folder, Arc<Identity>),
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    calling: Vec<JoinHandle<()>>,
}

impl Mesh {
    async fn start(all: &Authorities, policy: Policy) -> Self {
        let agent = async |name: &str| {
            let folder = Folder::with(&node(all, name), &all.root.pem);
            let identity = folder.load().with_policy(policy);
            let serving = Serving::start(identity.clone()).await;
            (folder, identity, serving)
        };
        let (a, b) = (agent("node_a").await, agent("node_b").await);
        let alice = Folder::with(&alice(&all.operators), &all.root.pem);
        let operator = Arc::new(alice.load());
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let call = |from: &Serving, to: &Serving, node: &str| {
            let node = node.parse().expect("a node");
            let (stop, made, operator) = (Arc::clone(&stop), Arc::clone(&made), Arc::clone(&operator));
            tokio::spawn(calls(from.endpoint.clone(), to.address(), node, operator, stop, made))
        };
        let calling = vec![call(&a.2, &b.2, "node_b"), call(&b.2, &a.2, "node_a")];
        Self { a, b, alice: (alice, operator), stop, made, calling }
    }

    /// Stops calling; every call so far was answered.
    async fn calls_made(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for calling in self.calling.drain(..) {
            timeout(SOON, calling).await.expect("it ends").expect("no call failed");
        }
        self.made.load(Ordering::Relaxed)
    }

    async fn end(self) {
        self.a.2.end().await;
        self.b.2.end().await;
    }
}

fn alice(operators: &Authority) -> Shown {
    leaf(Some(operators), &[ADMIN], &[Usage::ClientAuth], NOW)
}

/// Waits until the load has made some more calls.
async fn some_calls(mesh: &Mesh) {
    let before = mesh.made.load(Ordering::Relaxed);
    let more = async {
        while mesh.made.load(Ordering::Relaxed) < before + 12
            && mesh.calling.iter().all(|calling| !calling.is_finished())
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, more).await.expect("calls are made all the while");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_under_load_without_a_failed_call() {
    let all = Authorities::new();
    let mut mesh = Mesh::start(&all, Policy::default()).await;
    let me = alice(&all.operators);
    for round in 0..10 {
        for (folder, identity, serving) in [&mesh.a, &mesh.b] {
            let name = identity.me().node().expect("a node").to_string();
            let new = node(&all, &name);
            folder.put(&new);
            assert!(folder.reload(identity).expect("a good certificate"), "round {round}");
            assert!(!folder.reload(identity).expect("the same again"), "nothing is new the second time");
            assert_eq!(shown_at(serving.endpoint.address(), &me).await, new.serial(), "round {round}");
            some_calls(&mesh).await;
        }
        mesh.alice.0.put(&alice(&all.operators));
        mesh.alice.0.reload(&mesh.alice.1).expect("a good certificate");
    }
    assert_eq!(mesh.a.1.live().generation(), 10);
    let made = mesh.calls_made().await;
    assert!(made > 30, "there was some load: {made} calls");
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_replaced_under_load_without_a_failed_call() {
    let all = Authorities::new();
    let root = authority("steep acme root", None);
    let nodes = authority("steep acme nodes", Some(&root));
    let operators = authority("steep acme operators", Some(&root));
    let mut mesh = Mesh::start(&all, Policy::default()).await;
    let both = format!("{}{}", root.pem, all.root.pem);
    let everybody = |mesh: &Mesh, change: &dyn Fn(&Folder, &str)| {
        for (folder, identity) in [(&mesh.a.0, &mesh.a.1), (&mesh.b.0, &mesh.b.1), (&mesh.alice.0, &*mesh.alice.1)] {
            change(folder, &identity.me().to_string());
            folder.reload(identity).unwrap_or_else(|error| panic!("{}: {error}", identity.me()));
        }
    };
    some_calls(&mesh).await;
    // Dropping the old root first is refused: our own certificate stands under it.
    mesh.a.0.write("ca.pem", &root.pem);
    let early = mesh.a.0.reload(&mesh.a.1).expect_err("too early");
    assert_eq!(early.code(), Code::CertificateRefused, "{early}");
    assert!(early.to_string().contains("a.pem"), "{early}");
    // 1: trust both.
    everybody(&mesh, &|folder, _| folder.write("ca.pem", &both));
    some_calls(&mesh).await;
    // 2: issue anew, one after the other.
    everybody(&mesh, &|folder, who| match who.strip_prefix("node ") {
        Some(name) => folder.put(&leaf(Some(&nodes), &[&format!("spiffe://acme/node/{name}")], BOTH, NOW)),
        None => folder.put(&alice(&operators)),
    });
    some_calls(&mesh).await;
    let old = node(&all, "node_c");
    let address = mesh.a.2.endpoint.address();
    assert!(is_let_in_over_tcp(address, client(Some(&old), b"h2", TLS13)).await, "the old root is trusted yet");
    // 3: drop the old.
    everybody(&mesh, &|folder, _| folder.write("ca.pem", &root.pem));
    some_calls(&mesh).await;
    assert!(!is_let_in_over_tcp(address, client(Some(&old), b"h2", TLS13)).await, "the old root is trusted no more");
    assert!(!is_let_in_over_quic(address, client(Some(&old), b"steep/1", TLS13)).await);
    let made = mesh.calls_made().await;
    assert!(made > 30, "there was some load: {made} calls");
    mesh.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_replaces_nothing() {
    let all = Authorities::new();
    let first = node(&all, "node_a");
    let folder = Folder::with(&first, &all.root.pem);
    let identity = folder.load();
    let serving = Serving::start(identity.clone()).await;
    let a = |issuer: &Authority, days| leaf(Some(issuer), &["spiffe://acme/node/node_a"], BOTH, days);
    let other_mesh = leaf(Some(&all.nodes_of_other_mesh), &["spiffe://other/node/node_a"], BOTH, NOW);
    let cases = [
        ("another node's", node(&all, "node_b"), Code::IdentityMismatch),
        ("an operator's", alice(&all.operators), Code::IdentityMismatch),
        ("another mesh's", other_mesh, Code::IdentityMismatch),
        ("another root's", a(&all.forged_nodes, NOW), Code::CertificateRefused),
        ("expired", a(&all.nodes, (-30, -1)), Code::CertificateExpired),
        ("not valid yet", a(&all.nodes, (1, 30)), Code::CertificateExpired),
        ("issued by operators", a(&all.operators, NOW), Code::CertificateRefused),
        ("self-signed", leaf(None, &["spiffe://acme/node/node_a"], BOTH, NOW), Code::CertificateRefused),
    ];
    for (name, shown, code) in cases {
        folder.put(&shown);
        let error = folder.reload(&identity).expect_err(name);
        assert_eq!(error.code(), code, "{name}: {error}");
    }
    folder.put(&first);
    folder.write("a.key", &node(&all, "node_a").key_pem);
    assert_eq!(folder.reload(&identity).expect_err("another key").code(), Code::CertificateUnusable);
    folder.write("a.key", "garbage");
    assert_eq!(folder.reload(&identity).expect_err("garbage").code(), Code::CertificateUnusable);
    folder.put(&first);
    for ca in ["", "garbage", first.pem.as_str()] {
        folder.write("ca.pem", ca);
        let error = folder.reload(&identity).expect_err("no root");
        assert!(matches!(error.code(), Code::CertificateUnusable | Code::CertificateRefused), "{error}");
    }
    std::fs::remove_file(folder.path("ca.pem")).expect("it is ours");
    assert_eq!(folder.reload(&identity).expect_err("no file").code(), Code::CertificateUnusable);

    assert_eq!(identity.live().generation(), 0);
    let me = alice(&all.operators);
    assert_eq!(shown_at(serving.endpoint.address(), &me).await, first.serial(), "all goes on as before");
    serving.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_some_time_after_its_certificate_or_its_root() {
    let all = Authorities::new();
    let policy = Policy { after_expiry: Duration::from_secs(1), after_distrust: Duration::ZERO, lists_overdue: None };
    let a = Folder::with(&node(&all, "node_a"), &all.root.pem);
    let identity = a.load().with_policy(policy);
    let (agent, mut arrivals) = Endpoint::bind("127.0.0.1:0", Arc::new(identity.clone())).await.expect("a port");
    let a_id: NodeId = "node_a".parse().expect("a node");
    let ends_soon = leaf_until(&all, "node_b", 3);
    let lasts = Folder::with(&node(&all, "node_c"), &all.root.pem);
    let b = Folder::with(&ends_soon, &all.root.pem);
    let bind =
        async |folder: &Folder| Endpoint::bind("127.0.0.1:0", Arc::new(folder.load())).await.expect("a port is free").0;
    let (short, long) = (bind(&b).await, bind(&lasts).await);
    let address = agent.address().to_string();
    let ending = short.dial(&address, &a_id).await.expect("it is good yet");
    let lasting = long.dial(&address, &a_id).await.expect("it is good");
    let tcp = over_tcp(agent.address(), &ends_soon).await;
    let mut io = arrivals.rpc.recv().await.expect("it has arrived");

    timeout(SOON, ending.closed()).await.expect("it ends by itself");
    let mut rest = Vec::new();
    let read = timeout(SOON, tokio::io::AsyncReadExt::read_to_end(&mut io, &mut rest)).await.expect("it ends");
    assert_eq!(read.expect_err("not the other end did it").kind(), std::io::ErrorKind::ConnectionAborted);
    drop(tcp);
    assert!(!lasting.is_closed(), "others go on");

    // The root above it is dropped, once we stand under another.
    let root = authority("steep acme root", None);
    let nodes = authority("steep acme nodes", Some(&root));
    a.put(&leaf(Some(&nodes), &["spiffe://acme/node/node_a"], BOTH, NOW));
    a.write("ca.pem", &format!("{}{}", root.pem, all.root.pem));
    assert!(a.reload(&identity).expect("both are trusted"));
    assert!(timeout(Duration::from_millis(300), lasting.closed()).await.is_err(), "both roots are trusted");
    a.write("ca.pem", &root.pem);
    assert!(a.reload(&identity).expect("the new one alone"));
    timeout(SOON, lasting.closed()).await.expect("nobody vouches for it any more");
    for endpoint in [&agent, &short, &long] {
        endpoint.close().await;
    }
}

/// A certificate that is good for so many seconds.
fn leaf_until(all: &Authorities, name: &str, seconds: i64) -> Shown {
    crate::pki::leaf_for(
        Some(&all.nodes),
        &[&format!("spiffe://acme/node/{name}")],
        BOTH,
        time::Duration::days(-1),
        time::Duration::seconds(seconds),
    )
}
