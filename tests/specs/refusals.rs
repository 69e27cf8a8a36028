//! What cannot work is refused before anything is made: with a code, the name of what is wrong, and what to do next.

use std::{path::Path, process::Command, time::Duration};

use steep_tests::{Cluster, Inventory, Node, NodeState, Outcome, PATIENCE, Stop, shop, until};

/// Everything both nodes hold.
async fn holdings(nodes: [&Node; 2]) -> [Inventory; 2] {
    [nodes[0].inventory().await, nodes[1].inventory().await]
}

#[track_caller]
fn same(before: &[Inventory; 2], after: &[Inventory; 2]) {
    before.iter().zip(after).for_each(|(before, after)| after.is_as(before));
}

/// Runs `words` at `asked`'s agent; it must be refused with `code` and `exit`, saying all of `says`, and nothing may
/// have changed on either node: no object, no row, no state, no operation.
async fn refused(asked: &Node, nodes: [&Node; 2], words: &str, code: &str, exit: i32, says: &[&str]) -> Outcome {
    let before = holdings(nodes).await;
    let operations = nodes[1].count("steep_repl.operations").await;
    let outcome = asked.steepctl(words).arg("--no-input").fails_with(code);
    assert_eq!(outcome.status, exit, "{outcome}");
    for word in says {
        assert!(outcome.stderr.contains(word), "{word:?} is not said: {outcome}");
    }
    same(&before, &holdings(nodes).await);
    for node in nodes {
        assert_eq!(node.state().await, Ok(NodeState::Uninitialized), "{words} moved {}", node.id());
    }
    assert_eq!(nodes[1].count("steep_repl.operations").await, operations, "{words} left an operation");
    outcome
}

/// Both databases as new.
async fn clear(nodes: [&Node; 2]) {
    for node in nodes {
        node.sql(
            "drop schema public cascade; create schema public; select lo_unlink(oid) from pg_largeobject_metadata",
        )
        .await;
    }
}

const START: &str = "node start node_b --from node_a";

struct Case {
    on_a: &'static str,
    on_b: &'static str,
    words: &'static str,
    code: &'static str,
    exit: i32,
    says: &'static [&'static str],
}

const CASE: Case = Case { on_a: "", on_b: "", words: START, code: "", exit: 8, says: &[] };

