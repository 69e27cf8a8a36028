//! Marks in the database by which a backup shows where it comes from.
//!
//! A mark is written before the slot of a preparation is made, and sealed once its snapshot is there. So a backup without it
//! is older than the slot, or of another node; and a dump that shows the seal was made of another moment than the snapshot's.

use steep_protocol::failure::Code;

use super::{
    connect::{Session, field},
    error::{Error, doing},
};

/// A mark as a database holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The node that was prepared.
    pub node: String,
    /// Its server.
    pub system_identifier: String,
    /// It shows what was written after the snapshot.
    pub is_sealed: bool,
}

/// Writes the mark of preparation `id` of `node`.
pub async fn write(session: &Session, id: &str, node: &str) -> Result<(), Error> {
    let making = doing("make schema steep_mark").privilege(Code::PublishPrivilege);
    session.batch(making.clone(), "create schema if not exists steep_mark").await?;
    session.batch(making, sql!("marks/make_table.sql")).await?;
    session.execute(doing("write a mark"), sql!("marks/write_mark.sql"), &[&id, &node]).await.map(drop)
}

/// Writes that the snapshot of preparation `id` is there.
pub async fn seal(session: &Session, id: &str) -> Result<(), Error> {
    let sql = "update steep_mark.prepared set is_sealed = true where prepare_id = $1::text";
    session.execute(doing("seal a mark"), sql, &[&id]).await.map(drop)
}

/// The mark of preparation `id`, if the database holds it.
pub async fn find(session: &Session, id: &str) -> Result<Option<Mark>, Error> {
    if !are_there(session).await? {
        return Ok(None);
    }
    let rows = session.rows(doing("read a mark"), sql!("marks/find_mark.sql"), &[&id]).await?;
    let mark = |row| {
        let (node, system_identifier) = (field(row, "node_id")?, field(row, "system_identifier")?);
        Ok(Mark { node, system_identifier, is_sealed: field(row, "is_sealed")? })
    };
    rows.first().map(mark).transpose()
}

/// The marks the database holds, as people read them; empty: none.
pub async fn all(session: &Session) -> Result<String, Error> {
    if !are_there(session).await? {
        return Ok(String::new());
    }
    field(&session.one(doing("read the marks"), sql!("marks/list_marks.sql"), &[]).await?, "marks")
}

/// Takes the mark of preparation `id` away, and with the last one the schema.
pub async fn remove(session: &Session, id: &str) -> Result<(), Error> {
    if !are_there(session).await? {
        return Ok(());
    }
    let sql = "delete from steep_mark.prepared where prepare_id = $1::text";
    session.execute(doing("take a mark away"), sql, &[&id]).await?;
    if all(session).await?.is_empty() {
        session.batch(doing("drop schema steep_mark"), "drop schema steep_mark cascade").await?;
    }
    Ok(())
}

async fn are_there(session: &Session) -> Result<bool, Error> {
    let sql = "select pg_catalog.to_regclass('steep_mark.prepared') is not null as are_there";
    field(&session.one(doing("look for marks"), sql, &[]).await?, "are_there")
}
