//! Writes the rows of a snapshot: several files at once, each a part of a table, read inside the session's snapshot.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    names::TableName,
};
use tokio::task::JoinSet;

use super::{again, generate::Generate};
use crate::{
    breakpoint::crash_point,
    operations::{Context, Milestone},
    parts::TablePlan,
    postgres::{
        Purpose,
        ddl::{self, CopyFormat, PageRange},
        shapes,
        tables::{Table, TableKind},
    },
    session::Held,
    snapshot::files::{
        codec::Codec,
        manifest::{ColumnEntry, PartEntry, TableEntry},
        write::Sink,
    },
    storage::{Place, part_name},
    store::Store,
};

/// All there is to write, and what was written.
struct Shared {
    held: Arc<Held>,
    context: Context,
    place: Place,
    codec: Codec,
    jobs: Vec<(Table, TablePlan)>,
    /// Table and part, by their places, and the number of the file.
    queue: Mutex<VecDeque<(usize, usize, usize)>>,
    store: Store,
    written: Mutex<BTreeMap<(usize, usize), PartEntry>>,
}

fn locked<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn columns_of(table: &Table) -> Vec<String> {
    let stored = table.columns.iter().filter(|column| column.generated.is_empty());
    stored.map(|column| column.name.clone()).collect()
}

impl Generate {
    /// Writes every part of every table that holds rows of its own, and returns what the manifest says of them.
    pub(super) async fn write_tables(&self, context: &Context, held: &Arc<Held>) -> Result<Vec<TableEntry>, Failure> {
        let mut jobs: Vec<_> =
            held.tables.iter().filter(|(table, _)| table.kind == TableKind::Plain).cloned().collect();
        // The same in every run of the agent, as are the numbers of the files.
        jobs.sort_by_key(|(table, plan)| (std::cmp::Reverse(plan.pages), table.oid));
        context.feed.progress(|progress| {
            for (table, plan) in &jobs {
                let bytes = (0..plan.starts.len()).map(|part| plan.bytes(part)).sum();
                progress.plan_table(table.oid, table.name.to_string(), bytes, table.rows_estimate);
            }
        });
        let parts = jobs.iter().enumerate();
        let parts = parts.flat_map(|(table, (_, plan))| (0..plan.starts.len()).map(move |part| (table, part)));
        let (mut queue, mut written) = (VecDeque::new(), BTreeMap::new());
        for (number, (table, part)) in parts.enumerate() {
            match self.landed.get(&(jobs[table].0.oid, part)) {
                Some(entry) => drop(written.insert((table, part), entry.clone())),
                None => queue.push_back((table, part, number + 1)),
            }
        }
        show_written(context, &jobs, &written);
        let shared = Arc::new(Shared {
            held: Arc::clone(held),
            context: context.clone(),
            place: self.plan.place.clone(),
            codec: self.plan.codec,
            jobs,
            queue: Mutex::new(queue),
            store: self.rooms.store.clone(),
            written: Mutex::new(written),
        });
        let mut workers = JoinSet::new();
        for worker in 0..self.plan.wanted.parallel as usize {
            workers.spawn(work(Arc::clone(&shared), worker));
        }
        while let Some(ended) = workers.join_next().await {
            ended.unwrap_or_else(|error| {
                Err(Failure::new(Code::Internal, "writing a snapshot ended unexpectedly").caused_by(&error))
            })?;
        }
        let names: Vec<TableName> = shared.jobs.iter().map(|(table, _)| table.name.clone()).collect();
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        let shapes = shapes::tables(&look, Some(&names)).await.map_err(|error| error.explain())?;
        let prints = shapes.into_iter().map(|shape| (shape.name, shape.fingerprint)).collect();
        Ok(entries(&shared, &prints))
    }
}

/// Progress goes on from what the run before has written.
fn show_written(context: &Context, jobs: &[(Table, TablePlan)], written: &BTreeMap<(usize, usize), PartEntry>) {
    context.feed.progress(|progress| {
        for ((table, part), entry) in written {
            let (job, plan) = &jobs[*table];
            progress.part_was_done(job.oid, plan.bytes(*part), entry.rows, entry.expanded_bytes);
            if written.range((*table, 0)..(*table + 1, 0)).count() == plan.starts.len() {
                progress.table_done(job.oid);
            }
        }
    });
}

