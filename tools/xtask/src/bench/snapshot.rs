//! `cargo x bench snapshot`: a snapshot in files beside pg_dump and pg_restore, in one run, with the same compression and as
//! many streams.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{arena::Arena, data::Set};
use crate::{cluster::OPERATORS, process, say};

/// What the project asks of itself: our speed to that of PostgreSQL's own programs.
const GENERATE: f64 = 0.9;
const APPLY: f64 = 1.2;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Size of the data: pgbench's scale, 100 is 1.5 GB
    #[arg(long, default_value_t = 100)]
    scale: u32,
    /// What to write and to load
    #[arg(long, value_enum, default_value = "pgbench")]
    set: Set,
    /// Files at once (ours), jobs (PostgreSQL's)
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// How files are compressed, as far as this pg_dump can
    #[arg(long, value_parser = ["none", "gzip", "lz4", "zstd"], default_value = "gzip")]
    compress: String,
    /// How often each runs, in turn; the median counts
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// PostgreSQL major version of both ends
    #[arg(long, default_value_t = 18)]
    pg: u32,
    /// Where the nodes' files and the snapshots go [default: a temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Take the release binaries as an earlier build left them
    #[arg(long)]
    no_build: bool,
}

/// What one round took: ours, then PostgreSQL's.
#[derive(Debug, Clone, Copy)]
struct Measured {
    written: [Duration; 2],
    loaded: [Duration; 2],
    bytes: [u64; 2],
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.runs == 0 || arguments.set == Set::All {
        bail!("--runs is 1 or more, --set is one of the sets");
    }
    say::heading("bench snapshot");
    let arena = Arena::of_its_own(arguments.dir.as_deref(), arguments.no_build, arguments.pg, arguments.workers)?;
    let size = arena.fill(arguments.set, arguments.scale)?;
    let mut all = Vec::new();
    for round in 1..=arguments.runs {
        let one = measure(&arena, arguments)?;
        let [ours, theirs] = one.written.map(say::seconds);
        say::good(format!("round {round}: generate {ours}, pg_dump {theirs}"));
        let [ours, theirs] = one.loaded.map(say::seconds);
        say::good(format!("round {round}: apply {ours}, pg_restore {theirs}"));
        all.push(one);
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "\n{}, {} tables, PostgreSQL {}; {}, {} streams; fsync on, {cores} cores, median of {}",
        say::size(size.bytes),
        size.tables,
        arena.source().version,
        arguments.compress,
        arguments.workers,
        arguments.runs
    );
    print("snapshot generate", "pg_dump -Fd", GENERATE, &all, |one| one.written);
    print("snapshot apply --no-subscribe", "pg_restore", APPLY, &all, |one| one.loaded);
    let [ours, theirs] = all[0].bytes.map(say::size);
    println!("  files: {ours} ours, {theirs} of pg_dump");
    Ok(())
}

fn measure(arena: &Arena, arguments: &Arguments) -> Result<Measured> {
    let [snapshot, dump] = ["snapshot", "dump"].map(|name| arena.cluster.dir().join(name));
    for old in [&snapshot, &dump] {
        let _ = fs::remove_dir_all(old);
    }
    let Arguments { workers, compress, .. } = arguments;
    arena.reset()?;
    arena.start_agents()?;
    let written = [
        steepctl(
            arena,
            0,
            &format!(
                "snapshot generate node_a --dir {} --parallel {workers} --compress {compress}",
                snapshot.display()
            ),
        )?,
        timed(|| {
            let mut command = arena.source().client("pg_dump");
            command.args(["-Fd", "--no-publications", "--exclude-schema=steep_repl", "-j", &workers.to_string(), "-Z"]);
            process::output(command.arg(compress).arg("-f").arg(&dump)).map(drop)
        })?,
    ];
    arena.reset()?;
    arena.start_agents()?;
    let apply = format!("snapshot apply node_b --input {} --no-subscribe --parallel {workers}", snapshot.display());
    let ours = steepctl(arena, 1, &apply)?;
    arena.is_complete()?;
    arena.reset()?;
    let theirs = timed(|| {
        let mut command = arena.target().client("pg_restore");
        process::output(command.args(["-d", "postgres", "-j", &workers.to_string()]).arg(&dump)).map(drop)
    })?;
    arena.is_complete()?;
    let bytes = [folder_bytes(&snapshot)?, folder_bytes(&dump)?];
    for folder in [snapshot, dump] {
        fs::remove_dir_all(folder)?;
    }
    Ok(Measured { written, loaded: [ours, theirs], bytes })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

fn steepctl(arena: &Arena, node: usize, words: &str) -> Result<Duration> {
    let mut command = arena.cluster.steepctl(arena.nodes()[node], OPERATORS[0].0);
    command.args(words.split(' ')).args(["--no-input", "--progress", "plain"]);
    timed(|| process::output(&mut command).map(drop))
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { folder_bytes(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

fn print(ours: &str, theirs: &str, goal: f64, all: &[Measured], take: fn(&Measured) -> [Duration; 2]) {
    let median = |which: usize| {
        let mut taken: Vec<_> = all.iter().map(|one| take(one)[which]).collect();
        taken.sort();
        taken[taken.len() / 2]
    };
    let speed = median(1).as_secs_f64() / median(0).as_secs_f64();
    let mark = if speed >= goal { "✓" } else { "✗" };
    println!(
        "  {mark} {ours} {} to {theirs} {}: {speed:.2} of its speed, at least {goal}",
        say::seconds(median(0)),
        say::seconds(median(1))
    );
}
