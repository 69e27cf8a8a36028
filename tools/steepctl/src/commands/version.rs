//! `steepctl version`

use serde_json::json;
use steep_protocol::{failure::Failure, version::PROTOCOL};

use crate::output::{Output, exit_code::Exit};

/// Prints the version of steepctl and of the protocol it speaks.
pub fn run(out: &Output) -> Result<Exit, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if out.is_json() {
        out.json(&json!({ "version": version, "protocol": PROTOCOL }))?;
    } else {
        out.data(&format!("steepctl {version}, protocol {PROTOCOL}"))?;
    }
    Ok(Exit::Success)
}
