//! Probes and metrics over HTTP, on a loopback port: `/livez`, `/readyz`, `/healthz`, `/metrics`.
//!
//! `/livez` asks nobody: it says that the agent's loop turns, even when PostgreSQL is down. `/readyz` is 200 while
//! the node's PostgreSQL answers, with `?state=synchronized` only in that state, with `?lag=10MB` only when it is no
//! further behind. `/healthz` says all in JSON. All but `/livez` tell what was measured last, a second ago at most.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use serde_json::{Value, json};
use steep_protocol::{
    failure::{Code, Failure},
    node::NodeState,
    v1,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::scrape;
use crate::{config, mesh::Peers, metrics, rooms::Rooms, upkeep::Upkeep};

/// What the pages tell of.
#[derive(Debug, Clone)]
pub struct Web {
    /// The other agents, and what this one says of itself.
    pub peers: Peers,
    /// The rooms, once PostgreSQL was reached.
    pub rooms: watch::Receiver<Option<Arc<Rooms>>>,
    /// The agent as a program.
    pub upkeep: Upkeep,
}

/// Listens on `address`.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::new(Code::ConfigInvalid, format!("http.listen: cannot listen on {address}")).caused_by(&error)
    })
}

/// Answers until `stop`.
pub async fn serve(listener: TcpListener, web: Web, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/healthz", get(health))
        .route("/metrics", get(measured))
        .with_state(web);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn measured(State(web): State<Web>) -> impl IntoResponse {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], scrape::text(&web))
}

/// What a node must be to be called ready.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    state: Option<NodeState>,
    lag_bytes: Option<u64>,
}

impl Wish {
    /// From what stands behind the question mark; says what is wrong with it.
    fn parse(query: &str) -> Result<Self, String> {
        let mut wish = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "state" => {
                    let state = value.parse().map_err(|_| {
                        let states: Vec<_> = NodeState::ALL.iter().map(|state| state.as_str()).collect();
                        format!("state={value}: it is no state; there are {}", states.join(", "))
                    })?;
                    wish.state = Some(state);
                }
                "lag" => {
                    let lag = config::parse_size(value).map_err(|reason| format!("lag={value}: {reason}"))?;
                    wish.lag_bytes = Some(lag);
                }
                _ => return Err(format!("{name}: it is no parameter; there are state and lag")),
            }
        }
        Ok(wish)
    }

    /// Why the node is not so, if it is not.
    fn unmet(&self, node: &v1::NodeHeadline) -> Option<String> {
        if let Some(state) = self.state.filter(|state| state.as_str() != node.state) {
            return Some(format!("the node is {}, not {state}", node.state));
        }
        let most = self.lag_bytes?;
        match node.lag_bytes {
            Some(lag) if lag > most => Some(format!("the node is {lag} bytes behind, more than {most}")),
            // One that follows nobody is not behind; one whose worker does not run is nobody knows how far.
            None if !node.source_node.is_empty() => {
                Some("no subscription runs, so that nobody knows how far the node is behind".into())
            }
            _ => None,
        }
    }
}

async fn ready(State(web): State<Web>, RawQuery(query): RawQuery) -> (StatusCode, String) {
    let wish = match Wish::parse(query.as_deref().unwrap_or_default()) {
        Ok(wish) => wish,
        Err(reason) => return (StatusCode::BAD_REQUEST, format!("{}\n", escaped(&reason))),
    };
    let facts = web.peers.facts();
    let not_ready = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    if !facts.is_serving {
        return not_ready(&facts.headline.health_reason);
    }
    if let Some(source) = silent_source(&web, &wish) {
        return not_ready(&format!(
            "{source}, which the node follows, is not heard of: nobody knows how far it is behind"
        ));
    }
    wish.unmet(&facts.headline).map_or_else(|| (StatusCode::OK, "ready\n".into()), |why| not_ready(&why))
}

/// A node that this one follows and that is silent, where it matters.
fn silent_source(web: &Web, wish: &Wish) -> Option<String> {
    wish.lag_bytes?;
    let own = web.peers.facts().headline;
    let follows = |peer: &v1::NodeHeadline| {
        peer.node_id == own.source_node || peer.followers.iter().any(|follower| follower.node_id == own.node_id)
    };
    web.peers.headlines().into_iter().find(|peer| peer.health == "unknown" && follows(peer)).map(|peer| peer.node_id)
}

