//! A session whose snapshot was lost, since its keeper or PostgreSQL has died, opened anew for the same target.
//!
//! What an operator has signed for it holds on: the target asks for nothing that it was not given before.

use std::sync::Arc;

use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
};

use super::{Held, Neighbour, OpenRequest, Opening, Role, Sessions, WHOLE_DATABASE};

impl Sessions {
    /// The session of `op` with a snapshot that is held: the one that is open if it has not lost its own, else a new one.
    /// `neighbour` tells by which subscription the changes of a node come.
    ///
    /// After an error the lost session is still there, and this may be tried again.
    pub async fn reopen(
        &self,
        target: &NodeId,
        op: OperationId,
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
        let request = OpenRequest {
            op,
            tables: lost.tables.iter().map(|(table, _)| (table.oid, table.name.clone())).collect(),
            part_bytes: 0,
            whole_database: lost.publication == WHOLE_DATABASE,
            scope: lost.scope.clone(),
            parallel: lost.parallel,
            one_way: lost.one_way,
            neighbours: positions.iter().map(|(node, _)| neighbour(node.clone())).collect(),
            for_files: None,
        };
        // The slot begins where the lost snapshot was; of a try before there may be more.
        for kind in ["slot", "session"] {
            self.cleanup.undo_kind(op, kind).await?;
        }
        // The operation is served all the while.
        let opening = Opening { sessions: self.clone(), op: None };
        let opened = self.open_in_turn(target, request, opening).await?;
        self.open.remove(&lost.id);
        Ok(opened)
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
