//! What a subscriber may say to our walsender: what a subscription's walreceiver says, about its own slot and
//! publication, and nothing else; where it may copy tables by itself, also what [`super::tables`] lists.
//!
//! A walsender takes SQL too, under the agent's role; so every text is read before it is let through. The list was made
//! from what PostgreSQL 15 to 18 send for `create`, `alter … refresh` (without `copy_data`) and `drop subscription`,
//! and from their apply workers.

use super::tables::Copying;

/// What the other end asks for; everything here may be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// A question.
    Question,
    /// Begins to stream from the slot.
    Stream,
    /// Belongs to the copy of a table.
    Copy,
    /// Reads the rows of a table.
    CopyRows,
    /// Drops the slot: what `drop subscription` does.
    DropSlot,
}

/// What a link is for.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// The one slot.
    pub(super) slot: String,
    /// The publications made for it.
    pub(super) publications: Vec<String>,
    /// What the subscription may copy by itself.
    pub(super) copying: Option<Copying>,
}

/// The first query on every connection of a logical walreceiver.
const SECURE_SEARCH_PATH: &str = "SELECT pg_catalog.set_config('search_path', '', false)";

/// Catalogs and functions that say what is published. A query names each at most once, so that none is expensive.
const SOURCES: [&str; 9] = [
    "pg_publication",
    "pg_publication_tables",
    "pg_get_publication_tables",
    "pg_class",
    "pg_namespace",
    "pg_subscription_rel",
    "pg_partition_ancestors",
    "pg_partition_tree",
    "array_agg",
];

/// All other words of such queries: SQL's own, columns, aliases.
const WORDS: [&str; 44] = [
    "select",
    "distinct",
    "from",
    "where",
    "join",
    "on",
    "in",
    "and",
    "or",
    "not",
    "as",
    "lateral",
    "variadic",
    "union",
    "case",
    "when",
    "then",
    "else",
    "end",
    "is",
    "null",
    "pg_catalog",
    "text",
    "oid",
    "relid",
    "attrs",
    "attnames",
    "pubname",
    "schemaname",
    "tablename",
    "nspname",
    "relname",
    "relnamespace",
    "relkind",
    "srrelid",
    "rowfilter",
    "qual",
    "t",
    "n",
    "c",
    "p",
    "ps",
    "gpt",
    "pt",
];

/// What START_REPLICATION may set besides the publications.
const STREAM_OPTIONS: [&str; 7] =
    ["proto_version", "streaming", "two_phase", "origin", "binary", "messages", "failover"];

/// One word, quoted name, literal or sign of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    Name(String),
    Literal(String),
    Sign(char),
}

impl Scope {
    /// Reads one query and says what it is; fails with a reason when it may not be let through.
    pub(super) fn judge(&self, query: &str) -> Result<Command, String> {
        let query = query.trim().trim_end_matches(';').trim_end();
        if query == SECURE_SEARCH_PATH {
            return Ok(Command::Question);
        }
        let tokens = tokens(query).ok_or("it holds something no walreceiver says")?;
        let Some(Token::Word(first)) = tokens.first() else { return Err("it begins with no command".into()) };
        match first.to_ascii_uppercase().as_str() {
            "IDENTIFY_SYSTEM" if tokens.len() == 1 => Ok(Command::Question),
            "SELECT" => match about_publications(&tokens) {
                Err(_) if self.is_about_a_table(&tokens) => Ok(Command::Question),
                judged => judged.map(|()| Command::Question),
            },
            "START_REPLICATION" => self.streams(&tokens[1..]),
            "DROP_REPLICATION_SLOT" => match &tokens[1..] {
                [name] | [name, Token::Word(_)] if self.is_slot(name) => Ok(Command::DropSlot),
                [name, Token::Word(_)] if self.is_worker(name) => Ok(Command::Copy),
                _ => Err(format!("it drops another slot than {}", self.slot)),
            },
            other => match (&self.copying, other) {
                (Some(copying), "BEGIN" | "COMMIT" | "CREATE_REPLICATION_SLOT" | "COPY") => {
                    copying.copies(&tokens).map(|rows| if rows { Command::CopyRows } else { Command::Copy })
                }
                _ => Err(format!("{other} is not for a link")),
            },
        }
    }

