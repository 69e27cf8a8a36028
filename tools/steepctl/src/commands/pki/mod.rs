//! `steepctl pki …`

pub mod crl;
pub mod init;
pub mod inspect;
pub mod issue;
pub mod list;
pub mod renew;
pub mod revoke;
pub mod rotate;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    output::{self, Output, exit_code::Exit},
};

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
    /// List the certificates that were issued: whose, until when, revoked or not
    List(list::ListArgs),
    /// Issue anew for somebody who has a certificate, with a new key
    Renew(renew::RenewArgs),
    /// Revoke certificates and sign the list that says so
    Revoke(revoke::RevokeArgs),
    /// Show the revocation lists, sign them anew, hand them to the agents
    Crl(crl::CrlArgs),
    /// Replace the root while the mesh runs
    Rotate(rotate::RotateArgs),
}

/// Does what the verb says; only handing in revocation lists asks an agent.
pub async fn run(command: PkiCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        PkiCommand::Init(args) => init::run(&args, out),
        PkiCommand::Issue(command) => issue::run(&command, out),
        PkiCommand::Inspect(args) => inspect::run(&args, out),
        PkiCommand::List(args) => list::run(&args, out),
        PkiCommand::Renew(args) => renew::run(&args, out),
        PkiCommand::Revoke(args) => revoke::run(&args, out),
        PkiCommand::Crl(args) => crl::run(&args, global, out).await,
        PkiCommand::Rotate(args) => rotate::run(&args, out),
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
