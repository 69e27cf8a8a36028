//! Operations live in the agents: whoever asks, wherever, sees the same ones, and no command starts one twice.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;
use steep_tests::{Cluster, Node, NodeState, Operation, PATIENCE, shop, until};

const START: &str = "node start node_b --from node_a";

/// Starts an initialization that stands still in its copy until [`Node::let_go`].
async fn held(a: &Node, b: &Node) -> steep_tests::Operation {
    if a.texts("select relname from pg_class where relname = 'orders'").await.is_empty() {
        a.sql(&shop::orders(500)).await;
    }
    b.hold_after("copy tables");
    let op = a.steepctl(START).operation();
    b.is_held().await;
    op
}

#[tokio::test]
async fn of_ten_starts_at_once_one_runs_and_the_others_are_told_its_id() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(500)).await;
    b.hold_after("copy tables");
    let starting: Vec<_> = (0..10)
        .map(|number| {
            // From two terminals, so to speak: through either agent.
            let node = if number % 2 == 0 { &a } else { &b };
            let steepctl = node.steepctl(START).arg("--detach").arg("-o").arg("json");
            std::thread::spawn(move || steepctl.outcome())
        })
        .collect();
    let outcomes: Vec<_> = starting.into_iter().map(|thread| thread.join().expect("steepctl can be run")).collect();
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.status == 0);
    assert_eq!(won.len(), 1, "{}", won.iter().chain(&lost).map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    let id = won[0].json()["op_id"].as_str().expect("an id").to_owned();
    for outcome in lost {
        assert_eq!((outcome.status, outcome.code().as_deref()), (9, Some("STP-4001")), "{outcome}");
        assert!(outcome.stderr.contains(&id), "the one that runs is named: {outcome}");
    }
    assert_eq!(b.count("steep_repl.operations").await, 1);
    b.is_held().await;
    let late = b.steepctl(START).fails_with("STP-4001");
    assert_eq!(late.status, 9, "{late}");
    assert!(late.stderr.contains(&id), "{late}");
    b.let_go();
    b.becomes(NodeState::Synchronized).await;
    assert_eq!(a.slots().await.len(), 1, "one slot for one subscription");
}

#[tokio::test]
async fn a_defect_of_the_agent_ends_the_operation_that_met_it_and_all_of_it_is_undone() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(500)).await;
    let before = [a.inventory().await, b.inventory().await];
    b.panic_after("copy tables");
    let op = b.steepctl(START).operation();
    op.fails_with("STP-5006").await;
    let failure = op.shown().await.expect("it is known")["operation"]["failure"].to_string();
    assert!(failure.contains("copy tables") && failure.contains("agent.defect"), "it says where: {failure}");
    assert!(b.log().contains("\"agent.defect\""), "and so does the log");
    for (node, before) in [&a, &b].into_iter().zip(&before) {
        node.inventory().await.is_as(before);
    }
    b.steepctl(START).operation().completes().await;
    b.holds_the_same_as(&a, "orders").await;
}

