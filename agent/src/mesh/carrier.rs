//! Carries what gossip wants told over the connections there are, or that it makes; and brings gossip what came.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use dashmap::{DashMap, Entry};
use prost::Message as _;
use steep_protocol::{
    failure::{Code, Failure, Family},
    ids::NodeId,
    v1::{self, peers_client::PeersClient},
    wire::{endpoint::Connection, rpc::MAX_MESSAGE_BYTES},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{
    gossip::{HEADLINE, NODE, REVOCATIONS, TELL_ALL},
    links::Link,
    membership::{Change, Run},
    peers::{Facts, Peers, latest},
};
use crate::telemetry;

/// Datagrams that wait for a connection to a peer; what is more is lost, as datagrams may be.
const WAITING: usize = 16;
/// After a dial that failed, the same peer is not dialled for datagrams again so soon.
const RESPITE: Duration = Duration::from_secs(1);
/// The larger node id of two dials so much later: mostly the other's connection is there by then.
const COURTESY: Duration = Duration::from_millis(150);
/// How long an exchange may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
/// How often connections are looked after.
const TEND: Duration = Duration::from_secs(1);
/// A headline whose percent alone has changed is told again no sooner.
const PERCENT_EVERY: Duration = Duration::from_secs(1);
/// A headline whose lag or time left alone has changed is told again no sooner.
const LAG_EVERY: Duration = Duration::from_secs(5);
/// A reason of more bytes than this is told cut; the node itself has the whole.
const LONGEST_REASON: usize = 300;

/// So many followers of a node are told of.
const MOST_FOLLOWERS: usize = 8;

/// Dials for datagrams at once: in a mesh that starts everybody dials everybody, and a handshake that waits for too
/// many others is begun again over TCP.
const DIALS_AT_ONCE: usize = 4;

/// Datagrams that wait for a connection; a peer with an entry is being dialled.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    waiting: Arc<DashMap<NodeId, Vec<Bytes>>>,
    dials: Arc<Semaphore>,
    /// When the last dial failed, and why.
    failed: Arc<DashMap<NodeId, (Instant, Code)>>,
    /// Why a peer's connections are not taken, as it was logged.
    refused: Arc<DashMap<NodeId, String>>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            waiting: Arc::default(),
            dials: Arc::new(Semaphore::new(DIALS_AT_ONCE)),
            failed: Arc::default(),
            refused: Arc::default(),
        }
    }
}

impl Peers {
    /// Starts everything that goes on for as long as the agent runs.
    pub(super) fn begin(&self) {
        let (peers, told, tended, found) = (self.clone(), self.clone(), self.clone(), self.clone());
        self.spawn(async move { peers.keep_time().await });
        self.spawn(async move { told.tell_headline().await });
        self.spawn(async move { tended.tend_links().await });
        self.spawn(async move { found.find_members().await });
    }

    async fn keep_time(&self) {
        loop {
            let due = self.instant_of(self.look(|gossip, _| gossip.next_due()));
            tokio::select! {
                () = sleep_until(due) => self.gossip(|gossip, now| gossip.tick(now)),
                () = self.wake.notified() => {}
            }
        }
    }

    /// Sends a datagram, over a new connection if there is none; it may get lost.
    pub(super) fn send(&self, to: Run, bytes: Bytes) {
        match self.live_link(&to.node) {
            Some(link) => {
                link.connection.send_datagram(bytes);
            }
            None => self.reach(to.node, Some(bytes)),
        }
    }

    /// Makes a connection to `node` in the background, then sends what waits for it.
    fn reach(&self, node: NodeId, bytes: Option<Bytes>) {
        if self.outbox.failed.get(&node).is_some_and(|failed| failed.0.elapsed() < RESPITE) {
            return;
        }
        match self.outbox.waiting.entry(node.clone()) {
            Entry::Occupied(mut waiting) if waiting.get().len() < WAITING => waiting.get_mut().extend(bytes),
            Entry::Occupied(_) => {}
            Entry::Vacant(none) => {
                none.insert(bytes.into_iter().collect());
                let peers = self.clone();
                self.spawn(async move { peers.deliver(node).await });
            }
        }
    }

