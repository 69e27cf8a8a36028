//! What steepctl promises on the command line, tried against an agent that plays a script.

mod schema;
mod scripted;

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use steep_protocol::{
    failure::{Code, Failure},
    v1,
};

use scripted::{Ended, Mesh, OP, Script, ScriptedAgent, wait_for};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in:\n{text}"))
}

/// A steepctl in the background whose streams go to files.
struct Running<'a> {
    mesh: &'a Mesh,
    child: Child,
}

impl<'a> Running<'a> {
    fn spawn(mesh: &'a Mesh, line: &str) -> Self {
        let file = |name: &str| File::create(mesh.path(name)).expect("a new file");
        let mut command = mesh.command(line);
        command.stdout(file("out")).stderr(file("err"));
        Self { mesh, child: command.spawn().expect("steepctl runs") }
    }

    fn prints(&self, text: &str) {
        wait_for(&self.mesh.path("out"), text);
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    fn ended(mut self) -> Ended {
        let status = self.child.wait().expect("steepctl ends");
        let text = |name: &str| fs::read_to_string(self.mesh.path(name)).expect("the file");
        Ended { code: status.code(), stdout: text("out"), stderr: text("err") }
    }
}

#[test]
fn status_shows_each_node_once_and_a_next_command_for_each_problem() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(2, "completed"));
    let ended = mesh.run(&format!("--peer {}", agent.address)).succeeds();
    let expected = "\
Mesh acme   3 nodes   1 operation running   served by node_a
NODE    PG    STATE         SOURCE  PROGRESS         LAG  HEALTH  SEEN
node_a  18.4  SYNCHRONIZED  -       -                  -  ok      now
node_b  18.4  COPYING       node_a  78.4% 14:03        -  busy    now
node_c  18.4  FAILED        -       -            4.0 KiB  error   never
! node_c: STP-4203 the slot for node_c\\u{1b}[2J was lost
  next: initialize the node again, as deploy/README.md says
";
    assert_eq!(ended.stdout.replace("  1s\n", "  now\n"), expected);
    assert_eq!(ended.stderr, "");
}

#[test]
fn every_reading_command_speaks_json_and_keeps_stderr_clean() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(2, "completed"));
    let lines = [
        "status",
        "node list",
        "node show node_a",
        "op list",
        "op show 0192f3ac",
        "version",
        "explain",
        "explain 4001",
    ];
    for line in lines {
        let ended = mesh.run(&format!("{line} -o json --peer {}", agent.address)).succeeds();
        json(&ended.stdout);
        assert_eq!(ended.stderr, "", "{line}");
    }
    let node = json(&mesh.run(&format!("node show node_c -o json --peer {}", agent.address)).succeeds().stdout);
    assert_eq!(node["last_failure"]["code"], "STP-4203");
    assert_eq!(node["system_identifier"], "7710788945299280709");
    assert_eq!(node["headline"]["percent"], Value::Null);
}

#[test]
fn tables_of_every_reading_command_fit_eighty_columns() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(2, "completed"));
    for line in ["node list", "node show node_c", "op list", "op show 0192f3ac"] {
        let ended = mesh.run(&format!("{line} --peer {}", agent.address)).succeeds();
        let widest = ended.stdout.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= 80, "{line} is {widest} wide:\n{}", ended.stdout);
        assert!(!ended.stdout.contains('\u{1b}'), "{line} is coloured in a pipe");
    }
}

#[test]
fn a_start_in_a_pipe_tells_every_milestone_as_key_and_value() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(3, "completed"));
    let ended = mesh.run(&format!("node start node_b --from node_a --peer {}", agent.address)).succeeds();
    let lines: Vec<_> = ended.stdout.lines().collect();
    let events: Vec<_> = lines.iter().map(|line| line.split(' ').nth(1).expect("an event")).collect();
    assert_eq!(
        events,
        [
            "init.started",
            "init.progress",
            "init.table_complete",
            "init.table_complete",
            "init.table_complete",
            "init.completed"
        ]
    );
    assert!(lines.iter().all(|line| line.contains(&format!(" op={OP} node=node_b"))), "{lines:?}");
    assert!(lines.last().is_some_and(|line| line.ends_with("state=SYNCHRONIZED")), "{lines:?}");
    let ended = ended.says(&format!("op {OP} runs in the agents; Ctrl-C detaches, it does not stop it"));
    ended
        .says("node_b SYNCHRONIZED in 0ms: 3,000 rows, 858.3 MiB, 2 tables")
        .says("Method    direct (the target is empty)");
}

