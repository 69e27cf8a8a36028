//! The source's part in a backup made by hand: slot, publication and mark, kept until a node is completed or it expires.
//!
//! What is made for a preparation is written down under its own id. While the preparation is not over nobody undoes it; once
//! it is, that happens as for any operation that has ended. For pg_dump a snapshot is exported at the slot's own point, and
//! held by a keeper, with locks against DDL that would make it read nothing, until it is let go or no agent comes back.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    time, v1,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    branch,
    findings::{Findings, verdict},
    messages::table_name,
    preflight,
    start::selection_of,
};
use crate::{
    cleanup::{Effect, Member},
    postgres::{
        self, Purpose, catalog,
        conninfo::Conninfo,
        copies, disk, marks,
        replication::{self, ExportedSlot},
        slots, tables,
    },
    rooms::Rooms,
    session::publish,
    store::{
        self, Actor, audit,
        preparations::{self, Change, Preparation},
    },
};

/// It is told so long before a preparation expires.
const NOTICE: SignedDuration = SignedDuration::from_hours(24);
/// What a backup may be.
const PURPOSES: [&str; 3] = ["pg_dump", "pg_basebackup", "storage-snapshot"];
/// Nobody keeps WAL for longer than that without saying so again.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

fn remember(error: store::Error) -> Failure {
    error.explain()
}

/// Operations whose things stay, as what was prepared is not over.
pub async fn kept(rooms: &Rooms) -> Result<Vec<OperationId>, Failure> {
    let open = preparations::list(&rooms.store).await.map_err(remember)?;
    Ok(open.into_iter().map(|prepared| prepared.op).collect())
}

/// Prepares this node for a backup: everything `request` asks for, or nothing.
pub async fn prepare(
    rooms: &Rooms,
    request: &v1::PrepareRequest,
    op: OperationId,
    actor: &Actor,
) -> Result<v1::Preparation, Failure> {
    let known = preparations::list(&rooms.store).await.map_err(remember)?;
    if let Some(before) = known.iter().find(|prepared| prepared.op == op) {
        return describe(rooms, before).await;
    }
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    let lifetime = Duration::from_secs(request.expires_seconds);
    if lifetime.is_zero() || lifetime > LONGEST {
        return Err(bad("--expires is to be between 1s and 366d".into()));
    }
    if !PURPOSES.contains(&request.purpose.as_str()) {
        return Err(bad(format!("--for {:?} is not supported", request.purpose)));
    }
    let target = target_of(rooms, request)?;
    refuse_slot(rooms, &request.slot).await?;
    let selection = request.selection.clone().unwrap_or_default();
    let members = examine(rooms, &selection, request.purpose != "pg_dump").await?;
    let short = op.short();
    let whole = selection_of(&selection).is_whole_database();
    let new = Preparation {
        op,
        purpose: request.purpose.clone(),
        target,
        slot: if request.slot.is_empty() { format!("steep_prep_{short}") } else { request.slot.clone() },
        publication: if whole { "steep".into() } else { format!("steep_prep_{short}") },
        selection,
        lsn: None,
        snapshot: String::new(),
        prepared_by: actor.to_string(),
        prepared_at: Timestamp::now(),
        expires_at: Timestamp::now() + lifetime,
        warned_at: None,
        taken_by: None,
    };
    preparations::plan(&rooms.store, &new).await.map_err(remember)?;
    match make(rooms, &new, &members).await {
        Ok(()) => {}
        Err(failure) => {
            end(rooms, op, &failure.message).await?;
            return Err(failure);
        }
    }
    let known = preparations::list(&rooms.store).await.map_err(remember)?;
    let made = known.into_iter().find(|prepared| prepared.op == op).ok_or_else(|| unknown(rooms, &short))?;
    let lsn = made.lsn.unwrap_or_default();
    info!(event = "slot.prepared", op_id = %op, slot = made.slot, lsn = %lsn, "prepared for a backup");
    describe(rooms, &made).await
}

