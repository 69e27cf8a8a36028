//! Names as PostgreSQL means them: unquoted bytes that must be quoted for SQL and escaped for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A schema-qualified table, view or sequence. Holds the name itself, neither quoted nor folded.
///
/// `Display` writes it for people and logs: quoted as SQL would need it, control and bidirectional
/// characters escaped, so that a hostile name cannot redraw a terminal. [`TableName::sql`] writes it for SQL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
}

impl TableName {
    /// Names a table.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// The name ready to stand in a statement.
    pub fn sql(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", readable_identifier(&self.schema), readable_identifier(&self.name))
    }
}

/// Parses `schema.table` or `table` (then in `public`), with PostgreSQL's double quotes where needed.
///
/// Unquoted parts fold to lower case, as PostgreSQL does.
pub fn parse_table(text: &str) -> Result<TableName, BadTableName> {
    let bad = || BadTableName(text.to_owned());
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = parse_part(rest).ok_or_else(bad)?;
        parts.push(part);
        if after.is_empty() {
            break;
        }
        rest = after.strip_prefix('.').ok_or_else(bad)?;
    }
    let mut parts = parts.into_iter();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => Ok(TableName::new("public", name)),
        (Some(schema), Some(name), None) => Ok(TableName::new(schema, name)),
        _ => Err(bad()),
    }
}

fn parse_part(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut part = String::new();
        let mut chars = quoted.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            if c != '"' {
                part.push(c);
            } else if chars.peek().is_some_and(|(_, next)| *next == '"') {
                chars.next();
                part.push('"');
            } else {
                return (!part.is_empty()).then_some((part, &quoted[at + 1..]));
            }
        }
        return None;
    }
    let end = text.find('.').unwrap_or(text.len());
    let part = &text[..end];
    let plain = !part.is_empty() && !part.contains(['"', ' ', '\t', '\n', ',']);
    plain.then(|| (part.to_lowercase(), &text[end..]))
}

/// A text that names no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no table: schema.table is expected, with double quotes where SQL needs them")]
pub struct BadTableName(String);

/// Quotes an identifier for SQL, always.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes text as an SQL literal, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// An identifier for people: quoted only where SQL would need it, dangerous characters escaped.
pub fn readable_identifier(name: &str) -> String {
    let plain = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", escape_controls(&name.replace('"', "\"\""))) }
}

/// Makes text from a database safe to print: control, bidirectional and invisible characters become `\u{…}`.
pub fn escape_controls(text: &str) -> String {
    if !text.contains(redraws) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if redraws(c) { c.escape_unicode().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// Whether a terminal shows something else than this character where it is printed.
pub fn redraws(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_name_cannot_leave_its_quotes() {
        assert_eq!(TableName::new("a", r#""; drop table x; --"#).sql(), r#""a"."""; drop table x; --""#);
    }

    #[test]
    fn a_hostile_name_cannot_redraw_a_terminal() {
        let shown = TableName::new("public", "\u{1b}[31mred\u{202e}\n").to_string();
        assert_eq!(shown, r#"public."\u{1b}[31mred\u{202e}\u{a}""#);
    }

    #[test]
    fn table_names_parse_as_postgresql_would_read_them() {
        let cases = [
            ("orders", Some(("public", "orders"))),
            ("Shop.Orders", Some(("shop", "orders"))),
            (r#""Shop"."a.b""#, Some(("Shop", "a.b"))),
            (r#"shop."say ""hi""""#, Some(("shop", r#"say "hi""#))),
            ("", None),
            ("a.", None),
            ("a.b.c", None),
            (r#""open"#, None),
            (r#""""#, None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(schema, name)| TableName::new(schema, name));
            assert_eq!(parse_table(text).ok(), expected, "{text:?}");
        }
    }
}
