//! Holds still what this node applies from others while a newcomer's slot is made, so that it is known of every change
//! whether it is in the snapshot.
//!
//! A slot's snapshot holds what others wrote as far as it was applied here. Where that is, only a subscription whose
//! workers are gone can tell; so all of them are disabled, their origins taken, the slot made, and enabled again. That
//! takes well under a second; where a transaction is in the way it is given up after [`LONGEST`] and tried again later.
//! A row written down before each pause makes sure that it ends, whoever dies meanwhile.

use std::time::Duration;

use futures::future::join_all;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    lsn::Lsn,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Sessions, already_ended};
use crate::{
    cleanup::Effect,
    postgres::{
        self, Purpose, Session as Connection, activity,
        links::{self, Link, Still},
        replication::{self, ExportedSlot},
    },
    telemetry,
};

/// Nothing is applied for at most so long at a stretch.
const LONGEST: Duration = Duration::from_secs(3);
/// A transaction open for longer than this would make the slot, and so the pause, wait.
const OLD: Duration = Duration::from_millis(500);
/// How long what was held up may catch up before the next try.
const BETWEEN: Duration = Duration::from_secs(1);
/// How often we look whether old transactions have ended.
const LOOK: Duration = Duration::from_millis(100);
/// How often enabling again is tried before the rest is left to the janitor.
const TRIES: u32 = 5;

/// A node whose changes this one applies, and the subscription that brings them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The node.
    pub node: NodeId,
    /// The subscription here.
    pub subscription: String,
}

/// A slot with its snapshot, and up to where of each neighbour's WAL that snapshot goes.
pub(super) type Fixed = (ExportedSlot, Vec<(NodeId, Lsn)>);

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

impl Sessions {
    /// Makes `slot` and its snapshot while nothing of what `neighbours` wrote is being applied; a snapshot alone where the slot is
    /// there already, and kept.
    ///
    /// Runs to its end, and lets everything run again, also when the future is dropped; [`Sessions::end`] cuts it short
    /// and waits for it.
    pub(super) async fn slot_while_still(
        &self,
        op: OperationId,
        target: &NodeId,
        (slot, is_kept): (&str, bool),
        neighbours: &[Neighbour],
    ) -> Result<Fixed, Failure> {
        let (cancelled, at_work) = self.pauses.entry(op).or_default().clone();
        let work = at_work.lock_owned().await;
        // Whoever ends the operation either sees the entry just made, or has left this to be seen.
        if !self.serves(op) {
            self.pauses.remove(&op);
            return Err(already_ended(op));
        }
        let pause = Pause {
            sessions: self.clone(),
            op,
            step: format!("session for {target}"),
            target: target.clone(),
            slot: slot.to_owned(),
            is_kept,
            neighbours: neighbours.to_vec(),
            cancelled,
        };
        let paused = tokio::spawn(async move {
            // No two operations hold the same subscriptions.
            let _turn = pause.sessions.pausing.lock().await;
            let made = pause.until_made().await;
            pause.sessions.pauses.remove(&op);
            drop(work);
            made
        });
        paused.await.unwrap_or_else(|error| {
            Err(Failure::new(Code::Internal, "pausing what is applied ended unexpectedly").caused_by(&error))
        })
    }

    /// Tells a pause for `op` to end early.
    pub(super) fn cut_pause_short(&self, op: OperationId) {
        if let Some(pause) = self.pauses.get(&op) {
            pause.0.cancel();
        }
    }

    /// Cuts a pause for `op` short and waits until everything runs again.
    pub(super) async fn end_pause(&self, op: OperationId) {
        let Some((cancelled, at_work)) = self.pauses.get(&op).map(|pause| pause.clone()) else { return };
        cancelled.cancel();
        drop(at_work.lock().await);
    }
}

struct Pause {
    sessions: Sessions,
    op: OperationId,
    step: String,
    target: NodeId,
    slot: String,
    /// The slot is there already, and stays whatever happens here.
    is_kept: bool,
    neighbours: Vec<Neighbour>,
    cancelled: CancellationToken,
}

impl Pause {
    async fn until_made(&self) -> Result<Fixed, Failure> {
        let deadline = Instant::now() + self.sessions.settings.slot_timeout;
        let watch = self.sessions.database.session(Purpose::Watch).await.map_err(explain)?;
        loop {
            self.old_writers_end(&watch, deadline).await?;
            let began = Instant::now();
            let made = self.once(&watch).await;
            let resumed = self.resume().await;
            let paused_ms = began.elapsed().as_millis() as u64;
            let failure = match (made, resumed) {
                (Ok((exported, positions)), Ok(())) => {
                    let lsns: Vec<_> = positions.iter().map(|(node, lsn)| format!("{node} {lsn}")).collect();
                    info!(
                        event = "snapshot.paused", op_id = %self.op, details.paused_ms = paused_ms,
                        details.positions = lsns.join(", "), "what others wrote was held still for the snapshot"
                    );
                    return Ok((exported, positions));
                }
                (Ok((exported, _)), Err(failure)) => {
                    exported.release();
                    return Err(failure);
                }
                (Err(failure), _) => failure,
            };
            if !self.is_kept {
                // Its row goes too: the next try writes its own.
                self.sessions.cleanup.undo_kind(self.op, "slot").await?;
            }
            let again = matches!(failure.code, Code::LongTransaction | Code::StillInUse | Code::PositionLost);
            if !again || Instant::now() + LONGEST >= deadline || self.cancelled.is_cancelled() {
                let text = format!("the snapshot could not be taken: {}", failure.message);
                return Err(match failure.code {
                    Code::LongTransaction => Failure { message: text, ..failure },
                    _ if again => Failure::new(Code::PauseFailed, text).hint(failure.hint),
                    _ => failure,
                });
            }
            warn!(
                event = "snapshot.pause_given_up", op_id = %self.op, details.paused_ms = paused_ms,
                error = telemetry::failure(&failure), "will be tried again"
            );
            self.unless_cancelled(sleep(BETWEEN)).await?;
        }
    }

