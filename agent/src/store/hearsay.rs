//! What was heard of the other nodes, so that psql shows all of them, and the agent finds them again after a start.
//!
//! Hearsay never touches this node's own state: of that, [`super::nodes`] is the only author.

use serde_json::Value;
use steep_protocol::ids::NodeId;

use super::{Error, Store, row::word};
use crate::postgres::{connect::field, sql};

/// Another node as this agent last heard of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherNode {
    /// Its name.
    pub node_id: NodeId,
    /// `host:port` of its agent.
    pub address: String,
    /// Which run of its agent was heard.
    pub generation: i64,
}

/// The nodes heard of in earlier runs, and not forgotten.
pub async fn others(store: &Store) -> Result<Vec<OtherNode>, Error> {
    let rows = store.rows("list the other nodes", sql!("store/list_other_nodes.sql"), &[]).await?;
    let read = |row| {
        Ok(OtherNode {
            node_id: word(row, "node_id")?,
            address: field(row, "address")?,
            generation: field(row, "generation")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Writes down what is known of `others`, one object each with the columns of `steep_repl.nodes`, and what others see
/// of this node (`own`). Nodes not among them are taken away.
pub async fn mirror(store: &Store, own: &Value, others: &[Value]) -> Result<(), Error> {
    let what = "write down what was heard of other nodes";
    store.execute(what, sql!("store/describe_own_node.sql"), &[own]).await?;
    let names: Vec<&str> = others.iter().filter_map(|other| other["node_id"].as_str()).collect();
    store.execute(what, sql!("store/unlist_nodes.sql"), &[&names]).await?;
    if !others.is_empty() {
        let others = Value::Array(others.to_vec());
        store.execute(what, sql!("store/mirror_nodes.sql"), &[&others]).await?;
    }
    Ok(())
}
