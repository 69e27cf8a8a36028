//! `steepctl snapshot list`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use super::{moment, of_status};
use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        json, safe,
        table::{Cell, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
Examples:
  steepctl snapshot list
  steepctl snapshot list node_a --all
  steepctl snapshot list -o json | jq -r '.snapshots[].location'";

/// Arguments of `snapshot list`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ListArgs {
    /// Only snapshots of this node
    pub node: Option<NodeId>,
    /// Also those that failed, were deleted or have expired
    #[arg(long)]
    pub all: bool,
}

/// Prints the snapshots of one node or of all.
pub async fn run(args: &ListArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let node_id = args.node.as_ref().map(ToString::to_string).unwrap_or_default();
    let request = v1::ListSnapshotsRequest { node_id, all: args.all, snapshot_id: String::new() };
    let reply = global.client(out)?.list_snapshots(&request).await?;
    if out.is_json() {
        out.json(&json::message("ListSnapshotsReply", &reply))?;
        return Ok(Exit::Success);
    }
    match reply.snapshots.is_empty() {
        true => out.talk("no snapshots"),
        false => out.data(&table(&reply.snapshots))?,
    }
    for missing in &reply.missing_nodes {
        out.talk(&format!("! {} did not answer; its snapshots are missing", safe(missing)));
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn table(snapshots: &[v1::Snapshot]) -> String {
    let mut table = Table::new(&[
        ("SNAPSHOT", Side::Left),
        ("NODE", Side::Left),
        ("STATUS", Side::Left),
        ("LSN", Side::Left),
        ("ROWS", Side::Right),
        ("SIZE", Side::Right),
        ("WAL KEPT", Side::Right),
        ("EXPIRES", Side::Left),
        ("DIRECTORY", Side::Left),
    ]);
    for snapshot in snapshots {
        table.row([
            Cell::new(&snapshot.snapshot_id),
            Cell::new(&snapshot.node_id),
            Cell::new(&snapshot.status).tone(of_status(&snapshot.status)),
            Cell::new(&snapshot.lsn),
            Cell::new(units::count(snapshot.rows)),
            Cell::new(units::bytes(snapshot.bytes)),
            Cell::new(units::bytes(snapshot.retained_bytes)),
            Cell::new(moment(snapshot.expires_at.as_ref())),
            Cell::new(&snapshot.location),
        ]);
    }
    table.render()
}
