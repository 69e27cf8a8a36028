//! `steepctl snapshot generate`

use std::time::Duration;

use clap::Args;
use steep_protocol::{
    failure::Failure,
    ids::{NodeId, OperationId},
    v1,
};

use crate::{
    cli::Global,
    commands::selection::{self, Schemas, Tables, schemas, tables},
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, json, progress::Subject, safe, shell_word},
    units,
};

/// The node's database is looked at first; with many tables that takes its time.
const START_LIMIT: Duration = Duration::from_secs(120);

const EXAMPLES: &str = "\
The directory lies on the host of the node's agent, and belongs to the agent's
user. s3://BUCKET/PREFIX is in the object store of the agent's configuration
([snapshots.s3]), where its key is too. Until the snapshot is deleted or expires, a slot on the node keeps all WAL
written since: look after the disk of pg_wal.

Examples:
  steepctl snapshot generate node_a --dir /srv/steep/snap
  steepctl snapshot generate node_a --dir s3://backups/node_a/monday
  steepctl snapshot generate node_a --dir /srv/steep/snap --compress zstd:9 --parallel 8
  steepctl snapshot generate node_a --dir /srv/steep/snap --schemas sales --expires 48h";

/// Arguments of `snapshot generate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct GenerateArgs {
    /// The node whose rows are written
    pub node: NodeId,
    /// An absolute path on the host of the node's agent, where nothing is yet or an empty directory; or s3://BUCKET/PREFIX
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    pub dir: String,
    /// How files are compressed: none, gzip, lz4, zstd or zstd:LEVEL (1 to 19)
    #[arg(long, value_name = "HOW", default_value = "zstd")]
    pub compress: String,
    /// Files written at once, 1 to 16 [default: copy.parallel of the node's agent]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub parallel: Option<u32>,
    /// Only these tables, as schema.table; commas between them
    #[arg(long, value_name = "TABLES", value_parser = tables)]
    pub tables: Vec<Tables>,
    /// Only tables of these schemas; commas between them
    #[arg(long, value_name = "SCHEMAS", value_parser = schemas)]
    pub schemas: Vec<Schemas>,
    /// Never these tables, whatever else selects them
    #[arg(long, value_name = "TABLES", value_parser = tables)]
    pub exclude: Vec<Tables>,
    /// How long slot and files are kept: 90m, 72h or 7d, up to 366d
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = units::parse_lifetime)]
    pub expires: Duration,
    /// Print the operation's id and return; do not watch
    #[arg(long)]
    pub detach: bool,
    /// How to watch.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Starts to write a snapshot, and follows that to its end.
pub async fn run(args: &GenerateArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let op_id = OperationId::generate().to_string();
    let request = v1::GenerateSnapshotRequest {
        node_id: args.node.to_string(),
        op_id: op_id.clone(),
        output: args.dir.clone(),
        selection: Some(selection::of(&args.tables, &args.schemas, &args.exclude)),
        compress: args.compress.clone(),
        parallel: args.parallel.unwrap_or(0),
        expires_seconds: args.expires.as_secs().max(1),
    };
    let reply = client.generate_snapshot(&request, START_LIMIT).await;
    let reply = reply.map_err(|failure| client.perhaps_started(failure, &op_id))?;
    if args.detach {
        if out.is_json() {
            out.json(&json::message("GenerateSnapshotReply", &reply))?;
        } else {
            out.data(&reply.op_id)?;
        }
        return Ok(Exit::Success);
    }
    out.talk(&format!("op {} runs in the agents; Ctrl-C detaches, it does not stop it", safe(&reply.op_id)));
    out.talk(&format!("{} of {} into {}", safe(&reply.snapshot_id), args.node, safe(&args.dir)));
    out.via(&reply.served_by);
    let subject = Subject { op_id: reply.op_id, target: args.node.to_string(), source: args.node.to_string() };
    let followed = follow::until_ended(&client, out, &subject, args.follow, !global.no_input).await?;
    let done = ending::conclude(out, followed, ending::Wanted::Completion)?;
    if matches!(done, Exit::Success) {
        // It is written; whether somebody can say more of it changes nothing.
        if let Ok((written, _)) = super::find(&mut client, &reply.snapshot_id).await {
            out.talk(&kept(&written));
        }
        out.talk(&format!("next: steepctl snapshot verify {}", safe(&reply.snapshot_id)));
    }
    Ok(done)
}

/// What there is now, what it costs and until when, and what can be done with it.
fn kept(written: &v1::Snapshot) -> String {
    let (id, node) = (safe(&written.snapshot_id), safe(&written.node_id));
    let expires = super::moment(written.expires_at.as_ref());
    let files = format!("{} in {}", units::counted(written.file_count.into(), "file"), safe(&written.location));
    [
        format!("Written   {}, {}, {files}", units::counted(written.rows, "row"), units::bytes(written.bytes)),
        format!(
            "Kept      until {expires}, then deleted: slot {} on {node} keeps all WAL written since, {} now",
            safe(&written.slot),
            units::bytes(written.retained_bytes)
        ),
        format!("Apply     steepctl snapshot apply TARGET --input {}", shell_word(&safe(&written.location))),
        format!("Delete    steepctl snapshot delete {id}"),
    ]
    .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_told_with_its_end_and_the_next_commands() {
        let written = v1::Snapshot {
            snapshot_id: "snap_0192f3ac7d21".into(),
            node_id: "node_a".into(),
            slot: "steep_snap_0192f3ac7d21".into(),
            location: "/srv/my snap".into(),
            expires_at: Some(prost_types::Timestamp { seconds: 1_763_000_000, nanos: 0 }),
            file_count: 12,
            rows: 1,
            ..v1::Snapshot::default()
        };
        let told = kept(&written);
        for words in [
            "1 row, 0 B, 12 files in /srv/my snap",
            "Kept      until 2025-11-13 02:13:20Z, then deleted: slot steep_snap_0192f3ac7d21 on node_a keeps all WAL",
            "steepctl snapshot apply TARGET --input '/srv/my snap'",
            "steepctl snapshot delete snap_0192f3ac7d21",
        ] {
            assert!(told.contains(words), "{words} is not in:\n{told}");
        }
    }
}
