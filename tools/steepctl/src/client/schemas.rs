//! What is asked about schemas. Two databases are looked at for most of it, so answers may take a minute.

use std::time::Duration;

use steep_protocol::{
    failure::{Code, Failure},
    ids::OperationId,
    intent::Order,
    v1::{self, schemas_client::SchemasClient},
    wire::rpc::{self, MAX_SCHEMA_BYTES, PeerChannel},
};
use tokio::time::{Instant, timeout_at};

use super::{ANSWER_LIMIT, Client, with};

/// How long it may take to look at two schemas of any size.
const LOOK_LIMIT: Duration = Duration::from_secs(60);
/// Indexes of large tables are built and constraints proven meanwhile. A connection that breaks is noticed before.
const SYNC_LIMIT: Duration = Duration::from_secs(24 * 3_600);

impl Client<'_> {
    /// Has a node look at its schema now.
    pub async fn capture_schema(&mut self, node_id: &str) -> Result<v1::CaptureSchemaReply, Failure> {
        let request = v1::CaptureSchemaRequest { node_id: node_id.to_owned() };
        self.ask(LOOK_LIMIT, async |channel| schemas(channel).capture(request.clone()).await).await
    }

    /// Compares the schemas of two nodes.
    pub async fn compare_schemas(
        &mut self,
        request: &v1::CompareSchemasRequest,
    ) -> Result<v1::CompareSchemasReply, Failure> {
        self.ask(LOOK_LIMIT, async |channel| schemas(channel).compare(request.clone()).await).await
    }

    /// What would bring a node's schema up to date with another's.
    pub async fn plan_schema(&mut self, request: &v1::PlanSchemaRequest) -> Result<v1::PlanSchemaReply, Failure> {
        self.ask(LOOK_LIMIT, async |channel| schemas(channel).plan(request.clone()).await).await
    }

    /// Runs a plan. After a failure some of it may have been run, and the rest may be running still.
    pub async fn sync_schema(&mut self, request: &v1::SyncSchemaRequest) -> Result<v1::SyncSchemaReply, Failure> {
        let signed = self.sign(&Order::to_sync(request, OperationId::generate())?)?;
        self.ask(SYNC_LIMIT, async |channel| schemas(channel).sync(with(&signed, request)).await).await
    }

    /// All pages of a node's schema, none missing: the last has the environment.
    pub async fn export_schema(&mut self, node_id: &str) -> Result<Vec<v1::SchemaPage>, Failure> {
        let request = v1::ExportSchemaRequest { node_id: node_id.to_owned() };
        let mut stream = self.ask(LOOK_LIMIT, async |channel| schemas(channel).export(request.clone()).await).await?;
        let mut pages: Vec<v1::SchemaPage> = Vec::new();
        loop {
            let patience = Instant::now() + LOOK_LIMIT;
            let patience = self.deadline.map_or(patience, |deadline| deadline.min(patience));
            let next = timeout_at(patience, stream.message())
                .await
                .map_err(|_| Failure::new(Code::PeerSilent, format!("the schema of {node_id} stopped arriving")))?;
            match next.map_err(|status| rpc::failure_of(&status))? {
                Some(page) => pages.push(page),
                None if pages.last().is_some_and(|page| page.environment.is_some()) => return Ok(pages),
                None => {
                    let text = format!("the schema of {node_id} ended before its last page");
                    return Err(Failure::new(Code::StreamBroken, text).hint("try again"));
                }
            }
        }
    }

    /// How a node's tables have changed.
    pub async fn schema_history(
        &mut self,
        request: &v1::SchemaHistoryRequest,
    ) -> Result<v1::SchemaHistoryReply, Failure> {
        self.ask(ANSWER_LIMIT, async |channel| schemas(channel).history(request.clone()).await).await
    }
}

fn schemas(channel: PeerChannel) -> SchemasClient<PeerChannel> {
    SchemasClient::new(channel).max_decoding_message_size(MAX_SCHEMA_BYTES)
}
