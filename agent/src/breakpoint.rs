//! Lets specs stop an agent's work, or the agent, at a chosen place. Debug builds only: a release build has none of it.
//!
//! [`crash_point!`] ends the agent as `kill -9` would where the environment says so: `STEEP_CRASH` holds the point's name,
//! and after a colon the how-manieth time it is passed, if not the first.
//!
//! A step that has done its work, and is not marked done yet, looks for two files in the agent's state directory:
//! `hold` with the step's name becomes `held`, and the step waits until somebody removes that; `fail` with its name
//! goes away, and the step fails; `panic` with its name goes away, and the step panics, as by a defect of ours.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use steep_protocol::failure::{Code, Failure};
use tokio::time::sleep;

/// A place at which specs let the agent die.
macro_rules! crash_point {
    ($name:literal) => {
        if cfg!(debug_assertions) {
            $crate::breakpoint::crash_at($name);
        }
    };
}
pub(crate) use crash_point;

/// The variable that names the point at which the agent dies.
const CRASH: &str = "STEEP_CRASH";

/// Dies as by `kill -9`, where the environment wants it at `point`.
pub(crate) fn crash_at(point: &str) {
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = env::var(CRASH) else { return };
    let (name, time) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if name != point || PASSED.fetch_add(1, Ordering::Relaxed) + 1 != time.parse().unwrap_or(1) {
        return;
    }
    tracing::warn!(event = "agent.log", details.point = point, "dies here: a spec wants it");
    #[cfg(unix)]
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal may reach another thread first.
    std::process::abort();
}

/// Where the files are looked for.
#[derive(Debug, Clone)]
pub struct Breakpoints {
    dir: PathBuf,
}

impl Breakpoints {
    /// Looks in an agent's state directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Waits or fails, if a file says so for `step`. Safe to be cancelled.
    pub async fn after(&self, step: &str) -> Result<(), Failure> {
        if !cfg!(debug_assertions) {
            return Ok(());
        }
        let named = |file: &str| fs::read_to_string(self.dir.join(file)).is_ok_and(|text| text == step);
        let held = self.dir.join("held");
        if named("hold") && fs::rename(self.dir.join("hold"), &held).is_ok() {
            while held.exists() {
                sleep(Duration::from_millis(20)).await;
            }
        }
        if named("fail") && fs::remove_file(self.dir.join("fail")).is_ok() {
            return Err(Failure::new(Code::Internal, format!("a spec wants {step:?} to fail")));
        }
        let panics = named("panic") && fs::remove_file(self.dir.join("panic")).is_ok();
        assert!(!panics, "a spec wants {step:?} to panic");
        Ok(())
    }
}
