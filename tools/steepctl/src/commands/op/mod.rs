//! `steepctl op …`

pub mod cancel;
pub mod list;
pub mod retry;
pub mod show;
pub mod watch;

use clap::Subcommand;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit},
};

/// The verbs of `op`.
#[derive(Debug, Subcommand)]
pub enum OpCommand {
    /// List operations, newest first
    List(list::ListArgs),
    /// Show one operation: its steps, its progress, how it ended
    Show(show::ShowArgs),
    /// Follow an operation until it has ended
    Watch(watch::WatchArgs),
    /// Start an operation that failed once more
    Retry(retry::RetryArgs),
    /// Cancel an operation, and wait until all is cleaned up
    Cancel(cancel::CancelArgs),
}

/// Does what the verb says.
pub async fn run(command: OpCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        OpCommand::List(args) => list::run(&args, global, out).await,
        OpCommand::Show(args) => show::run(&args, global, out).await,
        OpCommand::Watch(args) => watch::run(&args, global, out).await,
        OpCommand::Retry(args) => retry::run(&args, global, out).await,
        OpCommand::Cancel(args) => cancel::run(&args, global, out).await,
    }
}

/// An operation's id as typed: whole, or its first eight characters or more.
fn op_id(text: &str) -> Result<String, String> {
    let id = text.to_ascii_lowercase();
    let looks_right = id.chars().all(|c| c.is_ascii_hexdigit() || c == '-') && (8..=36).contains(&id.len());
    if looks_right { Ok(id) } else { Err("an operation's id, or its first 8 characters or more, is expected".into()) }
}
