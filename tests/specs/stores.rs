//! A snapshot in an object store: what an operator may rely on is the same as in a directory, whatever the store does.

use std::fs;

use serde_json::Value;
use steep_tests::{
    Cluster, Ledger, Node, NodeState::*, ObjectStore, Operation, PATIENCE, object_store::BUCKET, object_store::Malice,
    shop, until,
};

use crate::snapshots::{Later as _, ODD, ODD_TABLES, alike};

/// Files large enough to be sent in several pieces, as nothing compresses them.
const LARGE: &str = "create table large (id bigint primary key, text text not null);
    insert into large select n, repeat(md5(n::text), 8) from generate_series(1, 90000) n;
    analyze large;";

const LEFT: &str = "steep_repl.intents where state in ('planned', 'live')";

/// A cluster whose agents know `store`.
fn cluster(store: &ObjectStore, nodes: usize, part_size: &str) -> Cluster {
    Cluster::of(nodes).agent_toml(&format!("[copy]\npart_size = \"{part_size}\"")).agent_toml(&store.toml())
}

/// Orders a snapshot of `node` and returns its id and the operation.
fn begun(node: &Node, place: &str, words: &str) -> (String, Operation) {
    let line = format!("snapshot generate {} --dir {place} {words} --detach -o json", node.id());
    let started = node.steepctl(&line).succeeds();
    let id = started.json()["snapshot_id"].as_str().expect("it has an id").to_owned();
    (id, Operation::known(node, &started))
}

async fn generated(node: &Node, place: &str, words: &str) -> String {
    let (id, op) = begun(node, place, words);
    op.completes().await;
    id
}

