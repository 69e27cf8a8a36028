//! Replication that breaks is noticed by itself, with the cause and the next command; what passes by itself is no alarm.

use std::time::{Duration, Instant};

use serde_json::Value;
use steep_tests::{Cluster, Node, NodeState::*, PATIENCE, Stop, shop, until};

/// Trouble with a slot or a subscription is told within this.
const SOON: Duration = Duration::from_secs(10);

/// Waits until `node` is diverged for `code`; returns what its agent says of it.
async fn diverges(node: &Node, code: &str) -> Value {
    let began = Instant::now();
    let what = format!("{} diverges for {code}", node.id());
    until(&what, SOON, async || match node.state().await {
        Ok(Diverged) => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    eprintln!("{what}: after {:.1} s", began.elapsed().as_secs_f64());
    let shown = until(&format!("it says {code}"), PATIENCE, async || {
        let shown = node.steepctl(&format!("node show {} -o json", node.id())).outcome().json();
        let told = shown["last_failure"]["code"] == code
            && shown["headline"]["health"] == "error"
            && shown["headline"]["health_reason"].as_str().is_some_and(|reason| reason.contains(code));
        if told { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    let next = shown["last_failure"]["hint"].as_str().unwrap_or_default();
    assert!(next.contains(node.id()), "no next command: {shown}");
    shown
}

fn events(node: &Node, event: &str) -> Vec<Value> {
    let log = node.log();
    let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter(|record| record["event"] == event).collect()
}

/// Writes so many MiB of WAL that concern no table.
async fn write_wal(node: &Node, mib: u32) {
    node.sql(&format!(
        "select count(pg_logical_emit_message(false, 'x', repeat('x', 1024 * 1024))) from generate_series(1, {mib})"
    ))
    .await;
}

async fn is_put_to_rest(node: &Node) {
    until("the subscription is disabled", PATIENCE, async || {
        let enabled: bool = node.value("select subenabled from pg_subscription").await;
        if enabled { Err("it is enabled") } else { Ok(()) }
    })
    .await;
}

async fn a_lost_slot_is_noticed(versions: &[&str]) {
    let [a, b] = Cluster::of(2).pg(versions).setting("max_slot_wal_keep_size", "1MB").start().await;
    a.sql(&shop::orders(50)).await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    // node_b cannot apply for a while, and node_a may keep next to nothing for it.
    let blocker = b.connect().await;
    blocker.batch_execute("begin; lock table customers in access exclusive mode").await.expect("nobody else uses it");
    a.sql("insert into customers (name) values ('one more')").await;
    until("the slot is lost", PATIENCE, async || {
        write_wal(&a, 16).await;
        a.sql("select pg_switch_wal()").await;
        a.sql("checkpoint").await;
        let status: String = a.value("select coalesce(wal_status, '') from pg_replication_slots").await;
        if status == "lost" { Ok(()) } else { Err(status) }
    })
    .await;
    let shown = diverges(&b, "STP-4203").await;
    blocker.batch_execute("rollback").await.expect("it can end");
    let told = events(&b, "node.diverged");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (told[0]["source_node"].as_str(), told[0]["error"]["code"].as_str()),
        (Some("node_a"), Some("STP-4203"))
    );
    let hint = shown["last_failure"]["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("node reinit node_b --full --source node_a"), "{shown}");
    // PostgreSQL would ask for it for ever.
    is_put_to_rest(&b).await;
    until("both are told anywhere", PATIENCE, async || {
        let status = a.steepctl("status").outcome().to_string();
        let whole = status.contains("DIVERGED")
            && status.contains("kept for node_b, is lost")
            && status.contains("node reinit node_b --full");
        if whole { Ok(()) } else { Err(status) }
    })
    .await;
    assert_eq!(a.state().await, Ok(Synchronized), "node_a has all that it needs");

    // A slot of the same name, and a subscription that runs, bring back nothing of what was lost.
    let slot = a.slots().await.remove(0);
    a.sql(&format!("select pg_drop_replication_slot('{slot}')")).await;
    a.sql(&format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    b.kill_agent();
    b.start_agent();
    // Twice: what node_a tells the first time may be older than its new slot.
    for _ in 0..2 {
        b.sql("alter subscription steep_from_node_a enable").await;
        is_put_to_rest(&b).await;
    }
    assert_eq!(b.state().await, Ok(Diverged));
    assert!(events(&b, "node.recovered").is_empty(), "what is lost stays lost");

    // What it was told to type does.
    b.steepctl("node reinit node_b --full --source node_a --confirm node_b").succeeds();
    b.becomes(Synchronized).await;
    b.holds_the_same_as(&a, "customers").await;
}

#[tokio::test]
async fn a_slot_lost_to_max_slot_wal_keep_size_is_noticed_in_seconds_and_never_taken_for_mended() {
    a_lost_slot_is_noticed(&["18"]).await;
}

/// A row written on `a` arrives on `b`.
async fn replicates(a: &Node, b: &Node, name: &str) {
    a.sql(&format!("insert into customers (name) values ('{name}')")).await;
    let query = format!("customers where name = '{name}'");
    until("it replicates", PATIENCE, async || match b.count(&query).await {
        1 => Ok(()),
        seen => Err(seen.to_string()),
    })
    .await;
}

/// Somebody reads the slot of `a`.
async fn streams(a: &Node) {
    until("its slot is read", PATIENCE, async || {
        let active: i64 = a.value("select count(*) from pg_replication_slots where active").await;
        if active == 1 { Ok(()) } else { Err(format!("{active} slots are active")) }
    })
    .await;
}

#[tokio::test]
async fn a_subscription_that_is_stopped_or_fails_is_told_until_it_goes_on() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    b.steepctl("node start node_b --from node_a --one-way").operation().completes().await;
    let initialized: String =
        b.value("select init_completed_at::text from steep_repl.nodes where node_id = 'node_b'").await;
    b.sql("alter subscription steep_from_node_a disable").await;
    let shown = diverges(&b, "STP-4202").await;
    assert!(shown["last_failure"]["hint"].as_str().unwrap_or_default().contains("enable"), "{shown}");
    // WAL that is taken away meanwhile is worse, until it is back.
    write_wal(&a, 1).await;
    a.sql("select pg_switch_wal()").await;
    let file: String = a.value("select pg_walfile_name(restart_lsn + 1) from pg_replication_slots").await;
    let (file, aside) = (a.data_directory().join("pg_wal").join(&file), a.data_directory().join(&file));
    std::fs::rename(&file, &aside).expect("the server's files are ours");
    diverges(&b, "STP-4208").await;
    std::fs::rename(&aside, &file).expect("it is still there");
    b.sql("alter subscription steep_from_node_a enable").await;
    b.becomes(Synchronized).await;

    // A row that is there already stops the worker, again and again.
    b.sql("insert into customers (id, name) values (7001, 'by hand')").await;
    a.sql("insert into customers (id, name) values (7001, 'from node_a')").await;
    let shown = diverges(&b, "STP-4201").await;
    let message = shown["last_failure"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("again and again") && message.contains("steep_from_node_a"), "{shown}");
    assert_eq!(message.contains("insert_exists"), b.major() >= 18, "{shown}");
    assert_eq!(a.state().await, Ok(Synchronized));
    b.sql("delete from customers where id = 7001").await;
    b.becomes(Synchronized).await;
    let open: i64 = b.value("select count(*) from steep_repl.divergences where ended_at is null").await;
    assert_eq!(open, 0);
    let later: String = b.value("select init_completed_at::text from steep_repl.nodes where node_id = 'node_b'").await;
    assert_eq!(later, initialized, "it was not initialized again");
    assert_eq!((events(&b, "node.diverged").len(), events(&b, "node.recovered").len()), (2, 2));
}

#[tokio::test]
async fn restarts_of_anything_are_no_alarm_and_a_subscription_that_is_dropped_by_hand_is() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    b.steepctl("node start node_b --from node_a --one-way").operation().completes().await;
    b.kill_agent();
    b.start_agent();
    replicates(&a, &b, "after the agent of b").await;
    b.stop_postgres(Stop::Fast);
    b.start_postgres();
    replicates(&a, &b, "after the server of b").await;
    // Nothing is written meanwhile that could show that it goes on.
    a.kill_agent();
    a.start_agent();
    streams(&a).await;
    a.stop_postgres(Stop::Fast);
    a.start_postgres();
    streams(&a).await;
    replicates(&a, &b, "after the agent and the server of a").await;
    assert_eq!(b.state().await, Ok(Synchronized));
    let told = events(&b, "node.diverged");
    assert!(told.is_empty(), "{told:#?}");
    b.sql(
        "alter subscription steep_from_node_a disable; alter subscription steep_from_node_a set (slot_name = none);
         drop subscription steep_from_node_a",
    )
    .await;
    diverges(&b, "STP-4209").await;
}

#[tokio::test]
async fn a_budget_warns_then_drops_the_slot_that_costs_most_and_its_reader_hears_why() {
    let budget = "[budget]\nretained_wal = \"40MiB\"\non_exceeded = \"drop_slot\"\n";
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).agent_toml(budget).start().await;
    a.sql(&shop::orders(50)).await;
    b.steepctl("node start node_b --from node_a --one-way").operation().completes().await;
    a.sql("select pg_create_logical_replication_slot('not_ours', 'pgoutput')").await;
    let blocker = b.connect().await;
    blocker.batch_execute("begin; lock table customers in access exclusive mode").await.expect("nobody else uses it");
    a.sql("insert into customers (name) values ('one more')").await;
    write_wal(&a, 34).await;
    until("it is told", PATIENCE, async || {
        let health: String = a.value("select health_reason from steep_repl.nodes where node_id = 'node_a'").await;
        let counted = a.http("/metrics").1;
        let share =
            counted.lines().find_map(|line| line.strip_prefix("steep_budget_spent_ratio{budget=\"retained_wal\"} "));
        let share: f64 = share.and_then(|text| text.parse().ok()).unwrap_or_default();
        let told = health.contains("STP-4240") && health.contains("node_b") && (0.8..0.95).contains(&share);
        if told { Ok(()) } else { Err(format!("{health} {share}")) }
    })
    .await;
    assert_eq!(events(&a, "slot.budget_near").len(), 1);
    assert_eq!(a.slots().await.len(), 2, "nothing is dropped before");
    assert_eq!(b.state().await, Ok(Synchronized));
    write_wal(&a, 8).await;
    let shown = diverges(&b, "STP-4203").await;
    blocker.batch_execute("rollback").await.expect("it can end");
    let message = shown["last_failure"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("node_a") && message.contains("budget.retained_wal"), "{shown}");
    assert_eq!(a.slots().await, ["not_ours"], "others' slots are theirs, whatever they cost");
    let audited = "select count(*) from steep_repl.audit_log
                    where action = 'slot.drop' and detail ->> 'node' = 'node_b' and detail ->> 'budget' = 'retained_wal'";
    assert_eq!(a.value::<i64>(audited).await, 1);
    assert_eq!(events(&a, "slot.dropped").len(), 1);
    is_put_to_rest(&b).await;
}
