//! `steepctl mesh ping`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        json,
        style::Tone,
        table::{Cell, Side, Table},
    },
    units,
};

/// Arguments of `mesh ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    /// Whom the agent you ask shall ask [default: all it knows]
    pub node: Option<NodeId>,
}

/// Has the agents asked, and prints how long they took; fails when one did not answer.
pub async fn run(args: &PingArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let node = args.node.as_ref().map(NodeId::as_str).unwrap_or_default();
    let reply = global.client(out)?.ping(node).await?;
    let silent = reply.nodes.iter().any(|pinged| pinged.answered_us.is_none());
    let exit = if silent { Exit::Unreached } else { Exit::Success };
    if out.is_json() {
        out.json(&json::message("PingReply", &reply))?;
        return Ok(exit);
    }
    let mut table = Table::new(&[
        ("NODE", Side::Left),
        ("OVER", Side::Left),
        ("ANSWERED", Side::Right),
        ("RTT", Side::Right),
        ("", Side::Left),
    ]);
    for pinged in &reply.nodes {
        table.row([
            Cell::new(&pinged.node_id),
            Cell::new(&pinged.transport),
            Cell::new(pinged.answered_us.map(units::round_trip).unwrap_or_default()),
            Cell::new(pinged.rtt_us.map(units::round_trip).unwrap_or_default()),
            Cell::new(if pinged.failure.is_empty() { "ok" } else { &pinged.failure })
                .tone(if pinged.failure.is_empty() { Tone::Good } else { Tone::Bad }),
        ]);
    }
    out.data(&table.render())?;
    out.via(&reply.served_by);
    Ok(exit)
}
