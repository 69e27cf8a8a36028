//! `steepctl seq check`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json},
    units,
};

const EXAMPLES: &str = "\
Sequences are not replicated. Before applications write on B in A's place, every
sequence of B must stand ahead of A's:

  AHEAD      by the margin at least        CLOSE      ahead by less
  BEHIND     B would hand out A's values   APART      both step past each other
  EXHAUSTED  no room for the margin        DIFFERS    one goes up, one down
  MISSING    B has none of this name

Examples:
  steepctl seq check node_a node_b
  steepctl seq check node_a node_b --all
  steepctl seq check node_a node_b --exit-code -q      12 when one needs a look";

/// Arguments of `seq check`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CheckArgs {
    /// The node that is written to
    #[arg(value_name = "A")]
    pub source: NodeId,
    /// The node that follows it
    #[arg(value_name = "B")]
    pub target: NodeId,
    /// As many steps count as ahead [default: copy.sequence_margin of B]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    pub margin: Option<u32>,
    /// Also list sequences that are well
    #[arg(long)]
    pub all: bool,
    /// End with exit code 12 when a sequence needs a look
    #[arg(long)]
    pub exit_code: bool,
}

/// Prints how the sequences of two nodes stand to each other.
pub async fn run(args: &CheckArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let CheckArgs { source, target, .. } = args;
    super::refuse_same(source, target)?;
    let margin = args.margin.unwrap_or_default();
    let request = v1::CheckSequencesRequest { source: source.to_string(), target: target.to_string(), margin };
    let reply = global.client(out)?.check_sequences(&request).await?;
    let troubled = reply.sequences.iter().filter(|check| super::needs_a_look(check)).count();
    let exit = if args.exit_code && troubled > 0 { Exit::Differs } else { Exit::Success };
    if out.is_json() {
        out.json(&json::message("CheckSequencesReply", &reply))?;
        return Ok(exit);
    }
    let shown: Vec<_> = reply.sequences.iter().filter(|check| args.all || super::needs_a_look(check)).collect();
    if !shown.is_empty() {
        out.data(&super::table(source, target, &shown))?;
    }
    let well = reply.sequences.len() - troubled;
    out.data(&format!("{} well, {troubled} to look at; margin {} steps", units::count(well as u64), reply.margin))?;
    if reply.sequences.iter().any(|check| check.new_value.is_some()) {
        out.talk(&format!("next: steepctl seq sync {source} {target} --apply"));
    }
    out.via(&reply.served_by);
    Ok(exit)
}
