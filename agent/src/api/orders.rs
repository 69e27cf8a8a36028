//! What an operator has signed, held against what is asked here, and used once.

use std::sync::Arc;

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    intent::Order,
    operation::Action,
    wire::rpc::status_of,
};
use tonic::Status;

use super::{Door, authorize::Caller};
use crate::{
    rooms::Rooms,
    store::signed_intents::{self, Claim},
};

impl Caller {
    /// The order a request amounts to that asks `target` for `action`. Where nothing had to be signed, any id will do.
    pub(super) fn ordered(&self, action: Action, target: &NodeId) -> Order {
        let op = self.intent.as_ref().map_or_else(OperationId::generate, |verified| verified.order.op_id);
        Order::new(action, op, target.clone())
    }
}

impl Door {
    /// Makes sure that what the caller has signed, if anything, says all that `asked` asks for.
    ///
    /// Whether it had to be signed the gate has judged.
    pub(super) async fn heed(&self, caller: &Caller, asked: &Order) -> Result<(), Status> {
        let Some(verified) = &caller.intent else { return Ok(()) };
        match verified.order.lacks(asked) {
            None => Ok(()),
            Some(why) => {
                let text = format!("{} has not signed what is asked of {}: {why}", verified.signer, self.peers.me());
                Err(self.refuse(caller, Failure::new(Code::IntentMisdirected, text)).await)
            }
        }
    }

    /// Makes sure that what the caller has signed, if anything, says `action` of this agent, and uses it.
    ///
    /// While PostgreSQL was never reached, nothing is written down of its use; it is good for minutes anyway.
    pub(super) async fn heed_about_me(&self, caller: &Caller, action: Action) -> Result<(), Status> {
        self.heed(caller, &caller.ordered(action, self.peers.me())).await?;
        let rooms = self.rooms.borrow().clone();
        match rooms {
            Some(rooms) => self.spend(caller, &rooms, None).await,
            None => Ok(()),
        }
    }

    /// Uses what the caller has signed, if anything, for the sake of operation `about`; the same twice is once.
    pub(super) async fn spend(
        &self,
        caller: &Caller,
        rooms: &Arc<Rooms>,
        about: Option<OperationId>,
    ) -> Result<(), Status> {
        let Some(verified) = &caller.intent else { return Ok(()) };
        match signed_intents::claim(&rooms.store, verified, about).await {
            Ok(Claim::First | Claim::Again) => Ok(()),
            Ok(Claim::Used) => Err(self.refuse(caller, signed_intents::used(verified)).await),
            Err(error) => Err(status_of(&error.explain())),
        }
    }
}
