//! `cargo x bench fingerprint`: what fingerprints cost, on each version, analyzed and never analyzed.
//!
//! One server a version with the schema as the extension's script makes it, autovacuum off so that nothing is analyzed
//! behind our back, and two databases: one with tables enough for a usual node, one with ten times as many.

mod compare;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    cluster::{Cluster, Options, server::Server},
    extension, process, say,
    workspace::Binaries,
};

/// What the project asks of itself: all fingerprints of the tables in one statement, and any one statement of a capture.
const FEW: Duration = Duration::from_millis(200);
const MANY: Duration = Duration::from_secs(2);
const STATEMENT: Duration = Duration::from_millis(500);
/// As in the agent's `store/fingerprints.rs`.
const PAGE: u32 = 500;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tables of a usual node
    #[arg(long, default_value_t = 1_000)]
    few: u32,
    /// Tables of a large one
    #[arg(long, default_value_t = 10_000)]
    many: u32,
    /// PostgreSQL major versions
    #[arg(long, value_delimiter = ',', default_values_t = [15, 16, 18])]
    pg: Vec<u32>,
    /// How often each is taken; the median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where the servers' files go [default: a temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// What was taken of one number of tables on one version.
struct Measured {
    version: String,
    tables: u32,
    is_analyzed: bool,
    /// All fingerprints in one statement.
    all: Duration,
    /// A capture as the agent does it, when everything is new and when nothing is.
    first: Option<Capture>,
    again: Capture,
}

/// A capture, page by page.
#[derive(Clone, Copy)]
struct Capture {
    total: Duration,
    longest: Duration,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.runs == 0 || arguments.few == 0 || arguments.pg.is_empty() {
        bail!("--runs and --few are 1 or more, and --pg names a version");
    }
    say::heading("bench fingerprint");
    let fallback = || std::env::temp_dir().join(format!("steep-bench-{}", std::process::id()));
    let dir = arguments.dir.clone().unwrap_or_else(fallback);
    let mut all = Vec::new();
    for version in &arguments.pg {
        on_version(arguments, &dir.join(version.to_string()), *version, &mut all)?;
    }
    // Empty now, unless it was somebody's before.
    let _ = fs::remove_dir(&dir);
    print(arguments, &all);
    let newest = arguments.pg.iter().copied().max().unwrap_or(18);
    compare::run(&dir.join("compare"), newest, arguments.few, arguments.runs)
}

fn on_version(arguments: &Arguments, dir: &Path, version: u32, all: &mut Vec<Measured>) -> Result<()> {
    let binaries = Binaries { agent: PathBuf::new(), steepctl: PathBuf::new() };
    let mut options = Options::new(dir, 1, &[version], binaries).set("autovacuum", "off").set("fsync", "off");
    options.agents = false;
    let (cluster, _guard) = Cluster::guarded(&options)?;
    let server = &cluster.nodes[0].server;
    for tables in [arguments.few, arguments.many] {
        if tables == 0 {
            continue;
        }
        say::step(format!("PostgreSQL {}: {} tables", server.version, say::count(tables.into())));
        let database = format!("tables_{tables}");
        server.sql(&format!("create database {database}"))?;
        fill(server, &database, tables)?;
        for is_analyzed in [false, true] {
            if is_analyzed {
                told(server, &database, "analyze")?;
            }
            let first = if is_analyzed { None } else { Some(capture(server, &database, tables)?) };
            let again = (0..arguments.runs).map(|_| capture(server, &database, tables)).collect::<Result<Vec<_>>>()?;
            let times = (0..arguments.runs).map(|_| every(server, &database, tables)).collect::<Result<Vec<_>>>()?;
            let worst = again.iter().map(|it| it.longest).max().unwrap_or_default();
            let again = Capture { total: median(again.iter().map(|it| it.total).collect()), longest: worst };
            let version = server.version.clone();
            all.push(Measured { version, tables, is_analyzed, all: median(times), first, again });
        }
    }
    Ok(())
}

/// Makes the schema and `tables` tables.
fn fill(server: &Server, database: &str, tables: u32) -> Result<()> {
    let files = extension::files()?;
    let (_, script) = files.iter().find(|(name, _)| name.ends_with(".sql")).context("there is no script")?;
    let script: String =
        script.lines().filter(|line| !line.starts_with("\\echo")).fold(String::new(), |text, line| text + line + "\n");
    told(server, database, &script)?;
    told(server, database, &make(tables)?).map(drop)
}

