//! The operation service.

use std::{collections::BTreeSet, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    operation::Action,
    time,
    v1::{
        CancelOperationReply, CancelOperationRequest, GetOperationReply, GetOperationRequest, ListOperationsReply,
        ListOperationsRequest, OperationEvent, WatchOperationRequest, operation_event::What,
        operations_client::OperationsClient, operations_server::Operations,
    },
    wire::rpc::{failure_of, status_of},
};
use tonic::{Request, Response, Status};

use super::{
    Door,
    authorize::{Caller, Rpc},
    forward::{Owner, answer},
    reply,
};
use crate::{
    initialize::resume::Asked,
    operations::{Told, runner},
    store::{self, audit, operations, progress, steps},
};

/// How long peers may take when all are asked.
const ALL_LIMIT: Duration = Duration::from_secs(3);
const DEFAULT_LIMIT: u32 = 50;
const MOST: u32 = 1000;

/// Answers for this node's operations, asks the other agents for theirs.
#[derive(Debug)]
pub struct Service(pub Door);

/// Where an operation is.
enum Found {
    Here(Box<operations::Operation>),
    At(Owner),
}

fn explain(error: store::Error) -> Status {
    status_of(&error.explain())
}

#[tonic::async_trait]
impl Operations for Service {
    async fn list(&self, request: Request<ListOperationsRequest>) -> Result<Response<ListOperationsReply>, Status> {
        let caller = self.0.admit(&request, Rpc::OperationsList).await?;
        let request = request.into_inner();
        let limit = if request.limit == 0 { DEFAULT_LIMIT } else { request.limit.min(MOST) };
        if !request.node_id.is_empty()
            && let Owner::Peer(node, channel) = self.0.owner(&request.node_id, &caller).await?
        {
            let asked = self.0.on_behalf_of(&caller, request);
            return answer(&node, OperationsClient::new(channel).list(asked)).await;
        }
        let mut reply = ListOperationsReply { served_by: self.0.me(), ..ListOperationsReply::default() };
        match self.0.rooms() {
            Ok(rooms) => {
                for row in operations::list(&rooms.store, i64::from(limit)).await.map_err(explain)? {
                    let progress = rooms.operations.progress(row.op_id);
                    reply.operations.push(reply::operation(&row, progress));
                }
            }
            Err(_) => reply.missing_nodes.push(self.0.me()),
        }
        if request.node_id.is_empty() && caller.through.is_none() {
            let (answers, silent) = self
                .0
                .peers
                .ask_all(ALL_LIMIT, |channel| {
                    // To their own node only: a forwarded question is not passed on.
                    let asked = self.0.on_behalf_of(&caller, ListOperationsRequest { node_id: String::new(), limit });
                    async move {
                        let answered = OperationsClient::new(channel).list(asked).await;
                        answered.map(Response::into_inner).map_err(|status| failure_of(&status))
                    }
                })
                .await;
            reply.missing_nodes.extend(silent.iter().map(ToString::to_string));
            for answer in answers {
                reply.operations.extend(answer.operations);
                reply.missing_nodes.extend(answer.missing_nodes);
            }
            // Ids are clocks: newest first.
            reply.operations.sort_by(|one, other| other.op_id.cmp(&one.op_id));
            reply.operations.truncate(limit as usize);
        }
        Ok(Response::new(reply))
    }

