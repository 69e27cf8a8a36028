//! The scripted agent's answers about schemas.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use prost_reflect::prost::Message as _;
use steep_protocol::{
    failure::{Code, Failure},
    intent,
    v1::{self, schemas_server},
    wire::rpc,
};
use tonic::{Request, Response, Status};

use super::{Played, ScriptedAgent};

/// What an agent answers about schemas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schemas {
    /// All there is to compare; a request gets what it selects.
    pub(crate) compared: v1::CompareSchemasReply,
    pub(crate) plan: v1::PlanSchemaReply,
    /// Pages of an export.
    pub(crate) pages: Vec<v1::SchemaPage>,
    pub(crate) changes: Vec<v1::SchemaChange>,
    /// What a sync answers instead of running.
    pub(crate) refusal: Option<Failure>,
    /// The role of the node's agent may not see everything.
    pub(crate) is_incomplete: bool,
}

impl ScriptedAgent {
    /// What comparisons were asked for, in order.
    pub(crate) fn compared(&self) -> Vec<v1::CompareSchemasRequest> {
        self.state.compared.lock().expect("no panic").clone()
    }

    /// What was to be run, with what was signed for it.
    pub(crate) fn synced(&self) -> Vec<(v1::SyncSchemaRequest, v1::Intent)> {
        self.state.synced.lock().expect("no panic").clone()
    }
}

#[tonic::async_trait]
impl schemas_server::Schemas for Played {
    async fn capture(
        &self,
        request: Request<v1::CaptureSchemaRequest>,
    ) -> Result<Response<v1::CaptureSchemaReply>, Status> {
        let environment = v1::SchemaEnvironment {
            node_id: request.into_inner().node_id,
            digest: "5f".repeat(32),
            tables: 23,
            is_complete: !self.0.script.schemas.is_incomplete,
            captured_at: super::now(),
            ..v1::SchemaEnvironment::default()
        };
        let environment = Some(environment);
        Ok(Response::new(v1::CaptureSchemaReply { served_by: "node_a".into(), environment, changed: 2 }))
    }

    async fn compare(
        &self,
        request: Request<v1::CompareSchemasRequest>,
    ) -> Result<Response<v1::CompareSchemasReply>, Status> {
        let request = request.into_inner();
        self.0.compared.lock().expect("no panic").push(request.clone());
        let mut reply = self.0.script.schemas.compared.clone();
        if let Some(selection) = &request.selection {
            let is_selected =
                |name: &v1::TableName| selection.tables.contains(name) || selection.schemas.contains(&name.schema);
            reply.tables.retain(|table| table.table.as_ref().is_some_and(is_selected));
        }
        if !request.with_rows {
            reply.tables.iter_mut().for_each(|table| table.rows.clear());
        }
        Ok(Response::new(reply))
    }

    async fn plan(&self, request: Request<v1::PlanSchemaRequest>) -> Result<Response<v1::PlanSchemaReply>, Status> {
        let v1::PlanSchemaRequest { source, target, .. } = request.into_inner();
        let plan = self.0.script.schemas.plan.clone();
        Ok(Response::new(v1::PlanSchemaReply { served_by: target.clone(), source, target, ..plan }))
    }

    async fn sync(&self, request: Request<v1::SyncSchemaRequest>) -> Result<Response<v1::SyncSchemaReply>, Status> {
        let signed = intent::carried(request.metadata()).map_err(|failure| rpc::status_of(&failure))?;
        let Some(signed) = signed else {
            return Err(rpc::status_of(&Failure::new(Code::IntentMissing, "nothing was signed")));
        };
        let intent = v1::Intent::decode(signed.intent.as_slice()).expect("an intent");
        self.0.synced.lock().expect("no panic").push((request.into_inner(), intent));
        let script = &self.0.script.schemas;
        if let Some(refusal) = &script.refusal {
            return Err(rpc::status_of(refusal));
        }
        let (applied, hazards) = (script.plan.steps.clone(), script.plan.hazards.clone());
        Ok(Response::new(v1::SyncSchemaReply { served_by: "node_b".into(), applied, hazards }))
    }

    type ExportStream = Pin<Box<dyn Stream<Item = Result<v1::SchemaPage, Status>> + Send>>;

    async fn export(&self, _: Request<v1::ExportSchemaRequest>) -> Result<Response<Self::ExportStream>, Status> {
        Ok(Response::new(stream::iter(self.0.script.schemas.pages.clone()).map(Ok).boxed()))
    }

    async fn history(
        &self,
        request: Request<v1::SchemaHistoryRequest>,
    ) -> Result<Response<v1::SchemaHistoryReply>, Status> {
        let request = request.into_inner();
        let limit = usize::try_from(request.limit).expect("a small number");
        let changes = self
            .0
            .script
            .schemas
            .changes
            .iter()
            .filter(|change| request.table.is_none() || change.table == request.table);
        let changes = changes.take(limit).cloned().collect();
        Ok(Response::new(v1::SchemaHistoryReply { served_by: "node_a".into(), changes }))
    }
}
