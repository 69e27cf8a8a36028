//! Schema `steep_repl` is the same whether an agent made it or the extension, and each goes on where the other ended.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use steep_agent::{
    postgres::{Database, PostgresConfig},
    store::{self, Owner, Store, fingerprints},
};
use steep_protocol::names::TableName;
use steep_tests::{Cluster, Node};
use tokio_postgres::Client;
use xtask::extension;

use crate::fingerprints::script;

/// All of the schema, one line an object, with everything that makes it.
const DESCRIBE: &str = "
with member as (
    select c.oid, c.relname, c.relkind from pg_class c where c.relnamespace = 'steep_repl'::regnamespace
)
select format('%s %s %s %s', relkind, relname, (select relacl from pg_class where oid = member.oid),
              obj_description(oid, 'pg_class')) as line from member where relkind in ('r', 'v', 'S', 'i')
union all
select format('column %s.%s %s %s %s %s %s %s', m.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnum,
              pg_get_expr(d.adbin, d.adrelid), a.attnotnull, a.attidentity, col_description(m.oid, a.attnum))
  from member m join pg_attribute a on a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = m.oid and d.adnum = a.attnum where m.relkind in ('r', 'v')
union all
select format('view %s %s', relname, pg_get_viewdef(oid)) from member where relkind = 'v'
union all
select format('index %s', pg_get_indexdef(oid)) from member where relkind = 'i'
union all
select format('constraint %s.%s %s', m.relname, k.conname, pg_get_constraintdef(k.oid))
  from member m join pg_constraint k on k.conrelid = m.oid
union all
select format('trigger %s %s', pg_get_triggerdef(t.oid), t.tgenabled)
  from member m join pg_trigger t on t.tgrelid = m.oid where not t.tgisinternal
union all
select format('function %s %s %s', pg_get_functiondef(p.oid), p.proacl, obj_description(p.oid, 'pg_proc'))
  from pg_proc p where p.pronamespace = 'steep_repl'::regnamespace
union all
select format('schema %s %s %s', nspname, nspacl, obj_description(oid, 'pg_namespace'))
  from pg_namespace where nspname = 'steep_repl'
union all
select format('move %s %s %s', subject, from_state, to_state) from steep_repl.legal_moves
union all
select format('migration %s %s %s', version, name, checksum) from steep_repl.migrations
order by 1";

/// Objects of the schema that are not the extension's.
const STRAYS: &str = "
select pg_describe_object(o.classid, o.oid, 0)
  from (select 'pg_class'::regclass as classid, oid from pg_class
         where relnamespace = 'steep_repl'::regnamespace and relkind in ('r', 'v', 'S')
        union all
        select 'pg_proc'::regclass, oid from pg_proc where pronamespace = 'steep_repl'::regnamespace) o
 where not exists (select from pg_depend d join pg_extension e on e.oid = d.refobjid
                    where d.classid = o.classid and d.objid = o.oid and d.deptype = 'e' and e.extname = 'steep_repl')";

async fn lines(client: &Client, query: &str) -> Vec<String> {
    let rows = client.query(query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        let first: Vec<&str> = sql.lines().take(3).collect();
        panic!("{}: {error:?}", first.join(" "));
    }
}

/// A database of its own on the node's server.
async fn database(node: &Node, name: &str) -> Client {
    node.sql(&format!("create database {name}")).await;
    node.try_connect(name).await.expect("a database just made")
}

/// The memory of an agent in database `name`, made or brought further as an agent does at its start.
async fn open(node: &Node, name: &str) -> Result<Store, store::Error> {
    let config = PostgresConfig {
        host: node.host().display().to_string(),
        port: node.port(),
        dbname: name.to_owned(),
        user: "postgres".to_owned(),
        passfile: None,
        bin_dir: None,
    };
    let owner =
        Owner { node: node.id().parse().expect("a node id"), mesh: "test".parse().expect("the name of a mesh") };
    Store::open(Database::new(config), owner).await
}

