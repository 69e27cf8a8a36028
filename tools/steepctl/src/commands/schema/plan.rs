//! `steepctl schema plan`

use std::path::PathBuf;

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use super::script;
use crate::{
    cli::Global,
    commands::selection::Selected,
    output::{Output, exit_code::Exit, json, shell_word},
};

const EXAMPLES: &str = "\
B would be changed to look like A; A is never changed. A plan only adds and
widens: it drops, narrows and renames nothing. What is left stands in it as
comments, with what to do by hand. This command runs nothing.

Examples:
  steepctl schema plan node_a node_b
  steepctl schema plan node_a node_b --tables sales.orders
  steepctl schema plan node_a node_b --output-file node_b.sql";

/// Arguments of `schema plan`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// The node whose schema counts
    #[arg(value_name = "A")]
    pub source: NodeId,
    /// The node that would be changed
    #[arg(value_name = "B")]
    pub target: NodeId,
    /// Some of the tables.
    #[command(flatten)]
    pub selected: Selected,
    /// Write the SQL to this file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
}

/// Plans, and prints the plan as SQL.
pub async fn run(args: &PlanArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    super::refuse_same(&args.source, &args.target)?;
    let request = request(&args.source, &args.target, &args.selected);
    let plan = global.client(out)?.plan_schema(&request).await?;
    let sql = script::of(&plan, &args.selected.words());
    if let Some(path) = &args.output_file {
        super::write(path, sql.clone())?;
        out.talk(&format!("written to {}; nothing was changed", shell_word(&path.display().to_string())));
    }
    if out.is_json() {
        out.json(&json::message("PlanSchemaReply", &plan))?;
    } else if args.output_file.is_none() {
        out.data(&sql)?;
    }
    out.via(&plan.served_by);
    Ok(Exit::Success)
}

/// What to ask for a plan.
pub(super) fn request(source: &NodeId, target: &NodeId, selected: &Selected) -> v1::PlanSchemaRequest {
    v1::PlanSchemaRequest { source: source.to_string(), target: target.to_string(), selection: selected.selection() }
}
