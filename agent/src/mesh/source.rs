//! What a target asks of the source it is initialized from, and of the members of that node's mesh.

use std::time::Duration;

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId, SessionId},
    intent,
    lsn::Lsn,
    v1::{self, bulk_request::Want},
    wire::{
        bulk::{self, BlockSource},
        rpc,
    },
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::Peers;

/// Long enough for a slot that waits for transactions, short enough to be noticed.
const LONGEST_ANSWER: Duration = Duration::from_secs(600);

/// The source of one operation, as its target sees it; or another node that takes part in it.
#[derive(Debug, Clone)]
pub struct Source {
    peers: Peers,
    node: NodeId,
    op: OperationId,
}

/// Asks one question of the peer service and unwraps the answer.
macro_rules! ask {
    ($source:expr, $method:ident, $request:expr) => {{
        let mut client = $source.peers.client(&$source.node).await?;
        $source.answer(client.$method($request)).await
    }};
}

/// A request with what an operator has signed for it.
fn with<T>(signed: &v1::SignedIntent, message: T) -> Request<T> {
    let mut request = Request::new(message);
    intent::attach(&mut request, signed);
    request
}

impl Source {
    /// Speaks to `node` about `op`.
    pub fn new(peers: Peers, node: NodeId, op: OperationId) -> Self {
        Self { peers, node, op }
    }

    /// The source's node.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Facts and findings for the preflight, as far as `signed` lets us ask. `link`: how its PostgreSQL would reach ours. No row is
    /// counted.
    pub async fn examine(
        &self,
        signed: &v1::SignedIntent,
        selection: v1::Selection,
        one_way: bool,
        parallel: u32,
        link: &str,
    ) -> Result<v1::ExamineReply, Failure> {
        let (op_id, link) = (self.op.to_string(), link.to_owned());
        let selection = Some(selection);
        let request = v1::ExamineRequest { op_id, selection, one_way, parallel, link, count_rows: false };
        self.ask_about(signed, request).await
    }

    /// The answer to `request`, which may ask for counts.
    pub async fn ask_about(
        &self,
        signed: &v1::SignedIntent,
        request: v1::ExamineRequest,
    ) -> Result<v1::ExamineReply, Failure> {
        ask!(self, examine, with(signed, request))
    }

    /// Opens the session that `signed` allows: locks, slot, snapshot.
    pub async fn open_session(
        &self,
        signed: &v1::SignedIntent,
        request: v1::OpenSessionRequest,
    ) -> Result<v1::OpenSessionReply, Failure> {
        ask!(self, open_session, with(signed, request))
    }

    /// Opens the operation's session anew, whose snapshot was lost.
    pub async fn reopen_session(&self, keep_slot: bool) -> Result<v1::OpenSessionReply, Failure> {
        ask!(self, reopen_session, v1::ReopenSessionRequest { op_id: self.op.to_string(), keep_slot })
    }

    /// Opens a session on a snapshot of it that lies in files, as `signed` allows.
    pub async fn open_snapshot(
        &self,
        signed: &v1::SignedIntent,
        request: v1::OpenSnapshotRequest,
    ) -> Result<v1::OpenSessionReply, Failure> {
        ask!(self, open_snapshot, with(signed, request))
    }

    /// Has its agent lend us the files of the snapshot that `signed` names.
    pub async fn lend_files(&self, signed: &v1::SignedIntent) -> Result<(), Failure> {
        ask!(self, lend_files, with(signed, v1::LendFilesRequest { op_id: self.op.to_string() })).map(drop)
    }

    /// Says that we still live; hears how the session fares.
    pub async fn renew(&self, session: SessionId) -> Result<v1::RenewSessionReply, Failure> {
        ask!(self, renew_session, v1::RenewSessionRequest { session_id: session.to_string() })
    }

    /// Exact row counts inside the snapshot.
    pub async fn count_rows(&self, session: SessionId) -> Result<Vec<v1::TableRows>, Failure> {
        let reply = ask!(self, count_rows, v1::CountRowsRequest { session_id: session.to_string() })?;
        Ok(reply.tables)
    }

    /// The last part is read: snapshot and locks may go.
    pub async fn release_snapshot(&self, session: SessionId) -> Result<(), Failure> {
        ask!(self, release_snapshot, v1::ReleaseSnapshotRequest { session_id: session.to_string() }).map(drop)
    }

    /// Where the sequences stand.
    pub async fn read_sequences(&self, session: SessionId) -> Result<Vec<v1::SequencePosition>, Failure> {
        let reply = ask!(self, read_sequences, v1::ReadSequencesRequest { session_id: session.to_string() })?;
        Ok(reply.sequences)
    }

    /// The session's tables as they are now.
    pub async fn describe_tables(&self, session: SessionId) -> Result<Vec<v1::SourceTable>, Failure> {
        let reply = ask!(self, describe_tables, v1::DescribeTablesRequest { session_id: session.to_string() })?;
        Ok(reply.tables)
    }

