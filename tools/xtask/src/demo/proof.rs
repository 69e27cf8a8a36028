//! Proves that two nodes hold the same, and that each sees what is written on the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{
    cluster::{Node, server::Server},
    process, say,
};

const TABLES: [&str; 6] = ["customers", "products", "orders", "order_items", "payments", "events"];
const PATIENCE: Duration = Duration::from_secs(120);

/// Rows and a hash over all of them, in whatever order they lie.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    rows: u64,
    hash: String,
}

/// Waits until every table is the same on both, and shows it.
pub(super) fn same_on_both(a: &Node, b: &Node) -> Result<()> {
    // Counting is cheaper than hashing, so the waiting is done with counts.
    let mut seen = [String::new(), String::new()];
    let equal = process::wait_for("equal row counts on both nodes", PATIENCE, || {
        seen = [counts(&a.server)?, counts(&b.server)?];
        Ok((seen[0] == seen[1]).then_some(()))
    });
    equal.with_context(|| {
        format!("{}: {} has {}, {} has {}", TABLES.join("|"), a.node_id, seen[0], b.node_id, seen[1])
    })?;
    let mut last = Vec::new();
    process::wait_for("equal content on both nodes", PATIENCE, || {
        last = TABLES
            .iter()
            .map(|table| Ok((content(&a.server, table)?, content(&b.server, table)?)))
            .collect::<Result<_>>()?;
        Ok(last.iter().all(|(on_a, on_b)| on_a == on_b).then_some(()))
    })
    .with_context(|| format!("content on {} and {}: {last:?}", a.node_id, b.node_id))?;
    let [rows_a, rows_b] = [a, b].map(|node| format!("{} rows", node.node_id));
    let [hash_a, hash_b] = [a, b].map(|node| format!("{} hash", node.node_id));
    println!("\n  {:<14} {rows_a:>12} {rows_b:>12}   {hash_a:<14} {hash_b}", "table");
    for (table, (on_a, on_b)) in TABLES.iter().zip(&last) {
        let [rows_a, rows_b] = [on_a, on_b].map(|content| say::count(content.rows));
        println!("  {table:<14} {rows_a:>12} {rows_b:>12}   {:<14} {}", on_a.hash, on_b.hash);
    }
    println!();
    Ok(())
}

fn counts(server: &Server) -> Result<String> {
    let counts: Vec<String> = TABLES.iter().map(|table| format!("(select count(*) from {table})")).collect();
    server.sql(&format!("select concat_ws('|', {})", counts.join(", ")))
}

fn content(server: &Server, table: &str) -> Result<Content> {
    let answer = server.sql(&format!(
        "select count(*), left(md5(sum(hashtextextended(t::text, 0)::numeric)::text), 12) from {table} t"
    ))?;
    let (rows, hash) = answer.split_once('|').context("psql separates columns by a bar")?;
    Ok(Content { rows: rows.parse()?, hash: hash.to_owned() })
}

/// Writes a row on `from` and waits until `to` has it. Returns how long that took.
pub(super) fn seen_on_the_other(from: &Node, to: &Node) -> Result<Duration> {
    let greeting = format!("hello from {}", from.node_id);
    from.server.sql(&format!(
        "insert into events (kind, payload) values ('greeting', jsonb_build_object('text', '{greeting}'))"
    ))?;
    let started = Instant::now();
    let query =
        format!("select 1 from events where at > now() - interval '1 hour' and payload ->> 'text' = '{greeting}'");
    process::wait_for(&format!("the row of {} on {}", from.node_id, to.node_id), PATIENCE, || {
        Ok((!to.server.sql(&query)?.is_empty()).then_some(()))
    })?;
    Ok(started.elapsed())
}
