//! Whether the target's disk is large enough, and the source may keep WAL for long enough, as far as that can be seen from here.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    v1,
};

use super::findings::Findings;
use crate::postgres::{Session, catalog, disk::free_bytes};

/// What the target needs free, in tenths of the source's size: rows, indexes, and room to sort.
pub(super) const ONCE: u64 = 13;
/// The same where rows first come into a table beside theirs.
pub(super) const STAGED: u64 = 23;

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

/// WAL written while the tables are copied must be kept until they are; nobody knows how much that will be, but a
/// limit below the data's own size is a gamble.
pub(super) fn check_wal_kept(findings: &mut Findings, source: &str, facts: &v1::ExamineReply) {
    let size: u64 = facts.tables.iter().map(|table| table.bytes).sum();
    if let Some(limit) = facts.max_slot_wal_keep_bytes.filter(|limit| *limit < size) {
        let text = format!("{source} keeps at most {limit} bytes of WAL for a slot, the data are {size} bytes");
        findings.warn(Code::SlotWalLimit, text, Code::SlotWalLimit.hint());
    }
}
