//! `steepctl config show`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use steep_protocol::failure::Failure;

use crate::{
    cli::Global,
    contexts::{File, Origin, Setting},
    output::{
        Output,
        exit_code::Exit,
        safe,
        style::Tone,
        table::{Cell, Side, Table},
    },
};

const EXAMPLES: &str = "\
What is closer to you counts: options, then a context named with --context,
then the environment, then STEEPCTL_CONTEXT or default_context of
~/.config/steep/steepctl.toml (or the file that STEEPCTL_CONFIG names).

Examples:
  steepctl config show --origin
  steepctl --context prod config show";

/// Arguments of `config show`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArgs {
    /// Also say where each value comes from
    #[arg(long)]
    pub origin: bool,
}

/// Prints the settings an agent would be asked with.
pub fn run(args: &ShowArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let file = File::load(None)?;
    let settings = global.settings(Some(&file))?;
    let path = |setting: &Setting<Option<PathBuf>>| {
        setting.value.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    };
    let rows: [(&str, String, &Origin); 5] = [
        ("context", settings.context.value.clone().unwrap_or_default(), &settings.context.origin),
        ("peers", settings.peers.value.join(", "), &settings.peers.origin),
        ("cert", path(&settings.cert), &settings.cert.origin),
        ("key", path(&settings.key), &settings.key.origin),
        ("ca", path(&settings.ca), &settings.ca.origin),
    ];
    let contexts: Vec<_> = file.contexts.keys().cloned().collect();
    if out.is_json() {
        let values =
            rows.map(|(name, value, origin)| json!({ "name": name, "value": value, "origin": origin.to_string() }));
        out.json(&json!({ "file": file.path.display().to_string(), "contexts": contexts, "settings": values }))?;
        return Ok(Exit::Success);
    }
    let mut columns = vec![("SETTING", Side::Left), ("VALUE", Side::Left)];
    if args.origin {
        columns.push(("FROM", Side::Left));
    }
    let mut table = Table::new(&columns);
    for (name, value, origin) in rows {
        let mut row = vec![Cell::new(name), Cell::new(value)];
        if args.origin {
            row.push(Cell::new(origin.to_string()).tone(Tone::Faint));
        }
        table.row(row);
    }
    out.data(&table.render())?;
    let known = if contexts.is_empty() { "none".into() } else { contexts.join(", ") };
    out.data(&format!("contexts in {}: {}", safe(&file.path.display().to_string()), safe(&known)))?;
    Ok(Exit::Success)
}
