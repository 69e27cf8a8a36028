//! Many agents in one process, each with its own endpoint on loopback, and no PostgreSQL behind them.

use std::{sync::Arc, time::Duration};

use steep_agent::{
    api::Door,
    identity::Certificates,
    mesh::{Facts, Peers, Revocations},
    telemetry::Log,
    upkeep::Upkeep,
};
use steep_protocol::{
    ids::{NodeId, SessionId},
    v1,
    wire::{
        endpoint::{Arrivals, Endpoint},
        rpc,
    },
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;

/// Generous: spent only by failures.
const PATIENCE: Duration = Duration::from_secs(90);

/// One agent's mesh: all of an agent but its rooms.
struct Agent {
    node: NodeId,
    address: String,
    peers: Peers,
    endpoint: Endpoint,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    /// Told nothing any more, but kept: its end would be the agent's.
    _facts: watch::Sender<Facts>,
}

impl Agent {
    async fn start(authority: &Authority, node: NodeId, listen: &str, seeds: &[String]) -> Self {
        let (identity, config) = authority.identity(&node);
        let (revocations, claims) = Revocations::open(identity.clone(), &config.node.state_dir);
        let certificates = Certificates::new(Arc::clone(&config), identity.clone(), revocations.clone());
        let (endpoint, arrivals) = Endpoint::bind(listen, Arc::new(identity)).await.expect("a port is free");
        let address = endpoint.address().to_string();
        let headline = v1::NodeHeadline {
            node_id: node.to_string(),
            state: "synchronized".into(),
            health: "ok".into(),
            address: address.clone(),
            ..v1::NodeHeadline::default()
        };
        let instance_id = SessionId::generate().to_string();
        let upkeep = Upkeep::new(config, Log::unheard(instance_id.clone()), certificates);
        let facts = watch::Sender::new(Facts { instance_id, headline, ..Facts::default() });
        let peers = Peers::new(endpoint.clone(), node.clone(), address.clone(), seeds, facts.subscribe(), revocations);
        let (_, rooms) = watch::channel(None);
        let Arrivals { rpc: calls, connections, .. } = arrivals;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let door = Door::new(peers.clone(), rooms, upkeep, stop.clone());
        let serving = rpc::serve(door.routes(), calls, stop.clone().cancelled_owned());
        tasks.spawn(async move { serving.await.expect("it serves") });
        tasks.spawn(peers.clone().run(connections, stop.clone()));
        tasks.spawn(claims.run(peers.clone(), stop.clone()));
        Self { node, address, peers, endpoint, stop, tasks, _facts: facts }
    }

    /// Ends as an agent does that is told to, or as one that is killed.
    async fn stop(mut self, says_goodbye: bool) {
        if says_goodbye {
            self.peers.leave();
        }
        self.stop.cancel();
        if says_goodbye {
            self.endpoint.close().await;
        } else {
            self.endpoint.close_with("it fell over").await;
        }
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The agents; the first two are everybody's seeds.
pub(crate) struct Fleet {
    authority: Arc<Authority>,
    agents: Vec<Option<Agent>>,
    seeds: Vec<String>,
    addresses: Vec<String>,
}

fn name(index: usize) -> NodeId {
    format!("node-{index:02}").parse().expect("a node name")
}

impl Fleet {
    /// `count` agents, and when the first one began.
    pub(crate) async fn start(count: usize) -> (Self, Instant) {
        let authority = Arc::new(Authority::new());
        let mut fleet = Self { authority, agents: Vec::new(), seeds: Vec::new(), addresses: Vec::new() };
        let began = Instant::now();
        for index in 0..count {
            let agent = Agent::start(&fleet.authority, name(index), "127.0.0.1:0", &fleet.seeds).await;
            fleet.addresses.push(agent.address.clone());
            if index < 2 {
                fleet.seeds.push(agent.address.clone());
            }
            fleet.agents.push(Some(agent));
        }
        (fleet, began)
    }

    fn running(&self) -> impl Iterator<Item = &Agent> {
        self.agents.iter().flatten()
    }

    /// Waits until everybody has everybody's headline; says how long that took.
    pub(crate) async fn is_whole(&self) -> Duration {
        let others = self.running().count() - 1;
        until("the mesh is whole", || {
            let short = self.running().find_map(|agent| {
                let heard = agent.peers.headlines().iter().filter(|headline| headline.health == "ok").count();
                (heard != others).then(|| format!("{} hears from {heard} of {others}", agent.node))
            });
            short.map_or(Ok(()), Err)
        })
        .await
    }

    /// Waits until everybody sees agent `index` as `liveness`; says how long that took.
    pub(crate) async fn sees(&self, index: usize, liveness: &str) -> Duration {
        let node = name(index).to_string();
        until(&format!("{node} is {liveness}"), || {
            let other = self.running().find_map(|agent| {
                let seen = agent.peers.headlines().into_iter().find(|headline| headline.node_id == node);
                let seen = seen.map(|headline| headline.liveness).unwrap_or_default();
                (seen != liveness && agent.node != name(index)).then(|| format!("{} sees {seen}", agent.node))
            });
            other.map_or(Ok(()), Err)
        })
        .await
    }

    pub(crate) async fn stop(&mut self, index: usize, says_goodbye: bool) {
        let agent = self.agents[index].take().expect("it runs");
        agent.stop(says_goodbye).await;
    }

    pub(crate) async fn restart(&mut self, index: usize) {
        let listen = self.addresses[index].clone();
        let agent = Agent::start(&self.authority, name(index), &listen, &self.seeds).await;
        self.agents[index] = Some(agent);
    }

    /// How many of those who run are held for dead by somebody who runs.
    pub(crate) fn falsely_dead(&self) -> usize {
        let running: Vec<String> = self.running().map(|agent| agent.node.to_string()).collect();
        let headlines = self.running().flat_map(|agent| agent.peers.headlines());
        headlines.filter(|seen| seen.liveness == "dead" && running.contains(&seen.node_id)).count()
    }

    /// A steepctl that asks the last agent.
    pub(crate) fn steepctl(&self, program: &std::path::Path) -> std::process::Command {
        let [cert, key, ca] = self.authority.viewer();
        let mut steepctl = std::process::Command::new(program);
        let address = self.addresses.last().expect("somebody runs");
        steepctl.env("STEEPCTL_PEER", address).env("STEEPCTL_CERT", cert).env("STEEPCTL_KEY", key);
        steepctl.env("STEEPCTL_CA", ca).env_remove("STEEPCTL_CONTEXT");
        steepctl
    }

    pub(crate) async fn end(mut self) {
        let agents: Vec<_> = self.agents.iter_mut().filter_map(Option::take).collect();
        futures::future::join_all(agents.into_iter().map(|agent| agent.stop(true))).await;
    }
}

async fn until(what: &str, look: impl Fn() -> Result<(), String>) -> Duration {
    let began = Instant::now();
    loop {
        match look() {
            Ok(()) => return began.elapsed(),
            Err(seen) => assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}; {seen}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}