    async fn deliver(&self, node: NodeId) {
        if self.me > node {
            sleep(COURTESY).await;
        }
        let reached = match self.live_link(&node) {
            Some(link) => Ok(link),
            None => {
                let _turn = self.outbox.dials.acquire().await;
                self.link(&node).await
            }
        };
        let waiting = self.outbox.waiting.remove(&node).map(|(_, waiting)| waiting).unwrap_or_default();
        match reached {
            Ok(link) => {
                self.outbox.failed.remove(&node);
                for bytes in waiting {
                    link.connection.send_datagram(bytes);
                }
            }
            Err(failure) => {
                let before = self.outbox.failed.insert(node.clone(), (Instant::now(), failure.code));
                // A certificate that is refused does not mend itself, so somebody should hear of it; once.
                if failure.code.family() == Family::Permission && before.is_none_or(|(_, code)| code != failure.code) {
                    self.tell_refused(&node, &failure);
                }
                debug!(peer = %node, error = telemetry::failure(&failure), "not reached");
            }
        }
    }

    /// Brings gossip every datagram of a connection, and its end.
    pub(super) fn listen(&self, node: NodeId, connection: Connection) {
        let peers = self.clone();
        self.spawn(async move {
            while let Some(bytes) = connection.receive_datagram().await {
                peers.gossip(|gossip, now| gossip.receive(&node, &bytes, latest(), now));
                peers.wake.notify_one();
            }
            let is_ours = |link: &Link| link.connection.id() == connection.id();
            let was_current = peers.links.remove_if(&node, |_, link| is_ours(link)).is_some();
            if was_current && connection.was_left() {
                peers.gossip(|gossip, now| gossip.was_left_by(&node, now));
            }
            peers.wake.notify_one();
        });
    }

