//! `steepctl node progress`

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    v1,
};

use crate::{
    cli::Global,
    commands::op,
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, json, progress::Subject},
};

const EXAMPLES: &str = "\
Examples:
  steepctl node progress node_b          once
  steepctl node progress node_b --watch  until it has ended
  steepctl node progress node_b -o json | jq .operation.progress.overall_percent";

/// Arguments of `node progress`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ProgressArgs {
    /// The node
    pub node: NodeId,
    /// Go on showing it until the operation has ended
    #[arg(short, long)]
    pub watch: bool,
    /// How to go on.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Prints how far the operation on a node has come, once or until it has ended.
pub async fn run(args: &ProgressArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let node = client.get_node(args.node.as_str()).await?.headline.unwrap_or_default();
    if node.op_id.is_empty() {
        return Err(Failure::new(Code::NothingRuns, format!("nothing runs on {}; it is {}", args.node, node.state))
            .hint(format!("steepctl op list --node {} shows what ran", args.node)));
    }
    if args.watch {
        let subject = Subject { op_id: node.op_id, target: node.node_id, source: node.source_node };
        let followed = follow::until_ended(&client, out, &subject, args.follow, !global.no_input).await?;
        return ending::conclude(out, followed, ending::Wanted::Completion);
    }
    let reply = client.get_operation(&node.op_id).await?;
    if out.is_json() {
        out.json(&json::message("GetOperationReply", &reply))?;
    } else {
        out.data(&once(&reply, out))?;
        out.via(&reply.served_by);
    }
    Ok(Exit::Success)
}

fn once(reply: &v1::GetOperationReply, out: &Output) -> String {
    let operation = reply.operation.clone().unwrap_or_default();
    let facts = op::show::facts(&operation);
    match &operation.progress {
        Some(progress) => format!("{facts}\n\n{}", op::show::progress(progress, &operation, out)),
        None => facts,
    }
}
