//! Tables that went wrong are copied again while everything is written to, and nothing else notices.

use steep_tests::{Cluster, Ledger, Node, NodeState::*, PATIENCE, shop, until};

/// Does something to `node`'s rows that no other node hears of, as no application could.
async fn spoil(node: &Node, statements: &str) {
    node.sql("select pg_replication_origin_create('spoil')").await;
    node.sql("select pg_replication_origin_session_setup('spoil')").await;
    node.sql(&format!("begin; set local session_replication_role = replica; {statements}; commit")).await;
    node.sql("select pg_replication_origin_session_reset()").await;
    node.sql("select pg_replication_origin_drop('spoil')").await;
}

/// Rows missing, wrong, and too many.
const WRONG_ENTRIES: &str = "
    delete from ledger.entries where key in (select key from ledger.entries where key like 'start/%' limit 300);
    update ledger.entries set amount = -1
     where key in (select key from ledger.entries where key like 'start/%' limit 200);
    insert into ledger.entries select 'stray/' || n, n, 'nobody else has it' from generate_series(1, 50) n";

/// Nothing of a reinitialization is left on `node`.
async fn has_no_traces(node: &Node) {
    let traces = "select 'table ' || relname from pg_class where relname like 'stage\\_%'
                  union all select 'trigger ' || tgname from pg_trigger where tgname like 'steep%'
                  union all select 'function ' || proname from pg_proc where proname like 'steep_fence%'
                  union all select 'origin ' || roname from pg_replication_origin where roname like 'steep%'
                  union all select 'held ' || srrelid::regclass from pg_subscription_rel where srsublsn > '7FFFFFFF/0'
                  union all select 'disabled ' || subname from pg_subscription where not subenabled
                  union all select kind || ' ' || name from steep_repl.intents where state in ('planned', 'live')";
    until(&format!("nothing is left on {}", node.id()), PATIENCE, async || {
        let left = node.texts(traces).await;
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    })
    .await;
}

#[tokio::test]
async fn tables_are_copied_again_under_writes_while_others_replicate_and_a_cancel_changes_nothing() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 20_000).await;
    a.sql(&shop::orders(1_000)).await;
    a.sql("create table beats (n bigint generated always as identity primary key, at timestamptz default now())").await;
    b.steepctl("node start node_b --from node_a --one-way").operation().completes().await;
    let slots = a.slots().await;
    spoil(&b, WRONG_ENTRIES).await;
    let on_a = ledger.writers(4, &a);
    on_a.write(100).await;
    let wrong = b.value::<i64>("select count(*) from ledger.entries where key like 'stray/%'").await;
    assert_eq!(wrong, 50);

    // Nothing is done unasked, and what would be done is shown.
    b.steepctl("node reinit node_b --tables ledger.entries").fails_with("STP-5009");
    b.steepctl("node reinit node_b --tables ledger.entries --confirm node_a").fails_with("STP-5009");
    b.steepctl("node reinit node_b --tables ledger.entries --source node_b --confirm node_b").fails_with("STP-3301");
    b.steepctl("node reinit node_b --tables ledger.nothing --confirm node_b").fails_with("STP-2208");
    let shown = a.steepctl("node reinit node_b --tables customers --dry-run").succeeds();
    for word in ["node_a (auto", "public.customers", "5 more of its tables", "public.orders orders_customer_id_fkey"] {
        assert!(shown.stdout.contains(word), "{word}: {shown}");
    }

    // A cancelled one leaves the table as it was, wrong rows and all, with every change since.
    let op = b.steepctl("node reinit node_b --tables ledger.entries --confirm node_b --max-rate 200KB").operation();
    op.reaches("copy tables").await;
    on_a.write(100).await;
    b.steepctl("node cancel node_b").succeeds();
    b.becomes(Synchronized).await;
    assert_eq!(b.value::<i64>("select count(*) from ledger.entries where key like 'stray/%'").await, 50);
    has_no_traces(&b).await;
    assert_eq!(a.slots().await, slots);

    // While it runs, readers never see an empty table and others are not held up.
    let op = a.steepctl("node reinit node_b --tables ledger.entries --confirm node_b --max-rate 1MB").operation();
    op.reaches("copy tables").await;
    a.sql("insert into beats default values").await;
    b.holds_the_same_as(&a, "beats").await;
    assert!(b.value::<i64>("select count(*) from ledger.entries").await > 19_000, "readers see the old rows");
    assert_eq!(b.state().await, Ok(Reinitializing));
    op.completes().await;
    b.becomes(Synchronized).await;
    on_a.write(100).await;
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;
    for table in ["ledger.entries", "ledger.places", "ledger.journal", "orders", "customers", "beats"] {
        b.holds_the_same_as(&a, table).await;
    }
    has_no_traces(&b).await;
    assert_eq!(a.slots().await, slots, "the subscription reads its own slot again");
}

/// How many changes a peer that filters by origin, as all do that replicate both ways, would be sent from a slot of the
/// spec's own.
async fn sent_to_peers(node: &Node) -> i64 {
    // What was applied may not be on disk yet, and only what is can be seen.
    node.sql("select pg_logical_emit_message(true, 'spec', '')").await;
    node.value(
        "select count(*) from pg_logical_slot_peek_binary_changes('probe', null, null, 'proto_version', '4',
                'publication_names', 'steep', 'origin', 'none') c
          where get_byte(data, 0) in (ascii('I'), ascii('U'), ascii('D'), ascii('T'))",
    )
    .await
}

#[tokio::test]
async fn a_pair_that_replicates_both_ways_loses_nothing_and_sends_nothing_back() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 5_000).await;
    a.sql(&shop::orders(2_000)).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;

    // Orders are written by nobody: whatever of them went out again would come from the copy.
    spoil(&b, "delete from orders where id % 2 = 0").await;
    b.sql("select pg_create_logical_replication_slot('probe', 'pgoutput')").await;
    b.steepctl("node reinit node_b --tables orders,customers --confirm node_b").operation().completes().await;
    b.holds_the_same_as(&a, "orders").await;
    assert_eq!(sent_to_peers(&b).await, 0);
    b.sql("select pg_drop_replication_slot('probe')").await;
    assert_eq!(a.count("orders").await, 2_000);

    spoil(&b, WRONG_ENTRIES).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(3, node));
    on_a.write(100).await;
    on_b.write(100).await;
    let op = b.steepctl("node reinit node_b --schema ledger --confirm node_b --max-rate 500KB").operation();
    op.reaches("copy tables").await;
    on_a.write(50).await;
    // Whoever writes on node_b meanwhile is told why that cannot be; others can.
    let refused = b.try_sql("update ledger.entries set amount = 0 where key = 'start/1'").await;
    let refused = refused.expect_err("the tables are fenced").as_db_error().expect("by PostgreSQL").message().to_owned();
    assert!(refused.contains("ledger.entries is being copied again from node_a"), "{refused}");
    b.sql("insert into customers (id, name) values (1000000, 'from b')").await;
    op.completes().await;
    on_a.write(50).await;
    on_b.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
    ledger.agrees(&[&a, &b], &accounts).await;
    for table in ["orders", "customers"] {
        b.holds_the_same_as(&a, table).await;
    }
    has_no_traces(&b).await;
    for node in [&a, &b] {
        let errors: i64 = node.value("select sum(apply_error_count)::bigint from pg_stat_subscription_stats").await;
        assert_eq!(errors, 0, "{}: errors while applying", node.id());
    }
}
