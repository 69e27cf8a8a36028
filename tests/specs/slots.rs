//! Slots and sequences, which nobody looks after but us: whose each slot is, orphans, and sequences that stay ahead.

use serde_json::Value;
use steep_tests::{Cluster, Node, NodeState::*, PATIENCE, shop, until};

/// What a slot of `node` is there for, as any agent says.
fn purpose(through: &Node, node: &Node, slot: &str) -> String {
    let listed = through.steepctl(&format!("slot list {} -o json", node.id())).succeeds().json();
    let found = listed["slots"].as_array().and_then(|slots| slots.iter().find(|found| found["name"] == slot));
    found.map(|found| found["use"].as_str().unwrap_or_default().to_owned()).unwrap_or_else(|| listed.to_string())
}

fn verdict<'a>(checked: &'a Value, sequence: &str) -> &'a Value {
    let list = checked["sequences"].as_array().expect("a list");
    list.iter()
        .find(|check| check["sequence"]["name"] == sequence)
        .unwrap_or_else(|| panic!("no {sequence}: {checked}"))
}

async fn sequences_stay_ahead(a: &Node, b: &Node) {
    let check = |more: &str| b.steepctl(&format!("seq check node_a node_b {more}"));
    let checked = check("--all -o json --exit-code").succeeds().json();
    for name in ["orders_id_seq", "down", "cached", "turns"] {
        assert_eq!(verdict(&checked, name)["verdict"], "ahead", "the initialization has seen to it: {checked}");
    }
    // What is handed out later comes nearer, and passes.
    a.sql("select count(nextval('orders_id_seq')) from generate_series(1, 900)").await;
    a.sql("select count(nextval('down')) from generate_series(1, 1500)").await;
    a.sql("select count(nextval('cached')) from generate_series(1, 5000)").await;
    // These two step past each other.
    a.sql("alter sequence apart increment by 2 restart with 5000").await;
    b.sql("alter sequence apart increment by 2 restart with 5001").await;
    b.sql("drop sequence lonely").await;
    assert_eq!(check("--exit-code -q").outcome().status, 12);
    let checked = a.steepctl("seq check node_a node_b -o json").as_operator("vera").succeeds().json();
    for (name, expected) in [
        ("orders_id_seq", "close"),
        ("down", "behind"),
        ("cached", "behind"),
        ("apart", "apart"),
        ("lonely", "missing"),
    ] {
        assert_eq!(verdict(&checked, name)["verdict"], expected, "{checked}");
    }
    let standing =
        "select string_agg(sequencename || ' ' || coalesce(last_value::text, '-'), ', ' order by sequencename)
                      from pg_sequences where schemaname = 'public'";
    let (before, on_a): (String, String) = (b.value(standing).await, a.value(standing).await);
    b.steepctl("seq sync node_a node_b").succeeds();
    assert_eq!(b.value::<String>(standing).await, before, "without --apply it is only shown");
    b.steepctl("seq sync node_a node_b --apply").fails_with("STP-5009");
    b.steepctl("seq sync node_a node_b --apply --confirm node_b").as_operator("vera").fails_with("STP-5003");
    let synced =
        a.steepctl("seq sync node_a node_b --apply --confirm node_b -o json").as_operator("otto").succeeds().json();
    assert_eq!(synced["moved"].as_array().map(Vec::len), Some(3), "{synced}");
    assert_eq!(synced["left"][0]["sequence"]["name"], "lonely", "{synced}");
    assert_eq!(a.value::<String>(standing).await, on_a, "node_a's are never touched");
    let last = async |node: &Node, name: &str| -> i64 {
        node.value(&format!("select last_value from pg_sequences where sequencename = '{name}'")).await
    };
    for (name, direction) in [("orders_id_seq", 1), ("down", -1), ("cached", 1)] {
        let ahead = (last(b, name).await - last(a, name).await) * direction;
        assert!(ahead >= 1000, "{name} is ahead by {ahead}");
    }
    let checked = check("--all -o json").succeeds().json();
    for name in ["orders_id_seq", "down", "cached", "turns"] {
        assert_eq!(verdict(&checked, name)["verdict"], "ahead", "{checked}");
    }
    // Never back: what stands further than needed is left there.
    b.sql("select setval('cached', 900000)").await;
    let again = b.steepctl("seq sync node_a node_b --apply --confirm node_b -o json").succeeds().json();
    assert_eq!(again["moved"].as_array().map(Vec::len), Some(0), "{again}");
    assert_eq!(last(b, "cached").await, 900_000);
    let audited = "select count(*) from steep_repl.audit_log where action = 'seq.sync' and actor like '%otto%'";
    assert_eq!(b.value::<i64>(audited).await, 1);
}

