//! A node can be made from a backup that somebody makes by hand: the source is prepared, the commands that are printed are run
//! as they are, and what does not fit is refused with the reason.

use std::process::Command;

use serde_json::Value;
use steep_tests::{Cluster, Ledger, Node, NodeState::*, PATIENCE, crash_points, shop, until};

/// What was printed to be done next.
struct Next {
    id: String,
    /// The commands for a shell, in their order; the last is steepctl's.
    commands: Vec<String>,
}

fn prepare(a: &Node, more: &str) -> Next {
    let said = a.steepctl(&format!("node prepare node_a --for pg_dump --target node_b {more}")).succeeds();
    let commands: Vec<String> = said
        .stdout
        .lines()
        .skip_while(|line| *line != "Next")
        .filter_map(|line| line.strip_prefix("     "))
        .map(str::to_owned)
        .collect();
    assert!(commands.len() >= 3, "{said}");
    let id = commands.last().expect("one").rsplit(' ').next().expect("it ends with the id").to_owned();
    Next { id, commands }
}

impl Next {
    /// The commands that have to do with PostgreSQL's own programs.
    fn of_postgresql(&self) -> &[String] {
        &self.commands[..self.commands.len() - 1]
    }

    fn complete(&self) -> String {
        self.commands.last().and_then(|line| line.strip_prefix("steepctl ")).expect("it is steepctl's").to_owned()
    }

    fn file(&self) -> String {
        format!("/var/tmp/steep_{}.dump", self.id)
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(self.file()));
    }
}

/// Runs a command as somebody at `node`'s shell would, with the newest of PostgreSQL's programs at hand.
fn shell(node: &Node, command: &str) {
    let bin = node.program("pg_dump").get_program().to_owned();
    let bin = std::path::Path::new(&bin).parent().expect("it lies somewhere").to_owned();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let ran = Command::new("sh").arg("-c").arg(command).env("PATH", path).output().expect("sh runs");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{command}\n{out}{err}");
}

fn dump_and_restore(with: &Node, next: &Next) {
    for command in next.of_postgresql() {
        shell(with, command);
    }
}

async fn nothing_is_left(nodes: [&Node; 2]) {
    for node in nodes {
        let marks: bool = node.value("select to_regnamespace('steep_mark') is not null").await;
        assert!(!marks, "{} still holds a mark", node.id());
        let left = "steep_repl.intents where state in ('planned', 'live')";
        assert_eq!(node.count(left).await, 0, "{}", node.id());
    }
}

async fn by_hand_under_writers(a: &Node, b: &Node, newest: &Node) {
    let ledger = Ledger::on(a, 2_000).await;
    a.sql(&shop::orders(3_000)).await;
    let on_a = ledger.writers(4, a);
    on_a.write(100).await;
    let next = prepare(a, "");
    on_a.write(100).await;
    shell(newest, &next.of_postgresql()[0]);
    on_a.write(100).await;
    shell(newest, &next.of_postgresql()[1]);
    on_a.write(50).await;
    b.steepctl(&next.complete()).operation().completes().await;
    b.becomes(Synchronized).await;
    let on_b = ledger.writers(4, b);
    on_a.write(50).await;
    on_b.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[a, b], &accounts).await;
    b.holds_the_same_as(a, "public.orders").await;
    a.becomes(Synchronized).await;
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
    nothing_is_left([a, b]).await;
    let listed = a.steepctl("node prepare node_a --list -o json").succeeds().json();
    assert!(listed["preparations"].as_array().is_none_or(Vec::is_empty), "{listed:#}");
    let slots = a.steepctl("slot list node_a -o json").succeeds().json();
    assert_eq!(slots["slots"][0]["use"], "subscription", "{slots:#}");
    // A sequence goes on behind what the source has used.
    b.sql("insert into orders (customer_id, total, notes) select customer_id, 1, 'after' from orders limit 1").await;
    a.holds_the_same_as(b, "public.orders").await;
}

#[tokio::test]
async fn a_node_restored_with_the_printed_commands_misses_nothing_that_was_written_meanwhile() {
    let [a, b] = Cluster::of(2).start().await;
    by_hand_under_writers(&a, &b, &a).await;
}

