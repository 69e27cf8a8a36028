//! Lets specs stop an agent's work at a chosen place. Debug builds only: a release build has none of it.
//!
//! A step that has done its work, and is not marked done yet, looks for two files in the agent's state directory:
//! `hold` with the step's name becomes `held`, and the step waits until somebody removes that; `fail` with its name
//! goes away, and the step fails.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use steep_protocol::failure::{Code, Failure};
use tokio::time::sleep;

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
        Ok(())
    }
}
