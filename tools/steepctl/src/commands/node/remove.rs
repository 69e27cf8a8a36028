//! `steepctl node remove`

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    v1,
};

use crate::{
    cli::Global,
    client::ANSWER_LIMIT,
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, json, progress::Subject, safe, style::Tone},
};

const EXAMPLES: &str = "\
Its slots, subscriptions and publications go, and those of all other nodes for
it. No rows are deleted anywhere. Let no application write on it any more: its
agent waits until the others have received what was written there.

Examples:
  steepctl node remove node_c
  steepctl node remove node_c --confirm node_c
  steepctl node remove node_c --drop-slots       it is down, or what it wrote may be lost";

/// Arguments of `node remove`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RemoveArgs {
    /// The node to take out of replication
    pub node: NodeId,
    /// Drop slots although they hold changes that nobody has received; needed when the node is down
    #[arg(long)]
    pub drop_slots: bool,
    /// The node's name once more, to confirm without being asked
    #[arg(long, value_name = "NODE")]
    pub confirm: Option<NodeId>,
    /// Print the operation's id and return; do not watch
    #[arg(long)]
    pub detach: bool,
    /// How to watch.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Removes a node, and follows that to its end.
pub async fn run(args: &RemoveArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    confirm(args, global, out)?;
    let op_id = OperationId::generate().to_string();
    let node_id = args.node.to_string();
    let request = v1::RemoveNodeRequest { node_id, op_id: op_id.clone(), drop_slots: args.drop_slots };
    // The agent asked may first have to find out that the node's own agent does not answer.
    let reply = client.remove_node(&request, ANSWER_LIMIT * 3).await;
    let reply = reply.map_err(|failure| client.perhaps_started(failure, &op_id))?;
    if args.detach {
        if out.is_json() {
            out.json(&json::message("RemoveNodeReply", &reply))?;
        } else {
            out.data(&reply.op_id)?;
        }
        return Ok(Exit::Success);
    }
    out.talk(&format!("op {} runs in the agents; Ctrl-C detaches, it does not stop it", safe(&reply.op_id)));
    out.via(&reply.served_by);
    let subject = Subject { op_id: reply.op_id, target: args.node.to_string(), source: String::new() };
    let followed = follow::until_ended(&client, out, &subject, args.follow, !global.no_input).await?;
    ending::conclude(out, followed, ending::Wanted::Completion)
}

/// Goes on only if the removal is confirmed with the node's name.
fn confirm(args: &RemoveArgs, global: &Global, out: &Output) -> Result<(), Failure> {
    let node = &args.node;
    let drop_slots = if args.drop_slots { " --drop-slots" } else { "" };
    let refused = |message: String| {
        let hint = format!("steepctl node show {node}; then: steepctl node remove {node}{drop_slots} --confirm {node}");
        Failure::new(Code::ConfirmationNeeded, message).hint(hint)
    };
    match &args.confirm {
        Some(name) if name == node => return Ok(()),
        Some(name) => return Err(refused(format!("--confirm names {name}, but {node} would be removed"))),
        None if global.no_input || !out.can_ask() => {
            return Err(refused(format!("{node} would be taken out of replication, and nobody can be asked")));
        }
        None => {}
    }
    let lost = match args.drop_slots {
        true => format!(" Changes made on {node} that others have not received are {}.", Tone::Bad.paint("LOST")),
        false => String::new(),
    };
    out.say(&format!("{node} leaves replication on every node; no rows are deleted.{lost}"));
    match out.ask("Type the node name to continue: ") {
        Some(answer) if answer == node.as_str() => Ok(()),
        Some(answer) if !answer.is_empty() => Err(refused(format!("{answer:?} is not {node}; nothing was changed"))),
        _ => Err(refused("nothing was typed; nothing was changed".into())),
    }
}