fn entries(shared: &Shared, prints: &BTreeMap<TableName, String>) -> Vec<TableEntry> {
    let written = locked(&shared.written);
    let entry = |(at, (table, _)): (usize, &(Table, TablePlan))| {
        let parts: Vec<PartEntry> = written.range((at, 0)..(at + 1, 0)).map(|(_, part)| part.clone()).collect();
        let stored = table.columns.iter().filter(|column| column.generated.is_empty());
        let column = |column: &crate::postgres::tables::Column| ColumnEntry {
            name: column.name.clone(),
            r#type: column.type_name.clone(),
        };
        TableEntry {
            schema: table.name.schema.clone(),
            name: table.name.name.clone(),
            oid: table.oid,
            fingerprint: prints.get(&table.name).cloned().unwrap_or_default(),
            columns: stored.map(column).collect(),
            rows: parts.iter().map(|part| part.rows).sum(),
            bytes: parts.iter().map(|part| part.file.bytes).sum(),
            parts,
        }
    };
    shared.jobs.iter().enumerate().map(entry).collect()
}

async fn work(shared: Arc<Shared>, worker: usize) -> Result<(), Failure> {
    loop {
        let next = locked(&shared.queue).pop_front();
        let Some((table, part, number)) = next else { return Ok(()) };
        let (job, plan) = &shared.jobs[table];
        let bytes = plan.bytes(part);
        shared.context.feed.progress(|progress| progress.part_began(worker, job.oid, bytes));
        let entry = write_part(&shared, worker, job, plan, part, number).await?;
        again::note_part(&shared.store, shared.context.op, job.oid, part, &entry).await?;
        crash_point!("a file noted");
        // What the file is compressed to says nothing of how far the next one is.
        shared.context.feed.progress(|progress| progress.part_done(worker, entry.rows, entry.expanded_bytes));
        let is_last = {
            let mut written = locked(&shared.written);
            written.insert((table, part), entry);
            written.range((table, 0)..(table + 1, 0)).count() == plan.starts.len()
        };
        if is_last {
            let (rows, bytes) = shared.context.feed.progress(|progress| progress.table_done(job.oid));
            let told = Milestone::new("snapshot.table_complete", format!("{} written", job.name)).table(&job.name);
            shared.context.announce(told.copied(rows, bytes)).await;
        }
    }
}

async fn write_part(
    shared: &Shared,
    worker: usize,
    table: &Table,
    plan: &TablePlan,
    part: usize,
    number: usize,
) -> Result<PartEntry, Failure> {
    let (from, to) = plan.range(part).expect("the queue holds parts of the plan");
    let pages = (plan.starts.len() > 1).then_some(PageRange { from, to });
    let columns = columns_of(table);
    let reader = shared.held.reader().await?;
    let statement = ddl::copy_out(&table.name, &columns, CopyFormat::Csv, pages);
    let mut rows = reader.copy_out(&statement).await.map_err(|error| error.explain())?;
    let mut sink = Sink::begin(&shared.place, &part_name(number, shared.codec.end()), shared.codec);
    let mut bytes = 0;
    while let Some(block) = rows.next().await.map_err(|error| error.explain())? {
        bytes += block.len() as u64;
        sink.send(Bytes::from(block)).await?;
        crash_point!("amid a file");
        shared.context.feed.progress(|progress| progress.part_moved(worker, bytes));
    }
    let messages = rows.messages();
    let written = sink.finish().await?;
    crash_point!("a file written");
    drop(rows);
    shared.held.give_back(reader);
    // PostgreSQL sends one message a row, and one for the header.
    let rows = messages.saturating_sub(u64::from(!columns.is_empty()));
    Ok(PartEntry { file: written.entry, first_page: from, rows, expanded_bytes: written.expanded_bytes })
}
