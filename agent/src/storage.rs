//! The directory of a snapshot: which names may stand in it, how its files are written, opened and taken away. In an object
//! store it is a [`bucket`] and a prefix; a [`place`] is either.
//!
//! A file is there under its own name only when it is whole and on the disk: written beside it, synced, renamed, and the
//! directory synced. Nothing is opened that is not an ordinary file under a name a snapshot has; what a table is called
//! never becomes the name of a file. Does not know what the files hold. All of it blocks: call it where that is allowed.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use steep_protocol::failure::{Code, Explain};

mod bucket;
mod credentials;
mod object;
mod place;
mod web;

pub use bucket::{Bucket, SCHEME, Trouble};
pub use place::{NewPart, Place};

/// Says that all is there, and what.
pub const MANIFEST: &str = "manifest.json";
/// The definitions, in pg_dump's own form.
pub const SCHEMA: &str = "schema.dump";
/// Where the sequences stood.
pub const SEQUENCES: &str = "sequences.json";
/// What the source said of itself and its tables, as agents tell each other.
pub const SOURCE: &str = "source.pb";
/// The folder of the rows.
pub const DATA: &str = "data";
/// Files outside [`DATA`].
const SINGLE: [&str; 4] = [MANIFEST, SCHEMA, SEQUENCES, SOURCE];
/// Ends of names in [`DATA`].
const ENDS: [&str; 4] = [".csv", ".csv.gz", ".csv.lz4", ".csv.zst"];
/// Ends the name of a file that is being written.
const UNFINISHED: &str = ".tmp";

/// What is wrong with a directory, or a file of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot take a snapshot, or be one.
    #[error("{}: {why}", .path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// PostgreSQL keeps its own files there.
    #[error("{} is inside {}, where PostgreSQL keeps its own files", .path.display(), .server.display())]
    Servers {
        /// The directory.
        path: PathBuf,
        /// PostgreSQL's, around it.
        server: PathBuf,
    },
    /// Something in it is no file of a snapshot.
    #[error("{}: {why}", .path.display())]
    Unsafe {
        /// The entry.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
    /// A file is not there.
    #[error("{} is missing", .0.display())]
    Missing(PathBuf),
    /// The system refuses.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An object store does not do what is asked.
    #[error("cannot {doing} {what}")]
    Store {
        /// What was tried.
        doing: &'static str,
        /// With which object, or below which prefix.
        what: String,
        /// What that means.
        trouble: Trouble,
        /// What the store said, or became of the request.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody has said where the object store is, or who we are there, in a way we may use.
    #[error("no object store can be used as this agent is configured: {why}")]
    StoreUnset {
        /// What is missing.
        why: String,
    },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Unusable { .. } | Self::Servers { .. } => Code::SnapshotDirectory,
            Self::Unsafe { .. } => Code::SnapshotUnsafe,
            Self::Missing(_) => Code::SnapshotDamaged,
            Self::Io { .. } => Code::SnapshotStorage,
            Self::Store { trouble: Trouble::Refused, .. } | Self::StoreUnset { .. } => Code::StoreRefused,
            Self::Store { trouble: Trouble::NoBucket, .. } => Code::BucketMissing,
            Self::Store { trouble: Trouble::Away, .. } => Code::StoreUnreachable,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::Servers { server, .. } => Some(format!(
                "name a directory outside {}: whatever copies or cleans the server takes all in there for its own",
                server.display()
            )),
            _ => None,
        }
    }
}

/// The name of the part with this number, from 1, whose name ends with `end`.
pub fn part_name(number: usize, end: &str) -> String {
    format!("{DATA}/{number:06}{end}")
}

/// Whether `name` is one that [`part_name`] gives.
pub fn is_part_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(DATA).and_then(|rest| rest.strip_prefix('/')) else { return false };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    (6..=9).contains(&digits) && ENDS.contains(&&rest[digits..])
}

/// A directory with a snapshot, or for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory(PathBuf);

