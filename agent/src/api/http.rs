//! Probes over HTTP, on a loopback port: `/livez`, `/readyz`, `/healthz`.
//!
//! `/livez` asks nobody: it says that the agent's loop turns, even when PostgreSQL is down. `/readyz` is 200 while
//! the node's PostgreSQL answers, with `?state=synchronized` only in that state. `/healthz` says all in JSON.

use std::{collections::HashMap, net::SocketAddr};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::get,
};
use serde_json::{Value, json};
use steep_protocol::failure::{Code, Failure};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::mesh::Peers;

/// Listens on `address`.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::new(Code::ConfigInvalid, format!("http.listen: cannot listen on {address}")).caused_by(&error)
    })
}

/// Answers probes until `stop`.
pub async fn serve(listener: TcpListener, peers: Peers, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/healthz", get(health))
        .with_state(peers);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn ready(State(peers): State<Peers>, Query(asked): Query<HashMap<String, String>>) -> (StatusCode, String) {
    let facts = peers.facts();
    let headline = facts.headline;
    let not_ready = |why: String| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    if !facts.is_serving {
        return not_ready(headline.health_reason);
    }
    match asked.get("state") {
        Some(state) if *state != headline.state => not_ready(format!("the node is {}", headline.state)),
        _ => (StatusCode::OK, "ready\n".into()),
    }
}

async fn health(State(peers): State<Peers>) -> (StatusCode, Json<Value>) {
    let own = peers.facts().headline;
    let status = if own.health == "error" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let peers: Vec<_> = peers
        .headlines()
        .into_iter()
        .map(|peer| json!({ "node_id": peer.node_id, "health": peer.health, "reason": peer.health_reason }))
        .collect();
    let body = json!({
        "status": own.health, "reason": own.health_reason, "node_id": own.node_id, "state": own.state, "op_id": own.op_id,
        "postgres_version": own.postgres_version, "agent_version": own.agent_version, "peers": peers,
    });
    (status, Json(body))
}