#[tokio::test]
async fn a_16_is_moved_to_an_18_by_hand() {
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).start().await;
    by_hand_under_writers(&a, &b, &b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_node_is_completed_though_its_agent_dies_at_any_crash_point() {
    let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "200ms").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    let on_a = ledger.writers(2, &a);
    let next = prepare(&a, "");
    on_a.write(20).await;
    dump_and_restore(&a, &next);
    let points = [
        "backup checked",
        "before subscribe",
        "subscribed",
        "catching up",
        "subscribed back",
        "before synchronized",
        "synchronized",
    ];
    let points = crash_points(&points, &["subscribed"]);
    let op = b.dies_at_each(&points, &next.complete(), async || on_a.write(10).await).await;
    op.completes().await;
    b.becomes(Synchronized).await;
    let on_b = ledger.writers(2, &b);
    on_a.write(20).await;
    on_b.write(20).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    nothing_is_left([&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_node_is_completed_though_its_sources_agent_dies_at_any_crash_point() {
    let [a, b] = Cluster::of(2).setting("wal_retrieve_retry_interval", "200ms").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    let on_a = ledger.writers(2, &a);
    let next = prepare(&a, "");
    on_a.write(20).await;
    // What was prepared is still held when it is needed.
    a.kill_agent();
    on_a.write(20).await;
    shell(&a, &next.of_postgresql()[0]);
    a.start_agent();
    shell(&a, &next.of_postgresql()[1]);
    let points = ["slot taken", "releasing", "subscribed to the target", "kept"];
    let points = crash_points(&points, &["slot taken", "releasing"]);
    let op = a.dies_at_each_for(&b, &points, &next.complete(), async || on_a.write(10).await).await;
    op.completes().await;
    b.becomes(Synchronized).await;
    let on_b = ledger.writers(2, &b);
    on_a.write(20).await;
    on_b.write(20).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    nothing_is_left([&a, &b]).await;
    a.keeps_nothing().await;
    assert_eq!(a.slots().await.len(), 1, "{:?}", a.slots().await);
}

#[tokio::test]
async fn a_session_on_a_prepared_slot_is_taken_up_by_the_next_run_of_the_sources_agent() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 500).await;
    let on_a = ledger.writers(2, &a);
    let next = prepare(&a, "");
    dump_and_restore(&a, &next);
    // The target knows of the session, and does not ask for another one.
    b.hold_after("take slot");
    let op = b.steepctl(&next.complete()).arg("--one-way").operation();
    b.is_held().await;
    a.kill_agent();
    on_a.write(20).await;
    a.start_agent();
    b.let_go();
    op.completes().await;
    on_a.write(20).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await]).await;
    nothing_is_left([&a, &b]).await;
}

#[tokio::test]
async fn some_tables_are_restored_by_hand_one_way() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create schema \"It s\"; create table \"It s\".\"a b\" (id int primary key); create table other (id int primary key)")
        .await;
    a.sql("insert into \"It s\".\"a b\" select generate_series(1, 100)").await;
    let next = prepare(&a, r#"--tables '"It s"."a b"'"#);
    a.sql("insert into \"It s\".\"a b\" values (101)").await;
    dump_and_restore(&a, &next);
    b.steepctl(&next.complete()).arg("--one-way").operation().completes().await;
    a.sql("insert into \"It s\".\"a b\" values (102)").await;
    b.holds_the_same_as(&a, "\"It s\".\"a b\"").await;
    assert_eq!(b.slots().await, Vec::<String>::new(), "a slot on node_b for one way");
    nothing_is_left([&a, &b]).await;
}

/// What is refused: nothing is changed on either node but the state, and the slot stays for another try.
async fn is_refused(a: &Node, b: &Node, words: &str, code: &str, because: &[&str]) {
    let op = b.steepctl(words).operation();
    op.fails_with(code).await;
    let shown = op.shown().await.expect("it is shown");
    let failure = shown["operation"]["failure"].to_string();
    for word in because {
        assert!(failure.contains(word), "{word:?} is not in {failure}");
    }
    assert_eq!(b.slots().await, Vec::<String>::new(), "node_b keeps a slot");
    assert_eq!(b.count("pg_subscription").await, 0);
    assert_eq!(a.slots().await.len(), 1, "the slot stays for another try");
}

