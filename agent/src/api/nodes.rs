//! The node service.

use steep_protocol::{
    failure::{Code, Explain as _, Failure, Family},
    intent::Order,
    node::NodeState,
    operation::Action,
    time,
    v1::{
        CancelNodeReply, CancelNodeRequest, GetNodeReply, GetNodeRequest, ListNodesReply, ListNodesRequest,
        NodeHeadline, ReinitNodeReply, ReinitNodeRequest, RemoveNodeReply, RemoveNodeRequest, StartNodeReply,
        StartNodeRequest, nodes_client::NodesClient, nodes_server::Nodes,
    },
    wire::rpc::{failure_of, status_of},
};
use tonic::{Request, Response, Status};
use tracing::info;

use super::{
    Door,
    authorize::Rpc,
    forward::{Owner, answer},
    reply,
};
use crate::{
    initialize::{reinit, start},
    postgres::{Purpose, slots, subscriptions},
    removal::operation,
    rooms::Rooms,
    store::{audit, follows, nodes, operations},
};

/// Answers for this node, forwards for others.
#[derive(Debug)]
pub struct Service(pub Door);

#[tonic::async_trait]
impl Nodes for Service {
    async fn list(&self, request: Request<ListNodesRequest>) -> Result<Response<ListNodesReply>, Status> {
        self.0.admit(&request, Rpc::NodesList).await?;
        let mut nodes = vec![self.own_headline()];
        nodes.extend(self.0.peers.headlines());
        nodes.sort_by(|one, other| one.node_id.cmp(&other.node_id));
        let mesh = self.0.peers.mesh().to_string();
        Ok(Response::new(ListNodesReply { served_by: self.0.me(), mesh, nodes }))
    }

