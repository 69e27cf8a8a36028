//! `steepctl config …`

pub mod check;
pub mod show;

use clap::Subcommand;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit},
};

/// The verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show which agents are asked and with which certificate (asks no agent)
    Show(show::ShowArgs),
    /// Check steepctl.toml and the certificates its contexts name (asks no agent)
    Check(check::CheckArgs),
}

/// Does what the verb says.
pub fn run(command: ConfigCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Show(args) => show::run(&args, global, out),
        ConfigCommand::Check(args) => check::run(&args, out),
    }
}
