//! Finds the first members, and those a partition has hidden.
//!
//! While this agent is alone it dials every seed, and every node it remembers, again and again; later one of those
//! that are not there every few seconds. Names are resolved on every dial. Whoever answers is known by its certificate.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use rand::seq::IndexedRandom as _;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{
    links::REPLACED,
    membership::{Liveness, Run},
    peers::{Peers, wall_clock},
};
use crate::telemetry;

/// Between two rounds of dialling while nobody is there, at first and at most.
const ALONE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// Between two dials of somebody who is not there, while others are.
const AMONG_OTHERS: Duration = Duration::from_secs(3);
/// How long a seed's agent may take to take us in.
const TAKEN_IN: Duration = Duration::from_secs(5);

/// What is known of one seed.
#[derive(Debug, Clone)]
struct Seed {
    address: String,
    /// Who answered there last.
    node: Option<NodeId>,
    /// What was last logged of it.
    told: String,
}

/// Where others may be found.
#[derive(Debug)]
pub(super) struct Seeds(Mutex<Vec<Seed>>);

impl Seeds {
    pub(super) fn new(addresses: &[String]) -> Self {
        let seed = |address: &String| Seed { address: address.clone(), node: None, told: String::new() };
        Self(Mutex::new(addresses.iter().map(seed).collect()))
    }

    fn all(&self) -> Vec<Seed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, address: &str, change: impl FnOnce(&mut Seed)) {
        let mut seeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match seeds.iter_mut().find(|seed| seed.address == address) {
            Some(seed) => change(seed),
            None => {
                let mut seed = Seed { address: address.to_owned(), node: None, told: String::new() };
                change(&mut seed);
                seeds.push(seed);
            }
        }
    }
}

/// Somebody who may be there.
enum Candidate {
    Seed(Seed),
    Node(NodeId),
}

impl Peers {
    /// The addresses of the seeds.
    pub fn seed_addresses(&self) -> Vec<String> {
        self.seeds.all().into_iter().map(|seed| seed.address).collect()
    }

    /// Nodes that were members in an earlier run of this agent: known at once, and dialled like seeds.
    pub fn remember(&self, nodes: impl IntoIterator<Item = (NodeId, String, u64)>) {
        self.gossip(|gossip, now| {
            for (node, address, generation) in nodes {
                gossip.remember(Run::new(node, address, generation), now);
            }
        });
    }

    pub(super) async fn find_members(&self) {
        let mut pause = ALONE.0;
        loop {
            let is_alone = self.look(|gossip, _| gossip.up() == 0);
            let candidates = self.candidates();
            if is_alone {
                join_all(candidates.iter().map(|candidate| self.call_on(candidate))).await;
                sleep(pause).await;
                pause = (pause * 2).min(ALONE.1);
            } else {
                pause = ALONE.0;
                let candidate = candidates.choose(&mut rand::rng());
                if let Some(candidate) = candidate {
                    self.call_on(candidate).await;
                }
                sleep(AMONG_OTHERS).await;
            }
        }
    }

    /// Seeds and remembered members that are not there.
    fn candidates(&self) -> Vec<Candidate> {
        if self.look(|gossip, _| gossip.has_left()) {
            return Vec::new();
        }
        let members: Vec<_> = self.look(|gossip, _| gossip.members().cloned().collect());
        let is_known = |seed: &Seed| {
            let known = seed.node.as_ref();
            known == Some(&self.me)
                || members.iter().any(|member| known == Some(&member.run.node) && member.liveness != Liveness::Left)
        };
        let seeds = self.seeds.all().into_iter().filter(|seed| !is_known(seed)).map(Candidate::Seed);
        let absent = members.iter().filter(|member| matches!(member.liveness, Liveness::Dead | Liveness::Unknown));
        seeds.chain(absent.map(|member| Candidate::Node(member.run.node.clone()))).collect()
    }

    async fn call_on(&self, candidate: &Candidate) {
        match candidate {
            Candidate::Node(node) => {
                if self.link(node).await.is_ok() {
                    let address = self.look(|gossip, _| gossip.member(node).map(|member| member.run.address.clone()));
                    self.gossip(|gossip, now| gossip.announce(node.clone(), address.unwrap_or_default(), now));
                }
            }
            Candidate::Seed(seed) => match self.announce_to(&seed.address).await {
                Ok(_) => {}
                Err(failure) => {
                    let told = failure.to_string();
                    if told != seed.told {
                        warn!(
                            event = "mesh.seed_unreachable",
                            details.seed = seed.address,
                            error = telemetry::failure(&failure),
                            "a seed was not reached; it is tried again"
                        );
                    }
                    self.seeds.change(&seed.address, |seed| seed.told = told);
                }
            },
        }
    }

