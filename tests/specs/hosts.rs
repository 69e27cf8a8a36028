//! Agents on hosts of their own, whose network breaks in either direction or both.

use std::time::Duration;

use steep_tests::{Cluster, Hosts, Inventory, Ledger, Node, NodeState, PATIENCE, shop, until};

use crate::transport::health_becomes;

const NOTICED: Duration = Duration::from_secs(30);

/// Takes something away from a network of two.
type Cut = fn(&Hosts);

const CUTS: [(&str, Cut); 3] = [
    ("nothing passes", |hosts| hosts.cut()),
    ("node_a is not heard", |hosts| hosts.cut_from(0, 1)),
    ("node_b is not heard", |hosts| hosts.cut_from(1, 0)),
];

async fn lose_each_other(a: &Node, b: &Node) {
    health_becomes(a, b, |health| health == "unknown", NOTICED).await;
    health_becomes(b, a, |health| health == "unknown", NOTICED).await;
}

async fn find_each_other(a: &Node, b: &Node) {
    health_becomes(a, b, |health| health != "unknown", NOTICED).await;
    health_becomes(b, a, |health| health != "unknown", NOTICED).await;
}

#[tokio::test]
async fn writers_on_both_hosts_lose_nothing_whichever_way_the_network_breaks() {
    let Some(hosts) = Hosts::new(2) else { return };
    let [a, b] = Cluster::of(2).on(hosts.list()).start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(&shop::orders(2_000)).await;
    b.steepctl("node start node_b --from node_a").succeeds();
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    for (what, cut) in CUTS {
        eprintln!("{what}");
        on_a.write(20).await;
        on_b.write(20).await;
        cut(&hosts);
        // Applications notice nothing of it.
        on_a.write(50).await;
        on_b.write(50).await;
        lose_each_other(&a, &b).await;
        hosts.heal();
        find_each_other(&a, &b).await;
    }
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    for node in [&a, &b] {
        node.becomes(NodeState::Synchronized).await;
    }
}

#[tokio::test]
async fn a_copy_whose_network_breaks_in_one_direction_ends_without_a_row_lost_or_anything_left() {
    let Some(hosts) = Hosts::new(2) else { return };
    let [a, b] = Cluster::of(2).on(hosts.list()).start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(&shop::orders(20_000)).await;
    let before: [Inventory; 2] = [a.inventory().await, b.inventory().await];
    let on_a = ledger.writers(2, &a);
    let op = b.steepctl("node start node_b --from node_a --max-rate 60kB").operation();
    op.reaches("copy tables").await;
    hosts.cut_from(0, 1);
    lose_each_other(&a, &b).await;
    hosts.heal();
    find_each_other(&a, &b).await;
    if op.ends().await != "completed" {
        for (node, before) in [(&a, &before[0]), (&b, &before[1])] {
            until(&format!("{} holds what it held", node.id()), PATIENCE * 3, async || {
                let left = node.inventory().await.since(before);
                // Applications go on writing on the source.
                let left: Vec<_> = left.into_iter().filter(|line| !line.contains("rows in ledger.")).collect();
                if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
            })
            .await;
        }
        b.steepctl("node start node_b --from node_a").succeeds();
    }
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;
    b.holds_the_same_as(&a, "orders").await;
}
