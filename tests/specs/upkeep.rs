//! What an operator does with a running agent: look at it, have it read its configuration again, drain it.

use std::fs;

use serde_json::Value;
use steep_tests::{Cluster, Node, PATIENCE, shop, until};

fn info(asked: &Node, about: &Node) -> Value {
    asked.steepctl(&format!("agent info {} -o json", about.id())).succeeds().json()
}

async fn logs(node: &Node, words: &str) {
    until(&format!("{} logs {words:?}", node.id()), PATIENCE, async || {
        let log = node.log();
        if log.contains(words) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn an_agent_tells_what_it_is_through_every_agent() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(500)).await;
    b.hold_after("copy tables");
    let op = a.steepctl("node start node_b --from node_a").operation();
    b.is_held().await;
    for asked in [&a, &b] {
        let (source, target) = (info(asked, &a), info(asked, &b));
        assert_eq!((&target["served_by"], &target["node_id"]), (&"node_b".into(), &"node_b".into()), "{target}");
        assert_eq!(target["op_id"], op.id(), "{target}");
        assert_eq!(source["sessions"][0]["target_node"], "node_b", "{source}");
        assert_eq!(source["sessions"][0]["op_id"], op.id(), "{source}");
        assert_eq!(target["identity"], "spiffe://demo/node/node_b", "{target}");
        assert_eq!(target["listen"], b.address(), "{target}");
        assert_eq!(target["config_path"], b.agent_toml().display().to_string(), "{target}");
        assert_eq!((&target["drained"], &target["log_level"]), (&Value::Null, &"info".into()), "{target}");
        for field in ["started_at", "certificate_until", "root_until", "agent_version", "postgres_version", "database"]
        {
            assert!(target[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {target}");
        }
        assert!(target["resources"]["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 1_000_000), "{target}");
    }
    let shown = a.steepctl("agent info node_b").as_operator("vera").succeeds();
    assert!(shown.stdout.contains("valid until") && shown.stdout.contains(op.id()), "{shown}");
    b.let_go();
    op.completes().await;
}

#[tokio::test]
async fn a_changed_configuration_is_taken_up_where_it_can_be_and_a_wrong_one_changes_nothing() {
    let [a, b] = Cluster::of(2).start().await;
    let toml = fs::read_to_string(b.agent_toml()).expect("it is there");
    let write = |text: &str| fs::write(b.agent_toml(), text).expect("it can be written");
    let nothing = a.steepctl("agent reload node_b").succeeds();
    assert!(nothing.stdout.contains("nothing to take up"), "{nothing}");
    write(&format!("{toml}\n[log]\nlevel = \"warn\"\n[copy]\nparallel = 8\n"));
    let taken = a.steepctl("agent reload node_b -o json").succeeds().json();
    assert_eq!(
        (&taken["changed"][0], &taken["needs_restart"][0]),
        (&"log.level".into(), &"copy.parallel".into()),
        "{taken}"
    );
    assert_eq!(info(&a, &b)["log_level"], "warn");
    assert!(!b.log().contains("needs_restart\":\"copy"), "at once: what it came to is no warning");
    // A wrong one.
    write(&format!("{toml}\n[log]\nlevel = \"loud\"\n"));
    let refused = a.steepctl("agent reload node_b").fails_with("STP-1001");
    assert!(refused.stderr.contains("loud"), "{refused}");
    assert_eq!(info(&a, &b)["log_level"], "warn", "everything runs on as before");
    // By a signal.
    write(&toml);
    b.hang_up_agent();
    until("the level is as before", PATIENCE, async || {
        let level = info(&a, &b)["log_level"].clone();
        if level == "info" { Ok(()) } else { Err(level.to_string()) }
    })
    .await;
    write("nonsense");
    b.hang_up_agent();
    // The log has had such a line since the first wrong file; the count tells this one.
    until("both are counted", PATIENCE, async || {
        let (_, metrics) = b.http("/metrics");
        let counts =
            ["{result=\"ok\"} 3", "{result=\"failed\"} 2"].map(|end| format!("steep_config_reload_total{end}"));
        if counts.iter().all(|line| metrics.contains(line)) { Ok(()) } else { Err(metrics) }
    })
    .await;
    logs(&b, "agent.reload_failed").await;
    assert!(b.agent_runs(), "a wrong file ends nothing");
    write(&toml);
    let denied = a.steepctl("agent reload node_b").as_operator("otto").fails_with("STP-5003");
    assert_eq!(denied.status, 7, "{denied}");
    assert_eq!(b.count("steep_repl.audit_log where action = 'agent.reload'").await, 3);

    // How much is logged, for a while.
    let set = a.steepctl("agent log-level node_b trace --for 1s -o json").as_operator("otto").succeeds().json();
    assert_eq!((&set["level"], &set["previous"]), (&"trace".into(), &"info".into()), "{set}");
    assert!(set["until"].is_string(), "{set}");
    logs(&b, "logs as configured again").await;
    a.steepctl("agent log-level node_b warn").succeeds();
    assert_eq!(info(&a, &b)["log_level"], "warn");
    // Events are remembered whatever the log shows.
    a.steepctl("agent drain node_b").succeeds();
    assert!(!b.log().contains("agent.drained"), "the log shows warnings alone");
    let events = a.steepctl("events --node node_b --type agent.drained").succeeds();
    assert!(events.stdout.contains("agent.drained"), "{events}");
    let back = a.steepctl("agent log-level node_b configured").succeeds();
    assert!(back.stdout.contains("logs info"), "{back}");
}

#[tokio::test]
async fn a_drained_agent_takes_nothing_new_and_what_runs_goes_on() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(&shop::orders(500)).await;
    b.hold_after("copy tables");
    let op = a.steepctl("node start node_b --from node_a --one-way").operation();
    b.is_held().await;
    let denied = a.steepctl("agent drain node_b").as_operator("vera").fails_with("STP-5003");
    assert_eq!(denied.status, 7, "{denied}");
    // Source and target, both through an agent that is neither.
    for node in ["node_a", "node_b"] {
        let drained = c.steepctl(&format!("agent drain {node} -o json")).as_operator("otto").succeeds().json();
        assert_eq!(drained["drained"]["by"], "otto (operator)", "{drained}");
        let (running, held) = (&drained["op_id"], &drained["session_op_ids"][0]);
        assert!(*running == op.id() || *held == op.id(), "it says what still runs: {drained}");
    }
    let refused = c.steepctl("node start node_c --from node_a --one-way").fails_with("STP-5040");
    assert!(refused.status == 9 && refused.stderr.contains("agent drain node_a --undo"), "{refused}");
    let refused = a.steepctl("node start node_b --from node_c --one-way").fails_with("STP-5040");
    assert!(refused.stderr.contains("agent drain node_b --undo"), "{refused}");
    b.let_go();
    op.completes().await;
    a.sql("insert into orders (customer_id, total) values (1, 5)").await;
    b.holds_the_same_as(&a, "orders").await;
    until("health says so", PATIENCE, async || {
        let status = c.steepctl("status").succeeds();
        if status.stdout.contains("drained by otto") { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    // It stays so over a restart, and a plan changes nothing.
    a.stop_agent();
    a.start_agent();
    assert_eq!(info(&c, &a)["drained"]["by"], "otto (operator)");
    let (_, metrics) = a.http("/metrics");
    assert!(metrics.contains("steep_agent_drained 1"), "{metrics}");
    let (_, health) = a.http("/healthz");
    assert!(health.contains("drained by otto"), "{health}");
    c.steepctl("node start node_c --from node_a --one-way").fails_with("STP-5040");
    let undone = c.steepctl("agent drain node_a --undo").succeeds();
    assert!(undone.stdout.contains("takes work again"), "{undone}");
    c.steepctl("node start node_c --from node_a --one-way").succeeds();
    c.holds_the_same_as(&a, "orders").await;
}