    /// Writes a marker; everything committed on the source before lies below the LSN returned.
    pub async fn write_marker(&self) -> Result<Lsn, Failure> {
        let reply = ask!(self, write_marker, v1::WriteMarkerRequest { op_id: self.op.to_string() })?;
        reply.lsn.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{}: {error}", self.node)))
    }

    /// How far the session's slot is confirmed.
    pub async fn slot_progress(&self, session: SessionId) -> Result<v1::SlotProgressReply, Failure> {
        ask!(self, slot_progress, v1::SlotProgressRequest { session_id: session.to_string() })
    }

    /// Has the source subscribe to the slot we made for it; `reach` says how its PostgreSQL reaches ours.
    pub async fn subscribe(
        &self,
        slot: &str,
        publication: &str,
        reach: v1::SubscribeRequest,
    ) -> Result<String, Failure> {
        let request = v1::SubscribeRequest {
            op_id: self.op.to_string(),
            slot: slot.to_owned(),
            publication: publication.to_owned(),
            ..reach
        };
        Ok(ask!(self, subscribe, request)?.subscription)
    }

    /// Has a member of the source's mesh examine itself.
    pub async fn examine_member(
        &self,
        signed: &v1::SignedIntent,
        request: v1::ExamineMemberRequest,
    ) -> Result<v1::ExamineMemberReply, Failure> {
        ask!(self, examine_member, with(signed, request))
    }

    /// Has a member make its slot and hold it for us.
    pub async fn join_member(
        &self,
        signed: &v1::SignedIntent,
        request: v1::JoinMemberRequest,
    ) -> Result<v1::JoinMemberReply, Failure> {
        ask!(self, join_member, with(signed, request))
    }

    /// Has the source let our subscription copy the session's tables by itself.
    pub async fn copy_natively(
        &self,
        session: SessionId,
        subscription_oid: u32,
        system_identifier: u64,
    ) -> Result<(), Failure> {
        let session_id = session.to_string();
        let request = v1::CopyNativelyRequest { session_id, subscription_oid, system_identifier };
        ask!(self, copy_natively, request).map(drop)
    }

    /// Opens the session that `signed` allows on a slot that was prepared.
    pub async fn take_prepared(
        &self,
        signed: &v1::SignedIntent,
        request: v1::TakePreparedRequest,
    ) -> Result<v1::OpenSessionReply, Failure> {
        ask!(self, take_prepared, with(signed, request))
    }

    /// Whether it sees the advisory lock `key` in its database, which this node holds in its own.
    pub async fn sees_lock(&self, key: i64) -> Result<bool, Failure> {
        Ok(ask!(self, sees_lock, v1::SeesLockRequest { key })?.is_seen)
    }

    /// Tells that a node was removed.
    pub async fn forget_node(&self, request: v1::ForgetNodeRequest) -> Result<(), Failure> {
        ask!(self, forget_node, request).map(drop)
    }

    /// Ends the operation on the source: `keep` what it made, or undo all of it.
    pub async fn close_session(&self, keep: bool, reason: &str) -> Result<(), Failure> {
        let request = v1::CloseSessionRequest { op_id: self.op.to_string(), keep, reason: reason.to_owned() };
        ask!(self, close_session, request).map(drop)
    }

    /// Opens a stream of what comes after the first `offset` bytes of a file that was lent to us.
    pub async fn fetch_file(&self, name: &str, offset: u64) -> Result<BlockSource, Failure> {
        let file = v1::FetchFile { op_id: self.op.to_string(), name: name.to_owned(), offset };
        self.fetch(Want::File(file)).await
    }

    /// The operation it is about.
    pub fn operation(&self) -> OperationId {
        self.op
    }

    /// Opens a stream of blocks.
    pub async fn fetch(&self, want: Want) -> Result<BlockSource, Failure> {
        self.peers.fetch(&self.node, want).await
    }

    /// What a stream of blocks from it ended with.
    pub fn explain(&self, error: bulk::Error) -> Failure {
        let mut failure = error.explain();
        if failure.code == Code::StreamBroken {
            // A stream does not know whose it was.
            failure.message = format!("{}: {}", self.node, failure.message);
        }
        failure
    }

    async fn answer<T>(&self, asked: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        match timeout(LONGEST_ANSWER, asked).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => {
                let mut failure = rpc::failure_of(&status);
                if status.details().is_empty() {
                    // Not its words but those of a broken connection, which does not know whose it was.
                    failure.message = format!("{}: {}", self.node, failure.message);
                }
                Err(failure)
            }
            Err(_) => Err(Failure::new(
                Code::PeerSilent,
                format!("{} did not answer in {} s", self.node, LONGEST_ANSWER.as_secs()),
            )),
        }
    }
}