const CASES: [Case; 17] = [
    Case { words: "node start node_x --from node_a", code: "STP-5002", exit: 1, says: &["node_x", "node list"], ..CASE },
    Case { words: "node start node_b --from node_x", code: "STP-5002", exit: 1, says: &["node_x"], ..CASE },
    Case { words: "node start node_b --from node_b", code: "STP-5004", says: &["node_b from itself"], ..CASE },
    Case { code: "STP-2207", says: &["node_a", "holds no table"], ..CASE },
    Case {
        on_a: "create table t (id int primary key)",
        words: "node start node_b --from node_a --tables public.nowhere",
        code: "STP-2208",
        says: &["there is no table public.nowhere"],
        ..CASE
    },
    Case {
        on_a: "create table t (id int primary key)",
        words: "node start node_b --from node_a --schemas nowhere",
        code: "STP-2208",
        says: &["there is no schema", "nowhere"],
        ..CASE
    },
    Case {
        on_a: "create table t (id int primary key)",
        words: "node start node_b --from node_a --exclude public.t",
        code: "STP-2207",
        says: &["matches no table"],
        ..CASE
    },
    Case {
        on_a: "create table bare (id int); create table good (id int primary key)",
        code: "STP-2201",
        says: &["public.bare has no primary key", "alter table public.bare", "--exclude"],
        ..CASE
    },
    Case {
        on_a: "create unlogged table fast (id int primary key)",
        code: "STP-2203",
        says: &["public.fast is unlogged", "set logged"],
        ..CASE
    },
    Case {
        on_a: "create table parent (id int primary key); create table child (id int primary key, p int references parent)",
        words: "node start node_b --from node_a --tables public.child",
        code: "STP-2206",
        says: &["public.child refers to public.parent", "select public.parent too"],
        ..CASE
    },
    Case {
        on_a: "create table p (id int primary key) partition by range (id);
               create table p1 partition of p for values from (1) to (9)",
        words: "node start node_b --from node_a --exclude public.p1",
        code: "STP-2203",
        says: &["partition public.p1 is left out of public.p"],
        ..CASE
    },
    Case {
        on_a: "create table t (id int primary key); select lo_create(0)",
        code: "STP-2209",
        says: &["1 large objects"],
        ..CASE
    },
    Case {
        on_a: "create table t (id int primary key, a int, b text)",
        on_b: "create table t (id int primary key, a bigint, c text not null)",
        code: "STP-2202",
        exit: 3,
        says: &["public.t", "column a is bigint here and integer on node_a", "column b (text) is missing", "column c exists here only"],
        ..CASE
    },
    Case {
        on_a: "create role keeper; create table t (id int primary key); alter table t owner to keeper",
        code: "STP-2205",
        says: &["keeper", "pg_dumpall --roles-only"],
        ..CASE
    },
    Case {
        on_a: "drop role keeper; create table t (id int primary key); insert into t select generate_series(1, 3)",
        on_b: "create table t (id int primary key); insert into t select generate_series(1, 1234)",
        code: "STP-2301",
        says: &["public.t: 1234", "--force"],
        ..CASE
    },
    Case {
        on_a: "create table t (id int primary key)",
        on_b: "create table t (id int primary key); insert into t values (1)",
        words: "node start node_b --from node_a --force",
        code: "STP-5009",
        says: &["--confirm node_b"],
        ..CASE
    },
    Case {
        on_a: "create table t (id int primary key)",
        on_b: "create table t (id int primary key);
               create subscription steep_from_node_a connection '' publication p with (connect = false, slot_name = none)",
        code: "STP-4002",
        exit: 9,
        says: &["steep_from_node_a"],
    ..CASE
    },
];

#[tokio::test]
async fn what_the_databases_hold_is_refused_with_its_name_and_changes_nothing() {
    let [a, b] = Cluster::of(2).setting("max_prepared_transactions", "5").start().await;
    for (number, case) in CASES.iter().enumerate() {
        clear([&a, &b]).await;
        a.sql(case.on_a).await;
        b.sql(case.on_b).await;
        // Any agent may be asked.
        let asked = if number % 2 == 0 { &a } else { &b };
        eprintln!("{}: {}", case.code, case.words);
        refused(asked, [&a, &b], case.words, case.code, case.exit, case.says).await;
    }
    b.sql("drop subscription steep_from_node_a").await;

    clear([&a, &b]).await;
    a.sql("create table t (id int primary key); insert into t select generate_series(1, 3)").await;
    a.sql("begin; insert into t values (4); prepare transaction 'forgotten'").await;
    refused(&a, [&a, &b], START, "STP-2304", 8, &["forgotten", "rollback prepared"]).await;
    a.sql("rollback prepared 'forgotten'").await;

    // The refusals have left nothing in the way of what is meant: rows go when the operator says so twice.
    b.sql("create table t (id int primary key); insert into t select generate_series(100, 200)").await;
    b.steepctl("node start node_b --from node_a --force --confirm node_b").succeeds();
    b.becomes(NodeState::Synchronized).await;
    b.holds_the_same_as(&a, "t").await;
    let outcome = b.steepctl(START).fails_with("STP-4002");
    assert_eq!(outcome.status, 9, "{outcome}");
}

