//! How the node fares, measured once a second: what its headline tells the other agents.

use std::collections::BTreeSet;

use steep_protocol::{
    failure::{Code, Explain as _},
    ids::NodeId,
    names::readable_identifier,
    node::NodeState,
    time, v1,
};

use crate::{
    drift::watch::DIGITS,
    identity,
    postgres::{
        Purpose, Session, detours, slots,
        subscriptions::{self, Subscription},
    },
    rooms::Rooms,
    store::nodes,
    troubles::Found,
};

/// Looks at the node; says whether PostgreSQL answered. `look` is kept from one look to the next.
pub async fn headline(rooms: &Rooms, look: &mut Option<Session>) -> (v1::NodeHeadline, bool) {
    let mut headline = bare(rooms.me.as_str(), rooms.peers.address());
    headline.postgres_address = rooms.database.config().address();
    if look.as_ref().is_none_or(Session::is_closed) {
        match rooms.database.session(Purpose::Watch).await {
            Ok(session) => *look = Some(session),
            Err(error) => {
                headline.health = "error".into();
                headline.health_reason = error.to_string();
                return (headline, false);
            }
        }
    }
    let Some(session) = look else { return (headline, false) };
    headline.postgres_version = session.version().to_string();
    match measure(rooms, session, &mut headline).await {
        Ok(()) => (headline, true),
        Err(reason) => {
            *look = None;
            (v1::NodeHeadline { health: "error".into(), health_reason: reason, ..headline }, false)
        }
    }
}

/// Says since when `headline` reads as it does, `before` being the one told last.
pub fn date(headline: &mut v1::NodeHeadline, before: &v1::NodeHeadline) {
    let is_same = headline.state == before.state
        && headline.source_node == before.source_node
        && headline.op_id == before.op_id
        && headline.health == before.health;
    headline.changed_at = before.changed_at.filter(|_| is_same).or_else(|| Some(time::now()));
}