/// What somebody wrote into a query is shown back safe to print.
fn escaped(text: &str) -> String {
    steep_protocol::names::escape_controls(text)
}

async fn health(State(web): State<Web>) -> (StatusCode, Json<Value>) {
    let facts = web.peers.facts();
    let own = &facts.headline;
    let status = if own.health == "error" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let peers: Vec<_> = web
        .peers
        .headlines()
        .into_iter()
        .map(|peer| json!({ "node_id": peer.node_id, "health": peer.health, "reason": peer.health_reason }))
        .collect();
    let body = json!({
        "status": own.health, "reason": own.health_reason, "node_id": own.node_id, "state": own.state, "op_id": own.op_id,
        "postgres_version": own.postgres_version, "agent_version": own.agent_version, "lag_bytes": own.lag_bytes,
        "checks": checks(&web, facts.is_serving), "peers": peers,
    });
    (status, Json(body))
}

/// What is looked at, each with whether it is well.
fn checks(web: &Web, is_serving: bool) -> Vec<Value> {
    let check = |name: &str, ok: bool, reason: &str| json!({ "name": name, "ok": ok, "reason": reason });
    let own = web.peers.facts().headline;
    let postgres = if is_serving { "" } else { own.health_reason.as_str() };
    let unwell = if is_serving && own.health == "error" { own.health_reason.as_str() } else { "" };
    let silent: Vec<_> =
        web.peers.headlines().into_iter().filter(|peer| peer.health == "unknown").map(|peer| peer.node_id).collect();
    let silent = silent.join(", ");
    let now = jiff::Timestamp::now();
    let expired = match web.upkeep.validity() {
        (Some(until), Some(root)) if until > now && root > now => "",
        (None, _) | (_, None) => "a certificate cannot be read",
        _ => "a certificate has expired",
    };
    let drained = web.upkeep.drain.now().map(|drained| format!("drained by {}", drained.by)).unwrap_or_default();
    vec![
        check("postgresql", is_serving, postgres),
        check("node", is_serving && unwell.is_empty(), unwell),
        check("peers", silent.is_empty(), &silent),
        check("certificates", expired.is_empty(), expired),
        check("takes_work", drained.is_empty(), &drained),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_understood_or_refused_with_what_is_possible() {
        assert_eq!(Wish::parse(""), Ok(Wish::default()));
        assert_eq!(
            Wish::parse("lag=10MB&state=synchronized"),
            Ok(Wish { state: Some(NodeState::Synchronized), lag_bytes: Some(10_000_000) })
        );
        for (query, says) in [
            ("state=", "no state; there are uninitialized"),
            ("state=Synchronized", "no state"),
            ("lag=", "no size"),
            ("lag=10parsecs", "no size"),
            ("lag=-1", "no size"),
            ("lagg=10MB", "no parameter; there are state and lag"),
        ] {
            let reason = Wish::parse(query).expect_err(query);
            assert!(reason.contains(says), "{query}: {reason}");
        }
    }

    #[test]
    fn a_node_is_ready_when_it_is_in_the_state_and_near_enough() {
        let node = |lag_bytes, source: &str| v1::NodeHeadline {
            state: "synchronized".into(),
            source_node: source.into(),
            lag_bytes,
            ..v1::NodeHeadline::default()
        };
        let wish = |query| Wish::parse(query).expect("a wish");
        assert_eq!(wish("state=synchronized&lag=1kB").unmet(&node(Some(1000), "node_a")), None);
        assert!(wish("lag=1kB").unmet(&node(Some(1001), "node_a")).is_some_and(|why| why.contains("1001 bytes")));
        assert!(wish("lag=1kB").unmet(&node(None, "node_a")).is_some(), "a worker that does not run");
        assert_eq!(wish("lag=1kB").unmet(&node(None, "")), None, "a node that follows nobody");
        assert!(wish("state=copying").unmet(&node(None, "")).is_some_and(|why| why.contains("not copying")));
    }
}
