//! The peer service: what agents ask of each other.

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId, SessionId},
    lsn::Lsn,
    time,
    v1::{self, peers_server::Peers},
    version,
    wire::rpc::status_of,
};
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::{Caller, Rpc},
};
use crate::{
    initialize::{
        mesh,
        messages::table_name,
        preflight::{self, Wanted},
        source,
        start::selection_of,
        subscribe,
    },
    removal::part,
    session::{Held, JoinRequest, Neighbour, OpenRequest, Role},
    store::{Actor, removals::Removal},
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
    async fn admit<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        self.0.admit(request, Rpc::Peers).await
    }

    fn session(&self, caller: &Caller, id: &str) -> Result<std::sync::Arc<Held>, Status> {
        let id: SessionId =
            id.parse().map_err(|error| status_of(&Failure::new(Code::BadRequest, format!("{error}"))))?;
        self.0.rooms()?.sessions.get(caller.node(), id).map_err(|failure| status_of(&failure))
    }
}

#[tonic::async_trait]
impl Peers for Service {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Answer<v1::HelloReply> {
        let caller = self.admit(&request).await?;
        let peers = &self.0.peers;
        peers.admit(caller.node(), request.get_ref()).map_err(|failure| status_of(&failure))?;
        let facts = peers.facts();
        Ok(Response::new(v1::HelloReply {
            protocol: version::PROTOCOL,
            instance_id: facts.instance_id,
            system_identifier: facts.system_identifier,
            database: facts.database,
            headline: Some(facts.headline),
        }))
    }

    async fn examine(&self, request: Request<v1::ExamineRequest>) -> Answer<v1::ExamineReply> {
        let caller = self.admit(&request).await?;
        let request = request.into_inner();
        let wanted = Wanted {
            selection: selection_of(&request.selection.unwrap_or_default()),
            one_way: request.one_way,
            parallel: request.parallel,
            force: false,
        };
        reply(preflight::examine_source(&*self.0.rooms()?, caller.node(), &wanted).await)
    }

