//! An initialization that ends early, wherever and however, leaves both nodes as they were, and can be started again.

use std::time::{Duration, Instant};

use steep_tests::{Cluster, Inventory, Node, NodeState, Operation, PATIENCE, Stop, shop, until};

const START: &str = "node start node_b --from node_a";

/// The steps of an initialization both ways, in their order.
const STEPS: [&str; 11] = [
    "check both nodes",
    "open session",
    "publish on target",
    "create tables",
    "copy tables",
    "build indexes",
    "move sequences",
    "subscribe",
    "catch up",
    "replicate back",
    "verify",
];

/// How long cleaning up may take.
const CLEAN_WITHIN: Duration = Duration::from_secs(30);

/// What both nodes hold.
struct Before([Inventory; 2]);

impl Before {
    async fn of(nodes: [&Node; 2]) -> Self {
        Self([nodes[0].inventory().await, nodes[1].inventory().await])
    }

    /// Both nodes hold the same as then, nothing keeps WAL back, and nobody is left working for an operation.
    async fn is_restored(&self, nodes: [&Node; 2], when: &str) {
        for (node, before) in nodes.iter().zip(&self.0) {
            let left = node.inventory().await.since(before);
            assert!(left.is_empty(), "{when}: {} is not as before:\n{}", node.id(), left.join("\n"));
            assert_eq!(node.slots().await, Vec::<String>::new(), "{when}: {} keeps a slot", node.id());
        }
    }