#[tokio::test]
async fn a_dry_run_shows_plan_and_findings_and_changes_nothing() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(500)).await;
    let before = holdings([&a, &b]).await;
    let plan = a.steepctl("node start node_b --from node_a --dry-run").succeeds();
    for word in ["public.orders", "public.customers", "direct"] {
        assert!(plan.stdout.contains(word), "{word:?} is not in the plan: {plan}");
    }
    let plan = b.steepctl("node start node_b --from node_a --dry-run -o json").succeeds().json();
    assert_eq!(plan["tables"].as_array().map(Vec::len), Some(2), "{plan}");
    assert!(plan["checks"].as_array().is_some_and(|checks| checks.len() > 10), "{plan}");

    a.sql("create table bare (id int); create unlogged table fast (id int primary key)").await;
    let told = a.steepctl("node start node_b --from node_a --dry-run").fails_with("STP-2201");
    assert_eq!(told.status, 8, "{told}");
    for word in ["public.bare", "public.fast", "public.orders"] {
        assert!(told.stdout.contains(word), "{word:?} is not told: {told}");
    }
    a.sql("drop table bare, fast").await;
    same(&before, &holdings([&a, &b]).await);
    assert_eq!(b.state().await, Ok(NodeState::Uninitialized));
    assert_eq!(b.count("steep_repl.operations").await, 0, "a dry run is no operation");
}

/// Restarts both ends of a node with server settings.
async fn with_settings(node: &Node, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        node.sql(&format!("alter system set {name} = '{value}'")).await;
    }
    node.stop_postgres(Stop::Fast);
    node.start_postgres();
    until(&format!("the agent of {} is back", node.id()), PATIENCE, async || match node.http("/readyz") {
        (200, _) => Ok(()),
        (_, body) => Err(body),
    })
    .await;
}

#[tokio::test]
async fn a_server_without_room_or_wal_for_replication_is_refused() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key)").await;
    for (node, one_way_works) in [(&a, false), (&b, true)] {
        with_settings(node, &[("wal_level", "replica")]).await;
        refused(
            &a,
            [&a, &b],
            START,
            "STP-2002",
            8,
            &[node.id(), "wal_level is replica", "alter system set wal_level = logical"],
        )
        .await;
        let one_way = a.steepctl("node start node_b --from node_a --one-way --dry-run").outcome();
        assert_eq!(one_way.status == 0, one_way_works, "one way only the source needs it: {one_way}");
        with_settings(node, &[("wal_level", "logical"), ("max_replication_slots", "1")]).await;
        node.sql("select pg_create_physical_replication_slot('taken')").await;
        refused(
            &a,
            [&a, &b],
            START,
            "STP-2003",
            8,
            &[node.id(), "all 1 replication slots are in use", "max_replication_slots"],
        )
        .await;
        node.sql("select pg_drop_replication_slot('taken')").await;
        with_settings(node, &[("max_replication_slots", "20")]).await;
    }
    with_settings(&a, &[("max_wal_senders", "1")]).await;
    let folder = tempdir(&a);
    let mut receiving =
        a.program("pg_receivewal").arg("-D").arg(&folder).spawn().expect("pg_receivewal lies beside the server");
    until("a walsender is busy", PATIENCE, async || match a.count("pg_stat_replication").await {
        1 => Ok(()),
        count => Err(count),
    })
    .await;
    refused(&b, [&a, &b], START, "STP-2004", 8, &["node_a", "all 1 walsenders are in use", "max_wal_senders"]).await;
    receiving.kill().expect("it runs");
    receiving.wait().expect("it ends");
    with_settings(&a, &[("max_wal_senders", "20")]).await;
    with_settings(&b, &[("max_replication_slots", "4"), ("max_active_replication_origins", "4")]).await;
    refused(&b, [&a, &b], START, "STP-2006", 8, &["node_b", "replication origins are free", "--parallel"]).await;
    b.steepctl("node start node_b --from node_a --parallel 1").succeeds();
}

/// A folder that goes with the node's cluster.
fn tempdir(node: &Node) -> std::path::PathBuf {
    let folder = node.agent_toml().with_file_name("folder");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    folder
}

