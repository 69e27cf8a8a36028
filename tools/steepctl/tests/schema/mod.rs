//! What `steepctl schema …` promises, tried against an agent that plays a script.

use std::fs;

use serde_json::Value;
use steep_protocol::{
    failure::{Code, Failure},
    time, v1,
};

use crate::{
    json,
    scripted::{Mesh, Schemas, Script, ScriptedAgent},
};

fn name(name: &str) -> Option<v1::TableName> {
    Some(v1::TableName { schema: "public".into(), name: name.into() })
}

fn table(table: &str, verdict: &str) -> v1::TableComparison {
    v1::TableComparison { table: name(table), verdict: verdict.into(), ..v1::TableComparison::default() }
}

fn row(mark: &str, name: &str, left: &str, right: &str) -> v1::SideBySide {
    let [mark, name, left, right] = [mark, name, left, right].map(str::to_owned);
    v1::SideBySide { mark, aspect: "column".into(), name, left, right }
}

fn side(node: &str) -> v1::SideView {
    v1::SideView {
        node_id: node.into(),
        captured_at: Some(time::now()),
        is_complete: true,
        server_version: "18.4".into(),
        ..v1::SideView::default()
    }
}

/// node_a has a column and a table more than node_b, and both have 21 tables that are the same.
fn drifted() -> v1::CompareSchemasReply {
    let difference = |summary: &str, is_blocking| v1::SchemaDifference {
        aspect: "column".into(),
        summary: summary.into(),
        is_blocking,
        ..v1::SchemaDifference::default()
    };
    let customers = v1::TableComparison {
        is_blocking: true,
        differences: vec![
            difference("default of created_at differs", false),
            difference("column loyalty_tier missing on node_b", true),
        ],
        rows: vec![
            row("=", "id", "bigint not null", "bigint not null"),
            row("+", "loyalty_tier", "text", ""),
            row("~", "created_at", "timestamp with time zone default now()", "timestamp with time zone"),
        ],
        ..table("customers", "MISMATCH")
    };
    let inventory = v1::TableComparison { is_blocking: true, ..table("inventory", "LOCAL_ONLY") };
    let same = (0..21).map(|at| table(&format!("t{at}"), "MATCH"));
    v1::CompareSchemasReply {
        served_by: "node_a".into(),
        left: Some(side("node_a")),
        right: Some(side("node_b")),
        tables: [customers, inventory].into_iter().chain(same).collect(),
        ..v1::CompareSchemasReply::default()
    }
}

fn same() -> v1::CompareSchemasReply {
    let mut compared = drifted();
    compared.tables.retain(|table| table.verdict == "MATCH");
    compared
}

fn plan() -> v1::PlanSchemaReply {
    let step = v1::PlanStep {
        kind: "add_column".into(),
        title: "add column on public.customers".into(),
        sql: r#"ALTER TABLE "public"."customers" ADD COLUMN "loyalty_tier" text;"#.into(),
        reversal: "reversible: alter table … drop column".into(),
        ..v1::PlanStep::default()
    };
    let hazard = v1::PlanHazard {
        object: "table public.orders".into(),
        what: "type of total differs".into(),
        why: "narrowing could lose values".into(),
        by_hand: "alter the type yourself".into(),
    };
    v1::PlanSchemaReply {
        source_digest: "aa".repeat(32),
        target_digest: "bb".repeat(32),
        steps: vec![step],
        hazards: vec![hazard],
        ..v1::PlanSchemaReply::default()
    }
}

fn start(mesh: &Mesh, schemas: Schemas) -> ScriptedAgent {
    ScriptedAgent::start(mesh, Script { schemas, ..Script::initialization(1, "completed") })
}

fn comparing(mesh: &Mesh, compared: v1::CompareSchemasReply) -> ScriptedAgent {
    start(mesh, Schemas { compared, ..Schemas::default() })
}

