//! What is told to whom, and when: membership and view played together.
//!
//! An agent tells its own changes at once, to everybody in meshes of up to 64 members, else to a few who tell them on.
//! Every two seconds it shows one other member a hash of all it holds; where hashes differ and the difference is
//! no change that is just on its way, the two exchange what either lacks. So whatever is lost on the way is made good
//! within seconds, and a quiet mesh says almost nothing.
//!
//! Of a node's entries only its own agent is the author. What others relay is advice: whoever decides by it asks the
//! node itself. Pure: time is handed in, what is to be sent is handed out.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use rand::{
    RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, IteratorRandom as _},
};
use steep_protocol::{ids::NodeId, v1};
use tracing::warn;

pub use super::datagram::{HEADLINE, LEAVING, NODE, REVOCATIONS};
use super::{
    datagram::{CHANGES, HASH, SWIM, changes},
    membership::{Change, Liveness, Member, Membership, Run},
    view::{Applied, View},
};

/// How often the state is compared with another member's.
pub const ROUND: Duration = Duration::from_secs(2);
/// Up to so many members everybody is told, and everybody keeps a connection to everybody.
pub const TELL_ALL: usize = 64;
/// In larger meshes so many are told; they tell as many.
const FAN_OUT: usize = 4;
/// A difference that is gone after so long was a change on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(400);
/// States of a moment ago, by which a difference is known to be such a change.
const RECENT: usize = 32;

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Send this.
    Datagram {
        /// Whom to; the generation may be unknown, the address empty.
        to: Run,
        /// At most [`LARGEST_DATAGRAM`].
        bytes: Bytes,
    },
    /// Exchange with this member: ask it with [`Gossip::question`], hand its reply to [`Gossip::conclude`].
    Exchange(NodeId),
    /// Membership has changed.
    Changed(Change),
}

/// One agent's part in the mesh.
#[derive(Debug)]
pub struct Gossip {
    membership: Membership,
    view: View,
    rng: StdRng,
    outputs: Vec<Output>,
    recent: VecDeque<u64>,
    /// Hashes that differed from ours, and when to look again.
    differing: BTreeMap<NodeId, (u64, Duration)>,
    next_round: Duration,
    has_exchanged: bool,
    /// When anything last came from each node, directly or as news of it.
    heard: BTreeMap<NodeId, Duration>,
}

impl Gossip {
    /// Alone so far. The same `seed` and inputs give the same outputs.
    pub fn new(me: Run, seed: u64) -> Self {
        let view = View::new(me.node.clone(), me.generation);
        let recent = VecDeque::from([view.hash()]);
        Self {
            membership: Membership::new(me, seed),
            view,
            rng: StdRng::seed_from_u64(seed.rotate_left(32)),
            outputs: Vec::new(),
            recent,
            differing: BTreeMap::new(),
            next_round: ROUND,
            has_exchanged: false,
            heard: BTreeMap::new(),
        }
    }

    /// Which run of our agent this is.
    pub fn me(&self) -> &Run {
        self.membership.me()
    }

