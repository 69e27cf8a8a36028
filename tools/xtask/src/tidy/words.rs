//! Names that may stand in a few rooms only.

use super::{Finding, Rule, source::Source};

const PLACE: Rule = Rule {
    name: "a name only where it may stand",
    why: "what few rooms know can be changed, and cannot be used wrongly elsewhere",
};

/// A name, the paths it may stand in, and where it is to be looked for at all (empty: everywhere).
struct Name {
    word: &'static str,
    allowed: &'static [&'static str],
    looked_for_in: &'static [&'static str],
    mend: &'static str,
}

const NAMES: &[Name] = &[
    Name {
        word: "tokio_postgres",
        allowed: &["agent/src/postgres", "agent/src/store"],
        looked_for_in: &[],
        mend: "ask postgres/ or store/ for a function that does it",
    },
    Name {
        word: "quinn",
        allowed: &["protocol/src/wire"],
        looked_for_in: &[],
        mend: "use the types of steep_protocol::wire",
    },
    Name {
        word: "rustls",
        allowed: &["protocol/src/wire"],
        looked_for_in: &[],
        mend: "use the types of steep_protocol::wire",
    },
    Name {
        word: "tokio_rustls",
        allowed: &["protocol/src/wire"],
        looked_for_in: &[],
        mend: "use the types of steep_protocol::wire",
    },
    Name {
        word: "tonic::transport",
        allowed: &["protocol/src/wire"],
        looked_for_in: &[],
        mend: "use steep_protocol::wire::rpc",
    },
    Name { word: "ratatui", allowed: &["tools/steepctl/src/tui"], looked_for_in: &[], mend: "draw it in tui/" },
    Name {
        word: "println!",
        allowed: &["tools/steepctl/src/output", "tools/xtask"],
        looked_for_in: &[],
        mend: "stdout is data: hand it to output/, or log it",
    },
    Name {
        word: "print!",
        allowed: &["tools/steepctl/src/output", "tools/xtask"],
        looked_for_in: &[],
        mend: "stdout is data: hand it to output/, or log it",
    },
    Name {
        word: "eprintln!",
        allowed: &["tools/steepctl/src/output", "tools/xtask"],
        looked_for_in: &[],
        mend: "hand it to output/, or log it",
    },
    Name {
        word: "eprint!",
        allowed: &["tools/steepctl/src/output", "tools/xtask"],
        looked_for_in: &[],
        mend: "hand it to output/, or log it",
    },
    Name {
        word: "Instant",
        allowed: &[],
        looked_for_in: &["agent/src", "protocol/src"],
        mend: "use tokio::time::Instant, which tests can pause",
    },
];

/// Looks at one file; tests and build scripts may name what they like.
pub(super) fn look(source: &Source, found: &mut Vec<Finding>) {
    if source.is_test() || source.path.ends_with("build.rs") {
        return;
    }
    let is_in = |folders: &[&str]| folders.iter().any(|folder| source.path.starts_with(folder));
    for name in NAMES {
        if is_in(name.allowed) || !(name.looked_for_in.is_empty() || is_in(name.looked_for_in)) {
            continue;
        }
        for at in source.places_of(name.word) {
            if name.word == "Instant" && !is_of_std(source, at) {
                continue;
            }
            let place = if name.allowed.is_empty() { "nowhere".to_owned() } else { name.allowed.join(", ") };
            found.push(Finding {
                rule: PLACE,
                path: source.path.clone(),
                line: source.line_of(at),
                what: format!("{} stands here; it may in: {place}", name.word),
                mend: name.mend.to_owned(),
            });
        }
    }
}

/// The `Instant` at `at` is named through `std::time`, alone or in a group.
fn is_of_std(source: &Source, at: usize) -> bool {
    let statement = source.code[..at].rfind([';', '}']).map_or(0, |end| end + 1);
    let before: String = source.code[statement..at].split_whitespace().collect();
    let alone = before.ends_with("std::time::");
    let grouped = before.rfind("time::{").is_some_and(|open| {
        let group = &before[open..];
        before[..open].ends_with("std::{") || before[..open].contains("std::") && !group.contains("tokio")
    });
    alone || grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        let mut found = Vec::new();
        look(&Source::new(path, text.to_owned()), &mut found);
        found.len()
    }

    #[test]
    fn names_are_found_where_they_may_not_stand() {
        assert_eq!(found("agent/src/api/nodes.rs", "use tokio_postgres::Client;"), 1);
        assert_eq!(found("agent/src/postgres/copy.rs", "use tokio_postgres::Client;"), 0);
        assert_eq!(found("agent/src/mesh/link.rs", "let c: quinn::Connection = x; rustls::go();"), 2);
        assert_eq!(found("tools/steepctl/src/client.rs", "println!(\"x\")"), 1);
        assert_eq!(found("tools/steepctl/src/output/table.rs", "println!(\"x\")"), 0);
        assert_eq!(found("tests/specs/init.rs", "println!(\"x\"); use tokio_postgres;"), 0);
    }

    #[test]
    fn only_the_clock_that_cannot_be_paused_is_refused() {
        for (text, count) in [
            ("use std::time::Instant;", 1),
            ("use std::{fmt, time::{Duration, Instant}};", 1),
            ("use std::time::{Duration, Instant};", 1),
            ("let t = std::time::Instant::now();", 1),
            ("use tokio::time::Instant;", 0),
            ("use std::time::Duration; use tokio::time::{Instant, sleep};", 0),
            ("fn since(at: Instant) {}", 0),
        ] {
            assert_eq!(found("agent/src/vitals.rs", text), count, "{text}");
        }
        assert_eq!(found("tools/xtask/src/process.rs", "use std::time::Instant;"), 0);
    }
}