    async fn get(&self, request: Request<GetNodeRequest>) -> Result<Response<GetNodeReply>, Status> {
        let caller = self.0.admit(&request, Rpc::NodesGet).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, NodesClient::new(channel).get(asked)).await;
        }
        self.get_own().await.map(Response::new).map_err(|failure| status_of(&failure))
    }

    async fn start(&self, request: Request<StartNodeRequest>) -> Result<Response<StartNodeReply>, Status> {
        let caller = self.0.admit(&request, Rpc::NodesStart).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.target, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, NodesClient::new(channel).start(asked)).await;
        }
        let order = Order::to_start(&request, false).map_err(|failure| status_of(&failure))?;
        self.0.heed(&caller, &order).await?;
        let rooms = self.0.rooms()?;
        let actor = caller.actor();
        let answered = match self.takes_work(&rooms, &request.op_id, request.dry_run) {
            Ok(()) => Box::pin(start::start(&rooms, &request, &actor, caller.signed())).await,
            Err(drained) => Err(drained),
        };
        let detail = serde_json::json!({
            "source": request.source, "dry_run": request.dry_run, "force": request.force,
            "through": caller.through.as_ref().map(ToString::to_string),
            "refused": answered.as_ref().err().map(ToString::to_string),
        });
        let op = answered.as_ref().ok().and_then(|answered| answered.op);
        audit::append(&rooms.store, &actor, "node.start", &request.target, op, &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let answered = match answered {
            Ok(answered) => answered,
            Err(failure) => return Err(self.0.refuse(&caller, failure).await),
        };
        Ok(Response::new(StartNodeReply {
            served_by: self.0.me(),
            op_id: answered.op.map(|op| op.to_string()).unwrap_or_default(),
            method: answered.method.to_string(),
            method_reason: answered.method_reason,
            checks: answered.checks,
            tables: answered.tables,
            mesh: answered.mesh,
        }))
    }

    async fn cancel(&self, request: Request<CancelNodeRequest>) -> Result<Response<CancelNodeReply>, Status> {
        let caller = self.0.admit(&request, Rpc::NodesCancel).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, NodesClient::new(channel).cancel(asked)).await;
        }
        self.0.heed(&caller, &caller.ordered(Action::NodeCancel, self.0.peers.me())).await?;
        let rooms = self.0.rooms()?;
        let Some((op, _)) = rooms.operations.current() else {
            let text = format!("nothing runs on {}", rooms.me);
            return Err(status_of(&Failure::new(Code::NothingRuns, text)));
        };
        self.0.spend(&caller, &rooms, Some(op)).await?;
        let actor = caller.actor();
        rooms.operations.cancel(op, &actor).await.map_err(|failure| status_of(&failure))?;
        info!(op_id = %op, actor = actor.to_json().to_string(), "cancel asked for");
        audit::append(&rooms.store, &actor, "node.cancel", rooms.me.as_str(), Some(op), &serde_json::json!({}))
            .await
            .map_err(|error| status_of(&error.explain()))?;
        Ok(Response::new(CancelNodeReply { served_by: self.0.me(), op_id: op.to_string() }))
    }

    async fn remove(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeReply>, Status> {
        let caller = self.0.admit(&request, Rpc::NodesRemove).await?;
        let request = request.into_inner();
        // By the node's own agent, if it can; otherwise here.
        let forwarded = match self.0.owner(&request.node_id, &caller).await {
            Ok(Owner::Me) => None,
            Ok(Owner::Peer(node, channel)) => {
                let asked = self.0.on_behalf_of(&caller, request.clone());
                Some(answer(&node, NodesClient::new(channel).remove(asked)).await)
            }
            Err(status) => Some(Err(status)),
        };
        match forwarded {
            None => {}
            Some(Err(status)) if is_out_of_reach(&status) => {
                let why = failure_of(&status);
                if !request.drop_slots {
                    let text = format!("{} cannot be asked to leave", request.node_id);
                    let failure = Failure::new(Code::NodeUnreachable, text).cause(why.message);
                    return Err(status_of(&failure.hint(format!(
                        "start its agent and PostgreSQL; or, what it has not sent is then lost: steepctl node remove {} --drop-slots",
                        request.node_id
                    ))));
                }
            }
            Some(answered) => return answered,
        }
        let order = Order::to_remove(&request).map_err(|failure| status_of(&failure))?;
        self.0.heed(&caller, &order).await?;
        let rooms = self.0.rooms()?;
        self.0.spend(&caller, &rooms, Some(order.op_id)).await?;
        let actor = caller.actor();
        let started = operation::start(&rooms, &request, &actor, caller.signed()).await;
        let detail = serde_json::json!({
            "drop_slots": request.drop_slots,
            "through": caller.through.as_ref().map(ToString::to_string),
            "refused": started.as_ref().err().map(ToString::to_string),
        });
        let op = started.as_ref().ok().copied();
        audit::append(&rooms.store, &actor, "node.remove", &request.node_id, op, &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let op = started.map_err(|failure| status_of(&failure))?;
        Ok(Response::new(RemoveNodeReply { served_by: self.0.me(), op_id: op.to_string() }))
    }

    async fn reinit(&self, request: Request<ReinitNodeRequest>) -> Result<Response<ReinitNodeReply>, Status> {
        let caller = self.0.admit(&request, Rpc::NodesReinit).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.target, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, NodesClient::new(channel).reinit(asked)).await;
        }
        let order = Order::to_reinit(&request, false).map_err(|failure| status_of(&failure))?;
        self.0.heed(&caller, &order).await?;
        let rooms = self.0.rooms()?;
        let actor = caller.actor();
        let answered = match self.takes_work(&rooms, &request.op_id, request.dry_run) {
            Ok(()) => Box::pin(reinit::request::start(&rooms, &request, &actor, caller.signed())).await,
            Err(drained) => Err(drained),
        };
        let detail = serde_json::json!({
            "source": request.source, "dry_run": request.dry_run, "in_place": request.in_place,
            "through": caller.through.as_ref().map(ToString::to_string),
            "refused": answered.as_ref().err().map(ToString::to_string),
        });
        let op = answered.as_ref().ok().and_then(|answered| answered.op);
        audit::append(&rooms.store, &actor, "node.reinit", &request.target, op, &detail)
            .await
            .map_err(|error| status_of(&error.explain()))?;
        let answered = match answered {
            Ok(answered) => answered,
            Err(failure) => return Err(self.0.refuse(&caller, failure).await),
        };
        Ok(Response::new(ReinitNodeReply {
            served_by: self.0.me(),
            op_id: answered.op.map(|op| op.to_string()).unwrap_or_default(),
            checks: answered.checks,
            tables: answered.tables,
            foreign_keys: answered.keys,
            other_tables: answered.others,
        }))
    }
}

