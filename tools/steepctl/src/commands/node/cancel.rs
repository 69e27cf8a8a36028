//! `steepctl node cancel`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId};

use crate::{
    cli::Global,
    commands::op,
    follow::FollowArgs,
    output::{Output, exit_code::Exit},
};

const EXAMPLES: &str = "\
The copy stops, what it had made on both nodes is removed, and the node is
UNINITIALIZED again. This takes less than 30 seconds.

Examples:
  steepctl node cancel node_b
  steepctl node cancel node_b --detach";

/// Arguments of `node cancel`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CancelArgs {
    /// The node whose operation is to stop
    pub node: NodeId,
    /// Do not wait until all is cleaned up; print the operation's id and return
    #[arg(long)]
    pub detach: bool,
    /// How to wait.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Cancels what runs on the node.
pub async fn run(args: &CancelArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let reply = client.cancel_node(&args.node).await?;
    op::cancel::await_cleanup(&mut client, &reply.op_id, args.detach, args.follow, global, out).await
}