#[test]
fn a_start_with_json_prints_one_event_a_line() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(2, "completed"));
    let ended = mesh.run(&format!("node start node_b --from node_a -o json -q --peer {}", agent.address)).succeeds();
    let events: Vec<_> = ended.stdout.lines().map(json).collect();
    assert_eq!(events.len(), 7);
    assert!(events.windows(2).all(|pair| pair[0]["cursor"].as_u64() < pair[1]["cursor"].as_u64()));
    assert_eq!(events.last().expect("events")["ended"]["status"], "completed");
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_failed_operation_says_why_and_exits_with_its_family() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(1, "failed"));
    let start = format!("node start node_b --from node_a --peer {}", agent.address);
    let ended = mesh.run(&start).exits(10);
    ended
        .says("Error: row counts differ in public.t1 [STP-3004]\n  Caused by: 1000 here, 999 there\n  Hint: ")
        .prints("init.failed");
    let ended = mesh.run(&format!("{start} -o json")).exits(10);
    let last = ended.stderr.lines().last().expect("a failure");
    assert_eq!(json(last)["error"]["code"], "STP-3004");
}

#[test]
fn a_running_operation_is_named_to_whoever_starts_another() {
    let mesh = Mesh::new();
    let refusal = Failure::new(Code::OperationRunning, format!("operation {OP} already runs on node_b"))
        .hint(format!("steepctl op watch {OP}"));
    let script = Script { refusal: Some(refusal), ..Script::initialization(1, "completed") };
    let agent = ScriptedAgent::start(&mesh, script);
    let ended = mesh.run(&format!("node start node_b --from node_a --peer {}", agent.address)).exits(9);
    ended
        .says(&format!("Error: operation {OP} already runs on node_b [STP-4001]"))
        .says(&format!("Hint: steepctl op watch {OP}"));
}

#[test]
fn a_start_that_is_detached_prints_the_id_alone() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(1, "completed"));
    let ended = mesh.run(&format!("node start node_b --from node_a --detach --peer {}", agent.address)).succeeds();
    assert_eq!(ended.stdout, format!("{OP}\n"));
}

#[test]
fn what_goes_on_by_itself_is_not_started_once_more() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(1, "completed"));
    for line in ["op retry 0192f3ac", "node resume node_b"] {
        let ended = mesh.run(&format!("{line} --detach --peer {}", agent.address)).succeeds();
        assert_eq!(ended.stdout, format!("{OP}\n"), "{line}");
        ended.says("goes on by itself");
        mesh.run(&format!("{line} --peer {}", agent.address)).succeeds();
    }
    mesh.run(&format!("node resume node_z --peer {}", agent.address)).exits(9).says("never initialized");
}

fn planned(target_rows: u64) -> Vec<v1::PlannedTable> {
    let table = Some(v1::TableName { schema: "public".into(), name: "orders".into() });
    vec![v1::PlannedTable {
        table,
        rows_estimate: 10,
        bytes: 8192,
        parts: 1,
        format: "binary".into(),
        target_rows,
        source_rows: None,
    }]
}

#[test]
fn a_dry_run_shows_checks_and_plan_and_fails_with_the_first_failed_check() {
    let mesh = Mesh::new();
    let check = |code: &str, severity: &str| v1::Check {
        code: code.into(),
        severity: severity.into(),
        node_id: "node_a".into(),
        message: "looked at".into(),
        hint: "mend it".into(),
    };
    let good =
        Script { planned: planned(0), checks: vec![check("STP-2001", "ok")], ..Script::initialization(1, "completed") };
    let agent = ScriptedAgent::start(&mesh, good.clone());
    let ended = mesh.run(&format!("node start node_b --from node_a --dry-run --peer {}", agent.address)).succeeds();
    ended
        .prints("1 passed, 0 failed")
        .prints("public.orders")
        .prints("1 table, about 10 rows, 8.0 KiB to copy to node_b");
    assert!(agent.asked().iter().all(|request| request.dry_run));

    let bad = Script { checks: vec![check("STP-2001", "ok"), check("STP-2002", "error")], ..good };
    let agent = ScriptedAgent::start(&mesh, bad);
    let ended = mesh.run(&format!("node start node_b --from node_a --dry-run --peer {}", agent.address)).exits(8);
    ended.says("[STP-2002]\n  Caused by: STP-2002 looked at\n  Hint: mend it").prints("fix: mend it");
}

