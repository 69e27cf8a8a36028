//! `steepctl node complete`

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    v1,
};

use super::plan;
use crate::{
    cli::Global,
    client::Client,
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, json, progress::Subject, safe},
};

const EXAMPLES: &str = "\
The node was restored from a backup for which steepctl node prepare has prepared its
source. It is checked that this is the backup, that all tables are there and that
none was written to; then it replicates from where the backup ends. A physical copy
is taken over first, by steep-agent adopt-copy on its host.

Examples:
  steepctl node complete node_b --source node_a
  steepctl node complete node_b --source node_a --prepare-id 0192f3ac7d21 --one-way";

/// Arguments of `node complete`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompleteArgs {
    /// The node that was restored
    pub target: NodeId,
    /// The node whose backup it was restored from
    #[arg(long, value_name = "NODE")]
    pub source: NodeId,
    /// The preparation the backup was made for [default: the only one there is]
    #[arg(long, value_name = "ID")]
    pub prepare_id: Option<String>,
    /// Where you believe the backup to end; anything else is refused
    #[arg(long, value_name = "LSN")]
    pub source_lsn: Option<String>,
    /// Replicate from source to target only, not back
    #[arg(long)]
    pub one_way: bool,
    /// Print the operation's id and return; do not watch
    #[arg(long)]
    pub detach: bool,
    /// How to watch.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Completes a node, and follows that to its end.
pub async fn run(args: &CompleteArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let prepared = find(args, &mut client).await?;
    let op_id = OperationId::generate().to_string();
    let request = v1::CompleteNodeRequest {
        target: args.target.to_string(),
        source: args.source.to_string(),
        op_id: op_id.clone(),
        prepare_id: prepared.prepare_id.clone(),
        source_lsn: args.source_lsn.clone().unwrap_or_default(),
        selection: Some(prepared.selection.unwrap_or_default()),
        one_way: args.one_way,
    };
    let reply = client.complete_node(&request).await;
    let reply = reply.map_err(|failure| client.perhaps_started(failure, &op_id))?;
    let op_id = if reply.op_id.is_empty() { op_id } else { reply.op_id.clone() };
    if args.detach {
        if out.is_json() {
            out.json(&json::message("CompleteNodeReply", &reply))?;
        } else {
            out.data(&op_id)?;
        }
        return Ok(Exit::Success);
    }
    out.talk(&format!("op {} runs in the agents; Ctrl-C detaches, it does not stop it", safe(&op_id)));
    let from = out.glyphs().from;
    out.talk(&format!("complete {} {from} {} (preparation {})", args.target, args.source, safe(&prepared.prepare_id)));
    if !reply.checks.is_empty() {
        out.talk(&plan::checks(&reply.checks, false, out.glyphs()));
    }
    out.via(&reply.served_by);
    let subject = Subject { op_id, target: request.target, source: request.source };
    let followed = follow::until_ended(&client, out, &subject, args.follow, !global.no_input).await?;
    ending::conclude(out, followed, ending::Wanted::Completion)
}

/// The preparation that is meant, as its source tells it.
async fn find(args: &CompleteArgs, client: &mut Client<'_>) -> Result<v1::Preparation, Failure> {
    let source = &args.source;
    let listed = client.list_preparations(source.as_str()).await?.preparations;
    let for_target = |one: &&v1::Preparation| one.target.is_empty() || one.target == args.target.as_str();
    let unknown = |text: String| {
        Err(Failure::new(Code::PreparedUnknown, text).hint(format!("steepctl node prepare {source} --list")))
    };
    if let Some(id) = &args.prepare_id {
        return match listed.into_iter().find(|one| one.prepare_id == *id || one.slot == *id) {
            Some(found) => Ok(found),
            None => unknown(format!("{source} is not prepared under {}", safe(id))),
        };
    }
    match &listed.iter().filter(for_target).collect::<Vec<_>>()[..] {
        [only] => Ok((*only).clone()),
        [] => unknown(format!("{source} is not prepared for a backup")),
        many => {
            let ids: Vec<_> = many.iter().map(|one| safe(&one.prepare_id)).collect();
            unknown(format!(
                "{source} is prepared for several backups: say which with --prepare-id: {}",
                ids.join(", ")
            ))
        }
    }
}
