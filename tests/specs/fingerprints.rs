//! Fingerprints of tables, made by the database: what differs shows, what only looks different does not.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use steep_tests::{Cluster, Node};

use crate::random_tables::{Definition, Dice};

/// One of each way a catalog differs: before 16, before 17 and 18, and 18.
const VERSIONS: [&str; 3] = ["15", "16", "18"];

/// Makes schema `steep_repl` in the node's database without an agent, as its migrations say.
pub(crate) async fn install(node: &Node) {
    node.sql(&format!("set search_path = ''; {}; reset search_path", script())).await;
}

/// The extension's script without what only CREATE EXTENSION understands.
pub(crate) fn script() -> String {
    let files = xtask::extension::files().expect("the migrations can be read");
    let (_, text) = files.into_iter().find(|(name, _)| name.ends_with(".sql")).expect("there is a script");
    text.lines().filter(|line| !line.starts_with("\\echo")).fold(String::new(), |text, line| text + line + "\n")
}

/// Fingerprint of the columns, of the sorted columns, and of the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    columns: String,
    sorted: String,
    shape: String,
    /// For whoever reads a failure.
    documents: String,
}

async fn seen(node: &Node, table: &str) -> Seen {
    let query = format!(
        "select fingerprint, fingerprint_sorted, shape, column_definitions::text || e'\\n' || shape_definition::text
           from steep_repl.fingerprint_tables(array['{table}'::regclass::oid])"
    );
    let rows = node.rows(&query).await;
    assert_eq!(rows.len(), 1, "{table} has no fingerprint");
    Seen { columns: rows[0].get(0), sorted: rows[0].get(1), shape: rows[0].get(2), documents: rows[0].get(3) }
}

/// What `p.t` is after `statements`; nothing of them stays.
async fn made_by(node: &Node, statements: &str) -> Seen {
    node.sql("drop schema if exists p, app cascade; create schema p; create schema app").await;
    node.sql(statements).await;
    let made = seen(node, "p.t").await;
    node.sql("reset search_path; drop schema p, app cascade").await;
    made
}

/// The pairs that a fingerprint of names and data types alone takes for equal; true: the columns differ, false: the rest.
const PAIRS: [(&str, &str, bool); 17] = [
    ("create table p.t (a varchar(10))", "create table p.t (a varchar(200))", true),
    ("create table p.t (a numeric(10,2))", "create table p.t (a numeric(30,9))", true),
    ("create table p.t (a int[])", "create table p.t (a text[])", true),
    (
        "create type app.e1 as enum ('a'); create table p.t (a app.e1)",
        "create type app.e2 as enum ('a'); create table p.t (a app.e2)",
        true,
    ),
    ("create table p.t (a text collate \"C\")", "create table p.t (a text)", true),
    ("create table p.t (a timestamp(0))", "create table p.t (a timestamp(6))", true),
    ("create table p.t (a int primary key)", "create table p.t (a int not null)", false),
    ("create table p.t (a int generated always as identity)", "create table p.t (a int not null)", true),
    ("create table p.t (a int, b int generated always as (a) stored)", "create table p.t (a int, b int)", true),
    ("create table p.t (a bit(3))", "create table p.t (a bit(8))", true),
    ("create table p.t (a interval year to month)", "create table p.t (a interval)", true),
    (
        "create domain app.d1 as int; create table p.t (a app.d1)",
        "create domain app.d2 as int; create table p.t (a app.d2)",
        true,
    ),
    ("create table p.t (\"c:text:YES|d\" text)", "create table p.t (c text, d text)", true),
    ("create table p.t (a int default 1)", "create table p.t (a int default 2)", true),
    ("create table p.t (a int check (a > 0))", "create table p.t (a int)", false),
    ("create table p.t (a int) partition by list (a)", "create table p.t (a int)", false),
    ("create unlogged table p.t (a int)", "create table p.t (a int)", false),
];

