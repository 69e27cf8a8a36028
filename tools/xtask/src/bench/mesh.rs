//! `cargo x bench mesh`: runs the agent's example `mesh_cost`, which plays the agents' own gossip.

use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{say, workspace};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many agents in memory, one run each
    #[arg(long, value_delimiter = ',', default_values_t = [10, 50, 100, 200, 500, 1_000])]
    members: Vec<u32>,
    /// How many agents over QUIC on loopback, one run each
    #[arg(long, value_delimiter = ',', default_values_t = [3, 50])]
    real: Vec<u32>,
    /// Decides everything that is random in memory
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// For so many minutes ten agents are watched on cores that are kept busy
    #[arg(long, default_value_t = 0)]
    soak: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    say::heading("bench mesh");
    let list = |numbers: &[u32]| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut command = workspace::cargo();
    command.args(["run", "--release", "--quiet", "-p", "steep-agent", "--example", "mesh_cost", "--"]);
    command.args([
        list(&arguments.members),
        list(&arguments.real),
        arguments.seed.to_string(),
        arguments.soak.to_string(),
    ]);
    let status = command.stdin(Stdio::null()).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("mesh_cost failed, see above");
    }
    Ok(())
}
