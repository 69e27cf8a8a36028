//! What is planned, in which order, and what is left alone.

use serde_json::{Value, json};
use steep_protocol::names::TableName;

use super::{columns::is_wider, *};
use crate::schema::catalog::{Environment, ObjectKind, Table};

fn table(columns: &Value, shape: &Value) -> Table {
    let mut whole = json!({ "kind": "r", "persistence": "p", "replident": "d", "rls": [false, false] });
    for (key, value) in shape.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    Table::parse(&name(), columns, &whole).expect("a document")
}

fn name() -> TableName {
    TableName::new("public", "t")
}

fn catalog(table: Table) -> Catalog {
    let environment = Environment { server_version_num: 180_004, ..Environment::default() };
    let tables = [(name(), table)].into_iter().collect();
    Catalog { tables, objects: BTreeMap::new(), environment, server_major: 18 }
}

fn planned(source: Table, target: Table) -> Plan {
    plan(&catalog(source), &catalog(target))
}

fn statements(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|step| step.sql.as_str()).collect()
}

fn columns(columns: Value) -> Table {
    table(&columns, &json!({}))
}

#[test]
fn only_types_that_hold_every_value_the_same_way_are_wider() {
    for (from, to) in [
        ("character varying(10)", "character varying(11)"),
        ("character varying(10)", "character varying"),
        ("character varying(10)", "text"),
        ("character varying", "text"),
        ("numeric(8,2)", "numeric(9,2)"),
    ] {
        assert!(is_wider(from, to), "{from} to {to}");
        assert!(!is_wider(to, from), "{to} to {from}");
    }
    for (from, to) in [
        ("numeric(8,2)", "numeric(9,3)"),
        ("numeric(8,2)", "numeric"),
        ("integer", "bigint"),
        ("character(5)", "character(6)"),
        ("character varying(10)[]", "character varying(20)[]"),
        ("character varying(10)", "app.text"),
        ("timestamp(0) without time zone", "timestamp without time zone"),
    ] {
        assert!(!is_wider(from, to), "{from} to {to}");
    }
}

#[test]
fn a_column_is_added_when_no_row_has_to_be_looked_at() {
    let base = json!(["id", "integer", null, true]);
    let cases = [
        (json!(["c", "text", null, false]), Some("ADD COLUMN \"c\" text")),
        (json!(["c", "integer", "5", true]), Some("ADD COLUMN \"c\" integer DEFAULT (5) NOT NULL")),
        (json!(["c", "timestamp with time zone", "now()", false]), Some("ADD COLUMN \"c\" timestamp with time zone")),
        (json!(["c", "text", null, false, null, "v", "upper(d)"]), Some("GENERATED ALWAYS AS (upper(d)) VIRTUAL")),
        (json!(["c", "integer", null, true]), None),
        (json!(["c", "timestamp with time zone", "now()", true]), None),
        (json!(["c", "integer", "nextval(owned)", false]), None),
        (json!(["c", "integer", null, true, "a"]), None),
        (json!(["c", "text", null, false, null, "s", "upper(d)"]), None),
        (json!(["c", "integer DEFAULT 1", null, false]), None),
        (json!(["c", "integer", "1), DROP COLUMN id, ADD COLUMN x integer DEFAULT (1", false]), None),
    ];
    for (column, expected) in cases {
        let plan = planned(columns(json!([base, column])), columns(json!([base])));
        let told = statements(&plan).join("; ");
        match expected {
            Some(text) => {
                assert!(told.contains(text) && plan.hazards.is_empty(), "{column}: {told} {:?}", plan.hazards)
            }
            None => assert!(plan.steps.is_empty() && plan.hazards.len() == 1, "{column}: {told} {:?}", plan.hazards),
        }
    }
}

#[test]
fn what_is_only_on_the_target_is_never_dropped() {
    let more = json!([["id", "integer", null, true], ["extra", "text", "'x'::text", false]]);
    let shape = json!({
        "cons": [["c", "c", "CHECK ((id > 0))", true, true]],
        "idx": [["i", "CREATE INDEX i ON public.t USING btree (id)", true]],
        "trg": [["g", "CREATE TRIGGER g …", "O"]],
    });
    let plan = planned(columns(json!([["id", "integer", null, true]])), table(&more, &shape));
    assert!(plan.steps.is_empty(), "{:?}", statements(&plan));
    assert_eq!(plan.hazards.len(), 4, "{:#?}", plan.hazards);
    assert!(plan.hazards.iter().all(|hazard| !hazard.by_hand.is_empty() && !hazard.why.is_empty()));
}