/// The node that will be restored. One that is made as a physical copy need not be there yet.
fn target_of(rooms: &Rooms, request: &v1::PrepareRequest) -> Result<Option<NodeId>, Failure> {
    if request.target.is_empty() {
        return Ok(None);
    }
    let target: NodeId = request.target.parse().map_err(|_| rooms.peers.unknown(&request.target))?;
    if target == rooms.me {
        return Err(Failure::new(Code::SourceIsTarget, format!("{target} cannot be restored from a backup of itself")));
    }
    if request.purpose == "pg_dump" && !rooms.peers.knows(&target) {
        return Err(rooms.peers.unknown(target.as_str()));
    }
    Ok(Some(target))
}

/// Refuses a name for the slot that cannot be one, or is another's: whatever fails later is undone, and the slot goes with it.
async fn refuse_slot(rooms: &Rooms, name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Ok(());
    }
    let bad = |text: String| Failure::new(Code::BadRequest, text).hint("leave --slot out, or give it another name");
    slots::check_name(name).map_err(|error| bad(format!("--slot {name:?}: {error}")))?;
    if !name.starts_with("steep_") {
        return Err(bad(format!("--slot {name}: names of Steep's slots begin with steep_")));
    }
    let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    match slots::find(&look, name).await.map_err(explain)? {
        Some(_) => Err(bad(format!("--slot {name}: {} has a slot of this name already", rooms.me))),
        None => Ok(()),
    }
}

/// Looks whether this node can be prepared, and for which tables.
async fn examine(rooms: &Rooms, selection: &v1::Selection, is_physical: bool) -> Result<Vec<tables::Table>, Failure> {
    let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let server = catalog::server_facts(&look).await.map_err(explain)?;
    let role = catalog::role_facts(&look).await.map_err(explain)?;
    let mut findings = Findings::about(&rooms.me);
    preflight::check_publisher(&mut findings, &server, &role, 1);
    preflight::check_blockers(&look, &mut findings).await?;
    let selection = selection_of(selection);
    let selected = tables::select(&look, &selection).await.map_err(explain)?;
    preflight::check_selection(&mut findings, &selection, &selected);
    preflight::check_tables(&mut findings, &selected.tables, &role, server.version);
    if is_physical {
        // What is read when a copy is completed: better refused now.
        let (timeline, lsn) = (copies::timeline(&look).await, slots::current_lsn(&look).await);
        copies::wal_digest(&look, timeline.map_err(explain)?, lsn.map_err(explain)?).await.map_err(explain)?;
    }
    verdict(&format!("{} cannot be prepared", rooms.me), &findings.into_checks())?;
    Ok(selected.tables)
}

async fn make(rooms: &Rooms, new: &Preparation, selected: &[tables::Table]) -> Result<(), Failure> {
    let (op, id) = (new.op, new.id());
    let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let effect = Effect::Mark { id: id.clone() };
    let marked = async { marks::write(&look, &id, rooms.me.as_str()).await.map_err(explain) };
    rooms.cleanup.make(op, "prepare", &effect, marked).await?;
    let members: Vec<Member> = tables::published(selected).into_iter().map(Into::into).collect();
    publish(&rooms.cleanup, &look, op, &new.publication, &members).await?;
    // Locks before the slot: a table that is rewritten after it would be dumped as empty. A physical copy holds it as it is.
    let patience = rooms.config.copy.slot_timeout;
    let names = || selected.iter().map(|table| table.name.clone()).collect();
    let keeper = if new.is_physical() { None } else { Some(rooms.snapshots.lock(op, names(), patience).await?) };
    let effect = Effect::Slot { name: new.slot.clone(), peer: new.target.clone() };
    let mut was_there = false;
    let made = async {
        let never = CancellationToken::new();
        let made = replication::create_slot_exporting(&rooms.database, op, &new.slot, patience, &never).await;
        was_there = made.as_ref().is_err_and(postgres::Error::is_there_already);
        made.map_err(explain)
    };
    let exported = rooms.cleanup.make(op, "prepare", &effect, made).await;
    if was_there {
        // Somebody has made it since we looked: it is not ours to drop.
        rooms.cleanup.disown(op, "slot").await?;
    }
    let exported: ExportedSlot = exported?;
    let lsn = exported.lsn;
    let Some(keeper) = keeper else {
        exported.release();
        return preparations::ready(&rooms.store, op, lsn, "").await.map_err(remember);
    };
    let snapshot = rooms.snapshots.hold(op, keeper, &exported.snapshot).await?;
    exported.release();
    // What begins to be dumped from now on without that snapshot shows it.
    marks::seal(&look, &id).await.map_err(explain)?;
    preparations::ready(&rooms.store, op, lsn, &snapshot).await.map_err(remember)
}