#[tokio::test]
async fn what_is_not_the_backup_that_was_prepared_for_is_refused_with_the_reason() {
    let [a, b, c] = Cluster::of(3).start().await;
    for node in [&a, &c] {
        node.sql("create table t (id int primary key); insert into t select generate_series(1, 100)").await;
    }
    let (on_a, on_b) = (place(&a), place(&b));
    let old = format!("/var/tmp/steep_spec_{}.dump", std::process::id());
    shell(&a, &format!("pg_dump -d '{on_a}' -Fc --exclude-schema=steep_repl --no-publications -f {old}"));
    let next = prepare(&a, "");
    shell(&a, &format!("pg_restore -d '{on_b}' {old}"));
    drop(std::fs::remove_file(old));
    is_refused(&a, &b, &next.complete(), "STP-3512", &["older than the slot"]).await;

    // Later, and not of the snapshot.
    b.sql("drop table t").await;
    a.sql("insert into t values (101)").await;
    let without: Vec<_> = next.commands[0].split(' ').filter(|word| !word.starts_with("--snapshot")).collect();
    shell(&a, &without.join(" "));
    shell(&a, &next.commands[1]);
    is_refused(&a, &b, &next.complete(), "STP-3513", &["without the snapshot"]).await;

    // Of another node.
    let start_over = "drop table t; drop schema steep_mark cascade";
    b.sql(start_over).await;
    let said = c.steepctl("node prepare node_c --for pg_dump --target node_b").succeeds();
    let theirs: Vec<_> = said.stdout.lines().filter_map(|line| line.strip_prefix("     ")).collect();
    shell(&a, theirs[0]);
    shell(&a, theirs[1]);
    let file = theirs[1].rsplit(' ').next().expect("it ends with the file");
    drop(std::fs::remove_dir_all(file));
    is_refused(&a, &b, &next.complete(), "STP-3512", &["of node_c"]).await;

    // The right one, but not as it was.
    b.sql(start_over).await;
    drop(std::fs::remove_dir_all(next.file()));
    dump_and_restore(&a, &next);
    b.sql("delete from t where id = 7").await;
    is_refused(&a, &b, &next.complete(), "STP-3004", &["public.t held 100 rows on node_a", "node_b holds 99"]).await;
    b.sql("insert into t values (7)").await;
    is_refused(&a, &b, &format!("{} --source-lsn 0/1234", next.complete()), "STP-3513", &["0/1234"]).await;
    b.sql("alter table t add more int").await;
    b.steepctl(&next.complete()).fails_with("STP-2202");
    b.sql("alter table t drop more").await;

    // And as it should be.
    b.steepctl(&next.complete()).operation().completes().await;
    b.holds_the_same_as(&a, "t").await;
    nothing_is_left([&a, &b]).await;
}

fn place(node: &Node) -> String {
    format!("host={} port={} user=postgres dbname=postgres", node.host().display(), node.port())
}