#[test]
fn null_is_forbidden_without_a_long_lock_in_the_way_of_each_version() {
    let (source, target) = (columns(json!([["a", "text", null, true]])), columns(json!([["a", "text", null, false]])));
    let native = planned(source.clone(), target.clone());
    assert_eq!(
        statements(&native),
        [
            r#"ALTER TABLE "public"."t" ADD CONSTRAINT "t_a_not_null" NOT NULL "a" NOT VALID"#,
            r#"ALTER TABLE "public"."t" VALIDATE CONSTRAINT "t_a_not_null""#,
        ]
    );
    assert!(native.steps[1].outside_transaction && !native.steps[0].outside_transaction);
    let mut older = catalog(target);
    older.server_major = 15;
    let plan = plan(&catalog(source), &older);
    let told = statements(&plan);
    assert!(told[0].contains("CHECK (\"a\" IS NOT NULL) NOT VALID") && told[1].contains("VALIDATE"), "{told:?}");
    assert!(told[2].ends_with("SET NOT NULL") && told[3].contains("DROP CONSTRAINT \"steep_not_null_"), "{told:?}");
}

#[test]
fn a_large_plan_keeps_its_order_and_is_a_match_in_the_end() {
    let source = table(
        &json!([["id", "bigint", null, true], ["name", "text", "'x'::text", false], ["extra", "integer", null, false]]),
        &json!({
            "replident": "f",
            "cons": [["positive", "c", "CHECK ((id > 0))", true, true]],
            "idx": [["by_name", "CREATE INDEX by_name ON public.t USING btree (name)", true]],
        }),
    );
    let target = columns(json!([["id", "bigint", null, false], ["name", "character varying(5)", null, true]]));
    let plan = planned(source, target);
    let kinds: Vec<_> = plan.steps.iter().map(|step| step.kind).collect();
    use StepKind::*;
    assert_eq!(
        kinds,
        [
            AddColumn,
            DropNotNull,
            WidenType,
            SetDefault,
            CreateIndex,
            AddConstraint,
            AddConstraint,
            ValidateConstraint,
            ValidateConstraint,
            ReplicaIdentity
        ]
    );
    assert!(plan.hazards.is_empty());
    let expected = plan.expected(|_, _| true);
    assert!(crate::schema::compare::compare(&expected, &plan.source).is_match());
    assert!(plan.script().contains("CREATE INDEX CONCURRENTLY \"by_name\""));
}

#[test]
fn labels_are_added_where_they_stand_and_never_moved() {
    let catalog = |labels: Value| {
        let key = ObjectKey { kind: ObjectKind::Enum, name: TableName::new("app", "mood") };
        let object = Object::parse(&key, "", &json!({ "labels": labels })).expect("a document");
        Catalog { objects: [(key, object)].into_iter().collect(), server_major: 18, ..Catalog::default() }
    };
    let settled = plan(&catalog(json!(["a", "b", "it's", "d"])), &catalog(json!(["b", "d"])));
    assert_eq!(
        statements(&settled),
        [
            r#"ALTER TYPE "app"."mood" ADD VALUE 'a' BEFORE 'b'"#,
            r#"ALTER TYPE "app"."mood" ADD VALUE 'it''s' AFTER 'b'"#,
        ]
    );
    assert!(settled.hazards.is_empty() && settled.steps.iter().all(|step| step.outside_transaction));
    for there in [json!(["b", "a"]), json!(["x"]), json!(["a", "b", "c"])] {
        let plan = plan(&catalog(json!(["a", "b"])), &catalog(there.clone()));
        assert!(plan.steps.is_empty() && plan.hazards.len() == 1, "{there}");
    }
}

#[test]
fn an_index_or_constraint_waits_for_its_columns() {
    let shape = json!({
        "cons": [["c", "c", "CHECK ((a > 0))", true, true], ["u", "u", "UNIQUE (a)", true, true]],
        "idx": [["i", "CREATE INDEX i ON public.t USING btree (a)", true]],
    });
    let source = table(&json!([["a", "integer", null, false]]), &shape);
    let plan = planned(source, columns(json!([["a", "text", null, false]])));
    assert!(plan.steps.is_empty(), "{:?}", statements(&plan));
    let waits = plan.hazards.iter().filter(|hazard| hazard.why.contains("needs column a")).count();
    assert_eq!((plan.hazards.len(), waits), (4, 3), "{:#?}", plan.hazards);
}
