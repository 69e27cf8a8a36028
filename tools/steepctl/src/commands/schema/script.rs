//! A plan as SQL that an operator can read, keep and run with psql: what is left to do by hand stands in comments.
//!
//! Whatever an agent says stands on one line, so that nothing in a comment becomes a statement.

use steep_protocol::v1;

use crate::{output::safe, units};

/// The plan as a script, without a line break at its end.
pub(crate) fn of(plan: &v1::PlanSchemaReply, words: &str) -> String {
    let (source, target) = (safe(&plan.source), safe(&plan.target));
    let mut lines = vec![
        format!("-- Changes {target} to look like {source}; {source} stays as it is. Nothing of this was run."),
        format!(
            "-- {}, {} to do by hand.",
            units::counted(plan.steps.len() as u64, "statement"),
            units::counted(plan.hazards.len() as u64, "thing")
        ),
    ];
    if !plan.steps.is_empty() {
        lines.push(format!("-- To run it on {target}: steepctl schema sync {source} {target} --apply{words}"));
        lines.push(format!(
            "-- or, by hand on {target}: psql -v ON_ERROR_STOP=1 -f FILE, not as one transaction, with lock_timeout set."
        ));
    }
    for hazard in &plan.hazards {
        lines.push(String::new());
        lines.extend(by_hand(hazard).iter().map(|line| format!("-- {line}")));
    }
    for step in &plan.steps {
        lines.push(String::new());
        lines.extend(statement(step));
    }
    lines.join("\n")
}

/// What differs and no plan settles, in two or three lines.
pub(super) fn by_hand(hazard: &v1::PlanHazard) -> Vec<String> {
    let mut lines = vec![format!("by hand: {}: {}", safe(&hazard.object), safe(&hazard.what))];
    for (name, text) in [("why", &hazard.why), ("do", &hazard.by_hand)] {
        if !text.is_empty() {
            lines.push(format!("  {name}: {}", safe(text)));
        }
    }
    lines
}

fn statement(step: &v1::PlanStep) -> Vec<String> {
    let alone = if step.outside_transaction { "; runs outside of a transaction" } else { "" };
    let reversal = safe(&step.reversal);
    let reversal = if reversal.is_empty() { "cannot be taken back" } else { &reversal };
    let sql = safe(&step.sql);
    let mut lines = vec![format!("-- {} ({reversal}{alone})", safe(&step.title))];
    if sql.contains(r"\u{") {
        // As text it would name something else than is meant.
        lines.push("-- holds characters that are not printed; schema sync runs it as it is meant:".into());
        lines.push(format!("-- {sql}"));
    } else {
        lines.push(sql);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(title: &str, sql: &str) -> v1::PlanStep {
        let reversal = "reversible: drop it".to_owned();
        v1::PlanStep { title: title.into(), sql: sql.into(), reversal, ..v1::PlanStep::default() }
    }

    fn plan() -> v1::PlanSchemaReply {
        let index =
            v1::PlanStep { outside_transaction: true, ..step("create index", "create index concurrently i on t (c);") };
        let hazard = v1::PlanHazard {
            object: "column total of public.orders".into(),
            what: "type differs".into(),
            why: "narrowing could lose values".into(),
            by_hand: "look at the rows first".into(),
        };
        v1::PlanSchemaReply {
            source: "node_a".into(),
            target: "node_b".into(),
            steps: vec![step("add column", "alter table t add column c text;"), index],
            hazards: vec![hazard],
            ..v1::PlanSchemaReply::default()
        }
    }

    #[test]
    fn a_script_says_who_would_be_changed_and_leaves_the_rest_to_people() {
        let expected = "\
-- Changes node_b to look like node_a; node_a stays as it is. Nothing of this was run.
-- 2 statements, 1 thing to do by hand.
-- To run it on node_b: steepctl schema sync node_a node_b --apply --tables t
-- or, by hand on node_b: psql -v ON_ERROR_STOP=1 -f FILE, not as one transaction, with lock_timeout set.

-- by hand: column total of public.orders: type differs
--   why: narrowing could lose values
--   do: look at the rows first

-- add column (reversible: drop it)
alter table t add column c text;

-- create index (reversible: drop it; runs outside of a transaction)
create index concurrently i on t (c);";
        assert_eq!(of(&plan(), " --tables t"), expected);
    }

    #[test]
    fn nothing_an_agent_says_leaves_its_comment_and_no_statement_means_something_else_than_it_says() {
        let mut plan = plan();
        plan.hazards[0].why = "x\ndrop table a;".into();
        plan.hazards[0].object = "\u{2028}drop table b;\u{1b}[2J".into();
        plan.steps =
            vec![step("t\rdrop table c;", r#"create table "a\u{1b}" ();"#), step("two", "alter table t\nadd c int;")];
        let script = of(&plan, "");
        let statements: Vec<_> = script.lines().filter(|line| !line.is_empty() && !line.starts_with("-- ")).collect();
        assert_eq!(statements, [""; 0], "{script}");
        assert!(!script.contains(['\u{1b}', '\r', '\u{2028}']), "{script:?}");
    }
}