/// Without the time of day, which is when the test ran.
fn timeless(stdout: &str) -> String {
    let lines = stdout.lines().map(|line| line.split("   captured ").next().unwrap_or_default());
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_comparison_shows_what_differs_and_the_commands_that_say_more() {
    let mesh = Mesh::new();
    let agent = comparing(&mesh, drifted());
    let ended = mesh.run(&format!("schema compare node_a node_b --peer {}", agent.address)).succeeds();
    let expected = "\
STATUS      TABLE             DETAIL
MISMATCH    public.customers  column loyalty_tier missing on node_b; default of created_at differs
LOCAL_ONLY  public.inventory  exists only on node_a
MATCH       21 tables         (hidden, use --all)
21 match, 1 mismatch, 1 local-only, 0 remote-only; 2 tables cannot be replicated as they are: public.customers, public.inventory.
next: steepctl schema diff node_a node_b     steepctl schema plan node_a node_b
";
    assert_eq!(timeless(&ended.stdout), expected);
    assert_eq!(ended.stderr, "");
    assert!(ended.stdout.contains("Z / "), "no times of capture in:\n{}", ended.stdout);

    let all = mesh.run(&format!("schema compare node_a node_b --all --peer {}", agent.address)).succeeds();
    assert_eq!(all.stdout.matches("public.t").count(), 21);
    let some = format!("schema compare node_a node_b --tables customers --peer {}", agent.address);
    let some = mesh.run(&some).succeeds().prints("schema diff node_a node_b public.customers ");
    let some = some.prints("schema plan node_a node_b --tables public.customers");
    assert!(!some.stdout.contains("inventory"), "{}", some.stdout);
}

#[test]
fn only_exit_code_makes_differences_a_code_and_what_is_not_seen_is_not_the_same() {
    let mesh = Mesh::new();
    let compare = |compared, options: &str| {
        let agent = comparing(&mesh, compared);
        mesh.run(&format!("schema compare node_a node_b {options} --peer {}", agent.address))
    };
    compare(drifted(), "").exits(0);
    compare(drifted(), "--exit-code").exits(12);
    compare(drifted(), "--exit-code -o json").exits(12);
    let good = compare(same(), "--exit-code").exits(0).prints("21 match, 0 mismatch, 0 local-only, 0 remote-only.");
    assert!(!good.stdout.contains("next:"), "{}", good.stdout);

    let harmless = |is_harmless| v1::CompareSchemasReply {
        environment: vec![v1::EnvironmentDifference {
            name: "server version".into(),
            left: Some("18.4".into()),
            right: Some("17.1".into()),
            is_harmless,
        }],
        ..same()
    };
    compare(harmless(true), "--exit-code").exits(0).prints("server version: 18.4 on node_a, 17.1 on node_b");
    compare(harmless(false), "--exit-code").exits(12);
    let object = v1::ObjectComparison {
        kind: "enum".into(),
        object: name("mood"),
        verdict: "LOCAL_ONLY".into(),
        left: Some("sad, ok".into()),
        right: None,
    };
    let typed = v1::CompareSchemasReply { objects: vec![object], ..same() };
    compare(typed, "--exit-code").exits(12).prints("LOCAL_ONLY  enum public.mood: sad, ok, only on node_a");

    let captured_at = prost_types::Timestamp { seconds: 1_000, nanos: 0 };
    let reason = "cannot reach node_b\u{1b}[2J".to_owned();
    let cached = v1::SideView { is_cached: true, reason, captured_at: Some(captured_at), ..side("node_b") };
    let stale = v1::CompareSchemasReply { right: Some(cached.clone()), ..same() };
    compare(stale.clone(), "").exits(0).prints("node_b IS NOT SEEN NOW, but as it was ");
    let told = compare(stale, "--exit-code").exits(6).prints(r": cannot reach node_b\u{1b}[2J");
    assert!(told.stdout.contains("1970-01-01 00:16:40Z"), "{}", told.stdout);
    compare(v1::CompareSchemasReply { right: Some(cached), ..drifted() }, "--exit-code").exits(12);
    let partial = v1::SideView { is_complete: false, ..side("node_a") };
    let partial = v1::CompareSchemasReply { left: Some(partial), ..same() };
    compare(partial, "--exit-code").exits(6).prints("node_a IS INCOMPLETE: its agent may not read all of it");
}

#[test]
fn a_diff_stands_side_by_side_and_fits_the_terminal() {
    let mesh = Mesh::new();
    let agent = comparing(&mesh, drifted());
    let diff = format!("schema diff node_a node_b customers --peer {}", agent.address);
    let ended = mesh.run(&diff).succeeds();
    let expected = "  public.customers  node_a                              node_b
  id                bigint not null                     =
+ loyalty_tier      text                                (missing)
~ created_at        timestamp with time zone default    timestamp with time zone
                    now()
  1 missing on node_b, 1 changed.

1 table differs.
to fix node_b:  steepctl schema plan node_a node_b --tables public.customers
";
    assert_eq!(timeless(&ended.stdout), expected);
    let wide = mesh.command(&diff).env("COLUMNS", "200").output().expect("steepctl runs");
    let wide = String::from_utf8(wide.stdout).expect("UTF-8");
    assert!(wide.contains("timestamp with time zone default now()  timestamp with time zone\n"), "{wide}");

    let all = mesh.run(&format!("schema diff node_a node_b --peer {}", agent.address)).succeeds();
    let all = all.prints("exists only on node_a.").prints("2 tables differ.");
    assert!(all.stdout.ends_with("to fix node_b:  steepctl schema plan node_a node_b\n"), "{}", all.stdout);
    let last = agent.compared().pop().expect("asked").selection.expect("only what differs is asked for with rows");
    assert_eq!(last.tables.len(), 2);

    let same = mesh.run(&format!("schema diff node_a node_b t3 --peer {}", agent.address)).succeeds();
    assert!(!same.prints("the same on both.").stdout.contains("to fix"), "nothing is to be fixed");
    let none = mesh.run(&format!("schema diff node_a node_b nothing --peer {}", agent.address)).exits(8);
    none.says("neither node_a nor node_b has table public.nothing [STP-2208]").says("Hint: check the spelling");
    mesh.run(&format!("schema diff node_a node_a --peer {}", agent.address)).exits(8).says("[STP-5004]");
}

#[test]
fn names_from_a_database_cannot_redraw_the_terminal() {
    const HOSTILE: &str = "\u{1b}[2J\u{202e}\r\n";
    let mesh = Mesh::new();
    let difference = v1::SchemaDifference { summary: HOSTILE.into(), ..v1::SchemaDifference::default() };
    let hostile = v1::TableComparison {
        differences: vec![difference],
        rows: vec![row("~", HOSTILE, HOSTILE, HOSTILE), row(HOSTILE, "c", "1", "2")],
        qualifier: HOSTILE.into(),
        ..table(HOSTILE, "MISMATCH")
    };
    let compared = v1::CompareSchemasReply { tables: vec![hostile], ..drifted() };
    let mut plan = plan();
    plan.steps[0].title = HOSTILE.into();
    plan.steps[0].sql = HOSTILE.into();
    plan.hazards[0].by_hand = HOSTILE.into();
    let change = v1::SchemaChange { table: name(HOSTILE), differences: vec![HOSTILE.into()], ..Default::default() };
    let agent = start(&mesh, Schemas { compared, plan, changes: vec![change], ..Schemas::default() });
    for line in [
        "schema compare node_a node_b",
        "schema diff node_a node_b",
        "schema plan node_a node_b",
        "schema sync node_a node_b",
        "schema sync node_a node_b --apply --confirm node_b",
        "schema history node_a",
    ] {
        let ended = mesh.run(&format!("{line} --peer {}", agent.address)).succeeds();
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!all.contains(['\u{1b}', '\u{202e}', '\r']), "{line}:\n{all:?}");
        assert!(all.contains(r"\u{1b}[2J\u{202e}"), "{line}:\n{all}");
    }
}

