//! When what is seen of a subscription amounts to trouble. Pure: time comes in as an argument.
//!
//! Nothing that passes by itself is trouble: a restart of either agent or server, a pause for a newcomer's snapshot, a partition.
//! So each kind must last, and errors count only while the source answers and was not started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    lsn::Lsn,
    names::{TableName, readable_identifier},
};
use tokio::time::Instant;

use crate::store::follows::Followed;

/// What looks like an accident of the moment must be seen for so long.
const SETTLED: Duration = Duration::from_secs(3);
/// A slot that was taken away on purpose goes with its subscription; who removes a node tells all others within this.
const RELEASED: Duration = Duration::from_secs(60);
/// As many looks that found errors, without any progress between them, are no accident.
const ERRORS: u64 = 2;
/// A worker that has run for so long, and is not far behind, has got over its errors.
const STEADY: Duration = Duration::from_secs(15);
/// A worker that has run for so long does not fail at once.
const RUNS: Duration = Duration::from_secs(5);
/// Not far behind.
const NEAR_BYTES: u64 = 1 << 20;

/// What an operator has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a node may be behind; none: any.
    pub lag: Option<u64>,
    /// For how long it may be further behind.
    pub lag_for: Duration,
    /// For how long tables may differ.
    pub drift_for: Duration,
}

/// What a source says of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is well.
    Good,
    /// PostgreSQL gave it up, or it was dropped.
    Lost,
    /// It is gone, and nobody there knows why.
    Missing,
    /// It was taken away on purpose.
    Released,
    /// It is there, and WAL it needs is not.
    Starved,
}

impl Fate {
    /// The word for it between agents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Lost => "lost",
            Self::Missing => "missing",
            Self::Released => "released",
            Self::Starved => "starved",
        }
    }

    /// What another agent means; none: a later version's word.
    pub fn told(word: &str) -> Option<Self> {
        [Self::Good, Self::Lost, Self::Missing, Self::Released, Self::Starved]
            .into_iter()
            .find(|fate| fate.as_str() == word)
    }
}

/// A slot as its node tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// How it fares.
    pub fate: Fate,
    /// Why.
    pub reason: String,
    /// WAL written there that was not confirmed here.
    pub unconfirmed_bytes: u64,
    /// All before it was received and stored here.
    pub confirmed: Lsn,
    /// Which run of that node's agent and server tells it.
    pub run: String,
    /// Which of its looks this is; later ones have higher numbers.
    pub look: u64,
}

/// One subscription, in one look.
#[derive(Debug, Clone)]
pub struct Seen {
    /// As it stands here.
    pub followed: Followed,
    /// The node it reads from.
    pub source: NodeId,
    /// What that node says of its slot; none: it could not be asked.
    pub told: Option<Told>,
    /// Tables that replicate with that node and do not fit.
    pub drifted: Vec<TableName>,
}

/// What is wrong, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Its slot does not carry all that was written since.
    SlotLost,
    /// Its slot is gone.
    SlotGone,
    /// It was dropped.
    SubscriptionGone,
    /// WAL its slot needs is gone.
    Starved,
    /// Its worker fails again and again.
    Failing,
    /// It is disabled.
    Disabled,
    /// Tables do not fit.
    Drifted,
    /// It is too far behind.
    Behind,
}

impl Kind {
    /// Nothing that happens here makes up for it.
    pub fn is_past_mending(self) -> bool {
        matches!(self, Self::SlotLost | Self::SlotGone)
    }
}

/// Something that keeps this node from replicating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What.
    pub kind: Kind,
    /// The subscription.
    pub subscription: String,
    /// The node it reads from.
    pub source: NodeId,
    /// The slot it reads.
    pub slot: String,
    /// The same for people, with the next command.
    pub failure: Failure,
}

/// What one look amounts to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Worst first.
    pub troubles: Vec<Trouble>,
    /// Everything was seen, and all of it runs.
    pub is_whole: bool,
}

/// Remembers from look to look.
#[derive(Debug, Default)]
pub struct Judge {
    since: BTreeMap<(String, Kind), Instant>,
    runs: BTreeMap<String, Run>,
}

/// How many looks found errors at one position, and the kinds of conflict that came with them.
type Streak = (u64, BTreeSet<String>);

/// How a subscription's worker has fared.
#[derive(Debug, Clone, Default)]
struct Run {
    errors: u64,
    conflicts: BTreeMap<String, u64>,
    confirmed: Lsn,
    worker: Option<(i32, Instant)>,
    was_told: bool,
    run: String,
    look: u64,
    streak: Streak,
    /// Found, but the source has not looked at itself since: it may have been a restart.
    pending: u64,
}

