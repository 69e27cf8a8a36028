//! End to end: `steepctl schema compare` of two nodes, agents, mesh and all.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::{make, median, told, verdict};
use crate::{
    cluster::{Cluster, OPERATORS, Options},
    process, say,
    workspace::{Binaries, Profile},
};

/// What the project asks of itself.
const COMPARED: Duration = Duration::from_secs(1);

/// Two nodes of `version` with `tables` tables each, compared `runs` times after the first.
pub(super) fn run(dir: &Path, version: u32, tables: u32, runs: usize) -> Result<()> {
    let options = Options::new(dir, 2, &[version], Binaries::built(Profile::Release)?);
    let (cluster, _guard) = Cluster::guarded(&options)?;
    for node in &cluster.nodes {
        told(&node.server, "postgres", &make(tables)?)?;
    }
    let compare = || -> Result<Duration> {
        let mut steepctl = cluster.steepctl(&cluster.nodes[0], OPERATORS[0].0);
        let began = Instant::now();
        let printed = process::output(steepctl.args(["schema", "compare", "node_a", "node_b"]))?;
        let took = began.elapsed();
        if !printed.contains(&format!("{} match", say::count(tables.into()))) {
            bail!("{tables} tables that match were expected: {printed}");
        }
        Ok(took)
    };
    let first = compare()?;
    let again = median((0..runs).map(|_| compare()).collect::<Result<Vec<_>>>()?);
    let (first_ms, again_ms, version) = (first.as_millis(), again.as_millis(), &cluster.nodes[0].server.version);
    println!(
        "\nsteepctl schema compare of two nodes with {} tables, PostgreSQL {version}: first {first_ms} ms, then {again_ms} ms",
        say::count(tables.into())
    );
    verdict(first.max(again) < COMPARED, "a comparison end to end", first.max(again), COMPARED);
    Ok(())
}
