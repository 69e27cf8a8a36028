//! The slot service.

use std::time::Duration;

use steep_protocol::{
    intent::Order,
    time,
    v1::{
        self, DropSlotReply, DropSlotRequest, ListSlotsReply, ListSlotsRequest, slots_client::SlotsClient,
        slots_server::Slots,
    },
    wire::rpc::{failure_of, status_of},
};
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::Rpc,
    forward::{Owner, answer},
};
use crate::slots::{self, Listed, Purpose};

/// How long peers may take when all are asked; each of them asks the others for less.
const ALL_LIMIT: Duration = Duration::from_secs(5);

/// Answers for this node, forwards for others.
#[derive(Debug)]
pub struct Service(pub Door);

#[tonic::async_trait]
impl Slots for Service {
    async fn list(&self, request: Request<ListSlotsRequest>) -> Result<Response<ListSlotsReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SlotsList).await?;
        let request = request.into_inner();
        if !request.node_id.is_empty()
            && let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await?
        {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SlotsClient::new(channel).list(asked)).await;
        }
        let mut reply = ListSlotsReply { served_by: self.0.me(), ..ListSlotsReply::default() };
        // For all of them, each agent is asked about its own node only.
        let asks_all = request.node_id.is_empty() && caller.through.is_none();
        match self.own(&request).await {
            Ok(slots) => reply.slots = slots,
            Err(status) if !asks_all => return Err(status),
            Err(_) => reply.missing_nodes.push(self.0.me()),
        }
        if asks_all {
            let ask = |channel| {
                let asked = self.0.on_behalf_of(&caller, request.clone());
                async move {
                    let answered = SlotsClient::new(channel).list(asked).await;
                    answered.map(Response::into_inner).map_err(|status| failure_of(&status))
                }
            };
            let (answers, silent) = self.0.peers.ask_all(ALL_LIMIT, ask).await;
            reply.missing_nodes.extend(silent.iter().map(ToString::to_string));
            reply.slots.extend(answers.into_iter().flat_map(|answer| answer.slots));
        }
        reply.slots.sort_by(|one, other| (&one.node_id, &one.name).cmp(&(&other.node_id, &other.name)));
        Ok(Response::new(reply))
    }

    async fn drop(&self, request: Request<DropSlotRequest>) -> Result<Response<DropSlotReply>, Status> {
        let caller = self.0.admit(&request, Rpc::SlotsDrop).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, SlotsClient::new(channel).drop(asked)).await;
        }
        let op = caller.signed().order.op_id;
        let order = Order::to_drop_slot(&request, op).map_err(|failure| status_of(&failure))?;
        self.0.heed(&caller, &order).await?;
        let rooms = self.0.rooms()?;
        self.0.spend(&caller, &rooms, None).await?;
        let dropped = slots::drop(&rooms, &request.slot, request.force, &caller.actor()).await;
        let dropped = dropped.map_err(|failure| status_of(&failure))?;
        Ok(Response::new(DropSlotReply { served_by: self.0.me(), slot: Some(message(&self.0.me(), &dropped)) }))
    }
}

impl Service {
    async fn own(&self, request: &ListSlotsRequest) -> Result<Vec<v1::Slot>, Status> {
        let listed = slots::list(&*self.0.rooms()?).await.map_err(|failure| status_of(&failure))?;
        let is_wanted = |listed: &&Listed| {
            (request.slot.is_empty() || listed.slot.name == request.slot)
                && (!request.orphans || listed.purpose == Purpose::Orphan)
        };
        Ok(listed.iter().filter(is_wanted).map(|listed| message(&self.0.me(), listed)).collect())
    }
}

fn message(me: &str, listed: &Listed) -> v1::Slot {
    let Listed { slot, target, purpose, why, op } = listed;
    let progress = &slot.progress;
    v1::Slot {
        node_id: me.into(),
        name: slot.name.clone(),
        target_node: target.clone(),
        r#use: purpose.as_str().into(),
        why: why.clone(),
        active: progress.is_active,
        inactive_since: progress.inactive_since.map(time::message),
        retained_bytes: progress.retained_bytes,
        wal_status: progress.wal_status.clone(),
        safe_wal_bytes: progress.safe_wal_bytes,
        invalidation_reason: progress.invalidation_reason.clone(),
        confirmed_lsn: progress.confirmed_flush.map(|lsn| lsn.to_string()).unwrap_or_default(),
        database: slot.database.clone(),
        plugin: slot.plugin.clone(),
        xmin_age: progress.xmin_age,
        op_id: op.map(|op| op.to_string()).unwrap_or_default(),
    }
}
