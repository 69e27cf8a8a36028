//! Which method copies the rows, where the operator leaves it open (pure).

use steep_protocol::{operation::InitMethod, v1};

/// The method for `asked`, and why, where that was left open.
///
/// Direct unless something speaks against one snapshot of the source that is held for as long as the copy takes.
/// `above`: bytes from which on that is too long.
pub(super) fn choose(asked: InitMethod, facts: &v1::ExamineReply, above: u64) -> (InitMethod, String) {
    if asked != InitMethod::Auto {
        return (asked, String::new());
    }
    let bytes: u64 = facts.tables.iter().filter(|table| table.kind != "p").map(|table| table.bytes).sum();
    let (method, why) = match (facts.members.len(), facts.snapshot_minutes) {
        (1.., _) => {
            (InitMethod::Direct, "more than two nodes replicate both ways, which only direct joins exactly".into())
        }
        (0, Some(minutes)) => (
            InitMethod::Snapshot,
            format!(
                "the source takes snapshots away after {minutes} min (old_snapshot_threshold), and direct holds one"
            ),
        ),
        (0, None) if bytes > above => (
            InitMethod::Snapshot,
            format!(
                "{} GiB in one snapshot would keep VACUUM from cleaning up for too long (copy.snapshot_above)",
                bytes >> 30
            ),
        ),
        (0, None) => (InitMethod::Direct, "the agents reach each other, so they stream the snapshot".into()),
    };
    (method, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_is_taken_unless_one_snapshot_cannot_be_held_for_so_long() {
        let facts = |gib: u64, members: usize, snapshot_minutes| v1::ExamineReply {
            tables: vec![v1::SourceTable { kind: "r".into(), bytes: gib << 30, ..v1::SourceTable::default() }],
            members: vec![v1::MeshMember::default(); members],
            snapshot_minutes,
            ..v1::ExamineReply::default()
        };
        let auto = |facts: &v1::ExamineReply| choose(InitMethod::Auto, facts, 100 << 30);
        for (facts, method, word) in [
            (facts(1, 0, None), InitMethod::Direct, "stream"),
            (facts(101, 0, None), InitMethod::Snapshot, "101 GiB"),
            (facts(1, 0, Some(60)), InitMethod::Snapshot, "old_snapshot_threshold"),
            // Wrong rows would be worse than a snapshot that is lost and told so.
            (facts(101, 1, Some(60)), InitMethod::Direct, "two nodes"),
        ] {
            let (chosen, why) = auto(&facts);
            assert_eq!(chosen, method, "{why}");
            assert!(why.contains(word), "{why}");
        }
        for asked in [InitMethod::Direct, InitMethod::Snapshot] {
            assert_eq!(choose(asked, &facts(101, 1, None), 0), (asked, String::new()), "what was asked for is done");
        }
    }
}