#[tokio::test]
async fn a_preparation_is_listed_kept_extended_and_taken_back() {
    let [a, b] = Cluster::of(2).agent_toml("[cleanup]\nevery = \"2s\"").start().await;
    a.sql("create table t (id int primary key)").await;
    let before = a.inventory().await;
    let next = prepare(&a, "--expires 2h");
    let id = &next.id;
    let slot = format!("steep_prep_{id}");
    let shown = b.steepctl("slot list node_a -o json").succeeds().json();
    assert_eq!(shown["slots"][0]["use"], "prepared", "{shown:#}");
    assert!(a.log().contains("slot.expires_soon") || until_told(&a).await, "it was told a day ahead");
    a.steepctl(&format!("slot drop node_a {slot} --force --confirm node_a")).fails_with("STP-4242");
    let expires = async || {
        let listed = a.steepctl("node prepare node_a --list -o json").succeeds().json();
        listed["preparations"][0]["expires_at"].clone()
    };
    let first: Value = expires().await;
    a.steepctl(&format!("slot extend node_a {slot} --expires 72h")).succeeds();
    assert_ne!(first, expires().await);
    // The snapshot does not end with the agent, but with the server; the slot stays.
    let snapshot = async || {
        let listed = a.steepctl("node prepare node_a --list -o json").succeeds().json();
        listed["preparations"][0]["snapshot"].as_str().unwrap_or_default().to_owned()
    };
    let held = snapshot().await;
    a.stop_agent();
    a.start_agent();
    assert_eq!(snapshot().await, held);
    a.kill_agent();
    a.kill_keepers();
    a.start_agent();
    assert_eq!(snapshot().await, "");
    assert_eq!(a.slots().await, [slot]);
    a.steepctl(&format!("node prepare node_a --cancel {id}")).succeeds();
    a.inventory().await.is_as(&before);
    assert_eq!(a.slots().await, Vec::<String>::new());
    a.steepctl(&format!("node prepare node_a --cancel {id}")).fails_with("STP-3511");
    // Whoever comes too late is told so.
    until("node_b is told that it comes too late", PATIENCE, async || {
        let told = b.steepctl(&next.complete()).outcome();
        if told.stderr.contains("STP-3511") { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    // What has expired is taken away unasked.
    let short = prepare(&a, "--expires 1s");
    until("all that was prepared is taken away", PATIENCE * 2, async || {
        let (slots, left) = (a.slots().await, a.inventory().await.since(&before));
        if slots.is_empty() && left.is_empty() { Ok(()) } else { Err(format!("{slots:?} {left:?}")) }
    })
    .await;
    assert!(a.log().contains("slot.expired"), "it was told");
    drop(short);
}

async fn until_told(a: &Node) -> bool {
    until("it is told that it expires soon", PATIENCE * 2, async || {
        if a.log().contains("slot.expires_soon") { Ok(true) } else { Err("not yet") }
    })
    .await
}

#[tokio::test]
async fn a_preparation_that_makes_no_sense_makes_nothing_and_touches_nobodys_slot() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key)").await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    a.sql("select pg_create_logical_replication_slot('steep_others', 'pgoutput')").await;
    let mut before = a.slots().await;
    before.sort();
    let read = before.iter().find(|slot| slot.starts_with("steep_node_b_")).expect("node_b reads one").clone();
    for taken in ["steep_others", &read] {
        let refused = a.steepctl(&format!("node prepare node_a --for pg_dump --slot {taken}")).fails_with("STP-5001");
        assert!(refused.stderr.contains("node_a has a slot of this name already"), "{refused}");
    }
    for name in ["steep_x; drop", "steep_Ä", "other", "steep-1"] {
        a.steepctl("node prepare node_a --for pg_dump --slot").arg(name).fails_with("STP-5001");
    }
    a.steepctl("node prepare node_a --for pg_dump --target node_a").fails_with("STP-5004");
    a.steepctl("node prepare node_a --for pg_basebackup --target node_a").fails_with("STP-5004");
    a.steepctl("node prepare node_a --for pg_dump --target node_x").fails_with("STP-5002");
    let mut after = a.slots().await;
    after.sort();
    assert_eq!(after, before);
    nothing_is_left([&a, &b]).await;
    a.sql("insert into t values (1)").await;
    b.holds_the_same_as(&a, "t").await;
    // A node that replicates is to be taken out first; and with what was prepared for it the last of it goes.
    for purpose in ["pg_dump", "pg_basebackup"] {
        let said = a.steepctl(&format!("node prepare node_a --for {purpose} --target node_b --expires 1h")).succeeds();
        assert!(said.stdout.contains("steepctl node remove node_b"), "{said}");
        assert!(said.stdout.contains("(then dropped)"), "{said}");
        let own: String = a.value("show data_directory").await;
        assert!(!said.stdout.lines().any(|line| line.starts_with("     ") && line.contains(&own)), "{said}");
    }
    b.steepctl("node remove node_b --confirm node_b").succeeds();
    assert_eq!(a.count("pg_publication where pubname = 'steep'").await, 1, "what was prepared is read through it");
    let listed = a.steepctl("node prepare node_a --list -o json").succeeds().json();
    for prepared in listed["preparations"].as_array().expect("a list") {
        let id = prepared["prepare_id"].as_str().expect("an id");
        a.steepctl(&format!("node prepare node_a --cancel {id}")).succeeds();
    }
    assert_eq!(a.count("pg_publication").await, 0, "a publication outlives all that could be read through it");
    assert_eq!(a.slots().await, ["steep_others"]);
}

#[tokio::test]
async fn a_node_made_by_hand_says_so_when_its_slot_is_lost() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key)").await;
    let next = prepare(&a, "");
    dump_and_restore(&a, &next);
    b.steepctl(&next.complete()).operation().completes().await;
    a.steepctl(&format!("slot drop node_a steep_prep_{} --force --confirm node_a", next.id)).succeeds();
    b.becomes(Diverged).await;
    let shown = b.steepctl("node show node_b").succeeds();
    assert!(shown.stdout.contains("STP-4203") && shown.stdout.contains("dropped by"), "{shown}");
}
