//! A node begins where a snapshot in files ends, and misses nothing that is written meanwhile.

use serde_json::Value;
use steep_tests::{Cluster, Ledger, NodeState::*, PATIENCE, crash_points, shop, until};

use crate::snapshots::{Folder, Later as _, ODD, ODD_TABLES, alike, generated, manifest};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_a_snapshot_lies_about_reaches_every_target_once() {
    let [a, b, c] = Cluster::of(3).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(&shop::orders(5_000)).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(3, &a);
    on_a.write(60).await;
    let folder = Folder::new("whole");
    let id = generated(&a, &folder, "--parallel 3").await;
    let slot = format!("steep_{id}");
    assert_eq!(a.slots().await, std::slice::from_ref(&slot));
    assert_eq!(a.state().await, Ok(Uninitialized), "a source is not changed by it");
    // What is in the directory.
    let written = manifest(&folder);
    let body = &written["manifest"];
    assert_eq!((&body["complete"], &body["node"]), (&Value::from(true), &Value::from("node_a")), "{body}");
    assert!(folder.files().iter().filter(|name| name.starts_with("data/")).count() > 6, "{:?}", folder.files());
    let verified = a.steepctl(&format!("snapshot verify {id} -o json")).succeeds().json();
    assert_eq!(verified["rows_counted"], verified["snapshot"]["rows"], "{verified}");
    // The slot is known for what it is.
    let listed = b.steepctl("slot list node_a -o json").succeeds().json();
    assert_eq!(listed["slots"][0]["use"], "snapshot", "{listed}");
    a.steepctl(&format!("slot drop node_a {slot} --confirm node_a")).fails_with("STP-4242");

    // Written to before, while and after it is applied, on both ends.
    on_a.write(60).await;
    let on_b = ledger.writers(2, &b);
    let op = b.steepctl(&format!("snapshot apply node_b --input {}", folder.path())).operation();
    op.completes().await;
    b.becomes(Synchronized).await;
    a.becomes(Synchronized).await;
    on_a.write(40).await;
    on_b.write(40).await;
    // The same snapshot once more: node_c follows one way, as the mesh is none of the snapshot's.
    c.steepctl(&format!("snapshot apply node_c --input {}", folder.path())).fails_with_later(&c, "STP-3411").await;
    let op = c.steepctl(&format!("snapshot apply node_c --one-way --input {}", folder.path())).operation();
    op.completes().await;
    on_a.write(20).await;
    on_b.write(20).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
    for node in [&b, &c] {
        alike(&a, node, &["orders", "customers"]).await;
        alike(&a, node, &ODD_TABLES).await;
        let left = "steep_repl.intents where state in ('planned', 'live')";
        assert_eq!(node.count(left).await, 0, "{}", node.id());
    }
    // Deleted, whoever began from it goes on.
    a.steepctl(&format!("snapshot delete {id} --confirm {id}")).succeeds();
    assert!(!a.slots().await.contains(&slot), "{:?}", a.slots().await);
    assert!(!folder.0.exists());
    a.sql("insert into nothing_in_it values (1, 'later')").await;
    alike(&a, &b, &["nothing_in_it"]).await;
    alike(&a, &c, &["nothing_in_it"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_an_older_server_is_applied_to_a_newer_one() {
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(&shop::orders(2_000)).await;
    a.sql(ODD).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(40).await;
    let folder = Folder::new("older");
    generated(&a, &folder, "--compress gzip").await;
    on_a.write(40).await;
    b.steepctl(&format!("snapshot apply node_b --input {}", folder.path())).succeeds();
    on_a.write(40).await;
    on_b.write(40).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &["orders", "customers"]).await;
    alike(&a, &b, &ODD_TABLES).await;
}

#[tokio::test]
async fn rows_alone_are_loaded_without_the_node_they_are_of() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(3_000)).await;
    a.sql(ODD).await;
    let folder = Folder::new("alone");
    generated(&a, &folder, "--compress lz4 --exclude single").await;
    a.stop_agent();
    let line = format!("snapshot apply node_b --no-subscribe --input {}", folder.path());
    b.steepctl(&line).succeeds();
    b.becomes(Uninitialized).await;
    alike(&a, &b, &["orders", "customers", "wide", "measured"]).await;
    assert_eq!(b.slots().await, Vec::<String>::new());
    assert_eq!(b.count("pg_subscription").await, 0);
    assert_eq!(b.count("pg_class where relname = 'single'").await, 0, "it was left out");
    assert!(b.value::<i64>("select last_value from orders_id_seq").await > 3_000, "sequences come along");
    a.start_agent();
    until("node_b is told that it holds them", PATIENCE, async || {
        let outcome = b.steepctl(&line).outcome();
        if outcome.code().as_deref() == Some("STP-2301") { Ok(()) } else { Err(outcome.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_agent_that_dies_while_it_applies_a_snapshot_goes_on_where_it_was() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(ODD).await;
    let on_a = ledger.writers(2, &a);
    let folder = Folder::new("dies");
    generated(&a, &folder, "").await;
    let points = [
        "session opened",
        "amid a part:3",
        "after a commit:2",
        "all copied",
        "before subscribe",
        "subscribed",
        "verified",
    ];
    let points = crash_points(&points, &["amid a part:3"]);
    b.stop_agent();
    b.start_agent_to_die(points[0]);
    let op = until("the agent takes an order", PATIENCE, async || {
        let line = format!("snapshot apply node_b --detach -o json --input {}", folder.path());
        let outcome = a.steepctl(&line).outcome();
        if outcome.status == 0 { Ok(steep_tests::Operation::known(&b, &outcome)) } else { Err(outcome.to_string()) }
    })
    .await;
    for (index, point) in points.iter().enumerate() {
        b.agent_dies(point).await;
        on_a.write(10).await;
        match points.get(index + 1) {
            Some(next) => b.start_agent_to_die(next),
            None => b.start_agent(),
        }
    }
    op.completes().await;
    on_a.write(20).await;
    let accounts = [on_a.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &ODD_TABLES).await;
}
