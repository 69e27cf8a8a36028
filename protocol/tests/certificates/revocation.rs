//! Revocation lists: which are believed, and what becomes of the connections of a revoked certificate.

use std::sync::Arc;

use steep_protocol::{
    failure::{Code, Explain as _},
    wire::{
        endpoint::{Endpoint, RPC_STREAM},
        identity::{Expect, Identity},
        rpc,
        trust::Policy,
    },
};
use tokio::{io::AsyncReadExt as _, time::timeout};

use crate::pki::{
    Authorities, BOTH, Folder, NODE, NOW, SOON, TLS13, authority, client, full_list, identity, is_let_in_over_quic,
    is_let_in_over_tcp, leaf, learn, list, node, node_a, over_tcp,
};

#[test]
fn a_list_is_believed_only_when_an_authority_of_ours_has_signed_it() {
    let all = Authorities::new();
    let me = node_a(&all);
    let serial = || vec![all.revoked.serial()];
    let deeper = authority("steep acme operators", Some(&all.nodes));
    let with = |text: String, issuer: &str| format!("{text}{issuer}");
    let damaged = {
        let text = full_list(&all.nodes, 7, &serial());
        // In the middle of the list's own Base64, which stands first.
        let at = text.find("-----END X509 CRL").expect("a list") - 40;
        let other = if text.as_bytes()[at] == b'A' { 'B' } else { 'A' };
        format!("{}{other}{}", &text[..at], &text[at + 1..])
    };
    let cut = full_list(&all.nodes, 7, &serial()).replace("-----END X509 CRL-----", "");
    let cases = [
        ("another root's", full_list(&all.forged_nodes, 7, &serial()), "does not stand under a root"),
        ("another mesh's", full_list(&all.nodes_of_other_mesh, 7, &serial()), "no authority of mesh acme"),
        ("the root's own", full_list(&all.root, 7, &serial()), "no authority of mesh acme"),
        ("one below an authority", full_list(&deeper, 7, &serial()), "does not stand under a root"),
        ("without its authority", list(&all.nodes, 7, &serial(), NOW), "is not with it"),
        ("with another authority", with(list(&all.nodes, 7, &serial(), NOW), &all.operators.pem), "was not signed by"),
        ("signed by a namesake", with(list(&all.forged_nodes, 7, &serial(), NOW), &all.nodes.pem), "was not signed by"),
        ("signed by a node", with(list(&all.nodes, 7, &serial(), NOW), &all.revoked.pem), "CONTROL"),
        ("damaged", damaged, ""),
        ("cut off", cut, ""),
        ("no list", all.nodes.pem.clone(), "no list"),
        ("a good one and a bad one", full_list(&all.nodes, 8, &[]) + &full_list(&all.forged_nodes, 8, &[]), "root"),
    ];
    for (name, pem, says) in cases {
        // The chain behind a node's certificate holds the authority's: the list is good then.
        if says == "CONTROL" {
            assert!(me.read_lists(&pem).is_ok(), "{name}: an authority's certificate may stand anywhere in the text");
            continue;
        }
        let error = me.read_lists(&pem).expect_err(name);
        assert_eq!(error.code(), Code::RevocationsRefused, "{name}: {error}");
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(!error.explain().hint.is_empty());
    }
    assert_eq!(me.live().lists().next().map(|list| list.number()), Some(1), "the one there was is in force");
}

#[test]
fn an_older_list_never_replaces_a_newer_one() {
    let all = Authorities::new();
    let me = node_a(&all);
    let serials = [all.revoked.serial()];
    assert!(learn(&me, &full_list(&all.nodes, 5, &serials)).expect("newer"));
    assert!(!learn(&me, &full_list(&all.nodes, 5, &serials)).expect("known"));
    let older = learn(&me, &full_list(&all.nodes, 4, &[])).expect_err("older");
    assert_eq!(older.code(), Code::RevocationsOlder, "{older}");
    assert!(learn(&me, &full_list(&all.operators, 2, &[])).expect("of another authority"));
    let live = me.live();
    let found: Vec<_> = live.lists().map(|list| (list.issuer(), list.number(), list.serials().len())).collect();
    assert!(
        found.contains(&("steep acme nodes", 5, 1)) && found.contains(&("steep acme operators", 2, 0)),
        "{found:?}"
    );
    // What goes out reads back as what came in.
    for list in live.lists() {
        assert_eq!(me.read_lists(list.pem()).expect("our own"), [(**list).clone()]);
    }
}

