//! `cargo x bench link`: replication through the agents beside PostgreSQL to PostgreSQL, in one run.
//!
//! Three things of each way, on the same two servers made anew for each round: how long a pgbench load takes until the
//! target holds it; how long a load written while the subscription was disabled takes to be caught up with; and how long
//! a commit that waits to be applied on the target (`synchronous_commit = remote_apply`) takes.

use std::{
    fmt, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{arena::Arena, data::Set};
use crate::{cluster::OPERATORS, process, say};

/// What the project asks of itself: throughput of the mesh to that of the direct way, and what a commit may wait longer.
const THROUGHPUT: f64 = 0.8;
const ADDED: Duration = Duration::from_millis(5);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// pgbench's scale of the tables written to
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Transactions of each load
    #[arg(long, default_value_t = 40_000)]
    transactions: u32,
    /// Commits whose time until they are applied is taken
    #[arg(long, default_value_t = 1_000)]
    commits: u32,
    /// How often each way runs, in turn; the median counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// PostgreSQL major version of both ends
    #[arg(long, default_value_t = 18)]
    pg: u32,
    /// Where the nodes' files go [default: a temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Take the release binaries as an earlier build left them
    #[arg(long)]
    no_build: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Mesh,
    Direct,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mesh => "mesh",
            Self::Direct => "direct",
        })
    }
}

/// What one way took in one round.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// From the first transaction of a load to the target holding its last.
    load: Duration,
    /// From a subscription being enabled to the target holding what was written meanwhile.
    backlog: Duration,
    /// A commit until it is applied, half of them and 95 of 100.
    commit: [Duration; 2],
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.runs == 0 || arguments.transactions < 100 || arguments.commits < 100 {
        bail!("--runs is 1 or more, --transactions and --commits 100 or more");
    }
    say::heading("bench link");
    let arena = Arena::of_its_own(arguments.dir.as_deref(), arguments.no_build, arguments.pg, 2)?;
    arena.fill(Set::Pgbench, arguments.scale)?;
    let mut all = [(Way::Mesh, Vec::new()), (Way::Direct, Vec::new())];
    for round in 1..=arguments.runs {
        for (way, measured) in &mut all {
            let one = measure(&arena, *way, arguments).with_context(|| format!("{way}, round {round}"))?;
            say::good(format!(
                "{way} (round {round}): load {}, backlog {}, commit {:.2} ms",
                say::seconds(one.load),
                say::seconds(one.backlog),
                milliseconds(one.commit[0])
            ));
            measured.push(one);
        }
    }
    print(arguments, &arena.source().version, &all);
    Ok(())
}