    /// Exchanges with a member in the background.
    pub(super) fn begin_exchange(&self, with: NodeId) {
        let peers = self.clone();
        self.spawn(async move {
            match timeout(EXCHANGE_LIMIT, peers.exchange(&with)).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => debug!(peer = %with, error = telemetry::failure(&failure), "no exchange"),
                Err(_) => debug!(peer = %with, "an exchange took too long"),
            }
        });
    }

    async fn exchange(&self, with: &NodeId) -> Result<(), Failure> {
        let mut client = PeersClient::new(self.channel(with).await?).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let failed = |status| steep_protocol::wire::rpc::failure_of(&status);
        let question = self.look(|gossip, _| gossip.question());
        let reply = client.exchange(question).await.map_err(failed)?.into_inner();
        let lacking = self.gossip(|gossip, now| gossip.conclude(with, &reply, latest(), now));
        if let Some(lacking) = lacking {
            client.exchange(lacking).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Answers an exchange that `from` began.
    pub fn answer_exchange(&self, from: &NodeId, asked: &v1::ExchangeRequest) -> v1::ExchangeReply {
        self.gossip(|gossip, now| gossip.answer(from, asked, latest(), now))
    }

    /// Notices who is heard of, and keeps connections to all members of a small mesh.
    async fn tend_links(&self) {
        let mut tick = interval(TEND);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut packets: HashMap<NodeId, (usize, u64)> = HashMap::new();
        for round in 0_u64.. {
            tick.tick().await;
            let now: HashMap<_, _> = self
                .links
                .iter()
                .map(|link| (link.key().clone(), (link.connection.id(), link.connection.packets_received())))
                .collect();
            let heard: Vec<_> = now.iter().filter(|(node, seen)| packets.get(*node) != Some(seen)).collect();
            self.gossip(|gossip, now| heard.iter().for_each(|(node, _)| gossip.heard(node, now)));
            packets = now;
            self.heed_revocations();
            let up: Vec<NodeId> = self.look(|gossip, _| {
                let up = gossip.members().filter(|member| member.liveness.is_up() && !gossip.has_left());
                up.map(|member| member.run.node.clone()).collect()
            });
            let missing = up.iter().filter(|node| up.len() <= TELL_ALL && self.live_link(node).is_none());
            // The smaller id dials; the larger one when that has not led to anything.
            missing.filter(|node| self.me < **node || round % 3 == 0).for_each(|node| self.reach(node.clone(), None));
        }
    }

    /// Follows up who goes by newer revocation lists than we do.
    fn heed_revocations(&self) {
        let told: Vec<(NodeId, v1::GossipRevocations)> = self.look(|gossip, _| {
            let up = gossip.members().filter(|member| member.liveness.is_up());
            let told =
                up.filter_map(|member| Some((&member.run.node, gossip.view().get(&member.run.node, REVOCATIONS)?)));
            told.filter_map(|(node, value)| Some((node.clone(), v1::GossipRevocations::decode(value.clone()).ok()?)))
                .collect()
        });
        for (node, lists) in told {
            self.revocations.heard(&node, &lists.revocations);
        }
    }

    /// Publishes what this node says of itself: changes at once, mere numbers less often.
    async fn tell_headline(&self) {
        let mut facts = self.facts.clone();
        let mut told: Option<(v1::NodeHeadline, Instant)> = None;
        loop {
            let known = facts.borrow_and_update().clone();
            let node = self.own_node(&known);
            let lists = v1::GossipRevocations { revocations: self.revocations.numbers() };
            let headline = as_told(&known.headline);
            let is_due = told.as_ref().is_none_or(|(last, at)| at.elapsed() >= pause(last, &headline));
            self.gossip(|gossip, _| {
                gossip.publish(NODE, node.encode_to_vec().into());
                gossip.publish(REVOCATIONS, lists.encode_to_vec().into());
                if is_due {
                    gossip.publish(HEADLINE, headline.encode_to_vec().into());
                }
            });
            if is_due {
                told = Some((headline, Instant::now()));
            }
            if facts.changed().await.is_err() {
                return;
            }
        }
    }

    fn own_node(&self, facts: &Facts) -> v1::GossipNode {
        v1::GossipNode {
            instance_id: facts.instance_id.clone(),
            system_identifier: facts.system_identifier,
            database: facts.database.clone(),
            address: self.address.to_string(),
        }
    }

    /// Logs a change of membership.
    pub(super) fn tell_change(&self, change: &Change) {
        match change {
            Change::Up(peer) => {
                info!(event = "mesh.peer_up", %peer, "a member is there");
                self.arrived.send_modify(|count| *count += 1);
            }
            Change::Suspect(peer) => warn!(event = "mesh.peer_suspect", %peer, "a member does not answer"),
            Change::Down(peer) => {
                let liveness = self.look(|gossip, _| gossip.member(peer).map(|member| member.liveness));
                let liveness = liveness.map_or("dead", |liveness| liveness.as_str());
                warn!(event = "mesh.peer_down", %peer, details.liveness = liveness, "a member is gone");
            }
            Change::Renewed(generation) => {
                warn!(
                    event = "mesh.renewed",
                    details.generation = generation,
                    "others had given this agent up, or remember a later run of it; it goes on as a new one"
                );
            }
        }
    }

    /// Logs a connection that was not taken; once for each reason, as whoever is refused tries again and again.
    pub(super) fn tell_refused(&self, peer: &NodeId, failure: &Failure) {
        let told = self.outbox.refused.insert(peer.clone(), failure.message.clone());
        if told.as_ref() == Some(&failure.message) {
            return;
        }
        warn!(event = "mesh.peer_refused", %peer, error = telemetry::failure(failure), "a peer's connection was not taken");
    }
}

/// The headline as others get it: without what they see for themselves, and short enough.
fn as_told(headline: &v1::NodeHeadline) -> v1::NodeHeadline {
    let mut told = v1::NodeHeadline { as_of: None, age_ms: None, ..headline.clone() };
    // As many as an entry has room for; of the others their own word counts.
    told.followers.truncate(MOST_FOLLOWERS);
    if told.health_reason.len() > LONGEST_REASON {
        let cut = (0..=LONGEST_REASON).rev().find(|at| told.health_reason.is_char_boundary(*at)).unwrap_or(0);
        told.health_reason.truncate(cut);
        told.health_reason.push('…');
    }
    told
}

/// How long after `last` it is worth telling `new`.
fn pause(last: &v1::NodeHeadline, new: &v1::NodeHeadline) -> Duration {
    let words = |headline: &v1::NodeHeadline| v1::NodeHeadline {
        percent: None,
        eta_seconds: None,
        lag_bytes: None,
        followers: Vec::new(),
        ..headline.clone()
    };
    if last == new {
        Duration::MAX
    } else if words(last) != words(new) {
        Duration::ZERO
    } else if last.percent != new.percent {
        PERCENT_EVERY
    } else {
        LAG_EVERY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_at_once_and_numbers_less_often() {
        let last = v1::NodeHeadline { state: "copying".into(), percent: Some(1.0), ..v1::NodeHeadline::default() };
        let cases = [
            (last.clone(), Duration::MAX),
            (v1::NodeHeadline { percent: Some(2.0), ..last.clone() }, PERCENT_EVERY),
            (v1::NodeHeadline { lag_bytes: Some(2), ..last.clone() }, LAG_EVERY),
            (v1::NodeHeadline { state: "failed".into(), percent: None, ..last.clone() }, Duration::ZERO),
        ];
        for (new, expected) in cases {
            assert_eq!(pause(&last, &new), expected, "{new:?}");
        }
    }

    #[test]
    fn a_headline_fits_into_an_entry_however_long_its_reason() {
        let long = |letters: usize| "é".repeat(letters);
        let headline = v1::NodeHeadline { health_reason: long(9_000), ..v1::NodeHeadline::default() };
        assert!(as_told(&headline).encoded_len() < super::super::view::LARGEST_VALUE);
    }
}