impl Run {
    fn look(&mut self, now: Instant, seen: &Seen) {
        let Followed { worker_pid, apply_errors, conflicts, .. } = &seen.followed;
        // Statistics may have been reset.
        let more = apply_errors.saturating_sub(self.errors);
        let met =
            conflicts.iter().filter(|(kind, count)| self.conflicts.get(*kind).is_none_or(|before| *count > before));
        let met: BTreeSet<String> = met.filter(|(_, count)| **count > 0).map(|(kind, _)| kind.clone()).collect();
        (self.errors, self.conflicts) = (*apply_errors, conflicts.clone());
        self.worker = worker_pid.map(|pid| match self.worker {
            Some((before, since)) if before == pid => (pid, since),
            _ => (pid, now),
        });
        if let Some(told) = &seen.told {
            let is_other_run = told.run != self.run;
            if is_other_run {
                // A restart was the error.
                self.run.clone_from(&told.run);
                self.pending = 0;
            } else if told.look > self.look {
                self.streak.0 += std::mem::take(&mut self.pending);
            }
            let has_moved = told.confirmed > self.confirmed;
            let is_well = self.ran_for(now) >= STEADY && told.unconfirmed_bytes <= NEAR_BYTES;
            if has_moved || is_well {
                (self.streak, self.pending) = (Streak::default(), 0);
            }
            // What was applied in the same moment was so before the error, or between two.
            if more > 0 && self.was_told && !is_other_run {
                self.pending += 1;
                self.streak.1.extend(met);
            }
            (self.look, self.confirmed) = (told.look, self.confirmed.max(told.confirmed));
        }
        self.was_told = seen.told.is_some();
    }

    fn ran_for(&self, now: Instant) -> Duration {
        self.worker.map_or(Duration::ZERO, |(_, since)| now.duration_since(since))
    }
}

impl Judge {
    /// Begins anew: what was seen so far does not count.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Looks at every subscription of `me` once more.
    pub fn look(&mut self, now: Instant, me: &NodeId, seen: &[Seen], limits: &Limits) -> Verdict {
        let mut troubles = Vec::new();
        let mut is_whole = true;
        let names: Vec<&str> = seen.iter().map(|seen| seen.followed.name.as_str()).collect();
        self.since.retain(|(name, _), _| names.contains(&name.as_str()));
        self.runs.retain(|name, _| names.contains(&name.as_str()));
        for one in seen {
            let found = self.look_at(now, me, one, limits);
            is_whole &= found.is_empty() && self.is_whole(now, one, limits);
            troubles.extend(found);
        }
        troubles.sort_by(|one, other| (one.kind, &one.subscription).cmp(&(other.kind, &other.subscription)));
        Verdict { troubles, is_whole }
    }

    fn is_whole(&self, now: Instant, seen: &Seen, limits: &Limits) -> bool {
        let ran = self.runs.get(&seen.followed.name).map_or(Duration::ZERO, |run| run.ran_for(now));
        let is_near = |told: &Told| limits.lag.is_none_or(|limit| told.unconfirmed_bytes <= limit);
        let is_good = seen.told.as_ref().is_some_and(|told| told.fate == Fate::Good && is_near(told));
        is_good && ran >= RUNS && !seen.followed.is_in_hand && seen.drifted.is_empty()
    }

    fn look_at(&mut self, now: Instant, me: &NodeId, seen: &Seen, limits: &Limits) -> Vec<Trouble> {
        let name = &seen.followed.name;
        if seen.followed.is_in_hand {
            self.since.retain(|(other, _), _| other != name);
            self.runs.remove(name);
            return Vec::new();
        }
        let run = self.runs.entry(name.clone()).or_insert_with(|| Run {
            errors: seen.followed.apply_errors,
            conflicts: seen.followed.conflicts.clone(),
            ..Run::default()
        });
        run.look(now, seen);
        let streak = run.streak.clone();
        let claims = claims(seen, streak.0, limits);
        // A source that does not answer says nothing against what it said before.
        let is_silent = |kind: &Kind| seen.told.is_none() && matches!(kind, Kind::Behind | Kind::SlotGone);
        self.since.retain(|(other, kind), _| {
            other != name || claims.iter().any(|(claim, _)| claim == kind) || is_silent(kind)
        });
        let mut found = Vec::new();
        for (kind, patience) in claims {
            let since = *self.since.entry((name.clone(), kind)).or_insert(now);
            if now.duration_since(since) >= patience {
                found.push(kind);
            }
        }
        // Whoever is past mending, or not there, has no other trouble worth a word.
        if let Some(worst) = found.iter().copied().find(|kind| *kind <= Kind::SubscriptionGone) {
            found.retain(|kind| *kind == worst);
        }
        let trouble = |kind| Trouble {
            kind,
            subscription: name.clone(),
            source: seen.source.clone(),
            slot: seen.followed.slot.clone(),
            failure: failure(kind, me, seen, &streak, limits),
        };
        found.into_iter().map(trouble).collect()
    }
}

