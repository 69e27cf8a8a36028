//! Direct initialization: one command, and node_b holds everything node_a holds, while both are written to.

use steep_tests::{Cluster, Ledger, NodeState::*, shop};

#[tokio::test]
async fn no_row_is_lost_or_doubled_while_both_nodes_are_written_to() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 5_000).await;
    a.sql(&shop::orders(20_000)).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(4, node));
    on_a.write(200).await;
    let op = b.steepctl("node start node_b --from node_a").operation();
    op.completes().await;
    b.becomes(Synchronized).await;
    on_a.write(100).await;
    on_b.write(100).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    b.holds_the_same_as(&a, "public.orders").await;
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
}

#[tokio::test]
async fn a_cancelled_copy_leaves_nothing_behind() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50_000)).await;
    let before = [a.inventory().await, b.inventory().await];
    let op = b.steepctl("node start node_b --from node_a --max-rate 1MB").operation();
    op.reaches("copy tables").await;
    b.steepctl("node cancel node_b").succeeds();
    b.becomes(Uninitialized).await;
    a.inventory().await.is_as(&before[0]);
    b.inventory().await.is_as(&before[1]);
}

#[tokio::test]
async fn a_target_with_rows_is_refused_with_the_next_command() {
    let [a, b] = Cluster::of(2).start().await;
    for node in [&a, &b] {
        node.sql(&shop::orders(100)).await;
    }
    b.steepctl("node start node_b --from node_a").fails_with("STP-2301");
}
