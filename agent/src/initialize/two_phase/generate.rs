//! Writes a snapshot of this node into a directory or a bucket: slot first, then everything as of where the slot begins, the manifest
//! last.
//!
//! It holds a session of its own, as it would for a peer: locks, slot, exported snapshot. The node's state does not change.
//! It goes on after the end of the agent ([`super::again`]). What was made is undone when it does not come to its end;
//! afterwards slot and publication stay for whoever applies it, until the snapshot is deleted or expires.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    intent::Verified,
    operation::{InitMethod, Phase, SchemaSync},
    v1,
};
use tokio::{io::AsyncReadExt as _, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{again::Landed, apply::START_PATIENCE};
use crate::{
    breakpoint::crash_point,
    cleanup::Effect,
    initialize::{
        disk,
        findings::verdict,
        messages::table_name,
        preflight::{self, Wanted},
        source,
        start::{refuse_second, selection_of, was_started},
    },
    operations::{Context, Milestone, Recipe, Work},
    postgres::{
        self, Purpose,
        dump::{DumpRequest, Programs},
        links,
    },
    rooms::Rooms,
    session::{FileNames, Held, OpenRequest, Scope},
    snapshot::files::{
        codec::Codec,
        manifest::{FORMAT_VERSION, FileEntry, Manifest, TableEntry, snapshot_id},
        write::{Sink, whole},
    },
    storage::{MANIFEST, Place, SCHEMA, SEQUENCES, SOURCE},
    store::{
        self, Actor, notes,
        operations::NewOperation,
        signed_intents::{self, Claim},
        snapshots,
    },
};

/// How long a snapshot is kept where nobody says.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long at most.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// How often the session is renewed.
const RENEW: Duration = Duration::from_secs(1);
/// The schema is written in blocks of this size.
const BLOCK_BYTES: usize = 256 << 10;

/// What the operator asked for.
#[derive(Debug, Clone)]
pub struct GeneratePlan {
    pub(super) op: OperationId,
    pub(super) place: Place,
    pub(super) wanted: Wanted,
    pub(super) codec: Codec,
    /// The same, as it was asked for.
    pub(super) compress: String,
    pub(super) created_at: Timestamp,
    pub(super) expires_at: Timestamp,
}

/// A sequence as `sequences.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceEntry {
    schema: String,
    name: String,
    last_value: i64,
    is_called: bool,
    increment: i64,
    min_value: i64,
    max_value: i64,
    cache: i64,
    cycle: bool,
}

impl From<v1::SequencePosition> for SequenceEntry {
    fn from(position: v1::SequencePosition) -> Self {
        let v1::TableName { schema, name } = position.sequence.unwrap_or_default();
        Self {
            schema,
            name,
            last_value: position.last_value,
            is_called: position.is_called,
            increment: position.increment,
            min_value: position.min_value,
            max_value: position.max_value,
            cache: position.cache,
            cycle: position.cycle,
        }
    }
}

impl From<SequenceEntry> for v1::SequencePosition {
    fn from(entry: SequenceEntry) -> Self {
        Self {
            sequence: Some(v1::TableName { schema: entry.schema, name: entry.name }),
            last_value: entry.last_value,
            is_called: entry.is_called,
            increment: entry.increment,
            min_value: entry.min_value,
            max_value: entry.max_value,
            cache: entry.cache,
            cycle: entry.cycle,
        }
    }
}

