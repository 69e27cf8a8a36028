//! Asks the agents: tries the peers in order, within a deadline, and remembers who answered.
//!
//! Everything asked here may be asked twice (an operation starts once, whoever hears of it first), so a
//! request that one agent cannot serve goes to the next. What changes anything is signed with the operator's key, so
//! that the agents need not believe each other. The only file that knows how requests travel.

mod preparations;
mod schemas;
mod slots;
mod snapshots;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use steep_protocol::{
    failure::{Code, Explain as _, Failure, Family},
    ids::{NodeId, OperationId},
    intent::{self, Order},
    operation::Action,
    v1::{
        self, agents_client::AgentsClient, certificates_client::CertificatesClient, mesh_client::MeshClient,
        nodes_client::NodesClient, operations_client::OperationsClient,
    },
    wire::{
        identity::{Expect, Identity},
        rpc::{self, MAX_MESSAGE_BYTES, PeerChannel},
    },
};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    output::{Output, safe},
    pki::{inspect, revoke},
    units,
};

/// How long one agent may take to let us in.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long one agent may take to answer, where nothing longer is known to be needed.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Where the certificate files are.
#[derive(Debug, Clone)]
pub struct Files {
    /// Our certificate with its chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The mesh's root.
    pub ca: PathBuf,
}

/// A way to ask the mesh. Clones share nothing but the identity and the connection that answered last.
#[derive(Debug, Clone)]
pub struct Client<'a> {
    peers: Vec<String>,
    files: Files,
    identity: Arc<Identity>,
    deadline: Option<Instant>,
    out: &'a Output,
    current: Option<(usize, PeerChannel)>,
    /// The last request may have come to the agent it was for, though no answer came back.
    may_have_arrived: bool,
}

/// What one attempt at one agent came to.
enum Attempt {
    /// The agent said no: its word counts.
    Refused(Failure),
    /// The agent could not be asked, or not serve us now.
    Elsewhere(Missed),
}

/// Why one agent could not serve us.
struct Missed {
    failure: Failure,
    /// The agent said so itself, about its own way to somebody else.
    is_agents_word: bool,
    /// The agent that was meant may have been asked all the same.
    may_have_arrived: bool,
}

impl From<Failure> for Missed {
    /// A failure of our own way to the agent, before it was asked.
    fn from(failure: Failure) -> Self {
        Self { failure, is_agents_word: false, may_have_arrived: false }
    }
}

impl<'a> Client<'a> {
    /// A client that has not connected yet.
    ///
    /// `limit` is for all that follows, together; without it each request has a limit of its own.
    pub fn new(peers: &[String], files: Files, limit: Option<Duration>, out: &'a Output) -> Result<Self, Failure> {
        debug_assert!(!peers.is_empty(), "the command line was checked for a peer");
        let identity = Identity::load(&files.cert, &files.key, &files.ca).map_err(|error| error.explain())?;
        go_by_lists(&identity, &files.ca.with_file_name(revoke::FILE), out);
        Ok(Self {
            peers: peers.to_vec(),
            files,
            identity: Arc::new(identity),
            deadline: limit.map(|limit| Instant::now() + limit),
            out,
            current: None,
            may_have_arrived: false,
        })
    }

    /// When the whole command must be done; nothing without `--timeout`.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// All nodes.
    pub async fn list_nodes(&mut self) -> Result<v1::ListNodesReply, Failure> {
        self.ask(ANSWER_LIMIT, async |channel| nodes(channel).list(v1::ListNodesRequest {}).await).await
    }

    /// One node.
    pub async fn get_node(&mut self, node_id: &str) -> Result<v1::GetNodeReply, Failure> {
        let request = v1::GetNodeRequest { node_id: node_id.to_owned() };
        self.ask(ANSWER_LIMIT, async |channel| nodes(channel).get(request.clone()).await).await
    }

