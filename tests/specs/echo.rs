//! Nothing comes back: rows that were loaded are not sent again, and a change is made once on each node.

use std::collections::BTreeMap;

use steep_tests::{Cluster, Node, NodeState::*, shop};

const START: &str = "node start node_b --from node_a";

/// A slot of the spec's own, to see what the node's WAL says from here on.
async fn probe(node: &Node) {
    node.sql("select pg_create_logical_replication_slot('probe', 'pgoutput')").await;
}

/// How many inserts, updates, deletes and truncates of `publication` the probe sees; with `origin` none, only those
/// that a subscription for two ways would be sent.
async fn changes(node: &Node, publication: &str, origin: &str) -> BTreeMap<String, i64> {
    // What was applied may not be on disk yet, and only what is can be seen.
    node.sql("select pg_logical_emit_message(true, 'spec', '')").await;
    let query = format!(
        "select convert_from(substring(data for 1), 'sql_ascii'), count(*)
           from pg_logical_slot_peek_binary_changes('probe', null, null, 'proto_version', '4',
                'publication_names', '{publication}', 'origin', '{origin}') c
          where get_byte(data, 0) in (ascii('I'), ascii('U'), ascii('D'), ascii('T'))
          group by 1"
    );
    node.rows(&query).await.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn counted(counts: &[(&str, i64)]) -> BTreeMap<String, i64> {
    counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
}

/// A row written on each node has reached the other: all that was written before has been there too.
async fn sent_both_ways(nodes: [&Node; 2], round: &str) {
    for node in nodes {
        node.sql(&format!("insert into marks values ('{} {round}')", node.id())).await;
    }
    nodes[0].holds_the_same_as(nodes[1], "marks").await;
}

#[tokio::test]
async fn the_rows_that_were_loaded_are_not_sent_back() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(3_000)).await;
    a.sql("create table marks (name text primary key)").await;
    // Before the load, as the slot for the way back.
    b.sql("create publication spec").await;
    probe(&b).await;
    b.hold_after("create tables");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    probe(&a).await;
    b.sql("alter publication spec set table customers, orders, marks").await;
    b.let_go();
    op.completes().await;
    sent_both_ways([&a, &b], "done").await;

    let rows = b.count("orders").await + b.count("customers").await;
    assert_eq!(rows, 3_301);
    // What was loaded, and node_a's mark, which was replicated; and node_b's own mark alone goes out.
    assert_eq!(changes(&b, "spec", "any").await, counted(&[("I", rows + 2)]));
    assert_eq!(changes(&b, "spec", "none").await, counted(&[("I", 1)]));
    // The walsender of the way back had no more to decode than that: single rows, not thousands.
    let bytes: i64 = b
        .value(
            "select coalesce(sum(total_bytes), 0)::bigint from pg_stat_replication_slots where slot_name like 'steep%'",
        )
        .await;
    assert!(bytes < 100_000, "the walsender decoded {bytes} bytes");
    // Nor did anything arrive on node_a but that mark.
    assert_eq!(changes(&a, "steep", "any").await, counted(&[("I", 2)]));
}

#[tokio::test]
async fn rows_that_were_emptied_for_the_load_are_not_deleted_on_the_source() {
    let [a, b] = Cluster::of(2).start().await;
    for node in [&a, &b] {
        node.sql(&shop::orders(500)).await;
        node.sql("create table marks (name text primary key)").await;
    }
    b.hold_after("open session");
    let op = b.steepctl(START).arg("--force").arg("--confirm").arg("node_b").operation();
    b.is_held().await;
    probe(&a).await;
    b.let_go();
    op.completes().await;
    sent_both_ways([&a, &b], "done").await;
    assert_eq!(changes(&a, "steep", "any").await, counted(&[("I", 2)]));
    assert_eq!(a.count("orders").await, 500);
    b.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn a_change_is_made_once_on_the_other_node_and_does_not_bounce() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    a.sql("create table marks (name text primary key)").await;
    b.steepctl(START).operation().completes().await;
    b.becomes(Synchronized).await;
    probe(&a).await;
    probe(&b).await;
    a.sql("update orders set notes = 'from a' where id = 1; delete from orders where id = 2").await;
    b.sql("update orders set notes = 'from b' where id = 3; update orders set id = 2000000 where id = 4").await;
    // Were something sent back, each round would carry it on.
    for round in ["one", "two", "three"] {
        sent_both_ways([&a, &b], round).await;
    }
    for node in [&a, &b] {
        let all = counted(&[("D", 1), ("I", 6), ("U", 3)]);
        assert_eq!(changes(node, "steep", "any").await, all, "{}: each change once", node.id());
    }
    assert_eq!(changes(&a, "steep", "none").await, counted(&[("D", 1), ("I", 3), ("U", 1)]));
    assert_eq!(changes(&b, "steep", "none").await, counted(&[("I", 3), ("U", 2)]));
    for node in [&a, &b] {
        let errors: i64 = node.value("select sum(apply_error_count)::bigint from pg_stat_subscription_stats").await;
        assert_eq!(errors, 0, "{}: errors while applying", node.id());
    }
}
