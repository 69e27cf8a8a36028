//! What PostgreSQL says, and what an operator hears of it.

use super::*;

fn denied(sqlstate: &str) -> Error {
    let refusal = Refusal {
        sqlstate: sqlstate.to_owned(),
        message: "permission denied for table t".to_owned(),
        detail: Some("a detail".to_owned()),
        hint: Some("a hint".to_owned()),
        context: Some("COPY t, line 3\nmore".to_owned()),
        is_fatal: false,
    };
    Error::Denied { doing: "read t".to_owned(), code: Code::SelectPrivilege, source: Box::new(refusal) }
}

#[test]
fn a_refusal_keeps_postgresqls_words_and_its_sqlstate() {
    let failure = denied("42501").explain();
    assert_eq!(failure.message, "cannot read t");
    assert_eq!(failure.sqlstate.as_deref(), Some("42501"));
    assert_eq!(
        failure.causes,
        ["permission denied for table t", "a detail", "COPY t, line 3", "PostgreSQL's hint: a hint"]
    );
    assert!(!failure.retryable);
}

#[test]
fn a_publisher_that_goes_without_a_word_leaves_no_empty_cause_and_the_hint_looks_for_its_agent() {
    let refusal = Refusal {
        sqlstate: "08006".to_owned(),
        message: "could not receive list of publications from the publisher: \n".to_owned(),
        detail: Some(String::new()),
        hint: None,
        context: None,
        is_fatal: false,
    };
    let doing = "create subscription s".to_owned();
    let failure = Error::Denied { doing, code: Code::PostgresUnreachable, source: Box::new(refusal) }.explain();
    assert_eq!(failure.causes, ["could not receive list of publications from the publisher"]);
    assert!(failure.hint.contains("agent") && failure.hint.contains("steepctl mesh matrix"), "{}", failure.hint);
}

#[test]
fn what_passes_by_itself_may_be_tried_again() {
    for (sqlstate, expected) in [("40P01", true), ("53300", true), ("55006", true), ("42P01", false), ("23505", false)]
    {
        assert_eq!(denied(sqlstate).is_retryable(), expected, "{sqlstate}");
    }
}

#[test]
fn a_server_that_starts_or_is_full_is_asked_again_and_one_that_refuses_is_not() {
    for (sqlstate, expected) in [("57P03", true), ("53300", true), ("28P01", false), ("3D000", false)] {
        assert_eq!(passes_by_itself(sqlstate), expected, "{sqlstate}");
    }
}

#[test]
fn a_blocked_slot_names_who_blocks_it_and_how_to_end_it() {
    let blocker = Blocker::Prepared {
        gid: "order-7".to_owned(),
        age: Duration::from_secs(90),
        owner: "shop".to_owned(),
        database: "shop".to_owned(),
    };
    let error =
        Error::SlotBlocked { slot: "steep_b".to_owned(), waited: Duration::from_secs(30), blockers: vec![blocker] };
    let failure = error.explain();
    assert_eq!(failure.code, Code::PreparedTransaction);
    assert!(failure.message.contains("steep_b") && failure.message.contains("order-7"), "{}", failure.message);
    assert!(failure.hint.contains("rollback prepared 'order-7'"), "{}", failure.hint);
}