    fn is_about_a_table(&self, tokens: &[Token]) -> bool {
        self.copying.as_ref().is_some_and(|copying| copying.is_question(tokens, &self.publications))
    }

    /// A slot of a worker that copies a table.
    fn is_worker(&self, token: &Token) -> bool {
        self.copying.as_ref().is_some_and(|copying| copying.is_allowed() && copying.is_slot(token))
    }

    fn is_slot(&self, token: &Token) -> bool {
        matches!(token, Token::Word(name) | Token::Name(name) if *name == self.slot)
    }

    /// `SLOT "name" LOGICAL 0/0 (option 'value', …)`.
    fn streams(&self, tokens: &[Token]) -> Result<Command, String> {
        let [
            Token::Word(slot),
            name,
            Token::Word(logical),
            Token::Word(_),
            Token::Sign('/'),
            Token::Word(_),
            rest @ ..,
        ] = tokens
        else {
            return Err("it does not name a slot and a position".into());
        };
        if !slot.eq_ignore_ascii_case("slot") || !logical.eq_ignore_ascii_case("logical") {
            return Err("it is not logical replication from a slot".into());
        }
        let command = match (self.is_slot(name), self.is_worker(name)) {
            (true, _) => Command::Stream,
            (_, true) => Command::Copy,
            _ => return Err(format!("it reads another slot than {}", self.slot)),
        };
        let [Token::Sign('('), options @ .., Token::Sign(')')] = rest else {
            return Err("it names no publication".into());
        };
        let mut names_publications = false;
        for option in options.split(|token| *token == Token::Sign(',')) {
            let [Token::Word(option) | Token::Name(option), Token::Literal(value)] = option else {
                return Err("an option cannot be read".into());
            };
            if option == "publication_names" {
                names_publications = true;
                self.publishes(value)?;
            } else if !STREAM_OPTIONS.contains(&option.as_str()) {
                return Err(format!("option {option} is not for a link"));
            }
        }
        if names_publications { Ok(command) } else { Err("it names no publication".into()) }
    }

    /// `"one","other"`, each of them made for the slot.
    fn publishes(&self, list: &str) -> Result<(), String> {
        let names = tokens(list).ok_or("its publications cannot be read")?;
        for name in names.split(|token| *token == Token::Sign(',')) {
            match name {
                [Token::Name(name) | Token::Word(name)] if self.publications.contains(name) => {}
                [Token::Name(name) | Token::Word(name)] => {
                    return Err(format!("publication {name:?} was not made for slot {}", self.slot));
                }
                _ => return Err("its publications cannot be read".into()),
            }
        }
        Ok(())
    }
}

fn about_publications(tokens: &[Token]) -> Result<(), String> {
    let mut named = Vec::new();
    for token in tokens {
        match token {
            Token::Word(word) => {
                let word = word.to_ascii_lowercase();
                if SOURCES.contains(&word.as_str()) {
                    if named.contains(&word) {
                        return Err(format!("it names {word} twice"));
                    }
                    named.push(word);
                } else if !WORDS.contains(&word.as_str()) {
                    return Err(format!("{word:?} is no word of a question about publications"));
                }
            }
            Token::Name(name) => return Err(format!("{name:?} is no word of a question about publications")),
            Token::Literal(_) => {}
            Token::Sign(sign) if "(),.:*=".contains(*sign) => {}
            Token::Sign(sign) => return Err(format!("{sign:?} is no sign of a question about publications")),
        }
    }
    Ok(())
}

