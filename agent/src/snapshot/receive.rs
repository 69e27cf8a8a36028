//! Receives the parts of all tables, several at once, straight into COPY.
//!
//! One part is one transaction: its rows and its ledger row, or nothing. Every load session runs under a
//! replication origin of its own, so that nothing it writes is sent on to other nodes, and as replica, so that
//! no trigger fires. There is no queue between the stream and COPY: a slow target holds its source back.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use steep_protocol::{
    failure::{Code, Explain as _, Failure, Family},
    ids::{OperationId, SessionId},
    names::TableName,
    operation::Phase,
    v1::{self, bulk_request::Want},
    wire::bulk::BlockSource,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    breakpoint::crash_point,
    cleanup::{Cleanup, Effect},
    mesh::Source,
    operations::{Context, Milestone},
    parts::TablePlan,
    postgres::{
        self, Database, Purpose, Session, copy,
        ddl::{self, CopyFormat},
        origins,
    },
    store::ledger::{self, CopiedPart},
};

use super::{
    files::read::{Opened, PartBlocks},
    walwriter::Waker,
};

/// One table to receive.
#[derive(Debug, Clone)]
pub struct TableJob {
    /// Its oid on the source.
    pub oid: u32,
    /// Its name, the same on both ends.
    pub name: TableName,
    /// Where its rows go: the table itself, or one beside it.
    pub into: TableName,
    /// The columns both ends store.
    pub columns: Vec<String>,
    /// Every column is safe in PostgreSQL's binary format.
    pub binary: bool,
    /// Its parts.
    pub plan: TablePlan,
    /// The planner's guess.
    pub rows_estimate: u64,
}

/// Where rows come from.
#[derive(Debug)]
pub enum Rows {
    /// A peer sends them.
    Peer {
        /// The peer.
        source: Box<Source>,
        /// Its session.
        session: SessionId,
        /// As the operator asked for it.
        compress: String,
    },
    /// They lie in files.
    Files(Arc<Opened>),
}

/// Rows of one part, as they come.
enum Blocks {
    Peer(Box<BlockSource>, Box<Source>),
    Files(PartBlocks),
}

impl Rows {
    /// How they are written.
    fn format(&self, table: &TableJob) -> CopyFormat {
        match self {
            Self::Files(_) => CopyFormat::Csv,
            Self::Peer { .. } if table.binary => CopyFormat::Binary,
            Self::Peer { .. } => CopyFormat::Text,
        }
    }

    async fn fetch(&self, table: &TableJob, part: usize) -> Result<Blocks, Failure> {
        match self {
            Self::Files(opened) => opened.part(table.oid, part).map(Blocks::Files),
            Self::Peer { source, session, compress } => {
                let want = Want::Part(v1::FetchPart {
                    session_id: session.to_string(),
                    table_oid: table.oid,
                    part: part as u32,
                    columns: table.columns.clone(),
                    binary: table.binary,
                    compress: compress.clone(),
                });
                Ok(Blocks::Peer(Box::new(source.fetch(want).await?), source.clone()))
            }
        }
    }
}

impl Blocks {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::Peer(blocks, source) => blocks.next().await.map_err(|error| source.explain(error)),
            Self::Files(blocks) => blocks.next().await,
        }
    }

    /// Rows there were, and their hash; after the last block.
    fn ended(&self) -> (u64, u64) {
        let ended = match self {
            Self::Peer(blocks, _) => blocks.trailer().map(|trailer| (trailer.rows, trailer.hash)),
            Self::Files(blocks) => blocks.seen().map(|seen| (seen.rows, seen.hash)),
        };
        ended.expect("the stream has ended with its trailer")
    }
}

/// Everything to receive, and from where.
#[derive(Debug)]
pub struct CopyJob {
    /// The operation.
    pub op: OperationId,
    /// Where they come from.
    pub from: Rows,
    /// Largest first.
    pub tables: Vec<TableJob>,
    /// Parts that have landed before, by an earlier run of the agent or an earlier try: they are not received again.
    pub landed: Vec<CopiedPart>,
    /// Streams at once.
    pub workers: usize,
    /// Bytes a second over all streams; 0: no limit.
    pub max_rate: u64,
    /// Where the rows go.
    pub database: Database,
    /// For the origins.
    pub cleanup: Cleanup,
}

#[derive(Debug)]
struct Shared {
    job: CopyJob,
    context: Context,
    queue: Mutex<VecDeque<(usize, usize)>>,
    left: Vec<AtomicUsize>,
    began: Vec<OnceLock<Instant>>,
    pace: Pace,
    walwriter: Waker,
    finished: mpsc::UnboundedSender<u32>,
}

