//! A node's own part of a removal: what it has with the removed node goes; the removed node itself gives up everything.
//!
//! What is there is read from PostgreSQL's catalogs and known by its name, so that it goes also where it was made by an
//! agent that remembers nothing of it; a slot that was prepared for a backup has no node's name, and is known by what is
//! written down. May be repeated.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    node::NodeState,
};
use tokio::sync::Mutex;
use tracing::info;

use crate::{
    initialize::subscribe::name_for,
    lifecycle::NodeEvent,
    postgres::{self, Purpose, Session, ddl, publications, slots, subscriptions},
    rooms::Rooms,
    session::is_slot_for,
    store::{self, Actor, audit, follows, intents, nodes, preparations, removals, removals::Removal, snapshots},
};

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

fn remember(error: store::Error) -> Failure {
    error.explain()
}

/// Hears of a removal and does this node's part of it; nothing where that was done before.
///
/// `is_late`: it is not told by whoever began it just now. Then what was made since it was asked for belongs to another
/// life of the node, and stays.
pub async fn hear(rooms: &Rooms, removal: &Removal, is_late: bool, teller: &Actor) -> Result<(), Failure> {
    removals::hear(&rooms.store, removal).await.map_err(remember)?;
    let known = removals::find(&rooms.store, removal.op_id).await.map_err(remember)?;
    match known {
        Some(known) if !known.is_done => carry_out(rooms, &known, is_late, teller).await,
        _ => Ok(()),
    }
}

/// One part at a time: two may tell of the same removal at once.
static TURN: Mutex<()> = Mutex::const_new(());

/// Does this node's part of a removal that is written down, and writes down that it is done; nothing where it is done already.
pub(super) async fn carry_out(rooms: &Rooms, removal: &Removal, is_late: bool, teller: &Actor) -> Result<(), Failure> {
    let _turn = TURN.lock().await;
    if removals::find(&rooms.store, removal.op_id).await.map_err(remember)?.is_some_and(|known| known.is_done) {
        return Ok(());
    }
    if let Some((running, _)) = rooms.operations.current().filter(|(running, _)| *running != removal.op_id) {
        let text = format!("{} is busy with operation {running}", rooms.me);
        return Err(Failure::new(Code::OperationRunning, text).hint("it is tried again once that has ended"));
    }
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let taken = match removal.node == rooms.me {
        true => leave(rooms, &session, removal, is_late, teller).await?,
        false => forget(rooms, &session, removal, is_late).await?,
    };
    let action = if removal.node == rooms.me { "node.left" } else { "node.forgotten" };
    let detail = serde_json::json!({ "removed_by": removal.removed_by, "taken_away": taken });
    audit::append(&rooms.store, teller, action, removal.node.as_str(), Some(removal.op_id), &detail)
        .await
        .map_err(remember)?;
    removals::finish(&rooms.store, removal.op_id).await.map_err(remember)?;
    // A node that was removed owes the others nothing: what it has with anybody goes by its own removal.
    removals::strike(&rooms.store, &removal.node, None).await.map_err(remember)?;
    info!(
        event = "mesh.node_removed", op_id = %removal.op_id, peer = %removal.node, details.taken_away = taken.join(", "),
        "a node was taken out of replication"
    );
    Ok(())
}

/// What this node has with another one that was removed.
async fn forget(rooms: &Rooms, session: &Session, removal: &Removal, is_late: bool) -> Result<Vec<String>, Failure> {
    let node = &removal.node;
    for op in rooms.sessions.for_target(node) {
        rooms.sessions.end(op).await;
        rooms.cleanup.undo(op).await?;
    }
    let mut taken = Vec::new();
    let subscription = name_for(node.as_str());
    if !is_newer(rooms, removal, is_late, "subscription", &subscription).await? {
        taken.extend(drop_subscription(rooms, session, &subscription).await?);
    }
    if let Some(alike) = rooms.peers.names().find(|peer| peer != node && peer.sanitized() == node.sanitized()) {
        let text = format!("slots for {node} and {alike} have the same names on {}", rooms.me);
        return Err(Failure::new(Code::NamesAlike, text));
    }
    for slot in slots_for(rooms, session, node).await? {
        if !is_newer(rooms, removal, is_late, "slot", &slot).await? {
            taken.extend(drop_slot(rooms, session, &slot).await?);
        }
    }
    taken.extend(drop_publication(rooms, session, &format!("steep_only_{node}")).await?);
    // The shared one goes with the last slot that reads it.
    if all_slots(rooms, session).await?.is_empty() {
        taken.extend(drop_publication(rooms, session, "steep").await?);
    }
    taken.extend(drop_unread_publications(rooms, session).await?);
    Ok(taken)
}

