//! Opens a snapshot and gives its rows back, each file held against the manifest while it is read.
//!
//! Whether a file was what the manifest says is known at its end: whoever takes rows from it commits nothing before.

use std::{
    fs::File,
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    wire::identity::Identity,
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    manifest::{MOST_BYTES, Manifest, PartEntry, TableEntry, hex, matching},
    peer::{Arriving, Holder},
    rows::RowCount,
};
use crate::storage::{self, Bucket, Directory, MANIFEST};

/// Expanded rows are handed on in blocks of this size.
const BLOCK_BYTES: usize = 512 << 10;
/// Blocks between reading and loading.
const AHEAD: usize = 2;

/// A snapshot whose manifest is believed. Its files are not read yet.
#[derive(Debug)]
pub struct Opened {
    /// Where it lies.
    pub(super) place: Place,
    /// What it holds.
    pub manifest: Manifest,
}

/// Where a snapshot lies.
#[derive(Debug)]
pub(super) enum Place {
    /// On this host.
    Directory(Directory),
    /// With another agent, or in an object store.
    Away(Box<Holder>),
}

impl Opened {
    /// Looks what is in `directory` and reads the manifest, as `identity` may believe it.
    ///
    /// Fails with [`Code::SnapshotUnsafe`] before anything is opened where something is in it that no snapshot has; with
    /// [`Code::SnapshotIncomplete`] without a manifest; otherwise as [`Manifest::read`] does.
    pub async fn open(directory: Directory, identity: &Identity) -> Result<Arc<Self>, Failure> {
        let identity = identity.clone();
        blocking(move || {
            let names = directory.files().map_err(|error| error.explain())?;
            if !names.iter().any(|name| name == MANIFEST) {
                return Err(no_manifest(&directory.path().to_string_lossy()));
            }
            let text = small(&directory, MANIFEST, MOST_BYTES)?;
            let manifest = Manifest::read(&text, &identity, Timestamp::now())?;
            Ok(Arc::new(Self { place: Place::Directory(directory), manifest }))
        })
        .await
    }

    /// The same of a snapshot in `bucket`, which is waited for no longer than `patience`.
    pub async fn in_bucket(bucket: Bucket, patience: Duration, identity: &Identity) -> Result<Arc<Self>, Failure> {
        let names = bucket.files().await.map_err(|error| error.explain())?;
        if !names.contains_key(MANIFEST) {
            return Err(no_manifest(bucket.address()));
        }
        Self::with_peer(Holder::in_bucket(bucket, patience), identity).await
    }

    /// Has `holder` send the manifest, and reads it as `identity` may believe it.
    ///
    /// Fails as [`Manifest::read`] does, and with what whoever holds it says.
    pub async fn with_peer(holder: Holder, identity: &Identity) -> Result<Arc<Self>, Failure> {
        let (text, identity) = (holder.whole(MANIFEST, MOST_BYTES).await?, identity.clone());
        blocking(move || {
            let manifest = Manifest::read(&text, &identity, Timestamp::now())?;
            Ok(Arc::new(Self { place: Place::Away(Box::new(holder)), manifest }))
        })
        .await
    }

    /// One of the files that hold no rows; it is what the manifest says.
    pub async fn file(self: &Arc<Self>, name: &'static str) -> Result<Vec<u8>, Failure> {
        let entry = self.manifest.file(name);
        let bytes = match &self.place {
            Place::Away(holder) => holder.whole(name, entry.bytes).await?,
            Place::Directory(directory) => {
                let (directory, most) = (directory.clone(), entry.bytes);
                blocking(move || small(&directory, name, most)).await?
            }
        };
        matching(entry, &bytes)?;
        Ok(bytes)
    }

    /// The table with this oid on the node it is of.
    pub fn table(&self, oid: u32) -> Option<&TableEntry> {
        self.manifest.tables.iter().find(|table| table.oid == oid)
    }

