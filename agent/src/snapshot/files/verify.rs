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
    manifest::{PartEntry, TableEntry},
    read::{Opened, blocking},
};
use crate::storage::{MANIFEST, SCHEMA, SEQUENCES, SOURCE};

/// Reads every file, `workers` at once, and returns the rows counted; `told` hears the bytes of each that is good.
///
/// Fails on the first that is not what the manifest says, naming it, what was expected and what was found.
pub async fn verify(
    opened: &Arc<Opened>,
    workers: usize,
    told: impl Fn(u64) + Send + Sync + 'static,
) -> Result<u64, Failure> {
    let opened = Arc::clone(opened);
    blocking(move || {
        same_files(&opened)?;
        for name in [SCHEMA, SEQUENCES, SOURCE] {
            opened.file_now(name)?;
        }
        let tables = opened.manifest.tables.iter();
        let parts: Vec<_> = tables.flat_map(|table| table.parts.iter().map(move |part| (table, part))).collect();
        look_at(&opened, &parts, workers, &told)?;
        add_up(&opened.manifest.tables)
    })
    .await
}

/// Nothing is missing, and nothing is there that the manifest does not name.
fn same_files(opened: &Opened) -> Result<(), Failure> {
    let names = opened.directory.files().map_err(|error| error.explain())?;
    let there: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| *name != MANIFEST).collect();
    let named: BTreeSet<&str> = opened.manifest.all_files().map(|file| file.name.as_str()).collect();
    if let Some(missing) = named.difference(&there).next() {
        return Err(Failure::new(Code::SnapshotDamaged, format!("{missing}: expected a file, found none")));
    }
    match there.difference(&named).next() {
        Some(extra) => Err(Failure::new(Code::SnapshotUnsafe, format!("{extra} is not named by the manifest"))),
        None => Ok(()),
    }
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