#[test]
fn a_plan_is_sql_that_says_who_would_be_changed() {
    let mesh = Mesh::new();
    let agent = start(&mesh, Schemas { plan: plan(), ..Schemas::default() });
    let line = format!("schema plan node_a node_b --schemas public --peer {}", agent.address);
    let ended = mesh.run(&line).succeeds();
    let expected = r#"-- Changes node_b to look like node_a; node_a stays as it is. Nothing of this was run.
-- 1 statement, 1 thing to do by hand.
-- To run it on node_b: steepctl schema sync node_a node_b --apply --schemas public
-- or, by hand on node_b: psql -v ON_ERROR_STOP=1 -f FILE, not as one transaction, with lock_timeout set.

-- by hand: table public.orders: type of total differs
--   why: narrowing could lose values
--   do: alter the type yourself

-- add column on public.customers (reversible: alter table … drop column)
ALTER TABLE "public"."customers" ADD COLUMN "loyalty_tier" text;
"#;
    assert_eq!(ended.stdout, expected);
    let written = mesh.run(&format!("{line} --output-file plan.sql")).succeeds().says("written to plan.sql");
    assert_eq!(written.stdout, "");
    assert_eq!(fs::read_to_string(mesh.path("plan.sql")).expect("the file"), expected);
    let again = mesh.run(&format!("{line} --output-file plan.sql")).exits(8);
    again.says("[STP-1107]").says("choose another --output-file");
}

