//! How rows are copied can be chosen: by the agents, or by PostgreSQL's own first copy, which is looked after like any other.

use std::time::Duration;

use steep_tests::{Cluster, Inventory, Ledger, Node, NodeState::*, Operation, PATIENCE, shop, until};

const START: &str = "node start node_b --from node_a --method snapshot";

/// The servers reach each other by themselves.
fn without_the_agents(nodes: [&Node; 2]) {
    for node in nodes {
        node.reconfigure_agent(|toml| toml.replace("[replication]\n", "[replication]\nlink = \"direct\"\n"));
    }
}

/// Nothing is left on either node but what replication both ways needs: no slot of a worker, nothing to be undone.
async fn only_replication_is_left(nodes: [&Node; 2]) {
    for node in nodes {
        assert_eq!(node.slots().await.len(), 1, "{}: {:?}", node.id(), node.slots().await);
        let left = "steep_repl.intents where state in ('planned', 'live')";
        assert_eq!(node.count(left).await, 0, "{}", node.id());
        let errors = "select sum(apply_error_count + sync_error_count)::bigint from pg_stat_subscription_stats";
        assert_eq!(node.value::<i64>(errors).await, 0, "{}: errors of a subscription", node.id());
    }
}

async fn natively_under_writers(a: &Node, b: &Node) {
    let ledger = Ledger::on(a, 3_000).await;
    a.sql(&shop::orders(5_000)).await;
    let [on_a, on_b] = [a, b].map(|node| ledger.writers(4, node));
    on_a.write(100).await;
    let op = b.steepctl(START).operation();
    op.completes().await;
    b.becomes(Synchronized).await;
    on_a.write(50).await;
    on_b.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[a, b], &accounts).await;
    b.holds_the_same_as(a, "public.orders").await;
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
    only_replication_is_left([a, b]).await;
    let indexes = "select indexdef from pg_indexes where schemaname in ('public', 'ledger') order by 1";
    assert_eq!(a.texts(indexes).await, b.texts(indexes).await);
    let shown = op.shown().await.expect("it is shown");
    assert_eq!(shown["operation"]["method"], "snapshot", "{shown:#}");
}

#[tokio::test]
async fn postgresqls_own_copy_loses_and_doubles_no_row_while_both_nodes_are_written_to() {
    let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "200ms").start().await;
    natively_under_writers(&a, &b).await;
    let log = b.log();
    for told in ["init.table_started", "init.table_complete"] {
        assert!(log.contains(told), "{told} was not told");
    }
    let rows = "select (body ->> 'rows_copied')::bigint from steep_repl.operation_events
                 where event = 'init.table_complete' and body ->> 'table' = 'public.orders'";
    assert!(b.value::<i64>(rows).await >= 5_000, "the rows of orders were counted");
}

#[tokio::test]
async fn postgresqls_own_copy_goes_from_a_16_to_an_18_without_the_agents_in_between() {
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).setting("wal_retrieve_retry_interval", "200ms").start().await;
    without_the_agents([&a, &b]);
    natively_under_writers(&a, &b).await;
}

/// A table of the source.
const SLOW: &str = "
    create table slow (id int primary key, text text);
    insert into slow select n, repeat('x', 100) from generate_series(1, 1000) n;";

/// On the target, rows of it arrive only while nobody holds the advisory lock.
const WAITS: &str = "
    create function waits() returns trigger language plpgsql as
      $$ begin perform pg_advisory_lock_shared(42); perform pg_advisory_unlock_shared(42); return new; end $$;";

/// Begins an initialization, and waits until a worker of PostgreSQL is amid the copy of `slow`, with its slot on the source.
/// The copy goes on when the connection is dropped.
async fn amid_the_copy(a: &Node, b: &Node) -> (Operation, tokio_postgres::Client) {
    b.hold_after("build indexes");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    b.sql(
        "create trigger waits before insert on slow for each row execute function waits();
         alter table slow enable always trigger waits",
    )
    .await;
    let locked = b.connect().await;
    locked.batch_execute("select pg_advisory_lock(42)").await.expect("a lock");
    b.let_go();
    until("a worker is amid the copy", PATIENCE, async || {
        let waits = b.count("pg_locks where locktype = 'advisory' and not granted").await;
        let slots = a.slots().await;
        let has_slot = slots.iter().any(|slot| slot.contains("_sync_"));
        if waits > 0 && has_slot { Ok(()) } else { Err(format!("{waits} wait, slots {slots:?}")) }
    })
    .await;
    (op, locked)
}

#[tokio::test]
async fn a_cancel_amid_postgresqls_own_copy_leaves_both_nodes_as_they_were() {
    for link in ["mesh", "direct"] {
        let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "200ms").start().await;
        if link == "direct" {
            without_the_agents([&a, &b]);
        }
        a.sql(SLOW).await;
        a.sql(&shop::orders(500)).await;
        b.sql(WAITS).await;
        let before: [Inventory; 2] = [a.inventory().await, b.inventory().await];
        let (op, locked) = amid_the_copy(&a, &b).await;
        let listed = a.steepctl("slot list node_a -o json").succeeds().json();
        assert!(!listed.to_string().contains("orphan"), "no slot that is in use is an orphan: {listed:#}");
        b.steepctl("node cancel node_b").succeeds();
        assert_eq!(op.ends().await, "cancelled", "{link}");
        drop(locked);
        b.becomes(Uninitialized).await;
        for (node, before) in [&a, &b].into_iter().zip(&before) {
            let left = node.inventory().await.since(before);
            assert!(left.is_empty(), "{link}: {} is not as before:\n{}", node.id(), left.join("\n"));
            assert_eq!(node.slots().await, Vec::<String>::new(), "{link}: {} keeps a slot", node.id());
        }
    }
}

