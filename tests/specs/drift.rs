//! Drift: what agents tell of their schemas, how two nodes compare, and what is done about it, through any agent.

use std::process::Stdio;

use serde_json::Value;
use steep_tests::{Cluster, Node, NodeState::*, PATIENCE, shop, until};

/// Waits until the log of `node` tells `event` about `table`; returns the record.
async fn tells(node: &Node, event: &str, table: &str) -> Value {
    until(&format!("{} tells {event} of {table}", node.id()), PATIENCE, async || {
        let log = node.log();
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = records.into_iter().find(|record| record["event"] == event && record["table"] == table);
        found.ok_or_else(|| log.lines().last().unwrap_or_default().to_owned())
    })
    .await
}

/// Waits until `node` has looked at schemas by itself once more.
async fn looks_at_schemas(node: &Node) {
    let looked = || {
        let page = node.http("/metrics").1;
        let line = page.lines().find_map(|line| line.strip_prefix("steep_schema_last_capture_timestamp_seconds "));
        line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_default()
    };
    let before = looked();
    until(&format!("{} looks at schemas", node.id()), PATIENCE, async || match looked() {
        now if now > before => Ok(()),
        now => Err(now.to_string()),
    })
    .await;
}

fn verdict(compared: &Value, table: &str) -> (String, String) {
    let tables = compared["tables"].as_array().expect("a list of tables");
    let found =
        tables.iter().find(|row| row["table"]["name"] == table).unwrap_or_else(|| panic!("no {table}: {compared}"));
    let word = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (word("verdict"), word("qualifier"))
}

#[tokio::test]
async fn drift_between_nodes_that_replicate_is_noticed_by_both_and_its_end_too() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    b.hold_after("create tables");
    let op = b.steepctl("node start node_b --from node_a").operation();
    b.is_held().await;
    for node in [&a, &b] {
        looks_at_schemas(node).await;
    }
    b.let_go();
    op.completes().await;
    b.becomes(Synchronized).await;
    // While one was made of the other the two differed, and that was no drift.
    for node in [&a, &b] {
        assert!(!node.log().contains("schema.mismatch_detected"), "{} took an initialization for drift", node.id());
    }
    // A table that does not replicate is nobody's trouble.
    a.sql("create table scratch (id int primary key)").await;
    b.sql("alter table orders add column note text, alter column total set default 7").await;
    for (node, other) in [(&a, "node_b"), (&b, "node_a")] {
        let told = tells(node, "schema.mismatch_detected", "public.orders").await;
        assert_eq!(told["source_node"], other);
        let words = told["details"]["differences"].as_str().unwrap_or_default();
        assert!(words.contains("note") && words.contains("default of total"), "{told}");
        assert!(!node.log().contains("\"public.scratch\""), "a table that does not replicate was told of");
    }
    until("the headline of node_b warns", PATIENCE, async || {
        let shown = a.steepctl("status").outcome();
        if shown.stdout.contains("schema compare") || shown.stdout.contains("WARN") {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    })
    .await;
    a.sql("alter table orders add column note text, alter column total set default 7").await;
    for node in [&a, &b] {
        tells(node, "check.schema_matches", "public.orders").await;
    }
    let counted = b.http("/metrics").1;
    assert!(counted.contains("steep_schema_tables{peer=\"node_a\",status=\"mismatch\"} 0"), "{counted}");
}

