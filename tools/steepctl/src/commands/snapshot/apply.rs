//! `steepctl snapshot apply`

use std::time::Duration;

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    intent::PEER_INPUT,
    v1,
};

use crate::{
    cli::Global,
    client::Client,
    commands::node::plan,
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, json, progress::Subject, safe},
};

/// The target's database is looked at first.
const START_LIMIT: Duration = Duration::from_secs(120);

const EXAMPLES: &str = "\
The directory lies on the host of the target's agent: copy or mount it there.
All of it is checked before anything is changed; then the snapshot's node makes
a slot for the target that begins where the snapshot ends. One snapshot serves
any number of targets, one after the other or at once.

With peer:SNAPSHOT the files stay where they were written: the agent of the
snapshot's node sends them while they are loaded. Each is checked before what it
holds is committed; after a cut it goes on at the byte where it stopped.

With s3://BUCKET/PREFIX the target's agent reads the object store of its own
configuration ([snapshots.s3]): once to check all of it, once to load it.

Examples:
  steepctl snapshot apply node_b --input /srv/steep/snap
  steepctl snapshot apply node_b --input peer:snap_0192f3ac7d21
  steepctl snapshot apply node_b --input s3://backups/node_a/monday
  steepctl snapshot apply node_b --input /srv/steep/snap --one-way
  steepctl snapshot apply node_b --input /srv/steep/snap --no-subscribe    rows alone";

/// Arguments of `snapshot apply`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ApplyArgs {
    /// The node to initialize
    pub target: NodeId,
    /// The snapshot's directory, an absolute path on the host of the target's agent; peer:SNAPSHOT, from its node's agent;
    /// or s3://BUCKET/PREFIX, from an object store
    #[arg(long, value_name = "DIR|peer:SNAPSHOT|s3://BUCKET/PREFIX")]
    pub input: String,
    /// The node the snapshot is of; refused where the manifest names another [default: what that names]
    #[arg(long, value_name = "NODE")]
    pub source: Option<NodeId>,
    /// Replicate from the snapshot's node to the target only, not back
    #[arg(long)]
    pub one_way: bool,
    /// Load the rows and set up no replication; the snapshot's node is not asked
    #[arg(long, conflicts_with = "one_way")]
    pub no_subscribe: bool,
    /// Files loaded at once, 1 to 16 [default: copy.parallel of the target's agent]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub parallel: Option<u32>,
    /// Empty the target's tables first if they hold rows
    #[arg(long)]
    pub force: bool,
    /// The target's name once more, to confirm --force without being asked
    #[arg(long, value_name = "TARGET", requires = "force")]
    pub confirm: Option<NodeId>,
    /// Print the operation's id and return; do not watch
    #[arg(long)]
    pub detach: bool,
    /// How to watch.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Starts an initialization from a snapshot, and follows it to its end.
pub async fn run(args: &ApplyArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    if args.force {
        confirm(args, global, out)?;
    }
    let source = match &args.source {
        Some(source) => source.to_string(),
        None => source_of(&mut client, args).await?,
    };
    let op_id = OperationId::generate().to_string();
    let request = v1::ApplySnapshotRequest {
        target: args.target.to_string(),
        source: source.clone(),
        op_id: op_id.clone(),
        input: args.input.clone(),
        one_way: args.one_way,
        no_subscribe: args.no_subscribe,
        force: args.force,
        parallel: args.parallel.unwrap_or(0),
    };
    let reply = client.apply_snapshot(&request, args.force, START_LIMIT).await;
    let reply = reply.map_err(|failure| client.perhaps_started(failure, &op_id))?;
    if args.detach {
        if out.is_json() {
            out.json(&json::message("ApplySnapshotReply", &reply))?;
        } else {
            out.data(&reply.op_id)?;
        }
        return Ok(Exit::Success);
    }
    out.talk(&format!("op {} runs in the agents; Ctrl-C detaches, it does not stop it", safe(&reply.op_id)));
    out.talk(&format!("init {} {} {} from {}", args.target, out.glyphs().from, safe(&source), safe(&args.input)));
    if !reply.checks.is_empty() {
        out.talk(&plan::checks(&reply.checks, false, out.glyphs()));
    }
    out.via(&reply.served_by);
    let subject = Subject { op_id: reply.op_id, target: args.target.to_string(), source };
    let followed = follow::until_ended(&client, out, &subject, args.follow, !global.no_input).await?;
    let done = ending::conclude(out, followed, ending::Wanted::Completion)?;
    if args.no_subscribe && matches!(done, Exit::Success) {
        out.talk(&format!("{} holds the rows and replicates with nobody", args.target));
    }
    Ok(done)
}

/// The node the snapshot is of, by its manifest; or by the agents, where one of them is to send it.
async fn source_of(client: &mut Client<'_>, args: &ApplyArgs) -> Result<String, Failure> {
    let Some(id) = args.input.strip_prefix(PEER_INPUT) else {
        let node_id = args.target.to_string();
        let asked = v1::VerifySnapshotRequest { node_id, input: args.input.clone(), manifest_only: true };
        return Ok(client.verify_snapshot(&asked, START_LIMIT).await?.snapshot.unwrap_or_default().node_id);
    };
    let found = super::find(client, id).await.map_err(|failure| match failure.causes.is_empty() {
        true => failure,
        false => failure.hint("start the agents that did not answer, or name the snapshot's node with --source"),
    })?;
    Ok(found.0.node_id)
}

/// Goes on only if it is confirmed with the target's name that its tables are emptied.
fn confirm(args: &ApplyArgs, global: &Global, out: &Output) -> Result<(), Failure> {
    let target = &args.target;
    let refused = |message: String| {
        let hint = format!("steepctl node show {target}; then add --confirm {target}");
        Failure::new(Code::ConfirmationNeeded, message).hint(hint)
    };
    match &args.confirm {
        Some(name) if name == target => return Ok(()),
        Some(name) => return Err(refused(format!("--confirm names {name}, but {target} would be emptied"))),
        None if global.no_input || !out.can_ask() => {
            return Err(refused(format!("--force would empty tables on {target}, and nobody can be asked")));
        }
        None => {}
    }
    out.say(&format!("Tables of {target} that the snapshot holds are EMPTIED first."));
    match out.ask("Type the node name to continue: ") {
        Some(answer) if answer == target.as_str() => Ok(()),
        Some(answer) if !answer.is_empty() => Err(refused(format!("{answer:?} is not {target}; nothing was changed"))),
        _ => Err(refused("nothing was typed; nothing was changed".into())),
    }
}
