//! The certificate service: what operators tell a running agent about certificates.

use serde_json::json;
use steep_protocol::{
    v1::{PublishRevocationsReply, PublishRevocationsRequest, certificates_server::Certificates},
    wire::rpc::status_of,
};
use tonic::{Request, Response, Status};

use super::{Door, authorize::Rpc};
use crate::store::audit;

/// Answers operators.
#[derive(Debug)]
pub struct Service(pub Door);

#[tonic::async_trait]
impl Certificates for Service {
    async fn publish_revocations(
        &self,
        request: Request<PublishRevocationsRequest>,
    ) -> Result<Response<PublishRevocationsReply>, Status> {
        let caller = self.0.admit(&request, Rpc::CertificatesPublishRevocations).await?;
        let actor = caller.actor();
        let revocations = self.0.peers.revocations();
        let taken = revocations.take(&request.get_ref().lists, "an operator");
        let news = taken.map_err(|failure| status_of(&failure))?;
        let in_force = revocations.numbers();
        // Revoking must work without PostgreSQL too: the log has it in any case.
        if let Ok(rooms) = self.0.rooms() {
            let numbers: Vec<_> = in_force.iter().map(|list| json!([list.authority, list.number])).collect();
            let detail = json!({ "news": news, "in_force": numbers });
            let written =
                audit::append(&rooms.store, &actor, "pki.revocations_published", &self.0.me(), None, &detail).await;
            if let Err(error) = written {
                tracing::warn!(event = "audit.missed", reason = %error, "a revocation could not be audited");
            }
        }
        Ok(Response::new(PublishRevocationsReply { served_by: self.0.me(), in_force, news }))
    }
}