fn bare(all: &Authorities, name: &str) -> Identity {
    Folder::with(&node(all, name), &all.root.pem).load()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_cut_off_at_once_whoever_dialled_and_cannot_come_back() {
    let all = Authorities::new();
    let me = Arc::new(bare(&all, "node_a"));
    let (agent, mut arrivals) = Endpoint::bind("127.0.0.1:0", Arc::clone(&me)).await.expect("a port is free");
    let address = agent.address().to_string();
    let b = leaf(Some(&all.nodes), &[NODE], BOTH, NOW);
    let b_identity = Arc::new(Folder::with(&b, &all.root.pem).load());
    let (other, mut other_arrivals) = Endpoint::bind("127.0.0.1:0", Arc::clone(&b_identity)).await.expect("a port");
    let c_identity = Arc::new(bare(&all, "node_c"));
    let (bystander, _) = Endpoint::bind("127.0.0.1:0", Arc::clone(&c_identity)).await.expect("a port is free");

    let (a_id, b_id) = ("node_a".parse().expect("a node"), "node_b".parse().expect("a node"));
    let by_them = other.dial(&address, &a_id).await.expect("node_b is a member yet");
    let theirs_here = arrivals.connections.recv().await.expect("it has arrived");
    let by_us = agent.dial(&other.address().to_string(), &b_id).await.expect("node_b is a member yet");
    other_arrivals.connections.recv().await.expect("it has arrived");
    let bystanders = bystander.dial(&address, &a_id).await.expect("node_c is a member");
    let mut stream = by_them.open(RPC_STREAM).await.expect("a stream");
    let dialled = over_tcp(agent.address(), &b).await;
    let mut served = arrivals.rpc.recv().await.expect("a stream has arrived");
    let mut tcp = arrivals.rpc.recv().await.expect("another has arrived");

    assert!(learn(&me, &full_list(&all.nodes, 1, &[b.serial()])).expect("a good list"));
    for connection in [&by_them, &theirs_here, &by_us] {
        timeout(SOON, connection.closed()).await.expect("it is closed at once");
    }
    for io in [&mut stream, &mut served, &mut tcp] {
        let mut rest = Vec::new();
        let read = timeout(SOON, io.read_to_end(&mut rest)).await.expect("nothing hangs");
        assert!(read.is_err() || rest.len() < 200, "the stream has ended: {read:?}");
    }
    drop(dialled);
    assert!(!bystanders.is_closed(), "others stay connected");
    assert!(bystander.dial(&address, &a_id).await.is_ok(), "and others come in");

    let why = rpc::connect_tcp(&address, &b_identity, Expect::AnyNode).await.expect_err("it cannot come back");
    assert_eq!(why.code, Code::CertificateRevoked, "and is told so: {why}");
    assert!(!is_let_in_over_tcp(agent.address(), client(Some(&b), b"h2", TLS13)).await);
    assert!(!is_let_in_over_quic(agent.address(), client(Some(&b), b"steep/1", TLS13)).await);
    let why = agent.dial(&other.address().to_string(), &b_id).await.expect_err("nor is it dialled");
    assert_eq!(why.explain().code, Code::CertificateRevoked, "{why}");
    let redialled = other.dial(&address, &a_id).await;
    if let Ok(connection) = redialled {
        // In TLS 1.3 the dialler is done first; the refusal follows.
        timeout(SOON, connection.closed()).await.expect("it is refused");
        assert_eq!(connection.refusal().expect("a refusal").code, Code::CertificateRevoked);
    }
    for endpoint in [&agent, &other, &bystander] {
        endpoint.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overdue_list_goes_on_counting_and_closes_the_door_only_where_that_is_wanted() {
    let all = Authorities::new();
    let overdue = format!("{}{}", list(&all.nodes, 9, &[all.revoked.serial()], (-30, -2)), all.nodes.pem);
    let days = |days: u64| std::time::Duration::from_secs(days * 86_400);
    for (limit, is_open) in [(None, true), (Some(days(3)), true), (Some(days(1)), false)] {
        let me = bare(&all, "node_a").with_policy(Policy { lists_overdue: limit, ..Policy::default() });
        assert!(learn(&me, &overdue).expect("an old list is still a list"));
        let me = Arc::new(me);
        let (agent, _arrivals) = Endpoint::bind("127.0.0.1:0", Arc::clone(&me)).await.expect("a port is free");
        let good = leaf(Some(&all.nodes), &[NODE], BOTH, NOW);
        let came_in = is_let_in_over_tcp(agent.address(), client(Some(&good), b"h2", TLS13)).await;
        assert_eq!(came_in, is_open, "with a limit of {limit:?}");
        assert!(!is_let_in_over_tcp(agent.address(), client(Some(&all.revoked), b"h2", TLS13)).await);
        let b = identity(&all, &good);
        let (other, _arrivals) = Endpoint::bind("127.0.0.1:0", b).await.expect("a port is free");
        let dialled = agent.dial(&other.address().to_string(), &"node_b".parse().expect("a node")).await;
        match dialled {
            Ok(_) => assert!(is_open),
            Err(error) => assert_eq!((is_open, error.explain().code), (false, Code::RevocationsOverdue), "{error}"),
        }
        agent.close().await;
        other.close().await;
    }
}
