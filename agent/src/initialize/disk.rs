//! Whether the target's disk is large enough, and the source may keep WAL for long enough, as far as that can be seen from here.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    v1,
};

use super::findings::Findings;
use crate::{
    postgres::{Purpose, Session, catalog, disk::free_bytes},
    rooms::Rooms,
    storage::Place,
};

/// What the target needs free, in tenths of the source's size: rows, indexes, and room to sort.
pub(super) const ONCE: u64 = 13;
/// The same where rows first come into a table beside theirs.
pub(super) const STAGED: u64 = 23;

/// What the system says of a disk that is full.
const FULL: &str = "No space left on device";

/// Looks whether the target's disk takes what the source holds.
pub(super) async fn check(
    session: &Session,
    findings: &mut Findings,
    facts: &v1::ExamineReply,
    tenths: u64,
) -> Result<(), Failure> {
    let paths = catalog::disk_paths(session).await.map_err(|error| error.explain())?;
    // Only a server on this machine, whose directory we may see, can be looked at.
    let Some(free) = paths.data_directory.as_deref().and_then(free_bytes) else { return Ok(()) };
    let size: u64 = facts.tables.iter().map(|table| table.bytes).sum();
    let needed = size / 10 * tenths;
    findings.must(free >= needed, Code::DiskTooSmall, "the disk is large enough", || {
        format!("{free} bytes are free, {needed} are needed ({size} on the source x {}.{})", tenths / 10, tenths % 10)
    });
    Ok(())
}

/// Whether `place` may take a snapshot as far as the server's own directories go. Where the role may not know of them, nothing
/// is said.
pub(super) async fn check_outside(rooms: &Rooms, place: &Place) -> Result<(), Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
    let paths = catalog::disk_paths(&session).await.map_err(|error| error.explain())?;
    place.check_outside(paths.all()).await.map_err(|error| error.explain())
}

/// `failure`, which ends an operation on `target`; where a disk was full, with `next` to do once it is not. PostgreSQL's own
/// programs say so in words alone.
pub(super) fn advise(failure: Failure, target: &NodeId, source: &NodeId, next: &str) -> Failure {
    let is_told = |text: &String| text.contains(FULL);
    let is_full = failure.code == Code::DiskTooSmall && failure.sqlstate.is_some();
    if !is_full && !is_told(&failure.message) && !failure.causes.iter().any(is_told) {
        return failure;
    }
    let hint = format!("make room on the disk that is full, on {target} or on {source}; then: {next}");
    Failure { code: Code::DiskTooSmall, ..failure }.hint(hint)
}

/// WAL written while the tables are copied must be kept until they are; nobody knows how much that will be, but a
/// limit below the data's own size is a gamble.
pub(super) fn check_wal_kept(findings: &mut Findings, source: &str, facts: &v1::ExamineReply) {
    let size: u64 = facts.tables.iter().map(|table| table.bytes).sum();
    if let Some(limit) = facts.max_slot_wal_keep_bytes.filter(|limit| *limit < size) {
        let text = format!("{source} keeps at most {limit} bytes of WAL for a slot, the data are {size} bytes");
        findings.warn(Code::SlotWalLimit, text, Code::SlotWalLimit.hint());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_comes_next_whoever_noticed_it() {
        let [b, a] = ["node_b", "node_a"].map(|name| name.parse::<NodeId>().expect("a node"));
        let advised = |failure: Failure| advise(failure, &b, &a, "steepctl node resume node_b");
        let by_server = Failure { sqlstate: Some("53100".into()), ..Failure::new(Code::DiskTooSmall, "load table t") };
        let by_program = Failure::new(Code::RestoreFailed, "pg_restore failed").cause(format!("ERROR: {FULL}"));
        for full in [by_server, by_program] {
            let told = advised(full);
            assert_eq!(told.code, Code::DiskTooSmall);
            assert!(told.hint.ends_with("then: steepctl node resume node_b"), "{}", told.hint);
        }
        // Of the preflight: nothing has begun.
        for other in [Failure::new(Code::DiskTooSmall, "7 bytes are free"), Failure::new(Code::CopyFailed, "no")] {
            assert_eq!(advised(other.clone()).hint, other.hint);
        }
    }
}
