//! No row is lost and none is doubled, whatever applications write on either node while one is made from the other.

use steep_tests::{Cluster, Ledger, NodeState::*, PATIENCE, shop, until};

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

#[tokio::test]
async fn an_application_that_locks_in_another_order_does_not_end_the_building_of_keys() {
    let [a, b] = Cluster::of(2).setting("deadlock_timeout", "3s").start().await;
    a.sql(&shop::orders(1_000)).await;
    b.hold_after("copy tables");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    let indexes = "select count(*) from pg_index where indrelid in ('orders'::regclass, 'customers'::regclass)";
    until("the tables have their indexes", PATIENCE, async || {
        let found: i64 = b.value(indexes).await;
        if found == 4 { Ok(()) } else { Err(found) }
    })
    .await;
    let application = b.connect().await;
    // It wins: only others look whether they are in a deadlock.
    let first = "set deadlock_timeout = '10min'; begin; insert into customers (name) values ('on b')";
    application.batch_execute(first).await.expect("customers may be written");
    b.let_go();
    let waiting = "select count(*) from pg_locks where relation = 'customers'::regclass and not granted
                    and mode = 'ShareRowExclusiveLock'";
    until("the foreign key waits for the application", PATIENCE, async || {
        if b.value::<i64>(waiting).await > 0 { Ok(()) } else { Err("nobody waits") }
    })
    .await;
    let second = "insert into orders (customer_id, total) values (1, 7); commit";
    application.batch_execute(second).await.expect("the application wins");
    op.completes().await;
    assert!(b.log().contains("snapshot.deadlock_lost"), "there was no deadlock to lose");
    for table in ["customers", "orders"] {
        b.holds_the_same_as(&a, table).await;
    }
    let keys =
        "select count(*) from pg_constraint where conrelid = 'orders'::regclass and contype = 'f' and convalidated";
    assert_eq!(b.value::<i64>(keys).await, 1);
}

#[tokio::test]
async fn a_row_that_cannot_go_back_ends_the_operation_with_its_cause() {
    let [a, b] = Cluster::of(2).start().await;
    for node in [&a, &b] {
        node.sql("create table t (id int primary key, v text)").await;
    }
    // Only here, so that the row is good on node_b.
    a.sql("alter table t add unique (v); insert into t values (1, 'one')").await;
    let before = [a.inventory().await, b.inventory().await];
    b.hold_after("copy tables");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    b.sql("insert into t values (2, 'one')").await;
    b.let_go();
    op.fails_with("STP-4201").await;
    let shown = op.shown().await.expect("the operation is known");
    let told = shown["operation"]["failure"]["message"].to_string();
    assert!(told.contains("steep_from_node_b on node_a"), "{told}");
    b.becomes(Failed).await;
    a.inventory().await.is_as(&before[0]);
    b.inventory().await.is_as(&before[1]);
}
