//! Rows leave a node only by what an operator has signed; a node's key alone opens nothing and starts nothing.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use steep_protocol::{
    failure::{Code, Failure},
    ids::OperationId,
    intent::{self, Order},
    operation::Action,
    v1::{
        self, bulk_request::Want, nodes_client::NodesClient, operations_client::OperationsClient,
        peers_client::PeersClient,
    },
    wire::{
        bulk::BlockSource,
        endpoint::BULK_STREAM,
        identity::Identity,
        rpc::{PeerChannel, failure_of},
    },
};
use steep_tests::{
    Cluster, Node,
    guest::{self, Dialled},
};
use tonic::Request;

const LIFETIME: Duration = Duration::from_secs(300);

fn table(name: &str) -> v1::TableName {
    v1::TableName { schema: "public".into(), name: name.into() }
}

fn only(tables: &[&str]) -> v1::Selection {
    v1::Selection { tables: tables.iter().map(|name| table(name)).collect(), ..Default::default() }
}

/// The order to make node_b from node_a's `orders`, one way.
fn order() -> Order {
    Order {
        source: Some("node_a".parse().expect("a name")),
        selection: only(&["orders"]),
        one_way: true,
        ..Order::new(Action::NodeStart, OperationId::generate(), "node_b".parse().expect("a name"))
    }
}

fn sign_at(by: &Identity, order: &Order, at: Timestamp) -> v1::SignedIntent {
    intent::sign(by, order, at, LIFETIME).expect("it can be signed")
}

fn sign(by: &Identity, order: &Order) -> v1::SignedIntent {
    sign_at(by, order, Timestamp::now())
}

fn with<T>(signed: Option<&v1::SignedIntent>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(signed) = signed {
        intent::attach(&mut request, signed);
    }
    request
}

/// In the name of somebody else, as an agent passes requests on.
fn for_somebody<T>(whose: &Identity, signed: Option<&v1::SignedIntent>, message: T) -> Request<T> {
    let mut request = with(signed, message);
    request.metadata_mut().insert("steep-forwarded-for", whose.me().uri().parse().expect("plain ASCII"));
    request
}

/// A node's certificate that no agent has.
fn spare_node(a: &Node, name: &str) -> Arc<Identity> {
    let mut command = a.bare_steepctl();
    command.args(["pki", "issue", "node", name, "--dir"]).arg(a.pki());
    assert!(command.status().expect("it can be run").success());
    a.identity(name)
}

/// Whoever holds node_b's key, asking node_a.
struct Thief {
    peers: PeersClient<PeerChannel>,
    orders: u32,
    secrets: u32,
}

impl Thief {
    async fn with_key_of(a: &Node, name: &str) -> Self {
        let channel = a.channel(&a.identity(name)).await.expect("a node is let in");
        let oid = async |table: &str| a.value::<u32>(&format!("select '{table}'::regclass::oid")).await;
        Self { peers: PeersClient::new(channel), orders: oid("orders").await, secrets: oid("secrets").await }
    }

    fn asking(&self, order: &Order) -> v1::OpenSessionRequest {
        let orders = v1::SourceTable { table: Some(table("orders")), oid: self.orders, ..Default::default() };
        v1::OpenSessionRequest {
            op_id: order.op_id.to_string(),
            tables: vec![orders],
            one_way: order.one_way,
            ..Default::default()
        }
    }

    async fn opens(
        &mut self,
        signed: Option<&v1::SignedIntent>,
        request: v1::OpenSessionRequest,
    ) -> Result<v1::OpenSessionReply, Failure> {
        let opened = self.peers.open_session(with(signed, request)).await;
        opened.map(tonic::Response::into_inner).map_err(|status| failure_of(&status))
    }

    async fn may_not_open(
        &mut self,
        what: &str,
        signed: Option<&v1::SignedIntent>,
        request: v1::OpenSessionRequest,
        code: Code,
    ) {
        let failure = self.opens(signed, request).await.expect_err(what);
        assert_eq!(failure.code, code, "{what}: {failure:?}");
        assert!(!failure.hint.is_empty(), "{what}: {failure:?}");
    }
}

