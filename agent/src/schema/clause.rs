//! Reads texts that come from a peer closely enough to know that they stay where they are put.
//!
//! Defaults, conditions and definitions arrive as SQL. Each is put in a place made for it: an expression between
//! parentheses, a constraint after its name. What is refused here is all that could leave that place: a comma outside
//! parentheses would begin another change of the same table, a comment would hide what follows. What such a text does
//! within its place is tried and compared before anything is kept.

use steep_protocol::names::redraws;

/// A text that does not stay in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its text holds {0}")]
pub(super) struct Unsafe(pub &'static str);

/// A word, name, literal or sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    /// Where it begins.
    at: usize,
    /// How many parentheses it stands in; those themselves count as outside.
    depth: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Quoted,
    Literal,
    Number,
    Sign,
}

/// The tokens of `text`, if it is of one piece.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Unsafe> {
    let mut found: Vec<Token<'_>> = Vec::new();
    let mut open = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        if c.is_whitespace() {
            at += c.len_utf8();
            continue;
        }
        if rest.starts_with("--") || rest.starts_with("/*") {
            return Err(Unsafe("a comment"));
        }
        let (kind, length) = match c {
            ';' => return Err(Unsafe("a semicolon")),
            '$' => return Err(Unsafe("a dollar sign outside quotes")),
            '\\' | '\0' => return Err(Unsafe("a backslash outside quotes")),
            '\'' => (Kind::Literal, literal(rest, &found, at)?),
            '"' => (Kind::Quoted, quoted(rest, '"').ok_or(Unsafe("an open quote"))?),
            '0'..='9' => (Kind::Number, rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len())),
            c if c.is_alphabetic() || c == '_' => {
                (Kind::Word, rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len()))
            }
            _ => (Kind::Sign, c.len_utf8()),
        };
        if matches!(c, ')' | ']') {
            let expected = if c == ')' { '(' } else { '[' };
            if open.pop() != Some(expected) {
                return Err(Unsafe("a closing parenthesis too many"));
            }
        }
        found.push(Token { kind, text: &rest[..length], at, depth: open.len() });
        if matches!(c, '(' | '[') {
            open.push(c);
        }
        at += length;
    }
    if open.is_empty() { Ok(found) } else { Err(Unsafe("an open parenthesis")) }
}

/// The length of the literal at the beginning of `rest`.
fn literal(rest: &str, before: &[Token<'_>], at: usize) -> Result<usize, Unsafe> {
    let last = before.last();
    // PostgreSQL reads on in one literal where the next begins on a new line, by the rules of the first.
    if last.is_some_and(|last| last.kind == Kind::Literal) {
        return Err(Unsafe("two literals in a row"));
    }
    let is_escaped = last.is_some_and(|last| {
        last.kind == Kind::Word && last.text.eq_ignore_ascii_case("e") && last.at + last.text.len() == at
    });
    let length = if is_escaped { escaped(rest) } else { quoted(rest, '\'') };
    length.ok_or(Unsafe("an open quote"))
}

/// The length of what stands between two `quote`s, of which two in a row are one that is meant.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    let mut at = 1;
    loop {
        at += rest[at..].find(quote)? + 1;
        if !rest[at..].starts_with(quote) {
            return Some(at);
        }
        at += 1;
    }
}

fn escaped(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '\'' if chars.peek().is_some_and(|(_, next)| *next == '\'') => drop(chars.next()),
            '\'' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// A statement as it may be printed, and means the same: names and literals with characters that would redraw a terminal
/// are written with their numbers. None: such a character stands where it cannot be written so.
pub(super) fn printable(statement: &str) -> Option<String> {
    if !statement.contains(redraws) {
        return Some(statement.to_owned());
    }
    let tokens = tokens(statement).ok()?;
    let (mut text, mut end) = (String::new(), 0);
    for (at, token) in tokens.iter().enumerate() {
        text.push_str(&statement[end..token.at]);
        end = token.at + token.text.len();
        let is_plain = at == 0 || tokens[at - 1].kind != Kind::Word || tokens[at - 1].at + 1 != token.at;
        match token.kind {
            Kind::Quoted | Kind::Literal if token.text.contains(redraws) => {
                // E'…' has other rules.
                (is_plain || token.kind == Kind::Quoted).then_some(())?;
                text.push_str(&numbered(token.text));
            }
            _ => text.push_str(token.text),
        }
    }
    text.push_str(&statement[end..]);
    (!text.contains(redraws)).then_some(text)
}

/// A quoted name or literal in PostgreSQL's form `U&…`, in which `\+00001B` is a character's number.
fn numbered(quoted: &str) -> String {
    let written = quoted.chars().map(|c| match c {
        '\\' => r"\\".to_owned(),
        c if redraws(c) => format!("\\+{:06X}", u32::from(c)),
        c => c.to_string(),
    });
    format!("U&{}", written.collect::<String>())
}

/// An expression, ready to stand between parentheses.
pub(super) fn expression(text: &str) -> Result<&str, Unsafe> {
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Err(Unsafe("nothing"));
    }
    without_comma(&tokens)?;
    Ok(text)
}

