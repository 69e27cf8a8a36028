//! steepctl: asks any agent about any node.
//!
//! Reading order: [`cli`] is the command line, [`contexts`] the settings it may leave out; [`commands`] has one file a command; [`client`] asks the agents;
//! [`follow`] watches an operation to its end; [`pki`] makes and reads certificates; [`output`] is everything
//! printed; [`units`] are quantities as operators write them.
//!
//! Opens no PostgreSQL connection and decides nothing: it asks, an agent answers.

pub mod cli;
pub mod client;
pub mod commands;
pub mod contexts;
pub mod follow;
pub mod output;
pub mod pki;
pub mod units;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _};

use self::{
    cli::{Cli, Sources},
    output::{Output, exit_code},
};

/// Runs one command line and returns what the shell is told.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = Cli::command().try_get_matches_from(args).and_then(|matches| {
        let mut cli = Cli::from_arg_matches(&matches)?;
        cli.global.sources = Sources::of(&matches);
        Ok(cli)
    });
    let cli = match parsed {
        Ok(cli) => cli,
        // Help and version come this way too; clap prints each to the right stream.
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let out = Output::new(cli.global.output, cli.global.color, cli.global.talk());
    match commands::run(cli, &out) {
        Ok(exit) => exit.into(),
        // `steepctl op list | head`: whoever read has read enough.
        Err(_) if out.reader_is_gone() => ExitCode::SUCCESS,
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(exit_code::of(&failure))
        }
    }
}
