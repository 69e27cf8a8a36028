//! `cargo x bench life`: how long it takes when things go wrong, or are given up, or are done once more.
//!
//! A target's agent and a source's that are killed amid a copy and started again; an initialization that is cancelled; a
//! slot that is lost under a running subscription; tables that are copied again into a node that replicates.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{arena::Arena, data::Set};
use crate::{
    cluster::{OPERATORS, agent::Life},
    process, say,
};

/// What the project asks of itself.
const REATTACH: Duration = Duration::from_secs(5);
const CANCEL: Duration = Duration::from_secs(10);
const NOTICE: Duration = Duration::from_secs(10);
const REINIT: Duration = Duration::from_secs(30);
/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// pgbench's scale: 8 is a table of 100 MB
    #[arg(long, default_value_t = 8)]
    scale: u32,
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

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    say::heading("bench life");
    let arena = Arena::of_its_own(arguments.dir.as_deref(), arguments.no_build, arguments.pg, 2)?;
    let size = arena.fill(Set::Pgbench, arguments.scale)?;
    arena.reset()?;
    for node in arena.nodes() {
        // Many parts, so that it soon shows that rows land.
        let toml = fs::read_to_string(&node.agent.config)?;
        fs::write(&node.agent.config, format!("{toml}\n[copy]\npart_size = \"1MiB\"\n"))?;
    }
    arena.start_agents()?;

    // Slow enough to be amid the copy each time.
    steepctl(&arena, &format!("node start node_b --from node_a --detach --max-rate {}", size.bytes / 30))?;
    let target = reattached(&arena, 1)?;
    let source = reattached(&arena, 0)?;
    let cancelled = timed(|| {
        steepctl(&arena, "node cancel node_b")?;
        becomes(&arena, "uninitialized")?;
        let slots = "select count(*) from pg_replication_slots";
        process::wait_for("slots being dropped", PATIENCE, || Ok((arena.source().sql(slots)? == "0").then_some(())))
    })?;

    steepctl(&arena, "node start node_b --from node_a --progress plain")?;
    let reinit = timed(|| {
        steepctl(&arena, "node reinit node_b --tables public.pgbench_accounts --confirm node_b --progress plain")
    })?;
    arena.is_complete()?;
    let noticed = timed(|| {
        lose_slot(&arena)?;
        becomes(&arena, "diverged")
    })?;

    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("\n{}, PostgreSQL {}; fsync on, {cores} cores", say::size(size.bytes), arena.source().version);
    for (what, taken, limit) in [
        ("rows land again after the target's agent was killed and started", target, REATTACH),
        ("rows land again after the source's agent was killed and started", source, REATTACH),
        ("an initialization amid its copy is cancelled and undone on both nodes", cancelled, CANCEL),
        ("a lost slot is noticed", noticed, NOTICE),
        ("the largest table is copied again into a node that replicates", reinit, REINIT),
    ] {
        let mark = if taken < limit { "✓" } else { "✗" };
        println!("  {mark} {:>8}  {what}, below {} s", say::seconds(taken), limit.as_secs());
    }
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

fn steepctl(arena: &Arena, words: &str) -> Result<()> {
    let [_, b] = arena.nodes();
    let mut command = arena.cluster.steepctl(b, OPERATORS[0].0);
    process::output(command.args(words.split(' ')).arg("--no-input")).map(drop)
}

/// Kills the agent of node `index` amid a copy, and starts it: from then until the next row lands.
fn reattached(arena: &Arena, index: usize) -> Result<Duration> {
    let landed = || -> Result<u64> { Ok(arena.target().sql("select count(*) from steep_repl.copied_parts")?.parse()?) };
    let grows = |from: u64| {
        process::wait_for("parts landing", PATIENCE, || Ok((landed().unwrap_or_default() > from).then_some(())))
    };
    grows(landed().unwrap_or_default())?;
    let agent = &arena.nodes()[index].agent;
    agent.kill()?;
    // What it had received is committed, or gone.
    let open = "select count(*) from pg_stat_activity where query like 'copy %' and state = 'active'";
    process::wait_for("the copy standing still", PATIENCE, || Ok((arena.target().sql(open)? == "0").then_some(())))?;
    let before = landed()?;
    timed(|| {
        agent.start(Life::OfItsOwn)?;
        grows(before)
    })
}

fn becomes(arena: &Arena, state: &str) -> Result<()> {
    let sql = "select init_state from steep_repl.nodes where node_id = 'node_b'";
    process::wait_for(&format!("node_b being {state}"), PATIENCE, || {
        Ok((arena.target().sql(sql)? == state).then_some(()))
    })
}

/// The source drops what the target reads.
fn lose_slot(arena: &Arena) -> Result<()> {
    let sql = "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name like 'steep_node_b%';
               select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name like 'steep_node_b%'";
    // Its walsender may be back before it is dropped.
    process::wait_for("the slot being dropped", PATIENCE, || Ok(arena.source().sql(sql).is_ok().then_some(())))
}