#[tokio::test]
async fn a_role_that_may_not_do_it_is_refused_and_row_security_hides_nothing_silently() {
    let [a, b] = Cluster::of(2).start().await;
    a.stop_agent();
    a.sql("drop schema steep_repl cascade; create role steeper login; grant create on database postgres to steeper")
        .await;
    a.sql("create table t (id int primary key); insert into t select generate_series(1, 10)").await;
    b.sql("create role steeper").await;
    a.reconfigure_agent(|toml| toml.replace("user = \"postgres\"", "user = \"steeper\""));
    assert_eq!(
        a.value::<String>("select nspowner::regrole::text from pg_namespace where nspname = 'steep_repl'").await,
        "steeper"
    );
    let start = "node start node_b --from node_a --one-way";
    let nodes = [&a, &b];

    refused(&a, nodes, start, "STP-2101", 7 + 1, &["steeper has no replication privilege", "alter role"]).await;
    a.sql("alter role steeper replication").await;
    refused(&a, nodes, start, "STP-2102", 8, &["may not read public.t", "grant select on public.t to steeper"]).await;
    a.sql("grant select on t to steeper").await;
    refused(&a, nodes, start, "STP-2110", 8, &["does not own public.t"]).await;
    a.sql("alter table t owner to steeper; alter table t enable row level security; alter table t force row level security;
           create policy half on t using (id <= 5)").await;
    refused(&a, nodes, start, "STP-2103", 8, &["row security hides rows of public.t", "bypassrls"]).await;
    a.sql("revoke create on database postgres from steeper; alter role steeper bypassrls").await;
    refused(&a, nodes, start, "STP-2110", 8, &["may not create in the database"]).await;
    a.sql("grant create on database postgres to steeper").await;
    b.steepctl(start).succeeds();
    assert_eq!(b.count("t").await, 10, "all rows, policy or not");
}

#[tokio::test]
async fn a_target_role_that_may_not_load_or_subscribe_is_refused() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key)").await;
    b.stop_agent();
    b.sql("drop schema steep_repl cascade; create role steeper login; grant create on database postgres to steeper")
        .await;
    b.reconfigure_agent(|toml| toml.replace("user = \"postgres\"", "user = \"steeper\""));
    let start = "node start node_b --from node_a --one-way";
    let outcome = refused(&b, [&a, &b], start, "STP-2105", 8, &["node_b", "role steeper is no superuser"]).await;
    assert!(outcome.stderr.contains("STP-2107"), "what else is in the way is told too: {outcome}");
}

#[tokio::test]
async fn a_pg_dump_older_than_the_server_is_refused() {
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).start().await;
    a.sql("create table t (id int primary key)").await;
    let older = a.program("pg_dump").get_program().to_owned();
    let older = Path::new(&older).parent().expect("a program lies in a folder").display().to_string();
    let own = Path::new(b.program("pg_dump").get_program()).parent().expect("a folder").display().to_string();
    b.reconfigure_agent(|toml| toml.replace(&own, &older));
    b.sql("create table t (id int primary key)").await;
    // node_b as the source, which dumps: the other way round than usual.
    let before = holdings([&a, &b]).await;
    let outcome = a.steepctl("node start node_a --from node_b").fails_with("STP-2501");
    assert_eq!(outcome.status, 8, "{outcome}");
    assert!(outcome.stderr.contains("node_b") && outcome.stderr.contains("bin_dir"), "{outcome}");
    same(&before, &holdings([&a, &b]).await);
}

/// A small disk under a server's data directory, until it drops.
struct SmallDisk<'a> {
    node: &'a Node,
}

