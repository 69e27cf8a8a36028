//! More than two nodes that replicate both ways: each newcomer gets what every other node writes, once, from exactly
//! where the rows it copied end.

use std::time::Duration;

use steep_tests::{Cluster, Inventory, Ledger, Node, NodeState::*, Operation, PATIENCE, shop, until};

/// The steps of a newcomer in a mesh, in their order.
const STEPS: [&str; 13] = [
    "check both nodes",
    "join members",
    "open session",
    "publish on target",
    "create tables",
    "copy tables",
    "build indexes",
    "move sequences",
    "subscribe",
    "subscribe to members",
    "catch up",
    "replicate back",
    "verify",
];

const START_C: &str = "node start node_c --from node_a";

/// node_a and node_b replicate both ways.
async fn pair(a: &Node, b: &Node) {
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    for node in [a, b] {
        node.becomes(Synchronized).await;
    }
}

/// Every node subscribes to every other, and all of that runs.
async fn is_full(nodes: &[&Node]) {
    for node in nodes {
        let expected: Vec<_> = nodes
            .iter()
            .filter(|other| other.id() != node.id())
            .map(|other| format!("steep_from_{}", other.id()))
            .collect();
        let query = "select s.subname from pg_subscription s join pg_stat_subscription w on w.subid = s.oid
                      where s.subenabled and s.suborigin = 'none' and w.pid is not null and w.relid is null
                      group by 1 order by 1";
        until(&format!("{} subscribes to all others", node.id()), PATIENCE, async || {
            let running = node.texts(query).await;
            if running == expected { Ok(()) } else { Err(running.join(", ")) }
        })
        .await;
        assert_eq!(node.slots().await.len(), nodes.len() - 1, "{} keeps a slot for each other node", node.id());
    }
}

/// A row written on each node is seen on all, and so is that they are deleted again.
async fn all_hear_of_each_other(nodes: &[&Node], round: &str) {
    for node in nodes {
        node.sql(&format!("insert into marks values ('{} {round}')", node.id())).await;
    }
    for node in &nodes[1..] {
        node.holds_the_same_as(nodes[0], "marks").await;
    }
    assert_eq!(nodes[0].count("marks").await, nodes.len() as i64, "{round}");
    nodes[0].sql("delete from marks").await;
    for node in &nodes[1..] {
        node.holds_the_same_as(nodes[0], "marks").await;
    }
}

/// No change met another row, or none, where it was applied; and nothing failed.
async fn nothing_collided(nodes: &[&Node]) {
    for node in nodes {
        let counters = match node.major() {
            18.. => {
                "apply_error_count + sync_error_count + confl_insert_exists + confl_update_origin_differs
                 + confl_update_exists + confl_update_missing + confl_delete_origin_differs + confl_delete_missing
                 + confl_multiple_unique_conflicts"
            }
            _ => "apply_error_count + sync_error_count",
        };
        let sum: i64 =
            node.value(&format!("select coalesce(sum({counters}), 0)::bigint from pg_stat_subscription_stats")).await;
        assert_eq!(sum, 0, "{}: errors and conflicts while applying", node.id());
        let alarm = node.log().lines().find(|line| line.contains("node.diverged")).map(str::to_owned);
        assert_eq!(alarm, None, "a pause, a newcomer or a removal is no alarm");
    }
}

/// How long what the source applies stood still for the last newcomer.
fn paused_ms(source: &Node) -> u64 {
    let log = source.log();
    let line = log.lines().rfind(|line| line.contains("snapshot.paused")).expect("it was paused");
    let line: serde_json::Value = serde_json::from_str(line).expect("a line of the log is JSON");
    line["details"]["paused_ms"].as_u64().expect("it says how long")
}

