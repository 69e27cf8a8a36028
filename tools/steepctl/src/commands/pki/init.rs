//! `steepctl pki init`

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::MeshName,
};

use super::{dir_option, paths};
use crate::{
    output::{Output, exit_code::Exit, safe, style::Tone},
    pki::authority,
};

/// Where certificates are where nobody says.
pub(super) const USUAL_DIR: &str = "pki";

const EXAMPLES: &str = "\
Makes a root and two authorities it signs: one for nodes, one for operators.
Whoever has ca.key can make a mesh of their own that yours would trust: keep it
offline. No file is ever overwritten.

Examples:
  steepctl pki init --mesh acme
  steepctl pki init --mesh acme --dir /root/acme-pki";

/// Arguments of `pki init`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InitArgs {
    /// The name of the mesh; it stands in every certificate and cannot be changed
    #[arg(long, value_name = "NAME")]
    pub mesh: MeshName,
    /// Where to write the files
    #[arg(long, value_name = "DIR", default_value = USUAL_DIR)]
    pub dir: PathBuf,
}

/// Makes the authorities of a new mesh.
pub fn run(args: &InitArgs, out: &Output) -> Result<Exit, Failure> {
    let written = authority::create(&args.mesh, &args.dir, Timestamp::now()).map_err(|error| error.explain())?;
    if out.is_json() {
        out.json(&json!({ "mesh": args.mesh, "files": paths(&written) }))?;
        return Ok(Exit::Success);
    }
    let about = [
        "root certificate: every agent and every steepctl needs it",
        "its key: take it offline, it signs authorities and nothing else",
        "authority for nodes",
        "its key: needed to issue nodes",
        "authority for operators",
        "its key: needed to issue operators",
    ];
    let width = written.iter().map(|path| path.display().to_string().len()).max().unwrap_or(0);
    out.data(&format!("{} has its authorities:", Tone::Strong.paint(&format!("Mesh {}", args.mesh))))?;
    for (path, what) in written.iter().zip(about) {
        out.data(&format!("  {:<width$}  {what}", safe(&path.display().to_string())))?;
    }
    let dir = dir_option(&args.dir);
    out.data(&format!(
        "Next:\n  steepctl pki issue node node_a{dir}\n  steepctl pki issue operator NAME --role admin{dir}"
    ))?;
    Ok(Exit::Success)
}
