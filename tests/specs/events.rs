//! What agents logged, and operations, watched through an agent that has nothing to do with them.

use serde_json::Value;
use steep_tests::{Cluster, Node, PATIENCE, shop, until};

/// The records of an agent's log whose event begins with `start`, without their number in the file.
fn logged(node: &Node, start: &str) -> Vec<Value> {
    let records = node.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>();
    let ours =
        records.into_iter().filter(|record| record["event"].as_str().is_some_and(|name| name.starts_with(start)));
    ours.map(|mut record| {
        record.as_object_mut().expect("a record is an object").remove("seq");
        record
    })
    .collect()
}

#[tokio::test]
async fn events_are_followed_through_another_agent_and_none_is_missing_or_doubled_when_it_dies() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(&shop::orders(2000)).await;
    let peers = format!("{},{}", c.address(), a.address());
    let following =
        c.steepctl("events --follow --since 1h -o json --type init.*").env("STEEPCTL_PEER", &peers).follows();
    b.hold_after("copy tables");
    let op = a.steepctl("node start node_b --from node_a").operation();
    b.is_held().await;
    let says = |event: &str| {
        let (event, op) = (format!("\"event\":{event:?}"), op.id().to_owned());
        move |line: &str| line.contains(&event) && line.contains(&op)
    };
    following.prints("the copy's tables are told", says("init.table_complete")).await;
    // The agent that tells is gone; another one goes on where it ended.
    c.kill_agent();
    b.let_go();
    op.completes().await;
    following.prints("the end is told", says("init.completed")).await;
    let told: Vec<Value> = following.json().into_iter().filter(|record| record["node_id"] == "node_b").collect();
    assert_eq!(told, logged(&b, "init."), "as in the log of node_b, each once and in order");
    assert!(following.talk().contains("trying again") || following.talk().contains("node_c"), "{}", following.talk());
    c.start_agent();
    until("node_c has found the others again", PATIENCE, async || {
        let members = c.steepctl("mesh list -o json").succeeds().json()["members"].clone();
        let alive = members.as_array().map_or(0, |all| all.iter().filter(|one| one["liveness"] == "alive").count());
        if alive == 3 { Ok(()) } else { Err(members.to_string()) }
    })
    .await;

    // What is past, through each agent; one node of it; in a form for people.
    for node in [&a, &b, &c] {
        let past = node.steepctl("events -o json --type init.* --node node_b").succeeds();
        let past: Vec<Value> = past.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(past, logged(&b, "init."), "through {}", node.id());
    }
    let all = c.steepctl("events -o json --type agent.ready,init.completed").succeeds();
    let all: Vec<Value> = all.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let stamps: Vec<_> = all.iter().map(|record| record["timestamp"].as_str().unwrap_or_default()).collect();
    assert!(stamps.is_sorted(), "merged by time: {stamps:?}");
    for node in ["node_a", "node_b", "node_c"] {
        assert!(
            all.iter().any(|record| record["node_id"] == node && record["event"] == "agent.ready"),
            "{node}: {all:?}"
        );
    }
    let shown = a.steepctl("events --node node_b --type init.completed").succeeds();
    assert!(shown.stdout.contains("node_b init.completed") && shown.stdout.contains("rows="), "{shown}");
    assert_eq!(a.steepctl("events --since 1ms --type init.started").succeeds().stdout, "");
    let bad = a.steepctl("events --type Init.*").fails_with("STP-5001");
    assert!(bad.stderr.contains("Init.*"), "{bad}");
    a.steepctl("events --node node_x").fails_with("STP-5002");
    a.steepctl("events --since 1h").as_operator("vera").succeeds();
}

#[tokio::test]
async fn a_reader_hears_of_an_agent_that_was_started_again_and_of_one_that_is_silent() {
    let [a, b] = Cluster::of(2).start().await;
    let following = a.steepctl("events --follow --since 1h --type agent.*").follows();
    following.prints("node_b was started", |line| line.contains("node_b agent.ready")).await;
    b.kill_agent();
    following.says("! node_b does not tell").await;
    b.start_agent();
    following.says("! node_b: its agent was started again").await;
    until("the new run's start is told", PATIENCE, async || {
        let lines = following.lines();
        let starts = lines.iter().filter(|line| line.contains("node_b agent.ready")).count();
        if starts == 2 { Ok(()) } else { Err(format!("{lines:#?}")) }
    })
    .await;
    // Who does not follow is told what is there, and who is not.
    b.stop_agent();
    let past = a.steepctl("events --type agent.*").succeeds();
    assert!(past.stdout.contains("node_a agent.ready") && past.stderr.contains("! node_b does not tell"), "{past}");
    // An agent that ends does not wait for its readers.
    drop(following);
    let following = a.steepctl("events --follow --since 1h --type agent.*").follows();
    following.prints("node_a was started", |line| line.contains("node_a agent.ready")).await;
    a.stop_agent();
    following.says("trying again").await;
}

#[tokio::test]
async fn an_operation_is_watched_through_a_third_agent_to_its_end_also_when_that_one_dies() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(&shop::orders(2000)).await;
    b.hold_after("copy tables");
    let op = a.steepctl("node start node_b --from node_a").operation();
    b.is_held().await;
    let peers = format!("{},{}", c.address(), a.address());
    let watch = |node: &Node| node.steepctl(&format!("op watch {} -o json", op.id()));
    let mut cut = watch(&c).env("STEEPCTL_PEER", &peers).follows();
    cut.prints("it streams", |line| line.contains("init.table_complete")).await;
    cut.prints("progress streams too", |line| line.contains("\"progress\":{")).await;
    c.kill_agent();
    cut.says("cannot").await;
    c.start_agent();
    // An agent that is told to end does not wait for what it forwards.
    let mut left = watch(&c).env("STEEPCTL_PEER", &peers).follows();
    left.prints("it streams as well", |line| line.contains("init.table_complete")).await;
    let began = std::time::Instant::now();
    c.stop_agent();
    assert!(began.elapsed() < PATIENCE / 4, "it ended after {:?}", began.elapsed());
    c.start_agent();
    let mut whole = watch(&c).follows();
    whole.prints("it streams again", |line| line.contains("init.table_complete")).await;
    b.let_go();
    op.completes().await;
    for (watched, how) in [(&mut cut, "cut"), (&mut left, "left"), (&mut whole, "whole")] {
        assert_eq!(watched.ends().await, 0, "{how}: {}", watched.talk());
        let told = watched.json();
        assert_eq!(told.last().expect("it told something")["ended"]["status"], "completed", "{how}");
        let cursors: Vec<u64> = told
            .iter()
            .filter(|event| event["milestone"].is_object())
            .map(|event| event["cursor"].as_u64().expect("a number"))
            .collect();
        assert!(cursors.windows(2).all(|pair| pair[0] < pair[1]), "{how}: none is doubled: {cursors:?}");
        let stored = b.count(&format!("steep_repl.operation_events where op_id = '{}'", op.id())).await;
        assert_eq!(cursors.len() as i64, stored, "{how}: none is missing");
    }
}
