//! The steps of an initialization from a snapshot, where they differ from those of the direct recipe.

use std::sync::Arc;

use steep_protocol::{
    failure::{Code, Failure},
    intent::PEER_INPUT,
    names::TableName,
    v1,
};
use tokio::sync::watch;

use super::{apply, generate::SequenceEntry};
use crate::{
    breakpoint::crash_point,
    cleanup::Effect,
    initialize::{direct::Direct, findings::verdict, messages::table_name, steps::table_jobs},
    operations::Context,
    parts::{PAGE_BYTES, TablePlan},
    snapshot::{
        files::{
            read::{Depth, Opened},
            verify,
        },
        receive::{Rows, TableJob},
    },
    storage::{SCHEMA, SEQUENCES},
};

impl Direct {
    /// Opens the snapshot again, where it is to come from one.
    pub(in crate::initialize) async fn open_files(&mut self) -> Result<(), Failure> {
        if let (Some(from), None) = (&self.plan.from, &self.files) {
            // There is nobody whose lease could end: it can be gone on with for as long as it would be with one.
            if !from.subscribes {
                self.lease = Some(self.rooms.config.copy.session_lease);
            }
            let patience = self.rooms.config.copy.session_lease;
            self.files = Some(apply::open_for(&self.rooms, &from.input, &self.source, patience).await?);
        }
        Ok(())
    }

    /// The snapshot lies with its node's agent.
    pub(in crate::initialize) fn has_lent_files(&self) -> bool {
        self.plan.from.as_ref().is_some_and(|from| from.input.starts_with(PEER_INPUT))
    }

    fn opened(&self) -> Arc<Opened> {
        Arc::clone(self.files.as_ref().expect("the snapshot was opened by an earlier step"))
    }

    /// Reads all of it, before anything is changed anywhere.
    pub(in crate::initialize) async fn verify_files(&mut self, context: &Context) -> Result<(), Failure> {
        if self.has_lent_files() {
            // They were lent before the operation began; undone, it gives them back.
            let effect = Effect::PeerSession { node: self.plan.source.clone() };
            self.rooms.cleanup.make(context.op, "verify snapshot", &effect, async { Ok(()) }).await?;
        }
        self.open_files().await?;
        verify::verify(&self.opened(), Depth::Hash, self.plan.wanted.parallel as usize, |_| {}).await.map(drop)
    }

    /// Looks again, now that the operation is the only one.
    pub(in crate::initialize) async fn check_target(&mut self, context: &Context) -> Result<(), Failure> {
        self.open_files().await?;
        let opened = self.opened();
        self.facts = apply::facts_of(&opened).await?;
        let (checks, here) = apply::examine(&self.rooms, &self.plan, &self.facts).await?;
        self.here = here;
        verdict(&format!("cannot start {} from {}", self.rooms.me, opened.manifest.snapshot_id), &checks)?;
        self.note_facts(context).await
    }

    /// Has the source make a slot that begins where the snapshot ends.
    pub(in crate::initialize) async fn borrow_slot(&mut self, context: &Context) -> Result<(), Failure> {
        if self.session.is_some() {
            return Ok(());
        }
        let request = v1::OpenSnapshotRequest {
            op_id: context.op.to_string(),
            snapshot_op_id: self.opened().manifest.op_id.clone(),
            tables: self.facts.tables.clone(),
            one_way: self.plan.wanted.one_way,
        };
        let effect = Effect::PeerSession { node: self.plan.source.clone() };
        let opened = self.source.open_snapshot(&self.plan.signed, request);
        self.is_opening = true;
        let reply = self.rooms.cleanup.make(context.op, "open session", &effect, opened).await?;
        let id = reply.session_id.parse().map_err(|error| Failure::new(Code::BadRequest, format!("{error}")))?;
        crash_point!("session opened");
        self.note_session(context, &reply).await?;
        self.hold_session(context, id, reply);
        Ok(())
    }

    /// Tells when the source gives the session up; without one it never does.
    pub(in crate::initialize) fn lost(&self) -> watch::Receiver<Option<Failure>> {
        self.session.as_ref().map_or_else(|| self.lost.subscribe(), |session| session.lost.clone())
    }

    /// Where rows come from, and which tables; largest first.
    pub(in crate::initialize) fn rows_to_copy(&self) -> Result<(Rows, Vec<TableJob>), Failure> {
        let Some(opened) = &self.files else {
            let session = self.session();
            let jobs = table_jobs(&self.facts.tables, &session.reply.tables)?;
            let (source, compress) = (Box::new(self.source.clone()), self.plan.compress.clone());
            return Ok((Rows::Peer { source, session: session.id, compress }, jobs));
        };
        Ok((Rows::Files(Arc::clone(opened)), jobs_of(opened, &self.facts.tables)))
    }

    /// Rows of each table at the snapshot, counted where they come from.
    pub(in crate::initialize) async fn count_at_snapshot(&self) -> Result<Vec<v1::TableRows>, Failure> {
        match &self.files {
            None => self.source.count_rows(self.session().id).await,
            Some(opened) => {
                let tables = opened.manifest.tables.iter();
                Ok(tables.map(|table| v1::TableRows { oid: table.oid, rows: table.rows }).collect())
            }
        }
    }

    /// The locks go as soon as the last row is read and counted.
    pub(in crate::initialize) async fn let_rows_go(&self) -> Result<(), Failure> {
        match &self.files {
            None => self.source.release_snapshot(self.session().id).await,
            Some(_) => Ok(()),
        }
    }

    /// Where the source's sequences stand; without a session, where they stood.
    pub(in crate::initialize) async fn sequences_of_source(&self) -> Result<Vec<v1::SequencePosition>, Failure> {
        if let Some(session) = &self.session {
            return self.source.read_sequences(session.id).await;
        }
        let text = self.opened().file(SEQUENCES).await?;
        let entries: Vec<SequenceEntry> = serde_json::from_slice(&text).map_err(|error| {
            Failure::new(Code::ManifestRefused, format!("{SEQUENCES} cannot be read")).caused_by(&error)
        })?;
        Ok(entries.into_iter().map(Into::into).collect())
    }

    /// The schema's archive, where it comes from a snapshot.
    pub(in crate::initialize) async fn archive_in_files(&self) -> Result<Option<Vec<u8>>, Failure> {
        match &self.files {
            Some(opened) => opened.file(SCHEMA).await.map(Some),
            None => Ok(None),
        }
    }

    /// Of rows alone there is nothing to compare with but the manifest.
    pub(in crate::initialize) async fn verify_rows(&mut self, context: &Context) -> Result<(), Failure> {
        self.check_counts(context).await?;
        crash_point!("verified");
        self.rooms.cleanup.drop_origins(context.op).await
    }
}

fn jobs_of(opened: &Opened, facts: &[v1::SourceTable]) -> Vec<TableJob> {
    let job = |table: &crate::snapshot::files::manifest::TableEntry| {
        let facts = facts.iter().find(|facts| facts.oid == table.oid);
        let name = facts.and_then(|facts| facts.table.as_ref().map(table_name));
        let name = name.unwrap_or_else(|| TableName::new(&table.schema, &table.name));
        let bytes = facts.map_or(table.bytes, |facts| facts.bytes);
        TableJob {
            oid: table.oid,
            into: name.clone(),
            name,
            columns: table.columns.iter().map(|column| column.name.clone()).collect(),
            binary: false,
            plan: TablePlan {
                starts: table.parts.iter().map(|part| part.first_page).collect(),
                pages: u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX),
            },
            rows_estimate: table.rows,
        }
    };
    opened.manifest.tables.iter().map(job).collect()
}