/// More that makes a difference and is easily missed.
const MORE_PAIRS: [(&str, &str, bool); 15] = [
    (
        "create table p.t (a int not null unique); alter table p.t replica identity using index t_a_key",
        "create table p.t (a int not null unique)",
        false,
    ),
    ("create table p.t (a int unique nulls not distinct)", "create table p.t (a int unique)", false),
    (
        "create table p.t (a int, b int); create index i on p.t (a) include (b)",
        "create table p.t (a int, b int); create index i on p.t (a)",
        false,
    ),
    ("create table p.t (a int); alter table p.t enable row level security", "create table p.t (a int)", false),
    (
        "create table p.t (a int); create policy x on p.t using (a > 0)",
        "create table p.t (a int); create policy x on p.t using (a > 1)",
        false,
    ),
    (
        "create table p.t (a int); create policy x on p.t to pg_monitor using (true)",
        "create table p.t (a int); create policy x on p.t using (true)",
        false,
    ),
    (
        "create table p.t (a int); create trigger x before update on p.t for each row execute function suppress_redundant_updates_trigger()",
        "create table p.t (a int); create trigger x before update on p.t for each row execute function suppress_redundant_updates_trigger(); alter table p.t enable always trigger x",
        false,
    ),
    ("create table p.t (a int); create rule x as on delete to p.t do nothing", "create table p.t (a int)", false),
    (
        "create table p.t (a int); alter table p.t add constraint c check (a > 0) not valid",
        "create table p.t (a int); alter table p.t add constraint c check (a > 0)",
        false,
    ),
    // A sequence of somebody else's does not count as the column's own.
    (
        "create sequence app.s; create table p.t (a serial); alter table p.t alter a set default nextval('app.s')",
        "create table p.t (a serial)",
        true,
    ),
    // Named as if Steep had made it.
    (
        "create table p.t (a int, constraint steep_pkey primary key (a), constraint steep_check check (a > 0))",
        "create table p.t (a int not null)",
        false,
    ),
    // There, and not enforced.
    (
        "create table p.t (a int primary key, b int references p.t); alter table p.t disable trigger all",
        "create table p.t (a int primary key, b int references p.t)",
        false,
    ),
    (
        "create table p.t (a int) partition by list (a); create table p.u partition of p.t default;
         create trigger x before update on p.t for each row execute function suppress_redundant_updates_trigger();
         alter table p.t disable trigger x; alter table p.u rename to w; alter table p.t rename to v; alter table p.w rename to t",
        "create table p.t (a int) partition by list (a); create table p.u partition of p.t default;
         create trigger x before update on p.t for each row execute function suppress_redundant_updates_trigger();
         alter table only p.t disable trigger x; alter table p.u rename to w; alter table p.t rename to v; alter table p.w rename to t",
        false,
    ),
    // Text that looks like what we write for a column's own sequence.
    ("create table p.t (a text default 'nextval(owned)')", "create table p.t (a serial)", true),
    ("create table p.t (a float8 default 0.1)", "create table p.t (a float8 default 0.10000000000000002)", true),
];

/// What only 18 knows.
const PAIRS_OF_18: [(&str, &str, bool); 5] = [
    (
        "create table p.t (a int, b int generated always as (a) stored)",
        "create table p.t (a int, b int generated always as (a) virtual)",
        true,
    ),
    (
        "create table p.t (a int); alter table p.t add constraint n not null a not valid",
        "create table p.t (a int not null)",
        true,
    ),
    (
        "create table p.t (a int); alter table p.t add constraint n not null a not valid",
        "create table p.t (a int)",
        false,
    ),
    (
        "create table p.t (a int, constraint c check (a > 0) not enforced)",
        "create table p.t (a int, constraint c check (a > 0))",
        false,
    ),
    (
        "create table p.t (a int4range, b int4range, constraint k primary key (a, b without overlaps))",
        "create table p.t (a int4range, b int4range, constraint k primary key (a, b))",
        false,
    ),
];

