//! What an operator wants done, signed with their own key, so that agents need not believe each other.
//!
//! An [`Order`] is what is wanted; [`sign`] makes a message of it that is good for one use within minutes; [`verify`]
//! says what was ordered and by whom, or why it is not believed. The message travels as metadata beside a request
//! ([`attach`], [`carried`]), through as many agents as it has to. Whether the request asks for what was ordered, and
//! whether the order was used before, the reader of both must say.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    operation::Action,
    time, v1,
    wire::{
        identity::{Identity, PeerId, Who},
        signature::{self, GRACE, Signature},
    },
};

/// The metadata key under which a signed intent travels.
pub const METADATA: &str = "steep-intent-bin";
/// How long what steepctl signs is good for.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// Nobody may sign for longer: an order that lies about is an order that is stolen.
const LONGEST_LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// The largest message; some 1,500 table names. In metadata it takes a third more.
pub const MAX_BYTES: usize = 64 << 10;
/// How the input of an apply begins that names a snapshot which its node's agent sends.
pub const PEER_INPUT: &str = "peer:";
const CONTEXT: &str = "steep signed intent 1";
const VERSION: u32 = 1;

/// What an operator wants done, in the words they sign.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// What.
    pub action: Action,
    /// Made for this order alone; an operation it begins has the same id.
    pub op_id: OperationId,
    /// The node whose agent is to act.
    pub target: NodeId,
    /// The node whose rows the target may read.
    pub source: Option<NodeId>,
    /// The operation it is about, where that is not `op_id`.
    pub subject: Option<OperationId>,
    /// Which of the source's tables; empty: all.
    pub selection: v1::Selection,
    /// How to copy; of a schema sync, the digests of source and target it was planned for; the slot to drop; of a sync
    /// of sequences, its margin; of a snapshot, where it lies and how it is written.
    pub method: String,
    /// What is done about tables of the target that differ; empty: they are refused.
    pub schema_sync: String,
    /// From source to target only.
    pub one_way: bool,
    /// The target's rows may be destroyed.
    pub force: bool,
    /// The operator typed the target's name to confirm that.
    pub confirmed: bool,
}

impl Order {
    /// An order about `target` alone.
    pub fn new(action: Action, op_id: OperationId, target: NodeId) -> Self {
        Self {
            action,
            op_id,
            target,
            source: None,
            subject: None,
            selection: v1::Selection::default(),
            method: String::new(),
            schema_sync: String::new(),
            one_way: false,
            force: false,
            confirmed: false,
        }
    }

    /// The same, about another operation than one it would begin.
    #[must_use]
    pub fn about(mut self, subject: OperationId) -> Self {
        self.subject = Some(subject);
        self
    }