/// A snapshot that is being written.
pub struct Generate {
    pub(super) rooms: Rooms,
    pub(super) plan: GeneratePlan,
    pub(super) facts: v1::ExamineReply,
    pub(super) held: Option<Arc<Held>>,
    renewing: Option<AbortOnDropHandle<()>>,
    pub(super) has_neighbours: bool,
    pub(super) files: Vec<FileEntry>,
    pub(super) tables: Vec<TableEntry>,
    /// What an earlier run of the agent has written.
    pub(super) landed: Landed,
    /// Steps may have been run before, and stopped half-way.
    pub(super) goes_on: bool,
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

fn remember(error: store::Error) -> Failure {
    error.explain()
}

/// Checks a request and starts the operation; asked twice, it starts once. Returns what was found.
pub async fn start(
    rooms: &Rooms,
    request: &v1::GenerateSnapshotRequest,
    actor: &Actor,
    verified: &Verified,
) -> Result<(OperationId, Vec<v1::Check>), Failure> {
    let plan = plan_of(rooms, request)?;
    let op = plan.op;
    if was_started(rooms, op, verified).await? {
        return Ok((op, Vec::new()));
    }
    refuse_second(rooms, op)?;
    // Somebody waits for the answer: a store that is away is not waited for.
    let settings = rooms.config.snapshots.within(START_PATIENCE);
    let looked_at = Place::named(&request.output, &settings).map_err(|error| error.explain())?;
    looked_at.check_free().await.map_err(|error| error.explain())?;
    disk::check_outside(rooms, &looked_at).await?;
    let facts = preflight::examine_source(rooms, &rooms.me, &plan.wanted, "").await?;
    verdict(&format!("cannot write a snapshot of {}", rooms.me), &facts.checks)?;
    let new = NewOperation {
        op_id: op,
        kind: "snapshot".into(),
        target: rooms.me.clone(),
        source: rooms.me.clone(),
        method: InitMethod::TwoPhase,
        request: json!({
            "output": request.output, "compress": request.compress, "expires_at": plan.expires_at,
            "parallel": plan.wanted.parallel,
        }),
        started_by: actor.to_string(),
    };
    match signed_intents::claim(&rooms.store, verified, Some(op)).await.map_err(remember)? {
        Claim::First | Claim::Again => {}
        Claim::Used => return Err(signed_intents::used(verified)),
    }
    let (workers, checks) = (plan.wanted.parallel, facts.checks.clone());
    let work = Generate::new(rooms.clone(), plan, facts);
    rooms.operations.start(new, actor.clone(), workers, recipe(), work).await?;
    Ok((op, checks))
}

fn plan_of(rooms: &Rooms, request: &v1::GenerateSnapshotRequest) -> Result<GeneratePlan, Failure> {
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    let op = request.op_id.parse().map_err(|error| bad(format!("{error}")))?;
    let codec = request.compress.parse().map_err(|error| bad(format!("{error}")))?;
    let parallel = if request.parallel == 0 { rooms.config.copy.parallel } else { request.parallel };
    if !(1..=16).contains(&parallel) {
        return Err(bad(format!("--parallel {parallel} is not between 1 and 16")));
    }
    let kept = if request.expires_seconds == 0 { KEPT } else { Duration::from_secs(request.expires_seconds) };
    if kept > LONGEST {
        return Err(bad(format!("a snapshot is kept for {} days at most", LONGEST.as_secs() / 86_400)));
    }
    let created_at = Timestamp::now();
    let wanted = Wanted {
        selection: selection_of(&request.selection.clone().unwrap_or_default()),
        // Which it will be, whoever applies it says.
        one_way: true,
        parallel,
        force: false,
        schema_sync: SchemaSync::Strict,
        again: false,
    };
    Ok(GeneratePlan {
        op,
        place: Place::named(&request.output, &rooms.config.snapshots).map_err(|error| error.explain())?,
        wanted,
        codec,
        compress: request.compress.clone(),
        created_at,
        expires_at: created_at + SignedDuration::try_from(kept).unwrap_or_default(),
    })
}

/// The steps, read top to bottom.
pub(super) fn recipe() -> Recipe<Generate> {
    Recipe::<Generate>::new()
        // Undo: slot, publication, snapshot and locks go.
        .step("open session", Phase::Snapshot, |generate, context| generate.open_session(context).boxed())
        // Undo: the files go, and the directory.
        .step("write schema", Phase::Schema, |generate, context| generate.write_schema(context).boxed())
        .step("write tables", Phase::Copy, |generate, context| generate.write_rows(context).boxed())
        .step("write sequences", Phase::Sequences, |generate, context| generate.write_sequences(context).boxed())
        .step("write manifest", Phase::Verify, |generate, context| generate.write_manifest(context).boxed())
}

impl Generate {
    /// Nothing done yet.
    pub(super) fn new(rooms: Rooms, plan: GeneratePlan, facts: v1::ExamineReply) -> Self {
        Self {
            rooms,
            plan,
            facts,
            held: None,
            renewing: None,
            has_neighbours: false,
            files: Vec::new(),
            tables: Vec::new(),
            landed: Landed::new(),
            goes_on: false,
        }
    }

