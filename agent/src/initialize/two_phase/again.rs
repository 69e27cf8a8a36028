//! Going on with a snapshot that was being written when the agent ended.
//!
//! The keeper holds its snapshot and locks meanwhile, so what is still to be written is of the same moment. Each file is
//! noted once it is whole and on the disk; what is noted is not written again. Without its keeper there is no going on.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use prost::Message as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    names::TableName,
    operation::{OperationStatus, SchemaSync},
    v1,
};
use tracing::info;

use super::generate::{Generate, GeneratePlan, recipe};
use crate::{
    initialize::preflight::Wanted,
    operations::Context,
    postgres::selection::Selection,
    rooms::Rooms,
    snapshot::files::manifest::{FileEntry, PartEntry, snapshot_id},
    storage::{Place, SCHEMA, SEQUENCES, SOURCE},
    store::{
        self, Actor, Store, notes,
        notes::Notes,
        operations::{self, Operation},
        snapshots,
        steps::{self, StepStatus},
    },
};

/// What was asked for: [`Kept`].
const PLAN: &str = "plan";
/// What the node said of itself: [`v1::ExamineReply`].
const FACTS: &str = "facts";
/// A file that holds no rows, by its name: [`FileEntry`].
const FILE: &str = "file/";
/// A file of rows, by the table's oid and the part: [`PartEntry`].
const PART: &str = "part/";

/// Parts that are written, by the table's oid and the part.
pub type Landed = BTreeMap<(u32, usize), PartEntry>;

/// What was asked for, as it is noted.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    place: String,
    codec: String,
    created_at: Timestamp,
    expires_at: Timestamp,
    parallel: u32,
    tables: Vec<TableName>,
    schemas: Vec<String>,
    exclude: Vec<TableName>,
    has_neighbours: bool,
}

fn explain(error: store::Error) -> Failure {
    error.explain()
}

async fn note(store: &Store, op: OperationId, name: &str, what: &impl Serialize) -> Result<(), Failure> {
    let body = serde_json::to_vec(what).expect("what is noted is plain data");
    notes::save(store, op, name, &body).await.map_err(explain)
}

fn read<T: DeserializeOwned>(known: &Notes, name: &str) -> Option<T> {
    serde_json::from_slice(known.get(name)?).ok()
}

/// Notes that a part's file is whole.
pub async fn note_part(
    store: &Store,
    op: OperationId,
    table: u32,
    part: usize,
    entry: &PartEntry,
) -> Result<(), Failure> {
    note(store, op, &format!("{PART}{table}/{part}"), entry).await
}

/// Goes on with `left`, which an earlier run of this agent has not ended; false: there is no going on, and what it made
/// is to be undone.
pub async fn go_on(rooms: &Rooms, left: &Operation) -> Result<bool, Failure> {
    if !matches!(left.status, OperationStatus::Running | OperationStatus::Interrupted) {
        return Ok(false);
    }
    let op = left.op_id;
    let planned = steps::list(&rooms.store, op).await.map_err(explain)?;
    let is_through = !planned.is_empty() && planned.iter().all(|step| step.status == StepStatus::Done);
    let known = notes::load(&rooms.store, op).await.map_err(explain)?;
    let place = snapshots::place_of(&rooms.store, &op.to_string()).await.map_err(explain)?;
    if is_through && known.is_empty() && place.is_some_and(|place| place.status == "complete") {
        // Only its end was not written down any more.
        operations::finish(&rooms.store, op, OperationStatus::Completed, None).await.map_err(explain)?;
        info!(event = "snapshot.completed", op_id = %op, "an operation had reached its end before the agent's");
        return Ok(true);
    }
    let facts = known.get(FACTS).and_then(|facts| v1::ExamineReply::decode(facts.as_slice()).ok());
    let (Some(facts), Some(kept)) = (facts, read::<Kept>(&known, PLAN)) else { return Ok(false) };
    let is_held = rooms.sessions.of_operation(&rooms.me, op).is_ok_and(|held| held.failure().is_none());
    let recipe = recipe();
    // Another version of the agent may take other steps.
    let is_ours = recipe.names() == planned.iter().map(|step| step.name.as_str()).collect::<Vec<_>>();
    if !is_ours || !(is_held || is_through) {
        return Ok(false);
    }
    let has_neighbours = kept.has_neighbours;
    let Some(plan) = kept.plan(rooms, op) else { return Ok(false) };
    let workers = plan.wanted.parallel;
    let mut work = Generate::new(rooms.clone(), plan, facts);
    work.has_neighbours = has_neighbours;
    Box::pin(rooms.operations.resume(left.clone(), Actor::agent(&rooms.me), workers, recipe, work)).await?;
    Ok(true)
}

