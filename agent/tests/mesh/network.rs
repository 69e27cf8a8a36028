//! Many agents' gossip over a network that exists in memory, on a clock that jumps from event to event: the same seed
//! gives the same run, packet by packet.
//!
//! The rules are the agents' own ([`Gossip`]); what their I/O does around them (seeds dialled again, exchanges asked
//! over streams) is played here in few lines.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use steep_agent::mesh::{
    gossip::{Gossip, HEADLINE, NODE, Output},
    membership::{Liveness, Run},
};
use steep_protocol::{ids::NodeId, v1};

/// UDP, IP and QUIC around a datagram.
const PACKET_OVERHEAD: usize = 28 + 40;
/// The same and HTTP/2 around one message of a request.
const MESSAGE_OVERHEAD: usize = 28 + 120;
const ONE_WAY: (u64, u64) = (200, 1_500);
/// How often members that are not there are called, as [`steep_agent::mesh`] does.
const SEEK: Duration = Duration::from_secs(3);
const SEEK_ALONE: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Event {
    Tick(usize),
    Seek(usize),
    Datagram { from: usize, to: usize, bytes: Bytes },
    Question { from: usize, to: usize, asked: v1::ExchangeRequest },
    Reply { from: usize, to: usize, reply: v1::ExchangeReply },
}

struct At(Duration, u64, Event);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The network and everybody on it.
pub(crate) struct Network {
    agents: Vec<Gossip>,
    is_running: Vec<bool>,
    ticks: Vec<Duration>,
    queue: BinaryHeap<Reverse<At>>,
    planned: u64,
    rng: StdRng,
    pub now: Duration,
    /// Of each datagram, the chance to get lost.
    pub loss: f64,
    /// Agents below and from this number on do not reach each other.
    pub split_at: Option<usize>,
    /// Sent by all, with what goes around it.
    pub bytes: u64,
    pub packets: u64,
    pub exchanges: u64,
    generation: u64,
    index: BTreeMap<NodeId, usize>,
}

fn name(index: usize) -> NodeId {
    format!("n{index:04}").parse().expect("a node name")
}

