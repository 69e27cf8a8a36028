//! The harness itself keeps its word: nodes come and go, writers know what they wrote, leftovers show.

use steep_tests::{Cluster, Ledger, PATIENCE, Stop, shop, until};

#[tokio::test]
async fn nodes_come_up_empty_and_answer() {
    let [a, b] = Cluster::of(2).servers_only().start().await;
    assert_eq!(a.id(), "node_a");
    assert_eq!(b.value::<String>("show wal_level").await, "logical");
    let before = a.inventory().await;
    a.sql(&shop::orders(100)).await;
    a.sql("select pg_create_logical_replication_slot('left', 'pgoutput')").await;
    let after = a.inventory().await;
    assert!(after.has("slot left") && after.has("100 rows in public.orders"), "{after:?}");
    assert_eq!(a.slots().await, ["left"]);
    a.sql("select pg_drop_replication_slot('left'); drop table orders, customers").await;
    a.inventory().await.is_as(&before);
    assert_eq!(b.inventory().await.since(&before), Vec::<String>::new());
}

#[tokio::test]
async fn writers_know_what_is_there_also_after_a_crash() {
    let [a] = Cluster::of(1).servers_only().start().await;
    let ledger = Ledger::on(&a, 100).await;
    let writers = ledger.writers(4, &a);
    writers.write(300).await;
    a.stop_postgres(Stop::Immediate);
    a.start_postgres();
    writers.write(300).await;
    let account = writers.stop().await;
    assert!(account.transactions() >= 600 && account.refusals.is_empty(), "{:?}", account.refusals);
    ledger.agrees(&[&a], &[account]).await;
}

#[tokio::test]
async fn writers_wait_for_tables_and_replication_is_seen_to_agree() {
    let [a, b] = Cluster::of(2).servers_only().start().await;
    let ledger = Ledger::on(&a, 10).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(50).await;
    assert_eq!(on_b.acknowledged(), 0, "there is nothing to write to on node_b");
    let account = on_a.stop().await;
    let conninfo = format!("host={} port=5432 user=postgres dbname=postgres", a.host().display());
    a.sql("create publication p for all tables").await;
    drop(on_b);
    b.sql(
        "create schema ledger;
         create table ledger.entries (key text primary key, amount bigint not null, body text);
         create table ledger.places (key text primary key, generation bigint not null);
         create table ledger.journal (writer text not null, seq bigint not null);",
    )
    .await;
    b.sql(&format!("create subscription s connection '{conninfo}' publication p")).await;
    ledger.agrees(&[&a, &b], std::slice::from_ref(&account)).await;
    b.holds_the_same_as(&a, "ledger.entries").await;
    b.sql("drop subscription s").await;
}

#[tokio::test]
async fn sessions_can_be_ended_from_outside() {
    let [a] = Cluster::of(1).servers_only().start().await;
    let client = a.connect().await;
    client.batch_execute("set application_name = 'victim'").await.expect("it answers");
    assert_eq!(a.terminate_backends("application_name = 'victim'").await, 1);
    until("the session is gone", PATIENCE, async || if client.is_closed() { Ok(()) } else { Err("open") }).await;
}
