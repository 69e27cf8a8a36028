//! Nodes of different PostgreSQL versions work together as far as PostgreSQL allows, and say so where it does not.

use steep_tests::{Cluster, Ledger, Node, NodeState::*};

const START: &str = "node start node_b --from node_a";

/// Writers on both nodes while node_b is made from node_a; then both hold what the writers know.
async fn both_ways_under_writers(a: &Node, b: &Node) {
    let ledger = Ledger::on(a, 1_000).await;
    let [on_a, on_b] = [a, b].map(|node| ledger.writers(4, node));
    on_a.write(100).await;
    b.steepctl(START).operation().completes().await;
    b.becomes(Synchronized).await;
    on_a.write(50).await;
    on_b.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[a, b], &accounts).await;
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
}

#[tokio::test]
async fn a_16_and_an_18_replicate_both_ways() {
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).start().await;
    both_ways_under_writers(&a, &b).await;
}

#[tokio::test]
async fn an_18_is_copied_to_a_16_by_the_programs_of_18() {
    let [a, b] = Cluster::of(2).pg(&["18", "16"]).start().await;
    let before = [a.inventory().await, b.inventory().await];
    a.sql("create table one (id int primary key)").await;
    b.steepctl(START).fails_with("STP-2501");
    a.sql("drop table one").await;
    a.inventory().await.is_as(&before[0]);
    b.inventory().await.is_as(&before[1]);

    let line = |node: &Node| {
        let toml = std::fs::read_to_string(node.agent_toml()).expect("the agent is configured");
        toml.lines().find(|line| line.starts_with("bin_dir")).expect("it names the programs").to_owned()
    };
    let (old, new) = (line(&b), line(&a));
    b.reconfigure_agent(|toml| toml.replace(&old, &new));
    both_ways_under_writers(&a, &b).await;
}

#[tokio::test]
async fn a_15_is_copied_one_way_to_an_18_and_refused_both_ways() {
    let [a, b] = Cluster::of(2).pg(&["15", "18"]).start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    let before = [a.inventory().await, b.inventory().await];
    b.steepctl(START).fails_with("STP-2015");
    a.inventory().await.is_as(&before[0]);
    b.inventory().await.is_as(&before[1]);

    let on_a = ledger.writers(8, &a);
    on_a.write(100).await;
    b.steepctl(START).arg("--one-way").operation().completes().await;
    b.becomes(Synchronized).await;
    on_a.write(50).await;
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], std::slice::from_ref(&account)).await;
    assert!(account.refusals.is_empty(), "node_a's applications saw errors: {:?}", account.refusals);
    let back = "select count(*) from pg_subscription where subname like 'steep%'";
    assert_eq!(a.value::<i64>(back).await, 0, "a subscription on node_a for one way");
    assert_eq!(b.slots().await, Vec::<String>::new(), "a slot on node_b for one way");
}