#[tokio::test]
async fn two_nodes_are_compared_planned_and_synced_through_a_third() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(
        "create type mood as enum ('sad', 'ok');
         create table same (id int primary key, t text);
         create table swapped (id int primary key, a int, b int);
         create table lacks (id int primary key, total numeric(10,2) default 0, m mood);
         create table only_a (id bigint generated always as identity primary key, \"odd, \"\" name\" text);
         create index by_total on lacks (total);
         create schema apart; create type apart.other as enum ('x');",
    )
    .await;
    b.sql(
        "create table same (id int primary key, t text);
         create table swapped (id int primary key, b int, a int);
         create table lacks (id int primary key);
         create table only_b (id int primary key);
         insert into lacks values (1);",
    )
    .await;
    let compared = c.steepctl("schema compare node_a node_b -o json").succeeds().json();
    assert_eq!(verdict(&compared, "same"), ("MATCH".into(), String::new()));
    assert_eq!(verdict(&compared, "swapped"), ("MISMATCH".into(), "ORDER_ONLY".into()));
    assert_eq!(verdict(&compared, "lacks").0, "MISMATCH");
    assert_eq!(verdict(&compared, "only_a").0, "LOCAL_ONLY");
    assert_eq!(verdict(&compared, "only_b").0, "REMOTE_ONLY");
    assert_eq!(c.steepctl("schema compare node_a node_b --exit-code").outcome().status, 12);
    let in_sql = "select string_agg(table_name || ' ' || verdict, ', ' order by table_name)
                    from steep_repl.compare_fingerprints('node_b')";
    assert_eq!(
        a.value::<String>(in_sql).await,
        "lacks MISMATCH, only_a LOCAL_ONLY, only_b REMOTE_ONLY, same MATCH, swapped MISMATCH"
    );
    let shown = c.steepctl("schema diff node_a node_b public.lacks").succeeds();
    assert!(shown.stdout.contains("total") && shown.stdout.contains("by_total"), "{shown}");

    let of_one = c.steepctl("schema plan node_a node_b --tables lacks").succeeds();
    assert!(of_one.stdout.contains("mood") && !of_one.stdout.contains("apart"), "what it uses, and no more: {of_one}");
    c.steepctl("schema compare node_a node_b --schemas typo --exit-code").fails_with("STP-5001");
    c.steepctl("schema compare node_a node_b --tables typo --exit-code").fails_with("STP-5001");
    let planned = c.steepctl("schema plan node_a node_b").succeeds();
    assert!(planned.stdout.contains("ADD COLUMN") || planned.stdout.contains("add column"), "{planned}");
    let before =
        b.value::<i64>("select count(*) from pg_attribute where attrelid = 'lacks'::regclass and attnum > 0").await;
    assert_eq!(before, 1, "a plan changes nothing");
    // An operator may look, and only an admin may have DDL run.
    let denied = c.steepctl("schema sync node_a node_b --apply --confirm node_b").as_operator("otto").outcome();
    assert_eq!(denied.status, 7, "{denied}");
    c.steepctl("schema sync node_a node_b --apply --confirm node_b").succeeds();
    let compared = c.steepctl("schema compare node_a node_b -o json").succeeds().json();
    assert_eq!(verdict(&compared, "lacks").0, "MATCH", "{compared}");
    assert_eq!(verdict(&compared, "only_a").0, "MATCH", "{compared}");
    assert_eq!(verdict(&compared, "only_b").0, "REMOTE_ONLY", "nothing is ever dropped");
    assert_eq!(b.count("lacks").await, 1, "no row is touched");
    let logged = tells(&b, "schema.sync_applied", "public.lacks").await;
    assert!(logged["details"]["statements"].is_number() || logged["details"]["statements"].is_string(), "{logged}");
    let history = c.steepctl("schema history node_b --table public.lacks -o json").succeeds().json();
    assert!(history["changes"].as_array().is_some_and(|changes| changes.len() >= 2), "{history}");

    let captured = c.steepctl("schema capture node_b -o json").succeeds().json();
    assert_eq!(captured["environment"]["tables"], 5, "{captured}");
    assert_eq!(captured["environment"]["is_complete"], true, "{captured}");
    let exported = c.steepctl("schema export node_b").succeeds();
    assert!(exported.stdout.contains("only_a") && exported.stdout.contains("by_total"), "{exported}");

    // While node_b does not answer, what it last said is shown as that.
    b.kill_agent();
    let cached = c.steepctl("schema compare node_a node_b -o json").succeeds().json();
    assert_eq!(cached["right"]["is_cached"], true, "{cached}");
    assert!(cached["right"]["reason"].as_str().is_some_and(|why| !why.is_empty()), "{cached}");
    assert_eq!(verdict(&cached, "lacks").0, "MATCH");
    let refused = c.steepctl("schema compare node_c node_b").outcome();
    assert_eq!(refused.status, 6, "nothing was ever heard of node_b there: {refused}");
}

#[tokio::test]
async fn a_start_refuses_tables_that_differ_or_brings_them_up_to_date_first() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&format!(
        "{} create table notes (id int primary key, body varchar(200) default 'none', at timestamptz default now());
         insert into notes select n, 'note ' || n from generate_series(1, 20) n;
         create type mood as enum ('sad', 'ok'); create table feels (id int primary key, m mood);
         insert into feels values (1, 'ok');",
        shop::orders(50)
    ))
    .await;
    b.sql(
        "create table notes (id int primary key, body varchar(10));
         create type mood as enum ('sad'); create table feels (id int primary key, m mood)",
    )
    .await;
    let refused = b.steepctl("node start node_b --from node_a").outcome();
    assert!(refused.status == 3 && refused.stderr.contains("STP-2202"), "{refused}");
    assert!(refused.stderr.contains("public.notes") && refused.stderr.contains("schema"), "{refused}");
    assert!(refused.stderr.contains("enum public.mood has more on node_a"), "a type is told too: {refused}");
    assert!(b.slots().await.is_empty() && a.slots().await.is_empty());
    let denied = b.steepctl("node start node_b --from node_a --schema-sync auto").as_operator("otto").outcome();
    assert_eq!(denied.status, 7, "{denied}");
    let planned = b.steepctl("node start node_b --from node_a --schema-sync auto --dry-run").succeeds();
    assert!(format!("{planned}").to_lowercase().contains("add column"), "{planned}");
    b.steepctl("node start node_b --from node_a --schema-sync auto").operation().completes().await;
    b.becomes(Synchronized).await;
    b.holds_the_same_as(&a, "notes").await;
    b.holds_the_same_as(&a, "feels").await;
    let compared = b.steepctl("schema compare node_a node_b --exit-code").outcome();
    assert_eq!(compared.status, 0, "{compared}");
}

