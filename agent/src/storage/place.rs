//! Where a snapshot lies, by the address an operator gives: a directory of this host, or a bucket of an object store.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{
    Directory, Error, NewFile,
    bucket::{Bucket, SCHEME},
    object::NewObject,
};
use crate::config::Snapshots;

/// A place with a snapshot, or for one.
#[derive(Debug, Clone)]
pub enum Place {
    /// On this host.
    Directory(Directory),
    /// In an object store.
    Bucket(Box<Bucket>),
}

/// Runs what waits for the disk where that holds up nobody.
async fn off<T: Send + 'static>(
    directory: &Directory,
    work: impl FnOnce(&Directory) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let looking = directory.clone();
    spawn_blocking(move || work(&looking)).await.unwrap_or_else(|error| {
        let path = directory.path().to_owned();
        Err(Error::Io { doing: "look at", path, source: io::Error::other(error) })
    })
}

impl Place {
    /// The place called `address`: an absolute path, or `s3://BUCKET/PREFIX` as `settings` say where that is.
    pub fn named(address: &str, settings: &Snapshots) -> Result<Self, Error> {
        match address.starts_with(SCHEME) {
            true => Bucket::named(address, &settings.s3).map(|bucket| Self::Bucket(Box::new(bucket))),
            false => Directory::named(address).map(Self::Directory),
        }
    }

    /// Its address.
    pub fn address(&self) -> String {
        match self {
            Self::Directory(directory) => directory.path().to_string_lossy().into_owned(),
            Self::Bucket(bucket) => bucket.address().to_owned(),
        }
    }

    /// Whether a snapshot can be written into it.
    pub async fn check_free(&self) -> Result<(), Error> {
        match self {
            Self::Directory(directory) => off(directory, Directory::check_free).await,
            Self::Bucket(bucket) => bucket.check_free().await,
        }
    }

    /// Whether it is outside of all `servers`, directories on this host; a bucket is.
    pub async fn check_outside(&self, servers: Vec<PathBuf>) -> Result<(), Error> {
        match self {
            Self::Directory(directory) => off(directory, move |directory| directory.check_outside(&servers)).await,
            Self::Bucket(_) => Ok(()),
        }
    }

    /// Whether it is there before anything is written; a prefix never is.
    pub async fn is_there(&self) -> Result<bool, Error> {
        match self {
            Self::Directory(directory) => off(directory, |directory| Ok(directory.is_there())).await,
            Self::Bucket(_) => Ok(false),
        }
    }

    /// Makes what has to be there before files are written.
    pub async fn make(&self) -> Result<(), Error> {
        match self {
            Self::Directory(directory) => off(directory, Directory::make).await,
            Self::Bucket(_) => Ok(()),
        }
    }

    /// Every file by its name and size, as far as a snapshot has such names.
    ///
    /// Fails with [`Error::Unsafe`] on what no snapshot has.
    pub async fn files(&self) -> Result<BTreeMap<String, u64>, Error> {
        match self {
            Self::Directory(directory) => off(directory, Directory::sizes).await,
            Self::Bucket(bucket) => bucket.files().await,
        }
    }

    /// Takes away every file a snapshot has, and says whether there were any of rows; `keeps_itself`: a directory stays.
    pub async fn remove(&self, keeps_itself: bool) -> Result<bool, Error> {
        match self {
            Self::Directory(directory) => off(directory, move |directory| directory.remove(keeps_itself)).await,
            Self::Bucket(bucket) => bucket.remove().await,
        }
    }

    /// Takes away what was being written and is not whole.
    pub async fn remove_unfinished(&self) -> Result<(), Error> {
        match self {
            Self::Directory(directory) => off(directory, Directory::remove_unfinished).await,
            Self::Bucket(bucket) => bucket.abort_uploads().await.map(drop),
        }
    }

    /// Begins a file, which is given up once `stop` is cancelled. Blocks, as writing it does.
    pub fn create(&self, name: &str, stop: CancellationToken) -> Result<NewPart, Error> {
        match self {
            Self::Directory(directory) => directory.create(name).map(NewPart::File),
            Self::Bucket(bucket) => Ok(NewPart::Object(Box::new(bucket.create(name, stop)))),
        }
    }
}

/// A file that is being written. Dropped before it is finished, it is taken away.
#[derive(Debug)]
pub enum NewPart {
    /// On this host.
    File(NewFile),
    /// In an object store.
    Object(Box<NewObject>),
}

impl NewPart {
    /// It is whole: from now on it is there, whatever happens. After an error nothing of it is.
    pub fn finish(self) -> Result<(), Error> {
        match self {
            Self::File(file) => file.finish(),
            Self::Object(object) => object.finish(),
        }
    }
}

impl Write for NewPart {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Object(object) => object.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Object(object) => object.flush(),
        }
    }
}
