//! An initialization goes on by itself: whoever dies or is away meanwhile, no row is lost or doubled, and what has landed is
//! not copied again.
//!
//! Where it says that agents die at any crash point, `cargo x test crash` takes every one of them, and any other run the few that
//! are named beside.

use std::time::{Duration, Instant};

use steep_tests::{
    Cluster, Inventory, Ledger, Node,
    NodeState::{self, Synchronized},
    Operation, PATIENCE, Stop, crash_points, shop, until,
};

const START: &str = "node start node_b --from node_a";

/// Where the target's agent dies, in the order an initialization comes there.
const POINTS: [&str; 15] = [
    "session opened",
    // Of what is made the fourth is the tables.
    "made, not marked:4",
    "amid a part:3",
    "before a commit:2",
    "after a commit:2",
    "all copied",
    "indexes built",
    "rest built",
    "before subscribe",
    "subscribed",
    "catching up",
    "subscribed back",
    "verified",
    "before synchronized",
    "synchronized",
];

/// Some tables of several parts, keys, an index, a foreign key, a trigger, a view; for parts of 1 MiB.
const WIDE: &str = "
    create table wide (id bigint primary key, text text not null, at timestamptz not null default now());
    insert into wide select n, repeat(md5(n::text), 8) from generate_series(1, 24000) n;
    create index wide_at on wide (at, id);
    create table bag (n int, text text);
    alter table bag replica identity full;
    insert into bag select n % 7, md5(n::text) from generate_series(1, 30000) n;
    create function stamp() returns trigger language plpgsql as 'begin new.at := now(); return new; end';
    create trigger stamped before update on wide for each row execute function stamp();
    create view long_ago as select id from wide where at < now() - interval '1 year';
    analyze;";

/// A part as the ledger has it: table, number, rows, and when it landed.
type Part = (String, i32, i64, String);