    /// Keeps the session alive from now on.
    pub(super) fn renew(&mut self, held: &Held) {
        let renewed = (self.rooms.sessions.clone(), self.rooms.me.clone(), held.id);
        self.renewing = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let (sessions, me, id) = renewed;
            // Once it has ended there is nothing to renew.
            while sessions.get(&me, id).is_ok() {
                sleep(RENEW).await;
            }
        })));
    }

    fn held(&self) -> Arc<Held> {
        Arc::clone(self.held.as_ref().expect("the session was opened by an earlier step"))
    }

    async fn open_session(&mut self, context: &Context) -> Result<(), Failure> {
        let (op, rooms) = (context.op, &self.rooms);
        let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        self.has_neighbours = !links::list(&look).await.map_err(explain)?.is_empty();
        let selection = self.plan.wanted.selection.clone();
        let whole_database = selection.is_whole_database();
        let publication = if whole_database { "steep".to_owned() } else { format!("steep_{}", snapshot_id(op)) };
        let names = self.facts.tables.iter().filter_map(|table| Some((table.oid, table_name(table.table.as_ref()?))));
        let request = OpenRequest {
            op,
            tables: names.collect(),
            part_bytes: 0,
            whole_database,
            scope: Scope { selection, one_way: true },
            parallel: self.plan.wanted.parallel,
            one_way: true,
            neighbours: Vec::new(),
            kept_slot: None,
            for_files: Some(FileNames { slot: format!("steep_{}", snapshot_id(op)), publication }),
        };
        let held = rooms.sessions.open(&rooms.me, request).await?;
        snapshots::place(&rooms.store, op, held.lsn, &held.slot, &held.publication).await.map_err(remember)?;
        self.note_plan(op).await?;
        self.renew(&held);
        self.held = Some(held);
        crash_point!("snapshot slot made");
        Ok(())
    }

    async fn write_schema(&mut self, context: &Context) -> Result<(), Failure> {
        let place = self.plan.place.clone();
        let was_there = place.is_there().await.map_err(|error| error.explain())?;
        // What is in one that was made before is ours.
        let is_ours = self.goes_on && !self.rooms.cleanup.pending(context.op, "directory").await?.is_empty();
        let made = async {
            if !is_ours {
                place.check_free().await.map_err(|error| error.explain())?;
            }
            place.make().await.map_err(|error| error.explain())
        };
        let effect = Effect::Directory { path: place.address(), was_there };
        self.rooms.cleanup.make(context.op, "write schema", &effect, made).await?;
        let held = self.held();
        let entry = while_held(&held, self.dump_schema(&held, &place)).await?;
        crash_point!("schema written");
        self.note_file(context.op, &entry).await?;
        self.files = vec![entry];
        Ok(())
    }

    async fn dump_schema(&self, held: &Held, place: &Place) -> Result<FileEntry, Failure> {
        let database = &self.rooms.database;
        let reader = held.reader().await?;
        let programs = Programs::find(database.config(), reader.version().major()).await.map_err(explain)?;
        held.give_back(reader);
        let selection = &self.plan.wanted.selection;
        let chosen = !selection.tables.is_empty();
        let all: Vec<_> = self.facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name)).collect();
        let request = DumpRequest {
            snapshot: &held.snapshot,
            only: if chosen { &all } else { &[] },
            without: if chosen { &[] } else { &selection.exclude },
            schemas: if chosen { &[] } else { &selection.schemas },
            op: self.plan.op,
        };
        let mut dump = programs.dump_schema(database, &request).map_err(explain)?;
        let mut sink = Sink::begin(place, SCHEMA, Codec::None);
        loop {
            let mut block = vec![0; BLOCK_BYTES];
            let read = dump.read(&mut block).await.map_err(|error| {
                Failure::new(Code::DumpFailed, "the output of pg_dump could not be read").caused_by(&error)
            })?;
            if read == 0 {
                break;
            }
            block.truncate(read);
            sink.send(block.into()).await?;
        }
        dump.finish().await.map_err(explain)?;
        Ok(sink.finish().await?.entry)
    }

    async fn write_rows(&mut self, context: &Context) -> Result<(), Failure> {
        let held = self.held();
        let tables = while_held(&held, self.write_tables(context, &held)).await?;
        let counts = while_held(&held, source::count_rows(&held)).await?;
        for counted in counts {
            let Some(table) = tables.iter().find(|table| table.oid == counted.oid) else { continue };
            if table.rows != counted.rows {
                let text = format!(
                    "{}.{} holds {} rows at the snapshot, {} were written",
                    table.schema, table.name, counted.rows, table.rows
                );
                return Err(Failure::new(Code::CountsDiffer, text));
            }
        }
        self.tables = tables;
        Ok(())
    }

    async fn write_sequences(&mut self, context: &Context) -> Result<(), Failure> {
        let held = self.held();
        let place = &self.plan.place;
        let positions = source::read_sequences(&self.rooms, &held).await?;
        let sequences: Vec<SequenceEntry> = positions.into_iter().map(Into::into).collect();
        let text = serde_json::to_vec_pretty(&sequences).expect("positions are plain data");
        let sequences = whole(place, SEQUENCES, text).await?;
        // What was found is of no use to whoever applies it.
        let facts = v1::ExamineReply { checks: Vec::new(), ..self.facts.clone() };
        let source = whole(place, SOURCE, facts.encode_to_vec()).await?;
        for entry in [sequences, source] {
            self.note_file(context.op, &entry).await?;
            self.files.push(entry);
        }
        Ok(())
    }

    async fn write_manifest(&mut self, context: &Context) -> Result<(), Failure> {
        let (held, rooms) = (self.held(), &self.rooms);
        let identity = rooms.peers.identity();
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            mesh: identity.me().mesh.to_string(),
            node: rooms.me.to_string(),
            snapshot_id: snapshot_id(context.op),
            op_id: context.op.to_string(),
            created_at: self.plan.created_at,
            expires_at: self.plan.expires_at,
            lsn: held.lsn.to_string(),
            slot: held.slot.clone(),
            publication: held.publication.clone(),
            server_version_num: self.facts.server_version_num,
            system_identifier: self.facts.system_identifier.to_string(),
            database: self.facts.database.clone(),
            has_neighbours: self.has_neighbours,
            whole_database: self.plan.wanted.selection.is_whole_database(),
            compression: self.plan.codec.to_string(),
            files: self.files.clone(),
            tables: self.tables.clone(),
            complete: true,
        };
        // Only what the session still stands for may be called whole.
        held.failure().map_or(Ok(()), |failure| Err(failure.clone()))?;
        let (kept, bytes) = (serde_json::to_value(&manifest), manifest.bytes());
        let kept = kept.expect("a manifest is plain data");
        crash_point!("before the manifest");
        // What was begun twice, because the first answer was lost, costs its place for nothing.
        self.plan.place.remove_unfinished().await.map_err(|error| error.explain())?;
        whole(&self.plan.place, MANIFEST, manifest.sign(identity)?).await?;
        crash_point!("manifest written");
        snapshots::complete(&rooms.store, context.op, &kept, bytes).await.map_err(remember)
    }
}