fn orders(rows: u32) -> String {
    format!("create table orders (id int primary key); insert into orders select generate_series(1, {rows})")
}

async fn two_tables(a: &Node) {
    a.sql(&orders(50)).await;
    a.sql("create table secrets (id int primary key); insert into secrets values (7)").await;
}

#[tokio::test]
async fn a_nodes_key_alone_reads_no_row_of_another_node() {
    let [a, b] = Cluster::of(2).start().await;
    two_tables(&a).await;
    let [alice, vera, node_b] = ["operator-alice", "operator-vera", "node_b"].map(|name| a.identity(name));
    let mut thief = Thief::with_key_of(&a, "node_b").await;
    let now = Timestamp::now();
    let hour = SignedDuration::from_hours(1);

    let good = order();
    let asked = thief.asking(&good);
    thief.may_not_open("nothing signed", None, asked.clone(), Code::IntentMissing).await;
    let cases = [
        ("too late", sign_at(&alice, &good, now - hour), Code::IntentExpired),
        ("too early", sign_at(&alice, &good, now + hour), Code::IntentExpired),
        ("signed by a viewer", sign(&vera, &good), Code::SignerRefused),
        ("signed by the node itself", sign(&node_b, &good), Code::SignerRefused),
        ("signed in another mesh", sign(&stranger(&b), &good), Code::SignerRefused),
    ];
    for (what, signed, code) in &cases {
        thief.may_not_open(what, Some(signed), asked.clone(), *code).await;
    }
    let mut altered = sign(&alice, &good);
    *altered.intent.last_mut().expect("it has bytes") ^= 1;
    thief.may_not_open("one byte altered", Some(&altered), asked.clone(), Code::IntentInvalid).await;
    let mut altered = sign(&alice, &good);
    *altered.signature.last_mut().expect("it has bytes") ^= 1;
    thief.may_not_open("another signature", Some(&altered), asked.clone(), Code::IntentInvalid).await;

    let node = |name: &str| name.parse().expect("a name");
    let elsewhere = [
        ("for another target", Order { target: node("node_c"), ..good.clone() }),
        ("for another source", Order { source: Some(node("node_c")), ..good.clone() }),
        ("for no source", Order { source: None, ..good.clone() }),
        ("for another operation", Order { op_id: OperationId::generate(), ..good.clone() }),
        ("for a plan", Order { action: Action::NodePlan, ..good.clone() }),
        ("for a cancel", Order { action: Action::NodeCancel, ..good.clone() }),
    ];
    for (what, order) in &elsewhere {
        let signed = sign(&alice, order);
        thief.may_not_open(what, Some(&signed), asked.clone(), Code::IntentMisdirected).await;
    }

    let secrets = v1::SourceTable { table: Some(table("secrets")), oid: thief.secrets, ..Default::default() };
    let disguised = v1::SourceTable { table: Some(table("orders")), ..secrets.clone() };
    let excluded =
        Order { selection: v1::Selection { exclude: vec![table("secrets")], ..Default::default() }, ..good.clone() };
    let wider = [
        (
            "one table more",
            &good,
            v1::OpenSessionRequest { tables: [asked.tables.clone(), vec![secrets.clone()]].concat(), ..asked.clone() },
        ),
        (
            "another table's oid under a good name",
            &good,
            v1::OpenSessionRequest { tables: vec![disguised], ..asked.clone() },
        ),
        ("the whole database", &good, v1::OpenSessionRequest { whole_database: true, ..asked.clone() }),
        ("a table that was left out", &excluded, v1::OpenSessionRequest { tables: vec![secrets], ..asked.clone() }),
        ("both ways", &good, v1::OpenSessionRequest { one_way: false, ..asked.clone() }),
    ];
    for (what, order, request) in wider {
        thief.may_not_open(what, Some(&sign(&alice, order)), request, Code::IntentExceeded).await;
    }
    let examine = |selection| v1::ExamineRequest {
        op_id: good.op_id.to_string(),
        selection: Some(selection),
        one_way: true,
        parallel: 1,
        link: "mesh".into(),
        count_rows: true,
    };
    for (signed, selection, code) in [
        (None, only(&["orders"]), Code::IntentMissing),
        (Some(sign(&alice, &good)), only(&["orders", "secrets"]), Code::IntentExceeded),
        (Some(sign(&alice, &good)), v1::Selection::default(), Code::IntentExceeded),
    ] {
        let asked = thief.peers.examine(with(signed.as_ref(), examine(selection))).await;
        assert_eq!(failure_of(&asked.expect_err("not signed")).code, code);
    }

    assert_eq!(a.slots().await, Vec::<String>::new(), "nothing was made");
    assert_eq!(a.count("pg_publication").await, 0, "nothing was made");
    assert_eq!(a.count("steep_repl.signed_intents").await, 0, "nothing was used");
    let audited = "select distinct detail ->> 'code' from steep_repl.audit_log
                    where action = 'rpc.denied' and actor = 'node_a' order by 1";
    let told = a.texts(audited).await;
    for code in ["STP-5020", "STP-5021", "STP-5022", "STP-5023", "STP-5024", "STP-5026"] {
        assert!(
            told.iter().any(|told| told == code) && a.log().contains(code),
            "{code} is audited and logged: {told:?}"
        );
    }
}