/// Nobody said no: the agent, or the PostgreSQL beside it, could not be asked.
fn is_out_of_reach(status: &Status) -> bool {
    let code = failure_of(status).code;
    matches!(code.family(), Family::Connection | Family::Timeout) || code == Code::StoreFailed
}

impl Service {
    /// A drained agent starts nothing; it still plans, and knows what it has started.
    fn takes_work(&self, rooms: &Rooms, op_id: &str, dry_run: bool) -> Result<(), Failure> {
        let runs_already = op_id.parse().is_ok_and(|op| rooms.operations.is_running(op));
        if dry_run || runs_already {
            return Ok(());
        }
        self.0.upkeep.drain.refuse(&rooms.me, "starts no operation")
    }

    /// The headline as last measured, with what runs this very moment.
    fn own_headline(&self) -> NodeHeadline {
        let mut headline = self.0.peers.facts().headline;
        (headline.as_of, headline.age_ms) = (Some(time::now()), Some(0));
        headline.liveness = "alive".into();
        let current = self.0.rooms.borrow().as_ref().and_then(|rooms| rooms.operations.current());
        if let Some((op, progress)) = current {
            headline.op_id = op.to_string();
            headline.percent = Some(progress.overall_percent);
            headline.eta_seconds = progress.eta_seconds;
        }
        headline
    }

    async fn get_own(&self) -> Result<GetNodeReply, Failure> {
        let facts = self.0.peers.facts();
        let mut headline = self.own_headline();
        let rooms = self.0.rooms.borrow().clone();
        let mut reply = GetNodeReply {
            served_by: self.0.me(),
            headline: Some(headline.clone()),
            system_identifier: facts.system_identifier,
            database: facts.database,
            ..GetNodeReply::default()
        };
        // Without PostgreSQL the headline is all there is, and says why.
        let Some(rooms) = rooms else { return Ok(reply) };
        let Ok(session) = rooms.database.session(Purpose::Watch).await else { return Ok(reply) };
        let own = nodes::own(&rooms.store).await.map_err(|error| error.explain())?;
        headline.state = own.init_state.to_string();
        reply.headline = Some(headline);
        reply.init_started_at = own.init_started_at.map(time::message);
        reply.init_completed_at = own.init_completed_at.map(time::message);
        let subscriptions = subscriptions::list(&session).await.map_err(|error| error.explain())?;
        reply.subscriptions = subscriptions.iter().map(reply::subscription).collect();
        let slots = slots::list(&session).await.map_err(|error| error.explain())?;
        let peers: Vec<_> = self.0.peers.names().collect();
        reply.slots = slots.iter().map(|slot| reply::slot(slot, &peers)).collect();
        let last = operations::list(&rooms.store, 1).await.map_err(|error| error.explain())?;
        reply.last_failure = last.first().and_then(|op| op.failure.as_ref()).map(Into::into);
        if own.init_state == NodeState::Diverged
            && let Some(failure) = follows::divergence(&rooms.store).await.map_err(|error| error.explain())?
        {
            reply.last_failure = Some((&failure).into());
        }
        Ok(reply)
    }
}
