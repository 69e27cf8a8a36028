//! `steepctl mesh leave`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe},
};

const EXAMPLES: &str = "\
The agent goes on running and PostgreSQL goes on replicating, but the others
show the node as left. It comes back with: steepctl mesh join, or with its next
start.

Examples:
  steepctl mesh leave node_c";

/// Arguments of `mesh leave`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LeaveArgs {
    /// The node whose agent leaves
    pub node: NodeId,
}

/// Has the agent say goodbye.
pub async fn run(args: &LeaveArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.leave(args.node.as_str()).await?;
    if out.is_json() {
        out.json(&json::message("LeaveReply", &reply))?;
    } else {
        out.data(&format!("{} has left the mesh", safe(&reply.node_id)))?;
    }
    Ok(Exit::Success)
}
