//! Looks at all of a snapshot: that every file is there and nothing else, and that each is what the manifest says.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use steep_protocol::failure::{Code, Explain as _, Failure};

use super::{
    manifest::{Manifest, PartEntry, TableEntry},
    read::{Opened, Place, blocking, size_of},
};
use crate::storage::{Directory, MANIFEST, SCHEMA, SEQUENCES, SOURCE};

/// Reads every file, `workers` at once, and returns the rows counted; `told` hears the bytes of each that is good.
///
/// Of one that lies with another agent the files of the rows are read once, while they are loaded; here it is the others.
/// Fails on the first that is not what the manifest says, naming it, what was expected and what was found.
pub async fn verify(
    opened: &Arc<Opened>,
    workers: usize,
    told: impl Fn(u64) + Send + Sync + 'static,
) -> Result<u64, Failure> {
    if let Place::Directory(directory) = &opened.place {
        let (directory, opened) = (directory.clone(), Arc::clone(opened));
        blocking(move || same_files(&directory, &opened.manifest)).await?;
    }
    for name in [SCHEMA, SEQUENCES, SOURCE] {
        opened.file(name).await?;
    }
    if let Place::Peer(_) = &opened.place {
        return add_up(&opened.manifest.tables);
    }
    let opened = Arc::clone(opened);
    blocking(move || {
        let tables = opened.manifest.tables.iter();
        let parts: Vec<_> = tables.flat_map(|table| table.parts.iter().map(move |part| (table, part))).collect();
        look_at(&opened, &parts, workers, &told)?;
        add_up(&opened.manifest.tables)
    })
    .await
}

/// Nothing is missing, and nothing is there that the manifest does not name.
fn same_files(directory: &Directory, manifest: &Manifest) -> Result<(), Failure> {
    let names = directory.files().map_err(|error| error.explain())?;
    let there: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| *name != MANIFEST).collect();
    let named: BTreeSet<&str> = manifest.all_files().map(|file| file.name.as_str()).collect();
    if let Some(missing) = named.difference(&there).next() {
        return Err(Failure::new(Code::SnapshotDamaged, format!("{missing}: expected a file, found none")));
    }
    match there.difference(&named).next() {
        Some(extra) => Err(Failure::new(Code::SnapshotUnsafe, format!("{extra} is not named by the manifest"))),
        None => Ok(()),
    }
}

/// Makes sure that every file is there, nothing else, and each as long as the manifest says; reads none of them.
pub async fn glance(opened: &Arc<Opened>) -> Result<(), Failure> {
    let opened = Arc::clone(opened);
    blocking(move || {
        let Place::Directory(directory) = &opened.place else { return Ok(()) };
        same_files(directory, &opened.manifest)?;
        for entry in opened.manifest.all_files() {
            let file = directory.open(&entry.name).map_err(|error| error.explain())?;
            let size = size_of(directory, &entry.name, &file)?;
            if size != entry.bytes {
                let text = format!("{}: expected {} bytes, found {size}", entry.name, entry.bytes);
                return Err(Failure::new(Code::SnapshotDamaged, text));
            }
        }
        Ok(())
    })
    .await
}

fn look_at(
    opened: &Opened,
    parts: &[(&TableEntry, &PartEntry)],
    workers: usize,
    told: &(impl Fn(u64) + Sync),
) -> Result<(), Failure> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let first: Mutex<Option<Failure>> = Mutex::new(None);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let Some((table, part)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            match opened.through(part, !table.columns.is_empty(), |_| !failed.load(Ordering::Relaxed)) {
                Ok(_) => told(part.file.bytes),
                Err(failure) => {
                    // What stopped because another had failed is not what failed.
                    if !failed.swap(true, Ordering::Relaxed) {
                        *first.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                    }
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..workers.min(parts.len()) {
            scope.spawn(work);
        }
        work();
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Each part has as many rows as it says; all of them have to come to what the tables say.
fn add_up(tables: &[TableEntry]) -> Result<u64, Failure> {
    let mut all = 0;
    for table in tables {
        let rows: u64 = table.parts.iter().map(|part| part.rows).sum();
        if rows != table.rows {
            let text = format!("{}.{}: expected {} rows, found {rows}", table.schema, table.name, table.rows);
            return Err(Failure::new(Code::SnapshotDamaged, text));
        }
        all += rows;
    }
    Ok(all)
}
