//! The two nodes of a comparison: when each was looked at, and how far that can be relied upon.

use jiff::Timestamp;
use steep_protocol::v1;

use crate::{
    output::{glyphs::Glyphs, safe, style::Tone},
    units,
};

/// What keeps a comparison from being about the two nodes as they are now, a line each.
pub(super) fn doubts(reply: &v1::CompareSchemasReply, now: Timestamp, glyphs: &Glyphs) -> Vec<String> {
    let sides = [reply.left.as_ref(), reply.right.as_ref()].into_iter().flatten();
    sides
        .flat_map(|side| {
            let cached = side.is_cached.then(|| cached(side, now, glyphs));
            cached.into_iter().chain((!side.is_complete).then(|| incomplete(&side.node_id, glyphs)))
        })
        .collect()
}

/// Neither side is as it was last heard of, or seen in part only.
pub(super) fn are_certain(reply: &v1::CompareSchemasReply) -> bool {
    let sides = [reply.left.as_ref(), reply.right.as_ref()];
    sides.into_iter().all(|side| side.is_some_and(|side| side.is_complete && !side.is_cached))
}

fn cached(side: &v1::SideView, now: Timestamp, glyphs: &Glyphs) -> String {
    let age = match units::moment(side.captured_at.as_ref()) {
        Some(at) => format!("as it was {}", units::ago(at, now)),
        None => "as it was at some time before".into(),
    };
    let reason = if side.reason.is_empty() { "its agent could not be asked" } else { &side.reason };
    let node = safe(&side.node_id);
    let text = format!("{} {node} IS NOT SEEN NOW, but {age}: {}", glyphs.warn, safe(reason));
    Tone::Bad.paint(&text)
}

/// Says that a node's agent may not see all of its schema.
pub(super) fn incomplete(node: &str, glyphs: &Glyphs) -> String {
    let node = safe(node);
    let why = "its agent may not read all of it, or somebody holds a table locked; that part is as it last was";
    let text = format!("{} {node} IS INCOMPLETE: {why}", glyphs.warn);
    Tone::Bad.paint(&text)
}

/// `captured 10:31:02Z / 10:31:03Z`; with the day where that is not today.
pub(super) fn captured(reply: &v1::CompareSchemasReply, now: Timestamp) -> String {
    let time = |side: &Option<v1::SideView>| {
        let at = side.as_ref().and_then(|side| units::moment(side.captured_at.as_ref()));
        at.map_or_else(|| "never".into(), |at| time_of_day(at, now))
    };
    format!("captured {} / {}", time(&reply.left), time(&reply.right))
}

fn time_of_day(at: Timestamp, now: Timestamp) -> String {
    let (day, time) = (units::date_time(at), units::date_time(now));
    match day.split_once(' ') {
        Some((date, clock)) if time.starts_with(date) => clock.to_owned(),
        _ => day,
    }
}

/// What differs beside the tables: types, sequences and the databases themselves. `left` and `right` are the nodes.
pub(super) fn beside_tables(reply: &v1::CompareSchemasReply, left: &str, right: &str) -> Vec<String> {
    let sides = |one: &Option<String>, other: &Option<String>| match (one, other) {
        (Some(one), Some(other)) => format!("{} on {left}, {} on {right}", safe(one), safe(other)),
        (Some(one), None) => format!("{}, only on {left}", safe(one)),
        (None, Some(other)) => format!("{}, only on {right}", safe(other)),
        (None, None) => "differs".into(),
    };
    let objects = reply.objects.iter().filter(|object| object.verdict != "MATCH").map(|object| {
        let what = format!("{} {}", safe(&object.kind), super::name(object.object.as_ref()));
        format!("{}  {what}: {}", Tone::Warn.paint(&safe(&object.verdict)), sides(&object.left, &object.right))
    });
    let environment = reply.environment.iter().map(|one| {
        let tone = if one.is_harmless { Tone::Faint } else { Tone::Warn };
        let mark = if one.is_harmless { "may differ" } else { "DATABASE" };
        format!("{}  {}: {}", tone.paint(mark), safe(&one.name), sides(&one.left, &one.right))
    });
    objects.chain(environment).collect()
}

/// Anything of the two nodes differs that should not. Columns may stand in another order: rows are replicated by name.
pub(super) fn differ(reply: &v1::CompareSchemasReply) -> bool {
    reply.tables.iter().any(|table| table.verdict != "MATCH" && table.qualifier != "ORDER_ONLY")
        || reply.objects.iter().any(|object| object.verdict != "MATCH")
        || reply.environment.iter().any(|one| !one.is_harmless)
}
