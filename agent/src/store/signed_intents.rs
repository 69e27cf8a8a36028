//! What operators have signed and this node has acted on: kept as proof, and so that nothing is acted on twice.

use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    intent::Verified,
    v1,
};
use uuid::Uuid;

use super::{Error, Store, row::word};
use crate::postgres::{connect::field, sql};

/// An order that was acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedIntent {
    /// The node whose agent was to act.
    pub target: NodeId,
    /// The operation that was begun or cancelled by it.
    pub about: Option<Uuid>,
    /// Nothing more may begin by it.
    pub has_ended: bool,
    /// As it was signed.
    pub signed: v1::SignedIntent,
}

impl UsedIntent {
    /// It is the very order that `verified` is, byte for byte.
    pub fn is(&self, verified: &Verified) -> bool {
        self.signed.intent == verified.signed.intent
    }
}

/// Whether an order may be acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// For the first time.
    First,
    /// It was before, for the same end; doing it again does nothing new.
    Again,
    /// It was used for something else, or is done with.
    Used,
}

/// Writes down that `verified` is acted on, for the sake of operation `about`; or says that it was used before.
pub async fn claim(store: &Store, verified: &Verified, about: Option<OperationId>) -> Result<Claim, Error> {
    let (order, signed) = (&verified.order, &verified.signed);
    let (op, about) = (order.op_id.uuid(), about.map(|op| op.uuid()));
    let (action, signer, target) = (order.action.as_str(), verified.signer.uri(), order.target.as_str());
    let source = order.source.as_ref().map(NodeId::as_str);
    let scheme = i32::try_from(signed.scheme).unwrap_or(0);
    let sql = sql!("store/claim_signed_intent.sql");
    let claimed = store
        .maybe(
            "write down an order",
            sql,
            &[
                &op,
                &action,
                &signer,
                &target,
                &source,
                &about,
                &signed.intent,
                &signed.signature,
                &scheme,
                &signed.chain,
            ],
        )
        .await?;
    if claimed.is_some() {
        return Ok(Claim::First);
    }
    let before = find(store, order.op_id).await?;
    let is_same = before.is_some_and(|before| before.is(verified) && before.about == about && !before.has_ended);
    Ok(if is_same { Claim::Again } else { Claim::Used })
}

/// The order whose id is `op`, if it was acted on here.
pub async fn find(store: &Store, op: OperationId) -> Result<Option<UsedIntent>, Error> {
    let Some(row) = store.maybe("find an order", sql!("store/find_signed_intent.sql"), &[&op.uuid()]).await? else {
        return Ok(None);
    };
    Ok(Some(UsedIntent {
        target: word(&row, "target")?,
        about: field(&row, "about")?,
        has_ended: field(&row, "has_ended")?,
        signed: v1::SignedIntent {
            intent: field(&row, "intent")?,
            signature: field(&row, "signature")?,
            scheme: field::<i32>(&row, "scheme")?.cast_unsigned(),
            chain: field(&row, "chain")?,
        },
    }))
}

/// Nothing more may begin by the order whose id is `op`.
pub async fn end(store: &Store, op: OperationId) -> Result<(), Error> {
    store.execute("end an order", sql!("store/end_signed_intent.sql"), &[&op.uuid()]).await.map(drop)
}

/// The failure for an order that may not be acted on any more.
pub fn used(verified: &Verified) -> Failure {
    let Verified { order, signer, .. } = verified;
    Failure::new(Code::IntentUsed, format!("{} {} of {signer} was used before", order.action, order.op_id))
}