    /// Starts, or plans, an initialization; the answer may take as long as `limit`. `confirmed`: the operator has typed
    /// the name of the node whose rows may be destroyed.
    pub async fn start_node(
        &mut self,
        request: &v1::StartNodeRequest,
        confirmed: bool,
        limit: Duration,
    ) -> Result<v1::StartNodeReply, Failure> {
        let signed = self.sign(&Order::to_start(request, confirmed)?)?;
        self.ask(limit, async |channel| nodes(channel).start(with(&signed, request)).await).await
    }

    /// Cancels what runs on a node.
    pub async fn cancel_node(&mut self, node: &NodeId) -> Result<v1::CancelNodeReply, Failure> {
        let request = v1::CancelNodeRequest { node_id: node.to_string() };
        let signed = self.sign(&Order::new(Action::NodeCancel, OperationId::generate(), node.clone()))?;
        self.ask(ANSWER_LIMIT, async |channel| nodes(channel).cancel(with(&signed, &request)).await).await
    }

    /// Copies tables of a node again, or plans that; the answer may take as long as `limit`. `confirmed`: the operator has
    /// confirmed with the node's name that rows are replaced.
    pub async fn reinit_node(
        &mut self,
        request: &v1::ReinitNodeRequest,
        confirmed: bool,
        limit: Duration,
    ) -> Result<v1::ReinitNodeReply, Failure> {
        let signed = self.sign(&Order::to_reinit(request, confirmed)?)?;
        self.ask(limit, async |channel| nodes(channel).reinit(with(&signed, request)).await).await
    }

    /// Takes a node out of replication; the answer may take as long as `limit`.
    pub async fn remove_node(
        &mut self,
        request: &v1::RemoveNodeRequest,
        limit: Duration,
    ) -> Result<v1::RemoveNodeReply, Failure> {
        let signed = self.sign(&Order::to_remove(request)?)?;
        self.ask(limit, async |channel| nodes(channel).remove(with(&signed, request)).await).await
    }

    /// Operations of one node, or of all for an empty `node_id`.
    pub async fn list_operations(&mut self, node_id: &str, limit: u32) -> Result<v1::ListOperationsReply, Failure> {
        let request = v1::ListOperationsRequest { node_id: node_id.to_owned(), limit };
        self.ask(ANSWER_LIMIT, async |channel| operations(channel).list(request.clone()).await).await
    }

    /// One operation, by its id or the beginning of it.
    pub async fn get_operation(&mut self, op_id: &str) -> Result<v1::GetOperationReply, Failure> {
        let request = v1::GetOperationRequest { op_id: op_id.to_owned() };
        self.ask(ANSWER_LIMIT, async |channel| operations(channel).get(request.clone()).await).await
    }

    /// Asks operation `op_id` of node `target` to stop and clean up.
    pub async fn cancel_operation(&mut self, op_id: &str, target: &str) -> Result<v1::CancelOperationReply, Failure> {
        let bad = |error: &dyn std::error::Error| Failure::new(Code::BadRequest, error.to_string());
        let (op, target): (OperationId, NodeId) =
            (op_id.parse().map_err(|error| bad(&error))?, target.parse().map_err(|error| bad(&error))?);
        let request = v1::CancelOperationRequest { op_id: op_id.to_owned() };
        let order = Order::new(Action::OperationCancel, OperationId::generate(), target).about(op);
        let signed = self.sign(&order)?;
        self.ask(ANSWER_LIMIT, async |channel| operations(channel).cancel(with(&signed, &request)).await).await
    }

    /// All members of the mesh.
    pub async fn list_members(&mut self) -> Result<v1::ListMembersReply, Failure> {
        self.ask(ANSWER_LIMIT, async |channel| mesh(channel).list(v1::ListMembersRequest {}).await).await
    }

    /// How each agent reaches each other.
    pub async fn matrix(&mut self) -> Result<v1::MatrixReply, Failure> {
        self.ask(ANSWER_LIMIT, async |channel| mesh(channel).matrix(v1::MatrixRequest {}).await).await
    }

    /// Has one agent asked, or all for an empty `node_id`.
    pub async fn ping(&mut self, node_id: &str) -> Result<v1::PingReply, Failure> {
        let request = v1::PingRequest { node_id: node_id.to_owned() };
        self.ask(ANSWER_LIMIT, async |channel| mesh(channel).ping(request.clone()).await).await
    }