/// The same table, made in two ways.
const ALIKE: [(&str, &str); 14] = [
    (
        "create sequence app.s; set search_path = app; create table p.t (a int default nextval('s'))",
        "create sequence app.s; create table p.t (a int default nextval('app.s'))",
    ),
    (
        "create type app.mood as enum ('ok'); set search_path = app; create table p.t (a mood default 'ok')",
        "create type app.mood as enum ('ok'); create table p.t (a app.mood default 'ok'::app.mood)",
    ),
    ("create table p.old (a serial); alter table p.old rename to t", "create table p.t (a serial)"),
    ("create table p.t (o serial); alter table p.t rename o to a", "create table p.t (a serial)"),
    (
        "create table p.t (a int generated by default as identity (start 1000 increment 7))",
        "create table p.t (a int generated by default as identity)",
    ),
    // From 18 on each NOT NULL has a name, here one of the old table's.
    ("create table p.old (a int not null); alter table p.old rename to t", "create table p.t (a int not null)"),
    (
        "create table p.t (x int, a int); insert into p.t values (1, 1); alter table p.t add column b text default 'x'; alter table p.t drop column x",
        "create table p.t (a int, b text default 'x')",
    ),
    (
        "create table p.t (a text); alter table p.t alter a set storage external, alter a set statistics 7; alter table p.t set (fillfactor = 50)",
        "create table p.t (a text)",
    ),
    ("create table p.t (a text collate pg_catalog.\"default\")", "create table p.t (a text)"),
    (
        "create table p.r (a int primary key, b int check (b > 0)) partition by list (a); create index i on p.r (b);
         create trigger x before update on p.r for each row execute function suppress_redundant_updates_trigger();
         create table p.t partition of p.r for values in (1)",
        "create table p.r (a int primary key, b int check (b > 0)) partition by list (a);
         create table p.t (a int, b int, constraint own_key primary key (a), constraint r_b_check check (b > 0)); create index own on p.t (b);
         alter table p.r attach partition p.t for values in (1); create index i on p.r (b);
         create trigger x before update on p.r for each row execute function suppress_redundant_updates_trigger()",
    ),
    (
        "create table p.t (a int); comment on table p.t is 'x'; grant select on p.t to public",
        "create table p.t (a int)",
    ),
    (
        "create table p.t (a int, constraint steep_range_0123456789ab check (a > 5)); create trigger steep_fence before update on p.t for each row execute function steep_repl.refuse_illegal_move()",
        "create table p.t (a int)",
    ),
    (
        "set timezone = 'Asia/Kolkata'; set datestyle = german; create table p.t (a timestamptz default '2026-01-01 00:00+00', b date default '2026-02-01'); set quote_all_identifiers = on",
        "reset timezone; reset datestyle; reset quote_all_identifiers; create table p.t (a timestamptz default '2026-01-01 00:00+00', b date default '2026-02-01')",
    ),
    (
        "set bytea_output = escape; create table p.t (a bytea default '\\x00ff', b interval default '1 day 2 hours'); set intervalstyle = iso_8601",
        "reset bytea_output; reset intervalstyle; create table p.t (a bytea default '\\x00ff', b interval default '1 day 2 hours')",
    ),
];

