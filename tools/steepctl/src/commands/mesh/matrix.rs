//! `steepctl mesh matrix`

use std::collections::BTreeSet;

use steep_protocol::{failure::Failure, v1};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        json, safe,
        style::Tone,
        table::{Cell, Side, Table},
    },
    units,
};

/// Prints a row for each agent and a column for each it may reach.
pub async fn run(global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.matrix().await?;
    if out.is_json() {
        out.json(&json::message("MatrixReply", &reply))?;
        return Ok(Exit::Success);
    }
    let columns: BTreeSet<&str> = reply
        .rows
        .iter()
        .flat_map(|row| std::iter::once(&row.node_id).chain(row.links.iter().map(|link| &link.node_id)))
        .map(String::as_str)
        .collect();
    let titles = columns.iter().map(|title| ((*title).to_owned(), Side::Right));
    let mut table = Table::named(std::iter::once(("FROM\\TO".to_owned(), Side::Left)).chain(titles).collect());
    for row in &reply.rows {
        let cells = columns.iter().map(|to| {
            if *to == row.node_id {
                return Cell::new("");
            }
            row.links.iter().find(|link| link.node_id == *to).map_or(Cell::new("?").tone(Tone::Warn), cell)
        });
        table.row(std::iter::once(Cell::new(&row.node_id)).chain(cells).collect::<Vec<_>>());
    }
    out.data(&table.render())?;
    for line in remarks(&reply) {
        out.data(&line)?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

/// `0.6ms`, `2.1ms*` over TCP, `x` where there is no way, `left` where nobody is.
fn cell(link: &v1::PeerLink) -> Cell {
    match link.rtt_us {
        _ if link.liveness == "left" => Cell::new("left").tone(Tone::Faint),
        Some(rtt) if link.is_reachable && link.transport == "tcp" => {
            Cell::new(format!("{}*", units::round_trip(rtt))).tone(Tone::Warn)
        }
        Some(rtt) if link.is_reachable => Cell::new(units::round_trip(rtt)).tone(Tone::Good),
        _ => Cell::new("x").tone(Tone::Bad),
    }
}

fn remarks(reply: &v1::MatrixReply) -> Vec<String> {
    let links = || reply.rows.iter().flat_map(|row| row.links.iter().map(move |link| (row, link)));
    let mut lines: Vec<String> = links()
        .filter(|(_, link)| !link.is_reachable && link.liveness != "left")
        .map(|(row, link)| {
            let heard =
                link.heard_ms.map_or("never heard of".into(), |ms| format!("last heard {} ago", units::age(ms, false)));
            format!("{} -> {}: no way, {heard} ({})", safe(&row.node_id), safe(&link.node_id), safe(&link.liveness))
        })
        .collect();
    if links().any(|(_, link)| link.transport == "tcp") {
        lines.push("* over TCP: UDP does not get through".into());
    }
    if !reply.missing_nodes.is_empty() {
        lines.push(format!("did not answer: {}", safe(&reply.missing_nodes.join(", "))));
    }
    lines
}
