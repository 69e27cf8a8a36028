//! `steepctl pki crl`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    wire::revocation::RevocationList,
};

use super::{init::USUAL_DIR, word};
use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        safe,
        style::Tone,
        table::{Cell, Side, Table},
    },
    pki::{
        files::{self, NewFile},
        revoke,
    },
    units,
};

const EXAMPLES: &str = "\
An agent takes lists from --publish, or from the file that pki.crl names in its
agent.toml. One agent is enough: the others fetch newer lists from it.

Examples:
  steepctl pki crl                          which lists there are
  steepctl pki crl --publish                hand them to an agent (admins)
  steepctl pki crl --sign --publish         sign them anew before they are overdue
  steepctl pki crl --export /etc/steep/crl.pem";

/// Arguments of `pki crl`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CrlArgs {
    /// Sign fresh lists first, revoking nothing more
    #[arg(long)]
    pub sign: bool,
    /// Hand the lists to a running agent
    #[arg(long)]
    pub publish: bool,
    /// Write the lists to this file, for pki.crl in an agent.toml
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Fresh lists should be replaced after so many days
    #[arg(long, value_name = "DAYS", default_value_t = revoke::USUAL_DAYS, requires = "sign", value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub days: u32,
    /// Where the authorities are
    #[arg(long, value_name = "DIR", default_value = USUAL_DIR)]
    pub dir: PathBuf,
}

/// Shows, signs, exports and hands in the revocation lists.
pub async fn run(args: &CrlArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let explain = |error: crate::pki::Error| error.explain();
    let path = args.dir.join(revoke::FILE);
    if args.sign {
        revoke::sign_all(&args.dir, args.days, Timestamp::now()).map_err(explain)?;
    }
    if path.symlink_metadata().is_err() {
        let text = format!("{} has no revocation lists: nothing was revoked yet", args.dir.display());
        return Err(Failure::new(Code::NotIssuedHere, text)
            .hint("steepctl pki revoke WHO revokes; steepctl pki crl --sign signs lists that revoke nothing"));
    }
    let lists = revoke::read(&args.dir, &path).map_err(explain)?;
    let pem: String = lists.iter().map(|list| list.pem()).collect();
    if let Some(file) = &args.export {
        files::replace(&NewFile::certificate(file.clone(), pem.clone())).map_err(explain)?;
    }
    let published = match args.publish {
        true => Some(global.client(out)?.publish_revocations(&pem).await?),
        false => None,
    };
    if out.is_json() {
        let shown: Vec<_> = lists.iter().map(as_json).collect();
        out.json(&json!({
            "lists": shown,
            "file": path.display().to_string(),
            "published_to": published.as_ref().map(|reply| &reply.served_by),
            "news": published.as_ref().map(|reply| reply.news),
        }))?;
        return Ok(Exit::Success);
    }
    out.data(&table(&lists, Timestamp::now()))?;
    if let Some(file) = &args.export {
        out.talk(&format!("written to {}: name it as pki.crl in an agent.toml", word(file)));
    }
    match &published {
        Some(reply) if reply.news == 0 => out.talk(&format!("{} goes by these lists already", safe(&reply.served_by))),
        Some(reply) => {
            out.talk(&format!("{} goes by these lists now and passes them on", safe(&reply.served_by)));
        }
        None => {}
    }
    Ok(Exit::Success)
}

fn table(lists: &[RevocationList], now: Timestamp) -> String {
    let mut table = Table::new(&[
        ("AUTHORITY", Side::Left),
        ("KEY", Side::Left),
        ("NUMBER", Side::Right),
        ("SIGNED", Side::Left),
        ("REPLACE BEFORE", Side::Left),
        ("REVOKED", Side::Right),
    ]);
    for list in lists {
        let tone = if list.until() < now { Tone::Bad } else { Tone::Plain };
        table.row([
            Cell::new(list.issuer()),
            Cell::new(list.authority().get(..12).unwrap_or(list.authority())),
            Cell::new(list.number().to_string()),
            Cell::new(units::date_time(list.from())),
            Cell::new(units::date_time(list.until())).tone(tone),
            Cell::new(units::count(list.serials().len() as u64)),
        ]);
    }
    table.render()
}

fn as_json(list: &RevocationList) -> serde_json::Value {
    json!({
        "authority": list.issuer(),
        "key": list.authority(),
        "number": list.number(),
        "signed_at": list.from(),
        "replace_before": list.until(),
        "revoked": list.serials().iter().map(|serial| serial.as_str()).collect::<Vec<_>>(),
    })
}
