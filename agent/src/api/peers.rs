//! The peer service: what agents ask of each other.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId, SessionId},
    lsn::Lsn,
    operation::SchemaSync,
    time,
    v1::{self, peers_server::Peers},
    wire::rpc::status_of,
};
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::{self, Caller, Rpc},
    schemas,
};
use crate::{
    config::Share,
    health::kept,
    initialize::{
        apart, mesh,
        messages::table_name,
        preflight::{self, Wanted},
        prepare,
        reach::Reach,
        scope, source,
        start::selection_of,
        two_phase::lend,
    },
    removal::part,
    session::{Held, JoinRequest, Neighbour, OldSlot, OpenRequest, Role},
    slots,
    store::{Actor, audit, removals::Removal},
};

/// Answers other agents.
#[derive(Debug)]
pub struct Service(pub Door);

type Answer<T> = Result<Response<T>, Status>;

fn reply<T>(done: Result<T, Failure>) -> Answer<T> {
    done.map(Response::new).map_err(|failure| status_of(&failure))
}

fn operation(text: &str) -> Result<OperationId, Status> {
    text.parse().map_err(|error| status_of(&Failure::new(Code::BadRequest, format!("{error}"))))
}

fn node(text: &str) -> Result<NodeId, Status> {
    text.parse().map_err(|error| status_of(&Failure::new(Code::BadRequest, format!("{error}"))))
}

fn neighbours<'a>(names: impl Iterator<Item = &'a String>) -> Result<Vec<Neighbour>, Status> {
    names.map(|name| node(name).map(mesh::neighbour)).collect()
}

impl Service {
    /// A drained agent holds nothing new for others.
    fn takes_work(&self) -> Result<(), Status> {
        let refused = self.0.upkeep.drain.refuse(self.0.peers.me(), "opens no session for others");
        refused.map_err(|failure| status_of(&failure))
    }

    async fn session(&self, caller: &Caller, id: &str) -> Result<Arc<Held>, Status> {
        let id: SessionId =
            id.parse().map_err(|error| status_of(&Failure::new(Code::BadRequest, format!("{error}"))))?;
        let got = self.0.rooms()?.sessions.get(caller.node(), id);
        self.allowed(caller, got).await
    }

    /// The caller's session for an operation.
    async fn session_of(&self, caller: &Caller, op: OperationId) -> Result<Arc<Held>, Status> {
        let got = self.0.rooms()?.sessions.of_operation(caller.node(), op);
        self.allowed(caller, got).await
    }

    /// What the caller may have; what not is told as a denial.
    async fn allowed<T>(&self, caller: &Caller, judged: Result<T, Failure>) -> Result<T, Status> {
        match judged {
            Ok(allowed) => Ok(allowed),
            Err(failure) => Err(self.0.refuse(caller, failure).await),
        }
    }
}

#[tonic::async_trait]
impl Peers for Service {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Answer<v1::HelloReply> {
        let caller = self.0.admit(&request, Rpc::PeersHello).await?;
        reply(self.0.peers.admit(caller.node(), request.get_ref()).await)
    }

    type FetchSchemaStream = schemas::Pages;

    async fn fetch_schema(&self, request: Request<v1::FetchSchemaRequest>) -> Answer<schemas::Pages> {
        let caller = self.0.admit(&request, Rpc::PeersFetchSchema).await?;
        if self.0.rooms()?.config.schema.share == Share::None {
            let text = format!("{} does not tell other nodes what its tables look like", self.0.me());
            let failure = Failure::new(Code::Denied, text).hint("set schema.share = \"all\" in its agent.toml");
            return Err(self.0.refuse(&caller, failure).await);
        }
        schemas::pages(&self.0, request.into_inner()).await
    }

    async fn follow_slots(&self, request: Request<v1::FollowSlotsRequest>) -> Answer<v1::FollowSlotsReply> {
        let caller = self.0.admit(&request, Rpc::PeersFollowSlots).await?;
        reply(kept::tell(&*self.0.rooms()?, caller.node(), &request.get_ref().slots))
    }