    /// What a request to start a node, or to plan that, amounts to.
    ///
    /// Fails on a request that names no nodes or no operation.
    pub fn to_start(request: &v1::StartNodeRequest, confirmed: bool) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let action = if request.dry_run { Action::NodePlan } else { Action::NodeStart };
        Ok(Self {
            source: Some(request.source.parse().map_err(|error| bad(&error))?),
            selection: request.selection.clone().unwrap_or_default(),
            method: request.method.clone(),
            schema_sync: request.schema_sync.clone(),
            one_way: request.one_way,
            force: request.force,
            confirmed,
            ..Self::new(
                action,
                request.op_id.parse().map_err(|error| bad(&error))?,
                request.target.parse().map_err(|error| bad(&error))?,
            )
        })
    }

    /// What a request to copy tables of a node again, or to plan that, amounts to. Rows go: that is signed as force.
    ///
    /// Fails on a request that names no nodes or no operation.
    pub fn to_reinit(request: &v1::ReinitNodeRequest, confirmed: bool) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let action = if request.dry_run { Action::NodePlanReinit } else { Action::NodeReinit };
        Ok(Self {
            source: Some(request.source.parse().map_err(|error| bad(&error))?),
            selection: request.selection.clone().unwrap_or_default(),
            method: if request.in_place { "in-place".into() } else { "staged".into() },
            one_way: request.one_way,
            force: !request.dry_run,
            confirmed,
            ..Self::new(
                action,
                request.op_id.parse().map_err(|error| bad(&error))?,
                request.target.parse().map_err(|error| bad(&error))?,
            )
        })
    }

    /// What a request to prepare a node for a backup amounts to.
    ///
    /// Fails on a request that names no node.
    pub fn to_prepare(request: &v1::PrepareRequest, op: OperationId) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let node = request.node_id.parse().map_err(|error| bad(&error))?;
        let v1::PrepareRequest { purpose, slot, expires_seconds, target, .. } = request;
        Ok(Self {
            selection: request.selection.clone().unwrap_or_default(),
            method: format!("{purpose} {slot:?} for {target:?}, {expires_seconds} s"),
            ..Self::new(Action::NodePrepare, op, node)
        })
    }

    /// What a request to change a preparation amounts to.
    ///
    /// Fails on a request that names no node.
    pub fn to_change_prepared(request: &v1::ChangePreparationRequest, op: OperationId) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let node = request.node_id.parse().map_err(|error| bad(&error))?;
        let v1::ChangePreparationRequest { what, prepare_id, expires_seconds, .. } = request;
        let method = format!("{what} {prepare_id}, {expires_seconds} s");
        Ok(Self { method, ..Self::new(Action::NodeChangePrepared, op, node) })
    }

    /// What a request to complete a node amounts to.
    ///
    /// Fails on a request that names no nodes or no operation.
    pub fn to_complete(request: &v1::CompleteNodeRequest) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        Ok(Self {
            source: Some(request.source.parse().map_err(|error| bad(&error))?),
            selection: request.selection.clone().unwrap_or_default(),
            method: request.prepare_id.clone(),
            one_way: request.one_way,
            ..Self::new(
                Action::NodeComplete,
                request.op_id.parse().map_err(|error| bad(&error))?,
                request.target.parse().map_err(|error| bad(&error))?,
            )
        })
    }

    /// What a request to remove a node amounts to. That what is not sent may be lost is signed as force.
    ///
    /// Fails on a request that names no node or no operation.
    pub fn to_remove(request: &v1::RemoveNodeRequest) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let op = request.op_id.parse().map_err(|error| bad(&error))?;
        let node = request.node_id.parse().map_err(|error| bad(&error))?;
        Ok(Self { force: request.drop_slots, ..Self::new(Action::NodeRemove, op, node) })
    }

    /// What a request to sync a schema amounts to.
    ///
    /// Fails on a request that names no nodes.
    pub fn to_sync(request: &v1::SyncSchemaRequest, op: OperationId) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let target = request.target.parse().map_err(|error| bad(&error))?;
        Ok(Self {
            source: Some(request.source.parse().map_err(|error| bad(&error))?),
            selection: request.selection.clone().unwrap_or_default(),
            method: format!("{} {}", request.source_digest, request.target_digest),
            ..Self::new(Action::SchemaSync, op, target)
        })
    }

    /// What a request to drop a slot amounts to.
    ///
    /// Fails on a request that names no node.
    pub fn to_drop_slot(request: &v1::DropSlotRequest, op: OperationId) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let node = request.node_id.parse().map_err(|error| bad(&error))?;
        Ok(Self { method: request.slot.clone(), force: request.force, ..Self::new(Action::SlotDrop, op, node) })
    }

    /// What a request to move sequences ahead amounts to.
    ///
    /// Fails on a request that names no nodes.
    pub fn to_sync_sequences(request: &v1::SyncSequencesRequest, op: OperationId) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let target = request.target.parse().map_err(|error| bad(&error))?;
        Ok(Self {
            source: Some(request.source.parse().map_err(|error| bad(&error))?),
            method: format!("margin {}", request.margin),
            ..Self::new(Action::SequenceSync, op, target)
        })
    }

    /// What a request to write a snapshot amounts to.
    ///
    /// Fails on a request that names no node or no operation.
    pub fn to_generate(request: &v1::GenerateSnapshotRequest) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let op = request.op_id.parse().map_err(|error| bad(&error))?;
        let node: NodeId = request.node_id.parse().map_err(|error| bad(&error))?;
        let (compress, expires) = (&request.compress, request.expires_seconds);
        Ok(Self {
            source: Some(node.clone()),
            selection: request.selection.clone().unwrap_or_default(),
            method: format!("compress {compress} expires {expires} output {}", request.output),
            ..Self::new(Action::SnapshotGenerate, op, node)
        })
    }

    /// What a request to initialize a node from a snapshot amounts to.
    ///
    /// Fails on a request that names no nodes or no operation.
    pub fn to_apply(request: &v1::ApplySnapshotRequest, confirmed: bool) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let what = if request.no_subscribe { "rows" } else { "subscribe" };
        let op = request.op_id.parse().map_err(|error| bad(&error))?;
        let target = request.target.parse().map_err(|error| bad(&error))?;
        Ok(Self {
            source: Some(request.source.parse().map_err(|error| bad(&error))?),
            method: format!("{what} input {}", request.input),
            one_way: request.one_way,
            force: request.force,
            confirmed,
            ..Self::new(Action::SnapshotApply, op, target)
        })
    }

    /// The snapshot whose files the target may have from the source's agent; none: this orders nothing of the kind.
    pub fn lent_snapshot(&self) -> Option<&str> {
        let (_, input) = self.method.split_once(" input ").filter(|_| self.action == Action::SnapshotApply)?;
        input.strip_prefix(PEER_INPUT)
    }

    /// What a request to delete a snapshot amounts to.
    ///
    /// Fails on a request that names no node.
    pub fn to_delete_snapshot(request: &v1::DeleteSnapshotRequest, op: OperationId) -> Result<Self, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let node = request.node_id.parse().map_err(|error| bad(&error))?;
        Ok(Self { method: request.snapshot_id.clone(), ..Self::new(Action::SnapshotDelete, op, node) })
    }

    /// What `asked` asks for and this order does not say; nothing where it says all of it.
    pub fn lacks(&self, asked: &Self) -> Option<String> {
        let id = |id: Option<OperationId>| id.map(|id| id.to_string()).unwrap_or_default();
        let node = |node: &Option<NodeId>| node.as_ref().map(ToString::to_string).unwrap_or_default();
        let words = [
            ("action", self.action.to_string(), asked.action.to_string()),
            ("target", self.target.to_string(), asked.target.to_string()),
            ("source", node(&self.source), node(&asked.source)),
            ("op_id", self.op_id.to_string(), asked.op_id.to_string()),
            ("subject", id(self.subject), id(asked.subject)),
            ("method", self.method.clone(), asked.method.clone()),
            ("schema_sync", self.schema_sync.clone(), asked.schema_sync.clone()),
            ("one_way", self.one_way.to_string(), asked.one_way.to_string()),
            ("force", self.force.to_string(), asked.force.to_string()),
        ];
        let other = words.into_iter().find(|(_, signed, asked)| signed != asked);
        let other = other.map(|(what, signed, asked)| format!("{what} {signed:?} was signed, not {asked:?}"));
        other.or_else(|| (self.selection != asked.selection).then(|| "another selection of tables was signed".into()))
    }
}

