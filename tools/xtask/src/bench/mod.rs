//! `cargo x bench …`: side by side with what one would use instead, and what things cost.
//!
//! [`mesh`] is what gossip costs, [`life`] how long what goes wrong takes, [`snapshot`] files beside pg_dump's, [`link`] replication through the agents, [`fingerprint`] looking at tables. All else here is `cargo x bench copy`: how long a copy takes.
//!
//! All contenders run in one go on the same two servers with the same settings, fsync on. The target is made
//! anew before each run, the source cleaned of what the last one left and read once. Time counts from the first
//! command to the data being there with its indexes; that it is all there is checked afterwards. Every second round
//! runs in the opposite order, so that memory still warm from a neighbour favours nobody.

mod arena;
mod contender;
mod data;
mod fingerprint;
mod life;
mod link;
mod mesh;
mod report;
mod snapshot;
mod watch;

use std::path::PathBuf;

use anyhow::{Result, bail};

use self::{
    arena::{Arena, Manner},
    contender::{Contender, Measured},
    data::Set,
};
use crate::{
    postgres::Postgres,
    say,
    workspace::{Binaries, Profile},
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Initialize a node, against native copy_data, pg_dump | pg_restore and pgcopydb
    Copy(Arguments),
    /// Replicate through the agents, against PostgreSQL to PostgreSQL
    Link(link::Arguments),
    /// What fingerprints of 1,000 and 10,000 tables cost
    Fingerprint(fingerprint::Arguments),
    /// A snapshot in files, against pg_dump and pg_restore
    Snapshot(snapshot::Arguments),
    /// How long it takes to go on, to give up, to notice, and to copy tables again
    Life(life::Arguments),
    /// What gossip costs, and how fast members find and lose each other
    Mesh(mesh::Arguments),
}

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Size of the data: pgbench's scale, 100 is 1.5 GB; the other sets grow with it
    #[arg(long, default_value_t = 100)]
    scale: u32,
    /// What to copy
    #[arg(long, value_enum, value_delimiter = ',', default_value = "pgbench")]
    set: Vec<Set>,
    /// Streams (ours), sync workers (native), table jobs (pgcopydb)
    #[arg(long, default_value_t = 4)]
    workers: u32,
    /// PostgreSQL major version of both ends
    #[arg(long, default_value_t = 18)]
    pg: u32,
    /// Only these contenders
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Contender>,
    /// How often each runs; the median counts
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// How rows are compressed on the way: auto, none, lz4, zstd or zstd:LEVEL
    #[arg(long, default_value = "auto")]
    compress: String,
    /// What carries the agents' connections: quic or tcp
    #[arg(long, value_parser = ["auto", "quic", "tcp"], default_value = "auto")]
    transport: String,
    /// Where the nodes' files go [default: a temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Take the release binaries as an earlier build left them
    #[arg(long)]
    no_build: bool,
    /// Release build (the default, and the only one that means anything)
    #[arg(long)]
    release: bool,
}

impl Arguments {
    fn manner(&self) -> Manner {
        Manner { workers: self.workers, transport: self.transport.clone(), compress: self.compress.clone() }
    }
}

/// Debian's pgcopydb speaks to PostgreSQL 15 at most, so it meets ours on that.
const PGCOPYDB_VERSION: u32 = 15;

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Copy(arguments) => copy(&arguments),
        Command::Link(arguments) => link::run(&arguments),
        Command::Fingerprint(arguments) => fingerprint::run(&arguments),
        Command::Snapshot(arguments) => snapshot::run(&arguments),
        Command::Life(arguments) => life::run(&arguments),
        Command::Mesh(arguments) => mesh::run(&arguments),
    }
}

fn copy(arguments: &Arguments) -> Result<()> {
    if arguments.runs == 0 || arguments.scale == 0 {
        bail!("--runs and --scale are 1 or more");
    }
    say::heading("bench copy");
    let profile = Profile::Release;
    let binaries = if arguments.no_build { Binaries::left_by_build(profile)? } else { Binaries::built(profile)? };
    let wanted = |contender: Contender| arguments.only.is_empty() || arguments.only.contains(&contender);
    let mut fights = vec![(arguments.pg, Contender::ON_ANY.into_iter().filter(|it| wanted(*it)).collect::<Vec<_>>())];
    let with_pgcopydb: Vec<_> = Contender::PGCOPYDB.into_iter().filter(|it| wanted(*it)).collect();
    if !with_pgcopydb.is_empty() {
        if contender::pgcopydb_is_here() && Postgres::installed(PGCOPYDB_VERSION)?.is_some() {
            let others = [Contender::Ours, Contender::Floor].into_iter().filter(|it| wanted(*it));
            fights.push((PGCOPYDB_VERSION, others.chain(with_pgcopydb).collect()));
        } else {
            say::step("pgcopydb is left out: it and PostgreSQL 15 are not both installed");
        }
    }
    fights.retain(|(_, contenders)| !contenders.is_empty());
    for set in arguments.set.iter().flat_map(|set| set.parts()) {
        for (version, contenders) in &fights {
            fight(arguments, &binaries, set, *version, contenders)?;
        }
    }
    Ok(())
}

/// Lets `contenders` copy one set of data between two servers of `version`, in turn, and prints what came of it.
fn fight(arguments: &Arguments, binaries: &Binaries, set: Set, version: u32, contenders: &[Contender]) -> Result<()> {
    let fallback = || std::env::temp_dir().join(format!("steep-bench-{}", std::process::id()));
    let dir = arguments.dir.clone().unwrap_or_else(fallback);
    let arena = Arena::open(&dir, version, arguments.manner(), binaries.clone())?;
    let title = format!("{set} (scale {}) on PostgreSQL {}", arguments.scale, arena.source().version);
    say::heading(&title);
    let size = arena.fill(set, arguments.scale)?;
    let mut all: Vec<(Contender, Vec<Measured>)> = contenders.iter().rev().map(|it| (*it, Vec::new())).collect();
    for round in 1..=arguments.runs {
        all.reverse();
        for (contender, results) in &mut all {
            arena.reset()?;
            let measured = contender.run(&arena)?;
            arena.is_complete()?;
            let round = if arguments.runs > 1 { format!(" (round {round})") } else { String::new() };
            say::good(format!("{contender}{round}: {}", say::seconds(measured.taken)));
            results.push(measured);
        }
    }
    all.sort_by_key(|(contender, _)| contenders.iter().position(|it| it == contender));
    report::print(&title, size, arguments.workers, &all);
    Ok(())
}
