//! The agent's side of its keepers.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use steep_protocol::{
    failure::{Code, Failure},
    ids::OperationId,
    names::TableName,
};
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};

use super::{
    place::Place,
    words::{Answer, Ask, Line, gone},
};
use crate::config::Config;

/// How long a keeper may take to start.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How often we look whether it listens.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take for what it does at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The keepers of one agent. Clones are the same.
#[derive(Debug, Clone)]
pub struct Keepers {
    program: PathBuf,
    config: PathBuf,
    place: Place,
}

/// A keeper this agent is attached to.
#[derive(Debug)]
pub struct Keeper {
    line: Mutex<Option<Line>>,
    backend_pid: AtomicI32,
}

impl Keepers {
    /// Those of the agent with this configuration, which they read too.
    pub fn new(config: &Config) -> Self {
        // Asked for now: once the file is replaced by another version, the system knows no path of this one.
        let program = std::env::current_exe().unwrap_or_else(|_| "steep-agent".into());
        Self {
            program,
            config: std::path::absolute(&config.path).unwrap_or_else(|_| config.path.clone()),
            place: Place::of(config),
        }
    }

    /// Starts the keeper of `op`. It ends with this agent until it has something to hold.
    pub async fn start(&self, op: OperationId) -> Result<Keeper, Failure> {
        let failed = |why: String| {
            let text = format!("the process that is to keep the snapshot of {op} did not start");
            Failure::new(Code::KeeperFailed, text).cause(why)
        };
        let mut child = self.spawn(op).map_err(|error| failed(format!("{}: {error}", self.program.display())))?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Ok(keeper) = self.attach(op).await {
                info!(event = "snapshot.keeper_started", op_id = %op, details.pid = child.id(), "a keeper was started");
                return Ok(keeper);
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(failed(format!("it ended at once ({status}); the agent's log says why")));
            }
            if Instant::now() >= deadline {
                return Err(failed(format!("it did not listen within {} s", START_LIMIT.as_secs())));
            }
            sleep(LOOK).await;
        }
    }

    fn spawn(&self, op: OperationId) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.arg("keep").arg("--config").arg(&self.config).arg("--op").arg(op.to_string());
        // It logs where the agent does. What lets the agent die in a spec is not meant for it.
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).env_remove("STEEP_CRASH");
        // Not ended with its handle: it outlives us.
        command.spawn()
    }

    /// Attaches to the keeper of `op`, which an earlier run of this agent may have started.
    pub async fn attach(&self, op: OperationId) -> Result<Keeper, Failure> {
        let stream = UnixStream::connect(self.place.socket(op)).await;
        let stream = stream.map_err(|error| gone("nobody listens on its socket").caused_by(&error))?;
        let keeper = Keeper { line: Mutex::new(Some(Line::over(stream))), backend_pid: AtomicI32::new(0) };
        keeper.renew().await?;
        Ok(keeper)
    }

    /// Makes sure that the keeper of `op` lets go, if there is one.
    pub async fn let_go(&self, op: OperationId) {
        match self.attach(op).await {
            Ok(keeper) => keeper.let_go().await,
            Err(_) => self.place.forget(op),
        }
    }

    /// Has every keeper let go that is for none of the operations `wanted` knows by their twelve digits.
    pub async fn sweep(&self, wanted: impl Fn(&str) -> bool) {
        for (digits, socket) in self.place.sockets() {
            if wanted(&digits) {
                continue;
            }
            match UnixStream::connect(&socket).await {
                Ok(stream) => {
                    info!(event = "agent.cleanup", details.keeper = digits, "a keeper without a session is let go");
                    let keeper = Keeper { line: Mutex::new(Some(Line::over(stream))), backend_pid: AtomicI32::new(0) };
                    keeper.let_go().await;
                }
                Err(error) => {
                    debug!(%error, digits, "a keeper has died");
                    self.place.sweep(&digits);
                }
            }
        }
    }
}

impl Keeper {
    /// Takes the locks; waits up to `patience` for whoever holds one that stands against them.
    pub async fn lock(&self, tables: Vec<TableName>, patience: Duration) -> Result<(), Failure> {
        let patience_ms = patience.as_millis() as u64;
        // It may have to wait for one table after the other.
        let limit = ANSWER_LIMIT + patience * u32::try_from(tables.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.ask(&Ask::Lock { tables, patience_ms }, limit).await.map(drop)
    }

    /// Holds `snapshot`, which was made with `slot`, and returns the name under which others may import it from now on.
    pub async fn hold(&self, snapshot: &str, slot: &str) -> Result<String, Failure> {
        let ask = Ask::Hold { snapshot: snapshot.to_owned(), slot: slot.to_owned() };
        Ok(self.ask(&ask, ANSWER_LIMIT * 6).await?.snapshot)
    }

    /// Says that it is still wanted; returns the snapshot it holds.
    ///
    /// Fails with [`Code::SnapshotLost`] once it has let go or died.
    pub async fn renew(&self) -> Result<String, Failure> {
        Ok(self.ask(&Ask::Renew, ANSWER_LIMIT).await?.snapshot)
    }

    /// Has it let go, and waits for that.
    pub async fn let_go(&self) {
        let Some(mut line) = self.line.lock().await.take() else { return };
        let ended = async {
            if line.say(&Ask::LetGo).await.is_ok() {
                while line.hear::<Answer>().await.is_some() {}
            }
        };
        if timeout(ANSWER_LIMIT, ended).await.is_err() {
            debug!("a keeper takes its time to let go");
        }
    }

    /// The server process that holds its locks.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid.load(Ordering::Relaxed)
    }

    async fn ask(&self, ask: &Ask, limit: Duration) -> Result<Answer, Failure> {
        let mut held = self.line.lock().await;
        let line = held.as_mut().ok_or_else(|| gone("it was let go"))?;
        let asked = async {
            line.say(ask).await.ok()?;
            line.hear::<Answer>().await
        };
        match timeout(limit, asked).await {
            Ok(Some(Answer { failure: Some(failure), .. })) => Err(failure),
            Ok(Some(answer)) => {
                self.backend_pid.store(answer.backend_pid, Ordering::Relaxed);
                Ok(answer)
            }
            Ok(None) => Err(gone("it does not answer any more")),
            Err(_) => {
                // Answers would no longer fit their questions.
                *held = None;
                Err(gone(&format!("it did not answer within {} s", limit.as_secs())))
            }
        }
    }
}