/// Receives all of `job`; tells `finished` each table's oid once all its rows are committed.
///
/// On the first error every stream is dropped; committed parts stay, and stay in the ledger. Dropping the
/// future does the same.
pub async fn copy_tables(job: CopyJob, context: &Context, finished: mpsc::UnboundedSender<u32>) -> Result<(), Failure> {
    show_copied(&job.tables, &job.landed, context);
    let landed: BTreeSet<(&TableName, usize)> =
        job.landed.iter().map(|part| (&part.table, part.part as usize)).collect();
    let missing = |job: &TableJob| -> Vec<usize> {
        (0..job.plan.starts.len()).filter(|part| !landed.contains(&(&job.name, *part))).collect()
    };
    let missing: Vec<_> = job.tables.iter().map(missing).collect();
    let queue = missing.iter().enumerate();
    let queue = queue.flat_map(|(table, parts)| parts.iter().map(move |part| (table, *part))).collect();
    let shared = Arc::new(Shared {
        left: missing.iter().map(|parts| AtomicUsize::new(parts.len())).collect(),
        began: job.tables.iter().map(|_| OnceLock::new()).collect(),
        pace: Pace::new(job.max_rate),
        walwriter: Waker::default(),
        queue: Mutex::new(queue),
        context: context.clone(),
        finished,
        job,
    });
    for (table, _) in missing.iter().enumerate().filter(|(_, parts)| parts.is_empty()) {
        table_done(&shared, table).await;
    }
    let waking = Arc::clone(&shared);
    let _waking = AbortOnDropHandle::new(tokio::spawn(async move {
        waking.walwriter.run(&waking.job.database, waking.job.op).await;
    }));
    let mut workers = JoinSet::new();
    for worker in 0..shared.job.workers {
        workers.spawn(work(Arc::clone(&shared), worker));
    }
    while let Some(ended) = workers.join_next().await {
        ended.unwrap_or_else(|error| {
            Err(Failure::new(Code::Internal, "a copy worker ended unexpectedly").caused_by(&error))
        })?;
    }
    Ok(())
}

/// Tells the feed which tables there are, and which of their parts have landed.
pub fn show_copied(tables: &[TableJob], landed: &[CopiedPart], context: &Context) {
    context.feed.progress(|progress| {
        progress.forget_tables();
        for table in tables {
            progress.plan_table(table.oid, table.name.to_string(), heap_bytes(&table.plan), table.rows_estimate);
        }
        for part in landed {
            if let Some(table) = tables.iter().find(|table| table.name == part.table) {
                let heap_bytes = table.plan.bytes(part.part as usize);
                progress.part_was_done(table.oid, heap_bytes, part.rows, part.bytes);
            }
        }
    });
}

fn heap_bytes(plan: &TablePlan) -> u64 {
    (0..plan.starts.len()).map(|part| plan.bytes(part)).sum()
}

async fn work(shared: Arc<Shared>, worker: usize) -> Result<(), Failure> {
    let mut session = None;
    loop {
        let next = shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some((table, part)) = next else { break };
        let session = match &mut session {
            Some(session) => session,
            // The first part opens the session, so that few parts need few of them.
            none => none.insert(load_session(&shared.job, worker).await?),
        };
        let job = &shared.job.tables[table];
        let is_first = shared.began[table].set(Instant::now()).is_ok();
        if is_first && !shared.context.feed.has_told("init.table_started", &job.name.to_string()) {
            let told = Milestone::new("init.table_started", format!("{} began", job.name)).table(&job.name);
            shared.context.announce(told.phase(Phase::Copy)).await;
        }
        if let Err(failure) = receive_part(&shared, worker, session, job, part).await {
            return Err(table_failed(&shared, table, failure).await);
        }
        if shared.left[table].fetch_sub(1, Ordering::AcqRel) == 1 {
            table_done(&shared, table).await;
        }
    }
    if let Some(session) = session {
        session.close().await;
    }
    Ok(())
}

fn took(shared: &Shared, table: usize) -> Duration {
    shared.began[table].get().map_or(Duration::ZERO, Instant::elapsed)
}

