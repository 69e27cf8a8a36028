//! `steepctl op show`

use anstream::adapter::strip_str;
use clap::Args;
use jiff::Timestamp;
use steep_protocol::{
    failure::Failure,
    v1::{self, OperationStep},
};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        failure, json,
        progress::{Subject, bars},
        style::{self, Tone},
        table::{Cell, Facts, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
Examples:
  steepctl op show 0192f3ac-7d21
  steepctl op show 0192f3ac-7d21 -o json | jq .operation.failure";

const WIDTH: usize = 80;

/// Arguments of `op show`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArgs {
    /// The operation's id, or its first 8 characters or more
    #[arg(value_name = "ID", value_parser = super::op_id)]
    pub op_id: String,
}

/// Prints an operation with its steps.
pub async fn run(args: &ShowArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.get_operation(&args.op_id).await?;
    if out.is_json() {
        out.json(&json::message("GetOperationReply", &reply))?;
        return Ok(Exit::Success);
    }
    let operation = reply.operation.clone().unwrap_or_default();
    out.data(&facts(&operation))?;
    if !reply.steps.is_empty() {
        out.data(&format!("\n{}", steps(&reply.steps)))?;
    }
    if let Some(now) = operation.progress.as_ref().filter(|_| operation.ended_at.is_none()) {
        out.data(&format!("\n{}", progress(now, &operation, out)))?;
    }
    if let Some(why) = &operation.failure {
        out.data(&format!("\n{}", failure::text(&Failure::from(why.clone()))))?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

/// What an operation is, and how it fares.
pub(in crate::commands) fn facts(operation: &v1::Operation) -> String {
    let mut facts = Facts::default();
    facts.add("operation", Cell::new(&operation.op_id).tone(Tone::Strong));
    facts.add("kind", format!("{}, method {}", operation.kind, operation.method));
    facts.add("node", &operation.target);
    facts.add("source", &operation.source);
    facts.add("status", Cell::new(&operation.status).tone(style::of_status(&operation.status)));
    facts.add("step", &operation.step);
    facts.add("started by", &operation.started_by);
    let started = units::moment(operation.started_at.as_ref());
    let ended = units::moment(operation.ended_at.as_ref());
    facts.add("started", started.map(units::date_time).unwrap_or_default());
    if let Some(ended) = ended {
        facts.add("ended", units::date_time(ended));
    }
    if let Some(started) = started {
        let title = if ended.is_some() { "took" } else { "running for" };
        facts.add(title, units::duration(units::since(started, ended.unwrap_or_else(Timestamp::now))));
    }
    if let Some(progress) = operation.progress.as_ref().filter(|_| ended.is_some()) {
        let rows = units::counted(progress.rows_copied, "row");
        facts.add("copied", format!("{rows}, {}", units::bytes(progress.bytes_copied)));
    }
    facts.render()
}

/// How far it has come, as `node start` shows it; `Ctrl-C` has no meaning here.
pub(in crate::commands) fn progress(progress: &v1::Progress, operation: &v1::Operation, out: &Output) -> String {
    let screen = bars::screen(progress, &Subject::of(operation), out.glyphs(), WIDTH);
    let lines = screen.iter().map(|line| {
        let plain = strip_str(line).to_string();
        match plain.strip_suffix("Ctrl-C detaches") {
            Some(rest) => Tone::Faint.paint(rest.trim_end_matches([' ', '·', '-'])),
            None => line.clone(),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn steps(steps: &[OperationStep]) -> String {
    let mut table = Table::new(&[("STEP", Side::Left), ("STATUS", Side::Left), ("TOOK", Side::Right)]);
    for step in steps {
        let started = units::moment(step.started_at.as_ref());
        let ended = units::moment(step.ended_at.as_ref());
        let took = match (started, ended) {
            (Some(started), Some(ended)) => units::duration(units::since(started, ended)),
            (Some(started), None) if step.status == "running" => {
                units::duration(units::since(started, Timestamp::now()))
            }
            _ => String::new(),
        };
        table.row([Cell::new(&step.name), Cell::new(&step.status).tone(style::of_step(&step.status)), Cell::new(took)]);
    }
    table.render()
}
