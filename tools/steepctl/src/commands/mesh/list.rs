//! `steepctl mesh list`

use jiff::Timestamp;
use steep_protocol::{failure::Failure, v1};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        json, style,
        table::{Cell, Side, Table},
    },
    units,
};

/// Prints every member.
pub async fn run(global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.list_members().await?;
    if out.is_json() {
        out.json(&json::message("ListMembersReply", &reply))?;
        return Ok(Exit::Success);
    }
    let now = Timestamp::now();
    let mut table = Table::new(&[
        ("NODE", Side::Left),
        ("LIVENESS", Side::Left),
        ("SINCE", Side::Left),
        ("ADDRESS", Side::Left),
        ("AGENT", Side::Left),
        ("SEEN", Side::Left),
    ]);
    for member in &reply.members {
        table.row([
            Cell::new(&member.node_id),
            Cell::new(member.liveness.to_uppercase()).tone(style::of_liveness(&member.liveness)),
            Cell::new(since(member, now)),
            Cell::new(&member.address),
            Cell::new(&member.agent_version),
            Cell::new(seen(member)),
        ]);
    }
    out.data(&table.render())?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn since(member: &v1::Member, now: Timestamp) -> String {
    units::moment(member.since.as_ref()).map(|at| units::ago(at, now)).unwrap_or_default()
}

fn seen(member: &v1::Member) -> String {
    match member.age_ms {
        _ if member.is_self => "now".into(),
        None => "never".into(),
        Some(age) => units::age(age, !["alive", "suspect"].contains(&member.liveness.as_str())),
    }
}