/// Goes on with what an earlier run of the agent has prepared: half made it is over, and a snapshot is held if its keeper is
/// still there.
pub async fn take_up(rooms: &Rooms) -> Result<(), Failure> {
    preparations::strike_half(&rooms.store).await.map_err(remember)?;
    for prepared in preparations::list(&rooms.store).await.map_err(remember)? {
        let (op, snapshot) = (prepared.op, &prepared.snapshot);
        if snapshot.is_empty() || rooms.snapshots.take_up(op, snapshot).await {
            continue;
        }
        let (id, slot) = (prepared.id(), &prepared.slot);
        warn!(event = "slot.snapshot_lost", op_id = %op, slot, "the snapshot of preparation {id} is gone; its slot stays");
        let change = Change { is_released: true, ..Change::default() };
        preparations::change(&rooms.store, op, &change).await.map_err(remember)?;
    }
    Ok(())
}

/// All that is not over on this node.
pub async fn list(rooms: &Rooms) -> Result<Vec<v1::Preparation>, Failure> {
    let mut told = Vec::new();
    for prepared in preparations::list(&rooms.store).await.map_err(remember)? {
        told.push(describe(rooms, &prepared).await?);
    }
    Ok(told)
}

/// The preparation known as `id`, short or in full, or by its slot.
pub async fn find(rooms: &Rooms, id: &str) -> Result<Preparation, Failure> {
    let open = preparations::list(&rooms.store).await.map_err(remember)?;
    let is_meant = |prepared: &Preparation| prepared.id() == id || prepared.op.to_string() == id || prepared.slot == id;
    open.into_iter().find(is_meant).ok_or_else(|| unknown(rooms, id))
}

fn unknown(rooms: &Rooms, id: &str) -> Failure {
    let text =
        format!("{} is not prepared under {id}: it was completed, taken back, has expired, or never was", rooms.me);
    Failure::new(Code::PreparedUnknown, text).hint(format!("steepctl node prepare {} --list", rooms.me))
}

/// Keeps a preparation until later, lets its snapshot go, or takes it back.
pub async fn change(
    rooms: &Rooms,
    request: &v1::ChangePreparationRequest,
    actor: &Actor,
) -> Result<v1::Preparation, Failure> {
    let found = find(rooms, &request.prepare_id).await?;
    let mut told = describe(rooms, &found).await?;
    let detail = json!({ "what": request.what, "expires_seconds": request.expires_seconds });
    audit::append(&rooms.store, actor, "node.prepare", &found.slot, Some(found.op), &detail).await.map_err(remember)?;
    match request.what.as_str() {
        "cancel" => {
            refuse_taken(rooms, &found)?;
            end(rooms, found.op, &format!("taken back by {actor}")).await?;
            info!(event = "slot.dropped", op_id = %found.op, slot = found.slot, "a preparation was taken back");
        }
        "release" => {
            rooms.snapshots.release(found.op).await;
            let change = Change { is_released: true, ..Change::default() };
            preparations::change(&rooms.store, found.op, &change).await.map_err(remember)?;
            told.snapshot = String::new();
        }
        "extend" => {
            let lifetime = Duration::from_secs(request.expires_seconds);
            if lifetime.is_zero() || lifetime > LONGEST {
                return Err(Failure::new(Code::BadRequest, "--expires is to be between 1s and 366d"));
            }
            let expires_at = Timestamp::now() + lifetime;
            let change = Change { expires_at: Some(expires_at), ..Change::default() };
            preparations::change(&rooms.store, found.op, &change).await.map_err(remember)?;
            told.expires_at = Some(time::message(expires_at));
            info!(event = "slot.extended", op_id = %found.op, slot = found.slot, "a preparation is kept for longer");
        }
        other => return Err(Failure::new(Code::BadRequest, format!("{other:?} cannot be done to a preparation"))),
    }
    Ok(told)
}

