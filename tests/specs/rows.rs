//! No row is lost and none is doubled, whatever applications write on either node while one is made from the other.

use steep_tests::{Cluster, Ledger, NodeState::*};

const START: &str = "node start node_b --from node_a";

#[tokio::test]
async fn no_row_is_lost_or_doubled_under_eight_writers_on_each_node() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 10_000).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(8, node));
    on_a.write(300).await;
    let before = on_a.acknowledged();
    let op = b.steepctl(START).operation();
    op.completes().await;
    b.becomes(Synchronized).await;
    assert!(on_a.acknowledged() > before, "nobody wrote while node_b was made");
    on_a.write(300).await;
    on_b.write(300).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
    for reason in accounts[1].refusals.keys() {
        // A table is written before its key is built; until then PostgreSQL cannot say which row is meant.
        assert!(reason.contains("does not have a replica identity"), "node_b's applications saw: {reason}");
    }
}

#[tokio::test]
async fn what_is_written_into_a_table_of_the_target_from_its_first_moment_on_reaches_the_source() {
    for step in ["create tables", "copy tables", "subscribe"] {
        let [a, b] = Cluster::of(2).start().await;
        let ledger = Ledger::on(&a, 100).await;
        let on_b = ledger.writers(2, &b);
        b.hold_after(step);
        let op = b.steepctl(START).operation();
        b.is_held().await;
        on_b.write(20).await;
        b.let_go();
        op.completes().await;
        ledger.agrees(&[&a, &b], &[on_b.stop().await]).await;
    }
}
