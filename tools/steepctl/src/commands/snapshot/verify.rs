//! `steepctl snapshot verify`

use std::time::Duration;

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe},
    units,
};

/// All files are read.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

const EXAMPLES: &str = "\
Signature, mesh, every file's presence, size and SHA-256, and the rows in it. A
directory is looked at by the agent on whose host it lies.

Examples:
  steepctl snapshot verify snap_0192f3ac7d21
  steepctl snapshot verify /srv/steep/snap --node node_b
  steepctl snapshot verify s3://backups/node_a/monday --node node_b";

/// Arguments of `snapshot verify`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArgs {
    /// The snapshot's id, its directory as an absolute path, or s3://BUCKET/PREFIX
    #[arg(value_name = "ID|DIR|s3://BUCKET/PREFIX")]
    pub snapshot: String,
    /// The node on whose agent's host the directory lies, or whose agent reads the object store [default: the agent that is
    /// asked]
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeId>,
}

/// Has an agent look at all of a snapshot.
pub async fn run(args: &VerifyArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let node_id = match &args.node {
        Some(node) => node.to_string(),
        None if args.snapshot.starts_with("snap_") => super::find(&mut client, &args.snapshot).await?.0.node_id,
        None => String::new(),
    };
    let request = v1::VerifySnapshotRequest { node_id, input: args.snapshot.clone(), manifest_only: false };
    let reply = client.verify_snapshot(&request, LIMIT).await?;
    if out.is_json() {
        out.json(&json::message("VerifySnapshotReply", &reply))?;
        return Ok(Exit::Success);
    }
    let snapshot = reply.snapshot.clone().unwrap_or_default();
    let (format, signer) = (reply.format_version, safe(&reply.signed_by));
    out.data(&format!("manifest  {}, format {format}, signed by {signer}, complete", safe(&snapshot.snapshot_id)))?;
    let (files, size) = (units::count(u64::from(snapshot.file_count)), units::bytes(snapshot.bytes));
    out.data(&format!("files     {files} of {files} present, sizes and SHA-256 match, {size}"))?;
    let counted = units::count(reply.rows_counted.unwrap_or_default());
    out.data(&format!("rows      {} in the manifest, {counted} in the files", units::count(snapshot.rows)))?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
