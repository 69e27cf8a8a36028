//! `steepctl seq sync`

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    v1,
};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, style::Tone},
    units,
};

const EXAMPLES: &str = "\
B's sequences are moved ahead of A's by the margin, in their own steps; never
back, and A's are never touched. Without --apply it is only shown.

Examples:
  steepctl seq sync node_a node_b                            only show
  steepctl seq sync node_a node_b --apply                    asks first
  steepctl seq sync node_a node_b --apply --confirm node_b   in a script";

/// Arguments of `seq sync`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SyncArgs {
    /// The node that is written to
    #[arg(value_name = "A")]
    pub source: NodeId,
    /// The node whose sequences are moved
    #[arg(value_name = "B")]
    pub target: NodeId,
    /// How many steps ahead [default: copy.sequence_margin of B]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    pub margin: Option<u32>,
    /// Move them; without this it is only shown
    #[arg(long)]
    pub apply: bool,
    /// B's name once more, to confirm without being asked
    #[arg(long, value_name = "B", requires = "apply")]
    pub confirm: Option<NodeId>,
}

/// Shows what would be moved, and moves it where that is wanted and confirmed.
pub async fn run(args: &SyncArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let SyncArgs { source, target, .. } = args;
    super::refuse_same(source, target)?;
    let mut client = global.client(out)?;
    if args.apply {
        refuse_unless_confirmable(args, global, out)?;
    }
    let (from, to, margin) = (source.to_string(), target.to_string(), args.margin.unwrap_or_default());
    let request = v1::CheckSequencesRequest { source: from.clone(), target: to.clone(), margin };
    let checked = client.check_sequences(&request).await?;
    let shown: Vec<_> = checked.sequences.iter().filter(|check| super::needs_a_look(check)).collect();
    if !args.apply {
        if out.is_json() {
            out.json(&json::message("CheckSequencesReply", &checked))?;
            return Ok(Exit::Success);
        }
        if !shown.is_empty() {
            out.data(&super::table(source, target, &shown))?;
        }
        out.talk(&format!("nothing was changed{}", if shown.is_empty() { "" } else { "; add --apply to move these" }));
        out.via(&checked.served_by);
        return Ok(Exit::Success);
    }
    if !shown.is_empty() {
        out.say(&super::table(source, target, &shown));
        confirm(args, out)?;
    }
    let request = v1::SyncSequencesRequest { source: from, target: to, margin };
    let reply = client.sync_sequences(&request).await?;
    show(args, &reply, out)
}

fn refused(args: &SyncArgs, message: String) -> Failure {
    let SyncArgs { source, target, .. } = args;
    Failure::new(Code::ConfirmationNeeded, message).hint(format!(
        "steepctl seq sync {source} {target}; then: steepctl seq sync {source} {target} --apply --confirm {target}"
    ))
}

/// Fails before anybody is asked where nobody could confirm.
fn refuse_unless_confirmable(args: &SyncArgs, global: &Global, out: &Output) -> Result<(), Failure> {
    let target = &args.target;
    match &args.confirm {
        Some(name) if name == target => Ok(()),
        Some(name) => Err(refused(args, format!("--confirm names {name}, but {target} would be changed"))),
        None if global.no_input || !out.can_ask() => {
            Err(refused(args, format!("sequences of {target} would be moved, and nobody can be asked")))
        }
        None => Ok(()),
    }
}

/// Goes on only if the change is confirmed with the target's name.
fn confirm(args: &SyncArgs, out: &Output) -> Result<(), Failure> {
    let target = &args.target;
    if args.confirm.is_some() {
        return Ok(());
    }
    out.say(&format!("\nThis {} sequences of {target}; there is no way back.", Tone::Bad.paint("MOVES")));
    match out.ask("Type the node name to continue: ") {
        Some(answer) if answer == target.as_str() => Ok(()),
        Some(answer) if !answer.is_empty() => {
            Err(refused(args, format!("{answer:?} is not {target}; nothing was changed")))
        }
        _ => Err(refused(args, "nothing was typed; nothing was changed".into())),
    }
}

/// What was moved, and what could not be.
fn show(args: &SyncArgs, reply: &v1::SyncSequencesReply, out: &Output) -> Result<Exit, Failure> {
    if out.is_json() {
        out.json(&json::message("SyncSequencesReply", reply))?;
        return Ok(Exit::Success);
    }
    let left: Vec<_> = reply.left.iter().collect();
    if !left.is_empty() {
        out.data(&super::table(&args.source, &args.target, &left))?;
    }
    let left = match left.len() {
        0 => String::new(),
        many => format!("; {} to be looked at by hand", units::counted(many as u64, "sequence")),
    };
    let moved = units::counted(reply.moved.len() as u64, "sequence");
    out.data(&format!("{moved} of {} moved ahead of {}'s{left}", args.target, args.source))?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
