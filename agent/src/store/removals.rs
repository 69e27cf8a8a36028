//! Nodes that were removed, and who still has to hear of it.

use jiff::Timestamp;
use prost::Message as _;
use steep_protocol::{
    ids::{NodeId, OperationId},
    v1,
};
use tokio_postgres::Row;

use super::{
    Error, Store,
    row::{operation, word},
};
use crate::postgres::{
    connect::{count_field, field},
    sql,
};

/// A removal, as far as this node has heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The operation that removed the node.
    pub op_id: OperationId,
    /// The node; it may be this one.
    pub node: NodeId,
    /// Who asked for it.
    pub removed_by: String,
    /// When.
    pub asked_at: Timestamp,
    /// When this node heard of it.
    pub heard_at: Timestamp,
    /// This node has done its part.
    pub is_done: bool,
    /// Nodes that have not confirmed it yet.
    pub pending: Vec<NodeId>,
    /// What an operator signed to ask for it.
    pub signed: v1::SignedIntent,
}

/// Writes a removal down; where it is known, whoever is not pending in `removal` has heard of it.
pub async fn hear(store: &Store, removal: &Removal) -> Result<(), Error> {
    let pending: Vec<&str> = removal.pending.iter().map(NodeId::as_str).collect();
    let (op, node) = (removal.op_id.uuid(), removal.node.as_str());
    let signed = removal.signed.encode_to_vec();
    let sql = sql!("store/hear_of_removal.sql");
    let heard = [&op as _, &node as _, &removal.removed_by as _, &removal.asked_at as _, &pending as _, &signed as _];
    store.execute("write down a removal", sql, &heard).await.map(drop)
}

/// One removal.
pub async fn find(store: &Store, op: OperationId) -> Result<Option<Removal>, Error> {
    let row = store.maybe("find a removal", sql!("store/find_removal.sql"), &[&op.uuid()]).await?;
    row.as_ref().map(read).transpose()
}

/// Those that are not done here, or not heard of everywhere; oldest first.
pub async fn unfinished(store: &Store) -> Result<Vec<Removal>, Error> {
    let sql = sql!("store/list_unfinished_removals.sql");
    store.rows("list unfinished removals", sql, &[]).await?.iter().map(read).collect()
}

/// This node has done its part.
pub async fn finish(store: &Store, op: OperationId) -> Result<(), Error> {
    store.execute("finish a removal", sql!("store/finish_removal.sql"), &[&op.uuid()]).await.map(drop)
}

/// `node` has heard of the removal by `op`. Without `op`: it was removed itself, and need not hear of other removals.
pub async fn strike(store: &Store, node: &NodeId, op: Option<OperationId>) -> Result<(), Error> {
    let op = op.map(|op| op.uuid());
    store.execute("strike a node", sql!("store/strike_pending.sql"), &[&node.as_str(), &op]).await.map(drop)
}

/// How many removals this node has heard of since `moment`.
pub async fn count_since(store: &Store, moment: Timestamp) -> Result<u64, Error> {
    let sql = sql!("store/count_removals_since.sql");
    count_field(&store.one("count removals", sql, &[&moment]).await?, "removals").map_err(Into::into)
}

fn read(row: &Row) -> Result<Removal, Error> {
    let pending: Vec<String> = field(row, "pending")?;
    let parsed = pending.iter().map(|name| {
        name.parse().map_err(|error: steep_protocol::ids::BadId| Error::Unreadable {
            what: "pending".to_owned(),
            source: error.into(),
        })
    });
    Ok(Removal {
        op_id: operation(row, "op_id")?,
        node: word(row, "node_id")?,
        removed_by: field(row, "removed_by")?,
        asked_at: field(row, "asked_at")?,
        heard_at: field(row, "heard_at")?,
        is_done: field(row, "is_done")?,
        pending: parsed.collect::<Result<_, _>>()?,
        signed: v1::SignedIntent::decode(&field::<Vec<u8>>(row, "signed")?[..])
            .map_err(|error| Error::Unreadable { what: "signed".to_owned(), source: error.into() })?,
    })
}