#[tokio::test]
async fn what_differs_shows_and_what_only_looks_different_does_not() {
    let nodes: [Node; 3] = Cluster::of(3).pg(&VERSIONS).servers_only().start().await;
    let mut on_versions: BTreeMap<String, Seen> = BTreeMap::new();
    for node in &nodes {
        install(node).await;
        let only_here: &[_] = if node.major() >= 18 { &PAIRS_OF_18 } else { &[] };
        for (one, other, in_columns) in PAIRS.iter().chain(&MORE_PAIRS).chain(only_here) {
            let [one, other] = [made_by(node, one).await, made_by(node, other).await];
            let context = format!("on {}:\n{}\n{}", node.major(), one.documents, other.documents);
            assert_eq!(one.columns != other.columns, *in_columns, "{context}");
            assert!(*in_columns || one.shape != other.shape, "{context}");
        }
        for (one, other) in ALIKE {
            let [made, by_other] = [made_by(node, one).await, made_by(node, other).await];
            assert_eq!(made, by_other, "on {}: {one}", node.major());
            // And on every version the same.
            let first = on_versions.entry(one.to_owned()).or_insert_with(|| made.clone());
            assert_eq!(*first, made, "on {}: {one}", node.major());
        }
    }
    let [_, _, new] = &nodes;
    let nullable = made_by(new, "create table p.t (a int)").await;
    let unproven =
        made_by(new, "create table p.t (a int); alter table p.t add constraint n not null a not valid").await;
    assert_eq!(nullable.columns, unproven.columns, "NOT NULL that is not valid lets nulls be");
    let partition = made_by(new, ALIKE[9].0).await;
    assert!(
        partition.documents.contains("\"trg\": []"),
        "a trigger of the partitioned table's: {}",
        partition.documents
    );
    let one = made_by(new, "create table p.t (a int, b text)").await;
    let other = made_by(new, "create table p.t (b text, a int)").await;
    assert!(one.columns != other.columns && one.sorted == other.sorted && one.shape == other.shape, "order alone");
    partitions_of_a_table_with_identity_are_alike(&nodes).await;
    types_and_sequences_are_told_apart(&nodes).await;
}

/// Up to 16 a partition does not know that it is filled by its partitioned table's identity, and 15 refuses one.
async fn partitions_of_a_table_with_identity_are_alike(nodes: &[Node; 3]) {
    let mut all = Vec::new();
    for node in nodes {
        let partitioned = "create table p.r (a int generated always as identity, b int) partition by list (b);
                           create table p.t partition of p.r for values in (1)";
        let made = node.try_sql("create schema p").await.and(node.try_sql(partitioned).await);
        if made.is_ok() {
            all.push(seen(node, "p.t").await);
        }
        node.sql("drop schema p cascade").await;
    }
    assert!(!all.is_empty() && all.windows(2).all(|two| two[0] == two[1]), "{all:#?}");
}

/// All objects as `(kind, name, fingerprint)`.
async fn objects(node: &Node, statements: &str) -> Vec<String> {
    node.sql("drop schema if exists p cascade; create schema p").await;
    node.sql(statements).await;
    let query = "select kind || ' ' || object_schema || '.' || object_name || ' ' || fingerprint
                   from steep_repl.canon_objects() order by 1";
    let found = node.texts(query).await;
    node.sql("drop schema p cascade").await;
    found
}

async fn types_and_sequences_are_told_apart(nodes: &[Node; 3]) {
    let differ = [
        ("create type p.e as enum ('a', 'b')", "create type p.e as enum ('b', 'a')"),
        ("create domain p.d as int check (value > 0)", "create domain p.d as int check (value > 1)"),
        ("create domain p.d as int not null", "create domain p.d as int"),
        ("create domain p.d as int default 1", "create domain p.d as int"),
        ("create type p.c as (a int, b text)", "create type p.c as (a int, b text collate \"C\")"),
        ("create type p.r as range (subtype = int)", "create type p.r as range (subtype = bigint)"),
        ("create sequence p.s as int", "create sequence p.s"),
        ("create sequence p.s cycle", "create sequence p.s"),
        ("create sequence p.s increment 2", "create sequence p.s"),
        ("create sequence p.s maxvalue 50", "create sequence p.s"),
        (
            "create table p.t (a int); create sequence p.s owned by p.t.a",
            "create table p.t (a int); create sequence p.s",
        ),
    ];
    for (one, other) in differ {
        let mut versions = Vec::new();
        for node in nodes {
            let found = objects(node, one).await;
            assert!(!found.is_empty() && found != objects(node, other).await, "on {}: {one}", node.major());
            versions.push(found);
        }
        assert!(versions.windows(2).all(|two| two[0] == two[1]), "{one}: {versions:#?}");
    }
    for node in nodes {
        let plain = objects(node, "create sequence p.s").await;
        assert_eq!(plain, objects(node, "create sequence p.s start 500 cache 9").await, "where it begins may differ");
    }
}