    /// Dials a seed and tells whoever answers that we want to be a member; returns who that is.
    async fn announce_to(&self, seed: &str) -> Result<NodeId, Failure> {
        let connection = self.endpoint.dial_any(seed).await.map_err(|error| error.explain())?;
        let named = connection.peer().node().cloned();
        let node = named.ok_or_else(|| Failure::new(Code::Internal, format!("{seed} is the agent of no node")))?;
        if self.live_link(&node).is_some() {
            connection.close(REPLACED);
        } else if node == self.me {
            let greeted = self.hello_ourselves(&connection).await;
            connection.close("a seed that is ourselves");
            greeted?;
        } else {
            self.greet_dialled(&node, connection).await?;
        }
        self.seeds.change(seed, |found| {
            found.node = Some(node.clone());
            found.told = String::new();
        });
        if node != self.me {
            self.gossip(|gossip, now| gossip.announce(node.clone(), seed.to_owned(), now));
            self.wake.notify_one();
        }
        Ok(node)
    }

    /// Fails when another agent has our node id.
    async fn hello_ourselves(&self, connection: &steep_protocol::wire::endpoint::Connection) -> Result<(), Failure> {
        let channel = steep_protocol::wire::rpc::over(connection).await?;
        let reply = self.hello(&channel).await?;
        if reply.instance_id == self.facts().instance_id {
            return Ok(());
        }
        let text = format!("two agents call themselves {}: an agent at {} and this one", self.me, reply.address);
        Err(Failure::new(Code::NodeIdTaken, text))
    }

    /// Joins through the agent at `seed`; done when it has taken us in. Returns its node and how many are known.
    pub async fn join(&self, seed: &str) -> Result<(NodeId, usize), Failure> {
        self.gossip(|gossip, now| gossip.come_back(wall_clock(), now));
        let node = self.announce_to(seed).await?;
        if node == self.me {
            return Err(Failure::new(Code::BadRequest, format!("{seed} is the address of {node} itself")));
        }
        let began = Instant::now();
        let taken_in = async {
            while !self.look(|gossip, _| gossip.member(&node).is_some_and(|member| member.liveness.is_up())) {
                if began.elapsed() > Duration::from_secs(1) {
                    // Datagrams may get lost.
                    self.gossip(|gossip, now| gossip.announce(node.clone(), seed.to_owned(), now));
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(TAKEN_IN, taken_in).await.is_err() {
            let text = format!("{node} at {seed} did not take {} in within {} s", self.me, TAKEN_IN.as_secs());
            return Err(Failure::new(Code::SeedSilent, text));
        }
        let members = self.look(|gossip, _| gossip.up() + 1);
        info!(event = "mesh.joined", peer = %node, details.members = members, "joined through a seed");
        Ok((node, members))
    }

    /// Says goodbye to all members; whatever is asked of this agent it still answers.
    pub fn leave(&self) {
        self.gossip(|gossip, now| gossip.leave(now));
        info!(event = "mesh.left", "said goodbye to the mesh");
    }

    /// Takes a node out of everybody's view. Fails for one that is up, or that nobody knows.
    pub fn forget(&self, node: &NodeId) -> Result<(), Failure> {
        if *node == self.me {
            return Err(Failure::new(Code::NodeAlive, format!("{node} is the node you ask")));
        }
        if !self.knows(node) {
            return Err(self.unknown(node.as_str()));
        }
        if self.look(|gossip, _| gossip.has_left()) {
            let text = format!("{} has left the mesh: nobody would hear that {node} is to be forgotten", self.me);
            return Err(Failure::new(Code::OutsideMesh, text));
        }
        let liveness = self.look(|gossip, _| gossip.member(node).map(|member| member.liveness));
        if let Some(up) = liveness.filter(|liveness| liveness.is_up()) {
            let text = format!("{node} is {}: its agent would come back at once", up.as_str());
            return Err(Failure::new(Code::NodeAlive, text));
        }
        self.gossip(|gossip, _| gossip.forget(node));
        info!(event = "mesh.forgotten", peer = %node, "a node was forgotten");
        Ok(())
    }
}
