//! The states of a node: only the moves of the table are made, in the database too, and every one is audited and logged.

use steep_tests::{Cluster, Node, NodeState, shop};

/// The plan's table of moves.
const MOVES: [(&str, &[&str]); 8] = [
    ("uninitialized", &["preparing"]),
    ("preparing", &["copying", "catching_up", "failed", "uninitialized"]),
    ("copying", &["catching_up", "failed", "uninitialized"]),
    ("catching_up", &["synchronized", "failed", "uninitialized", "diverged"]),
    ("synchronized", &["uninitialized", "diverged", "reinitializing"]),
    ("diverged", &["uninitialized", "reinitializing", "failed", "synchronized"]),
    ("failed", &["uninitialized", "preparing", "reinitializing"]),
    ("reinitializing", &["copying", "catching_up", "synchronized", "failed", "diverged"]),
];

async fn database_refuses_all_other_moves(node: &Node) {
    let states: Vec<_> = MOVES.iter().map(|(state, _)| *state).collect();
    assert_eq!(states, NodeState::ALL.map(NodeState::as_str));
    let mut wrong = Vec::new();
    for (from, legal) in MOVES {
        for to in NodeState::ALL.map(NodeState::as_str) {
            // A row of its own, born in `from`; loaded as a replica would, which disarms ordinary triggers.
            for role in ["origin", "replica"] {
                let moved = node
                    .try_sql(&format!(
                        "begin; set local session_replication_role = {role};
                         insert into steep_repl.nodes (node_id, init_state) values ('someone', '{from}');
                         update steep_repl.nodes set init_state = '{to}' where node_id = 'someone'"
                    ))
                    .await;
                node.sql("rollback").await;
                let expected = from == to || legal.contains(&to);
                if moved.is_ok() != expected {
                    wrong.push(format!("{from} -> {to} as {role}: {:?}", moved.err().map(|error| error.to_string())));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "PostgreSQL {}:\n{}", node.major(), wrong.join("\n"));
    let unknown = node.try_sql("update steep_repl.nodes set init_state = 'bored'").await;
    assert!(unknown.is_err(), "there is no such state");
}

/// Every statement of the agent, as PostgreSQL reads it: catalogs differ between versions.
async fn every_statement_is_understood(node: &Node) {
    let client = node.connect().await;
    client.batch_execute("set search_path = ''").await.expect("it can be set");
    // What an agent makes only once somebody prepares a backup.
    let tables = [
        include_str!("../../agent/sql/marks/make_table.sql"),
        include_str!("../../agent/sql/marks/make_adopted_table.sql"),
    ];
    let marks = format!("create schema steep_mark; {}", tables.concat());
    client.batch_execute(&marks).await.expect("there are none yet");
    let mut wrong = Vec::new();
    let mut count = 0;
    let root = xtask::workspace::root().join("agent/sql");
    for folder in std::fs::read_dir(&root).expect("the statements lie there") {
        for file in std::fs::read_dir(folder.expect("it can be read").path()).expect("a folder") {
            let path = file.expect("it can be read").path();
            let name = path.strip_prefix(&root).expect("it lies there").display().to_string();
            let is_migration = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
            let text = std::fs::read_to_string(&path).expect("it is text");
            if is_migration || needs_newer(&text, node.major()) {
                continue;
            }
            count += 1;
            if let Err(error) = client.prepare(&text).await {
                let reason = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                wrong.push(format!("{name}: {reason}"));
            }
        }
    }
    assert!(count > 40, "only {count} statements were found");
    assert!(wrong.is_empty(), "PostgreSQL {}:\n{}", node.major(), wrong.join("\n"));
}

/// A statement's header names the first version that has what it asks: `PostgreSQL 16+`.
fn needs_newer(text: &str, major: u32) -> bool {
    let mut named = text.split("PostgreSQL ").skip(1).filter_map(|rest| rest.split('+').next()?.parse::<u32>().ok());
    let named = named.next();
    named.expect("the header names a version") > major
}

#[tokio::test]
async fn every_version_refuses_the_same_moves_and_understands_every_statement() {
    let nodes: [Node; 3] = Cluster::of(3).pg(&["18", "16", "15"]).start().await;
    for node in &nodes {
        database_refuses_all_other_moves(node).await;
        every_statement_is_understood(node).await;
    }
}

/// The moves a node has made, from its audit log.
async fn audited(node: &Node) -> Vec<String> {
    node.texts(
        "select (detail ->> 'previous_state') || ' -> ' || (detail ->> 'new_state') from steep_repl.audit_log
          where action = 'init.state_change' order by id",
    )
    .await
}

/// The moves a node's agent has logged.
fn logged(node: &Node) -> Vec<String> {
    let log = node.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines
        .filter(|line| line["event"] == "init.state_change")
        .map(|line| {
            let state = |field: &str| line[field].as_str().unwrap_or("?").to_owned();
            format!("{} -> {}", state("previous_state"), state("new_state"))
        })
        .collect()
}

#[tokio::test]
async fn every_move_is_audited_and_logged_and_the_audit_cannot_be_rewritten() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(200)).await;
    b.fail_after("copy tables");
    b.steepctl("node start node_b --from node_a").fails_with("STP-5006");
    b.becomes(NodeState::Failed).await;
    b.steepctl("node start node_b --from node_a").succeeds();
    let expected = [
        "uninitialized -> preparing",
        "preparing -> copying",
        "copying -> failed",
        "failed -> preparing",
        "preparing -> copying",
        "copying -> catching_up",
        "catching_up -> synchronized",
    ];
    assert_eq!(audited(&b).await, expected);
    assert_eq!(logged(&b), expected);
    let source = ["uninitialized -> preparing", "preparing -> catching_up", "catching_up -> synchronized"];
    assert_eq!(audited(&a).await, source, "the first source is a member too");

    for node in [&a, &b] {
        for attempt in [
            "update steep_repl.audit_log set detail = '{}'",
            "delete from steep_repl.audit_log",
            "truncate steep_repl.audit_log",
        ] {
            assert!(node.try_sql(attempt).await.is_err(), "{attempt} went through");
        }
        // A superuser can disarm the trigger; then the chain shows it.
        assert_eq!(broken_links(node).await, 0, "{}: the chain holds", node.id());
        node.sql(
            "alter table steep_repl.audit_log disable trigger user;
             update steep_repl.audit_log set detail = '{}' where id = 2;
             alter table steep_repl.audit_log enable always trigger added_only;
             alter table steep_repl.audit_log enable always trigger sealed",
        )
        .await;
        assert!(broken_links(node).await > 0, "{}: a row was altered unseen", node.id());
    }
}

/// Rows whose seal does not fit themselves or the row before.
async fn broken_links(node: &Node) -> i64 {
    node.value(
        "select count(*) from (
           select hash is distinct from steep_repl.audit_hash(a) as altered,
                  prev_hash is distinct from coalesce(lag(hash) over (order by id), prev_hash) as unchained
             from steep_repl.audit_log a) checked
          where altered or unchained",
    )
    .await
}
