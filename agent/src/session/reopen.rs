//! A session whose snapshot was lost, since its keeper or PostgreSQL has died, opened anew for the same target: with a slot
//! of its own, or on the one it had, where the target keeps the tables that it had copied. What others wrote is held still for
//! it as it was for the first.
//!
//! What an operator has signed for it holds on: the target asks for nothing that it was not given before.

use std::sync::Arc;

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
};

use super::{Held, Moment, Neighbour, OpenRequest, Opening, Role, Sessions, WHOLE_DATABASE};
use crate::postgres::{self, Purpose, slots};

/// What becomes of the slot that was made with the lost snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldSlot {
    /// It goes, and another one begins where the new snapshot stands.
    Replaced,
    /// It stays: tables that were copied in the lost snapshot are kept.
    Kept,
}

impl Sessions {
    /// The session of `op` with a snapshot that is held: the one that is open if it has not lost its own, else a new one.
    /// `neighbour` tells by which subscription the changes of a node come.
    ///
    /// Fails with [`Code::SlotLost`] where the slot that is to be kept is not what it was. After an error the lost session is still
    /// there, and this may be tried again.
    pub async fn reopen(
        &self,
        target: &NodeId,
        op: OperationId,
        slot: OldSlot,
        neighbour: impl Fn(NodeId) -> Neighbour,
    ) -> Result<Arc<Held>, Failure> {
        let _turn = self.opening.lock().await;
        let lost = self.of_operation(target, op)?;
        let Role::Source { positions } = &lost.role else {
            return Err(Failure::new(Code::BadRequest, format!("the session of {op} has no snapshot")));
        };
        if !is_lost(&lost).await? {
            return Ok(lost);
        }
        let is_kept = slot == OldSlot::Kept;
        if is_kept {
            self.check_kept_slot(&lost).await?;
        }
        let request = OpenRequest {
            op,
            tables: lost.tables.iter().map(|(table, _)| (table.oid, table.name.clone())).collect(),
            part_bytes: 0,
            whole_database: lost.publication == WHOLE_DATABASE,
            scope: lost.scope.clone(),
            parallel: lost.parallel,
            one_way: lost.one_way,
            neighbours: positions.iter().map(|(node, _)| neighbour(node.clone())).collect(),
            kept_slot: is_kept.then(|| Moment { lsn: lost.lsn, positions: positions.clone() }),
            for_files: None,
        };
        // What is written down of the lost session stays until the new one is: should this agent end in between, its next run
        // finds a session that is lost, not none. Of a try before there may be a keeper, or a slot.
        self.keepers.let_go(op).await;
        // Nor does it stay paused: while the session is there, the janitor leaves that to us.
        self.end_pause(op).await;
        self.cleanup.undo_kind(op, "pause").await?;
        if !is_kept {
            self.cleanup.undo_kind(op, "slot").await?;
        }
        // The operation is served all the while.
        let opening = Opening { sessions: self.clone(), op: None };
        let opened = self.open_in_turn(target, request, opening).await?;
        self.open.remove(&lost.id);
        Ok(opened)
    }

    /// The slot still sends all since the first snapshot.
    async fn check_kept_slot(&self, lost: &Held) -> Result<(), Failure> {
        let explain = |error: postgres::Error| error.explain();
        let look = self.database.session(Purpose::Watch).await.map_err(explain)?;
        let slot = slots::progress(&look, &lost.slot).await.map_err(explain)?;
        let begins = slot.filter(|slot| !slot.is_lost()).and_then(|slot| slot.confirmed_flush);
        if begins.is_some_and(|begins| begins <= lost.lsn) {
            return Ok(());
        }
        Err(Failure::new(Code::SlotLost, format!("slot {} cannot serve a later snapshot", lost.slot)))
    }
}

/// Whether the snapshot of `held` is gone, also where nobody has noticed yet. Fails where it was given up for another reason.
async fn is_lost(held: &Held) -> Result<bool, Failure> {
    let noticed = match held.keeper.lock().await.as_ref() {
        Some(keeper) => keeper.renew().await.err(),
        None => None,
    };
    if let Some(failure) = noticed.filter(|_| held.failure().is_none()) {
        held.fail(failure).await;
    }
    match held.failure() {
        None => Ok(false),
        Some(failure) if failure.code == Code::SnapshotLost => Ok(true),
        Some(failure) => Err(failure.clone()),
    }
}
