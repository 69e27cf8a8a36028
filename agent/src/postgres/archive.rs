//! The table of contents of a pg_dump archive, as `pg_restore --list` prints it. Pure.

use std::collections::HashMap;

use super::ddl::OWN_SCHEMA;

/// When an object is restored, as pg_dump sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Section {
    /// Before the rows: schemas, types, functions, tables.
    PreData,
    /// After the rows: indexes, constraints, triggers, rules.
    PostData,
}

impl Section {
    /// pg_dump's word for it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::PreData => "pre-data",
            Self::PostData => "post-data",
        }
    }
}

/// One object of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocEntry {
    /// Its number within the archive; what a list for pg_restore names it by.
    pub dump_id: i32,
    /// The oid of the source's catalog it stands in; 0: an entry without an object of its own.
    pub catalog_oid: u32,
    /// Its oid on the source; 0: none.
    pub object_oid: u32,
    /// pg_dump's word: TABLE, FK CONSTRAINT, INDEX, …
    pub kind: String,
    /// Schema, name and owner, for people: names with spaces make it ambiguous.
    pub label: String,
    /// When it is restored.
    pub section: Section,
    /// Numbers of the entries it needs.
    pub depends_on: Vec<i32>,
}

/// Kinds of more than one word; any other kind is the one word at the beginning.
const LONG_KINDS: &[&str] = &[
    "ACCESS METHOD",
    "BLOB METADATA",
    "CHECK CONSTRAINT",
    "DATABASE PROPERTIES",
    "DEFAULT ACL",
    "DUMMY TYPE",
    "EVENT TRIGGER",
    "FK CONSTRAINT",
    "FOREIGN DATA WRAPPER",
    "FOREIGN SERVER",
    "FOREIGN TABLE",
    "INDEX ATTACH",
    "LARGE OBJECT",
    "MATERIALIZED VIEW DATA",
    "MATERIALIZED VIEW",
    "OPERATOR CLASS",
    "OPERATOR FAMILY",
    "PROCEDURAL LANGUAGE",
    "PUBLICATION TABLES IN SCHEMA",
    "PUBLICATION TABLE",
    "ROW SECURITY",
    "SECURITY LABEL",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "SHELL TYPE",
    "STATISTICS DATA",
    "SUBSCRIPTION TABLE",
    "TABLE ATTACH",
    "TABLE DATA",
    "TEXT SEARCH CONFIGURATION",
    "TEXT SEARCH DICTIONARY",
    "TEXT SEARCH PARSER",
    "TEXT SEARCH TEMPLATE",
    "USER MAPPING",
];

/// The entries of a list of one section, without the extension our own schema may come from: it is each node's own.
pub(super) fn parse_list(text: &str, section: Section) -> Vec<TocEntry> {
    let entries = text.lines().filter_map(|line| parse_line(line, section));
    entries.filter(|entry| !is_own(entry)).collect()
}

fn is_own(entry: &TocEntry) -> bool {
    let own = match entry.kind.as_str() {
        "EXTENSION" => entry.label.strip_prefix("- "),
        "COMMENT" => entry.label.strip_prefix("- EXTENSION "),
        _ => None,
    };
    own.is_some_and(|name| name.trim_end() == OWN_SCHEMA)
}

fn parse_line(line: &str, section: Section) -> Option<TocEntry> {
    let (dump_id, rest) = line.split_once("; ")?;
    let mut words = rest.splitn(3, ' ');
    let dump_id = dump_id.parse().ok()?;
    let catalog_oid = words.next()?.parse().ok()?;
    let object_oid = words.next()?.parse().ok()?;
    let rest = words.next()?;
    let kind = kind_at_start(rest)?;
    let label = rest[kind.len()..].trim().to_owned();
    Some(TocEntry { dump_id, catalog_oid, object_oid, kind: kind.to_owned(), label, section, depends_on: Vec::new() })
}

fn kind_at_start(text: &str) -> Option<&str> {
    let is_whole =
        |kind: &&&str| text.strip_prefix(**kind).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    match LONG_KINDS.iter().find(is_whole) {
        Some(kind) => Some(kind),
        None => text.split(' ').next().filter(|word| !word.is_empty()),
    }
}

/// What each entry depends on, from a verbose list: a comment after the entry's own line says so.
pub(super) fn parse_dependencies(verbose: &str) -> HashMap<i32, Vec<i32>> {
    let mut dependencies = HashMap::new();
    let mut last = None;
    for line in verbose.lines() {
        if let Some(ids) = line.strip_prefix(";\tdepends on:") {
            let ids: Vec<i32> = ids.split_whitespace().filter_map(|id| id.parse().ok()).collect();
            dependencies.extend(last.map(|entry: i32| (entry, ids)));
        } else if let Some((id, _)) = line.split_once("; ") {
            last = id.parse().ok();
        }
    }
    dependencies
}

/// What a list for `pg_restore --use-list` must hold to name exactly these entries, in the archive's order.
pub(super) fn write_list<'a>(entries: impl IntoIterator<Item = &'a TocEntry>) -> String {
    entries.into_iter().map(|entry| format!("{};\n", entry.dump_id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
;
; Archive created at 2026-11-22 03:00:00 UTC
;     Dumped from database version: 18.4
;
; Selected TOC Entries:
;
2; 3079 16380 EXTENSION - steep_repl \n\
3600; 0 0 COMMENT - EXTENSION steep_repl \n\
3; 3079 16384 EXTENSION - hstore \n\
219; 1259 16388 TABLE public orders postgres
3465; 0 0 SEQUENCE OWNED BY public orders_id_seq postgres
3300; 2606 16392 FK CONSTRAINT we ird t t_fk some one
3301; 1259 16399 MATERIALIZED VIEW public mv postgres
3302; 0 0 COMMENT public TABLE orders postgres
";

    #[test]
    fn a_list_of_contents_reads_line_by_line() {
        let entries = parse_list(LIST, Section::PreData);
        let read: Vec<_> = entries
            .iter()
            .map(|e| (e.dump_id, e.catalog_oid, e.object_oid, e.kind.as_str(), e.label.as_str()))
            .collect();
        assert_eq!(
            read,
            [
                (3, 3079, 16384, "EXTENSION", "- hstore"),
                (219, 1259, 16388, "TABLE", "public orders postgres"),
                (3465, 0, 0, "SEQUENCE OWNED BY", "public orders_id_seq postgres"),
                (3300, 2606, 16392, "FK CONSTRAINT", "we ird t t_fk some one"),
                (3301, 1259, 16399, "MATERIALIZED VIEW", "public mv postgres"),
                (3302, 0, 0, "COMMENT", "public TABLE orders postgres"),
            ]
        );
        assert_eq!(write_list(&entries[..2]), "3;\n219;\n");
    }

    #[test]
    fn a_verbose_list_tells_what_depends_on_what() {
        let verbose = "; comment\n7; 1259 1 TABLE public t o\n;\tdepends on: 3 4\n8; 1259 2 INDEX public i o\n9; 0 0 ACL - x o\n;\tdepends on: 8\n";
        let dependencies = parse_dependencies(verbose);
        assert_eq!(dependencies, HashMap::from([(7, vec![3, 4]), (9, vec![8])]));
    }
}
