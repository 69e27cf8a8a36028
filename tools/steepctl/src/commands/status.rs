//! `steepctl status`

use futures::future::join_all;
use jiff::Timestamp;
use steep_protocol::{failure::Failure, node::NodeState, v1};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        glyphs::Glyphs,
        json, safe,
        style::{self, Tone},
        table::{Cell, Side, Table},
    },
    units,
};

const BAR_WIDTH: usize = 6;
/// Three rounds of gossip; what is older than this is marked with `~`.
const FRESH_SECONDS: u64 = 6;

/// Prints every node on one screen, and the next command for each that has a problem.
pub async fn run(global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let mut reply = client.list_nodes().await?;
    reply.nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    if out.is_json() {
        out.json(&json::message("ListNodesReply", &reply))?;
        return Ok(Exit::Success);
    }
    let now = Timestamp::now();
    out.data(&headline(&reply))?;
    out.data(&table(&reply, now, out))?;
    for line in problems(&client, &reply.nodes).await {
        out.data(&line)?;
    }
    Ok(Exit::Success)
}

fn headline(reply: &v1::ListNodesReply) -> String {
    let running = reply.nodes.iter().filter(|node| !node.op_id.is_empty()).count() as u64;
    let mesh = Tone::Strong.paint(&format!("Mesh {}", safe(&reply.mesh)));
    let nodes = units::counted(reply.nodes.len() as u64, "node");
    let operations = units::counted(running, "operation");
    format!("{mesh}   {nodes}   {operations} running   served by {}", safe(&reply.served_by))
}

fn table(reply: &v1::ListNodesReply, now: Timestamp, out: &Output) -> String {
    let mut table = Table::new(&[
        ("NODE", Side::Left),
        ("PG", Side::Left),
        ("STATE", Side::Left),
        ("SOURCE", Side::Left),
        ("PROGRESS", Side::Left),
        ("LAG", Side::Right),
        ("HEALTH", Side::Left),
        ("SEEN", Side::Left),
    ]);
    let bars = out.is_read_by_people().then(|| out.glyphs());
    for node in &reply.nodes {
        table.row([
            Cell::new(&node.node_id),
            Cell::new(&node.postgres_version),
            Cell::new(node.state.to_uppercase()).tone(style::of_state(&node.state)),
            Cell::new(&node.source_node),
            Cell::new(progress(node, bars)),
            Cell::new(node.lag_bytes.map(units::bytes).unwrap_or_default()),
            Cell::new(&node.health).tone(style::of_health(&node.health)),
            seen(node, now),
        ]);
    }
    table.render()
}

/// `███████▊ 78.4% 14:03`; without the bar where nobody looks.
fn progress(node: &v1::NodeHeadline, bars: Option<&Glyphs>) -> String {
    let Some(percent) = node.percent.filter(|_| !node.op_id.is_empty()) else { return String::new() };
    let bar = bars.map(|glyphs| format!("{} ", glyphs.bar(percent, BAR_WIDTH))).unwrap_or_default();
    let eta = node.eta_seconds.map(|seconds| format!(" {}", units::clock(seconds))).unwrap_or_default();
    format!("{bar}{}{eta}", units::percent(percent))
}

/// How long ago the node spoke; `~` where that is too long to believe the row.
pub(super) fn seen(node: &v1::NodeHeadline, now: Timestamp) -> Cell {
    // The agent's own measure, where it gives one: our clock may be another.
    let by_clock = || units::moment(node.as_of.as_ref()).map(|at| units::since(at, now).as_millis() as u64);
    let Some(age) = node.age_ms.or_else(by_clock) else { return Cell::new("never").tone(Tone::Warn) };
    let is_stale = node.is_stale || age > FRESH_SECONDS * 1_000;
    Cell::new(units::age(age, is_stale)).tone(if is_stale { Tone::Warn } else { Tone::Plain })
}

