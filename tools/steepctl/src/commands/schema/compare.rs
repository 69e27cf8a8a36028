//! `steepctl schema compare`

use clap::Args;
use jiff::Timestamp;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use super::sides;
use crate::{
    cli::Global,
    commands::selection::Selected,
    output::{
        Output,
        exit_code::Exit,
        json, safe,
        style::Tone,
        table::{Cell, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
LOCAL_ONLY is on the first node only, REMOTE_ONLY on the second. With
--exit-code the command ends with 12 when anything differs, and with 6 when
nothing does but a node could not be looked at now, or not completely.

Examples:
  steepctl schema compare node_a node_b
  steepctl schema compare node_a node_b --schemas sales --all
  steepctl schema compare node_a node_b --exit-code -q || echo drift";

/// So many differences of a table are named; `schema diff` has the others.
const NAMED: usize = 3;

/// Arguments of `schema compare`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    /// One node
    #[arg(value_name = "A")]
    pub left: NodeId,
    /// The other
    #[arg(value_name = "B")]
    pub right: NodeId,
    /// Some of the tables.
    #[command(flatten)]
    pub selected: Selected,
    /// Also list the tables that are the same
    #[arg(long)]
    pub all: bool,
    /// End with exit code 12 when anything differs but the order of columns
    #[arg(long)]
    pub exit_code: bool,
}

/// Compares two nodes and prints a verdict for each table.
pub async fn run(args: &CompareArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    super::refuse_same(&args.left, &args.right)?;
    let request = v1::CompareSchemasRequest {
        left: args.left.to_string(),
        right: args.right.to_string(),
        selection: args.selected.selection(),
        with_rows: false,
    };
    let reply = global.client(out)?.compare_schemas(&request).await?;
    if out.is_json() {
        out.json(&json::message("CompareSchemasReply", &reply))?;
    } else {
        show(args, &reply, out)?;
        out.via(&reply.served_by);
    }
    Ok(match () {
        () if !args.exit_code => Exit::Success,
        () if sides::differ(&reply) => Exit::Differs,
        () if !sides::are_certain(&reply) => Exit::Unreached,
        () => Exit::Success,
    })
}

fn show(args: &CompareArgs, reply: &v1::CompareSchemasReply, out: &Output) -> Result<(), Failure> {
    let now = Timestamp::now();
    let table = table(args, reply);
    if !table.is_empty() {
        out.data(&table.render())?;
    }
    for line in sides::beside_tables(reply, args.left.as_str(), args.right.as_str()) {
        out.data(&line)?;
    }
    // At the end, where a long list leaves the reader.
    for doubt in sides::doubts(reply, now, out.glyphs()) {
        out.data(&doubt)?;
    }
    out.data(&format!("{}   {}", counts(reply), sides::captured(reply, now)))?;
    if sides::differ(reply) {
        out.data(&next(args, reply))?;
    }
    Ok(())
}

fn table(args: &CompareArgs, reply: &v1::CompareSchemasReply) -> Table {
    let mut table = Table::new(&[("STATUS", Side::Left), ("TABLE", Side::Left), ("DETAIL", Side::Left)]);
    for one in reply.tables.iter().filter(|one| args.all || one.verdict != "MATCH") {
        let name = super::name(one.table.as_ref()).to_string();
        table.row([Cell::new(&one.verdict).tone(tone(one)), Cell::new(name), Cell::new(detail(args, one))]);
    }
    let hidden = count(reply, "MATCH");
    if !args.all && hidden > 0 {
        let (number, why) = (units::counted(hidden, "table"), "(hidden, use --all)");
        table.row([
            Cell::new("MATCH").tone(Tone::Good),
            Cell::new(number).tone(Tone::Faint),
            Cell::new(why).tone(Tone::Faint),
        ]);
    }
    table
}

/// How a verdict looks.
fn tone(table: &v1::TableComparison) -> Tone {
    match table.verdict.as_str() {
        "MATCH" => Tone::Good,
        _ if table.is_blocking => Tone::Bad,
        _ => Tone::Warn,
    }
}

/// What differs, in as few words as will do.
fn detail(args: &CompareArgs, table: &v1::TableComparison) -> String {
    match table.verdict.as_str() {
        "MATCH" => return String::new(),
        "LOCAL_ONLY" => return format!("exists only on {}", args.left),
        "REMOTE_ONLY" => return format!("exists only on {}", args.right),
        _ => {}
    }
    // What would stop replication comes first.
    let (blocking, other): (Vec<_>, Vec<_>) = table.differences.iter().partition(|difference| difference.is_blocking);
    let mut named: Vec<_> = blocking.into_iter().chain(other).map(|difference| difference.summary.clone()).collect();
    let more = named.len().saturating_sub(NAMED);
    named.truncate(NAMED);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    let qualified = match table.qualifier.as_str() {
        "" => String::new(),
        qualifier => format!(" ({qualifier})"),
    };
    let text = if named.is_empty() { "differs".into() } else { named.join("; ") };
    format!("{text}{qualified}")
}

fn count(reply: &v1::CompareSchemasReply, verdict: &str) -> u64 {
    reply.tables.iter().filter(|table| table.verdict == verdict).count() as u64
}

fn counts(reply: &v1::CompareSchemasReply) -> String {
    let of = |verdict: &str| units::count(count(reply, verdict));
    let blocking: Vec<_> = reply.tables.iter().filter(|table| table.is_blocking).collect();
    let mut named: Vec<_> =
        blocking.iter().take(NAMED).map(|table| super::name(table.table.as_ref()).to_string()).collect();
    if blocking.len() > NAMED {
        named.push(format!("{} more", units::count((blocking.len() - NAMED) as u64)));
    }
    let blocking = match blocking.len() {
        0 => String::new(),
        1 => format!("; 1 table cannot be replicated as it is: {}", named.join(", ")),
        many => {
            format!("; {} tables cannot be replicated as they are: {}", units::count(many as u64), named.join(", "))
        }
    };
    format!(
        "{} match, {} mismatch, {} local-only, {} remote-only{blocking}.",
        of("MATCH"),
        of("MISMATCH"),
        of("LOCAL_ONLY"),
        of("REMOTE_ONLY")
    )
}

/// The commands that say more, and what could be done.
fn next(args: &CompareArgs, reply: &v1::CompareSchemasReply) -> String {
    let CompareArgs { left, right, selected, .. } = args;
    let mut differing = reply.tables.iter().filter(|table| table.verdict != "MATCH");
    let only = match (differing.next(), differing.next()) {
        (Some(one), None) => super::as_word(&super::name(one.table.as_ref())).map(|word| format!(" {word}")),
        _ => None,
    };
    let only = safe(&only.unwrap_or_default());
    let words = selected.words();
    format!("next: steepctl schema diff {left} {right}{only}     steepctl schema plan {left} {right}{words}")
}
