//! What this agent knows of all nodes, each row with its age.

use std::time::Duration;

use prost::Message as _;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    time, v1,
    wire::connection::Connection,
};
use tokio::time::{Instant, timeout};

use super::{
    gossip::{Gossip, HEADLINE, ROUND, TELL_ALL},
    membership::{Liveness, Member},
    peers::Peers,
};

/// A row of a node that was not heard of for longer is not believed.
const STALE_AFTER: Duration = Duration::from_secs(3 * ROUND.as_secs());
/// How long a peer may take to answer a ping.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// A node as this agent keeps it in its database.
#[derive(Debug, Clone)]
pub struct Row {
    /// What its agent said, and how old that is.
    pub headline: v1::NodeHeadline,
    /// Which run of its agent said so.
    pub generation: u64,
}

impl Peers {
    /// What each peer last said, with its age; a peer never heard of has an empty one.
    pub fn headlines(&self) -> Vec<v1::NodeHeadline> {
        self.rows().into_iter().map(|row| row.headline).collect()
    }

    /// The same, with what only the database keeps.
    pub fn rows(&self) -> Vec<Row> {
        self.look(|gossip, now| gossip.members().map(|member| self.row(gossip, member, now)).collect())
    }

    /// What this agent says of its own node.
    pub fn own_row(&self) -> Row {
        let headline = v1::NodeHeadline { liveness: Liveness::Alive.as_str().into(), ..self.facts().headline };
        Row { headline, generation: self.look(|gossip, _| gossip.me().generation) }
    }

    fn row(&self, gossip: &Gossip, member: &Member, now: Duration) -> Row {
        let Member { run, liveness, since } = member;
        let told =
            gossip.view().get(&run.node, HEADLINE).and_then(|value| v1::NodeHeadline::decode(value.clone()).ok());
        let is_told = told.is_some();
        let heard = gossip.heard_at(&run.node);
        let age = heard.map(|at| now.saturating_sub(at));
        let is_old = age.is_none_or(|age| age > STALE_AFTER);
        let mut headline = v1::NodeHeadline {
            node_id: run.node.to_string(),
            as_of: heard.map(|at| time::message(self.time_of(at))),
            age_ms: age.map(|age| age.as_millis() as u64),
            liveness: liveness.as_str().into(),
            is_stale: is_old || !liveness.is_up(),
            ..told.unwrap_or_default()
        };
        if headline.address.is_empty() {
            headline.address.clone_from(&run.address);
        }
        // In a large mesh nobody hears from everybody all the time; there its members are taken at their word.
        let is_silent = !liveness.is_up() || (is_old && gossip.up() <= TELL_ALL);
        if is_silent || !is_told {
            headline.health = "unknown".into();
            headline.health_reason = why_unknown(*liveness, age, now.saturating_sub(*since));
        }
        Row { headline, generation: run.generation }
    }

    /// Every member, this agent first.
    pub fn members(&self) -> Vec<v1::Member> {
        let own = self.look(|gossip, _| gossip.me().clone());
        let has_left = self.look(|gossip, _| gossip.has_left());
        let liveness = if has_left { Liveness::Left } else { Liveness::Alive };
        let own = v1::Member {
            node_id: own.node.to_string(),
            liveness: liveness.as_str().into(),
            address: own.address,
            generation: own.generation,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            as_of: Some(time::now()),
            age_ms: Some(0),
            since: Some(time::message(self.time_of(Duration::ZERO))),
            is_self: true,
        };
        let others = self.look(|gossip, now| {
            let others = gossip.members().map(|member| {
                let Row { headline, generation } = self.row(gossip, member, now);
                v1::Member {
                    node_id: headline.node_id,
                    liveness: headline.liveness,
                    address: member.run.address.clone(),
                    generation,
                    agent_version: headline.agent_version,
                    as_of: headline.as_of,
                    age_ms: headline.age_ms,
                    since: Some(time::message(self.time_of(member.since))),
                    is_self: false,
                }
            });
            others.collect::<Vec<_>>()
        });
        std::iter::once(own).chain(others).collect()
    }

    /// How this agent reaches each of the others.
    pub fn own_links(&self) -> v1::LinksReply {
        let links = self.look(|gossip, now| {
            let links = gossip.members().map(|member| {
                let node = &member.run.node;
                let link = self.live_link(node);
                let heard = gossip.heard_at(node).map(|at| now.saturating_sub(at));
                v1::PeerLink {
                    node_id: node.to_string(),
                    transport: link.as_ref().map(|link| carrier(&link.connection)).unwrap_or_default(),
                    rtt_us: link.as_ref().map(|link| link.connection.rtt().as_micros() as u64),
                    heard_ms: heard.map(|heard| heard.as_millis() as u64),
                    is_reachable: link.is_some() && heard.is_some_and(|heard| heard <= STALE_AFTER),
                    liveness: member.liveness.as_str().into(),
                }
            });
            links.collect()
        });
        v1::LinksReply { node_id: self.me.to_string(), links }
    }

    /// Asks `node` something and says how long the answer took.
    pub async fn ping(&self, node: &NodeId) -> v1::Pinged {
        let asked = async {
            let link = self.link(node).await?;
            let began = Instant::now();
            self.hello(&link.channel).await?;
            Ok((link, began.elapsed()))
        };
        let silent = |_| Failure::new(Code::PeerSilent, format!("no answer in {} s", PING_LIMIT.as_secs()));
        let answered = timeout(PING_LIMIT, asked).await.map_err(silent).and_then(|answered| answered);
        let node_id = node.to_string();
        match answered {
            Ok((link, took)) => v1::Pinged {
                node_id,
                transport: carrier(&link.connection),
                answered_us: Some(took.as_micros() as u64),
                rtt_us: Some(link.connection.rtt().as_micros() as u64),
                failure: String::new(),
            },
            Err(failure) => v1::Pinged { node_id, failure: failure.to_string(), ..v1::Pinged::default() },
        }
    }
}

fn carrier(connection: &Connection) -> String {
    connection.transport().carrier.to_string()
}

fn why_unknown(liveness: Liveness, age: Option<Duration>, since: Duration) -> String {
    match (liveness, age) {
        (Liveness::Left, _) => format!("left the mesh {} s ago", since.as_secs()),
        (_, Some(age)) if age > STALE_AFTER || !liveness.is_up() => format!("not heard of for {} s", age.as_secs()),
        (_, None) => "not heard of since this agent started".into(),
        _ => "it has said nothing of its node yet".into(),
    }
}
