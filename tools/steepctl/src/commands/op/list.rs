//! `steepctl op list`

use clap::Args;
use jiff::Timestamp;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        json, safe, style,
        table::{Cell, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
Ids are shortened where that leaves them unmistakable; every command takes
the short form.

Examples:
  steepctl op list
  steepctl op list --node node_b --limit 5
  steepctl op list -o json | jq '.operations[] | select(.status == \"failed\")'";

/// The clock of a UUIDv7; two operations of one millisecond get more digits.
const SHORTEST_ID: usize = 13;

/// Arguments of `op list`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ListArgs {
    /// Only operations on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeId>,
    /// At most this many
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub limit: u32,
}

/// Prints what runs and what ran.
pub async fn run(args: &ListArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let node = args.node.as_ref().map(NodeId::as_str).unwrap_or_default();
    let reply = global.client(out)?.list_operations(node, args.limit).await?;
    if out.is_json() {
        out.json(&json::message("ListOperationsReply", &reply))?;
        return Ok(Exit::Success);
    }
    if reply.operations.is_empty() {
        out.talk("no operations yet");
    } else {
        out.data(&table(&reply.operations, Timestamp::now()))?;
    }
    for missing in &reply.missing_nodes {
        out.talk(&format!("! {} did not answer; operations it alone knows are missing", safe(missing)));
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn table(operations: &[v1::Operation], now: Timestamp) -> String {
    let mut table = Table::new(&[
        ("OP", Side::Left),
        ("KIND", Side::Left),
        ("NODE", Side::Left),
        ("SOURCE", Side::Left),
        ("STATUS", Side::Left),
        ("DONE", Side::Right),
        ("STARTED", Side::Left),
        ("TOOK", Side::Right),
    ]);
    let digits = unmistakable(operations);
    for operation in operations {
        let started = units::moment(operation.started_at.as_ref());
        let until = units::moment(operation.ended_at.as_ref()).unwrap_or(now);
        let percent = operation.progress.as_ref().map(|progress| units::percent(progress.overall_percent));
        table.row([
            Cell::new(operation.op_id.get(..digits).unwrap_or(&operation.op_id)),
            Cell::new(&operation.kind),
            Cell::new(&operation.target),
            Cell::new(&operation.source),
            Cell::new(&operation.status).tone(style::of_status(&operation.status)),
            Cell::new(percent.unwrap_or_default()),
            Cell::new(started.map(units::date_time).unwrap_or_default()),
            Cell::new(started.map(|at| units::duration(units::since(at, until))).unwrap_or_default()),
        ]);
    }
    table.render()
}

/// The fewest leading characters that tell these ids apart.
fn unmistakable(operations: &[v1::Operation]) -> usize {
    let differ = |digits: &usize| {
        let mut short: Vec<_> = operations.iter().map(|op| op.op_id.get(..*digits).unwrap_or(&op.op_id)).collect();
        short.sort_unstable();
        short.windows(2).all(|pair| pair[0] != pair[1])
    };
    (SHORTEST_ID..36).find(differ).unwrap_or(36)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(id: &str) -> v1::Operation {
        v1::Operation { op_id: id.into(), ..Default::default() }
    }

    #[test]
    fn ids_are_as_short_as_they_can_be_without_being_mistaken() {
        let first = op("0192f3ac-7d21-7c4e-9f0a-3d0c5b1e77aa");
        assert_eq!(unmistakable(std::slice::from_ref(&first)), 13);
        assert_eq!(unmistakable(&[first.clone(), op("0192f3ac-7d21-7c4f-9f0a-3d0c5b1e77aa")]), 18);
        assert_eq!(unmistakable(&[first.clone(), first]), 36);
    }
}