fn without_comma(tokens: &[Token<'_>]) -> Result<(), Unsafe> {
    let is_comma = |token: &Token<'_>| token.depth == 0 && token.text == "," && token.kind == Kind::Sign;
    if tokens.iter().any(is_comma) { Err(Unsafe("a comma outside parentheses")) } else { Ok(()) }
}

/// A clause that begins with `words`: `CHECK`, `FOREIGN KEY`, `FOR VALUES`.
pub(super) fn clause<'a>(text: &'a str, words: &str) -> Result<&'a str, Unsafe> {
    let tokens = tokens(text)?;
    without_comma(&tokens)?;
    let words: Vec<&str> = words.split(' ').collect();
    let beginning = tokens.get(..words.len()).unwrap_or_default();
    let begins =
        beginning.iter().all(|token| token.kind == Kind::Word) && beginning.iter().map(|token| token.text).eq(words);
    if begins { Ok(text) } else { Err(Unsafe("another beginning than is expected")) }
}

/// The names between the first pair of parentheses, where nothing but names stands there: `(a, "B c")`.
pub(super) fn column_list(text: &str) -> Option<Vec<String>> {
    let tokens = tokens(text).ok()?;
    let begin = tokens.iter().position(|token| token.text == "(")? + 1;
    let end = begin + tokens[begin..].iter().position(|token| token.text == ")" && token.depth == 0)?;
    let mut names = Vec::new();
    for part in tokens[begin..end].split(|token| token.text == "," && token.kind == Kind::Sign) {
        let [only] = part else { return None };
        names.push(name_of(only)?);
    }
    Some(names)
}

/// What follows the first pair of parentheses.
pub(super) fn after_list(text: &str) -> Option<&str> {
    let tokens = tokens(text).ok()?;
    let end = tokens.iter().find(|token| token.text == ")" && token.depth == 0)?;
    Some(text[end.at + 1..].trim())
}

fn name_of(token: &Token<'_>) -> Option<String> {
    match token.kind {
        Kind::Word => Some(token.text.to_owned()),
        Kind::Quoted => Some(token.text[1..token.text.len() - 1].replace("\"\"", "\"")),
        _ => None,
    }
}

/// An index's definition, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexText<'a> {
    pub(super) unique: bool,
    pub(super) only: bool,
    /// From `USING` to the end.
    pub(super) rest: &'a str,
}

/// Reads `CREATE [UNIQUE] INDEX name ON [ONLY] schema.table USING …`, and holds name and table against what is expected.
pub(super) fn index<'a>(text: &'a str, name: &str, schema: &str, table: &str) -> Result<IndexText<'a>, Unsafe> {
    const OTHER: Unsafe = Unsafe("another beginning than is expected");
    let tokens = tokens(text)?;
    let mut left = tokens.iter().peekable();
    let mut word = |expected: &str| left.next_if(|token| token.kind == Kind::Word && token.text == expected).is_some();
    let unique = word("CREATE") && word("UNIQUE");
    if !word("INDEX") {
        return Err(OTHER);
    }
    let named = left.next().and_then(name_of);
    let on = left.next_if(|token| token.text == "ON").is_some();
    let only = left.next_if(|token| token.kind == Kind::Word && token.text == "ONLY").is_some();
    let in_schema = left.next().and_then(name_of);
    let dot = left.next_if(|token| token.text == ".").is_some();
    let of = left.next().and_then(name_of);
    let using = left.next().filter(|token| token.kind == Kind::Word && token.text == "USING");
    let is_expected =
        named.as_deref() == Some(name) && in_schema.as_deref() == Some(schema) && of.as_deref() == Some(table);
    match using {
        Some(using) if on && dot && is_expected => Ok(IndexText { unique, only, rest: &text[using.at..] }),
        _ => Err(OTHER),
    }
}

