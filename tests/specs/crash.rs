//! The crash matrix: the target's agent dies at every crash point of each way to make a node, and of copying tables again,
//! while applications write. The operation goes on by itself in the agent's next run, and no row is lost or doubled.
//!
//! Every point is taken by `cargo x test crash`; any other run takes the few that each spec names beside them.
//!
//! The source's agent dies in the same way. `resume` has that of direct initialization, of its source's agent, and of the keeper;
//! `snapshots` that of a snapshot being written; `manual` that of a backup.

use steep_tests::{Cluster, Ledger, Node, NodeState::Synchronized, PATIENCE, Stop, Writers, crash_points, until};

use crate::{
    reinit::has_no_traces,
    snapshots::{Folder, generated},
};

/// Nothing of an operation is left on `node` but the `slots` that replication needs.
async fn only_replication_is_left(node: &Node, slots: usize) {
    has_no_traces(node).await;
    let copied = "steep_repl.intents where kind = 'sync_slots' and state <> 'undone'";
    assert_eq!(node.count(copied).await, 0, "{} takes no slot for one that still copies", node.id());
    until(&format!("{} keeps {slots} slots and no notes", node.id()), PATIENCE, async || {
        let (kept, notes) = (node.slots().await, node.count("steep_repl.operation_notes").await);
        if kept.len() == slots && notes == 0 { Ok(()) } else { Err(format!("{kept:?}, {notes} notes")) }
    })
    .await;
}

/// Both nodes are written to once more, and hold every row as it was acknowledged.
async fn both_have_every_row(ledger: &Ledger, nodes: [&Node; 2], writers: [Writers; 2]) {
    for writers in &writers {
        writers.write(20).await;
    }
    let [on_a, on_b] = writers;
    ledger.agrees(&nodes, &[on_a.stop().await, on_b.stop().await]).await;
    for node in nodes {
        only_replication_is_left(node, 1).await;
    }
}

/// Rows of the ledger that are missing, wrong, and too many, which no other node hears of.
const SPOIL: &str = "
    select pg_replication_origin_create('spoil'); select pg_replication_origin_session_setup('spoil');
    begin;
    set local session_replication_role = replica;
    delete from ledger.entries where key in (select key from ledger.entries where key like 'start/%' limit 300);
    update ledger.entries set amount = -1
     where key in (select key from ledger.entries where key like 'start/%' limit 200);
    insert into ledger.entries select 'stray/' || n, n, 'nobody else has it' from generate_series(1, 50) n;
    commit;
    select pg_replication_origin_session_reset(); select pg_replication_origin_drop('spoil')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_copied_again_though_the_agent_dies_at_any_crash_point() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    b.sql(SPOIL).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_b.write(20).await;
    let points = [
        "made, not marked",
        "session opened",
        "tables staged",
        "after a commit:2",
        "all copied",
        "tables held",
        "tables switched",
        "caught up",
        "reinit undone",
    ];
    let points = crash_points(&points, &["tables switched"]);
    // While the agent is down whoever writes on node_b still has to wait for the copy, so only node_a's are waited for.
    let again = "node reinit node_b --schema ledger --confirm node_b";
    let op = b.dies_at_each(&points, again, async || on_a.write(10).await).await;
    op.completes().await;
    b.becomes(Synchronized).await;
    both_have_every_row(&ledger, [&a, &b], [on_a, on_b]).await;
}

