//! The manual recipe: a node that was restored from a backup made by hand begins to replicate where that backup ends.
//!
//! Nothing is copied here, and nothing of what was restored is ever undone. What is looked at is whether it is the backup
//! that was prepared for: the mark in it says whose it is and of which moment, the schema is compared, and the rows are counted
//! against the snapshot for as long as that is held.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    lsn::Lsn,
    names::TableName,
    operation::{Phase, SchemaSync},
    v1,
};
use tracing::info;

use super::{
    apart,
    direct::{Direct, DirectPlan},
    drifted,
    findings::{Findings, verdict},
    mesh,
    messages::table_name,
    preflight::{self, TargetTables, Wanted},
    reach,
    shapes::Pair,
    subscribe,
};
use crate::{
    breakpoint::crash_point,
    cleanup::Effect,
    operations::{Context, Recipe},
    postgres::{
        self, Purpose, catalog, copies,
        marks::{self, Adopted},
        rows, subscriptions, tables,
    },
    rooms::Rooms,
};

/// The preparation a node is completed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Its short id.
    pub id: String,
    /// Where the operator believes the backup to end; none: they trust us.
    pub source_lsn: Option<Lsn>,
}

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// The manual recipe, read top to bottom. Undo runs bottom to top, and leaves the tables as they are.
pub(super) fn recipe(plan: &DirectPlan) -> Recipe<Direct> {
    let both_ways = !plan.wanted.one_way;
    let mut recipe = Recipe::<Direct>::new()
        .step("check both nodes", Phase::Preflight, |direct, context| direct.check_restored(context).boxed())
        // Undo: the source drops its subscription; the slot stays for another try, while it has not been read from.
        .step("take slot", Phase::Snapshot, |direct, context| direct.take_prepared(context).boxed())
        .step("check backup", Phase::Verify, |direct, context| direct.check_backup(context).boxed());
    if both_ways {
        // Undo: our slot and publication are dropped.
        recipe = recipe.step("publish on target", Phase::Schema, |direct, context| direct.publish(context).boxed());
    }
    recipe = recipe
        .step("move sequences", Phase::Sequences, |direct, context| direct.move_sequences(context).boxed())
        // Undo: our subscription is dropped.
        .step("subscribe", Phase::CatchingUp, |direct, context| direct.subscribe(context).boxed())
        .step("catch up", Phase::CatchingUp, |direct, context| direct.catch_up(context).boxed());
    if both_ways {
        // Undo: the source drops its subscription.
        recipe =
            recipe.step("replicate back", Phase::CatchingUp, |direct, context| direct.replicate_back(context).boxed());
    }
    recipe.step("verify", Phase::Verify, |direct, context| direct.verify_restored(context).boxed())
}

/// Findings about this node, which was restored from a backup of `source`, and about the pair.
pub(super) async fn examine(
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
    preflight::check_server(&mut findings, &server, wanted);
    preflight::check_pair(&mut findings, source, &server, facts, wanted);
    preflight::check_subscriber(&mut findings, &server, &role, wanted, 0);
    if !wanted.one_way {
        preflight::check_publisher(&mut findings, &server, &role, 1);
    }
    let others: Vec<_> = facts.members.iter().map(|member| member.node.as_str()).collect();
    findings.must(others.is_empty(), Code::MethodInMesh, "no third node replicates both ways", || {
        let text = "a backup does not say how far into their changes it goes";
        format!("{source} replicates both ways with {}: {text}", others.join(", "))
    });
    mesh::check_target(rooms, &session, &mut findings, source, wanted).await?;
    reach::check(rooms, &session, &mut findings, &peer, &facts.link).await?;
    let name = subscribe::name_for(source);
    let duplicate = subscriptions::find(&session, &name).await.map_err(explain)?.is_some();
    findings.must(!duplicate, Code::IllegalState, "no subscription from the source yet", || {
        format!("a subscription {name} from {source} exists already")
    });
    let names: Vec<TableName> = facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name)).collect();
    let existing = tables::find(&session, &names).await.map_err(explain)?;
    let existing: BTreeMap<_, _> = existing.into_iter().map(|table| (table.name.clone(), table)).collect();
    let missing: Vec<_> = names.iter().filter(|name| !existing.contains_key(name)).map(ToString::to_string).collect();
    findings.must(missing.is_empty(), Code::TableMissing, "all tables are restored", || {
        format!("{} tables were not restored: {}", missing.len(), missing[..missing.len().min(10)].join(", "))
    });
    let pair = Pair { source, one_way: wanted.one_way, target: server.version };
    pair.check(&mut findings, facts, &existing);
    let names = existing.keys().cloned().collect();
    Box::pin(drifted::check(rooms, &peer, &mut findings, names, wanted)).await?;
    preflight::check_triggers(&session, &mut findings, existing.values()).await?;
    Ok((findings.into_checks(), TargetTables { existing, ..TargetTables::default() }))
}

