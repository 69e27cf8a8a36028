//! Sequences of two nodes, which replication does not carry: compared, and moved ahead.
//!
//! A node that follows must hand out nothing that its source has handed out. So its sequences stand ahead, in their own
//! direction, by a margin; they are never moved back, and always by whole steps of their own, so that two nodes whose
//! sequences step past each other go on doing so.

use std::collections::BTreeMap;

use serde_json::json;
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::{NodeId, OperationId},
    names::TableName,
    v1::{self, SequencePosition as Position},
};
use tracing::info;

use crate::{
    postgres::{
        self, Purpose, publications,
        sequences::{self, NewPosition, Sequence, SequenceScope},
        subscriptions, tables,
    },
    rooms::Rooms,
    store::{Actor, audit},
};

/// A sequence is never moved by fewer steps: what it hands out in the moment of the move must not come twice.
const LEAST: i128 = 100;
/// The publication of whoever replicates all of a database.
const WHOLE: &str = "steep";

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// Where this node's sequences stand that matter to others: those of its replicated tables, or all where all of it replicates.
pub async fn read(rooms: &Rooms) -> Result<Vec<Position>, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let subscribed = subscriptions::list(&session).await.map_err(explain)?;
    let is_whole = publications::exists(&session, WHOLE).await.map_err(explain)?
        || subscribed.iter().any(|found| found.publications.iter().any(|name| name == WHOLE));
    let found = if is_whole {
        sequences::read(&session, SequenceScope::WholeDatabase).await
    } else {
        let names = publications::replicated_tables(&session).await.map_err(explain)?;
        let oids: Vec<u32> =
            tables::find(&session, &names).await.map_err(explain)?.iter().map(|table| table.oid).collect();
        sequences::read(&session, SequenceScope::OfTables(&oids)).await
    };
    let found = found.map_err(explain)?;
    session.close().await;
    Ok(found.iter().map(position).collect())
}

/// Compares `source`'s sequences with those of this node. `margin`: as many steps count as ahead; 0: as configured.
pub async fn check(rooms: &Rooms, theirs: &[Position], margin: u32) -> Result<Vec<v1::SequenceCheck>, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let ours = sequences::read(&session, SequenceScope::WholeDatabase).await.map_err(explain)?;
    session.close().await;
    let ours: BTreeMap<TableName, Position> =
        ours.iter().map(|sequence| (sequence.name.clone(), position(sequence))).collect();
    let margin = margin_of(rooms, margin);
    Ok(theirs.iter().map(|theirs| compare(theirs, ours.get(&name_of(theirs)), margin)).collect())
}

/// The margin that counts where `asked` does not say.
pub fn margin_of(rooms: &Rooms, asked: u32) -> u32 {
    if asked == 0 { rooms.config.copy.sequence_margin } else { asked }
}

/// Moves this node's sequences ahead of `source`'s where they are not; returns what was moved and what could not be moved far
/// enough, both as they were before.
pub async fn sync(
    rooms: &Rooms,
    source: &NodeId,
    theirs: &[Position],
    margin: u32,
    op: OperationId,
    actor: &Actor,
) -> Result<(Vec<v1::SequenceCheck>, Vec<v1::SequenceCheck>), Failure> {
    let checked = check(rooms, theirs, margin).await?;
    let is_left = |check: &v1::SequenceCheck| matches!(check.verdict.as_str(), "missing" | "differs" | "exhausted");
    let left: Vec<_> = checked.iter().filter(|check| is_left(check)).cloned().collect();
    let moved: Vec<_> = checked.into_iter().filter(|check| check.new_value.is_some()).collect();
    let positions: Vec<NewPosition> = moved
        .iter()
        .filter_map(|check| {
            Some(NewPosition { name: name_of(check.source.as_ref()?), value: check.new_value?, is_called: true })
        })
        .collect();
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    sequences::set(&session, &positions).await.map_err(explain)?;
    session.close().await;
    let told: Vec<_> = positions.iter().map(|new| format!("{} to {}", new.name, new.value)).collect();
    let detail = json!({ "source": source, "margin": margin_of(rooms, margin), "moved": told });
    audit::append(&rooms.store, actor, "seq.sync", rooms.me.as_str(), Some(op), &detail)
        .await
        .map_err(|error| error.explain())?;
    info!(
        event = "seq.moved_ahead", source_node = %source, actor = actor.to_json().to_string(),
        details.sequences = positions.len() as u64, "sequences were moved ahead"
    );
    Ok((moved, left))
}

/// A sequence as it travels.
fn position(sequence: &Sequence) -> Position {
    Position {
        sequence: Some(v1::TableName { schema: sequence.name.schema.clone(), name: sequence.name.name.clone() }),
        last_value: sequence.last_value,
        is_called: sequence.is_called,
        increment: sequence.increment,
        min_value: sequence.min_value,
        max_value: sequence.max_value,
        cache: sequence.cache,
        cycle: sequence.cycles,
    }
}

fn name_of(position: &Position) -> TableName {
    let name = position.sequence.clone().unwrap_or_default();
    TableName::new(name.schema, name.name)
}

/// The value it has handed out last; before its first, one step before that.
fn handed_out(position: &Position) -> i128 {
    let last = i128::from(position.last_value);
    if position.is_called { last } else { last - i128::from(position.increment) }
}

/// The value it hands out next.
fn next(position: &Position) -> i128 {
    handed_out(position) + i128::from(position.increment)
}

