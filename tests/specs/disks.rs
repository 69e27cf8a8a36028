//! A disk that is full amid a copy, on either end, costs time and no row: the operation says what to do, or goes on by itself once
//! there is room again.

use steep_tests::{Cluster, Ledger, Node, NodeState::*, Operation, PATIENCE, Stop, Writers, until};

use crate::{reinit::has_no_traces, snapshots::Small};

const START: &str = "node start node_b --from node_a";

/// Some MB of rows, in several parts of 1 MiB.
const WIDE: &str = "
    insert into wide select n, repeat(md5(n::text), 8) from generate_series(1, 24000) n;
    analyze";
const TABLE: &str = "create table wide (id bigint primary key, text text not null)";

/// A cluster whose copies are cut into small parts, and a table to copy on its first node.
async fn with_rows_to_copy() -> ([Node; 2], Ledger) {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(TABLE).await;
    a.sql(WIDE).await;
    ([a, b], ledger)
}

/// Both nodes are written to once node_b replicates, and hold all of it.
async fn nothing_is_missing(a: &Node, b: &Node, ledger: &Ledger, on_a: Writers) {
    b.becomes(Synchronized).await;
    let on_b = ledger.writers(2, b);
    on_a.write(20).await;
    on_b.write(20).await;
    ledger.agrees(&[a, b], &[on_a.stop().await, on_b.stop().await]).await;
    b.holds_the_same_as(a, "wide").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_targets_tables_ends_the_copy_clean_and_it_is_started_again_when_there_is_room() {
    let ([a, b], ledger) = with_rows_to_copy().await;
    let small = Small::mounted("tables", 3_000);
    let inside = small.path().join("inside");
    // The server's own account makes it, and owns it.
    b.sql(&format!("copy (select 1) to program 'mkdir {}'", inside.display())).await;
    b.sql(&format!("create tablespace small location '{}'", inside.display())).await;
    b.sql(&format!("{TABLE} tablespace small")).await;
    let before = b.inventory().await;
    let on_a = ledger.writers(2, &a);

    let op = b.steepctl(START).operation();
    op.fails_with("STP-2401").await;
    let failure = op.shown().await.expect("it is known")["operation"]["failure"].clone();
    for word in ["public.wide", "No space left on device"] {
        assert!(failure.to_string().contains(word), "{word}: {failure}");
    }
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("steepctl node resume node_b")), "{failure}");
    b.becomes(Failed).await;
    b.inventory().await.is_as(&before);
    for node in [&a, &b] {
        assert_eq!(node.slots().await, Vec::<String>::new(), "{}", node.id());
        assert_eq!(node.count("steep_repl.intents where state in ('planned', 'live')").await, 0, "{}", node.id());
    }
    assert_eq!(b.count("wide").await, 0, "what was there before is there, as it was");
    on_a.write(20).await;

    small.grows_to(100_000);
    b.steepctl("node resume node_b").succeeds();
    b.becomes(Synchronized).await;

    on_a.write(20).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await]).await;
    b.sql("drop table wide").await;
    b.sql("drop tablespace small").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_while_tables_are_copied_again_leaves_their_rows_and_they_are_copied_when_there_is_room() {
    let ([a, b], ledger) = with_rows_to_copy().await;
    b.steepctl(START).arg("--one-way").operation().completes().await;
    let small = Small::mounted("stage", 3_000);
    let inside = small.path().join("inside");
    b.sql(&format!("copy (select 1) to program 'mkdir {}'", inside.display())).await;
    b.sql(&format!("create tablespace small location '{}'", inside.display())).await;
    // Whatever is made from now on lies there.
    let lies = |where_to: &str| {
        let alter = format!("alter database %I {where_to} default_tablespace");
        format!("do $$ begin execute format('{alter}', current_database()); end $$")
    };
    b.sql(&lies("set").replace("default_tablespace'", "default_tablespace = small'")).await;
    b.sql("delete from wide where id % 3 = 0").await;
    let (slots, on_a) = (a.slots().await, ledger.writers(2, &a));
    let again = "node reinit node_b --tables wide --confirm node_b";

    let op = b.steepctl(again).operation();
    op.fails_with("STP-2401").await;
    let failure = op.shown().await.expect("it is known")["operation"]["failure"].clone();
    assert!(failure.to_string().contains("No space left on device"), "{failure}");
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("steepctl node reinit node_b")), "{failure}");
    b.becomes(Synchronized).await;
    assert_eq!(b.count("wide").await, 16_000, "what was there is there, as it was");
    has_no_traces(&b).await;
    assert_eq!(a.slots().await, slots);
    on_a.write(20).await;

    small.grows_to(100_000);
    b.steepctl(again).operation().completes().await;
    b.becomes(Synchronized).await;
    b.holds_the_same_as(&a, "wide").await;
    on_a.write(20).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await]).await;
    has_no_traces(&b).await;
    b.sql(&lies("reset")).await;
    b.sql("drop tablespace small").await;
}

/// `node`'s WAL lies on a file system of so many KiB from now on.
fn wal_is_small(node: &Node, name: &str, kib: u32) -> Small {
    let small = Small::mounted(name, kib);
    node.stop_postgres(Stop::Fast);
    node.move_wal_to(small.path());
    node.start_postgres();
    small
}

/// Writes WAL on `node` until its disk is full, which PostgreSQL does not survive; then somebody makes room and starts it.
async fn dies_of_its_wal(node: &Node, small: &Small) {
    until("PostgreSQL dies of a full disk", PATIENCE, async || {
        let fill =
            "select count(pg_logical_emit_message(false, 'spec', repeat('x', 1000000))) from generate_series(1, 20)";
        let filled = node.program("psql").args(["-d", "postgres", "-c", fill]).output().expect("psql runs");
        if node.postgres_runs() { Err(String::from_utf8_lossy(&filled.stderr).into_owned()) } else { Ok(()) }
    })
    .await;
    small.grows_to(1_000_000);
    node.start_postgres();
}

async fn parts_land(b: &Node, op: &Operation) {
    let parts = format!("steep_repl.copied_parts where op_id = '{}'", op.id());
    until("parts land", PATIENCE, async || if b.count(&parts).await > 1 { Ok(()) } else { Err("not yet") }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_targets_wal_is_waited_out() {
    let ([a, b], ledger) = with_rows_to_copy().await;
    let small = wal_is_small(&b, "target_wal", 100_000);
    let on_a = ledger.writers(2, &a);
    let op = b.steepctl(START).arg("--max-rate").arg("2MB").operation();
    parts_land(&b, &op).await;
    dies_of_its_wal(&b, &small).await;
    on_a.write(20).await;
    op.completes().await;
    nothing_is_missing(&a, &b, &ledger, on_a).await;
    b.stop_postgres(Stop::Immediate);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_sources_wal_costs_the_snapshot_and_no_row() {
    let ([a, b], ledger) = with_rows_to_copy().await;
    let small = wal_is_small(&a, "source_wal", 100_000);
    let on_a = ledger.writers(2, &a);
    on_a.write(20).await;
    // Slowly enough to be under way when the server dies.
    let op = b.steepctl(START).arg("--max-rate").arg("700kB").operation();
    parts_land(&b, &op).await;
    dies_of_its_wal(&a, &small).await;
    until("the copy begins anew", PATIENCE, async || {
        if b.log().contains("\"init.restarted\"") { Ok(()) } else { Err("not yet") }
    })
    .await;
    op.completes().await;
    nothing_is_missing(&a, &b, &ledger, on_a).await;
    a.stop_postgres(Stop::Immediate);
}
