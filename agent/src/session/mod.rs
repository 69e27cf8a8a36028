//! What this node holds open for a peer that is initialized from it: locks, slot, snapshot; and until when.
//!
//! Order matters (locks before the slot): `ACCESS SHARE` on every table, then the slot with its snapshot, then
//! the lock holder imports that snapshot and exports it again, so that it outlives the replication connection.
//! A table rewritten between snapshot and copy would otherwise read as empty without any error.
//!
//! Where others replicate both ways with this node, [`pause`] holds their changes still while the slot is made; their
//! own sessions for the same target ([`join`]) hold a slot alone, as does one on a snapshot that lies in files ([`adopt`]).
//!
//! Locks and snapshot are held by a process of its own ([`crate::keeper`]), and all that a session is stands in an intent
//! row ([`record`]): the agent's next run takes it up again ([`resume`]).
//!
//! A session ends when its target closes it, when nobody renews it for the lease, or when it can no longer keep
//! its promise; what it has made is cleaned up by whichever agent finds it without a session.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId, SessionId},
    names::TableName,
};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::info;

use crate::{
    breakpoint::{Breakpoints, crash_point},
    cleanup::{Cleanup, Effect, Member},
    config::{self, OnBlockedDdl},
    keeper::{Keeper, Keepers},
    parts,
    postgres::{
        self, Database, Purpose, Reader, ddl,
        replication::{self, ExportedSlot},
        tables::{self, Table},
    },
};

/// The publication of all tables.
const WHOLE_DATABASE: &str = "steep";

mod adopt;
mod held;
mod join;
mod pause;
mod prepared;
mod publish;
mod record;
mod reopen;
mod resume;
mod watch;

pub use adopt::{AdoptRequest, FileNames};
use held::NewHeld;
pub use held::{DumpChoice, Held, Moment, Role, Scope};
pub use join::JoinRequest;
pub use pause::Neighbour;
pub use prepared::{Snapshots, TakeRequest};
pub use publish::publish;
use publish::tables_as_agreed;
pub use reopen::OldSlot;

/// What a target asks for.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// The operation it is for.
    pub op: OperationId,
    /// The tables the preflight agreed on, as (oid, name).
    pub tables: Vec<(u32, TableName)>,
    /// Heap bytes a part aims at; 0: this agent's own setting.
    pub part_bytes: u64,
    /// Every table of the database: the shared publication serves.
    pub whole_database: bool,
    /// What an operator has signed for it.
    pub scope: Scope,
    /// As many streams will read at once; 0: one.
    pub parallel: u32,
    /// Nothing is sent back.
    pub one_way: bool,
    /// Both ways: all nodes this one replicates with both ways already.
    pub neighbours: Vec<Neighbour>,
    /// Tables that were copied in a snapshot that is lost stay: the slot made with it, which begins here, is kept.
    pub kept_slot: Option<Moment>,
    /// For a snapshot in files, whose slot and publication are for whoever applies it: their names.
    pub for_files: Option<FileNames>,
}

#[derive(Debug)]
struct Open {
    held: Arc<Held>,
    _watch: AbortOnDropHandle<()>,
}

/// The sessions of this node. Clones share them.
#[derive(Debug, Clone)]
pub struct Sessions {
    database: Database,
    cleanup: Cleanup,
    keepers: Keepers,
    prepared: Snapshots,
    settings: Arc<config::Copy>,
    open: Arc<DashMap<SessionId, Open>>,
    /// Operations whose session opens, is open, or ends: the janitor leaves them alone.
    served: Arc<DashMap<OperationId, Stage>>,
    opening: Arc<AsyncMutex<()>>,
    pausing: Arc<AsyncMutex<()>>,
    /// Of each operation that pauses what is applied: how to cut it short, and a lock that is held until all runs again.
    pauses: Arc<DashMap<OperationId, PauseEnd>>,
    breakpoints: Breakpoints,
}

type PauseEnd = (CancellationToken, Arc<AsyncMutex<()>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Ended,
}

impl Sessions {
    /// None are open yet.
    pub fn new(
        database: Database,
        cleanup: Cleanup,
        prepared: &Snapshots,
        settings: &config::Copy,
        breakpoints: Breakpoints,
    ) -> Self {
        Self {
            database,
            cleanup,
            keepers: prepared.keepers(),
            prepared: prepared.clone(),
            settings: Arc::new(settings.clone()),
            open: Arc::default(),
            served: Arc::default(),
            opening: Arc::default(),
            pausing: Arc::default(),
            pauses: Arc::default(),
            breakpoints,
        }
    }

