//! `steepctl config check`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    wire::identity::{Identity, Who},
};

use crate::{
    contexts::{Context, File},
    output::{
        Output,
        exit_code::Exit,
        safe,
        style::Tone,
        table::{Cell, Side, Table},
    },
};

const EXAMPLES: &str = "\
Examples:
  steepctl config check
  steepctl config check ./steepctl.toml";

/// Arguments of `config check`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CheckArgs {
    /// The file [default: where steepctl looks for it]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Checks the file, and each context's certificate as it would be shown.
pub fn run(args: &CheckArgs, out: &Output) -> Result<Exit, Failure> {
    if let Some(path) = args.file.as_ref().filter(|path| !path.exists()) {
        return Err(Failure::new(Code::ClientConfigInvalid, format!("there is no file {}", path.display())));
    }
    let file = File::load(args.file.as_deref())?;
    let looked: Vec<_> = file.contexts.iter().map(|(name, context)| (name, context, look(context))).collect();
    if out.is_json() {
        let contexts: Vec<_> = looked
            .iter()
            .map(|(name, context, identity)| {
                let (who, wrong) = (identity.as_ref().ok(), identity.as_ref().err());
                json!({ "context": name, "peers": context.peers, "identity": who, "problem": wrong })
            })
            .collect();
        out.json(&json!({ "file": file.path.display().to_string(), "default_context": file.default_context, "contexts": contexts }))?;
    } else if looked.is_empty() {
        out.data(&format!("{} has no contexts", safe(&file.path.display().to_string())))?;
    } else {
        let mut table = Table::new(&[("CONTEXT", Side::Left), ("PEERS", Side::Left), ("CERTIFICATE", Side::Left)]);
        for (name, context, identity) in &looked {
            let default = if file.default_context.as_ref() == Some(*name) { " (default)" } else { "" };
            let shown = match identity {
                Ok(who) => Cell::new(who).tone(Tone::Good),
                Err(reason) => Cell::new(reason).tone(Tone::Bad),
            };
            table.row([Cell::new(format!("{name}{default}")), Cell::new(context.peers.join(", ")), shown]);
        }
        out.data(&table.render())?;
    }
    let wrong = looked.iter().filter_map(|(name, _, identity)| Some(format!("{name}: {}", identity.as_ref().err()?)));
    let wrong: Vec<_> = wrong.collect();
    if wrong.is_empty() {
        return Ok(Exit::Success);
    }
    let failure =
        Failure::new(Code::ClientConfigInvalid, format!("{} has contexts that cannot work", file.path.display()));
    Err(wrong.into_iter().fold(failure, Failure::cause))
}

/// Whose certificate a context shows, or what is wrong with it.
fn look(context: &Context) -> Result<String, String> {
    if context.peers.is_empty() {
        return Err("it names no peers".into());
    }
    let cert = context.cert.as_ref().ok_or("it names no cert")?;
    let key = context.key.clone().unwrap_or_else(|| cert.with_extension("key"));
    let ca = context.ca.clone().unwrap_or_else(|| cert.with_file_name("ca.pem"));
    let identity = Identity::load(cert, &key, &ca).map_err(|error| {
        let failure = error.explain();
        failure.causes.into_iter().fold(failure.message, |text, cause| format!("{text}: {cause}"))
    })?;
    match &identity.me().who {
        Who::Operator { .. } => Ok(format!("{} of mesh {}", identity.me(), identity.me().mesh)),
        Who::Node(node) => Err(format!("{} is the certificate of node {node}, not of an operator", cert.display())),
    }
}
