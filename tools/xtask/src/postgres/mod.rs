//! PostgreSQL servers on this machine: found where they may lie, or fetched.

mod fetch;
mod find;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::say;

/// The major versions Steep supports, newest first.
pub const SUPPORTED: [u32; 4] = [18, 17, 16, 15];

/// A complete installation: server and client programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postgres {
    pub major: u32,
    /// As the server prints it, `18.4`.
    pub version: String,
    /// Where `postgres`, `initdb`, `pg_dump` and the others lie.
    pub bin_dir: PathBuf,
    /// How it was found, for people.
    pub found_by: String,
}

impl Postgres {
    /// The installation of `major`: found, or else fetched.
    pub fn of(major: u32) -> Result<Self> {
        if !SUPPORTED.contains(&major) {
            bail!("PostgreSQL {major} is not supported; 15, 16, 17 and 18 are");
        }
        match find::of(major)? {
            Some(found) => Ok(found),
            None => Self::fetched(major),
        }
    }

    /// The installation of `major`, without fetching one.
    pub fn installed(major: u32) -> Result<Option<Self>> {
        find::of(major)
    }

    /// Fetches `major` into the cache unless it is there.
    pub fn fetched(major: u32) -> Result<Self> {
        fetch::into_cache(major, &cache())?;
        match find::in_cache(major)? {
            Some(found) => Ok(found),
            None => bail!("PostgreSQL {major} was fetched to {} but does not run there", cache().display()),
        }
    }

    pub fn program(&self, name: &str) -> PathBuf {
        crate::workspace::program(&self.bin_dir, name)
    }
}

/// Where what we fetch and prepare is kept: for everybody when we are root, else for this user.
pub fn cache() -> PathBuf {
    let account = crate::cluster::account::Account::of_servers();
    if account.is_another() {
        return PathBuf::from("/var/cache/steep");
    }
    let own = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().unwrap_or_else(std::env::temp_dir).join(".cache");
    own.unwrap_or_else(home).join("steep")
}

/// `cargo x pg list`.
pub fn list(json: bool) -> Result<()> {
    let found = find::all()?;
    if json {
        let rows: Vec<_> = found
            .iter()
            .map(|it| serde_json::json!({"major": it.major, "version": it.version, "bin_dir": it.bin_dir, "found_by": it.found_by}))
            .collect();
        println!("{}", serde_json::Value::Array(rows));
        return Ok(());
    }
    for it in &found {
        println!("{:<3} {:<8} {}  ({})", it.major, it.version, it.bin_dir.display(), it.found_by);
    }
    if !found.iter().any(|it| it.major == 18) {
        say::step("no PostgreSQL 18 here yet; `cargo x pg fetch 18` gets it");
    }
    Ok(())
}

/// `cargo x pg fetch`.
pub fn fetch(major: u32) -> Result<()> {
    let it = match find::in_cache(major)? {
        Some(there) => there,
        None if fetch::knows(major) => Postgres::fetched(major)?,
        None => Postgres::of(major)?,
    };
    println!("{}", it.bin_dir.display());
    Ok(())
}

/// A bin directory in `folder`'s version folder, as the cache lays them out.
fn cached_bin(cache: &Path, major: u32) -> PathBuf {
    cache.join("postgres").join(major.to_string()).join("bin")
}
