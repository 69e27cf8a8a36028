//! The source's own judgement: whether an operator has signed what a peer asks for.
//!
//! The target's word is never enough. What it shows must name it as the target and this node as the source, and cover
//! every table; rows leave this node for nothing else.

use std::collections::HashSet;

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    intent::{self, Verified},
    names::TableName,
    operation::Action,
    v1,
    wire::identity::Identity,
};

use super::{messages::table_name, start::selection_of};
use crate::{
    postgres::{Purpose, selection::Selection, tables},
    rooms::Rooms,
    session::{Scope, not_yours},
    store::{
        self, operations,
        signed_intents::{self, Claim},
    },
};

/// Orders by which a node may be examined.
const EXAMINE: [Action; 5] =
    [Action::NodePlan, Action::NodeStart, Action::NodePlanReinit, Action::NodeReinit, Action::NodeComplete];
/// Orders by which rows may leave a node.
const OPEN: [Action; 2] = [Action::NodeStart, Action::NodeReinit];

/// Whether the order is to copy tables again: its target replicates with this node already.
pub fn is_again(verified: &Verified) -> bool {
    matches!(verified.order.action, Action::NodePlanReinit | Action::NodeReinit)
}

fn explain(error: store::Error) -> Failure {
    error.explain()
}

/// Makes sure that `caller` may be told what `request` asks about this node's tables.
pub async fn check_examine(
    rooms: &Rooms,
    caller: &NodeId,
    verified: &Verified,
    request: &v1::ExamineRequest,
) -> Result<(), Failure> {
    check_parties(&rooms.me, caller, verified, &request.op_id, &EXAMINE)?;
    check_direction(verified, request.one_way)?;
    if request.selection.clone().unwrap_or_default() != verified.order.selection {
        return Err(exceeded(verified, "another selection of tables"));
    }
    match signed_intents::find(&rooms.store, verified.order.op_id).await.map_err(explain)? {
        Some(before) if before.has_ended || !before.is(verified) => Err(signed_intents::used(verified)),
        _ => Ok(()),
    }
}

/// Makes sure that `caller` may open the session it asks for, and writes down that the order was used for it.
///
/// The same order opens the same operation's session again, until that was closed.
pub async fn open(
    rooms: &Rooms,
    caller: &NodeId,
    verified: &Verified,
    request: &v1::OpenSessionRequest,
) -> Result<Scope, Failure> {
    check_parties(&rooms.me, caller, verified, &request.op_id, &OPEN)?;
    check_direction(verified, request.one_way)?;
    let selection = selection_of(&verified.order.selection);
    // What is copied again is in a publication already, whichever that is.
    if request.whole_database && !selection.is_whole_database() && !is_again(verified) {
        return Err(exceeded(verified, "the whole database"));
    }
    Box::pin(within(rooms, verified, selection, &request.tables)).await
}

/// Holds the tables a peer asks for against those that `selection` means here, and writes down that the order was used for
/// them.
async fn within(
    rooms: &Rooms,
    verified: &Verified,
    selection: Selection,
    tables: &[v1::SourceTable],
) -> Result<Scope, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
    let selected = tables::select(&session, &selection).await.map_err(|error| error.explain())?;
    let signed: HashSet<(u32, &TableName)> = selected.tables.iter().map(|table| (table.oid, &table.name)).collect();
    for asked in tables {
        let name = table_name(&asked.table.clone().unwrap_or_default());
        if !signed.contains(&(asked.oid, &name)) {
            return Err(exceeded(verified, &format!("table {name}")));
        }
    }
    match signed_intents::claim(&rooms.store, verified, Some(verified.order.op_id)).await.map_err(explain)? {
        Claim::First | Claim::Again => Ok(Scope { selection, one_way: verified.order.one_way }),
        Claim::Used => Err(signed_intents::used(verified)),
    }
}

/// Makes sure that `caller` may take the slot that was prepared for what it asks for, and writes down that the order was used
/// for it.
pub async fn take(
    rooms: &Rooms,
    caller: &NodeId,
    verified: &Verified,
    request: &v1::TakePreparedRequest,
    prepared: &v1::Selection,
) -> Result<Scope, Failure> {
    check_parties(&rooms.me, caller, verified, &request.op_id, &[Action::NodeComplete])?;
    check_direction(verified, request.one_way)?;
    if verified.order.method != request.prepare_id {
        return Err(exceeded(verified, &format!("preparation {}", request.prepare_id)));
    }
    if verified.order.selection != *prepared {
        return Err(exceeded(verified, "another selection of tables"));
    }
    let selection = selection_of(prepared);
    Box::pin(within(rooms, verified, selection, &request.tables)).await
}

/// Makes sure that `caller` may be told about this node, as one that replicates both ways with the source.
pub fn check_examine_member(
    caller: &NodeId,
    verified: &Verified,
    request: &v1::ExamineMemberRequest,
) -> Result<(), Failure> {
    check_parties(&named(&request.source)?, caller, verified, &request.op_id, &EXAMINE)?;
    check_direction(verified, false)
}

