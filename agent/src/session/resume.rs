//! Sessions across the end of the agent: written down while they are open, taken up by its next run.

use std::sync::Arc;

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
};
use tracing::{info, warn};

use super::{Held, Sessions, Stage, held::NewHeld, record::Record};
use crate::{
    breakpoint::crash_point,
    config::OnBlockedDdl,
    keeper::Keeper,
    parts::TablePlan,
    postgres::{
        self, Purpose, Session as Connection, activity,
        tables::{self, Table},
    },
    telemetry,
};

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

impl Sessions {
    /// Takes up every session that an earlier run of this agent has left open. Those whose snapshot is gone meanwhile tell
    /// their target so.
    pub async fn take_up(&self) -> Result<(), Failure> {
        let left = self.cleanup.left_sessions().await?;
        if left.is_empty() {
            return Ok(());
        }
        let look = self.database.session(Purpose::Watch).await.map_err(explain)?;
        for (op, record) in left {
            match Record::read(record) {
                Some(record) => self.take_up_one(&look, op, &record).await?,
                None => info!(event = "agent.cleanup", op_id = %op, "a session was not open yet; it is given up"),
            }
        }
        Ok(())
    }

    async fn take_up_one(&self, look: &Connection, op: OperationId, record: &Record) -> Result<(), Failure> {
        let opening = self.serve(op)?;
        // Of an agent that was killed some may still be at it.
        activity::terminate_readers(look, op).await.map_err(explain)?;
        // It may have died amid a pause for a later snapshot.
        if let Err(failure) = self.cleanup.undo_kind(op, "pause").await {
            // The next try for a snapshot does it first, or whoever cleans up after the session.
            warn!(op_id = %op, error = telemetry::failure(&failure), "what was paused could not be enabled again");
        }
        let (keeper, lost) = match self.keeper_of(op, record).await {
            Ok(keeper) => (keeper, None),
            Err(failure) => (None, Some(failure)),
        };
        let held = Arc::new(Held::new(NewHeld {
            id: record.id,
            opened_at: record.opened_at,
            op,
            target: record.target.clone(),
            slot: record.slot.clone(),
            lsn: record.lsn,
            publication: record.publication.clone(),
            scope: record.scope(),
            snapshot: record.snapshot.clone(),
            tables: self.tables_of(look, record).await?,
            role: record.role(),
            one_way: record.one_way,
            parallel: record.parallel,
            gate: record.gate(),
            database: self.database.clone(),
            lacks_readers: keeper.is_some() && self.settings.on_blocked_ddl == OnBlockedDdl::Wait,
            keeper,
            idle: Vec::new(),
        }));
        if let Some(failure) = lost {
            held.fail(failure).await;
        } else {
            info!(
                event = "snapshot.session_resumed", op_id = %op, slot = held.slot, peer = %held.target,
                session = %held.id, "a session of the run before goes on"
            );
        }
        self.look_after_from_now_on(&held, opening);
        Ok(())
    }

    /// The keeper of a session; none where its snapshot was let go before.
    async fn keeper_of(&self, op: OperationId, record: &Record) -> Result<Option<Keeper>, Failure> {
        if !record.is_kept() {
            return Ok(None);
        }
        let keeper = self.keepers.attach(op).await?;
        let snapshot = keeper.renew().await?;
        if snapshot != record.snapshot {
            let text = format!("the keeper of {op} holds another snapshot than the session");
            return Err(Failure::new(Code::SnapshotLost, text));
        }
        Ok(Some(keeper))
    }

    /// The session's tables as they are, with the parts they were cut into. One that was dropped is missing.
    async fn tables_of(&self, look: &Connection, record: &Record) -> Result<Vec<(Table, TablePlan)>, Failure> {
        let oids: Vec<u32> = record.tables.iter().map(|table| table.oid).collect();
        let found = tables::describe(look, &oids).await.map_err(explain)?;
        let with_plan = found.into_iter().filter_map(|table| {
            let planned = record.tables.iter().find(|planned| planned.oid == table.oid)?;
            Some((table, planned.plan()))
        });
        Ok(with_plan.collect())
    }

    /// Leaves every open session to the agent's next run. What is only being opened is given up: nothing may stay paused
    /// while no agent looks after it.
    pub async fn leave(&self) {
        self.stop_readers().await;
        let pausing: Vec<_> = self.pauses.iter().map(|pause| *pause.key()).collect();
        for op in pausing {
            self.end_pause(op).await;
        }
    }

    /// Nobody waits for what reads for hours: it is read again.
    async fn stop_readers(&self) {
        let stopped = async {
            let look = self.database.session(Purpose::Watch).await?;
            for op in self.operations() {
                activity::terminate_readers(&look, op).await?;
            }
            Ok::<_, postgres::Error>(())
        };
        if let Err(error) = stopped.await {
            warn!(reason = %error, "what reads for peers could not be stopped");
        }
    }

    /// Has keepers let go that belong to no session and to no preparation.
    pub async fn end_strays(&self) {
        let serving = self.served.iter().filter(|served| *served.value() == Stage::Serving);
        let wanted: Vec<_> = serving.map(|served| served.key().short()).collect();
        let is_wanted = |digits: &str| wanted.iter().any(|wanted| wanted == digits) || self.prepared.wants(digits);
        self.keepers.sweep(is_wanted).await;
    }

    /// The target has read its last row: locks and snapshot go, the slot stays.
    pub async fn release(&self, held: &Held) -> Result<(), Failure> {
        // Written first: whoever finds it so looks for no keeper.
        self.note(held, true).await?;
        crash_point!("releasing");
        held.release().await;
        Ok(())
    }

    /// Writes down all that `held` is.
    pub(super) async fn note(&self, held: &Held, is_released: bool) -> Result<(), Failure> {
        self.cleanup.note_session(held.op, &held.slot, Record::of(held, is_released).to_json()).await
    }

    /// Readers that stand before any DDL, where one may wait: those of the run before are gone.
    pub(super) async fn ready_readers(&self, held: &Held) {
        let tables: Vec<Table> = held.tables.iter().map(|(table, _)| table.clone()).collect();
        match self.readers_with_locks(held.op, held.parallel, &held.snapshot, &tables).await {
            Ok(readers) => readers.into_iter().for_each(|reader| held.give_back(reader)),
            Err(failure) => {
                // Should a DDL be in their way, the next look says so.
                warn!(op_id = %held.op, reason = %failure, "readers could not be made ready");
            }
        }
    }
}
