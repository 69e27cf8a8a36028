//! Who may ask what: one table, looked up before anything else happens.
//!
//! A caller is what its certificate says. A node may pass on the request of an operator who asked it
//! ([`super::forward`]): its word is enough to look, in the operator's name and with their role. To change anything it
//! must bring what the operator has signed, so that whoever holds a node's key acts as nobody else.
//!
//! The table names every method there is; what it does not name does not exist for anybody. Health and reflection are not in it:
//! they are open to whoever could connect.

use std::{fmt, sync::Arc};

use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    intent::Verified,
    operation::Role,
    v1,
    wire::identity::{PeerId, Who},
};

use crate::store::Actor;

/// The metadata key under which a forwarding agent names the operator who asked it.
pub const FORWARDED_FOR: &str = "steep-forwarded-for";
/// The package of all services the table must name.
pub const PACKAGE: &str = "steep.v1";

/// Every call there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named as in the .proto files: service, then method")]
pub enum Rpc {
    NodesList,
    NodesGet,
    NodesStart,
    NodesCancel,
    NodesRemove,
    NodesReinit,
    OperationsList,
    OperationsGet,
    OperationsWatch,
    OperationsCancel,
    MeshList,
    MeshMatrix,
    MeshPing,
    MeshJoin,
    MeshLeave,
    MeshForget,
    CertificatesPublishRevocations,
    AgentsInfo,
    AgentsReload,
    AgentsDrain,
    AgentsSetLogLevel,
    AgentsEvents,
    SchemasCapture,
    SchemasCompare,
    SchemasPlan,
    SchemasSync,
    SchemasExport,
    SchemasHistory,
    PreparationsPrepare,
    PreparationsList,
    PreparationsChange,
    PreparationsComplete,
    SlotsList,
    SlotsDrop,
    SequencesRead,
    SequencesCheck,
    SequencesSync,
    SnapshotsGenerate,
    SnapshotsApply,
    SnapshotsList,
    SnapshotsVerify,
    SnapshotsDelete,
    PeersHello,
    PeersExchange,
    PeersLinks,
    PeersFetchRevocations,
    PeersFetchSchema,
    PeersFollowSlots,
    PeersNeedSlots,
    PeersExamine,
    PeersOpenSession,
    PeersReopenSession,
    PeersOpenSnapshot,
    PeersLendFiles,
    PeersExamineMember,
    PeersJoinMember,
    PeersForgetNode,
    PeersRenewSession,
    PeersCountRows,
    PeersReleaseSnapshot,
    PeersReadSequences,
    PeersDescribeTables,
    PeersWriteMarker,
    PeersSlotProgress,
    PeersSubscribe,
    PeersCopyNatively,
    PeersTakePrepared,
    PeersSeesLock,
    PeersCloseSession,
}

/// Who may use a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Agents only.
    Nodes,
    /// Operators of at least this role.
    From(Role),
}

/// Whether a call needs what an operator has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// No: it changes nothing, or only what a session allows that was opened by a signature.
    No,
    /// Where it comes through another agent; an operator who asks directly has shown who they are.
    WhenForwarded,
    /// Never, since no agent passes it on: it is asked of the agent that is meant.
    OnlyDirect,
    /// Always: another agent must believe it too.
    Always,
}