impl<'a> SmallDisk<'a> {
    /// None where this account may not mount.
    fn under(node: &'a Node, megabytes: u32) -> Option<Self> {
        let data = node.data_directory();
        let aside = data.with_file_name("data-aside");
        node.stop_postgres(Stop::Fast);
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).arg(data).status().is_ok_and(|status| status.success())
        };
        std::fs::rename(data, &aside).expect("it can be moved");
        std::fs::create_dir(data).expect("a folder can be made");
        let mounted = run("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "none"]);
        if !mounted {
            std::fs::remove_dir(data).expect("it is empty");
            std::fs::rename(&aside, data).expect("it can be moved back");
            node.start_postgres();
            return None;
        }
        let copied = Command::new("cp").arg("-aT").arg(&aside).arg(data).status().is_ok_and(|status| status.success());
        let disk = Self { node };
        assert!(copied, "the data directory fits on the small disk");
        node.start_postgres();
        Some(disk)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let data = self.node.data_directory();
        if data.join("postmaster.pid").exists() {
            self.node.stop_postgres(Stop::Immediate);
        }
        let unmounted = Command::new("umount").arg("-l").arg(data).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", data.display());
    }
}

#[tokio::test]
async fn a_target_disk_that_is_too_small_is_refused() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        "create table t (id int primary key, body text);
           insert into t select n, repeat(md5(n::text), 100) from generate_series(1, 20000) n;
           alter table t alter body set storage external; update t set body = body || 'x'",
    )
    .await;
    let Some(_disk) = SmallDisk::under(&b, 120) else {
        eprintln!("not tried: this account may not mount a small disk");
        return;
    };
    until("the agent is back", PATIENCE, async || match b.http("/readyz") {
        (200, _) => Ok(()),
        (_, body) => Err(body),
    })
    .await;
    refused(&a, [&a, &b], START, "STP-2401", 8, &["node_b", "bytes are free", "are needed"]).await;
}

/// A table that takes a minute to copy at the rate below.
const SLOW: &str = "node start node_b --from node_a --max-rate 200kB";

async fn fill_slowly(a: &Node) {
    a.sql(
        "create table t (id int primary key, body text not null default '');
           insert into t select n, repeat(md5(n::text), 10) from generate_series(1, 40000) n",
    )
    .await;
}

#[tokio::test]
async fn a_ddl_during_the_copy_goes_through_at_once_and_the_copy_is_given_up() {
    let [a, b] = Cluster::of(2).start().await;
    fill_slowly(&a).await;
    let op = b.steepctl(SLOW).operation();
    op.reaches("copy tables").await;
    let ddl = tokio::time::timeout(Duration::from_secs(20), a.sql("alter table t add column extra int"));
    ddl.await.expect("the DDL does not wait for the copy");
    op.fails_with("STP-3103").await;
    let shown = op.shown().await.expect("it is known");
    let failure = &shown["operation"]["failure"];
    assert!(
        failure["message"].as_str().is_some_and(|text| text.contains("public.t") && text.contains("pid")),
        "{failure}"
    );
    b.becomes(NodeState::Failed).await;
    assert!(a.slots().await.is_empty() && b.slots().await.is_empty(), "a failed copy keeps no WAL");
    assert_eq!(b.texts("select relname from pg_class where relname = 't'").await, Vec::<String>::new());
    // What it says to do next works.
    b.steepctl(START).succeeds();
    b.holds_the_same_as(&a, "t").await;
}

#[tokio::test]
async fn told_to_wait_a_ddl_waits_for_the_copy_which_goes_on() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\non_blocked_ddl = \"wait\"").start().await;
    a.sql(&shop::orders(2000)).await;
    b.hold_after("create tables");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    let other = a.connect().await;
    let waiting = tokio::spawn(async move {
        other
            .batch_execute("alter table orders alter notes set default 'none'")
            .await
            .expect("it waits, then it works");
    });
    until("the DDL waits", PATIENCE, async || match a.count("pg_locks where not granted").await {
        0 => Err("nobody waits"),
        _ => Ok(()),
    })
    .await;
    until("the source says that somebody waits", PATIENCE, async || {
        let log = a.log();
        if log.contains("snapshot.ddl_waits") { Ok(()) } else { Err(log) }
    })
    .await;
    b.let_go();
    waiting.await.expect("the DDL went through");
    op.completes().await;
    b.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn told_to_wait_the_copy_never_stands_behind_the_ddl_for_ever() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\non_blocked_ddl = \"wait\"").start().await;
    a.sql(&shop::orders(200)).await;
    // Before the schema is read: pg_dump takes locks of its own, so it would wait for the DDL and the DDL for us.
    b.hold_after("open session");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    let other = a.connect().await;
    let waiting = tokio::spawn(async move {
        other
            .batch_execute("alter table orders alter notes set default 'none'")
            .await
            .expect("it waits, then it works");
    });
    until("the DDL waits", PATIENCE, async || match a.count("pg_locks where not granted").await {
        0 => Err("nobody waits"),
        _ => Ok(()),
    })
    .await;
    b.let_go();
    op.fails_with("STP-3103").await;
    waiting.await.expect("the DDL went through");
}

