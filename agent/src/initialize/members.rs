//! The steps of a newcomer that members of the mesh take part in: nodes that replicate both ways with the source.
//!
//! What a member wrote is in the source's snapshot up to some LSN of the member's, and has to come from the member itself
//! after that. So the member's slot is made first; then the source's snapshot, for which the source says what that LSN is;
//! and the subscription to the member begins exactly there.

use std::time::Duration;

use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, SessionId},
    lsn::{BadLsn, Lsn},
    v1,
};

use super::{
    direct::{Direct, Renewing},
    reach::Reach,
    steps::Waiting,
    subscribe::{self, Inflow},
};
use crate::{cleanup::Effect, mesh::Source, operations::Context, postgres::ddl::OriginFilter};

/// A member's session, as the newcomer holds it.
pub(super) struct Joined {
    /// The member.
    pub(super) node: Source,
    pub(super) session: SessionId,
    /// The subscription to it, once it is made.
    pub(super) subscription: String,
    pub(super) reply: v1::JoinMemberReply,
    /// What it committed before this is in the source's snapshot.
    pub(super) begin: Option<Lsn>,
    _renewing: Renewing,
}

impl Joined {
    /// One whose session was opened by an earlier run of the agent.
    pub(super) fn again(node: Source, session: SessionId, reply: v1::JoinMemberReply, renewing: Renewing) -> Self {
        let subscription = subscribe::name_for(node.node().as_str());
        Self { node, session, subscription, reply, begin: None, _renewing: renewing }
    }
}

fn lsn(node: &NodeId, text: &str) -> Result<Lsn, Failure> {
    text.parse().map_err(|error: BadLsn| Failure::new(Code::BadRequest, format!("{node}: {error}")))
}

impl Direct {
    /// Between the request and now another node may have come or gone: the steps were chosen for the mesh as it was.
    pub(super) fn same_members(&self) -> Result<(), Failure> {
        let names = |members: &[v1::MeshMember]| members.iter().map(|member| member.node.clone()).collect::<Vec<_>>();
        let (then, now) = (names(&self.plan.members), names(&self.facts.members));
        if then == now {
            return Ok(());
        }
        let told = |names: &[String]| if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
        let source = &self.plan.source;
        let text = format!("{source} replicated with {} a moment ago, and now with {}", told(&then), told(&now));
        Err(Failure::new(Code::MeshIncomplete, text).hint("start the node again"))
    }

    /// Has every member make its slot, and waits until the source has all they had sent before.
    pub(super) async fn join_members(&mut self, context: &Context) -> Result<(), Failure> {
        let source = self.plan.source.clone();
        let published = self.facts.tables.iter().filter_map(|table| table.table.clone());
        let tables: Vec<v1::TableName> = published.collect();
        let others = self.plan.members.iter().map(|member| member.node.clone());
        let mesh = self.with_me_if_again(std::iter::once(source.to_string()).chain(others));
        for member in self.plan.members.clone() {
            let node: NodeId = member.node.parse().map_err(|_| self.rooms.peers.unknown(&member.node))?;
            if self.members.iter().any(|joined| *joined.node.node() == node) {
                continue;
            }
            let request = v1::JoinMemberRequest {
                op_id: context.op.to_string(),
                source: source.to_string(),
                mesh: mesh.clone(),
                tables: tables.clone(),
                whole_database: self.plan.shared_publication,
                source_slot: member.slot.clone(),
            };
            let effect = Effect::PeerSession { node: node.clone() };
            let member = Source::new(self.rooms.peers.clone(), node, context.op);
            let joining = member.join_member(&self.plan.signed, request);
            let reply = self.rooms.cleanup.make(context.op, "join members", &effect, joining).await?;
            let session = reply.session_id.parse();
            let session = session.map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))?;
            self.note_joined(context, member.node(), &reply).await?;
            let lease = Duration::from_secs(reply.lease_seconds);
            let _renewing = self.renewed(context, member.clone(), session, lease);
            let subscription = String::new();
            self.members.push(Joined { node: member, session, subscription, reply, begin: None, _renewing });
        }
        for member in &self.members {
            self.source_has_what_came_before(member).await?;
        }
        Ok(())
    }

    /// What the member's slot does not hold, the source must have before it is asked how far it has come: else that
    /// would be lost between the two.
    async fn source_has_what_came_before(&self, member: &Joined) -> Result<(), Failure> {
        let node = member.node.node();
        let (begins, marker) = (lsn(node, &member.reply.lsn)?, lsn(node, &member.reply.marker)?);
        if marker < begins {
            let text = format!("the slot of {node} begins at {begins}, after its marker at {marker}");
            return Err(Failure::new(Code::PositionLost, text));
        }
        let mut waiting = Waiting::new(self.rooms.config.copy.catch_up_timeout);
        loop {
            let progress = member.node.slot_progress(member.session).await?;
            let confirmed = lsn(node, &progress.source_confirmed_lsn.unwrap_or_default())?;
            if confirmed >= marker {
                return Ok(());
            }
            waiting.still(confirmed, || format!("{} waits for what {node} wrote", self.plan.source))?;
            waiting.pause().await;
        }
    }

    /// Takes from the source's answer how far into each member's WAL its snapshot goes.
    pub(super) fn take_positions(&mut self, reply: &v1::OpenSessionReply) -> Result<(), Failure> {
        let source = &self.plan.source;
        for member in &mut self.members {
            let node = member.node.node();
            let told = reply.positions.iter().find(|position| position.node == node.as_str());
            let missing = || Failure::new(Code::PositionLost, format!("{source} does not say how far it has {node}"));
            member.begin = Some(lsn(node, &told.ok_or_else(missing)?.lsn)?);
        }
        Ok(())
    }

    /// Subscribes to every member, from exactly where the source's snapshot ends for it.
    pub(super) async fn subscribe_to_members(&mut self, context: &Context) -> Result<(), Failure> {
        for member in &mut self.members {
            let reply = &member.reply;
            let source = member.node.node();
            let gates = &self.gates.of_member(source)?;
            let inflow = Inflow {
                source,
                slot: &reply.slot,
                publication: &reply.publication,
                reach: &Reach::told(source, &reply.link, &reply.database, &reply.conninfo)?,
                origin: OriginFilter::None,
                begin: member.begin.expect("the source told it when its session was opened"),
                gates,
            };
            member.subscription = subscribe::subscribe(&self.rooms, context.op, &inflow).await?;
        }
        Ok(())
    }
}