/// An order that is believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// What was ordered.
    pub order: Order,
    /// By whom; always an operator of our mesh whose role suffices.
    pub signer: PeerId,
    /// The last moment at which something may be begun by it.
    pub not_after: Timestamp,
    /// As it was received, to be shown to others.
    pub signed: v1::SignedIntent,
}

/// Signs `order` as `identity`, good from `now` for `lifetime`.
///
/// Fails with [`Code::IntentTooLong`] where it names too many tables.
pub fn sign(
    identity: &Identity,
    order: &Order,
    now: Timestamp,
    lifetime: Duration,
) -> Result<v1::SignedIntent, Failure> {
    let until = now + SignedDuration::try_from(lifetime).unwrap_or(LONGEST_LIFETIME);
    let intent = v1::Intent {
        version: VERSION,
        mesh: identity.me().mesh.to_string(),
        signer: identity.me().uri(),
        action: order.action.to_string(),
        op_id: order.op_id.to_string(),
        target: order.target.to_string(),
        source: order.source.as_ref().map(ToString::to_string).unwrap_or_default(),
        subject: order.subject.map(|op| op.to_string()).unwrap_or_default(),
        selection: Some(order.selection.clone()),
        method: order.method.clone(),
        schema_sync: order.schema_sync.clone(),
        one_way: order.one_way,
        force: order.force,
        confirmed: order.confirmed,
        not_before: Some(time::message(now)),
        not_after: Some(time::message(until)),
    };
    let intent = intent.encode_to_vec();
    let Signature { scheme, bytes, chain } = signature::sign(identity, CONTEXT, &intent)
        .map_err(|error| Failure::new(Code::CertificateUnusable, error.to_string()))?;
    let signed = v1::SignedIntent { intent, signature: bytes, scheme: scheme.into(), chain };
    if signed.encoded_len() > MAX_BYTES {
        let text = format!("the request comes to {} bytes, and at most {MAX_BYTES} are signed", signed.encoded_len());
        return Err(Failure::new(Code::IntentTooLong, text));
    }
    Ok(signed)
}

