//! Slots of every kind, and what each is taken for.

use super::*;
use crate::postgres::slots::SlotProgress;

const NAME: &str = "steep_node_b_0192f3ac7d21";

fn op() -> OperationId {
    "0192f3ac-7d21-7c4e-9f0a-3d0c5b1e77aa".parse().expect("an id")
}

fn slot(name: &str) -> Slot {
    Slot {
        name: name.into(),
        database: "postgres".into(),
        plugin: "pgoutput".into(),
        progress: SlotProgress {
            confirmed_flush: None,
            is_active: false,
            active_pid: None,
            retained_bytes: 0,
            unconfirmed_bytes: None,
            wal_status: "reserved".into(),
            safe_wal_bytes: None,
            inactive_since: None,
            invalidation_reason: String::new(),
            xmin_age: None,
        },
    }
}

fn node(name: &str) -> NodeId {
    name.parse().expect("a name")
}

fn made(is_kept: bool) -> KeptSlot {
    KeptSlot { name: NAME.into(), peer: "node_b".into(), op_id: op(), is_kept }
}

fn known(made: &[KeptSlot]) -> Known {
    Known { made: made.to_vec(), peers: vec![node("node_b"), node("node_c")], ..Known::default() }
}

fn read_by(mut known: Known, name: &str, node: NodeId) -> Known {
    let needed = v1::NeededSlot { name: name.into(), subscription: "steep_from_node_a".into(), enabled: true };
    known.readers.insert(name.into(), (node, needed));
    known
}

fn purpose(name: &str, known: &Known) -> Purpose {
    judge(slot(name), known).purpose
}

#[test]
fn a_slot_is_an_orphan_only_where_nobody_can_need_it() {
    assert_eq!(purpose(NAME, &read_by(known(&[made(true)]), NAME, node("node_b"))), Purpose::Subscription);
    assert_eq!(purpose(NAME, &known(&[made(true)])), Purpose::Orphan, "its node has no such subscription");
    assert_eq!(purpose(NAME, &known(&[])), Purpose::Orphan, "no intent at all");
    let snapshots = [(NAME.to_owned(), "2026-11-29".to_owned())].into();
    assert_eq!(purpose(NAME, &Known { snapshots, ..known(&[made(true)]) }), Purpose::Snapshot);
    let silent = |node: NodeId| Known { silent: vec![node], ..known(&[made(true)]) };
    assert_eq!(purpose(NAME, &silent(node("node_b"))), Purpose::Undecided, "its node cannot be asked");
    assert_eq!(purpose(NAME, &silent(node("node_c"))), Purpose::Orphan, "another one's silence says nothing");
    let running = Known { running: vec![op()], ..known(&[made(false)]) };
    assert_eq!(purpose(NAME, &running), Purpose::Operation);
    assert_eq!(purpose(NAME, &known(&[made(false)])), Purpose::Operation, "the janitor takes it away");
}

#[test]
fn slots_of_others_are_never_orphans_and_those_of_table_copies_may_be() {
    for name in ["my_slot", "debezium", "pg_x_sync_1_2", "steepless"] {
        assert_eq!(purpose(name, &known(&[])), Purpose::Foreign, "{name}");
    }
    let sync = "pg_16401_sync_16390_7710788945299280709";
    assert_eq!(purpose(sync, &known(&[])), Purpose::Orphan);
    assert_eq!(purpose(sync, &read_by(known(&[]), sync, node("node_c"))), Purpose::Subscription);
    let silent = Known { silent: vec![node("node_c")], ..known(&[]) };
    assert_eq!(purpose(sync, &silent), Purpose::Undecided, "anybody could be its reader");
}

#[test]
fn who_is_gone_from_the_mesh_needs_nothing_and_whoever_reads_now_may() {
    let gone = KeptSlot { name: "steep_node_x_0192f3ac7d21".into(), peer: "node_x".into(), ..made(true) };
    let listed = judge(slot(&gone.name), &known(std::slice::from_ref(&gone)));
    assert_eq!((listed.purpose, listed.target.as_str()), (Purpose::Orphan, "node_x"));
    assert!(listed.why.contains("no member"), "{}", listed.why);
    let mut active = slot(NAME);
    active.progress.active_pid = Some(7);
    assert_eq!(judge(active, &known(&[])).purpose, Purpose::Undecided);
}

#[test]
fn what_is_needed_is_dropped_by_force_only_and_under_an_operation_not_at_all() {
    let me = node("node_a");
    let code = |listed: &Listed, force| refuse(&me, listed, force).err().map(|failure| failure.code);
    let read = judge(slot(NAME), &read_by(known(&[made(true)]), NAME, node("node_b")));
    assert_eq!((code(&read, false), code(&read, true)), (Some(Code::SlotNeeded), None));
    let refused = refuse(&me, &read, false).expect_err("it is needed");
    assert!(refused.message.contains("node_b would lose"), "{refused}");
    let foreign = judge(slot("debezium"), &known(&[]));
    assert_eq!((code(&foreign, false), code(&foreign, true)), (Some(Code::SlotForeign), None));
    let running = judge(slot(NAME), &Known { running: vec![op()], ..known(&[made(false)]) });
    assert_eq!((code(&running, false), code(&running, true)), (Some(Code::SlotNeeded), Some(Code::SlotNeeded)));
    assert_eq!(code(&judge(slot(NAME), &known(&[])), false), None);
}