#[test]
fn a_dry_run_that_fails_its_checks_speaks_of_no_rows_that_go() {
    let mesh = Mesh::new();
    let check = |severity: &str| v1::Check {
        code: "STP-2002".into(),
        severity: severity.into(),
        message: "looked at".into(),
        ..v1::Check::default()
    };
    for (severity, code) in [("ok", 0), ("error", 8)] {
        let script =
            Script { planned: planned(7), checks: vec![check(severity)], ..Script::initialization(1, "completed") };
        let agent = ScriptedAgent::start(&mesh, script);
        for what in ["--tables orders", "--full"] {
            let ended = mesh.run(&format!("node reinit node_b {what} --dry-run --peer {}", agent.address)).exits(code);
            assert_eq!(ended.stdout.contains("DELETES"), code == 0, "{what}: {}", ended.stdout);
        }
    }
}

#[test]
fn what_nobody_was_asked_has_not_started_all_the_same() {
    let mesh = Mesh::new();
    let unreachable = Failure::new(Code::PeerUnreachable, "cannot reach node_b");
    let agent =
        ScriptedAgent::start(&mesh, Script { refusal: Some(unreachable), ..Script::initialization(1, "completed") });
    // Nobody listens; or an agent answers that it does not reach the one that is meant.
    for peer in ["127.0.0.1:1", &agent.address] {
        let ended = mesh.run(&format!("node start node_b --from node_a --peer {peer}")).exits(6);
        assert!(!ended.stderr.contains("all the same"), "{}", ended.stderr);
    }
}

#[test]
fn nothing_is_destroyed_without_a_confirmation_and_never_before_the_counts_are_shown() {
    let mesh = Mesh::new();
    let script = Script { planned: planned(1_512_003), ..Script::initialization(1, "completed") };
    let agent = ScriptedAgent::start(&mesh, script);
    let start = format!("node start node_b --from node_a --force --detach --peer {}", agent.address);
    mesh.run(&start).exits(8).says("[STP-5009]").says("--confirm node_b");
    mesh.run(&format!("{start} --no-input")).exits(8).says("[STP-5009]");
    mesh.run(&format!("{start} --confirm node_a")).exits(8).says("--confirm names node_a, but node_b would be emptied");
    assert_eq!(agent.asked().len(), 0, "somebody was asked before the confirmation was there");

    let ended = mesh.run(&format!("{start} --confirm node_b")).succeeds();
    ended.says("This DELETES on node_b:").says("public.orders  1,512,003");
    let dry: Vec<_> = agent.asked().iter().map(|request| (request.dry_run, request.force)).collect();
    assert_eq!(dry, [(true, true), (false, true)]);
}

#[test]
fn a_node_is_removed_only_when_its_name_is_confirmed() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(1, "completed"));
    let remove = format!("node remove node_b --detach --peer {}", agent.address);
    mesh.run(&remove).exits(8).says("[STP-5009]").says("steepctl node remove node_b --confirm node_b");
    mesh.run(&format!("{remove} --drop-slots")).exits(8).says("node remove node_b --drop-slots --confirm node_b");
    mesh.run(&format!("{remove} --confirm node_a"))
        .exits(8)
        .says("--confirm names node_a, but node_b would be removed");
    mesh.run(&format!("{remove} --confirm node_b")).succeeds();
}

#[cfg(unix)]
#[test]
fn a_signal_detaches_and_the_last_line_says_how_to_come_back() {
    let mesh = Mesh::new();
    for signal in ["INT", "TERM"] {
        let agent = ScriptedAgent::start(&mesh, Script::initialization(50, "completed").paced(100));
        let running = Running::spawn(&mesh, &format!("node start node_b --from node_a --peer {}", agent.address));
        running.prints("init.progress");
        running.signal(signal);
        let ended = running.ended().exits(130);
        assert_eq!(ended.stderr.lines().last(), Some(format!("steepctl op watch {OP}").as_str()));
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_cancels_where_that_was_asked_for_and_waits_for_the_cleanup() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(50, "completed").paced(100));
    let line = format!("node start node_b --from node_a --on-interrupt cancel --peer {}", agent.address);
    let running = Running::spawn(&mesh, &line);
    running.prints("init.progress");
    running.signal("INT");
    running.ended().exits(4).says("cancelling; the agents clean up").says("[STP-4006]").prints("init.cancelled");
}

