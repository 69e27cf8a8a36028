//! `steepctl node show`

use clap::Args;
use jiff::Timestamp;
use steep_protocol::{
    failure::Failure,
    ids::NodeId,
    v1::{self, SlotView, SubscriptionView},
};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        failure, json,
        style::{self, Tone},
        table::{Cell, Facts, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
Examples:
  steepctl node show node_b
  steepctl node show node_b -o json | jq .last_failure";

/// Arguments of `node show`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArgs {
    /// The node
    pub node: NodeId,
}

/// Prints what a node's own agent says of it.
pub async fn run(args: &ShowArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.get_node(args.node.as_str()).await?;
    if out.is_json() {
        out.json(&json::message("GetNodeReply", &reply))?;
        return Ok(Exit::Success);
    }
    let node = reply.headline.clone().unwrap_or_default();
    out.data(&facts(&reply, &node))?;
    if !reply.subscriptions.is_empty() {
        out.data(&format!("\n{}", subscriptions(&reply.subscriptions)))?;
    }
    if !reply.slots.is_empty() {
        out.data(&format!("\n{}", slots(&reply.slots)))?;
    }
    if let Some(last) = &reply.last_failure {
        let text = failure::text(&Failure::from(last.clone()));
        let title = if node.state == "diverged" { "Diverged for" } else { "Last failure" };
        out.data(&format!("\n{title}\n{text}"))?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn facts(reply: &v1::GetNodeReply, node: &v1::NodeHeadline) -> String {
    let mut facts = Facts::default();
    facts.add("node", Cell::new(&node.node_id).tone(Tone::Strong));
    facts.add("state", Cell::new(node.state.to_uppercase()).tone(style::of_state(&node.state)));
    let health = match node.health_reason.as_str() {
        "" => node.health.clone(),
        reason => format!("{}: {reason}", node.health),
    };
    facts.add("health", Cell::new(health).tone(style::of_health(&node.health)));
    facts.add("source", &node.source_node);
    if !node.op_id.is_empty() {
        let percent = node.percent.map(|percent| format!(", {}", units::percent(percent))).unwrap_or_default();
        facts.add("operation", format!("{}{percent}", node.op_id));
    }
    facts.add("lag", node.lag_bytes.map(units::bytes).unwrap_or_default());
    facts.add("initialized", initialized(reply));
    facts.add("agent", format!("{}, version {}", node.address, node.agent_version));
    let server = if node.postgres_version.is_empty() { "never reached" } else { &node.postgres_version };
    facts.add("postgresql", format!("{server} at {}", node.postgres_address));
    facts.add("database", &reply.database);
    facts.add(
        "system id",
        if reply.system_identifier == 0 { String::new() } else { reply.system_identifier.to_string() },
    );
    let seen = units::moment(node.as_of.as_ref()).map(|at| units::ago(at, Timestamp::now()));
    facts.add("seen", seen.unwrap_or_else(|| "never".into()));
    facts.render()
}

fn initialized(reply: &v1::GetNodeReply) -> String {
    let started = units::moment(reply.init_started_at.as_ref());
    let completed = units::moment(reply.init_completed_at.as_ref());
    match (started, completed) {
        (Some(started), Some(completed)) if completed >= started => {
            format!("{} in {}", units::date_time(completed), units::duration(units::since(started, completed)))
        }
        (Some(started), _) => format!("started {}", units::date_time(started)),
        (None, Some(completed)) => units::date_time(completed),
        (None, None) => String::new(),
    }
}

fn subscriptions(subscriptions: &[SubscriptionView]) -> String {
    let mut table = Table::new(&[
        ("SUBSCRIPTION", Side::Left),
        ("FROM", Side::Left),
        ("ENABLED", Side::Left),
        ("LAG", Side::Right),
        ("ERRORS", Side::Right),
    ]);
    for subscription in subscriptions {
        let enabled = if subscription.enabled { Cell::new("yes") } else { Cell::new("NO").tone(Tone::Bad) };
        let lag = match subscription.lag_bytes {
            Some(bytes) => Cell::new(units::bytes(bytes)),
            None => Cell::new("no worker").tone(Tone::Warn),
        };
        let errors = Cell::new(units::count(subscription.apply_errors));
        table.row([
            Cell::new(&subscription.name),
            Cell::new(&subscription.source_node),
            enabled,
            lag,
            if subscription.apply_errors > 0 { errors.tone(Tone::Warn) } else { errors },
        ]);
    }
    table.render()
}

fn slots(slots: &[SlotView]) -> String {
    let mut table = Table::new(&[
        ("SLOT", Side::Left),
        ("FOR", Side::Left),
        ("ACTIVE", Side::Left),
        ("WAL KEPT", Side::Right),
        ("WAL STATUS", Side::Left),
    ]);
    for slot in slots {
        let status = Cell::new(&slot.wal_status);
        table.row([
            Cell::new(&slot.name),
            Cell::new(&slot.target_node),
            if slot.active { Cell::new("yes") } else { Cell::new("no").tone(Tone::Warn) },
            Cell::new(units::bytes(slot.retained_bytes)),
            match slot.wal_status.as_str() {
                "lost" => status.tone(Tone::Bad),
                "unreserved" => status.tone(Tone::Warn),
                _ => status,
            },
        ]);
    }
    table.render()
}
