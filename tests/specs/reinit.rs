//! Tables that went wrong are copied again while everything is written to, and nothing else notices.

use steep_tests::{Cluster, Ledger, Node, NodeState::*, Operation, PATIENCE, Stop, shop, until};

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
pub(crate) async fn has_no_traces(node: &Node) {
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
    let ledger = Ledger::on(&a, 5_000).await;
    a.sql(&shop::orders(1_000)).await;
    let others: Vec<String> = (1..=20).map(|n| format!("beats_{n}")).collect();
    for other in &others {
        let columns = "n bigint generated always as identity primary key, at timestamptz default now()";
        a.sql(&format!("create table {other} ({columns})")).await;
    }
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
    for word in ["node_a (auto", "public.customers", "24 more of its tables", "public.orders orders_customer_id_fkey"] {
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
    let op = a.steepctl("node reinit node_b --tables ledger.entries --confirm node_b --max-rate 600KB").operation();
    op.reaches("copy tables").await;
    for other in &others {
        a.sql(&format!("insert into {other} default values")).await;
    }
    for other in &others {
        b.holds_the_same_as(&a, other).await;
    }
    assert!(b.value::<i64>("select count(*) from ledger.entries").await > 4_000, "readers see the old rows");
    assert_eq!(b.state().await, Ok(Reinitializing));
    op.completes().await;
    b.becomes(Synchronized).await;
    on_a.write(100).await;
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;
    let all = ["ledger.entries", "ledger.places", "ledger.journal", "orders", "customers"];
    for table in all.into_iter().chain(others.iter().map(String::as_str)) {
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
    let shown = a.steepctl("node reinit node_b --tables orders,customers --dry-run").succeeds();
    for word in ["1,000 fewer on node_b", "public.orders orders_customer_id_fkey to public.customers"] {
        assert!(shown.stdout.contains(word), "{word}: {shown}");
    }
    let shown = b.steepctl("node reinit node_b --tables orders,customers --dry-run -o json").succeeds().json();
    let counted = |name: &str| {
        let tables = shown["tables"].as_array().expect("tables").iter();
        let table = tables.clone().find(|table| table["table"]["name"] == name).expect("it is listed").clone();
        (table["target_rows"].clone(), table["source_rows"].clone())
    };
    assert_eq!(counted("orders"), (1_000.into(), 2_000.into()), "{shown:#}");
    let (here, there) = counted("customers");
    assert_eq!(here, there, "{shown:#}");
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
    let refused = b.try_sql("insert into ledger.entries values ('late', 1, null)").await;
    let refused =
        refused.expect_err("the tables are fenced").as_db_error().expect("by PostgreSQL").message().to_owned();
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

    // All of it, from the beginning.
    spoil(&b, "delete from customers where id = 1").await;
    let shown = b.steepctl("node reinit node_b --full --dry-run").succeeds();
    assert!(shown.stdout.contains("DELETES") && shown.stdout.contains("public.orders"), "{shown}");
    b.steepctl("node reinit node_b --full --confirm node_b").succeeds();
    assert_eq!(b.state().await, Ok(Synchronized));
    b.sql("insert into customers (id, name) values (1000001, 'from b again')").await;
    a.holds_the_same_as(&b, "customers").await;
}

#[tokio::test]
async fn whoever_dies_meanwhile_it_is_taken_back_or_finished_and_the_others_go_on() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql("create table beats (n bigint primary key)").await;
    b.steepctl("node start node_b --from node_a --one-way").operation().completes().await;
    let slots = a.slots().await;
    let again = "node reinit node_b --tables ledger.entries,ledger.places --confirm node_b";
    spoil(&b, WRONG_ENTRIES).await;
    let stray = "select count(*) from ledger.entries where key like 'stray/%'";
    let on_a = ledger.writers(3, &a);
    on_a.write(50).await;

    // The tables stand still, and hold their old rows: when it is called off they get all they missed.
    b.hold_after("hold tables");
    let op = b.steepctl(again).operation();
    b.is_held().await;
    on_a.write(50).await;
    a.sql("insert into ledger.entries values ('spec/1', 1, null); insert into beats values (1)").await;
    b.holds_the_same_as(&a, "beats").await;
    assert_eq!(b.value::<i64>("select count(*) from ledger.entries where key = 'spec/1'").await, 0);
    b.steepctl("node cancel node_b").succeeds();
    b.let_go();
    b.becomes(Synchronized).await;
    assert_eq!(op.ends().await, "cancelled");
    until("the old rows have what they missed", PATIENCE, async || {
        match b.value::<i64>("select count(*) from ledger.entries where key = 'spec/1'").await {
            1 => Ok(()),
            none => Err(none.to_string()),
        }
    })
    .await;
    assert_eq!(b.value::<i64>(stray).await, 50, "and they are the old ones");
    a.sql("delete from ledger.entries where key = 'spec/1'").await;
    has_no_traces(&b).await;
    assert_eq!(a.slots().await, slots);

    // The agents of both die and come back: the source's session is still there, and what was begun goes on.
    for died in [&b, &a] {
        spoil(&b, "insert into ledger.entries select 'stray/' || n, n, '' from generate_series(1, 5) n on conflict do nothing").await;
        b.hold_after("switch tables");
        let op = b.steepctl(again).operation();
        b.is_held().await;
        on_a.write(50).await;
        died.kill_agent();
        died.start_agent();
        if died.id() == a.id() {
            b.let_go();
        }
        op.completes().await;
        b.becomes(Synchronized).await;
        has_no_traces(&b).await;
        until("the source has its slots of before", PATIENCE, async || {
            let now = a.slots().await;
            if now == slots { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        on_a.write(50).await;
        assert_eq!(b.value::<i64>(stray).await, 0);
    }

    // What the new rows still need is lost with the slot made for them: they stand still, and the node says so.
    b.hold_after("switch tables");
    let op = b.steepctl(again).operation();
    b.is_held().await;
    a.kill_agent();
    for slot in a.slots().await.iter().filter(|slot| !slots.contains(slot)) {
        a.sql(&format!("select pg_drop_replication_slot('{slot}')")).await;
    }
    a.start_agent();
    b.let_go();
    assert_eq!(op.ends().await, "failed");
    b.becomes(Diverged).await;
    until("node_b says what to do", PATIENCE, async || {
        let shown = b.steepctl("node show node_b").succeeds();
        let hint = "steepctl node reinit node_b --tables ledger.entries,ledger.places";
        if shown.stdout.contains("STP-4301") && shown.stdout.contains(hint) { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    a.sql("insert into beats values (1000)").await;
    b.holds_the_same_as(&a, "beats").await;

    // From there, as from any table a subscription cannot get over.
    b.sql("insert into beats values (2000)").await;
    a.sql("insert into beats values (2000), (2001)").await;
    until("node_b's subscription fails", PATIENCE, async || {
        match b.value::<i64>("select sum(apply_error_count)::bigint from pg_stat_subscription_stats").await {
            0 => Err("no error yet"),
            _ => Ok(()),
        }
    })
    .await;
    let again = "node reinit node_b --tables ledger.entries,ledger.places,beats --confirm node_b";
    b.steepctl(again).operation().completes().await;
    b.becomes(Synchronized).await;
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;
    b.holds_the_same_as(&a, "beats").await;
    has_no_traces(&b).await;
}

#[tokio::test]
async fn in_place_and_in_a_mesh_of_three_it_is_as_exact() {
    let [a, b, c] = Cluster::of(3).start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(&shop::orders(1_000)).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    c.steepctl("node start node_c --from node_a").operation().completes().await;
    let slots = [a.slots().await, b.slots().await];
    spoil(&c, WRONG_ENTRIES).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(30).await;
    let again = "node reinit node_c --schema ledger --source node_a --confirm node_c";
    c.steepctl(again).operation().completes().await;
    on_b.write(30).await;
    spoil(&c, WRONG_ENTRIES).await;
    c.steepctl(again).arg("--in-place").operation().completes().await;
    for writers in [&on_a, &on_b] {
        writers.write(30).await;
    }
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
    has_no_traces(&c).await;
    assert_eq!([a.slots().await, b.slots().await], slots);

    // Tables that refer to one that is copied again are left alone, and what then refers to nothing is told.
    spoil(&c, "insert into customers (id, name) values (7000, 'only here'); insert into orders (customer_id, total) values (7000, 1)").await;
    let op =
        c.steepctl("node reinit node_c --tables customers --source node_b --confirm node_c --in-place").operation();
    op.fails_with("STP-4302").await;
    c.holds_the_same_as(&a, "customers").await;
    assert_eq!((c.count("orders").await, a.count("orders").await), (1_001, 1_000));
    assert_eq!(c.state().await, Ok(Synchronized));
    c.steepctl("node reinit node_c --tables orders --source node_b --confirm node_c").operation().completes().await;
    c.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn a_failed_node_is_healed_where_it_has_rows_and_told_to_be_started_where_it_never_had_any() {
    let [a, b, c] = Cluster::of(3).start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    // Nothing was ever copied to this one.
    c.fail_after("create tables");
    c.steepctl("node start node_c --from node_a --one-way").fails_with("STP-5006");
    c.becomes(Failed).await;
    for what in ["--full", "--tables ledger.entries", "--schema ledger --source node_a"] {
        let told = c.steepctl(&format!("node reinit node_c {what} --confirm node_c")).fails_with("STP-3301");
        assert!(told.stderr.contains("steepctl node start node_c --from node_a"), "{told}");
    }

    // This one replicates, but its last operation failed at its very end, as when PostgreSQL goes away there.
    b.steepctl("node start node_b --from node_a --one-way").operation().completes().await;
    let fails = async || {
        for state in ["diverged", "failed"] {
            b.sql(&format!("update steep_repl.nodes set init_state = '{state}' where node_id = 'node_b'")).await;
        }
        b.becomes(Failed).await;
    };
    fails().await;
    spoil(&b, WRONG_ENTRIES).await;
    let on_a = ledger.writers(2, &a);
    on_a.write(50).await;
    let again = "node reinit node_b --tables ledger.entries --confirm node_b";
    let op = b.steepctl(&format!("{again} --max-rate 100KB")).operation();
    op.reaches("copy tables").await;
    b.steepctl("node cancel node_b").succeeds();
    assert_eq!(op.ends().await, "cancelled");
    b.becomes(Failed).await;
    b.steepctl(again).operation().completes().await;
    b.becomes(Synchronized).await;
    has_no_traces(&b).await;
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;

    // All of it; and once more, as the second half of that fails.
    fails().await;
    b.fail_after("copy tables");
    b.steepctl("node reinit node_b --full --confirm node_b").fails_with("STP-5006");
    b.becomes(Failed).await;
    assert_eq!(b.count("pg_subscription").await, 0);
    let told = b.steepctl(again).fails_with("STP-3301");
    assert!(told.stderr.contains("steepctl node reinit node_b --full"), "{told}");
    let shown = b.steepctl("node reinit node_b --full --dry-run").succeeds();
    assert!(shown.stdout.contains("node_a (auto: as last time), one way; node_b is failed"), "{shown}");
    b.steepctl("node reinit node_b --full --confirm node_b").succeeds();
    b.becomes(Synchronized).await;
    a.sql("insert into ledger.entries values ('spec/1', 1, null)").await;
    for table in ["ledger.entries", "ledger.places", "ledger.journal"] {
        b.holds_the_same_as(&a, table).await;
    }
    assert_eq!(a.slots().await.len(), 1, "one way, as before");
}

/// A table of several parts of 1 MiB.
const WIDE: &str = "
    create table wide (id bigint primary key, text text not null);
    insert into wide select n, repeat(md5(n::text), 8) from generate_series(1, 24000) n;
    analyze";

/// Waits until `op` has copied more than one part.
async fn parts_land(node: &Node, op: &Operation) {
    let parts = format!("steep_repl.copied_parts where op_id = '{}'", op.id());
    until("parts land", PATIENCE, async || match node.count(&parts).await {
        0 | 1 => Err("not yet"),
        _ => Ok(()),
    })
    .await;
}

/// Waits until `node` has told so many times that a copy begins anew.
async fn begins_anew(node: &Node, times: usize) {
    until("the copy begins anew", PATIENCE, async || {
        let told = node.log().matches("\"init.restarted\"").count();
        if told == times { Ok(()) } else { Err(format!("{told} times")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_snapshot_costs_what_was_copied_and_the_tables_are_copied_anew_by_themselves() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(WIDE).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    spoil(&b, WRONG_ENTRIES).await;
    spoil(&b, "delete from wide where id % 3 = 0").await;
    let on_a = ledger.writers(2, &a);
    let again = "node reinit node_b --schema ledger,public --confirm node_b --max-rate";
    let op = b.steepctl(&format!("{again} 3MB")).operation();
    parts_land(&b, &op).await;
    a.kill_keepers();
    begins_anew(&b, 1).await;
    parts_land(&b, &op).await;
    on_a.write(20).await;
    a.stop_postgres(Stop::Immediate);
    a.start_postgres();
    begins_anew(&b, 2).await;
    parts_land(&b, &op).await;
    // The source's agent and what it kept; and this node's agent, while it takes back what it copied.
    b.kill_agent();
    b.start_agent_to_die("copy taken back");
    a.kill_agent();
    a.kill_keepers();
    a.start_agent();
    b.agent_dies("copy taken back").await;
    b.start_agent();
    begins_anew(&b, 3).await;
    op.completes().await;
    b.becomes(Synchronized).await;
    let on_b = ledger.writers(2, &b);
    on_a.write(20).await;
    on_b.write(20).await;
    b.holds_the_same_as(&a, "wide").await;

    // Whoever loses more than three has something to look at; the tables are as they were.
    let op = b.steepctl(&format!("{again} 200kB")).operation();
    for times in 3..=6 {
        begins_anew(&b, times).await;
        until("a snapshot is kept", PATIENCE, async || if a.keepers().is_empty() { Err("none") } else { Ok(()) }).await;
        op.reaches("copy tables").await;
        a.kill_keepers();
    }
    op.fails_with("STP-3107").await;
    b.becomes(Synchronized).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await, on_b.stop().await]).await;
    b.holds_the_same_as(&a, "wide").await;
    for node in [&a, &b] {
        has_no_traces(node).await;
        assert_eq!(node.slots().await.len(), 1, "{}: {:?}", node.id(), node.slots().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_and_in_a_mesh_tables_are_copied_anew_after_their_snapshot_is_lost() {
    let [a, b, c] = Cluster::of(3).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(WIDE).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    c.steepctl("node start node_c --from node_a").operation().completes().await;
    let slots = [a.slots().await, b.slots().await];
    spoil(&c, WRONG_ENTRIES).await;
    spoil(&c, "delete from wide where id % 3 = 0").await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    let again = "node reinit node_c --schema ledger,public --source node_a --confirm node_c --in-place --max-rate 3MB";
    let op = c.steepctl(again).operation();
    parts_land(&c, &op).await;
    on_b.write(20).await;
    a.kill_keepers();
    begins_anew(&c, 1).await;
    parts_land(&c, &op).await;
    on_b.write(20).await;
    a.stop_postgres(Stop::Immediate);
    a.start_postgres();
    begins_anew(&c, 2).await;
    parts_land(&c, &op).await;
    // Between what was taken back and the new session, this node's agent dies; then while its tables are emptied once more.
    c.kill_agent();
    a.kill_agent();
    a.kill_keepers();
    a.start_agent();
    c.start_agent_to_die("copy taken back");
    c.agent_dies("copy taken back").await;
    on_b.write(20).await;
    c.start_agent_to_die("tables emptied");
    c.agent_dies("tables emptied").await;
    on_a.write(20).await;
    c.start_agent();
    op.completes().await;
    c.becomes(Synchronized).await;
    for writers in [&on_a, &on_b] {
        writers.write(20).await;
    }
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
    c.holds_the_same_as(&a, "wide").await;
    for node in [&a, &b, &c] {
        has_no_traces(node).await;
    }
    assert_eq!([a.slots().await, b.slots().await], slots);
}
