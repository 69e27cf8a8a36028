//! Looks whether both nodes can do what is asked, and changes nothing.
//!
//! The source examines itself and sends facts and findings; the target adds its own and what follows from
//! both. Every finding has a code, names what and where, and says what to do.

use std::collections::BTreeMap;

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    names::{TableName, readable_identifier},
    operation::SchemaSync,
    v1,
};

use super::{
    apart, disk, drifted,
    findings::Findings,
    mesh,
    messages::{source_table, table_name},
    reach, reinit,
    shapes::{self, Pair},
    subscribe,
};
use crate::{
    parts::PAGE_BYTES,
    postgres::{
        self, Purpose, Session, activity, catalog,
        catalog::{RoleFacts, ServerFacts},
        dump::Programs,
        rows,
        selection::{Selected, Selection},
        subscriptions,
        tables::{self, Table, TableKind},
        version::Version,
    },
    rooms::Rooms,
};

/// A transaction older than this is worth a word: it keeps the slot from being made.
const LONG_TRANSACTION: std::time::Duration = std::time::Duration::from_secs(60);
/// Findings of one kind that are told one by one; more are summed up.
const TOLD_APART: usize = 20;

/// What an initialization is asked to do, as both ends of the preflight need it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which tables.
    pub selection: Selection,
    /// From source to target only.
    pub one_way: bool,
    /// Streams at once.
    pub parallel: u32,
    /// Rows on the target may go.
    pub force: bool,
    /// What is done about tables that differ.
    pub schema_sync: SchemaSync,
    /// The target replicates from the source already; tables of it are copied again.
    pub again: bool,
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// Facts and findings about this node as the source; `their_link`: how its PostgreSQL would reach the target's.
pub async fn examine_source(
    rooms: &Rooms,
    target: &NodeId,
    wanted: &Wanted,
    their_link: &str,
) -> Result<v1::ExamineReply, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let server = catalog::server_facts(&session).await.map_err(explain)?;
    let role = catalog::role_facts(&session).await.map_err(explain)?;
    let mut findings = Findings::about(&rooms.me);
    check_state(rooms, &mut findings).await?;
    check_server(&mut findings, &server, wanted);
    check_publisher(&mut findings, &server, &role, 1);
    if !wanted.one_way {
        reach::check(rooms, &session, &mut findings, target, their_link).await?;
    }
    let selected = tables::select(&session, &wanted.selection).await.map_err(explain)?;
    let members = match wanted.one_way {
        true => Vec::new(),
        false => {
            mesh::check_joined(&mut findings, &server, &role);
            let tables = mesh::that_hold_rows(&selected.tables);
            mesh::check_source(rooms, &session, &mut findings, target, &tables, wanted.again).await?
        }
    };
    check_selection(&mut findings, &wanted.selection, &selected);
    check_tables(&mut findings, &selected.tables, &role, server.version);
    check_triggers(&session, &mut findings, &selected.tables).await?;
    if wanted.again {
        reinit::check_slots_alive(&session, &mut findings, target).await?;
    } else {
        check_references(&session, &mut findings, &selected).await?;
    }
    check_blockers(&session, &mut findings).await?;
    if wanted.selection.is_whole_database() {
        let objects = catalog::large_objects(&session).await.map_err(explain)?;
        findings.must(objects == 0, Code::LargeObjects, "no large objects", || format!("{objects} large objects"));
    }
    let pg_dump_major = match Programs::find(rooms.database.config(), session.version().major()).await {
        Ok(programs) => u32::from(programs.major()),
        Err(error) => {
            let failure = error.explain();
            findings.error(failure.code, failure.message, failure.hint);
            0
        }
    };
    let schemas = catalog::schemas(&session).await.map_err(explain)?;
    let oids: Vec<u32> = selected.tables.iter().map(|table| table.oid).collect();
    let of_tables = (!wanted.selection.is_whole_database()).then_some(&oids[..]);
    Ok(v1::ExamineReply {
        server_version_num: server.version.number(),
        system_identifier: server.system_identifier,
        database: server.database.clone(),
        encoding: server.encoding.clone(),
        max_slot_wal_keep_bytes: server.max_slot_wal_keep_bytes,
        checks: findings.into_checks(),
        tables: selected.tables.iter().map(source_table).collect(),
        roles: catalog::roles_needed(&session, of_tables).await.map_err(explain)?,
        extensions: catalog::extensions(&session).await.map_err(explain)?,
        pg_dump_major,
        schemas: schemas.into_iter().map(|schema| v1::SourceSchema { oid: schema.oid, name: schema.name }).collect(),
        link: rooms.config.replication.link.as_str().to_owned(),
        members,
        snapshot_minutes: server.snapshot_minutes,
    })
}

