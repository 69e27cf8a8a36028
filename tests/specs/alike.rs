//! What "node_b holds everything node_a holds" means: the same schema, word by word, and the same rows, byte by byte.

use steep_tests::{Node, PATIENCE, until};

/// Every table and materialized view of the users' own.
const RELATIONS: &str = "
select format('%I.%I', n.nspname, c.relname)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'm')
   and n.nspname !~ '^pg_'
   and n.nspname not in ('information_schema', 'steep_repl')
 order by 1";

/// Fails unless both nodes have the same schema, and, as soon as all is applied, the same rows in every table.
pub(crate) async fn alike(a: &Node, b: &Node) {
    // Each version's pg_dump has words of its own.
    if a.major() == b.major() {
        same_schema(a, b);
    }
    let relations = a.texts(RELATIONS).await;
    assert_eq!(relations, b.texts(RELATIONS).await);
    for relation in &relations {
        same_rows(a, b, relation, "*").await;
    }
    let broken = "select indexrelid::regclass::text from pg_index where not indisvalid and indislive";
    assert_eq!(b.texts(broken).await, Vec::<String>::new(), "indexes of {} are not valid", b.id());
}

/// Fails unless pg_dump tells the same about both nodes.
#[track_caller]
fn same_schema(a: &Node, b: &Node) {
    let [there, here] = [a, b].map(schema);
    let differ = there.iter().zip(&here).position(|(there, here)| there != here);
    let at = differ.unwrap_or_else(|| there.len().min(here.len()));
    let around = |lines: &[String]| lines[at.saturating_sub(6)..(at + 4).min(lines.len())].join("\n");
    assert!(there == here, "on {}:\n{}\n\non {}:\n{}", a.id(), around(&there), b.id(), around(&here));
}

fn schema(node: &Node) -> Vec<String> {
    let mut pg_dump = node.program("pg_dump");
    pg_dump.args(["--schema-only", "--exclude-schema=steep_repl", "--no-publications", "--no-subscriptions"]);
    // Whatever the databases' own settings are.
    pg_dump.arg("--encoding=UTF8").env("PGOPTIONS", "-c standard_conforming_strings=on");
    let output = pg_dump.output().expect("pg_dump can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Its frame for psql has a random word in it.
    let frame = ["\\restrict ", "\\unrestrict "];
    text.lines().filter(|line| !frame.iter().any(|start| line.starts_with(start))).map(str::to_owned).collect()
}

/// Waits until `columns` of every row of `table` are the same on both nodes.
pub(crate) async fn same_rows(a: &Node, b: &Node, table: &str, columns: &str) {
    let query =
        format!("select md5(t::text) || ' ' || left(t::text, 300) from (select {columns} from {table}) t order by 1");
    until(&format!("{table} is the same on {} and {}", a.id(), b.id()), PATIENCE, async || {
        let (there, here) = (a.texts(&query).await, b.texts(&query).await);
        let only = |these: &[String], those: &[String]| these.iter().find(|row| !those.contains(row)).cloned();
        match there == here {
            true => Ok(()),
            false => Err(format!(
                "{} rows and {} rows; there only: {:?}; here only: {:?}",
                there.len(),
                here.len(),
                only(&there, &here),
                only(&here, &there)
            )),
        }
    })
    .await;
}
