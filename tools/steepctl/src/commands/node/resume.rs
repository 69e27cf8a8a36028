//! `steepctl node resume`

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
};

use crate::{
    cli::Global,
    commands::op::retry::{How, once_more},
    output::{Output, exit_code::Exit},
};

const EXAMPLES: &str = "\
An initialization that was interrupted goes on by itself; it is followed. One that
has failed or was cancelled is undone, and started anew as it was asked for.

Examples:
  steepctl node resume node_b
  steepctl node resume node_b --detach";

/// As many operations of a node are looked through for its last initialization.
pub(super) const LOOKED_THROUGH: u32 = 100;

/// Arguments of `node resume`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ResumeArgs {
    /// The node whose last initialization is to go on
    pub node: NodeId,
    /// How to start it
    #[command(flatten)]
    pub how: How,
}

/// Follows the node's last initialization, or starts it anew where it was undone.
pub async fn run(args: &ResumeArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let node = &args.node;
    let mut client = global.client(out)?;
    let listed = client.list_operations(node.as_str(), LOOKED_THROUGH).await?;
    let last = listed.operations.iter().find(|op| op.kind == "init" && op.target == node.as_str());
    let Some(last) = last else {
        let failure = Failure::new(Code::NothingRuns, format!("{node} was never initialized"));
        return Err(failure.hint(format!("steepctl node start {node} --from SOURCE")));
    };
    let known = client.get_operation(&last.op_id).await?;
    once_more(known, &args.how, &mut client, global, out).await
}
