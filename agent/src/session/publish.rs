//! What a session is about: its tables as both nodes agreed on, and the publication that holds them.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    names::TableName,
};

use crate::{
    cleanup::{Cleanup, Effect, Member},
    postgres::{
        self, Session as Connection, ddl, publications,
        tables::{self, Table, TableKind},
    },
};

/// Makes `publication` hold all of `members`, creating it if needed.
pub async fn publish(
    cleanup: &Cleanup,
    look: &Connection,
    op: OperationId,
    publication: &str,
    members: &[Member],
) -> Result<(), Failure> {
    let explain = |error: postgres::Error| error.explain();
    let exists = publications::exists(look, publication).await.map_err(explain)?;
    let held = if exists { publications::tables(look, publication).await.map_err(explain)? } else { Vec::new() };
    let added: Vec<_> =
        members.iter().filter(|member| !held.iter().any(|table| table.name == member.table)).cloned().collect();
    let effect = Effect::Publication { name: publication.to_owned(), created: !exists, added: added.clone() };
    let refs: Vec<_> = added.iter().map(Into::into).collect();
    let statement = if exists {
        ddl::add_to_publication(publication, &refs)
    } else {
        Some(ddl::create_publication(publication, &refs))
    };
    cleanup
        .make(op, "publish", &effect, async {
            match statement {
                Some(statement) => look.run(&statement).await.map_err(explain),
                None => Ok(()),
            }
        })
        .await
}

/// The tables as they are now, provided they still are what both nodes agreed on.
pub(super) async fn tables_as_agreed(look: &Connection, wanted: &[(u32, TableName)]) -> Result<Vec<Table>, Failure> {
    let oids: Vec<u32> = wanted.iter().map(|(oid, _)| *oid).collect();
    let found = tables::describe(look, &oids).await.map_err(|error| error.explain())?;
    let mut tables = Vec::with_capacity(found.len());
    for (oid, name) in wanted {
        match found.iter().find(|table| table.oid == *oid && table.name == *name) {
            Some(table) if matches!(table.kind, TableKind::Plain | TableKind::Partitioned) => {
                tables.push(table.clone())
            }
            _ => {
                return Err(Failure::new(Code::SchemaChanged, format!("table {name} is not what it was a moment ago")));
            }
        }
    }
    Ok(tables)
}
