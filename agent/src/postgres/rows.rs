//! How many rows tables hold.

use steep_protocol::names::TableName;

use super::{connect::Session, ddl, error::Error};

/// Tables asked about in one statement.
const AT_ONCE: usize = 100;

/// Counts the rows of each table itself, in the order given, exactly: every row is visited.
///
/// Inside a transaction that imported a snapshot, counts that snapshot's rows.
pub async fn count(session: &Session, names: &[TableName]) -> Result<Vec<u64>, Error> {
    let mut counts = Vec::with_capacity(names.len());
    for names in names.chunks(AT_ONCE) {
        let rows = session.texts(&ddl::count_rows(names)).await?;
        counts.extend(rows.iter().map(|row| number::<u64>(row, 1)));
    }
    Ok(counts)
}

/// Those of the tables that hold at least one row themselves.
pub async fn which_hold_any(session: &Session, names: &[TableName]) -> Result<Vec<TableName>, Error> {
    let mut holding = Vec::new();
    for names in names.chunks(AT_ONCE) {
        let rows = session.texts(&ddl::tables_with_rows(names)).await?;
        holding.extend(rows.iter().filter_map(|row| names.get(number::<usize>(row, 0))).cloned());
    }
    Ok(holding)
}

fn number<T: std::str::FromStr + Default>(row: &[Option<String>], at: usize) -> T {
    row.get(at).and_then(|text| text.as_ref()?.parse().ok()).unwrap_or_default()
}
