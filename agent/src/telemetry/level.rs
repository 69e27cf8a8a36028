//! How much is logged, and how that changes while the agent runs.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Level as TracingLevel, Metadata, info, level_filters::LevelFilter};
use tracing_subscriber::{Registry, filter::Targets, reload};

use super::ring::{KEPT, Ring};
use crate::config::Level;

/// Our own programs; what libraries say is told from `warn` on.
const OURS: [&str; 2] = ["steep_agent", "steep_protocol"];

/// How much is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loudness {
    /// A level, or what `STEEP_LOG` said.
    pub level: String,
    /// When it goes back to the configured one; none: it stays.
    pub until: Option<Timestamp>,
}

#[derive(Debug)]
struct State {
    configured: String,
    now: Loudness,
    /// Goes back to the configured level; ended when the level is set again.
    timer: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) instance_id: String,
    pub(super) ring: Ring,
    printed: RwLock<Targets>,
    passing: reload::Handle<Targets, Registry>,
    state: Mutex<State>,
}

/// The log of this run. Clones share it.
#[derive(Debug, Clone)]
pub struct Log(pub(super) Arc<Inner>);

impl Log {
    /// For one of several agents in one process, of which nobody writes the log down.
    pub fn unheard(instance_id: String) -> Self {
        Self::new(instance_id, Level::Info, None).0
    }

    /// `words` as in `STEEP_LOG`; the layer lets pass what is printed or remembered.
    pub(super) fn new(
        instance_id: String,
        configured: Level,
        words: Option<&str>,
    ) -> (Self, reload::Layer<Targets, Registry>) {
        let configured = word(configured).to_owned();
        let level = words.map_or_else(|| configured.clone(), str::to_owned);
        let printed = targets(&level);
        let (layer, passing) = reload::Layer::new(with_what_is_remembered(&printed));
        let now = Loudness { level, until: None };
        let state = Mutex::new(State { configured, now, timer: None });
        let ring = Ring::new(KEPT);
        (Self(Arc::new(Inner { instance_id, ring, printed: RwLock::new(printed), passing, state })), layer)
    }

    /// Makes this run of the agent unmistakable.
    pub fn instance_id(&self) -> &str {
        &self.0.instance_id
    }

    /// The events of late.
    pub fn ring(&self) -> &Ring {
        &self.0.ring
    }

    /// How much is logged now.
    pub fn loudness(&self) -> Loudness {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).now.clone()
    }

    /// Takes up another configured level, at once.
    pub fn configure(&self, level: Level) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.configured = word(level).into();
        state.timer = None;
        self.apply(&mut state, word(level).into(), None);
    }

    /// Logs from `level` on, or as configured; goes back after `lasting`, if given. Returns what was before.
    pub fn set(&self, level: Option<Level>, lasting: Option<Duration>) -> Loudness {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.now.clone();
        let level = level.map_or_else(|| state.configured.clone(), |level| word(level).to_owned());
        let until = lasting.and_then(|lasting| Timestamp::now().checked_add(lasting).ok());
        self.apply(&mut state, level, until);
        state.timer = lasting.map(|lasting| {
            let log = self.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                sleep(lasting).await;
                log.go_back();
            }))
        });
        before
    }

    fn go_back(&self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let configured = state.configured.clone();
        self.apply(&mut state, configured.clone(), None);
        drop(state);
        info!(event = "agent.log_level", details.level = configured, "logs as configured again");
    }

    fn apply(&self, state: &mut State, level: String, until: Option<Timestamp>) {
        let printed = targets(&level);
        let passing = with_what_is_remembered(&printed);
        *self.0.printed.write().unwrap_or_else(PoisonError::into_inner) = printed;
        // It fails when the subscriber is gone: then nothing is logged any more.
        let _ = self.0.passing.reload(passing);
        state.now = Loudness { level, until };
    }

    /// Whether the log shows it.
    pub(super) fn prints(&self, metadata: &Metadata<'_>) -> bool {
        let printed = self.0.printed.read().unwrap_or_else(PoisonError::into_inner);
        printed.would_enable(metadata.target(), metadata.level())
    }

    /// Whether it is kept when it names an event: whatever the log shows, from info on.
    pub(super) fn remembers(metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= TracingLevel::INFO && OURS.iter().any(|ours| metadata.target().starts_with(ours))
    }
}

/// A level as operators write it.
pub fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// A level from what an operator wrote.
pub fn parse(text: &str) -> Option<Level> {
    [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace].into_iter().find(|level| word(*level) == text)
}

/// One level for our own programs, or the words of `STEEP_LOG`: `warn,steep_agent=debug`.
fn targets(level: &str) -> Targets {
    match parse(level) {
        Some(_) => {
            let ours = level.parse().unwrap_or(LevelFilter::INFO);
            OURS.iter().fold(Targets::new().with_default(LevelFilter::WARN), |all, name| all.with_target(*name, ours))
        }
        None => level.parse().unwrap_or_else(|_| targets(word(Level::Info))),
    }
}

fn with_what_is_remembered(printed: &Targets) -> Targets {
    let missing = OURS.iter().filter(|name| !printed.would_enable(name, &TracingLevel::INFO));
    missing.fold(printed.clone(), |all, name| all.with_target(*name, LevelFilter::INFO))
}

/// Whether `STEEP_LOG` makes sense.
pub(super) fn is_understood(words: &str) -> bool {
    !words.trim().is_empty() && words.parse::<Targets>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_our_own_programs_and_events_pass_whatever_the_level() {
        let printed = targets("error");
        assert!(!printed.would_enable("steep_agent::api", &TracingLevel::INFO));
        assert!(printed.would_enable("quinn", &TracingLevel::WARN));
        assert!(!printed.would_enable("quinn", &TracingLevel::INFO));
        let passing = with_what_is_remembered(&printed);
        assert!(passing.would_enable("steep_agent::api", &TracingLevel::INFO));
        assert!(!passing.would_enable("steep_agent::api", &TracingLevel::DEBUG));
        let loud = with_what_is_remembered(&targets("debug"));
        assert!(loud.would_enable("steep_protocol", &TracingLevel::DEBUG), "what is printed already stays");
        let words = targets("warn,steep_agent=trace");
        assert!(words.would_enable("steep_agent", &TracingLevel::TRACE));
        assert!(!words.would_enable("steep_protocol", &TracingLevel::INFO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_for_a_while_goes_back_by_itself() {
        let (log, _layer) = Log::new("x".into(), Level::Info, None);
        let before = log.set(Some(Level::Debug), Some(Duration::from_secs(600)));
        assert_eq!((before.level.as_str(), log.loudness().level.as_str()), ("info", "debug"));
        assert!(log.loudness().until.is_some());
        sleep(Duration::from_secs(601)).await;
        tokio::task::yield_now().await;
        assert_eq!(log.loudness(), Loudness { level: "info".into(), until: None });
        log.set(Some(Level::Trace), Some(Duration::from_secs(600)));
        log.configure(Level::Warn);
        sleep(Duration::from_secs(601)).await;
        tokio::task::yield_now().await;
        assert_eq!(log.loudness().level, "warn");
        log.set(Some(Level::Error), None);
        log.set(None, None);
        assert_eq!(log.loudness().level, "warn");
    }
}
