//! Every effect comes back out of the database as it was written.

use steep_protocol::{ids::SessionId, lsn::Lsn};

use super::*;

#[test]
fn every_effect_comes_back_out_of_the_database_as_it_was_written() {
    let table = TableName::new("public", "orders");
    let members = vec![Member { table: table.clone(), partitioned: true }];
    let before: Inventory = vec![(1259, [16384, 16390].into()), (2618, [17].into())].into();
    let detour = Detour {
        subscription: "steep_from_node_a".into(),
        publisher: "node_a".parse().expect("a node"),
        session: SessionId::generate(),
        own_slot: "s".into(),
        slot: "x".into(),
        snapshot: Lsn(7),
        tables: vec![table.clone()],
        stands_at: Lsn(8),
        contents: Contents::Old,
        stage: Stage::Held,
    };
    let created = CreatedObject { class_id: 1259, object_id: 16400, kind: "table".into(), identity: "a.b".into() };
    let effects = [
        Effect::Slot { name: "s".into(), peer: Some("node_b".parse().expect("a node")) },
        Effect::SyncSlots { of: SyncSlots { subscription: 16403, system_identifier: u64::MAX } },
        Effect::Mark { id: "0192f3ac7d21".into() },
        Effect::Publication { name: "steep".into(), created: true, added: members.clone() },
        Effect::Subscription { name: "s".into() },
        Effect::Pause { subscription: "s".into() },
        Effect::Origin { name: "o".into() },
        Effect::Schema { before, markers: vec![table] },
        Effect::Objects { created: vec![created] },
        Effect::Rows { tables: members },
        Effect::Detour(detour),
        Effect::Staged { tables: vec![TableName::new("steep_repl", "stage_0_0")] },
        Effect::Fence { name: "f".into() },
        Effect::Session { slot: "s".into(), record: serde_json::json!({ "format": 1 }) },
        Effect::Directory { path: "/srv/snap".into(), was_there: true },
        Effect::PeerSession { node: "node_a".parse().expect("a node") },
    ];
    for effect in effects {
        let written = serde_json::to_value(&effect).expect("it can be written");
        let read: Effect = serde_json::from_value(written.clone()).expect("it can be read");
        assert_eq!(format!("{read:?}"), format!("{effect:?}"), "{written}");
    }
}
