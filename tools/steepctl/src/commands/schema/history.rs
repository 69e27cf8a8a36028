//! `steepctl schema history`

use clap::Args;
use steep_protocol::{
    failure::Failure,
    ids::NodeId,
    names::{BadTableName, TableName, parse_table},
    v1,
};

use crate::{
    cli::Global,
    commands::selection,
    output::{
        Output,
        exit_code::Exit,
        json,
        style::Tone,
        table::{Cell, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
What a node noticed: a change that was undone before its agent looked is not
in it. Times are those of the node's clock.

Examples:
  steepctl schema history node_a
  steepctl schema history node_a --table sales.orders --limit 5";

/// Arguments of `schema history`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct HistoryArgs {
    /// The node
    pub node: NodeId,
    /// Only changes of this table, as schema.table
    #[arg(long, value_name = "TABLE", value_parser = table)]
    pub table: Option<TableName>,
    /// At most this many changes
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
}

fn table(text: &str) -> Result<TableName, BadTableName> {
    parse_table(text)
}

/// Prints what changed on a node and when.
pub async fn run(args: &HistoryArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let request = v1::SchemaHistoryRequest {
        node_id: args.node.to_string(),
        table: args.table.as_ref().map(selection::message),
        before: 0,
        limit: args.limit,
    };
    let reply = global.client(out)?.schema_history(&request).await?;
    if out.is_json() {
        out.json(&json::message("SchemaHistoryReply", &reply))?;
        return Ok(Exit::Success);
    }
    if reply.changes.is_empty() {
        out.talk("no changes noticed yet");
    } else {
        out.data(&shown(&reply.changes))?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn shown(changes: &[v1::SchemaChange]) -> String {
    let columns = [("NOTICED", Side::Left), ("CHANGE", Side::Left), ("TABLE", Side::Left), ("DETAIL", Side::Left)];
    let mut table = Table::new(&columns);
    for change in changes {
        let tone = match change.change.as_str() {
            "added" => Tone::Good,
            "dropped" => Tone::Bad,
            _ => Tone::Warn,
        };
        table.row([
            Cell::new(units::moment(change.noticed_at.as_ref()).map(units::date_time).unwrap_or_default()),
            Cell::new(&change.change).tone(tone),
            Cell::new(super::name(change.table.as_ref()).to_string()),
            Cell::new(change.differences.join("; ")),
        ]);
    }
    table.render()
}
