//! What operations make outside this schema, written down before it is made.
//!
//! A row is planned, then live once the thing is known to be there; it ends undone or kept. Whatever is neither
//! after an operation's end must be looked at again: it may be there, and retain WAL for ever.

use jiff::Timestamp;
use serde_json::Value;
use steep_protocol::ids::OperationId;
use tokio_postgres::Row;

use super::{Error, Store, control::doing, row::operation};
use crate::postgres::{self, Session, connect::field, sql};

/// Something an operation has made, or may have.
#[derive(Debug, Clone, PartialEq)]
pub struct Intent {
    /// Grows with every intent of this node.
    pub id: i64,
    /// The operation, of this node or of a peer.
    pub op_id: OperationId,
    /// The step that made it.
    pub step: String,
    /// What it is: "slot".
    pub kind: String,
    /// Its name.
    pub name: String,
    /// All that is needed to undo it.
    pub detail: Value,
    /// It is known to be there; otherwise it may be.
    pub is_live: bool,
    /// When it was written down.
    pub made_at: Timestamp,
}

/// Writes down what is about to be made, and returns the row's id.
pub async fn plan(
    store: &Store,
    op: OperationId,
    step: &str,
    kind: &str,
    name: &str,
    detail: &Value,
) -> Result<i64, Error> {
    let sql = sql!("store/plan_intent.sql");
    let row = store.one("write down an intent", sql, &[&op.uuid(), &step, &kind, &name, &detail]).await?;
    Ok(field(&row, "id")?)
}

/// What was planned is there. False: it has been marked undone meanwhile.
pub async fn live(store: &Store, id: i64) -> Result<bool, Error> {
    mark(store, id, "live").await
}

/// What was planned or there is gone.
pub async fn undone(store: &Store, id: i64) -> Result<(), Error> {
    mark(store, id, "undone").await.map(drop)
}

async fn mark(store: &Store, id: i64, state: &str) -> Result<bool, Error> {
    let marked = store.execute("mark an intent", sql!("store/mark_intent.sql"), &[&id, &state]).await?;
    Ok(marked == 1)
}

/// Writes down anew what the pending intent of this kind and name is about, in the transaction open on `session`.
pub async fn revise(
    session: &Session,
    op: OperationId,
    kind: &str,
    name: &str,
    detail: &Value,
) -> Result<(), postgres::Error> {
    let sql = sql!("store/revise_intent.sql");
    session.execute(doing("write down what is done"), sql, &[&op.uuid(), &kind, &name, &detail]).await.map(drop)
}

/// Says what the tables of `op`'s detours hold from the commit of the transaction open on `session` on.
pub async fn tell_contents(session: &Session, op: OperationId, contents: &str) -> Result<(), postgres::Error> {
    let sql = sql!("store/tell_contents.sql");
    session.execute(doing("write down what tables hold"), sql, &[&op.uuid(), &contents]).await.map(drop)
}

/// Something that operations of the past made, and that was kept, is gone.
pub async fn settle(store: &Store, kind: &str, name: &str) -> Result<(), Error> {
    let sql = sql!("store/settle_intents.sql");
    store.execute("write down what is gone", sql, &[&kind, &name]).await.map(drop)
}

/// Publications whose slot is still written down: somebody reads it, or may.
pub async fn read_publications(store: &Store) -> Result<Vec<String>, Error> {
    let rows = store.rows("read which publications are read", sql!("store/list_read_publications.sql"), &[]).await?;
    rows.iter().map(|row| Ok(field(row, "name")?)).collect()
}

/// When what is kept of this kind and name was last made; none: nothing of it is written down.
pub async fn kept_since(store: &Store, kind: &str, name: &str) -> Result<Option<Timestamp>, Error> {
    let sql = sql!("store/find_kept_intent.sql");
    let row = store.one("read what was made", sql, &[&kind, &name]).await?;
    Ok(field(&row, "made_at")?)
}

/// Everything `op` made is there to stay.
pub async fn keep(store: &Store, op: OperationId) -> Result<(), Error> {
    store.execute("keep what was made", sql!("store/keep_intents.sql"), &[&op.uuid()]).await.map(drop)
}

/// What `op` made and kept is to be undone after all.
pub async fn reopen(store: &Store, op: OperationId) -> Result<(), Error> {
    store.execute("give up what was made", sql!("store/reopen_intents.sql"), &[&op.uuid()]).await.map(drop)
}

/// What `op` made, or may have, and neither undid nor kept; newest first.
pub async fn pending(store: &Store, op: OperationId) -> Result<Vec<Intent>, Error> {
    let rows = store.rows("read what was made", sql!("store/list_pending_intents.sql"), &[&op.uuid()]).await?;
    rows.iter().map(read).collect()
}

/// What other operations have to do with a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OthersWithPublication {
    /// One of them is under way with it, or has a slot that is read through it.
    pub is_read: bool,
    /// One of them kept it, for a slot that may be gone by now.
    pub was_kept: bool,
}

/// What operations other than `op` have to do with publication `name`.
pub async fn others_with_publication(
    store: &Store,
    op: OperationId,
    name: &str,
) -> Result<OthersWithPublication, Error> {
    let sql = sql!("store/find_publication_of_others.sql");
    let row = store.one("read what others made", sql, &[&op.uuid(), &name]).await?;
    Ok(OthersWithPublication { is_read: field(&row, "is_read")?, was_kept: field(&row, "was_kept")? })
}

/// Operations that have pending intents here, oldest first.
pub async fn open_operations(store: &Store) -> Result<Vec<OperationId>, Error> {
    let sql = sql!("store/list_operations_with_intents.sql");
    store.rows("read what was made", sql, &[]).await?.iter().map(|row| operation(row, "op_id")).collect()
}

/// Whom a slot of this node was made for, and what with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotOf {
    /// The node that reads it; `None`: its row was written by an agent that did not note it.
    pub peer: Option<String>,
    /// Publications made by the same operation.
    pub publications: Vec<String>,
}

/// What is known of a slot of this node that was made, and neither undone nor given up.
pub async fn slot_of(store: &Store, slot: &str) -> Result<Option<SlotOf>, Error> {
    let row = store.maybe("look whose a slot is", sql!("store/find_slot.sql"), &[&slot]).await?;
    row.map(|row| Ok(SlotOf { peer: field(&row, "peer")?, publications: field(&row, "publications")? })).transpose()
}

fn read(row: &Row) -> Result<Intent, Error> {
    Ok(Intent {
        id: field(row, "id")?,
        op_id: operation(row, "op_id")?,
        step: field(row, "step")?,
        kind: field(row, "kind")?,
        name: field(row, "name")?,
        detail: field(row, "detail")?,
        is_live: field::<&str>(row, "state")? == "live",
        made_at: field(row, "made_at")?,
    })
}