impl Network {
    /// `count` agents that start at once and know the first two as seeds.
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let agents = (0..count).map(|index| gossip(index, 1, rng.random())).collect();
        let mut network = Self {
            agents,
            is_running: vec![true; count],
            ticks: vec![Duration::MAX; count],
            queue: BinaryHeap::new(),
            planned: 0,
            rng,
            now: Duration::ZERO,
            loss: 0.0,
            split_at: None,
            bytes: 0,
            packets: 0,
            exchanges: 0,
            generation: 1,
            index: (0..count).map(|index| (name(index), index)).collect(),
        };
        for index in 0..count {
            network.introduce(index);
            let within = network.rng.random_range(0..200);
            network.plan(Duration::from_millis(within), Event::Seek(index));
        }
        network
    }

    fn introduce(&mut self, index: usize) {
        let node = v1::GossipNode { address: format!("{}:7432", name(index)), ..v1::GossipNode::default() };
        self.agents[index].publish(NODE, node.encode_to_vec().into());
        self.say(index, "synchronized");
    }

    /// An agent has news of its node.
    pub(crate) fn say(&mut self, index: usize, state: &str) {
        let headline = v1::NodeHeadline {
            node_id: name(index).to_string(),
            state: state.into(),
            health: "ok".into(),
            postgres_version: "18.4".into(),
            agent_version: "0.1.0".into(),
            address: format!("{}:7432", name(index)),
            ..v1::NodeHeadline::default()
        };
        self.agents[index].publish(HEADLINE, headline.encode_to_vec().into());
        self.perform(index);
    }

    pub(crate) fn kill(&mut self, index: usize) {
        self.is_running[index] = false;
    }

    pub(crate) fn restart(&mut self, index: usize) {
        self.generation += 1;
        self.agents[index] = gossip(index, self.generation, self.rng.random());
        self.is_running[index] = true;
        self.ticks[index] = Duration::MAX;
        // Agents count their own time; this one's goes on from the network's.
        self.introduce(index);
        self.plan(Duration::ZERO, Event::Seek(index));
    }

    fn plan(&mut self, after: Duration, event: Event) {
        self.planned += 1;
        self.queue.push(Reverse(At(self.now + after, self.planned, event)));
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(ONE_WAY.0..ONE_WAY.1))
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        let is_parted = self.split_at.is_some_and(|at| (from < at) != (to < at));
        self.is_running[from] && self.is_running[to] && !is_parted
    }

    /// Runs for `time`.
    pub(crate) fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Runs until `done`, looked at every 100 ms, at most for `limit`; says how long that took.
    pub(crate) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let (began, mut look) = (self.now, self.now);
        while let Some(Reverse(At(at, ..))) = self.queue.peek()
            && *at <= began + limit
        {
            if *at >= look {
                if done(self) {
                    return Some(look - began);
                }
                look += Duration::from_millis(100);
                continue;
            }
            let Some(Reverse(At(at, _, event))) = self.queue.pop() else { break };
            self.now = at;
            self.happen(event);
        }
        self.now = began + limit;
        done(self).then_some(limit)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(index) => {
                if self.is_running[index] && self.ticks[index] <= self.now {
                    self.ticks[index] = Duration::MAX;
                    self.agents[index].tick(self.now);
                    self.perform(index);
                }
            }
            Event::Seek(index) => self.seek(index),
            Event::Datagram { from, to, bytes } => {
                if self.reaches(from, to) {
                    self.agents[to].receive(&name(from), &bytes, u64::MAX, self.now);
                    self.perform(to);
                }
            }
            Event::Question { from, to, asked } => {
                if self.reaches(from, to) {
                    let reply = self.agents[to].answer(&name(from), &asked, u64::MAX, self.now);
                    self.perform(to);
                    self.count(reply.encoded_len() + MESSAGE_OVERHEAD);
                    let after = self.latency();
                    self.plan(after, Event::Reply { from: to, to: from, reply });
                }
            }
            Event::Reply { from, to, reply } => {
                if self.reaches(from, to) && !reply.digests.is_empty() {
                    let second = self.agents[to].conclude(&name(from), &reply, u64::MAX, self.now);
                    self.perform(to);
                    if let Some(asked) = second {
                        self.ask(to, from, asked);
                    }
                }
            }
        }
    }

    /// What an agent's dialling does: seeds while it is alone, later somebody who is not there.
    fn seek(&mut self, index: usize) {
        if !self.is_running[index] {
            return;
        }
        let agent = &self.agents[index];
        let is_alone = agent.up() == 0;
        let absent = agent.members().filter(|member| matches!(member.liveness, Liveness::Dead | Liveness::Unknown));
        let absent = absent.filter_map(|member| self.index.get(&member.run.node).copied());
        let seeds = (0..2).filter(|seed| *seed != index && agent.member(&name(*seed)).is_none());
        let mut to: Vec<usize> = absent.chain(seeds).collect();
        if !is_alone {
            to = to.into_iter().choose(&mut self.rng).into_iter().collect();
        }
        to.retain(|other| self.reaches(index, *other));
        for other in to {
            self.agents[index].announce(name(other), format!("{}:7432", name(other)), self.now);
        }
        self.perform(index);
        self.plan(if is_alone { SEEK_ALONE } else { SEEK }, Event::Seek(index));
    }

    fn ask(&mut self, from: usize, to: usize, asked: v1::ExchangeRequest) {
        self.count(asked.encoded_len() + MESSAGE_OVERHEAD);
        let after = self.latency();
        self.plan(after, Event::Question { from, to, asked });
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.packets += 1;
    }

    fn perform(&mut self, index: usize) {
        for output in self.agents[index].outputs() {
            match output {
                Output::Datagram { to, bytes } => {
                    let Some(to) = self.index.get(&to.node).copied() else { continue };
                    self.count(bytes.len() + PACKET_OVERHEAD);
                    if self.rng.random::<f64>() >= self.loss {
                        let after = self.latency();
                        self.plan(after, Event::Datagram { from: index, to, bytes });
                    }
                }
                Output::Exchange(with) => {
                    let Some(to) = self.index.get(&with).copied() else { continue };
                    self.exchanges += 1;
                    let asked = self.agents[index].question();
                    self.ask(index, to, asked);
                }
                Output::Changed(_) => {}
            }
        }
        let due = self.agents[index].next_due();
        if due < self.ticks[index] {
            self.ticks[index] = due;
            self.plan(due.saturating_sub(self.now), Event::Tick(index));
        }
    }

    fn running(&self) -> impl Iterator<Item = &Gossip> {
        self.agents.iter().zip(&self.is_running).filter(|(_, is_running)| **is_running).map(|(agent, _)| agent)
    }

    /// Everybody sees everybody who runs.
    pub(crate) fn is_joined(&self) -> bool {
        let running = self.running().count();
        self.running().all(|agent| agent.up() + 1 == running)
    }

    /// Everybody sees everybody who runs, and all hold the same.
    pub(crate) fn is_whole(&self) -> bool {
        let running = self.running().count();
        let hash = self.running().next().map(|agent| agent.view().hash());
        self.running().all(|agent| agent.up() + 1 == running && Some(agent.view().hash()) == hash)
    }

    /// What there is of it, for a test that fails.
    pub(crate) fn described(&self) -> String {
        let running = self.running().count();
        let mut hashes = BTreeMap::<u64, usize>::new();
        self.running().for_each(|agent| *hashes.entry(agent.view().hash()).or_default() += 1);
        let short = self.running().filter(|agent| agent.up() + 1 != running).count();
        let dead = self.falsely_dead();
        format!(
            "{running} run; {short} of them miss somebody, {dead} are held for dead; {} different views",
            hashes.len()
        )
    }

    /// Nobody who runs counts agent `index` as up.
    pub(crate) fn is_given_up(&self, index: usize) -> bool {
        let node = name(index);
        self.running().all(|agent| agent.member(&node).is_none_or(|member| !member.liveness.is_up()))
    }

    /// How many of those who run are held for dead by somebody who runs.
    pub(crate) fn falsely_dead(&self) -> usize {
        let running = |node: &NodeId| self.index.get(node).is_some_and(|index| self.is_running[*index]);
        self.running()
            .flat_map(Gossip::members)
            .filter(|member| member.liveness == Liveness::Dead && running(&member.run.node))
            .count()
    }

    /// What agent `index` knows of `of`'s state.
    pub(crate) fn state_seen(&self, index: usize, of: usize) -> Option<String> {
        let value = self.agents[index].view().get(&name(of), HEADLINE)?;
        v1::NodeHeadline::decode(value.clone()).ok().map(|headline| headline.state)
    }

    /// Bytes an agent has sent in a second of `time`, on average.
    pub(crate) fn rate(&self, before: u64, time: Duration) -> f64 {
        (self.bytes - before) as f64 / time.as_secs_f64() / self.agents.len() as f64
    }
}

fn gossip(index: usize, generation: u64, seed: u64) -> Gossip {
    let node = name(index);
    Gossip::new(Run::new(node.clone(), format!("{node}:7432"), generation), seed)
}