/// What was ordered and by whom, as `identity`, whose clock says `now`, may believe it.
///
/// The signature fits; the signer is an operator of our mesh with a valid certificate and a role that suffices; the
/// time is right. Fails with [`Code::IntentInvalid`], [`Code::SignerRefused`] or [`Code::IntentExpired`].
pub fn verify(identity: &Identity, signed: &v1::SignedIntent, now: Timestamp) -> Result<Verified, Failure> {
    let invalid = |text: String| Failure::new(Code::IntentInvalid, text);
    if signed.encoded_len() > MAX_BYTES {
        return Err(invalid(format!("a signed request of {} bytes is none of ours", signed.encoded_len())));
    }
    let signature = Signature {
        scheme: u16::try_from(signed.scheme).unwrap_or(0),
        bytes: signed.signature.clone(),
        chain: signed.chain.clone(),
    };
    let signer =
        signature::verify(identity, CONTEXT, &signed.intent, &signature, now).map_err(|error| match error {
            signature::Error::Chain(why) => {
                let text = "the certificate of whoever signed the request is refused";
                let failure = match why.code {
                    // A new certificate does not help against a clock.
                    Code::CertificateExpired => Failure::new(Code::SignerRefused, text).hint(why.hint),
                    _ => Failure::new(Code::SignerRefused, text),
                };
                why.causes.into_iter().fold(failure.cause(why.message), Failure::cause)
            }
            error => invalid(format!("the signed request is not believed: {error}")),
        })?;
    let intent = v1::Intent::decode(&signed.intent[..])
        .map_err(|error| invalid(format!("what {signer} signed cannot be read")).caused_by(&error))?;
    if intent.version != VERSION {
        let text = format!("what {signer} signed is of version {}, this agent knows {VERSION}", intent.version);
        return Err(invalid(text).hint("use a steepctl of the agent's version, or upgrade the agent"));
    }
    let ours = &identity.me().mesh;
    if signer.mesh != *ours || intent.mesh != ours.as_str() || intent.signer != signer.uri() {
        let text =
            format!("signed by {signer} of mesh {} for {:?} of mesh {:?}", signer.mesh, intent.signer, intent.mesh);
        return Err(Failure::new(Code::SignerRefused, text).cause(format!("this is mesh {ours}")));
    }
    let order = order_in(&intent).map_err(|why| invalid(format!("what {signer} signed makes no sense: {why}")))?;
    let least = order.action.role();
    match &signer.who {
        Who::Operator { role, .. } if *role >= least => {}
        _ => {
            let text =
                format!("{signer} may not order {}: it needs an operator with role {least} or higher", order.action);
            return Err(Failure::new(Code::SignerRefused, text));
        }
    }
    let not_after = in_time(&intent, &signer, now)?;
    Ok(Verified { order, signer, not_after, signed: signed.clone() })
}

