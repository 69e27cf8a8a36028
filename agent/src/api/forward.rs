//! Sends a request that names another node to that node's agent, with the name of whoever asked and what they signed.
//!
//! Forwarded at most once: a request that was forwarded and still is not for this node is refused.

use std::time::Duration;

use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    intent,
    wire::{
        identity::PeerId,
        rpc::{PeerChannel, failure_of, is_unanswered, status_of, unanswered},
    },
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::{Caller, FORWARDED_FOR},
};

/// How long a peer may take for an ordinary request.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Where a request belongs.
pub enum Owner {
    /// Here.
    Me,
    /// To this agent.
    Peer(NodeId, PeerChannel),
}

impl Door {
    /// Whose request one about `node` is.
    pub(super) async fn owner(&self, node: &str, caller: &Caller) -> Result<Owner, Status> {
        let unknown = || status_of(&self.peers.unknown(node));
        let id: NodeId = node.parse().map_err(|_| unknown())?;
        if id == *self.peers.me() {
            return Ok(Owner::Me);
        }
        if !self.peers.knows(&id) {
            return Err(unknown());
        }
        if let Some(through) = &caller.through {
            let text = format!("{through} sent a request about {id} to {}; it is forwarded only once", self.peers.me());
            return Err(status_of(&Failure::new(Code::BadRequest, text)));
        }
        let channel = self.peers.channel(&id).await.map_err(|failure| status_of(&failure))?;
        Ok(Owner::Peer(id, channel))
    }

    /// The request as the owner shall see it: on behalf of `caller`.
    pub(super) fn on_behalf_of<T>(&self, caller: &Caller, message: T) -> Request<T> {
        let mesh = self.peers.mesh().clone();
        let uri = PeerId { mesh, who: caller.who.clone() }.uri();
        let mut request = Request::new(message);
        request.metadata_mut().insert(FORWARDED_FOR, uri.parse().expect("an identity is plain ASCII"));
        if let Some(verified) = &caller.intent {
            intent::attach(&mut request, &verified.signed);
        }
        request
    }
}

/// Waits for a forwarded request's answer.
pub async fn answer<T>(
    node: &NodeId,
    asked: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    match timeout(LIMIT, asked).await {
        // Passed on as the owner gave it; what the transport says becomes a failure of ours.
        Ok(answered) => answered.map_err(|status| match is_unanswered(&status) {
            true => unanswered(&failure_of(&status)),
            false => status_of(&failure_of(&status)),
        }),
        Err(_) => {
            let text = format!("{node} did not answer in {} s", LIMIT.as_secs());
            Err(unanswered(&Failure::new(Code::PeerSilent, text)))
        }
    }
}