#[tokio::test]
async fn tables_are_copied_again_though_postgresql_crashes_and_empties_what_was_copied_beside_them() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql("create table wide (id bigint primary key, text text not null)").await;
    a.sql("insert into wide select n, repeat(md5(n::text), 8) from generate_series(1, 24000) n").await;
    b.steepctl("node start node_b --from node_a --one-way").operation().completes().await;
    b.sql("delete from wide where id % 3 = 0").await;
    let on_a = ledger.writers(2, &a);
    let again = "node reinit node_b --schema public --confirm node_b --max-rate 2MB";
    let op = b.steepctl(again).operation();
    until("parts land", PATIENCE, async || {
        let parts = format!("steep_repl.copied_parts where op_id = '{}'", op.id());
        if b.count(&parts).await > 1 { Ok(()) } else { Err("none") }
    })
    .await;
    b.stop_postgres(Stop::Immediate);
    on_a.write(10).await;
    b.start_postgres();
    op.completes().await;
    b.becomes(Synchronized).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await]).await;
    b.holds_the_same_as(&a, "wide").await;
    assert!(b.log().contains("went with it"), "it was noticed");
    only_replication_is_left(&b, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_and_in_a_mesh_tables_are_copied_again_though_the_agent_dies_meanwhile() {
    let [a, b, c] = Cluster::of(3).start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    c.steepctl("node start node_c --from node_a").operation().completes().await;
    c.sql(SPOIL).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    let points = ["session opened", "tables held:2", "tables emptied", "after a commit:2", "all copied", "caught up"];
    let points = crash_points(&points, &["tables emptied"]);
    let again = "node reinit node_c --schema ledger --source node_a --confirm node_c --in-place";
    let writing = async || {
        on_a.write(10).await;
        on_b.write(10).await;
    };
    let op = c.dies_at_each(&points, again, writing).await;
    op.completes().await;
    c.becomes(Synchronized).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
    for node in [&a, &b, &c] {
        only_replication_is_left(node, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reinitialization_in_a_mesh_that_is_called_off_while_tables_stand_still_leaves_them_as_they_were() {
    let [a, b, c] = Cluster::of(3).start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    c.steepctl("node start node_c --from node_a").operation().completes().await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    c.hold_after("hold tables");
    let op = c.steepctl("node reinit node_c --schema ledger --source node_a --confirm node_c").operation();
    c.is_held().await;
    on_a.write(20).await;
    on_b.write(20).await;
    c.steepctl("node cancel node_c").succeeds();
    c.let_go();
    assert_eq!(op.ends().await, "cancelled");
    assert_eq!(c.state().await, Ok(Synchronized), "no table stands still");
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
    for node in [&a, &b, &c] {
        only_replication_is_left(node, 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresqls_own_copy_goes_on_though_the_agent_dies_at_any_crash_point() {
    let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "200ms").start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    let points = [
        "session opened",
        "tables made",
        "before subscribe",
        "subscribed",
        "all copied",
        "subscribed back",
        "verified",
        "before synchronized",
        "synchronized",
    ];
    let points = crash_points(&points, &["subscribed"]);
    let start = "node start node_b --from node_a --method snapshot";
    let op = b.dies_at_each(&points, start, async || on_a.write(10).await).await;
    op.completes().await;
    b.becomes(Synchronized).await;
    both_have_every_row(&ledger, [&a, &b], [on_a, on_b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresqls_own_copy_goes_on_though_the_sources_agent_dies_at_any_crash_point() {
    let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "200ms").start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql("create table wide (id bigint primary key, text text not null)").await;
    a.sql("insert into wide select n, repeat(md5(n::text), 8) from generate_series(1, 24000) n").await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    let points = ["slot made", "session noted", "releasing", "copies let", "subscribed to the target", "kept"];
    let points = crash_points(&points, &["copies let"]);
    let start = "node start node_b --from node_a --method snapshot";
    let op = a.dies_at_each_for(&b, &points, start, async || on_a.write(10).await).await;
    op.completes().await;
    b.becomes(Synchronized).await;
    b.holds_the_same_as(&a, "wide").await;
    both_have_every_row(&ledger, [&a, &b], [on_a, on_b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_copied_again_though_the_sources_agent_dies_at_any_crash_point() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    b.sql(SPOIL).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_b.write(20).await;
    let points = ["slot made", "session noted", "amid sending:2", "counted", "releasing", "undoing"];
    let points = crash_points(&points, &["amid sending:2"]);
    let again = "node reinit node_b --schema ledger --confirm node_b";
    let op = a.dies_at_each_for(&b, &points, again, async || on_a.write(10).await).await;
    op.completes().await;
    b.becomes(Synchronized).await;
    both_have_every_row(&ledger, [&a, &b], [on_a, on_b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_in_files_is_applied_though_the_agent_dies_at_any_crash_point() {
    let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "200ms").start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    let folder = Folder::new("crash");
    generated(&a, &folder, "").await;
    on_a.write(20).await;
    let points = [
        "session opened",
        "tables made",
        "amid a part:2",
        "after a commit:2",
        "all copied",
        "indexes built",
        "before subscribe",
        "subscribed",
        "subscribed back",
        "verified",
        "before synchronized",
        "synchronized",
    ];
    let points = crash_points(&points, &["after a commit:2"]);
    let apply = format!("snapshot apply node_b --input {}", folder.path());
    let op = b.dies_at_each(&points, &apply, async || on_a.write(10).await).await;
    op.completes().await;
    b.becomes(Synchronized).await;
    on_a.write(20).await;
    on_b.write(20).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    // The source keeps the snapshot's own slot too.
    only_replication_is_left(&a, 2).await;
    only_replication_is_left(&b, 1).await;
}
