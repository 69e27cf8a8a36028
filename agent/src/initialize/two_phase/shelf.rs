//! The snapshots this node has in files: which there are, and taking one away, by order or because it has expired.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    time, v1,
};
use tracing::{info, warn};

use crate::{
    postgres::{self, Purpose, slots},
    rooms::Rooms,
    snapshot::files::manifest::{Manifest, TableEntry, snapshot_id},
    store::{
        self, Actor, audit,
        snapshots::{self, Snapshot},
    },
    telemetry,
};

/// So long before it expires it is told.
const NOTICE: SignedDuration = SignedDuration::from_hours(24);

fn remember(error: store::Error) -> Failure {
    error.explain()
}

/// The snapshots of this node; `all`: also those that failed or were deleted.
pub async fn list(rooms: &Rooms, all: bool) -> Result<Vec<Snapshot>, Failure> {
    snapshots::list(&rooms.store, all).await.map_err(remember)
}

/// The snapshot people know by `id`, whatever has become of it.
///
/// Fails with [`Code::SnapshotUnknown`].
pub async fn find(rooms: &Rooms, id: &str) -> Result<Snapshot, Failure> {
    let mut known = list(rooms, true).await?.into_iter();
    let found = known.find(|known| snapshot_id(known.op_id) == id || known.op_id.to_string() == id);
    found.ok_or_else(|| Failure::new(Code::SnapshotUnknown, format!("{} has no snapshot {id}", rooms.me)))
}

/// Drops slot, publication and files of a snapshot, by order of `actor`. May be repeated.
///
/// Fails with [`Code::SnapshotInUse`] while it is applied.
pub async fn delete(rooms: &Rooms, id: &str, actor: &Actor, why: &str) -> Result<Snapshot, Failure> {
    let found = find(rooms, id).await?;
    let op = found.op_id;
    if let Some(running) = rooms.sessions.applying(op) {
        let text = format!("{id} is being applied by operation {running}");
        return Err(Failure::new(Code::SnapshotInUse, text).hint(format!("steepctl op watch {running} follows it")));
    }
    if rooms.operations.is_running(op) {
        let text = format!("{id} is being written");
        return Err(Failure::new(Code::SnapshotInUse, text).hint(format!("steepctl op cancel {op}")));
    }
    // What cannot be undone now the janitor tries again; nobody may begin from it any more.
    snapshots::end(&rooms.store, op, "deleted").await.map_err(remember)?;
    let detail = json!({ "directory": found.storage, "slot": found.slot, "why": why });
    audit::append(&rooms.store, actor, "snapshot.delete", id, Some(op), &detail).await.map_err(remember)?;
    rooms.cleanup.reopen(op).await?;
    rooms.cleanup.undo(op).await?;
    info!(
        event = "snapshot.deleted",
        op_id = %op,
        slot = found.slot,
        actor = actor.to_json().to_string(),
        reason = why,
        details.directory = found.storage,
        "a snapshot was deleted"
    );
    Ok(found)
}

/// Tells of snapshots that expire within a day, and deletes those that have; for the janitor.
pub async fn expire(rooms: &Rooms) -> Result<(), Failure> {
    let now = Timestamp::now();
    for found in list(rooms, false).await? {
        let Some(expires_at) = found.expires_at.filter(|_| found.is_complete()) else { continue };
        let id = snapshot_id(found.op_id);
        if expires_at <= now {
            if rooms.sessions.applying(found.op_id).is_some() {
                continue;
            }
            warn!(event = "snapshot.expired", op_id = %found.op_id, slot = found.slot, "snapshot {id} has expired");
            if let Err(failure) = delete(rooms, &id, &Actor::agent(&rooms.me), "it has expired").await {
                warn!(event = "agent.cleanup", op_id = %found.op_id, error = telemetry::failure(&failure), "will be tried again");
            }
        } else if expires_at - NOTICE <= now && !found.is_warned {
            warn!(
                event = "snapshot.expires_soon",
                op_id = %found.op_id,
                slot = found.slot,
                details.expires_at = %expires_at,
                details.directory = found.storage,
                "snapshot {id} expires within a day: its slot and its files are dropped then"
            );
            snapshots::warned(&rooms.store, found.op_id).await.map_err(remember)?;
        }
    }
    Ok(())
}

/// One that was cut off by the end of the agent is none.
pub async fn cut_off(rooms: &Rooms, op: OperationId) -> Result<(), Failure> {
    // It may have been kept a moment before.
    rooms.cleanup.reopen(op).await?;
    snapshots::end(&rooms.store, op, "failed").await.map_err(remember)
}

/// At the start of an agent: ends sessions of snapshots that ended without being cleaned up, and were taken up with those
/// that go on.
pub async fn end_left(rooms: &Rooms) {
    let own = rooms.sessions.for_target(&rooms.me);
    for op in own.into_iter().filter(|op| !rooms.operations.is_running(*op)) {
        rooms.sessions.end(op).await;
    }
}

/// A snapshot as a message; with its tables if `detailed`.
pub async fn message(rooms: &Rooms, snapshot: &Snapshot, detailed: bool) -> Result<v1::Snapshot, Failure> {
    let manifest = snapshot.manifest.clone().and_then(|kept| serde_json::from_value::<Manifest>(kept).ok());
    let mut message = manifest.as_ref().map(|manifest| of_manifest(manifest, detailed)).unwrap_or_default();
    let look = rooms.database.session(Purpose::Watch).await;
    let look = look.map_err(|error: postgres::Error| error.explain())?;
    let slot = slots::find(&look, &snapshot.slot).await.map_err(|error| error.explain())?;
    message.snapshot_id = snapshot_id(snapshot.op_id);
    message.op_id = snapshot.op_id.to_string();
    message.node_id = snapshot.source_node.clone();
    message.location = snapshot.storage.clone();
    message.status = snapshot.status.clone();
    message.slot = snapshot.slot.clone();
    message.lsn = snapshot.lsn.map(|lsn| lsn.to_string()).unwrap_or_default();
    message.created_at = Some(time::message(snapshot.created_at));
    message.completed_at = snapshot.completed_at.map(time::message);
    message.expires_at = snapshot.expires_at.map(time::message);
    message.retained_bytes = slot.map_or(0, |slot| slot.progress.retained_bytes);
    Ok(message)
}

/// What a manifest says, as a message.
pub fn of_manifest(manifest: &Manifest, detailed: bool) -> v1::Snapshot {
    let table = |table: &TableEntry| v1::SnapshotTable {
        table: Some(v1::TableName { schema: table.schema.clone(), name: table.name.clone() }),
        rows: table.rows,
        bytes: table.bytes,
        parts: u32::try_from(table.parts.len()).unwrap_or(u32::MAX),
    };
    v1::Snapshot {
        snapshot_id: manifest.snapshot_id.clone(),
        op_id: manifest.op_id.clone(),
        node_id: manifest.node.clone(),
        status: "complete".into(),
        slot: manifest.slot.clone(),
        lsn: manifest.lsn.clone(),
        created_at: Some(time::message(manifest.created_at)),
        expires_at: Some(time::message(manifest.expires_at)),
        bytes: manifest.bytes(),
        rows: manifest.rows(),
        compression: manifest.compression.clone(),
        table_count: u32::try_from(manifest.tables.len()).unwrap_or(u32::MAX),
        file_count: u32::try_from(manifest.all_files().count()).unwrap_or(u32::MAX),
        server_version_num: manifest.server_version_num,
        tables: if detailed { manifest.tables.iter().map(table).collect() } else { Vec::new() },
        ..v1::Snapshot::default()
    }
}
