//! Who changed what: rows that can only be added. The database seals each with the one before it, so that a row
//! altered or taken out shows.

use std::fmt;

use jiff::Timestamp;
use serde_json::{Value, json};
use steep_protocol::{
    ids::{NodeId, OperationId},
    operation::Role,
};

use super::{Error, Store, control::Held};
use crate::postgres::{
    connect::{count_field, field},
    sql,
};

/// What kind of actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActorKind {
    /// A person, or a program with a person's certificate.
    Operator,
    /// Another agent.
    Node,
    /// This agent, by itself.
    Agent,
}

impl ActorKind {
    /// The word for it in SQL, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Node => "node",
            Self::Agent => "system",
        }
    }
}

/// Who does something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// What kind.
    pub kind: ActorKind,
    /// An operator's name, or a node's.
    pub name: String,
    /// The role in an operator's certificate.
    pub role: Option<Role>,
}

impl Actor {
    /// A person.
    pub fn operator(name: impl Into<String>, role: Role) -> Self {
        Self { kind: ActorKind::Operator, name: name.into(), role: Some(role) }
    }

    /// Another agent.
    pub fn node(node: &NodeId) -> Self {
        Self { kind: ActorKind::Node, name: node.to_string(), role: None }
    }

    /// This agent, by itself.
    pub fn agent(node: &NodeId) -> Self {
        Self { kind: ActorKind::Agent, name: node.to_string(), role: None }
    }

    /// As the log event schema wants it.
    pub fn to_json(&self) -> Value {
        match self.role {
            Some(role) => json!({ "kind": self.kind.as_str(), "id": self.name, "role": role.as_str() }),
            None => json!({ "kind": self.kind.as_str(), "id": self.name }),
        }
    }
}

impl fmt::Display for Actor {
    /// "alice (operator)", "node_b (node)", "node_a (system)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.role.map_or(self.kind.as_str(), Role::as_str);
        write!(f, "{} ({what})", self.name)
    }
}

/// Adds a row: `actor` did `action` ("init.started") to `target`.
pub async fn append(
    store: &Store,
    actor: &Actor,
    action: &str,
    target: &str,
    op: Option<OperationId>,
    detail: &Value,
) -> Result<(), Error> {
    let mut held = store.transaction().await?;
    let appended = append_within(&mut held, actor, action, target, op, detail).await;
    held.end(appended).await
}

pub(super) async fn append_within(
    held: &mut Held<'_>,
    actor: &Actor,
    action: &str,
    target: &str,
    op: Option<OperationId>,
    detail: &Value,
) -> Result<(), Error> {
    let (kind, role, op_id) = (actor.kind.as_str(), actor.role.map(Role::as_str), op.map(|op| op.uuid()));
    let sql = sql!("store/append_audit.sql");
    held.execute("write the audit log", sql, &[&kind, &actor.name, &role, &action, &target, &op_id, &detail])
        .await
        .map(drop)
}

/// What the log has gained since it was last counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gained {
    /// The row counted last; count on from it.
    pub last_id: i64,
    /// Requests that were denied.
    pub denied: u64,
    /// All other rows.
    pub done: u64,
    /// When the node's state was moved last among these rows.
    pub moved_at: Option<Timestamp>,
}

/// Counts the rows after `last_id`; 0: all.
pub async fn gained(store: &Store, last_id: i64) -> Result<Gained, Error> {
    let row = store.one("count the audit log", sql!("store/count_audit.sql"), &[&last_id]).await?;
    Ok(Gained {
        last_id: field(&row, "last_id")?,
        denied: count_field(&row, "denied")?,
        done: count_field(&row, "done")?,
        moved_at: field(&row, "moved_at")?,
    })
}

/// Walks the chain from its beginning and returns the first row that breaks it, if one does.
///
/// Rows taken from the end do not show in the chain itself.
pub async fn verify(store: &Store) -> Result<Option<i64>, Error> {
    const PAGE: i64 = 5_000;
    let sql = sql!("store/verify_audit.sql");
    let (mut last_id, mut last_hash) = (0_i64, vec![0_u8; 32]);
    loop {
        let row = store.one("verify the audit log", sql, &[&last_id, &last_hash, &PAGE]).await?;
        if let Some(broken) = field(&row, "broken")? {
            return Ok(Some(broken));
        }
        let Some(id) = field(&row, "last_id")? else { return Ok(None) };
        (last_id, last_hash) = (id, field(&row, "last_hash")?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_is_told_in_the_words_of_the_log() {
        let node: NodeId = "node_a".parse().expect("a name");
        let cases = [
            (Actor::operator("alice", Role::Admin), json!({ "kind": "operator", "id": "alice", "role": "admin" })),
            (Actor::node(&node), json!({ "kind": "node", "id": "node_a" })),
            (Actor::agent(&node), json!({ "kind": "system", "id": "node_a" })),
        ];
        for (actor, expected) in cases {
            assert_eq!(actor.to_json(), expected);
        }
        assert_eq!(Actor::operator("alice", Role::Viewer).to_string(), "alice (viewer)");
    }
}