    /// As [`Before::is_restored`], which may take `within` from now.
    async fn comes_back(&self, nodes: [&Node; 2], within: Duration, when: &str) {
        until(&format!("{when}: both nodes hold what they held"), within, async || {
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
}

/// The shop on the source, and on the target a table of its own that nobody may touch.
async fn furnish(a: &Node, b: &Node) {
    a.sql(&shop::orders(2000)).await;
    b.sql("create table own (id int primary key); insert into own values (1)").await;
}

async fn cancel(b: &Node, op: &Operation, when: &str) {
    let began = Instant::now();
    b.steepctl("node cancel node_b").succeeds();
    assert_eq!(op.ends().await, "cancelled", "{when}");
    b.becomes(NodeState::Uninitialized).await;
    assert!(began.elapsed() < CLEAN_WITHIN, "{when}: it took {} s", began.elapsed().as_secs());
}

#[tokio::test]
async fn a_cancel_after_any_step_leaves_both_nodes_as_they_were() {
    let [a, b] = Cluster::of(2).start().await;
    furnish(&a, &b).await;
    let before = Before::of([&a, &b]).await;
    let shown = a.steepctl("node start node_b --from node_a --detach -o json").succeeds().json();
    let op = shown["op_id"].as_str().expect("it has an id").to_owned();
    b.steepctl("node cancel node_b").succeeds();
    b.becomes(NodeState::Uninitialized).await;
    let shown = b.steepctl(&format!("op show {op} -o json")).succeeds().json();
    let names: Vec<_> = shown["steps"].as_array().expect("steps").iter().map(|step| step["name"].clone()).collect();
    assert_eq!(names, STEPS, "this spec knows all steps");
    before.is_restored([&a, &b], "at once").await;

    for step in STEPS {
        eprintln!("after {step}");
        b.hold_after(step);
        let op = b.steepctl(START).operation();
        b.is_held().await;
        cancel(&b, &op, step).await;
        before.is_restored([&a, &b], step).await;
        assert_eq!(a.state().await, Ok(NodeState::Uninitialized), "{step}: the source has no part in it any more");
    }
    b.steepctl(START).succeeds();
    b.holds_the_same_as(&a, "orders").await;
    assert_eq!(b.count("own").await, 1);
}

#[tokio::test]
async fn a_failure_after_any_step_leaves_both_nodes_as_they_were_and_says_what_next() {
    let [a, b] = Cluster::of(2).start().await;
    furnish(&a, &b).await;
    let before = Before::of([&a, &b]).await;
    for step in STEPS {
        eprintln!("after {step}");
        b.fail_after(step);
        let watched = b.steepctl(START).fails_with("STP-5006");
        assert_eq!(watched.status, 1, "{watched}");
        assert!(watched.stderr.contains(step), "the cause is told: {watched}");
        assert!(!watched.stderr.contains("cleaned up yet"), "{step}: everything is cleaned up at once: {watched}");
        b.becomes(NodeState::Failed).await;
        before.is_restored([&a, &b], step).await;
        let shown = b.steepctl("node show node_b").succeeds();
        assert!(shown.stdout.contains("STP-5006") || shown.stdout.contains(step), "node show tells why: {shown}");
    }
    b.steepctl(START).succeeds();
    b.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn tables_that_were_there_before_stay_and_are_empty_again_after_a_cancel() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(2000)).await;
    b.sql(
        "create table customers (id bigint generated by default as identity primary key, name text not null, email text);
         create table orders (id bigint generated by default as identity primary key, customer_id bigint not null,
           placed_at timestamptz not null default now(), total numeric(12, 2) not null, notes text)",
    )
    .await;
    let before = Before::of([&a, &b]).await;
    for step in ["create tables", "copy tables", "subscribe", "replicate back", "verify"] {
        b.hold_after(step);
        let op = b.steepctl(START).operation();
        b.is_held().await;
        cancel(&b, &op, step).await;
        before.is_restored([&a, &b], step).await;
    }
    b.steepctl(START).succeeds();
    b.holds_the_same_as(&a, "orders").await;
}

/// Cancels in the middle of a step that cannot go on by itself.
async fn cancelled_amid(a: &Node, b: &Node, before: &Before, step: &str, words: &str) {
    let op = b.steepctl(words).operation();
    op.reaches(step).await;
    // The step has begun; give it what it takes to be amid its work.
    until(&format!("{step} is at work"), PATIENCE, async || {
        let shown = op.shown().await?;
        if shown["operation"]["step"] == step { Ok(()) } else { Err(shown["operation"]["step"].to_string()) }
    })
    .await;
    cancel(b, &op, step).await;
    before.is_restored([a, b], step).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_amid_a_step_that_waits_leaves_both_nodes_as_they_were() {
    let [a, b] = Cluster::of(2).start().await;
    furnish(&a, &b).await;
    let before = Before::of([&a, &b]).await;

    // The slot waits for an open transaction, on the source …
    let writer = a.connect().await;
    writer.batch_execute("begin; insert into customers (name) values ('undecided')").await.expect("it can write");
    cancelled_amid(&a, &b, &before, "open session", START).await;
    writer.batch_execute("rollback").await.expect("it answers");
    // … and on the target.
    let writer = b.connect().await;
    writer.batch_execute("begin; insert into own values (2)").await.expect("it can write");
    cancelled_amid(&a, &b, &before, "publish on target", START).await;
    writer.batch_execute("rollback").await.expect("it answers");

    cancelled_amid(&a, &b, &before, "copy tables", &format!("{START} --max-rate 5kB")).await;

    // An index that takes for ever.
    a.sql("create function slow(bigint) returns bigint immutable language plpgsql as
             $$ begin if current_setting('application_name') like 'steep-restore%' then perform pg_sleep(1); end if; return $1; end $$;
           create index slowly on orders (slow(total::bigint))").await;
    let before = Before::of([&a, &b]).await;
    cancelled_amid(&a, &b, &before, "build indexes", START).await;
    a.sql("drop index slowly; drop function slow").await;
    let before = Before::of([&a, &b]).await;

    // Catching up waits for a row somebody holds on the target.
    b.hold_after("move sequences");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    let holder = b.connect().await;
    holder.batch_execute("begin; lock table customers in share mode").await.expect("it can be locked");
    a.sql("update customers set name = 'renamed' where id = 1").await;
    b.let_go();
    op.reaches("catch up").await;
    let letting_go = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        holder.batch_execute("rollback").await.expect("it answers");
    });
    cancel(&b, &op, "catch up").await;
    letting_go.await.expect("it answers");
    let before = Before([a.inventory().await, before.0[1].clone()]);
    before.is_restored([&a, &b], "catch up").await;
    b.steepctl(START).succeeds();
}

#[tokio::test]
async fn a_cancel_after_the_targets_agent_has_died_and_gone_on_undoes_all_of_it() {
    let [a, b] = Cluster::of(2).start().await;
    furnish(&a, &b).await;
    let before = Before::of([&a, &b]).await;
    for step in STEPS.into_iter().filter(|step| *step != "check both nodes") {
        eprintln!("after {step}");
        b.hold_after(step);
        let op = b.steepctl(START).operation();
        b.is_held().await;
        b.kill_agent();
        // What the step had done was not marked as done: it is done again.
        b.hold_after(step);
        b.start_agent();
        b.is_held().await;
        let began = Instant::now();
        cancel(&b, &op, step).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{step}: it took {:?}", began.elapsed());
        before.is_restored([&a, &b], step).await;
    }
    b.steepctl(START).succeeds();
    b.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn a_source_whose_agent_dies_or_ends_has_lost_the_snapshot_and_both_are_clean_once_it_is_back() {
    let [a, b] = Cluster::of(2).start().await;
    furnish(&a, &b).await;
    let before = Before::of([&a, &b]).await;
    for how in ["killed", "told to end"] {
        let op = b.steepctl(START).arg("--max-rate").arg("5kB").operation();
        op.reaches("copy tables").await;
        if how == "killed" {
            a.kill_agent();
        } else {
            a.stop_agent();
            assert_eq!(a.slots().await, Vec::<String>::new(), "nobody looks after this slot now");
        }
        a.start_agent();
        assert_eq!(op.ends().await, "failed");
        let failure = op.shown().await.expect("it is known")["operation"]["failure"].clone();
        let code = failure["code"].as_str().unwrap_or_default().to_owned();
        assert!(["STP-4005", "STP-3101"].contains(&code.as_str()), "{how}: {failure}");
        b.becomes(NodeState::Failed).await;
        // The source cleans up when it starts; what the target still owes it, its janitor pays.
        before.comes_back([&a, &b], PATIENCE * 2, how).await;
    }
    b.steepctl(START).succeeds();
    b.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn a_source_server_that_goes_down_during_the_copy_fails_it_and_leaves_nothing_once_it_is_back() {
    let [a, b] = Cluster::of(2).start().await;
    furnish(&a, &b).await;
    let before = Before::of([&a, &b]).await;
    let op = b.steepctl(START).arg("--max-rate").arg("5kB").operation();
    op.reaches("copy tables").await;
    a.stop_postgres(Stop::Immediate);
    tokio::time::sleep(Duration::from_secs(1)).await;
    a.start_postgres();
    assert_eq!(op.ends().await, "failed");
    b.becomes(NodeState::Failed).await;
    before.comes_back([&a, &b], PATIENCE * 2, "the source's server went down").await;
    b.steepctl(START).succeeds();
    b.holds_the_same_as(&a, "orders").await;
}
