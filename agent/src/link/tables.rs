//! What the workers of a subscription may say that copies its tables itself: PostgreSQL's own first copy.
//!
//! Rows leave through a link for nothing else. Tables are those of the session an operator has signed, and they may be read
//! for as long as it lives, by the workers of one subscription, through slots that bear its number. The list was made from
//! what PostgreSQL 15 to 18 send.

use steep_protocol::names::TableName;
use tokio_util::sync::CancellationToken;

use super::commands::{Token, tokens};
use crate::postgres::slots::SyncSlots;

/// What a subscription may copy by itself.
#[derive(Debug, Clone)]
pub(super) struct Copying {
    /// The slots its workers make.
    pub(super) slots: SyncSlots,
    /// The tables, as (oid, name).
    pub(super) tables: Vec<(u32, TableName)>,
    /// Done once the session has ended.
    pub(super) ended: CancellationToken,
}

/// Questions about one table. `OID` stands for the number of one that may be copied, `'SCHEMA'` and `'TABLE'` for the name of
/// one, `'PUBLICATION'` for a publication of the link.
const QUESTIONS: [&str; 5] = [
    "SELECT c.oid, c.relreplident, c.relkind FROM pg_catalog.pg_class c INNER JOIN pg_catalog.pg_namespace n \
     ON (c.relnamespace = n.oid) WHERE n.nspname = 'SCHEMA' AND c.relname = 'TABLE'",
    "SELECT DISTINCT (CASE WHEN (array_length(gpt.attrs, 1) = c.relnatts) THEN NULL ELSE gpt.attrs END) \
     FROM pg_publication p, LATERAL pg_get_publication_tables(p.pubname) gpt, pg_class c \
     WHERE gpt.relid = OID AND c.oid = gpt.relid AND p.pubname IN ( 'PUBLICATION' )",
    "SELECT a.attnum, a.attname, a.atttypid, a.attnum = ANY(i.indkey) FROM pg_catalog.pg_attribute a \
     LEFT JOIN pg_catalog.pg_index i ON (i.indexrelid = pg_get_replica_identity_index(OID)) \
     WHERE a.attnum > 0::pg_catalog.int2 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attrelid = OID \
     ORDER BY a.attnum",
    "SELECT a.attnum, a.attname, a.atttypid, a.attnum = ANY(i.indkey), a.attgenerated != '' \
     FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_index i \
     ON (i.indexrelid = pg_get_replica_identity_index(OID)) WHERE a.attnum > 0::pg_catalog.int2 \
     AND NOT a.attisdropped AND a.attrelid = OID ORDER BY a.attnum",
    "SELECT DISTINCT pg_get_expr(gpt.qual, gpt.relid) FROM pg_publication p, \
     LATERAL pg_get_publication_tables(p.pubname) gpt WHERE gpt.relid = OID AND p.pubname IN ( 'PUBLICATION' )",
];

impl Copying {
    /// Whether the session it belongs to lives.
    pub(super) fn is_allowed(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Whether a command names a slot of the workers.
    pub(super) fn is_slot(&self, token: &Token) -> bool {
        matches!(token, Token::Word(name) | Token::Name(name) if self.slots.holds(name))
    }

    /// Whether it is a question about a table that may be copied.
    pub(super) fn is_question(&self, said: &[Token], publications: &[String]) -> bool {
        self.is_allowed() && QUESTIONS.iter().any(|known| self.asks(said, known, publications))
    }

    fn asks(&self, said: &[Token], known: &str, publications: &[String]) -> bool {
        let known = tokens(known).expect("the questions can be cut");
        let (mut oid, mut schema, mut table) = (None, None, None);
        let is_one = said.len() == known.len()
            && said.iter().zip(&known).all(|(said, known)| match (said, known) {
                (Token::Word(number), Token::Word(hole)) if hole == "OID" => *oid.get_or_insert(number) == number,
                (Token::Literal(name), Token::Literal(hole)) if hole == "SCHEMA" => schema.replace(name).is_none(),
                (Token::Literal(name), Token::Literal(hole)) if hole == "TABLE" => table.replace(name).is_none(),
                (Token::Literal(name), Token::Literal(hole)) if hole == "PUBLICATION" => publications.contains(name),
                (said, known) => said == known,
            });
        let is_ours = |(number, name): &(u32, TableName)| {
            oid.is_none_or(|oid| *oid == number.to_string())
                && schema.is_none_or(|schema| *schema == name.schema)
                && table.is_none_or(|table| *table == name.name)
        };
        is_one && self.tables.iter().any(is_ours)
    }

    /// Begins and ends the transaction a table is read in, makes a worker's slot in it, or reads the table itself.
    ///
    /// True where rows are read.
    pub(super) fn copies(&self, said: &[Token]) -> Result<bool, String> {
        if !self.is_allowed() {
            return Err("the session it belongs to has ended".into());
        }
        let is = |text: &str| tokens(text).is_some_and(|known| known == said);
        if is("BEGIN READ ONLY ISOLATION LEVEL REPEATABLE READ") || is("COMMIT") {
            return Ok(false);
        }
        if let [Token::Word(create), name, rest @ ..] = said
            && create == "CREATE_REPLICATION_SLOT"
            && self.is_slot(name)
            && tokens("LOGICAL pgoutput (SNAPSHOT 'use')").is_some_and(|known| known == rest)
        {
            return Ok(false);
        }
        let [Token::Word(copy), schema, Token::Sign('.'), table, Token::Sign('('), rest @ ..] = said else {
            return Err("it is nothing that copying a table takes".into());
        };
        let [columns @ .., Token::Sign(')'), Token::Word(to), Token::Word(out)] = rest else {
            return Err("it is no copy of a table".into());
        };
        let is_name = |token: &Token| matches!(token, Token::Word(_) | Token::Name(_));
        let are_columns = columns.iter().enumerate().all(|(at, token)| match at % 2 {
            0 => is_name(token),
            _ => *token == Token::Sign(','),
        });
        if copy != "COPY" || to != "TO" || out != "STDOUT" || !are_columns || columns.len() % 2 == 0 {
            return Err("it is no copy of a table".into());
        }
        match (schema, table) {
            (Token::Word(schema) | Token::Name(schema), Token::Word(table) | Token::Name(table))
                if self.tables.iter().any(|(_, name)| name.schema == *schema && name.name == *table) =>
            {
                Ok(true)
            }
            _ => Err("it copies a table that was not signed for".into()),
        }
    }
}
