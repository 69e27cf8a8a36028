//! Who may ask what: one table, looked up before anything else happens.
//!
//! A caller is what its certificate says. A node may pass on the request of an operator who asked it
//! ([`super::forward`]): then it is the operator's role that counts, and both names are recorded.

use std::sync::Arc;

use serde_json::json;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    operation::Role,
    wire::identity::{PeerId, Who},
};
use tonic::Request;
use tracing::warn;

use crate::{
    rooms::Rooms,
    store::{Actor, audit},
    telemetry,
};

/// The metadata key under which a forwarding agent names the operator who asked it.
pub const FORWARDED_FOR: &str = "steep-forwarded-for";

/// Every call there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the .proto files: service, then method")]
pub enum Rpc {
    NodesList,
    NodesGet,
    NodesStart,
    NodesCancel,
    NodesRemove,
    OperationsList,
    OperationsGet,
    OperationsWatch,
    OperationsCancel,
    Peers,
}

/// Who may use a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Agents only.
    Nodes,
    /// Operators of at least this role.
    From(Role),
}

/// The table. `Peers` stands for every method of the peer service.
pub const TABLE: &[(Rpc, &str, Allowed)] = &[
    (Rpc::NodesList, "steep.v1.Nodes/List", Allowed::From(Role::Viewer)),
    (Rpc::NodesGet, "steep.v1.Nodes/Get", Allowed::From(Role::Viewer)),
    (Rpc::NodesStart, "steep.v1.Nodes/Start", Allowed::From(Role::Operator)),
    (Rpc::NodesCancel, "steep.v1.Nodes/Cancel", Allowed::From(Role::Operator)),
    (Rpc::NodesRemove, "steep.v1.Nodes/Remove", Allowed::From(Role::Operator)),
    (Rpc::OperationsList, "steep.v1.Operations/List", Allowed::From(Role::Viewer)),
    (Rpc::OperationsGet, "steep.v1.Operations/Get", Allowed::From(Role::Viewer)),
    (Rpc::OperationsWatch, "steep.v1.Operations/Watch", Allowed::From(Role::Viewer)),
    (Rpc::OperationsCancel, "steep.v1.Operations/Cancel", Allowed::From(Role::Operator)),
    (Rpc::Peers, "steep.v1.Peers/*", Allowed::Nodes),
];

/// Somebody who may ask what they asked.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The person or agent on whose behalf things happen.
    pub who: Who,
    /// The agent that passed the request on, if any.
    pub through: Option<NodeId>,
}

impl Caller {
    /// The calling agent, for calls only agents may make.
    pub fn node(&self) -> &NodeId {
        match &self.who {
            Who::Node(node) => node,
            Who::Operator { .. } => unreachable!("the table lets only agents make this call"),
        }
    }

    /// Who to write down as the one who did it.
    pub fn actor(&self) -> Actor {
        match &self.who {
            Who::Node(node) => Actor::node(node),
            Who::Operator { role, name } => Actor::operator(name, *role),
        }
    }
}

/// Somebody who may not ask what they asked.
#[derive(Debug)]
pub struct Denied {
    /// Who, for log and audit.
    pub who: String,
    /// Why.
    pub failure: Failure,
}

impl Denied {
    fn new(who: impl ToString, why: impl Into<String>) -> Box<Self> {
        Box::new(Self { who: who.to_string(), failure: Failure::new(Code::Denied, why) })
    }
}

/// Looks the caller up in the table.
pub fn admit<T>(request: &Request<T>, rpc: Rpc) -> Result<Caller, Box<Denied>> {
    let nobody = || Denied::new("nobody", "the connection has no identity");
    let peer = request.extensions().get::<PeerId>().ok_or_else(nobody)?;
    let caller = caller_of(peer, request.metadata().get(FORWARDED_FOR).map(|value| value.as_bytes()))?;
    let (_, name, allowed) = TABLE.iter().find(|(known, ..)| *known == rpc).expect("every call stands in the table");
    let denied = |needs: &str| {
        let who = PeerId { mesh: peer.mesh.clone(), who: caller.who.clone() };
        Err(Denied::new(&who, format!("{who} may not call {name}: {needs}")))
    };
    match (allowed, &caller.who) {
        (Allowed::Nodes, Who::Node(_)) if caller.through.is_none() => Ok(caller),
        (Allowed::Nodes, _) => denied("it is for agents alone"),
        (Allowed::From(least), Who::Operator { role, .. }) if role >= least => Ok(caller),
        (Allowed::From(least), _) => {
            denied(&format!("it needs the certificate of an operator with role {least} or higher"))
        }
    }
}

