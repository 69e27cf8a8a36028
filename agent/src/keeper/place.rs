//! Where keepers are found: a socket and a file with the process id for each, named after the operation, in a directory
//! that only the agent's user may enter.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use steep_protocol::{
    failure::{Code, Failure},
    ids::OperationId,
};
use tokio::net::UnixListener;

use crate::config::Config;

/// The path of a unix socket ends with a zero byte after so many.
const LONGEST_SOCKET: usize = 107;
/// The longest name a socket has in its directory.
const LONGEST_NAME: usize = "/0123456789ab.sock".len();

/// The directories of one agent's keepers.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Process ids, by which scripts find keepers.
    pids: PathBuf,
    sockets: PathBuf,
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    let text = format!("{} cannot hold what a keeper needs", path.display());
    Failure::new(Code::KeeperFailed, text).caused_by(error)
}

impl Place {
    /// Below the state directory; where that has too long a path for sockets, these lie where those of links do.
    pub(super) fn of(config: &Config) -> Self {
        let pids = config.node.state_dir.join("keepers");
        let fits = pids.as_os_str().len() + LONGEST_NAME <= LONGEST_SOCKET;
        let sockets = if fits { pids.clone() } else { config.socket_dir().join("keepers") };
        Self { pids, sockets }
    }

    pub(super) fn socket(&self, op: OperationId) -> PathBuf {
        self.sockets.join(format!("{}.sock", op.short()))
    }

    fn pid_file(&self, op: OperationId) -> PathBuf {
        self.pids.join(format!("{}.pid", op.short()))
    }

    /// Listens for the keeper of `op`, and writes down which process it is.
    pub(super) fn listen(&self, op: OperationId) -> Result<UnixListener, Failure> {
        for dir in [&self.pids, &self.sockets] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|error| unusable(dir, &error))?;
        }
        let (socket, pid_file) = (self.socket(op), self.pid_file(op));
        // Of a keeper that was killed, for nobody starts a second one beside a first that lives.
        drop(fs::remove_file(&socket));
        fs::write(&pid_file, std::process::id().to_string()).map_err(|error| unusable(&pid_file, &error))?;
        let listener = UnixListener::bind(&socket).map_err(|error| unusable(&socket, &error))?;
        let closed = fs::set_permissions(&socket, fs::Permissions::from_mode(0o600));
        closed.map_err(|error| unusable(&socket, &error))?;
        Ok(listener)
    }

    /// Removes what [`Place::listen`] has made.
    pub(super) fn forget(&self, op: OperationId) {
        drop(fs::remove_file(self.socket(op)));
        drop(fs::remove_file(self.pid_file(op)));
    }

    /// The sockets that are there, each with the twelve digits of its operation.
    pub(super) fn sockets(&self) -> Vec<(String, PathBuf)> {
        let found = fs::read_dir(&self.sockets).into_iter().flatten().flatten();
        let found = found.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "sock"));
        found.filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path))).collect()
    }

    /// Removes what a keeper with these digits left behind that was killed.
    pub(super) fn sweep(&self, digits: &str) {
        drop(fs::remove_file(self.sockets.join(format!("{digits}.sock"))));
        drop(fs::remove_file(self.pids.join(format!("{digits}.pid"))));
    }
}
