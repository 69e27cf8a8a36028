//! Looks every second, asks the sources, and moves the node where that is called for.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::NodeId,
    node::NodeState,
    v1,
    wire::rpc::failure_of,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use super::{
    budgets::Budgets,
    kept::{self, Keeping},
    rules::{Judge, Limits, Seen, Told, Trouble, Verdict},
};
use crate::{
    lifecycle::NodeEvent,
    metrics::Metrics,
    postgres::{self, Purpose, Session, ddl},
    rooms::Rooms,
    store::{
        self, Actor, audit,
        follows::{self, Followed},
        nodes,
    },
    telemetry,
};

const EVERY: Duration = Duration::from_secs(1);
/// How long a source may take to say how its slot fares.
const ANSWER: Duration = Duration::from_millis(1500);

fn remember(error: store::Error) -> Failure {
    error.explain()
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// Watches for ever.
pub async fn keep(rooms: &Rooms, metrics: &Metrics) {
    let mut watcher = Watcher {
        rooms,
        metrics,
        session: None,
        judge: Judge::default(),
        keeping: Keeping::default(),
        budgets: Budgets::default(),
    };
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(failure) = watcher.follow().await {
            // What could not be seen does not count; how long it lasted is not known any more.
            watcher.judge.forget();
            debug!(reason = %failure, "what this node follows could not be looked at");
        }
        if let Err(failure) = watcher.keep().await {
            watcher.session = None;
            metrics.budget_spent.clear();
            rooms.troubles.find(|found| found.told = None);
            debug!(reason = %failure, "what this node keeps for others could not be looked at");
        }
    }
}

struct Watcher<'a> {
    rooms: &'a Rooms,
    metrics: &'a Metrics,
    session: Option<Session>,
    judge: Judge,
    keeping: Keeping,
    budgets: Budgets,
}

