//! Every type PostgreSQL has arrives byte by byte, by COPY in either format and by replication in both directions.

use steep_tests::{Cluster, Node};

use crate::alike::{alike, same_rows};

const BOTH_WAYS: &str = "node start node_b --from node_a";
const ONE_WAY: &str = "node start node_b --from node_a --one-way";

/// A type and expressions of values that are easily lost on the way.
type Type = (&'static str, &'static [&'static str]);

/// What travels in PostgreSQL's binary format.
const BINARY: &[Type] = &[
    ("boolean", &["true", "false"]),
    ("bytea", &[r"'\x00ff5c4e'", "''", r"('\x' || repeat('0a5c2e', 9000))"]),
    ("\"char\"", &["'a'", "''", r"'\377'"]),
    ("name", &["'Ünïcödé'", "repeat('n', 63)", "''"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807", "0"]),
    ("smallint", &["'-32768'", "32767"]),
    ("integer", &["'-2147483648'", "2147483647"]),
    (
        "text",
        &[
            "''",
            r"E'a\tb\nc\\d\re\u0001'",
            r"'\N'",
            r"'\.'",
            "'naïve 🐘 שלום \u{202e}abc e\u{301} \u{feff}'",
            "repeat('long enough for TOAST, and compressible ', 2000)",
            "(select string_agg(md5(i::text), '') from generate_series(1, 400) i)",
        ],
    ),
    ("json", &[r#"'{"a" :  1, "a":2, "\u00e9": [1e400, null]}'"#, "'null'", "'\"\"'"]),
    ("jsonb", &[r#"'{"b": [1.10, 1e400, "\u00e9\n"], "a": {}, "": null}'"#, "'[]'", "'0'"]),
    ("point", &["'(1.5,-0)'", "'(NaN,Infinity)'"]),
    ("lseg", &["'[(0,0),(1e-300,1e300)]'"]),
    ("path", &["'[(0,0),(1,1),(2,0)]'", "'((0,0),(1,1),(2,0))'"]),
    ("box", &["'(2,2),(-0.1,0.3)'"]),
    ("polygon", &["'((0,0),(0.1,0.2),(5,0))'"]),
    ("line", &["'{1,-1,0.3}'"]),
    ("circle", &["'<(0.1,0.2),0>'"]),
    ("real", &["'NaN'", "'-Infinity'", "'-0'", "'1.4e-45'", "'3.4028235e38'", "0.1"]),
    ("double precision", &["'NaN'", "'Infinity'", "'-0'", "'5e-324'", "1.7976931348623157e308", "0.1"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("inet", &["'10.1.2.3/8'", "'::ffff:1.2.3.4/128'", "'fe80::1/64'"]),
    ("cidr", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    ("character(10)", &["'ab'", "''", "'äöü   '"]),
    // Wide enough to travel without the blanks that fill it up; a type without a length is never filled up.
    (
        "character(30)",
        &["'ab'", "''", "'  äöü   '", "repeat('🐘', 30)", r"E'a \t\n'", "repeat('x', 29)", "repeat(' ', 29) || 'x'"],
    ),
    ("bpchar", &["'ab   '", "repeat(' ', 20)", "''"]),
    ("character varying(20)", &["'ab  '", "''"]),
    ("date", &["'-infinity'", "'infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'0001-12-31 BC'"]),
    ("time", &["'24:00:00'", "'00:00:00.000001'"]),
    ("time(2) with time zone", &["'24:00:00+15:59:59'", "'00:00:00.13-15:59'"]),
    ("timestamp", &["'4713-01-01 00:00:00 BC'", "'294276-12-31 23:59:59.999999'", "'-infinity'", "'infinity'"]),
    ("timestamp with time zone", &["'4713-01-02 00:00:00+00 BC'", "'294276-12-31 23:59:59.999999+00'", "'infinity'"]),
    (
        "interval",
        &[
            "'178000000 years'",
            "'-178000000 years -11 mons +2147483647 days -2562047788:00:54.775807'",
            "'1 mon -1 day 00:00:00.000001'",
            "'0'",
        ],
    ),
    ("bit(5)", &["B'10101'"]),
    ("bit varying", &["B''", "B'1'", "repeat('10', 999)"]),
    (
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "'-0.000'",
            "'1.10'",
            "('-' || repeat('9', 40000) || '.' || repeat('1', 9000))",
            "('0.' || repeat('0', 16000) || '1')",
        ],
    ),
    ("numeric(5,-2)", &["1234567"]),
    ("uuid", &["'00000000-0000-0000-0000-000000000000'", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("pg_lsn", &["'FFFFFFFF/FFFFFFFF'", "'0/0'"]),
    ("tsvector", &["''", r"$$'a':1A,2B 'fat''cat' 'ä\\':3C$$"]),
    ("jsonpath", &["'$.a[*] ? (@.b > 1.5)'", "'strict $'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'", "'[,7]'"]),
    ("int8range", &["'[-9223372036854775808,9223372036854775807)'"]),
    ("numrange", &["'[1.0,2.10]'", "'(NaN,]'"]),
    ("daterange", &["'[-infinity,infinity]'", "'(,2000-01-01)'"]),
    ("tsrange", &["'[2000-01-01,infinity)'", "'empty'"]),
    ("tstzrange", &["'[2000-01-01 00:00:00+00,)'"]),
    ("int4multirange", &["'{}'", "'{[1,2),[5,)}'"]),
    ("int8multirange", &["'{(,)}'"]),
    ("nummultirange", &["'{[1.0,1.5],(2,3.00)}'"]),
    ("datemultirange", &["'{[2000-01-01,2000-02-01)}'"]),
    ("tsmultirange", &["'{[2000-01-01,infinity)}'"]),
    ("tstzmultirange", &["'{(,2000-01-01 00:00:00+00)}'"]),
];

/// What travels as text: its binary form holds oids, depends on the server, or cannot be received.
const TEXT: &[Type] = &[
    ("tsquery", &["'fat & (rat | !cat) <2> dog:*AB'", "''"]),
    ("int2vector", &["'1 -2 3'", "''"]),
    ("oidvector", &["'1 4294967295'"]),
    ("regproc", &["'pg_catalog.now'", "'-'"]),
    ("oid", &["4294967295"]),
    ("tid", &["'(4294967295,65535)'"]),
    ("xid", &["'4294967295'"]),
    ("cid", &["'4294967295'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("money", &["'-92233720368547758.08'", "0.01"]),
    ("aclitem", &["'=r*/postgres'"]),
    ("refcursor", &["'a \"cursor\"'"]),
    ("regprocedure", &["'pg_catalog.abs(integer)'"]),
    ("regoper", &["'pg_catalog.||/'"]),
    ("regoperator", &["'pg_catalog.+(integer,integer)'"]),
    ("regclass", &["'pg_catalog.pg_class'"]),
    ("regcollation", &["'\"C\"'"]),
    ("regtype", &["'integer[]'"]),
    ("regrole", &["'postgres'"]),
    ("regnamespace", &["'pg_catalog'"]),
    ("regconfig", &["'pg_catalog.simple'"]),
    ("regdictionary", &["'pg_catalog.simple'"]),
    ("txid_snapshot", &["'10:20:10,14,15'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("xml", &["'<a b=\"1\">ä &amp; <!-- c --><![CDATA[<]]></a>'", "''"]),
    ("types.mood", &["'so so'", r#"'it''s "fine", {ok}'"#, "'NULL'"]),
    ("types.few", &["7", "0"]),
    ("types.words", &[r#"array['a b', '"', '\', 'NULL', '', null, '{}']"#, "'{}'"]),
    ("types.pair", &[r#"row('a,"b(\', null, 'so so', array[1, null])"#, "row(null, null, null, null)"]),
    ("types.nested", &[r#"row(row('"', 1, 'NULL', '{}'), array[row('x', 2, null, null)::types.pair])"#]),
    ("types.span", &["'[0.1,0.2)'", "'empty'"]),
    ("types.spans", &["'{[0.1,0.2),(1,)}'"]),
    ("integer[][]", &["'{{1,2},{3,NULL}}'", "'[2:3][-1:0]={{1,2},{3,4}}'", "'{}'"]),
];

const OWN_TYPES: &str = r#"
create schema types;
create type types.mood as enum ('so so', 'it''s "fine", {ok}', 'NULL');
create domain types.few as int default 3 check (value >= 0);
create domain types.words as text[] check (array_length(value, 1) < 9);
create type types.pair as (a text, "B b" types.few, c types.mood, d int[]);
create type types.nested as (one types.pair, many types.pair[]);
create type types.span as range (subtype = float8, multirange_type_name = types.spans);
"#;

/// Types of PostgreSQL itself that a table can hold and that none of the columns of `types.*` has.
const FORGOTTEN: &str = "
select t.oid::regtype::text
  from pg_type t
 where t.typnamespace = 'pg_catalog'::regnamespace
   and t.typtype in ('b', 'r', 'm')
   and (t.typcategory <> 'A' or t.typname in ('int2vector', 'oidvector'))
   -- PostgreSQL makes values of these itself and takes none.
   and t.typname not in ('pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list', 'pg_brin_bloom_summary',
                         'pg_brin_minmax_multi_summary', 'gtsvector')
   and not exists (select from pg_attribute a
                    where a.atttypid = t.oid and a.attrelid in (select oid from pg_class where relnamespace = 'types'::regnamespace))";

/// A table with a column of each type, and one of arrays of it: a row for each value there is, and one of nulls.
///
/// Returns how many rows that are.
async fn fill(node: &Node, table: &str, types: &[&Type]) -> usize {
    let has_arrays = |name: &str| !name.ends_with("[]");
    let columns = types.iter().enumerate().map(|(at, (name, _))| match has_arrays(name) {
        true => format!("c{at} {name}, a{at} {name}[]"),
        false => format!("c{at} {name}"),
    });
    let columns: Vec<_> = columns.collect();
    node.sql(&format!("create table {table} (id bigint primary key, {})", columns.join(", "))).await;
    let rows = types.iter().map(|(_, values)| values.len()).max().expect("there are types");
    for row in 0..rows {
        let cells = types.iter().map(|(name, values)| {
            let value = format!("({})::{name}", values[row % values.len()]);
            if has_arrays(name) { format!("{value}, array[{value}, null, {value}]::{name}[]") } else { value }
        });
        let cells: Vec<_> = cells.collect();
        node.sql(&format!("insert into {table} values ({row}, {})", cells.join(", "))).await;
    }
    node.sql(&format!("insert into {table} (id) values (-1)")).await;
    rows + 1
}

/// Every row once more under other keys, and every row of `from` rewritten.
async fn rewrite(node: &Node, table: &str, from: i64) {
    let columns = node
        .texts(&format!(
            "select attname::text from pg_attribute where attrelid = '{table}'::regclass and attnum > 1 order by attnum"
        ))
        .await
        .join(", ");
    node.sql(&format!(
        "insert into {table} (id, {columns}) select id + {from}, {columns} from {table} where id < 100;
         update {table} set id = id + 50, ({columns}) = (select {columns} from {table} o where o.id = {table}.id)
          where id >= {from} and id < {from} + 3"
    ))
    .await;
}

async fn every_type([a, b]: [&Node; 2], start: &str, both_ways: bool, settings: [&[&str]; 2]) {
    let mut has_xml = true;
    for node in [a, b] {
        has_xml &= node.try_sql("select '<a/>'::xml").await.is_ok();
    }
    let text: Vec<&Type> = TEXT.iter().filter(|(name, _)| has_xml || *name != "xml").collect();
    let binary: Vec<&Type> = BINARY.iter().collect();
    let everything: Vec<&Type> = binary.iter().chain(&text).copied().collect();
    a.sql(OWN_TYPES).await;
    let mut filled = Vec::new();
    for (table, types) in [("as_text", &text), ("as_binary", &binary), ("everything", &everything)] {
        let table = format!("types.{table}");
        filled.push((table.clone(), fill(a, &table, types).await));
    }
    if a.major() > 16 {
        a.sql("create table types.forever (id int primary key, as_binary interval)").await;
        a.sql("insert into types.forever values (1, 'infinity'), (2, '-infinity')").await;
    }
    let forgotten = a.texts(FORGOTTEN).await;
    let expected: &[&str] = if has_xml { &[] } else { &["xml"] };
    assert_eq!(forgotten, expected, "types without a column in this spec");

    // The spec's own sessions are open already and keep what they began with.
    for (node, settings) in [a, b].into_iter().zip(settings) {
        for setting in settings {
            node.sql(&format!("alter database postgres set {setting}")).await;
        }
    }
    let plan = b.steepctl(start).arg("--dry-run").arg("-o").arg("json").succeeds().json();
    for table in plan["tables"].as_array().expect("a dry run shows the tables") {
        let binary = ["as_binary", "forever"].iter().any(|name| table["table"].to_string().contains(name));
        assert_eq!(table["format"], if binary { "binary" } else { "text" }, "{table}");
    }
    b.steepctl(start).operation().completes().await;
    alike(a, b).await;
    for (table, rows) in &filled {
        rewrite(a, table, 1000).await;
        same_rows(a, b, table, "*").await;
        if both_ways {
            rewrite(b, table, 2000).await;
            same_rows(a, b, table, "*").await;
        }
        assert_eq!(a.count(table).await, (rows * if both_ways { 3 } else { 2 }) as i64);
    }
}

#[tokio::test]
async fn every_type_arrives_byte_by_byte() {
    let [a, b] = Cluster::of(2).start().await;
    every_type([&a, &b], BOTH_WAYS, true, [&[], &[]]).await;
}

#[tokio::test]
async fn every_type_arrives_byte_by_byte_whatever_the_databases_settings_are() {
    let [a, b] = Cluster::of(2).start().await;
    let both = ["search_path = nowhere", "lock_timeout = '1ms'", "idle_in_transaction_session_timeout = '100ms'"];
    let on_a =
        ["DateStyle = 'German'", "IntervalStyle = sql_standard", "bytea_output = escape", "extra_float_digits = -9"];
    let on_b =
        ["DateStyle = 'SQL, DMY'", "IntervalStyle = iso_8601", "TimeZone = 'Asia/Kathmandu'", "xmloption = document"];
    let [mut on_a, mut on_b] = [on_a, on_b].map(|own| [&both[..], &own].concat());
    on_a.extend([
        "TimeZone = 'America/St_Johns'",
        "default_transaction_isolation = serializable",
        "statement_timeout = '2s'",
    ]);
    on_b.extend(["standard_conforming_strings = off", "client_encoding = latin1", "statement_timeout = '2s'"]);
    if a.major() > 16 {
        [&mut on_a, &mut on_b].into_iter().for_each(|settings| settings.push("transaction_timeout = '300ms'"));
    }
    every_type([&a, &b], BOTH_WAYS, true, [&on_a, &on_b]).await;
}

#[tokio::test]
async fn every_type_arrives_byte_by_byte_from_16_on_18() {
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).start().await;
    every_type([&a, &b], BOTH_WAYS, true, [&[], &[]]).await;
}

#[tokio::test]
async fn every_type_arrives_byte_by_byte_from_15_on_18() {
    let [a, b] = Cluster::of(2).pg(&["15", "18"]).start().await;
    every_type([&a, &b], ONE_WAY, false, [&[], &[]]).await;
}

#[tokio::test]
async fn every_type_arrives_byte_by_byte_on_15_where_there_is_xml() {
    let [a, b] = Cluster::of(2).pg(&["15"]).start().await;
    every_type([&a, &b], ONE_WAY, false, [&[], &[]]).await;
}
