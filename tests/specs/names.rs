//! A table may be called anything PostgreSQL allows, and still is copied, replicated and shown without harm.

use steep_tests::{Cluster, NodeState::*};

use crate::alike::{alike, same_rows};

const START: &str = "node start node_b --from node_a";

const HOSTILE: &[&str] = &[
    r#""; drop table x; --"#,
    "'; drop table x; --",
    "two\nlines",
    "\\. \\restrict x",
    "tab\there",
    "../../etc/passwd",
    "esc\u{1b}]0;owned\u{7}\u{1b}[2J",
    "right \u{202e} left",
    "$(id)",
    "`id`",
    "$1",
    "%s%n",
    "all 63 bytes ............................................ here.",
    "ümläut 🐘",
    "a.b",
    "a\"b'c\\d",
    "UPPER lower",
    " ",
    "select",
    "--help",
    "*",
    "{\"json\": [1]}",
    "public",
    "x",
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[tokio::test]
async fn hostile_names_of_schemas_tables_and_columns_do_no_harm() {
    let [a, b] = Cluster::of(2).start().await;
    // A schema that is there already, whose name others begin with.
    b.sql("create schema a").await;
    let mut tables = Vec::new();
    for name in HOSTILE {
        assert!(name.len() <= 63, "{name:?}");
        let name = quoted(name);
        for schema in ["public", &name].into_iter().filter(|schema| *schema != "\"public\"") {
            let table = format!("{schema}.{name}");
            a.sql(&format!(
                "create schema if not exists {schema};
                 create table {table} ({name} int primary key, \"other\" text, {} serial);
                 create index on {table} (\"other\");
                 comment on column {table}.{name} is {literal};
                 insert into {table} ({name}, other) select n, {literal} from generate_series(1, 3) n",
                quoted("and a \"serial\""),
                literal = literal(&name),
            ))
            .await;
            tables.push(table);
        }
    }
    a.sql(r#"create schema "a b"; create table "a b".c (id int primary key)"#).await;

    let shown = b.steepctl(START).arg("--dry-run").succeeds();
    let op = b.steepctl(START).operation();
    op.completes().await;
    b.becomes(Synchronized).await;
    b.sql("drop schema a").await;
    alike(&a, &b).await;

    for (at, node) in [&a, &b].into_iter().enumerate() {
        for table in &tables {
            let column = node
                .texts(&format!(
                    "select quote_ident(attname) from pg_attribute where attrelid = {}::regclass and attnum = 1",
                    literal(table)
                ))
                .await;
            node.sql(&format!(
                "insert into {table} ({0}) values ({1}); update {table} set other = 'changed {at}' where {0} = {2}",
                column[0],
                at + 10,
                at + 1
            ))
            .await;
        }
    }
    for table in &tables {
        same_rows(&a, &b, table, "*").await;
        assert_eq!(a.count(table).await, 5, "{table}");
    }
    let followed = b.steepctl("op show").arg(op.id()).succeeds();
    let listed = b.steepctl("node progress node_b").outcome();
    for outcome in [shown, followed, listed] {
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        let harm = said.chars().find(|c| c.is_control() && *c != '\n' || *c == '\u{202e}');
        assert_eq!(harm, None, "{outcome}");
    }
}

fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[tokio::test]
async fn hostile_names_can_be_selected_and_left_out() {
    let [a, b] = Cluster::of(2).start().await;
    let name = r#"a.b, "c" $(id) \ 'd'"#;
    a.sql(&format!(
        "create schema {0}; create table {0}.{0} (id int primary key); insert into {0}.{0} values (1), (2);
         create table {0}.other (id int primary key); insert into {0}.other values (1)",
        quoted(name)
    ))
    .await;
    let table = format!("{0}.{0}", quoted(name));
    b.steepctl(START).arg("--tables").arg(&table).operation().completes().await;
    same_rows(&a, &b, &table, "*").await;
    assert_eq!(b.count(&table).await, 2);
    let other = format!(
        "select count(*) from pg_class where oid = to_regclass({})",
        literal(&format!("{}.other", quoted(name)))
    );
    assert_eq!(b.value::<i64>(&other).await, 0, "a table that was not selected came too");
}