    /// Waits while somebody would make the slot wait, before anything is paused.
    async fn old_writers_end(&self, watch: &Connection, deadline: Instant) -> Result<(), Failure> {
        loop {
            let blockers = activity::writers(watch, OLD).await.map_err(explain)?;
            if blockers.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let waited = self.sessions.settings.slot_timeout;
                return Err(explain(postgres::Error::SlotBlocked { slot: self.slot.clone(), waited, blockers }));
            }
            self.unless_cancelled(sleep(LOOK)).await?;
        }
    }

    async fn unless_cancelled(&self, wait: impl Future<Output = ()>) -> Result<(), Failure> {
        let ended = || Failure::new(Code::Cancelled, format!("operation {} ended", self.op));
        self.cancelled.run_until_cancelled(wait).await.ok_or_else(ended)
    }

    /// One pause. Whatever comes of it, [`Pause::resume`] has to follow.
    async fn once(&self, watch: &Connection) -> Result<Fixed, Failure> {
        let deadline = Instant::now() + LONGEST;
        let links = links::list(watch).await.map_err(explain)?;
        let held =
            join_all(self.neighbours.iter().map(|neighbour| self.hold(watch, &links, neighbour, deadline))).await;
        let (mut stills, mut failed) = (Vec::new(), None);
        for still in held {
            match still {
                Ok(still) => stills.push(still),
                Err(failure) => failed = Some(failure),
            }
        }
        let made = match failed {
            None => self.make_slot(&stills, deadline).await,
            Some(failure) => Err(failure),
        };
        for (_, still) in stills {
            if let Err(error) = still.release().await {
                warn!(op_id = %self.op, reason = %error, "an origin could not be given back in order");
            }
        }
        made
    }

    async fn hold(
        &self,
        watch: &Connection,
        links: &[Link],
        neighbour: &Neighbour,
        deadline: Instant,
    ) -> Result<(NodeId, Still), Failure> {
        let name = &neighbour.subscription;
        let link = links
            .iter()
            .find(|link| link.name == *name && link.is_enabled)
            .ok_or_else(|| Failure::new(Code::MeshIncomplete, format!("subscription {name} is gone or disabled")))?;
        let effect = Effect::Pause { subscription: name.clone() };
        let holding =
            async { links::hold_still(&self.sessions.database, watch, link, deadline).await.map_err(explain) };
        let still = self.sessions.cleanup.make(self.op, &self.step, &effect, holding).await?;
        Ok((neighbour.node.clone(), still))
    }

    async fn make_slot(&self, stills: &[(NodeId, Still)], deadline: Instant) -> Result<Fixed, Failure> {
        let stopping = self.sessions.breakpoints.after("pause replication");
        self.cancelled.run_until_cancelled(stopping).await.transpose()?;
        self.unless_cancelled(async {}).await?;
        for (node, still) in stills {
            if !still.is_whole().await.map_err(explain)? {
                let text = format!(
                    "a table that {node} sends changes of is being copied, and stands elsewhere than the others"
                );
                return Err(Failure::new(Code::PositionLost, text));
            }
        }
        let exported = self.export(deadline.saturating_duration_since(Instant::now()).max(OLD)).await?;
        let mut positions = Vec::new();
        for (node, still) in stills {
            if !still.holds().await.map_err(explain)? {
                let text = format!("changes of {node} were applied while the slot was made");
                return Err(Failure::new(Code::PositionLost, text));
            }
            positions.push((node.clone(), still.applied));
        }
        Ok((exported, positions))
    }

    async fn export(&self, patience: Duration) -> Result<ExportedSlot, Failure> {
        let (sessions, op) = (&self.sessions, self.op);
        if self.is_kept {
            return sessions.snapshot_alone(op, patience, &self.cancelled).await;
        }
        let effect = Effect::Slot { name: self.slot.clone(), peer: Some(self.target.clone()) };
        let making = async {
            let made =
                replication::create_slot_exporting(&sessions.database, op, &self.slot, patience, &self.cancelled);
            made.await.map_err(explain)
        };
        sessions.cleanup.make(op, &self.step, &effect, making).await
    }

    /// Enables what was disabled. What cannot be enabled now stays written down, for the janitor.
    async fn resume(&self) -> Result<(), Failure> {
        let mut last = Ok(());
        for _ in 0..TRIES {
            last = self.sessions.cleanup.undo_kind(self.op, "pause").await;
            match &last {
                Ok(()) => return Ok(()),
                Err(_) => sleep(LOOK).await,
            }
        }
        last
    }
}