async fn orphans_are_found_and_dropped(a: &Node, b: &Node) {
    let slot = a.slots().await.remove(0);
    assert_eq!(purpose(b, a, &slot), "subscription");
    let shown = b.steepctl(&format!("slot show node_a {slot} -o json")).as_operator("vera").succeeds().json();
    assert!(shown["slots"][0]["why"].as_str().is_some_and(|why| why.contains("of node_b")), "{shown}");
    let drop = |slot: &str| b.steepctl(&format!("slot drop node_a {slot} --confirm node_a"));
    let refused = drop(&slot).fails_with("STP-4242");
    assert!(refused.stderr.contains("node_b would lose"), "{refused}");
    drop("no_such_slot").fails_with("STP-4241");
    a.sql(
        "select pg_create_logical_replication_slot(name, 'pgoutput')
             from unnest(array['theirs', 'steep_node_b_0123456789ab', 'pg_1_sync_2_3']) name",
    )
    .await;
    assert_eq!(purpose(b, a, "theirs"), "foreign");
    drop("theirs").fails_with("STP-4243");
    b.steepctl("slot drop node_a pg_1_sync_2_3").fails_with("STP-5009");
    drop("pg_1_sync_2_3").as_operator("vera").fails_with("STP-5003");

    // Its agent is away: nobody can say that the slot is not needed.
    b.kill_agent();
    until("it is undecided", PATIENCE, async || {
        let seen = purpose(a, a, "steep_node_b_0123456789ab");
        if seen == "undecided" { Ok(()) } else { Err(seen) }
    })
    .await;
    b.start_agent();
    // A subscription that is dropped while its publisher cannot be asked leaves its slot.
    b.sql(
        "alter subscription steep_from_node_a disable; alter subscription steep_from_node_a set (slot_name = none);
         drop subscription steep_from_node_a",
    )
    .await;
    let orphans = until("all three are orphans", PATIENCE, async || {
        let listed = b.steepctl("slot list --orphans -o json").outcome().json();
        let found = listed["slots"].as_array().map(Vec::len);
        if found == Some(3) { Ok(listed) } else { Err(listed.to_string()) }
    })
    .await;
    let left = orphans["slots"].as_array().and_then(|slots| slots.iter().find(|found| found["name"] == slot.as_str()));
    let left = left.unwrap_or_else(|| panic!("{orphans}"));
    assert!(left["why"].as_str().is_some_and(|why| why.contains("node_b has no subscription")), "{left}");
    assert_eq!((left["node_id"].as_str(), left["target_node"].as_str()), (Some("node_a"), Some("node_b")));
    assert!(left["retained_bytes"].is_number() && left["active"] == false, "{left}");
    if a.major() >= 17 {
        assert!(left["inactive_since"].is_string(), "{left}");
    }
    for name in [slot.as_str(), "steep_node_b_0123456789ab", "pg_1_sync_2_3"] {
        drop(name).as_operator("otto").succeeds();
    }
    assert_eq!(a.slots().await, ["theirs"]);
    a.steepctl("slot drop node_a theirs --force --confirm node_a").succeeds();
    let audited = "select count(*) from steep_repl.audit_log where action = 'slot.drop' and actor like '%otto%'";
    assert_eq!(a.value::<i64>(audited).await, 3);
    // Down to what a removal settles: nothing is left to be undone of what was dropped.
    b.steepctl("node remove node_b --confirm node_b --drop-slots").succeeds();
    b.becomes(Uninitialized).await;
}

#[tokio::test]
async fn sequences_are_kept_ahead_and_slots_that_nobody_needs_are_found_and_dropped() {
    let [a, b] = Cluster::of(2).pg(&["16", "18"]).start().await;
    a.sql(&shop::orders(50)).await;
    a.sql(
        "create sequence down increment by -1; create sequence cached cache 50; create sequence lonely;
         create sequence turns maxvalue 3000 cycle; create sequence apart;
         select nextval('down'), nextval('cached'), nextval('lonely'), nextval('turns'), nextval('apart')",
    )
    .await;
    b.steepctl("node start node_b --from node_a").operation().completes().await;
    sequences_stay_ahead(&a, &b).await;
    orphans_are_found_and_dropped(&a, &b).await;
}
