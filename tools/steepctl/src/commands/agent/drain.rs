//! `steepctl agent drain`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe},
};

const EXAMPLES: &str = "\
A drained agent starts no operation and opens no session for others; what runs
goes on, and so does replication. It stays drained over a restart.

Examples:
  steepctl agent drain node_b
  steepctl agent drain node_b --undo";

/// Arguments of `agent drain`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DrainArgs {
    /// The node whose agent is meant
    pub node: NodeId,
    /// Let it take work again
    #[arg(long)]
    pub undo: bool,
}

/// Drains an agent, or ends that, and says what still runs.
pub async fn run(args: &DrainArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.drain_agent(args.node.as_str(), args.undo).await?;
    if out.is_json() {
        out.json(&json::message("DrainAgentReply", &reply))?;
    } else {
        out.data(&told(&args.node, &reply))?;
        out.via(&reply.served_by);
    }
    Ok(Exit::Success)
}

fn told(node: &NodeId, reply: &v1::DrainAgentReply) -> String {
    let Some(drained) = &reply.drained else { return format!("{node} takes work again") };
    let mut lines = vec![format!("{node} takes no new work (drained by {})", safe(&drained.by))];
    if !reply.op_id.is_empty() {
        lines.push(format!("  still runs: steepctl op watch {}", safe(&reply.op_id)));
    }
    for op in &reply.session_op_ids {
        lines.push(format!("  still a source: steepctl op watch {}", safe(op)));
    }
    if reply.op_id.is_empty() && reply.session_op_ids.is_empty() {
        lines.push("  nothing runs".into());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_still_runs_is_told_with_the_command_that_follows_it() {
        let node = "node_b".parse().expect("a name");
        let mut reply = v1::DrainAgentReply {
            drained: Some(v1::Drained { by: "alice (admin)".into(), since: None }),
            op_id: "0192".into(),
            ..v1::DrainAgentReply::default()
        };
        let text = told(&node, &reply);
        assert!(text.contains("drained by alice (admin)") && text.contains("steepctl op watch 0192"), "{text}");
        reply.op_id.clear();
        assert!(told(&node, &reply).ends_with("nothing runs"));
        reply.drained = None;
        assert_eq!(told(&node, &reply), "node_b takes work again");
    }
}