/// What an agent's configuration says of `store` where it names no key.
fn without_a_key(store: &ObjectStore) -> String {
    let lines = store.toml();
    let lines = lines.lines().filter(|line| !line.starts_with("credentials"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Nobody has logged what opens the store.
fn is_discreet(store: &ObjectStore, nodes: &[&Node]) {
    for node in nodes {
        assert!(!node.log().contains(store.secret()), "{} has logged the secret", node.id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_in_an_object_store_begins_two_nodes_while_all_are_written_to() {
    let store = ObjectStore::start().await;
    let [a, b, c] = cluster(&store, 3, "1MiB").start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(&shop::orders(5_000)).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(3, &a);
    on_a.write(40).await;
    let place = store.place("shop/monday");
    let id = generated(&a, &place, "--parallel 3").await;
    let objects = store.objects("shop/monday");
    assert!(objects.contains_key("manifest.json") && objects.len() > 10, "{objects:?}");
    on_a.write(40).await;
    // Known like any other.
    let listed = b.steepctl("snapshot list -o json").succeeds().json();
    assert_eq!(listed["snapshots"][0]["location"], place.as_str(), "{listed}");
    let verified = a.steepctl(&format!("snapshot verify {id} -o json")).succeeds().json();
    assert_eq!(verified["rows_counted"], verified["snapshot"]["rows"], "{verified}");
    // Asked of another node, which does not have it.
    let shown = b.steepctl(&format!("snapshot show {id}")).succeeds();
    for words in [place.as_str(), "complete", "public.orders", "public.wide", &format!("steep_{id}")] {
        assert!(shown.stdout.contains(words), "{words}: {shown}");
    }
    let shown = b.steepctl(&format!("snapshot show {id} -o json")).succeeds().json()["snapshots"][0].clone();
    assert_eq!(shown["rows"], verified["snapshot"]["rows"], "{shown}");
    assert_eq!(shown["file_count"], objects.len() as u64 - 1, "all but the manifest itself: {shown}");
    b.steepctl(&format!("snapshot verify {place} --node node_c")).succeeds();
    // Where it lies nobody has to send it.
    let refused = b.steepctl(&format!("snapshot apply node_b --input peer:{id}")).fails_with("STP-3414");
    assert!(refused.stderr.contains(&format!("--input {place}")), "{refused}");
    let on_b = ledger.writers(2, &b);
    b.steepctl(&format!("snapshot apply node_b --input {place}")).succeeds();
    b.becomes(Synchronized).await;
    on_a.write(40).await;
    on_b.write(40).await;
    c.steepctl(&format!("snapshot apply node_c --one-way --input {place}")).succeeds();
    on_a.write(20).await;
    on_b.write(20).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
    for node in [&b, &c] {
        alike(&a, node, &["orders", "customers"]).await;
        alike(&a, node, &ODD_TABLES).await;
        assert_eq!(node.count(LEFT).await, 0, "{}", node.id());
    }
    // What is not the snapshot's stays where it is.
    for name in ["shop/monday-notes.txt", "shop/monday/notes.txt"] {
        fs::write(store.folder(name), "precious").expect("it can be written");
    }
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).succeeds();
    let shown = b.steepctl(&format!("snapshot show {id} -o json")).succeeds().json();
    assert_eq!(shown["snapshots"][0]["status"], "deleted", "{shown}");
    let left: Vec<_> = store.objects("shop").into_keys().collect();
    assert_eq!(left, ["monday-notes.txt", "monday/notes.txt"]);
    assert!(!a.slots().await.contains(&format!("steep_{id}")));
    assert!(store.unfinished().is_empty());
    is_discreet(&store, &[&a, &b, &c]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_an_older_server_comes_from_an_object_store_to_a_newer_one() {
    let store = ObjectStore::start().await;
    let [a, b] = cluster(&store, 2, "1MiB").pg(&["16", "18"]).start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(2, &a);
    on_a.write(40).await;
    let place = store.place("older");
    generated(&a, &place, "--compress lz4").await;
    on_a.write(40).await;
    b.steepctl(&format!("snapshot apply node_b --input {place}")).succeeds();
    on_a.write(40).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await]).await;
    alike(&a, &b, &ODD_TABLES).await;
}

/// Where files went on after a cut, as `node` says.
fn resumed(node: &Node) -> Vec<u64> {
    let log = node.log();
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let resumed = events.filter(|event| event["event"] == "snapshot.file_resumed");
    resumed.map(|event| event["details"]["bytes"].as_u64().expect("it says where")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_amid_an_object_is_made_again_and_what_is_there_is_not_fetched_twice() {
    let store = ObjectStore::start().await;
    let [a, b] = cluster(&store, 2, "64MiB").start().await;
    a.sql(LARGE).await;
    let place = store.place("cut");
    // Amid the second piece of the one large object; and that all of it has arrived is not heard.
    store.cut_after_received(9 << 20);
    store.loses_an_answer();
    generated(&a, &place, "--compress none --parallel 1").await;
    assert!(store.was_cut() && store.has_lost_it());
    let bytes: u64 = store.objects("cut").values().sum();
    assert!(bytes > 20 << 20, "{bytes}");
    assert!(store.unfinished().is_empty(), "{:?}", store.unfinished());
    // Twice while it is checked, and once more while it is loaded. A request that finds the same object again goes on by itself;
    // where nobody can tell whether it is the same, another one begins at the byte after the last.
    for has_versions in [true, false] {
        if !has_versions {
            store.names_no_versions();
        }
        let before = store.sent();
        store.cut_after_sent(i64::try_from(bytes / 2).expect("it is not so large"));
        b.steepctl(&format!("snapshot verify {place} --node node_b")).succeeds();
        assert!(store.was_cut());
        let sent = store.sent() - before;
        assert!(sent < bytes + (8 << 20), "{sent} bytes were sent of {bytes}");
        assert_eq!(resumed(&b).iter().filter(|at| **at > 0).count(), usize::from(!has_versions), "{:?}", resumed(&b));
    }
    store.cut_after_sent(i64::try_from(bytes + bytes / 2).expect("it is not so large"));
    b.steepctl(&format!("snapshot apply node_b --one-way --input {place}")).succeeds();
    assert!(store.was_cut());
    alike(&a, &b, &["large"]).await;
    assert_eq!(resumed(&b).iter().filter(|at| **at > 0).count(), 2, "{:?}", resumed(&b));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_goes_away_ends_a_snapshot_cleanly_and_one_that_comes_back_does_not() {
    let store = ObjectStore::start().await;
    let [a, b] = cluster(&store, 2, "64MiB").start().await;
    a.sql(LARGE).await;
    let before = a.inventory().await;
    let is_clean = async |when: &str, prefix: &str| {
        until(&format!("{when}: nothing is left"), PATIENCE * 2, async || {
            let (left, objects, uploads) =
                (a.inventory().await.since(&before), store.objects(prefix), store.unfinished());
            let is_clean = left.is_empty() && objects.is_empty() && uploads.is_empty();
            if is_clean { Ok(()) } else { Err(format!("{left:?} {objects:?} {uploads:?}")) }
        })
        .await;
    };
    // Away for good, amid an upload: told, and cleaned up once it is back.
    let place = store.place("away");
    store.cut_after_received(9 << 20);
    let (_, op) = begun(&a, &place, "--compress none --parallel 1");
    until("it is cut", PATIENCE, async || if store.was_cut() { Ok(()) } else { Err("not yet") }).await;
    store.is_away(true);
    op.fails_with("STP-3416").await;
    store.is_away(false);
    is_clean("away", "away").await;
    // Silent for a moment: the same request is asked again.
    let place = store.place("silent");
    a.hold_after("write schema");
    let (_, op) = begun(&a, &place, "--compress none --parallel 1");
    a.is_held().await;
    store.is_silent(true);
    a.let_go();
    until(
        "it is asked again",
        PATIENCE,
        async || {
            if a.log().contains("snapshot.store_away") { Ok(()) } else { Err("not yet") }
        },
    )
    .await;
    store.is_silent(false);
    op.completes().await;
    a.steepctl(&format!("snapshot verify {place}")).succeeds();
    // Refused amid it.
    for (code, failure) in [("AccessDenied", "STP-3415"), ("SlowDown", "STP-3416")] {
        let place = store.place("refused");
        a.hold_after("write schema");
        let (_, op) = begun(&a, &place, "--compress none");
        a.is_held().await;
        store.refuses(Some(code));
        a.let_go();
        op.fails_with(failure).await;
        store.refuses(None);
        until(&format!("{code}: nothing is left"), PATIENCE * 2, async || {
            let (objects, uploads) = (store.objects("refused"), store.unfinished());
            if objects.is_empty() && uploads.is_empty() { Ok(()) } else { Err(format!("{objects:?} {uploads:?}")) }
        })
        .await;
    }
    // Cancelled.
    for step in ["write schema", "write tables", "write sequences"] {
        a.hold_after(step);
        let (_, op) = begun(&a, &store.place("cancelled"), "--compress none");
        a.is_held().await;
        a.steepctl("node cancel node_a").succeeds();
        assert_eq!(op.ends().await, "cancelled", "after {step}");
        assert!(store.objects("cancelled").is_empty(), "{step}: {:?}", store.objects("cancelled"));
    }
    // A target whose store goes away while it reads writes nothing.
    let empty = b.inventory().await;
    store.cut_after_sent(5 << 20);
    let op = b.steepctl(&format!("snapshot apply node_b --one-way --input {place}")).operation();
    until("it is cut", PATIENCE, async || if store.was_cut() { Ok(()) } else { Err("not yet") }).await;
    store.is_away(true);
    b.steepctl("node cancel node_b").succeeds();
    assert_eq!(op.ends().await, "cancelled");
    b.inventory().await.is_as(&empty);
    store.is_away(false);
    b.steepctl(&format!("snapshot apply node_b --one-way --input {place}")).succeeds();
    alike(&a, &b, &["large"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_object_store_refuses_is_told_before_anything_is_made() {
    let store = ObjectStore::start().await;
    let [a, b] = Cluster::of(2).agent_toml(&store.toml()).start().await;
    a.sql(&shop::orders(500)).await;
    let before = a.inventory().await;
    let refused = |node: &Node, place: &str, code: &str, words: &str| {
        let line = format!("snapshot generate {} --dir {place}", node.id());
        let outcome = node.steepctl(&line).fails_with(code);
        assert!(outcome.stderr.contains(words), "{words}: {outcome}");
    };
    // No such bucket; a prefix that is taken; addresses that are none.
    refused(&a, "s3://nowhere/snap", "STP-3417", "NoSuchBucket");
    fs::create_dir_all(store.folder("taken")).expect("it can be made");
    fs::write(store.folder("taken").join("precious"), "x").expect("it can be written");
    refused(&a, &store.place("taken"), "STP-3401", "is not empty");
    for place in
        ["s3://backups", "s3://backups/", "s3://Backups/x", "s3://backups/../x", "s3://backups/a//b", "s3://u:p@h/x"]
    {
        refused(&a, place, "STP-3401", "");
    }
    // Another key, none, one that others may read; a store that does not answer.
    for (edit, code, words) in [
        (store.toml_of_a_stranger(), "STP-3415", "SignatureDoesNotMatch"),
        (store.toml().replace("credentials = ", "ca = "), "STP-3415", "it holds no certificate"),
        (without_a_key(&store), "STP-3415", "AWS_ACCESS_KEY_ID"),
        (store.toml().replace("http://127.0.0.1", "http://nowhere.invalid"), "STP-3416", "no connection"),
    ] {
        a.reconfigure_agent(|text| text.replace(&store.toml(), &edit));
        until("the agent answers", PATIENCE, async || match a.steepctl("node show node_a").outcome() {
            outcome if outcome.status == 0 => Ok(()),
            outcome => Err(outcome.to_string()),
        })
        .await;
        refused(&a, &store.place("snap"), code, words);
        a.reconfigure_agent(|text| text.replace(&edit, &store.toml()));
    }
    a.inventory().await.is_as(&before);
    assert_eq!(store.objects("taken").len(), 1);
    assert!(store.objects("snap").is_empty());
    let outcome = b.steepctl(&format!("snapshot verify s3://{BUCKET}/snap --node node_b")).fails_with("STP-3402");
    assert!(outcome.stderr.contains("no manifest"), "{outcome}");
    is_discreet(&store, &[&a, &b]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_were_touched_are_refused_before_anything_is_written() {
    let store = ObjectStore::start().await;
    let [a, b] = cluster(&store, 2, "1MiB").start().await;
    a.sql(&shop::orders(2_000)).await;
    a.sql(ODD).await;
    generated(&a, &store.place("whole"), "--compress none").await;
    let before = [a.inventory().await, b.inventory().await];
    let whole = store.objects("whole");
    let (part, _) = whole.iter().filter(|(name, _)| name.starts_with("data/")).max_by_key(|(_, size)| **size).unwrap();
    type Touch<'a> = Box<dyn Fn() + 'a>;
    let folder = store.folder("hostile");
    let rewrite = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(folder.join(name)).expect("it is there");
        change(&mut bytes);
        fs::write(folder.join(name), bytes).expect("it can be written");
    };
    let cases: Vec<(&str, &str, Touch<'_>)> = vec![
        ("truncated", "STP-3404", Box::new(|| rewrite(part, &|bytes| bytes.truncate(bytes.len() - 7)))),
        ("flipped", "STP-3404", Box::new(|| rewrite(part, &|bytes| bytes[1_000] ^= 1))),
        ("longer", "STP-3404", Box::new(|| rewrite(part, &|bytes| bytes.push(b'x')))),
        ("missing", "STP-3404", Box::new(|| fs::remove_file(folder.join(part)).expect("it is there"))),
        ("schema", "STP-3404", Box::new(|| rewrite("schema.dump", &|bytes| bytes[200] ^= 1))),
        ("extra", "STP-3405", Box::new(|| fs::write(folder.join("data/000999.csv"), "x").expect("it is written"))),
        ("stranger", "STP-3405", Box::new(|| fs::write(folder.join("notes.txt"), "x").expect("it is written"))),
        ("no manifest", "STP-3402", Box::new(|| fs::remove_file(folder.join("manifest.json")).expect("it is there"))),
        (
            "half a manifest",
            "STP-3403",
            Box::new(|| rewrite("manifest.json", &|bytes| bytes.truncate(bytes.len() / 2))),
        ),
    ];
    for (what, code, touch) in &cases {
        drop(fs::remove_dir_all(&folder));
        for name in whole.keys() {
            let to = folder.join(name);
            fs::create_dir_all(to.parent().expect("a folder")).expect("it can be made");
            fs::copy(store.folder("whole").join(name), to).expect("it can be copied");
        }
        touch();
        let place = store.place("hostile");
        let refused = b.steepctl(&format!("snapshot verify {place} --node node_b")).fails_with(code);
        if *code == "STP-3404" {
            assert!(refused.stderr.contains("expected") && refused.stderr.contains("found"), "{what}: {refused}");
        }
        let line = format!("snapshot apply node_b --source node_a --input {place}");
        b.steepctl(&line).fails_with_later(&b, code).await;
        for (node, before) in [&a, &b].iter().zip(&before) {
            let left = node.inventory().await.since(before);
            assert!(left.is_empty(), "{what}: {} has {left:?}", node.id());
        }
    }
    b.steepctl(&format!("snapshot apply node_b --input {}", store.place("whole"))).succeeds();
    alike(&a, &b, &["orders", "wide"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_into_an_object_store_goes_on_after_its_agent_has_died_and_no_object_is_sent_twice() {
    let store = ObjectStore::start().await;
    let [a, b] = cluster(&store, 2, "1MiB").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(LARGE).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(2, &a);
    let place = store.place("again");
    let points = ["snapshot slot made", "amid a file:3", "a file written:2", "a file noted:3", "before the manifest"];
    let line = format!("snapshot generate node_a --parallel 1 --compress none --dir {place}");
    let op = a.dies_at_each(&points, &line, async || on_a.write(10).await).await;
    op.completes().await;
    assert!(store.unfinished().is_empty(), "{:?}", store.unfinished());
    assert!(a.keepers().is_empty(), "nothing is held any more");
    assert_eq!(a.count("steep_repl.operation_notes").await, 0);
    b.steepctl(&format!("snapshot apply node_b --input {place}")).succeeds();
    on_a.write(20).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await]).await;
    alike(&a, &b, &["large"]).await;
    alike(&a, &b, &ODD_TABLES).await;
    // Its keeper lost as well, nothing stays.
    let (_, op) = {
        a.hold_after("write tables");
        let begun = begun(&a, &store.place("lost"), "");
        a.is_held().await;
        begun
    };
    a.kill_agent();
    a.kill_keepers();
    a.start_agent();
    op.fails_with("STP-4005").await;
    until("nothing is left", PATIENCE, async || {
        let (objects, uploads) = (store.objects("lost"), store.unfinished());
        if objects.is_empty() && uploads.is_empty() { Ok(()) } else { Err(format!("{objects:?} {uploads:?}")) }
    })
    .await;
}

#[tokio::test]
async fn an_object_store_is_spoken_to_over_tls_when_its_certificate_is_believed() {
    let store = ObjectStore::start_with_tls().await;
    let [a, b] = cluster(&store, 2, "1MiB").start().await;
    a.sql(ODD).await;
    let place = store.place("sealed");
    // By a root of the mesh, or those of this host, it is nobody's.
    let whole = store.toml();
    let ca = whole.lines().find(|line| line.starts_with("ca = ")).expect("it names one").to_owned();
    let as_it_was = fs::read_to_string(a.agent_toml()).expect("it is configured");
    for other in [format!("ca = {:?}", a.pki().join("ca.pem")), String::new()] {
        a.reconfigure_agent(|_| as_it_was.replace(&ca, &other));
        let refused = until("the agent answers", PATIENCE, async || {
            let outcome = a.steepctl(&format!("snapshot generate node_a --dir {place}")).outcome();
            if outcome.code().is_some_and(|code| code.starts_with("STP-34")) {
                Ok(outcome)
            } else {
                Err(outcome.to_string())
            }
        })
        .await;
        assert_eq!(refused.code().as_deref(), Some("STP-3416"), "{refused}");
        assert!(refused.stderr.contains("certificate"), "{refused}");
    }
    a.reconfigure_agent(|_| as_it_was);
    until("the agent takes an order", PATIENCE, async || {
        let outcome = a.steepctl(&format!("snapshot generate node_a --dir {place}")).outcome();
        if outcome.status == 0 { Ok(()) } else { Err(outcome.to_string()) }
    })
    .await;
    b.steepctl(&format!("snapshot apply node_b --one-way --input {place}")).succeeds();
    alike(&a, &b, &ODD_TABLES).await;
}

/// What an agent may use while a store sends it whatever it likes.
const MEMORY: u64 = 500 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_means_nobody_well_costs_an_agent_neither_memory_nor_its_answers() {
    let store = ObjectStore::start().await;
    // A list is waited for no longer than four times as long.
    let impatient = store.toml().replace("timeout = \"2s\"", "timeout = \"10s\"").replace("\"5s\"", "\"2s\"");
    let [a, b] = Cluster::of(2).agent_toml(&impatient).start().await;
    a.sql(&shop::orders(500)).await;
    let place = store.place("whole");
    generated(&a, &place, "").await;
    let whole = store.objects("whole");
    let before = b.inventory().await;
    for (malice, codes, words) in [
        (Malice::Climbs, ["STP-3405"; 2], "no name of a snapshot's file"),
        (Malice::Redirects, ["STP-3415"; 2], "TemporaryRedirect"),
        (Malice::ListsAtOnce, ["STP-3415"; 2], "more than 8 MiB"),
        // Whichever it comes to first.
        (Malice::ListsForever, ["STP-3405", "STP-3416"], ""),
        (Malice::ListsNothingForever, ["STP-3416"; 2], "has no end"),
    ] {
        store.is_malicious(Some(malice));
        let refused = b.steepctl(&format!("snapshot verify {place} --node node_b")).outcome();
        let code = refused.code().unwrap_or_default();
        assert!(codes.contains(&code.as_str()) && refused.stderr.contains(words), "{malice:?}: {refused}");
        let memory = b.agent_memory();
        eprintln!("{malice:?}: {} MiB", memory >> 20);
        assert!(memory < MEMORY, "{malice:?}: {} MiB", memory >> 20);
    }
    store.is_malicious(None);
    assert_eq!(store.objects("whole"), whole);
    b.inventory().await.is_as(&before);
    b.steepctl(&format!("snapshot apply node_b --one-way --input {place}")).succeeds();
}
