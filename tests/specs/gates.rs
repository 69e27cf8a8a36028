//! A table that is finished is never copied twice, also when the snapshot itself is lost: the others are copied again in a
//! later one, and every subscription leaves out of each table what its rows hold already.

use std::collections::BTreeSet;

use steep_tests::{Cluster, Ledger, Node, NodeState::Synchronized, Operation, PATIENCE, Stop, until};

/// Parts of 1 MiB, of a table that is smaller than the ledger's entries.
const LATER: &str = "
    create table later (id int primary key, text text not null);
    insert into later select n, md5(n::text) from generate_series(1, 24000) n";

async fn parts_of(b: &Node, table: &str) -> Vec<String> {
    let sql = format!(
        "select part || ' at ' || copied_at from steep_repl.copied_parts where table_schema || '.' || table_name = '{table}' order by part"
    );
    b.texts(&sql).await
}

async fn tables_landed(b: &Node) -> BTreeSet<String> {
    b.texts("select distinct table_name from steep_repl.copied_parts").await.into_iter().collect()
}

/// One stream: tables are finished one after the other, the largest first.
async fn starts(node: &Node, more: &str) -> Operation {
    until("the agent takes an order", PATIENCE, async || {
        let start = format!("node start {} --from node_a --parallel 1 --detach -o json {more}", node.id());
        let outcome = node.steepctl(&start).outcome();
        if outcome.status == 0 { Ok(Operation::known(node, &outcome)) } else { Err(outcome.to_string()) }
    })
    .await
}

/// Entries in parts of 1 MiB, and two parts of another table; returns how many parts the entries are.
async fn two_tables_in_parts(a: &Node) -> (Ledger, u64) {
    let ledger = Ledger::on(a, 30_000).await;
    a.sql(LATER).await;
    let pages = "select sum(pg_relation_size(oid)) / 8192 from pg_class where relname =";
    let [entries, later] = [
        a.value::<String>(&format!("select ({pages} 'entries')::bigint::text")).await,
        a.value::<String>(&format!("select ({pages} 'later')::bigint::text")).await,
    ]
    .map(|pages| pages.parse::<u64>().expect("a number").div_ceil(128));
    assert_eq!(later, 2, "parts of 1 MiB");
    (ledger, entries)
}