/// What seems wrong, and for how long it must seem so.
fn claims(seen: &Seen, errors: u64, limits: &Limits) -> Vec<(Kind, Duration)> {
    let followed = &seen.followed;
    let mut claims = Vec::new();
    let fate = seen.told.as_ref().map(|told| told.fate);
    if followed.lost.is_some() || fate == Some(Fate::Lost) {
        claims.push((Kind::SlotLost, Duration::ZERO));
    }
    if !followed.is_there {
        claims.push((Kind::SubscriptionGone, SETTLED));
        return claims;
    }
    match fate {
        Some(Fate::Missing) => claims.push((Kind::SlotGone, SETTLED)),
        Some(Fate::Released) => claims.push((Kind::SlotGone, RELEASED)),
        Some(Fate::Starved) => claims.push((Kind::Starved, Duration::ZERO)),
        Some(Fate::Good | Fate::Lost) | None => {}
    }
    if errors >= ERRORS {
        claims.push((Kind::Failing, Duration::ZERO));
    }
    if !followed.is_enabled {
        claims.push((Kind::Disabled, SETTLED));
    }
    if !seen.drifted.is_empty() {
        claims.push((Kind::Drifted, limits.drift_for));
    }
    if let (Some(limit), Some(told)) = (limits.lag, &seen.told)
        && told.unconfirmed_bytes > limit
    {
        claims.push((Kind::Behind, limits.lag_for));
    }
    claims
}

/// The commands that bring `me` back from `source` when nothing else does.
fn again(me: &NodeId, source: &NodeId) -> String {
    format!("steepctl node reinit {me} --full --source {source}")
}

fn failure(kind: Kind, me: &NodeId, seen: &Seen, streak: &Streak, limits: &Limits) -> Failure {
    let Seen { followed, source, told, drifted } = seen;
    let (name, slot) = (&followed.name, &followed.slot);
    let reason = |told: &Option<Told>| {
        let word = followed.lost.clone().or_else(|| told.as_ref().map(|told| told.reason.clone()));
        word.filter(|word| !word.is_empty()).map(|word| format!(": {word}")).unwrap_or_default()
    };
    match kind {
        Kind::SlotLost => Failure::new(Code::SlotLost, format!("slot {slot} on {source} is lost{}", reason(told)))
            .cause(format!("what was written on {source} since {me} last received does not arrive any more"))
            .hint(again(me, source)),
        Kind::SlotGone => Failure::new(Code::SlotGone, format!("slot {slot} on {source} is gone{}", reason(told)))
            .cause(format!("what was written on {source} since {me} last received does not arrive any more"))
            .hint(again(me, source)),
        Kind::SubscriptionGone => {
            Failure::new(Code::SubscriptionGone, format!("subscription {name} of {me} was dropped"))
                .hint(again(me, source))
        }
        Kind::Starved => {
            Failure::new(Code::WalMissing, format!("WAL that slot {slot} on {source} needs is gone{}", reason(told)))
                .hint(format!("put the file back into pg_wal of {source}; or: {}", again(me, source)))
        }
        Kind::Failing => {
            let kinds: Vec<&str> = streak.1.iter().map(String::as_str).collect();
            let kinds = if kinds.is_empty() { String::new() } else { format!("; conflicts: {}", kinds.join(", ")) };
            let text = format!("subscription {name} fails again and again with errors, and nothing is applied{kinds}");
            Failure::new(Code::SubscriptionFailing, text).hint(format!(
                "PostgreSQL's log on {me} says which row or table; mend it, and replication goes on by itself"
            ))
        }
        Kind::Disabled => Failure::new(Code::SubscriptionDisabled, format!("subscription {name} is disabled"))
            .hint(format!("on {me}: alter subscription {} enable", readable_identifier(name))),
        Kind::Drifted => {
            let more = if drifted.len() > 1 { format!(" and {} more", drifted.len() - 1) } else { String::new() };
            Failure::new(Code::SchemaDiffers, format!("{}{more} differs from {source}'s", drifted[0]))
                .hint(format!("steepctl schema diff {source} {me}"))
        }
        Kind::Behind => {
            let behind = told.as_ref().map_or(0, |told| told.unconfirmed_bytes);
            let limit = limits.lag.unwrap_or_default();
            let text = format!(
                "{me} is {behind} bytes behind {source}, more than {limit} for longer than {}s",
                limits.lag_for.as_secs()
            );
            Failure::new(Code::LagTooLarge, text).hint(format!("steepctl node show {me}; see that both agents run"))
        }
    }
}

#[cfg(test)]
mod tests;
