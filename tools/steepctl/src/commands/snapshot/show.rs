//! `steepctl snapshot show`

use clap::Args;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json},
};

const EXAMPLES: &str = "\
Examples:
  steepctl snapshot show snap_0192f3ac7d21
  steepctl snapshot show snap_0192f3ac7d21 -o json | jq '.snapshots[0].tables'";

/// Arguments of `snapshot show`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArgs {
    /// The snapshot's id
    pub id: String,
}

/// Prints one snapshot and its tables.
pub async fn run(args: &ShowArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let (snapshot, reply) = super::find(&mut global.client(out)?, &args.id).await?;
    if out.is_json() {
        out.json(&json::message("ListSnapshotsReply", &reply))?;
        return Ok(Exit::Success);
    }
    out.data(&super::facts(&snapshot))?;
    if !snapshot.tables.is_empty() {
        out.data(&format!("\n{}", super::tables(&snapshot)))?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