async fn finished_tables_stay(versions: &[&str], more: &str) {
    let [a, b] = Cluster::of(2).pg(versions).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let (ledger, entries) = two_tables_in_parts(&a).await;
    let on_a = ledger.writers(4, &a);
    on_a.write(50).await;

    // The entries have landed, and half of what comes next.
    b.stop_agent();
    b.start_agent_to_die(&format!("after a commit:{}", entries + 1));
    let op = starts(&b, more).await;
    b.agent_dies("amid the second table").await;
    let first = parts_of(&b, "ledger.entries").await;
    assert_eq!(first.len() as u64, entries, "all of them have landed");
    assert_eq!(parts_of(&b, "public.later").await.len(), 1);
    on_a.write(50).await;
    a.kill_keepers();
    on_a.write(50).await;
    for point in ["rest taken back", "gates noted"] {
        b.start_agent_to_die(point);
        b.agent_dies(point).await;
        assert_eq!(parts_of(&b, "ledger.entries").await, first, "{point}: what was finished is there as it was");
        assert_eq!(tables_landed(&b).await.len(), 1, "{point}: of an unfinished table nothing counts any more");
        on_a.write(50).await;
    }

    // Another table is finished, and again the snapshot goes.
    b.start_agent_to_die("after a commit:2");
    b.agent_dies("with the second table finished").await;
    let second = parts_of(&b, "public.later").await;
    assert_eq!(second.len(), 2);
    a.stop_postgres(Stop::Immediate);
    a.start_postgres();
    on_a.write(50).await;
    // Its agent dies too, while it makes the third snapshot.
    a.stop_agent();
    a.start_agent_to_die("slot made");
    b.start_agent_to_die("a gate set:2");
    a.agent_dies("with the third snapshot made").await;
    a.start_agent_to_die("session noted");
    a.agent_dies("with the third snapshot noted, and nobody told").await;
    a.start_agent();
    b.agent_dies("a gate set").await;
    assert_eq!(parts_of(&b, "ledger.entries").await, first, "it was copied once");
    assert_eq!(parts_of(&b, "public.later").await, second, "it was copied once in the second snapshot");
    let gates = b.texts("select convert_from(body, 'utf8') from steep_repl.operation_notes where name = 'gates'").await;
    assert!(gates[0].contains("journal") && !gates[0].contains("entries"), "{gates:?}");
    on_a.write(50).await;
    b.start_agent();
    op.completes().await;

    b.becomes(Synchronized).await;
    let mut accounts = Vec::new();
    if more.is_empty() {
        let on_b = ledger.writers(2, &b);
        on_b.write(30).await;
        accounts.push(on_b.stop().await);
    }
    on_a.write(30).await;
    accounts.push(on_a.stop().await);
    b.holds_the_same_as(&a, "later").await;
    let nodes = [&a, &b];
    ledger.agrees(&nodes, &accounts).await;
    let not_ready = "pg_subscription_rel where srsubstate <> 'r'";
    assert_eq!(b.count(not_ready).await, 0, "tables are like all others once the subscription is past them");
    a.keeps_nothing().await;
    assert_eq!(a.slots().await.len(), 1, "{:?}", a.slots().await);
    for node in nodes {
        assert_eq!(node.count("steep_repl.intents where state in ('planned', 'live')").await, 0, "{}", node.id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_table_is_not_copied_again_when_the_snapshot_is_lost_twice() {
    finished_tables_stay(&["18"], "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_table_of_15_stays_on_18_one_way_when_the_snapshot_is_lost_twice() {
    finished_tables_stay(&["15", "18"], "--one-way").await;
}

/// Waits until all that was written on `from` by now is applied on `to`.
async fn has_what_was_written(to: &Node, from: &Node) {
    let at: String = from.value("select pg_current_wal_lsn()::text").await;
    let passed =
        format!("pg_replication_slots where slot_name like 'steep_{}%' and confirmed_flush_lsn >= '{at}'", to.id());
    until(&format!("{} has what {} wrote", to.id(), from.id()), PATIENCE, async || {
        if from.count(&passed).await == 1 { Ok(()) } else { Err(from.slots().await.join(", ")) }
    })
    .await;
}

async fn is_paused(a: &Node) -> bool {
    a.count("pg_subscription where not subenabled").await > 0
}

/// No change met another row, or none, where it was applied: there are counters from 18 on.
async fn nothing_collided(nodes: &[&Node]) {
    for node in nodes.iter().filter(|node| node.major() >= 18) {
        let counted = "confl_insert_exists + confl_update_origin_differs + confl_update_exists + confl_update_missing
             + confl_delete_origin_differs + confl_delete_missing + confl_multiple_unique_conflicts";
        let sum = format!("select coalesce(sum({counted}), 0)::bigint from pg_stat_subscription_stats");
        assert_eq!(node.value::<i64>(&sum).await, 0, "{}: conflicts while applying", node.id());
    }
}

async fn finished_tables_stay_in_a_mesh(versions: &[&str]) {
    let [a, b, c] = Cluster::of(3).pg(versions).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let (ledger, entries) = two_tables_in_parts(&a).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    let (on_a, on_b) = (ledger.writers(3, &a), ledger.writers(3, &b));
    let all_write = async || {
        on_a.write(50).await;
        on_b.write(50).await;
        has_what_was_written(&a, &b).await;
    };
    all_write().await;

    // The entries have landed, and half of what comes next.
    c.stop_agent();
    c.start_agent_to_die(&format!("after a commit:{}", entries + 1));
    let op = starts(&c, "").await;
    c.agent_dies("amid the second table").await;
    let first = parts_of(&c, "ledger.entries").await;
    assert_eq!(first.len() as u64, entries, "all of them have landed");
    all_write().await;
    a.kill_keepers();
    all_write().await;
    // The source's agent dies too, amid the pause for the second snapshot.
    a.hold_after("pause replication");
    c.start_agent_to_die("gates noted");
    a.is_held().await;
    assert!(is_paused(&a).await);
    a.kill_agent();
    a.start_agent();
    assert!(!is_paused(&a).await, "an agent that starts lets run what was paused, also of a session that goes on");
    c.agent_dies("gates noted").await;
    assert_eq!(parts_of(&c, "ledger.entries").await, first, "what was finished is there as it was");
    assert_eq!(tables_landed(&c).await.len(), 1, "of an unfinished table nothing counts any more");
    all_write().await;

    // Another table is finished, and again the snapshot goes; and once more its server, amid the pause for the third.
    c.start_agent_to_die("after a commit:2");
    c.agent_dies("with the second table finished").await;
    let second = parts_of(&c, "public.later").await;
    assert_eq!(second.len(), 2);
    all_write().await;
    a.stop_postgres(Stop::Immediate);
    a.start_postgres();
    all_write().await;
    a.hold_after("pause replication");
    c.start_agent_to_die("a gate set:5");
    a.is_held().await;
    let interrupted = || c.log().matches("init.interrupted").count();
    let before = interrupted();
    a.stop_postgres(Stop::Immediate);
    a.let_go();
    until("the pause has ended without its server, and node_c waits", PATIENCE, async || {
        match interrupted() > before {
            true => Ok(()),
            false => Err("it has not heard of it"),
        }
    })
    .await;
    a.start_postgres();
    c.agent_dies("amid the gates for the member").await;
    assert!(!is_paused(&a).await, "what was paused runs again");
    assert_eq!(parts_of(&c, "ledger.entries").await, first, "it was copied once");
    assert_eq!(parts_of(&c, "public.later").await, second, "it was copied once in the second snapshot");
    let gated =
        "select s.subname || ' ' || count(*) from pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid
                  where not s.subenabled and r.srsubstate = 's' group by s.subname";
    assert_eq!(c.texts(gated).await, ["steep_from_node_b 2"]);
    let on_c = ledger.writers(2, &c);
    on_c.write(30).await;
    all_write().await;
    c.start_agent();
    op.completes().await;

    c.becomes(Synchronized).await;
    for writers in [&on_a, &on_b, &on_c] {
        writers.write(30).await;
    }
    let accounts = [on_a.stop().await, on_b.stop().await, on_c.stop().await];
    let nodes = [&a, &b, &c];
    ledger.agrees(&nodes, &accounts).await;
    c.holds_the_same_as(&a, "later").await;
    nothing_collided(&nodes).await;
    a.keeps_nothing().await;
    for node in nodes {
        let not_ready = "pg_subscription_rel where srsubstate <> 'r'";
        assert_eq!(node.count(not_ready).await, 0, "{}: tables are like all others", node.id());
        assert_eq!(node.slots().await.len(), 2, "{:?}", node.slots().await);
        assert_eq!(node.count("steep_repl.intents where state in ('planned', 'live')").await, 0, "{}", node.id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_to_a_mesh_copies_no_finished_table_again_when_the_snapshot_is_lost_twice() {
    finished_tables_stay_in_a_mesh(&["18"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_of_16_to_a_mesh_of_16_and_18_copies_no_finished_table_again_either() {
    finished_tables_stay_in_a_mesh(&["16", "18"]).await;
}