async fn landed(b: &Node) -> Vec<Part> {
    let query =
        "select table_schema || '.' || table_name, part, row_count, copied_at::text from steep_repl.copied_parts
                  order by 1, 2";
    b.rows(query).await.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

/// Everything that had landed is there as it was: it was not copied again.
async fn is_kept(before: &[Part], b: &Node, when: &str) -> Vec<Part> {
    let now = landed(b).await;
    for part in before {
        assert!(now.contains(part), "{when}: {part:?} was copied again, or is gone");
    }
    now
}

async fn parts_land(b: &Node, more_than: usize) -> Vec<Part> {
    until("parts land", PATIENCE, async || {
        let parts = landed(b).await;
        if parts.len() > more_than { Ok(parts) } else { Err(parts.len()) }
    })
    .await
}

async fn alike(a: &Node, b: &Node, tables: &[&str]) {
    for table in tables {
        b.holds_the_same_as(a, table).await;
    }
    for query in [
        "select indexdef from pg_indexes where schemaname = 'public' order by 1",
        "select conrelid::regclass || conname || pg_get_constraintdef(oid) from pg_constraint
          where connamespace = 'public'::regnamespace and contype <> 'n' order by 1",
        "select tgrelid::regclass || tgname from pg_trigger where not tgisinternal and tgrelid::regclass::text = 'wide'",
    ] {
        assert_eq!(a.texts(query).await, b.texts(query).await, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_agent_that_dies_at_any_crash_point_goes_on_where_it_was() {
    let [a, b] = Cluster::of(2)
        .agent_toml("[copy]\npart_size = \"1MiB\"")
        .setting("wal_retrieve_retry_interval", "200ms")
        .start()
        .await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(&shop::orders(20_000)).await;
    a.sql(WIDE).await;
    let before = [a.slots().await, b.slots().await];
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(50).await;

    let points = crash_points(&POINTS, &["amid a part:3", "after a commit:2", "subscribed"]);
    b.stop_agent();
    b.start_agent_to_die(points[0]);
    let op = until("the agent takes an order", PATIENCE, async || {
        let outcome = a.steepctl(START).arg("--detach").arg("-o").arg("json").outcome();
        if outcome.status == 0 { Ok(Operation::known(&b, &outcome)) } else { Err(outcome.to_string()) }
    })
    .await;
    let mut watching = a.steepctl("op watch").arg(op.id()).arg("--progress").arg("plain").follows();
    let mut parts = Vec::new();
    for (index, point) in points.iter().enumerate() {
        b.agent_dies(point).await;
        eprintln!("died at {point:?}, {} parts had landed", landed(&b).await.len());
        parts = is_kept(&parts, &b, point).await;
        on_a.write(20).await;
        match points.get(index + 1) {
            Some(next) => b.start_agent_to_die(next),
            None => b.start_agent(),
        }
    }
    op.completes().await;
    b.becomes(Synchronized).await;
    is_kept(&parts, &b, "at the end").await;
    assert_eq!(watching.ends().await, 0, "whoever watched saw it to its end: {}", watching.talk());
    let twice = "steep_repl.copied_parts p group by table_schema, table_name, part having count(*) > 1";
    assert_eq!(b.texts(&format!("select table_name from {twice}")).await, Vec::<String>::new());

    on_a.write(50).await;
    on_b.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &["orders", "customers", "wide", "bag"]).await;
    for (node, before) in [&a, &b].into_iter().zip(before) {
        assert_eq!(node.slots().await.len(), before.len() + 1, "{}: {:?}", node.id(), node.slots().await);
        let left = "steep_repl.intents where state in ('planned', 'live')";
        assert_eq!(node.count(left).await, 0, "{}", node.id());
        let origins = "pg_replication_origin where roname like 'steep_%'";
        assert_eq!(node.count(origins).await, 0, "{}", node.id());
    }
    assert_eq!(b.count("steep_repl.operation_notes").await, 0, "what it had to know is forgotten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_to_a_mesh_that_dies_at_a_crash_point_misses_nothing_of_any_node() {
    let [a, b, c] = Cluster::of(3).setting("wal_retrieve_retry_interval", "200ms").start().await;
    let ledger = Ledger::on(&a, 500).await;
    b.steepctl(START).succeeds();
    let [on_a, on_b, on_c] = [&a, &b, &c].map(|node| ledger.writers(2, node));
    on_b.write(50).await;
    c.stop_agent();
    // The second subscription is the one to the member, which has to begin where the source's snapshot ends.
    let points = [
        "session opened",
        "after a commit:2",
        "subscribed:2",
        "catching up",
        "subscribed back:2",
        "before synchronized",
    ];
    let points = crash_points(&points, &["subscribed:2"]);
    c.start_agent_to_die(points[0]);
    let op = until("the agent takes an order", PATIENCE, async || {
        let outcome = a.steepctl("node start node_c --from node_a --detach -o json").outcome();
        if outcome.status == 0 { Ok(Operation::known(&c, &outcome)) } else { Err(outcome.to_string()) }
    })
    .await;
    let mut parts = Vec::new();
    for (index, point) in points.iter().enumerate() {
        c.agent_dies(point).await;
        parts = is_kept(&parts, &c, point).await;
        on_a.write(20).await;
        on_b.write(20).await;
        match points.get(index + 1) {
            Some(next) => c.start_agent_to_die(next),
            None => c.start_agent(),
        }
    }
    op.completes().await;
    is_kept(&parts, &c, "at the end").await;
    for writers in [&on_a, &on_b, &on_c] {
        writers.write(30).await;
    }
    let accounts = [on_a.stop().await, on_b.stop().await, on_c.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
}

/// Where the source's agent dies, in the order an initialization comes there.
const SOURCE_POINTS: [&str; 9] = [
    // The target does not know yet that there is a session.
    "slot made",
    "session noted",
    "amid sending",
    "amid sending:5",
    "counted",
    "releasing",
    "catching up",
    "subscribed to the target",
    "kept",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_agent_that_dies_at_any_crash_point_finds_its_sessions_again() {
    source_dies_at(&crash_points(&SOURCE_POINTS, &["amid sending:5", "subscribed to the target"]), Cluster::of(2))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_agent_on_16_that_dies_at_a_crash_point_finds_its_sessions_again() {
    let points = ["slot made", "amid sending:5", "catching up", "subscribed to the target"];
    source_dies_at(&crash_points(&points, &["amid sending:5"]), Cluster::of(2).pg(&["16", "18"])).await;
}

async fn source_dies_at(points: &[&str], cluster: Cluster) {
    let cluster = cluster.agent_toml("[copy]\npart_size = \"1MiB\"").setting("wal_retrieve_retry_interval", "200ms");
    let [a, b] = cluster.start().await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(WIDE).await;
    let before = [a.slots().await, b.slots().await];
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(20).await;
    a.stop_agent();
    a.start_agent_to_die(points[0]);
    let op = until("the target takes an order", PATIENCE, async || {
        let outcome = b.steepctl(START).arg("--detach").arg("-o").arg("json").outcome();
        if outcome.status == 0 { Ok(Operation::known(&b, &outcome)) } else { Err(outcome.to_string()) }
    })
    .await;
    let mut parts = Vec::new();
    for (index, point) in points.iter().enumerate() {
        match *point {
            "catching up" => {
                op.reaches("catch up").await;
                a.kill_agent();
            }
            point => a.agent_dies(point).await,
        }
        eprintln!("died at {point:?}, {} parts had landed", landed(&b).await.len());
        parts = is_kept(&parts, &b, point).await;
        on_a.write(20).await;
        match points.get(index + 1) {
            Some(&"catching up") | None => a.start_agent_unready(),
            Some(next) => a.start_agent_to_die(next),
        }
    }
    op.completes().await;
    b.becomes(Synchronized).await;
    is_kept(&parts, &b, "at the end").await;
    a.keeps_nothing().await;
    on_a.write(30).await;
    on_b.write(30).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    alike(&a, &b, &["wide", "bag"]).await;
    for (node, before) in [&a, &b].into_iter().zip(before) {
        assert_eq!(node.slots().await.len(), before.len() + 1, "{}: {:?}", node.id(), node.slots().await);
        let left = "steep_repl.intents where state in ('planned', 'live') or (kind = 'session' and state = 'kept')";
        assert_eq!(node.count(left).await, 0, "{}", node.id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_agent_that_is_killed_or_restarted_is_waited_for_and_the_copy_goes_on_in_the_same_snapshot() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(WIDE).await;
    a.sql(
        "create function slow(bigint) returns bigint immutable language plpgsql as
           $$ begin if current_setting('application_name') like 'steep-restore%' then perform pg_sleep(1); end if; return $1; end $$;
         create table few (id bigint primary key); insert into few values (1), (2), (3);
         create index slowly on few (slow(id))",
    )
    .await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    b.hold_after("subscribe");
    let op = b.steepctl(START).arg("--max-rate").arg("3MB").operation();
    let mut parts = parts_land(&b, 1).await;
    let keepers = a.keepers();
    let goes_on = async |how: &str| {
        let told = a.log().matches("snapshot.session_resumed").count();
        match how {
            "killed" => a.kill_agent(),
            _ => a.stop_agent(),
        }
        assert_eq!(a.slots().await.len(), 1, "{how}: the slot stays");
        on_a.write(20).await;
        let began = Instant::now();
        a.start_agent();
        let took = began.elapsed();
        eprintln!("{how}: its session was taken up within {:.1} s", took.as_secs_f64());
        assert!(a.log().matches("snapshot.session_resumed").count() > told, "{how}: before anybody could ask for it");
    };
    goes_on("killed").await;
    parts = is_kept(&parts, &b, "killed").await;
    parts_land(&b, parts.len()).await;
    assert_eq!(a.keepers(), keepers, "the keeper is still the same");
    goes_on("told to end").await;
    parts = is_kept(&parts, &b, "told to end").await;
    assert_eq!(a.keepers(), keepers, "the keeper is still the same");
    let restarts = async |how: &str, step: &str| {
        op.reaches(step).await;
        goes_on(how).await;
    };
    restarts("killed", "build indexes").await;
    b.is_held().await;
    goes_on("killed").await;
    b.let_go();
    op.completes().await;
    is_kept(&parts, &b, "at the end").await;
    a.keeps_nothing().await;
    on_b.write(20).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await, on_b.stop().await]).await;
    alike(&a, &b, &["wide", "bag", "few"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_of_a_mesh_dies_while_a_newcomer_copies_and_nobody_misses_a_change() {
    let [a, b, c] = Cluster::of(3).setting("wal_retrieve_retry_interval", "200ms").start().await;
    let ledger = Ledger::on(&a, 500).await;
    b.steepctl(START).succeeds();
    let [on_a, on_b, on_c] = [&a, &b, &c].map(|node| ledger.writers(2, node));
    c.hold_after("create tables");
    let op = c.steepctl("node start node_c --from node_a").operation();
    c.is_held().await;
    // The source and a member, which holds a slot for the newcomer.
    for node in [&a, &b] {
        node.kill_agent();
        on_b.write(20).await;
        node.start_agent();
    }
    c.let_go();
    op.completes().await;
    for writers in [&on_a, &on_b, &on_c] {
        writers.write(30).await;
    }
    let accounts = [on_a.stop().await, on_b.stop().await, on_c.stop().await];
    ledger.agrees(&[&a, &b, &c], &accounts).await;
}

#[tokio::test]
async fn a_copy_is_cancelled_while_its_source_is_down_and_the_source_is_clean_once_it_is_back() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(WIDE).await;
    let before: [Inventory; 2] = [a.inventory().await, b.inventory().await];
    let op = b.steepctl(START).arg("--max-rate").arg("200kB").operation();
    op.reaches("copy tables").await;
    a.kill_agent();
    let cancelling = b.steepctl("node cancel node_b");
    let cancelled = tokio::task::spawn_blocking(move || cancelling.outcome());
    assert!(["cancelled", "failed"].contains(&op.ends().await.as_str()), "it ends, whoever is away");
    let _ = cancelled.await;
    assert_eq!(a.keepers().len(), 1, "the keeper knows nothing of it");
    a.start_agent();
    for (node, before) in [&a, &b].iter().zip(&before) {
        until(&format!("{} holds what it held", node.id()), PATIENCE * 3, async || {
            let left = node.inventory().await.since(before);
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        })
        .await;
    }
    a.keeps_nothing().await;
}

#[tokio::test]
async fn a_keeper_lets_go_of_snapshot_and_slot_when_no_agent_comes_back() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"\nsession_lease = \"4s\"").start().await;
    a.sql(WIDE).await;
    let before: [Inventory; 2] = [a.inventory().await, b.inventory().await];
    let op = b.steepctl(START).arg("--max-rate").arg("200kB").operation();
    op.reaches("copy tables").await;
    a.stop_agent();
    assert_eq!((a.keepers().len(), a.slots().await.len()), (1, 1), "it is kept for the next run");
    a.keeps_nothing().await;
    assert_eq!(a.slots().await, Vec::<String>::new(), "a slot that nobody can use keeps no WAL back");
    assert_eq!(a.count("pg_stat_activity where application_name like 'steep-keeper%'").await, 0);
    assert!(a.log().contains("STP-3102"), "it says why");
    assert_eq!(op.ends().await, "failed");
    a.start_agent();
    for (node, before) in [&a, &b].iter().zip(&before) {
        until(&format!("{} holds what it held", node.id()), PATIENCE * 3, async || {
            let left = node.inventory().await.since(before);
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_snapshot_costs_what_was_copied_and_the_copy_begins_anew_by_itself() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(WIDE).await;
    // One table is there before, and stays.
    b.sql(
        "create table bag (n int, text text); alter table bag replica identity full;
         create function stamp() returns trigger language plpgsql as 'begin new.at := now(); return new; end'",
    )
    .await;
    let bag = b.value::<u32>("select 'bag'::regclass::oid").await;
    let on_a = ledger.writers(2, &a);
    // One stream takes the largest table first: none is finished, which would stay.
    let op = b.steepctl(START).arg("--parallel").arg("1").arg("--max-rate").arg("4MB").operation();
    let mut watching = a.steepctl("op watch").arg(op.id()).arg("--progress").arg("plain").follows();
    let begins_anew = async |how: &str, times: usize| {
        until(&format!("{how}: the copy begins anew"), PATIENCE, async || {
            let told = b.log().matches("\"init.restarted\"").count();
            if told == times { Ok(()) } else { Err(format!("{told} times")) }
        })
        .await;
    };
    parts_land(&b, 2).await;
    a.kill_keepers();
    begins_anew("its keeper was killed", 1).await;
    parts_land(&b, 2).await;
    a.stop_postgres(Stop::Immediate);
    a.start_postgres();
    begins_anew("its server crashed", 2).await;
    parts_land(&b, 2).await;
    // The source's agent and what it kept; and the target's agent, while it takes back what it copied.
    b.kill_agent();
    b.start_agent_to_die("copy taken back");
    a.kill_agent();
    a.kill_keepers();
    a.start_agent();
    b.agent_dies("copy taken back").await;
    assert_eq!(landed(&b).await, Vec::<Part>::new(), "nothing of a lost snapshot counts any more");
    b.start_agent();
    begins_anew("all died", 3).await;
    op.completes().await;
    assert_eq!(b.value::<u32>("select 'bag'::regclass::oid").await, bag, "what was there before stayed");
    assert_eq!(watching.ends().await, 0, "whoever watched saw it to its end: {}", watching.talk());
    assert!(watching.lines().iter().any(|line| line.contains("init.restarted")), "{:#?}", watching.lines());
    a.keeps_nothing().await;
    let on_b = ledger.writers(2, &b);
    on_a.write(20).await;
    on_b.write(20).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await, on_b.stop().await]).await;
    alike(&a, &b, &["wide", "bag"]).await;
    for node in [&a, &b] {
        assert_eq!(node.slots().await.len(), 1, "{}: {:?}", node.id(), node.slots().await);
        assert_eq!(node.count("steep_repl.intents where state in ('planned', 'live')").await, 0, "{}", node.id());
    }
}

#[tokio::test]
async fn a_snapshot_lost_too_often_or_where_rows_were_written_meanwhile_is_for_an_operator_to_decide() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(WIDE).await;
    let before: [Inventory; 2] = [a.inventory().await, b.inventory().await];
    let is_clean = async |when: &str| {
        for (node, before) in [&a, &b].iter().zip(&before) {
            until(&format!("{when}: {} holds what it held", node.id()), PATIENCE, async || {
                let left = node.inventory().await.since(before);
                if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
            })
            .await;
        }
    };
    let slow = format!("{START} --max-rate 200kB");

    // Beginning anew would throw away a row that an application has been told is there.
    let op = b.steepctl(&slow).operation();
    op.reaches("copy tables").await;
    b.sql("insert into wide values (-1, 'written on the target')").await;
    a.kill_keepers();
    op.fails_with("STP-3107").await;
    let failure = op.shown().await.expect("it is known")["operation"]["failure"].clone();
    assert!(failure.to_string().contains("applications have written to node_b"), "{failure}");
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("node resume node_b")), "{failure}");
    is_clean("rows were written").await;

    let op = b.steepctl(&slow).operation();
    for times in 1..=4 {
        until(&format!("it begins for the {times}. time"), PATIENCE, async || {
            let told = b.log().matches("\"init.restarted\"").count();
            if told == times - 1 && !a.keepers().is_empty() { Ok(()) } else { Err(told) }
        })
        .await;
        op.reaches("copy tables").await;
        a.kill_keepers();
    }
    op.fails_with("STP-3107").await;
    is_clean("lost too often").await;
}

#[tokio::test]
async fn an_agent_that_is_told_to_end_leaves_its_operation_to_the_next_run() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(WIDE).await;
    let op = b.steepctl(START).arg("--max-rate").arg("3MB").operation();
    let mut watching = a.steepctl("op watch").arg(op.id()).arg("--progress").arg("plain").follows();
    let mut parts = parts_land(&b, 1).await;
    b.stop_agent();
    let status = "select status from steep_repl.operations order by started_at desc limit 1";
    assert_eq!(b.value::<String>(status).await, "interrupted");
    assert_eq!(b.state().await, Ok(NodeState::Copying));
    assert_eq!(a.slots().await.len(), 1, "the source holds its session meanwhile");
    parts = is_kept(&parts, &b, "told to end").await;
    let began = Instant::now();
    b.start_agent();
    until("it copies again", PATIENCE, async || {
        let logged = b.log();
        if logged.contains("init.resumed") { Ok(()) } else { Err("it does not") }
    })
    .await;
    let took = began.elapsed();
    eprintln!("went on {:.1} s after its agent's start", took.as_secs_f64());
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    op.completes().await;
    is_kept(&parts, &b, "at the end").await;
    alike(&a, &b, &["wide", "bag"]).await;
    assert_eq!(watching.ends().await, 0, "whoever watched saw it to its end: {}", watching.talk());
    assert!(watching.lines().iter().any(|line| line.contains("init.resumed")), "{:#?}", watching.lines());
}

#[tokio::test]
async fn a_target_server_that_goes_down_is_waited_for() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    a.sql(WIDE).await;
    a.sql(
        "create function slow(bigint) returns bigint immutable language plpgsql as
           $$ begin if current_setting('application_name') like 'steep-restore%' then perform pg_sleep(1); end if; return $1; end $$;
         create table few (id bigint primary key); insert into few values (1), (2), (3);
         create index slowly on few (slow(id))",
    )
    .await;
    let on_a = ledger.writers(2, &a);
    let op = b.steepctl(START).arg("--max-rate").arg("3MB").operation();
    let mut parts = parts_land(&b, 1).await;
    let down = async |how: Stop| {
        b.stop_postgres(how);
        tokio::time::sleep(Duration::from_millis(500)).await;
        b.start_postgres();
    };
    down(Stop::Immediate).await;
    // What was committed just before the crash may be gone, rows and ledger together.
    parts.retain(|part| part.1 == 0 && part.0 == "never");
    parts_land(&b, 2).await;
    down(Stop::Fast).await;
    until("an index is built slowly", PATIENCE, async || {
        let at_it = "select count(*) from pg_stat_activity where application_name like 'steep-restore%' and query like '%slowly%'";
        match b.try_sql("select 1").await {
            Ok(()) if b.value::<i64>(at_it).await > 0 => Ok(()),
            Ok(()) => Err(landed(&b).await.len().to_string()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    down(Stop::Immediate).await;
    op.completes().await;
    on_a.write(20).await;
    ledger.agrees(&[&a, &b], &[on_a.stop().await]).await;
    alike(&a, &b, &["wide", "bag", "few"]).await;
    assert!(b.log().contains("init.interrupted") && b.log().contains("init.resumed"), "it was told");
}

#[tokio::test]
async fn without_its_session_an_operation_ends_clean_and_says_what_next() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"\nsession_lease = \"4s\"").start().await;
    a.sql(WIDE).await;
    let before: [Inventory; 2] = [a.inventory().await, b.inventory().await];
    let comes_back = async |when: &str| {
        for (node, before) in [&a, &b].iter().zip(&before) {
            until(&format!("{when}: {} holds what it held", node.id()), PATIENCE, async || {
                let left = node.inventory().await.since(before);
                if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
            })
            .await;
        }
    };
    let slow = format!("{START} --max-rate 200kB");

    // The lease is over before the target's agent is back.
    let op = b.steepctl(&slow).operation();
    op.reaches("copy tables").await;
    b.kill_agent();
    until("the source lets go", PATIENCE, async || match a.slots().await.len() {
        0 => Ok(()),
        slots => Err(slots),
    })
    .await;
    b.start_agent();
    op.fails_with("STP-4005").await;
    let failure = op.shown().await.expect("it is known")["operation"]["failure"].clone();
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("node resume node_b")), "{failure}");
    b.becomes(NodeState::Failed).await;
    comes_back("the lease was over").await;

    // Left by an agent that was told to end, gone on with by the next, and cancelled at once.
    let op = b.steepctl(&slow).operation();
    op.reaches("copy tables").await;
    b.stop_agent();
    b.start_agent();
    let began = Instant::now();
    b.steepctl("node cancel node_b").succeeds();
    assert_eq!(op.ends().await, "cancelled");
    b.becomes(NodeState::Uninitialized).await;
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    comes_back("cancelled").await;

    // And what was asked for is asked for once more with two words.
    b.hold_after("create tables");
    let op = b.steepctl(&format!("{START} --one-way --tables bag")).operation();
    b.is_held().await;
    b.steepctl("node cancel node_b").succeeds();
    assert_eq!(op.ends().await, "cancelled");
    b.steepctl("node resume node_b").succeeds();
    b.holds_the_same_as(&a, "bag").await;
    assert_eq!(b.texts("select relname from pg_class where relname = 'wide'").await, Vec::<String>::new());
    assert_eq!(
        a.texts("select subname from pg_subscription").await,
        Vec::<String>::new(),
        "one way, as it was asked for"
    );
    b.steepctl("op retry").arg(op.id()).fails_with("STP-4002");
}