/// Everything this node has with any other, for it is the one that was removed. Its data stays.
async fn leave(
    rooms: &Rooms,
    session: &Session,
    removal: &Removal,
    is_late: bool,
    teller: &Actor,
) -> Result<Vec<String>, Failure> {
    for op in rooms.sessions.operations() {
        rooms.sessions.end(op).await;
        rooms.cleanup.undo(op).await?;
    }
    let (mut taken, mut is_reborn) = (Vec::new(), false);
    let found = subscriptions::list(session).await.map_err(explain)?;
    for subscription in found.iter().filter(|found| found.name.starts_with("steep_from_")) {
        match is_newer(rooms, removal, is_late, "subscription", &subscription.name).await? {
            true => is_reborn = true,
            false => taken.extend(drop_subscription(rooms, session, &subscription.name).await?),
        }
    }
    for slot in own_slots(rooms, session).await? {
        match is_newer(rooms, removal, is_late, "slot", &slot).await? {
            true => is_reborn = true,
            false => taken.extend(drop_slot(rooms, session, &slot).await?),
        }
    }
    if is_reborn {
        return Ok(taken);
    }
    // What is read from a slot of a backup or a snapshot goes through the shared one.
    let is_shared = !all_slots(rooms, session).await?.is_empty();
    for name in publications::list(session).await.map_err(explain)? {
        if (name == "steep" && !is_shared) || name.starts_with("steep_only_") {
            taken.extend(drop_publication(rooms, session, &name).await?);
        }
    }
    taken.extend(drop_unread_publications(rooms, session).await?);
    let own = nodes::own(&rooms.store).await.map_err(remember)?;
    if matches!(own.init_state, NodeState::Synchronized | NodeState::Diverged | NodeState::Failed) {
        nodes::advance(&rooms.store, NodeEvent::Undone, Some(removal.op_id), teller).await.map_err(remember)?;
    }
    nodes::set_source(&rooms.store, None).await.map_err(remember)?;
    Ok(taken)
}

async fn is_newer(rooms: &Rooms, removal: &Removal, is_late: bool, kind: &str, name: &str) -> Result<bool, Failure> {
    if !is_late {
        return Ok(false);
    }
    let made = intents::kept_since(&rooms.store, kind, name).await.map_err(remember)?;
    Ok(made.is_some_and(|made| made > removal.asked_at))
}

/// Slots of this node's database that other nodes read, or were made to. Those that wait for a backup made by hand or for whoever
/// applies a snapshot are no node's yet: nobody has to receive what is in them, and their own commands take them away.
pub(super) async fn own_slots(rooms: &Rooms, session: &Session) -> Result<Vec<String>, Failure> {
    let prepared = preparations::list(&rooms.store).await.map_err(remember)?;
    let written = snapshots::list(&rooms.store, false).await.map_err(remember)?;
    let waits = |slot: &String| {
        prepared.iter().any(|prepared| prepared.slot == *slot) || written.iter().any(|written| written.slot == *slot)
    };
    Ok(all_slots(rooms, session).await?.into_iter().filter(|slot| !waits(slot)).collect())
}

/// Slots of this node's database that Steep made, for whatever.
async fn all_slots(rooms: &Rooms, session: &Session) -> Result<Vec<String>, Failure> {
    let dbname = &rooms.database.config().dbname;
    let made = follows::slots(&rooms.store).await.map_err(remember)?;
    let is_ours = |name: &str| is_slot_for(name, None) || made.iter().any(|made| made.name == name);
    let slots = slots::list(session).await.map_err(explain)?;
    let ours = slots.into_iter().filter(|slot| slot.database == *dbname && is_ours(&slot.name));
    Ok(ours.map(|slot| slot.name).collect())
}

/// Slots for `node`: those named for it, and those that are written down for it, also where they are gone already.
async fn slots_for(rooms: &Rooms, session: &Session, node: &NodeId) -> Result<Vec<String>, Failure> {
    let mut slots = own_slots(rooms, session).await?;
    slots.retain(|slot| is_slot_for(slot, Some(node)));
    for made in follows::slots(&rooms.store).await.map_err(remember)? {
        if made.is_kept && made.peer == node.as_str() && !slots.contains(&made.name) {
            slots.push(made.name);
        }
    }
    Ok(slots)
}

async fn drop_subscription(rooms: &Rooms, session: &Session, name: &str) -> Result<Option<String>, Failure> {
    let was_there = subscriptions::drop(session, name).await.map_err(explain)?;
    rooms.links.close(name);
    settled(rooms, "subscription", name, was_there).await
}

async fn drop_slot(rooms: &Rooms, session: &Session, name: &str) -> Result<Option<String>, Failure> {
    let was_there = slots::drop(session, name).await.map_err(explain)?;
    settled(rooms, "slot", name, was_there).await
}

async fn drop_publication(rooms: &Rooms, session: &Session, name: &str) -> Result<Option<String>, Failure> {
    let was_there = publications::exists(session, name).await.map_err(explain)?;
    session.run(&ddl::drop_publication(name)).await.map_err(explain)?;
    settled(rooms, "publication", name, was_there).await
}

/// A publication of chosen tables, made for a backup or a snapshot, goes with the last slot that reads it.
async fn drop_unread_publications(rooms: &Rooms, session: &Session) -> Result<Vec<String>, Failure> {
    let read = intents::read_publications(&rooms.store).await.map_err(remember)?;
    let mut taken = Vec::new();
    for name in publications::list(session).await.map_err(explain)? {
        let is_of_chosen = name.starts_with("steep_prep_") || name.starts_with("steep_snap_");
        if is_of_chosen && !read.contains(&name) {
            taken.extend(drop_publication(rooms, session, &name).await?);
        }
    }
    Ok(taken)
}

/// What was kept is gone: no operation may count on it, or undo it, any more.
async fn settled(rooms: &Rooms, kind: &str, name: &str, was_there: bool) -> Result<Option<String>, Failure> {
    intents::settle(&rooms.store, kind, name).await.map_err(remember)?;
    Ok(was_there.then(|| format!("{kind} {name}")))
}