#[test]
fn a_cancel_waits_for_the_end_and_succeeds() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(50, "completed").paced(1_000));
    mesh.run(&format!("node cancel node_b --peer {}", agent.address)).succeeds().says("cancelled and cleaned up");
    let ended = mesh.run(&format!("op cancel 0192f3ac --detach --peer {}", agent.address)).succeeds();
    assert_eq!(ended.stdout, format!("{OP}\n"));
}

#[test]
fn an_agent_that_restarts_costs_the_watcher_no_event() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(20, "completed").paced(50));
    let running = Running::spawn(&mesh, &format!("op watch 0192f3ac --peer {}", agent.address));
    running.prints("table=public.t3 ");
    let crashed = agent.crash();
    wait_for(&mesh.path("err"), "lost sight of the operation");
    let agent = crashed.start_again(&mesh);
    let ended = running.ended().succeeds().says("found the operation again");
    let tables: Vec<_> = ended.stdout.lines().filter(|line| line.contains("table_complete")).collect();
    for (at, line) in tables.iter().enumerate() {
        assert!(line.contains(&format!("table=public.t{} ", at + 1)), "{line} came as number {}", at + 1);
    }
    assert_eq!(tables.len(), 20);
    drop(agent);
}

#[test]
fn a_watch_gives_up_when_its_time_is_up_and_says_that_the_operation_goes_on() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(50, "completed").paced(1_000));
    let ended = mesh.run(&format!("op watch 0192f3ac --timeout 1s --peer {}", agent.address)).exits(5);
    ended.says("[STP-5007]").says(&format!("Hint: steepctl op watch {OP}"));
}

#[test]
fn the_next_peer_is_asked_when_one_does_not_answer() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(1, "completed"));
    let ended = mesh.run(&format!("node list -v --peer 127.0.0.1:1,{}", agent.address)).succeeds();
    ended.says("127.0.0.1:1").says("via node_a");
    mesh.run("node list --peer 127.0.0.1:1 --peer 127.0.0.1:2").exits(6).says("none of 2 agents").says("127.0.0.1:2");
}

#[test]
fn an_agents_no_is_final_and_its_words_are_shown() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(1, "completed"));
    let peers = format!("--peer {} --peer 127.0.0.1:1", agent.address);
    mesh.run(&format!("node show other {peers}")).exits(1).says("Error: there is no node other [STP-5002]");
    mesh.run(&format!("op show ffffffff {peers}")).exits(1).says("[STP-4004]");
    mesh.run(&format!("node progress node_b {peers}")).exits(9).says("nothing runs on node_b");
}

#[test]
fn a_certificate_that_agents_refuse_is_explained() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(1, "completed"));
    let past = "--not-before 2020-01-01T00:00:00Z --not-after 2020-02-01T00:00:00Z";
    mesh.run(&format!("pki issue operator old --role admin {past}")).succeeds();
    let ended = mesh.run(&format!("status --cert pki/operator-old.pem --peer {}", agent.address)).exits(7);
    ended.says("[STP-1103]").says("operator-old.pem expired at 2020-02-01");

    let other = Mesh::new();
    let ended = other.run(&format!("status --peer {}", agent.address)).exits(7);
    assert!(ended.stderr.contains("[STP-1101]") || ended.stderr.contains("[STP-1104]"), "{}", ended.stderr);
    // The root of their mesh does not make our certificate one of theirs.
    let ca = mesh.path("pki/ca.pem");
    let ended = other.run(&format!("status --peer {} --ca {}", agent.address, ca.display())).exits(7);
    assert!(ended.stderr.contains("[STP-11"), "{}", ended.stderr);
}

#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    let mesh = Mesh::new();
    let agent = ScriptedAgent::start(&mesh, Script::initialization(50, "completed").paced(20));
    let mut command = mesh.command(&format!("op watch 0192f3ac --peer {}", agent.address));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("steepctl runs");
    drop(child.stdout.take());
    Ended::of(child.wait_with_output().expect("steepctl ends")).succeeds();
}

#[test]
fn what_is_missing_on_the_command_line_is_asked_for_by_name() {
    let mesh = Mesh::new();
    mesh.run("status").exits(6).says("[STP-1202]").says("STEEPCTL_PEER");
    let mut bare = mesh.command("status --peer localhost:1");
    let ended = Ended::of(bare.env_remove("STEEPCTL_CERT").output().expect("steepctl runs")).exits(1);
    ended.says("no --cert is given").says("STEEPCTL_CERT");
    for usage in
        ["nonsense", "node start", "node show Node_A", "op show 1", "status --peer a", "--timeout soon", "explain 9999"]
    {
        mesh.run(usage).exits(2);
    }
}