    /// What all nodes have said.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Who is and was there, ourselves left out.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.membership.members()
    }

    /// One of them.
    pub fn member(&self, node: &NodeId) -> Option<&Member> {
        self.membership.member(node)
    }

    /// How many others are up.
    pub fn up(&self) -> usize {
        self.membership.up()
    }

    /// Whether we have said goodbye.
    pub fn has_left(&self) -> bool {
        self.membership.has_left()
    }

    /// When anything last came from `node`.
    pub fn heard_at(&self, node: &NodeId) -> Option<Duration> {
        self.heard.get(node).copied()
    }

    /// Something came from `node`.
    pub fn heard(&mut self, node: &NodeId, now: Duration) {
        match self.heard.get_mut(node) {
            Some(at) => *at = now,
            None => drop(self.heard.insert(node.clone(), now)),
        }
    }

    /// Writes one of our own entries, and tells it where that changed anything.
    pub fn publish(&mut self, key: &str, value: Bytes) {
        let before = self.view.version(&self.me().node.clone());
        if self.view.set(key, value) {
            self.has_changed();
            self.tell(before);
        }
        self.settle();
    }

    /// A node that was a member in an earlier run of ours.
    pub fn remember(&mut self, run: Run, now: Duration) {
        if self.view.forgotten(&run.node) < run.generation || run.generation == 0 {
            self.membership.remember(run, now);
        }
    }

    /// Says to the agent of `node` that we want to be a member.
    pub fn announce(&mut self, node: NodeId, address: String, now: Duration) {
        self.membership.announce(Run::new(node, address, 0), now);
        self.settle();
    }

    /// Goes on as `generation`, if ours is lower: somebody remembers a run of ours that looks later than this one.
    pub fn outgrow(&mut self, generation: u64, latest: u64, now: Duration) {
        if generation > self.me().generation && generation <= latest {
            self.membership.renew(generation, now);
            self.settle();
        }
    }

    /// Says goodbye. Whoever hears it shows us as left and not as dead.
    pub fn leave(&mut self, now: Duration) {
        if !self.has_left() {
            self.publish(LEAVING, Bytes::from_static(b"1"));
            self.membership.leave(now);
            self.settle();
        }
    }

    /// Is a member again after a goodbye, as `generation` or later.
    pub fn come_back(&mut self, generation: u64, now: Duration) {
        if self.has_left() {
            self.view.delete(LEAVING);
            self.has_changed();
            self.membership.come_back(generation.max(self.me().generation + 1), now);
            self.settle();
        }
    }

    /// Its own connection says that `node` has left.
    pub fn was_left_by(&mut self, node: &NodeId, now: Duration) {
        self.membership.is_gone(node, now);
        self.membership.has_said_goodbye(node);
        self.settle();
    }

    /// Takes a node that is not up out of everybody's view. Nothing happens to one that is up.
    pub fn forget(&mut self, node: &NodeId) {
        let member = self.member(node);
        if member.is_some_and(|member| member.liveness.is_up()) || *node == self.me().node {
            return;
        }
        let generation = member.map_or(0, |member| member.run.generation);
        self.view.forget(node, generation);
        self.membership.forget(node);
        self.heard.remove(node);
        self.has_changed();
        let delta = self.view.since(node, 0);
        self.tell_deltas(vec![delta], None);
        self.settle();
    }

    /// Takes in a datagram that came from `from`, by its certificate.
    ///
    /// `latest` is the highest generation that a clock could give by now. What breaks a rule is dropped and logged.
    pub fn receive(&mut self, from: &NodeId, datagram: &[u8], latest: u64, now: Duration) {
        self.heard(from, now);
        let Some((kind, body)) = datagram.split_first() else { return };
        match *kind {
            SWIM => {
                let before = self.me().generation;
                if let Err(refused) = self.membership.receive(from, body, now) {
                    warn!(event = "mesh.message_refused", peer = %from, reason = %refused, "message dropped");
                }
                if self.me().generation > before {
                    // It said that we had been given up: the new run goes back to it at once.
                    self.membership.announce(Run::new(from.clone(), String::new(), 0), now);
                }
            }
            CHANGES => match v1::GossipChanges::decode(body) {
                Ok(changes) => self.take_changes(from, &changes, latest, now),
                Err(error) => self.refuse(from, &format!("changes make no sense: {error}")),
            },
            HASH if body.len() == 8 => {
                let theirs = body.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
                if !self.recent.contains(&theirs) && !self.has_left() {
                    self.differing.insert(from.clone(), (theirs, now + ON_ITS_WAY));
                }
            }
            // Of a later version; it means nothing to us, and nothing depends on it.
            _ => {}
        }
        self.settle();
    }

    fn refuse(&self, from: &NodeId, reason: &str) {
        warn!(event = "mesh.message_refused", peer = %from, reason, "message dropped");
    }

    fn take_changes(&mut self, from: &NodeId, changes: &v1::GossipChanges, latest: u64, now: Duration) {
        let mut news = Vec::new();
        for delta in &changes.deltas {
            let is_own = delta.node_id == from.as_str();
            // A node forgotten is said by whoever forgot it; entries in small meshes by their author alone.
            let may_relay = self.up() >= TELL_ALL || delta.entries.is_empty();
            if !is_own && !may_relay {
                self.refuse(from, &format!("it speaks for {}", delta.node_id));
                continue;
            }
            match self.apply(from, delta, latest, now) {
                Applied::News => news.push(delta.clone()),
                Applied::Gap => self.outputs.push(Output::Exchange(from.clone())),
                Applied::Nothing | Applied::Refused => {}
            }
        }
        if self.up() >= TELL_ALL && !news.is_empty() {
            self.tell_deltas(news, Some(from));
        }
    }

    fn apply(&mut self, from: &NodeId, delta: &v1::NodeDelta, latest: u64, now: Duration) -> Applied {
        if self.has_left() {
            return Applied::Nothing;
        }
        if delta.node_id == self.me().node.as_str() {
            return self.hear_of_us(from, delta, latest, now);
        }
        let applied = self.view.apply(delta, latest);
        let Ok(node) = delta.node_id.parse::<NodeId>() else { return applied };
        match applied {
            Applied::News => {
                self.has_changed();
                self.learn_of(&node, now);
            }
            Applied::Refused => self.refuse(from, &format!("entries of {node} break the rules")),
            Applied::Nothing | Applied::Gap => {}
        }
        applied
    }

    /// What we have said ourselves comes back in large meshes; more than that is the memory of another run.
    fn hear_of_us(&mut self, from: &NodeId, delta: &v1::NodeDelta, latest: u64, now: Duration) -> Applied {
        let version = delta.entries.iter().map(|entry| entry.version).fold(delta.since, u64::max);
        let ours = (self.me().generation, self.view.version(&self.me().node));
        if (delta.generation, version) <= ours && delta.forgotten < ours.0 {
            return Applied::Nothing;
        }
        self.outgrow(delta.generation.max(delta.forgotten).saturating_add(1), latest, now);
        self.refuse(from, "it speaks for us");
        Applied::Refused
    }

    /// Brings membership into line with news of `node`.
    fn learn_of(&mut self, node: &NodeId, now: Duration) {
        if self.view.forgotten(node) > 0 && self.view.generation(node) <= self.view.forgotten(node) {
            self.membership.forget(node);
            return;
        }
        self.heard(node, now);
        if let Some(told) = self.view.get(node, NODE).and_then(|value| v1::GossipNode::decode(value.clone()).ok()) {
            let generation = self.view.generation(node);
            self.membership.remember(Run::new(node.clone(), told.address, generation), now);
        }
        self.note_goodbye(node);
    }

    fn note_goodbye(&mut self, node: &NodeId) {
        let of_this_run = self.member(node).is_some_and(|member| member.run.generation <= self.view.generation(node));
        if of_this_run && self.view.get(node, LEAVING).is_some() {
            self.membership.has_said_goodbye(node);
        }
    }

    /// The question that begins an exchange.
    pub fn question(&self) -> v1::ExchangeRequest {
        v1::ExchangeRequest { digests: self.view.digests(), deltas: Vec::new() }
    }

    /// Answers an exchange that `from` began.
    pub fn answer(
        &mut self,
        from: &NodeId,
        asked: &v1::ExchangeRequest,
        latest: u64,
        now: Duration,
    ) -> v1::ExchangeReply {
        for delta in &asked.deltas {
            self.apply(from, delta, latest, now);
        }
        self.heed_memories(&asked.digests, latest, now);
        self.settle();
        if asked.digests.is_empty() {
            return v1::ExchangeReply::default();
        }
        v1::ExchangeReply { deltas: self.view.lacking(&asked.digests), digests: self.view.digests() }
    }

    /// Takes in the reply of an exchange; returns what to tell the other in a second question, if it lacks anything.
    pub fn conclude(
        &mut self,
        from: &NodeId,
        reply: &v1::ExchangeReply,
        latest: u64,
        now: Duration,
    ) -> Option<v1::ExchangeRequest> {
        for delta in &reply.deltas {
            self.apply(from, delta, latest, now);
        }
        self.heed_memories(&reply.digests, latest, now);
        self.settle();
        let deltas = self.view.lacking(&reply.digests);
        (!deltas.is_empty()).then(|| v1::ExchangeRequest { digests: Vec::new(), deltas })
    }

    /// Others may remember a run of ours that looks later than this one: then this one must be later still.
    fn heed_memories(&mut self, digests: &[v1::NodeDigest], latest: u64, now: Duration) {
        let me = self.me().node.clone();
        let Some(memory) = digests.iter().find(|digest| digest.node_id == me.as_str()) else { return };
        let ours = (self.me().generation, self.view.version(&me));
        if (memory.generation, memory.version) > ours || memory.forgotten >= ours.0 {
            self.outgrow(memory.generation.max(memory.forgotten).saturating_add(1), latest, now);
        }
    }

    /// Does what is due. Call it at [`Gossip::next_due`], or more often.
    pub fn tick(&mut self, now: Duration) {
        self.membership.tick(now);
        if now >= self.next_round {
            self.next_round = now + ROUND.mul_f64(self.rng.random_range(0.9..1.1));
            self.compare();
        }
        let due: Vec<_> =
            self.differing.iter().filter(|(_, (_, at))| *at <= now).map(|(node, _)| node.clone()).collect();
        for node in due {
            let differs = self.differing.remove(&node).is_some_and(|(hash, _)| !self.recent.contains(&hash));
            if differs && self.member(&node).is_some_and(|member| member.liveness.is_up()) {
                self.outputs.push(Output::Exchange(node));
            }
        }
        self.settle();
    }

    /// When something is due next.
    pub fn next_due(&self) -> Duration {
        let looks = self.differing.values().map(|(_, at)| *at);
        let earliest = looks.chain(self.membership.next_due()).min();
        earliest.map_or(self.next_round, |at| at.min(self.next_round))
    }

    /// What is to be done now.
    pub fn outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    fn compare(&mut self) {
        if self.has_left() {
            return;
        }
        let up = self.membership.members().filter(|member| member.liveness == Liveness::Alive);
        if let Some(to) = up.choose(&mut self.rng).map(|member| member.run.clone()) {
            let bytes = [&[HASH][..], &self.view.hash().to_le_bytes()].concat().into();
            self.outputs.push(Output::Datagram { to, bytes });
        }
    }

    /// Tells our own entries above version `since`.
    fn tell(&mut self, since: u64) {
        let delta = self.view.since(&self.me().node.clone(), since);
        self.tell_deltas(vec![delta], None);
    }

    fn tell_deltas(&mut self, deltas: Vec<v1::NodeDelta>, but: Option<&NodeId>) {
        if self.has_left() {
            return;
        }
        let is_author = |node: &NodeId| deltas.len() == 1 && deltas[0].node_id == node.as_str();
        let is_meant =
            |member: &&Member| member.liveness.is_up() && Some(&member.run.node) != but && !is_author(&member.run.node);
        let mut to: Vec<&Run> = self.membership.members().filter(is_meant).map(|member| &member.run).collect();
        if to.len() > TELL_ALL {
            to = to.sample(&mut self.rng, FAN_OUT).copied().collect();
        }
        let Some(bytes) = changes(deltas) else { return };
        self.outputs.extend(to.into_iter().map(|to| Output::Datagram { to: to.clone(), bytes: bytes.clone() }));
    }

    fn has_changed(&mut self) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(self.view.hash());
    }

    /// Takes over what membership wants done.
    fn settle(&mut self) {
        for change in self.membership.changes() {
            self.follow(&change);
            self.outputs.push(Output::Changed(change));
        }
        for (to, packet) in self.membership.outgoing() {
            let mut bytes = BytesMut::with_capacity(packet.len() + 1);
            bytes.put_u8(SWIM);
            bytes.put_slice(&packet);
            self.outputs.push(Output::Datagram { to, bytes: bytes.freeze() });
        }
    }

    fn follow(&mut self, change: &Change) {
        match change {
            Change::Up(node) => {
                let Some(to) = self.member(node).map(|member| member.run.clone()) else { return };
                if !self.has_exchanged {
                    // New here: one member's view is as good as all.
                    self.has_exchanged = true;
                    self.outputs.push(Output::Exchange(node.clone()));
                }
                let own = self.view.since(&self.me().node.clone(), 0);
                if self.up() <= TELL_ALL
                    && let Some(bytes) = changes(vec![own])
                {
                    self.outputs.push(Output::Datagram { to, bytes });
                }
            }
            Change::Down(node) => self.note_goodbye(node),
            Change::Suspect(_) => {}
            Change::Renewed(generation) => {
                self.view.renew(*generation);
                self.has_changed();
                self.tell(0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
