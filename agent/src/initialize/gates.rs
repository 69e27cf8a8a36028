//! Keeping finished tables over a lost snapshot.
//!
//! The slot stays, and with it all that was written since the first snapshot. Tables that were not finished are copied again
//! in a later one; while the subscription does not run yet, it is told where each of them stands, and then leaves out what
//! their rows hold already. PostgreSQL's own copying of a table leaves the same word behind for the same purpose, in a
//! catalog that only a superuser may write: where the agent's role is none, all is copied anew.
//!
//! In a mesh every change comes from the node that wrote it, and from no other (`origin = none`), so each subscription is told
//! for itself, in the WAL of its own publisher. Let a later snapshot stand at X in the source's WAL and, for a member M, at P:
//! the end of the last commit of M's that the source had applied when the snapshot was made. Nothing was being applied then, and
//! every table had come equally far ([`crate::session`] sees to both), so the snapshot holds exactly
//! - what the source wrote itself and committed before X, which its slot sends if and only if it was not committed before X;
//! - what M wrote in transactions whose commits end at P or before. A later commit of M's begins at P or after it, for the
//!   records of one WAL do not overlap; and where a commit begins is what a worker compares a table's gate with.
//!
//! So for a table copied in that snapshot each commit is either in its rows or comes past its gates, never both and never
//! neither. The subscriptions themselves begin where the *first* snapshot stands, for the tables that were kept; both X and P only
//! grow, so that nothing is missing in between. Each table is judged by itself: a transaction over several tables may be in
//! one's rows and come to another by the stream, and is whole once all gates are passed, which `catch up` waits for.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    lsn::{BadLsn, Lsn},
    names::TableName,
    v1,
};
use tracing::warn;

use super::{
    direct::Direct,
    messages::table_name,
    steps::{Waiting, table_jobs},
};
use crate::{
    breakpoint::crash_point,
    cleanup::Member,
    operations::Context,
    postgres::{self, Purpose, catalog, subscriptions},
    rooms::Rooms,
    session::Moment,
    store::{
        self, ledger, notes,
        steps::{self, StepStatus},
    },
    telemetry,
};

/// Where tables stand that were copied in a later snapshot than the first, as it is noted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gates(Vec<Gate>);

/// Where one table stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Gate {
    table: TableName,
    /// In the source's WAL.
    at: Lsn,
    /// In the WAL of each member.
    members: Vec<(NodeId, Lsn)>,
}

impl Gates {
    /// What was noted; nothing: no table has a gate.
    pub(super) fn noted(body: Option<&[u8]>) -> Result<Self, Failure> {
        let read = body.map(serde_json::from_slice).transpose();
        read.map(Option::unwrap_or_default).map_err(|error| {
            // Without them rows would come twice.
            let text = "where the tables of this operation stand was noted by another version of the agent";
            Failure::new(Code::Interrupted, text).caused_by(&error)
        })
    }

    /// For the subscription to the source.
    pub(super) fn of_source(&self) -> Vec<(TableName, Lsn)> {
        self.0.iter().map(|gate| (gate.table.clone(), gate.at)).collect()
    }

    /// For the subscription to a member.
    pub(super) fn of_member(&self, node: &NodeId) -> Result<Vec<(TableName, Lsn)>, Failure> {
        let of_one = |gate: &Gate| {
            let at = gate.members.iter().find(|(member, _)| member == node).map(|(_, at)| *at);
            let unknown = || {
                let text = format!("nobody knows which changes of {node} are in the rows of {}", gate.table);
                Failure::new(Code::PositionLost, text)
            };
            at.map(|at| (gate.table.clone(), at)).ok_or_else(unknown)
        };
        self.0.iter().map(of_one).collect()
    }

    fn set(&mut self, tables: &[TableName], shown: Option<&Moment>) {
        self.0.retain(|gate| !tables.contains(&gate.table));
        let gate = |shown: &Moment, table: &TableName| {
            let Moment { lsn: at, positions: members } = shown.clone();
            Gate { table: table.clone(), at, members }
        };
        self.0.extend(shown.into_iter().flat_map(|shown| tables.iter().map(move |table| gate(shown, table))));
    }