/// Writers on all three nodes while node_c joins; then all hold what the writers know. `round`: writers of each round
/// have names of their own.
async fn joins_under_writers(
    ledger: &Ledger,
    round: usize,
    nodes: [&Node; 3],
    known: &mut Vec<steep_tests::ledger::Account>,
) {
    let [a, b, c] = nodes;
    let [on_a, on_b, on_c] = nodes.map(|node| ledger.more_writers(round * 10, 3, node));
    on_a.write(30).await;
    on_b.write(30).await;
    let before = (on_a.acknowledged(), on_b.acknowledged());
    c.steepctl(START_C).operation().completes().await;
    c.becomes(Synchronized).await;
    assert!(on_a.acknowledged() > before.0 && on_b.acknowledged() > before.1, "nobody wrote meanwhile");
    for writers in [&on_a, &on_b, &on_c] {
        writers.write(50).await;
    }
    is_full(&[a, b, c]).await;
    let accounts = [on_a.stop().await, on_b.stop().await, on_c.stop().await];
    for account in &accounts[..2] {
        assert!(account.refusals.is_empty(), "applications saw errors: {:?}", account.refusals);
    }
    known.extend(accounts);
    ledger.agrees(&[a, b, c], known).await;
    nothing_collided(&[a, b, c]).await;
    let paused = paused_ms(a);
    eprintln!("round {round}: node_a applied nothing for {paused} ms");
    assert!(paused < 5_000, "node_a applied nothing for {paused} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_lost_or_doubled_when_a_third_node_joins_under_writers_again_and_again() {
    let [a, b, c] = Cluster::of(3).start().await;
    let ledger = Ledger::on(&a, 300).await;
    pair(&a, &b).await;
    let mut known = Vec::new();
    for round in 0..4 {
        joins_under_writers(&ledger, round, [&a, &b, &c], &mut known).await;
        if round < 3 {
            a.steepctl("node remove node_c --confirm node_c").succeeds();
            c.becomes(Uninitialized).await;
            is_full(&[&a, &b]).await;
            c.sql("drop schema ledger cascade").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_16_and_18_make_one_mesh_and_a_fourth_joins_through_any_of_them() {
    let [a, b, c, d] = Cluster::of(4).pg(&["16", "18"]).start().await;
    let ledger = Ledger::on(&a, 300).await;
    pair(&a, &b).await;
    let mut known = Vec::new();
    joins_under_writers(&ledger, 0, [&a, &b, &c], &mut known).await;

    let writers = [&a, &b, &c, &d].map(|node| ledger.more_writers(10, 2, node));
    writers[2].write(20).await;
    d.steepctl("node start node_d --from node_b").operation().completes().await;
    for writers in &writers {
        writers.write(20).await;
    }
    is_full(&[&a, &b, &c, &d]).await;
    for writers in writers {
        known.push(writers.stop().await);
    }
    ledger.agrees(&[&a, &b, &c, &d], &known).await;
    nothing_collided(&[&a, &b, &c, &d]).await;
}

#[tokio::test]
async fn what_a_newcomer_loads_is_sent_to_nobody_and_idle_nodes_are_joined_too() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(&shop::orders(3_000)).await;
    a.sql("create table marks (name text primary key)").await;
    pair(&a, &b).await;
    all_hear_of_each_other(&[&a, &b], "before").await;
    let planned = c.steepctl(START_C).arg("--dry-run").succeeds();
    assert!(planned.stdout.contains("node_c will replicate both ways with node_a and node_b"), "{planned}");

    // A slot of the spec's own on each node, to see what is in its WAL from here on.
    c.sql("create publication spec").await;
    let probe = "select pg_create_logical_replication_slot('probe', 'pgoutput')";
    c.sql(probe).await;
    c.hold_after("create tables");
    let op = c.steepctl(START_C).operation();
    c.is_held().await;
    c.sql("alter publication spec set table customers, orders, marks").await;
    for node in [&a, &b] {
        node.sql(probe).await;
    }
    c.let_go();
    op.completes().await;
    all_hear_of_each_other(&[&a, &b, &c], "after").await;
    let sent = async |node: &Node, publication: &str, origin: &str| {
        node.sql("select pg_logical_emit_message(true, 'spec', '')").await;
        let query = format!(
            "select count(*) from pg_logical_slot_peek_binary_changes('probe', null, null, 'proto_version', '4',
                    'publication_names', '{publication}', 'origin', '{origin}')
              where get_byte(data, 0) in (ascii('I'), ascii('U'), ascii('D'), ascii('T'))"
        );
        node.value::<i64>(&query).await
    };
    // Of all that was loaded nothing goes out; its own mark does.
    assert_eq!(sent(&c, "spec", "none").await, 1);
    // node_a also deleted the three marks again.
    for (node, own) in [(&a, 4), (&b, 1)] {
        assert_eq!(sent(node, "steep", "none").await, own, "{} sends its own changes alone", node.id());
        assert_eq!(sent(node, "steep", "any").await, 6, "{} got those of the other two, once", node.id());
    }
    let decoded =
        "select coalesce(max(total_bytes), 0)::bigint from pg_stat_replication_slots where slot_name like 'steep%'";
    let bytes: i64 = c.value(decoded).await;
    assert!(bytes < 100_000, "a walsender of node_c decoded {bytes} bytes");
    nothing_collided(&[&a, &b, &c]).await;
    c.holds_the_same_as(&b, "orders").await;
}

#[tokio::test]
async fn a_sequence_of_a_newcomer_is_ahead_of_every_other_node() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql("create table numbered (id bigint generated by default as identity primary key, by text)").await;
    pair(&a, &b).await;
    b.sql("insert into numbered (by) select 'b' from generate_series(1, 50)").await;
    c.steepctl(START_C).operation().completes().await;
    for node in [&a, &b, &c] {
        node.sql(&format!("insert into numbered (by) values ('{}')", node.id())).await;
    }
    b.holds_the_same_as(&a, "numbered").await;
    c.holds_the_same_as(&a, "numbered").await;
    assert_eq!(a.count("numbered").await, 53);
    nothing_collided(&[&a, &b, &c]).await;
}

/// What all nodes hold.
struct Before(Vec<Inventory>);

impl Before {
    async fn of(nodes: &[&Node]) -> Self {
        let mut held = Vec::new();
        for node in nodes {
            held.push(node.inventory().await);
        }
        Self(held)
    }

    async fn comes_back(&self, nodes: &[&Node], within: Duration, when: &str) {
        until(&format!("{when}: all nodes hold what they held"), within, async || {
            for (node, before) in nodes.iter().zip(&self.0) {
                let left = node.inventory().await.since(before);
                if !left.is_empty() {
                    return Err(format!("{}:\n{}", node.id(), left.join("\n")));
                }
            }
            Ok(())
        })
        .await;
    }

    async fn is_restored(&self, nodes: &[&Node], when: &str) {
        self.comes_back(nodes, Duration::ZERO, when).await;
    }
}

#[tokio::test]
async fn a_cancel_or_failure_after_any_step_leaves_the_mesh_as_it_was() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(&shop::orders(500)).await;
    a.sql("create table marks (name text primary key)").await;
    pair(&a, &b).await;
    let nodes = [&a, &b, &c];
    let before = Before::of(&nodes).await;
    for step in STEPS {
        eprintln!("after {step}");
        c.hold_after(step);
        let op = c.steepctl(START_C).operation();
        c.is_held().await;
        if step == STEPS[0] {
            let shown = op.shown().await.expect("it is known");
            let names: Vec<_> =
                shown["steps"].as_array().expect("steps").iter().map(|step| step["name"].clone()).collect();
            assert_eq!(names, STEPS, "this spec knows all steps");
        }
        c.steepctl("node cancel node_c").succeeds();
        assert_eq!(op.ends().await, "cancelled", "{step}");
        c.becomes(Uninitialized).await;
        before.is_restored(&nodes, step).await;
    }
    for step in ["join members", "open session", "subscribe to members", "verify"] {
        c.fail_after(step);
        c.steepctl(START_C).fails_with("STP-5006");
        c.becomes(Failed).await;
        before.is_restored(&nodes, step).await;
    }
    all_hear_of_each_other(&[&a, &b], "still").await;
    c.steepctl(START_C).operation().completes().await;
    all_hear_of_each_other(&nodes, "at last").await;
    is_full(&nodes).await;
}

