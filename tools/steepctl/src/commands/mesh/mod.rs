//! `steepctl mesh …`

pub mod forget;
pub mod join;
pub mod leave;
pub mod list;
pub mod matrix;
pub mod ping;

use clap::Subcommand;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit},
};

/// The verbs of `mesh`.
#[derive(Debug, Subcommand)]
pub enum MeshCommand {
    /// List the members of the mesh and how they fare
    List,
    /// Show how each agent reaches each other
    Matrix,
    /// Ask one agent, or all, and say how long the answers took
    Ping(ping::PingArgs),
    /// Have the agent you ask join the mesh through another
    Join(join::JoinArgs),
    /// Have an agent say goodbye to the mesh
    Leave(leave::LeaveArgs),
    /// Take a node that is dead or has left out of everybody's view
    Forget(forget::ForgetArgs),
}

/// Does what the verb says.
pub async fn run(command: MeshCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        MeshCommand::List => list::run(global, out).await,
        MeshCommand::Matrix => matrix::run(global, out).await,
        MeshCommand::Ping(args) => ping::run(&args, global, out).await,
        MeshCommand::Join(args) => join::run(&args, global, out).await,
        MeshCommand::Leave(args) => leave::run(&args, global, out).await,
        MeshCommand::Forget(args) => forget::run(&args, global, out).await,
    }
}
