//! `steepctl schema diff`

use clap::Args;
use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    names::{BadTableName, TableName, parse_table},
    v1,
};

use super::sides;
use crate::{
    cli::Global,
    client::Client,
    commands::selection,
    output::{Output, exit_code::Exit, json, sides::Sides, style::Tone},
    units,
};

const EXAMPLES: &str = "\
Marks: + only on the first node, - only on the second, ~ on both and not the
same. Lines without a mark are the same on both.

Examples:
  steepctl schema diff node_a node_b
  steepctl schema diff node_a node_b sales.orders
  steepctl schema diff node_a node_b -o json | jq '.tables[].differences'";

/// Tables asked for at once, so that an answer stays far below the longest message there can be.
const TOGETHER: usize = 50;

/// Arguments of `schema diff`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DiffArgs {
    /// One node
    #[arg(value_name = "A")]
    pub left: NodeId,
    /// The other
    #[arg(value_name = "B")]
    pub right: NodeId,
    /// The table, as schema.table; without it, every table that differs
    #[arg(value_name = "TABLE", value_parser = table)]
    pub table: Option<TableName>,
}

fn table(text: &str) -> Result<TableName, BadTableName> {
    parse_table(text)
}

/// Prints what differs between two nodes, side by side.
pub async fn run(args: &DiffArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    super::refuse_same(&args.left, &args.right)?;
    let mut client = global.client(out)?;
    let reply = match &args.table {
        Some(table) => one(args, &mut client, table).await?,
        None => differing(args, &mut client).await?,
    };
    if out.is_json() {
        out.json(&json::message("CompareSchemasReply", &reply))?;
        return Ok(Exit::Success);
    }
    let now = Timestamp::now();
    for table in &reply.tables {
        out.data(&format!("{}\n", side_by_side(args, table, out.width())))?;
    }
    if args.table.is_none() {
        for line in sides::beside_tables(&reply, args.left.as_str(), args.right.as_str()) {
            out.data(&line)?;
        }
    }
    // At the end, where a long list leaves the reader.
    for doubt in sides::doubts(&reply, now, out.glyphs()) {
        out.data(&doubt)?;
    }
    out.data(&format!("{}   {}", ending(&reply), sides::captured(&reply, now)))?;
    let differs = reply.tables.iter().any(|table| table.verdict != "MATCH");
    if differs || (args.table.is_none() && sides::differ(&reply)) {
        out.data(&to_fix(args, &reply))?;
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn request(args: &DiffArgs, selection: Option<v1::Selection>, with_rows: bool) -> v1::CompareSchemasRequest {
    v1::CompareSchemasRequest { left: args.left.to_string(), right: args.right.to_string(), selection, with_rows }
}

fn only(tables: Vec<v1::TableName>) -> Option<v1::Selection> {
    Some(v1::Selection { tables, ..v1::Selection::default() })
}

/// All there is of one table.
async fn one(args: &DiffArgs, client: &mut Client<'_>, table: &TableName) -> Result<v1::CompareSchemasReply, Failure> {
    let wanted = selection::message(table);
    let mut reply = client.compare_schemas(&request(args, only(vec![wanted.clone()]), true)).await?;
    reply.tables.retain(|one| one.table.as_ref() == Some(&wanted));
    if reply.tables.is_empty() {
        let text = format!("neither {} nor {} has table {table}", args.left, args.right);
        return Err(Failure::new(Code::TableUnknown, text));
    }
    Ok(reply)
}

/// All there is of every table that differs.
async fn differing(args: &DiffArgs, client: &mut Client<'_>) -> Result<v1::CompareSchemasReply, Failure> {
    let mut reply = client.compare_schemas(&request(args, None, false)).await?;
    reply.tables.retain(|table| table.verdict != "MATCH");
    let names: Vec<_> = reply.tables.iter().filter_map(|table| table.table.clone()).collect();
    reply.tables.clear();
    for some in names.chunks(TOGETHER) {
        let shown = client.compare_schemas(&request(args, only(some.to_vec()), true)).await?;
        // What was made the same meanwhile differs no more; what else is told was not asked for.
        let asked = |table: &v1::TableComparison| table.table.as_ref().is_some_and(|name| some.contains(name));
        reply.tables.extend(shown.tables.into_iter().filter(|table| table.verdict != "MATCH" && asked(table)));
    }
    Ok(reply)
}

/// One table in two columns.
fn side_by_side(args: &DiffArgs, table: &v1::TableComparison, width: usize) -> String {
    let name = super::name(table.table.as_ref()).to_string();
    let mut sides = Sides::new(&name, args.left.as_str(), args.right.as_str());
    for row in &table.rows {
        match row.mark.as_str() {
            "=" => sides.line("", Tone::Plain, &row.name, &row.left, "="),
            "+" => sides.line("+", Tone::Good, &row.name, &row.left, "(missing)"),
            "-" => sides.line("-", Tone::Bad, &row.name, "(missing)", &row.right),
            mark => sides.line(mark, Tone::Warn, &row.name, &row.left, &row.right),
        }
    }
    if table.rows.is_empty() {
        match table.verdict.as_str() {
            "LOCAL_ONLY" => sides.line("+", Tone::Good, "(table)", "there", "(missing)"),
            "REMOTE_ONLY" => sides.line("-", Tone::Bad, "(table)", "(missing)", "there"),
            "MATCH" => sides.line("", Tone::Plain, "(table)", "there", "="),
            _ => sides.line("~", Tone::Warn, "(table)", "there", "differs"),
        }
    }
    format!("{}\n  {}", sides.render(width), summary(args, table))
}

/// `1 missing on node_b, 1 changed.`
fn summary(args: &DiffArgs, table: &v1::TableComparison) -> String {
    match table.verdict.as_str() {
        "MATCH" => return "the same on both.".into(),
        "LOCAL_ONLY" => return format!("exists only on {}.", args.left),
        "REMOTE_ONLY" => return format!("exists only on {}.", args.right),
        _ => {}
    }
    let marked = |mark: &str| table.rows.iter().filter(|row| row.mark == mark).count() as u64;
    let counted = [
        (marked("+"), format!("missing on {}", args.right)),
        (marked("-"), format!("only on {}", args.right)),
        (marked("~"), "changed".to_owned()),
    ];
    let told: Vec<_> =
        counted.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", units::count(n))).collect();
    let qualifier = match table.qualifier.as_str() {
        "" => "",
        "ORDER_ONLY" => " Only the order of columns differs: rows are replicated by name.",
        "TEXT_ONLY" => " Only the text differs, as versions of PostgreSQL write it.",
        _ => " Less than it seems.",
    };
    let told = if told.is_empty() { "differs".to_owned() } else { told.join(", ") };
    format!("{told}.{qualifier}")
}

fn ending(reply: &v1::CompareSchemasReply) -> String {
    match reply.tables.iter().filter(|table| table.verdict != "MATCH").count() as u64 {
        0 => "no table differs.".into(),
        1 => "1 table differs.".into(),
        many => format!("{} tables differ.", units::count(many)),
    }
}

/// The command that shows what would mend it.
fn to_fix(args: &DiffArgs, reply: &v1::CompareSchemasReply) -> String {
    let DiffArgs { left, right, .. } = args;
    let table =
        args.table.as_ref().and(reply.tables.first()).and_then(|one| super::as_word(&super::name(one.table.as_ref())));
    let tables = table.map(|word| format!(" --tables {word}")).unwrap_or_default();
    format!("to fix {right}:  steepctl schema plan {left} {right}{tables}")
}