/// The failure for a database of `me` without the mark of preparation `id`.
pub(super) async fn wrong_backup(look: &postgres::Session, me: &NodeId, id: &str) -> Result<Failure, Failure> {
    let text = match marks::all(look).await.map_err(explain)?.as_str() {
        "" => format!(
            "the database of {me} does not hold the mark of preparation {id}: it was restored from another database, or from \
             a backup that is older than the slot"
        ),
        others => format!(
            "the database of {me} does not hold the mark of preparation {id}, but of {others}: it was restored from another \
             backup"
        ),
    };
    Ok(Failure::new(Code::BackupWrong, text))
}

/// What a completion wants of the preflight.
pub(super) fn wanted(selection: &v1::Selection, one_way: bool) -> Wanted {
    Wanted {
        selection: super::start::selection_of(selection),
        one_way,
        parallel: 1,
        force: false,
        schema_sync: SchemaSync::Strict,
        again: false,
    }
}

impl Direct {
    fn prepared(&self) -> &Prepared {
        self.plan.prepared.as_ref().expect("a completion names its preparation")
    }

    async fn check_restored(&mut self, context: &Context) -> Result<(), Failure> {
        let wanted = &self.plan.wanted;
        let link = self.rooms.config.replication.link.as_str();
        let selection = self.plan.selection.clone();
        let examined = self.source.examine(&self.plan.signed, selection, wanted.one_way, wanted.parallel, link);
        self.facts = examined.await?;
        let source = self.plan.source.as_str();
        let (mut checks, here) = examine(&self.rooms, source, &self.facts, wanted).await?;
        self.here = here;
        checks.extend(self.facts.checks.iter().cloned());
        verdict(&format!("cannot complete {} from {source}", self.rooms.me), &checks)?;
        self.note_facts(context).await
    }

    /// What this node was taken over from, if it was restored as a physical copy.
    pub(super) async fn adopted(&self) -> Result<Option<Adopted>, Failure> {
        let Some(prepared) = &self.plan.prepared else { return Ok(None) };
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        marks::adopted(&look, &prepared.id).await.map_err(explain)
    }