#[tokio::test]
async fn what_no_plan_settles_keeps_an_automatic_start_from_touching_anything() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table notes (id int primary key, n int, extra text)").await;
    b.sql("create table notes (id int primary key, n text)").await;
    let refused = b.steepctl("node start node_b --from node_a --schema-sync auto").outcome();
    assert!(refused.status == 3 && refused.stderr.contains("STP-2202"), "{refused}");
    let columns =
        b.texts("select attname::text from pg_attribute where attrelid = 'notes'::regclass and attnum > 0").await;
    assert_eq!(columns, ["id", "n"], "nothing was changed");
    b.becomes(Uninitialized).await;

    // A plan makes no partition of a table that is there, so it is told before anything is run.
    let parted = "drop table notes;
        create table parts (id int, at int, primary key (id, at)) partition by range (at);
        create table parts_1 partition of parts for values from (0) to (10);";
    a.sql(parted).await;
    a.sql("create table parts_2 partition of parts for values from (10) to (20)").await;
    b.sql(parted).await;
    a.sql("create table more (id int primary key, note text); insert into more values (1, 'one')").await;
    b.sql("create table more (id int primary key, own text)").await;
    let refused = b.steepctl("node start node_b --from node_a --schema-sync auto").outcome();
    assert!(refused.status == 3 && refused.stderr.contains("parts_2 is missing here"), "{refused}");
    assert_eq!(b.count("pg_attribute where attrelid = 'more'::regclass and attnum > 0").await, 2);
    // One way, a column of the target's own is nobody's trouble.
    let one_way = "node start node_b --from node_a --one-way --tables public.more --schema-sync auto";
    b.steepctl(one_way).operation().completes().await;
    assert_eq!(b.texts("select concat(id, note, own) from more").await, ["1one"]);
}

#[tokio::test]
async fn a_start_by_hand_writes_the_ddl_into_a_file_and_goes_on_once_it_was_run() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table notes (id int primary key, body text); insert into notes values (1, 'one')").await;
    b.sql("create table notes (id int primary key)").await;
    let dir = b.pki().join("by_hand");
    std::fs::create_dir(&dir).expect("a new folder");
    let start = || {
        let mut command = b.steepctl("node start node_b --from node_a --schema-sync manual --no-input").command();
        command.current_dir(&dir).output().expect("steepctl runs")
    };
    let refused = start();
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    let written = std::fs::read_dir(&dir).expect("it is there").next().expect("a file").expect("its name").path();
    let script = std::fs::read_to_string(&written).expect("a text");
    assert!(script.to_lowercase().contains("add column"), "{script}");
    assert!(a.slots().await.is_empty(), "nothing was begun");
    b.sql(&script).await;
    let started = start();
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    b.holds_the_same_as(&a, "notes").await;
}

/// A transaction on `node` that sees things as they are now: an index built beside the work that goes on waits for its end.
async fn old_snapshot(node: &Node) -> tokio_postgres::Client {
    let holder = node.connect().await;
    holder
        .batch_execute("begin isolation level repeatable read; select pg_current_snapshot()")
        .await
        .expect("a transaction can begin");
    holder
}

/// Waits until a sync on `node` builds an index; returns the process of the server that does.
async fn builds_an_index(node: &Node) -> i32 {
    until("an index is being built", PATIENCE, async || {
        let building = "select pid from pg_stat_activity
                         where query ilike 'create index concurrently%' and state = 'active'";
        let found = node.connect().await.query_opt(building, &[]).await.map_err(|error| error.to_string())?;
        found.map(|row| row.get(0)).ok_or_else(|| "nobody does".to_owned())
    })
    .await
}