    /// How long a session lives without being renewed.
    pub fn lease(&self) -> Duration {
        self.settings.session_lease
    }

    /// Operations with an open session.
    pub fn operations(&self) -> Vec<OperationId> {
        self.open.iter().map(|open| open.held.op).collect()
    }

    /// Every open session.
    pub fn list(&self) -> Vec<Arc<Held>> {
        self.open.iter().map(|open| Arc::clone(&open.held)).collect()
    }

    /// Operations of `target` with an open session.
    pub fn for_target(&self, target: &NodeId) -> Vec<OperationId> {
        self.open.iter().filter(|open| open.held.target == *target).map(|open| open.held.op).collect()
    }

    /// Whether a session for `op` opens or is open.
    pub fn serves(&self, op: OperationId) -> bool {
        self.served.get(&op).is_some_and(|stage| *stage == Stage::Serving)
    }

    /// Opens a session for `target`. One operation has at most one; asked for again, by a target that has not heard the
    /// answer, it is the same.
    ///
    /// What an error leaves behind is written down; the target closes the operation, or the janitor cleans up.
    pub async fn open(&self, target: &NodeId, request: OpenRequest) -> Result<Arc<Held>, Failure> {
        // One at a time: two targets may need the same publication.
        let _turn = self.opening.lock().await;
        if let Some(held) = self.opened_before(target, request.op) {
            return Ok(held);
        }
        let opening = self.serve(request.op)?;
        self.open_in_turn(target, request, opening).await
    }

    /// Opens a session that is not open, in the turn of the caller's.
    async fn open_in_turn(
        &self,
        target: &NodeId,
        request: OpenRequest,
        opening: Opening,
    ) -> Result<Arc<Held>, Failure> {
        let op = request.op;
        let explain = |error: postgres::Error| error.explain();
        let look = self.database.session(Purpose::Watch).await.map_err(explain)?;
        if !request.one_way {
            self.refuse_second_newcomer(op)?;
            join::same_mesh(&look, &request.neighbours).await?;
        }
        let agreed = tables_as_agreed(&look, &request.tables).await?;
        let members: Vec<Member> = tables::published(&agreed).into_iter().map(Into::into).collect();
        let FileNames { slot, publication } = adopt::names_for(&request, target);
        publish(&self.cleanup, &look, op, &publication, &members).await?;

        let keeper = self.lock_tables(op, target, &slot, &agreed).await?;
        // Under the locks nothing can change any more; now look again.
        let found = tables_as_agreed(&look, &request.tables).await?;
        if let Some((then, _)) = agreed.iter().zip(&found).find(|(then, now)| then.columns != now.columns) {
            return Err(Failure::new(
                Code::SchemaChanged,
                format!("table {} changed while the session opened", then.name),
            ));
        }
        let (exported, Moment { lsn, positions }, gate) = self.export(target, &slot, &request).await?;
        crash_point!("slot made");
        let snapshot = keeper.hold(&exported.snapshot, &slot).await?;
        exported.release();
        let idle = match self.settings.on_blocked_ddl {
            OnBlockedDdl::Fail => Vec::new(),
            OnBlockedDdl::Wait => self.readers_with_locks(op, request.parallel, &snapshot, &found).await?,
        };

        let part_bytes = if request.part_bytes == 0 { self.settings.part_size } else { request.part_bytes };
        let tables = found.into_iter().map(|table| {
            let parts = parts::cut(table.heap_pages, part_bytes);
            (table, parts)
        });
        let held = Arc::new(Held::new(NewHeld {
            id: SessionId::generate(),
            opened_at: Timestamp::now(),
            op,
            target: target.clone(),
            slot: slot.clone(),
            lsn,
            publication,
            scope: request.scope,
            snapshot,
            tables: tables.collect(),
            role: Role::Source { positions },
            one_way: request.one_way,
            parallel: request.parallel,
            gate,
            lacks_readers: false,
            database: self.database.clone(),
            keeper: Some(keeper),
            idle,
        }));
        // The target may have given up while the slot was made; then nobody would ever close this session.
        if !self.serves(op) {
            held.release().await;
            return Err(already_ended(op));
        }
        self.note(&held, false).await?;
        crash_point!("session noted");
        info!(event = "slot.created", op_id = %op, slot, lsn = %lsn, peer = %target, session = %held.id, "session opened");
        self.look_after_from_now_on(&held, opening);
        Ok(held)
    }

