//! The statements in `agent/sql`: each used once, each one statement, each with its first comment.
//!
//! Migrations (`store/`) are scripts and are numbered; for them only the comment is asked.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{Finding, Rule, source::Source};

const COMMENTED: Rule =
    Rule { name: "a statement opens with a comment", why: "a DBA reads what it says, with which parameters" };
const SINGLE: Rule =
    Rule { name: "one statement a file", why: "the extended protocol takes one, and a name means one thing" };
const SPLICED: Rule = Rule { name: "nothing is spliced into SQL", why: "no text of a peer becomes SQL" };
const USED: Rule = Rule {
    name: "each statement is used once",
    why: "a file nobody uses is not tested, one used twice has two owners",
};

pub(super) fn look(sources: &[Source], root: &Path, found: &mut Vec<Finding>) -> Result<()> {
    let folder = root.join("agent/sql");
    if !folder.is_dir() {
        return Ok(());
    }
    let agent: Vec<&Source> = sources.iter().filter(|source| source.path.starts_with("agent/src/")).collect();
    for file in super::files(&folder, "sql")? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(&folder).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let uses = agent.iter().map(|source| uses(&source.text, &name)).sum();
        look_at(&name, &text, uses, found);
    }
    Ok(())
}

/// How often `name` stands as a path, or the end of one, in a string.
fn uses(text: &str, name: &str) -> usize {
    text.matches(&format!("\"{name}\"")).count() + text.matches(&format!("/{name}\"")).count()
}

fn look_at(name: &str, text: &str, uses: usize, found: &mut Vec<Finding>) {
    let mut report = |rule, what: String, mend: &str| {
        found.push(Finding { rule, path: format!("agent/sql/{name}"), line: 0, what, mend: mend.to_owned() });
    };
    if !text.starts_with("--") {
        report(
            COMMENTED,
            "does not begin with --".into(),
            "say what it does, with which parameters, for which versions",
        );
    }
    if uses != 1 {
        report(
            USED,
            format!("used {uses} times in agent/src"),
            "remove the file, or let both callers use one function",
        );
    }
    if name.starts_with("store/") && name[6..].starts_with(|c: char| c.is_ascii_digit()) {
        return;
    }
    let code = bare(text);
    if code.trim_end().trim_end_matches(';').contains(';') {
        report(SINGLE, "holds more than one statement".into(), "split it");
    }
    if let Some(splice) = splice(&code) {
        report(
            SPLICED,
            format!("{splice} would be spliced in"),
            "make it a parameter ($1), or render the statement in postgres/ddl.rs",
        );
    }
}

/// `{name}` in the code, if there is one.
fn splice(code: &str) -> Option<String> {
    code.match_indices('{').find_map(|(at, _)| {
        let inside = code[at + 1..].split('}').next()?;
        let is_name = inside.chars().all(|c| c.is_alphanumeric() || c == '_');
        (is_name && code[at + 1..].contains('}')).then(|| format!("{{{inside}}}"))
    })
}

/// The statement without comments, strings and quoted names.
fn bare(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let taken = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '\'' || c == '"' {
            rest[1..].find(c).map_or(rest.len(), |end| end + 2)
        } else if let Some(tag) = dollar_tag(rest) {
            rest[tag.len()..].find(tag).map_or(rest.len(), |end| end + 2 * tag.len())
        } else {
            0
        };
        if taken > 0 {
            rest = &rest[taken..];
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    code
}

/// `$$` or `$name$`, if the text begins with one; `$1` is a parameter.
fn dollar_tag(rest: &str) -> Option<&str> {
    let inside = rest.strip_prefix('$')?;
    let end = inside.find('$')?;
    let tag = &inside[..end];
    let is_name =
        tag.chars().all(|c| c.is_alphanumeric() || c == '_') && !tag.starts_with(|c: char| c.is_ascii_digit());
    is_name.then(|| &rest[..end + 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(name: &str, text: &str, uses: usize) -> Vec<&'static str> {
        let mut found = Vec::new();
        look_at(name, text, uses, &mut found);
        found.iter().map(|finding| finding.rule.name).collect()
    }

    #[test]
    fn a_good_statement_breaks_no_rule() {
        let text = "-- Tables; $1 schemas.\nselect '{a}'::text[], \"x;y\" -- a; b\n where a = $1 and b = $2;\n";
        assert!(rules("catalog/list_tables.sql", text, 1).is_empty());
        assert!(rules("catalog/do.sql", "-- x\ndo $body$ begin perform 1; end $body$;\n", 1).is_empty());
    }

    #[test]
    fn each_rule_is_found_broken() {
        assert_eq!(rules("catalog/a.sql", "select 1", 1), [COMMENTED.name]);
        assert_eq!(rules("catalog/a.sql", "-- x\nselect 1", 0), [USED.name]);
        assert_eq!(rules("catalog/a.sql", "-- x\nselect 1", 2), [USED.name]);
        assert_eq!(rules("catalog/a.sql", "-- x\nselect 1; select 2;", 1), [SINGLE.name]);
        assert_eq!(rules("catalog/a.sql", "-- x\nselect * from {table}", 1), [SPLICED.name]);
        assert!(rules("store/0001_start.sql", "-- x\nselect 1; select 2;", 1).is_empty(), "a migration is a script");
    }

    #[test]
    fn a_use_is_a_string_that_ends_with_the_path() {
        assert_eq!(uses("sql!(\"catalog/a.sql\")", "catalog/a.sql"), 1);
        assert_eq!(uses("include_str!(\"../../sql/catalog/a.sql\")", "catalog/a.sql"), 1);
        assert_eq!(uses("sql!(\"catalog/data.sql\")", "a.sql"), 0);
    }
}
