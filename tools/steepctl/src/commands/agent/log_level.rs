//! `steepctl agent log-level`

use std::time::Duration;

use clap::{Args, ValueEnum};
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, safe},
    units,
};

const EXAMPLES: &str = "\
Examples:
  steepctl agent log-level node_b debug --for 10m
  steepctl agent log-level node_b configured";

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    // Someone must act.
    Error,
    // Unexpected, and it went on.
    Warn,
    // A node, operation, peer or session changed.
    Info,
    // Every call.
    Debug,
    // Every block.
    Trace,
    // As agent.toml says.
    Configured,
}

/// Arguments of `agent log-level`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LogLevelArgs {
    /// The node whose agent is meant
    pub node: NodeId,
    /// From which level on it logs
    pub level: Level,
    /// Go back to the configured level after this long (10m, 1h; a week at most)
    #[arg(long = "for", value_name = "DURATION", value_parser = units::parse_duration)]
    pub lasting: Option<Duration>,
}

/// Sets the level of an agent's log.
pub async fn run(args: &LogLevelArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let level = match args.level {
        Level::Configured => String::new(),
        level => level.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default(),
    };
    let request = v1::SetLogLevelRequest {
        node_id: args.node.to_string(),
        level,
        for_seconds: args.lasting.map_or(0, |lasting| lasting.as_secs().max(1)),
    };
    let reply = global.client(out)?.set_log_level(&request).await?;
    if out.is_json() {
        out.json(&json::message("SetLogLevelReply", &reply))?;
        return Ok(Exit::Success);
    }
    let until = units::moment(reply.until.as_ref()).map(|at| format!(" until {}", units::date_time(at)));
    let (level, previous) = (safe(&reply.level), safe(&reply.previous));
    out.data(&format!("{} logs {level}{}; before: {previous}", args.node, until.unwrap_or_default()))?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}