/// What there is after an agent made it.
async fn as_agents_make_it(node: &Node) -> Vec<String> {
    let client = database(node, "by_agent").await;
    drop(open(node, "by_agent").await.expect("an agent makes it"));
    lines(&client, DESCRIBE).await
}

#[tokio::test]
async fn the_extension_and_the_agent_make_the_same_schema() {
    let nodes: [Node; 3] = Cluster::of(3).pg(&["15", "16", "18"]).servers_only().start().await;
    for node in &nodes {
        let expected = as_agents_make_it(node).await;
        assert!(expected.len() > 200, "{} objects", expected.len());
        let client = database(node, "by_extension").await;
        if node.major() >= 18 {
            run(&client, &shipped()).await;
            run(&client, "create extension steep_repl").await;
        } else {
            // Older servers look for extensions in one folder, which is not ours to write to: the script as it is.
            run(&client, &script()).await;
        }
        assert_eq!(lines(&client, DESCRIBE).await, expected, "on {}", node.major());
        // An agent finds it and has nothing to do but to begin.
        drop(open(node, "by_extension").await.expect("an agent works with it"));
        assert_eq!(lines(&client, DESCRIBE).await, expected, "on {}", node.major());
        the_suite_of_the_extension_passes(node).await;
    }
    let [.., new] = &nodes;
    an_agent_goes_further_than_the_extension(new).await;
    the_extension_goes_further_than_an_agent(new).await;
    the_store_keeps_what_was_captured_and_told(new).await;
}

/// Lets a session find the extension as it lies in the project.
fn shipped() -> String {
    control_path(extension::folder().parent().expect("it lies in deploy"))
}

fn control_path(parent: &Path) -> String {
    format!("set extension_control_path = '{}:$system'", parent.display())
}

