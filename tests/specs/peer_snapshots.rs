//! A snapshot that stays where it was written: the agent of its node sends it to whoever an operator has signed it for, each
//! byte once, whatever breaks on the way.

use std::{fs, sync::Arc};

use serde_json::Value;
use steep_protocol::{
    failure::{Code, Failure},
    ids::OperationId,
    intent::{self, LIFETIME, Order},
    operation::Action,
    v1::{self, bulk_request::Want, peers_client::PeersClient},
    wire::{
        bulk::BlockSource,
        endpoint::BULK_STREAM,
        identity::Identity,
        rpc::{PeerChannel, failure_of},
    },
};
use steep_tests::{Cluster, Ledger, Line, Node, NodeState::*, Operation, PATIENCE, guest::Dialled, shop, until};

use crate::snapshots::{Folder, Later as _, ODD, ODD_TABLES, a_part, alike, generated, manifest};

/// A stream holds no more on its way: its window, and a block at either end.
const IN_FLIGHT: u64 = 4 << 20;
/// Files large enough to be cut in the middle.
const LARGE: &str = "create table large (id bigint primary key, text text not null);
    insert into large select n, (select string_agg(md5(n || ' ' || k), '') from generate_series(1, 8) k)
      from generate_series(1, 90000) n;
    analyze large;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_applied_from_where_it_was_written_while_all_are_written_to() {
    let [a, b, c] = Cluster::of(3).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(&shop::orders(5_000)).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(3, &a);
    on_a.write(40).await;
    let folder = Folder::new("lent");
    let id = generated(&a, &folder, "--parallel 3").await;
    on_a.write(40).await;
    let on_b = ledger.writers(2, &b);
    b.steepctl(&format!("snapshot apply node_b --input peer:{id}")).succeeds();
    b.becomes(Synchronized).await;
    on_a.write(40).await;
    on_b.write(40).await;
    // Asked of another agent, for a node that only follows.
    b.steepctl(&format!("snapshot apply node_c --one-way --input peer:{id}")).succeeds();
    on_a.write(20).await;
    on_b.write(20).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
    for node in [&b, &c] {
        alike(&a, node, &["orders", "customers"]).await;
        alike(&a, node, &ODD_TABLES).await;
        assert_eq!(node.count(LEFT).await, 0, "{}", node.id());
    }
    assert_eq!(a.count("steep_repl.signed_intents where action = 'snapshot.apply' and ended_at is null").await, 0);
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).succeeds();
}

const LEFT: &str = "steep_repl.intents where state in ('planned', 'live')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_alone_come_from_where_they_were_written_also_when_the_target_dies_amid_them() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(&shop::orders(3_000)).await;
    a.sql(ODD).await;
    let folder = Folder::new("rows");
    let id = generated(&a, &folder, "--compress lz4").await;
    b.stop_agent();
    let points = ["amid a part:3", "after a commit:2", "all copied"];
    b.start_agent_to_die(points[0]);
    let op = started(&a, &b, &format!("--no-subscribe --input peer:{id}")).await;
    for (index, point) in points.iter().enumerate() {
        b.agent_dies(point).await;
        match points.get(index + 1) {
            Some(next) => b.start_agent_to_die(next),
            None => b.start_agent(),
        }
    }
    op.completes().await;
    b.becomes(Uninitialized).await;
    alike(&a, &b, &["orders", "customers"]).await;
    alike(&a, &b, &ODD_TABLES).await;
    assert_eq!(b.count("pg_subscription").await, 0);
    // What was lent is given back, and changed nothing there.
    assert_eq!(a.state().await, Ok(Uninitialized));
    assert_eq!(a.count("steep_repl.signed_intents where action = 'snapshot.apply' and ended_at is null").await, 0);
    assert_eq!(a.slots().await, [format!("steep_{id}")]);
}

