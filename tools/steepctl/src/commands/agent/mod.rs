//! `steepctl agent …`

pub mod drain;
pub mod info;
pub mod log_level;
pub mod reload;

use clap::Subcommand;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit},
};

/// The verbs of `agent`.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Show what an agent is: versions, addresses, certificate, open work
    Info(info::InfoArgs),
    /// Have an agent read agent.toml again
    Reload(reload::ReloadArgs),
    /// Have an agent take no new work, for an upgrade; what runs goes on
    Drain(drain::DrainArgs),
    /// Log more or less, for a while
    LogLevel(log_level::LogLevelArgs),
}

/// Does what the verb says.
pub async fn run(command: AgentCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        AgentCommand::Info(args) => info::run(&args, global, out).await,
        AgentCommand::Reload(args) => reload::run(&args, global, out).await,
        AgentCommand::Drain(args) => drain::run(&args, global, out).await,
        AgentCommand::LogLevel(args) => log_level::run(&args, global, out).await,
    }
}
