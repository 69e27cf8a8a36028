//! Where the sockets of links lie: one directory a peer below `replication.socket_dir`, which lets PostgreSQL's account
//! in and nobody else.
//!
//! PostgreSQL usually runs under another account than the agent. A directory belongs to the agent's user and, where that
//! can be done, to the group of PostgreSQL's processes, mode 0710; where both are one account, mode 0700. The socket in it
//! needs no mode of its own. A `socket_dir` that somebody has given modes already is left as it is.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
};
use tokio::net::UnixListener;
use tracing::debug;

/// Part of a socket's name, as libpq wants it; nobody listens on such a port.
pub(super) const PORT: u16 = 5432;
/// The path of a unix socket ends with a zero byte after so many.
const LONGEST_SOCKET: usize = 107;

/// User and group of PostgreSQL's processes.
pub(super) type Account = (u32, u32);

/// The directories of one agent's links.
#[derive(Debug, Clone)]
pub(super) struct Place {
    root: PathBuf,
    me: NodeId,
}

fn unusable(path: &Path, why: &str) -> Failure {
    Failure::new(
        Code::LinkSocketUnusable,
        format!("{} cannot hold sockets of replication links: {why}", path.display()),
    )
}

impl Place {
    pub(super) fn new(root: &Path, me: &NodeId) -> Self {
        Self { root: root.to_owned(), me: me.clone() }
    }

    /// The directory for the link to `peer`: short, and the same for as long as both keep their names.
    pub(super) fn of(&self, peer: &NodeId) -> PathBuf {
        self.root.join(self.name_of(peer))
    }

    /// The last part of [`Place::of`]; a connection string that has it is one of ours.
    pub(super) fn name_of(&self, peer: &NodeId) -> String {
        let hash = Sha256::digest(format!("{}\0{peer}", self.me));
        hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Makes the directory for the link to `peer`, open to `server` as far as we may.
    pub(super) fn make(&self, peer: &NodeId, server: Option<Account>) -> Result<PathBuf, Failure> {
        let dir = self.of(peer);
        let text = dir.to_str().filter(|text| text.starts_with('/') && !text.contains(','));
        if text.is_none() {
            return Err(unusable(&self.root, "libpq takes absolute paths without a comma only"));
        }
        let length = socket_in(&dir).as_os_str().len();
        if length > LONGEST_SOCKET {
            let why = format!("the path of a socket in it has {length} bytes, and {LONGEST_SOCKET} is the most");
            return Err(unusable(&self.root, &why).hint("set replication.socket_dir to a shorter path: /run/steep"));
        }
        let made = self.make_directories(&dir, server);
        made.map_err(|error| unusable(&self.root, "it cannot be made or opened").caused_by(&error))?;
        let mode = fs::metadata(&self.root).map_or(0, |found| found.mode());
        if mode & 0o002 != 0 {
            let hint = format!("chmod o-w {}", self.root.display());
            return Err(unusable(&self.root, "everybody may write to it").hint(hint));
        }
        Ok(dir)
    }

    fn make_directories(&self, dir: &Path, server: Option<Account>) -> io::Result<()> {
        let make = |path: &Path| match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        if let Some(above) = self.root.parent() {
            fs::create_dir_all(above)?;
        }
        make(&self.root)?;
        make(dir)?;
        let (root, inner) = (fs::metadata(&self.root)?, fs::metadata(dir)?);
        // What we just made is ours.
        let me = inner.uid();
        let group = match server {
            Some((user, _)) if user == me => None,
            Some((_, group)) => Some(group),
            // Not reached over its socket: whoever set the directory up has said whom it is for.
            None => (root.mode() & 0o010 != 0).then(|| root.gid()),
        };
        if root.uid() == me && root.mode() & 0o077 == 0 {
            open_to(&self.root, group)?;
        }
        open_to(dir, group)
    }

    /// Listens in the directory for `peer`, which [`Place::make`] has made. Takes the place of a socket nobody listens on.
    pub(super) fn listen(&self, peer: &NodeId) -> Result<UnixListener, Failure> {
        let path = socket_in(&self.of(peer));
        let failed = |error: io::Error| unusable(&self.root, "its socket cannot be made").caused_by(&error);
        if fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
            if UnixStream::connect(&path).is_ok() {
                let why = format!("somebody listens on {} already", path.display());
                return Err(
                    unusable(&self.root, &why).hint("stop the other agent that uses this replication.socket_dir")
                );
            }
            fs::remove_file(&path).map_err(failed)?;
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // The directory decides who gets here.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
        Ok(listener)
    }

    /// Removes the directory for `peer`, with what is in it.
    pub(super) fn remove(&self, peer: &NodeId) {
        let dir = self.of(peer);
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            debug!(path = %dir.display(), %error, "the directory of a link could not be removed");
        }
    }