/// Orders `node` to apply a snapshot, asking `asked` as soon as it takes the order.
async fn started(asked: &Node, node: &Node, words: &str) -> Operation {
    until("the agent takes an order", PATIENCE, async || {
        let outcome = asked.steepctl(&format!("snapshot apply {} --detach -o json {words}", node.id())).outcome();
        if outcome.status == 0 { Ok(Operation::known(node, &outcome)) } else { Err(outcome.to_string()) }
    })
    .await
}

/// Bytes of files that `node` has sent to node_b, in this run of its agent.
fn sent(node: &Node) -> u64 {
    let (_, text) = node.http("/metrics");
    let line = text.lines().find(|line| line.starts_with("steep_snapshot_file_bytes_sent_total{peer=\"node_b\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Where files went on after a cut, as `node` says.
fn resumed(node: &Node) -> Vec<u64> {
    let log = node.log();
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let resumed = events.filter(|event| event["event"] == "snapshot.file_resumed");
    resumed.map(|event| event["details"]["bytes"].as_u64().expect("it says where")).collect()
}

/// Bytes of all files of rows.
fn bytes_of_rows(folder: &Folder) -> u64 {
    let written = manifest(folder);
    let tables = written["manifest"]["tables"].as_array().expect("tables").clone();
    tables.iter().map(|table| table["bytes"].as_u64().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_dies_amid_a_file_sends_the_rest_of_it_and_nothing_twice() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(LARGE).await;
    let on_a = ledger.writers(2, &a);
    let folder = Folder::new("killed");
    let id = generated(&a, &folder, "--compress none").await;
    on_a.write(20).await;
    // Of the files without rows each is one block or two; then comes the largest.
    a.stop_agent();
    a.start_agent_to_die("amid sending a file:25");
    let op = started(&b, &b, &format!("--parallel 1 --input peer:{id}")).await;
    a.agent_dies("amid sending a file").await;
    on_a.write(20).await;
    a.start_agent();
    op.completes().await;
    let from = resumed(&b);
    assert_eq!(from.len(), 1, "one file was amid its way: {from:?}");
    assert!(from[0] > 1 << 20, "it went on from the middle: {from:?}");
    // The second run has sent the rest of that file and those after it, and not one byte more.
    assert_eq!(sent(&a) + from[0], bytes_of_rows(&folder), "{from:?}");
    on_a.write(20).await;
    let accounts = [on_a.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &["large"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_breaks_amid_a_file_is_waited_out_and_the_file_goes_on_where_it_was() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(LARGE).await;
    let folder = Folder::new("network");
    let id = generated(&a, &folder, "--compress none").await;
    let line = Line::between(&a, &b).await;
    b.hold_after("create tables");
    let op = started(&b, &b, &format!("--one-way --parallel 1 --input peer:{id}")).await;
    b.is_held().await;
    let before = sent(&a);
    // Nothing is loaded while somebody holds the table: the file stands still on its way.
    let holder = b.connect().await;
    holder.batch_execute("begin; lock table large in share mode").await.expect("nobody uses it");
    b.let_go();
    let standing = until("the file stands still", PATIENCE, async || {
        let first = sent(&a);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        if first > before && first == sent(&a) { Ok(first) } else { Err(first) }
    })
    .await;
    line.cut();
    holder.batch_execute("rollback").await.expect("it can end");
    until("the cut is noticed", PATIENCE, async || {
        if b.log().contains("snapshot.file_cut") { Ok(()) } else { Err("nobody tells") }
    })
    .await;
    line.heal();
    op.completes().await;
    let from = resumed(&b);
    assert_eq!(from.len(), 1, "{from:?}");
    assert!(from[0] > 0, "what had come was not asked for again");
    assert!(standing - before - from[0] <= IN_FLIGHT, "{standing} sent, {before} before, {from:?}");
    let rows = bytes_of_rows(&folder);
    let all = sent(&a) - before;
    assert!(all <= rows + IN_FLIGHT, "{all} bytes were sent of files with {rows}");
    alike(&a, &b, &["large"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_goes_on_after_the_agent_of_the_snapshots_node_has_died() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(2, &a);
    let folder = Folder::new("lender");
    generated(&a, &folder, "").await;
    // While it lends, before it has answered; and while the rows are loaded.
    a.stop_agent();
    a.start_agent_to_die("snapshot lent");
    b.hold_after("copy tables");
    let op = started(&b, &b, &format!("--input {}", folder.path())).await;
    a.agent_dies("snapshot lent").await;
    on_a.write(20).await;
    a.start_agent();
    b.is_held().await;
    a.kill_agent();
    on_a.write(20).await;
    b.let_go();
    a.start_agent();
    op.completes().await;
    b.becomes(Synchronized).await;
    on_a.write(20).await;
    let accounts = [on_a.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &ODD_TABLES).await;
    assert_eq!(a.slots().await.len(), 2, "the snapshot's own and node_b's: {:?}", a.slots().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_had_from_a_peer_is_told_and_leaves_nothing_behind() {
    let [a, b, _c] = Cluster::of(3).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(&shop::orders(2_000)).await;
    a.sql(ODD).await;
    let folder = Folder::new("had");
    let id = generated(&a, &folder, "--compress none").await;
    let before = [a.inventory().await, b.inventory().await];
    let is_clean = async |when: &str| {
        for (node, before) in [&a, &b].iter().zip(&before) {
            until(&format!("{when}: nothing is left"), PATIENCE, async || {
                let left = (node.inventory().await.since(before), node.count(LEFT).await);
                if left.0.is_empty() && (left.1 == 0 || node.id() == "node_a") {
                    Ok(())
                } else {
                    Err(format!("{left:?}"))
                }
            })
            .await;
        }
        assert_eq!(a.count("steep_repl.signed_intents where action = 'snapshot.apply' and ended_at is null").await, 0);
    };
    let apply = |words: &str| b.steepctl(&format!("snapshot apply node_b {words}"));
    apply("--input peer:snap_000000000000").fails_with("STP-3406");
    apply("--input peer:snap_000000000000 --source node_a").fails_with("STP-3406");
    apply(&format!("--input peer:{id} --source node_c")).fails_with("STP-3406");
    apply(&format!("--input peer:{id} --source node_x")).fails_with("STP-5002");
    a.steepctl(&format!("snapshot apply node_a --input peer:{id}")).fails_with("STP-5004");
    is_clean("it is not there").await;
    // Its files are not what was written, or not there.
    let (file, _) = a_part(&folder, 1_000);
    let whole = fs::read(folder.0.join(&file)).expect("it is there");
    fs::remove_file(folder.0.join(&file)).expect("it is there");
    let refused = apply(&format!("--input peer:{id}")).fails_with("STP-3414");
    assert!(refused.stderr.contains(&file) && refused.stderr.contains("snapshot verify"), "{refused}");
    is_clean("a file is gone").await;
    let mut touched = whole.clone();
    let middle = touched.len() / 2;
    touched[middle] ^= 1;
    fs::write(folder.0.join(&file), touched).expect("it can be written");
    apply(&format!("--input peer:{id}")).fails_with_later(&b, "STP-3404").await;
    is_clean("a file was touched").await;
    fs::write(folder.0.join(&file), whole).expect("it can be written");
    // It is another snapshot's manifest, whole and signed.
    let other = Folder::new("others");
    generated(&a, &other, "--compress none").await;
    let own = fs::read(folder.0.join("manifest.json")).expect("it is there");
    fs::copy(other.0.join("manifest.json"), folder.0.join("manifest.json")).expect("it can be copied");
    let refused = apply(&format!("--input peer:{id}")).fails_with("STP-3414");
    assert!(refused.stderr.contains("the manifest there is of"), "{refused}");
    fs::write(folder.0.join("manifest.json"), own).expect("it can be written");
    let listed = a.steepctl("snapshot list -o json").succeeds().json();
    let ids = listed["snapshots"].as_array().expect("snapshots").iter().filter_map(|it| it["snapshot_id"].as_str());
    let other = ids.into_iter().find(|other| *other != id).expect("there are two").to_owned();
    a.steepctl(&format!("snapshot delete {other} --confirm {other}")).succeeds();
    is_clean("it is another's manifest").await;
    // Deleted while its rows are read.
    b.hold_after("create tables");
    let op = started(&b, &b, &format!("--no-subscribe --input peer:{id}")).await;
    b.is_held().await;
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).succeeds();
    b.let_go();
    op.fails_with("STP-3413").await;
    let left = b.inventory().await.since(&before[1]);
    assert!(left.is_empty(), "{left:?}");
    apply(&format!("--input peer:{id}")).fails_with("STP-3413");
    // Nobody answers.
    a.stop_agent();
    apply(&format!("--input peer:{id} --source node_a")).fails_with("STP-1201");
    let unknown = apply(&format!("--input peer:{id}")).fails_with("STP-3406");
    assert!(unknown.stderr.contains("node_a did not answer") && unknown.stderr.contains("--source"), "{unknown}");
    let left = b.inventory().await.since(&before[1]);
    assert!(left.is_empty(), "{left:?}");
}

/// Whoever holds a node's key, asking node_a.
struct Thief {
    peers: PeersClient<PeerChannel>,
    bulk: Dialled,
}

impl Thief {
    async fn with_key_of(a: &Node, name: &str) -> Self {
        let identity = a.identity(name);
        let channel = a.channel(&identity).await.expect("a node is let in");
        Self { peers: PeersClient::new(channel), bulk: a.dialled_by(&identity).await }
    }

    async fn borrows(&mut self, op: OperationId, signed: Option<&v1::SignedIntent>) -> Result<(), Code> {
        let mut request = tonic::Request::new(v1::LendFilesRequest { op_id: op.to_string() });
        if let Some(signed) = signed {
            intent::attach(&mut request, signed);
        }
        self.peers.lend_files(request).await.map(drop).map_err(|status| failure_of(&status).code)
    }

    async fn reads(&self, op: OperationId, name: &str, offset: u64) -> Result<u64, Code> {
        let file = v1::FetchFile { op_id: op.to_string(), name: name.into(), offset };
        fetched(&self.bulk, Want::File(file)).await.map_err(|failure| failure.code)
    }

    async fn leaves(self) {
        self.bulk.connection.close("done");
        self.bulk.endpoint.close().await;
    }
}

/// Reads a bulk stream to its end; returns its bytes.
async fn fetched(dialled: &Dialled, want: Want) -> Result<u64, Failure> {
    use steep_protocol::failure::Explain as _;
    let io = dialled.connection.open(BULK_STREAM).await.map_err(|error| error.explain())?;
    let request = v1::BulkRequest { want: Some(want) };
    let mut blocks = BlockSource::request(io, &request).await.map_err(|error| error.explain())?;
    let mut bytes = 0;
    while let Some(block) = blocks.next().await.map_err(|error| error.explain())? {
        bytes += block.len() as u64;
    }
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_key_alone_reads_no_file_of_a_snapshot() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(500)).await;
    let [folder, other] = [Folder::new("key"), Folder::new("other-key")];
    let id = generated(&a, &folder, "").await;
    generated(&a, &other, "").await;
    // Its agent makes room: two that say they are node_b at once are one too many.
    b.stop_agent();
    let mut command = a.bare_steepctl();
    command.args(["pki", "issue", "node", "node_c", "--dir"]).arg(a.pki());
    assert!(command.status().expect("it can be run").success());
    let (otto, vera): (Arc<Identity>, _) = (a.identity("operator-otto"), a.identity("operator-vera"));
    let order = |input: &str, target: &str| Order {
        source: Some("node_a".parse().expect("a name")),
        method: format!("rows input {input}"),
        ..Order::new(Action::SnapshotApply, OperationId::generate(), target.parse().expect("a name"))
    };
    let sign = |by: &Identity, order: &Order| {
        intent::sign(by, order, jiff::Timestamp::now(), LIFETIME).expect("it can be signed")
    };
    let [mut thief, mut stranger] = [Thief::with_key_of(&a, "node_b").await, Thief::with_key_of(&a, "node_c").await];
    let lent = order(&format!("peer:{id}"), "node_b");
    let op = lent.op_id;
    let [manifest, part] = ["manifest.json", "data/000001.csv.zst"];
    // Without a signature, with one for something else, and with that of somebody whose role does not suffice.
    assert_eq!(thief.borrows(op, None).await, Err(Code::IntentMissing));
    assert_eq!(thief.reads(op, manifest, 0).await, Err(Code::IntentMissing));
    for (what, order, code) in [
        ("a directory", order(folder.path(), "node_b"), Code::IntentExceeded),
        ("another target", order(&format!("peer:{id}"), "node_c"), Code::IntentMisdirected),
        ("a start", Order { action: Action::NodeStart, ..lent.clone() }, Code::IntentMisdirected),
        (
            "another source",
            Order { source: Some("node_c".parse().expect("a name")), ..lent.clone() },
            Code::IntentMisdirected,
        ),
    ] {
        assert_eq!(thief.borrows(order.op_id, Some(&sign(&otto, &order))).await, Err(code), "{what}");
        assert_eq!(thief.reads(order.op_id, part, 0).await, Err(Code::IntentMissing), "{what}");
    }
    assert_eq!(thief.borrows(op, Some(&sign(&vera, &lent))).await, Err(Code::SignerRefused));
    assert_eq!(thief.reads(op, part, 0).await, Err(Code::IntentMissing));

    // With it: the files of that snapshot, to that node, until it is over.
    let signed = sign(&otto, &lent);
    thief.borrows(op, Some(&signed)).await.expect("all of it was signed");
    thief.borrows(op, Some(&signed)).await.expect("asked again it is the same");
    let size = fs::metadata(folder.0.join(part)).expect("it is there").len();
    assert_eq!(thief.reads(op, part, 0).await, Ok(size));
    assert_eq!(thief.reads(op, part, size - 3).await, Ok(3));
    assert_eq!(thief.reads(op, part, size + 5).await, Ok(0));
    for name in ["../other-key/manifest.json", "data/../manifest.json", "/etc/passwd", "data/000001.csv.zst.tmp", ""] {
        assert_eq!(thief.reads(op, name, 0).await, Err(Code::SnapshotUnsafe), "{name}");
    }
    assert_eq!(stranger.borrows(op, Some(&signed)).await, Err(Code::IntentMisdirected));
    assert_eq!(stranger.reads(op, part, 0).await, Err(Code::IntentMissing));
    a.stop_agent();
    a.start_agent();
    thief.leaves().await;
    stranger.leaves().await;
    let mut thief = Thief::with_key_of(&a, "node_b").await;
    assert_eq!(thief.reads(op, part, 0).await, Ok(size), "the agent's next run knows of it");
    let close = v1::CloseSessionRequest { op_id: op.to_string(), keep: false, reason: "over".into() };
    thief.peers.close_session(close).await.expect("its own");
    assert_eq!(thief.reads(op, part, 0).await, Err(Code::IntentMissing));
    assert_eq!(thief.borrows(op, Some(&signed)).await, Err(Code::IntentUsed));
    let denied = "steep_repl.audit_log where action = 'rpc.denied' and detail ->> 'rpc' = 'bulk'";
    assert!(a.count(denied).await > 0, "who tried is written down");
    thief.leaves().await;
}

/// The names of a snapshot's files of rows, and which file on the disk each is.
fn files_of_rows(folder: &Folder) -> Vec<(String, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let names = folder.files().into_iter().filter(|name| name.starts_with("data/") && !name.ends_with(".tmp"));
    names.map(|name| (name.clone(), fs::metadata(folder.0.join(&name)).expect("it is there").ino())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_gone_on_with_after_its_agent_has_died_and_no_file_is_written_twice() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(&shop::orders(3_000)).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(3, &a);
    on_a.write(20).await;
    let folder = Folder::new("again");
    let points = [
        "snapshot slot made",
        "schema written",
        "amid a file:3",
        "a file written:2",
        "a file noted:3",
        "before the manifest",
        "manifest written",
        "all but its end",
    ];
    a.stop_agent();
    a.start_agent_to_die(points[0]);
    let line = format!("snapshot generate node_a --parallel 1 --detach -o json --dir {}", folder.path());
    let op = until("the agent takes an order", PATIENCE, async || {
        let outcome = a.steepctl(&line).outcome();
        if outcome.status == 0 { Ok(Operation::known(&a, &outcome)) } else { Err(outcome.to_string()) }
    })
    .await;
    let mut noted: Vec<(String, u64)> = Vec::new();
    for (index, point) in points.iter().enumerate() {
        a.agent_dies(point).await;
        let written = files_of_rows(&folder);
        assert!(noted.iter().all(|file| written.contains(file)), "{point}: {noted:?} before, {written:?}");
        // The last one was whole, and nobody knew yet.
        let known = if point.starts_with("a file written") { written.len() - 1 } else { written.len() };
        noted = written[..known].to_vec();
        on_a.write(10).await;
        match points.get(index + 1) {
            Some(next) => a.start_agent_to_die(next),
            None => a.start_agent(),
        }
    }
    op.completes().await;
    assert_eq!(noted, files_of_rows(&folder));
    let listed = a.steepctl("snapshot list -o json").succeeds().json();
    let id = listed["snapshots"][0]["snapshot_id"].as_str().expect("an id").to_owned();
    let verified = a.steepctl(&format!("snapshot verify {id} -o json")).succeeds().json();
    assert_eq!(verified["rows_counted"], verified["snapshot"]["rows"], "{verified}");
    assert!(a.keepers().is_empty(), "nothing is held any more");
    for table in [LEFT, "steep_repl.operation_notes"] {
        assert_eq!(a.count(table).await, 0, "{table}");
    }
    until("node_b hears of node_a's last run", PATIENCE, async || {
        let outcome = b.steepctl(&format!("snapshot show {id}")).outcome();
        if outcome.status == 0 { Ok(()) } else { Err(outcome.to_string()) }
    })
    .await;
    // It is of one moment: whoever begins from it misses nothing and has nothing twice.
    b.steepctl(&format!("snapshot apply node_b --input peer:{id}")).succeeds();
    on_a.write(20).await;
    let accounts = [on_a.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &["orders", "customers"]).await;
    alike(&a, &b, &ODD_TABLES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_told_to_end_leaves_its_snapshot_to_the_next_run() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(ODD).await;
    let folder = Folder::new("told");
    a.hold_after("write tables");
    let op = a.steepctl(&format!("snapshot generate node_a --dir {}", folder.path())).operation();
    a.is_held().await;
    let written = files_of_rows(&folder);
    a.stop_agent();
    // Somebody takes one away: that one is written again. Kept elsewhere, it does not leave its inode to the new one.
    let away = Folder::new("away");
    fs::rename(folder.0.join(&written[1].0), &away.0).expect("it is there");
    a.start_agent();
    op.completes().await;
    let again = files_of_rows(&folder);
    let differs = |index: &usize| written[*index] != again[*index];
    assert_eq!((0..written.len()).filter(differs).collect::<Vec<_>>(), [1], "{written:?} then {again:?}");
    fs::remove_file(&away.0).expect("it is a file");
    b.steepctl(&format!("snapshot apply node_b --one-way --input {}", folder.path())).succeeds();
    alike(&a, &b, &ODD_TABLES).await;
}
