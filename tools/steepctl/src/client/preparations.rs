//! What is asked about backups made by hand.

use std::time::Duration;

use steep_protocol::{
    failure::Failure,
    ids::OperationId,
    intent::Order,
    v1::{self, preparations_client::PreparationsClient},
    wire::rpc::{MAX_MESSAGE_BYTES, PeerChannel},
};

use super::{ANSWER_LIMIT, Client, with};

/// A slot waits for transactions, and ends with the agent's own limit at the latest.
const PREPARE_LIMIT: Duration = Duration::from_secs(330);
/// A preflight asks both databases.
const COMPLETE_LIMIT: Duration = Duration::from_secs(120);

impl Client<'_> {
    /// Prepares a node for a backup.
    pub async fn prepare(&mut self, request: &v1::PrepareRequest) -> Result<v1::PrepareReply, Failure> {
        let signed = self.sign(&Order::to_prepare(request, OperationId::generate())?)?;
        self.ask(PREPARE_LIMIT, async |channel| preparations(channel).prepare(with(&signed, request)).await).await
    }

    /// What a node is prepared for.
    pub async fn list_preparations(&mut self, node_id: &str) -> Result<v1::ListPreparationsReply, Failure> {
        let request = v1::ListPreparationsRequest { node_id: node_id.to_owned() };
        self.ask(ANSWER_LIMIT, async |channel| preparations(channel).list(request.clone()).await).await
    }

    /// Changes a preparation, or takes it back.
    pub async fn change_preparation(
        &mut self,
        request: &v1::ChangePreparationRequest,
    ) -> Result<v1::ChangePreparationReply, Failure> {
        let signed = self.sign(&Order::to_change_prepared(request, OperationId::generate())?)?;
        self.ask(COMPLETE_LIMIT, async |channel| preparations(channel).change(with(&signed, request)).await).await
    }

    /// Completes a node that was restored from a backup.
    pub async fn complete_node(&mut self, request: &v1::CompleteNodeRequest) -> Result<v1::CompleteNodeReply, Failure> {
        let signed = self.sign(&Order::to_complete(request)?)?;
        self.ask(COMPLETE_LIMIT, async |channel| preparations(channel).complete(with(&signed, request)).await).await
    }
}

fn preparations(channel: PeerChannel) -> PreparationsClient<PeerChannel> {
    PreparationsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