/// A constant: the same whenever it is evaluated, and cheap to add to a table of any size.
pub(super) fn is_constant(text: &str) -> bool {
    let Ok(tokens) = tokens(text) else { return false };
    let mut left = tokens.as_slice();
    // A negative number is written as ('-1'::integer) or (-1).
    while let ([first, inner @ .., last], true) = (left, wraps(left)) {
        debug_assert!(first.text == "(" && last.text == ")");
        left = inner;
    }
    let value = match left {
        [sign, number, rest @ ..] if sign.text == "-" && number.kind == Kind::Number => rest,
        [value, rest @ ..] if matches!(value.kind, Kind::Literal | Kind::Number) => rest,
        [e, value, rest @ ..] if e.text.eq_ignore_ascii_case("e") && value.kind == Kind::Literal => rest,
        [word, rest @ ..] if ["true", "false", "NULL"].contains(&word.text) => rest,
        [open, sign, number, close, rest @ ..]
            if (open.text, sign.text, close.text) == ("(", "-", ")") && number.kind == Kind::Number =>
        {
            rest
        }
        _ => return false,
    };
    value.is_empty()
        || (value.len() > 2 && value[0].text == ":" && value[1].text == ":")
            && value[2..].iter().all(|token| {
                matches!(token.kind, Kind::Word | Kind::Quoted | Kind::Number) || "()[],.".contains(token.text)
            })
}

fn wraps(tokens: &[Token<'_>]) -> bool {
    let [first, inner @ .., last] = tokens else { return false };
    let depth = first.depth;
    (first.text, last.text) == ("(", ")") && last.depth == depth && inner.iter().all(|token| token.depth > depth)
}

/// A type as PostgreSQL writes it, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TypeText {
    /// Schema and name of a type outside pg_catalog.
    pub(super) named: Option<(String, String)>,
    /// A built-in type's name without modifiers: `character varying`.
    pub(super) built_in: String,
    /// `10,2` of `numeric(10,2)`.
    pub(super) modifiers: Option<String>,
    /// It is an array of them.
    pub(super) is_array: bool,
}

/// Words a built-in type's name can hold besides its first.
const TYPE_WORDS: [&str; 15] = [
    "varying",
    "precision",
    "with",
    "without",
    "time",
    "zone",
    "to",
    "year",
    "month",
    "day",
    "hour",
    "minute",
    "second",
    "char",
    "bit",
];

/// Reads a type, so that nothing but a type can stand where one is expected.
pub(super) fn type_text(text: &str) -> Option<TypeText> {
    let tokens = tokens(text).ok()?;
    let first = tokens.first()?;
    let mut left = &tokens[1..];
    let mut named = None;
    let mut words = vec![first.text];
    name_of(first)?;
    if let [dot, name, rest @ ..] = left
        && dot.text == "."
    {
        named = Some((name_of(first)?, name_of(name)?));
        left = rest;
    }
    let mut modifiers = None;
    let mut is_array = false;
    while let [token, rest @ ..] = left {
        left = rest;
        match token.text {
            "(" if modifiers.is_none() && !is_array => {
                let end = left.iter().position(|token| token.text == ")")?;
                let inside = &left[..end];
                let is_plain = |token: &Token<'_>| {
                    matches!(token.kind, Kind::Number | Kind::Word | Kind::Literal | Kind::Quoted)
                        || [",", "-"].contains(&token.text)
                };
                if inside.is_empty() || !inside.iter().all(is_plain) {
                    return None;
                }
                modifiers = Some(inside.iter().map(|token| token.text).collect());
                left = &left[end + 1..];
            }
            "[" => {
                is_array = true;
                left = left.strip_prefix(left.first().filter(|token| token.text == "]").map(std::slice::from_ref)?)?;
            }
            word if named.is_none() && token.kind == Kind::Word && TYPE_WORDS.contains(&word) && !is_array => {
                words.push(word);
            }
            _ => return None,
        }
    }
    Some(TypeText { named, built_in: words.join(" "), modifiers, is_array })
}

#[cfg(test)]
mod tests;
