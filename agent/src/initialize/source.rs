//! The source's part in a peer's initialization, beyond holding the session open.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    lsn::Lsn,
    node::NodeState,
    v1,
};
use tracing::info;

use super::{
    messages, prepare,
    reach::Reach,
    subscribe::{self, Inflow},
};
use crate::{
    breakpoint::crash_point,
    cleanup::Effect,
    lifecycle::NodeEvent,
    postgres::{
        self, Purpose, Session,
        ddl::OriginFilter,
        rows,
        sequences::{self, SequenceScope},
        slots::{self, SyncSlots},
        subscriptions,
        tables::{self, TableKind},
    },
    rooms::Rooms,
    session::{Held, Role},
    store::{Actor, audit, nodes, signed_intents},
};

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// What the target is told of a session that is open.
pub fn opened(rooms: &Rooms, held: &Held) -> Result<v1::OpenSessionReply, Failure> {
    let reach = Reach::own(rooms)?.to_message();
    let positions = match &held.role {
        Role::Source { positions } => positions.clone(),
        Role::Member { .. } | Role::Prepared | Role::Files { .. } => Vec::new(),
    };
    let position = |(node, lsn): &(NodeId, Lsn)| v1::MemberPosition { node: node.to_string(), lsn: lsn.to_string() };
    let tables = held.tables.iter().map(|(table, plan)| v1::SessionTable {
        oid: table.oid,
        bytes: table.bytes,
        rows_estimate: table.rows_estimate,
        part_starts: plan.starts.clone(),
        pages: plan.pages,
    });
    Ok(v1::OpenSessionReply {
        session_id: held.id.to_string(),
        publication: held.publication.clone(),
        slot: held.slot.clone(),
        lsn: held.lsn.to_string(),
        snapshot: held.snapshot.clone(),
        conninfo: reach.conninfo,
        tables: tables.collect(),
        lease_seconds: rooms.sessions.lease().as_secs(),
        link: reach.link,
        database: reach.database,
        positions: positions.iter().map(position).collect(),
        gate_lsn: held.gate.as_ref().map(|gate| gate.lsn.to_string()).unwrap_or_default(),
        gate_positions: held.gate.iter().flat_map(|gate| gate.positions.iter().map(position)).collect(),
    })
}

/// `facts` with the rows of every table as they are now, for whoever is about to replace a copy of them.
pub async fn count_now(rooms: &Rooms, mut facts: v1::ExamineReply) -> Result<v1::ExamineReply, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let mut plain: Vec<_> = facts.tables.iter_mut().filter(|table| table.kind != "p").collect();
    let names: Vec<_> = plain.iter().filter_map(|table| table.table.as_ref().map(messages::table_name)).collect();
    let counts = rows::count(&session, &names).await.map_err(explain)?;
    for (table, rows) in plain.iter_mut().zip(counts) {
        table.rows = Some(rows);
    }
    Ok(facts)
}

/// Exact row counts of the session's tables, inside its snapshot.
pub async fn count_rows(held: &Held) -> Result<Vec<v1::TableRows>, Failure> {
    let plain: Vec<_> =
        held.tables.iter().map(|(table, _)| table).filter(|table| table.kind == TableKind::Plain).collect();
    let reader = held.reader().await?;
    let names: Vec<_> = plain.iter().map(|table| table.name.clone()).collect();
    // Counting may take as long as copying, and its locks go with it.
    let counting = reader.canceller().on_drop();
    let counts = tokio::select! {
        counts = rows::count(&reader, &names) => counts.map_err(explain)?,
        () = held.ended().cancelled() => return Err(held.why_ended()),
    };
    counting.disarm();
    held.give_back(reader);
    crash_point!("counted");
    Ok(plain.iter().zip(counts).map(|(table, rows)| v1::TableRows { oid: table.oid, rows }).collect())
}

/// Where the sequences that belong to the session stand now.
pub async fn read_sequences(rooms: &Rooms, held: &Held) -> Result<Vec<v1::SequencePosition>, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let oids: Vec<u32> = held.tables.iter().map(|(table, _)| table.oid).collect();
    let scope = match held.scope.selection.is_whole_database() {
        true => SequenceScope::WholeDatabase,
        false => SequenceScope::OfTables(&oids),
    };
    let found = sequences::read(&session, scope).await.map_err(explain)?;
    let position = |sequence: sequences::Sequence| v1::SequencePosition {
        sequence: Some(messages::table_message(&sequence.name)),
        last_value: sequence.last_value,
        is_called: sequence.is_called,
        increment: sequence.increment,
        min_value: sequence.min_value,
        max_value: sequence.max_value,
        cache: sequence.cache,
        cycle: sequence.cycles,
    };
    Ok(found.into_iter().map(position).collect())
}

/// The session's tables as they are now.
pub async fn describe_tables(rooms: &Rooms, held: &Held) -> Result<Vec<v1::SourceTable>, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let oids: Vec<u32> = held.tables.iter().map(|(table, _)| table.oid).collect();
    let tables = tables::describe(&session, &oids).await.map_err(explain)?;
    Ok(tables.iter().map(messages::source_table).collect())
}

/// Writes a marker; everything committed before lies below the LSN returned.
pub async fn write_marker(rooms: &Rooms, op: OperationId) -> Result<Lsn, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    slots::emit_marker(&session, &op.to_string()).await.map_err(explain)
}

