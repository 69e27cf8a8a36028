//! Keeping finished tables over a lost snapshot.
//!
//! The slot stays, and with it all that was written since the first snapshot. Tables that were not finished are copied again
//! in a later one; while the subscription does not run yet, it is told where each of them stands, and then leaves out what
//! their rows hold already. PostgreSQL's own copying of a table leaves the same word behind for the same purpose, in a
//! catalog that only a superuser may write: where the agent's role is none, all is copied anew.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    lsn::Lsn,
    names::TableName,
    v1,
};
use tokio::time::sleep;
use tracing::warn;

use super::{
    direct::Direct,
    messages::table_name,
    steps::{LOOK, Waiting, table_jobs},
};
use crate::{
    breakpoint::crash_point,
    cleanup::Member,
    operations::Context,
    postgres::{self, Purpose, catalog, subscriptions},
    rooms::Rooms,
    store::{
        self, ledger, notes,
        steps::{self, StepStatus},
    },
    telemetry,
};

/// Where tables stand that were copied in a later snapshot than the first, as it is noted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gates(Vec<(TableName, Lsn)>);

impl Gates {
    /// For a subscription.
    pub(super) fn as_slice(&self) -> &[(TableName, Lsn)] {
        &self.0
    }

    fn set(&mut self, tables: &[TableName], at: Option<Lsn>) {
        self.0.retain(|(table, _)| !tables.contains(table));
        self.0.extend(at.into_iter().flat_map(|at| tables.iter().map(move |table| (table.clone(), at))));
    }

    fn of(&self, table: &TableName) -> Option<Lsn> {
        self.0.iter().find(|(gated, _)| gated == table).map(|(_, at)| *at)
    }
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

fn remember(error: store::Error) -> Failure {
    error.explain()
}

/// Tells subscription `name`, which must not run yet, where `gates` stand.
pub(super) async fn set(rooms: &Rooms, op: OperationId, name: &str, gates: &[(TableName, Lsn)]) -> Result<(), Failure> {
    if gates.is_empty() {
        return Ok(());
    }
    let session = rooms.database.session(Purpose::Ddl(op)).await.map_err(explain)?;
    for (table, at) in gates {
        if !subscriptions::set_table(&session, name, table, *at).await.map_err(explain)? {
            let text = format!("subscription {name} on {} does not carry {table}, which was copied for it", rooms.me);
            return Err(Failure::new(Code::SubscriptionFailing, text));
        }
        crash_point!("a gate set");
    }
    session.close().await;
    Ok(())
}

impl Direct {
    /// Takes back what was not finished in the lost snapshot, and has the source make another one for it; false: all has to
    /// be copied anew.
    pub(super) async fn copy_rest_anew(&mut self, context: &Context) -> Result<bool, Failure> {
        if !self.may_keep_tables(context).await? {
            return Ok(false);
        }
        let Some(before) = self.noted_session(context).await? else { return Ok(false) };
        self.stop_copying(context).await?;
        let (finished, rest) = self.finished(context, &before).await?;
        if finished.is_empty() || !self.empty_rest(context, &rest).await? {
            return Ok(false);
        }
        steps::mark(&self.rooms.store, context.op, "copy tables", StepStatus::Pending).await.map_err(remember)?;
        crash_point!("rest taken back");
        let mut reply = match self.reopen(context, true).await {
            Err(failure) if failure.code == Code::SlotLost => return Ok(false),
            reopened => reopened?,
        };
        if (&reply.slot, &reply.lsn) != (&before.slot, &before.lsn) {
            return Ok(false);
        }
        // A finished table keeps the parts it was copied in.
        reply.tables.retain(|table| !finished.contains(&table.oid));
        reply.tables.extend(before.tables.into_iter().filter(|table| finished.contains(&table.oid)));
        self.gates.set(&rest, reply.gate_lsn.parse().ok());
        self.note_gates(context, &self.gates).await?;
        crash_point!("gates noted");
        // Only now there is a session that is not lost: should this agent die before, all this is done once more.
        self.note_session(context, &reply).await?;
        Ok(true)
    }