#[tokio::test]
async fn random_tables_are_equal_on_all_versions_and_any_single_change_shows() {
    let nodes: [Node; 3] = Cluster::of(3).pg(&VERSIONS).servers_only().start().await;
    for node in &nodes {
        install(node).await;
        node.sql("create schema p; create schema other").await;
        node.sql("create type p.mood as enum ('sad', 'ok'); create domain p.code as varchar(12) check (value <> '')")
            .await;
    }
    let seed = std::env::var("STEEP_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_124);
    let mut dice = Dice::new(seed);
    let mut changes = BTreeMap::<&str, u32>::new();
    for round in 0..60 {
        let definition = Definition::random(&mut dice);
        let mut first: Option<Seen> = None;
        for (index, node) in nodes.iter().enumerate() {
            // Made in one statement here and step by step there.
            let statements = if (round + index) % 2 == 0 { definition.at_once("t") } else { definition.in_steps("t") };
            node.sql(&statements).await;
            let made = seen(node, "p.t").await;
            let first = first.get_or_insert_with(|| made.clone());
            assert_eq!(*first, made, "seed {seed}, round {round}, on {}:\n{statements}", node.major());
        }
        for change in definition.changes(&mut dice, "t") {
            let node = &nodes[dice.below(3)];
            node.sql(&format!("begin; {}", change.sql)).await;
            let after = seen(node, "p.t").await;
            node.sql("rollback").await;
            let before = first.as_ref().expect("there are nodes");
            let differs = (before.columns != after.columns, before.shape != after.shape);
            assert!(
                differs.0 == change.in_columns || change.in_both && differs.0 && differs.1,
                "seed {seed}, round {round}, on {}: {}\n{}\n{}",
                node.major(),
                change.sql,
                before.documents,
                after.documents
            );
            assert!(differs.0 || differs.1, "seed {seed}: {}", change.sql);
            *changes.entry(change.kind).or_default() += 1;
        }
        for node in &nodes {
            node.sql("drop table p.t").await;
        }
    }
    assert!(changes.len() >= 12, "kinds of changes tried: {changes:?}");
}

#[tokio::test]
async fn names_settings_and_roles_change_nothing() {
    let [old, new]: [Node; 2] = Cluster::of(2).pg(&["15", "18"]).servers_only().start().await;
    for node in [&old, &new] {
        install(node).await;
        hostile_names_are_names(node).await;
        a_hostile_search_path_is_not_asked(node).await;
        a_role_that_cannot_see_everything_says_so(node).await;
    }
}

async fn hostile_names_are_names(node: &Node) {
    let hostile = [
        "a\"b".to_owned(),
        "a.b".to_owned(),
        "a'b\\c".to_owned(),
        "line\nbreak\ttab".to_owned(),
        "\u{1b}[31mred\u{7}".to_owned(),
        "\u{202e}drawkcab".to_owned(),
        "x".repeat(63),
        "[\"json\", null]".to_owned(),
        "$$; drop table x; --".to_owned(),
        "ünï 🐘".to_owned(),
    ];
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let client = node.connect().await;
    let run = async |sql: String| client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    for name in &hostile {
        let q = quoted(name);
        run(format!("create schema {q}")).await;
        run(format!("create type {q}.{} as enum ('a''b', {})", quoted("ty\"pe"), literal(name))).await;
        run(format!(
            "create table {q}.{q} (id serial, {q} int default 3 check ({q} > 0), m {q}.{} default {}, unique (id, {q}))",
            quoted("ty\"pe"),
            literal(name)
        ))
        .await;
        run(format!("create index on {q}.{q} ({q})")).await;
    }
    let changed: i32 =
        client.query_one("select steep_repl.capture_all_fingerprints('n')", &[]).await.expect("it captures").get(0);
    assert!(changed >= 30, "ten tables, types and sequences: {changed}");
    for name in &hostile {
        let query =
            "select steep_repl.compute_fingerprint($1, $1), steep_repl.capture_fingerprint('n', $1, $1), fingerprint,
                            column_definitions->0->>2, column_definitions->1->>0
                       from steep_repl.schema_fingerprints where table_schema = $1 and table_name = $1";
        let row = client.query_one(query, &[name]).await.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        let [computed, captured, stored, default, column] = [0, 1, 2, 3, 4].map(|index| row.get::<_, String>(index));
        assert!(computed == captured && captured == stored && computed.len() == 64, "{name:?}");
        assert_eq!((default.as_str(), &column), ("nextval(owned)", name));
    }
    let query = "select count(distinct fingerprint), count(*) from steep_repl.schema_fingerprints";
    let row = client.query_one(query, &[]).await.expect("it counts");
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1), "different names, different fingerprints");
    for name in &hostile {
        run(format!("drop schema {} cascade", quoted(name))).await;
    }
    let changed: i32 =
        client.query_one("select steep_repl.capture_all_fingerprints('n')", &[]).await.expect("it captures").get(0);
    assert!(changed >= 30, "all of them are gone: {changed}");
}

fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

async fn a_hostile_search_path_is_not_asked(node: &Node) {
    node.sql(
        "create schema shop; create table shop.t (id serial primary key, at timestamptz default '2026-01-01 00:00+00');
         select steep_repl.capture_all_fingerprints('n');
         create role poor; grant usage on schema steep_repl to poor; grant select on all tables in schema steep_repl to poor;
         create schema evil; grant usage on schema evil to poor;
         create function evil.format_type(oid, integer) returns text language sql as 'select ''evil''';
         create function evil.sha256(bytea) returns bytea language sql as 'select ''\\x00''::bytea';
         create function evil.starts_with(text, text) returns boolean language sql as 'select true';
         create function evil.never(oid, oid) returns boolean language sql as 'select false';
         create operator evil.= (leftarg = oid, rightarg = oid, function = evil.never);
         create table evil.pg_class (oid oid); create table evil.pg_attribute (attrelid oid);
         create table evil.pg_depend (objid oid); create type evil.text as enum ('x')",
    )
    .await;
    let expected: String = node.value("select steep_repl.compute_fingerprint('shop', 't')").await;
    // A role that may not even use the table's schema, with everything in its way that can be.
    node.sql(
        "set role poor; set search_path = evil, pg_catalog; set datestyle = german; set timezone = 'Asia/Kolkata'",
    )
    .await;
    let found: String = node.value("select steep_repl.compute_fingerprint('shop', 't')").await;
    let verdicts = node.rows("select table_name, verdict from steep_repl.compare_fingerprints('n')").await;
    let refused = node.try_sql("select steep_repl.capture_all_fingerprints('n')").await;
    node.sql("reset all; reset role").await;
    assert_eq!(found, expected);
    let verdict = |row: &tokio_postgres::Row| (row.get::<_, String>(0), row.get::<_, String>(1));
    let shop: Vec<_> = verdicts.iter().map(verdict).filter(|(name, _)| name == "t").collect();
    assert_eq!(shop, [("t".to_owned(), "MATCH".to_owned())]);
    // Its tables in evil are new since the capture: the role sees them though it is told to look elsewhere.
    let new: Vec<_> = verdicts.iter().map(verdict).filter(|(_, verdict)| verdict == "LOCAL_ONLY").collect();
    assert_eq!(new.len(), 3, "{new:?}");
    assert!(refused.is_err(), "a role that may only read has captured");
    node.sql("drop schema evil cascade").await;
}