    /// The rows of a part, as CSV.
    ///
    /// Fails with [`Code::BadRequest`] where there is no such part.
    pub fn part(self: &Arc<Self>, oid: u32, part: usize) -> Result<PartBlocks, Failure> {
        let missing = || Failure::new(Code::BadRequest, format!("the snapshot has no part {part} of table {oid}"));
        let table = self.table(oid).ok_or_else(missing)?;
        let (entry, has_header) = (table.parts.get(part).ok_or_else(missing)?.clone(), !table.columns.is_empty());
        let (blocks, arriving) = mpsc::channel(AHEAD);
        let begun = match &self.place {
            Place::Directory(_) => None,
            Place::Away(holder) => Some(holder.begin(&entry.file.name)),
        };
        let (file, fetching) = begun.unzip();
        let this = Arc::clone(self);
        let reading = spawn_blocking(move || {
            // Whoever does not listen any more does not ask how it ended.
            let take = |block: &[u8]| blocks.blocking_send(Bytes::copy_from_slice(block)).is_ok();
            match file {
                None => this.through(&entry, Depth::Rows, has_header, take),
                Some(file) => this.through_arriving(file, &entry, Depth::Rows, has_header, take),
            }
        });
        Ok(PartBlocks { blocks: arriving, reading, seen: None, _fetching: fetching })
    }

    /// The same as [`Opened::through`] of a file that comes over the network.
    fn through_arriving(
        &self,
        mut file: Arriving,
        part: &PartEntry,
        depth: Depth,
        has_header: bool,
        take: impl FnMut(&[u8]) -> bool,
    ) -> Result<Seen, Failure> {
        // One byte more, so that what is longer shows.
        let bytes = file.by_ref().take(part.file.bytes.saturating_add(1));
        let read = self.hold_against(bytes, part, depth, has_header, take);
        file.failure.map_or(read, Err)
    }

    /// Reads a part's file to its end, as far as `depth` says, and gives each expanded block to `take` as long as that wants
    /// more.
    ///
    /// Fails with [`Code::SnapshotDamaged`], naming file, expected and actual, where it is not what the manifest says; no more
    /// is expanded than that says.
    pub(super) fn through(
        &self,
        part: &PartEntry,
        depth: Depth,
        has_header: bool,
        take: impl FnMut(&[u8]) -> bool,
    ) -> Result<Seen, Failure> {
        let entry = &part.file;
        let directory = match &self.place {
            Place::Directory(directory) => directory,
            Place::Away(holder) => {
                let (file, _fetching) = holder.begin(&entry.name);
                return self.through_arriving(file, part, depth, has_header, take);
            }
        };
        let file = directory.open(&entry.name).map_err(|error| error.explain())?;
        let size = size_of(directory, &entry.name, &file)?;
        if size != entry.bytes {
            return Err(damaged(&entry.name, format!("{} bytes", entry.bytes), size.to_string()));
        }
        self.hold_against(file.take(size), part, depth, has_header, take)
    }

