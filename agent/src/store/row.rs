//! Reads our own types out of rows.

use std::str::FromStr;

use steep_protocol::ids::OperationId;
use tokio_postgres::Row;
use uuid::Uuid;

use super::Error;
use crate::postgres::connect::field;

/// A column that holds one of our words or names.
pub(super) fn word<T>(row: &Row, column: &str) -> Result<T, Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    parse(column, field(row, column)?)
}

/// Like [`word`], where the column may be null.
pub(super) fn optional_word<T>(row: &Row, column: &str) -> Result<Option<T>, Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    field::<Option<&str>>(row, column)?.map(|text| parse(column, text)).transpose()
}

/// An operation's id.
pub(super) fn operation(row: &Row, column: &str) -> Result<OperationId, Error> {
    parse_operation(column, field(row, column)?)
}

/// Like [`operation`], where the column may be null.
pub(super) fn optional_operation(row: &Row, column: &str) -> Result<Option<OperationId>, Error> {
    field::<Option<Uuid>>(row, column)?.map(|id| parse_operation(column, id)).transpose()
}

fn parse<T>(column: &str, text: &str) -> Result<T, Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse().map_err(|error: T::Err| Error::Unreadable { what: column.to_owned(), source: error.into() })
}

fn parse_operation(column: &str, id: Uuid) -> Result<OperationId, Error> {
    OperationId::try_from(id).map_err(|error| Error::Unreadable { what: column.to_owned(), source: error.into() })
}
