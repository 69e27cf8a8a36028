//! Tells of removals whoever has not heard of them, and does here what could not be done at once.

use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    time, v1,
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::part;
use crate::{
    mesh::Source,
    rooms::Rooms,
    store::{Actor, removals, removals::Removal},
    telemetry,
};

/// How often those that have not heard are called.
const AGAIN: Duration = Duration::from_secs(5);
/// Whoever began it tells all others itself; only after so long it may have died.
const FRESH: Duration = Duration::from_secs(15);
/// How long one may take to do its part.
const LIMIT: Duration = Duration::from_secs(30);

/// Goes on with unfinished removals for ever.
pub async fn run(rooms: &Rooms) {
    let mut tick = interval(AGAIN);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_well = true;
    loop {
        tick.tick().await;
        let looked = look(rooms).await;
        if let Err(failure) = &looked
            && was_well
        {
            warn!(event = "mesh.removal_waits", error = telemetry::failure(failure), "will be tried again");
        }
        was_well = looked.is_ok();
    }
}

async fn look(rooms: &Rooms) -> Result<(), Failure> {
    let explain = |error: crate::store::Error| error.explain();
    for removal in removals::unfinished(&rooms.store).await.map_err(explain)? {
        // The operation that began it does all of this itself.
        if rooms.operations.is_running(removal.op_id) {
            continue;
        }
        if !removal.is_done {
            part::carry_out(rooms, &removal, true, &Actor::agent(&rooms.me)).await?;
        }
        let heard = Timestamp::now().duration_since(removal.heard_at);
        if heard.unsigned_abs() > FRESH {
            tell(rooms, &removal, true).await?;
        }
    }
    Ok(())
}

/// Tells everybody who has not heard of `removal`, at once, and returns who still has not.
pub(super) async fn tell(rooms: &Rooms, removal: &Removal, is_late: bool) -> Result<Vec<(NodeId, Failure)>, Failure> {
    let mut left = Vec::new();
    let told = removal.pending.iter().map(|node| async move { (node, tell_one(rooms, removal, node, is_late).await) });
    for (node, told) in join_all(told).await {
        match told {
            // Whoever is no member any more is never going to answer, and has nothing to do with us.
            Err(failure) if failure.code != Code::UnknownNode => {
                debug!(op_id = %removal.op_id, peer = %node, error = telemetry::failure(&failure), "not told yet");
                left.push((node.clone(), failure));
            }
            _ => {
                let struck = removals::strike(&rooms.store, node, Some(removal.op_id)).await;
                struck.map_err(|error| error.explain())?;
            }
        }
    }
    Ok(left)
}

pub(super) async fn tell_one(rooms: &Rooms, removal: &Removal, node: &NodeId, is_late: bool) -> Result<(), Failure> {
    let request = v1::ForgetNodeRequest {
        signed: Some(removal.signed.clone()),
        pending: removal.pending.iter().filter(|other| *other != node).map(NodeId::to_string).collect(),
        asked_at: Some(time::message(removal.asked_at)),
        is_late,
    };
    let told = Source::new(rooms.peers.clone(), node.clone(), removal.op_id);
    let silent = || Failure::new(Code::PeerSilent, format!("{node} did not answer in {} s", LIMIT.as_secs()));
    timeout(LIMIT, told.forget_node(request)).await.unwrap_or_else(|_| Err(silent()))
}