#[test]
fn nothing_is_synced_without_apply_and_a_name_that_confirms_it() {
    let mesh = Mesh::new();
    let agent = start(&mesh, Schemas { plan: plan(), ..Schemas::default() });
    let sync = format!("schema sync node_a node_b --tables customers --peer {}", agent.address);
    mesh.run(&sync).succeeds().prints("ADD COLUMN").says("nothing was changed; add --apply to run this plan");
    let refused = mesh.run(&format!("{sync} --apply")).exits(8).says("[STP-5009]").says("nobody can be asked");
    refused.says("schema sync node_a node_b --tables public.customers --apply --confirm node_b");
    mesh.run(&format!("{sync} --apply --yes")).exits(8).says("[STP-5009]");
    mesh.run(&format!("{sync} --apply --no-input")).exits(8).says("[STP-5009]");
    mesh.run(&format!("{sync} --apply --confirm node_a")).exits(8).says("--confirm names node_a, but node_b");
    mesh.run(&format!("{sync} --confirm node_b")).exits(2);
    assert_eq!(agent.synced(), []);

    let ended = mesh.run(&format!("{sync} --apply --confirm node_b")).succeeds();
    let expected = "\
+ add column on public.customers
! by hand: table public.orders: type of total differs
    why: narrowing could lose values
    do: alter the type yourself
1 statement run on node_b; 1 thing left to do by hand
";
    assert_eq!(ended.stdout, expected);
    ended.says("ADD COLUMN");
    let (request, intent) = agent.synced().pop().expect("synced");
    assert_eq!((request.source_digest, request.target_digest), (plan().source_digest, plan().target_digest));
    assert_eq!((intent.action.as_str(), intent.target.as_str()), ("schema.sync", "node_b"));
    assert_eq!(intent.selection, request.selection);
    assert_eq!(intent.selection.expect("signed").tables.len(), 1);
}

#[test]
fn a_sync_with_nothing_to_run_asks_for_nothing_and_one_that_fails_says_how_to_go_on() {
    let mesh = Mesh::new();
    let agent = start(&mesh, Schemas::default());
    let sync = "schema sync node_a node_b --apply --confirm node_b";
    let ended = mesh.run(&format!("{sync} --peer {}", agent.address)).succeeds();
    assert_eq!(ended.stdout, "nothing to do: node_b looks like node_a\n");
    assert_eq!(agent.synced(), []);

    let refused = |code, text: &str| {
        let refusal = Some(Failure::new(code, text).hint("plan again"));
        let agent = start(&mesh, Schemas { plan: plan(), refusal, ..Schemas::default() });
        mesh.run(&format!("{sync} --peer {}", agent.address)).says(text)
    };
    let left = "Hint: plan again; steepctl schema plan node_a node_b shows what is left";
    refused(Code::SchemaChanged, "node_b has changed since the plan was made").exits(3).says(left);
    // Another agent had taken the order, and its answer was lost.
    refused(Code::IntentUsed, "the request was used before").exits(7).says(left);
    let denied = refused(Code::Denied, "a viewer may not change node_b").exits(7);
    assert!(!denied.stderr.contains("what is left"), "{}", denied.stderr);
}

