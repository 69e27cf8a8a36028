//! The shape of files: how they open, what they are called, how long they and their functions are.

use super::{
    Finding, Rule,
    source::{Source, block_end},
};

const OPENS: Rule = Rule { name: "a file opens by saying what it is for", why: "a newcomer reads that line first" };
const NAMED: Rule = Rule { name: "no drawer", why: "a file named utils or common takes in whatever has no home" };
const FILE_LENGTH: Rule = Rule { name: "files of at most 500 lines", why: "rooms nobody dares to split spoil a house" };
const FUNCTION_LENGTH: Rule = Rule { name: "functions of at most 80 lines", why: "a function is read in one look" };
const MAPPED: Rule = Rule { name: "lib.rs is the map", why: "its opening lists every room, in reading order" };

const DRAWERS: [&str; 10] =
    ["util", "utils", "common", "helper", "helpers", "manager", "misc", "stuff", "shared", "errors"];
const LONGEST_FILE: usize = 500;
const LONGEST_FUNCTION: usize = 80;

/// Looks at one file.
pub(super) fn look(source: &Source, found: &mut Vec<Finding>) {
    let mut report = |rule, line, what: String, mend: &str| {
        found.push(Finding { rule, path: source.path.clone(), line, what, mend: mend.to_owned() });
    };
    if !source.text.starts_with("//!") {
        report(OPENS, 1, "does not begin with //!".into(), "say in one sentence what the file is for");
    }
    let parts = source.path.trim_end_matches(".rs").split('/');
    for part in parts.filter(|part| DRAWERS.contains(part)) {
        report(NAMED, 0, format!("a part of its path is {part}"), "name it after what it does, or move its parts home");
    }
    let lines = source.code.lines().count();
    // Test modules are blank in the code; blank lines of the code itself count as they do for a reader.
    let tests = source.text.lines().zip(source.code.lines());
    let in_tests = tests.filter(|(text, code)| is_blanked_code(text, code)).count();
    if !source.is_test() && lines - in_tests > LONGEST_FILE {
        report(
            FILE_LENGTH,
            0,
            format!("{} lines, tests left out", lines - in_tests),
            "split it, or list it with its reason",
        );
    }
    for (name, line, length) in functions(source) {
        if length > LONGEST_FUNCTION && !source.is_test() {
            report(
                FUNCTION_LENGTH,
                line,
                format!("fn {name} has {length} lines"),
                "split it, or list it with its reason",
            );
        }
    }
}

/// A line of code that was taken out because it belongs to a test.
fn is_blanked_code(text: &str, code: &str) -> bool {
    let text = text.trim();
    code.trim().is_empty() && !text.is_empty() && !text.starts_with("//")
}

/// Name, first line and number of lines of every function with a body.
fn functions(source: &Source) -> Vec<(String, usize, usize)> {
    let places = source.places_of("fn");
    places
        .into_iter()
        .filter_map(|at| {
            let after = &source.code[at + 2..];
            let name: String = after.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let end_of_head = at + 2 + after.find(['{', ';'])?;
            if name.is_empty() || source.code[end_of_head..].starts_with(';') {
                return None;
            }
            let body = &source.code[end_of_head..block_end(&source.code, end_of_head)];
            let length = body.lines().count();
            Some((name, source.line_of(at), length))
        })
        .collect()
}

/// Every module a `lib.rs` declares is named in its opening.
pub(super) fn look_at_maps(sources: &[Source], found: &mut Vec<Finding>) {
    for source in sources.iter().filter(|source| source.path.ends_with("src/lib.rs")) {
        let opening: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        for (index, line) in source.code.lines().enumerate() {
            let declared = line.trim_start_matches("pub ").strip_prefix("mod ");
            let Some(name) = declared.and_then(|rest| rest.trim().strip_suffix(';')) else { continue };
            if !opening.contains(&format!("`{name}`")) {
                found.push(Finding {
                    rule: MAPPED,
                    path: source.path.clone(),
                    line: index + 1,
                    what: format!("mod {name} is not in the opening"),
                    mend: format!("name [`{name}`] in the //! lines, where a newcomer wants it"),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        let mut found = Vec::new();
        look(&Source::new(path, text.to_owned()), &mut found);
        found.iter().map(|finding| finding.rule.name).collect()
    }

    #[test]
    fn a_good_file_breaks_no_rule() {
        assert!(rules("agent/src/session.rs", "//! Sessions.\n\nfn open() {\n}\n").is_empty());
    }

    #[test]
    fn each_rule_is_found_broken() {
        assert_eq!(rules("agent/src/session.rs", "fn open() {}\n"), [OPENS.name]);
        assert_eq!(rules("agent/src/utils.rs", "//! x\n"), [NAMED.name]);
        assert_eq!(rules("agent/src/common/lsn.rs", "//! x\n"), [NAMED.name]);
        let long = format!("//! x\n{}", "use a;\n".repeat(500));
        assert_eq!(rules("agent/src/a.rs", &long), [FILE_LENGTH.name]);
        let function = format!("//! x\nfn f() {{\n{}}}\n", "a();\n".repeat(80));
        assert_eq!(rules("agent/src/a.rs", &function), [FUNCTION_LENGTH.name]);
    }

    #[test]
    fn tests_do_not_count_for_length() {
        let tests = format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(600));
        assert!(rules("agent/src/a.rs", &tests).is_empty());
    }

    #[test]
    fn a_room_missing_on_the_map_is_found() {
        let mut found = Vec::new();
        let map = Source::new("agent/src/lib.rs", "//! The map: [`a`].\npub mod a;\npub mod b;\n".into());
        look_at_maps(&[map], &mut found);
        assert_eq!(
            found.iter().map(|finding| finding.what.as_str()).collect::<Vec<_>>(),
            ["mod b is not in the opening"]
        );
    }
}