/// Subscriptions of `node` that do not run.
async fn paused(node: &Node) -> Vec<String> {
    node.texts("select subname from pg_subscription where not subenabled").await
}

#[tokio::test]
async fn what_was_paused_for_a_newcomer_runs_again_whoever_dies_or_gives_up() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(&shop::orders(500)).await;
    a.sql("create table marks (name text primary key)").await;
    pair(&a, &b).await;
    let nodes = [&a, &b, &c];
    let before = Before::of(&nodes).await;
    let is_paused = async || {
        a.hold_after("pause replication");
        let op = c.steepctl(START_C).operation();
        a.is_held().await;
        assert_eq!(paused(&a).await, ["steep_from_node_b"]);
        op
    };

    let op = is_paused().await;
    c.steepctl("node cancel node_c").succeeds();
    assert_eq!(op.ends().await, "cancelled");
    before.is_restored(&nodes, "cancelled while paused").await;
    all_hear_of_each_other(&[&a, &b], "cancelled").await;

    // The target would wait for the source and begin again.
    let call_off = async |op: Operation| {
        let cancelled = c.steepctl("node cancel node_c").outcome();
        let ended = op.ends().await;
        assert!(["cancelled", "failed"].contains(&ended.as_str()), "it ends, whoever is away: {cancelled}");
    };
    let op = is_paused().await;
    a.kill_agent();
    assert_eq!(paused(&a).await, ["steep_from_node_b"], "nobody is there to enable it");
    call_off(op).await;
    a.start_agent();
    assert_eq!(paused(&a).await, Vec::<String>::new(), "an agent that starts lets run what was paused");
    before.comes_back(&nodes, PATIENCE * 2, "the source's agent was killed").await;
    all_hear_of_each_other(&[&a, &b], "killed").await;

    let op = is_paused().await;
    a.stop_agent();
    assert_eq!(paused(&a).await, Vec::<String>::new(), "an agent that ends lets run what it paused");
    call_off(op).await;
    a.start_agent();
    before.comes_back(&nodes, PATIENCE * 2, "the source's agent ended").await;

    let op = is_paused().await;
    c.kill_agent();
    a.let_go();
    until("node_a applies again", PATIENCE, async || match &paused(&a).await[..] {
        [] => Ok(()),
        paused => Err(paused.join(", ")),
    })
    .await;
    c.start_agent();
    op.completes().await;
    all_hear_of_each_other(&nodes, "at last").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_transaction_on_the_source_keeps_a_newcomer_waiting_but_not_what_is_applied() {
    let [a, b, c] = Cluster::of(3).agent_toml("[copy]\nslot_timeout = \"4s\"").start().await;
    a.sql(&shop::orders(100)).await;
    a.sql("create table marks (name text primary key)").await;
    pair(&a, &b).await;
    let before = Before::of(&[&a, &b, &c]).await;
    let writer = a.connect().await;
    writer.batch_execute("begin; insert into customers (name) values ('undecided')").await.expect("it can write");
    until("the transaction is an old one", PATIENCE, async || {
        let old = "pg_stat_activity where state = 'idle in transaction' and xact_start < now() - interval '1 s'";
        if a.count(old).await == 1 { Ok(()) } else { Err("it began just now".to_owned()) }
    })
    .await;
    let refused = c.steepctl(START_C).fails_with("STP-2303");
    assert!(refused.stderr.contains("undecided"), "it names the transaction: {refused}");
    assert!(!a.log().contains("snapshot.pause_given_up"), "nothing was paused for it");
    writer.batch_execute("rollback").await.expect("it answers");
    c.becomes(Failed).await;
    before.is_restored(&[&a, &b, &c], "a long transaction").await;
    c.steepctl(START_C).operation().completes().await;
    all_hear_of_each_other(&[&a, &b, &c], "after").await;
}