/// Runs `work`, unless the session can no longer keep its promise.
async fn while_held<T>(held: &Held, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let ended = || Failure::new(Code::SnapshotLost, "the session of the snapshot has ended");
    tokio::select! {
        done = work => match (done, held.failure()) {
            // What broke because the session was lost is told by its cause.
            (Err(_), Some(failure)) => Err(failure.clone()),
            (done, _) => done,
        },
        () = held.ended().cancelled() => Err(held.failure().cloned().unwrap_or_else(ended)),
    }
}

#[async_trait]
impl Work for Generate {
    async fn begin(&mut self, context: &Context) -> Result<(), Failure> {
        let path = self.plan.place.address();
        snapshots::begin(&self.rooms.store, context.op, &path, self.plan.expires_at).await.map_err(remember)
    }

    async fn resume(&mut self, context: &Context, done: &[String]) -> Result<(), Failure> {
        Box::pin(self.take_up(context, done)).await
    }

    /// Not at all: without its exported snapshot the rest would be of another moment.
    fn goes_on_after(&self, _: &Failure) -> Option<Duration> {
        None
    }

    fn outlives_the_agent(&self) -> bool {
        self.held.is_some()
    }

    async fn complete(&mut self, context: &Context) -> Result<u64, Failure> {
        self.renewing = None;
        // Kept before the session ends: what belongs to no session and is not kept, the janitor takes away.
        self.rooms.cleanup.keep(context.op).await?;
        self.held = None;
        self.rooms.sessions.end(context.op).await;
        // Where all was written by the run before, its notes have the rows.
        let rows = match self.tables.is_empty() {
            true => self.landed.values().map(|part| part.rows).sum(),
            false => self.tables.iter().map(|table| table.rows).sum(),
        };
        notes::forget(&self.rooms.store, context.op).await.map_err(remember)?;
        crash_point!("all but its end");
        let told = format!("{} is complete in {}", snapshot_id(context.op), self.plan.place.address());
        context.announce(Milestone::new("snapshot.generated", told)).await;
        Ok(rows)
    }

    fn done(&self) -> String {
        format!("{} is complete", snapshot_id(self.plan.op))
    }

    async fn undo(&mut self, context: &Context) -> Result<(), Failure> {
        self.renewing = None;
        self.held = None;
        self.rooms.sessions.end(context.op).await;
        self.rooms.cleanup.reopen(context.op).await?;
        self.rooms.cleanup.undo(context.op).await?;
        notes::forget(&self.rooms.store, context.op).await.map_err(remember)
    }

    async fn abandon(&mut self, context: &Context, _: &Failure) -> Result<(), Failure> {
        snapshots::end(&self.rooms.store, context.op, "failed").await.map_err(remember)
    }
}
