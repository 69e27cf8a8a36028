//! The detour of a subscription whose tables are copied again: some of them are held, their rows switched, and then it goes
//! back to the slot of the new rows' snapshot until these have caught up, while its other tables skip what they have.
//!
//! PostgreSQL's workers do it, by the states of tables they hand over with ([`crate::postgres::detours`]); we only change
//! those while no worker is alive. Where a detour stands is written down in the very transaction that takes it there, so
//! that whoever comes after a crash goes on from it; what tables hold, in the transaction that switches their rows. A detour
//! that was begun is always finished, also by an undo: forward with whatever rows are in the tables. Only where the slot is
//! lost the tables stay held, and the node says that it has diverged.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use steep_protocol::{
    failure::{Code, Explain as _, Failure, Family},
    ids::{NodeId, OperationId, SessionId},
    lsn::Lsn,
    names::TableName,
};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{Cleanup, Effect};
use crate::{
    mesh::Source,
    postgres::{
        self, Purpose, Session,
        ddl::switch::set_subscription_slot,
        detours,
        links::{self, Link, Still},
        origins, subscriptions,
    },
    store::intents,
    telemetry,
};

/// Nothing is applied for at most so long at a stretch.
const LONGEST: Duration = Duration::from_secs(5);
/// How often a subscription is tried to be stopped.
const TRIES: u32 = 5;
/// How often we look how far it has come.
const LOOK: Duration = Duration::from_millis(100);
/// How long a subscription may take to come past the snapshot before its tables are held.
const PASSING: Duration = Duration::from_secs(30);
/// As many errors while we look say that it will not get over them.
const ERRORS_TOO_MANY: u64 = 3;

/// What is in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contents {
    /// The rows of before, as far as the subscription had come.
    Old,
    /// Those of the snapshot.
    New,
    /// A part of them.
    Neither,
}

impl Contents {
    /// As [`intents::tell_contents`] takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
            Self::Neither => "neither",
        }
    }
}

/// How far a detour has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nothing is changed.
    Planned,
    /// The tables are held.
    Held,
    /// The subscription is on the other slot, and perhaps not told yet where to begin. It must not run.
    Turning,
    /// It runs on the other slot, or is about to.
    Turned,
    /// It runs on its own slot again, or is about to.
    Back,
}

/// A detour; all that is needed to finish it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detour {
    /// The subscription.
    pub subscription: String,
    /// The node it replicates from.
    pub publisher: NodeId,
    /// The session there that holds the other slot.
    pub session: SessionId,
    /// The slot it reads otherwise.
    pub own_slot: String,
    /// The slot that begins no later than `snapshot`.
    pub slot: String,
    /// What the publisher committed before this is in the new rows, and nothing else.
    pub snapshot: Lsn,
    /// The tables.
    pub tables: Vec<TableName>,
    /// What the publisher committed before this is in the old rows.
    pub stands_at: Lsn,
    /// What the tables hold.
    pub contents: Contents,
    /// How far it has come.
    pub stage: Stage,
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

impl Cleanup {
    /// Begins a detour: from now on the subscription skips its tables, and carries all others.
    pub async fn hold_tables(&self, op: OperationId, mut detour: Detour) -> Result<(), Failure> {
        let effect = Effect::Detour(detour.clone());
        // Where an earlier try has stopped it, it did not come any further.
        self.run_if_stopped(op, &detour.subscription).await?;
        let holding = async {
            let held = held_by(&self.database, &detour.subscription).await?;
            let seen = self.came_past(&detour.subscription, detour.snapshot, PASSING, 1).await?;
            let still = self.stop(op, &detour.subscription).await?;
            // Tables that stood still before are somewhere nobody knows.
            let is_known = !detour.tables.iter().any(|table| held.contains(table));
            detour.stands_at = if is_known { still.applied.max(seen) } else { Lsn::default() };
            detour.stage = Stage::Held;
            let session = self.begin(op).await?;
            detours::hold(&session, &detour.subscription, &detour.tables).await.map_err(explain)?;
            self.commit(op, session, &detour).await?;
            still.release().await.map_err(explain)?;
            self.undo_kind(op, "pause").await
        };
        Box::pin(self.make(op, "hold tables", &effect, holding)).await?;
        info!(
            event = "slot.tables_held", op_id = %op, details.subscription = detour.subscription, lsn = %detour.stands_at,
            "tables stand still while their rows are switched"
        );
        Ok(())
    }

