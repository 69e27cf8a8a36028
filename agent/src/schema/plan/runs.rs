//! Says what a statement would run besides itself: a plan is run with the agent's rights, and functions that somebody else
//! wrote must not be.
//!
//! A check that is proven, an index that is built and a value that is computed call the functions they name. So such texts
//! name none but PostgreSQL's own, and of those, in checks, only ones known to do nothing but compute: some run SQL that
//! they are given. Names of others' things always stand with their schema, for the agent's search path is empty.

use steep_protocol::names::TableName;

use super::Planner;
use crate::schema::{
    catalog::{Constraint, Definition, ObjectKey, ObjectKind, Table},
    clause::{self, Kind, Token},
};

/// PostgreSQL's own that only compute, and words that stand before a parenthesis and are no functions.
const HARMLESS: &str = "
    abs age all and any array array_length array_lower array_ndims array_position array_to_string array_upper as between
    bit_length btrim cardinality case cbrt ceil ceiling char_length character_length check coalesce concat concat_ws date
    date_part date_trunc decode distinct div else encode exclude exp extract false floor format gcd greatest host in initcap
    inet_same_family is isempty isfinite json_array_length json_typeof jsonb_array_length jsonb_exists
    jsonb_extract_path jsonb_extract_path_text jsonb_typeof lcm least left length like ln log lower lower_inc lower_inf lpad
    ltrim make_date make_interval make_time masklen md5 mod network normalize not now null nullif num_nonnulls num_nulls
    numeric_inc octet_length of on or over overlaps overlay pi position power regexp_count regexp_instr regexp_like
    regexp_match regexp_replace regexp_substr repeat replace reverse right round row rpad rtrim scale sha224 sha256 sha384
    sha512 sign split_part sqrt starts_with strpos substr substring text then timezone to_char to_date to_timestamp
    to_tsvector to_number translate trim trim_scale true trunc unicode_assigned upper upper_inc upper_inf using when where
    width_bucket with xor
    from to values escape
    bit bpchar char character decimal dec float interval numeric time timestamp timestamptz timetz varbit varchar varying
    zone btree hash gin gist brin spgist include
";

impl Planner<'_> {
    /// What of others' a text would call that PostgreSQL lets call nothing but what only computes: an index, a key.
    pub(super) fn runs(&self, text: &str) -> Option<String> {
        let tokens = clause::tokens(text).ok()?;
        let mut left = tokens.as_slice();
        while let [first, rest @ ..] = left {
            left = rest;
            let [dot, name, ..] = rest else { break };
            let (Some(schema), ".", Some(name)) = (part(first), dot.text, part(name)) else { continue };
            let at = tokens.len() - rest.len() - 1;
            let is_type = at >= 2 && tokens[at - 2..at].iter().all(|token| token.text == ":");
            if !is_type || !self.only_holds_values(&schema, &name) {
                return Some(refusal(&TableName::new(schema, name).to_string()));
            }
        }
        None
    }

    /// What a check would call that is not known to do nothing but compute.
    pub(super) fn check_runs(&self, text: &str) -> Option<String> {
        let tokens = clause::tokens(text).ok()?;
        let mut pairs = tokens.iter().zip(tokens.iter().skip(1));
        let is_call = |(word, next): &(&Token<'_>, &Token<'_>)| {
            let is_name = matches!(word.kind, Kind::Word | Kind::Quoted);
            is_name
                && next.text == "("
                && !HARMLESS.split_whitespace().any(|known| known.eq_ignore_ascii_case(word.text))
        };
        // Names with a schema are told better.
        self.runs(text).or_else(|| pairs.find(is_call).map(|(word, _)| refusal(word.text)))
    }

    /// What a constraint would call: foreign keys compare keys, everything else may compute.
    pub(super) fn constraint_runs(&self, constraint: &Constraint) -> Option<String> {
        match constraint.kind.as_str() {
            "f" => None,
            "c" => self.check_runs(&constraint.definition),
            _ => self.runs(&constraint.definition),
        }
    }

    /// A value of that type can be made without calling anybody's function.
    fn only_holds_values(&self, schema: &str, name: &str) -> bool {
        let found = |kind| self.model.objects.get(&ObjectKey { kind, name: TableName::new(schema, name) });
        let is_plain = |type_name: &str| match clause::type_text(type_name) {
            Some(read) => read.named.is_none_or(|(schema, name)| self.only_holds_values(&schema, &name)),
            None => false,
        };
        let definitions = ObjectKind::ALL.into_iter().filter_map(found).map(|object| &object.definition);
        let mut types = definitions.filter(|definition| !matches!(definition, Definition::Sequence(_))).peekable();
        types.peek().is_some()
            && types.all(|definition| match definition {
                Definition::Domain(domain) => domain.checks.is_empty() && is_plain(&domain.base),
                Definition::Composite(attributes) => attributes.iter().all(|part| is_plain(&part.type_name)),
                Definition::Range(range) => is_plain(&range.subtype),
                Definition::Enum(_) | Definition::Sequence(_) => true,
            })
    }

    /// A value of a column of this type can be made without calling anybody's function.
    pub(super) fn is_plain_type(&self, type_name: &str) -> bool {
        let named = clause::type_text(type_name).map(|read| read.named);
        named.is_some_and(|named| named.is_none_or(|(schema, name)| self.only_holds_values(&schema, &name)))
    }
}