    async fn get(&self, request: Request<GetOperationRequest>) -> Result<Response<GetOperationReply>, Status> {
        let caller = self.0.admit(&request, Rpc::OperationsGet).await?;
        let request = request.into_inner();
        match self.find(&request.op_id, &caller).await? {
            Found::At(Owner::Peer(node, channel)) => {
                let asked = self.0.on_behalf_of(&caller, request);
                answer(&node, OperationsClient::new(channel).get(asked)).await
            }
            Found::At(Owner::Me) => Err(status_of(&runner::unknown(&request.op_id))),
            Found::Here(row) => {
                let rooms = self.0.rooms()?;
                let live = rooms.operations.progress(row.op_id);
                let progress = match live {
                    Some(progress) => Some(progress),
                    None => progress::load(&rooms.store)
                        .await
                        .map_err(explain)?
                        .filter(|last| last.op_id == row.op_id)
                        .map(|last| reply::progress(&last)),
                };
                let steps = steps::list(&rooms.store, row.op_id).await.map_err(explain)?;
                Ok(Response::new(GetOperationReply {
                    served_by: self.0.me(),
                    operation: Some(reply::operation(&row, progress)),
                    steps: steps.iter().map(reply::step).collect(),
                    start: Asked::again(&row),
                }))
            }
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<OperationEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchOperationRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.0.admit(&request, Rpc::OperationsWatch).await?;
        let request = request.into_inner();
        match self.find(&request.op_id, &caller).await? {
            Found::At(Owner::Peer(node, channel)) => {
                let asked = self.0.on_behalf_of(&caller, request);
                let watched = answer(&node, OperationsClient::new(channel).watch(asked)).await?.into_inner();
                let events = watched.map(|event| event.map_err(|status| status_of(&failure_of(&status))));
                Ok(Response::new(events.take_until(self.0.stop.clone().cancelled_owned()).boxed()))
            }
            Found::At(Owner::Me) => Err(status_of(&runner::unknown(&request.op_id))),
            Found::Here(row) => {
                let rooms = self.0.rooms()?;
                let told = rooms.operations.watch(row.op_id, request.after).await;
                let told = told.map_err(|failure| status_of(&failure))?;
                let events = told.map(|told| told.map(event).map_err(|failure| status_of(&failure)));
                Ok(Response::new(events.boxed()))
            }
        }
    }

    async fn cancel(&self, request: Request<CancelOperationRequest>) -> Result<Response<CancelOperationReply>, Status> {
        let caller = self.0.admit(&request, Rpc::OperationsCancel).await?;
        let request = request.into_inner();
        match self.find(&request.op_id, &caller).await? {
            Found::At(Owner::Peer(node, channel)) => {
                let asked = self.0.on_behalf_of(&caller, request);
                answer(&node, OperationsClient::new(channel).cancel(asked)).await
            }
            Found::At(Owner::Me) => Err(status_of(&runner::unknown(&request.op_id))),
            Found::Here(row) => {
                let order = caller.ordered(Action::OperationCancel, self.0.peers.me()).about(row.op_id);
                self.0.heed(&caller, &order).await?;
                let rooms = self.0.rooms()?;
                self.0.spend(&caller, &rooms, Some(row.op_id)).await?;
                let actor = caller.actor();
                rooms.operations.cancel(row.op_id, &actor).await.map_err(|failure| status_of(&failure))?;
                let target = row.target.to_string();
                audit::append(
                    &rooms.store,
                    &actor,
                    "operation.cancel",
                    &target,
                    Some(row.op_id),
                    &serde_json::json!({}),
                )
                .await
                .map_err(explain)?;
                Ok(Response::new(CancelOperationReply { served_by: self.0.me(), op_id: row.op_id.to_string() }))
            }
        }
    }
}

impl Service {
    /// Looks here first, then asks the other agents.
    async fn find(&self, text: &str, caller: &Caller) -> Result<Found, Status> {
        let mut here = None;
        if let Ok(rooms) = self.0.rooms() {
            match find_here(&rooms.store, text).await {
                Ok(row) => here = Some(Box::new(row)),
                Err(failure) if failure.code == Code::OperationUnknown => {}
                Err(failure) => return Err(status_of(&failure)),
            }
        }
        // Others may have one that begins alike, but none of the same id.
        match here {
            Some(row) if caller.through.is_some() || text.parse::<OperationId>().is_ok() => Ok(Found::Here(row)),
            None if caller.through.is_some() => Ok(Found::At(Owner::Me)),
            here => self.find_anywhere(text, here, caller).await,
        }
    }

    async fn find_anywhere(
        &self,
        text: &str,
        here: Option<Box<operations::Operation>>,
        caller: &Caller,
    ) -> Result<Found, Status> {
        let (answers, silent) = self
            .0
            .peers
            .ask_all(ALL_LIMIT, |channel| {
                let asked = self.0.on_behalf_of(caller, GetOperationRequest { op_id: text.to_owned() });
                async move {
                    let answered = OperationsClient::new(channel).get(asked).await;
                    match answered.map(Response::into_inner).map_err(|status| failure_of(&status)) {
                        Ok(reply) => Ok(Some(Ok(reply))),
                        // These are answers; only those who give none are told as silent.
                        Err(failure) if failure.code == Code::OperationUnknown => Ok(None),
                        Err(failure) if failure.code == Code::AmbiguousOperation => Ok(Some(Err(failure))),
                        Err(failure) => Err(failure),
                    }
                }
            })
            .await;
        let there: Vec<_> = answers.into_iter().flatten().collect::<Result<_, Failure>>().map_err(|e| status_of(&e))?;
        let ids = there.iter().filter_map(|reply| Some(reply.operation.as_ref()?.op_id.clone()));
        let fitting: BTreeSet<String> = ids.chain(here.iter().map(|row| row.op_id.to_string())).collect();
        if fitting.len() > 1 {
            let fitting: Vec<_> = fitting.into_iter().collect();
            let text = format!("{text:?} is how {} operations begin", fitting.len());
            return Err(status_of(&Failure::new(Code::AmbiguousOperation, text).cause(fitting.join(", "))));
        }
        match (here, there.first()) {
            (Some(row), _) => Ok(Found::Here(row)),
            (None, Some(reply)) => self.0.owner(&reply.served_by, caller).await.map(Found::At),
            (None, None) if silent.is_empty() => Ok(Found::At(Owner::Me)),
            (None, None) => {
                let silent: Vec<_> = silent.iter().map(ToString::to_string).collect();
                let failure = runner::unknown(text).cause(format!("{} did not answer", silent.join(", ")));
                Err(status_of(
                    &Failure { code: Code::PeerUnreachable, ..failure }.hint("try again, or ask those nodes' agents"),
                ))
            }
        }
    }
}

async fn find_here(store: &store::Store, text: &str) -> Result<operations::Operation, Failure> {
    match text.parse::<OperationId>() {
        Ok(op) => {
            let found = operations::find(store, op).await.map_err(|error| error.explain())?;
            found.ok_or_else(|| runner::unknown(text))
        }
        Err(_) => operations::find_prefix(store, text).await.map_err(|error| error.explain()),
    }
}

fn event(told: Told) -> OperationEvent {
    match told {
        Told::Milestone(event) => OperationEvent {
            cursor: event.cursor,
            at: Some(time::message(event.at)),
            what: Some(What::Milestone(reply::milestone(event.milestone))),
        },
        Told::Progress(progress) => {
            OperationEvent { cursor: 0, at: Some(time::now()), what: Some(What::Progress(progress)) }
        }
        Told::Ended(row) => {
            OperationEvent { cursor: 0, at: Some(time::now()), what: Some(What::Ended(reply::operation(&row, None))) }
        }
    }
}
