//! The ways to copy a database that are compared, each at its best documented setting.

use std::{
    fmt, fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::{arena::Arena, watch};
use crate::{
    cluster::{OPERATORS, server::Server},
    process,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Contender {
    /// Steep, one way: encrypted, checked, verified
    Ours,
    /// Steep with both directions set up
    OursTwoWay,
    /// CREATE SUBSCRIPTION with copy_data
    Native,
    /// pg_dump to a directory, then pg_restore
    DumpRestore,
    /// psql copy out | psql copy in of each table, then its indexes: what the machine allows
    Floor,
    /// pgcopydb clone
    Pgcopydb,
    /// pgcopydb clone, tables above 100 MB split
    PgcopydbSplit,
}

/// What one run took.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) taken: Duration,
    /// What was seen of Steep meanwhile; none for the others.
    pub(super) watched: Option<watch::Watched>,
}

impl Contender {
    pub(super) const ON_ANY: [Self; 5] = [Self::Ours, Self::OursTwoWay, Self::Native, Self::DumpRestore, Self::Floor];
    pub(super) const PGCOPYDB: [Self; 2] = [Self::Pgcopydb, Self::PgcopydbSplit];

    /// Copies the source to the target, from the first command to the last row and index.
    pub(super) fn run(self, arena: &Arena) -> Result<Measured> {
        let timed = |copy: &dyn Fn() -> Result<()>| {
            let started = Instant::now();
            copy()?;
            Ok(Measured { taken: started.elapsed(), watched: None })
        };
        match self {
            Self::Ours => ours(arena, true),
            Self::OursTwoWay => ours(arena, false),
            Self::Native => timed(&|| native(arena)),
            Self::DumpRestore => timed(&|| dump_restore(arena)),
            Self::Floor => timed(&|| floor(arena)),
            Self::Pgcopydb => timed(&|| pgcopydb(arena, &[])),
            Self::PgcopydbSplit => timed(&|| pgcopydb(arena, &["--split-tables-larger-than", "100 MB"])),
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ours => "ours, one way",
            Self::OursTwoWay => "ours, both ways",
            Self::Native => "native copy_data",
            Self::DumpRestore => "pg_dump | pg_restore -j2",
            Self::Floor => "floor: psql | psql",
            Self::Pgcopydb => "pgcopydb",
            Self::PgcopydbSplit => "pgcopydb, split tables",
        })
    }
}

fn ours(arena: &Arena, one_way: bool) -> Result<Measured> {
    arena.start_agents()?;
    let [a, b] = arena.nodes();
    let mut start = arena.cluster.steepctl(b, OPERATORS[0].0);
    start.args(["node", "start", &b.node_id, "--from", &a.node_id, "--parallel", &arena.manner.workers.to_string()]);
    start.args(["--compress", &arena.manner.compress]);
    start.args(one_way.then_some("--one-way"));
    let (taken, watched) = watch::run(arena, start)?;
    Ok(Measured { taken, watched: Some(watched) })
}

fn native(arena: &Arena) -> Result<()> {
    let (source, target) = (arena.source(), arena.target());
    let schema = process::output(source.client("pg_dump").args(["--schema-only", "--no-publications"]))?;
    target.sql(&schema)?;
    source.sql("create publication bench for all tables")?;
    let conninfo = format!("{} dbname=postgres", source.conninfo()).replace('\'', "''");
    target
        .sql(&format!("create subscription bench connection '{conninfo}' publication bench with (copy_data = true)"))?;
    let open = "select count(*) from pg_subscription_rel where srsubstate <> 'r'";
    process::wait_for("the native copy", Duration::from_secs(3_600), || Ok((target.sql(open)? == "0").then_some(())))
}

fn dump_restore(arena: &Arena) -> Result<()> {
    let dump = arena.cluster.dir().join("bench.dump");
    let _ = fs::remove_dir_all(&dump);
    let jobs = |server: &Server, name: &str| {
        let mut command = server.client(name);
        command.args(["-Fd", "-j2"]);
        command
    };
    // Uncompressed and not flushed: two cores have better things to do.
    let mut out = jobs(arena.source(), "pg_dump");
    out.args(["-Z0", "--no-sync", "-f"]).arg(&dump);
    let mut back = jobs(arena.target(), "pg_restore");
    back.args(["-d", "postgres"]).arg(&dump);
    let done = process::output(&mut out).and_then(|_| process::output(&mut back));
    let _ = fs::remove_dir_all(&dump);
    done.map(|_| ())
}

/// Not encrypted, not checked, in no common snapshot, nothing replicated, one stream.
fn floor(arena: &Arena) -> Result<()> {
    let (source, target) = (arena.source(), arena.target());
    let schema = |section| process::output(source.client("pg_dump").args([section, "--no-publications"]));
    target.sql(&schema("--section=pre-data")?)?;
    let largest_first = "select format('%I', relname) from pg_stat_user_tables where schemaname = 'public'
                          order by pg_relation_size(relid) desc";
    for table in source.sql(largest_first)?.lines() {
        pipe(source, target, table)?;
    }
    target.sql(&schema("--section=post-data")?).map(|_| ())
}

fn pipe(source: &Server, target: &Server, table: &str) -> Result<()> {
    let mut out = source.psql();
    let mut copying = out
        .args(["-c", &format!("copy public.{table} to stdout (format binary)")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let rows = copying.stdout.take().expect("it was piped");
    let mut into = target.psql();
    into.args(["-c", &format!("copy public.{table} from stdin (format binary)")]).stdin(rows);
    let loaded = into.output()?;
    succeeded(&out, copying.wait()?, "")?;
    succeeded(&into, loaded.status, &process::printed(&loaded))
}

fn pgcopydb(arena: &Arena, more: &[&str]) -> Result<()> {
    let dir = arena.cluster.dir().join("pgcopydb");
    let _ = fs::remove_dir_all(&dir);
    let conninfo = |server: &Server| format!("{} dbname=postgres", server.conninfo());
    let mut command = Command::new("pgcopydb");
    command.arg("clone").arg("--source").arg(conninfo(arena.source())).arg("--target").arg(conninfo(arena.target()));
    command.args(["--table-jobs", &arena.manner.workers.to_string(), "--index-jobs", "2"]).args(more);
    command.arg("--dir").arg(&dir).current_dir(arena.cluster.dir());
    let done = process::output(&mut command);
    let _ = fs::remove_dir_all(&dir);
    done.map(|_| ())
}

pub(super) fn pgcopydb_is_here() -> bool {
    let mut command = Command::new("pgcopydb");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Fails unless a child has succeeded.
pub(super) fn succeeded(command: &Command, status: std::process::ExitStatus, printed: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let lines = process::last_lines(printed, 12).join("\n  ");
    bail!("{} failed ({status}):\n  {lines}", process::described(command))
}
