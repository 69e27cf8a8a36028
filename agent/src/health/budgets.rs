//! What slots and snapshots of ours may cost the server that keeps them.
//!
//! A budget that is nearly spent is told; where that is configured, the slot that costs most is dropped, one after the other
//! until the budget holds. Only slots that Steep made, of this node's own database, are ever touched.

use std::{collections::BTreeSet, path::PathBuf};

use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
};
use tracing::warn;

use super::kept::{Look, known};
use crate::{
    config::{Budget, OnExceeded},
    metrics::Metrics,
    postgres::{self, Session, activity, catalog, disk, slots},
    rooms::Rooms,
    store::{Actor, audit, follows, intents},
    telemetry,
};

/// From this part of a budget on it is told.
const WARN: f64 = 0.80;
/// From this part on something is done.
const ACT: f64 = 0.95;

/// A slot of ours as a budget sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cost {
    /// Its name.
    pub slot: String,
    /// WAL it keeps back.
    pub retained_bytes: u64,
    /// Transactions since the oldest row version it, or the snapshot that belongs to it, keeps.
    pub xmin_age: u64,
}

/// A budget and how much of it is spent.
#[derive(Debug, Clone, PartialEq)]
pub struct Spent {
    /// Its key in agent.toml.
    pub budget: &'static str,
    /// The part that is spent; 1: all of it.
    pub share: f64,
    /// The slot that costs most; none: no slot of ours costs anything.
    pub by: Option<String>,
    /// What is spent and how much may be.
    pub words: String,
}

/// How much of each budget that is set `costs` come to; `free_bytes` is what is free where pg_wal is, if that is known.
#[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
pub fn spent(limits: &Budget, costs: &[Cost], free_bytes: Option<u64>) -> Vec<Spent> {
    let most = |of: fn(&Cost) -> u64| costs.iter().max_by_key(|cost| of(cost)).filter(|cost| of(cost) > 0);
    let share = |used: u64, limit: u64| used as f64 / limit.max(1) as f64;
    let mut all = Vec::new();
    let heaviest = most(|cost| cost.retained_bytes);
    if let Some(limit) = limits.retained_wal {
        let used = heaviest.map_or(0, |cost| cost.retained_bytes);
        all.push(Spent {
            budget: "retained_wal",
            share: share(used, limit),
            by: heaviest.map(|cost| cost.slot.clone()),
            words: format!("{used} of {limit} bytes of WAL are kept back"),
        });
    }
    if let (Some(limit), Some(free)) = (limits.disk_free, free_bytes) {
        all.push(Spent {
            budget: "disk_free",
            share: share(limit, free),
            by: heaviest.map(|cost| cost.slot.clone()),
            words: format!("{free} bytes are free where pg_wal is, and {limit} must be"),
        });
    }
    if let Some(limit) = limits.xmin_age {
        let oldest = most(|cost| cost.xmin_age);
        let used = oldest.map_or(0, |cost| cost.xmin_age);
        all.push(Spent {
            budget: "xmin_age",
            share: share(used, limit),
            by: oldest.map(|cost| cost.slot.clone()),
            words: format!("row versions are kept for {used} transactions, {limit} may be"),
        });
    }
    all
}

/// Remembers from look to look what was told.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    told: BTreeSet<(&'static str, bool)>,
    pg_wal: Option<Option<PathBuf>>,
}

impl Budgets {
    /// Looks at every budget that is set, tells what is new, and does what is configured.
    pub(super) async fn look(
        &mut self,
        rooms: &Rooms,
        metrics: &Metrics,
        session: &Session,
        look: &Look,
    ) -> Result<(), Failure> {
        let limits = &rooms.config.budget;
        if limits.retained_wal.is_none() && limits.disk_free.is_none() && limits.xmin_age.is_none() {
            return Ok(());
        }
        let costs = costs(session, look).await?;
        let free = self.free_bytes(session, limits).await?;
        let mut told = Vec::new();
        for spent in spent(limits, &costs, free) {
            metrics.budget_spent.of([spent.budget]).set(spent.share);
            let target =
                |slot: &String| look.ours.iter().find(|(ours, _)| ours.name == *slot).map(|(_, to)| to.as_str());
            let by = spent.by.as_ref().and_then(|slot| Some((slot.clone(), target(slot)?.to_owned())));
            for (is_act, at) in [(false, WARN), (true, ACT)] {
                if spent.share < at {
                    self.told.remove(&(spent.budget, is_act));
                } else if self.told.insert((spent.budget, is_act)) {
                    tell(&spent, is_act);
                }
            }
            if spent.share >= WARN {
                told.push(failure(&rooms.me, &spent, by.as_ref()));
            }
            if let (true, OnExceeded::DropSlot, Some((slot, target))) = (spent.share >= ACT, limits.on_exceeded, by) {
                give_up(rooms, session, &spent, &slot, &target).await?;
                // What is left is measured anew before anything else goes.
                break;
            }
        }
        rooms.troubles.find(|found| found.budgets = told);
        Ok(())
    }

