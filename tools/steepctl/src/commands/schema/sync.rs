//! `steepctl schema sync`

use clap::Args;
use steep_protocol::{
    failure::{Code, Failure, Family},
    ids::NodeId,
    v1,
};

use super::{plan, script};
use crate::{
    cli::Global,
    commands::selection::Selected,
    output::{Output, exit_code::Exit, json, safe, style::Tone},
    units,
};

const EXAMPLES: &str = "\
B is changed to look like A; A is never changed. What was shown is what is run:
when either schema has changed since, nothing is. Without --apply the plan is
all there is.

Examples:
  steepctl schema sync node_a node_b                           only plan
  steepctl schema sync node_a node_b --apply                   asks first
  steepctl schema sync node_a node_b --apply --confirm node_b  in a script";

/// Arguments of `schema sync`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SyncArgs {
    /// The node whose schema counts
    #[arg(value_name = "A")]
    pub source: NodeId,
    /// The node that is changed
    #[arg(value_name = "B")]
    pub target: NodeId,
    /// Some of the tables.
    #[command(flatten)]
    pub selected: Selected,
    /// Run the plan on B; without this it is only shown
    #[arg(long)]
    pub apply: bool,
    /// Do not ask at the terminal; where there is none, --confirm is needed
    #[arg(long, requires = "apply")]
    pub yes: bool,
    /// B's name once more, to confirm without being asked
    #[arg(long, value_name = "B", requires = "apply")]
    pub confirm: Option<NodeId>,
}

/// Shows the plan, and runs it where that is wanted and confirmed.
pub async fn run(args: &SyncArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    super::refuse_same(&args.source, &args.target)?;
    let mut client = global.client(out)?;
    if args.apply {
        refuse_unless_confirmable(args, global, out)?;
    }
    let plan = client.plan_schema(&plan::request(&args.source, &args.target, &args.selected)).await?;
    let sql = script::of(&plan, &args.selected.words());
    if !args.apply {
        if out.is_json() {
            out.json(&json::message("PlanSchemaReply", &plan))?;
        } else {
            out.data(&sql)?;
            let more = if plan.steps.is_empty() { "" } else { "; add --apply to run this plan" };
            out.talk(&format!("nothing was changed{more}"));
        }
        out.via(&plan.served_by);
        return Ok(Exit::Success);
    }
    if plan.steps.is_empty() {
        let reply = v1::SyncSchemaReply { served_by: plan.served_by, applied: Vec::new(), hazards: plan.hazards };
        return show(args, &reply, out);
    }
    out.say(&sql);
    confirm(args, out)?;
    let request = v1::SyncSchemaRequest {
        source: args.source.to_string(),
        target: args.target.to_string(),
        selection: args.selected.selection(),
        source_digest: plan.source_digest,
        target_digest: plan.target_digest,
    };
    let reply = client.sync_schema(&request).await.map_err(|failure| what_may_have_run(args, failure))?;
    show(args, &reply, out)
}

fn refused(args: &SyncArgs, message: String) -> Failure {
    let SyncArgs { source, target, selected, .. } = args;
    let words = selected.words();
    Failure::new(Code::ConfirmationNeeded, message).hint(format!(
        "steepctl schema plan {source} {target}{words}; then: \
         steepctl schema sync {source} {target}{words} --apply --confirm {target}"
    ))
}

/// Fails before anybody is asked where nobody could confirm.
fn refuse_unless_confirmable(args: &SyncArgs, global: &Global, out: &Output) -> Result<(), Failure> {
    let target = &args.target;
    match &args.confirm {
        Some(name) if name == target => Ok(()),
        Some(name) => Err(refused(args, format!("--confirm names {name}, but {target} would be changed"))),
        None if global.no_input || !out.can_ask() => {
            Err(refused(args, format!("the schema of {target} would be changed, and nobody can be asked")))
        }
        None => Ok(()),
    }
}

/// Goes on only if the change is confirmed with the target's name.
fn confirm(args: &SyncArgs, out: &Output) -> Result<(), Failure> {
    let target = &args.target;
    if args.yes || args.confirm.is_some() {
        return Ok(());
    }
    let what = Tone::Bad.paint("CHANGES");
    out.say(&format!("\nThis {what} the schema of {target}; each statement above says how it could be taken back."));
    match out.ask("Type the node name to continue: ") {
        Some(answer) if answer == target.as_str() => Ok(()),
        Some(answer) if !answer.is_empty() => {
            Err(refused(args, format!("{answer:?} is not {target}; nothing was changed")))
        }
        _ => Err(refused(args, "nothing was typed; nothing was changed".into())),
    }
}

/// Adds how to find out what is left, where some of the plan may have been run.
fn what_may_have_run(args: &SyncArgs, failure: Failure) -> Failure {
    // An order that was used before was taken by an agent whose answer never came.
    let was_taken = failure.code == Code::IntentUsed;
    match failure.code.family() {
        Family::Permission | Family::Precondition if !was_taken => failure,
        _ => {
            let hint = &failure.hint;
            let left = format!("steepctl schema plan {} {}{}", args.source, args.target, args.selected.words());
            let hint = format!("{hint}{}{left} shows what is left", if hint.is_empty() { "" } else { "; " });
            failure.hint(hint)
        }
    }
}

/// What was run and what is left.
fn show(args: &SyncArgs, reply: &v1::SyncSchemaReply, out: &Output) -> Result<Exit, Failure> {
    if out.is_json() {
        out.json(&json::message("SyncSchemaReply", reply))?;
        return Ok(Exit::Success);
    }
    let ok = Tone::Good.paint(out.glyphs().ok);
    for step in &reply.applied {
        out.data(&format!("{ok} {}", safe(&step.title)))?;
    }
    let warn = Tone::Warn.paint(out.glyphs().warn);
    for hazard in &reply.hazards {
        out.data(&format!("{warn} {}", script::by_hand(hazard).join("\n  ")))?;
    }
    let target = &args.target;
    out.data(&match (reply.applied.len() as u64, reply.hazards.len() as u64) {
        (0, 0) => format!("nothing to do: {target} looks like {}", args.source),
        (0, left) => format!("nothing was changed on {target}; {} to do by hand", units::counted(left, "thing")),
        (ran, 0) => format!("{} run on {target}; nothing is left", units::counted(ran, "statement")),
        (ran, left) => format!(
            "{} run on {target}; {} left to do by hand",
            units::counted(ran, "statement"),
            units::counted(left, "thing")
        ),
    })?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