#[tokio::test]
async fn a_mesh_that_is_not_whole_is_refused_and_told_what_is_missing() {
    let [a, b, c, d] = Cluster::of(4).start().await;
    a.sql(&shop::orders(100)).await;
    pair(&a, &b).await;
    let nodes = [&a, &b, &c, &d];
    let refused = |code: &str, words: &[&str]| {
        let refused = c.steepctl(START_C).fails_with(code);
        assert_eq!(refused.status, 8, "{refused}");
        for word in words {
            assert!(refused.stderr.contains(word), "it was to say {word:?}: {refused}");
        }
    };

    // Tables the mesh does not replicate, and tables it does.
    a.sql("create table extra (id int primary key)").await;
    let before = Before::of(&nodes).await;
    refused("STP-2022", &["public.extra", "node_b"]);
    c.steepctl(START_C).arg("--tables").arg("customers").fails_with("STP-2022");
    before.is_restored(&nodes, "other tables").await;
    a.sql("drop table extra").await;

    let before = Before::of(&nodes).await;
    b.stop_agent();
    refused("STP-2021", &["node_b", "cannot be asked"]);
    b.start_agent();
    before.is_restored(&nodes, "a member is down").await;

    b.sql("alter subscription steep_from_node_a disable").await;
    refused("STP-2020", &["steep_from_node_a", "node_b", "disabled"]);
    b.sql("alter subscription steep_from_node_a enable").await;

    // One way from a member: everything it has, from wherever it comes.
    d.steepctl("node start node_d --from node_a --one-way").operation().completes().await;
    b.sql("update orders set notes = 'from b' where id = 1").await;
    d.holds_the_same_as(&b, "orders").await;
    // Whoever follows one way cannot stand between two that replicate both ways.
    let outside = c.steepctl("node start node_c --from node_d").fails_with("STP-2016");
    assert!(outside.stderr.contains("node_a"), "{outside}");

    until("c joins", PATIENCE, async || {
        let started = c.steepctl(START_C).outcome();
        if started.status == 0 { Ok(()) } else { Err(started.to_string()) }
    })
    .await;
    c.sql("update orders set notes = 'from c' where id = 2").await;
    for node in [&a, &b, &d] {
        node.holds_the_same_as(&c, "orders").await;
    }
}