async fn a_role_that_cannot_see_everything_says_so(node: &Node) {
    node.sql("select steep_repl.capture_all_fingerprints('n')").await;
    let before: i64 = node.value("select count(*) from steep_repl.schema_fingerprints").await;
    node.sql(
        "grant insert, update, delete on all tables in schema steep_repl to poor;
         revoke select on pg_catalog.pg_attrdef from public; create table shop.later (a int)",
    )
    .await;
    node.sql("set role poor").await;
    let changed: i32 = node.value("select steep_repl.capture_all_fingerprints('n')").await;
    let compared = node.try_sql("select steep_repl.compare_fingerprints('n')").await;
    node.sql("reset role").await;
    assert_eq!(changed, 0);
    let error = compared.expect_err("a role that cannot see everything has compared");
    assert!(error.as_db_error().is_some_and(|it| it.message().contains("poor cannot see every table")), "{error:?}");
    assert_eq!(node.count("steep_repl.schema_fingerprints").await, before, "nothing is taken for dropped");
    let told = "select is_complete::text || ' ' || (definition ->> 'cannot_read') from steep_repl.schema_environments";
    assert_eq!(node.texts(told).await, ["false [\"pg_attrdef\"]"]);
    let of_it = node
        .try_sql("select steep_repl.compare_fingerprints('n')")
        .await
        .expect_err("an incomplete node was compared with");
    assert!(of_it.as_db_error().is_some_and(|it| it.message().contains("could not see all")), "{of_it:?}");
    node.sql("grant select on pg_catalog.pg_attrdef to public; select steep_repl.capture_all_fingerprints('n')").await;
    let told = "select is_complete from steep_repl.schema_environments";
    assert!(node.value::<bool>(told).await, "it sees everything again");
}

#[tokio::test]
async fn a_table_dropped_while_capturing_does_not_make_it_fail() {
    let nodes: [Node; 2] = Cluster::of(2).pg(&["15", "18"]).servers_only().start().await;
    for node in &nodes {
        install(node).await;
        node.sql("create schema calm; create table calm.t (id serial primary key)").await;
        tables_dropped_behind_a_snapshot_are_passed_over(node).await;
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let churn = {
            let (client, stop, rounds) = (node.connect().await, Arc::clone(&stop), Arc::clone(&rounds));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.batch_execute(CHURN).await.expect("tables come and go");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let began = Instant::now();
        let mut captures = 0;
        while captures < 25 || rounds.load(Ordering::Relaxed) < 10 {
            node.sql("select steep_repl.capture_all_fingerprints('n'); select steep_repl.capture_fingerprint('n', 'busy', 'r1')").await;
            captures += 1;
            assert!(began.elapsed() < Duration::from_secs(120), "{captures} captures, {rounds:?} rounds");
        }
        stop.store(true, Ordering::Relaxed);
        churn.await.expect("tables came and went");
        node.sql("select steep_repl.capture_all_fingerprints('n')").await;
        let left = "select table_schema || '.' || table_name from steep_repl.schema_fingerprints order by 1";
        assert_eq!(node.texts(left).await, ["calm.t"], "on {}", node.major());
        let calm = "select count(*) from steep_repl.schema_history where table_schema = 'calm'";
        assert_eq!(node.value::<i64>(calm).await, 1, "a table that did not change has changed in the history");
    }
}

/// The worst moment there is, held still: the catalog's rows are seen, and what they point to is gone.
async fn tables_dropped_behind_a_snapshot_are_passed_over(node: &Node) {
    node.sql(
        "create schema gone; create table gone.r (a int primary key, b int check (b > 0)) partition by list (a);
         create table gone.p partition of gone.r for values in (1); create table gone.plain (a int default 1);
         create table gone.t (a serial references gone.r, c text unique check (c <> ''), g int generated always as (a) stored);
         create index on gone.t (lower(c)); create rule x as on delete to gone.t do nothing;
         create policy x on gone.t using (a > 0)",
    )
    .await;
    let client = node.connect().await;
    client.batch_execute("begin isolation level repeatable read; select 1").await.expect("a snapshot");
    node.sql("drop schema gone cascade").await;
    let all = "array(select u.relid from steep_repl.user_tables u)";
    let seen = format!("select count(*), cardinality({all}) from steep_repl.user_tables");
    let row = client.query_one(&seen, &[]).await.expect("it counts");
    assert_eq!(row.get::<_, i64>(0), 5, "the snapshot still has them");
    let broken = client.batch_execute(&format!("savepoint s; select steep_repl.fingerprint_tables({all})")).await;
    assert!(broken.is_err(), "on {} nothing fails any more: then this spec proves nothing", node.major());
    client.batch_execute("rollback to s").await.expect("a savepoint");
    let survivors =
        format!("select table_schema || '.' || table_name from steep_repl.fingerprint_surviving_tables({all}, false)");
    let rows = client.query(&survivors, &[]).await.expect("it passes over them");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>(), ["calm.t"]);
}

