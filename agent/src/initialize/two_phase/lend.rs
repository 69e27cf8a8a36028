//! The source's part when a snapshot of it is applied: it judges for itself whether an operator has signed that, and
//! whether what the snapshot holds still goes with what it would send.

use std::sync::Arc;

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    intent::Verified,
    operation::Action,
    v1,
};

use crate::{
    initialize::{messages, messages::table_name, scope},
    postgres::{Purpose, selection::Selection, tables},
    rooms::Rooms,
    session::{AdoptRequest, Held, Scope},
    snapshot::files::{
        manifest::{Manifest, snapshot_id},
        verify,
    },
    storage::SCHEME,
    store::{
        removals,
        signed_intents::{self, Claim},
        snapshots::Snapshot,
    },
};

use super::{apply, shelf};

/// Lends the files of the snapshot that the order names to `caller`, until it closes the operation, and writes down that
/// the order was used for it. Returns the snapshot's id.
///
/// Fails with [`Code::IntentExceeded`] where the order names none, with [`Code::SnapshotGone`] where it can begin nothing any
/// more, and with [`Code::SnapshotFilesMissing`] where its files are not there as they were written.
pub async fn lend_files(
    rooms: &Rooms,
    caller: &NodeId,
    verified: &Verified,
    request: &v1::LendFilesRequest,
) -> Result<String, Failure> {
    scope::check_parties(&rooms.me, caller, verified, &request.op_id, &[Action::SnapshotApply])?;
    let Some(id) = verified.order.lent_snapshot() else {
        let text = format!("{caller} asks for the files of a snapshot, which {} has not signed", verified.signer);
        return Err(Failure::new(Code::IntentExceeded, text));
    };
    let found = shelf::find(rooms, id).await?;
    let id = snapshot_id(found.op_id);
    let has_expired = found.expires_at.is_some_and(|at| at <= Timestamp::now());
    if !found.is_complete() || has_expired {
        let word = if has_expired { "it has expired" } else { found.status.as_str() };
        return Err(Failure::new(Code::SnapshotGone, format!("{id} of {}: {word}", rooms.me)));
    }
    if found.storage.starts_with(SCHEME) {
        let text = format!("{id} lies in {}, where its node's agent does not read it for others", found.storage);
        let hint = format!("steepctl snapshot apply {caller} --input {}", found.storage);
        return Err(Failure::new(Code::SnapshotFilesMissing, text).hint(hint));
    }
    check_files(rooms, &found).await.map_err(|failure| {
        let text = format!("{} does not have {id} in {} as it was written", rooms.me, found.storage);
        let hint =
            format!("steepctl snapshot verify {id} says more; put the directory back, or apply a copy: --input DIR");
        Failure::new(Code::SnapshotFilesMissing, text).cause(failure.message).hint(hint)
    })?;
    match signed_intents::claim(&rooms.store, verified, Some(verified.order.op_id)).await {
        Ok(Claim::First | Claim::Again) => Ok(id),
        Ok(Claim::Used) => Err(signed_intents::used(verified)),
        Err(error) => Err(error.explain()),
    }
}

async fn check_files(rooms: &Rooms, found: &Snapshot) -> Result<(), Failure> {
    let opened = apply::open(rooms, &found.storage).await?;
    let (_, op, _) = opened.manifest.origin()?;
    if op != found.op_id {
        let text = format!("the manifest there is of {}", opened.manifest.snapshot_id);
        return Err(Failure::new(Code::ManifestRefused, text));
    }
    verify::glance(&opened).await
}

/// Opens the session that `caller` asks for, and writes down that the order was used for it.
pub async fn lend(
    rooms: &Rooms,
    caller: &NodeId,
    verified: &Verified,
    request: &v1::OpenSnapshotRequest,
) -> Result<Arc<Held>, Failure> {
    let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
    scope::check_parties(&rooms.me, caller, verified, &request.op_id, &[Action::SnapshotApply])?;
    scope::check_direction(verified, request.one_way)?;
    let op = verified.order.op_id;
    let found = shelf::find(rooms, &request.snapshot_op_id).await?;
    let id = snapshot_id(found.op_id);
    if verified.order.lent_snapshot().is_some_and(|signed| signed != id && signed != found.op_id.to_string()) {
        let text = format!("{caller} asks for {id}, and {} has signed another snapshot", verified.signer);
        return Err(Failure::new(Code::IntentExceeded, text));
    }
    let has_expired = found.expires_at.is_some_and(|at| at <= Timestamp::now());
    if !found.is_complete() || has_expired {
        let word = if has_expired { "has expired" } else { found.status.as_str() };
        return Err(Failure::new(Code::SnapshotSlotLost, format!("{id} of {} can begin nothing: {word}", rooms.me)));
    }
    let kept = found.manifest.clone().and_then(|kept| serde_json::from_value::<Manifest>(kept).ok());
    let manifest = kept.ok_or_else(|| Failure::new(Code::Internal, format!("what {id} holds cannot be read")))?;
    if !request.one_way {
        let since = removals::count_since(&rooms.store, manifest.created_at).await.map_err(|error| error.explain())?;
        if manifest.has_neighbours || since > 0 {
            let text = format!("{} received changes of others while or since {id} was made", rooms.me);
            return Err(Failure::new(Code::SnapshotOneWay, text));
        }
    }
    check_tables(rooms, &id, &request.tables).await?;
    match signed_intents::claim(&rooms.store, verified, Some(op)).await.map_err(|error| error.explain())? {
        Claim::First | Claim::Again => {}
        Claim::Used => return Err(signed_intents::used(verified)),
    }
    let names = request.tables.iter().map(|table| (table.oid, name_of(table)));
    let request = AdoptRequest {
        op,
        snapshot: found.op_id,
        slot: manifest.slot.clone(),
        lsn: manifest.lsn.parse().map_err(|error| bad(&error))?,
        publication: manifest.publication,
        tables: names.collect(),
        scope: Scope { selection: Selection::default(), one_way: request.one_way },
    };
    rooms.sessions.adopt(caller, request).await
}

fn name_of(table: &v1::SourceTable) -> steep_protocol::names::TableName {
    table_name(&table.table.clone().unwrap_or_default())
}

/// What was written since is of the tables' shape now; the target's would be of the shape they had.
async fn check_tables(rooms: &Rooms, id: &str, then: &[v1::SourceTable]) -> Result<(), Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
    let oids: Vec<u32> = then.iter().map(|table| table.oid).collect();
    let now = tables::describe(&session, &oids).await.map_err(|error| error.explain())?;
    for table in then {
        let found = now.iter().find(|found| found.oid == table.oid && found.name == name_of(table));
        let found = found.map(messages::source_table);
        if found.is_none_or(|found| found.columns != table.columns) {
            let text = format!("table {} has changed on {} since {id} was made", name_of(table), rooms.me);
            return Err(Failure::new(Code::SnapshotStale, text));
        }
    }
    Ok(())
}