/// The table: call, its name in the protocol, who may, and whether it must be signed.
pub const TABLE: &[(Rpc, &str, Allowed, Signed)] = &[
    (Rpc::NodesList, "steep.v1.Nodes/List", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::NodesGet, "steep.v1.Nodes/Get", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::NodesStart, "steep.v1.Nodes/Start", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::NodesCancel, "steep.v1.Nodes/Cancel", Allowed::From(Role::Operator), Signed::WhenForwarded),
    (Rpc::NodesRemove, "steep.v1.Nodes/Remove", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::NodesReinit, "steep.v1.Nodes/Reinit", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::OperationsList, "steep.v1.Operations/List", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::OperationsGet, "steep.v1.Operations/Get", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::OperationsWatch, "steep.v1.Operations/Watch", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::OperationsCancel, "steep.v1.Operations/Cancel", Allowed::From(Role::Operator), Signed::WhenForwarded),
    (Rpc::MeshList, "steep.v1.Mesh/List", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::MeshMatrix, "steep.v1.Mesh/Matrix", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::MeshPing, "steep.v1.Mesh/Ping", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::MeshJoin, "steep.v1.Mesh/Join", Allowed::From(Role::Operator), Signed::OnlyDirect),
    (Rpc::MeshLeave, "steep.v1.Mesh/Leave", Allowed::From(Role::Operator), Signed::WhenForwarded),
    (Rpc::MeshForget, "steep.v1.Mesh/Forget", Allowed::From(Role::Admin), Signed::OnlyDirect),
    (
        Rpc::CertificatesPublishRevocations,
        "steep.v1.Certificates/PublishRevocations",
        Allowed::From(Role::Admin),
        Signed::OnlyDirect,
    ),
    (Rpc::AgentsInfo, "steep.v1.Agents/Info", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::AgentsReload, "steep.v1.Agents/Reload", Allowed::From(Role::Admin), Signed::WhenForwarded),
    (Rpc::AgentsDrain, "steep.v1.Agents/Drain", Allowed::From(Role::Operator), Signed::WhenForwarded),
    (Rpc::AgentsSetLogLevel, "steep.v1.Agents/SetLogLevel", Allowed::From(Role::Operator), Signed::WhenForwarded),
    (Rpc::AgentsEvents, "steep.v1.Agents/Events", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SchemasCapture, "steep.v1.Schemas/Capture", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SchemasCompare, "steep.v1.Schemas/Compare", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SchemasPlan, "steep.v1.Schemas/Plan", Allowed::From(Role::Viewer), Signed::No),
    // The target's configuration may ask for an admin.
    (Rpc::SchemasSync, "steep.v1.Schemas/Sync", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::SchemasExport, "steep.v1.Schemas/Export", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SchemasHistory, "steep.v1.Schemas/History", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::PreparationsPrepare, "steep.v1.Preparations/Prepare", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::PreparationsList, "steep.v1.Preparations/List", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::PreparationsChange, "steep.v1.Preparations/Change", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::PreparationsComplete, "steep.v1.Preparations/Complete", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::SlotsList, "steep.v1.Slots/List", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SlotsDrop, "steep.v1.Slots/Drop", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::SequencesRead, "steep.v1.Sequences/Read", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SequencesCheck, "steep.v1.Sequences/Check", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SequencesSync, "steep.v1.Sequences/Sync", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::SnapshotsGenerate, "steep.v1.Snapshots/Generate", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::SnapshotsApply, "steep.v1.Snapshots/Apply", Allowed::From(Role::Operator), Signed::Always),
    (Rpc::SnapshotsList, "steep.v1.Snapshots/List", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SnapshotsVerify, "steep.v1.Snapshots/Verify", Allowed::From(Role::Viewer), Signed::No),
    (Rpc::SnapshotsDelete, "steep.v1.Snapshots/Delete", Allowed::From(Role::Admin), Signed::Always),
    (Rpc::PeersHello, "steep.v1.Peers/Hello", Allowed::Nodes, Signed::No),
    (Rpc::PeersExchange, "steep.v1.Peers/Exchange", Allowed::Nodes, Signed::No),
    (Rpc::PeersLinks, "steep.v1.Peers/Links", Allowed::Nodes, Signed::No),
    (Rpc::PeersFetchRevocations, "steep.v1.Peers/FetchRevocations", Allowed::Nodes, Signed::No),
    // What tables look like, and no row of them.
    (Rpc::PeersFetchSchema, "steep.v1.Peers/FetchSchema", Allowed::Nodes, Signed::No),
    // Names, positions and why a slot is lost; of slots kept for others nothing is told.
    (Rpc::PeersFollowSlots, "steep.v1.Peers/FollowSlots", Allowed::Nodes, Signed::No),
    (Rpc::PeersNeedSlots, "steep.v1.Peers/NeedSlots", Allowed::Nodes, Signed::No),
    (Rpc::PeersExamine, "steep.v1.Peers/Examine", Allowed::Nodes, Signed::Always),
    (Rpc::PeersOpenSession, "steep.v1.Peers/OpenSession", Allowed::Nodes, Signed::Always),
    (Rpc::PeersOpenSnapshot, "steep.v1.Peers/OpenSnapshot", Allowed::Nodes, Signed::Always),
    (Rpc::PeersLendFiles, "steep.v1.Peers/LendFiles", Allowed::Nodes, Signed::Always),
    (Rpc::PeersExamineMember, "steep.v1.Peers/ExamineMember", Allowed::Nodes, Signed::Always),
    (Rpc::PeersJoinMember, "steep.v1.Peers/JoinMember", Allowed::Nodes, Signed::Always),
    (Rpc::PeersTakePrepared, "steep.v1.Peers/TakePrepared", Allowed::Nodes, Signed::Always),
    // One bit about a number the caller made up.
    (Rpc::PeersSeesLock, "steep.v1.Peers/SeesLock", Allowed::Nodes, Signed::No),
    // What an operator signed for it comes in the message: it is told for longer than a signature begins anything.
    (Rpc::PeersForgetNode, "steep.v1.Peers/ForgetNode", Allowed::Nodes, Signed::No),
    // From here on within a session of the caller's, which only a signature opens.
    (Rpc::PeersReopenSession, "steep.v1.Peers/ReopenSession", Allowed::Nodes, Signed::No),
    (Rpc::PeersRenewSession, "steep.v1.Peers/RenewSession", Allowed::Nodes, Signed::No),
    (Rpc::PeersCountRows, "steep.v1.Peers/CountRows", Allowed::Nodes, Signed::No),
    (Rpc::PeersReleaseSnapshot, "steep.v1.Peers/ReleaseSnapshot", Allowed::Nodes, Signed::No),
    (Rpc::PeersReadSequences, "steep.v1.Peers/ReadSequences", Allowed::Nodes, Signed::No),
    (Rpc::PeersDescribeTables, "steep.v1.Peers/DescribeTables", Allowed::Nodes, Signed::No),
    (Rpc::PeersWriteMarker, "steep.v1.Peers/WriteMarker", Allowed::Nodes, Signed::No),
    (Rpc::PeersSlotProgress, "steep.v1.Peers/SlotProgress", Allowed::Nodes, Signed::No),
    (Rpc::PeersSubscribe, "steep.v1.Peers/Subscribe", Allowed::Nodes, Signed::No),
    (Rpc::PeersCopyNatively, "steep.v1.Peers/CopyNatively", Allowed::Nodes, Signed::No),
    (Rpc::PeersCloseSession, "steep.v1.Peers/CloseSession", Allowed::Nodes, Signed::No),
];

