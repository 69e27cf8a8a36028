//! Who may import whom in the agent. One table; `ARCHITECTURE.md` prints the same.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use super::{Finding, Rule, source::Source};

const FLOORS: Rule = Rule { name: "every arrow points down", why: "a circle of rooms is one room nobody can change" };
const KNOWN: Rule = Rule { name: "every room has its floor", why: "a room not in the table is held by nothing" };
const PRINTED: Rule =
    Rule { name: "ARCHITECTURE.md shows the floors as they are", why: "a map that lies is worse than none" };

/// A room of `agent/src`, and the rooms it may import. `*`: all of them.
const TABLE: &[(&str, &[&str])] = &[
    ("main", &["agent", "keeper"]),
    ("agent", &["*"]),
    // Reads rows to show them and appends to the audit log; changes nothing else in the store.
    (
        "api",
        &[
            "upkeep",
            "health",
            "slots",
            "sequences",
            "removal",
            "initialize",
            "rooms",
            "operations",
            "session",
            "snapshot",
            "drift",
            "schema",
            "mesh",
            "lifecycle",
            "postgres",
            "store",
        ],
    ),
    ("mirror", &["mesh", "store"]),
    ("removal", &["initialize", "rooms", "operations", "session", "mesh", "lifecycle", "postgres", "store"]),
    ("upkeep", &["rooms", "identity", "postgres", "store"]),
    ("vitals", &["rooms", "drift", "identity", "postgres", "lifecycle", "store", "troubles"]),
    ("health", &["rooms", "session", "lifecycle", "postgres", "store", "troubles"]),
    (
        "initialize",
        &[
            "rooms",
            "operations",
            "snapshot",
            "session",
            "cleanup",
            "drift",
            "schema",
            "parts",
            "storage",
            "breakpoint",
            "mesh",
            "postgres",
            "store",
            "lifecycle",
        ],
    ),
    ("slots", &["rooms", "postgres", "store"]),
    ("sequences", &["rooms", "postgres", "store"]),
    ("rooms", &["operations", "session", "cleanup", "link", "drift", "mesh", "postgres", "store", "troubles"]),
    ("snapshot", &["operations", "session", "cleanup", "parts", "storage", "breakpoint", "mesh", "postgres", "store"]),
    ("drift", &["mesh", "schema", "postgres", "store"]),
    ("operations", &["breakpoint", "store"]),
    ("session", &["breakpoint", "cleanup", "keeper", "parts", "postgres"]),
    ("cleanup", &["breakpoint", "keeper", "link", "storage", "mesh", "postgres", "store"]),
    ("keeper", &["postgres"]),
    ("link", &["mesh", "postgres", "store"]),
    ("store", &["postgres", "lifecycle"]),
    ("identity", &["mesh"]),
    ("postgres", &[]),
    ("schema", &[]),
    ("mesh", &[]),
    ("parts", &[]),
    ("storage", &[]),
    ("breakpoint", &[]),
    ("lifecycle", &[]),
    ("troubles", &[]),
];

/// What every room may import: it is told its settings, and it logs. They import nothing but each other, downwards.
const GROUND: &[(&str, &[&str])] = &[("telemetry", &["config"]), ("metrics", &[]), ("config", &[])];

/// The table as ARCHITECTURE.md shows it.
pub fn printed() -> String {
    let width = TABLE.iter().map(|(room, _)| room.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (room, below) in floors() {
        let below = match below {
            ["*"] => "every room below (the only place that wires)".to_owned(),
            [] => "protocol only".to_owned(),
            rooms => rooms.join(", "),
        };
        writeln!(text, "{room:<width$} > {below}").expect("a string takes everything");
    }
    let ground: Vec<&str> = GROUND.iter().map(|(room, _)| *room).collect();
    writeln!(text, "every room may import {}", ground.join(" and ")).expect("a string takes everything");
    text
}

pub(super) fn look(sources: &[Source], root: &Path, found: &mut Vec<Finding>) {
    for source in sources.iter().filter(|source| source.path.starts_with("agent/src/")) {
        look_at(source, found);
    }
    let Ok(architecture) = fs::read_to_string(root.join("ARCHITECTURE.md")) else { return };
    if !architecture.contains(&printed()) {
        found.push(Finding {
            rule: PRINTED,
            path: "ARCHITECTURE.md".into(),
            line: 0,
            what: "does not show the table of floors".into(),
            mend: "paste what `cargo x tidy --floors` prints".into(),
        });
    }
}

fn look_at(source: &Source, found: &mut Vec<Finding>) {
    let room = room_of(&source.path);
    if room == "lib" {
        return;
    }
    let Some((_, below)) = floors().find(|(name, _)| *name == room) else {
        found.push(Finding {
            rule: KNOWN,
            path: source.path.clone(),
            line: 0,
            what: format!("room {room} has no floor"),
            mend: "give it one in tools/xtask/src/tidy/floors.rs, with what it may import".into(),
        });
        return;
    };
    for (at, other) in imports(source) {
        let is_room = floors().any(|(name, _)| *name == other);
        let is_ground = GROUND.iter().any(|(name, _)| *name == other) && !GROUND.iter().any(|(name, _)| *name == room);
        if is_room && !is_ground && other != room && !below.contains(&other.as_str()) && *below != ["*"] {
            let may = if below.is_empty() { "nothing but the ground".to_owned() } else { below.join(", ") };
            found.push(Finding {
                rule: FLOORS,
                path: source.path.clone(),
                line: source.line_of(at),
                what: format!("{room} imports {other}"),
                mend: format!("{room} may import {may}; hand it in from above, or decide about the arrow in floors.rs"),
            });
        }
    }
}

/// Every room with what it may import.
fn floors() -> impl Iterator<Item = &'static (&'static str, &'static [&'static str])> {
    TABLE.iter().chain(GROUND)
}