/// An admin of a mesh of another root that has the same name.
fn stranger(node: &Node) -> Arc<Identity> {
    let dir = node.agent_toml().with_file_name("other-pki");
    for words in [&["init", "--mesh", "demo"][..], &["issue", "operator", "mallory", "--role", "admin"]] {
        let mut command = node.bare_steepctl();
        command.arg("pki").args(words).arg("--dir").arg(&dir);
        assert!(command.status().expect("it can be run").success());
    }
    guest::identity(&dir, "operator-mallory")
}

#[tokio::test]
async fn a_session_serves_its_own_node_within_what_was_signed_and_its_order_opens_no_second_one() {
    let [a, b] = Cluster::of(2).start().await;
    two_tables(&a).await;
    // Its agent makes room: two that say they are node_b at once are one too many.
    b.stop_agent();
    let otto = a.identity("operator-otto");
    spare_node(&a, "node_c");
    let (order, mut target) = (order(), Thief::with_key_of(&a, "node_b").await);
    let (signed, asked) = (sign(&otto, &order), target.asking(&order));
    let opened = target.opens(Some(&signed), asked.clone()).await.expect("all of it was signed");
    let session_id = opened.session_id.clone();
    // As a target does whose agent died before it had heard the answer.
    let again = target.opens(Some(&signed), asked.clone()).await.expect("it is its own");
    assert_eq!((&again.session_id, &again.slot), (&session_id, &opened.slot), "no second one was opened");
    assert_eq!(a.slots().await.len(), 1, "no second one was opened");

    // Another node that has learned of the session.
    let mut other = Thief::with_key_of(&a, "node_c").await.peers;
    let op_id = order.op_id.to_string();
    let renewed = other.renew_session(v1::RenewSessionRequest { session_id: session_id.clone() }).await;
    assert_eq!(failure_of(&renewed.expect_err("not its own")).code, Code::Denied);
    let counted = other.count_rows(v1::CountRowsRequest { session_id: session_id.clone() }).await;
    assert_eq!(failure_of(&counted.expect_err("not its own")).code, Code::Denied);
    let marked = other.write_marker(v1::WriteMarkerRequest { op_id: op_id.clone() }).await;
    assert_eq!(failure_of(&marked.expect_err("not its own")).code, Code::Denied);
    let close = |keep| v1::CloseSessionRequest { op_id: op_id.clone(), keep, reason: "mine".into() };
    let closed = other.close_session(close(false)).await;
    assert_eq!(failure_of(&closed.expect_err("not its own")).code, Code::Denied);
    let part = Want::Part(v1::FetchPart {
        session_id: session_id.clone(),
        table_oid: target.orders,
        columns: vec!["id".into()],
        ..Default::default()
    });
    let stolen = a.dialled_by(&a.identity("node_c")).await;
    assert_eq!(fetched(&stolen, part.clone()).await.expect_err("not its own").code, Code::Denied);

    // Its own node, within what was signed and not beyond.
    let own = a.dialled_by(&a.identity("node_b")).await;
    fetched(&own, part).await.expect("that is what it is for");
    let secrets = Want::Part(v1::FetchPart {
        session_id: session_id.clone(),
        table_oid: target.secrets,
        columns: vec!["id".into()],
        ..Default::default()
    });
    assert!(fetched(&own, secrets).await.is_err(), "not of this session");
    let dump = |only| Want::Dump(v1::FetchDump { session_id: session_id.clone(), only, ..Default::default() });
    assert_eq!(fetched(&own, dump(Vec::new())).await.expect_err("too much").code, Code::IntentExceeded);
    assert_eq!(fetched(&own, dump(vec![table("secrets")])).await.expect_err("too much").code, Code::IntentExceeded);
    fetched(&own, dump(vec![table("orders")])).await.expect("its own table's schema");
    let back = v1::SubscribeRequest { op_id: op_id.clone(), slot: "x".into(), ..Default::default() };
    let subscribed = target.peers.subscribe(back).await;
    assert_eq!(failure_of(&subscribed.expect_err("one way was signed")).code, Code::IntentExceeded);

    target.peers.close_session(close(false)).await.expect("its own");
    assert_eq!(a.slots().await, Vec::<String>::new());
    target.may_not_open("used up", Some(&signed), asked.clone(), Code::IntentUsed).await;
    // Signed anew, but for the same operation: an operation is ordered once.
    target.may_not_open("its id is used up", Some(&sign(&otto, &order)), asked, Code::IntentUsed).await;
    let proof: String = a.value("select signer || ' ' || target from steep_repl.signed_intents").await;
    assert_eq!(proof, "spiffe://demo/operator/operator/otto node_b");
    let by: String = a.value("select distinct actor from steep_repl.audit_log where action = 'session.open'").await;
    assert_eq!(by, "otto");
    let bulk = "steep_repl.audit_log where action = 'rpc.denied' and detail ->> 'rpc' = 'bulk'";
    assert_eq!(a.count(bulk).await, 2, "one each: what another node asked, and what its own asked too much");
    for dialled in [stolen, own] {
        dialled.connection.close("done");
        dialled.endpoint.close().await;
    }
}

