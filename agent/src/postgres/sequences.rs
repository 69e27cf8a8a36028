//! Sequences: where they stand, and moving them ahead. Logical replication does not carry them (up to 18).

use steep_protocol::names::TableName;
use tokio_postgres::Row;

use super::{
    connect::{Session, field},
    ddl,
    error::{Error, doing},
};

/// Sequences read in one statement, where each must be read itself.
const AT_ONCE: usize = 200;

/// A sequence and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its name.
    pub name: TableName,
    /// The last value, see `is_called`.
    pub last_value: i64,
    /// false: `last_value` will be handed out next; true: it has been.
    pub is_called: bool,
    /// Its step; negative: it goes down.
    pub increment: i64,
    /// Its least value.
    pub min_value: i64,
    /// Its greatest value.
    pub max_value: i64,
    /// Values each session takes at once.
    pub cache: i64,
    /// It begins again at its end.
    pub cycles: bool,
}

/// Which sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceScope<'a> {
    /// All of the users' own.
    WholeDatabase,
    /// Those the tables with these oids own or take defaults from.
    OfTables(&'a [u32]),
}

/// Reads where sequences stand, now and not in any snapshot: sequences know none.
pub async fn read(session: &Session, scope: SequenceScope<'_>) -> Result<Vec<Sequence>, Error> {
    let tables = match scope {
        SequenceScope::WholeDatabase => None,
        SequenceScope::OfTables(oids) => Some(oids),
    };
    let rows = session.rows(doing("list sequences"), sql!("catalog/list_sequences.sql"), &[&tables]).await?;
    let mut sequences = Vec::with_capacity(rows.len());
    let mut untouched = Vec::new();
    for row in &rows {
        let (sequence, is_known) = read_row(row)?;
        if !is_known {
            untouched.push(sequences.len());
        }
        sequences.push(sequence);
    }
    // Only a read of the sequence itself tells where one stands that was set but has handed out nothing.
    for positions in untouched.chunks(AT_ONCE) {
        let names: Vec<_> = positions.iter().map(|at| sequences[*at].name.clone()).collect();
        let answer = session.texts(&ddl::read_sequences(&names)).await?;
        for (at, row) in positions.iter().zip(&answer) {
            if let [_, Some(last_value), Some(is_called)] = row.as_slice() {
                sequences[*at].last_value = last_value.parse().unwrap_or_default();
                sequences[*at].is_called = is_called == "t";
            }
        }
    }
    Ok(sequences)
}

fn read_row(row: &Row) -> Result<(Sequence, bool), Error> {
    let last_value: Option<i64> = field(row, "last_value")?;
    let sequence = Sequence {
        name: TableName::new(field::<String>(row, "schema_name")?, field::<String>(row, "sequence_name")?),
        last_value: last_value.unwrap_or_default(),
        is_called: last_value.is_some(),
        increment: field(row, "increment")?,
        min_value: field(row, "min_value")?,
        max_value: field(row, "max_value")?,
        cache: field(row, "cache")?,
        cycles: field(row, "cycles")?,
    };
    Ok((sequence, last_value.is_some()))
}

/// Where one sequence is to stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPosition {
    /// The sequence.
    pub name: TableName,
    /// The value.
    pub value: i64,
    /// The value counts as handed out.
    pub is_called: bool,
}

/// Sets sequences, all or none.
pub async fn set(session: &Session, positions: &[NewPosition]) -> Result<(), Error> {
    let names: Vec<String> = positions.iter().map(|position| position.name.sql()).collect();
    let values: Vec<i64> = positions.iter().map(|position| position.value).collect();
    let called: Vec<bool> = positions.iter().map(|position| position.is_called).collect();
    let setting = doing(format!("set {} sequences", positions.len()));
    session.execute(setting, sql!("catalog/set_sequences.sql"), &[&names, &values, &called]).await?;
    Ok(())
}
