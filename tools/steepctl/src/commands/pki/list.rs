//! `steepctl pki list`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use steep_protocol::{
    failure::{Explain as _, Failure},
    wire::identity::Who,
};

use super::init::USUAL_DIR;
use crate::{
    output::{
        Output,
        exit_code::Exit,
        style::Tone,
        table::{Cell, Side, Table},
    },
    pki::register::{Entry, Register},
    units,
};

const EXAMPLES: &str = "\
Examples:
  steepctl pki list
  steepctl pki list -o json | jq '.certificates[] | select(.status == \"good\")'";

/// With less than this left, a certificate is shown as a warning.
const SOON_SECONDS: u64 = 14 * 86_400;

/// Arguments of `pki list`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ListArgs {
    /// Where the authorities are
    #[arg(long, value_name = "DIR", default_value = USUAL_DIR)]
    pub dir: PathBuf,
}

/// Prints who has which certificate, until when.
pub fn run(args: &ListArgs, out: &Output) -> Result<Exit, Failure> {
    let register = Register::open(&args.dir).map_err(|error| error.explain())?;
    let now = Timestamp::now();
    if out.is_json() {
        let certificates: Vec<_> = register.entries().iter().map(|entry| as_json(entry, now)).collect();
        out.json(&json!({ "certificates": certificates }))?;
        return Ok(Exit::Success);
    }
    if register.entries().is_empty() {
        out.talk("no certificates yet: steepctl pki issue node NODE");
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&[
        ("WHO", Side::Left),
        ("ROLE", Side::Left),
        ("STATUS", Side::Left),
        ("UNTIL", Side::Left),
        ("LEFT", Side::Right),
        ("SERIAL", Side::Left),
        ("AUTHORITY", Side::Left),
    ]);
    for entry in register.entries() {
        let (status, tone) = status(entry, now);
        let left = entry.is_good(now).then(|| days_left(entry, now)).map(|days| units::counted(days, "day"));
        table.row([
            Cell::new(entry.whose()),
            Cell::new(role(entry)),
            Cell::new(status).tone(tone),
            Cell::new(units::date_time(entry.not_after)),
            Cell::new(left.unwrap_or_default()),
            Cell::new(&entry.serial),
            Cell::new(entry.authority.get(..12).unwrap_or(&entry.authority)),
        ]);
    }
    out.data(&table.render())?;
    Ok(Exit::Success)
}

fn days_left(entry: &Entry, now: Timestamp) -> u64 {
    units::since(now, entry.not_after).as_secs() / 86_400
}

fn role(entry: &Entry) -> String {
    match entry.peer().map(|peer| peer.who) {
        Some(Who::Operator { role, .. }) => role.to_string(),
        Some(Who::Node(_)) => "node".into(),
        None => String::new(),
    }
}

fn status(entry: &Entry, now: Timestamp) -> (&'static str, Tone) {
    if entry.revoked_at.is_some() {
        ("revoked", Tone::Bad)
    } else if now > entry.not_after {
        ("expired", Tone::Faint)
    } else if now < entry.not_before {
        ("not yet", Tone::Warn)
    } else if units::since(now, entry.not_after).as_secs() < SOON_SECONDS {
        ("good", Tone::Warn)
    } else {
        ("good", Tone::Good)
    }
}

fn as_json(entry: &Entry, now: Timestamp) -> serde_json::Value {
    json!({
        "whose": entry.whose(),
        "identity": entry.identity,
        "role": role(entry),
        "status": status(entry, now).0,
        "serial": entry.serial,
        "authority": entry.authority,
        "not_before": entry.not_before,
        "not_after": entry.not_after,
        "revoked_at": entry.revoked_at,
        "reason": entry.reason,
    })
}