#[test]
fn an_export_is_one_document_and_never_half_of_one() {
    let mesh = Mesh::new();
    let exported = v1::TableSchema {
        table: name("orders"),
        columns: r#"[["id","bigint",null,true,null,null,null,null]]"#.into(),
        definition: r#"{"kind":"r"}"#.into(),
        ..v1::TableSchema::default()
    };
    let object =
        v1::ObjectSchema { kind: "enum".into(), definition: r#"{"labels":["a"]}"#.into(), ..Default::default() };
    let environment = v1::SchemaEnvironment { is_complete: true, definition: "{}".into(), ..Default::default() };
    let pages = vec![
        v1::SchemaPage { tables: vec![exported], ..v1::SchemaPage::default() },
        v1::SchemaPage { objects: vec![object], environment: Some(environment), ..v1::SchemaPage::default() },
    ];
    let agent = start(&mesh, Schemas { pages: pages.clone(), ..Schemas::default() });
    let ended = mesh.run(&format!("schema export node_a --peer {}", agent.address)).succeeds();
    let document = json(&ended.stdout);
    assert_eq!(document["tables"][0]["columns"][0][1], "bigint");
    assert_eq!(document["tables"][0]["table"]["name"], "orders");
    assert_eq!(document["objects"][0]["definition"]["labels"][0], "a");
    assert_eq!(ended.stderr, "");
    let line = format!("schema export node_a --output-file a.json --peer {}", agent.address);
    mesh.run(&line).succeeds().says("written to a.json: 1 table");
    assert_eq!(json(&fs::read_to_string(mesh.path("a.json")).expect("the file")), document);

    let agent = start(&mesh, Schemas { pages: pages[..1].to_vec(), ..Schemas::default() });
    let ended = mesh.run(&format!("schema export node_a --peer {}", agent.address)).exits(6);
    assert_eq!(ended.says("ended before its last page").stdout, "");
}

#[test]
fn a_history_and_a_capture_say_what_a_node_noticed() {
    let mesh = Mesh::new();
    let noticed_at = Some(prost_types::Timestamp { seconds: 1_000, nanos: 0 });
    let change = |table: &str, change: &str, differences: &[&str]| v1::SchemaChange {
        table: name(table),
        change: change.into(),
        noticed_at,
        differences: differences.iter().map(|text| (*text).to_owned()).collect(),
        ..v1::SchemaChange::default()
    };
    let changes = vec![change("orders", "changed", &["column total added"]), change("items", "dropped", &[])];
    let agent = start(&mesh, Schemas { changes, is_incomplete: true, ..Schemas::default() });
    let ended = mesh.run(&format!("schema history node_a --peer {}", agent.address)).succeeds();
    let expected = "\
NOTICED               CHANGE   TABLE          DETAIL
1970-01-01 00:16:40Z  changed  public.orders  column total added
1970-01-01 00:16:40Z  dropped  public.items   -
";
    assert_eq!(ended.stdout, expected);
    let one = mesh.run(&format!("schema history node_a --table items --limit 1 --peer {}", agent.address)).succeeds();
    assert_eq!(one.stdout.lines().count(), 2);

    let ended = mesh.run(&format!("schema capture node_a --peer {}", agent.address)).succeeds();
    ended.prints("changed   2").prints("node_a IS INCOMPLETE").says("next: steepctl schema history node_a");
}

#[test]
fn every_command_about_schemas_speaks_json_and_keeps_stderr_clean() {
    let mesh = Mesh::new();
    let environment = v1::SchemaEnvironment { is_complete: true, ..v1::SchemaEnvironment::default() };
    let pages = vec![v1::SchemaPage { environment: Some(environment), ..v1::SchemaPage::default() }];
    let agent = start(&mesh, Schemas { compared: drifted(), plan: plan(), pages, ..Schemas::default() });
    let spoken = |line: &str| -> Value {
        let ended = mesh.run(&format!("{line} -o json --peer {}", agent.address)).succeeds();
        assert_eq!(ended.stderr, "", "{line}");
        json(&ended.stdout)
    };
    assert_eq!(spoken("schema capture node_a")["changed"], 2);
    assert_eq!(spoken("schema compare node_a node_b")["tables"][0]["verdict"], "MISMATCH");
    let diff = spoken("schema diff node_a node_b");
    assert_eq!(
        (diff["tables"].as_array().map(Vec::len), &diff["tables"][0]["rows"][1]["mark"]),
        (Some(2), &"+".into())
    );
    assert_eq!(spoken("schema plan node_a node_b")["steps"][0]["kind"], "add_column");
    assert_eq!(spoken("schema sync node_a node_b")["hazards"][0]["object"], "table public.orders");
    assert_eq!(spoken("schema history node_a")["changes"], Value::Array(Vec::new()));
    assert_eq!(spoken("schema export node_a")["environment"]["is_complete"], true);
    let synced = format!("schema sync node_a node_b --apply --confirm node_b -o json --peer {}", agent.address);
    assert_eq!(json(&mesh.run(&synced).succeeds().stdout)["applied"][0]["kind"], "add_column");
}
