//! Whether the target's disk is large enough, as far as that can be seen from here.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    v1,
};

use super::findings::Findings;
use crate::postgres::{Session, catalog, disk::free_bytes};

/// What the target needs free, in tenths of the source's size: rows, indexes, and room to sort.
const DISK_TENTHS: u64 = 13;

/// Looks whether the target's disk takes what the source holds.
pub(super) async fn check(session: &Session, findings: &mut Findings, facts: &v1::ExamineReply) -> Result<(), Failure> {
    let paths = catalog::disk_paths(session).await.map_err(|error| error.explain())?;
    // Only a server on this machine, whose directory we may see, can be looked at.
    let Some(free) = paths.data_directory.as_deref().and_then(free_bytes) else { return Ok(()) };
    let size: u64 = facts.tables.iter().map(|table| table.bytes).sum();
    let needed = size / 10 * DISK_TENTHS;
    findings.must(free >= needed, Code::DiskTooSmall, "the disk is large enough", || {
        format!("{free} bytes are free, {needed} are needed ({size} on the source x 1.3)")
    });
    Ok(())
}
