//! Looks at a subscription, two seconds apart, and what they amount to.

use super::*;

fn node(name: &str) -> NodeId {
    name.parse().expect("a name")
}

fn followed() -> Followed {
    Followed {
        name: "steep_from_node_a".into(),
        is_there: true,
        is_enabled: true,
        slot: "steep_node_b_0192f3ac7d21".into(),
        worker_pid: Some(7),
        apply_errors: 0,
        conflicts: BTreeMap::new(),
        is_in_hand: false,
        lost: None,
    }
}

fn good() -> Told {
    Told {
        fate: Fate::Good,
        reason: String::new(),
        unconfirmed_bytes: 0,
        confirmed: Lsn(100),
        run: "1".into(),
        look: 0,
    }
}

fn well() -> Seen {
    Seen { followed: followed(), source: node("node_a"), told: Some(good()), drifted: Vec::new() }
}

/// A judge, and time that passes two seconds a look.
struct Bench {
    judge: Judge,
    now: Instant,
    looks: u64,
    limits: Limits,
}

impl Bench {
    fn new() -> Self {
        let limits = Limits { lag: Some(1000), lag_for: Duration::from_secs(6), drift_for: Duration::from_secs(15) };
        Self { judge: Judge::default(), now: Instant::now(), looks: 0, limits }
    }

    /// The source has looked at itself between any two looks.
    fn look(&mut self, mut seen: Seen) -> (Vec<Kind>, bool) {
        self.now += Duration::from_secs(2);
        self.looks += 1;
        if let Some(told) = &mut seen.told {
            told.look = self.looks;
        }
        let verdict = self.judge.look(self.now, &node("node_b"), &[seen], &self.limits);
        (verdict.troubles.iter().map(|trouble| trouble.kind).collect(), verdict.is_whole)
    }

    /// The kinds found after so many seconds of the same.
    fn after(&mut self, seconds: u32, seen: &Seen) -> Vec<Kind> {
        (0..=seconds / 2).map(|_| self.look(seen.clone()).0).last().unwrap_or_default()
    }
}

fn fate(fate: Fate) -> Seen {
    Seen { told: Some(Told { fate, ..good() }), ..well() }
}

#[test]
fn what_runs_is_no_trouble_and_whole_once_it_has_run_for_a_while() {
    let mut bench = Bench::new();
    assert_eq!(bench.look(well()), (Vec::new(), false), "it may fail at once");
    assert_eq!(bench.after(60, &well()), []);
    assert_eq!(bench.look(well()), (Vec::new(), true));
    let silent = Seen { told: None, ..well() };
    assert_eq!(bench.look(silent), (Vec::new(), false), "a source that cannot be asked proves nothing, either way");
}

#[test]
fn a_slot_that_its_source_says_is_lost_is_lost_at_once_and_for_ever() {
    let mut bench = Bench::new();
    assert_eq!(bench.look(fate(Fate::Lost)).0, [Kind::SlotLost]);
    let lost = Some("PostgreSQL removed WAL it needed".to_owned());
    let told_twice = Seen { followed: Followed { lost: lost.clone(), ..followed() }, ..fate(Fate::Lost) };
    assert_eq!(bench.look(told_twice).0, [Kind::SlotLost], "once is enough");
    let mended = Seen { followed: Followed { lost, ..followed() }, ..well() };
    assert_eq!(bench.after(600, &mended), [Kind::SlotLost], "a slot of the same name brings nothing back");
    let disabled = Seen { followed: Followed { is_enabled: false, worker_pid: None, ..mended.followed }, ..mended };
    assert_eq!(bench.after(600, &disabled), [Kind::SlotLost], "that it was disabled for it is no second trouble");
}

#[test]
fn a_slot_that_is_gone_counts_when_no_removal_can_be_the_reason_any_more() {
    assert_eq!(Bench::new().after(2, &fate(Fate::Missing)), []);
    assert_eq!(Bench::new().after(4, &fate(Fate::Missing)), [Kind::SlotGone]);
    assert_eq!(Bench::new().after(58, &fate(Fate::Released)), []);
    assert_eq!(Bench::new().after(62, &fate(Fate::Released)), [Kind::SlotGone]);
    assert_eq!(Bench::new().look(fate(Fate::Starved)).0, [Kind::Starved]);
}

#[test]
fn a_subscription_that_is_disabled_or_dropped_counts_unless_an_operation_has_it_in_hand() {
    let disabled = Followed { is_enabled: false, worker_pid: None, ..followed() };
    let seen = Seen { followed: disabled.clone(), ..well() };
    assert_eq!(Bench::new().after(2, &seen), []);
    assert_eq!(Bench::new().after(4, &seen), [Kind::Disabled]);
    let paused = Seen { followed: Followed { is_in_hand: true, ..disabled }, ..well() };
    let mut bench = Bench::new();
    assert_eq!(bench.after(600, &paused), []);
    assert_eq!(bench.look(seen.clone()).0, [], "what it was in hand does not count");
    let gone = Followed { is_there: false, is_enabled: false, worker_pid: None, slot: String::new(), ..followed() };
    assert_eq!(Bench::new().after(4, &Seen { followed: gone, told: None, ..well() }), [Kind::SubscriptionGone]);
}

/// A worker that has died of an error once more.
fn failing(errors: u64, confirmed: u64, told: bool) -> Seen {
    let told = told.then(|| Told { confirmed: Lsn(confirmed), ..good() });
    Seen { followed: Followed { apply_errors: errors, worker_pid: None, ..followed() }, told, ..well() }
}