#[tokio::test]
async fn a_table_that_somebody_has_locked_is_kept_as_it_was_or_named() {
    let nodes: [Node; 2] = Cluster::of(2).pg(&["15", "18"]).servers_only().start().await;
    for node in &nodes {
        install(node).await;
        node.sql(
            "create schema s; create table s.known (a int default 1 check (a > 0)); create table s.free (a int check (a > 0));
             select steep_repl.capture_all_fingerprints('n')",
        )
        .await;
        let expected: String = node.value("select steep_repl.compute_fingerprint('s', 'known')").await;
        node.sql("create table s.\"new one\" (a int check (a > 0)); alter table s.free add b int").await;
        let locker = node.connect().await;
        let lock = "begin; lock table s.known, s.\"new one\" in access exclusive mode";
        locker.batch_execute(lock).await.expect("it is locked");

        let began = Instant::now();
        let changed: i32 = node.value("select steep_repl.capture_all_fingerprints('n')").await;
        assert!(began.elapsed() < Duration::from_secs(10), "it waited {:?} for locks", began.elapsed());
        assert_eq!(changed, 1, "the table that is free");
        let rows = "select table_name from steep_repl.schema_fingerprints order by 1";
        assert_eq!(node.texts(rows).await, ["free", "known"]);
        let told =
            "select is_complete::text || ' ' || (definition ->> 'not_captured') from steep_repl.schema_environments";
        assert_eq!(node.texts(told).await, ["false [\"s.\\\"new one\\\"\"]"]);
        // The columns alone can be looked at all the same.
        assert_eq!(node.value::<String>("select steep_repl.compute_fingerprint('s', 'known')").await, expected);
        node.sql("update steep_repl.schema_environments set is_complete = true").await;
        let error =
            node.try_sql("select steep_repl.compare_fingerprints('n')").await.expect_err("it cannot be compared");
        assert!(error.as_db_error().is_some_and(|it| it.message().contains("is locked by somebody")), "{error:?}");

        locker.batch_execute("rollback").await.expect("it is free");
        assert_eq!(node.value::<i32>("select steep_repl.capture_all_fingerprints('n')").await, 1);
        assert!(node.value::<bool>("select is_complete from steep_repl.schema_environments").await);
    }
}

const CHURN: &str = "
    create schema busy; create type busy.e as enum ('a');
    create table busy.r (a int primary key, b int default 7 check (b > 0), e busy.e default 'a') partition by list (a);
    do $$ begin for i in 1..30 loop
        execute format('create table busy.r%s partition of busy.r for values in (%s)', i, i);
        execute format('create table busy.t%s (id serial primary key, b int references busy.r, c text check (c <> ''''))', i);
        execute format('create index on busy.t%s (lower(c)) where b > 1', i);
    end loop; end $$;
    do $$ begin for i in 1..30 loop
        execute format('drop table busy.t%s', i);
        execute format('alter table busy.r detach partition busy.r%s', i);
    end loop; end $$;
    drop schema busy cascade;";
