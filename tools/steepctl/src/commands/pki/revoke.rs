//! `steepctl pki revoke`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use steep_protocol::failure::{Explain as _, Failure};

use super::{dir_option, init::USUAL_DIR};
use crate::{
    output::{Output, exit_code::Exit, safe},
    pki::revoke,
    units,
};

const EXAMPLES: &str = "\
A name revokes every certificate of its owner that is still good; a serial
number or a file exactly one. Nothing changes in the mesh before the new list
is handed to an agent; from there it travels to all others by itself.

Examples:
  steepctl pki revoke node_b --reason 'disk stolen'
  steepctl pki revoke operator alice
  steepctl pki revoke pki/node_b.pem
  steepctl pki revoke 4a:1f:9c:02";

/// Arguments of `pki revoke`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RevokeArgs {
    /// NODE, `operator NAME`, a certificate file, or a serial number
    #[arg(required = true, num_args = 1..=2, value_name = "WHO")]
    pub who: Vec<String>,
    /// Why, for the register
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// The list should be replaced after so many days
    #[arg(long, value_name = "DAYS", default_value_t = revoke::USUAL_DAYS, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub days: u32,
    /// Where the authorities are
    #[arg(long, value_name = "DIR", default_value = USUAL_DIR)]
    pub dir: PathBuf,
}

/// Revokes certificates and signs the new list.
pub fn run(args: &RevokeArgs, out: &Output) -> Result<Exit, Failure> {
    let revoked = revoke::revoke(&args.dir, &args.who, args.reason.as_deref(), args.days, Timestamp::now())
        .map_err(|error| error.explain())?;
    if out.is_json() {
        let entry = |entry: &crate::pki::register::Entry| json!({ "whose": entry.whose(), "identity": entry.identity, "serial": entry.serial });
        let entries: Vec<_> = revoked.entries.iter().map(entry).collect();
        out.json(&json!({ "revoked": entries, "file": revoked.file.display().to_string() }))?;
        return Ok(Exit::Success);
    }
    for entry in &revoked.entries {
        let until = units::date_time(entry.not_after);
        out.data(&format!(
            "revoked {}: serial {}, would have been good until {until}",
            safe(&entry.whose()),
            entry.serial
        ))?;
    }
    out.data(&format!(
        "Next: hand the list to any agent, which passes it on to all others\n  steepctl pki crl --publish{}",
        dir_option(&args.dir)
    ))?;
    Ok(Exit::Success)
}
