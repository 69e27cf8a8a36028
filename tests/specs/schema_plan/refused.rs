//! What stops a plan, and what it leaves: nothing, or what is told.

use std::time::Duration;

use steep_agent::{drift::apply::Limits, schema::plan::plan};
use steep_protocol::{
    failure::{Code, Explain as _},
    names::TableName,
};
use steep_tests::{Cluster, Node};

use super::lab::{Side, both, planned, sync, told};

async fn sides() -> (Side, Side) {
    let [node]: [Node; 1] = Cluster::of(1).servers_only().start().await;
    (Side::new(&node, "source").await, Side::new(&node, "target").await)
}

#[tokio::test]
async fn a_lock_that_is_held_ends_in_a_code_and_nothing_is_changed() {
    let (source, target) = sides().await;
    for side in [&source, &target] {
        side.sql("create table t (id integer primary key); create table u (id integer)").await;
    }
    source.sql("alter table u add b text; alter table t add a text").await;
    let plan = planned(&source, &target).await;
    let before = target.catalog().await;
    target.sql("begin; lock table t in access share mode").await;
    let begun = tokio::time::Instant::now();
    let limits = Limits { lock: Duration::from_millis(300), tries: 3, ..Limits::default() };
    let failure = target.apply(&plan, &limits).await.expect_err("the lock is held").explain();
    assert_eq!(failure.code, Code::SchemaLocked, "{failure:#?}");
    assert!(failure.retryable && failure.message.contains("nothing was changed"), "{failure:#?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    target.sql("rollback").await;
    assert_eq!(target.catalog().await, before);
    target.apply(&plan, &limits).await.expect("the lock is gone");
}

#[tokio::test]
async fn text_that_tries_to_leave_its_place_is_refused_and_nothing_is_changed() {
    let (source, target) = sides().await;
    target.sql("create table t (id integer, kept text); create table victim (id integer); insert into t values (1, 'kept')").await;
    source.sql("create table t (id integer default 5, kept text, constraint c check (id > 0)); create index i on t (id); create table victim (id integer)").await;
    let (theirs, ours) = (source.catalog().await, target.catalog().await);
    let name = TableName::new("public", "t");
    let defaults = [
        "5, DROP COLUMN kept, ADD COLUMN kept text",
        "5); drop table victim; --",
        "5) , drop column kept --",
        "(select 5); drop table victim",
        "5 /* */",
        "lo_creat(5)",
        "pg_catalog.set_config('a.b', 'c', false)::integer",
        "6",
    ];
    for text in defaults {
        let mut evil = theirs.clone();
        evil.tables.get_mut(&name).expect("it is there").columns[0].default = Some(text.to_owned());
        refused(&target, &plan(&evil, &ours), text).await;
    }
    let checks = [
        "CHECK ((id > 0)), DROP COLUMN kept",
        "CHECK (true) NOT VALID; drop table victim",
        "UNIQUE (id)",
        "CHECK (true)",
    ];
    for text in checks {
        let mut evil = theirs.clone();
        evil.tables.get_mut(&name).expect("it is there").shape.constraints[0].definition = text.to_owned();
        refused(&target, &plan(&evil, &ours), text).await;
    }
    let indexes = [
        "DROP TABLE public.victim",
        "CREATE INDEX i ON public.victim USING btree (id)",
        "CREATE INDEX i ON public.t USING btree (id); drop table public.victim",
        "CREATE INDEX i ON public.t USING btree (kept) TABLESPACE pg_default",
    ];
    for text in indexes {
        let mut evil = theirs.clone();
        evil.tables.get_mut(&name).expect("it is there").shape.indexes[0].definition = text.to_owned();
        refused(&target, &plan(&evil, &ours), text).await;
    }
    assert_eq!(target.catalog().await, ours, "nothing of all that was kept");
    assert_eq!(target.text("select kept from t").await, "kept");
}

/// Applied, the plan fails with a code; or the text never came into a statement, and the hazard says so.
async fn refused(target: &Side, plan: &steep_agent::schema::Plan, text: &str) {
    let is_planned =
        plan.steps.iter().any(|step| step.sql.contains(text.trim_start_matches("CREATE INDEX i ON public.t ")));
    if !is_planned {
        assert!(!plan.hazards.is_empty(), "{text} is neither planned nor told");
        return;
    }
    let failure = target.apply(plan, &Limits::default()).await;
    let failure = failure.map_err(|error| error.explain()).expect_err(text);
    let codes = [Code::SchemaTrialFailed, Code::SchemaUnsettled];
    assert_eq!(failure.code, codes[0], "{text}: {failure:#?}");
}

#[tokio::test]
async fn a_plan_for_a_target_that_has_changed_since_is_refused() {
    let (source, target) = sides().await;
    source.sql("create table t (id integer)").await;
    let plan = planned(&source, &target).await;
    target.sql("create table t (id text)").await;
    let failure = target.apply(&plan, &Limits::default()).await.expect_err("it is another target").explain();
    assert_eq!(failure.code, Code::SchemaPlanStale, "{failure:#?}");
}

const STRICT: &str = "alter table t add unique (code), alter b set not null, add constraint positive check (a > 0);
                      alter table u add foreign key (t_id) references t";
const LOOSE: &str =
    "create table t (id integer primary key, a integer, b text, code text); create table u (t_id integer)";

#[tokio::test]
async fn rows_that_break_a_constraint_show_before_anything_is_changed() {
    let (source, target) = sides().await;
    for side in [&source, &target] {
        side.sql(LOOSE).await;
    }
    source.sql(STRICT).await;
    let before = target.catalog().await;
    let rows = [
        "insert into t values (1, 1, 'b', 'same'), (2, 1, 'b', 'same')",
        "insert into t values (1, 1, null, 'x')",
        "insert into t values (1, -1, 'b', 'x')",
        "insert into u values (7)",
    ];
    for row in rows {
        target.sql(row).await;
        let (plan, applied) = sync(&source, &target).await;
        let failure = applied.expect_err(row);
        assert_eq!(failure.code, Code::SchemaTrialFailed, "{row}: {failure:#?}\n{}", plan.script());
        assert_eq!(target.catalog().await, before, "{row}");
        target.sql("delete from t; delete from u").await;
    }
    let (_, applied) = sync(&source, &target).await;
    applied.expect("no row is in the way");
}

#[tokio::test]
async fn a_large_table_that_breaks_a_constraint_stops_the_plan_and_keeps_nothing_half_made() {
    let (source, target) = sides().await;
    for side in [&source, &target] {
        side.sql(LOOSE).await;
    }
    source.sql(STRICT).await;
    source.sql("alter table t add extra text").await;
    let rows = [
        ("insert into t values (1, 1, 'b', 'same'), (2, 1, 'b', 'same')", "delete from t"),
        ("insert into t values (1, 1, null, 'x')", "delete from t"),
        ("insert into t values (1, -1, 'b', 'x')", "delete from t"),
        ("insert into u values (7)", "delete from u"),
    ];
    for (row, away) in rows {
        if target.client.batch_execute(row).await.is_err() {
            // A constraint that was proven before the plan stopped stays.
            continue;
        }
        let plan = planned(&source, &target).await;
        // As if every table were large: the trial reads no rows.
        let limits = Limits { small_bytes: 0, ..Limits::default() };
        let failure = target.apply(&plan, &limits).await.expect_err(row).explain();
        assert_eq!(failure.code, Code::SchemaSyncStopped, "{row}: {failure:#?}");
        assert!(failure.hint.contains("steepctl schema plan source target"), "{failure:#?}");
        let invalid = "select count(*)::text from pg_index where not indisvalid";
        assert_eq!(target.text(invalid).await, "0", "{row}: a failed index is left");
        let unproven = "select count(*)::text from pg_constraint where not convalidated";
        assert_eq!(target.text(unproven).await, "0", "{row}: a helper is left");
        target.sql(away).await;
    }
    let (plan, applied) = sync(&source, &target).await;
    applied.unwrap_or_else(|failure| panic!("{failure:#?}\n{}", plan.script()));
    let (.., compared) = both(&source, &target).await;
    assert!(compared.is_match(), "{:#?}", told(&compared));
}

#[tokio::test]
async fn the_leftover_of_an_index_build_is_replaced() {
    let (source, target) = sides().await;
    for side in [&source, &target] {
        side.sql("create table t (id integer)").await;
    }
    source.sql("create unique index i on t (id)").await;
    target.sql("insert into t values (1), (1)").await;
    target.client.batch_execute("create unique index concurrently i on t (id)").await.expect_err("rows are in the way");
    target.sql("truncate t; insert into t values (1)").await;
    let valid = "select string_agg(indisvalid::text, ',') from pg_index where indrelid = 't'::regclass";
    // TRUNCATE builds indexes anew, and so may have made this one whole.
    target.sql("update pg_index set indisvalid = false where indrelid = 't'::regclass").await;
    let (plan, applied) = sync(&source, &target).await;
    applied.unwrap_or_else(|failure| panic!("{failure:#?}\n{}", plan.script()));
    assert_eq!(target.text(valid).await, "true");
    let (.., compared) = both(&source, &target).await;
    assert!(compared.is_match(), "{:#?}", told(&compared));
}