    /// Reads what a part's file is to be, and holds it against the manifest.
    fn hold_against(
        &self,
        from: impl Read + Send,
        part: &PartEntry,
        depth: Depth,
        has_header: bool,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<Seen, Failure> {
        let entry = &part.file;
        let failed = |error: io::Error| {
            Failure::new(Code::SnapshotStorage, format!("cannot read {}", entry.name)).caused_by(&error)
        };
        let mut is_wanted = true;
        let mut take = |block: &[u8]| {
            is_wanted = take(block);
            is_wanted
        };
        let mut hashed = Hashed { from, sha256: Sha256::new() };
        let expanded = match depth {
            Depth::Hash => None,
            Depth::Rows => Some(expand(&mut hashed, self, part, &mut take)),
        };
        if !is_wanted {
            return Err(Failure::new(Code::Cancelled, format!("nobody wants the rest of {}", entry.name)));
        }
        io::copy(&mut hashed, &mut io::sink()).map_err(failed)?;
        let sha256 = hashed.sha256.finalize();
        // What does not expand because it was changed is told by its hash.
        if hex(&sha256) != entry.sha256 {
            return Err(damaged(&entry.name, format!("SHA-256 {}", entry.sha256), hex(&sha256)));
        }
        let hash = sha256.first_chunk().copied().map_or(0, u64::from_be_bytes);
        let Some(expanded) = expanded else { return Ok(Seen { rows: part.rows, hash }) };
        let (bytes, count) = expanded.map_err(|error| {
            Failure::new(Code::SnapshotDamaged, format!("{} cannot be expanded", entry.name)).caused_by(&error)
        })?;
        if bytes != part.expanded_bytes {
            let more = if bytes > part.expanded_bytes { "more".to_owned() } else { bytes.to_string() };
            return Err(damaged(&entry.name, format!("{} bytes once expanded", part.expanded_bytes), more));
        }
        let rows = count.rows(has_header);
        if rows != Some(part.rows) {
            let found = rows.map_or_else(|| "an end amid a row".to_owned(), |rows| rows.to_string());
            return Err(damaged(&entry.name, format!("{} rows", part.rows), found));
        }
        Ok(Seen { rows: part.rows, hash })
    }
}

fn no_manifest(place: &str) -> Failure {
    Failure::new(Code::SnapshotIncomplete, format!("{place} holds no manifest, which is written last"))
}

fn damaged(name: &str, expected: String, actual: String) -> Failure {
    Failure::new(Code::SnapshotDamaged, format!("{name}: expected {expected}, found {actual}"))
}

/// The size of a file that was opened.
pub(super) fn size_of(directory: &Directory, name: &str, file: &File) -> Result<u64, Failure> {
    let failed = |source| storage::Error::Io { doing: "read", path: directory.path().join(name), source }.explain();
    Ok(file.metadata().map_err(failed)?.len())
}

/// Expands up to one byte more than the manifest says.
fn expand(
    from: &mut Hashed<impl Read + Send>,
    opened: &Opened,
    part: &PartEntry,
    take: &mut impl FnMut(&[u8]) -> bool,
) -> io::Result<(u64, RowCount)> {
    let (mut bytes, mut count) = (0, RowCount::default());
    let mut rows = opened.manifest.codec().reader(from)?.take(part.expanded_bytes.saturating_add(1));
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match rows.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes += filled as u64;
        if filled == 0 || bytes > part.expanded_bytes {
            return Ok((bytes, count));
        }
        count.add(&block[..filled]);
        if !take(&block[..filled]) {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "nobody wants the rest"));
        }
    }
}

/// How closely a part's file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// It is the file that was written: its length and its hash.
    Hash,
    /// It is expanded too, and its rows are counted.
    Rows,
}

/// What was found at the end of a part's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Rows in it.
    pub rows: u64,
    /// The beginning of its SHA-256.
    pub hash: u64,
}

/// The rows of one part.
#[derive(Debug)]
pub struct PartBlocks {
    blocks: mpsc::Receiver<Bytes>,
    reading: JoinHandle<Result<Seen, Failure>>,
    seen: Option<Seen>,
    /// Ends what comes over the network.
    _fetching: Option<AbortOnDropHandle<()>>,
}

impl PartBlocks {
    /// The next block; none: the file has ended, and was what the manifest says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(block) = self.blocks.recv().await {
            return Ok(Some(block));
        }
        if self.seen.is_none() {
            let read = (&mut self.reading).await.map_err(|error| unexpected(&error))?;
            self.seen = Some(read?);
        }
        Ok(None)
    }

    /// What was found, once it has ended.
    pub fn seen(&self) -> Option<Seen> {
        self.seen
    }
}

fn unexpected(error: &tokio::task::JoinError) -> Failure {
    Failure::new(Code::Internal, "reading a snapshot ended unexpectedly").caused_by(error)
}

/// Runs what waits for the disk where that holds up nobody.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    spawn_blocking(work).await.map_err(|error| unexpected(&error))?
}

/// A file that is held whole: at most `most` bytes and one more, so that what is longer shows.
fn small(directory: &Directory, name: &str, most: u64) -> Result<Vec<u8>, Failure> {
    let file = directory.open(name).map_err(|error| error.explain())?;
    let path = directory.path().join(name);
    let mut bytes = Vec::new();
    let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|source| storage::Error::Io { doing: "read", path, source }.explain())?;
    Ok(bytes)
}

/// A file and the hash of what was read of it.
struct Hashed<R> {
    from: R,
    sha256: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.sha256.update(&into[..read]);
        Ok(read)
    }
}
