//! Tables that a subscription skips for a while, by the state PostgreSQL keeps of each of them.
//!
//! A worker skips what was committed before the LSN of a table in state 's', and makes it 'r' once it has come that far:
//! that is how tablesync hands a table over. So other LSNs there make a table wait, or let a subscription go back without
//! its other tables seeing anything twice. Workers read this when they start: none may be alive.

use steep_protocol::{failure::Code, lsn::Lsn, names::TableName};
use tokio_postgres::types::PgLsn;

use super::{
    connect::{Session, field},
    error::{Error, doing},
};

/// A table that a subscription of ours carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The subscription.
    pub subscription: String,
    /// The table.
    pub table: TableName,
    /// Its first copy, if PostgreSQL made one, is done.
    pub is_past_copy: bool,
    /// It is skipped, whatever comes.
    pub is_held: bool,
}

fn pairs(tables: &[TableName]) -> (Vec<&str>, Vec<&str>) {
    tables.iter().map(|table| (table.schema.as_str(), table.name.as_str())).unzip()
}

/// Makes `subscription`, whose workers are gone, skip `tables` from now on.
pub async fn hold(session: &Session, subscription: &str, tables: &[TableName]) -> Result<(), Error> {
    let holding = doing(format!("hold tables of subscription {subscription}")).privilege(Code::SubscribePrivilege);
    let (schemas, names) = pairs(tables);
    let sql = sql!("reinit/hold_tables.sql");
    session.execute(holding, sql, &[&subscription, &schemas, &names]).await?;
    Ok(())
}

/// Lets `subscription`, whose workers are gone and which has come as far as `at`, go back: `tables` take every change, all
/// others what was committed from `at` on. Tables that are held besides stay so.
pub async fn take_back(session: &Session, subscription: &str, tables: &[TableName], at: Lsn) -> Result<(), Error> {
    let taking = doing(format!("take subscription {subscription} back")).privilege(Code::SubscribePrivilege);
    let (schemas, names) = pairs(tables);
    let at = PgLsn::from(at.0);
    session.execute(taking, sql!("reinit/take_back.sql"), &[&subscription, &schemas, &names, &at]).await?;
    Ok(())
}

/// All tables that subscriptions of ours carry.
pub async fn carried(session: &Session) -> Result<Vec<Carried>, Error> {
    let rows = session.rows(doing("list replicated tables"), sql!("reinit/list_carried.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Carried {
                subscription: field(row, "subscription")?,
                table: TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "table_name")?),
                is_past_copy: field(row, "is_past_copy")?,
                is_held: field(row, "is_held")?,
            })
        })
        .collect()
}