/// What the target knows of its own tables that the source selects.
#[derive(Debug, Default)]
pub struct TargetTables {
    /// Tables that are there already.
    pub existing: BTreeMap<TableName, Table>,
    /// Rows in those that hold any.
    pub rows: BTreeMap<TableName, u64>,
}

/// Findings about this node as the target, and about the pair.
pub async fn examine_target(
    rooms: &Rooms,
    source: &str,
    facts: &v1::ExamineReply,
    wanted: &Wanted,
) -> Result<(Vec<v1::Check>, TargetTables), Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let server = catalog::server_facts(&session).await.map_err(explain)?;
    let role = catalog::role_facts(&session).await.map_err(explain)?;
    let mut findings = Findings::about(&rooms.me);
    let peer = source.parse().map_err(|_| rooms.peers.unknown(source))?;
    let theirs = (facts.system_identifier, facts.database.as_str());
    apart::check(rooms, &session, &mut findings, &server, (&peer, theirs)).await?;
    check_server(&mut findings, &server, wanted);
    check_pair(&mut findings, source, &server, facts, wanted);
    let members = u32::try_from(facts.members.len()).unwrap_or(u32::MAX);
    check_subscriber(&mut findings, &server, &role, wanted, members);
    if !wanted.one_way {
        check_publisher(&mut findings, &server, &role, 1 + members);
    }
    mesh::check_target(rooms, &session, &mut findings, source, wanted).await?;
    disk::check_wal_kept(&mut findings, source, facts);
    reach::check(rooms, &session, &mut findings, &peer, &facts.link).await?;
    let name = subscribe::name_for(source);
    let duplicate = subscriptions::find(&session, &name).await.map_err(explain)?.is_some();
    findings.must(!duplicate, Code::IllegalState, "no subscription from the source yet", || {
        format!("a subscription {name} from {source} exists already")
    });
    let names: Vec<TableName> = facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name)).collect();
    let existing = tables::find(&session, &names).await.map_err(explain)?;
    let existing: BTreeMap<_, _> = existing.into_iter().map(|table| (table.name.clone(), table)).collect();
    let pair = Pair { source, one_way: wanted.one_way, target: server.version };
    pair.check(&mut findings, facts, &existing);
    let names = existing.keys().cloned().collect();
    Box::pin(drifted::check(rooms, &peer, &mut findings, names, wanted)).await?;
    // After what a plan may settle: it makes no partitions.
    let partitioned = existing.values().filter(|table| table.kind == TableKind::Partitioned);
    let partitioned =
        Selection { tables: partitioned.map(|table| table.name.clone()).collect(), ..Selection::default() };
    if !partitioned.is_whole_database() {
        let made_of = tables::select(&session, &partitioned).await.map_err(explain)?;
        pair.check_partitions(&mut findings, facts, &existing, &made_of.tables);
    }
    check_triggers(&session, &mut findings, existing.values()).await?;
    let rows = check_empty(&session, &mut findings, &existing, wanted).await?;
    if existing.len() < facts.tables.len() {
        check_can_create(&session, &mut findings, facts).await?;
        super::schema::check_programs(rooms, &session, &mut findings, facts).await;
    }
    disk::check(&session, &mut findings, facts, disk::ONCE).await?;
    Ok((findings.into_checks(), TargetTables { existing, rows }))
}

pub(super) async fn check_state(rooms: &Rooms, findings: &mut Findings) -> Result<(), Failure> {
    let own = crate::store::nodes::own(&rooms.store).await.map_err(|error| error.explain())?;
    findings.must(!own.init_state.is_active(), Code::IllegalState, "the source is at rest", || {
        format!("the source is {} itself", own.init_state)
    });
    Ok(())
}

