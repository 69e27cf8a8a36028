//! Statements as PostgreSQL gets them, whatever names they hold.

use super::*;

const HOSTILE: &str = "\"; drop table x; --";

fn hostile() -> TableName {
    TableName::new("a\"b", HOSTILE)
}

#[test]
fn a_literal_cannot_leave_its_quotes() {
    let cases = [("plain", "'plain'"), ("it's", "'it''s'"), (r"a\'; x", r"E'a\\''; x'"), ("", "''")];
    for (text, expected) in cases {
        assert_eq!(quote_literal(text), expected);
    }
}

#[test]
fn a_part_of_a_table_is_read_by_its_pages() {
    let columns = ["id".to_owned(), "we\"ird".to_owned()];
    let table = TableName::new("public", "orders");
    let sql = |pages| copy_out(&table, &columns, CopyFormat::Binary, pages).as_str().to_owned();
    assert_eq!(sql(None), r#"copy (select "id", "we""ird" from only "public"."orders") to stdout (format binary)"#);
    assert_eq!(
        sql(Some(PageRange { from: 7, to: Some(9) })),
        r#"copy (select "id", "we""ird" from only "public"."orders" where ctid >= '(7,0)'::pg_catalog.tid and ctid < '(9,0)'::pg_catalog.tid) to stdout (format binary)"#
    );
    assert!(sql(Some(PageRange { from: 9, to: None })).contains("ctid >= '(9,0)'::pg_catalog.tid) to"));
}

#[test]
fn a_table_without_columns_can_be_copied() {
    let table = TableName::new("public", "t");
    let out = copy_out(&table, &[], CopyFormat::Text, None);
    assert_eq!(out.as_str(), r#"copy (select  from only "public"."t") to stdout (format text)"#);
    assert_eq!(copy_in(&table, &[], CopyFormat::Text).as_str(), r#"copy "public"."t" from stdin (format text)"#);
}

#[test]
fn a_publication_takes_partitioned_tables_whole_and_our_own_schema_never() {
    let member =
        |schema: &str, name: &str, is_partitioned| TableRef { name: TableName::new(schema, name), is_partitioned };
    let members =
        [member("public", "a", false), member("public", "p", true), member("steep_repl", "operations", false)];
    let sql = create_publication("steep", &members).as_str().to_owned();
    assert!(sql.starts_with(r#"create publication "steep" for table only "public"."a", "public"."p" with"#), "{sql}");
    assert!(!sql.contains("steep_repl"));
    assert!(add_to_publication("steep", &members[2..]).is_none());
    assert!(!create_publication("steep", &[]).as_str().contains("for table"));
}

#[test]
fn fifteen_is_never_asked_to_filter_origins() {
    let conninfo = Conninfo::parse("host=a").expect("a conninfo");
    let new = |origin, number| NewSubscription {
        name: "s",
        conninfo: &conninfo,
        publication: "steep",
        slot: "slot",
        origin,
        copies: false,
        version: Version::from_number(number),
    };
    let sql = |origin, number| create_subscription(&new(origin, number)).map(|s| s.as_str().to_owned());
    assert!(sql(OriginFilter::None, 160_000).expect("to render").contains("origin = none"));
    assert!(!sql(OriginFilter::Any, 150_018).expect("to render").contains("origin"));
    assert!(matches!(sql(OriginFilter::None, 150_018), Err(Error::Unsupported { .. })));
}

#[test]
fn hostile_names_stay_names_in_every_statement() {
    let names = [hostile()];
    let refs = [TableRef { name: hostile(), is_partitioned: false }];
    let conninfo = Conninfo::parse("host=a").expect("a conninfo").with("dbname", "x'; drop table y; --");
    let new = NewSubscription {
        name: HOSTILE,
        conninfo: &conninfo,
        publication: HOSTILE,
        slot: "slot",
        origin: OriginFilter::Any,
        copies: false,
        version: Version::from_number(180_004),
    };
    let statements = [
        lock_access_share(&names),
        truncate(&refs),
        analyze(&names),
        copy_out(&names[0], &[HOSTILE.to_owned()], CopyFormat::Text, None),
        copy_in(&names[0], &[HOSTILE.to_owned()], CopyFormat::Text),
        count_rows(&names),
        tables_with_rows(&names),
        read_sequences(&names),
        create_publication(HOSTILE, &refs),
        drop_publication(HOSTILE),
        create_subscription(&new).expect("to render"),
        enable_subscription(HOSTILE),
        set_snapshot("x'; drop table y; --"),
    ];
    for statement in statements {
        let outside: String = outside_quotes(statement.as_str());
        assert!(!outside.contains("drop table") && !outside.contains("--"), "{}", statement.as_str());
    }
}

/// What a server would read as SQL: the text without quoted identifiers and literals.
fn outside_quotes(sql: &str) -> String {
    let mut outside = String::new();
    let mut quote = None;
    for c in sql.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None => outside.push(c),
        }
    }
    outside
}

#[test]
fn slot_names_are_what_postgresql_takes() {
    for good in ["a", "steep_node_b_0123456789ab", &"x".repeat(63)] {
        assert!(SlotName::parse(good).is_ok(), "{good}");
    }
    for bad in ["", "A", "a-b", "a b", "a\"", "é", &"x".repeat(64)] {
        assert!(matches!(SlotName::parse(bad), Err(Error::BadSlotName(_))), "{bad}");
    }
}