/// How far the session's slot is confirmed by its subscription. Fails once the subscription for the way back has
/// stopped with an error.
pub async fn slot_progress(rooms: &Rooms, held: &Held) -> Result<v1::SlotProgressReply, Failure> {
    if let Some(failure) = held.failure() {
        return Err(failure.clone());
    }
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let progress = slots::progress(&session, &held.slot).await.map_err(explain)?;
    let gone = || Failure::new(Code::SlotLost, format!("slot {} on {} is gone", held.slot, rooms.me));
    let progress = progress.ok_or_else(gone)?;
    if let Some(before) = held.errors_before() {
        let back = subscribe::name_for(held.target.as_str());
        subscribe::Vigil::not_counting(&back, before).check(&session, &rooms.me).await?;
    }
    Ok(v1::SlotProgressReply {
        confirmed_lsn: progress.confirmed_flush.unwrap_or_default().to_string(),
        active: progress.is_active,
        retained_wal_bytes: progress.retained_bytes,
        wal_status: progress.wal_status,
        source_confirmed_lsn: source_confirmed(&session, held).await?.map(|lsn| lsn.to_string()),
    })
}

/// On a member: how far the source has confirmed what this node sends it.
async fn source_confirmed(session: &Session, held: &Held) -> Result<Option<Lsn>, Failure> {
    let Role::Member { source_slot, .. } = &held.role else { return Ok(None) };
    let progress = slots::progress(session, source_slot).await.map_err(explain)?;
    let gone = || Failure::new(Code::SlotLost, format!("slot {source_slot}, which the source reads, is gone"));
    Ok(Some(progress.ok_or_else(gone)?.confirmed_flush.unwrap_or_default()))
}

/// Lets the target's subscription copy the session's tables by itself. What it makes here for that is written down.
pub async fn copy_natively(rooms: &Rooms, held: &Held, request: &v1::CopyNativelyRequest) -> Result<(), Failure> {
    if !matches!(held.role, Role::Source { .. }) {
        let text = format!("the session of {} was not signed to copy rows from {}", held.op, rooms.me);
        return Err(Failure::new(Code::IntentExceeded, text));
    }
    let (subscription, system_identifier) = (request.subscription_oid, request.system_identifier);
    let slots = SyncSlots { subscription, system_identifier };
    let effect = Effect::SyncSlots { of: slots };
    rooms.cleanup.make(held.op, "copy natively", &effect, async { Ok(()) }).await?;
    let with_rows = held.tables.iter().map(|(table, _)| table).filter(|table| table.kind == TableKind::Plain);
    let tables = with_rows.map(|table| (table.oid, table.name.clone())).collect();
    rooms.links.let_copy(&held.slot, slots, tables, held.ended().clone());
    crash_point!("copies let");
    Ok(())
}

/// The way back: subscribes this node to the slot the session's target made for it. Asked again, it is there already.
pub async fn subscribe_back(rooms: &Rooms, held: &Held, request: &v1::SubscribeRequest) -> Result<String, Failure> {
    let target = &held.target;
    let reach = Reach::told(target, &request.link, &request.database, &request.conninfo)?;
    let inflow = Inflow {
        source: target,
        slot: &request.slot,
        publication: &request.publication,
        reach: &reach,
        origin: OriginFilter::None,
        begin: Lsn::default(),
        gates: &[],
    };
    let name = subscribe::subscribe(rooms, held.op, &inflow).await?;
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let made = subscriptions::find(&session, &name).await.map_err(explain)?;
    held.not_counting(made.map_or(0, |made| made.apply_errors));
    crash_point!("subscribed to the target");
    Ok(name)
}

/// Ends the target's operation here: what it made stays, or is undone.
pub async fn close(rooms: &Rooms, target: &NodeId, op: OperationId, keep: bool, reason: &str) -> Result<(), Failure> {
    let actor = Actor::node(target);
    let action = if keep { "session.keep" } else { "session.undo" };
    let detail = serde_json::json!({ "reason": reason });
    audit::append(&rooms.store, &actor, action, target.as_str(), Some(op), &detail)
        .await
        .map_err(|error| error.explain())?;
    if keep {
        // No table is being copied any more.
        rooms.cleanup.undo_kind(op, "sync_slots").await?;
        prepare::finish(rooms, op).await?;
        // Kept before the session ends: what belongs to no session and is not kept, the janitor takes away.
        rooms.cleanup.keep(op).await?;
        crash_point!("kept");
        rooms.sessions.end(op).await;
        signed_intents::end(&rooms.store, op).await.map_err(|error| error.explain())?;
        become_member(rooms, op, &actor).await?;
    } else {
        rooms.sessions.end(op).await;
        signed_intents::end(&rooms.store, op).await.map_err(|error| error.explain())?;
        // The target may have died between our keeping and its own: what it then gives up must go all the same.
        rooms.cleanup.reopen(op).await?;
        crash_point!("undoing");
        rooms.cleanup.undo(op).await?;
    }
    info!(event = "snapshot.session_closed", op_id = %op, peer = %target, details.keep = keep, reason, "session closed");
    Ok(())
}

/// The first source of a mesh was never initialized from another node: it *is* the data. It passes through the
/// legal states all the same, so that the database's own check and the audit log stay whole.
async fn become_member(rooms: &Rooms, op: OperationId, actor: &Actor) -> Result<(), Failure> {
    let own = nodes::own(&rooms.store).await.map_err(|error| error.explain())?;
    if own.init_state != NodeState::Uninitialized {
        return Ok(());
    }
    for event in [NodeEvent::Started, NodeEvent::RowsInPlace, NodeEvent::CaughtUp] {
        nodes::advance(&rooms.store, event, Some(op), actor).await.map_err(|error| error.explain())?;
    }
    Ok(())
}
