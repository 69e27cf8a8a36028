//! `steepctl op cancel`

use clap::Args;
use steep_protocol::{failure::Failure, v1};

use crate::{
    cli::Global,
    client::Client,
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, progress::Subject},
};

const EXAMPLES: &str = "\
Examples:
  steepctl op cancel 0192f3ac-7d21
  steepctl op cancel 0192f3ac-7d21 --detach";

/// Arguments of `op cancel`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CancelArgs {
    /// The operation's id, or its first 8 characters or more
    #[arg(value_name = "ID", value_parser = super::op_id)]
    pub op_id: String,
    /// Do not wait until all is cleaned up; print the operation's id and return
    #[arg(long)]
    pub detach: bool,
    /// How to wait.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Cancels an operation.
pub async fn run(args: &CancelArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let v1::Operation { op_id, target, .. } = client.get_operation(&args.op_id).await?.operation.unwrap_or_default();
    client.cancel_operation(&op_id, &target).await?;
    await_cleanup(&mut client, &op_id, args.detach, args.follow, global, out).await
}

/// Follows a cancelled operation until all it had made is gone; or only prints its id.
pub(in crate::commands) async fn await_cleanup(
    client: &mut Client<'_>,
    op_id: &str,
    detach: bool,
    args: FollowArgs,
    global: &Global,
    out: &Output,
) -> Result<Exit, Failure> {
    if detach {
        out.talk("the agents clean up; steepctl op watch ID shows it");
        out.data(op_id)?;
        return Ok(Exit::Success);
    }
    let operation = client.get_operation(op_id).await?.operation.unwrap_or_default();
    let followed = follow::until_ended(client, out, &Subject::of(&operation), args, !global.no_input).await?;
    ending::conclude(out, followed, ending::Wanted::Cancellation)
}