    /// The session of `op` that is open for `target` and still good; renews it.
    fn opened_before(&self, target: &NodeId, op: OperationId) -> Option<Arc<Held>> {
        let open = self.open.iter().find(|open| open.held.op == op && open.held.target == *target)?;
        open.held.failure().is_none().then(|| {
            open.held.renew();
            Arc::clone(&open.held)
        })
    }

    fn look_after_from_now_on(&self, held: &Arc<Held>, mut opening: Opening) {
        opening.op = None;
        let watch = AbortOnDropHandle::new(tokio::spawn(Box::pin(self.clone().watch(Arc::clone(held)))));
        self.open.insert(held.id, Open { held: Arc::clone(held), _watch: watch });
    }

    /// From now on the janitor leaves `op` alone, until [`Sessions::end`], or until the guard is dropped before the
    /// session is open.
    fn serve(&self, op: OperationId) -> Result<Opening, Failure> {
        match self.served.get(&op).map(|stage| *stage) {
            None => {
                self.served.insert(op, Stage::Serving);
                Ok(Opening { sessions: self.clone(), op: Some(op) })
            }
            Some(Stage::Serving) => {
                Err(Failure::new(Code::OperationRunning, format!("operation {op} already has a session")))
            }
            Some(Stage::Ended) => Err(already_ended(op)),
        }
    }

    /// The snapshot that `request` asks for; where its `slot` begins, and what the snapshot shows if that is later.
    async fn export(
        &self,
        target: &NodeId,
        slot: &str,
        request: &OpenRequest,
    ) -> Result<(ExportedSlot, Moment, Option<Moment>), Failure> {
        let (op, is_kept) = (request.op, request.kept_slot.is_some());
        let (exported, positions) = match &request.neighbours[..] {
            neighbours if !request.one_way && !neighbours.is_empty() => {
                self.slot_while_still(op, target, (slot, is_kept), neighbours).await?
            }
            _ if is_kept => {
                let never = CancellationToken::new();
                (self.snapshot_alone(op, self.settings.slot_timeout, &never).await?, Vec::new())
            }
            _ => {
                let reader = request.for_files.is_none().then_some(target);
                (self.slot_at_once(op, reader, slot).await?, Vec::new())
            }
        };
        let shown = Moment { lsn: exported.lsn, positions };
        match &request.kept_slot {
            None => Ok((exported, shown, None)),
            Some(kept) if kept.is_in(&shown) => Ok((exported, kept.clone(), Some(shown))),
            Some(_) => {
                let text = format!("a later snapshot shows less than the one that slot {slot} was made with");
                Err(Failure::new(Code::SlotLost, text))
            }
        }
    }

    /// `reader`: the node that is to read the slot; none yet for a snapshot in files.
    async fn slot_at_once(
        &self,
        op: OperationId,
        reader: Option<&NodeId>,
        slot: &str,
    ) -> Result<ExportedSlot, Failure> {
        let effect = Effect::Slot { name: slot.to_owned(), peer: reader.cloned() };
        let step = reader.map_or_else(|| "snapshot".to_owned(), |target| format!("session for {target}"));
        let made = async {
            // Not cancelled but undone: the operation's cleanup ends its backends, then drops the slot.
            let never = CancellationToken::new();
            let patience = self.settings.slot_timeout;
            let made = replication::create_slot_exporting(&self.database, op, slot, patience, &never).await;
            made.map_err(|error| error.explain())
        };
        self.cleanup.make(op, &step, &effect, made).await
    }

    /// A snapshot of now, for a slot that is there already.
    async fn snapshot_alone(
        &self,
        op: OperationId,
        patience: Duration,
        cancelled: &CancellationToken,
    ) -> Result<ExportedSlot, Failure> {
        // One that was being made may still be on its way out.
        let name = format!("steep_gate_{}", SessionId::generate().to_string().replace('-', ""));
        let made = replication::export_snapshot(&self.database, op, &name, patience, cancelled).await;
        made.map_err(|error| error.explain())
    }

    /// The open session `id` of `caller`; renews it.
    pub fn get(&self, caller: &NodeId, id: SessionId) -> Result<Arc<Held>, Failure> {
        match self.open.get(&id) {
            Some(open) if open.held.target == *caller => {
                open.held.renew();
                Ok(Arc::clone(&open.held))
            }
            Some(_) => Err(not_yours(caller, &format!("session {id}"))),
            None => Err(Failure::new(Code::SessionUnknown, format!("no session {id} is open for {caller}"))),
        }
    }

