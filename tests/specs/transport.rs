//! QUIC between the agents, TCP where UDP is blocked, and what becomes of both when the network is cut.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use steep_tests::{Cluster, Ledger, Line, Node, NodeState, PATIENCE, reached_at, shop, until};

/// Where nobody listens.
const NOWHERE: &str = "127.0.0.1:1";
const START: &str = "node start node_b --from node_a";

async fn says(node: &Node, what: &str, within: Duration) {
    until(&format!("the log of {} says {what:?}", node.id()), within, async || {
        let log = node.log();
        if log.contains(what) { Ok(()) } else { Err(log.lines().last().unwrap_or_default().to_owned()) }
    })
    .await;
}

fn times(node: &Node, what: &str) -> usize {
    node.log().matches(what).count()
}

/// What `of` hears of `node`'s health, once it is `as_wanted`.
pub(crate) async fn health_becomes(of: &Node, node: &Node, as_wanted: fn(&str) -> bool, within: Duration) {
    until(&format!("{} thinks differently of {}", of.id(), node.id()), within, async || {
        let page = of.http("/healthz").1;
        let page: serde_json::Value = serde_json::from_str(&page).map_err(|error| format!("{error}: {page}"))?;
        let peer = page["peers"].as_array().into_iter().flatten().find(|peer| peer["node_id"] == node.id());
        let health = peer.and_then(|peer| peer["health"].as_str()).unwrap_or("unknown").to_owned();
        if as_wanted(&health) { Ok(()) } else { Err(page.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn agents_that_speak_tcp_alone_initialize_both_ways_and_open_no_udp_port() {
    let [a, b] = Cluster::of(2).mesh_toml("transport = \"tcp\"").start().await;
    for node in [&a, &b] {
        UdpSocket::bind(node.address()).expect("nobody uses the agent's UDP port");
    }
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(&shop::orders(20_000)).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(100).await;
    b.steepctl(START).operation().completes().await;
    b.becomes(NodeState::Synchronized).await;
    on_a.write(50).await;
    on_b.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    b.holds_the_same_as(&a, "public.orders").await;
    for node in [&a, &b] {
        assert!(!node.log().contains("STP-1230"), "{} was told to use TCP, and does not complain", node.id());
    }
}

#[tokio::test]
async fn one_side_that_can_dial_is_enough_in_either_direction() {
    for transport in ["quic", "tcp"] {
        let [a, b] = Cluster::of(2).mesh_toml(&format!("transport = {transport:?}")).start().await;
        // Nobody listens where node_a looks for node_b.
        reached_at([(&a, a.address()), (&b, NOWHERE)]).await;
        b.sql(&shop::orders(3_000)).await;
        health_becomes(&a, &b, |health| health != "unknown", PATIENCE).await;
        // The target cannot dial its source …
        a.steepctl("node start node_a --from node_b --one-way").succeeds();
        a.holds_the_same_as(&b, "orders").await;
        // … and another cluster of the same kind, the source its target.
        drop((a, b));
        let [a, b] = Cluster::of(2).mesh_toml(&format!("transport = {transport:?}")).start().await;
        reached_at([(&a, a.address()), (&b, NOWHERE)]).await;
        a.sql(&shop::orders(3_000)).await;
        health_becomes(&b, &a, |health| health != "unknown", PATIENCE).await;
        b.steepctl(START).succeeds();
        b.holds_the_same_as(&a, "orders").await;
    }
}

#[tokio::test]
async fn where_udp_is_blocked_tcp_takes_over_within_seconds_and_quic_comes_back_without_failing_a_stream() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(40_000)).await;
    let line = Line::between(&a, &b).await;
    health_becomes(&b, &a, |health| health != "unknown", PATIENCE).await;
    assert!(line.moved()[0] > 0, "they speak over UDP: {:?}", line.moved());

    line.block_udp();
    let began = Instant::now();
    says(&b, "STP-1230", Duration::from_secs(25)).await;
    health_becomes(&b, &a, |health| health != "unknown", Duration::from_secs(10)).await;
    health_becomes(&a, &b, |health| health != "unknown", Duration::from_secs(10)).await;
    eprintln!("TCP took over {:.1} s after UDP was blocked", began.elapsed().as_secs_f64());

    // A copy that begins over TCP, and goes on over it after QUIC has come back.
    let before = line.moved()[1];
    let op = b.steepctl(START).arg("--max-rate").arg("40kB").operation();
    op.reaches("copy tables").await;
    until("blocks travel over TCP", PATIENCE, async || match line.moved()[1] - before {
        moved if moved > 200_000 => Ok(()),
        moved => Err(moved),
    })
    .await;
    line.heal();
    let began = Instant::now();
    says(&b, "UDP works again", Duration::from_secs(150)).await;
    eprintln!("QUIC was back {:.1} s after UDP was open", began.elapsed().as_secs_f64());
    op.completes().await;
    b.holds_the_same_as(&a, "orders").await;
    for node in [&a, &b] {
        let told = times(node, "STP-1230");
        assert!(told <= 1, "{} says it once, not {told} times", node.id());
    }
}

#[tokio::test]
async fn agents_that_start_where_udp_is_blocked_speak_over_tcp_at_once() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(5_000)).await;
    let line = Line::between(&a, &b).await;
    line.block_udp();
    for node in [&a, &b] {
        node.stop_agent();
    }
    for node in [&a, &b] {
        node.start_agent();
    }
    let began = Instant::now();
    health_becomes(&b, &a, |health| health != "unknown", Duration::from_secs(15)).await;
    eprintln!("connected {:.1} s after the start", began.elapsed().as_secs_f64());
    b.steepctl(START).succeeds();
    b.holds_the_same_as(&a, "orders").await;
    assert!(b.log().contains("STP-1230") || a.log().contains("STP-1230"), "it is told");
}

/// A partition during the copy; both ends notice, and once it heals the copy goes on from what had landed.
async fn partition_amid_a_copy(cut: fn(&Line, &Node, &Node), transport: &str) {
    let [a, b] = Cluster::of(2)
        .mesh_toml(&format!("transport = {transport:?}"))
        .agent_toml("[copy]\npart_size = \"1MiB\"")
        .start()
        .await;
    a.sql(&shop::orders(60_000)).await;
    let line = Line::between(&a, &b).await;
    let op = b.steepctl(START).arg("--max-rate").arg("500kB").operation();
    let landed = "select table_name || part || copied_at from steep_repl.copied_parts order by 1";
    let before = until("a part lands", PATIENCE, async || {
        let parts = b.texts(landed).await;
        if parts.is_empty() { Err("none does") } else { Ok(parts) }
    })
    .await;
    cut(&line, &a, &b);
    let began = Instant::now();
    health_becomes(&b, &a, |health| health == "unknown", Duration::from_secs(30)).await;
    health_becomes(&a, &b, |health| health == "unknown", Duration::from_secs(30)).await;
    says(&b, "init.interrupted", Duration::from_secs(30)).await;
    eprintln!("it waits {:.1} s after the cut", began.elapsed().as_secs_f64());
    line.heal();
    op.completes().await;
    b.holds_the_same_as(&a, "orders").await;
    let after = b.texts(landed).await;
    assert!(before.iter().all(|part| after.contains(part)), "a part was copied again: {before:?}, {after:?}");
}

#[tokio::test]
async fn a_full_partition_amid_a_copy_is_waited_out() {
    partition_amid_a_copy(|line, _, _| line.cut(), "quic").await;
}

#[tokio::test]
async fn a_full_partition_amid_a_copy_over_tcp_is_waited_out_as_well() {
    partition_amid_a_copy(|line, _, _| line.cut(), "tcp").await;
}

#[tokio::test]
async fn a_one_way_partition_from_the_source_is_noticed_by_both_and_waited_out() {
    partition_amid_a_copy(|line, a, b| line.cut_from(a, b), "auto").await;
}

#[tokio::test]
async fn a_one_way_partition_from_the_target_is_noticed_by_both_and_waited_out() {
    partition_amid_a_copy(|line, a, b| line.cut_from(b, a), "auto").await;
}

/// A partition while the new node catches up with what was written meanwhile; nothing of that is lost or doubled.
async fn partition_amid_catching_up(cut: Cut) {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 500).await;
    let line = Line::between(&a, &b).await;
    let on_a = ledger.writers(2, &a);
    on_a.write(50).await;
    b.hold_after("subscribe");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    cut(&line, &a, &b);
    on_a.write(50).await;
    health_becomes(&b, &a, |health| health == "unknown", Duration::from_secs(30)).await;
    b.let_go();
    says(&b, "init.interrupted", Duration::from_secs(30)).await;
    on_a.write(50).await;
    line.heal();
    op.completes().await;
    let accounts = [on_a.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
}

#[tokio::test]
async fn a_full_partition_amid_catching_up_is_waited_out() {
    partition_amid_catching_up(|line, _, _| line.cut()).await;
}

#[tokio::test]
async fn a_one_way_partition_amid_catching_up_is_waited_out_as_well() {
    partition_amid_catching_up(|line, a, b| line.cut_from(a, b)).await;
}

/// Takes something away from the line between two nodes.
type Cut = fn(&Line, &Node, &Node);

#[tokio::test]
async fn replication_heals_by_itself_after_any_partition() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(2_000)).await;
    let line = Line::between(&a, &b).await;
    b.steepctl(START).succeeds();
    let cuts: [(&str, Cut); 3] = [
        ("a full one", |line, _, _| line.cut()),
        ("node_a not heard", |line, a, b| line.cut_from(a, b)),
        ("node_b not heard", |line, a, b| line.cut_from(b, a)),
    ];
    for (what, cut) in cuts {
        eprintln!("{what}");
        cut(&line, &a, &b);
        // Keys that do not collide: both count from what both hold.
        for (node, ahead) in [(&a, 1000), (&b, 1001)] {
            node.sql(&format!(
                "insert into orders (id, customer_id, total) select max(id) + {ahead}, 1, 5 from orders"
            ))
            .await;
        }
        health_becomes(&b, &a, |health| health == "unknown", Duration::from_secs(30)).await;
        health_becomes(&a, &b, |health| health == "unknown", Duration::from_secs(30)).await;
        line.heal();
        health_becomes(&b, &a, |health| health != "unknown", Duration::from_secs(30)).await;
        health_becomes(&a, &b, |health| health != "unknown", Duration::from_secs(30)).await;
        b.holds_the_same_as(&a, "orders").await;
    }
    for node in [&a, &b] {
        node.becomes(NodeState::Synchronized).await;
    }
}

#[tokio::test]
async fn an_address_that_changes_under_way_as_behind_a_nat_loses_nothing_and_nobody() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(&shop::orders(20_000)).await;
    let line = Line::between(&a, &b).await;
    health_becomes(&b, &a, |health| health != "unknown", PATIENCE).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(50).await;
    let op = b.steepctl(START).arg("--max-rate").arg("100kB").operation();
    op.reaches("copy tables").await;
    // While blocks travel, and again while the stream of changes does.
    line.forget_ports();
    op.completes().await;
    b.becomes(NodeState::Synchronized).await;
    on_b.write(50).await;
    line.forget_ports();
    on_a.write(50).await;
    on_b.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    b.holds_the_same_as(&a, "public.orders").await;
    for node in [&a, &b] {
        assert_eq!(times(node, "\"liveness\":\"dead\""), 0, "{} gave the other up", node.id());
    }
}