/// As pg_regress does it, which not every installation has.
async fn the_suite_of_the_extension_passes(node: &Node) {
    let folder = extension::folder();
    let read = |path: &str| std::fs::read_to_string(folder.join(path)).expect("the suite is there");
    let (sql, mut expected) = (read("sql/fingerprints.sql"), read("expected/fingerprints.out"));
    let client = database(node, "contrib_regression").await;
    let sql = if node.major() >= 18 {
        run(&client, &format!("alter database contrib_regression {}", shipped())).await;
        sql
    } else {
        run(&client, &script()).await;
        let create = "create extension steep_repl;\n";
        expected = expected.replacen(create, "", 1);
        sql.replacen(create, "", 1)
    };
    let mut psql = node.psql();
    psql.args(["-X", "-a", "-q", "-d", "contrib_regression"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    // One stream for both, in their order, as a terminal would show it.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    psql.stdout(writer.try_clone().expect("a pipe")).stderr(writer);
    let mut child = psql.spawn().expect("psql runs");
    drop(psql);
    child.stdin.take().expect("it was piped").write_all(sql.as_bytes()).expect("psql reads");
    let found = std::io::read_to_string(reader).expect("psql writes text");
    child.wait().expect("psql ends");
    assert_eq!(found, expected, "on {}", node.major());
}

/// Files of the extension as it was up to `versions` migrations, or all there are, as a PostgreSQL 18 finds them.
fn files_of(name: &str, versions: usize, first: u32) -> PathBuf {
    let sql = xtask::workspace::root().join("agent/sql/store");
    let migrations = extension::migrations(&sql).expect("they can be read");
    let adopt = std::fs::read_to_string(sql.join("adopt_objects.sql")).expect("it can be read");
    let parent = std::env::temp_dir().join(format!("steep-extension-{}-{name}", std::process::id()));
    let folder = parent.join("extension");
    std::fs::create_dir_all(&folder).expect("a folder");
    for (file, text) in
        extension::made(&migrations[..versions.min(migrations.len())], &adopt, first).expect("they can be made")
    {
        std::fs::write(folder.join(file), text).expect("a file");
    }
    parent
}

async fn an_agent_goes_further_than_the_extension(node: &Node) {
    let before = files_of("before", 7, 7);
    let after = files_of("after", usize::MAX, 7);
    let expected = lines(&node.try_connect("by_agent").await.expect("it is there"), DESCRIBE).await;

    // The agent is newer than the extension.
    let client = database(node, "agent_after").await;
    run(&client, &control_path(&before)).await;
    run(&client, "create extension steep_repl").await;
    assert!(lines(&client, DESCRIBE).await.len() < expected.len());
    drop(open(node, "agent_after").await.expect("an agent brings it further"));
    assert_eq!(lines(&client, DESCRIBE).await, expected);
    assert_eq!(lines(&client, STRAYS).await, Vec::<String>::new(), "what the agent made is the extension's");
    run(&client, &control_path(&after)).await;
    run(&client, "alter extension steep_repl update").await;
    assert_eq!(lines(&client, DESCRIBE).await, expected, "an update after an agent has nothing to do");
    run(&client, "drop extension steep_repl").await;
    let left = "select relname::text from pg_class where relnamespace = to_regnamespace('steep_repl')";
    assert_eq!(lines(&client, left).await, Vec::<String>::new());
    drop(open(node, "agent_after").await.expect("an agent begins anew"));
    assert_eq!(lines(&client, DESCRIBE).await, expected);

    // The extension is upgraded without an agent.
    let client = database(node, "upgraded").await;
    run(&client, &control_path(&before)).await;
    run(&client, "create extension steep_repl").await;
    run(&client, &control_path(&after)).await;
    run(&client, "alter extension steep_repl update").await;
    assert_eq!(lines(&client, DESCRIBE).await, expected);
    assert_eq!(lines(&client, STRAYS).await, Vec::<String>::new());
    for parent in [before, after] {
        std::fs::remove_dir_all(parent).expect("it was ours");
    }
}

async fn the_extension_goes_further_than_an_agent(node: &Node) {
    let client = node.try_connect("by_agent").await.expect("it is there");
    let expected = lines(&client, DESCRIBE).await;
    run(&client, &shipped()).await;
    run(&client, "create extension steep_repl").await;
    assert_eq!(lines(&client, DESCRIBE).await, expected, "what an agent made is taken over");
    assert_eq!(lines(&client, STRAYS).await, Vec::<String>::new());
    drop(open(node, "by_agent").await.expect("the agent works with it"));
    run(&client, "drop extension steep_repl; create extension steep_repl").await;
    run(&client, "drop extension steep_repl; drop schema steep_repl").await;
    // A schema that reads otherwise is not taken over.
    drop(open(node, "by_agent").await.expect("an agent makes it"));
    run(&client, "update steep_repl.migrations set checksum = 'other' where version = 3").await;
    let refused = client.batch_execute("create extension steep_repl").await.expect_err("another history");
    assert!(refused.as_db_error().is_some_and(|it| it.message().contains("migration 3")), "{refused:?}");
}

async fn the_store_keeps_what_was_captured_and_told(node: &Node) {
    let client = database(node, "kept").await;
    let store = open(node, "kept").await.expect("an agent makes it");
    run(
        &client,
        "create schema shop; create type shop.mood as enum ('ok');
         do $$ begin for i in 1..1203 loop execute format('create table shop.\"t.%s\" (id serial, m shop.mood)', i); end loop; end $$",
    )
    .await;
    let own = node.id().parse().expect("a node id");
    let captured = fingerprints::capture(&store).await.expect("it captures");
    assert_eq!((captured.changed, captured.is_complete), (1203 + 1203 + 1, true));
    let again = fingerprints::capture(&store).await.expect("it captures");
    assert_eq!((again.changed, &again.digest), (0, &captured.digest));

    let mut tables = Vec::new();
    loop {
        let after = tables.last().map(|last: &fingerprints::TableFingerprint| last.table.clone());
        let page = fingerprints::tables(&store, &own, after.as_ref(), 500).await.expect("a page");
        if page.is_empty() {
            break;
        }
        tables.extend(page);
    }
    assert_eq!(tables.len(), 1203);
    let objects = fingerprints::objects(&store, &own).await.expect("objects");
    let hashes = fingerprints::hashes(&store, &own).await.expect("hashes");
    assert_eq!(hashes.len(), tables.len() + objects.len());
    let name = TableName::new("shop", "t.7");
    let found = fingerprints::find_tables(&store, &own, std::slice::from_ref(&name)).await.expect("a table");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].columns[0][2], "nextval(owned)");

    // What another node told is compared with; nobody tells this node of itself.
    let peer = "node_z".parse().expect("a node id");
    let own_environment = fingerprints::environments(&store).await.expect("environments").remove(0);
    let told = fingerprints::EnvironmentFingerprint {
        node_id: "node_z".parse().expect("a node id"),
        ..own_environment.clone()
    };
    let mut tables_told = tables.clone();
    tables_told[0].fingerprint = "0".repeat(64);
    tables_told.pop();
    fingerprints::save_tables(&store, &peer, &tables_told).await.expect("told");
    fingerprints::save_objects(&store, &peer, &objects).await.expect("told");
    fingerprints::save_environment(&store, &told).await.expect("told");
    let verdicts =
        "select verdict || ' ' || count(*) from steep_repl.compare_fingerprints('node_z') group by verdict order by 1";
    assert_eq!(lines(&client, verdicts).await, ["LOCAL_ONLY 1", "MATCH 1201", "MISMATCH 1"]);
    fingerprints::save_tables(&store, &own, &tables_told).await.expect("it is ignored");
    fingerprints::delete_tables(&store, &own, std::slice::from_ref(&name)).await.expect("it is ignored");
    fingerprints::save_environment(
        &store,
        &fingerprints::EnvironmentFingerprint { digest: String::new(), ..own_environment },
    )
    .await
    .expect("it is ignored");
    assert_eq!(fingerprints::hashes(&store, &own).await.expect("hashes"), hashes);

    let gone = [tables[0].table.clone(), tables[1].table.clone()];
    fingerprints::delete_tables(&store, &peer, &gone).await.expect("gone");
    fingerprints::delete_objects(&store, &peer, &[("enum".to_owned(), TableName::new("shop", "mood"))])
        .await
        .expect("gone");
    assert_eq!(fingerprints::hashes(&store, &peer).await.expect("hashes").len(), tables_told.len() + objects.len() - 3);
    fingerprints::forget(&store, &peer).await.expect("forgotten");
    assert_eq!(fingerprints::hashes(&store, &peer).await.expect("hashes").len(), 0);
    assert_eq!(fingerprints::environments(&store).await.expect("environments").len(), 1);

    run(&client, "alter table shop.\"t.7\" add note text; drop table shop.\"t.8\"").await;
    let changed = fingerprints::capture(&store).await.expect("it captures");
    assert_eq!(changed.changed, 3, "a table changed, one dropped with its sequence");
    assert_ne!(changed.digest, captured.digest);
    let history = fingerprints::history(&store, Some(&name), None, 10).await.expect("history");
    let seen: Vec<(&str, usize)> =
        history.iter().map(|it| (it.change.as_str(), it.columns.as_array().map_or(0, Vec::len))).collect();
    assert_eq!(seen, [("changed", 3), ("added", 2)]);
    let all = fingerprints::history(&store, None, None, 2).await.expect("history");
    assert_eq!((all.len(), all[0].change.as_str()), (2, "dropped"));
    let earlier = fingerprints::history(&store, None, Some(all[1].id), 5000).await.expect("history");
    assert_eq!(earlier.len(), 1203);
}