    /// Has the agent join through `seed`.
    pub async fn join(&mut self, seed: &str) -> Result<v1::JoinReply, Failure> {
        let request = v1::JoinRequest { seed: seed.to_owned() };
        self.ask(ANSWER_LIMIT * 2, async |channel| mesh(channel).join(request.clone()).await).await
    }

    /// Has the agent of a node leave.
    pub async fn leave(&mut self, node_id: &str) -> Result<v1::LeaveReply, Failure> {
        let request = v1::LeaveRequest { node_id: node_id.to_owned() };
        let signed = self.sign_about(Action::MeshLeave, node_id)?;
        self.ask(ANSWER_LIMIT, async |channel| mesh(channel).leave(with(&signed, &request)).await).await
    }

    /// Has all agents forget a node.
    pub async fn forget(&mut self, node_id: &str) -> Result<v1::ForgetReply, Failure> {
        let request = v1::ForgetRequest { node_id: node_id.to_owned() };
        self.ask(ANSWER_LIMIT, async |channel| mesh(channel).forget(request.clone()).await).await
    }

    /// The events of an operation after a cursor.
    pub async fn watch(&mut self, op_id: &str, after: u64) -> Result<Events, Failure> {
        let request = v1::WatchOperationRequest { op_id: op_id.to_owned(), after };
        self.ask(ANSWER_LIMIT, async |channel| operations(channel).watch(request.clone()).await).await.map(Events)
    }

    /// Hands in revocation lists.
    pub async fn publish_revocations(&mut self, lists: &str) -> Result<v1::PublishRevocationsReply, Failure> {
        let request = v1::PublishRevocationsRequest { lists: lists.to_owned() };
        let ask = async |channel| CertificatesClient::new(channel).publish_revocations(request.clone()).await;
        self.ask(ANSWER_LIMIT, ask).await
    }

    /// What an agent is as a program.
    pub async fn agent_info(&mut self, node_id: &str) -> Result<v1::AgentInfoReply, Failure> {
        let request = v1::AgentInfoRequest { node_id: node_id.to_owned() };
        self.ask(ANSWER_LIMIT, async |channel| agents(channel).info(request.clone()).await).await
    }

    /// Has an agent read its configuration again.
    pub async fn reload_agent(&mut self, node_id: &str) -> Result<v1::ReloadAgentReply, Failure> {
        let request = v1::ReloadAgentRequest { node_id: node_id.to_owned() };
        let signed = self.sign_about(Action::AgentReload, node_id)?;
        self.ask(ANSWER_LIMIT, async |channel| agents(channel).reload(with(&signed, &request)).await).await
    }

    /// Has an agent take no new work, or take it again.
    pub async fn drain_agent(&mut self, node_id: &str, undo: bool) -> Result<v1::DrainAgentReply, Failure> {
        let request = v1::DrainAgentRequest { node_id: node_id.to_owned(), undo };
        let signed = self.sign_about(if undo { Action::AgentUndrain } else { Action::AgentDrain }, node_id)?;
        self.ask(ANSWER_LIMIT, async |channel| agents(channel).drain(with(&signed, &request)).await).await
    }

    /// Sets how much an agent logs.
    pub async fn set_log_level(&mut self, request: &v1::SetLogLevelRequest) -> Result<v1::SetLogLevelReply, Failure> {
        let signed = self.sign_about(Action::AgentLogLevel, &request.node_id)?;
        self.ask(ANSWER_LIMIT, async |channel| agents(channel).set_log_level(with(&signed, request)).await).await
    }

    /// What agents logged.
    pub async fn events(&mut self, request: &v1::EventsRequest) -> Result<AgentEvents, Failure> {
        self.ask(ANSWER_LIMIT, async |channel| agents(channel).events(request.clone()).await).await.map(AgentEvents)
    }

    /// `failure` of a request to start operation `op_id`; where nobody said no, and perhaps only the answer was lost, with how
    /// to find out.
    pub fn perhaps_started(&self, failure: Failure, op_id: &str) -> Failure {
        let is_unanswered = matches!(failure.code.family(), Family::Timeout | Family::Connection);
        if !(is_unanswered && self.may_have_arrived) {
            return failure;
        }
        let hint = format!("{}; it may have started all the same: steepctl op show {op_id}", failure.hint);
        failure.hint(hint)
    }