/// Lists, shows and watches from everywhere, while it runs and afterwards.
#[tokio::test]
async fn an_operation_is_listed_shown_and_watched_through_every_agent_also_after_its_end() {
    let [a, b] = Cluster::of(2).start().await;
    let nothing = a.steepctl("node progress node_b").fails_with("STP-4003");
    assert_eq!(nothing.status, 9, "{nothing}");
    let op = held(&a, &b).await;
    for node in [&a, &b] {
        let listed = node.steepctl("op list -o json").succeeds().json();
        assert_eq!(listed["operations"][0]["op_id"], op.id(), "{listed}");
        assert_eq!(listed["operations"][0]["status"], "running", "{listed}");
        assert_eq!(listed["missing_nodes"], Value::Array(vec![]), "{listed}");
        assert_eq!(listed["served_by"], node.id(), "the agent asked is the one that answers: {listed}");
        // A prefix is enough.
        let shown = node.steepctl(&format!("op show {} -o json", &op.id()[..13])).succeeds().json();
        let operation = &shown["operation"];
        for (field, value) in
            [("op_id", op.id()), ("kind", "init"), ("target", "node_b"), ("source", "node_a"), ("method", "direct")]
        {
            assert_eq!(operation[field], value, "{field}: {shown}");
        }
        assert!(operation["started_by"].as_str().is_some_and(|who| who.contains("alice")), "{shown}");
        assert!(operation["progress"]["overall_percent"].is_number(), "{shown}");
        assert_eq!(shown["steps"].as_array().map(Vec::len), Some(11), "{shown}");
        let progress = node.steepctl("node progress node_b -o json").succeeds().json();
        assert_eq!(progress["operation"]["op_id"], op.id(), "{progress}");
        assert_eq!(progress["operation"]["progress"]["tables_total"], 2, "{progress}");
        let short = node.steepctl(&format!("op show {}", &op.id()[..7])).outcome();
        assert_eq!(short.status, 2, "seven characters are too few: {short}");
        let listed = node.steepctl("op list").succeeds();
        assert!(listed.stdout.contains(&op.id()[..13]) && listed.stdout.contains("node_b"), "{listed}");
        until("the node list tells the operation", PATIENCE, async || {
            let nodes = node.steepctl("node list -o json").succeeds().json();
            let all = nodes["nodes"].as_array().cloned().unwrap_or_default();
            assert_eq!(all.len(), 2, "{nodes}");
            let told = all.iter().any(|it| it["node_id"] == "node_b" && it["op_id"] == op.id());
            if told { Ok(()) } else { Err(nodes.to_string()) }
        })
        .await;
    }
    let unknown = a.steepctl("op show 01900000-0000-7000-8000-000000000000").fails_with("STP-4004");
    assert_eq!(unknown.status, 1, "{unknown}");

    let watching = a.steepctl("op watch").arg(op.id()).arg("-o").arg("json");
    let watching = std::thread::spawn(move || watching.outcome());
    b.let_go();
    op.completes().await;
    let watched = watching.join().expect("steepctl can be run");
    for (outcome, when) in [
        (watched, "while it ran"),
        (a.steepctl("op watch").arg(op.id()).arg("-o").arg("json").succeeds(), "after its end"),
    ] {
        assert_eq!(outcome.status, 0, "{when}: {outcome}");
        let lines: Vec<Value> =
            outcome.stdout.lines().map(|line| serde_json::from_str(line).expect("every line is JSON")).collect();
        let names: Vec<_> = lines.iter().filter_map(|line| line["milestone"]["event"].as_str()).collect();
        assert_eq!(names.first(), Some(&"init.started"), "{when}: {names:?}");
        for name in [
            "init.state_change",
            "init.phase_started",
            "init.phase_completed",
            "init.table_started",
            "init.table_complete",
            "init.completed",
        ] {
            assert!(names.contains(&name), "{when}: {name} is missing in {names:?}");
        }
        let cursors: Vec<u64> = lines.iter().filter(|line| line["milestone"].is_object()).map(cursor).collect();
        assert!(cursors.is_sorted() && cursors.windows(2).all(|pair| pair[0] < pair[1]), "{when}: {cursors:?}");
        let last = lines.last().expect("there are lines");
        assert_eq!(last["ended"]["status"], "completed", "{when}: {last}");
        let percents: Vec<f64> = lines.iter().filter_map(|line| line["progress"]["overall_percent"].as_f64()).collect();
        assert!(percents.is_sorted(), "{when}: progress never goes back: {percents:?}");
    }
    for node in [&a, &b] {
        let shown = node.steepctl("op show").arg(op.id()).arg("-o").arg("json").succeeds().json();
        assert_eq!(shown["operation"]["status"], "completed", "{shown}");
        assert!(
            shown["steps"].as_array().is_some_and(|steps| steps.iter().all(|step| step["status"] == "done")),
            "{shown}"
        );
        let status = node.steepctl("status -o json").succeeds().json();
        assert_eq!(status["served_by"], node.id(), "{status}");
    }
    assert_eq!(
        a.steepctl("op cancel").arg(op.id()).fails_with("STP-4003").status,
        9,
        "what has ended cannot be cancelled"
    );
    assert_eq!(b.steepctl("node cancel node_b").fails_with("STP-4003").status, 9);
}

/// 64-bit numbers are strings in protobuf's JSON, and may be numbers in ours.
fn cursor(line: &Value) -> u64 {
    line["cursor"].as_u64().or_else(|| line["cursor"].as_str()?.parse().ok()).expect("an event has a cursor")
}

#[tokio::test]
async fn a_watcher_sees_the_end_also_when_it_was_cancelled_and_exits_with_what_it_was() {
    let [a, b] = Cluster::of(2).start().await;
    let op = held(&a, &b).await;
    let watching = a.steepctl("op watch").arg(op.id());
    let watching = std::thread::spawn(move || watching.outcome());
    let cancelled = a.steepctl("op cancel").arg(&op.id()[..13]).outcome();
    assert!([0, 4].contains(&cancelled.status), "{cancelled}");
    let watched = watching.join().expect("steepctl can be run");
    assert_eq!(watched.status, 4, "{watched}");
    b.becomes(NodeState::Uninitialized).await;
    let shown = b.steepctl("op show").arg(op.id()).arg("-o").arg("json").succeeds().json();
    assert_eq!(shown["operation"]["status"], "cancelled", "{shown}");
    assert_eq!(shown["operation"]["failure"]["code"], "STP-4006", "{shown}");

    // One that fails ends the watch with the failure.
    b.fail_after("copy tables");
    let failed = a.steepctl(START).fails_with("STP-5006");
    assert!(failed.stderr.contains("Error:") && failed.stderr.contains("Hint:"), "{failed}");
    b.fail_after("copy tables");
    let failed = a.steepctl(START).arg("-o").arg("json").fails_with("STP-5006");
    let error: Value =
        failed.stderr.lines().rev().find_map(|line| serde_json::from_str(line).ok()).expect("JSON on stderr");
    for field in ["code", "message", "causes", "hint", "retryable"] {
        assert!(!error["error"][field].is_null(), "{field} is missing: {error}");
    }
}

