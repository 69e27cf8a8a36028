//! Reads this node's database as a catalog, as it is in the session's own transaction.

use steep_protocol::names::TableName;

use super::Error;
use crate::{
    postgres::{Session, shapes},
    schema::{
        BadDocument, Catalog,
        catalog::{Environment, Object, ObjectKey, ObjectKind, Table},
    },
};

/// The tables called `names` (none: all), every type and sequence, and the database itself.
///
/// Fails with [`Error::Unseen`] where the role cannot see every table: what is missing then would look dropped.
pub async fn catalog(session: &Session, names: Option<&[TableName]>) -> Result<Catalog, Error> {
    let (environment, unreadable) = shapes::environment(session).await?;
    if !unreadable.is_empty() {
        return Err(Error::Unseen { catalogs: unreadable });
    }
    let environment = Environment::parse(&environment)?;
    let mut catalog = Catalog { server_major: environment.major(), environment, ..Catalog::default() };
    for shape in shapes::tables(session, names).await? {
        let mut table = Table::parse(&shape.name, &shape.columns, &shape.shape)?;
        table.fingerprint = shape.fingerprint;
        table.fingerprint_sorted = shape.fingerprint_sorted;
        table.shape_fingerprint = shape.shape_fingerprint;
        catalog.tables.insert(shape.name, table);
    }
    for shape in shapes::objects(session).await? {
        let Some(kind) = ObjectKind::parse(&shape.kind) else {
            let (of, at) = (format!("object {}", shape.name), "kind".to_owned());
            return Err(BadDocument { of, at, found: shape.kind, expected: "a kind of object" }.into());
        };
        let key = ObjectKey { kind, name: shape.name };
        let object = Object::parse(&key, shape.fingerprint, &shape.definition)?;
        catalog.objects.insert(key, object);
    }
    Ok(catalog)
}
