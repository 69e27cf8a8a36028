//! `steepctl schema …`

pub mod capture;
pub mod compare;
pub mod diff;
pub mod export;
pub mod history;
pub mod plan;
pub(super) mod script;
mod sides;
pub mod sync;

use std::path::Path;

use clap::Subcommand;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    names::TableName,
    v1,
};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, shell_word},
    pki::files::{self, NewFile},
};

/// The verbs of `schema`.
#[derive(Debug, Subcommand)]
pub enum SchemaCommand {
    /// Have a node look at its schema now, and say what changed
    Capture(capture::CaptureArgs),
    /// Compare the schemas of two nodes, table by table
    Compare(compare::CompareArgs),
    /// Show side by side what differs between two nodes
    Diff(diff::DiffArgs),
    /// Show what would bring a node's schema up to date with another's; run nothing
    Plan(plan::PlanArgs),
    /// Bring a node's schema up to date with another's; only plan without --apply
    Sync(sync::SyncArgs),
    /// Print all of a node's schema as JSON
    Export(export::ExportArgs),
    /// Show how a node's tables have changed, newest first
    History(history::HistoryArgs),
}

/// Does what the verb says.
pub async fn run(command: SchemaCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        SchemaCommand::Capture(args) => capture::run(&args, global, out).await,
        SchemaCommand::Compare(args) => compare::run(&args, global, out).await,
        SchemaCommand::Diff(args) => diff::run(&args, global, out).await,
        SchemaCommand::Plan(args) => plan::run(&args, global, out).await,
        SchemaCommand::Sync(args) => sync::run(&args, global, out).await,
        SchemaCommand::Export(args) => export::run(&args, global, out).await,
        SchemaCommand::History(args) => history::run(&args, global, out).await,
    }
}

/// A name that came from an agent; its `Display` is safe to print.
fn name(table: Option<&v1::TableName>) -> TableName {
    let table = table.cloned().unwrap_or_default();
    TableName::new(table.schema, table.name)
}

/// A table as a word of a command line; nothing where it holds what no terminal shows, and so cannot be copied.
fn as_word(table: &TableName) -> Option<String> {
    let shown = table.to_string();
    (!shown.contains(r"\u{")).then(|| shell_word(&shown))
}

/// Two nodes to compare are two nodes.
fn refuse_same(left: &NodeId, right: &NodeId) -> Result<(), Failure> {
    match left == right {
        true => Err(Failure::new(Code::SourceIsTarget, format!("{left} was named twice"))),
        false => Ok(()),
    }
}

/// Writes `text` into a new file.
pub(super) fn write(path: &Path, mut text: String) -> Result<(), Failure> {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let file = NewFile { path: path.to_owned(), text, is_secret: false };
    files::write_all(&[file]).map_err(|error| match error.explain() {
        failure if failure.code == Code::FileExists => {
            failure.hint("move the old file away first, or choose another --output-file")
        }
        failure => {
            failure.hint("check that the directory exists and is yours to write, or choose another --output-file")
        }
    })
}
