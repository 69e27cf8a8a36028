//! `steepctl node …`

mod by_hand;
pub mod cancel;
pub mod complete;
pub mod list;
mod physical;
pub mod plan;
pub mod prepare;
pub mod progress;
pub mod reinit;
pub mod remove;
pub mod resume;
pub mod show;
pub mod start;

use clap::Subcommand;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit},
};

/// The verbs of `node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes of the mesh
    List,
    /// Show one node: state, subscriptions, slots, last failure
    Show(show::ShowArgs),
    /// Initialize a node from another, and follow it until it replicates
    #[command(alias = "init")]
    Start(Box<start::StartArgs>),
    /// Go on with a node's last initialization: follow it, or start it anew
    Resume(resume::ResumeArgs),
    /// Cancel what runs on a node, and wait until all is cleaned up
    Cancel(cancel::CancelArgs),
    /// Prepare a node for a backup that you make yourself, and say how
    Prepare(Box<prepare::PrepareArgs>),
    /// Make a node replicate that was restored from such a backup
    Complete(complete::CompleteArgs),
    /// Copy some tables of a node again from another, while all others replicate
    Reinit(Box<reinit::ReinitArgs>),
    /// Take a node out of replication, on itself and on all others
    Remove(remove::RemoveArgs),
    /// Show how far the operation on a node has come
    Progress(progress::ProgressArgs),
}

/// Does what the verb says.
pub async fn run(command: NodeCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        NodeCommand::List => list::run(global, out).await,
        NodeCommand::Show(args) => show::run(&args, global, out).await,
        NodeCommand::Start(args) => start::run(&args, global, out).await,
        NodeCommand::Resume(args) => resume::run(&args, global, out).await,
        NodeCommand::Cancel(args) => cancel::run(&args, global, out).await,
        NodeCommand::Prepare(args) => prepare::run(&args, global, out).await,
        NodeCommand::Complete(args) => Box::pin(complete::run(&args, global, out)).await,
        NodeCommand::Reinit(args) => Box::pin(reinit::run(&args, global, out)).await,
        NodeCommand::Remove(args) => remove::run(&args, global, out).await,
        NodeCommand::Progress(args) => progress::run(&args, global, out).await,
    }
}