/// What can be said without PostgreSQL.
pub fn bare(node_id: &str, address: &str) -> v1::NodeHeadline {
    v1::NodeHeadline {
        node_id: node_id.into(),
        health: "error".into(),
        health_reason: "PostgreSQL was not reached yet".into(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        address: address.into(),
        as_of: Some(time::now()),
        ..v1::NodeHeadline::default()
    }
}

/// What can be said of a subscription without a worker, and where more stands: PostgreSQL keeps the reason in its log alone.
fn does_not_run(me: &NodeId, subscription: &Subscription) -> String {
    let code = Code::SubscriptionFailing;
    let (name, errors) = (&subscription.name, subscription.apply_errors);
    if !subscription.is_enabled {
        let name = readable_identifier(name);
        return format!(
            "{code} subscription {name} is disabled: see why, then on {me}: alter subscription {name} enable"
        );
    }
    format!(
        "{code} subscription {name} does not run ({errors} errors of it were counted): see PostgreSQL's log on {me}, which names the row, and \
         steepctl mesh matrix, whether its source is reached"
    )
}

async fn measure(rooms: &Rooms, session: &Session, headline: &mut v1::NodeHeadline) -> Result<(), String> {
    let own = nodes::own(&rooms.store).await.map_err(|error| error.explain().to_string())?;
    headline.state = own.init_state.to_string();
    headline.source_node = own.init_source_node.map(|node| node.to_string()).unwrap_or_default();
    (headline.health, headline.health_reason) = ("ok".into(), String::new());
    if let Some((op, progress)) = rooms.operations.current() {
        headline.op_id = op.to_string();
        headline.percent = Some(progress.overall_percent);
        headline.eta_seconds = progress.eta_seconds;
        headline.health = "busy".into();
    }
    let subscriptions = subscriptions::list(session).await.map_err(|error| error.to_string())?;
    let ours: Vec<_> = subscriptions.iter().filter(|found| found.name.starts_with("steep_from_")).collect();
    headline.lag_bytes = ours.iter().filter_map(|found| rooms.lag_of(found)).reduce(|sum, lag| sum + lag);
    let at_rest = headline.op_id.is_empty();
    if let Some(waiting) = ours.iter().find(|found| at_rest && found.worker_pid.is_none()) {
        (headline.health, headline.health_reason) = ("warn".into(), does_not_run(&rooms.me, waiting));
    }
    let slots = slots::list(session).await.map_err(|error| error.to_string())?;
    headline.followers = followers(rooms, &slots);
    let before = (at_rest && own.init_state == NodeState::Diverged).then_some(own.health_reason);
    tell_troubles(&rooms.troubles.found(), before, headline);
    if own.init_state == NodeState::Failed && at_rest {
        complain(headline, "the last operation failed: steepctl op list".into());
    }
    if own.init_state == NodeState::Diverged && at_rest {
        let carried = detours::carried(session).await.map_err(|error| error.to_string())?;
        let held: BTreeSet<String> =
            carried.iter().filter(|one| one.is_held).map(|one| one.table.to_string()).collect();
        let names: Vec<_> = held.into_iter().collect();
        if !names.is_empty() {
            let (me, names) = (&rooms.me, names.join(","));
            let code = Code::TablesStandStill;
            complain(headline, format!("{code} {names} stand still: steepctl node reinit {me} --tables {names}"));
        }
    }
    let noticed = rooms.drift.noticed();
    headline.schema_digest = noticed.digest.chars().take(DIGITS).collect();
    if let Some((peer, tables)) = noticed.misfits.first_key_value()
        && headline.health == "ok"
    {
        let (me, others) = (&rooms.me, tables.len() - 1);
        let more = if others > 0 { format!(" and {others} more") } else { String::new() };
        let reason = format!(
            "{} {}{more} differs from {peer}'s: steepctl schema compare {me} {peer}",
            Code::SchemaDiffers,
            tables[0]
        );
        (headline.health, headline.health_reason) = ("warn".into(), reason);
    }
    let own = rooms.peers.identity();
    if let Some(failure) = identity::trouble(own, &own.live(), jiff::Timestamp::now()) {
        match failure.code {
            Code::CertificateRevoked | Code::CertificateExpired => complain(headline, failure.to_string()),
            _ if headline.health == "ok" => {
                (headline.health, headline.health_reason) = ("warn".into(), failure.to_string());
            }
            _ => {}
        }
    }
    nodes::set_health(&rooms.store, &headline.health, &headline.health_reason).await.map_err(|error| error.to_string())
}

fn complain(headline: &mut v1::NodeHeadline, reason: String) {
    (headline.health, headline.health_reason) = ("error".into(), reason);
}

/// What the watcher has found. `before`: the node is DIVERGED, and this was last said of it.
fn tell_troubles(found: &Found, before: Option<String>, headline: &mut v1::NodeHeadline) {
    for failure in found.kept.iter().chain(&found.budgets) {
        if headline.health != "error" {
            let health = if failure.code == Code::SlotLost { "error" } else { "warn" };
            (headline.health, headline.health_reason) = (health.into(), failure.to_string());
        }
    }
    let own = found.own.as_deref().unwrap_or_default();
    match (own.first(), before) {
        (Some(worst), _) => {
            let more = if own.len() > 1 { format!(" (and {} more)", own.len() - 1) } else { String::new() };
            complain(headline, format!("{worst}{more}"));
        }
        (None, Some(before)) if found.own.is_none() && !before.is_empty() => complain(headline, before),
        (None, Some(_)) => complain(headline, "replication to this node was broken, and is looked at".into()),
        (None, None) => {}
    }
}

/// How far the nodes are behind that this one keeps slots for.
fn followers(rooms: &Rooms, slots: &[slots::Slot]) -> Vec<v1::Follower> {
    let behind = |peer: &NodeId| {
        let kept = slots.iter().filter(|slot| slot.is_kept_for(peer));
        kept.filter_map(|slot| slot.progress.unconfirmed_bytes).max()
    };
    let follower = |peer: &NodeId| Some(v1::Follower { node_id: peer.to_string(), lag_bytes: behind(peer)? });
    rooms.peers.names().filter_map(|peer| follower(&peer)).collect()
}