    /// The open session of `op`, which must be `caller`'s; renews it.
    pub fn of_operation(&self, caller: &NodeId, op: OperationId) -> Result<Arc<Held>, Failure> {
        let id = self.open.iter().find(|open| open.held.op == op).map(|open| open.held.id);
        match id {
            Some(id) => self.get(caller, id),
            None => Err(Failure::new(Code::SessionUnknown, format!("no session for operation {op} is open"))),
        }
    }

    /// Ends the session of `op`, whatever it still holds. What it made is kept or undone by the caller.
    pub async fn end(&self, op: OperationId) {
        self.served.insert(op, Stage::Ended);
        self.end_pause(op).await;
        let id = self.open.iter().find(|open| open.held.op == op).map(|open| open.held.id);
        if let Some((_, open)) = id.and_then(|id| self.open.remove(&id)) {
            open.held.ended.cancel();
            open.held.release().await;
        }
    }

    /// A session can no longer keep its promise, for `failure`: its target hears that, and undoes its operation.
    pub async fn give_up(&self, held: &Held, failure: Failure) {
        held.fail(failure).await;
    }

    async fn lock_tables(
        &self,
        op: OperationId,
        target: &NodeId,
        slot: &str,
        tables: &[Table],
    ) -> Result<Keeper, Failure> {
        let effect = Effect::Session { slot: slot.to_owned(), record: serde_json::Value::Null };
        let started = self.keepers.start(op);
        let keeper = self.cleanup.make(op, &format!("session for {target}"), &effect, started).await?;
        let names = tables.iter().map(|table| table.name.clone()).collect();
        keeper.lock(names, self.settings.slot_timeout).await?;
        Ok(keeper)
    }

    /// Readers that hold their locks before any DDL can wait: one that asks later would stand behind the DDL, which
    /// stands behind the keeper, which stays until that very reader is done.
    async fn readers_with_locks(
        &self,
        op: OperationId,
        parallel: u32,
        snapshot: &str,
        tables: &[Table],
    ) -> Result<Vec<Reader>, Failure> {
        let explain = |error: postgres::Error| error.explain();
        let patience = format!("{}ms", self.settings.slot_timeout.as_millis());
        let names: Vec<_> = tables.iter().map(|table| table.name.clone()).collect();
        let mut readers = Vec::new();
        // One for each stream, and one that counts meanwhile.
        for _ in 0..=parallel.clamp(1, 16) {
            let reader = self.database.reader(op).await.map_err(explain)?;
            reader.begin_snapshot(snapshot).await.map_err(explain)?;
            reader.run(&ddl::set_local("lock_timeout", &patience)).await.map_err(explain)?;
            reader.run(&ddl::lock_access_share(&names)).await.map_err(explain)?;
            readers.push(reader);
        }
        Ok(readers)
    }
}

/// The failure for a peer that asks for what another one's session holds.
pub fn not_yours(caller: &NodeId, what: &str) -> Failure {
    Failure::new(Code::Denied, format!("{what} belongs to another node than {caller}"))
        .hint("nobody asks for this by mistake: look into the agent that did, its key may be stolen")
}

/// A session that is being opened. Dropped before it is open, it ends: what it has made so far is then nobody's.
struct Opening {
    sessions: Sessions,
    op: Option<OperationId>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(op) = self.op {
            self.sessions.served.insert(op, Stage::Ended);
            self.sessions.cut_pause_short(op);
        }
    }
}

fn already_ended(op: OperationId) -> Failure {
    Failure::new(Code::SessionUnknown, format!("the session of operation {op} was ended before it was open"))
}

/// The name of the slot a source keeps for `target`.
pub fn slot_name(target: &NodeId, op: OperationId) -> String {
    let mut name = format!("steep_{}", target.sanitized());
    // Slot names end at 63 bytes; the operation is what makes it unmistakable.
    name.truncate(63 - 13);
    format!("{name}_{}", op.short())
}

/// Whether `slot` has the name of one made by [`slot_name`], for `target` or for anybody.
pub fn is_slot_for(slot: &str, target: Option<&NodeId>) -> bool {
    let Some((head, digits)) = slot.rsplit_once('_') else { return false };
    let is_ours = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some(name) = head.strip_prefix("steep_").filter(|_| is_ours) else { return false };
    target.is_none_or(|target| {
        let mut expected = format!("steep_{}", target.sanitized());
        expected.truncate(63 - 13);
        expected == format!("steep_{name}")
    })
}
