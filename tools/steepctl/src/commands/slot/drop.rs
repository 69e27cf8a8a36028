//! `steepctl slot drop`

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    v1,
};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe, shell_word, style::Tone},
    units,
};

const EXAMPLES: &str = "\
A slot that is read, that a subscription of a known node needs, or that Steep
has not made is dropped with --force only; one that a running operation needs,
not at all. The node that reads it then has to be initialized again.

Examples:
  steepctl slot drop node_a steep_node_b_0192f3ac7d21
  steepctl slot drop node_a steep_node_b_0192f3ac7d21 --confirm node_a
  steepctl slot drop node_a steep_node_b_0192f3ac7d21 --force";

/// Arguments of `slot drop`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DropArgs {
    /// The node whose server has it
    pub node: NodeId,
    /// The slot
    pub slot: String,
    /// Drop it although a node needs it, somebody reads it, or Steep has not made it
    #[arg(long)]
    pub force: bool,
    /// The node's name once more, to confirm without being asked
    #[arg(long, value_name = "NODE")]
    pub confirm: Option<NodeId>,
}

/// Shows the slot, and drops it where that is confirmed.
pub async fn run(args: &DropArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    refuse_unless_confirmable(args, global, out)?;
    let found = super::find(&mut client, &args.node, &args.slot).await?;
    if let Some(slot) = found.slots.first() {
        confirm(args, slot, out)?;
    }
    let request = v1::DropSlotRequest { node_id: args.node.to_string(), slot: args.slot.clone(), force: args.force };
    let reply = client.drop_slot(&request).await?;
    if out.is_json() {
        out.json(&json::message("DropSlotReply", &reply))?;
        return Ok(Exit::Success);
    }
    let slot = reply.slot.unwrap_or_default();
    let kept = units::bytes(slot.retained_bytes);
    out.data(&format!("slot {} of {} is dropped; it kept back {kept} of WAL", safe(&slot.name), args.node))?;
    if slot.r#use == "subscription" {
        out.talk(&format!("next: steepctl node show {}", safe(&slot.target_node)));
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn refused(args: &DropArgs, message: String) -> Failure {
    let (node, slot) = (&args.node, shell_word(&args.slot));
    let force = if args.force { " --force" } else { "" };
    Failure::new(Code::ConfirmationNeeded, message).hint(format!(
        "steepctl slot show {node} {slot}; then: steepctl slot drop {node} {slot}{force} --confirm {node}"
    ))
}

/// Fails before anybody is asked where nobody could confirm.
fn refuse_unless_confirmable(args: &DropArgs, global: &Global, out: &Output) -> Result<(), Failure> {
    let node = &args.node;
    match &args.confirm {
        Some(name) if name == node => Ok(()),
        Some(name) => Err(refused(args, format!("--confirm names {name}, but a slot of {node} would be dropped"))),
        None if global.no_input || !out.can_ask() => {
            Err(refused(args, format!("a slot of {node} would be dropped, and nobody can be asked")))
        }
        None => Ok(()),
    }
}

/// Shows what would be lost, and goes on only if that is confirmed with the node's name.
fn confirm(args: &DropArgs, slot: &v1::Slot, out: &Output) -> Result<(), Failure> {
    out.say(&super::facts(slot));
    let loses = match (slot.r#use.as_str(), slot.target_node.as_str()) {
        ("foreign", _) => "It is NOT Steep's: whatever reads it breaks, and Steep cannot tell what that is.".to_owned(),
        ("subscription" | "undecided", "") => "Whoever reads it LOSES what it has not received.".to_owned(),
        ("subscription" | "undecided", node) => {
            format!("{} LOSES what it has not received, and has to be initialized again.", safe(node))
        }
        _ => String::new(),
    };
    out.say(&match loses.as_str() {
        "" => "\nNobody that is known needs it.".to_owned(),
        loses => format!("\n{}", Tone::Bad.paint(loses)),
    });
    if args.confirm.is_some() {
        return Ok(());
    }
    match out.ask("Type the node name to continue: ") {
        Some(answer) if answer == args.node.as_str() => Ok(()),
        Some(answer) if !answer.is_empty() => {
            Err(refused(args, format!("{answer:?} is not {}; nothing was dropped", args.node)))
        }
        _ => Err(refused(args, "nothing was typed; nothing was dropped".into())),
    }
}
