//! Keeps `steep_repl.nodes` in line with what the mesh says, for whoever asks in SQL.
//!
//! Changes are written within about a second; while nothing changes, `last_seen` moves every ten.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use steep_protocol::failure::Explain as _;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use crate::{
    mesh::{Peers, Row},
    store::{Store, hearsay},
    telemetry,
};

const EVERY: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_secs(10);

/// Makes the nodes of earlier runs known to `peers`.
pub async fn recall(store: &Store, peers: &Peers) -> Result<(), crate::store::Error> {
    let others = hearsay::others(store).await?;
    peers.remember(others.into_iter().map(|other| (other.node_id, other.address, other.generation.unsigned_abs())));
    Ok(())
}

/// Mirrors for ever.
pub async fn keep(store: &Store, peers: &Peers) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut written: Option<(Vec<Value>, Instant)> = None;
    let mut was_well = true;
    let mut arrivals = peers.arrivals();
    loop {
        // Who has just come is written down at once: an agent that is killed now must know whom it had to do with.
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = arrivals.changed() => {}
        }
        let others = peers.rows();
        let own = record(&peers.own_row());
        let now: Vec<Value> = std::iter::once(own.clone()).chain(others.iter().map(record)).collect();
        let is_new = |(last, at): &(Vec<Value>, Instant)| at.elapsed() >= REFRESH || !are_alike(last, &now);
        if !written.as_ref().is_none_or(is_new) {
            continue;
        }
        match hearsay::mirror(store, &own, &now[1..]).await {
            Ok(()) => {
                was_well = true;
                written = Some((now, Instant::now()));
            }
            Err(error) if was_well => {
                was_well = false;
                let failure = error.explain();
                warn!(
                    event = "mesh.not_mirrored",
                    error = telemetry::failure(&failure),
                    "steep_repl.nodes falls behind"
                );
            }
            Err(_) => {}
        }
    }
}

/// The same but for what is only older now.
fn are_alike(some: &[Value], others: &[Value]) -> bool {
    let told = |record: &Value| {
        let mut record = record.clone();
        record["last_seen"] = Value::Null;
        // "not heard of for 12 s" grows by the second.
        if record["health"] == "unknown" {
            record["health_reason"] = Value::Null;
        }
        record
    };
    some.len() == others.len() && some.iter().map(told).eq(others.iter().map(told))
}

/// A row of `steep_repl.nodes`, column by column.
fn record(row: &Row) -> Value {
    let Row { headline, generation } = row;
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "node_id": headline.node_id,
        "init_state": text(&headline.state),
        "init_source_node": text(&headline.source_node),
        "op_id": text(&headline.op_id),
        "health": if ["ok", "busy", "warn", "error"].contains(&headline.health.as_str()) { &headline.health } else { "unknown" },
        "health_reason": headline.health_reason,
        "last_seen": moment(headline.as_of.as_ref()),
        "agent_version": headline.agent_version,
        "postgres_version": headline.postgres_version,
        "liveness": headline.liveness,
        "address": headline.address,
        "postgres_address": headline.postgres_address,
        "generation": i64::try_from(*generation).unwrap_or(i64::MAX),
        "percent": headline.percent,
        "eta_seconds": headline.eta_seconds,
        "lag_bytes": headline.lag_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        "changed_at": moment(headline.changed_at.as_ref()),
    })
}

fn moment(at: Option<&prost_types::Timestamp>) -> Option<String> {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()).map(|at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use steep_protocol::v1;

    #[test]
    fn rows_that_only_grew_older_are_not_written_again() {
        let row = |health: &str, reason: &str, seconds: i64| {
            let as_of = Some(prost_types::Timestamp { seconds, nanos: 0 });
            let (health, health_reason) = (health.to_owned(), reason.to_owned());
            record(&Row {
                headline: v1::NodeHeadline { health, health_reason, as_of, ..v1::NodeHeadline::default() },
                generation: 7,
            })
        };
        let before = [row("ok", "", 10), row("unknown", "not heard of for 10 s", 10)];
        assert!(are_alike(&before, &[row("ok", "", 11), row("unknown", "not heard of for 11 s", 10)]));
        assert!(!are_alike(&before, &[row("ok", "", 11), row("error", "not heard of for 11 s", 10)]));
        assert!(!are_alike(&before, &before[..1]));
    }
}
