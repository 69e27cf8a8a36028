//! Free space where the server's files are, as far as it can be seen from here.

use std::path::Path;

/// Bytes that are free where `path` is; none: it cannot be seen.
#[cfg(unix)]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Bytes that are free where `path` is; none: it cannot be seen.
#[cfg(not(unix))]
pub fn free_bytes(_path: &Path) -> Option<u64> {
    None
}