pub(super) fn check_server(findings: &mut Findings, server: &ServerFacts, wanted: &Wanted) {
    findings.must(server.version.is_supported(), Code::VersionUnsupported, "PostgreSQL version", || {
        format!("PostgreSQL {} is not supported", server.version)
    });
    findings.must(u64::from(server.block_size) == PAGE_BYTES, Code::VersionUnsupported, "page size", || {
        format!("the server was built with pages of {} bytes; {PAGE_BYTES} are supported", server.block_size)
    });
    findings
        .must(!server.is_in_recovery, Code::InRecovery, "the server is a primary", || "the server is a standby".into());
    findings.must(
        wanted.one_way || server.version.has_origin_filter(),
        Code::TwoWayUnsupported,
        "origin filters as far as needed",
        || {
            format!(
                "PostgreSQL {} cannot filter by origin: rows would bounce between the nodes for ever",
                server.version
            )
        },
    );
}

/// What a node needs that `subscribers` more nodes will subscribe to.
pub(super) fn check_publisher(findings: &mut Findings, server: &ServerFacts, role: &RoleFacts, subscribers: u32) {
    findings.must(server.wal_level == "logical", Code::WalLevel, "wal_level is logical", || {
        format!("wal_level is {}, not logical", server.wal_level)
    });
    let (used, all) = (server.used_replication_slots, server.max_replication_slots);
    findings.must(used.saturating_add(subscribers) <= all, Code::NoFreeSlot, "a replication slot is free", || {
        match subscribers {
            1 => format!("all {all} replication slots are in use (max_replication_slots)"),
            _ => format!(
                "{used} of {all} replication slots are in use (max_replication_slots), {subscribers} are needed"
            ),
        }
    });
    let (used, all) = (server.used_wal_senders, server.max_wal_senders);
    findings.must(used.saturating_add(subscribers) <= all, Code::NoFreeWalSender, "a walsender is free", || {
        match subscribers {
            1 => format!("all {all} walsenders are in use (max_wal_senders)"),
            _ => format!("{used} of {all} walsenders are in use (max_wal_senders), {subscribers} are needed"),
        }
    });
    findings.must(
        role.is_superuser || role.may_replicate,
        Code::ReplicationPrivilege,
        "the role may replicate",
        || format!("role {} has no replication privilege", role.name),
    );
    findings.must(
        role.is_superuser || role.may_create_in_database,
        Code::PublishPrivilege,
        "the role may publish",
        || format!("role {} may not create in the database, which a publication needs", role.name),
    );
}

/// What a node needs that subscribes to `subscriptions` more nodes.
pub(super) fn check_workers(findings: &mut Findings, server: &ServerFacts, subscriptions: u32) {
    let workers = server.max_logical_replication_workers.min(server.max_worker_processes);
    let used = server.used_logical_replication_workers;
    let is_enough = used.saturating_add(subscriptions) <= workers;
    findings.must(is_enough, Code::WorkersTooFew, "logical replication workers", || match workers {
        0 => "max_logical_replication_workers or max_worker_processes is 0".into(),
        _ => format!("{used} of {workers} logical replication workers are in use, {subscriptions} more are needed"),
    });
}

pub(super) fn check_may_subscribe(findings: &mut Findings, role: &RoleFacts) {
    // Others may from 16 on, but only with a password in the connection string, which Steep never stores.
    findings.must(role.is_superuser, Code::SubscribePrivilege, "the role may subscribe", || {
        format!("role {} is no superuser, which a subscription without a stored password needs", role.name)
    });
}

/// What a node needs that loads, and subscribes to its source and to `members` more nodes.
pub(super) fn check_subscriber(
    findings: &mut Findings,
    server: &ServerFacts,
    role: &RoleFacts,
    wanted: &Wanted,
    members: u32,
) {
    check_workers(findings, server, members.saturating_add(1));
    // One for each load session, one for each subscription, one for emptying under an origin.
    let needed = wanted.parallel.saturating_add(members).saturating_add(2);
    let free = server.max_origins.saturating_sub(server.used_origins);
    findings.must(free >= needed, Code::OriginsTooFew, "replication origins are free", || {
        format!("{free} replication origins are free, {needed} are needed for {} streams", wanted.parallel)
    });
    check_may_subscribe(findings, role);
    let may_load = role.is_superuser || role.may_set_replication_role && role.may_use_origins;
    findings.must(may_load, Code::LoadPrivilege, "the role may load without triggers", || {
        format!("role {} may not set session_replication_role or use replication origins", role.name)
    });
}