impl Rpc {
    /// The call with this path, `/steep.v1.Nodes/List`.
    pub fn of_path(path: &str) -> Option<Self> {
        let name = path.strip_prefix('/')?;
        TABLE.iter().find(|(_, known, ..)| *known == name).map(|(rpc, ..)| *rpc)
    }

    /// As the protocol names it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> &'static (Self, &'static str, Allowed, Signed) {
        TABLE.iter().find(|(known, ..)| *known == self).expect("every call stands in the table")
    }
}

/// Somebody who may ask what they asked.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The person or agent on whose behalf things happen.
    pub who: Who,
    /// The agent that passed the request on, if any.
    pub through: Option<NodeId>,
    /// What an operator has signed for this request; of agents among themselves, another than the caller.
    pub intent: Option<Arc<Verified>>,
    /// What they may call.
    pub(super) rpc: Rpc,
    /// Whose certificate the connection has shown.
    pub(super) peer: PeerId,
}

impl Caller {
    /// The calling agent, for calls only agents may make.
    pub fn node(&self) -> &NodeId {
        match &self.who {
            Who::Node(node) => node,
            Who::Operator { .. } => unreachable!("the table lets only agents make this call"),
        }
    }

    /// What was signed, for calls that must be.
    pub fn signed(&self) -> &Verified {
        self.intent.as_ref().expect("the table lets only signed requests make this call")
    }

    /// Who to write down as the one who did it.
    pub fn actor(&self) -> Actor {
        actor(&self.who)
    }
}

