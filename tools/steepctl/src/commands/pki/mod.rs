//! `steepctl pki …`

pub mod init;
pub mod inspect;
pub mod issue;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};
use steep_protocol::failure::Failure;

use crate::output::{self, Output, exit_code::Exit};

/// The verbs of `pki`.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make the authorities of a new mesh
    Init(init::InitArgs),
    /// Issue a certificate for a node or an operator
    #[command(subcommand)]
    Issue(issue::IssueCommand),
    /// Show what a certificate file says, and whether its key fits
    Inspect(inspect::InspectArgs),
}

/// Does what the verb says; asks no agent.
pub fn run(command: PkiCommand, out: &Output) -> Result<Exit, Failure> {
    match command {
        PkiCommand::Init(args) => init::run(&args, out),
        PkiCommand::Issue(command) => issue::run(&command, out),
        PkiCommand::Inspect(args) => inspect::run(&args, out),
    }
}

fn paths(paths: &[PathBuf]) -> Value {
    json!(paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>())
}

/// A path to copy into a shell.
fn word(path: &Path) -> String {
    output::shell_word(&path.display().to_string())
}

/// `--dir` as the next command needs it; nothing for the usual directory.
fn dir_option(dir: &Path) -> String {
    if dir == Path::new(init::USUAL_DIR) { String::new() } else { format!(" --dir {}", word(dir)) }
}