/// The room a file of the agent belongs to: its folder, or its own name.
fn room_of(path: &str) -> String {
    let inside = path.trim_start_matches("agent/src/");
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs").to_owned()
}

/// How many modules lie between a file and the crate's root, its own counted.
fn depth(path: &str) -> usize {
    let inside = path.trim_start_matches("agent/src/").trim_end_matches(".rs");
    inside.split('/').filter(|part| !["mod", "lib", "main"].contains(part)).count()
}

/// Every first module named from the crate's root, and where: through `crate::`, `steep_agent::` or enough `super::`.
fn imports(source: &Source) -> BTreeSet<(usize, String)> {
    let upwards = "super::".repeat(depth(&source.path).max(1));
    let mut found = BTreeSet::new();
    for prefix in ["crate::", "steep_agent::", upwards.as_str()] {
        for at in source.places_of(prefix) {
            if prefix == upwards && source.code[..at].ends_with("super::") {
                continue;
            }
            let after = &source.code[at + prefix.len()..];
            found.extend(first_names(after).into_iter().map(|name| (at, name)));
        }
    }
    found
}

/// `a::b` names a; `{a::b, c}` names a and c; a macro (`sql!`) names none.
fn first_names(after: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim_start();
        let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        (!name.is_empty() && !text[name.len()..].starts_with('!')).then_some(name)
    };
    let Some(group) = after.strip_prefix('{') else { return name(after).into_iter().collect() };
    let (mut depth, mut start, mut names) = (0usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                names.extend(name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(path: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        look_at(&Source::new(path, text.to_owned()), &mut found);
        found.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn an_arrow_upwards_is_found_however_it_is_written() {
        for text in [
            "use crate::api::nodes;",
            "use crate::{postgres::connect, api::{nodes, reply}};",
            "fn f() { crate::api::go() }",
            "use super::super::api::nodes;",
        ] {
            assert_eq!(arrows("agent/src/store/nodes.rs", text), ["store imports api"], "{text}");
        }
    }

    #[test]
    fn arrows_down_and_within_a_room_are_free() {
        for text in [
            "use crate::postgres::connect;",
            "use crate::store::{ledger, audit};",
            "use super::ledger;",
            "crate::sql!(\"store/a.sql\")",
            "use steep_protocol::ids::NodeId; use crate::{Version, postgres};",
            "// use crate::api::x;",
        ] {
            assert!(arrows("agent/src/store/nodes.rs", text).is_empty(), "{text}");
        }
        assert!(arrows("agent/src/store/nodes.rs", "use crate::{telemetry, config::Config};").is_empty());
        assert_eq!(arrows("agent/src/config.rs", "use crate::telemetry;"), ["config imports telemetry"]);
        assert!(arrows("agent/src/agent.rs", "use crate::{api, store, mesh};").is_empty());
        assert_eq!(arrows("agent/src/main.rs", "use steep_agent::{agent, store};"), ["main imports store"]);
    }

    #[test]
    fn a_room_without_a_floor_is_found() {
        assert_eq!(arrows("agent/src/cellar.rs", ""), ["room cellar has no floor"]);
    }

    #[test]
    fn the_table_has_no_circle() {
        fn reaches(from: &str, to: &str, seen: &mut Vec<String>) -> bool {
            let below = floors().find(|(name, _)| *name == from).map_or(&[][..], |(_, below)| below);
            below.iter().any(|next| {
                *next == to
                    || !seen.contains(&(*next).to_owned()) && {
                        seen.push((*next).to_owned());
                        reaches(next, to, seen)
                    }
            })
        }
        for (room, _) in floors() {
            assert!(!reaches(room, room, &mut Vec::new()), "{room} reaches itself");
        }
    }
}