async fn table_done(shared: &Shared, table: usize) {
    let job = &shared.job.tables[table];
    let (rows, bytes) = shared.context.feed.progress(|progress| progress.table_done(job.oid));
    let told = Milestone::new("init.table_complete", format!("{} copied", job.name)).table(&job.name);
    let told = told.phase(Phase::Copy).copied(rows, bytes).took(took(shared, table));
    if !shared.context.feed.has_told("init.table_complete", &job.name.to_string()) {
        shared.context.announce(told).await;
    }
    // Nobody builds indexes any more only when the whole operation is ending.
    let _ = shared.finished.send(job.oid);
}

async fn table_failed(shared: &Shared, table: usize, failure: Failure) -> Failure {
    let job = &shared.job.tables[table];
    if failure.code.family() == Family::Connection {
        // Nothing is wrong with the table: it is waited out.
        return failure;
    }
    let mut told = Milestone::new("init.table_failed", format!("{} could not be copied", job.name)).table(&job.name);
    told.failure = Some(failure.clone());
    shared.context.announce(told.phase(Phase::Copy).took(took(shared, table))).await;
    // What the session or the stream says is already the cause; PostgreSQL's words need the table's name.
    match failure.code {
        Code::CopyFailed => Failure { message: format!("cannot copy {}: {}", job.name, failure.message), ..failure },
        _ => failure,
    }
}

async fn load_session(job: &CopyJob, worker: usize) -> Result<Session, Failure> {
    let explain = |error: postgres::Error| error.explain();
    let session = job.database.session(Purpose::CopyIn(job.op)).await.map_err(explain)?;
    let origin = format!("steep_load_{}_{}", job.op.short(), worker + 1);
    let effect = Effect::Origin { name: origin.clone() };
    job.cleanup
        .make(job.op, "copy tables", &effect, async { origins::create(&session, &origin).await.map_err(explain) })
        .await?;
    origins::set_up(&session, &origin).await.map_err(explain)?;
    session.run(&ddl::set_session("session_replication_role", "replica")).await.map_err(explain)?;
    // What a crash of the server takes away it takes from the rows and from the ledger, and it is copied again; the end of
    // the step is written synchronously, and with it all before it.
    session.run(&ddl::set_session("synchronous_commit", "off")).await.map_err(explain)?;
    Ok(session)
}

async fn receive_part(
    shared: &Shared,
    worker: usize,
    session: &Session,
    table: &TableJob,
    part: usize,
) -> Result<(), Failure> {
    let explain = |error: postgres::Error| error.explain();
    let (job, feed) = (&shared.job, &shared.context.feed);
    feed.progress(|progress| progress.part_began(worker, table.oid, table.plan.bytes(part)));
    let mut blocks = job.from.fetch(table, part).await?;
    session.begin().await.map_err(explain)?;
    let format = job.from.format(table);
    let mut sink = copy::copy_in(session, &ddl::copy_in(&table.into, &table.columns, format)).await.map_err(explain)?;
    let mut bytes = 0;
    while let Some(block) = blocks.next().await? {
        shared.pace.wait(block.len() as u64).await;
        let length = block.len() as u64;
        bytes += length;
        sink.send(block).await.map_err(explain)?;
        shared.walwriter.loaded(length);
        crash_point!("amid a part");
        feed.progress(|progress| progress.part_moved(worker, bytes));
    }
    let rows = sink.finish().await.map_err(explain)?;
    let (expected, hash) = blocks.ended();
    if expected != rows {
        let text = format!("{}: the source sent {expected} rows of part {part}, {rows} were loaded", table.name);
        return Err(Failure::new(Code::CountsDiffer, text));
    }
    let copied = CopiedPart { op_id: job.op, table: table.name.clone(), part: part as u32, rows, bytes, hash };
    ledger::record(session, &copied).await.map_err(|error| error.explain())?;
    crash_point!("before a commit");
    session.commit().await.map_err(explain)?;
    crash_point!("after a commit");
    feed.part_done(worker, rows, bytes);
    Ok(())
}

/// Holds all streams together to a rate.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more fit the rate.
    async fn wait(&self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let turn = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free_at).max(Instant::now());
            *free_at = turn + cost;
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_streams_together_keep_to_the_rate() {
        let pace = Arc::new(Pace::new(1000));
        let began = Instant::now();
        let mut streams = JoinSet::new();
        for _ in 0..4 {
            let pace = Arc::clone(&pace);
            streams.spawn(async move {
                for _ in 0..10 {
                    pace.wait(100).await;
                }
            });
        }
        streams.join_all().await;
        // The last block may begin one block's time before the end.
        assert!((Duration::from_millis(3900)..=Duration::from_millis(4000)).contains(&began.elapsed()));
    }
}
