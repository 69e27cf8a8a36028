//! The keeper itself: `steep-agent keep`.

use std::time::Duration;

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::OperationId,
    names::TableName,
};
use tokio::{
    net::UnixListener,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{error, info, warn};

use super::{
    place::Place,
    words::{Answer, Ask, Line},
};
use crate::{
    config::Config,
    postgres::{self, Database, PostgresConfig, Purpose, Session, ddl, slots},
    telemetry,
};

/// How often it looks whether PostgreSQL and its agent are still there.
const LOOK: Duration = Duration::from_millis(200);

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// Keeps the snapshot of `op` until it is wanted no more.
pub async fn run(config: Config, op: OperationId) {
    // Signals to the agent's terminal or process group are not meant for it. Where it leads a group it is by itself already.
    let _ = rustix::process::setsid();
    let place = Place::of(&config);
    let listener = match place.listen(op) {
        Ok(listener) => listener,
        Err(failure) => {
            error!(event = "snapshot.keeper_ended", op_id = %op, error = telemetry::failure(&failure), "cannot listen");
            return;
        }
    };
    let signals = SignalKind::terminate();
    let terminate = signal(signals).expect("signals can be listened for");
    let interrupt = signal(SignalKind::interrupt()).expect("signals can be listened for");
    let keeper = Process {
        database: Database::new(PostgresConfig::of(&config.postgres)),
        lease: config.copy.session_lease,
        op,
        session: None,
        snapshot: String::new(),
        slot: String::new(),
        heard: Instant::now(),
    };
    Box::pin(keeper.keep(&listener, terminate, interrupt)).await;
    place.forget(op);
}

struct Process {
    database: Database,
    lease: Duration,
    op: OperationId,
    session: Option<Session>,
    snapshot: String,
    slot: String,
    /// When the agent last said something.
    heard: Instant,
}

/// What happens to a keeper.
enum Event {
    Attached(Line),
    Asked(Ask),
    Left,
    Looked,
    Told,
}

/// Why a keeper ends.
enum End {
    Told,
    LeaseOver,
    PostgresGone,
    /// Before there was anything to hold, whoever started it has gone.
    Deserted,
}

impl Process {
    async fn keep(mut self, listener: &UnixListener, mut terminate: Signal, mut interrupt: Signal) {
        let mut line: Option<Line> = None;
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            let event = tokio::select! {
                Ok((stream, _)) = listener.accept() => Event::Attached(Line::over(stream)),
                asked = hear(&mut line) => asked.map_or(Event::Left, Event::Asked),
                _ = tick.tick() => Event::Looked,
                _ = terminate.recv() => Event::Told,
                _ = interrupt.recv() => Event::Told,
            };
            match event {
                // The latest counts: an agent that was killed does not say goodbye.
                Event::Attached(newer) => (line, self.heard) = (Some(newer), Instant::now()),
                Event::Asked(Ask::LetGo) | Event::Told => break End::Told,
                Event::Asked(ask) => {
                    let answer = self.answer(ask).await;
                    self.heard = Instant::now();
                    if let Some(open) = &mut line
                        && open.say(&answer).await.is_err()
                    {
                        line = None;
                    }
                }
                Event::Left if self.snapshot.is_empty() => break End::Deserted,
                Event::Left => {
                    line = None;
                    info!(event = "snapshot.keeper_alone", op_id = %self.op, "the agent is gone; the snapshot is kept for it");
                }
                Event::Looked if self.session.as_ref().is_some_and(Session::is_closed) => break End::PostgresGone,
                Event::Looked if self.heard.elapsed() > self.lease => break End::LeaseOver,
                Event::Looked => {}
            }
        };
        self.let_go(end).await;
    }

    async fn answer(&mut self, ask: Ask) -> Answer {
        let done = match ask {
            Ask::Lock { tables, patience_ms } => self.lock(&tables, patience_ms).await,
            Ask::Hold { snapshot, slot } => self.hold(&snapshot, slot).await,
            Ask::Renew | Ask::LetGo => Ok(()),
        };
        Answer {
            backend_pid: self.session.as_ref().map_or(0, Session::backend_pid),
            snapshot: self.snapshot.clone(),
            failure: done.err(),
        }
    }

    async fn lock(&mut self, tables: &[TableName], patience_ms: u64) -> Result<(), Failure> {
        let session = self.database.session(Purpose::Keeper(self.op)).await.map_err(explain)?;
        session.run(&ddl::begin_snapshot()).await.map_err(explain)?;
        session.run(&ddl::set_local("lock_timeout", &format!("{patience_ms}ms"))).await.map_err(explain)?;
        session.run(&ddl::lock_access_share(tables)).await.map_err(explain)?;
        self.session = Some(session);
        Ok(())
    }

    async fn hold(&mut self, snapshot: &str, slot: String) -> Result<(), Failure> {
        let unlocked = || Failure::new(Code::BadRequest, "the locks come before the snapshot");
        let session = self.session.as_ref().ok_or_else(unlocked)?;
        session.run(&ddl::set_snapshot(snapshot)).await.map_err(explain)?;
        self.snapshot = session.export_snapshot().await.map_err(explain)?;
        self.slot = slot;
        Ok(())
    }

    async fn let_go(&mut self, end: End) {
        let op = self.op;
        if let Some(session) = self.session.take() {
            session.close().await;
        }
        match end {
            End::Told => info!(event = "snapshot.keeper_ended", op_id = %op, "told to let go"),
            End::Deserted => info!(event = "snapshot.keeper_ended", op_id = %op, "nobody wants it"),
            End::PostgresGone => {
                let text = format!("the snapshot of {op} on the source is gone: its connection to PostgreSQL ended");
                let failure = Failure::new(Code::SnapshotLost, text);
                error!(event = "snapshot.keeper_ended", op_id = %op, error = telemetry::failure(&failure), "lost");
            }
            End::LeaseOver => {
                let seconds = self.lease.as_secs();
                let text = format!("no agent has attached to the keeper of {op} for {seconds} s");
                let failure = Failure::new(Code::SessionExpired, text);
                error!(event = "snapshot.keeper_ended", op_id = %op, error = telemetry::failure(&failure), "let go");
                self.drop_slot().await;
            }
        }
    }

    /// Without a snapshot nobody can use the slot, and without an agent nobody else would drop it.
    async fn drop_slot(&self) {
        if self.slot.is_empty() {
            return;
        }
        let dropped = async {
            let session = self.database.session(Purpose::Slot(self.op)).await?;
            slots::drop(&session, &self.slot).await
        };
        if let Err(error) = dropped.await {
            warn!(op_id = %self.op, slot = self.slot, reason = %error, "the slot is left to the agent's next run");
        }
    }
}

/// What is asked next; waits for ever while nobody is attached.
async fn hear(line: &mut Option<Line>) -> Option<Ask> {
    match line {
        Some(line) => line.hear().await,
        None => std::future::pending().await,
    }
}
