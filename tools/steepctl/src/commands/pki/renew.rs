//! `steepctl pki renew`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use steep_protocol::failure::{Explain as _, Failure};

use super::{init::USUAL_DIR, paths, word};
use crate::{
    output::{Output, exit_code::Exit, table::Facts},
    pki::{leaf::For, renew},
    units,
};

const EXAMPLES: &str = "\
Names, role and length of life are those of the old certificate; key and serial
number are new. The old files are kept beside the new ones, and the old
certificate stays good until it ends or is revoked.

Examples:
  steepctl pki renew node_b
  steepctl pki renew operator alice --days 7";

/// Arguments of `pki renew`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RenewArgs {
    /// NODE, or `operator NAME`
    #[arg(required = true, num_args = 1..=2, value_name = "WHO")]
    pub who: Vec<String>,
    /// Good for so many days [default: as long as the old one was]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub days: Option<u32>,
    /// Where the authorities are, and the certificate
    #[arg(long, value_name = "DIR", default_value = USUAL_DIR)]
    pub dir: PathBuf,
}

/// Issues a new certificate and key for somebody who has one.
pub fn run(args: &RenewArgs, out: &Output) -> Result<Exit, Failure> {
    let renewed = renew::renew(&args.dir, &args.who, args.days, Timestamp::now()).map_err(|error| error.explain())?;
    let issued = &renewed.issued;
    if issued.is_shortened {
        out.talk("it ends earlier than asked, together with the authority that issued it");
    }
    if out.is_json() {
        out.json(&json!({
            "identity": issued.peer.uri(),
            "files": paths(&[issued.cert.clone(), issued.key.clone()]),
            "kept": paths(&renewed.aside),
            "old_serial": renewed.old.as_ref().map(|(serial, _)| serial),
            "not_before": issued.lifetime.from,
            "not_after": issued.lifetime.until,
        }))?;
        return Ok(Exit::Success);
    }
    let mut facts = Facts::default();
    facts.add("wrote", format!("{} and {}", issued.cert.display(), issued.key.display()));
    facts.add("kept", renewed.aside.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and "));
    facts.add("identity", issued.peer.uri());
    facts.add("valid until", units::date_time(issued.lifetime.until));
    out.data(&facts.render())?;
    if let Some((serial, until)) = &renewed.old {
        let until = units::date_time(*until);
        out.talk(&format!("the old one stays good until {until}; steepctl pki revoke {serial} ends it sooner"));
    }
    out.data(&match &renewed.whom {
        For::Node { node, .. } => format!(
            "Next: put {} and {} in place on the machine of {node}; its agent reads them by itself",
            word(&issued.cert),
            word(&issued.key)
        ),
        For::Operator { name, .. } => {
            format!("Next: give {} and {} to {name}", word(&issued.cert), word(&issued.key))
        }
    })?;
    Ok(Exit::Success)
}
