//! `steepctl slot show`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json},
};

const EXAMPLES: &str = "\
Examples:
  steepctl slot show node_a steep_node_b_0192f3ac7d21
  steepctl slot show node_a steep_node_b_0192f3ac7d21 -o json | jq '.slots[0].why'";

/// Arguments of `slot show`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArgs {
    /// The node whose server has it
    pub node: NodeId,
    /// The slot
    pub slot: String,
}

/// Prints one slot.
pub async fn run(args: &ShowArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = super::find(&mut global.client(out)?, &args.node, &args.slot).await?;
    if out.is_json() {
        out.json(&json::message("ListSlotsReply", &reply))?;
        return Ok(Exit::Success);
    }
    for slot in &reply.slots {
        out.data(&super::facts(slot))?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
