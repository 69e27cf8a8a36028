//! Looks after a session while it is open: is it still renewed, its snapshot held, its slot alive, and nobody stuck behind
//! its locks?

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use steep_protocol::failure::{Code, Failure};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::{Held, Sessions, Stage};
use crate::{
    config::OnBlockedDdl,
    postgres::{Purpose, Session as Connection, activity, slots},
    telemetry,
};

/// How often a session looks after itself.
const WATCH: Duration = Duration::from_secs(1);

impl Sessions {
    /// Looks after `held` until it ends.
    pub(super) async fn watch(self, held: Arc<Held>) {
        let mut tick = interval(WATCH);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if held.lacks_readers {
            self.ready_readers(&held).await;
        }
        let mut look = None;
        let mut told_waiting = false;
        loop {
            tick.tick().await;
            if held.idle_for() > self.settings.session_lease {
                self.expire(&held).await;
                return;
            }
            if held.failure().is_some() {
                continue;
            }
            if let Err(failure) = self.look_after(&held, &mut look, &mut told_waiting).await {
                held.fail(failure).await;
            }
        }
    }

    /// One look: is the snapshot still held, the slot alive, and nobody stuck behind our locks?
    async fn look_after(
        &self,
        held: &Held,
        look: &mut Option<Connection>,
        told_waiting: &mut bool,
    ) -> Result<(), Failure> {
        let keeper = match held.keeper.lock().await.as_ref() {
            Some(keeper) => {
                keeper.renew().await?;
                Some(keeper.backend_pid())
            }
            None => None,
        };
        if look.as_ref().is_none_or(Connection::is_closed) {
            // Without PostgreSQL the keeper is gone too, which the next look says better.
            *look = self.database.session(Purpose::Watch).await.ok();
        }
        let Some(look) = look else { return Ok(()) };
        let Ok(progress) = slots::progress(look, &held.slot).await else { return Ok(()) };
        match progress {
            None => return Err(Failure::new(Code::SlotLost, format!("slot {} is gone", held.slot))),
            Some(slot) if slot.wal_status == "lost" => {
                return Err(Failure::new(Code::SlotLost, format!("slot {} lost WAL it still needs", held.slot))
                    .hint("raise max_slot_wal_keep_size on the source, then start the node again"));
            }
            Some(slot) => held.retained_bytes.store(slot.retained_bytes, Ordering::Relaxed),
        }
        let Some(pid) = keeper else { return Ok(()) };
        let Ok(waiting) = activity::waiting_behind(look, &[pid]).await else { return Ok(()) };
        let Some(waiter) = waiting.first() else { return Ok(()) };
        let table = waiter.table.as_ref().map(ToString::to_string).unwrap_or_default();
        let text = format!("a DDL on {table} (pid {}) waits behind the copy: {}", waiter.pid, waiter.query);
        match self.settings.on_blocked_ddl {
            OnBlockedDdl::Fail => Err(Failure::new(Code::DdlWaits, text)),
            OnBlockedDdl::Wait => {
                let pids: Vec<_> = waiting.iter().map(|waiter| waiter.pid).collect();
                let behind = activity::waiting_behind(look, &pids).await.unwrap_or_default();
                let ours = format!("-{}", held.op.short());
                if behind.iter().any(|waiter| waiter.application.ends_with(&ours)) {
                    let text = format!("{text}; and the copy itself now waits behind that");
                    return Err(Failure::new(Code::DdlWaits, text));
                }
                if !std::mem::replace(told_waiting, true) {
                    warn!(event = "snapshot.ddl_waits", op_id = %held.op, table, "{text}");
                }
                Ok(())
            }
        }
    }

    async fn expire(&self, held: &Held) {
        let lease = self.settings.session_lease.as_secs();
        held.fail(Failure::new(
            Code::SessionExpired,
            format!("{} did not renew its session for {lease} s", held.target),
        ))
        .await;
        // Removing it drops this very task at its next await; what is left to do belongs to another.
        let (cleanup, open, served) = (self.cleanup.clone(), Arc::clone(&self.open), Arc::clone(&self.served));
        let (op, id) = (held.op, held.id);
        tokio::spawn(async move {
            open.remove(&id);
            served.insert(op, Stage::Ended);
            if let Err(failure) = cleanup.undo(op).await {
                warn!(event = "agent.cleanup", op_id = %op, error = telemetry::failure(&failure), "will be tried again");
            }
        });
    }
}
