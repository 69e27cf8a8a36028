//! Every line an agent logged, held against the schema of log events.

use std::{path::Path, sync::OnceLock};

use jsonschema::Validator;
use xtask::workspace;

/// The lines of `log` that break the schema, each with the reason. No log: no lines.
pub(crate) fn violations(log: &Path) -> Vec<String> {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let complaints = text.lines().filter(|line| !is_for_people(line)).filter_map(|line| {
        let reason = violation(line)?;
        Some(format!("{reason}\n  in {}: {line}", log.display()))
    });
    complaints.take(10).collect()
}

/// An agent that cannot even start tells the person who called it, before it has a log.
fn is_for_people(line: &str) -> bool {
    ["Error: ", "Caused by: ", "Hint: "].iter().any(|start| line.trim_start().starts_with(start))
}

fn violation(line: &str) -> Option<String> {
    let event: serde_json::Value = match serde_json::from_str(line) {
        Ok(event) => event,
        Err(error) => return Some(format!("not JSON ({error})")),
    };
    let errors: Vec<String> =
        validator().iter_errors(&event).map(|error| format!("{}: {error}", error.instance_path())).collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}

fn validator() -> &'static Validator {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    VALIDATOR.get_or_init(|| {
        let path = workspace::root().join("deploy/schemas/log-event.schema.json");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("the schema of log events is missing: {}: {error}", path.display()));
        let schema = serde_json::from_str(&text).expect("the schema is JSON");
        jsonschema::validator_for(&schema).expect("the schema is a schema")
    })
}
