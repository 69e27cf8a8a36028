//! The agent service: what an agent is as a program, and what an operator does with it.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use steep_protocol::{
    failure::{Code, Failure},
    operation::Action,
    time,
    v1::{
        self, AgentEvent, AgentInfoReply, AgentInfoRequest, DrainAgentReply, DrainAgentRequest, EventsRequest,
        ReloadAgentReply, ReloadAgentRequest, SetLogLevelReply, SetLogLevelRequest, agents_client::AgentsClient,
        agents_server::Agents,
    },
    version,
    wire::{
        identity::{PeerId, Who},
        rpc::{failure_of, status_of},
    },
};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{
    Door,
    authorize::{Caller, Rpc},
    events,
    forward::{Owner, answer},
};
use crate::{
    metrics::process,
    store::{Actor, audit},
    telemetry::level,
    upkeep::drain::Drained,
};

/// The longest time a level may be set for.
const LONGEST: u64 = 7 * 24 * 3600;

/// Answers for this agent, forwards for others.
#[derive(Debug)]
pub struct Service(pub Door);

#[tonic::async_trait]
impl Agents for Service {
    async fn info(&self, request: Request<AgentInfoRequest>) -> Result<Response<AgentInfoReply>, Status> {
        let caller = self.0.admit(&request, Rpc::AgentsInfo).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, AgentsClient::new(channel).info(asked)).await;
        }
        Ok(Response::new(self.info_of_own()))
    }

    async fn reload(&self, request: Request<ReloadAgentRequest>) -> Result<Response<ReloadAgentReply>, Status> {
        let caller = self.0.admit(&request, Rpc::AgentsReload).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, AgentsClient::new(channel).reload(asked)).await;
        }
        self.0.heed_about_me(&caller, Action::AgentReload).await?;
        let reloaded = self.0.upkeep.reload();
        let detail = serde_json::json!({ "refused": reloaded.as_ref().err().map(ToString::to_string) });
        self.note(&caller, "agent.reload", &detail).await;
        let reloaded = reloaded.map_err(|failure| status_of(&failure))?;
        Ok(Response::new(ReloadAgentReply {
            served_by: self.0.me(),
            changed: reloaded.changed,
            needs_restart: reloaded.needs_restart,
        }))
    }

    async fn drain(&self, request: Request<DrainAgentRequest>) -> Result<Response<DrainAgentReply>, Status> {
        let caller = self.0.admit(&request, Rpc::AgentsDrain).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, AgentsClient::new(channel).drain(asked)).await;
        }
        self.0.heed_about_me(&caller, if request.undo { Action::AgentUndrain } else { Action::AgentDrain }).await?;
        let (drain, actor) = (&self.0.upkeep.drain, caller.actor());
        let told = actor.to_json().to_string();
        let drained = if request.undo {
            drain.end().map_err(|failure| status_of(&failure))?;
            info!(event = "agent.undrained", actor = told, "the agent takes work again");
            None
        } else {
            let drained = drain.begin(&actor.to_string()).map_err(|failure| status_of(&failure))?;
            info!(event = "agent.drained", actor = told, "the agent takes no new work");
            Some(drained)
        };
        self.note(&caller, "agent.drain", &serde_json::json!({ "undo": request.undo })).await;
        let rooms = self.0.rooms.borrow().clone();
        let (op, sessions) = rooms.map_or_else(Default::default, |rooms| {
            (rooms.operations.current().map(|(op, _)| op.to_string()), rooms.sessions.operations())
        });
        Ok(Response::new(DrainAgentReply {
            served_by: self.0.me(),
            drained: drained.map(message),
            op_id: op.unwrap_or_default(),
            session_op_ids: sessions.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn set_log_level(&self, request: Request<SetLogLevelRequest>) -> Result<Response<SetLogLevelReply>, Status> {
        let caller = self.0.admit(&request, Rpc::AgentsSetLogLevel).await?;
        let request = request.into_inner();
        if let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await? {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, AgentsClient::new(channel).set_log_level(asked)).await;
        }
        self.0.heed_about_me(&caller, Action::AgentLogLevel).await?;
        let bad = |text: String| status_of(&Failure::new(Code::BadRequest, text));
        let level = match request.level.as_str() {
            "" => None,
            text => Some(level::parse(text).ok_or_else(|| {
                bad(format!("{text:?} is no level of the log; there are error, warn, info, debug and trace"))
            })?),
        };
        if request.for_seconds > LONGEST {
            return Err(bad(format!("{} s is too long; a week at most", request.for_seconds)));
        }
        let lasting = (request.for_seconds > 0).then(|| Duration::from_secs(request.for_seconds));
        let log = &self.0.upkeep.log;
        let before = log.set(level, lasting);
        let now = log.loudness();
        let told = caller.actor().to_json().to_string();
        info!(event = "agent.log_level", actor = told, details.level = now.level, "the level of the log was set");
        self.note(&caller, "agent.log_level", &serde_json::json!({ "level": now.level })).await;
        Ok(Response::new(SetLogLevelReply {
            served_by: self.0.me(),
            level: now.level,
            previous: before.level,
            until: now.until.map(time::message),
        }))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<AgentEvent, Status>> + Send>>;

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let caller = self.0.admit(&request, Rpc::AgentsEvents).await?;
        let request = request.into_inner();
        if !request.node_id.is_empty()
            && let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await?
        {
            let asked = self.0.on_behalf_of(&caller, request);
            let told = answer(&node, AgentsClient::new(channel).events(asked)).await?.into_inner();
            let told = told.map(|event| event.map_err(|status| status_of(&failure_of(&status))));
            return Ok(Response::new(told.take_until(self.0.stop.clone().cancelled_owned()).boxed()));
        }
        let told = events::told(&self.0, &caller, request).map_err(|failure| status_of(&failure))?;
        Ok(Response::new(told.map(Ok).take_until(self.0.stop.clone().cancelled_owned()).boxed()))
    }
}

impl Service {
    fn info_of_own(&self) -> AgentInfoReply {
        let (facts, upkeep) = (self.0.peers.facts(), &self.0.upkeep);
        let config = &upkeep.config;
        let identity = PeerId { mesh: self.0.peers.mesh().clone(), who: Who::Node(self.0.peers.me().clone()) };
        let (certificate_until, root_until) = upkeep.validity();
        let (loudness, usage) = (upkeep.log.loudness(), process::usage());
        let mut reply = AgentInfoReply {
            served_by: self.0.me(),
            node_id: self.0.me(),
            mesh: identity.mesh.to_string(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            protocol: version::PROTOCOL,
            oldest_protocol: version::OLDEST_UNDERSTOOD,
            instance_id: facts.instance_id,
            started_at: Some(time::message(upkeep.started_at)),
            config_path: config.path.display().to_string(),
            listen: config.mesh.listen.clone(),
            advertised: self.0.peers.address().to_owned(),
            http_listen: config.http.listen.to_string(),
            identity: identity.uri(),
            certificate_until: certificate_until.map(time::message),
            root_until: root_until.map(time::message),
            postgres_version: facts.headline.postgres_version,
            postgres_address: facts.headline.postgres_address,
            database: facts.database,
            system_identifier: facts.system_identifier,
            drained: upkeep.drain.now().map(message),
            log_level: loudness.level,
            log_level_until: loudness.until.map(time::message),
            resources: Some(v1::Resources {
                resident_bytes: usage.resident_bytes,
                cpu_seconds: usage.cpu_seconds,
                open_files: usage.open_files,
                most_open_files: usage.most_open_files,
            }),
            health: facts.headline.health,
            health_reason: facts.headline.health_reason,
            ..AgentInfoReply::default()
        };
        if let Some(rooms) = self.0.rooms.borrow().as_ref() {
            reply.op_id = rooms.operations.current().map(|(op, _)| op.to_string()).unwrap_or_default();
            reply.sessions = rooms
                .sessions
                .list()
                .iter()
                .map(|held| v1::OpenSession {
                    session_id: held.id.to_string(),
                    op_id: held.op.to_string(),
                    target_node: held.target.to_string(),
                    retained_bytes: held.retained_bytes(),
                })
                .collect();
        }
        reply
    }

    /// Writes down who did it; these commands work without PostgreSQL too, and then the log alone has it.
    async fn note(&self, caller: &Caller, action: &str, detail: &serde_json::Value) {
        let Some(rooms) = self.0.rooms.borrow().clone() else { return };
        let actor: Actor = caller.actor();
        if let Err(error) = audit::append(&rooms.store, &actor, action, rooms.me.as_str(), None, detail).await {
            warn!(event = "audit.failed", reason = %error, details.action = action, "it could not be audited");
        }
    }
}

fn message(drained: Drained) -> v1::Drained {
    v1::Drained { by: drained.by, since: Some(time::message(drained.since)) }
}