#[tokio::test]
async fn a_table_that_postgresql_cannot_copy_is_named_with_its_cause_and_ends_the_operation() {
    let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "500ms").start().await;
    a.sql(&shop::orders(200)).await;
    a.sql("create table clash (id int primary key); insert into clash values (1), (2)").await;
    let before: [Inventory; 2] = [a.inventory().await, b.inventory().await];
    b.hold_after("build indexes");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    b.sql("insert into clash values (2)").await;
    b.let_go();
    op.fails_with("STP-3502").await;
    let shown = op.shown().await.expect("it is shown");
    let failure = shown["operation"]["failure"].to_string();
    for word in ["public.clash", "written on node_b", "--method direct"] {
        assert!(failure.contains(word), "{word:?} is not in {failure}");
    }
    let log = b.log();
    let told = log.lines().find(|line| line.contains("init.table_failed")).expect("the first error was told");
    assert!(told.contains("public.clash"), "{told}");
    for (node, before) in [&a, &b].into_iter().zip(&before) {
        let left = node.inventory().await.since(before);
        assert!(left.is_empty(), "{} is not as before:\n{}", node.id(), left.join("\n"));
        assert_eq!(node.slots().await, Vec::<String>::new(), "{} keeps a slot", node.id());
    }
}

#[tokio::test]
async fn postgresqls_own_copy_is_waited_for_while_an_agent_is_away() {
    let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "200ms").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(SLOW).await;
    let on_a = ledger.writers(2, &a);
    b.sql(WAITS).await;
    let (op, locked) = amid_the_copy(&a, &b).await;
    b.kill_agent();
    on_a.write(20).await;
    b.start_agent();
    drop(locked);
    op.completes().await;
    on_a.write(20).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await]).await;
    b.holds_the_same_as(&a, "slow").await;
    // PostgreSQL's workers met the agent's absence as errors, which did not count.
    for node in [&a, &b] {
        assert_eq!(node.slots().await.len(), 1, "{}: {:?}", node.id(), node.slots().await);
    }
}

#[tokio::test]
async fn a_third_node_is_not_joined_by_postgresqls_own_copy() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(&shop::orders(100)).await;
    b.steepctl("node start node_b --from node_a").succeeds();
    let before = c.inventory().await;
    let refused = c.steepctl("node start node_c --from node_a --method snapshot").fails_with("STP-3501");
    assert!(refused.to_string().contains("node_b"), "{refused}");
    assert!(refused.to_string().contains("--method direct"), "{refused}");
    c.inventory().await.is_as(&before);
    let planned = c.steepctl("node start node_c --from node_a --dry-run").succeeds();
    assert!(planned.to_string().contains("direct (more than two nodes"), "{planned}");
    // One way everything comes from the source, wherever it was written.
    c.steepctl("node start node_c --from node_a --method snapshot --one-way").operation().completes().await;
    c.becomes(Synchronized).await;
    c.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn auto_says_which_method_it_takes_and_why() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\nsnapshot_above = \"100KiB\"").start().await;
    a.sql("create table few (id int primary key); insert into few values (1)").await;
    let planned = b.steepctl("node start node_b --from node_a --dry-run").succeeds();
    assert!(planned.to_string().contains("direct (the agents reach each other"), "{planned}");
    a.sql(&shop::orders(5_000)).await;
    let planned = b.steepctl("node start node_b --from node_a --dry-run").succeeds();
    assert!(planned.to_string().contains("snapshot (") && planned.to_string().contains("snapshot_above"), "{planned}");
    let asked = b.steepctl("node start node_b --from node_a --method direct --dry-run").succeeds();
    assert!(asked.to_string().contains("direct") && !asked.to_string().contains("direct ("), "{asked}");
    let op = b.steepctl("node start node_b --from node_a").operation();
    op.completes().await;
    let chosen = b.log().lines().find(|line| line.contains("init.method_chosen")).map(str::to_owned);
    assert!(chosen.expect("it was told").contains("method snapshot"), "which, in the operation's first lines");
    tokio::time::timeout(Duration::from_secs(60), b.holds_the_same_as(&a, "orders")).await.expect("the same rows");
}

#[tokio::test]
async fn large_tables_are_left_to_a_backup_made_by_hand_where_the_target_says_so() {
    let large = "[copy]\nlarge_table_threshold = \"100KiB\"\nlarge_table_method = \"pg_dump\"";
    let [a, b] = Cluster::of(2).agent_toml(large).start().await;
    a.sql(&shop::orders(5_000)).await;
    let before = b.inventory().await;
    let refused = b.steepctl("node start node_b --from node_a").fails_with("STP-3503");
    for word in ["public.orders", "steepctl node prepare node_a --for pg_dump --target node_b", "--method direct"] {
        assert!(refused.to_string().contains(word), "{word:?} is not in {refused}");
    }
    b.inventory().await.is_as(&before);
    b.steepctl("node start node_b --from node_a --method direct --dry-run").succeeds();
}