/// How a sequence of the source and the target's of the same name stand to each other.
fn compare(source: &Position, target: Option<&Position>, margin: u32) -> v1::SequenceCheck {
    let mut check = v1::SequenceCheck {
        sequence: source.sequence.clone(),
        source: Some(source.clone()),
        target: target.cloned(),
        ..v1::SequenceCheck::default()
    };
    let verdict = |check: &mut v1::SequenceCheck, verdict: &str, why: &str| {
        (check.verdict, check.why) = (verdict.into(), why.into());
    };
    let Some(target) = target else {
        verdict(&mut check, "missing", "the target has no sequence of this name");
        return check;
    };
    let (step, own_step) = (i128::from(source.increment), i128::from(target.increment));
    if step.signum() != own_step.signum() {
        verdict(&mut check, "differs", "one goes up and the other down: sooner or later they hand out the same");
        return check;
    }
    let direction = step.signum();
    // Rounded towards where a collision is nearer.
    let steps = ((next(target) - handed_out(source)) * direction).div_euclid(step.abs());
    check.steps_ahead = Some(i64::try_from(steps).unwrap_or(if steps > 0 { i64::MAX } else { i64::MIN }));
    let apart = i128::from(source.last_value) - i128::from(target.last_value);
    if step == own_step && step.abs() > 1 && apart.rem_euclid(step.abs()) != 0 {
        verdict(&mut check, "apart", "");
        return check;
    }
    let margin = i128::from(margin);
    if steps >= margin.max(1) {
        verdict(&mut check, "ahead", "");
        return check;
    }
    match steps {
        ..1 => verdict(&mut check, "behind", "the target would hand out what the source has handed out already"),
        _ => verdict(&mut check, "close", "the source reaches soon what the target would hand out"),
    }
    let wanted = handed_out(source) + (margin + i128::from(source.cache)) * step;
    let missing = (wanted - i128::from(target.last_value)) * direction;
    let needed = (missing + own_step.abs() - 1).div_euclid(own_step.abs()).max(LEAST);
    let end = if direction > 0 { target.max_value } else { target.min_value };
    let room = ((i128::from(end) - i128::from(target.last_value)) * direction).div_euclid(own_step.abs());
    if needed > room {
        verdict(&mut check, "exhausted", "the target's sequence ends before it is ahead by the margin");
    }
    let by = needed.min(room);
    if by > 0 {
        check.new_value = i64::try_from(i128::from(target.last_value) + by * own_step).ok();
    }
    if source.cycle || target.cycle {
        check.why.push_str("; it begins again at its end, so values come twice in any case");
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last_value: i64, increment: i64) -> Position {
        Position {
            last_value,
            is_called: true,
            increment,
            min_value: -5000,
            max_value: 5000,
            cache: 1,
            ..Position::default()
        }
    }

    fn told(source: &Position, target: &Position) -> (String, Option<i64>, Option<i64>) {
        let check = compare(source, Some(target), 1000);
        (check.verdict, check.steps_ahead, check.new_value)
    }

    #[test]
    fn a_sequence_is_moved_ahead_by_the_margin_in_its_own_direction_and_never_back() {
        assert_eq!(told(&at(10, 1), &at(3000, 1)), ("ahead".into(), Some(2991), None));
        assert_eq!(told(&at(10, 1), &at(1009, 1)), ("ahead".into(), Some(1000), None));
        assert_eq!(told(&at(10, 1), &at(1008, 1)), ("close".into(), Some(999), Some(1108)));
        assert_eq!(told(&at(10, 1), &at(10, 1)), ("close".into(), Some(1), Some(1011)));
        assert_eq!(told(&at(10, 1), &at(9, 1)), ("behind".into(), Some(0), Some(1011)));
        assert_eq!(told(&at(-10, -1), &at(-9, -1)), ("behind".into(), Some(0), Some(-1011)));
        assert_eq!(told(&at(-10, -1), &at(-4000, -1)), ("ahead".into(), Some(3991), None));
    }

    #[test]
    fn sequences_that_step_past_each_other_are_left_alone_and_others_keep_their_own_steps() {
        assert_eq!(told(&at(1001, 2), &at(10, 2)).0, "apart");
        assert_eq!(told(&at(1000, 2), &at(10, 2)), ("behind".into(), Some(-494), Some(3002)));
        let (verdict, _, new) = told(&at(100, 1), &at(7, 10));
        assert_eq!((verdict.as_str(), new.map(|new| new % 10)), ("behind", Some(7)));
        assert!(new.is_some_and(|new| new >= 1101));
        assert_eq!(told(&at(100, 1), &at(100, -1)), ("differs".into(), None, None));
    }

    #[test]
    fn what_ends_too_soon_goes_as_far_as_it_can_and_says_so() {
        assert_eq!(told(&at(4900, 1), &at(4000, 1)), ("exhausted".into(), Some(-899), Some(5000)));
        assert_eq!(told(&at(5000, 1), &at(5000, 1)), ("exhausted".into(), Some(1), None));
        let large = Position { max_value: i64::MAX, ..at(i64::MAX - 10, 1) };
        assert_eq!(told(&large, &Position { max_value: i64::MAX, ..at(1, 1) }).2, Some(i64::MAX));
    }

    #[test]
    fn a_sequence_that_was_never_used_hands_out_its_first_value_next() {
        let fresh = Position { is_called: false, ..at(1, 1) };
        assert_eq!(told(&fresh, &fresh), ("close".into(), Some(1), Some(1001)));
        assert_eq!(told(&at(1, 1), &fresh).0, "behind");
        assert_eq!(compare(&fresh, None, 1000).verdict, "missing");
    }

    #[test]
    fn one_that_begins_again_says_that_nothing_is_certain() {
        let check = compare(&Position { cycle: true, ..at(10, 1) }, Some(&at(5, 1)), 1000);
        assert!(check.why.contains("begins again"), "{}", check.why);
    }
}