#[test]
fn errors_without_progress_between_them_are_trouble_and_one_is_not() {
    let mut bench = Bench::new();
    bench.look(well());
    assert_eq!(bench.look(failing(1, 100, true)).0, []);
    assert_eq!(bench.after(600, &failing(1, 100, true)), [], "a restart of the source is one error");
    assert_eq!(bench.look(failing(2, 100, true)).0, [], "it may have been a restart");
    assert_eq!(bench.look(failing(2, 100, true)).0, [Kind::Failing]);
    // The row was mended: it goes on.
    let again = Seen {
        followed: Followed { apply_errors: 2, ..followed() },
        told: Some(Told { confirmed: Lsn(200), ..good() }),
        ..well()
    };
    assert_eq!(bench.look(again), (Vec::new(), false));
}

#[test]
fn errors_with_progress_between_them_or_while_the_source_is_away_do_not_add_up() {
    let mut bench = Bench::new();
    bench.look(well());
    for round in 1..10 {
        assert_eq!(bench.look(failing(round, 100 * round, true)).0, []);
        assert_eq!(bench.look(failing(round, 100 * round + 50, true)).0, []);
    }
    let mut bench = Bench::new();
    bench.look(well());
    for round in 1..10 {
        assert_eq!(bench.look(failing(round, 100, false)).0, []);
    }
    assert_eq!(bench.look(failing(12, 100, true)).0, [], "what fell between does not count");
    assert_eq!(bench.look(failing(0, 100, true)).0, [], "statistics were reset");
    let mut bench = Bench::new();
    assert_eq!(bench.look(failing(50, 100, true)).0, [], "errors of an earlier life");
}

#[test]
fn an_error_of_a_restart_does_not_count_whichever_is_noticed_first() {
    let run = |errors, run: &str| {
        let told = Told { run: run.into(), ..good() };
        Seen { told: Some(told), ..failing(errors, 100, true) }
    };
    let mut bench = Bench::new();
    bench.look(well());
    for round in 2..10_u64 {
        // Sometimes the source still tells what it knew before it was restarted.
        let (stale, now) = ((round - 1).to_string(), round.to_string());
        let first = if round % 2 == 0 { &stale } else { &now };
        assert_eq!(bench.look(run(round - 1, first)).0, [], "round {round}");
        assert_eq!(bench.look(run(round - 1, &now)).0, [], "round {round}");
    }
    let both = Seen { followed: Followed { apply_errors: 10, ..failing(10, 100, true).followed }, ..run(10, "9") };
    assert_eq!(bench.look(both).0, [], "two errors at once are one occasion");
    for errors in [10, 11, 11] {
        bench.look(run(errors, "9"));
    }
    assert_eq!(bench.look(run(11, "9")).0, [Kind::Failing], "nothing was restarted");
}

#[test]
fn a_worker_that_has_got_over_its_errors_on_an_idle_source_is_forgiven() {
    let mut bench = Bench::new();
    bench.look(well());
    bench.look(failing(1, 100, true));
    let steady = Seen { followed: Followed { apply_errors: 1, worker_pid: Some(9), ..followed() }, ..well() };
    assert_eq!(bench.after(16, &steady), []);
    assert_eq!(bench.look(failing(2, 100, true)).0, [], "the first was long ago");
}

#[test]
fn lag_and_drift_must_last_and_a_silent_source_does_not_end_lag() {
    let behind = Seen { told: Some(Told { unconfirmed_bytes: 1001, ..good() }), ..well() };
    let mut bench = Bench::new();
    assert_eq!(bench.after(4, &behind), []);
    assert_eq!(bench.look(Seen { told: None, ..well() }).0, []);
    assert_eq!(bench.look(behind.clone()).0, [Kind::Behind]);
    assert_eq!(bench.look(well()).0, [], "it has caught up");
    assert_eq!(bench.look(behind).0, [], "and falls behind anew");
    let drifted = Seen { drifted: vec![TableName::new("public", "orders")], ..well() };
    assert_eq!(Bench::new().after(14, &drifted), []);
    assert_eq!(Bench::new().after(16, &drifted), [Kind::Drifted]);
    let mut bench = Bench::new();
    bench.limits.lag = None;
    let far = Seen { told: Some(Told { unconfirmed_bytes: u64::MAX, ..good() }), ..well() };
    assert_eq!(bench.after(600, &far), [], "no limit is set");
}

#[test]
fn every_trouble_says_what_is_wrong_with_names_and_what_to_type_next() {
    let kinds = [
        Kind::SlotLost,
        Kind::SlotGone,
        Kind::SubscriptionGone,
        Kind::Starved,
        Kind::Failing,
        Kind::Disabled,
        Kind::Drifted,
        Kind::Behind,
    ];
    let seen = Seen { drifted: vec![TableName::new("public", "orders")], ..well() };
    for kind in kinds {
        let streak = (3, BTreeSet::from(["insert_exists".to_owned()]));
        let failure = failure(kind, &node("node_b"), &seen, &streak, &Bench::new().limits);
        assert!(failure.message.contains("node_"), "{failure}");
        assert!(failure.hint.contains("node_b"), "{failure:?}");
    }
    assert!(kinds.is_sorted(), "worst first");
    for fate in [Fate::Good, Fate::Lost, Fate::Missing, Fate::Released, Fate::Starved] {
        assert_eq!(Fate::told(fate.as_str()), Some(fate));
    }
}