#[tokio::test]
async fn a_watcher_that_gives_up_leaves_the_operation_alone() {
    let [a, b] = Cluster::of(2).start().await;
    let op = held(&a, &b).await;
    let late = a.steepctl("op watch").arg(op.id()).arg("--timeout").arg("1s").outcome();
    assert_eq!(late.status, 5, "{late}");
    // Interrupted in a pipe: detaches, says how to come back, and the operation goes on.
    let mut command: Command = a.steepctl("op watch").arg(op.id()).command();
    let mut watching = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("steepctl can be run");
    let mut first = String::new();
    let mut lines = BufReader::new(watching.stdout.take().expect("it was piped"));
    lines.read_line(&mut first).expect("it says what happens");
    let interrupted = Command::new("kill").args(["-INT", &watching.id().to_string()]).status();
    assert!(interrupted.is_ok_and(|status| status.success()), "it runs");
    let status = watching.wait().expect("it ends");
    let mut said = String::new();
    let mut stderr = watching.stderr.take().expect("it was piped");
    std::io::Read::read_to_string(&mut stderr, &mut said).expect("it can be read");
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("steepctl op watch"), "{said}");
    assert_eq!(op.shown().await.expect("it is known")["operation"]["status"], "running");
    b.let_go();
    op.completes().await;
}

#[tokio::test]
async fn an_agent_that_is_down_is_told_as_missing_and_the_other_still_answers() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(200)).await;
    let op = a.steepctl(START).operation();
    op.completes().await;
    b.stop_agent();
    until("node_a sees that node_b is gone", PATIENCE, async || {
        let listed = a.steepctl("op list -o json").succeeds().json();
        if listed["missing_nodes"] == serde_json::json!(["node_b"]) { Ok(()) } else { Err(listed.to_string()) }
    })
    .await;
    let refused = a.steepctl(START).outcome();
    assert_eq!((refused.status, refused.code().as_deref()), (6, Some("STP-1201")), "{refused}");
    let nobody = b.steepctl("status").outcome();
    assert_eq!(nobody.status, 6, "nobody answers there: {nobody}");
    let other = b.steepctl("status").env("STEEPCTL_PEER", &format!("{},{}", b.address(), a.address())).succeeds();
    assert!(other.stdout.contains("node_a") || other.stderr.contains("node_a"), "{other}");
    b.start_agent();
    until("node_b is back", PATIENCE, async || {
        let listed = a.steepctl("op list -o json").succeeds().json();
        if listed["missing_nodes"] == serde_json::json!([]) { Ok(()) } else { Err(listed.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn the_beginning_of_two_ids_names_neither_though_their_nodes_are_two() {
    let [a, b] = Cluster::of(2).start().await;
    let folder = std::env::temp_dir().join(format!("steep-two-{}", std::process::id()));
    let written = async |node: &Node| {
        node.sql("create table if not exists t (id int primary key)").await;
        let folder = format!("{}-{}", folder.display(), node.id());
        let op = node.steepctl(&format!("snapshot generate {} --dir {folder}", node.id())).operation();
        op.completes().await;
        let snapshot = format!("snap_{}", &op.id()[24..]);
        node.steepctl(&format!("snapshot delete {snapshot} --confirm {snapshot}")).succeeds();
        op
    };
    let digits = |op: &Operation| op.id()[..8].to_owned();
    // Ids begin with the minute they were made in, or nearly so.
    let (mut one, mut other) = (written(&a).await, written(&b).await);
    while digits(&one) != digits(&other) {
        (one, other) = (written(&a).await, written(&b).await);
    }
    for node in [&a, &b] {
        for words in ["op show", "op cancel"] {
            let refused = node.steepctl(words).arg(&digits(&one)).fails_with("STP-4007");
            assert!(refused.stderr.contains(one.id()) && refused.stderr.contains(other.id()), "{refused}");
        }
    }
}