fn refuse_taken(rooms: &Rooms, prepared: &Preparation) -> Result<(), Failure> {
    match prepared.taken_by.filter(|op| rooms.sessions.serves(*op)) {
        None => Ok(()),
        Some(op) => {
            let text = format!("a node is being completed from preparation {} (operation {op})", prepared.id());
            Err(Failure::new(Code::OperationRunning, text).hint(format!("steepctl op cancel {op}")))
        }
    }
}

/// A preparation is over: its slot and all else it keeps goes, now or with the janitor's next look.
async fn end(rooms: &Rooms, op: OperationId, why: &str) -> Result<(), Failure> {
    rooms.snapshots.release(op).await;
    preparations::end(&rooms.store, op, why).await.map_err(remember)?;
    rooms.cleanup.undo(op).await
}

/// A node was completed from it: slot and publication stay, as they are read now.
pub async fn finish(rooms: &Rooms, by: OperationId) -> Result<(), Failure> {
    let open = preparations::list(&rooms.store).await.map_err(remember)?;
    let Some(taken) = open.into_iter().find(|prepared| prepared.taken_by == Some(by)) else { return Ok(()) };
    rooms.snapshots.release(taken.op).await;
    rooms.cleanup.undo_kind(taken.op, "mark").await?;
    rooms.cleanup.keep(taken.op).await?;
    preparations::end(&rooms.store, taken.op, &format!("completed by operation {by}")).await.map_err(remember)?;
    Ok(())
}

/// Ends what has expired, and tells a day ahead of what will.
pub async fn expire(rooms: &Rooms) -> Result<(), Failure> {
    let now = Timestamp::now();
    let open = preparations::list(&rooms.store).await.map_err(remember)?;
    // One that is just being made has its time ahead.
    for prepared in open.into_iter().filter(|prepared| prepared.lsn.is_some()) {
        let (op, slot, id) = (prepared.op, &prepared.slot, prepared.id());
        let is_taken = refuse_taken(rooms, &prepared).is_err();
        if prepared.expires_at <= now && !is_taken {
            warn!(event = "slot.expired", op_id = %op, slot, "preparation {id} has expired: its slot is dropped");
            let actor = Actor::agent(&rooms.me);
            audit::append(&rooms.store, &actor, "slot.expire", slot, Some(op), &json!({})).await.map_err(remember)?;
            end(rooms, op, "expired").await?;
        } else if prepared.warned_at.is_none() && prepared.expires_at.duration_since(now) < NOTICE {
            let until = prepared.expires_at;
            warn!(
                event = "slot.expires_soon", op_id = %op, slot,
                "preparation {id} expires at {until:.0}; steepctl slot extend {} {slot} --expires 72h keeps it", rooms.me
            );
            let change = Change { is_warned: true, ..Change::default() };
            preparations::change(&rooms.store, op, &change).await.map_err(remember)?;
        }
    }
    Ok(())
}