fn measure(arena: &Arena, way: Way, arguments: &Arguments) -> Result<Measured> {
    arena.reset()?;
    for node in arena.nodes() {
        let toml = fs::read_to_string(&node.agent.config)?.replace("link = \"direct\"\n", "");
        let toml = match way {
            Way::Mesh => toml,
            Way::Direct => toml.replace("[replication]\n", "[replication]\nlink = \"direct\"\n"),
        };
        fs::write(&node.agent.config, toml)?;
    }
    arena.start_agents()?;
    let [a, b] = arena.nodes();
    let mut start = arena.cluster.steepctl(b, OPERATORS[0].0);
    process::output(start.args(["node", "start", &b.node_id, "--from", &a.node_id, "--one-way", "--no-input"]))?;

    let load = timed(|| {
        pgbench(arena, arguments.transactions)?;
        caught_up(arena)
    })?;
    let subscription = arena.target().sql("select subname from pg_subscription")?;
    arena.target().sql(&format!("alter subscription {subscription} disable"))?;
    let reader = "select count(*) from pg_replication_slots where active";
    process::wait_for("the slot being let go", Duration::from_secs(30), || {
        Ok((arena.source().sql(reader)? == "0").then_some(()))
    })?;
    pgbench(arena, arguments.transactions)?;
    let backlog = timed(|| {
        arena.target().sql(&format!("alter subscription {subscription} enable"))?;
        caught_up(arena)
    })?;
    arena.is_complete()?;
    Ok(Measured { load, backlog, commit: commits(arena, &subscription, arguments.commits)? })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

fn pgbench(arena: &Arena, transactions: u32) -> Result<()> {
    let each = (transactions / 4).to_string();
    let mut pgbench = arena.source().client("pgbench");
    pgbench.args(["-n", "-c", "4", "-j", "2", "-t", &each]);
    process::output(&mut pgbench).map(|_| ())
}

/// Waits until the target has applied everything that is committed now.
fn caught_up(arena: &Arena) -> Result<()> {
    let now = arena.source().sql("select pg_current_wal_insert_lsn()")?;
    let applied = format!("select coalesce(bool_or(replay_lsn >= '{now}'), false) from pg_stat_replication");
    process::wait_for("the target having caught up", Duration::from_secs(600), || {
        Ok((arena.source().sql(&applied)? == "t").then_some(()))
    })
}

/// How long commits take that wait for the target to apply them.
fn commits(arena: &Arena, subscription: &str, count: u32) -> Result<[Duration; 2]> {
    let source = arena.source();
    source
        .sql(&format!("alter system set synchronous_standby_names = '\"{subscription}\"'; select pg_reload_conf();"))?;
    let measured = waiting_commits(arena, count);
    source.sql("alter system reset synchronous_standby_names; select pg_reload_conf();")?;
    measured
}

fn waiting_commits(arena: &Arena, count: u32) -> Result<[Duration; 2]> {
    let source = arena.source();
    process::wait_for("the target being waited for", Duration::from_secs(30), || {
        Ok((source.sql("select count(*) from pg_stat_replication where sync_state = 'sync'")? == "1").then_some(()))
    })?;
    let folder = arena.cluster.dir().to_owned();
    let (script, prefix) = (folder.join("commit.sql"), folder.join("commits"));
    fs::write(&script, "update pgbench_tellers set tbalance = tbalance + 1 where tid = 1;\n")?;
    let mut pgbench = source.client("pgbench");
    pgbench.env("PGOPTIONS", "-c synchronous_commit=remote_apply");
    pgbench.args(["-n", "-c", "1", "-l", "-t", &count.to_string(), "--log-prefix"]).arg(&prefix).arg("-f").arg(&script);
    process::output(&mut pgbench)?;
    let mut taken = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("commits.")) {
            taken.extend(fs::read_to_string(&path)?.lines().filter_map(time_in));
            fs::remove_file(&path)?;
        }
    }
    fs::remove_file(&script)?;
    if taken.len() < count as usize {
        bail!("pgbench has timed {} of {count} commits", taken.len());
    }
    taken.sort_unstable();
    Ok([50, 95].map(|percent| taken[taken.len() * percent / 100]))
}

/// The time in a line of pgbench's log: client, number, microseconds, …
fn time_in(line: &str) -> Option<Duration> {
    line.split(' ').nth(2)?.parse().ok().map(Duration::from_micros)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], values[middle]) } else { values[middle] }
}

fn print(arguments: &Arguments, version: &str, all: &[(Way, Vec<Measured>); 2]) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "\npgbench scale {}, loads of {} transactions, {} commits, PostgreSQL {version}; fsync on, {cores} cores, median of {}",
        arguments.scale, arguments.transactions, arguments.commits, arguments.runs
    );
    let take = |runs: &[Measured], what: fn(&Measured) -> f64| median(runs.iter().map(what).collect());
    let rows: Vec<[f64; 4]> = all
        .iter()
        .map(|(_, runs)| {
            [
                take(runs, |one| one.load.as_secs_f64()),
                take(runs, |one| one.backlog.as_secs_f64()),
                take(runs, |one| milliseconds(one.commit[0])),
                take(runs, |one| milliseconds(one.commit[1])),
            ]
        })
        .collect();
    println!("  {:<8} {:>9} {:>10} {:>15} {:>15}", "", "load s", "backlog s", "commit p50 ms", "commit p95 ms");
    for ((way, _), [load, backlog, half, most]) in all.iter().zip(&rows) {
        println!("  {way:<8} {load:>9.2} {backlog:>10.2} {half:>15.2} {most:>15.2}");
    }
    let [mesh, direct] = [&rows[0], &rows[1]];
    let (load, backlog) = (direct[0] / mesh[0], direct[1] / mesh[1]);
    let (half, most) = (mesh[2] - direct[2], mesh[3] - direct[3]);
    let allowed = milliseconds(ADDED);
    let goals = [
        (
            load >= THROUGHPUT,
            format!("a load through the mesh runs at {load:.2} of the direct way, at least {THROUGHPUT}"),
        ),
        (backlog >= THROUGHPUT, format!("a backlog at {backlog:.2} of the direct way, at least {THROUGHPUT}")),
        (half < allowed, format!("a commit is applied {half:.2} ms later (half of them), below {allowed:.0} ms")),
        (most < allowed, format!("{most:.2} ms later (95 of 100), below {allowed:.0} ms")),
    ];
    for (is_met, goal) in goals {
        println!("  {} {goal}", if is_met { "✓" } else { "✗" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_pgbenchs_log_is_read() {
        assert_eq!(time_in("0 199 2241 0 1175850568 995598"), Some(Duration::from_micros(2241)));
        assert_eq!(time_in("nonsense"), None);
    }
}
