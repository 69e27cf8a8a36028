//! Files that are written once: never over another file, keys for their owner alone.
//!
//! [`replace`] is for the few that are kept up to date: the register, the revocation lists, the trusted roots.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::Error;

/// A file to be written.
#[derive(Debug)]
pub struct NewFile {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub text: String,
    /// Nobody else may read it.
    pub is_secret: bool,
}

impl NewFile {
    /// A certificate: anybody may read it.
    pub fn certificate(path: PathBuf, pem: String) -> Self {
        Self { path, text: pem, is_secret: false }
    }

    /// A private key, readable by its owner alone.
    pub fn key(path: PathBuf, pem: String) -> Self {
        Self { path, text: pem, is_secret: true }
    }
}

/// Fails with [`Error::Exists`] if any of `paths` is there, before anything costly is begun.
pub fn refuse_existing<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<(), Error> {
    match paths.into_iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(Error::Exists(path.to_owned())),
        None => Ok(()),
    }
}

/// Makes `dir` with its parents, for its owner alone where it is new.
pub fn make_directory(dir: &Path) -> Result<(), Error> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|source| Error::Unwritable { path: dir.to_owned(), source })
}

/// Writes all of `files`, or none: after an error those already written are gone again.
pub fn write_all(files: &[NewFile]) -> Result<(), Error> {
    refuse_existing(files.iter().map(|file| file.path.as_path()))?;
    for (at, file) in files.iter().enumerate() {
        if let Err(error) = write_new(file) {
            for written in &files[..at] {
                // The error to tell is the first one.
                let _ = fs::remove_file(&written.path);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn write_new(file: &NewFile) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if file.is_secret {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(file.path.clone()),
        _ => Error::Unwritable { path: file.path.clone(), source },
    };
    let mut open = options.open(&file.path).map_err(failed)?;
    open.write_all(file.text.as_bytes()).and_then(|()| open.sync_all()).map_err(|source| {
        let _ = fs::remove_file(&file.path);
        failed(source)
    })
}

/// Puts `file` in the place of the one that is there, whole or not at all.
pub fn replace(file: &NewFile) -> Result<(), Error> {
    let failed = |source| Error::Unwritable { path: file.path.clone(), source };
    let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = file.path.with_file_name(format!(".{name}.new"));
    let mut open = File::create(&beside).map_err(failed)?;
    open.write_all(file.text.as_bytes()).and_then(|()| open.sync_all()).map_err(failed)?;
    fs::rename(&beside, &file.path).map_err(failed)
}

/// Reads a whole text file.
pub fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })
}