/// Makes sure that `caller` may join this node, which replicates both ways with the source it has signed, and writes down
/// that the order was used for it.
pub async fn join(
    rooms: &Rooms,
    caller: &NodeId,
    verified: &Verified,
    request: &v1::JoinMemberRequest,
) -> Result<Scope, Failure> {
    check_parties(&named(&request.source)?, caller, verified, &request.op_id, &OPEN)?;
    check_direction(verified, false)?;
    let selection = selection_of(&verified.order.selection);
    if request.whole_database && !selection.is_whole_database() && !is_again(verified) {
        return Err(exceeded(verified, "the whole database"));
    }
    let session = rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
    let selected = tables::select(&session, &selection).await.map_err(|error| error.explain())?;
    let signed: HashSet<&TableName> = selected.tables.iter().map(|table| &table.name).collect();
    if let Some(more) = request.tables.iter().map(table_name).find(|name| !signed.contains(name)) {
        return Err(exceeded(verified, &format!("table {more}")));
    }
    match signed_intents::claim(&rooms.store, verified, Some(verified.order.op_id)).await.map_err(explain)? {
        Claim::First | Claim::Again => Ok(Scope { selection, one_way: false }),
        Claim::Used => Err(signed_intents::used(verified)),
    }
}

/// What an operator has signed to remove a node, as it is told from agent to agent.
///
/// It is told until the last one has heard of it, so that the time it was signed for may have passed; that the same
/// operation is done once keeps it from being used again.
pub fn check_removal(
    identity: &Identity,
    request: &v1::ForgetNodeRequest,
    now: Timestamp,
) -> Result<Verified, Failure> {
    let missing = || Failure::new(Code::IntentMissing, "nobody has signed this removal");
    let signed = request.signed.as_ref().ok_or_else(missing)?;
    let verified = intent::verify_told(identity, signed, now)?;
    match verified.order.action {
        Action::NodeRemove => Ok(verified),
        other => Err(Failure::new(
            Code::IntentMisdirected,
            format!("what {} signed is an order for {other}, not to remove a node", verified.signer),
        )),
    }
}

fn named(node: &str) -> Result<NodeId, Failure> {
    node.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))
}

/// Makes sure that `op` was opened here by `caller`, or by nobody at all, so that it may be closed.
pub async fn check_close(rooms: &Rooms, caller: &NodeId, op: OperationId) -> Result<(), Failure> {
    let is_anothers = match signed_intents::find(&rooms.store, op).await.map_err(explain)? {
        Some(opened) => opened.target != *caller,
        None => operations::find(&rooms.store, op).await.map_err(explain)?.is_some(),
    };
    if is_anothers { Err(not_yours(caller, &format!("operation {op}"))) } else { Ok(()) }
}

pub(super) fn check_parties(
    me: &NodeId,
    caller: &NodeId,
    verified: &Verified,
    op_id: &str,
    actions: &[Action],
) -> Result<(), Failure> {
    let Verified { order, signer, .. } = verified;
    let misdirected = |why: String| {
        let text = format!("what {signer} signed is not for {caller} to show to {me}: {why}");
        Err(Failure::new(Code::IntentMisdirected, text))
    };
    if !actions.contains(&order.action) {
        return misdirected(format!("it is an order for {}", order.action));
    }
    if order.target != *caller {
        return misdirected(format!("its target is {}", order.target));
    }
    match &order.source {
        Some(source) if source == me => {}
        Some(other) => return misdirected(format!("its source is {other}")),
        None => return misdirected("it names no source".into()),
    }
    if order.op_id.to_string() != op_id {
        return misdirected(format!("it is for operation {}", order.op_id));
    }
    Ok(())
}

pub(super) fn check_direction(verified: &Verified, one_way: bool) -> Result<(), Failure> {
    if verified.order.one_way == one_way {
        return Ok(());
    }
    Err(exceeded(verified, if one_way { "replication one way" } else { "replication both ways" }))
}

fn exceeded(verified: &Verified, what: &str) -> Failure {
    let text = format!("{} asks for {what}, which {} has not signed", verified.order.target, verified.signer);
    Failure::new(Code::IntentExceeded, text)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use steep_protocol::{intent::Order, wire::identity::PeerId};

    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().expect("a name")
    }

    #[test]
    fn an_order_is_for_one_target_one_source_one_operation_and_one_action() {
        let op = OperationId::generate();
        let order =
            Order { source: Some(node("node_a")), one_way: true, ..Order::new(Action::NodeStart, op, node("node_b")) };
        let verified = |order: &Order| Verified {
            order: order.clone(),
            signer: PeerId::from_uri("spiffe://m/operator/admin/alice").expect("an identity"),
            not_after: Timestamp::now(),
            signed: v1::SignedIntent::default(),
        };
        let start = &[Action::NodeStart];
        let check = |order: &Order, me: &str, caller: &str, op: OperationId| {
            check_parties(&node(me), &node(caller), &verified(order), &op.to_string(), start).map_err(|f| f.code)
        };
        assert_eq!(check(&order, "node_a", "node_b", op), Ok(()));
        for (order, me, caller, op) in [
            (order.clone(), "node_a", "node_c", op),
            (order.clone(), "node_c", "node_b", op),
            (order.clone(), "node_a", "node_b", OperationId::generate()),
            (Order { source: None, ..order.clone() }, "node_a", "node_b", op),
            (Order { action: Action::NodePlan, ..order.clone() }, "node_a", "node_b", op),
        ] {
            assert_eq!(check(&order, me, caller, op), Err(Code::IntentMisdirected), "{me} {caller} {order:?}");
        }
        assert!(check_direction(&verified(&order), true).is_ok());
        assert!(check_direction(&verified(&order), false).is_err(), "one way was signed");
    }
}
