//! `steepctl schema capture`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId};

use super::sides;
use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        json,
        style::Tone,
        table::{Cell, Facts},
    },
    units,
};

const EXAMPLES: &str = "\
Agents look by themselves every so often; this does it now. Nothing is changed
but what the node remembers.

Examples:
  steepctl schema capture node_a
  steepctl schema capture node_a -o json | jq -r .environment.digest";

/// Arguments of `schema capture`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CaptureArgs {
    /// The node that is to look
    pub node: NodeId,
}

/// Has a node look at its schema, and prints what it has seen.
pub async fn run(args: &CaptureArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.capture_schema(args.node.as_str()).await?;
    if out.is_json() {
        out.json(&json::message("CaptureSchemaReply", &reply))?;
        return Ok(Exit::Success);
    }
    let environment = reply.environment.unwrap_or_default();
    let mut facts = Facts::default();
    facts.add("node", Cell::new(args.node.as_str()).tone(Tone::Strong));
    facts.add("tables", units::count(u64::try_from(environment.tables).unwrap_or(0)));
    facts.add("changed", units::count(reply.changed));
    facts.add("digest", &environment.digest);
    facts.add("captured", units::moment(environment.captured_at.as_ref()).map(units::date_time).unwrap_or_default());
    out.data(&facts.render())?;
    if !environment.is_complete {
        out.data(&sides::incomplete(args.node.as_str(), out.glyphs()))?;
    }
    if reply.changed > 0 {
        out.talk(&format!("next: steepctl schema history {}", args.node));
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
