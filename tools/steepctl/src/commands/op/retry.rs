//! `steepctl op retry`, and what `node resume` does with a node's last initialization.

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    operation::OperationStatus,
    v1,
};

use crate::{
    cli::Global,
    client::Client,
    commands::node::start,
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, progress::Subject},
};

const EXAMPLES: &str = "\
An operation that has not ended goes on by itself: it is followed. One that has
failed or was cancelled is undone: what it asked for is checked and started anew,
as a new operation. One that emptied tables needs the target's name again.

Examples:
  steepctl op retry 0192f3ac-7d21
  steepctl op retry 0192f3ac-7d21 --detach
  steepctl op retry 0192f3ac-7d21 --confirm node_b";

/// Arguments of `op retry`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RetryArgs {
    /// The operation's id, or its first 8 characters or more
    #[arg(value_name = "ID", value_parser = super::op_id)]
    pub op_id: String,
    /// How to start it
    #[command(flatten)]
    pub how: How,
}

/// How something is started once more.
#[derive(Debug, Args)]
pub struct How {
    /// The target's name, where the operation had its tables emptied
    #[arg(long, value_name = "TARGET")]
    pub confirm: Option<NodeId>,
    /// Print the operation's id and return; do not watch
    #[arg(long)]
    pub detach: bool,
    /// How to watch.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Starts an operation once more, or follows it where it goes on by itself.
pub async fn run(args: &RetryArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let known = client.get_operation(&args.op_id).await?;
    once_more(known, &args.how, &mut client, global, out).await
}

/// Follows the operation `known`, or starts anew what it asked for.
pub async fn once_more(
    known: v1::GetOperationReply,
    how: &How,
    client: &mut Client<'_>,
    global: &Global,
    out: &Output,
) -> Result<Exit, Failure> {
    let operation = known.operation.unwrap_or_default();
    let op_id = &operation.op_id;
    match operation.status.parse::<OperationStatus>() {
        Ok(OperationStatus::Failed | OperationStatus::Cancelled) => {}
        Ok(OperationStatus::Completed) => {
            let text = format!("operation {op_id} has reached its goal: there is nothing to try again");
            return Err(Failure::new(Code::IllegalState, text).hint(format!("steepctl op show {op_id}")));
        }
        _ => {
            out.talk(&format!("op {op_id} has not ended, it goes on by itself"));
            if how.detach {
                out.data(op_id)?;
                return Ok(Exit::Success);
            }
            let subject = Subject::of(&operation);
            let followed = follow::until_ended(client, out, &subject, how.follow, !global.no_input).await?;
            return ending::conclude(out, followed, ending::Wanted::Completion);
        }
    }
    let Some(request) = known.start else {
        let text = format!("operation {op_id} is no initialization, or that of an older agent");
        return Err(Failure::new(Code::IllegalState, text).hint(format!("steepctl op show {op_id}")));
    };
    let follow = (!how.detach).then_some(how.follow);
    start::again(request, how.confirm.as_ref(), follow, client, global, out).await
}
