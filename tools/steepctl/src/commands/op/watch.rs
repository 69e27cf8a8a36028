//! `steepctl op watch`

use clap::Args;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, progress::Subject},
};

const EXAMPLES: &str = "\
What has happened so far comes first. Ctrl-C detaches, it does not stop the
operation; the exit code is 0 only if the operation reaches its goal.

Examples:
  steepctl op watch 0192f3ac-7d21
  steepctl op watch 0192f3ac-7d21 --timeout 30m
  steepctl op watch 0192f3ac-7d21 -o json | jq -c .milestone.event";

/// Arguments of `op watch`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct WatchArgs {
    /// The operation's id, or its first 8 characters or more
    #[arg(value_name = "ID", value_parser = super::op_id)]
    pub op_id: String,
    /// How to watch.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Follows an operation until it has ended.
pub async fn run(args: &WatchArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let operation = client.get_operation(&args.op_id).await?.operation.unwrap_or_default();
    let subject = Subject::of(&operation);
    let followed = follow::until_ended(&client, out, &subject, args.follow, !global.no_input).await?;
    ending::conclude(out, followed, ending::Wanted::Completion)
}
