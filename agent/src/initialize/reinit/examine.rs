//! Looks whether tables of this node can be copied again from a node it replicates from, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    names::TableName,
    v1,
};

use crate::{
    initialize::{
        disk,
        findings::Findings,
        mesh,
        messages::table_name,
        preflight::{self, TargetTables, Wanted},
        shapes::Pair,
        subscribe::name_for,
    },
    postgres::{
        self, Purpose, Session, catalog,
        detours::{self, Carried},
        keys, rows, slots, subscriptions,
        tables::{self, TableKind},
    },
    rooms::Rooms,
};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Every finding about this node and the pair.
    pub(super) checks: Vec<v1::Check>,
    /// The tables as they are here.
    pub(super) here: TargetTables,
    /// Foreign keys that begin or end at one of them.
    pub(super) keys: Vec<String>,
    /// How many more tables the same subscriptions carry.
    pub(super) others: u64,
}

/// How to look.
pub(super) struct Look {
    /// The rows go before the new ones come.
    pub(super) in_place: bool,
    /// Somebody wants to know how many rows are there: that takes its time.
    pub(super) counts: bool,
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// Findings about this node, whose tables shall be copied again from `source`.
pub(super) async fn examine(
    rooms: &Rooms,
    source: &str,
    facts: &v1::ExamineReply,
    wanted: &Wanted,
    look: &Look,
) -> Result<Found, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let server = catalog::server_facts(&session).await.map_err(explain)?;
    let role = catalog::role_facts(&session).await.map_err(explain)?;
    let mut findings = Findings::about(&rooms.me);
    preflight::check_server(&mut findings, &server, wanted);
    preflight::check_pair(&mut findings, source, &server, facts, wanted);
    preflight::check_subscriber(&mut findings, &server, &role, wanted, 0);
    disk::check_wal_kept(&mut findings, source, facts);
    preflight::check_blockers(&session, &mut findings).await?;
    let names = mesh::with_rows(facts);
    let all: Vec<TableName> = facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name)).collect();
    let existing = tables::find(&session, &all).await.map_err(explain)?;
    let existing: BTreeMap<_, _> = existing.into_iter().map(|table| (table.name.clone(), table)).collect();
    for missing in all.iter().filter(|name| !existing.contains_key(*name)) {
        let text = format!("table {missing} is not there");
        findings.error(Code::NotReplicated, text, Code::NotReplicated.hint());
    }
    let pair = Pair { source, one_way: wanted.one_way, target: server.version };
    pair.check(&mut findings, facts, &existing);
    preflight::check_triggers(&session, &mut findings, existing.values()).await?;
    let carried = detours::carried(&session).await.map_err(explain)?;
    check_carried(&mut findings, source, facts, &names, &carried);
    let subscription = subscriptions::find(&session, &name_for(source)).await.map_err(explain)?;
    findings.must(subscription.is_some(), Code::IllegalState, "the node replicates from the source", || {
        format!("{} does not replicate from {source}", rooms.me)
    });
    let tenths = if look.in_place { disk::ONCE } else { disk::STAGED };
    disk::check(&session, &mut findings, facts, tenths).await?;
    let plain: Vec<_> =
        existing.values().filter(|table| table.kind == TableKind::Plain).map(|table| table.name.clone()).collect();
    let counts = if look.counts { rows::count(&session, &plain).await.map_err(explain)? } else { Vec::new() };
    let oids: Vec<u32> = existing.values().map(|table| table.oid).collect();
    let keys = keys::list(&session, &oids).await.map_err(explain)?;
    let chosen: BTreeSet<&TableName> = names.iter().collect();
    let others: BTreeSet<&TableName> =
        carried.iter().map(|carried| &carried.table).filter(|table| !chosen.contains(table)).collect();
    Ok(Found {
        checks: findings.into_checks(),
        others: others.len() as u64,
        keys: keys.iter().map(|key| format!("{} {} to {}", key.table, key.name, key.references)).collect(),
        here: TargetTables { rows: plain.into_iter().zip(counts).collect(), existing },
    })
}

/// A subscription that cannot go on has nothing to bring tables back to.
pub(in crate::initialize) async fn check_slots_alive(
    session: &Session,
    findings: &mut Findings,
    target: &NodeId,
) -> Result<(), Failure> {
    let slots = slots::list(session).await.map_err(explain)?;
    let lost = slots.iter().find(|slot| slot.is_kept_for(target) && slot.progress.is_lost());
    findings.must(lost.is_none(), Code::SlotLost, "the target's slot has all it needs", || {
        format!("slot {} lost WAL that {target} still needs", lost.map(|slot| slot.name.clone()).unwrap_or_default())
    });
    Ok(())
}

/// Every table comes by the subscriptions to the source and to the others of its mesh, and by none besides.
fn check_carried(
    findings: &mut Findings,
    source: &str,
    facts: &v1::ExamineReply,
    names: &[TableName],
    carried: &[Carried],
) {
    let mut expected = vec![name_for(source)];
    expected.extend(facts.members.iter().map(|member| name_for(&member.node)));
    for name in names {
        for subscription in &expected {
            let found = carried.iter().find(|one| one.subscription == *subscription && one.table == *name);
            let text = match found {
                None => format!("table {name} does not come by subscription {subscription}"),
                Some(found) if !found.is_past_copy => format!("PostgreSQL is still copying {name} for {subscription}"),
                Some(_) => continue,
            };
            findings.error(Code::NotReplicated, text, Code::NotReplicated.hint());
        }
        let stranger = carried.iter().find(|one| one.table == *name && !expected.contains(&one.subscription));
        if let Some(stranger) = stranger {
            let text = format!(
                "table {name} also comes by subscription {}, from a node whose changes {source} does not have",
                stranger.subscription
            );
            findings.error(Code::OutsideChanges, text, Code::OutsideChanges.hint());
        }
    }
}
