//! What an operation has learned, so that it can go on should its agent die: written down before the step that learned it
//! is done.

use std::collections::BTreeMap;

use steep_protocol::ids::OperationId;

use super::{Error, Store};
use crate::postgres::{connect::field, sql};

/// Everything one operation has written down, by name.
pub type Notes = BTreeMap<String, Vec<u8>>;

/// Writes `body` down under `name`, in place of what was there before.
pub async fn save(store: &Store, op: OperationId, name: &str, body: &[u8]) -> Result<(), Error> {
    save_all(store, op, &[name.to_owned()], body).await
}

/// Writes the same down under every one of `names`.
pub async fn save_all(store: &Store, op: OperationId, names: &[String], body: &[u8]) -> Result<(), Error> {
    let sql = sql!("store/save_notes.sql");
    store.execute("write down what the operation must know", sql, &[&op.uuid(), &names, &body]).await.map(drop)
}

/// What `op` has written down.
pub async fn load(store: &Store, op: OperationId) -> Result<Notes, Error> {
    let what = "read what the operation knew";
    let rows = store.rows(what, sql!("store/list_notes.sql"), &[&op.uuid()]).await?;
    rows.iter().map(|row| Ok((field(row, "name")?, field(row, "body")?))).collect()
}

/// Forgets what `op` has written down.
pub async fn forget(store: &Store, op: OperationId) -> Result<(), Error> {
    let what = "forget what the operation knew";
    store.execute(what, sql!("store/forget_notes.sql"), &[&op.uuid()]).await.map(drop)
}

/// Forgets what `op` has written down under names that begin with one of `beginnings`.
pub async fn forget_some(store: &Store, op: OperationId, beginnings: &[&str]) -> Result<(), Error> {
    let what = "forget what the operation knew";
    store.execute(what, sql!("store/forget_some_notes.sql"), &[&op.uuid(), &beginnings]).await.map(drop)
}