    async fn may_keep_tables(&self, context: &Context) -> Result<bool, Failure> {
        // What members wrote would have to be gated too, each by its own WAL.
        if !self.plan.members.is_empty() {
            return Ok(false);
        }
        let known = steps::list(&self.rooms.store, context.op).await.map_err(remember)?;
        let are_made = known.iter().any(|step| step.name == "create tables" && step.status == StepStatus::Done);
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        Ok(are_made && catalog::role_facts(&look).await.map_err(explain)?.is_superuser)
    }

    /// The tables all of whose parts have landed, by their oids; and the names of the others.
    async fn finished(
        &self,
        context: &Context,
        before: &v1::OpenSessionReply,
    ) -> Result<(BTreeSet<u32>, Vec<TableName>), Failure> {
        let parts = ledger::parts(&self.rooms.store, context.op).await.map_err(remember)?;
        let landed = |table: &TableName| parts.iter().filter(|part| part.table == *table).count();
        let jobs = table_jobs(&self.facts.tables, &before.tables)?;
        let (finished, rest): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| landed(&job.name) == job.plan.starts.len());
        Ok((finished.iter().map(|job| job.oid).collect(), rest.into_iter().map(|job| job.name).collect()))
    }

    /// Empties `rest`, and forgets what was copied into it; false: it cannot be emptied by itself.
    async fn empty_rest(&mut self, context: &Context, rest: &[TableName]) -> Result<bool, Failure> {
        let members: Vec<_> = rest.iter().map(|table| Member { table: table.clone(), partitioned: false }).collect();
        if let Err(failure) = self.rooms.cleanup.empty(context.op, &members).await {
            // A foreign key of a finished table, say.
            warn!(op_id = %context.op, error = telemetry::failure(&failure), "finished tables cannot be kept");
            return Ok(false);
        }
        ledger::forget_tables(&self.rooms.store, context.op, rest).await.map_err(remember)?;
        self.counts.clear();
        notes::forget_some(&self.rooms.store, context.op, &["counts"]).await.map_err(remember)?;
        context.feed.progress(|progress| progress.forget_tables());
        Ok(true)
    }

    /// Leaves out of `counts` the tables of an earlier snapshot, in which nobody can count any more.
    pub(super) fn of_last_snapshot(&self, mut counts: Vec<v1::TableRows>) -> Vec<v1::TableRows> {
        // Rows alone come from files, without a session.
        let gate = self.session.as_ref().and_then(|session| session.reply.gate_lsn.parse().ok());
        let Some(gate) = gate else { return counts };
        counts.retain(|counted| {
            let table = self.facts.tables.iter().find(|table| table.oid == counted.oid);
            let name = table.and_then(|table| table.table.as_ref()).map(table_name);
            name.is_some_and(|name| self.gates.of(&name) == Some(gate))
        });
        counts
    }

    /// Waits until the subscription has come past every gate; from then on its tables are like all others.
    pub(super) async fn pass_gates(&self) -> Result<(), Failure> {
        if self.gates.as_slice().is_empty() {
            return Ok(());
        }
        let (name, me) = (&self.subscription, &self.rooms.me);
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let mut waiting = Waiting::new(self.rooms.config.copy.catch_up_timeout);
        loop {
            let found = subscriptions::find(&look, name).await.map_err(explain)?;
            let gone = || Failure::new(Code::SubscriptionFailing, format!("subscription {name} on {me} was dropped"));
            let found = found.ok_or_else(gone)?;
            if found.tables == found.tables_ready {
                return Ok(());
            }
            waiting.still(Lsn(found.tables_ready), || format!("{name} waits for its tables"))?;
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_stands_where_it_was_copied_last() {
        let [one, two] = ["one", "two"].map(|name| TableName::new("public", name));
        let mut gates = Gates::default();
        gates.set(&[one.clone(), two.clone()], Some(Lsn(5)));
        gates.set(std::slice::from_ref(&two), Some(Lsn(9)));
        assert_eq!((gates.of(&one), gates.of(&two)), (Some(Lsn(5)), Some(Lsn(9))));
        gates.set(std::slice::from_ref(&one), None);
        assert_eq!(gates.as_slice(), [(two, Lsn(9))], "the first snapshot needs no gate");
    }
}
