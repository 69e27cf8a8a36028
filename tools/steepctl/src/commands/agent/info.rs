//! `steepctl agent info`

use clap::Args;
use jiff::Timestamp;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        json,
        style::{self, Tone},
        table::{Cell, Facts, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
Examples:
  steepctl agent info node_b
  steepctl agent info node_b -o json | jq .certificate_until";

/// Arguments of `agent info`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InfoArgs {
    /// The node whose agent is meant
    pub node: NodeId,
}

/// Prints what an agent says of itself.
pub async fn run(args: &InfoArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.agent_info(args.node.as_str()).await?;
    if out.is_json() {
        out.json(&json::message("AgentInfoReply", &reply))?;
        return Ok(Exit::Success);
    }
    out.data(&facts(&reply, Timestamp::now()))?;
    if !reply.sessions.is_empty() {
        out.data(&format!("\n{}", sessions(&reply.sessions)))?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn facts(agent: &v1::AgentInfoReply, now: Timestamp) -> String {
    let mut facts = Facts::default();
    facts.add("node", Cell::new(&agent.node_id).tone(Tone::Strong));
    facts.add("mesh", &agent.mesh);
    facts.add(
        "agent",
        format!("version {}, protocol {} (understands {})", agent.agent_version, agent.protocol, agent.oldest_protocol),
    );
    let started = units::moment(agent.started_at.as_ref());
    facts.add("running for", started.map(|at| units::duration(units::since(at, now))).unwrap_or_default());
    let health = match agent.health_reason.as_str() {
        "" => agent.health.clone(),
        reason => format!("{}: {reason}", agent.health),
    };
    facts.add("health", Cell::new(health).tone(style::of_health(&agent.health)));
    if let Some(drained) = &agent.drained {
        let since = units::moment(drained.since.as_ref()).map(|at| units::ago(at, now)).unwrap_or_default();
        let text = format!("by {}, {since}: takes no new work", drained.by);
        facts.add("drained", Cell::new(text).tone(Tone::Warn));
    }
    facts.add("configuration", &agent.config_path);
    let listens = match agent.advertised == agent.listen {
        true => agent.listen.clone(),
        false => format!("{}, reached at {}", agent.listen, agent.advertised),
    };
    facts.add("listens on", listens);
    facts.add("http", &agent.http_listen);
    facts.add("identity", &agent.identity);
    facts.add("certificate", until(agent.certificate_until.as_ref(), now));
    facts.add("root", until(agent.root_until.as_ref(), now));
    let server = if agent.postgres_version.is_empty() { "never reached" } else { &agent.postgres_version };
    facts.add("postgresql", format!("{server} at {}", agent.postgres_address));
    facts.add("database", &agent.database);
    facts.add("operation", &agent.op_id);
    let level = match units::moment(agent.log_level_until.as_ref()) {
        Some(at) => format!("{}, until {}", agent.log_level, units::date_time(at)),
        None => agent.log_level.clone(),
    };
    facts.add("log level", level);
    let usage = agent.resources.unwrap_or_default();
    if usage.resident_bytes > 0 {
        let files = format!("{} of {} files", units::count(usage.open_files), units::count(usage.most_open_files));
        let memory = units::bytes(usage.resident_bytes);
        facts.add("uses", format!("{memory} memory, {:.1} s of processor, {files}", usage.cpu_seconds));
    }
    facts.render()
}

/// `valid until 2027-01-01 10:00:00, 38d`, in the tone of how soon that is.
fn until(at: Option<&prost_types::Timestamp>, now: Timestamp) -> Cell {
    const SOON: u64 = 14 * 24 * 3600;
    let Some(at) = units::moment(at) else { return Cell::new("cannot be read").tone(Tone::Bad) };
    let left = units::since(now, at);
    match left.as_secs() {
        0 => Cell::new(format!("expired at {}", units::date_time(at))).tone(Tone::Bad),
        seconds => {
            let text = format!("valid until {}, for {}", units::date_time(at), units::duration(left));
            Cell::new(text).tone(if seconds < SOON { Tone::Warn } else { Tone::Plain })
        }
    }
}

fn sessions(sessions: &[v1::OpenSession]) -> String {
    let mut table = Table::new(&[("HELD FOR", Side::Left), ("OPERATION", Side::Left), ("WAL KEPT", Side::Right)]);
    for session in sessions {
        table.row([
            Cell::new(&session.target_node),
            Cell::new(&session.op_id),
            Cell::new(units::bytes(session.retained_bytes)),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstream::adapter::strip_str;

    #[test]
    fn an_agent_that_is_drained_or_whose_certificate_ends_says_so() {
        let now = Timestamp::from_second(1_000_000).expect("a moment");
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let agent = v1::AgentInfoReply {
            node_id: "node_b".into(),
            started_at: at(999_000),
            drained: Some(v1::Drained { by: "alice (admin)".into(), since: at(999_940) }),
            certificate_until: at(999_999),
            root_until: at(1_000_000 + 30 * 24 * 3600),
            ..v1::AgentInfoReply::default()
        };
        let text = strip_str(&facts(&agent, now)).to_string();
        assert!(text.contains("by alice (admin), ") && text.contains("takes no new work"), "{text}");
        assert!(text.contains("expired at 1970") && text.contains("valid until 1970"), "{text}");
        assert!(text.contains("16m40s"), "{text}");
    }
}
