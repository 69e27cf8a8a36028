//! The log: one flat JSON object a line on stderr, by `deploy/schemas/log-event.schema.json`.
//!
//! Code writes `info!(event = "init.table_complete", table = %name, rows_copied, "table copied")`. Fields the
//! schema knows stand at the top level; all others go under `details`. `error` and `actor` are objects: hand
//! them over with [`failure`] and [`object`]. Fields of the spans around an event are added to it.
//!
//! [`level`] says how much is logged and lets that change; [`ring`] keeps what lately happened for whoever asks.

pub mod level;
pub mod ring;

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::{Timestamp, Unit};
use serde_json::{Map, Value, json};
use steep_protocol::{failure::Failure, ids::SessionId};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use self::ring::Record;
use crate::config::{Config, Format};

pub use self::level::{Log, Loudness};

/// What stands at the top level of a line, besides what every line has.
const TOP_LEVEL: &[&str] = &[
    "event",
    "message",
    "source_node",
    "table",
    "rows_copied",
    "bytes_copied",
    "duration_ms",
    "phase",
    "overall_progress",
    "previous_state",
    "new_state",
    "op_id",
    "error",
    "actor",
];

/// The event of a line that names none: something a library said.
const UNNAMED: &str = "agent.log";

/// Starts the log of this run. Call once.
pub fn init(config: &Config) -> Log {
    let words = std::env::var("STEEP_LOG").ok().filter(|words| level::is_understood(words));
    let (log, passing) = Log::new(SessionId::generate().to_string(), config.log.level, words.as_deref());
    let lines = Lines {
        node_id: config.node.id.to_string(),
        format: config.log.format,
        pid: process::id(),
        seq: AtomicU64::new(0),
        log: log.clone(),
    };
    tracing_subscriber::registry().with(passing).with(lines).init();
    std::panic::set_hook(Box::new(|info| {
        tracing::error!(event = "agent.defect", reason = info.to_string(), "the agent has met a defect of its own");
    }));
    log
}

/// A failure as the log's `error` object: `error!(error = failure(&failure), …)`.
pub fn failure(failure: &Failure) -> String {
    let mut error = json!({
        "code": failure.code.to_string(),
        "message": std::iter::once(&failure.message).chain(&failure.causes).cloned().collect::<Vec<_>>().join(": "),
        "hint": failure.hint,
        "retryable": failure.retryable,
    });
    if let Some(state) = &failure.sqlstate {
        error["sqlstate"] = json!(state);
    }
    error.to_string()
}

/// Prints a line of output for the person who called the agent.
pub fn say(text: &str) {
    // A closed pipe is no reason to panic.
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints a failure for the person who called the agent.
pub fn complain(failure: &Failure) {
    let mut text = format!("Error: {} [{}]\n", failure.message, failure.code);
    for cause in &failure.causes {
        let _ = writeln!(text, "Caused by: {cause}");
    }
    let _ = writeln!(io::stderr(), "{text}Hint: {}", failure.hint);
}

struct Lines {
    node_id: String,
    format: Format,
    pid: u32,
    seq: AtomicU64,
    log: Log,
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                for (name, value) in &outer.0 {
                    fields.0.entry(name).or_insert_with(|| value.clone());
                }
            }
        }
        event.record(&mut fields);
        let (level, at) = (*event.metadata().level(), now());
        let is_named = fields.0.get("event").is_some_and(|name| name != UNNAMED);
        if is_named && Log::remembers(event.metadata()) {
            self.log.ring().push(self.record(level, at, &fields.0));
        }
        if self.log.prints(event.metadata()) {
            let line = match self.format {
                Format::Json => {
                    let seq = self.seq.fetch_add(1, Ordering::Relaxed);
                    format!("{}\n", self.json(level, at, &fields.0, Some(seq)))
                }
                Format::Text => text(level, at, fields.0),
            };
            // Nobody is left to tell when stderr is gone.
            let _ = io::stderr().lock().write_all(line.as_bytes());
        }
    }
}