pub(super) fn check_pair(
    findings: &mut Findings,
    source: &str,
    server: &ServerFacts,
    facts: &v1::ExamineReply,
    wanted: &Wanted,
) {
    findings.must(server.encoding == facts.encoding, Code::EncodingDiffers, "encodings are the same", || {
        format!("this database is {}, that of {source} is {}", server.encoding, facts.encoding)
    });
    let source_major = facts.server_version_num / 10_000;
    if !wanted.one_way && source_major < 16 {
        let text = format!("{source} runs PostgreSQL {source_major}, which cannot filter by origin");
        findings.error(Code::TwoWayUnsupported, text, Code::TwoWayUnsupported.hint());
    }
    if !wanted.one_way && server.wal_level != "logical" {
        // Told by check_publisher as well; here it says why a target needs it.
        findings.warn(
            Code::WalLevel,
            "both ways need wal_level = logical on the target too",
            "or start it with --one-way",
        );
    }
}

pub(super) fn check_selection(findings: &mut Findings, selection: &Selection, selected: &Selected<Table>) {
    for table in &selected.unknown {
        findings.error(Code::TableUnknown, format!("there is no table {table}"), Code::TableUnknown.hint());
    }
    for schema in &selected.unknown_schemas {
        findings.error(Code::TableUnknown, format!("there is no schema {schema:?}"), Code::TableUnknown.hint());
    }
    for cut in &selected.torn {
        let (partition, root) = (&cut.partition, &cut.root);
        let text = match cut.is_selected {
            true => format!("partition {partition} is selected without {root}"),
            false => format!("partition {partition} is left out of {root}"),
        };
        findings.error(
            Code::UnsupportedObject,
            text,
            format!("select {} instead: partitions go with their table", cut.root),
        );
    }
    for table in &selected.extension_tables {
        let text = format!("{table} belongs to an extension; its rows are not copied");
        findings.warn(Code::UnsupportedObject, text, "fill it on the target as the extension's documentation says");
    }
    let any = !selected.tables.is_empty();
    findings.must(any || !selected.unknown.is_empty(), Code::NothingSelected, "tables are selected", || {
        let whole = selection.is_whole_database();
        if whole { "the database holds no table".into() } else { "the selection matches no table".into() }
    });
}

pub(super) fn check_tables(findings: &mut Findings, tables: &[Table], role: &RoleFacts, version: Version) {
    let mut told = Vec::new();
    for table in tables {
        let name = &table.name;
        match (table.kind, table.is_unlogged) {
            (TableKind::Foreign, _) => {
                let hint = format!("leave it out: --exclude {}", shell_word(name));
                told.push((Code::UnsupportedObject, format!("{name} is a foreign table"), hint));
                continue;
            }
            (_, true) => {
                let hint = format!("alter table {} set logged; or leave it out: --exclude {}", name, shell_word(name));
                told.push((
                    Code::UnsupportedObject,
                    format!("{name} is unlogged: its changes are never replicated"),
                    hint,
                ));
                continue;
            }
            (TableKind::Plain | TableKind::Partitioned, false) => {}
        }
        if !table.may_select {
            let hint = format!("grant select on {name} to {}; and usage on its schema", role.name);
            told.push((Code::SelectPrivilege, format!("role {} may not read {name}", role.name), hint));
        }
        if table.row_security_hides {
            let hint = format!("alter role {} bypassrls; or leave it out: --exclude {}", role.name, shell_word(name));
            told.push((Code::RowSecurity, format!("row security hides rows of {name} from role {}", role.name), hint));
        }
        if !table.may_publish {
            let hint = format!("grant {} to {}; or use a superuser", table.owner, role.name);
            told.push((Code::PublishPrivilege, format!("role {} does not own {name}", role.name), hint));
        }
        if table.kind == TableKind::Plain
            && let Some((text, hint)) = shapes::unnamed(name, table.replica_identity, version)
        {
            told.push((Code::NoReplicaIdentity, text, hint));
        }
    }
    let more = told.len().saturating_sub(TOLD_APART);
    for (code, text, hint) in told.into_iter().take(TOLD_APART) {
        findings.error(code, text, hint);
    }
    if more > 0 {
        findings.warn(
            Code::UnsupportedObject,
            format!("{more} more tables have findings like these"),
            "mend these first",
        );
    }
}

