//! `steepctl schema export`

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    v1,
};

use crate::{
    cli::Global,
    output::{Output, exit_code::Exit, json, shell_word},
    units,
};

const EXAMPLES: &str = "\
The document has the database, every table, and every type and sequence, with
fingerprints and what they are made of. Columns are arrays: name, type,
default, not null, identity, generated, its expression, collation.

Examples:
  steepctl schema export node_a | jq -r '.tables[].fingerprint'
  steepctl schema export node_a --output-file node_a.json";

/// Arguments of `schema export`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    /// The node
    pub node: NodeId,
    /// Write the document to this file, which must not be there yet
    #[arg(long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
}

/// Prints all of a node's schema, or writes it to a file.
pub async fn run(args: &ExportArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let pages = global.client(out)?.export_schema(args.node.as_str()).await?;
    let document = document(&pages)?;
    match &args.output_file {
        None => out.json(&document)?,
        Some(path) => {
            super::write(path, serde_json::to_string_pretty(&document).expect("our own values have text keys"))?;
            let tables = pages.iter().map(|page| page.tables.len() as u64).sum();
            let path = shell_word(&path.display().to_string());
            out.talk(&format!("written to {path}: {}", units::counted(tables, "table")));
        }
    }
    let environment = pages.last().and_then(|page| page.environment.as_ref());
    if environment.is_some_and(|environment| !environment.is_complete) {
        out.talk(&super::sides::incomplete(args.node.as_str(), out.glyphs()));
    }
    out.via(pages.last().map(|page| page.served_by.as_str()).unwrap_or_default());
    Ok(Exit::Success)
}

/// All pages as one document.
fn document(pages: &[v1::SchemaPage]) -> Result<Value, Failure> {
    let tables = pages.iter().flat_map(|page| &page.tables);
    let tables: Vec<_> = tables
        .map(|table| opened(json::message("TableSchema", table), &["columns", "definition"]))
        .collect::<Result<_, _>>()?;
    let objects = pages.iter().flat_map(|page| &page.objects);
    let objects: Vec<_> = objects
        .map(|object| opened(json::message("ObjectSchema", object), &["definition"]))
        .collect::<Result<_, _>>()?;
    let environment = pages.iter().find_map(|page| page.environment.as_ref()).cloned().unwrap_or_default();
    let environment = opened(json::message("SchemaEnvironment", &environment), &["definition"])?;
    Ok(json!({ "environment": environment, "tables": tables, "objects": objects }))
}

/// A message whose fields of these names are documents, not texts that hold documents.
fn opened(message: json::Reflected, documents: &[&str]) -> Result<Value, Failure> {
    let unusable = |error: serde_json::Error| {
        Failure::new(Code::Internal, "the agent sent a document that cannot be read").caused_by(&error)
    };
    let mut value = serde_json::to_value(message).map_err(unusable)?;
    for name in documents {
        if let Some(text) = value[*name].as_str().filter(|text| !text.is_empty()) {
            value[*name] = serde_json::from_str(text).map_err(unusable)?;
        }
    }
    Ok(value)
}