    async fn open_session(&self, request: Request<v1::OpenSessionRequest>) -> Answer<v1::OpenSessionReply> {
        let caller = self.admit(&request).await?;
        let request = request.into_inner();
        let rooms = self.0.rooms()?;
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
            parallel: request.parallel,
            one_way: request.one_way,
            neighbours: neighbours(request.members.iter())?,
        };
        let conninfo = subscribe::own_conninfo(&rooms).map_err(|failure| status_of(&failure))?;
        let held = rooms.sessions.open(caller.node(), open).await.map_err(|failure| status_of(&failure))?;
        let positions = match &held.role {
            Role::Source { positions } => positions.clone(),
            Role::Member { .. } => Vec::new(),
        };
        let position =
            |(node, lsn): &(NodeId, Lsn)| v1::MemberPosition { node: node.to_string(), lsn: lsn.to_string() };
        let tables = held.tables.iter().map(|(table, plan)| v1::SessionTable {
            oid: table.oid,
            bytes: table.bytes,
            rows_estimate: table.rows_estimate,
            part_starts: plan.starts.clone(),
            pages: plan.pages,
        });
        Ok(Response::new(v1::OpenSessionReply {
            session_id: held.id.to_string(),
            publication: held.publication.clone(),
            slot: held.slot.clone(),
            lsn: held.lsn.to_string(),
            snapshot: held.snapshot.clone(),
            conninfo,
            tables: tables.collect(),
            lease_seconds: rooms.sessions.lease().as_secs(),
            positions: positions.iter().map(position).collect(),
        }))
    }

    async fn renew_session(&self, request: Request<v1::RenewSessionRequest>) -> Answer<v1::RenewSessionReply> {
        let caller = self.admit(&request).await?;
        let held = self.session(&caller, &request.get_ref().session_id)?;
        let failure = held.failure().map(Into::into);
        Ok(Response::new(v1::RenewSessionReply { retained_wal_bytes: held.retained_bytes(), failure }))
    }

    async fn count_rows(&self, request: Request<v1::CountRowsRequest>) -> Answer<v1::CountRowsReply> {
        let caller = self.admit(&request).await?;
        let held = self.session(&caller, &request.get_ref().session_id)?;
        reply(source::count_rows(&held).await.map(|tables| v1::CountRowsReply { tables }))
    }

    async fn release_snapshot(&self, request: Request<v1::ReleaseSnapshotRequest>) -> Answer<v1::ReleaseSnapshotReply> {
        let caller = self.admit(&request).await?;
        self.session(&caller, &request.get_ref().session_id)?.release().await;
        Ok(Response::new(v1::ReleaseSnapshotReply {}))
    }

    async fn read_sequences(&self, request: Request<v1::ReadSequencesRequest>) -> Answer<v1::ReadSequencesReply> {
        let caller = self.admit(&request).await?;
        let held = self.session(&caller, &request.get_ref().session_id)?;
        let read = source::read_sequences(&*self.0.rooms()?, &held).await;
        reply(read.map(|sequences| v1::ReadSequencesReply { sequences }))
    }

    async fn describe_tables(&self, request: Request<v1::DescribeTablesRequest>) -> Answer<v1::DescribeTablesReply> {
        let caller = self.admit(&request).await?;
        let held = self.session(&caller, &request.get_ref().session_id)?;
        let described = source::describe_tables(&*self.0.rooms()?, &held).await;
        reply(described.map(|tables| v1::DescribeTablesReply { tables }))
    }

    async fn write_marker(&self, request: Request<v1::WriteMarkerRequest>) -> Answer<v1::WriteMarkerReply> {
        self.admit(&request).await?;
        let op = operation(&request.get_ref().op_id)?;
        let written = source::write_marker(&*self.0.rooms()?, op).await;
        reply(written.map(|lsn| v1::WriteMarkerReply { lsn: lsn.to_string() }))
    }

    async fn slot_progress(&self, request: Request<v1::SlotProgressRequest>) -> Answer<v1::SlotProgressReply> {
        let caller = self.admit(&request).await?;
        let held = self.session(&caller, &request.get_ref().session_id)?;
        reply(source::slot_progress(&*self.0.rooms()?, &held).await)
    }

    async fn subscribe(&self, request: Request<v1::SubscribeRequest>) -> Answer<v1::SubscribeReply> {
        let caller = self.admit(&request).await?;
        let request = request.into_inner();
        let op = operation(&request.op_id)?;
        let rooms = self.0.rooms()?;
        // Only as part of an initialization that this node takes part in.
        if !rooms.sessions.operations().contains(&op) {
            let text = format!("{} has no session for operation {op}", rooms.me);
            return Err(status_of(&Failure::new(Code::SessionUnknown, text)));
        }
        let subscribed = source::subscribe_back(&rooms, caller.node(), op, &request).await;
        reply(subscribed.map(|subscription| v1::SubscribeReply { subscription }))
    }

    async fn close_session(&self, request: Request<v1::CloseSessionRequest>) -> Answer<v1::CloseSessionReply> {
        let caller = self.admit(&request).await?;
        let request = request.into_inner();
        let op = operation(&request.op_id)?;
        let rooms = self.0.rooms()?;
        let closed = source::close(&rooms, caller.node(), op, request.keep, &request.reason).await;
        reply(closed.map(|()| v1::CloseSessionReply {}))
    }

    async fn examine_member(&self, request: Request<v1::ExamineMemberRequest>) -> Answer<v1::ExamineMemberReply> {
        let caller = self.admit(&request).await?;
        reply(mesh::examine_member(&*self.0.rooms()?, caller.node(), request.get_ref()).await)
    }

    async fn join_member(&self, request: Request<v1::JoinMemberRequest>) -> Answer<v1::JoinMemberReply> {
        let caller = self.admit(&request).await?;
        let request = request.into_inner();
        let rooms = self.0.rooms()?;
        let join = JoinRequest {
            op: operation(&request.op_id)?,
            neighbours: neighbours(request.mesh.iter().filter(|node| **node != rooms.me.as_str()))?,
            tables: request.tables.iter().map(table_name).collect(),
            whole_database: request.whole_database,
            source_slot: request.source_slot,
        };
        let conninfo = subscribe::own_conninfo(&rooms).map_err(|failure| status_of(&failure))?;
        let held = rooms.sessions.join(caller.node(), join).await.map_err(|failure| status_of(&failure))?;
        let marker = match &held.role {
            Role::Member { marker, .. } => *marker,
            Role::Source { .. } => Lsn::default(),
        };
        Ok(Response::new(v1::JoinMemberReply {
            session_id: held.id.to_string(),
            publication: held.publication.clone(),
            slot: held.slot.clone(),
            lsn: held.lsn.to_string(),
            marker: marker.to_string(),
            conninfo,
            lease_seconds: rooms.sessions.lease().as_secs(),
        }))
    }

    async fn forget_node(&self, request: Request<v1::ForgetNodeRequest>) -> Answer<v1::ForgetNodeReply> {
        let caller = self.admit(&request).await?;
        let request = request.into_inner();
        let now = Timestamp::now();
        let removal = Removal {
            op_id: operation(&request.op_id)?,
            node: node(&request.node)?,
            removed_by: request.removed_by,
            asked_at: request.asked_at.as_ref().and_then(time::moment).unwrap_or(now),
            heard_at: now,
            is_done: false,
            pending: request.pending.iter().map(|name| node(name)).collect::<Result<_, _>>()?,
        };
        let teller = Actor::node(caller.node());
        let heard = part::hear(&*self.0.rooms()?, &removal, request.is_late, &teller).await;
        reply(heard.map(|()| v1::ForgetNodeReply {}))
    }
}