    /// Removes directories of links that are not among those to `peers`.
    pub(super) fn sweep(&self, peers: &[NodeId]) {
        let wanted: Vec<_> = peers.iter().map(|peer| self.name_of(peer)).collect();
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = name.len() == 10 && name.bytes().all(|b| b.is_ascii_hexdigit());
            if is_ours && !wanted.contains(&name) && UnixStream::connect(socket_in(&entry.path())).is_err() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// The first directory on the way to `path` that `server` may not enter by its modes; `None`: all are open, as far
    /// as can be seen. Groups a server has besides its own are not known here.
    pub(super) fn closed_to(path: &Path, server: Option<Account>) -> Option<PathBuf> {
        let (user, group) = server?;
        let way: Vec<_> = path.ancestors().collect();
        let may_enter = |dir: &Path| {
            fs::metadata(dir).is_ok_and(|found| {
                let bit = if user == 0 || found.uid() == user {
                    0o100
                } else if found.gid() == group {
                    0o010
                } else {
                    0o001
                };
                found.mode() & bit != 0
            })
        };
        way.into_iter().rev().find(|dir| !may_enter(dir)).map(Path::to_owned)
    }
}

/// The socket's path in the directory of a link, as libpq makes it.
pub(super) fn socket_in(dir: &Path) -> PathBuf {
    dir.join(format!(".s.PGSQL.{PORT}"))
}

/// Lets `group` in, or nobody but ourselves where there is none or it cannot be given.
fn open_to(dir: &Path, group: Option<u32>) -> io::Result<()> {
    let found = fs::metadata(dir)?;
    let is_given =
        group.is_some_and(|group| found.gid() == group || std::os::unix::fs::chown(dir, None, Some(group)).is_ok());
    let mode = if is_given { 0o710 } else { 0o700 };
    if found.mode() & 0o777 == mode { Ok(()) } else { fs::set_permissions(dir, fs::Permissions::from_mode(mode)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("steep-link-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("a folder can be made");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn node(name: &str) -> NodeId {
        name.parse().expect("a name")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").mode() & 0o777
    }

    #[tokio::test]
    async fn a_directory_lets_in_whom_it_should_and_nobody_else() {
        let folder = Folder::new("modes");
        let us = fs::metadata(&folder.0).expect("it is there");
        let (peer, root) = (node("node_b"), folder.0.join("link"));
        let place = Place::new(&root, &node("node_a"));
        let dir = place.make(&peer, Some((us.uid(), us.gid()))).expect("it can be made");
        assert_eq!([mode(&root), mode(&dir)], [0o700; 2], "one account");
        // Another user of our own group: that group can be given by anybody.
        let dir = place.make(&peer, Some((us.uid() + 1, us.gid()))).expect("it can be made");
        assert_eq!([mode(&root), mode(&dir)], [0o710; 2], "another account");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o2750)).expect("it is ours");
        place.make(&peer, None).expect("it can be made");
        assert_eq!(mode(&root), 0o750, "what was set up stays");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).expect("it is ours");
        let refused = place.make(&peer, None).expect_err("everybody may write");
        assert_eq!(refused.code, Code::LinkSocketUnusable);
    }

    #[tokio::test]
    async fn a_dead_socket_is_taken_over_and_a_living_one_is_not() {
        let folder = Folder::new("sockets");
        let place = Place::new(&folder.0.join("l"), &node("node_a"));
        let peer = node("node_b");
        place.make(&peer, None).expect("it can be made");
        let first = place.listen(&peer).expect("nobody listens");
        assert_eq!(place.listen(&peer).expect_err("somebody listens").code, Code::LinkSocketUnusable);
        drop(first);
        let second = place.listen(&peer).expect("nobody listens any more");
        place.sweep(&[]);
        assert!(place.of(&peer).exists(), "somebody listens in it");
        drop(second);
        place.sweep(std::slice::from_ref(&peer));
        assert!(place.of(&peer).exists(), "it is wanted");
        place.sweep(&[]);
        assert!(!place.of(&peer).exists());
    }

    #[test]
    fn a_path_libpq_could_not_use_is_refused_with_what_to_do() {
        let long = format!("/tmp/{}", "x".repeat(90));
        for (root, word) in [(&*long, "107"), ("/tmp/a,b", "comma"), ("relative", "absolute")] {
            let place = Place::new(Path::new(root), &node("node_a"));
            let failure = place.make(&node("node_b"), None).expect_err("unusable");
            assert!(failure.message.contains(word), "{}", failure.message);
            assert!(!Path::new(root).exists());
        }
    }

    #[test]
    fn the_first_closed_door_on_the_way_is_named() {
        let folder = Folder::new("doors");
        let inner = folder.0.join("a/b");
        fs::create_dir_all(&inner).expect("folders can be made");
        let stranger = Some((u32::MAX - 1, u32::MAX - 1));
        for path in [&folder.0, &folder.0.join("a"), &inner] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o711)).expect("it is ours");
        }
        assert_eq!(Place::closed_to(&inner, stranger), None);
        fs::set_permissions(folder.0.join("a"), fs::Permissions::from_mode(0o710)).expect("it is ours");
        assert_eq!(Place::closed_to(&inner, stranger), Some(folder.0.join("a")));
    }
}