impl Lines {
    fn record(&self, level: Level, at: Timestamp, fields: &Map<String, Value>) -> Record {
        let json = self.json(level, at, fields, None);
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warn",
            _ => "info",
        };
        Record { number: 0, at, level, event: text("event"), message: text("message"), json: json.to_string().into() }
    }

    fn json(&self, level: Level, at: Timestamp, fields: &Map<String, Value>, seq: Option<u64>) -> Value {
        let mut line = Map::new();
        line.insert("timestamp".into(), stamp(at).into());
        line.insert("level".into(), level.as_str().to_lowercase().into());
        line.insert("event".into(), UNNAMED.into());
        line.insert("node_id".into(), self.node_id.clone().into());
        line.insert("message".into(), "".into());
        let mut details = Map::new();
        for (name, value) in fields {
            if TOP_LEVEL.contains(&name.as_str()) {
                line.insert(name.clone(), object_where_wanted(name, value.clone()));
            } else {
                details.insert(name.strip_prefix("details.").unwrap_or(name).to_owned(), value.clone());
            }
        }
        if !details.is_empty() {
            line.insert("details".into(), details.into());
        }
        line.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        line.insert("pid".into(), self.pid.into());
        // Only what is in the log has a number in it: a gap there is a lost line.
        if let Some(seq) = seq {
            line.insert("seq".into(), seq.into());
        }
        Value::Object(line)
    }
}

/// This moment, as exact as the log tells it.
fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Microsecond).unwrap_or(now)
}

fn stamp(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// `error` and `actor` are objects in the schema; a plain text becomes the message of one.
fn object_where_wanted(name: &str, value: Value) -> Value {
    match (name, &value) {
        ("error", Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object.into(),
            _ => json!({ "code": "STP-5006", "message": text, "retryable": false }),
        },
        ("actor", Value::String(text)) => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    }
}

fn text(level: Level, at: Timestamp, mut fields: Map<String, Value>) -> String {
    let mut take = |name: &str| fields.remove(name).map(|value| plain(&value)).unwrap_or_default();
    let (event, message) = (take("event"), take("message"));
    let mut line = format!("{} {level:5} {event:22} {message}", stamp(at));
    for (name, value) in &fields {
        let _ = write!(line, " {name}={}", plain(value));
    }
    line.push('\n');
    line
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), ((value * 10.0).round() / 10.0).into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::failure::Code;

    use super::*;

    fn lines() -> Lines {
        let (log, _) = Log::new("run".into(), crate::config::Level::Info, None);
        Lines { node_id: "node_a".into(), format: Format::Json, pid: 7, seq: AtomicU64::new(3), log }
    }

    fn line(fields: Value) -> Value {
        let Value::Object(fields) = fields else { panic!("fields are an object") };
        lines().json(Level::WARN, now(), &fields, Some(3))
    }

    #[test]
    fn a_line_is_flat_and_unknown_fields_stand_under_details() {
        let line = line(json!({ "event": "init.started", "message": "begins", "op_id": "x", "colour": "red" }));
        assert_eq!(line["level"], "warn");
        assert_eq!(line["op_id"], "x");
        assert_eq!(line["details"]["colour"], "red");
        assert_eq!((&line["pid"], &line["seq"]), (&json!(7), &json!(3)));
        let stamp = line["timestamp"].as_str().expect("a timestamp");
        assert_eq!(stamp.len(), "2026-11-22T10:06:02.114233Z".len(), "{stamp}");
    }

    #[test]
    fn a_failure_becomes_an_object_and_a_library_line_has_an_event() {
        let told = failure(&Failure::new(Code::WalLevel, "wal_level is replica").cause("because"));
        let line = line(json!({ "error": told }));
        assert_eq!(line["error"]["code"], "STP-2002");
        assert_eq!(line["error"]["message"], "wal_level is replica: because");
        assert_eq!(line["event"], UNNAMED);
    }

    #[test]
    fn an_event_is_remembered_with_its_record_and_without_a_number_of_the_log() {
        let Value::Object(fields) = json!({ "event": "agent.ready", "message": "reached", "x": 1 }) else { panic!() };
        let record = lines().record(Level::INFO, now(), &fields);
        assert_eq!((record.level, record.event.as_str(), record.message.as_str()), ("info", "agent.ready", "reached"));
        let json: Value = serde_json::from_str(&record.json).expect("a record is JSON");
        assert_eq!((&json["details"]["x"], &json["seq"]), (&json!(1), &Value::Null));
    }
}
