//! Looks at all of a snapshot: that every file is there and nothing else, and that each is what the manifest says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use steep_protocol::failure::{Code, Explain as _, Failure};
use tokio::runtime::Handle;

use super::{
    manifest::{Manifest, PartEntry, TableEntry},
    read::{Depth, Opened, Place, blocking},
};
use crate::storage::{MANIFEST, SCHEMA, SEQUENCES, SOURCE};

/// Reads every file to `depth`, `workers` at once, and returns the rows there are; `told` hears the bytes of each that is good.
///
/// Whoever loads the rows afterwards expands and counts them then, and commits none of a part that is not as it should be.
/// Of one that lies with another agent the files of the rows are read once, while they are loaded; here it is the others.
/// Fails on the first that is not what the manifest says, naming it, what was expected and what was found.
pub async fn verify(
    opened: &Arc<Opened>,
    depth: Depth,
    workers: usize,
    told: impl Fn(u64) + Send + Sync + 'static,
) -> Result<u64, Failure> {
    let names = names_of(opened).await?;
    if let Some(names) = &names {
        same_files(names, &opened.manifest)?;
    }
    for name in [SCHEMA, SEQUENCES, SOURCE] {
        opened.file(name).await?;
    }
    if names.is_none() {
        return add_up(&opened.manifest.tables);
    }
    let (opened, runtime) = (Arc::clone(opened), Handle::current());
    blocking(move || {
        let tables = opened.manifest.tables.iter();
        let parts: Vec<_> = tables.flat_map(|table| table.parts.iter().map(move |part| (table, part))).collect();
        look_at(&opened, &parts, depth, workers, &told, &runtime)?;
        add_up(&opened.manifest.tables)
    })
    .await
}

/// The files that are there, with their sizes; none: they lie with an agent, which lists nothing.
async fn names_of(opened: &Arc<Opened>) -> Result<Option<BTreeMap<String, u64>>, Failure> {
    match &opened.place {
        Place::Directory(directory) => {
            let directory = directory.clone();
            blocking(move || directory.sizes().map_err(|error| error.explain())).await.map(Some)
        }
        Place::Away(holder) => match holder.bucket() {
            Some(bucket) => bucket.files().await.map(Some).map_err(|error| error.explain()),
            None => Ok(None),
        },
    }
}

/// Nothing is missing, nothing is there that the manifest does not name, and each file is as long as that says.
fn same_files(names: &BTreeMap<String, u64>, manifest: &Manifest) -> Result<(), Failure> {
    let there: BTreeSet<&str> = names.keys().map(String::as_str).filter(|name| *name != MANIFEST).collect();
    let named: BTreeSet<&str> = manifest.all_files().map(|file| file.name.as_str()).collect();
    if let Some(missing) = named.difference(&there).next() {
        return Err(Failure::new(Code::SnapshotDamaged, format!("{missing}: expected a file, found none")));
    }
    if let Some(extra) = there.difference(&named).next() {
        return Err(Failure::new(Code::SnapshotUnsafe, format!("{extra} is not named by the manifest")));
    }
    for entry in manifest.all_files() {
        let size = names.get(&entry.name).copied().unwrap_or_default();
        if size != entry.bytes {
            let text = format!("{}: expected {} bytes, found {size}", entry.name, entry.bytes);
            return Err(Failure::new(Code::SnapshotDamaged, text));
        }
    }
    Ok(())
}

/// Makes sure that every file is there, nothing else, and each as long as the manifest says; reads none of them.
pub async fn glance(opened: &Arc<Opened>) -> Result<(), Failure> {
    match names_of(opened).await? {
        Some(names) => same_files(&names, &opened.manifest),
        None => Ok(()),
    }
}

fn look_at(
    opened: &Opened,
    parts: &[(&TableEntry, &PartEntry)],
    depth: Depth,
    workers: usize,
    told: &(impl Fn(u64) + Sync),
    runtime: &Handle,
) -> Result<(), Failure> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let first: Mutex<Option<Failure>> = Mutex::new(None);
    let work = || {
        // What comes over the network is fetched by tasks.
        let _within = runtime.enter();
        while !failed.load(Ordering::Relaxed) {
            let Some((table, part)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            match opened.through(part, depth, !table.columns.is_empty(), |_| !failed.load(Ordering::Relaxed)) {
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
