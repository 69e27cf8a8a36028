//! What is asked about snapshots in files.

use std::time::Duration;

use steep_protocol::{
    failure::Failure,
    ids::OperationId,
    intent::Order,
    v1::{self, snapshots_client::SnapshotsClient},
    wire::rpc::{MAX_MESSAGE_BYTES, PeerChannel},
};

use super::{ANSWER_LIMIT, Client, with};

/// Files are removed, and a walsender may take its time to end.
const DELETE_LIMIT: Duration = Duration::from_secs(120);

impl Client<'_> {
    /// Starts to write a snapshot; the answer may take as long as `limit`.
    pub async fn generate_snapshot(
        &mut self,
        request: &v1::GenerateSnapshotRequest,
        limit: Duration,
    ) -> Result<v1::GenerateSnapshotReply, Failure> {
        let signed = self.sign(&Order::to_generate(request)?)?;
        self.ask(limit, async |channel| snapshots(channel).generate(with(&signed, request)).await).await
    }

    /// Starts an initialization from a snapshot; the answer may take as long as `limit`. `confirmed`: the operator has typed
    /// the name of the node whose rows may be destroyed.
    pub async fn apply_snapshot(
        &mut self,
        request: &v1::ApplySnapshotRequest,
        confirmed: bool,
        limit: Duration,
    ) -> Result<v1::ApplySnapshotReply, Failure> {
        let signed = self.sign(&Order::to_apply(request, confirmed)?)?;
        self.ask(limit, async |channel| snapshots(channel).apply(with(&signed, request)).await).await
    }

    /// Snapshots of one node, or of all for an empty `node_id`.
    pub async fn list_snapshots(
        &mut self,
        request: &v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsReply, Failure> {
        self.ask(ANSWER_LIMIT, async |channel| snapshots(channel).list(request.clone()).await).await
    }

    /// Has a snapshot's files looked at; the answer may take as long as `limit`.
    pub async fn verify_snapshot(
        &mut self,
        request: &v1::VerifySnapshotRequest,
        limit: Duration,
    ) -> Result<v1::VerifySnapshotReply, Failure> {
        self.ask(limit, async |channel| snapshots(channel).verify(request.clone()).await).await
    }

    /// Drops a snapshot's slot and files.
    pub async fn delete_snapshot(
        &mut self,
        request: &v1::DeleteSnapshotRequest,
    ) -> Result<v1::DeleteSnapshotReply, Failure> {
        let signed = self.sign(&Order::to_delete_snapshot(request, OperationId::generate())?)?;
        self.ask(DELETE_LIMIT, async |channel| snapshots(channel).delete(with(&signed, request)).await).await
    }
}

fn snapshots(channel: PeerChannel) -> SnapshotsClient<PeerChannel> {
    SnapshotsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
