//! What is asked about slots and sequences.

use std::time::Duration;

use steep_protocol::{
    failure::Failure,
    ids::OperationId,
    intent::Order,
    v1::{self, sequences_client::SequencesClient, slots_client::SlotsClient},
    wire::rpc::{MAX_MESSAGE_BYTES, PeerChannel},
};

use super::{ANSWER_LIMIT, Client, with};

/// Two databases are looked at; a walsender may take its time to end.
const LONG_LIMIT: Duration = Duration::from_secs(60);

impl Client<'_> {
    /// Slots of one node, or of all for an empty `node_id`.
    pub async fn list_slots(&mut self, request: &v1::ListSlotsRequest) -> Result<v1::ListSlotsReply, Failure> {
        self.ask(ANSWER_LIMIT, async |channel| slots(channel).list(request.clone()).await).await
    }

    /// Drops a slot.
    pub async fn drop_slot(&mut self, request: &v1::DropSlotRequest) -> Result<v1::DropSlotReply, Failure> {
        let signed = self.sign(&Order::to_drop_slot(request, OperationId::generate())?)?;
        self.ask(LONG_LIMIT, async |channel| slots(channel).drop(with(&signed, request)).await).await
    }

    /// Compares the sequences of two nodes.
    pub async fn check_sequences(
        &mut self,
        request: &v1::CheckSequencesRequest,
    ) -> Result<v1::CheckSequencesReply, Failure> {
        self.ask(LONG_LIMIT, async |channel| sequences(channel).check(request.clone()).await).await
    }

    /// Moves a node's sequences ahead of another's.
    pub async fn sync_sequences(
        &mut self,
        request: &v1::SyncSequencesRequest,
    ) -> Result<v1::SyncSequencesReply, Failure> {
        let signed = self.sign(&Order::to_sync_sequences(request, OperationId::generate())?)?;
        self.ask(LONG_LIMIT, async |channel| sequences(channel).sync(with(&signed, request)).await).await
    }
}

fn slots(channel: PeerChannel) -> SlotsClient<PeerChannel> {
    SlotsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn sequences(channel: PeerChannel) -> SequencesClient<PeerChannel> {
    SequencesClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