/// The same, of what is told on for longer than it begins anything: judged as of now, or of the last moment of its time.
///
/// Only for what is done once, however often it is told.
pub fn verify_told(identity: &Identity, signed: &v1::SignedIntent, now: Timestamp) -> Result<Verified, Failure> {
    let until = v1::Intent::decode(&signed.intent[..]).ok().and_then(|intent| intent.not_after);
    let until = until.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
    verify(identity, signed, until.map_or(now, |until| until.min(now)))
}

/// What was ordered by `signed`, which was believed when it was first used; none: it cannot be read.
pub fn read(signed: &v1::SignedIntent) -> Option<Order> {
    order_in(&v1::Intent::decode(&signed.intent[..]).ok()?).ok()
}

fn order_in(intent: &v1::Intent) -> Result<Order, String> {
    fn word<T: std::str::FromStr<Err: ToString>>(text: &str) -> Result<T, String> {
        text.parse().map_err(|error: T::Err| error.to_string())
    }
    fn optional<T: std::str::FromStr<Err: ToString>>(text: &str) -> Result<Option<T>, String> {
        if text.is_empty() { Ok(None) } else { word(text).map(Some) }
    }
    Ok(Order {
        action: word(&intent.action)?,
        op_id: word(&intent.op_id)?,
        target: word(&intent.target)?,
        source: optional(&intent.source)?,
        subject: optional(&intent.subject)?,
        selection: intent.selection.clone().unwrap_or_default(),
        method: intent.method.clone(),
        schema_sync: intent.schema_sync.clone(),
        one_way: intent.one_way,
        force: intent.force,
        confirmed: intent.confirmed,
    })
}

/// The end of the intent's time, if `now` lies within it. A clock may run behind the signer's by [`GRACE`].
fn in_time(intent: &v1::Intent, signer: &PeerId, now: Timestamp) -> Result<Timestamp, Failure> {
    let moment = |at: Option<prost_types::Timestamp>| {
        let at = at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
        at.ok_or_else(|| {
            Failure::new(Code::IntentInvalid, format!("what {signer} signed does not say when it is good"))
        })
    };
    let (from, until) = (moment(intent.not_before)?, moment(intent.not_after)?);
    let grace = SignedDuration::try_from(GRACE).unwrap_or_default();
    let refused = |why: String| Err(Failure::new(Code::IntentExpired, format!("what {signer} signed {why}")));
    if until.duration_since(from) > LONGEST_LIFETIME {
        return refused(format!("is good for longer than an hour: from {from} until {until}"));
    }
    if now > until {
        return refused(format!("was good until {until}; here it is {now}"));
    }
    if now.duration_since(from) < -grace {
        return refused(format!("is not good before {from}; here it is {now}"));
    }
    Ok(until)
}

/// Sends `signed` along with a request.
pub fn attach<T>(request: &mut tonic::Request<T>, signed: &v1::SignedIntent) {
    request.metadata_mut().insert_bin(METADATA, MetadataValue::from_bytes(&signed.encode_to_vec()));
}

/// The signed intent that came with a request, if one did.
pub fn carried(metadata: &MetadataMap) -> Result<Option<v1::SignedIntent>, Failure> {
    let Some(value) = metadata.get_bin(METADATA) else { return Ok(None) };
    let unreadable = || Failure::new(Code::IntentInvalid, "the signed request cannot be read");
    let bytes = value.to_bytes().map_err(|error| unreadable().caused_by(&error))?;
    v1::SignedIntent::decode(bytes).map(Some).map_err(|error| unreadable().caused_by(&error))
}
