//! Metrics that PostgreSQL has to be asked for, looked at every few seconds whether somebody asks or not.
//!
//! While PostgreSQL does not answer, what it would have told is absent: an old number looks like a good one.

use std::time::Duration;

use steep_protocol::failure::Explain as _;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, error};

use crate::{
    metrics::{Metrics, counted},
    postgres::{self, Purpose, Session, activity, slots, subscriptions},
    rooms::Rooms,
    store::audit,
};

const EVERY: Duration = Duration::from_secs(5);
/// The audit log is read from end to end for this.
const CHAIN_EVERY: Duration = Duration::from_secs(600);
/// PostgreSQL's words for how a slot fares.
const WAL_STATUS: [&str; 4] = ["reserved", "extended", "unreserved", "lost"];

/// Looks for ever.
pub async fn keep(rooms: &Rooms, metrics: &Metrics) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = None;
    let mut audited = Audited::default();
    loop {
        tick.tick().await;
        if let Err(reason) = measure(rooms, metrics, &mut look).await {
            debug!(reason, "PostgreSQL could not be measured");
            look = None;
            forget(metrics);
        }
        if let Err(failure) = audited.count(rooms, metrics).await {
            debug!(reason = %failure, "the audit log could not be counted");
        }
    }
}

async fn measure(rooms: &Rooms, metrics: &Metrics, look: &mut Option<Session>) -> Result<(), String> {
    let explain = |error: postgres::Error| error.explain().to_string();
    let session = match look {
        Some(session) if !session.is_closed() => session,
        look => look.insert(rooms.database.session(Purpose::Watch).await.map_err(explain)?),
    };
    let slots = slots::list(session).await.map_err(explain)?;
    let subscriptions = subscriptions::list(session).await.map_err(explain)?;
    let counters = subscriptions::counters(session).await.map_err(explain)?;
    let connections = activity::own_connections(session).await.map_err(explain)?;
    let _turn = metrics.turn();
    forget(metrics);
    let peers: Vec<_> = rooms.peers.names().collect();
    for slot in &slots {
        let name = slot.name.as_str();
        let owner = peers.iter().find(|peer| slot.is_kept_for(peer)).map(ToString::to_string).unwrap_or_default();
        metrics.slot_retained.of([name, &owner]).set(slot.progress.retained_bytes as f64);
        for status in WAL_STATUS {
            metrics.slot_status.of([name, status]).set(one_if(slot.progress.wal_status == status));
        }
    }
    for subscription in &subscriptions {
        let name = subscription.name.as_str();
        metrics.sub_enabled.of([name]).set(one_if(subscription.is_enabled));
        if let Some(lag) = rooms.lag_of(subscription).or(subscription.lag_bytes()) {
            metrics.sub_lag.of([name]).set(lag as f64);
        }
    }
    for (name, counter, count) in &counters {
        match (counter.strip_suffix("_error_count"), counter.strip_prefix("confl_")) {
            (Some(kind), _) => counted(&metrics.sub_errors.of([name, kind]), *count),
            (_, Some(kind)) => counted(&metrics.sub_conflicts.of([name, kind]), *count),
            _ => {}
        }
    }
    for (purpose, state, count) in &connections {
        metrics.pg_connections.of([purpose, state]).set(*count as f64);
    }
    Ok(())
}

fn forget(metrics: &Metrics) {
    metrics.slot_retained.clear();
    metrics.slot_status.clear();
    metrics.sub_enabled.clear();
    metrics.sub_lag.clear();
    metrics.sub_errors.clear();
    metrics.sub_conflicts.clear();
    metrics.pg_connections.clear();
}

fn one_if(claim: bool) -> f64 {
    f64::from(u8::from(claim))
}

#[derive(Debug, Default)]
struct Audited {
    last_id: i64,
    checked: Option<Instant>,
}

impl Audited {
    async fn count(&mut self, rooms: &Rooms, metrics: &Metrics) -> Result<(), crate::store::Error> {
        let gained = audit::gained(&rooms.store, self.last_id).await?;
        self.last_id = gained.last_id;
        metrics.audit_records.of(["done"]).inc_by(gained.done);
        metrics.audit_records.of(["denied"]).inc_by(gained.denied);
        if let Some(moved) = gained.moved_at {
            metrics.last_transition.of([rooms.me.as_str()]).set(moved.as_duration().as_secs_f64());
        }
        if self.checked.is_none_or(|at| at.elapsed() >= CHAIN_EVERY) {
            let broken = audit::verify(&rooms.store).await?;
            if let Some(row) = broken {
                error!(event = "audit.broken", details.row = row, "a row of the audit log was changed or taken out");
            }
            metrics.audit_chain_ok.of([]).set(one_if(broken.is_none()));
            self.checked = Some(Instant::now());
        }
        Ok(())
    }
}
