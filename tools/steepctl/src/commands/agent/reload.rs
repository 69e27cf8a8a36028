//! `steepctl agent reload`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe},
};

const EXAMPLES: &str = "\
A file that is wrong changes nothing. SIGHUP to the agent does the same.

Examples:
  steepctl agent reload node_b";

/// Arguments of `agent reload`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ReloadArgs {
    /// The node whose agent is meant
    pub node: NodeId,
}

/// Has an agent read its configuration again, and says what that came to.
pub async fn run(args: &ReloadArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.reload_agent(args.node.as_str()).await?;
    if out.is_json() {
        out.json(&json::message("ReloadAgentReply", &reply))?;
        return Ok(Exit::Success);
    }
    let list = |keys: &[String]| keys.iter().map(|key| safe(key)).collect::<Vec<_>>().join(", ");
    match reply.changed.as_slice() {
        [] => out.data(&format!("{}: nothing to take up", args.node))?,
        keys => out.data(&format!("{}: took up {}", args.node, list(keys)))?,
    }
    if !reply.needs_restart.is_empty() {
        out.data(&format!("{}: needs a restart for {}", args.node, list(&reply.needs_restart)))?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