/// A line, or two, for each node that is not well: what, and what to type next.
async fn problems(client: &crate::client::Client<'_>, nodes: &[v1::NodeHeadline]) -> Vec<String> {
    let troubled = nodes.iter().filter(|node| is_troubled(node));
    let lines = troubled.map(|node| {
        let mut client = client.clone();
        async move {
            // Only the node itself knows the whole failure; when it does not answer, its last word must do.
            let known = client.get_node(&node.node_id).await.ok().and_then(|reply| reply.last_failure);
            problem(node, known)
        }
    });
    join_all(lines).await
}

fn is_troubled(node: &v1::NodeHeadline) -> bool {
    let state = node.state.parse();
    matches!(state, Ok(NodeState::Failed | NodeState::Diverged))
        || matches!(node.health.as_str(), "warn" | "error" | "unknown")
}

fn problem(node: &v1::NodeHeadline, failure: Option<v1::Failure>) -> String {
    let failed = matches!(node.state.parse(), Ok(NodeState::Failed | NodeState::Diverged));
    let (what, next) = match failure {
        Some(failure) if failed => (format!("{} {}", safe(&failure.code), safe(&failure.message)), safe(&failure.hint)),
        _ => {
            let reason = if node.health_reason.is_empty() { &node.state } else { &node.health_reason };
            // Where the reason says itself what comes next, there is no more to be shown.
            let next = [": steepctl ", ": see "].iter().find_map(|word| reason.find(word));
            match next {
                Some(at) => (safe(&reason[..at]), safe(&reason[at + 2..])),
                None => (safe(reason), format!("steepctl node show {}", safe(&node.node_id))),
            }
        }
    };
    let tone = if failed || node.health == "error" { Tone::Bad } else { Tone::Warn };
    format!("{} {}: {what}\n  next: {next}", tone.paint("!"), safe(&node.node_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::glyphs;
    use anstream::adapter::strip_str;

    fn node(state: &str, health: &str) -> v1::NodeHeadline {
        v1::NodeHeadline { node_id: "node_b".into(), state: state.into(), health: health.into(), ..Default::default() }
    }

    #[test]
    fn progress_is_shown_while_an_operation_runs_and_only_then() {
        let mut running = v1::NodeHeadline { percent: Some(78.44), eta_seconds: Some(843), ..node("copying", "busy") };
        assert_eq!(progress(&running, None), "");
        running.op_id = "0192".into();
        assert_eq!(progress(&running, None), "78.4% 14:03");
        assert_eq!(progress(&running, Some(&glyphs::ASCII)), "[###.] 78.4% 14:03");
    }

    #[test]
    fn a_failed_node_shows_its_failure_and_the_next_command() {
        let failure = v1::Failure {
            code: "STP-4203".into(),
            message: "replication slot lost".into(),
            hint: "start the node again with --force".into(),
            ..Default::default()
        };
        let line = strip_str(&problem(&node("failed", "error"), Some(failure))).to_string();
        assert_eq!(line, "! node_b: STP-4203 replication slot lost\n  next: start the node again with --force");
    }

    #[test]
    fn a_reason_that_says_what_comes_next_is_not_answered_with_itself() {
        let told = |reason: &str| {
            let warned = v1::NodeHeadline { health_reason: reason.into(), ..node("synchronized", "warn") };
            strip_str(&problem(&warned, None)).to_string()
        };
        assert_eq!(
            told("STP-4201 subscription s does not run: see PostgreSQL's log on node_b"),
            "! node_b: STP-4201 subscription s does not run\n  next: see PostgreSQL's log on node_b"
        );
        assert_eq!(
            told("STP-2202 t differs from node_a's: steepctl schema compare node_b node_a"),
            "! node_b: STP-2202 t differs from node_a's\n  next: steepctl schema compare node_b node_a"
        );
        assert_eq!(
            told("PostgreSQL was not reached yet"),
            "! node_b: PostgreSQL was not reached yet\n  next: steepctl node show node_b"
        );
    }

    #[test]
    fn a_node_that_is_well_or_at_work_is_no_problem() {
        assert!(!is_troubled(&node("synchronized", "ok")));
        assert!(!is_troubled(&node("copying", "busy")));
        assert!(is_troubled(&node("failed", "ok")));
        assert!(is_troubled(&node("synchronized", "unknown")));
    }
}
