//! Finds installed PostgreSQL versions: environment, cache, `PATH`, `pg_config`, Debian's folders.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use super::{Postgres, SUPPORTED, cache, cached_bin};
use crate::{process, workspace};

/// What a node needs; a folder with fewer is no installation.
const PROGRAMS: [&str; 6] = ["postgres", "initdb", "pg_ctl", "psql", "pg_dump", "pg_restore"];

/// The first installation of `major`, in the order of this file's first line.
pub(super) fn of(major: u32) -> Result<Option<Postgres>> {
    if let Some(named) = in_environment(major)? {
        return Ok(Some(named));
    }
    Ok(all()?.into_iter().find(|it| it.major == major))
}

/// The one in the cache, if it is there and runs.
pub(super) fn in_cache(major: u32) -> Result<Option<Postgres>> {
    Ok(at(&cached_bin(&cache(), major), "the cache").filter(|it| it.major == major))
}

/// Every installation, each once, newest first.
pub(super) fn all() -> Result<Vec<Postgres>> {
    let mut found: Vec<Postgres> = Vec::new();
    for major in SUPPORTED {
        found.extend(in_environment(major)?);
        found.extend(in_cache(major)?);
    }
    for (folder, by) in elsewhere() {
        found.extend(at(&folder, &by));
    }
    let mut seen: Vec<PathBuf> = Vec::new();
    found.retain(|it| {
        let place = it.bin_dir.canonicalize().unwrap_or_else(|_| it.bin_dir.clone());
        let new = !seen.contains(&place);
        seen.push(place);
        new
    });
    found.sort_by_key(|it| std::cmp::Reverse(it.major));
    Ok(found)
}

/// `STEEP_PG_18_BIN` and its like; naming a wrong folder is an error, not a hint.
fn in_environment(major: u32) -> Result<Option<Postgres>> {
    let name = format!("STEEP_PG_{major}_BIN");
    let Some(folder) = std::env::var_os(&name) else { return Ok(None) };
    match at(Path::new(&folder), &name) {
        Some(it) if it.major == major => Ok(Some(it)),
        Some(it) => bail!("{name} names PostgreSQL {}, not {major}", it.version),
        None => bail!("{name}={} is no folder with {}", folder.to_string_lossy(), PROGRAMS.join(", ")),
    }
}

fn elsewhere() -> Vec<(PathBuf, String)> {
    let mut folders: Vec<(PathBuf, String)> = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path).map(|folder| (folder, "PATH".to_owned())));
    if let Ok(folder) = process::output(Command::new("pg_config").arg("--bindir")) {
        folders.push((PathBuf::from(folder.trim()), "pg_config".to_owned()));
    }
    for parent in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        let versions = std::fs::read_dir(parent).into_iter().flatten().flatten();
        folders.extend(versions.map(|version| (version.path().join("bin"), parent.to_owned())));
    }
    folders
}

/// The installation in `bin_dir`, if it is one.
fn at(bin_dir: &Path, found_by: &str) -> Option<Postgres> {
    if !PROGRAMS.iter().all(|name| workspace::program(bin_dir, name).is_file()) {
        return None;
    }
    let printed = process::output(Command::new(workspace::program(bin_dir, "postgres")).arg("--version")).ok()?;
    let version = version_in(&printed)?;
    let major = version.split('.').next()?.parse().ok()?;
    Some(Postgres { major, version, bin_dir: bin_dir.to_owned(), found_by: found_by.to_owned() })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` says 15.18.
fn version_in(printed: &str) -> Option<String> {
    let after = printed.split("(PostgreSQL)").nth(1)?;
    let version = after.split_whitespace().next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_servers_print() {
        for (printed, version) in [
            ("postgres (PostgreSQL) 18.4\n", Some("18.4")),
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some("15.18")),
            ("postgres (PostgreSQL) 19rc1\n", Some("19rc1")),
            ("mysqld 9", None),
        ] {
            assert_eq!(version_in(printed).as_deref(), version);
        }
    }

    #[test]
    fn a_folder_without_a_server_is_no_installation() {
        assert_eq!(at(&workspace::root(), "this test"), None);
    }
}
