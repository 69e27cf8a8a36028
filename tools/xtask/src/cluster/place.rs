//! Where a cluster's files lie.
//!
//! ```text
//! DIR/cluster.json                       what was made, so that it can be ended
//! DIR/pki/                               certificates and keys
//! DIR/node_a/agent.toml agent.log state/ the agent's
//! DIR/node_a/postgres/data server.log    the server's, with its socket
//! ```
//! The server's part moves to `/tmp/steep-…/node_a` when the servers' account cannot reach DIR, and its socket alone
//! when DIR is too long for one: the path of a unix socket has at most 107 bytes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::account::Account;

const LONGEST_SOCKET: usize = 107;

/// The file that describes the cluster in `dir`.
pub(super) fn record(dir: &Path) -> PathBuf {
    dir.join("cluster.json")
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    /// We made `dir` itself, so it goes with the rest.
    made_dir: bool,
    /// What we made in `dir`.
    entries: Vec<String>,
    /// A short folder everybody can reach, where `dir` is none.
    short: Option<PathBuf>,
    /// The servers' data lies in `short` too, not only their sockets.
    data_in_short: bool,
}

impl Place {
    /// Makes the folders for `ids` in `dir`.
    pub(super) fn made(dir: &Path, ids: &[String]) -> Result<Self> {
        let made_dir = !dir.exists();
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
        refuse_taken(&dir)?;
        let entries: Vec<String> = ids.iter().cloned().chain(["pki".into(), "cluster.json".into()]).collect();
        if let Some(taken) = entries.iter().find(|entry| dir.join(entry).exists()) {
            bail!("{} is there already and not ours", dir.join(taken).display());
        }
        if Account::of_servers().is_another() {
            let_through(&dir)?;
        }
        let data_in_short = !Account::of_servers().may_enter(&dir);
        let longest =
            ids.iter().map(|id| socket_length(&dir.join(id).join("state/link/0123456789"))).max().unwrap_or(0);
        let short = (data_in_short || longest > LONGEST_SOCKET).then(|| short_folder(&dir));
        let place = Self { dir, made_dir, entries, short, data_in_short };
        if let Err(error) = place.make_folders(ids) {
            place.remove();
            return Err(error);
        }
        Ok(place)
    }

    fn make_folders(&self, ids: &[String]) -> Result<()> {
        if let Some(short) = &self.short {
            fresh_folder(short)?;
        }
        for id in ids {
            let (home, socket) = self.of_server(id);
            for folder in [&self.of_node(id), &home, &socket] {
                fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
                let_through(folder)?;
            }
            Account::of_servers().own(&home)?;
            Account::of_servers().own(&socket)?;
        }
        Ok(())
    }

    /// The agent's folder.
    pub(super) fn of_node(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// The server's folder and its socket's.
    pub(super) fn of_server(&self, id: &str) -> (PathBuf, PathBuf) {
        let long = self.dir.join(id).join("postgres");
        match &self.short {
            Some(short) if self.data_in_short => (short.join(id), short.join(id)),
            Some(short) => (long, short.join(id)),
            None => (long.clone(), long),
        }
    }

    /// Where the agent's replication links have their sockets, when its own folder is too long or closed to the server.
    pub(super) fn of_links(&self, id: &str) -> Option<PathBuf> {
        self.short.as_ref().map(|short| short.join(format!("{id}-link")))
    }

    /// Removes everything that was made, and nothing else.
    pub(super) fn remove(&self) {
        if let Some(short) = &self.short {
            let _ = fs::remove_dir_all(short);
        }
        for entry in &self.entries {
            let path = self.dir.join(entry);
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        if self.made_dir {
            // Fails when somebody put a file of their own there, which then stays.
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// Fails when a cluster lies in `dir`.
pub(super) fn refuse_taken(dir: &Path) -> Result<()> {
    if record(dir).exists() {
        bail!("a cluster lies in {0} already; end it with: cargo x cluster down --dir {0}", dir.display());
    }
    Ok(())
}

fn socket_length(folder: &Path) -> usize {
    folder.join(".s.PGSQL.5432").as_os_str().len()
}

/// A folder name that is the same for the same `dir`.
fn short_folder(dir: &Path) -> PathBuf {
    let hash = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    let hash: String = hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let temporary = if cfg!(unix) { PathBuf::from("/tmp") } else { std::env::temp_dir() };
    temporary.join(format!("steep-{hash}"))
}

/// Makes `folder` anew. Refuses one that somebody else has put there.
fn fresh_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    if let Ok(found) = fs::symlink_metadata(folder) {
        use std::os::unix::fs::MetadataExt;
        let ours = fs::metadata("/proc/self").map_or(found.uid(), |us| us.uid());
        if !found.is_dir() || found.uid() != ours {
            bail!("{} is there already and belongs to somebody else", folder.display());
        }
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let_through(folder)
}

/// Lets other accounts go through `folder`, not read it.
fn let_through(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(folder)?.permissions().mode() | 0o011;
        fs::set_permissions(folder, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot open {} for the servers' account", folder.display()))?;
    }
    Ok(())
}