    async fn free_bytes(&mut self, session: &Session, limits: &Budget) -> Result<Option<u64>, Failure> {
        if limits.disk_free.is_none() {
            return Ok(None);
        }
        let path = match &self.pg_wal {
            Some(path) => path.clone(),
            None => {
                let paths = catalog::disk_paths(session).await.map_err(explain)?;
                let path = paths.data_directory.map(|directory| directory.join("pg_wal"));
                if path.as_deref().and_then(disk::free_bytes).is_none() {
                    warn!(
                        event = "slot.budget_unseen",
                        "budget.disk_free cannot be looked at: the agent does not see the directory of pg_wal"
                    );
                }
                self.pg_wal.insert(path).clone()
            }
        };
        Ok(path.as_deref().and_then(disk::free_bytes))
    }
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

async fn costs(session: &Session, look: &Look) -> Result<Vec<Cost>, Failure> {
    let keepers = activity::keeper_ages(session).await.map_err(explain)?;
    let cost = |(slot, _): &(slots::Slot, String)| {
        let kept = keepers.iter().filter(|(digits, _)| slot.name.ends_with(digits.as_str())).map(|(_, age)| *age).max();
        Cost {
            slot: slot.name.clone(),
            // A slot that is lost keeps nothing any more.
            retained_bytes: if slot.progress.is_lost() { 0 } else { slot.progress.retained_bytes },
            xmin_age: slot.progress.xmin_age.max(kept).unwrap_or(0),
        }
    };
    Ok(look.ours.iter().map(cost).collect())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is positive and small")]
fn percent(share: f64) -> u64 {
    (share * 100.0).min(1e6) as u64
}

fn tell(spent: &Spent, is_act: bool) {
    let Spent { budget, by, words, .. } = spent;
    let slot = by.as_deref().unwrap_or_default();
    let percent = percent(spent.share);
    if is_act {
        warn!(
            event = "slot.budget_exceeded",
            slot,
            details.budget = budget,
            details.percent = percent,
            reason = words,
            "a budget of what slots may cost is spent"
        );
    } else {
        warn!(
            event = "slot.budget_near",
            slot,
            details.budget = budget,
            details.percent = percent,
            reason = words,
            "a budget of what slots may cost is nearly spent"
        );
    }
}

fn failure(me: &NodeId, spent: &Spent, by: Option<&(String, String)>) -> Failure {
    let by = by.map(|(slot, target)| format!(", most of it by slot {slot} for {}", known(target))).unwrap_or_default();
    let text = format!("budget.{} of {me} is spent to {} %: {}{by}", spent.budget, percent(spent.share), spent.words);
    Failure::new(Code::BudgetExceeded, text).hint(format!("steepctl slot list {me}; bring the node back that reads it"))
}

/// Drops the slot that costs most: the node that reads it has to be initialized again, and hears why.
async fn give_up(rooms: &Rooms, session: &Session, spent: &Spent, slot: &str, target: &str) -> Result<(), Failure> {
    let reason = format!("dropped by {} because its budget.{} was spent: {}", rooms.me, spent.budget, spent.words);
    let failure = Failure::new(Code::SlotLost, format!("slot {slot} was {reason}"));
    // An operation that still needs it hears at once, and undoes what it made.
    let serving = rooms.sessions.list().into_iter().find(|held| held.slot == slot);
    if let Some(held) = &serving {
        rooms.sessions.give_up(held, failure.clone()).await;
    }
    // Written first: whoever finds it gone shall hear why.
    follows::lose(&rooms.store, &rooms.me, slot, target, &reason).await.map_err(|error| error.explain())?;
    slots::drop(session, slot).await.map_err(explain)?;
    intents::settle(&rooms.store, "slot", slot).await.map_err(|error| error.explain())?;
    let detail = json!({ "node": target, "budget": spent.budget, "reason": spent.words });
    let actor = Actor::agent(&rooms.me);
    let op = serving.map(|held| held.op);
    audit::append(&rooms.store, &actor, "slot.drop", slot, op, &detail).await.map_err(|error| error.explain())?;
    warn!(
        event = "slot.dropped",
        slot,
        peer = target,
        error = telemetry::failure(&failure),
        reason,
        "a slot was dropped to protect its server"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(slot: &str, retained_bytes: u64, xmin_age: u64) -> Cost {
        Cost { slot: slot.into(), retained_bytes, xmin_age }
    }

    #[test]
    fn each_budget_names_the_slot_that_costs_most_and_what_is_not_set_is_not_looked_at() {
        let costs = [cost("a", 80, 5), cost("b", 20, 96)];
        assert!(spent(&Budget::default(), &costs, Some(1)).is_empty());
        let limits = Budget { retained_wal: Some(100), xmin_age: Some(100), ..Budget::default() };
        let all = spent(&limits, &costs, None);
        let told: Vec<_> = all.iter().map(|spent| (spent.budget, percent(spent.share), spent.by.as_deref())).collect();
        assert_eq!(told, [("retained_wal", 80, Some("a")), ("xmin_age", 96, Some("b"))]);
    }

    #[test]
    fn a_disk_is_spent_when_no_more_is_free_than_must_be_and_slots_that_keep_nothing_are_not_to_blame() {
        let limits = Budget { disk_free: Some(1000), ..Budget::default() };
        let share = |free| percent(spent(&limits, &[], Some(free))[0].share);
        assert_eq!((share(10_000), share(1250), share(1052), share(500)), (10, 80, 95, 200));
        assert_eq!(spent(&limits, &[cost("a", 0, 0)], Some(500))[0].by, None);
        assert!(spent(&limits, &[], None).is_empty(), "what cannot be seen is not guessed");
    }
}