/// What of a table would be looked at again, row by row and under a lock, when `column` changed its type.
pub(super) fn stands_on(table: &Table, column: &str) -> Option<String> {
    let names = |text: &str| {
        clause::tokens(text).map_or(true, |tokens| tokens.iter().any(|token| part(token).as_deref() == Some(column)))
    };
    let constraints = table.shape.constraints.iter();
    let mut checks = constraints.filter(|constraint| !["p", "u", "n"].contains(&constraint.kind.as_str()));
    if let Some(found) = checks.find(|constraint| names(&constraint.definition)) {
        return Some(format!("constraint {}", found.name));
    }
    if table.shape.partition_key.as_deref().is_some_and(names) {
        return Some("the partition key".to_owned());
    }
    let computed = table.columns.iter().find(|other| other.expression.as_deref().is_some_and(names));
    if let Some(found) = computed {
        return Some(format!("column {}", found.name));
    }
    let is_partial_or_computed = |definition: &str| {
        let after = definition.split_once(" USING ").map_or(definition, |(_, after)| after);
        definition.contains(" WHERE ") || clause::column_list(after).is_none()
    };
    let mut indexes = table.shape.indexes.iter();
    let index = indexes.find(|index| is_partial_or_computed(&index.definition) && names(&index.definition));
    index.map(|index| format!("index {}", index.name))
}

fn part(token: &Token<'_>) -> Option<String> {
    match token.kind {
        Kind::Word => Some(token.text.to_owned()),
        Kind::Quoted => Some(token.text[1..token.text.len() - 1].replace("\"\"", "\"")),
        _ => None,
    }
}

fn refusal(what: &str) -> String {
    format!("it would run {what} with the agent's rights, which may do more than compute")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::schema::catalog::{Attribute, Catalog, Domain, Object};

    fn planned(test: impl Fn(&Planner<'_>)) {
        let object = |kind, name: &str, definition| {
            let key = ObjectKey { kind, name: TableName::new("app", name) };
            (key, Object { fingerprint: String::new(), definition })
        };
        let check = Constraint {
            kind: "c".into(),
            name: "k".into(),
            definition: "CHECK (app.f(VALUE))".into(),
            validated: true,
            enforced: true,
        };
        let odd = Domain { base: "integer".into(), checks: vec![check], ..Domain::default() };
        let part = Attribute { name: "a".into(), type_name: "app.odd".into(), collation: None };
        let objects = BTreeMap::from([
            object(ObjectKind::Enum, "mood", Definition::Enum(vec!["ok".into()])),
            object(ObjectKind::Domain, "odd", Definition::Domain(odd)),
            object(ObjectKind::Composite, "pair", Definition::Composite(vec![part])),
        ]);
        let catalog = Catalog { objects, ..Catalog::default() };
        test(&Planner::new(&catalog, &catalog));
    }

    #[test]
    fn nothing_of_others_is_called_and_of_postgresqls_own_in_checks_only_what_computes() {
        planned(|planner| {
            for good in [
                "CHECK ((lower(a) <> ''::text))",
                "CHECK (((m = ANY (ARRAY['ok'::app.mood])) AND (b > 0.5)))",
                "CHECK (((pair).a > 1) OR (a IS NULL))",
                "CHECK ((c)::character varying(30) IS NOT NULL)",
            ] {
                assert_eq!(planner.check_runs(good), None, "{good}");
            }
            for bad in [
                "CHECK (app.f(a))",
                "CHECK ((a OPERATOR(app.=) 1))",
                "CHECK ((query_to_xml('select app.f()'::text, true, true, ''::text) IS NOT NULL))",
                "CHECK ((a > '5'::app.odd))",
                "CHECK ((a = '(5)'::app.pair))",
                "CHECK ((a = 'x'::app.unheard_of))",
                r#"CHECK ("App"."f"(a))"#,
            ] {
                assert!(planner.check_runs(bad).is_some(), "{bad}");
            }
            // PostgreSQL itself takes no function into an index that does more than compute.
            assert_eq!(planner.runs("USING btree (date_trunc('day'::text, at)) WHERE (a > 3)"), None);
            assert!(planner.runs("USING btree (id) WHERE (app.g(3) > 0)").is_some());
            assert!(planner.runs("USING btree (id app.some_ops)").is_some());
            assert!(planner.is_plain_type("app.mood[]") && planner.is_plain_type("numeric(10,2)"));
            assert!(!planner.is_plain_type("app.pair") && !planner.is_plain_type("app.unheard_of"));
        });
    }

    #[test]
    fn what_stands_on_a_column_is_named() {
        use crate::schema::catalog::{Column, Index, Shape};
        let index =
            |name: &str, definition: &str| Index { name: name.into(), definition: definition.into(), valid: true };
        let column = Column {
            name: "c".into(),
            type_name: "text".into(),
            default: None,
            not_null: false,
            identity: None,
            generated: None,
            expression: None,
            collation: None,
        };
        let plain = index("plain", "CREATE INDEX plain ON app.t USING btree (c)");
        let table = |indexes: Vec<Index>| Table {
            columns: vec![column.clone()],
            shape: Shape { indexes, ..Shape::default() },
            ..Table::default()
        };
        assert_eq!(stands_on(&table(vec![plain]), "c"), None);
        let partial = index("partial", "CREATE INDEX partial ON app.t USING btree (id) WHERE (c <> ''::text)");
        assert_eq!(stands_on(&table(vec![partial]), "c").as_deref(), Some("index partial"));
        let computed = index("computed", "CREATE INDEX computed ON app.t USING btree (lower(c))");
        assert_eq!(stands_on(&table(vec![computed.clone()]), "c").as_deref(), Some("index computed"));
        assert_eq!(stands_on(&table(vec![computed]), "d"), None);
    }
}