    fn of(&self, table: &TableName) -> Option<Lsn> {
        self.0.iter().find(|gate| gate.table == *table).map(|gate| gate.at)
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
        self.gate(context, &rest, &reply).await?;
        crash_point!("gates noted");
        // Only now there is a session that is not lost: should this agent die before, all this is done once more.
        self.note_session(context, &reply).await?;
        Ok(true)
    }

    async fn may_keep_tables(&self, context: &Context) -> Result<bool, Failure> {
        let known = steps::list(&self.rooms.store, context.op).await.map_err(remember)?;
        let are_made = known.iter().any(|step| step.name == "create tables" && step.status == StepStatus::Done);
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        Ok(are_made && catalog::role_facts(&look).await.map_err(explain)?.is_superuser)
    }

    /// Notes for `tables`, which are copied in the snapshot of `reply`, where that stands if it is later than the slot.
    pub(super) async fn gate(
        &mut self,
        context: &Context,
        tables: &[TableName],
        reply: &v1::OpenSessionReply,
    ) -> Result<(), Failure> {
        let shown = self.shown_later(reply)?;
        self.gates.set(tables, shown.as_ref());
        self.note_gates(context, &self.gates).await
    }

    /// What the snapshot of `reply` shows, if that is later than where its slot begins.
    fn shown_later(&self, reply: &v1::OpenSessionReply) -> Result<Option<Moment>, Failure> {
        if reply.gate_lsn.is_empty() {
            return Ok(None);
        }
        let source = &self.plan.source;
        let read = |text: &str| {
            let bad = |error: BadLsn| Failure::new(Code::BadRequest, format!("{source}: {error}"));
            text.parse::<Lsn>().map_err(bad)
        };
        let mut positions = Vec::new();
        for node in self.members.iter().map(|member| member.node.node()) {
            let told = reply.gate_positions.iter().find(|position| position.node == node.as_str());
            let missing = || Failure::new(Code::PositionLost, format!("{source} does not say how far it has {node}"));
            positions.push((node.clone(), read(&told.ok_or_else(missing)?.lsn)?));
        }
        Ok(Some(Moment { lsn: read(&reply.gate_lsn)?, positions }))
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

    /// Waits until subscription `name` has come past every gate; from then on its tables are like all others.
    pub(super) async fn pass_gates(&self, name: &str) -> Result<(), Failure> {
        if self.gates.0.is_empty() {
            return Ok(());
        }
        let me = &self.rooms.me;
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
            waiting.pause().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_stands_where_it_was_copied_last() {
        let [one, two] = ["one", "two"].map(|name| TableName::new("public", name));
        let [c, d]: [NodeId; 2] = ["node_c", "node_d"].map(|name| name.parse().expect("a node"));
        let shown = |lsn, of_c| Moment { lsn: Lsn(lsn), positions: vec![(c.clone(), Lsn(of_c))] };
        let mut gates = Gates::default();
        gates.set(&[one.clone(), two.clone()], Some(&shown(5, 70)));
        gates.set(std::slice::from_ref(&two), Some(&shown(9, 80)));
        assert_eq!((gates.of(&one), gates.of(&two)), (Some(Lsn(5)), Some(Lsn(9))));
        assert_eq!(gates.of_member(&c), Ok(vec![(one.clone(), Lsn(70)), (two.clone(), Lsn(80))]), "in its own WAL");
        assert_eq!(gates.of_member(&d).expect_err("it was not told").code, Code::PositionLost);
        let body = serde_json::to_vec(&gates).expect("plain data");
        assert_eq!(Gates::noted(Some(&body)), Ok(gates.clone()));
        gates.set(std::slice::from_ref(&one), None);
        assert_eq!(gates.of_source(), [(two, Lsn(9))], "the first snapshot needs no gate");
    }

    #[test]
    fn gates_that_cannot_be_read_are_not_taken_for_none() {
        assert_eq!(Gates::noted(None), Ok(Gates::default()));
        assert_eq!(Gates::noted(Some(b"[[\"another\", \"0/5\"]]")).expect_err("unknown").code, Code::Interrupted);
    }
}
