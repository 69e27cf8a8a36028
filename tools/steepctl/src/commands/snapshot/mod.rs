//! `steepctl snapshot …`

pub mod apply;
pub mod delete;
pub mod generate;
pub mod list;
pub mod show;
pub mod verify;

use clap::Subcommand;
use steep_protocol::{
    failure::{Code, Failure},
    v1,
};

use crate::{
    cli::Global,
    client::Client,
    output::{
        Output,
        exit_code::Exit,
        safe,
        style::Tone,
        table::{Cell, Facts, Side, Table},
    },
    units,
};

/// The verbs of `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Write a snapshot of a node into a directory on its agent's host
    Generate(generate::GenerateArgs),
    /// Initialize a node from a snapshot: its directory, or what another agent sends
    Apply(apply::ApplyArgs),
    /// List snapshots: where they lie, what they keep back, when they expire
    List(list::ListArgs),
    /// Show one snapshot and its tables
    Show(show::ShowArgs),
    /// Check every file of a snapshot against its signed manifest
    Verify(verify::VerifyArgs),
    /// Drop a snapshot's slot and files
    Delete(delete::DeleteArgs),
}

/// Does what the verb says.
pub async fn run(command: SnapshotCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        SnapshotCommand::Generate(args) => generate::run(&args, global, out).await,
        SnapshotCommand::Apply(args) => apply::run(&args, global, out).await,
        SnapshotCommand::List(args) => list::run(&args, global, out).await,
        SnapshotCommand::Show(args) => show::run(&args, global, out).await,
        SnapshotCommand::Verify(args) => verify::run(&args, global, out).await,
        SnapshotCommand::Delete(args) => delete::run(&args, global, out).await,
    }
}

/// One snapshot, whichever node made it.
async fn find(client: &mut Client<'_>, id: &str) -> Result<(v1::Snapshot, v1::ListSnapshotsReply), Failure> {
    let request = v1::ListSnapshotsRequest { snapshot_id: id.to_owned(), ..v1::ListSnapshotsRequest::default() };
    let reply = client.list_snapshots(&request).await?;
    if let Some(found) = reply.snapshots.first() {
        return Ok((found.clone(), reply));
    }
    let unknown = Failure::new(Code::SnapshotUnknown, format!("no node has a snapshot {}", safe(id)));
    Err(reply.missing_nodes.iter().fold(unknown, |failure, node| failure.cause(format!("{node} did not answer"))))
}

/// All there is to say about one snapshot.
fn facts(snapshot: &v1::Snapshot) -> String {
    let mut facts = Facts::default();
    facts.add("snapshot", Cell::new(&snapshot.snapshot_id).tone(Tone::Strong));
    facts.add("node", &snapshot.node_id);
    facts.add("status", Cell::new(&snapshot.status).tone(of_status(&snapshot.status)));
    facts.add("directory", &snapshot.location);
    facts.add("operation", &snapshot.op_id);
    facts.add("lsn", &snapshot.lsn);
    facts.add("slot", &snapshot.slot);
    facts.add("wal kept", units::bytes(snapshot.retained_bytes));
    facts.add("created", moment(snapshot.created_at.as_ref()));
    facts.add("expires", moment(snapshot.expires_at.as_ref()));
    facts.add("tables", units::count(u64::from(snapshot.table_count)));
    facts.add("rows", units::count(snapshot.rows));
    facts.add("files", units::count(u64::from(snapshot.file_count)));
    facts.add("size", units::bytes(snapshot.bytes));
    facts.add("compression", &snapshot.compression);
    facts.render()
}

/// The tables of a snapshot, as its manifest has them.
fn tables(snapshot: &v1::Snapshot) -> String {
    let mut table =
        Table::new(&[("TABLE", Side::Left), ("ROWS", Side::Right), ("SIZE", Side::Right), ("FILES", Side::Right)]);
    for found in &snapshot.tables {
        let name = found.table.clone().unwrap_or_default();
        table.row([
            Cell::new(steep_protocol::names::TableName::new(name.schema, name.name).to_string()),
            Cell::new(units::count(found.rows)),
            Cell::new(units::bytes(found.bytes)),
            Cell::new(units::count(u64::from(found.parts))),
        ]);
    }
    table.render()
}

fn moment(at: Option<&prost_types::Timestamp>) -> String {
    units::moment(at).map(units::date_time).unwrap_or_default()
}

fn of_status(status: &str) -> Tone {
    match status {
        "complete" => Tone::Good,
        "failed" => Tone::Bad,
        "deleted" => Tone::Warn,
        _ => Tone::Plain,
    }
}