/// SQL that makes `tables` tables of ten columns, with a key, an index and a check.
fn make(tables: u32) -> Result<String> {
    let mut sql = String::from("create schema shop;\n");
    let mut first = 1;
    while first <= tables {
        // Each a transaction of its own: a server has only so many locks.
        let last = tables.min(first + 499);
        writeln!(
            sql,
            "do $$ begin for i in {first}..{last} loop execute format('
                create table shop.t%1$s (id bigint generated always as identity primary key, code varchar(20) not null,
                    name text, amount numeric(12,2) default 0 check (amount >= 0), at timestamptz default now(),
                    active boolean default true, body jsonb, ref uuid, day date, note text collate \"C\");
                create index on shop.t%1$s (code)', i); end loop; end $$;"
        )?;
        first = last + 1;
    }
    Ok(sql)
}

/// All fingerprints in one statement.
fn every(server: &Server, database: &str, tables: u32) -> Result<Duration> {
    let sql = "select count(*), min(length(fingerprint)) from steep_repl.fingerprint_tables(
                   array(select relid from steep_repl.user_tables))";
    let (answer, taken) = timed(server, database, sql)?;
    if answer != format!("{tables}|64") {
        bail!("{tables} fingerprints expected, found {answer}");
    }
    Ok(taken)
}

/// A capture as the agent does it, in one session.
fn capture(server: &Server, database: &str, tables: u32) -> Result<Capture> {
    let mut sql = String::from("\\timing on\nselect 0 as last_relid \\gset\n");
    for _ in 0..tables.div_ceil(PAGE) {
        // Of an empty page there is no last table.
        writeln!(
            sql,
            "select coalesce(last_relid, 0) as last_relid
               from steep_repl.capture_page('bench', :last_relid, {PAGE}) \\gset"
        )?;
    }
    sql.push_str("select steep_repl.capture_objects('bench');\n");
    sql.push_str("select * from steep_repl.finish_capture('bench');\n");
    let printed = told(server, database, &sql)?;
    let times: Vec<Duration> = printed.lines().filter_map(time).collect();
    let known = told(server, database, "select tables from steep_repl.schema_environments")?;
    if known != tables.to_string() {
        bail!("{tables} tables expected to be captured, found {known}");
    }
    Ok(Capture { total: times.iter().sum(), longest: times.iter().max().copied().unwrap_or_default() })
}

/// What a statement answers, and what psql says it took.
fn timed(server: &Server, database: &str, sql: &str) -> Result<(String, Duration)> {
    let printed = told(server, database, &format!("\\timing on\n{sql};"))?;
    let answer = printed.lines().next().unwrap_or_default().to_owned();
    Ok((answer, printed.lines().find_map(time).context("psql told no time")?))
}

/// `Time: 12.345 ms`, or `Time: 1234.567 ms (00:01.235)`.
fn time(line: &str) -> Option<Duration> {
    let milliseconds: f64 = line.strip_prefix("Time: ")?.split(' ').next()?.parse().ok()?;
    Some(Duration::from_secs_f64(milliseconds / 1_000.0))
}

/// Runs a script with psql in `database`.
fn told(server: &Server, database: &str, sql: &str) -> Result<String> {
    let file = server.data.with_file_name(format!("{database}.sql"));
    fs::write(&file, sql).with_context(|| format!("cannot write {}", file.display()))?;
    let mut psql = server.psql();
    psql.args(["-d", database, "-f"]).arg(&file);
    Ok(process::output(&mut psql)?.trim_end().to_owned())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn print(arguments: &Arguments, all: &[Measured]) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("\nfingerprints of tables of 10 columns; {} runs, {cores} cores; milliseconds", arguments.runs);
    println!(
        "  {:<11} {:>7} {:<15} {:>8} {:>14} {:>14} {:>17}",
        "PostgreSQL", "tables", "", "all", "first capture", "next captures", "longest statement"
    );
    for it in all {
        let state = if it.is_analyzed { "analyzed" } else { "never analyzed" };
        let first = it.first.map_or_else(String::new, |first| first.total.as_millis().to_string());
        println!(
            "  {:<11} {:>7} {state:<15} {:>8} {first:>14} {:>14} {:>17}",
            it.version,
            say::count(it.tables.into()),
            it.all.as_millis(),
            it.again.total.as_millis(),
            longest(it).as_millis(),
        );
    }
    for (tables, limit) in [(arguments.few, FEW), (arguments.many, MANY)] {
        let Some(worst) = all.iter().filter(|it| it.tables == tables).map(|it| it.all).max() else { continue };
        verdict(worst < limit, &format!("all fingerprints of {} tables", say::count(tables.into())), worst, limit);
    }
    let worst = all.iter().map(longest).max().unwrap_or_default();
    verdict(worst < STATEMENT, "the longest statement of a capture", worst, STATEMENT);
}

fn longest(measured: &Measured) -> Duration {
    measured.again.longest.max(measured.first.map_or(Duration::ZERO, |first| first.longest))
}

fn verdict(is_met: bool, what: &str, worst: Duration, limit: Duration) {
    let mark = if is_met { "✓" } else { "✗" };
    println!("  {mark} {what}: {} ms at worst, less than {}", worst.as_millis(), limit.as_millis());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psql_tells_times_in_milliseconds() {
        assert_eq!(time("Time: 12.500 ms"), Some(Duration::from_micros(12_500)));
        assert_eq!(time("Time: 1234.000 ms (00:01.234)"), Some(Duration::from_millis(1_234)));
        assert_eq!(time("1|64"), None);
    }
}
