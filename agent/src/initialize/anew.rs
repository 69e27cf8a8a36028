//! Copying anew within the same operation, after the source has lost the snapshot: its keeper or its PostgreSQL died.
//!
//! Tables that are finished stay where that can be ([`super::gates`]). Otherwise, as what was copied fits no other snapshot, all
//! of it is taken back, and the slots for the way back are made anew after it; the preflight and the sessions of members
//! stay. The source then opens the session anew, in a new snapshot with a new slot.
//!
//! Where applications have written to this node already, that would go with the rows: then it is for an operator to decide.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    operation::InitMethod,
    v1,
};

use super::{direct::Direct, gates::Gates, steps::table_jobs};
use crate::{
    breakpoint::crash_point,
    operations::Context,
    postgres::{Purpose, activity, slots},
    session::slot_name,
    snapshot::indexes::{BEGUN, BUILT},
    store::{
        self, ledger, notes,
        steps::{self, StepStatus},
    },
};

/// So often an operation begins anew; a source that loses more snapshots needs somebody to look at it.
pub(super) const MOST: u32 = 3;
/// The steps that are run once more; the first only where both ways are replicated.
const STEPS: [&str; 3] = ["publish on target", "create tables", "copy tables"];

fn explain(error: store::Error) -> Failure {
    error.explain()
}

impl Direct {
    /// Takes back what was copied and has the source open its session anew, if that is what `failure` calls for; returns the
    /// steps to run once more.
    pub(super) async fn copy_anew(
        &mut self,
        context: &Context,
        failure: &Failure,
    ) -> Result<Vec<&'static str>, Failure> {
        let copies = matches!(self.plan.method, InitMethod::Direct | InitMethod::Auto) && self.plan.from.is_none();
        if !copies || failure.code != Code::SnapshotLost || self.lease.is_none() || self.anew == MOST {
            return Ok(Vec::new());
        }
        self.nobody_has_written(context, failure).await?;
        if self.copy_rest_anew(context).await? {
            return Ok(vec![STEPS[2]]);
        }
        self.take_copy_back(context).await?;
        let again = &STEPS[usize::from(self.plan.wanted.one_way)..];
        for step in again {
            steps::mark(&self.rooms.store, context.op, step, StepStatus::Pending).await.map_err(explain)?;
        }
        crash_point!("copy taken back");
        let reply = self.reopen(context, false).await?;
        // One that was opened for tables to be kept, by a try before: then the slot begins earlier than the snapshot.
        if !reply.gate_lsn.is_empty() {
            let all = table_jobs(&self.facts.tables, &reply.tables)?;
            self.gate(context, &all.into_iter().map(|job| job.name).collect::<Vec<_>>(), &reply).await?;
        }
        // Only now there is a session that is not lost: should this agent die before, all this is done once more.
        self.note_session(context, &reply).await?;
        Ok(again.to_vec())
    }

    /// The session in another snapshot; the next one, should that be lost while it is made. `keeps_slot`: on the slot it has.
    pub(super) async fn reopen(
        &mut self,
        context: &Context,
        keeps_slot: bool,
    ) -> Result<v1::OpenSessionReply, Failure> {
        self.note_reopening(context).await?;
        loop {
            let reopened = self.source.reopen_session(keeps_slot).await;
            match &reopened {
                Ok(_) => self.anew += 1,
                Err(failure) if failure.code == Code::SnapshotLost => self.anew += 1,
                Err(_) => return reopened,
            }
            if reopened.is_ok() || self.anew == MOST {
                return reopened;
            }
        }
    }

    /// Fails, with what `failure` says and why it stays so, where this node holds changes that nobody else has yet.
    async fn nobody_has_written(&self, context: &Context, failure: &Failure) -> Result<(), Failure> {
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        for node in self.both_ways_with() {
            let (slot, publication) = (slot_name(&node, context.op), self.publication_for(&node));
            if slots::find(&look, &slot).await.map_err(|error| error.explain())?.is_none() {
                continue;
            }
            if slots::has_own_changes(&look, &slot, &publication).await.map_err(|error| error.explain())? {
                let me = &self.rooms.me;
                let why = format!("it is not copied anew by itself: applications have written to {me} meanwhile");
                return Err(failure.clone().cause(why).hint(format!(
                    "save what was written to {me}, which is undone now; then: steepctl node resume {me}"
                )));
            }
        }
        Ok(())
    }

    /// Whatever still runs for us must not make anything new any more.
    pub(super) async fn stop_copying(&mut self, context: &Context) -> Result<(), Failure> {
        self.building = None;
        self.builder = None;
        self.session = None;
        self.lost.send_replace(None);
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
        activity::terminate(&look, context.op).await.map_err(|error| error.explain()).map(drop)
    }

    async fn take_copy_back(&mut self, context: &Context) -> Result<(), Failure> {
        self.take_rows_back(context, &["origin", "rows", "objects", "schema", "slot"]).await?;
        self.forget_archive();
        Ok(())
    }

    /// Undoes what there is of `kinds`, newest first, as they are made; what was copied is forgotten.
    pub(super) async fn take_rows_back(&mut self, context: &Context, kinds: &[&str]) -> Result<(), Failure> {
        self.stop_copying(context).await?;
        self.counts.clear();
        self.gates = Gates::default();
        for kind in kinds {
            self.rooms.cleanup.undo_kind(context.op, kind).await?;
        }
        ledger::forget(&self.rooms.store, context.op).await.map_err(explain)?;
        notes::forget_some(&self.rooms.store, context.op, &["counts", "gates", BEGUN, BUILT]).await.map_err(explain)?;
        context.feed.progress(|progress| progress.forget_tables());
        Ok(())
    }
}
