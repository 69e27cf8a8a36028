//! `agent.toml` read again while the agent runs.
//!
//! The files of `[pki]` are read again too. What can change while it runs is taken up; of everything else that differs from what runs, the key is told, so that
//! nobody believes a change that waits for a restart. A file that is wrong changes nothing.

use std::{collections::BTreeMap, fs, sync::PoisonError};

use steep_protocol::failure::{Explain as _, Failure};
use tracing::{info, warn};

use super::Upkeep;
use crate::{config::Config, telemetry};

/// Keys that are taken up while the agent runs.
const LIVE: &[&str] = &["log.level"];

/// What a reload came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys taken up, dotted.
    pub changed: Vec<String>,
    /// Keys that differ from what runs and need a restart.
    pub needs_restart: Vec<String>,
}

/// The values that run, as written in the file; a key that is not there has its default.
#[derive(Debug)]
pub(super) struct Settled(BTreeMap<String, String>);

impl Settled {
    /// As the file says that `config` was read from.
    pub(super) fn read(config: &Config) -> Self {
        Self(keys(&fs::read_to_string(&config.path).unwrap_or_default()))
    }

    /// Keys that differ, and takes over those that are live.
    fn take(&mut self, new: BTreeMap<String, String>) -> Reloaded {
        let mut reloaded = Reloaded::default();
        let all: Vec<String> = self.0.keys().chain(new.keys()).cloned().collect();
        for key in all {
            if self.0.get(&key) == new.get(&key) || reloaded.needs_restart.contains(&key) {
                continue;
            }
            if LIVE.contains(&key.as_str()) {
                match new.get(&key) {
                    Some(value) => self.0.insert(key.clone(), value.clone()),
                    None => self.0.remove(&key),
                };
                reloaded.changed.push(key);
            } else {
                reloaded.needs_restart.push(key);
            }
        }
        reloaded
    }
}

impl Upkeep {
    /// Reads the configuration again and takes up what can change. After an error everything runs on as before.
    pub fn reload(&self) -> Result<Reloaded, Failure> {
        let reloaded = self.try_reload();
        let result = if reloaded.is_ok() { "ok" } else { "failed" };
        self.metrics.reloads.of([result]).inc();
        match &reloaded {
            Ok(reloaded) => info!(
                event = "agent.reloaded",
                details.changed = reloaded.changed.join(", "),
                details.needs_restart = reloaded.needs_restart.join(", "),
                "the configuration was read again"
            ),
            Err(failure) => warn!(
                event = "agent.reload_failed",
                error = telemetry::failure(failure),
                "the configuration was read again and is wrong; everything runs on as before"
            ),
        }
        reloaded
    }

    fn try_reload(&self) -> Result<Reloaded, Failure> {
        let config = Config::load(&self.config.path).map_err(|error| error.explain())?;
        let has_new_certificates = self.certificates.reload("configuration read again")?;
        let text = fs::read_to_string(&self.config.path).unwrap_or_default();
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reloaded = settled.take(keys(&text));
        if has_new_certificates {
            reloaded.changed.push("certificates".into());
        }
        if reloaded.changed.iter().any(|key| key == "log.level") {
            self.log.configure(config.log.level);
        }
        self.look_at_certificates();
        Ok(reloaded)
    }
}

/// Every key of a file with its value, as text.
fn keys(text: &str) -> BTreeMap<String, String> {
    let Ok(table) = text.parse::<toml::Table>() else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for (section, value) in table {
        match value {
            toml::Value::Table(values) => {
                all.extend(values.into_iter().map(|(key, value)| (format!("{section}.{key}"), value.to_string())));
            }
            value => drop(all.insert(section, value.to_string())),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_live_is_taken_up_once_and_the_rest_is_told_until_a_restart() {
        let before = "[node]\nid = \"a\"\n[log]\nlevel = \"info\"\n[[mesh.peers]]\nid = \"b\"\n";
        let mut settled = Settled(keys(before));
        assert_eq!(settled.take(keys(before)), Reloaded::default());
        let after = before.replace("info", "debug").replace("id = \"b\"", "id = \"c\"") + "[copy]\nparallel = 8\n";
        let taken = settled.take(keys(&after));
        assert_eq!(taken.changed, ["log.level"]);
        assert_eq!(taken.needs_restart, ["mesh.peers", "copy.parallel"]);
        let again = settled.take(keys(&after));
        assert_eq!((again.changed.len(), again.needs_restart.len()), (0, 2), "still not what runs: {again:?}");
        let taken = settled.take(keys(&before.replace("[log]\nlevel = \"info\"\n", "")));
        assert_eq!(taken, Reloaded { changed: vec!["log.level".into()], needs_restart: vec![] });
    }
}
