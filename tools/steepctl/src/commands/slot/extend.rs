//! `steepctl slot extend`

use std::time::Duration;

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe},
    units,
};

const EXAMPLES: &str = "\
Slots that steepctl node prepare has made expire; all others are kept for as long as
somebody needs them.

Examples:
  steepctl slot extend node_a steep_prep_0192f3ac7d21 --expires 72h";

/// Arguments of `slot extend`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExtendArgs {
    /// The node whose server has it
    pub node: NodeId,
    /// The slot
    pub slot: String,
    /// For how long from now it is kept: 90m, 72h or 7d, up to 366d
    #[arg(long, value_name = "DURATION", value_parser = units::parse_lifetime)]
    pub expires: Duration,
}

/// Keeps a slot for longer.
pub async fn run(args: &ExtendArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let request = v1::ChangePreparationRequest {
        node_id: args.node.to_string(),
        prepare_id: args.slot.clone(),
        what: "extend".into(),
        expires_seconds: args.expires.as_secs(),
    };
    let reply = global.client(out)?.change_preparation(&request).await?;
    if out.is_json() {
        out.json(&json::message("ChangePreparationReply", &reply))?;
        return Ok(Exit::Success);
    }
    let kept = reply.preparation.unwrap_or_default();
    let until = units::moment(kept.expires_at.as_ref()).map(units::date_time).unwrap_or_default();
    out.data(&format!("slot {} of {} is kept until {until}", safe(&kept.slot), args.node))?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