    /// Forgets the connection, so that the next request makes a new one.
    pub fn hang_up(&mut self) {
        self.current = None;
    }

    /// Signs what is to be changed, once: whichever agents hear of it, it is one order.
    fn sign(&self, order: &Order) -> Result<v1::SignedIntent, Failure> {
        intent::sign(&self.identity, order, jiff::Timestamp::now(), intent::LIFETIME)
    }

    /// Signs what is to be done with `node` alone.
    fn sign_about(&self, action: Action, node: &str) -> Result<v1::SignedIntent, Failure> {
        let node: NodeId = node.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))?;
        self.sign(&Order::new(action, OperationId::generate(), node))
    }

    /// Asks one peer after the other until one answers for itself.
    async fn ask<R>(
        &mut self,
        limit: Duration,
        call: impl AsyncFn(PeerChannel) -> Result<Response<R>, Status>,
    ) -> Result<R, Failure> {
        let first = self.current.as_ref().map_or(0, |(at, _)| *at);
        let mut missed = Vec::new();
        let count = self.peers.len();
        for at in (0..count).map(|step| (first + step) % count) {
            let patience = Instant::now() + limit + CONNECT_LIMIT;
            let patience = self.deadline.map_or(patience, |deadline| deadline.min(patience));
            let attempt = match timeout_at(patience, self.ask_one(at, &call)).await {
                Ok(Ok(reply)) => {
                    if at > 0 {
                        self.out.answered_elsewhere();
                    }
                    return Ok(reply);
                }
                Ok(Err(attempt)) => attempt,
                // It is not known how far it came.
                Err(_) => Attempt::Elsewhere(Missed { may_have_arrived: true, ..self.silence(at, limit).into() }),
            };
            self.current = None;
            match attempt {
                Attempt::Refused(failure) => return Err(failure),
                Attempt::Elsewhere(why) => {
                    self.out.detail(&format!("{}: {}", self.peers[at], safe(&why.failure.message)));
                    missed.push((at, why));
                }
            }
            if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                break;
            }
        }
        self.may_have_arrived = missed.iter().any(|(_, why)| why.may_have_arrived);
        Err(self.nobody_answered(missed))
    }

    async fn ask_one<R>(
        &mut self,
        at: usize,
        call: &impl AsyncFn(PeerChannel) -> Result<Response<R>, Status>,
    ) -> Result<R, Attempt> {
        let channel = match &self.current {
            Some((current, channel)) if *current == at => channel.clone(),
            _ => {
                let connecting = rpc::connect_tcp(&self.peers[at], &self.identity, Expect::AnyNode);
                let connected = timeout(CONNECT_LIMIT, connecting).await;
                let connected = connected.unwrap_or_else(|_| Err(self.no_connection(at)));
                let channel = connected.map_err(|failure| Attempt::Elsewhere(failure.into()))?;
                self.current = Some((at, channel.clone()));
                channel
            }
        };
        match call(channel).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => {
                let failure = rpc::failure_of(&status);
                let is_agents_word = !status.details().is_empty();
                let elsewhere = match failure.code.family() {
                    Family::Connection | Family::Timeout => true,
                    // The connection was refused, not the request; another agent may be set up better.
                    Family::Permission => !is_agents_word,
                    _ => false,
                };
                let may_have_arrived = rpc::is_unanswered(&status);
                let missed = Missed { failure, is_agents_word, may_have_arrived };
                Err(if elsewhere { Attempt::Elsewhere(missed) } else { Attempt::Refused(missed.failure) })
            }
        }
    }

    fn no_connection(&self, at: usize) -> Failure {
        let limit = units::duration(CONNECT_LIMIT);
        Failure::new(Code::PeerUnreachable, format!("cannot reach {}: no answer within {limit}", self.peers[at]))
    }

    fn silence(&self, at: usize, limit: Duration) -> Failure {
        let peer = &self.peers[at];
        match self.deadline {
            Some(deadline) if deadline <= Instant::now() => {
                Failure::new(Code::PeerSilent, format!("{peer} did not answer before --timeout"))
            }
            _ => Failure::new(Code::PeerSilent, format!("{peer} did not answer within {}", units::duration(limit))),
        }
    }

    /// The one failure for all peers that could not serve us.
    fn nobody_answered(&self, mut missed: Vec<(usize, Missed)>) -> Failure {
        let refused = missed.iter().map(|(_, why)| why.failure.code).find(|code| code.family() == Family::Permission);
        if refused.is_some()
            && let Some(failure) = self.own_certificate_has_expired()
        {
            return failure;
        }
        // What an agent knows about its way to the node helps more than that other agents are down.
        let best = missed.iter().position(|(_, why)| why.is_agents_word);
        if let Some(best) = best.or_else(|| (missed.len() == 1).then_some(0)) {
            return missed.swap_remove(best).1.failure;
        }
        let code = refused.or_else(|| missed.first().map(|(_, why)| why.failure.code));
        let agents = units::counted(missed.len() as u64, "agent");
        let failure = Failure::new(code.unwrap_or(Code::PeerUnreachable), format!("none of {agents} could be asked"));
        missed.into_iter().fold(failure, |failure, (at, Missed { failure: why, .. })| {
            let peer = &self.peers[at];
            let reason = why.causes.into_iter().fold(why.message, |text, cause| format!("{text}: {cause}"));
            failure.cause(if reason.contains(peer) { reason } else { format!("{peer}: {reason}") })
        })
    }

    /// TLS tells a refused client little; our own file says whether time is the reason.
    fn own_certificate_has_expired(&self) -> Option<Failure> {
        let inspected = inspect::file(&self.files.cert).ok()?;
        let now = jiff::Timestamp::now();
        let what = match inspected.validity_at(now) {
            inspect::Validity::Valid { .. } => return None,
            inspect::Validity::NotYet { from } => format!("is not valid before {}", units::date_time(from)),
            inspect::Validity::Expired { since } => format!("expired at {}", units::date_time(since)),
        };
        let message = format!("your certificate {} {what}", self.files.cert.display());
        Some(Failure::new(Code::CertificateExpired, message))
    }
}

