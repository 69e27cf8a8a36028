//! `steepctl snapshot delete`

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    v1,
};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe},
    units,
};

const EXAMPLES: &str = "\
Nodes that were initialized from it keep replicating; nothing new can begin from
it. Copies of its directory elsewhere stay, and can still be loaded with
--no-subscribe.

Examples:
  steepctl snapshot delete snap_0192f3ac7d21
  steepctl snapshot delete snap_0192f3ac7d21 --confirm snap_0192f3ac7d21";

/// Arguments of `snapshot delete`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DeleteArgs {
    /// The snapshot's id
    pub id: String,
    /// The id once more, to confirm without being asked
    #[arg(long, value_name = "ID")]
    pub confirm: Option<String>,
}

/// Shows the snapshot, and deletes it where that is confirmed.
pub async fn run(args: &DeleteArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let (found, listed) = super::find(&mut client, &args.id).await?;
    if found.status == "deleted" {
        return is_deleted_already(args, found, listed.served_by, out);
    }
    confirm(args, &found, global, out)?;
    let request = v1::DeleteSnapshotRequest { node_id: found.node_id.clone(), snapshot_id: args.id.clone() };
    let reply = client.delete_snapshot(&request).await?;
    if out.is_json() {
        out.json(&json::message("DeleteSnapshotReply", &reply))?;
        return Ok(Exit::Success);
    }
    let (id, node) = (safe(&args.id), safe(&found.node_id));
    let kept = units::bytes(found.retained_bytes);
    out.data(&format!("{id} of {node} is deleted; its slot kept back {kept} of WAL"))?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

/// There is nothing to confirm, nor to do: what could not be taken away yet, its agent tries again by itself.
fn is_deleted_already(
    args: &DeleteArgs,
    found: v1::Snapshot,
    served_by: String,
    out: &Output,
) -> Result<Exit, Failure> {
    if out.is_json() {
        let reply = v1::DeleteSnapshotReply { served_by, snapshot: Some(found) };
        out.json(&json::message("DeleteSnapshotReply", &reply))?;
        return Ok(Exit::Success);
    }
    out.data(&format!("{} of {} is deleted already", safe(&args.id), safe(&found.node_id)))?;
    out.via(&served_by);
    Ok(Exit::Success)
}

/// Goes on only if it is confirmed with the snapshot's id.
fn confirm(args: &DeleteArgs, found: &v1::Snapshot, global: &Global, out: &Output) -> Result<(), Failure> {
    let id = safe(&args.id);
    let refused = |message: String| {
        let hint = format!("steepctl snapshot show {id}; then: steepctl snapshot delete {id} --confirm {id}");
        Failure::new(Code::ConfirmationNeeded, message).hint(hint)
    };
    match &args.confirm {
        Some(name) if *name == args.id => return Ok(()),
        Some(name) => return Err(refused(format!("--confirm names {}, but {id} would be deleted", safe(name)))),
        None if global.no_input || !out.can_ask() => {
            return Err(refused(format!("{id} would be deleted, and nobody can be asked")));
        }
        None => {}
    }
    out.say(&super::facts(found));
    out.say("\nIts slot and its files go; nothing can begin from it any more.");
    match out.ask("Type the snapshot's id to continue: ") {
        Some(answer) if answer == args.id => Ok(()),
        Some(answer) if !answer.is_empty() => Err(refused(format!("{answer:?} is not {id}; nothing was deleted"))),
        _ => Err(refused("nothing was typed; nothing was deleted".into())),
    }
}
