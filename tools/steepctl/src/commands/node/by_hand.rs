//! `steepctl node start --schema-sync manual`: the DDL goes into a file, somebody runs it, and the start waits until the
//! tables match.

use std::path::PathBuf;

use steep_protocol::{
    failure::{Code, Failure},
    names::TableName,
    v1,
};

use super::start::StartArgs;
use crate::{
    cli::Global,
    client::Client,
    commands::{schema, selection},
    output::{Output, safe, shell_word},
};

/// Returns once no table that both nodes have keeps the start from beginning.
pub(super) async fn settle(
    args: &StartArgs,
    client: &mut Client<'_>,
    global: &Global,
    out: &Output,
) -> Result<(), Failure> {
    let mut differing = differing(args, client).await?;
    if differing.is_empty() {
        return Ok(());
    }
    let request = v1::PlanSchemaRequest {
        source: args.from.to_string(),
        target: args.target.to_string(),
        selection: Some(v1::Selection { tables: differing.clone(), ..v1::Selection::default() }),
    };
    let plan = client.plan_schema(&request).await?;
    let file = PathBuf::from(format!("{}.{}.sql", args.target, jiff::Timestamp::now().as_second()));
    let names: String = differing.iter().map(|name| format!(" --tables {}", shell_word(&readable(name)))).collect();
    schema::write(&file, schema::script::of(&plan, &names))?;
    let shown = shell_word(&file.display().to_string());
    out.say(&format!(
        "{} of {} differ from {}'s. What would bring them up to date was written to {shown}; nothing was changed.",
        tables(&differing),
        args.target,
        args.from
    ));
    if global.no_input || !out.can_ask() {
        let text = format!("{} of {} differ from {}'s", tables(&differing), args.target, args.from);
        return Err(Failure::new(Code::SchemaDiffers, text)
            .hint(format!("run what {shown} says on {}, then start again", args.target)));
    }
    while !differing.is_empty() {
        let question = format!("Run it on {}, then press Enter (or type q to give up): ", args.target);
        match out.ask(&question) {
            Some(answer) if !answer.starts_with('q') => {}
            _ => {
                return Err(
                    Failure::new(Code::Cancelled, "nothing was started").hint("start again when the tables match")
                );
            }
        }
        differing = self::differing(args, client).await?;
        if !differing.is_empty() {
            let names: Vec<_> = differing.iter().map(|name| safe(&readable(name))).collect();
            out.say(&format!("still differ: {}; steepctl schema diff {} {}", names.join(", "), args.from, args.target));
        }
    }
    Ok(())
}

fn tables(names: &[v1::TableName]) -> String {
    crate::units::counted(names.len() as u64, "table")
}

fn readable(name: &v1::TableName) -> String {
    TableName::new(name.schema.as_str(), name.name.as_str()).to_string()
}

/// Tables of both nodes whose difference keeps a strict start from beginning.
async fn differing(args: &StartArgs, client: &mut Client<'_>) -> Result<Vec<v1::TableName>, Failure> {
    let request = v1::CompareSchemasRequest {
        left: args.target.to_string(),
        right: args.from.to_string(),
        selection: Some(selection::of(&args.tables, &args.schemas, &args.exclude)),
        with_rows: false,
    };
    let compared = client.compare_schemas(&request).await?;
    let differs = |row: &v1::TableComparison| row.verdict == "MISMATCH" && row.is_blocking;
    Ok(compared.tables.into_iter().filter(differs).filter_map(|row| row.table).collect())
}
