//! `steepctl node list`

use jiff::Timestamp;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    commands::status,
    output::{
        Output,
        exit_code::Exit,
        json, style,
        table::{Cell, Side, Table},
    },
};

/// Prints every node with its addresses and versions.
pub async fn run(global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut reply = global.client(out)?.list_nodes().await?;
    reply.nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    if out.is_json() {
        out.json(&json::message("ListNodesReply", &reply))?;
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&[
        ("NODE", Side::Left),
        ("STATE", Side::Left),
        ("AGENT AT", Side::Left),
        ("AGENT", Side::Left),
        ("PG AT", Side::Left),
        ("PG", Side::Left),
        ("SEEN", Side::Left),
    ]);
    let now = Timestamp::now();
    for node in &reply.nodes {
        table.row([
            Cell::new(&node.node_id),
            Cell::new(node.state.to_uppercase()).tone(style::of_state(&node.state)),
            Cell::new(&node.address),
            Cell::new(&node.agent_version),
            Cell::new(&node.postgres_address),
            Cell::new(&node.postgres_version),
            status::seen(node, now),
        ]);
    }
    out.data(&table.render())?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