/// Reads a bulk stream to its end.
async fn fetched(dialled: &Dialled, want: Want) -> Result<(), Failure> {
    use steep_protocol::failure::Explain as _;
    let io = dialled.connection.open(BULK_STREAM).await.map_err(|error| error.explain())?;
    let request = v1::BulkRequest { want: Some(want) };
    let mut blocks = BlockSource::request(io, &request).await.map_err(|error| error.explain())?;
    while blocks.next().await.map_err(|error| error.explain())?.is_some() {}
    Ok(())
}

fn start_of(order: &Order) -> v1::StartNodeRequest {
    v1::StartNodeRequest {
        target: order.target.to_string(),
        source: order.source.as_ref().map(ToString::to_string).unwrap_or_default(),
        op_id: order.op_id.to_string(),
        selection: Some(order.selection.clone()),
        method: order.method.clone(),
        one_way: order.one_way,
        force: order.force,
        dry_run: order.action == Action::NodePlan,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_session_for_a_node_restored_by_hand_gives_no_rows() {
    let [a, b] = Cluster::of(2).start().await;
    two_tables(&a).await;
    b.stop_agent();
    let prepared = a.steepctl("node prepare node_a --for pg_dump --tables public.orders -o json").succeeds().json();
    let prepare_id = prepared["preparation"]["prepare_id"].as_str().expect("it has one").to_owned();
    let to_complete = Order::new(Action::NodeComplete, OperationId::generate(), "node_b".parse().expect("a name"));
    let order = Order {
        method: prepare_id.clone(),
        source: order().source,
        selection: only(&["orders"]),
        one_way: true,
        ..to_complete
    };
    let mut target = Thief::with_key_of(&a, "node_b").await;
    let tables = target.asking(&order).tables;
    let take =
        v1::TakePreparedRequest { op_id: order.op_id.to_string(), prepare_id, tables, one_way: true, branch: None };
    let signed = sign(&a.identity("operator-otto"), &order);
    let taken = target.peers.take_prepared(with(Some(&signed), take)).await.expect("that was signed").into_inner();
    let copy = v1::CopyNativelyRequest { session_id: taken.session_id, subscription_oid: 16_500, system_identifier: 1 };
    refused(target.peers.copy_natively(copy), Code::IntentExceeded, "rows come from the backup alone").await;
}

async fn refused<T>(asked: impl Future<Output = Result<T, tonic::Status>>, code: Code, what: &str) {
    match asked.await {
        Ok(_) => panic!("{what}: it was done"),
        Err(status) => assert_eq!(failure_of(&status).code, code, "{what}: {status}"),
    }
}

#[tokio::test]
async fn a_nodes_key_alone_starts_and_cancels_nothing_in_an_operators_name() {
    let [a, b] = Cluster::of(2).start().await;
    two_tables(&a).await;
    let [alice, otto, vera, node_a] =
        ["operator-alice", "operator-otto", "operator-vera", "node_a"].map(|name| a.identity(name));
    // Whoever holds node_a's key, asking node_b.
    let channel = b.channel(&node_a).await.expect("a node is let in");
    let mut nodes = NodesClient::new(channel.clone());
    let mut operations = OperationsClient::new(channel);
    let order = order();
    let start = start_of(&order);
    refused(nodes.start(start.clone()), Code::Denied, "as itself").await;
    refused(nodes.start(for_somebody(&alice, None, start.clone())), Code::IntentMissing, "by its word").await;
    let cases = [
        (&vera, &vera, Code::Denied),
        (&alice, &vera, Code::SignerRefused),
        (&alice, &node_a, Code::SignerRefused),
        (&alice, &otto, Code::IntentMisdirected),
    ];
    for (whose, signer, code) in cases {
        let asked = for_somebody(whose, Some(&sign(signer, &order)), start.clone());
        refused(nodes.start(asked), code, &format!("{} in the name of {}", signer.me(), whose.me())).await;
    }
    // An order that is good, with another request.
    let signed = sign(&alice, &order);
    for (what, other) in [
        ("other tables", v1::StartNodeRequest { selection: Some(only(&["secrets"])), ..start.clone() }),
        ("all tables", v1::StartNodeRequest { selection: None, ..start.clone() }),
        ("both ways", v1::StartNodeRequest { one_way: false, ..start.clone() }),
        ("emptied first", v1::StartNodeRequest { force: true, ..start.clone() }),
        ("another operation", v1::StartNodeRequest { op_id: OperationId::generate().to_string(), ..start.clone() }),
        ("another source", v1::StartNodeRequest { source: "node_b".into(), ..start.clone() }),
        ("only planned", v1::StartNodeRequest { dry_run: true, ..start.clone() }),
    ] {
        refused(nodes.start(for_somebody(&alice, Some(&signed), other)), Code::IntentMisdirected, what).await;
    }

    b.hold_after("copy tables");
    let op = b.steepctl("node start node_b --from node_a").as_operator("otto").operation();
    b.is_held().await;
    let cancel = v1::CancelNodeRequest { node_id: "node_b".into() };
    refused(nodes.cancel(for_somebody(&alice, None, cancel.clone())), Code::IntentMissing, "by its word").await;
    let target: steep_protocol::ids::NodeId = "node_b".parse().expect("a name");
    let elsewhere = Order::new(Action::NodeCancel, OperationId::generate(), "node_a".parse().expect("a name"));
    let signed = sign(&alice, &elsewhere);
    refused(nodes.cancel(for_somebody(&alice, Some(&signed), cancel)), Code::IntentMisdirected, "of another node")
        .await;
    let cancel = v1::CancelOperationRequest { op_id: op.id().to_owned() };
    refused(operations.cancel(for_somebody(&alice, None, cancel.clone())), Code::IntentMissing, "by its word").await;
    let other = Order::new(Action::OperationCancel, OperationId::generate(), target).about(OperationId::generate());
    let asked = for_somebody(&alice, Some(&sign(&alice, &other)), cancel);
    refused(operations.cancel(asked), Code::IntentMisdirected, "of another operation").await;
    b.let_go();
    op.completes().await;
    let by: String = b.value("select started_by from steep_repl.operations").await;
    assert_eq!(by, "otto (operator)");
    let proof: String = b.value("select signer from steep_repl.signed_intents").await;
    assert_eq!(proof, "spiffe://demo/operator/operator/otto");
    assert!(b.count("steep_repl.audit_log where action = 'rpc.denied'").await >= 4, "denials are audited");
}

#[tokio::test]
async fn an_order_is_carried_out_once_however_often_and_by_whatever_way_it_is_given() {
    let [a, b] = Cluster::of(2).start().await;
    two_tables(&a).await;
    let otto = a.identity("operator-otto");
    let mut here = NodesClient::new(b.channel(&otto).await.expect("it lets operators in"));
    let mut there = NodesClient::new(a.channel(&otto).await.expect("it lets operators in"));
    let order = order();
    let (signed, start) = (sign(&otto, &order), start_of(&order));
    b.hold_after("copy tables");
    let first = here.start(with(Some(&signed), start.clone())).await.expect("it starts").into_inner();
    let second = there.start(with(Some(&signed), start.clone())).await.expect("the same answer").into_inner();
    assert_eq!((&first.op_id, &second.op_id), (&order.op_id.to_string(), &first.op_id));
    assert_eq!(second.served_by, "node_b", "through node_a");
    let anew = sign_at(&otto, &order, Timestamp::now() - SignedDuration::from_secs(1));
    refused(here.start(with(Some(&anew), start.clone())), Code::IntentUsed, "the same id, signed anew").await;
    b.is_held().await;

    let cancel = v1::CancelNodeRequest { node_id: "node_b".into() };
    let stop = sign(&otto, &Order::new(Action::NodeCancel, OperationId::generate(), "node_b".parse().expect("a name")));
    for client in [&mut here, &mut there] {
        let stopped = client.cancel(with(Some(&stop), cancel.clone())).await;
        match stopped {
            Ok(stopped) => assert_eq!(stopped.into_inner().op_id, first.op_id),
            // It may have ended in between.
            Err(status) => assert_eq!(failure_of(&status).code, Code::NothingRuns),
        }
    }
    // Returns once it has ended and nothing of it runs any more.
    let watched = b.steepctl("op watch").arg(&first.op_id).outcome();
    assert_eq!(watched.status, 4, "cancelled: {watched}");
    let third = here.start(with(Some(&signed), start)).await.expect("still the same answer").into_inner();
    assert_eq!(third.op_id, first.op_id, "it is not started a second time");
    b.let_go();

    // The order that cancelled one operation cancels no other.
    b.hold_after("copy tables");
    let op = b.steepctl("node start node_b --from node_a").operation();
    b.is_held().await;
    refused(here.cancel(with(Some(&stop), cancel)), Code::IntentUsed, "used for another operation").await;
    b.let_go();
    op.completes().await;
    assert_eq!(b.count("steep_repl.operations").await, 2);
}

#[tokio::test]
async fn an_operator_destroys_rows_only_with_the_targets_name_typed() {
    let [a, b] = Cluster::of(2).start().await;
    two_tables(&a).await;
    b.sql(&orders(3)).await;
    let order = Order { force: true, ..order() };
    let start = start_of(&order);
    let otto = a.identity("operator-otto");
    let mut nodes = NodesClient::new(b.channel(&otto).await.expect("it lets operators in"));
    refused(nodes.start(with(Some(&sign(&otto, &order)), start)), Code::ConfirmationNeeded, "not confirmed").await;
    assert_eq!(b.count("orders").await, 3, "nothing was destroyed");
    let words = "node start node_b --from node_a --tables orders --one-way --force --confirm node_b";
    b.steepctl(words).as_operator("otto").succeeds();
    assert_eq!(b.count("orders").await, 50);
}