impl Kept {
    fn plan(self, rooms: &Rooms, op: OperationId) -> Option<GeneratePlan> {
        let selection = Selection { tables: self.tables, schemas: self.schemas, exclude: self.exclude };
        Some(GeneratePlan {
            op,
            place: Place::named(&self.place, &rooms.config.snapshots).ok()?,
            wanted: Wanted {
                selection,
                one_way: true,
                parallel: self.parallel,
                force: false,
                schema_sync: SchemaSync::Strict,
                again: false,
            },
            codec: self.codec.parse().ok()?,
            compress: self.codec,
            created_at: self.created_at,
            expires_at: self.expires_at,
        })
    }
}

impl Generate {
    /// Notes what the next run of the agent has to know; from now on it can go on.
    pub(super) async fn note_plan(&self, op: OperationId) -> Result<(), Failure> {
        let (plan, store) = (&self.plan, &self.rooms.store);
        let Selection { tables, schemas, exclude } = plan.wanted.selection.clone();
        let kept = Kept {
            place: plan.place.address(),
            codec: plan.compress.clone(),
            created_at: plan.created_at,
            expires_at: plan.expires_at,
            parallel: plan.wanted.parallel,
            tables,
            schemas,
            exclude,
            has_neighbours: self.has_neighbours,
        };
        note(store, op, PLAN, &kept).await?;
        // Last: with the facts there is a going on.
        notes::save(store, op, FACTS, &self.facts.encode_to_vec()).await.map_err(explain)
    }

    /// Notes a file that holds no rows.
    pub(super) async fn note_file(&self, op: OperationId, entry: &FileEntry) -> Result<(), Failure> {
        note(&self.rooms.store, op, &format!("{FILE}{}", entry.name), entry).await
    }

    /// Knows again what the steps `done`, and any that stopped half-way, had written.
    pub(super) async fn take_up(&mut self, context: &Context, done: &[String]) -> Result<(), Failure> {
        let is_done = |step: &str| done.iter().any(|name| name == step);
        let known = notes::load(&self.rooms.store, context.op).await.map_err(explain)?;
        self.goes_on = true;
        self.landed = landed(&known);
        self.files = Vec::new();
        for (step, names) in [("write schema", &[SCHEMA][..]), ("write sequences", &[SEQUENCES, SOURCE])] {
            for name in names.iter().filter(|_| is_done(step)) {
                let lost = || Failure::new(Code::Interrupted, format!("nobody knows what {name} holds"));
                self.files.push(read(&known, &format!("{FILE}{name}")).ok_or_else(lost)?);
            }
        }
        if is_done("write manifest") {
            return Ok(());
        }
        let held = self.rooms.sessions.of_operation(&self.rooms.me, context.op)?;
        self.renew(&held);
        self.held = Some(Arc::clone(&held));
        // A file that was being written when the agent died has another name, and is in the way of itself.
        self.plan.place.remove_unfinished().await.map_err(|error| error.explain())?;
        self.forget_missing().await?;
        if is_done("write tables") {
            // All of them have landed: nothing is written.
            self.tables = self.write_tables(context, &held).await?;
        }
        let written = self.landed.len();
        info!(event = "snapshot.resumed", op_id = %context.op, details.files = written, "{} is gone on with", snapshot_id(context.op));
        Ok(())
    }

    /// A file that somebody has taken away since it was noted is written again; one without rows cannot be.
    async fn forget_missing(&mut self) -> Result<(), Failure> {
        if self.landed.is_empty() && self.files.is_empty() {
            return Ok(());
        }
        let there = self.plan.place.files().await.map_err(|error| error.explain())?;
        self.landed.retain(|_, part| is_there(&there, &part.file));
        match self.files.iter().find(|entry| !is_there(&there, entry)) {
            None => Ok(()),
            Some(entry) => {
                let text = format!("{} of {} is not there any more", entry.name, self.plan.place.address());
                Err(Failure::new(Code::SnapshotStorage, text))
            }
        }
    }
}

/// Whether `files` has what was noted.
fn is_there(files: &BTreeMap<String, u64>, entry: &FileEntry) -> bool {
    files.get(&entry.name) == Some(&entry.bytes)
}

fn landed(known: &Notes) -> Landed {
    let part = |name: &String| {
        let (table, part) = name.strip_prefix(PART)?.split_once('/')?;
        Some(((table.parse().ok()?, part.parse().ok()?), read(known, name)?))
    };
    known.keys().filter_map(part).collect()
}
