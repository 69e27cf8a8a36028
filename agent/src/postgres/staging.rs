//! Tables copied again: the tables beside them that the rows come into first, and how these take their place.

use steep_protocol::names::TableName;

use super::{
    connect::Session,
    ddl::{self, OWN_SCHEMA, switch},
    error::Error,
};

/// A table that is copied again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The table.
    pub table: TableName,
    /// Where its rows come first.
    pub stage: TableName,
    /// The columns that are copied.
    pub columns: Vec<String>,
}

/// The name of the table that the rows of `number` come into, for the operation known by `short`.
pub fn stage_name(short: &str, number: usize) -> TableName {
    TableName::new(OWN_SCHEMA, format!("stage_{short}_{number}"))
}

/// Makes the table beside it.
pub async fn create(session: &Session, staged: &Staged) -> Result<(), Error> {
    session.run(&switch::create_stage(&staged.stage, &staged.table, &staged.columns)).await
}

/// Within the open transaction: its rows go, those beside it come. Returns how many came.
pub async fn replace(session: &Session, staged: &Staged) -> Result<u64, Error> {
    session.run(&switch::delete_rows(&staged.table)).await?;
    let filling = switch::insert_from_stage(&staged.table, &staged.stage, &staged.columns);
    session.execute(filling.doing(), filling.as_str(), &[]).await
}

/// Drops the tables beside, those that are there.
pub async fn drop(session: &Session, stages: &[TableName]) -> Result<(), Error> {
    if stages.is_empty() { Ok(()) } else { session.run(&switch::drop_stages(stages)).await }
}

/// Makes a fence before tables, as soon as nobody is changing them: within the open transaction.
pub async fn put_fence(session: &Session, fence: &str, source: &str, names: &[TableName]) -> Result<(), Error> {
    session.run(&switch::create_fence(fence, source)).await?;
    for name in names {
        session.run(&switch::put_fence(fence, name)).await?;
    }
    Ok(())
}

/// Waits for locks at most so long, until the transaction ends.
pub async fn be_patient(session: &Session, patience: std::time::Duration) -> Result<(), Error> {
    session.run(&ddl::set_local("lock_timeout", &format!("{}ms", patience.as_millis()))).await
}
