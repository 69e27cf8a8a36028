//! `/metrics`: gauges of the moment are set, then everything is told as text. Asks no database.

use steep_protocol::{ids::NodeId, node::NodeState, v1, wire::handshakes};

use super::http::Web;
use crate::metrics::{Metrics, counted};

/// Health words of a node whose agent answers.
const ANSWERS: [&str; 4] = ["ok", "busy", "warn", "error"];

/// Everything there is to tell now.
pub(super) fn text(web: &Web) -> String {
    let metrics = &web.upkeep.metrics;
    let _turn = metrics.turn();
    metrics.set_process();
    metrics.drained.of([]).set(f64::from(u8::from(web.upkeep.drain.now().is_some())));
    for (reason, count) in handshakes::counts() {
        counted(&metrics.handshake_failures.of([reason]), count);
    }
    for (reason, count) in web.peers.refusals() {
        counted(&metrics.refusals.of([reason]), count);
    }
    let own = web.peers.facts().headline;
    if let Some(rooms) = web.rooms.borrow().as_ref() {
        let sessions = rooms.sessions.list();
        metrics.keeper_sessions.of([&own.node_id]).set(sessions.len() as f64);
        let oldest = sessions.iter().filter_map(|held| held.snapshot_age()).max().unwrap_or_default();
        metrics.keeper_age.of([&own.node_id]).set(oldest.as_secs_f64());
    }
    let transport = |node: &str| {
        let transport = node.parse::<NodeId>().ok().and_then(|node| web.peers.transport(&node));
        transport.map_or("none", |transport| transport.carrier.as_str())
    };
    nodes(metrics, &own, &web.peers.headlines(), transport);
    metrics.text()
}

fn nodes(
    metrics: &Metrics,
    own: &v1::NodeHeadline,
    peers: &[v1::NodeHeadline],
    transport: impl Fn(&str) -> &'static str,
) {
    metrics.agent_up.clear();
    metrics.node_healthy.clear();
    metrics.node_state.clear();
    metrics.peer_reachable.clear();
    let is_up = |peer: &v1::NodeHeadline| ANSWERS.contains(&peer.health.as_str());
    let one_if = |claim: bool| f64::from(u8::from(claim));
    for (node, up) in std::iter::once((own, true)).chain(peers.iter().map(|peer| (peer, is_up(peer)))) {
        let name = node.node_id.as_str();
        metrics.agent_up.of([name]).set(one_if(up));
        metrics.node_healthy.of([name]).set(one_if(matches!(node.health.as_str(), "ok" | "busy")));
        if !node.state.is_empty() {
            for state in NodeState::ALL {
                metrics.node_state.of([name, state.as_str()]).set(one_if(node.state == state.as_str()));
            }
        }
    }
    for peer in peers {
        metrics.peer_reachable.of([&peer.node_id, transport(&peer.node_id)]).set(one_if(is_up(peer)));
    }
    let alive = 1 + peers.iter().filter(|peer| is_up(peer)).count();
    metrics.members.of(["alive"]).set(alive as f64);
    metrics.members.of(["dead"]).set((1 + peers.len() - alive) as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_told_by_state_and_by_whether_they_answer() {
        let headline = |node: &str, state: &str, health: &str| v1::NodeHeadline {
            node_id: node.into(),
            state: state.into(),
            health: health.into(),
            ..v1::NodeHeadline::default()
        };
        let metrics = Metrics::default();
        let own = headline("node_a", "synchronized", "ok");
        let peers = [headline("node_b", "copying", "busy"), headline("node_c", "", "unknown")];
        nodes(&metrics, &own, &peers, |node| if node == "node_b" { "tcp" } else { "none" });
        let text = metrics.text();
        for line in [
            "steep_agent_up{node=\"node_a\"} 1.0",
            "steep_agent_up{node=\"node_c\"} 0.0",
            "steep_node_state{node=\"node_b\",state=\"copying\"} 1.0",
            "steep_node_state{node=\"node_b\",state=\"synchronized\"} 0.0",
            "steep_mesh_members{state=\"alive\"} 2.0",
            "steep_mesh_members{state=\"dead\"} 1.0",
            "steep_mesh_peer_reachable{peer=\"node_b\",transport=\"tcp\"} 1.0",
            "steep_mesh_peer_reachable{peer=\"node_c\",transport=\"none\"} 0.0",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert!(!text.contains("steep_node_state{node=\"node_c\""), "its state is not known");
        nodes(&metrics, &own, &[], |_| "none");
        assert!(!metrics.text().contains("node_b"), "a node that left is told no more");
    }
}