#[tokio::test]
async fn columns_that_changed_after_the_snapshot_end_the_initialization() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(2000)).await;
    let before = holdings([&a, &b]).await;
    b.hold_after("copy tables");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    a.sql("alter table orders add column extra int").await;
    b.let_go();
    op.fails_with("STP-3104").await;
    let failure = op.shown().await.expect("it is known")["operation"]["failure"].clone();
    assert!(failure["message"].as_str().is_some_and(|text| text.contains("public.orders")), "{failure}");
    a.sql("alter table orders drop column extra").await;
    same(&before, &holdings([&a, &b]).await);
    b.becomes(NodeState::Failed).await;
    b.steepctl(START).succeeds();
}

#[tokio::test]
async fn a_long_transaction_that_keeps_the_slot_from_being_made_is_named() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\nslot_timeout = \"2s\"").start().await;
    a.sql(&shop::orders(200)).await;
    let before = holdings([&a, &b]).await;
    let other = a.connect().await;
    other.batch_execute("begin; insert into customers (name) values ('undecided')").await.expect("it can write");
    let pid: i32 = other.query_one("select pg_backend_pid()", &[]).await.expect("it answers").get(0);
    let op = b.steepctl(START).operation();
    op.fails_with("STP-2303").await;
    let failure = op.shown().await.expect("it is known")["operation"]["failure"].clone();
    assert!(failure.to_string().contains(&pid.to_string()), "pid {pid} is not named: {failure}");
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("pg_terminate_backend")), "{failure}");
    other.batch_execute("rollback").await.expect("it answers");
    same(&before, &holdings([&a, &b]).await);
    b.becomes(NodeState::Failed).await;
    b.steepctl(START).succeeds();
}

#[tokio::test]
async fn an_agent_of_another_node_is_kept_out_of_a_database() {
    let [a, b] = Cluster::of(2).start().await;
    let own = b.host().display().to_string();
    let foreign = a.host().display().to_string();
    let mut stray =
        b.stray_agent("foreign", |toml| toml.replace(&format!("host = {own:?}"), &format!("host = {foreign:?}")));
    let status = stray.ends().await;
    assert_eq!(status.code(), Some(9), "{}", stray.log());
    let log = stray.log();
    for word in ["STP-4101", "node_a", "node_b", "Hint:", "steep-agent adopt-copy", "--prepare-id ID"] {
        assert!(log.contains(word), "{word:?} is not said: {log}");
    }
}

#[tokio::test]
async fn two_agents_with_one_node_id_do_not_share_a_database_or_a_mesh() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key)").await;
    let mut twin = b.stray_agent("twin", |toml| toml);
    let status = twin.ends().await;
    assert_eq!(status.code(), Some(9), "{}", twin.log());
    assert!(twin.log().contains("STP-1108"), "{}", twin.log());

    // A second node_b with a database of its own, which dials the others as node_b.
    b.sql("create database elsewhere").await;
    let mut double = b.stray_agent("double", |toml| toml.replace("dbname = \"postgres\"", "dbname = \"elsewhere\""));
    double.says("STP-1108").await;
    // The first one still works.
    b.steepctl(START).succeeds();
}
