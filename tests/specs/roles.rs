//! Every call is open to exactly whom the agent's table of calls names; who is refused is counted, logged and audited.

use std::{sync::Arc, time::Duration};

use steep_agent::api::authorize::{Allowed, Signed, TABLE};
use steep_protocol::{
    failure::Code,
    ids::OperationId,
    intent::{self, Order},
    operation::{Action, Role},
    v1::{self, nodes_client::NodesClient},
    wire::{
        identity::{Identity, Who},
        rpc::{self, PeerChannel, failure_of},
    },
};
use steep_tests::{
    Cluster, Node, PATIENCE,
    guest::{self, Judged, call, knock},
    until,
};
use tonic::Request;

/// Anything an operator could sign: whether it fits the request is not the gate's to judge.
fn any_order(by: &Identity) -> v1::SignedIntent {
    let order = Order::new(Action::NodeCancel, OperationId::generate(), "node_a".parse().expect("a name"));
    intent::sign(by, &order, jiff::Timestamp::now(), Duration::from_secs(300)).expect("it can be signed")
}

fn role(identity: &Identity) -> Option<Role> {
    match &identity.me().who {
        Who::Node(_) => None,
        Who::Operator { role, .. } => Some(*role),
    }
}

fn may(allowed: Allowed, role: Option<Role>) -> bool {
    match allowed {
        Allowed::Nodes => role.is_none(),
        Allowed::From(least) => role.is_some_and(|role| role >= least),
    }
}

/// A node's certificate that no agent has.
fn spare_node(a: &Node) -> Arc<Identity> {
    let mut command = a.bare_steepctl();
    command.args(["pki", "issue", "node", "node_z", "--dir"]).arg(a.pki());
    assert!(command.status().expect("it can be run").success());
    a.identity("node_z")
}

/// Every call by one caller over one channel; `signer` is who signs where somebody must.
async fn every_call(channel: &PeerChannel, who: &Identity, signer: &Identity, over: &str) {
    for (rpc, name, allowed, signed) in TABLE {
        let path = format!("/{name}");
        let what = format!("{} calling {name} over {over}", who.me());
        let bare = knock(channel, &path, None, None).await.unwrap_or_else(|status| panic!("{what}: {status}"));
        let expected = match (may(*allowed, role(who)), signed) {
            (false, _) => Judged::Refused(Code::Denied),
            (true, Signed::Always) => Judged::Refused(Code::IntentMissing),
            (true, _) => Judged::LetThrough,
        };
        assert_eq!(bare, expected, "{what}, nothing signed");
        let order = any_order(signer);
        let brought = knock(channel, &path, None, Some(&order)).await.expect("it answers");
        let expected = if may(*allowed, role(who)) { Judged::LetThrough } else { Judged::Refused(Code::Denied) };
        assert_eq!(brought, expected, "{what} ({rpc:?}), signed by {}", signer.me());
    }
    let unknown = call(channel, "/steep.v1.Nodes/Format", Request::new(Vec::new())).await.expect_err("no such call");
    assert_eq!(unknown.code(), tonic::Code::Unimplemented, "{}: what no table names is not there", who.me());
    for open in ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        let answered = call(channel, open, Request::new(Vec::new())).await;
        let denied = answered.as_ref().is_err_and(|status| status.code() == tonic::Code::PermissionDenied);
        assert!(!denied, "{} may call {open}: {answered:?}", who.me());
    }
}

#[tokio::test]
async fn every_call_is_open_to_exactly_whom_the_table_names_over_tcp_and_quic() {
    let [a] = Cluster::of(1).start().await;
    let alice = a.identity("operator-alice");
    let node = spare_node(&a);
    for name in ["operator-vera", "operator-otto", "operator-alice"] {
        let who = a.identity(name);
        let channel = a.channel(&who).await.expect("it lets operators in");
        every_call(&channel, &who, &who, "TCP").await;
    }
    every_call(&a.channel(&node).await.expect("it lets nodes in"), &node, &alice, "TCP").await;
    let dialled = a.dialled_by(&node).await;
    let channel = rpc::over(&dialled.connection).await.expect("a stream");
    every_call(&channel, &node, &alice, "QUIC").await;

    // In an operator's name an agent may look; to change anything it must bring what that operator signed.
    for name in ["operator-vera", "operator-otto", "operator-alice"] {
        let whose = a.identity(name);
        let (uri, order) = (whose.me().uri(), any_order(&whose));
        for (_, name, allowed, signed) in TABLE {
            let path = format!("/{name}");
            let is_for_operators = matches!(allowed, Allowed::From(_));
            let may = is_for_operators && may(*allowed, role(&whose));
            let bare = match (may, signed) {
                (false, _) | (true, Signed::OnlyDirect) => Judged::Refused(Code::Denied),
                (true, Signed::No) => Judged::LetThrough,
                (true, _) => Judged::Refused(Code::IntentMissing),
            };
            let judged = knock(&channel, &path, Some(&uri), None).await.expect("it answers");
            assert_eq!(judged, bare, "a node for {} calling {name}, nothing signed", whose.me());
            let may = may && *signed != Signed::OnlyDirect;
            let brought = if may { Judged::LetThrough } else { Judged::Refused(Code::Denied) };
            let judged = knock(&channel, &path, Some(&uri), Some(&order)).await.expect("it answers");
            assert_eq!(judged, brought, "a node for {} calling {name}, signed", whose.me());
        }
    }
    dialled.connection.close("done");
    dialled.endpoint.close().await;
}

