//! Each kind of difference, and how it is told.

use serde_json::{Value, json};
use steep_protocol::names::TableName;

use super::*;

fn table(columns: &Value, shape: &Value) -> Table {
    let mut whole = json!({ "kind": "r", "persistence": "p", "replident": "d", "rls": [false, false] });
    for (key, value) in shape.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    Table::parse(&TableName::new("public", "t"), columns, &whole).expect("a document")
}

fn told(left: &Table, right: &Table) -> String {
    summary(&differences(left, right), "node_a", "node_b")
}

#[test]
fn every_difference_of_a_column_is_named() {
    let plain = json!(["c", "text", null, false, null, null, null, null]);
    let cases = [
        (json!(["c", "integer", null, false]), "type of c differs"),
        (json!(["c", "text", "'x'::text", false]), "default of c differs"),
        (json!(["c", "text", null, true]), "nullability of c differs"),
        (json!(["c", "text", null, false, "a"]), "identity of c differs"),
        (json!(["c", "text", null, false, null, "s", "upper(d)"]), "generation of c differs"),
        (json!(["c", "text", null, false, null, null, null, "pg_catalog.C"]), "collation of c differs"),
        (json!(["d", "text", null, false]), "column c missing on node_b; column d exists only on node_b"),
    ];
    let left = table(&json!([plain]), &json!({}));
    for (column, expected) in cases {
        assert_eq!(told(&left, &table(&json!([column]), &json!({}))), expected);
    }
}

#[test]
fn every_difference_of_a_shape_is_named() {
    let cases = [
        (json!({ "kind": "p", "partkey": "HASH (c)" }), "it is partitioned on node_b only; partition key differs"),
        (json!({ "persistence": "u" }), "it is unlogged on node_b only"),
        (json!({ "replident": "f" }), "replica identity differs"),
        (json!({ "replident": ["c"] }), "replica identity differs"),
        (json!({ "bound": "DEFAULT" }), "partition bound differs"),
        (json!({ "parents": ["public.p"] }), "parents differs"),
        (json!({ "rls": [true, false] }), "row security differs"),
        (json!({ "cons": [["k", "p", "PRIMARY KEY (c)", true, true]] }), "primary key k exists only on node_b"),
        (json!({ "cons": [["k", "c", "CHECK ((c > 0))", true, "true"]] }), "check k exists only on node_b"),
        (
            json!({ "idx": [["i", "CREATE INDEX i ON public.t USING btree (c)", true]] }),
            "index i exists only on node_b",
        ),
        (json!({ "trg": [["g", "CREATE TRIGGER g …", "O"]] }), "trigger g exists only on node_b"),
        (json!({ "pol": [["p", "*", true, "true", null, ["public"]]] }), "policy p exists only on node_b"),
        (json!({ "rules": [["r", "CREATE RULE r …", "O"]] }), "rule r exists only on node_b"),
    ];
    let left = table(&json!([]), &json!({}));
    for (shape, expected) in cases {
        assert_eq!(told(&left, &table(&json!([]), &shape)), expected);
    }
}

#[test]
fn a_constraint_of_the_same_name_and_another_kind_is_another_one() {
    let left = table(&json!([]), &json!({ "cons": [["k", "u", "UNIQUE (c)", true, true]] }));
    let right = table(&json!([]), &json!({ "cons": [["k", "c", "CHECK (c)", true, true]] }));
    assert_eq!(told(&left, &right), "unique k missing on node_b; check k exists only on node_b");
}

#[test]
fn two_versions_stand_side_by_side() {
    let left = table(
        &json!([
            ["id", "bigint", null, true],
            ["loyalty_tier", "text", null, false],
            ["created_at", "timestamp with time zone", "now()", false]
        ]),
        &json!({ "idx": [["tier", "CREATE INDEX tier ON public.t USING btree (loyalty_tier)", true]] }),
    );
    let right = table(
        &json!([
            ["id", "bigint", null, true],
            ["created_at", "timestamp with time zone", "CURRENT_TIMESTAMP", false],
            ["old", "text", null, false]
        ]),
        &json!({}),
    );
    let shown: Vec<_> = rows(&left, &right).iter().map(|row| format!("{} {}", row.mark.as_char(), row.name)).collect();
    assert_eq!(shown, ["= id", "+ loyalty_tier", "~ created_at", "- old", "+ index tier"]);
    let expected = "column loyalty_tier missing on node_b; default of created_at differs; \
                    column old exists only on node_b; index tier missing on node_b";
    assert_eq!(told(&left, &right), expected);
}

#[test]
fn a_hostile_name_or_text_cannot_redraw_a_terminal() {
    let left = table(&json!([["\u{1b}[31m", "text", "'\u{202e}'", false]]), &json!({}));
    let right = table(&json!([]), &json!({}));
    for row in rows(&left, &right) {
        let all = format!("{}{}", row.name, row.left.unwrap_or_default());
        assert!(!all.contains(['\u{1b}', '\u{202e}']), "{all:?}");
    }
    assert!(!told(&left, &right).contains('\u{1b}'));
}

#[test]
fn a_document_that_cannot_be_read_says_where() {
    let name = TableName::new("public", "t");
    let columns = json!([["a", "text", null, false], ["b", 7, null, false]]);
    let error = Table::parse(&name, &columns, &json!({ "kind": "r" })).expect_err("a bad document");
    assert_eq!(error.to_string(), "table public.t: columns[1][1] is 7, a text is expected");
    let shape = json!({ "kind": "r", "persistence": "p", "replident": "q" });
    let error = Table::parse(&name, &json!([]), &shape).expect_err("a bad document");
    assert!(error.to_string().contains("shape.replident"), "{error}");
    let newer = json!({ "kind": "r", "persistence": "p", "replident": "d", "rls": [false, false], "later": {} });
    assert!(Table::parse(&name, &json!([["a", "text", null, false, null, null, null, null, "more"]]), &newer).is_ok());
}
