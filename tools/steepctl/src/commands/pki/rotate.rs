//! `steepctl pki rotate`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use steep_protocol::failure::{Explain as _, Failure};

use super::{dir_option, init::USUAL_DIR, paths, word};
use crate::{
    output::{Output, exit_code::Exit},
    pki::rotate,
};

const EXAMPLES: &str = "\
Three steps, none of which interrupts anything:
  1. pki rotate writes a ca.pem that holds both roots: hand it to every agent
     and every operator. From then on the new authorities issue.
  2. When all have it: pki renew NODE and pki renew operator NAME for everybody,
     and put the new files in place.
  3. When all have theirs: pki rotate --finish writes a ca.pem with the new root
     alone: hand it to every agent and every operator.
Agents read changed files by themselves. The old root's key is not needed.

Examples:
  steepctl pki rotate
  steepctl pki rotate --finish";

/// Arguments of `pki rotate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RotateArgs {
    /// Drop the old root, once everybody has a certificate under the new one
    #[arg(long)]
    pub finish: bool,
    /// Drop it although somebody has none
    #[arg(long, requires = "finish")]
    pub force: bool,
    /// Where the authorities are
    #[arg(long, value_name = "DIR", default_value = USUAL_DIR)]
    pub dir: PathBuf,
}

/// Begins or finishes the exchange of the root.
pub fn run(args: &RotateArgs, out: &Output) -> Result<Exit, Failure> {
    let now = Timestamp::now();
    let (dir, ca) = (dir_option(&args.dir), word(&args.dir.join("ca.pem")));
    if args.finish {
        let finished = rotate::finish(&args.dir, args.force, now).map_err(|error| error.explain())?;
        if out.is_json() {
            out.json(&json!({ "files": paths(&[finished.ca]), "retired": finished.retired.display().to_string() }))?;
            return Ok(Exit::Success);
        }
        out.data(&format!(
            "{ca} holds the new root alone; the old authorities are in {}\nNext: hand {ca} to every agent and every \
             operator",
            word(&finished.retired)
        ))?;
        return Ok(Exit::Success);
    }
    let written = rotate::begin(&args.dir, now).map_err(|error| error.explain())?;
    if out.is_json() {
        out.json(&json!({ "files": paths(&written) }))?;
        return Ok(Exit::Success);
    }
    out.data(&format!(
        "{ca} holds the old and a new root; the new authorities issue from now on\n\
         Next: hand {ca} to every agent and every operator; when all have it, for each of them\n  \
         steepctl pki renew NODE{dir}\n  steepctl pki renew operator NAME{dir}\n\
         and when all have their new files\n  steepctl pki rotate --finish{dir}"
    ))?;
    Ok(Exit::Success)
}
