//! `steepctl mesh forget`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe},
};

const EXAMPLES: &str = "\
For nodes that will not come back. A node that is alive is refused; one that
comes back later is taken in as new. Its slots, publications and subscriptions
on other nodes stay as they are.

Examples:
  steepctl mesh forget node_c";

/// Arguments of `mesh forget`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ForgetArgs {
    /// The node to forget
    pub node: NodeId,
}

/// Has all agents forget the node.
pub async fn run(args: &ForgetArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.forget(args.node.as_str()).await?;
    if out.is_json() {
        out.json(&json::message("ForgetReply", &reply))?;
    } else {
        out.data(&format!("{} is forgotten", safe(&reply.node_id)))?;
    }
    Ok(Exit::Success)
}