/// Somebody as log and audit know them.
pub fn actor(who: &Who) -> Actor {
    match who {
        Who::Node(node) => Actor::node(node),
        Who::Operator { role, name } => Actor::operator(name, *role),
    }
}

/// Somebody who may not ask what they asked.
#[derive(Debug)]
pub struct Denied {
    /// Whose certificate the connection has shown; none: it had no identity.
    pub peer: Option<PeerId>,
    /// Who, for log and audit.
    pub who: String,
    /// What they called.
    pub rpc: Rpc,
    /// Why.
    pub failure: Failure,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.who, self.failure)
    }
}

/// A request as the gate sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Whose certificate the connection has shown.
    pub peer: Option<&'a PeerId>,
    /// What is called.
    pub rpc: Rpc,
    /// On whose behalf, as the caller says.
    pub forwarded_for: Option<&'a [u8]>,
    /// What came along signed.
    pub intent: Option<&'a v1::SignedIntent>,
}

/// Looks the caller up in the table; `verify` says whether what is signed can be believed.
pub fn admit(
    asked: Asked<'_>,
    verify: impl FnOnce(&v1::SignedIntent) -> Result<Verified, Failure>,
) -> Result<Caller, Box<Denied>> {
    let rpc = asked.rpc;
    let deny = |who: String, failure: Failure| Box::new(Denied { peer: asked.peer.cloned(), who, rpc, failure });
    let denied = |who: String, why: String| deny(who, Failure::new(Code::Denied, why));
    let peer = asked.peer.ok_or_else(|| denied("nobody".into(), "the connection has no identity".into()))?;
    let (_, name, allowed, signed) = rpc.row();
    let (who, through) =
        caller_of(peer, asked.forwarded_for).map_err(|why| denied(peer.to_string(), format!("{peer} {why}")))?;
    let id = PeerId { mesh: peer.mesh.clone(), who };
    let refuse = |needs: &str| Err(denied(id.to_string(), format!("{id} may not call {name}: {needs}")));
    match (allowed, &id.who) {
        (Allowed::Nodes, Who::Node(_)) if through.is_none() => {}
        (Allowed::Nodes, _) => return refuse("it is for agents alone"),
        (Allowed::From(least), Who::Operator { role, .. }) if role >= least => {}
        (Allowed::From(least), _) => {
            return refuse(&format!("it needs the certificate of an operator with role {least} or higher"));
        }
    }
    if let (Signed::OnlyDirect, Some(through)) = (signed, &through) {
        return refuse(&format!("it is asked of the agent that is meant, and {through} passed it on"));
    }
    let must = match signed {
        Signed::No | Signed::OnlyDirect => false,
        Signed::WhenForwarded => through.is_some(),
        Signed::Always => true,
    };
    let intent = match asked.intent.filter(|_| !matches!(signed, Signed::No | Signed::OnlyDirect)) {
        Some(intent) => Some(verify(intent).map_err(|failure| deny(id.to_string(), failure))?),
        None if must => {
            let text = format!("{id} may not call {name} without an operator's signature");
            return Err(deny(id.to_string(), Failure::new(Code::IntentMissing, text)));
        }
        None => None,
    };
    if let (Some(intent), Allowed::From(_)) = (&intent, allowed)
        && intent.signer != id
    {
        let text = format!("{id} may not call {name} with what {} signed", intent.signer);
        return Err(deny(id.to_string(), Failure::new(Code::IntentMisdirected, text)));
    }
    Ok(Caller { who: id.who, through, intent: intent.map(Arc::new), rpc, peer: peer.clone() })
}

fn caller_of(peer: &PeerId, forwarded_for: Option<&[u8]>) -> Result<(Who, Option<NodeId>), &'static str> {
    let Some(original) = forwarded_for else { return Ok((peer.who.clone(), None)) };
    let Who::Node(through) = &peer.who else { return Err("may not speak for others") };
    let named = std::str::from_utf8(original).ok().and_then(|uri| PeerId::from_uri(uri).ok());
    match named {
        Some(PeerId { mesh, who: who @ Who::Operator { .. } }) if mesh == peer.mesh => Ok((who, Some(through.clone()))),
        _ => Err("speaks for somebody who is no operator of this mesh"),
    }
}

#[cfg(test)]
mod tests;