    async fn take_prepared(&mut self, context: &Context) -> Result<(), Failure> {
        if self.session.is_some() {
            return Ok(());
        }
        let branch = self.adopted().await?.map(|adopted| v1::Branch {
            timeline: adopted.branch.timeline,
            lsn: adopted.branch.lsn.to_string(),
            wal_sha256: adopted.wal_sha256,
        });
        let request = v1::TakePreparedRequest {
            op_id: context.op.to_string(),
            prepare_id: self.prepared().id.clone(),
            tables: self.facts.tables.clone(),
            one_way: self.plan.wanted.one_way,
            branch,
        };
        let effect = Effect::PeerSession { node: self.plan.source.clone() };
        self.is_opening = true;
        let taken = self.source.take_prepared(&self.plan.signed, request);
        let reply = self.rooms.cleanup.make(context.op, "take slot", &effect, taken).await;
        if reply.as_ref().is_err_and(|failure| failure.code == Code::CopyNotAdopted) {
            // What was restored instead says more.
            let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
            self.check_mark(&look).await?;
        }
        let reply = reply?;
        let id = reply.session_id.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))?;
        self.note_session(context, &reply).await?;
        self.hold_session(context, id, reply);
        Ok(())
    }

    /// Whether what was restored is the backup that was prepared for.
    async fn check_backup(&mut self, context: &Context) -> Result<(), Failure> {
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        self.check_mark(&look).await?;
        let (id, slot_begins) = (&self.prepared().id, &self.session().reply.lsn);
        let adopted = self.adopted().await?;
        let ends = adopted.as_ref().map_or_else(|| slot_begins.clone(), |adopted| adopted.branch.lsn.to_string());
        if let Some(said) = self.prepared().source_lsn.filter(|said| said.to_string() != ends) {
            let text = format!("the backup for preparation {id} ends at {ends}, and --source-lsn says {said}");
            let hint = "a dump of the prepared snapshot ends where its slot begins, and a physical copy where it was promoted: \
                        leave --source-lsn out, or name the preparation it was made for with --prepare-id";
            return Err(Failure::new(Code::BackupElsewhere, text).hint(hint));
        }
        if adopted.is_some() {
            self.check_untouched(&look).await?;
        }
        crash_point!("backup checked");
        if self.session().reply.snapshot.is_empty() {
            return Ok(());
        }
        // Nothing has been applied yet: both are at the slot's own point.
        let mut counts = self.counts.clone();
        if counts.is_empty() {
            counts = match self.source.count_rows(self.session().id).await {
                Err(failure) if failure.code == Code::SnapshotLost => {
                    info!(op_id = %context.op, reason = %failure, "rows are not compared: the prepared snapshot is gone");
                    return Ok(());
                }
                counted => counted?,
            };
            self.note_counts(context, &counts).await?;
        }
        self.source.release_snapshot(self.session().id).await?;
        self.compare_counts(&look, &counts).await?;
        self.restored_rows = counts.iter().map(|counted| counted.rows).sum();
        Ok(())
    }

    /// A physical copy must not have been written to since it was promoted: replication does not know what would.
    async fn check_untouched(&self, look: &postgres::Session) -> Result<(), Failure> {
        // A physical copy has the oids of its source.
        let oids: Vec<_> = self.facts.tables.iter().map(|table| table.oid).collect();
        let written = copies::written(look, &oids).await.map_err(explain)?;
        if written.is_empty() {
            return Ok(());
        }
        let (me, shown) = (&self.rooms.me, &written[..written.len().min(10)]);
        let text = format!("{me} was written to since it was promoted: {}", shown.join(", "));
        Err(Failure::new(Code::CopyWasActive, text))
    }

    async fn check_mark(&self, look: &postgres::Session) -> Result<(), Failure> {
        let (me, source, id) = (&self.rooms.me, &self.plan.source, &self.prepared().id);
        let hint = format!("restore {me} from the backup that steepctl node prepare {source} --list belongs to");
        let Some(mark) = marks::find(look, id).await.map_err(explain)? else {
            return Err(wrong_backup(look, me, id).await?.hint(hint));
        };
        let server = self.facts.system_identifier.cast_signed().to_string();
        if mark.node != source.as_str() || mark.system_identifier != server {
            let text = format!(
                "the backup that {me} was restored from is of {} (server {}), not of {source} (server {server})",
                mark.node, mark.system_identifier
            );
            return Err(Failure::new(Code::BackupWrong, text).hint(hint));
        }
        if mark.is_sealed {
            let text = format!(
                "the dump that {me} was restored from was made without the snapshot of preparation {id}: it holds changes \
                 that its slot would send once more"
            );
            let hint =
                format!("steepctl node prepare {source} --list shows the snapshot: pg_dump --snapshot=… reads it");
            return Err(Failure::new(Code::BackupElsewhere, text).hint(hint));
        }
        Ok(())
    }

    async fn compare_counts(&self, look: &postgres::Session, counts: &[v1::TableRows]) -> Result<(), Failure> {
        let plain: Vec<_> = self.facts.tables.iter().filter(|table| table.kind != "p").collect();
        let names: Vec<_> = plain.iter().filter_map(|table| table.table.as_ref().map(table_name)).collect();
        let here = rows::count(look, &names).await.map_err(explain)?;
        for ((table, name), here) in plain.iter().zip(&names).zip(here) {
            let there = counts.iter().find(|counted| counted.oid == table.oid).map(|counted| counted.rows);
            if let Some(there) = there.filter(|there| *there != here) {
                let (me, source) = (&self.rooms.me, &self.plan.source);
                let text =
                    format!("{name} held {there} rows on {source} in the prepared snapshot, and {me} holds {here}");
                let hint = format!("look into what pg_restore said; nobody may write on {me} before it is completed");
                return Err(Failure::new(Code::CountsDiffer, text).hint(hint));
            }
        }
        Ok(())
    }

    async fn verify_restored(&mut self, context: &Context) -> Result<(), Failure> {
        self.check_unchanged().await?;
        // They were compared at the one moment when that could be done.
        self.counts.clear();
        self.verify(context).await?;
        let session = self.rooms.database.session(Purpose::Ddl(context.op)).await.map_err(explain)?;
        marks::remove(&session, &self.prepared().id).await.map_err(explain)
    }
}