impl Watcher<'_> {
    /// As a source: the slots kept for others, and what they cost.
    async fn keep(&mut self) -> Result<(), Failure> {
        let session = session(self.rooms, &mut self.session).await?;
        let look = self.keeping.look(self.rooms, session).await?;
        self.budgets.look(self.rooms, self.metrics, session, &look).await
    }

    /// As a target: what this node replicates from others.
    async fn follow(&mut self) -> Result<(), Failure> {
        let own = nodes::own(&self.rooms.store).await.map_err(remember)?;
        let replicates =
            matches!(own.init_state, NodeState::Synchronized | NodeState::CatchingUp | NodeState::Diverged);
        if !replicates || self.rooms.operations.current().is_some() {
            self.judge.forget();
            self.rooms.troubles.find(|found| found.own = Some(Vec::new()));
            return Ok(());
        }
        let followed = follows::subscriptions(&self.rooms.store).await.map_err(remember)?;
        let seen = join_all(followed.into_iter().map(|followed| self.see(followed))).await;
        let config = &self.rooms.config.watch;
        let limits = Limits { lag: config.lag_limit, lag_for: config.lag_for, drift_for: config.drift_for };
        let verdict = self.judge.look(Instant::now(), &self.rooms.me, &seen, &limits);
        let before = follows::divergence(&self.rooms.store).await.map_err(remember)?;
        // An operation that began meanwhile moves the node itself.
        if self.rooms.operations.current().is_some() {
            return Ok(());
        }
        self.conclude(own.init_state, &verdict, before.as_ref()).await?;
        let mut told: Vec<Failure> = verdict.troubles.iter().map(|trouble| trouble.failure.clone()).collect();
        if told.is_empty() && own.init_state == NodeState::Diverged && !verdict.is_whole {
            told.extend(before);
        }
        self.rooms.troubles.find(|found| found.own = Some(told));
        for trouble in verdict.troubles.iter().filter(|trouble| trouble.kind.is_past_mending()) {
            self.put_down(trouble, &seen).await?;
        }
        Ok(())
    }

    async fn see(&self, followed: Followed) -> Seen {
        let source = self.source_of(&followed.name);
        let drifted = source.as_ref().and_then(|source| self.rooms.drift.noticed().misfits.get(source).cloned());
        let told = match &source {
            Some(source) if !followed.slot.is_empty() => self.ask(source, &followed.slot).await,
            _ => None,
        };
        // A name that no node has, because it was cut or the node forgotten, is all that is left of it.
        let named = || followed.name.strip_prefix("steep_from_").and_then(|name| name.parse().ok());
        let source = source.or_else(named).unwrap_or_else(|| self.rooms.me.clone());
        Seen { source, told, drifted: drifted.unwrap_or_default(), followed }
    }

    fn source_of(&self, subscription: &str) -> Option<NodeId> {
        let is_its = |node: &NodeId| {
            let mut name = format!("steep_from_{node}");
            name.truncate(63);
            name == subscription
        };
        self.rooms.peers.names().find(is_its)
    }

    async fn ask(&self, source: &NodeId, slot: &str) -> Option<Told> {
        let request = v1::FollowSlotsRequest { slots: vec![slot.to_owned()] };
        let asked = async {
            let mut client = self.rooms.peers.client(source).await?;
            client.follow_slots(request).await.map_err(|status| failure_of(&status))
        };
        let answer = timeout(ANSWER, asked).await.ok()?.ok()?.into_inner();
        answer.slots.iter().find(|told| told.name == slot).and_then(|told| kept::read(told, &answer))
    }

    /// Moves the node to where `verdict` says it is.
    async fn conclude(&mut self, state: NodeState, verdict: &Verdict, before: Option<&Failure>) -> Result<(), Failure> {
        let rooms = self.rooms;
        let actor = Actor::agent(&rooms.me);
        match verdict.troubles.first() {
            // Whoever else moved it there knows when that is over.
            Some(_) if state == NodeState::Diverged && before.is_none() => {}
            Some(worst) if state != NodeState::Diverged || before != Some(&worst.failure) => {
                let moved = nodes::diverge(&rooms.store, &worst.failure, &actor).await.map_err(remember)?;
                if let Some(moved) = moved {
                    warn!(
                        event = "node.diverged", source_node = %worst.source, previous_state = %moved.from,
                        new_state = %moved.to, error = telemetry::failure(&worst.failure),
                        details.subscription = worst.subscription, slot = worst.slot,
                        "replication to this node is broken"
                    );
                }
            }
            None if state == NodeState::Diverged && verdict.is_whole && before.is_some() => {
                let moved = nodes::advance(&rooms.store, NodeEvent::CaughtUp, None, &actor).await.map_err(remember)?;
                info!(
                    event = "node.recovered", previous_state = %moved.from, new_state = %moved.to,
                    "replication to this node is whole again"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// What was lost is written down, so that nobody takes the node for whole again; and PostgreSQL stops asking for it.
    async fn put_down(&mut self, trouble: &Trouble, seen: &[Seen]) -> Result<(), Failure> {
        let rooms = self.rooms;
        let Some(seen) = seen.iter().find(|seen| seen.followed.name == trouble.subscription) else { return Ok(()) };
        if seen.followed.lost.is_none() {
            let told = seen.told.as_ref().map(|told| told.reason.clone()).filter(|reason| !reason.is_empty());
            let reason = told.unwrap_or_else(|| "it is gone, and nobody there knows why".into());
            let (source, slot, me) = (&trouble.source, &trouble.slot, rooms.me.as_str());
            follows::lose(&rooms.store, source, slot, me, &reason).await.map_err(remember)?;
            warn!(
                event = "slot.lost", slot, source_node = %source, reason,
                "the slot that this node reads is lost"
            );
        }
        if seen.followed.is_enabled {
            let name = &trouble.subscription;
            let session = session(rooms, &mut self.session).await?;
            session.run(&ddl::disable_subscription(name)).await.map_err(explain)?;
            let detail = json!({ "reason": trouble.failure.to_string(), "slot": trouble.slot });
            let actor = Actor::agent(&rooms.me);
            audit::append(&rooms.store, &actor, "subscription.disable", name, None, &detail).await.map_err(remember)?;
        }
        Ok(())
    }
}

async fn session<'a>(rooms: &Rooms, kept: &'a mut Option<Session>) -> Result<&'a Session, Failure> {
    if kept.as_ref().is_none_or(Session::is_closed) {
        *kept = Some(rooms.database.session(Purpose::Watch).await.map_err(explain)?);
    }
    Ok(kept.as_ref().expect("it was just opened"))
}