/// A preparation as operators see it.
pub async fn describe(rooms: &Rooms, prepared: &Preparation) -> Result<v1::Preparation, Failure> {
    let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let slot = slots::progress(&look, &prepared.slot).await.map_err(explain)?;
    let server = catalog::server_facts(&look).await.map_err(explain)?;
    let paths = catalog::disk_paths(&look).await.map_err(explain)?;
    let own = Conninfo::of(rooms.database.config()).without("password").without("passfile");
    let is_held = rooms.snapshots.holds(prepared.op);
    Ok(v1::Preparation {
        prepare_id: prepared.id(),
        node_id: rooms.me.to_string(),
        purpose: prepared.purpose.clone(),
        target: prepared.target.as_ref().map(ToString::to_string).unwrap_or_default(),
        slot: prepared.slot.clone(),
        publication: prepared.publication.clone(),
        lsn: prepared.lsn.unwrap_or_default().to_string(),
        snapshot: if is_held { prepared.snapshot.clone() } else { String::new() },
        selection: Some(prepared.selection.clone()),
        prepared_by: prepared.prepared_by.clone(),
        prepared_at: Some(time::message(prepared.prepared_at)),
        expires_at: Some(time::message(prepared.expires_at)),
        retained_wal_bytes: slot.map_or(0, |slot| slot.retained_bytes),
        wal_bytes_a_day: slots::wal_bytes_a_day(&look).await.map_err(explain)?,
        wal_free_bytes: paths.data_directory.as_ref().and_then(|path| disk::free_bytes(&path.join("pg_wal"))),
        wal_keep_bytes: server.max_slot_wal_keep_bytes,
        conninfo: own.to_string(),
        system_identifier: server.system_identifier,
        data_directory: paths.data_directory.map(|path| path.display().to_string()).unwrap_or_default(),
    })
}

/// What was prepared, for the target of an order to complete a node.
pub async fn take(
    rooms: &Rooms,
    target: &NodeId,
    request: &v1::TakePreparedRequest,
    scope: crate::session::Scope,
    op: OperationId,
) -> Result<crate::session::TakeRequest, Failure> {
    let found = find(rooms, &request.prepare_id).await?;
    let gone = |text: String| {
        let hint = format!("steepctl node prepare {} --for {}, then make a new backup", rooms.me, found.purpose);
        Err(Failure::new(Code::PreparedUnknown, text).hint(hint))
    };
    if found.target.as_ref().is_some_and(|meant| meant != target) {
        let meant = found.target.as_ref().map(ToString::to_string).unwrap_or_default();
        let text = format!("preparation {} was made for {meant}, not for {target}", found.id());
        return Err(Failure::new(Code::BackupWrong, text).hint(format!("steepctl node complete {meant}")));
    }
    if found.taken_by != Some(op) {
        refuse_taken(rooms, &found)?;
    }
    let look = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let lsn = found.lsn.unwrap_or_default();
    match slots::progress(&look, &found.slot).await.map_err(explain)? {
        None => return gone(format!("slot {} of {} is gone", found.slot, rooms.me)),
        Some(slot) if slot.is_lost() => return gone(format!("slot {} of {} lost WAL it needs", found.slot, rooms.me)),
        Some(slot) if slot.confirmed_flush != Some(lsn) => {
            return gone(format!(
                "slot {} of {} stands at {}, not at {lsn} any more: somebody has read from it",
                found.slot,
                rooms.me,
                slot.confirmed_flush.unwrap_or_default()
            ));
        }
        Some(_) => {}
    }
    branch::check(rooms, &look, &found, request.branch.as_ref()).await?;
    rooms.cleanup.give_slot(found.op, &found.slot, target).await?;
    let change = Change { taken_by: Some(op), ..Change::default() };
    preparations::change(&rooms.store, found.op, &change).await.map_err(remember)?;
    let tables = request.tables.iter().map(|table| (table.oid, table_name(&table.table.clone().unwrap_or_default())));
    let is_held = rooms.snapshots.holds(found.op);
    Ok(crate::session::TakeRequest {
        op,
        slot: (found.slot, lsn),
        publication: found.publication,
        tables: tables.collect(),
        snapshot: if is_held { found.snapshot } else { String::new() },
        scope,
    })
}