fn caller_of(peer: &PeerId, forwarded_for: Option<&[u8]>) -> Result<Caller, Box<Denied>> {
    let Some(original) = forwarded_for else { return Ok(Caller { who: peer.who.clone(), through: None }) };
    let refuse = |why: &str| Err(Denied::new(peer, format!("{peer} {why}")));
    let Who::Node(through) = &peer.who else { return refuse("may not speak for others") };
    let named = std::str::from_utf8(original).ok().and_then(|uri| PeerId::from_uri(uri).ok());
    match named {
        Some(PeerId { mesh, who: who @ Who::Operator { .. } }) if mesh == peer.mesh => {
            Ok(Caller { who, through: Some(through.clone()) })
        }
        _ => refuse("speaks for somebody who is no operator of this mesh"),
    }
}

/// Logs and audits a denial.
pub async fn tell_denied(rooms: Option<Arc<Rooms>>, who: &str, rpc: Rpc, failure: &Failure) {
    warn!(event = "rpc.denied", details.caller = who, details.rpc = ?rpc, error = telemetry::failure(failure), "denied");
    let Some(rooms) = rooms else { return };
    let detail = json!({ "caller": who, "rpc": format!("{rpc:?}"), "reason": failure.message });
    let actor = Actor::agent(&rooms.me);
    if let Err(error) = audit::append(&rooms.store, &actor, "rpc.denied", who, None, &detail).await {
        warn!(reason = %error, "a denial could not be audited");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uri: &str) -> PeerId {
        PeerId::from_uri(uri).expect("an identity")
    }

    fn ask(uri: &str, forwarded_for: Option<&str>, rpc: Rpc) -> bool {
        let mut request = Request::new(());
        request.extensions_mut().insert(peer(uri));
        if let Some(original) = forwarded_for {
            request.metadata_mut().insert(FORWARDED_FOR, original.parse().expect("metadata"));
        }
        admit(&request, rpc).is_ok()
    }

    #[test]
    fn every_call_is_open_to_exactly_whom_the_table_names() {
        let callers = [
            ("spiffe://m/node/node_a", None),
            ("spiffe://m/operator/viewer/v", Some(Role::Viewer)),
            ("spiffe://m/operator/operator/o", Some(Role::Operator)),
            ("spiffe://m/operator/admin/a", Some(Role::Admin)),
        ];
        for (rpc, name, allowed) in TABLE {
            for (uri, role) in callers {
                let expected = match allowed {
                    Allowed::Nodes => role.is_none(),
                    Allowed::From(least) => role.is_some_and(|role| role >= *least),
                };
                assert_eq!(ask(uri, None, *rpc), expected, "{uri} calling {name}");
            }
        }
        assert!(admit(&Request::new(()), Rpc::NodesList).is_err(), "nobody may call anything");
    }

    #[test]
    fn a_forwarded_request_has_its_operators_rights_and_no_others() {
        let node = "spiffe://m/node/node_a";
        let cases = [
            (node, "spiffe://m/operator/viewer/v", Rpc::NodesStart, false),
            (node, "spiffe://m/operator/operator/o", Rpc::NodesStart, true),
            (node, "spiffe://m/operator/admin/a", Rpc::Peers, false),
            (node, "spiffe://other/operator/admin/a", Rpc::NodesStart, false),
            (node, "spiffe://m/node/node_b", Rpc::Peers, false),
            (node, "nonsense", Rpc::NodesList, false),
            ("spiffe://m/operator/viewer/v", "spiffe://m/operator/admin/a", Rpc::NodesStart, false),
        ];
        for (caller, original, rpc, expected) in cases {
            assert_eq!(ask(caller, Some(original), rpc), expected, "{caller} for {original} calling {rpc:?}");
        }
    }
}