/// A request with what was signed for it.
fn with<T: Clone>(signed: &v1::SignedIntent, message: &T) -> Request<T> {
    let mut request = Request::new(message.clone());
    intent::attach(&mut request, signed);
    request
}

/// Goes by the revocation lists beside the root, where there are any: an agent with a revoked certificate is none.
fn go_by_lists(identity: &Identity, path: &Path, out: &Output) {
    let Ok(pem) = std::fs::read_to_string(path) else { return };
    let learnt = identity
        .read_lists(&pem)
        .and_then(|lists| lists.into_iter().try_for_each(|list| identity.learn(list).map(drop)));
    if let Err(error) = learnt {
        out.detail(&format!("{} is left aside: {}", path.display(), safe(&error.to_string())));
    }
}

fn nodes(channel: PeerChannel) -> NodesClient<PeerChannel> {
    NodesClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn operations(channel: PeerChannel) -> OperationsClient<PeerChannel> {
    OperationsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn mesh(channel: PeerChannel) -> MeshClient<PeerChannel> {
    MeshClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn agents(channel: PeerChannel) -> AgentsClient<PeerChannel> {
    AgentsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// What agents logged, as it arrives.
#[derive(Debug)]
pub struct AgentEvents(Streaming<v1::AgentEvent>);

impl AgentEvents {
    /// The next; nothing when the agent has no more to say. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<v1::AgentEvent>, Failure> {
        self.0.message().await.map_err(|status| rpc::failure_of(&status))
    }
}

/// The events of an operation as they arrive.
#[derive(Debug)]
pub struct Events(Streaming<v1::OperationEvent>);

impl Events {
    /// The next event; nothing when the agent has no more to say. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<v1::OperationEvent>, Failure> {
        self.0.message().await.map_err(|status| rpc::failure_of(&status))
    }
}