    async fn need_slots(&self, request: Request<v1::NeedSlotsRequest>) -> Answer<v1::NeedSlotsReply> {
        self.0.admit(&request, Rpc::PeersNeedSlots).await?;
        reply(slots::need_told(&*self.0.rooms()?, &request.get_ref().slots).await)
    }

    async fn examine(&self, request: Request<v1::ExamineRequest>) -> Answer<v1::ExamineReply> {
        let caller = self.0.admit(&request, Rpc::PeersExamine).await?;
        let request = request.into_inner();
        self.takes_work()?;
        let rooms = self.0.rooms()?;
        let judged = scope::check_examine(&rooms, caller.node(), caller.signed(), &request).await;
        self.allowed(&caller, judged).await?;
        let wanted = Wanted {
            selection: selection_of(&request.selection.unwrap_or_default()),
            one_way: request.one_way,
            parallel: request.parallel,
            force: false,
            schema_sync: SchemaSync::Strict,
            again: scope::is_again(caller.signed()),
        };
        let examined = preflight::examine_source(&rooms, caller.node(), &wanted, &request.link).await;
        match examined {
            Ok(facts) if request.count_rows => reply(source::count_now(&rooms, facts).await),
            examined => reply(examined),
        }
    }

    async fn open_session(&self, request: Request<v1::OpenSessionRequest>) -> Answer<v1::OpenSessionReply> {
        let caller = self.0.admit(&request, Rpc::PeersOpenSession).await?;
        let request = request.into_inner();
        self.takes_work()?;
        let rooms = self.0.rooms()?;
        let judged = scope::open(&rooms, caller.node(), caller.signed(), &request).await;
        let scope = self.allowed(&caller, judged).await?;
        let open = OpenRequest {
            op: operation(&request.op_id)?,
            tables: request
                .tables
                .iter()
                .map(|table| {
                    (
                        table.oid,
                        table.table.as_ref().map(table_name).unwrap_or_else(|| table_name(&v1::TableName::default())),
                    )
                })
                .collect(),
            part_bytes: request.part_bytes,
            whole_database: request.whole_database,
            scope,
            parallel: request.parallel,
            one_way: request.one_way,
            neighbours: neighbours(request.members.iter())?,
            kept_slot: None,
            for_files: None,
        };
        let names: Vec<_> = open.tables.iter().map(|(_, name)| name.to_string()).collect();
        let detail = json!({ "through": caller.node(), "whole_database": open.whole_database, "tables": names });
        let actor = authorize::actor(&caller.signed().signer.who);
        audit::append(&rooms.store, &actor, "session.open", caller.node().as_str(), Some(open.op), &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let held = rooms.sessions.open(caller.node(), open).await.map_err(|failure| status_of(&failure))?;
        reply(source::opened(&rooms, &held))
    }

    async fn reopen_session(&self, request: Request<v1::ReopenSessionRequest>) -> Answer<v1::OpenSessionReply> {
        let caller = self.0.admit(&request, Rpc::PeersReopenSession).await?;
        let op = operation(&request.get_ref().op_id)?;
        let rooms = self.0.rooms()?;
        self.session_of(&caller, op).await?;
        let node = caller.node();
        let slot = if request.get_ref().keep_slot { OldSlot::Kept } else { OldSlot::Replaced };
        let detail = json!({ "keep_slot": slot == OldSlot::Kept });
        audit::append(&rooms.store, &Actor::node(node), "session.reopen", node.as_str(), Some(op), &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let reopened = rooms.sessions.reopen(node, op, slot, mesh::neighbour).await;
        reply(reopened.and_then(|held| source::opened(&rooms, &held)))
    }

    async fn open_snapshot(&self, request: Request<v1::OpenSnapshotRequest>) -> Answer<v1::OpenSessionReply> {
        let caller = self.0.admit(&request, Rpc::PeersOpenSnapshot).await?;
        let request = request.into_inner();
        self.takes_work()?;
        let rooms = self.0.rooms()?;
        let op = operation(&request.op_id)?;
        let detail = json!({ "through": caller.node(), "snapshot": request.snapshot_op_id });
        let actor = authorize::actor(&caller.signed().signer.who);
        audit::append(&rooms.store, &actor, "snapshot.lend", caller.node().as_str(), Some(op), &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let lent = Box::pin(lend::lend(&rooms, caller.node(), caller.signed(), &request)).await;
        let held = self.allowed(&caller, lent).await?;
        reply(source::opened(&rooms, &held))
    }

    async fn lend_files(&self, request: Request<v1::LendFilesRequest>) -> Answer<v1::LendFilesReply> {
        let caller = self.0.admit(&request, Rpc::PeersLendFiles).await?;
        let request = request.into_inner();
        self.takes_work()?;
        let rooms = self.0.rooms()?;
        let op = operation(&request.op_id)?;
        let lent = Box::pin(lend::lend_files(&rooms, caller.node(), caller.signed(), &request)).await;
        let snapshot = self.allowed(&caller, lent).await?;
        let detail = json!({ "through": caller.node(), "snapshot": snapshot });
        let actor = authorize::actor(&caller.signed().signer.who);
        audit::append(&rooms.store, &actor, "snapshot.send", caller.node().as_str(), Some(op), &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        Ok(Response::new(v1::LendFilesReply {}))
    }

    async fn renew_session(&self, request: Request<v1::RenewSessionRequest>) -> Answer<v1::RenewSessionReply> {
        let caller = self.0.admit(&request, Rpc::PeersRenewSession).await?;
        let held = self.session(&caller, &request.get_ref().session_id).await?;
        let failure = held.failure().map(Into::into);
        Ok(Response::new(v1::RenewSessionReply { retained_wal_bytes: held.retained_bytes(), failure }))
    }

    async fn count_rows(&self, request: Request<v1::CountRowsRequest>) -> Answer<v1::CountRowsReply> {
        let caller = self.0.admit(&request, Rpc::PeersCountRows).await?;
        let held = self.session(&caller, &request.get_ref().session_id).await?;
        reply(source::count_rows(&held).await.map(|tables| v1::CountRowsReply { tables }))
    }

    async fn release_snapshot(&self, request: Request<v1::ReleaseSnapshotRequest>) -> Answer<v1::ReleaseSnapshotReply> {
        let caller = self.0.admit(&request, Rpc::PeersReleaseSnapshot).await?;
        let held = self.session(&caller, &request.get_ref().session_id).await?;
        let released = self.0.rooms()?.sessions.release(&held).await;
        reply(released.map(|()| v1::ReleaseSnapshotReply {}))
    }

    async fn read_sequences(&self, request: Request<v1::ReadSequencesRequest>) -> Answer<v1::ReadSequencesReply> {
        let caller = self.0.admit(&request, Rpc::PeersReadSequences).await?;
        let held = self.session(&caller, &request.get_ref().session_id).await?;
        let read = source::read_sequences(&*self.0.rooms()?, &held).await;
        reply(read.map(|sequences| v1::ReadSequencesReply { sequences }))
    }

    async fn describe_tables(&self, request: Request<v1::DescribeTablesRequest>) -> Answer<v1::DescribeTablesReply> {
        let caller = self.0.admit(&request, Rpc::PeersDescribeTables).await?;
        let held = self.session(&caller, &request.get_ref().session_id).await?;
        let described = source::describe_tables(&*self.0.rooms()?, &held).await;
        reply(described.map(|tables| v1::DescribeTablesReply { tables }))
    }

    async fn write_marker(&self, request: Request<v1::WriteMarkerRequest>) -> Answer<v1::WriteMarkerReply> {
        let caller = self.0.admit(&request, Rpc::PeersWriteMarker).await?;
        let op = operation(&request.get_ref().op_id)?;
        self.session_of(&caller, op).await?;
        let written = source::write_marker(&*self.0.rooms()?, op).await;
        reply(written.map(|lsn| v1::WriteMarkerReply { lsn: lsn.to_string() }))
    }

    async fn slot_progress(&self, request: Request<v1::SlotProgressRequest>) -> Answer<v1::SlotProgressReply> {
        let caller = self.0.admit(&request, Rpc::PeersSlotProgress).await?;
        let held = self.session(&caller, &request.get_ref().session_id).await?;
        reply(source::slot_progress(&*self.0.rooms()?, &held).await)
    }

    async fn subscribe(&self, request: Request<v1::SubscribeRequest>) -> Answer<v1::SubscribeReply> {
        let caller = self.0.admit(&request, Rpc::PeersSubscribe).await?;
        let request = request.into_inner();
        let op = operation(&request.op_id)?;
        let rooms = self.0.rooms()?;
        // Only as part of an initialization that this node takes part in, and only if both ways were signed.
        let held = self.session_of(&caller, op).await?;
        if held.scope.one_way {
            let text = format!("{} asks for the way back, and one way was signed", caller.node());
            return Err(self.0.refuse(&caller, Failure::new(Code::IntentExceeded, text)).await);
        }
        let subscribed = source::subscribe_back(&rooms, &held, &request).await;
        reply(subscribed.map(|subscription| v1::SubscribeReply { subscription }))
    }

    async fn take_prepared(&self, request: Request<v1::TakePreparedRequest>) -> Answer<v1::OpenSessionReply> {
        let caller = self.0.admit(&request, Rpc::PeersTakePrepared).await?;
        self.takes_work()?;
        let request = request.into_inner();
        let rooms = self.0.rooms()?;
        let op = operation(&request.op_id)?;
        let found = prepare::find(&rooms, &request.prepare_id).await.map_err(|failure| status_of(&failure))?;
        let judged = scope::take(&rooms, caller.node(), caller.signed(), &request, &found.selection).await;
        let scope = self.allowed(&caller, judged).await?;
        let detail = json!({ "through": caller.node(), "prepare_id": request.prepare_id });
        let actor = authorize::actor(&caller.signed().signer.who);
        audit::append(&rooms.store, &actor, "session.take", caller.node().as_str(), Some(op), &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let take = Box::pin(prepare::take(&rooms, caller.node(), &request, scope, op)).await;
        let take = take.map_err(|failure| status_of(&failure))?;
        let held = rooms.sessions.take(caller.node(), take).await.map_err(|failure| status_of(&failure))?;
        reply(source::opened(&rooms, &held))
    }

    async fn sees_lock(&self, request: Request<v1::SeesLockRequest>) -> Answer<v1::SeesLockReply> {
        self.0.admit(&request, Rpc::PeersSeesLock).await?;
        let seen = apart::sees(&*self.0.rooms()?, request.get_ref().key).await;
        reply(seen.map(|is_seen| v1::SeesLockReply { is_seen }))
    }

    async fn copy_natively(&self, request: Request<v1::CopyNativelyRequest>) -> Answer<v1::CopyNativelyReply> {
        let caller = self.0.admit(&request, Rpc::PeersCopyNatively).await?;
        let request = request.into_inner();
        let held = self.session(&caller, &request.session_id).await?;
        let let_copy = source::copy_natively(&*self.0.rooms()?, &held, &request).await;
        self.allowed(&caller, let_copy).await?;
        Ok(Response::new(v1::CopyNativelyReply {}))
    }

    async fn close_session(&self, request: Request<v1::CloseSessionRequest>) -> Answer<v1::CloseSessionReply> {
        let caller = self.0.admit(&request, Rpc::PeersCloseSession).await?;
        let request = request.into_inner();
        let op = operation(&request.op_id)?;
        let rooms = self.0.rooms()?;
        let judged = scope::check_close(&rooms, caller.node(), op).await;
        self.allowed(&caller, judged).await?;
        let closed = source::close(&rooms, caller.node(), op, request.keep, &request.reason).await;
        reply(closed.map(|()| v1::CloseSessionReply {}))
    }
    async fn exchange(&self, request: Request<v1::ExchangeRequest>) -> Answer<v1::ExchangeReply> {
        let caller = self.0.admit(&request, Rpc::PeersExchange).await?;
        Ok(Response::new(self.0.peers.answer_exchange(caller.node(), request.get_ref())))
    }

    async fn links(&self, request: Request<v1::LinksRequest>) -> Answer<v1::LinksReply> {
        self.0.admit(&request, Rpc::PeersLinks).await?;
        Ok(Response::new(self.0.peers.own_links()))
    }

    async fn fetch_revocations(
        &self,
        request: Request<v1::FetchRevocationsRequest>,
    ) -> Answer<v1::FetchRevocationsReply> {
        self.0.admit(&request, Rpc::PeersFetchRevocations).await?;
        let lists = self.0.peers.revocations().newer_than(&request.get_ref().known);
        Ok(Response::new(v1::FetchRevocationsReply { lists }))
    }

    async fn examine_member(&self, request: Request<v1::ExamineMemberRequest>) -> Answer<v1::ExamineMemberReply> {
        let caller = self.0.admit(&request, Rpc::PeersExamineMember).await?;
        let request = request.get_ref();
        let rooms = self.0.rooms()?;
        let judged = scope::check_examine_member(caller.node(), caller.signed(), request);
        self.allowed(&caller, judged).await?;
        reply(mesh::examine_member(&rooms, caller.node(), request, scope::is_again(caller.signed())).await)
    }

    async fn join_member(&self, request: Request<v1::JoinMemberRequest>) -> Answer<v1::JoinMemberReply> {
        let caller = self.0.admit(&request, Rpc::PeersJoinMember).await?;
        self.takes_work()?;
        let request = request.into_inner();
        let rooms = self.0.rooms()?;
        let judged = scope::join(&rooms, caller.node(), caller.signed(), &request).await;
        let scope = self.allowed(&caller, judged).await?;
        let join = JoinRequest {
            op: operation(&request.op_id)?,
            neighbours: neighbours(request.mesh.iter().filter(|node| **node != rooms.me.as_str()))?,
            tables: request.tables.iter().map(table_name).collect(),
            whole_database: request.whole_database,
            source_slot: request.source_slot,
            scope,
        };
        let reach = Reach::own(&rooms).map_err(|failure| status_of(&failure))?.to_message();
        let detail = json!({ "through": caller.node(), "whole_database": join.whole_database });
        let actor = authorize::actor(&caller.signed().signer.who);
        audit::append(&rooms.store, &actor, "session.join", caller.node().as_str(), Some(join.op), &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let held = rooms.sessions.join(caller.node(), join).await.map_err(|failure| status_of(&failure))?;
        let marker = match &held.role {
            Role::Member { marker, .. } => *marker,
            Role::Source { .. } | Role::Prepared | Role::Files { .. } => Lsn::default(),
        };
        Ok(Response::new(v1::JoinMemberReply {
            session_id: held.id.to_string(),
            publication: held.publication.clone(),
            slot: held.slot.clone(),
            lsn: held.lsn.to_string(),
            marker: marker.to_string(),
            conninfo: reach.conninfo,
            lease_seconds: rooms.sessions.lease().as_secs(),
            link: reach.link,
            database: reach.database,
        }))
    }

    async fn forget_node(&self, request: Request<v1::ForgetNodeRequest>) -> Answer<v1::ForgetNodeReply> {
        let caller = self.0.admit(&request, Rpc::PeersForgetNode).await?;
        let request = request.into_inner();
        let now = Timestamp::now();
        let rooms = self.0.rooms()?;
        let judged = scope::check_removal(self.0.peers.identity(), &request, now);
        let verified = self.allowed(&caller, judged).await?;
        let removal = Removal {
            op_id: verified.order.op_id,
            node: verified.order.target.clone(),
            removed_by: authorize::actor(&verified.signer.who).to_string(),
            asked_at: request.asked_at.as_ref().and_then(time::moment).unwrap_or(now),
            heard_at: now,
            is_done: false,
            pending: request.pending.iter().map(|name| node(name)).collect::<Result<_, _>>()?,
            signed: verified.signed,
        };
        let teller = Actor::node(caller.node());
        let heard = part::hear(&rooms, &removal, request.is_late, &teller).await;
        reply(heard.map(|()| v1::ForgetNodeReply {}))
    }
}