/// Cuts a text; `None` where it holds something that might be read in two ways: comments, escapes, several statements.
pub(super) fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match c {
            '"' | '\'' => {
                let (inner, after) = quoted(&rest[1..], c)?;
                // A word that touches a quote could change its meaning: E'…', U&"…".
                let touches =
                    matches!(tokens.last(), Some(Token::Word(_))) && !text_before(text, rest).ends_with([' ', '\n']);
                if touches {
                    return None;
                }
                tokens.push(if c == '"' { Token::Name(inner) } else { Token::Literal(inner) });
                rest = after;
            }
            c if is_word(c) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned()));
                rest = &rest[end..];
            }
            c if "(),.:*=/>!".contains(c) => {
                tokens.push(Token::Sign(c));
                rest = &rest[1..];
            }
            _ => return None,
        }
        rest = rest.trim_start_matches([' ', '\n', '\t']);
    }
    let is_comment = tokens.windows(2).any(|pair| pair == [Token::Sign('/'), Token::Sign('*')]);
    (!is_comment).then_some(tokens)
}

fn text_before<'a>(text: &'a str, rest: &str) -> &'a str {
    &text[..text.len() - rest.len()]
}

/// The inside of a quoted text, doubled quotes made single, and what follows it. Backslashes are never taken.
fn quoted(rest: &str, quote: char) -> Option<(String, &str)> {
    let mut inner = String::new();
    let mut chars = rest.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' | '\0' => return None,
            c if c == quote => match chars.peek() {
                Some((_, next)) if *next == quote => {
                    inner.push(c);
                    chars.next();
                }
                _ => return Some((inner, &rest[at + 1..])),
            },
            c => inner.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use steep_protocol::names::TableName;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::postgres::slots::SyncSlots;

    fn scope() -> Scope {
        Scope {
            slot: "steep_node_b_0123456789ab".into(),
            publications: vec!["steep".into(), "steep_only_node.b".into()],
            copying: None,
        }
    }

    const SYNC: &str = "pg_16403_sync_16384_7712316283025208135";

    fn copying() -> Scope {
        let tables = vec![(16384, TableName::new("public", "t")), (16394, TableName::new("S x", "T"))];
        let slots = SyncSlots { subscription: 16403, system_identifier: 7_712_316_283_025_208_135 };
        let copying = Copying { slots, tables, ended: CancellationToken::new() };
        Scope { copying: Some(copying), ..scope() }
    }

    /// Word for word what servers sent, from 15 to 18, to copy a table.
    fn copied() -> Vec<(String, Command)> {
        let columns = |more: &str, only: &str| {
            format!(
                "SELECT a.attnum,       a.attname,       a.atttypid,       a.attnum = ANY(i.indkey){more}  FROM pg_catalog.pg_attribute a  LEFT JOIN pg_catalog.pg_index i       ON (i.indexrelid = pg_get_replica_identity_index(16384)) WHERE a.attnum > 0::pg_catalog.int2   AND NOT a.attisdropped {only}  AND a.attrelid = 16384 ORDER BY a.attnum"
            )
        };
        let question = |text: &str| (text.to_owned(), Command::Question);
        let copy = |text: &str| (text.to_owned(), Command::Copy);
        let rows = |text: &str| (text.to_owned(), Command::CopyRows);
        vec![
            copy("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ"),
            copy(&format!("CREATE_REPLICATION_SLOT \"{SYNC}\" LOGICAL pgoutput (SNAPSHOT 'use')")),
            question(
                "SELECT c.oid, c.relreplident, c.relkind  FROM pg_catalog.pg_class c  INNER JOIN pg_catalog.pg_namespace n        ON (c.relnamespace = n.oid) WHERE n.nspname = 'S x'   AND c.relname = 'T'",
            ),
            question(
                "SELECT DISTINCT  (CASE WHEN (array_length(gpt.attrs, 1) = c.relnatts)   THEN NULL ELSE gpt.attrs END)  FROM pg_publication p,  LATERAL pg_get_publication_tables(p.pubname) gpt,  pg_class c WHERE gpt.relid = 16384 AND c.oid = gpt.relid   AND p.pubname IN ( 'steep' )",
            ),
            question(&columns("", "AND a.attgenerated = '' ")),
            question(&columns(", a.attgenerated != ''", " ")),
            question(
                "SELECT DISTINCT pg_get_expr(gpt.qual, gpt.relid)  FROM pg_publication p,  LATERAL pg_get_publication_tables(p.pubname) gpt WHERE gpt.relid = 16384   AND p.pubname IN ( 'steep' )",
            ),
            rows("COPY public.t (id, \"Va\"\"l\") TO STDOUT"),
            rows("COPY \"S x\".\"T\" (a) TO STDOUT"),
            copy("COMMIT"),
            copy(&format!(
                "START_REPLICATION SLOT \"{SYNC}\" LOGICAL 0/1726E30 (proto_version '4', streaming 'parallel', origin 'none', publication_names '\"steep\"')"
            )),
            copy(&format!("DROP_REPLICATION_SLOT {SYNC} WAIT")),
        ]
    }

    #[test]
    fn the_copy_of_a_table_that_was_signed_is_let_through_and_of_no_other() {
        for (query, command) in copied() {
            assert_eq!(copying().judge(&query), Ok(command), "{query}");
            assert!(scope().judge(&query).is_err(), "{query:?} without a session");
            let over = copying();
            over.copying.as_ref().expect("it may copy").ended.cancel();
            assert!(over.judge(&query).is_err(), "{query:?} after its session");
        }
        for query in [
            "BEGIN",
            "COMMIT AND CHAIN",
            "COPY public.u (id) TO STDOUT",
            "COPY t (id) TO STDOUT",
            "COPY public.t TO STDOUT",
            "COPY public.t () TO STDOUT",
            "COPY public.t (id,) TO STDOUT",
            "COPY public.t (id) FROM STDIN",
            "COPY public.t (id) TO PROGRAM 'sh'",
            "COPY public.t (id) TO STDOUT; drop table t",
            "COPY (SELECT id FROM public.t) TO STDOUT",
            "COPY public.t (id, (select 1)) TO STDOUT",
            "COPY PUBLIC.t (id) TO STDOUT",
            "CREATE_REPLICATION_SLOT \"steep_x\" LOGICAL pgoutput (SNAPSHOT 'use')",
            "CREATE_REPLICATION_SLOT \"pg_1_sync_16384_7712316283025208135\" LOGICAL pgoutput (SNAPSHOT 'use')",
            "CREATE_REPLICATION_SLOT \"pg_16403_sync_16384_7712316283025208135\" LOGICAL test_decoding (SNAPSHOT 'use')",
            "CREATE_REPLICATION_SLOT \"pg_16403_sync_16384_7712316283025208135\" PHYSICAL",
            "DROP_REPLICATION_SLOT pg_1_sync_16384_7712316283025208135 WAIT",
            "SELECT c.oid, c.relreplident, c.relkind FROM pg_catalog.pg_class c INNER JOIN pg_catalog.pg_namespace n ON (c.relnamespace = n.oid) WHERE n.nspname = 'public' AND c.relname = 'T'",
            "SELECT DISTINCT pg_get_expr(gpt.qual, gpt.relid) FROM pg_publication p, LATERAL pg_get_publication_tables(p.pubname) gpt WHERE gpt.relid = 16385 AND p.pubname IN ( 'steep' )",
            "SELECT DISTINCT pg_get_expr(gpt.qual, gpt.relid) FROM pg_publication p, LATERAL pg_get_publication_tables(p.pubname) gpt WHERE gpt.relid = 16384 AND p.pubname IN ( 'other' )",
        ] {
            assert!(copying().judge(query).is_err(), "{query:?} was let through");
        }
        // All else is as it is for any link.
        for (query, command) in SENT {
            assert_eq!(copying().judge(query), Ok(*command), "{query}");
        }
    }

    /// Word for word what servers sent, from 15 to 18.
    const SENT: &[(&str, Command)] = &[
        ("SELECT pg_catalog.set_config('search_path', '', false);", Command::Question),
        ("IDENTIFY_SYSTEM", Command::Question),
        ("SELECT t.pubname FROM\n pg_catalog.pg_publication t WHERE\n t.pubname IN ('steep')", Command::Question),
        (
            "SELECT DISTINCT t.schemaname, t.tablename \n, t.attnames FROM pg_catalog.pg_publication_tables t\n WHERE t.pubname IN ('steep')",
            Command::Question,
        ),
        (
            "SELECT DISTINCT n.nspname, c.relname, gpt.attrs\n       FROM pg_class c\n         JOIN pg_namespace n ON n.oid = c.relnamespace\n         JOIN ( SELECT (pg_get_publication_tables(VARIADIC array_agg(pubname::text))).*\n                FROM pg_publication\n                WHERE pubname IN ( 'steep' )) AS gpt\n             ON gpt.relid = c.oid\n",
            Command::Question,
        ),
        (
            "START_REPLICATION SLOT \"steep_node_b_0123456789ab\" LOGICAL 0/0 (proto_version '4', streaming 'parallel', origin 'none', publication_names '\"steep\"')",
            Command::Stream,
        ),
        (
            "START_REPLICATION SLOT \"steep_node_b_0123456789ab\" LOGICAL 0/1A2B3C4D (proto_version '3', publication_names '\"steep_only_node.b\"')",
            Command::Stream,
        ),
        ("DROP_REPLICATION_SLOT steep_node_b_0123456789ab WAIT", Command::DropSlot),
    ];

    #[test]
    fn what_walreceivers_say_is_let_through() {
        for (query, command) in SENT {
            assert_eq!(scope().judge(query), Ok(*command), "{query}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for query in [
            "",
            ";",
            "drop table orders",
            "select * from orders",
            "select 1",
            "select pg_read_file('/etc/passwd')",
            "select t.pubname from pg_publication t; drop table orders",
            "select t.pubname from pg_publication t -- x",
            "select t.pubname /* from */ from pg_publication t",
            "select t.pubname from pg_publication t where t.pubname in ('\\'')",
            "select t.pubname from pg_publication t where t.pubname in (E'x')",
            "select t.pubname from pg_publication t where t.pubname in (U&'x')",
            "select t.pubname from \"orders\" t",
            "select $$x$$ from pg_publication t",
            "select c.relname from pg_class c, pg_class n",
            "SELECT pg_catalog.set_config('log_statement', 'none', false)",
            "SHOW primary_conninfo",
            "CREATE_REPLICATION_SLOT \"x\" LOGICAL pgoutput",
            "DROP_REPLICATION_SLOT steep_node_c_0123456789ab WAIT",
            "DROP_REPLICATION_SLOT",
            "ALTER_REPLICATION_SLOT \"steep_node_b_0123456789ab\" (failover)",
            "BASE_BACKUP",
            "TIMELINE_HISTORY 1",
            "READ_REPLICATION_SLOT \"steep_node_b_0123456789ab\"",
            "IDENTIFY_SYSTEM; drop table orders",
            "START_REPLICATION 0/0",
            "START_REPLICATION SLOT \"steep_node_b_0123456789ab\" PHYSICAL 0/0",
            "START_REPLICATION SLOT \"steep_node_c_0123456789ab\" LOGICAL 0/0 (proto_version '4', publication_names '\"steep\"')",
            "START_REPLICATION SLOT \"steep_node_b_0123456789ab\" LOGICAL 0/0 (proto_version '4', publication_names '\"other\"')",
            "START_REPLICATION SLOT \"steep_node_b_0123456789ab\" LOGICAL 0/0 (proto_version '4', publication_names '\"steep\",\"other\"')",
            "START_REPLICATION SLOT \"steep_node_b_0123456789ab\" LOGICAL 0/0 (proto_version '4')",
            "START_REPLICATION SLOT \"steep_node_b_0123456789ab\" LOGICAL 0/0",
            "START_REPLICATION SLOT \"steep_node_b_0123456789ab\" LOGICAL 0/0 (publication_names '\"steep\"', evil 'x')",
        ] {
            assert!(scope().judge(query).is_err(), "{query:?} was let through");
        }
    }
}