#[tokio::test]
async fn a_sync_goes_on_without_its_caller_and_one_whose_agent_dies_is_ended_by_the_next() {
    let [a, b] = Cluster::of(2).start().await;
    for node in [&a, &b] {
        node.sql("create table one (id int primary key); create table two (id int primary key, n int, m int)").await;
    }
    a.sql("alter table one add column note text; create index by_n on two (n)").await;
    let sync = || {
        let mut command = a.steepctl("schema sync node_a node_b --apply --confirm node_b").command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("steepctl runs")
    };
    let matches = async || {
        until("both look alike", PATIENCE, async || {
            let compared = a.steepctl("schema compare node_a node_b --exit-code").outcome();
            if compared.status == 0 { Ok(()) } else { Err(compared.to_string()) }
        })
        .await;
    };
    let holder = old_snapshot(&b).await;
    let mut caller = sync();
    builds_an_index(&b).await;
    caller.kill().expect("steepctl runs");
    caller.wait().expect("it ends");
    holder.batch_execute("commit").await.expect("it can end");
    matches().await;

    a.sql("create index by_m on two (m)").await;
    let holder = old_snapshot(&b).await;
    let mut caller = sync();
    let building = builds_an_index(&b).await;
    b.kill_agent();
    b.sql(&format!("select pg_terminate_backend({building}, 10000)")).await;
    holder.batch_execute("commit").await.expect("it can end");
    assert!(!caller.wait().expect("it ends").success(), "nobody says that it was done");
    b.start_agent();
    let invalid = "pg_index where indexrelid = 'by_m'::regclass and not indisvalid";
    assert_eq!(b.count(invalid).await, 1, "the index was left half built");
    a.steepctl("schema sync node_a node_b --apply --confirm node_b").succeeds();
    assert_eq!(b.count(invalid).await, 0);
    matches().await;
}

/// A user's own functions, which note when they are run with a superuser's rights; not even a rollback takes that back.
const TRAP: &str = "
    create role mallory login;
    create schema mal authorization mallory;
    set session authorization mallory;
    create sequence mal.ran;
    create function mal.notes(x int) returns int volatile language plpgsql as $$
    begin
        if current_setting('is_superuser') = 'on' then perform nextval('mal.ran'); end if;
        return x;
    end $$;
    create function mal.g(x int) returns int immutable language plpgsql as
        $$ begin perform mal.notes(x); return x; end $$;
    create domain mal.odd as int check (mal.g(value) > 0);
    create type mal.pair as (a mal.odd);
    create table mal.wide (id int primary key, c varchar(10) check (mal.g(length(c)) > 0));
    insert into mal.wide values (1, 'one');
    create table mal.there (id int primary key, v int default 1);
    create index there_g on mal.there (id) where mal.g(3) > 0;
    insert into mal.there values (1);
";

/// What the source has that the target lacks, all of it made by the same user.
const BAIT: &str = "
    alter table mal.wide alter c type varchar(30);
    alter table mal.there alter v set default 2;
    alter table mal.there add column p mal.pair default '(5)';
    alter table mal.there add constraint computed check (mal.g(id) > 0);
    create table mal.fresh (id int primary key, n int generated always as (mal.g(id)) stored);
    create index fresh_g on mal.fresh (mal.g(id)) where mal.g(3) > 0;
    create table mal.parts (id int) partition by list (mal.g(id));
    create table mal.sly (id int primary key,
                          check (query_to_xml('select mal.notes(1)', true, true, '') is not null));
";

#[tokio::test]
async fn nobody_elses_function_is_ever_run_with_the_agents_rights() {
    for versions in [["18", "18"], ["16", "18"]] {
        let [a, b] = Cluster::of(2).pg(&versions).start().await;
        for node in [&a, &b] {
            node.sql(TRAP).await;
            node.sql("reset session authorization").await;
        }
        a.sql("set session authorization mallory").await;
        a.sql(BAIT).await;
        a.sql("reset session authorization").await;
        for words in ["compare node_a node_b", "compare node_b node_a", "diff node_a node_b", "plan node_a node_b"] {
            a.steepctl(&format!("schema {words}")).as_operator("vera").succeeds();
        }
        let synced = a.steepctl("schema sync node_a node_b --apply --confirm node_b").succeeds();
        assert!(synced.stdout.contains("mal.g") && synced.stdout.contains("by hand"), "it says why: {synced}");
        a.steepctl("schema compare node_a node_b").succeeds();
        for node in [&a, &b] {
            let ran: bool = node.value("select is_called from mal.ran").await;
            assert!(!ran, "{versions:?}: a function of mallory's ran as a superuser on {}", node.id());
        }
        let default: String = b
            .value(
                "select pg_get_expr(adbin, adrelid) from pg_attrdef
             where adrelid = 'mal.there'::regclass and adnum = 2",
            )
            .await;
        assert_eq!(default, "2", "what runs nothing was done");
    }
}
