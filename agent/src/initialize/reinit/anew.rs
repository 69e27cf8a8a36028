//! Copying tables again anew within the same operation, after the source has lost the snapshot: its keeper or its PostgreSQL died.
//!
//! Beside the tables: what was copied is dropped and comes once more from another snapshot; the tables are as they were. In place: the
//! tables hold a part of the lost snapshot, and stand still; they are emptied once more, and their subscriptions learn where the
//! new snapshot begins. The fence stays: the source has what was written before it, and so has each later snapshot.
//!
//! Once tables stand still with their old rows, the slot of the lost snapshot is all that can bring these up to date, and a new
//! session would drop it. Then this fails, and its undo uses the slot.

use steep_protocol::failure::{Code, Explain as _, Failure};

use super::Reinit;
use crate::{
    breakpoint::crash_point,
    cleanup::{Contents, Stage},
    initialize::anew::MOST,
    operations::Context,
    store::{
        self,
        steps::{self, StepStatus},
    },
};

/// The steps that are run once more, where rows come beside the tables.
const BESIDE: [&str; 2] = ["stage tables", "copy tables"];
/// The same in place.
const IN_PLACE: [&str; 3] = ["hold tables", "empty tables", "copy tables"];

fn explain(error: store::Error) -> Failure {
    error.explain()
}

impl Reinit {
    /// Takes back what was copied and has the source open its session anew, if that is what `failure` calls for; returns the
    /// steps to run once more.
    pub(super) async fn copy_anew(
        &mut self,
        context: &Context,
        failure: &Failure,
    ) -> Result<Vec<&'static str>, Failure> {
        let direct = &self.direct;
        let is_lost = failure.code == Code::SnapshotLost && direct.lease.is_some() && direct.anew < MOST;
        if !is_lost || !self.needs_no_slot(context).await? {
            return Ok(Vec::new());
        }
        let direct = &mut self.direct;
        direct.take_rows_back(context, &["origin", "staged"]).await?;
        let again = if self.in_place { &IN_PLACE[..] } else { &BESIDE[..] };
        for step in again {
            steps::mark(&direct.rooms.store, context.op, step, StepStatus::Pending).await.map_err(explain)?;
        }
        crash_point!("copy taken back");
        let reply = direct.reopen(context, false).await?;
        // Only now there is a session that is not lost: should this agent die before, all this is done once more.
        direct.note_session(context, &reply).await?;
        Ok(again.to_vec())
    }

    /// Whether nothing in the tables would still need the slot of the lost snapshot.
    async fn needs_no_slot(&self, context: &Context) -> Result<bool, Failure> {
        let detours = self.rooms().cleanup.detours(context.op).await?;
        let mut begun = detours.iter().filter(|detour| detour.stage != Stage::Planned);
        Ok(begun.all(|detour| self.in_place && detour.stage == Stage::Held && detour.contents == Contents::Neither))
    }
}