    /// Where the tables of `detour`, which hold nothing that counts, will have their rows from: another slot than when they were
    /// held.
    pub async fn redirect(&self, op: OperationId, detour: &Detour) -> Result<(), Failure> {
        let session = self.begin(op).await?;
        self.commit(op, session, detour).await
    }

    /// Every detour of `op` that is not finished, as it stands.
    pub async fn detours(&self, op: OperationId) -> Result<Vec<Detour>, Failure> {
        let effects = self.pending(op, "detour").await?;
        let detours = effects.into_iter().filter_map(|effect| match effect {
            Effect::Detour(detour) => Some(detour),
            _ => None,
        });
        Ok(detours.collect())
    }

    /// Finishes every detour of `op` from where it stands. Tables that cannot be brought up to date stay held.
    ///
    /// May be called again after any error; nothing else of the operation may be undone before it succeeds.
    pub async fn finish_detours(&self, op: OperationId, patience: Duration) -> Result<(), Failure> {
        for intent in intents::pending(&self.store, op).await.map_err(|error| error.explain())? {
            if intent.kind != "detour" {
                continue;
            }
            let read = serde_json::from_value(intent.detail);
            let Ok(Effect::Detour(detour)) = read else {
                let text = format!("intent {} was written by another version", intent.id);
                return Err(Failure::new(Code::Internal, text));
            };
            Box::pin(self.finish(op, detour, patience)).await?;
            intents::undone(&self.store, intent.id).await.map_err(|error| error.explain())?;
        }
        Ok(())
    }

    async fn finish(&self, op: OperationId, mut detour: Detour, patience: Duration) -> Result<(), Failure> {
        let look = self.database.session(Purpose::Watch).await.map_err(explain)?;
        if subscriptions::find(&look, &detour.subscription).await.map_err(explain)?.is_none() {
            return Ok(());
        }
        match detour.stage {
            // Nothing is changed, and what was stopped for it runs again with the rest of the undo.
            Stage::Planned => return Ok(()),
            Stage::Turning => {}
            // Whoever took it there may have ended before it ran again.
            Stage::Held | Stage::Turned | Stage::Back => self.run_if_stopped(op, &detour.subscription).await?,
        }
        if detour.stage == Stage::Back {
            return Ok(());
        }
        let begin = match detour.contents {
            Contents::New => detour.snapshot,
            Contents::Old => detour.stands_at,
            Contents::Neither => Lsn::default(),
        };
        if detour.stage == Stage::Held {
            // What the other slot does not reach back to, nobody has any more.
            if begin < detour.snapshot {
                warn!(
                    event = "slot.tables_left", op_id = %op, details.subscription = detour.subscription,
                    "tables stand still until they are copied again"
                );
                return Ok(());
            }
            // The other slot has nothing from before the snapshot, for the other tables either.
            let seen = self.came_past(&detour.subscription, detour.snapshot, patience, ERRORS_TOO_MANY).await?;
            if seen < detour.snapshot {
                let Detour { subscription, publisher, snapshot, .. } = &detour;
                let text = format!("{subscription} does not come past {snapshot} of {publisher}, where the copy began");
                return Err(Failure::new(Code::CatchUpStalled, text));
            }
            let still = self.stop(op, &detour.subscription).await?;
            detour.stage = Stage::Turning;
            let session = self.begin(op).await?;
            let (name, tables) = (&detour.subscription, &detour.tables);
            detours::take_back(&session, name, tables, still.applied).await.map_err(explain)?;
            session.run(&set_subscription_slot(name, &detour.slot)).await.map_err(explain)?;
            self.commit(op, session, &detour).await?;
            still.release().await.map_err(explain)?;
        }
        if detour.stage == Stage::Turning {
            // It has not run since: where it is to begin can be said as often as it takes.
            let found = subscriptions::find(&look, &detour.subscription).await.map_err(explain)?;
            let Some(found) = found else { return Ok(()) };
            advance_origin(&look, &found.origin(), begin).await?;
            detour.stage = Stage::Turned;
            let session = self.begin(op).await?;
            self.commit(op, session, &detour).await?;
            self.run_again(op, &detour.subscription).await?;
        }
        match self.caught_up(op, &look, &detour, patience).await {
            Ok(()) => self.turn_back(op, detour, false).await,
            Err(failure) if is_final(&failure) => {
                warn!(
                    event = "slot.tables_left", op_id = %op, details.subscription = detour.subscription,
                    error = telemetry::failure(&failure), "tables stand still until they are copied again"
                );
                self.turn_back(op, detour, true).await
            }
            Err(failure) => Err(failure),
        }
    }