#[tokio::test]
async fn who_has_no_certificate_of_the_mesh_calls_nothing() {
    let [a] = Cluster::of(1).start().await;
    let forged = a.agent_toml().with_file_name("forged-pki");
    for words in [&["init", "--mesh", "demo"][..], &["issue", "operator", "mallory", "--role", "admin"]] {
        let mut command = a.bare_steepctl();
        command.arg("pki").args(words).arg("--dir").arg(&forged);
        assert!(command.status().expect("it can be run").success());
    }
    // She trusts our root, so that it is the agent that must refuse.
    std::fs::copy(a.pki().join("ca.pem"), forged.join("ca.pem")).expect("it can be copied");
    let mallory = guest::identity(&forged, "operator-mallory");
    let failure = a.channel(&mallory).await.expect_err("nobody of our mesh");
    assert_eq!(failure.code, Code::CertificateRefused, "{failure:?}");
}

#[tokio::test]
async fn denials_are_logged_counted_and_audited_and_do_not_flood() {
    let [a] = Cluster::of(1).start().await;
    let vera = a.channel(&a.identity("operator-vera")).await.expect("it lets operators in");
    for _ in 0..50 {
        let judged = knock(&vera, "/steep.v1.Nodes/Start", None, None).await.expect("it answers");
        assert_eq!(judged, Judged::Refused(Code::Denied));
    }
    let judged = knock(&vera, "/steep.v1.Peers/OpenSession", None, None).await.expect("it answers");
    assert_eq!(judged, Judged::Refused(Code::Denied));
    let audited = "select detail ->> 'rpc' || ' ' || (detail ->> 'certificate') || ' ' || (detail ->> 'code')
                     from steep_repl.audit_log where action = 'rpc.denied' order by id";
    let told = a.texts(audited).await;
    let vera = "spiffe://demo/operator/viewer/vera STP-5003";
    for call in ["steep.v1.Nodes/Start", "steep.v1.Peers/OpenSession"] {
        let times = told.iter().filter(|told| **told == format!("{call} {vera}")).count();
        // More than one only where the fifty took longer than the pause between two.
        assert!((1..10).contains(&times), "{call}: {told:?}");
    }
    until("the log tells both", PATIENCE, async || {
        let log = a.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("rpc.denied")).collect();
        let tells = |call: &str| lines.iter().any(|line| line.contains(call) && line.contains("vera (viewer)"));
        if tells("steep.v1.Nodes/Start") && tells("steep.v1.Peers/OpenSession") {
            Ok(())
        } else {
            Err(lines.join("\n"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_signs_nothing_looks_and_cancels_where_it_asks_but_starts_nothing() {
    let [a] = Cluster::of(1).start().await;
    let mut nodes = NodesClient::new(a.channel(&a.identity("operator-otto")).await.expect("it lets operators in"));
    let listed = nodes.list(v1::ListNodesRequest {}).await.expect("it may look").into_inner();
    assert_eq!(listed.nodes.len(), 1);
    let cancelled = nodes.cancel(v1::CancelNodeRequest { node_id: "node_a".into() }).await;
    assert_eq!(failure_of(&cancelled.expect_err("nothing runs")).code, Code::NothingRuns);
    let start = v1::StartNodeRequest {
        target: "node_a".into(),
        source: "node_b".into(),
        op_id: OperationId::generate().to_string(),
        ..Default::default()
    };
    let failure = failure_of(&nodes.start(start).await.expect_err("nothing is signed"));
    assert_eq!(failure.code, Code::IntentMissing);
    assert!(failure.hint.contains("steepctl"), "{failure:?}");
}
