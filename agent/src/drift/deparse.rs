//! Settles what only two versions of PostgreSQL write in two ways: the other's table is made here, in a scratch schema that
//! is rolled back, and read back in this server's own words.

use steep_protocol::names::TableName;

use super::{Error, look};
use crate::{
    postgres::{Session, ddl, error::doing, shapes},
    schema::{
        Catalog,
        catalog::Table,
        compare::{Comparison, Qualifier, Verdict},
        diff::{Aspect, differences},
        respell,
    },
};

/// For each statement that makes a table in order to read it back.
const LIMITS: [(&str, &str); 2] = [("lock_timeout", "5s"), ("statement_timeout", "10s")];

/// Looks again at every table of `comparison` that differs, where the servers' versions do: texts of `remote` that this
/// server writes otherwise are replaced by its own, and what is the same then is a match, `TEXT_ONLY`.
///
/// `session` must have no transaction open. Changes nothing in the database.
pub async fn settle(
    session: &Session,
    comparison: &mut Comparison,
    local: &Catalog,
    remote: &mut Catalog,
) -> Result<(), Error> {
    if local.server_major == remote.server_major {
        return Ok(());
    }
    for (name, compared) in &mut comparison.tables {
        let is_text = |aspect| {
            matches!(
                aspect,
                Aspect::Default
                    | Aspect::Generated
                    | Aspect::Check
                    | Aspect::Index
                    | Aspect::PartitionKey
                    | Aspect::Bound
            )
        };
        let has_texts = compared.differences.iter().any(|difference| is_text(difference.aspect));
        if compared.verdict != Verdict::Mismatch || !has_texts {
            continue;
        }
        let (Some(here), Some(there)) = (local.tables.get(name), remote.tables.get_mut(name)) else { continue };
        session.begin().await?;
        // Nobody waits for long on a name that two sessions use, or on what a table turns out to be.
        for (name, limit) in LIMITS {
            session.run(&ddl::set_local(name, limit)).await?;
        }
        let written = in_our_words(session, name, there, local).await;
        session.rollback().await?;
        let Some(written) = written? else { continue };
        compared.differences = differences(here, &written);
        *there = written;
        if compared.differences.is_empty() {
            compared.verdict = Verdict::Match;
            compared.qualifier = Some(Qualifier::TextOnly);
        } else if compared.differences.iter().all(|difference| difference.aspect == Aspect::Order) {
            compared.qualifier = Some(Qualifier::OrderOnly);
        }
    }
    Ok(())
}

/// `table`, called `name`, as this server writes it; none where it cannot be made here. Leaves an open transaction as it was.
pub(super) async fn in_our_words(
    session: &Session,
    name: &TableName,
    table: &Table,
    here: &Catalog,
) -> Result<Option<Table>, Error> {
    let plan = respell::scratch_plan(name, table, here);
    let scratch = respell::scratch_name(name);
    let control = || doing("settle how a table is written");
    shapes::run_planned(session, "savepoint steep_scratch", control()).await?;
    let mut made = Ok(());
    for step in &plan.steps {
        made = shapes::run_planned(session, &step.sql, doing(step.title())).await;
        if made.is_err() {
            break;
        }
    }
    let written = match made {
        Ok(()) => look::catalog(session, Some(std::slice::from_ref(&scratch))).await,
        Err(error) if error.refusal().is_none() => return Err(error.into()),
        // What cannot be made here is not the same.
        Err(_) => Ok(Catalog::default()),
    };
    shapes::run_planned(session, "rollback to savepoint steep_scratch", control()).await?;
    Ok(written?.tables.get(&scratch).map(|written| respell::respelled(name, table, written)))
}
