//! What stays in its place and what does not.

use super::*;

#[test]
fn an_expression_that_could_leave_its_parentheses_is_refused() {
    for good in [
        "now()",
        "'it''s; -- no comment'::text",
        r"E'a\'b'",
        r#""we""ird"(1, 2)"#,
        "(a + b) > 0",
        "ARRAY[1, 2]",
        "nextval('app.seq'::regclass)",
        r"'back\slash'::text",
        "CASE WHEN (a > 1) THEN 'x'::text ELSE NULL::text END",
        "größe > 1",
    ] {
        assert!(expression(good).is_ok(), "{good}: {:?}", expression(good));
    }
    for bad in [
        "1, drop column b",
        "1); drop table t; --",
        "1) , add column x int default (1",
        "1 -- x",
        "1 /* x */",
        "1; select 2",
        "'open",
        "\"open",
        "(1",
        "(1]",
        "$$x$$",
        "$1",
        r"E'a\'",
        "'a'\n'b'",
        r"\g",
        "",
        " ",
    ] {
        assert!(expression(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_clause_begins_with_its_words() {
    assert!(clause("CHECK ((a > 0)) NOT VALID", "CHECK").is_ok());
    assert!(clause("FOREIGN KEY (a, b) REFERENCES x.y(a, b)", "FOREIGN KEY").is_ok());
    assert!(clause("CHECK ((a > 0)), DROP COLUMN b", "CHECK").is_err());
    assert!(clause("FOREIGN (a)", "FOREIGN KEY").is_err());
    assert!(clause("FOREIGN", "FOREIGN KEY").is_err());
}

#[test]
fn lists_of_columns_are_read_with_their_quotes() {
    let list = |text| column_list(text).map(|names| names.join("|"));
    assert_eq!(list(r#"UNIQUE (a, "B ""c", d)"#).as_deref(), Some(r#"a|B "c|d"#));
    assert_eq!(list("USING btree (lower(a))"), None);
    assert_eq!(list("USING btree (a DESC)"), None);
    assert_eq!(after_list("UNIQUE (a) INCLUDE (b) DEFERRABLE"), Some("INCLUDE (b) DEFERRABLE"));
}

#[test]
fn an_index_is_the_one_it_says_it_is() {
    let text = r#"CREATE UNIQUE INDEX "I x" ON ONLY app."T" USING btree (a) WHERE (b > 0)"#;
    let read = index(text, "I x", "app", "T").expect("an index");
    assert_eq!((read.unique, read.only, read.rest), (true, true, "USING btree (a) WHERE (b > 0)"));
    assert!(index("CREATE INDEX i ON app.t USING btree (a)", "i", "app", "t").is_ok());
    for bad in [
        "CREATE INDEX j ON app.t USING btree (a)",
        "CREATE INDEX i ON app.u USING btree (a)",
        "CREATE INDEX i ON t USING btree (a)",
        "CREATE INDEX CONCURRENTLY i ON app.t USING btree (a)",
        "CREATE TABLE i ON app.t USING btree (a)",
        "CREATE INDEX i ON app.t USING btree (a); drop table x",
        "DROP INDEX i",
    ] {
        assert!(index(bad, "i", "app", "t").is_err(), "{bad}");
    }
}

#[test]
fn constants_are_literals_with_casts_and_nothing_that_is_called() {
    for good in [
        "1",
        "'-1'::integer",
        "(-1)",
        "-1.5",
        "'x'::text",
        "NULL::character varying",
        "true",
        "'{}'::text[]",
        "'a'::app.mood",
        "'1.50'::numeric(10,2)",
        "('-5'::integer)",
        r"E'a\\b'::text",
    ] {
        assert!(is_constant(good), "{good}");
    }
    for bad in [
        "now()",
        "CURRENT_DATE",
        "nextval('s'::regclass)",
        "1 + 1",
        "lower('X'::text)",
        "(1) + (2)",
        "a",
        "'x'::text || now()",
    ] {
        assert!(!is_constant(bad), "{bad}");
    }
}

#[test]
fn types_are_read_and_nothing_else_is_taken_for_one() {
    for good in [
        "integer",
        "numeric(10,2)",
        "numeric(3,-2)",
        "character varying(10)[]",
        "timestamp(3) with time zone",
        "interval year to month",
        "interval day to second(3)",
        "double precision",
        "\"char\"",
        "app.mood",
        "\"My\".\"Type\"[]",
        "bit varying(5)",
        "app.geometry(Point,4326)",
        "time without time zone",
    ] {
        assert!(type_text(good).is_some(), "{good}");
    }
    for bad in [
        "integer DEFAULT 1",
        "integer REFERENCES x",
        "integer, drop column b",
        "text COLLATE \"C\"",
        "integer CHECK (a)",
        "integer GENERATED ALWAYS AS (1) STORED",
        "a.b.c",
        "",
        "numeric(select 1)x",
        "integer NOT NULL",
        "integer[1]",
    ] {
        assert!(type_text(bad).is_none(), "{bad}");
    }
    let read = type_text("\"My\".\"Type\"[]").expect("a type");
    assert_eq!((read.named, read.is_array), (Some(("My".into(), "Type".into())), true));
    let read = type_text("character varying(10)").expect("a type");
    assert_eq!((read.built_in.as_str(), read.modifiers.as_deref()), ("character varying", Some("10")));
}

#[test]
fn a_statement_is_printed_so_that_it_means_the_same_and_redraws_no_terminal() {
    for (sql, printed) in [
        ("create table \"a\".\"b\" ()", Some("create table \"a\".\"b\" ()")),
        ("drop table \"a\u{1b}[2J\\\"", Some(r#"drop table U&"a\+00001B[2J\\""#)),
        (
            "alter table t alter c set default 'x\ny'::text",
            Some(r"alter table t alter c set default U&'x\+00000Ay'::text"),
        ),
        ("set default E'x\u{1b}'", None),
        ("alter\u{202e} table t", None),
        ("create table t ()\n", None),
    ] {
        assert_eq!(printable(sql).as_deref(), printed, "{sql:?}");
    }
}
