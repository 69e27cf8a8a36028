//! An agent that takes no new work: what runs goes on, nothing new begins. For upgrades and other work on its machine.
//!
//! It is remembered in the state directory, so that a restart in the middle of that work does not end it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    v1,
};
use tracing::warn;

/// Since when an agent takes no new work, and who said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// "alice (operator)".
    pub by: String,
    /// When.
    pub since: Timestamp,
}

/// Whether an agent takes new work. Clones share it.
#[derive(Debug, Clone)]
pub struct Drain {
    file: PathBuf,
    now: Arc<Mutex<Option<Drained>>>,
}

impl Drain {
    /// As the run before left it in `state_dir`.
    pub fn open(state_dir: &Path) -> Self {
        let file = state_dir.join("drained.json");
        let now = match fs::read(&file) {
            Ok(text) => Some(serde_json::from_slice(&text).unwrap_or_else(|error| {
                // That it is drained is what the file is there for.
                warn!(event = "agent.drained", reason = %error, "who drained the agent cannot be read");
                Drained { by: "somebody".into(), since: Timestamp::now() }
            })),
            Err(_) => None,
        };
        Self { file, now: Arc::new(Mutex::new(now)) }
    }

    /// How it is now; none: it takes new work.
    pub fn now(&self) -> Option<Drained> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes no new work from now on; who drained it first stays the one who did.
    pub fn begin(&self, by: &str) -> Result<Drained, Failure> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(drained) = &*now {
            return Ok(drained.clone());
        }
        let drained = Drained { by: by.to_owned(), since: Timestamp::now() };
        let text = serde_json::to_vec(&drained).expect("texts and times are JSON");
        self.written(fs::create_dir_all(self.file.parent().unwrap_or(Path::new("."))))?;
        self.written(fs::write(&self.file, text))?;
        *now = Some(drained.clone());
        Ok(drained)
    }

    /// Takes new work again.
    pub fn end(&self) -> Result<(), Failure> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.written(Err(error))?,
            _ => {}
        }
        *now = None;
        Ok(())
    }

    fn written(&self, done: io::Result<()>) -> Result<(), Failure> {
        done.map_err(|error| {
            Failure::new(Code::StateDirUnwritable, format!("cannot write {}", self.file.display())).caused_by(&error)
        })
    }

    /// Fails while no new work is taken; `what` would begin.
    pub fn refuse(&self, me: &NodeId, what: &str) -> Result<(), Failure> {
        let Some(drained) = self.now() else { return Ok(()) };
        let text = format!("the agent of {me} {what}: it was drained by {}", drained.by);
        let failure = Failure::new(Code::AgentDrained, text).cause(format!("since {}", drained.since));
        Err(failure.hint(format!("steepctl agent drain {me} --undo lets it take work again")))
    }

    /// Says it in the node's headline, where nothing worse is said.
    pub fn tell(&self, headline: &mut v1::NodeHeadline) {
        let Some(drained) = self.now() else { return };
        if headline.health == "ok" {
            headline.health = "warn".into();
        }
        if headline.health_reason.is_empty() {
            let node = &headline.node_id;
            headline.health_reason =
                format!("drained by {}, takes no new work; steepctl agent drain {node} --undo ends it", drained.by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("steep-drain-{}", steep_protocol::ids::SessionId::generate()))
    }

    #[test]
    fn a_drained_agent_stays_so_over_a_restart_until_it_is_undone() {
        let (dir, me) = (folder(), "node_a".parse::<NodeId>().expect("a name"));
        let drain = Drain::open(&dir);
        assert!(drain.refuse(&me, "starts nothing").is_ok());
        let first = drain.begin("alice (admin)").expect("the folder can be written");
        assert_eq!(drain.begin("otto (operator)").expect("it is drained already"), first);
        let again = Drain::open(&dir);
        assert_eq!(again.now(), Some(first));
        let failure = again.refuse(&me, "starts no operation").expect_err("it is drained");
        assert_eq!(failure.code, Code::AgentDrained);
        assert!(failure.message.contains("alice") && failure.hint.contains("drain node_a --undo"), "{failure:?}");
        again.end().expect("the file can be removed");
        again.end().expect("ending twice is no mistake");
        assert_eq!(Drain::open(&dir).now(), None);
        let _ = fs::remove_dir_all(dir);
    }

    #[test]
    fn a_headline_tells_it_unless_something_worse_is_told() {
        let dir = folder();
        let drain = Drain::open(&dir);
        drain.begin("alice (admin)").expect("the folder can be written");
        let told = |health: &str, reason: &str| {
            let mut headline =
                v1::NodeHeadline { health: health.into(), health_reason: reason.into(), ..v1::NodeHeadline::default() };
            drain.tell(&mut headline);
            (headline.health, headline.health_reason.contains("drained"))
        };
        assert_eq!(told("ok", ""), ("warn".into(), true));
        assert_eq!(told("busy", ""), ("busy".into(), true));
        assert_eq!(told("error", "slot lost"), ("error".into(), false));
        let _ = fs::remove_dir_all(dir);
    }
}