impl Directory {
    /// The directory called `path`, which has to be absolute and without `..`.
    pub fn named(path: &str) -> Result<Self, Error> {
        let named = PathBuf::from(path);
        let unusable = |why| Error::Unusable { path: named.clone(), why };
        if path.contains('\0') || named.components().any(|part| part == Component::ParentDir) {
            return Err(unusable("the path of a snapshot has no .. in it"));
        }
        match named.is_absolute() && named.file_name().is_some() {
            true => Ok(Self(named)),
            false => Err(unusable("the path of a snapshot is absolute, on the host of the node's agent")),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Whether a snapshot can be written into it: nothing is there, or an empty directory.
    pub fn check_free(&self) -> Result<(), Error> {
        let unusable = |why| Error::Unusable { path: self.0.clone(), why };
        match fs::symlink_metadata(&self.0) {
            Ok(found) if !found.is_dir() => Err(unusable("is there and no directory")),
            Ok(_) => match self.entries(&self.0)?.is_empty() {
                true => Ok(()),
                false => Err(unusable("is not empty")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.0.parent().map(fs::metadata) {
                Some(Ok(above)) if above.is_dir() => Ok(()),
                _ => Err(unusable("the directory above it does not exist")),
            },
            Err(source) => Err(Error::Io { doing: "look at", path: self.0.clone(), source }),
        }
    }

    /// Whether it is outside of all `servers`, wherever links lead. Of those, what cannot be seen from here is left out.
    pub fn check_outside(&self, servers: &[PathBuf]) -> Result<(), Error> {
        let above = self.0.parent().map(fs::canonicalize);
        let real = fs::canonicalize(&self.0).ok().or_else(|| Some(above?.ok()?.join(self.0.file_name()?)));
        let real = real.unwrap_or_else(|| self.0.clone());
        let around =
            servers.iter().find(|server| fs::canonicalize(server).is_ok_and(|server| real.starts_with(server)));
        around.map_or(Ok(()), |server| Err(Error::Servers { path: self.0.clone(), server: server.clone() }))
    }

    /// Makes it, and the folder of the rows, for the agent's user alone.
    pub fn make(&self) -> Result<(), Error> {
        for path in [self.0.clone(), self.at(DATA)] {
            match private_folder().create(&path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::Io { doing: "make", path, source });
                }
                _ => {}
            }
        }
        if let Some(above) = self.0.parent() {
            sync_folder(above)?;
        }
        sync_folder(&self.0)
    }

    /// Begins a file; it is there when [`NewFile::finish`] says so.
    pub fn create(&self, name: &str) -> Result<NewFile, Error> {
        debug_assert!(SINGLE.contains(&name) || is_part_name(name), "{name} is no name of a snapshot's file");
        let path = self.at(name);
        let mut unfinished = OsString::from(&path);
        unfinished.push(UNFINISHED);
        let unfinished = PathBuf::from(unfinished);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let opened = options.open(&unfinished);
        let file = opened.map_err(|source| Error::Io { doing: "create", path: unfinished.clone(), source })?;
        Ok(NewFile { file: Some(file), path, unfinished })
    }

    /// Opens one of its files to read.
    ///
    /// Fails with [`Error::Unsafe`] where it is no ordinary file; a link is not followed, a pipe not waited for.
    pub fn open(&self, name: &str) -> Result<File, Error> {
        let path = self.at(name);
        if !(SINGLE.contains(&name) || is_part_name(name)) {
            return Err(Error::Unsafe { path, why: "is no name of a snapshot's file" });
        }
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Missing(path)),
            found => found.map_err(|source| Error::Io { doing: "look at", path: path.clone(), source })?,
        };
        if !found.is_file() {
            return Err(Error::Unsafe { path, why: "is no ordinary file" });
        }
        let mut options = OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        {
            // Whatever it has become since it was looked at.
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags.bits().cast_signed());
        }
        let failed = |source| Error::Io { doing: "open", path: path.clone(), source };
        let file = options.open(&path).map_err(failed)?;
        match file.metadata().map_err(failed)?.is_file() {
            true => Ok(file),
            false => Err(Error::Unsafe { path, why: "is no ordinary file" }),
        }
    }

    /// Every file by its name, as far as a snapshot has such names.
    ///
    /// Fails with [`Error::Unsafe`] on the first entry that is neither an ordinary file nor [`DATA`], and on names that no
    /// snapshot has. Opens nothing.
    pub fn files(&self) -> Result<Vec<String>, Error> {
        let missing = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Error::Unusable { path: self.0.clone(), why: "is not there" },
            _ => Error::Io { doing: "look at", path: self.0.clone(), source },
        };
        if !fs::metadata(&self.0).map_err(missing)?.is_dir() {
            return Err(Error::Unusable { path: self.0.clone(), why: "is no directory" });
        }
        let mut names = Vec::new();
        for (path, name) in self.entries(&self.0)? {
            let kind = kind_of(&path)?;
            if name == DATA && kind.is_dir() {
                for (path, name) in self.entries(&path)? {
                    names.push(ordinary(path, &format!("{DATA}/{name}"), is_part_name)?);
                }
            } else {
                names.push(ordinary(path, &name, |name| SINGLE.contains(&name))?);
            }
        }
        Ok(names)
    }

    /// Every file by its name and size; fails as [`Directory::files`] does.
    pub fn sizes(&self) -> Result<BTreeMap<String, u64>, Error> {
        let size = |name: String| {
            let path = self.at(&name);
            let found = fs::symlink_metadata(&path).map_err(|source| Error::Io { doing: "look at", path, source })?;
            Ok((name, found.len()))
        };
        self.files()?.into_iter().map(size).collect()
    }

    fn entries(&self, folder: &Path) -> Result<Vec<(PathBuf, String)>, Error> {
        let failed = |source| Error::Io { doing: "list", path: folder.to_owned(), source };
        let entries = fs::read_dir(folder).map_err(failed)?;
        let named = entries.map(|entry| {
            let entry = entry.map_err(failed)?;
            Ok((entry.path(), entry.file_name().to_string_lossy().into_owned()))
        });
        named.collect()
    }

    /// Whether there is anything under its name.
    pub fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.0).is_ok()
    }

    /// Takes away every file a snapshot has, finished or not, the manifest first, and the directories if nothing else is
    /// in them, its own unless `keeps_itself`; what is gone already is no error. Says whether there were files of rows: one
    /// that was just given up may still be on its way out, so that it is worth another look.
    pub fn remove(&self, keeps_itself: bool) -> Result<bool, Error> {
        for name in SINGLE {
            self.remove_file(&self.at(name))?;
            self.remove_file(&self.at(&format!("{name}{UNFINISHED}")))?;
        }
        let data = self.at(DATA);
        let had_any = self.remove_parts(&data)?;
        remove_folder(&data, false)?;
        if !keeps_itself {
            // It may have been given to us: a mounted file system, or in a directory that is somebody else's. Empty is enough then.
            remove_folder(&self.0, true)?;
        }
        Ok(had_any)
    }

    /// Takes away files that were being written when the agent died.
    pub fn remove_unfinished(&self) -> Result<(), Error> {
        for name in SINGLE {
            self.remove_file(&self.at(&format!("{name}{UNFINISHED}")))?;
        }
        let data = self.at(DATA);
        if !fs::symlink_metadata(&data).is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        for (path, name) in self.entries(&data)? {
            if name.strip_suffix(UNFINISHED).is_some_and(|name| is_part_name(&format!("{DATA}/{name}"))) {
                self.remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Takes away what is in the folder of the rows, and says whether there was anything.
    fn remove_parts(&self, data: &Path) -> Result<bool, Error> {
        let mut had_any = false;
        if fs::symlink_metadata(data).is_ok_and(|found| found.is_dir()) {
            for (path, name) in self.entries(data)? {
                let name = format!("{DATA}/{name}");
                if is_part_name(name.strip_suffix(UNFINISHED).unwrap_or(&name)) {
                    had_any = true;
                    self.remove_file(&path)?;
                }
            }
        }
        Ok(had_any)
    }

    fn remove_file(&self, path: &Path) -> Result<(), Error> {
        match fs::remove_file(path) {
            Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(Error::Io { doing: "remove", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }
}

/// Takes a folder away unless there is something in it: somebody else's files are not ours to take away.
fn remove_folder(folder: &Path, may_stay: bool) -> Result<(), Error> {
    let Err(source) = fs::remove_dir(folder) else { return Ok(()) };
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory => Ok(()),
        io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied if may_stay => Ok(()),
        _ => Err(Error::Io { doing: "remove", path: folder.to_owned(), source }),
    }
}

fn kind_of(path: &Path) -> Result<fs::FileType, Error> {
    let found = fs::symlink_metadata(path);
    let found = found.map_err(|source| Error::Io { doing: "look at", path: path.to_owned(), source })?;
    Ok(found.file_type())
}

fn ordinary(path: PathBuf, name: &str, is_known: impl Fn(&str) -> bool) -> Result<String, Error> {
    match (kind_of(&path)?.is_file(), is_known(name)) {
        (false, _) => Err(Error::Unsafe { path, why: "is no ordinary file" }),
        (true, false) => Err(Error::Unsafe { path, why: "is no name of a snapshot's file" }),
        (true, true) => Ok(name.to_owned()),
    }
}

fn private_folder() -> DirBuilder {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(false);
    builder
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> Result<(), Error> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|source| Error::Io { doing: "sync", path: path.to_owned(), source })
}

/// Elsewhere a folder cannot be opened; the file's own sync has to do.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> Result<(), Error> {
    Ok(())
}

/// A file that is being written. Dropped before it is finished, it is taken away.
#[derive(Debug)]
pub struct NewFile {
    file: Option<File>,
    path: PathBuf,
    unfinished: PathBuf,
}

impl NewFile {
    /// It is whole: from now on it is there, whatever happens. After an error nothing of it is.
    pub fn finish(mut self) -> Result<(), Error> {
        if let Some(file) = self.file.take() {
            let path = self.unfinished.clone();
            // What a failed sync has left nobody knows: it is never tried again.
            file.sync_all().map_err(|source| Error::Io { doing: "sync", path, source })?;
        }
        let path = self.path.clone();
        let renamed = fs::rename(&self.unfinished, &self.path);
        renamed.map_err(|source| Error::Io { doing: "rename", path, source })?;
        self.path.parent().map_or(Ok(()), sync_folder)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().map_or(Ok(bytes.len()), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Renamed it is not there any more.
        drop(fs::remove_file(&self.unfinished));
    }
}

#[cfg(test)]
mod tests;
