//! A Rust source as the rules see it: its code without comments, strings and tests.

use std::{fs, ops::Range, path::Path};

use anyhow::{Context, Result};

/// One file. `code` has the same length and lines as `text`, with blanks where comments and literals stand.
pub(super) struct Source {
    /// From the project's root, with `/`.
    pub(super) path: String,
    pub(super) text: String,
    pub(super) code: String,
}

impl Source {
    pub(super) fn read(root: &Path, path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let path = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/");
        Ok(Self::new(&path, text))
    }

    pub(super) fn new(path: &str, text: String) -> Self {
        let mut code = blanked(&text);
        for range in test_modules(&code) {
            code.replace_range(range.clone(), &blank(&code[range]));
        }
        Self { path: path.to_owned(), text, code }
    }

    /// The line a byte of the text stands in, from 1.
    pub(super) fn line_of(&self, byte: usize) -> usize {
        self.text[..byte].matches('\n').count() + 1
    }

    /// The file is a test, a spec or their harness as a whole.
    pub(super) fn is_test(&self) -> bool {
        let in_folder = |folder: &str| self.path.starts_with(folder) || self.path.contains(&format!("/{folder}"));
        in_folder("tests/") || in_folder("benches/") || self.path.ends_with("/tests.rs")
    }

    /// Where the word `word` stands in the code, not as a part of a longer word.
    pub(super) fn places_of(&self, word: &str) -> Vec<usize> {
        let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
        self.code
            .match_indices(word)
            .filter(|(at, _)| {
                let before = self.code[..*at].chars().next_back();
                let after = self.code[at + word.len()..].chars().next();
                let open_ended = word.ends_with(|c: char| !part_of_word(c));
                !before.is_some_and(part_of_word) && (open_ended || !after.is_some_and(part_of_word))
            })
            .map(|(at, _)| at)
            .collect()
    }
}

/// The text with the same lines and nothing in them.
fn blank(text: &str) -> String {
    text.chars().flat_map(|c| std::iter::repeat_n(if c == '\n' { '\n' } else { ' ' }, c.len_utf8())).collect()
}

/// Comments and literals replaced by blanks.
fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        let taken = literal(rest, before);
        if taken > 0 {
            code.push_str(&blank(&rest[..taken]));
            before = ' ';
            rest = &rest[taken..];
        } else {
            code.push(c);
            before = c;
            rest = &rest[c.len_utf8()..];
        }
    }
    code
}

/// The length of the comment or literal that `rest` begins with; 0: it begins with code.
fn literal(rest: &str, before: char) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return comment(rest);
    }
    if let Some(inner) = rest.strip_prefix('"') {
        return 1 + quoted(inner, '"');
    }
    if rest.starts_with('\'') {
        return character(rest);
    }
    if before.is_alphanumeric() || before == '_' {
        return 0;
    }
    for prefix in ["b\"", "c\""] {
        if let Some(inner) = rest.strip_prefix(prefix) {
            return prefix.len() + quoted(inner, '"');
        }
    }
    for prefix in ["r", "br", "cr"] {
        if let Some(inner) = rest.strip_prefix(prefix) {
            let hashes = inner.len() - inner.trim_start_matches('#').len();
            if inner[hashes..].starts_with('"') {
                let end = format!("\"{}", "#".repeat(hashes));
                let from = prefix.len() + hashes + 1;
                return rest[from..].find(&end).map_or(rest.len(), |at| from + at + end.len());
            }
        }
    }
    0
}

/// The length of a block comment, those inside of it included.
fn comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length up to and with the closing quote.
fn quoted(inner: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    inner.len()
}

/// The length of a character literal; 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut inner = rest[1..].chars();
    match (inner.next(), inner.next()) {
        (Some('\\'), _) => 1 + quoted(&rest[1..], '\''),
        (Some(c), Some('\'')) => 1 + c.len_utf8() + 1,
        _ => 0,
    }
}

/// The bodies of `#[cfg(test)] mod … { }`.
fn test_modules(code: &str) -> Vec<Range<usize>> {
    let starts = code.match_indices("#[cfg(test)]").map(|(at, _)| at);
    starts
        .filter_map(|start| {
            let after = code[start..].find(['{', ';']).map(|at| start + at)?;
            let header = &code[start..after];
            let is_body = code[after..].starts_with('{') && header.contains("mod ");
            is_body.then(|| start..block_end(code, after))
        })
        .collect()
}

/// The byte after the brace that closes the one at `open`.
pub(super) fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, c) in code[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return open + at + 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_remains_without_comments_strings_and_tests() {
        let text = r##"
//! quinn in words
use a::b; // quinn
fn f<'a>(x: &'a str) -> char { let _ = "quinn \" quinn"; let _ = r#"quinn " quinn"#; /* quinn /* quinn */ */ '"' }
fn g() { b"quinn"; '\''; quinn::go() }
#[cfg(test)]
mod tests { fn h() { quinn } }
fn last() {}
"##;
        let source = Source::new("x.rs", text.to_owned());
        assert_eq!(source.code.len(), source.text.len());
        assert_eq!(source.places_of("quinn").len(), 1, "{}", source.code);
        assert_eq!(source.line_of(source.places_of("quinn")[0]), 5);
        assert!(source.code.contains("fn last()"));
    }

    #[test]
    fn a_word_is_not_found_inside_another() {
        let source = Source::new(
            "x.rs",
            "use tokio_rustls::x; use rustls::y; let my_rustls = 1; eprintln!(); println!();".into(),
        );
        assert_eq!(source.places_of("rustls").len(), 1);
        assert_eq!(source.places_of("println!").len(), 1);
    }
}