/// Triggers that are told apart from what fires for applications only.
pub(super) async fn check_triggers(
    session: &Session,
    findings: &mut Findings,
    tables: impl IntoIterator<Item = &Table>,
) -> Result<(), Failure> {
    let oids: Vec<u32> = tables.into_iter().map(|table| table.oid).collect();
    for trigger in catalog::always_triggers(session, &oids).await.map_err(explain)? {
        let (name, table) = (readable_identifier(&trigger.name), &trigger.table);
        let text = format!("trigger {name} on {table} also fires for rows that are copied or replicated");
        findings.warn(
            Code::TriggerAlways,
            text,
            format!("alter table {table} enable trigger {name}; unless that is meant"),
        );
    }
    Ok(())
}

async fn check_references(
    session: &Session,
    findings: &mut Findings,
    selected: &Selected<Table>,
) -> Result<(), Failure> {
    let oids: Vec<u32> = selected.tables.iter().map(|table| table.oid).collect();
    for key in catalog::foreign_keys(session, &oids).await.map_err(explain)? {
        if !oids.contains(&key.references_oid) {
            let text = format!("{} refers to {}, which is not selected", key.table, key.references);
            let hint = format!("select {} too, or leave {} out", key.references, key.table);
            findings.error(Code::ReferencedTableLeftOut, text, hint);
        }
    }
    Ok(())
}

pub(super) async fn check_blockers(session: &Session, findings: &mut Findings) -> Result<(), Failure> {
    let prepared = activity::prepared_transactions(session).await.map_err(explain)?;
    findings.must(prepared.is_empty(), Code::PreparedTransaction, "no prepared transactions", || {
        let names: Vec<_> = prepared.iter().map(ToString::to_string).collect();
        format!("prepared transactions keep the slot from being made: {}", names.join(", "))
    });
    for writer in activity::writers(session, LONG_TRANSACTION).await.map_err(explain)? {
        let text = format!("the slot will wait for a transaction: {writer}");
        findings.warn(Code::LongTransaction, text, Code::LongTransaction.hint());
    }
    Ok(())
}

async fn check_empty(
    session: &Session,
    findings: &mut Findings,
    existing: &BTreeMap<TableName, Table>,
    wanted: &Wanted,
) -> Result<BTreeMap<TableName, u64>, Failure> {
    let plain: Vec<_> =
        existing.values().filter(|table| table.kind == TableKind::Plain).map(|table| table.name.clone()).collect();
    let holding = rows::which_hold_any(session, &plain).await.map_err(explain)?;
    let counts = rows::count(session, &holding).await.map_err(explain)?;
    let counted: BTreeMap<_, _> = holding.into_iter().zip(counts).collect();
    let all: u64 = counted.values().sum();
    let told: Vec<_> = counted.iter().take(TOLD_APART).map(|(table, rows)| format!("{table}: {rows}")).collect();
    let text = format!("{} tables hold {all} rows ({})", counted.len(), told.join(", "));
    match (counted.is_empty(), wanted.force) {
        (true, _) => findings.must(true, Code::TargetNotEmpty, "the target is empty", String::new),
        (false, true) => {
            findings.warn(Code::TargetNotEmpty, format!("{text}; they will be deleted"), "--force was given")
        }
        (false, false) => findings.error(Code::TargetNotEmpty, text, Code::TargetNotEmpty.hint()),
    }
    Ok(counted)
}

async fn check_can_create(session: &Session, findings: &mut Findings, facts: &v1::ExamineReply) -> Result<(), Failure> {
    let roles = catalog::roles(session).await.map_err(explain)?;
    let missing: Vec<_> = facts.roles.iter().filter(|role| !roles.contains(role)).cloned().collect();
    findings.must(missing.is_empty(), Code::RoleMissing, "all roles exist", || {
        format!("roles are missing: {}", missing.join(", "))
    });
    let available = catalog::available_extensions(session).await.map_err(explain)?;
    let missing: Vec<_> = facts.extensions.iter().filter(|name| !available.contains(name)).cloned().collect();
    findings.must(missing.is_empty(), Code::ExtensionMissing, "all extensions are available", || {
        format!("extensions are not installed beside this server: {}", missing.join(", "))
    });
    Ok(())
}

/// A table as an argument in a shell.
fn shell_word(table: &TableName) -> String {
    format!("'{table}'")
}