    /// How far a subscription has certainly come, once it is past `goal`; or after a while, where it does not get there, or
    /// stops so many times with an error.
    ///
    /// A worker that answers to a position has applied all that was committed before it, also where nothing was that
    /// concerned it and its origin stands where it stood.
    async fn came_past(
        &self,
        subscription: &str,
        goal: Lsn,
        patience: Duration,
        most_errors: u64,
    ) -> Result<Lsn, Failure> {
        let look = self.database.session(Purpose::Watch).await.map_err(explain)?;
        let deadline = Instant::now() + patience;
        let mut errors = None;
        loop {
            let found = subscriptions::find(&look, subscription).await.map_err(explain)?;
            let counted = found.as_ref().map_or(0, |found| found.apply_errors);
            let is_failing = counted >= *errors.get_or_insert(counted) + most_errors;
            let works = found.as_ref().is_some_and(|found| found.is_enabled) && !is_failing;
            let seen = found.and_then(|found| found.latest_end_lsn).unwrap_or_default();
            if seen >= goal || !works || Instant::now() >= deadline {
                return Ok(seen);
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until all that the publisher has committed by now is applied here.
    async fn caught_up(
        &self,
        op: OperationId,
        look: &Session,
        detour: &Detour,
        patience: Duration,
    ) -> Result<(), Failure> {
        let publisher = Source::new(self.peers.clone(), detour.publisher.clone(), op);
        let marker = publisher.write_marker().await?;
        let (mut moved, mut last) = (Instant::now(), Lsn::default());
        let mut errors = None;
        loop {
            let progress = publisher.slot_progress(detour.session).await?;
            let confirmed: Lsn = progress.confirmed_lsn.parse().unwrap_or_default();
            if confirmed >= marker {
                return Ok(());
            }
            if confirmed > last {
                (last, moved) = (confirmed, Instant::now());
            }
            let found = subscriptions::find(look, &detour.subscription).await.map_err(explain)?;
            let counted = found.map_or(0, |found| found.apply_errors);
            let name = &detour.subscription;
            if counted >= *errors.get_or_insert(counted) + ERRORS_TOO_MANY {
                let text = format!("subscription {name} stopped with an error while it caught up");
                return Err(Failure::new(Code::SubscriptionFailing, text));
            }
            if moved.elapsed() >= patience {
                let text = format!("{name} waits for {}: nothing moved for {} s", detour.publisher, patience.as_secs());
                return Err(Failure::new(Code::CatchUpStalled, text));
            }
            sleep(LOOK).await;
        }
    }

    /// The subscription reads its own slot again; `holds`: its tables are skipped.
    async fn turn_back(&self, op: OperationId, mut detour: Detour, holds: bool) -> Result<(), Failure> {
        let still = self.stop(op, &detour.subscription).await?;
        let session = self.begin(op).await?;
        if holds {
            detours::hold(&session, &detour.subscription, &detour.tables).await.map_err(explain)?;
        }
        session.run(&set_subscription_slot(&detour.subscription, &detour.own_slot)).await.map_err(explain)?;
        detour.stage = Stage::Back;
        self.commit(op, session, &detour).await?;
        still.release().await.map_err(explain)?;
        self.run_again(op, &detour.subscription).await
    }

    /// Disables a subscription and waits until its workers are gone; written down first, so that it will run again.
    async fn stop(&self, op: OperationId, subscription: &str) -> Result<Still, Failure> {
        let watch = self.database.session(Purpose::Watch).await.map_err(explain)?;
        let found = subscriptions::find(&watch, subscription).await.map_err(explain)?;
        let gone = || Failure::new(Code::SubscriptionFailing, format!("subscription {subscription} was dropped"));
        let found = found.ok_or_else(gone)?;
        let link = Link {
            oid: found.oid,
            name: found.name,
            is_enabled: true,
            slot: String::new(),
            is_mutual: false,
            tables: Vec::new(),
        };
        let effect = Effect::Pause { subscription: subscription.to_owned() };
        let mut tries = 0;
        loop {
            tries += 1;
            let deadline = Instant::now() + LONGEST;
            let holding = async { links::hold_still(&self.database, &watch, &link, deadline).await.map_err(explain) };
            match Box::pin(self.make(op, "stop subscription", &effect, holding)).await {
                Err(failure) if failure.code == Code::StillInUse && tries < TRIES => {
                    // What it is amid gets time to end.
                    self.undo_kind(op, "pause").await?;
                    sleep(LONGEST).await;
                }
                done => return done,
            }
        }
    }

    /// Lets a subscription run, over a link for the slot it now has.
    async fn run_again(&self, op: OperationId, subscription: &str) -> Result<(), Failure> {
        self.links.close(subscription);
        self.links.restore(&self.database, false).await?;
        self.undo_kind(op, "pause").await
    }

    async fn run_if_stopped(&self, op: OperationId, subscription: &str) -> Result<(), Failure> {
        let pending = intents::pending(&self.store, op).await.map_err(|error| error.explain())?;
        match pending.iter().any(|intent| intent.kind == "pause" && intent.name == subscription) {
            true => self.run_again(op, subscription).await,
            false => Ok(()),
        }
    }

    async fn begin(&self, op: OperationId) -> Result<Session, Failure> {
        let session = self.database.session(Purpose::Ddl(op)).await.map_err(explain)?;
        session.begin().await.map_err(explain)?;
        Ok(session)
    }

    /// Commits together with where the detour now stands.
    async fn commit(&self, op: OperationId, session: Session, detour: &Detour) -> Result<(), Failure> {
        let detail = serde_json::to_value(Effect::Detour(detour.clone())).expect("an effect is plain data");
        intents::revise(&session, op, "detour", &detour.subscription, &detail).await.map_err(explain)?;
        session.commit().await.map_err(explain)?;
        session.close().await;
        Ok(())
    }
}

/// Says where a subscription that does not run is to begin; a session that is about to end may have its origin for a moment.
async fn advance_origin(look: &Session, origin: &str, begin: Lsn) -> Result<(), Failure> {
    let deadline = Instant::now() + LONGEST;
    loop {
        match origins::advance(look, origin, begin).await {
            Err(error) if error.sqlstate() == Some("55006") && Instant::now() < deadline => sleep(LOOK).await,
            done => return done.map_err(explain),
        }
    }
}

/// The slot, or the session that holds it, is gone and will not come back.
fn is_final(failure: &Failure) -> bool {
    matches!(failure.code, Code::SessionUnknown | Code::SessionExpired | Code::SlotLost)
        || failure.code.family() == Family::Permission
}

/// Tables of this node that subscriptions skip whatever comes: they stand still, and are not right.
pub async fn held_tables(database: &postgres::Database) -> Result<Vec<TableName>, Failure> {
    Ok(held(database).await?.map(|carried| carried.table).collect())
}

/// Those that one subscription skips; others may carry them.
async fn held_by(database: &postgres::Database, subscription: &str) -> Result<Vec<TableName>, Failure> {
    let held = held(database).await?.filter(|carried| carried.subscription == subscription);
    Ok(held.map(|carried| carried.table).collect())
}

async fn held(database: &postgres::Database) -> Result<impl Iterator<Item = detours::Carried>, Failure> {
    let session = database.session(Purpose::Watch).await.map_err(explain)?;
    let carried = detours::carried(&session).await.map_err(explain)?;
    session.close().await;
    Ok(carried.into_iter().filter(|carried| carried.is_held))
}
