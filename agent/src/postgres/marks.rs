//! Marks in the database by which a backup shows where it comes from.
//!
//! A mark is written before the slot of a preparation is made, and sealed once its snapshot is there. So a backup without it
//! is older than the slot, or of another node; and a dump that shows the seal was made of another moment than the snapshot's.
//! In a physical copy the mark is what shows that it is one; what was taken over from it is written beside the mark.

use steep_protocol::{failure::Code, lsn::Lsn};
use tokio_postgres::types::PgLsn;

use super::{
    connect::{Session, field},
    copies::{self, Branch},
    error::{Error, doing},
};

/// A mark as a database holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The node that was prepared.
    pub node: String,
    /// Its server.
    pub system_identifier: String,
    /// The timeline it was on.
    pub timeline: u32,
    /// It shows what was written after the snapshot.
    pub is_sealed: bool,
}

/// What was taken over from a physical copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The node whose it is from then on.
    pub node: String,
    /// Where it left its source.
    pub branch: Branch,
    /// SHA-256 of the WAL before that point; empty: it was not kept that long.
    pub wal_sha256: Vec<u8>,
}

/// Writes the mark of preparation `id` of `node`.
pub async fn write(session: &Session, id: &str, node: &str) -> Result<(), Error> {
    let making = doing("make schema steep_mark").privilege(Code::PublishPrivilege);
    session.batch(making.clone(), "create schema if not exists steep_mark").await?;
    session.batch(making, sql!("marks/make_table.sql")).await?;
    let timeline = copies::timeline(session).await?.cast_signed();
    session.execute(doing("write a mark"), sql!("marks/write_mark.sql"), &[&id, &node, &timeline]).await.map(drop)
}

/// Writes that the physical copy this database is in is a node's own from now on.
pub async fn adopt(session: &Session, id: &str, adopted: &Adopted) -> Result<(), Error> {
    let Adopted { node, branch, wal_sha256 } = adopted;
    let adopting = doing("write that the copy is taken over");
    // What else the source was prepared for is none of this node's business.
    let sql = "delete from steep_mark.prepared where prepare_id <> $1::text";
    session.execute(adopting.clone(), sql, &[&id]).await?;
    session.batch(adopting.clone(), sql!("marks/make_adopted_table.sql")).await?;
    let (timeline, lsn) = (branch.timeline.cast_signed(), PgLsn::from(branch.lsn.0));
    let sql = sql!("marks/write_adopted.sql");
    session.execute(adopting, sql, &[&id, node, &timeline, &lsn, wal_sha256]).await.map(drop)
}

/// What was taken over for preparation `id`; none: it was no physical copy, or is not taken over yet.
pub async fn adopted(session: &Session, id: &str) -> Result<Option<Adopted>, Error> {
    let sql = "select pg_catalog.to_regclass('steep_mark.adopted') is not null as are_there";
    if !field::<bool>(&session.one(doing("look for marks"), sql, &[]).await?, "are_there")? {
        return Ok(None);
    }
    let row = session.maybe(doing("read a mark"), sql!("marks/find_adopted.sql"), &[&id]).await?;
    let adopted = |row| {
        let timeline = field::<i32>(row, "timeline")?.cast_unsigned();
        let lsn = Lsn(field::<PgLsn>(row, "lsn")?.into());
        let branch = Branch { timeline, lsn };
        Ok(Adopted { node: field(row, "node_id")?, branch, wal_sha256: field(row, "wal_sha256")? })
    };
    row.as_ref().map(adopted).transpose()
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
        let timeline = field::<i32>(row, "timeline")?.cast_unsigned();
        Ok(Mark { node, system_identifier, timeline, is_sealed: field(row, "is_sealed")? })
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
