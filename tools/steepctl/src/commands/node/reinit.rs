//! `steepctl node reinit`

mod failed;
mod full;

use std::time::Duration;

use clap::{ArgGroup, Args};
use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    names::TableName,
    node::NodeState,
    v1,
    wire::compress::{BadCompression, Compression},
};

use super::plan;
use crate::{
    cli::Global,
    client::Client,
    commands::selection::{self, Schemas, Tables, schemas, tables},
    follow::{self, FollowArgs, ending},
    output::{
        Output,
        exit_code::Exit,
        json,
        progress::Subject,
        safe,
        style::Tone,
        table::{Cell, Side, Table},
    },
    units,
};

/// The rows of both nodes are counted, and both examined.
const PLAN_LIMIT: Duration = Duration::from_secs(600);

const EXAMPLES: &str = "\
The source wins: whatever the tables hold is replaced by its rows. They come
into tables beside the old ones and then take their place at once; all other
tables replicate the whole time. Where the node also replicates back, nobody
can change these tables on it until the new rows are in place.

Examples:
  steepctl node reinit node_b --tables sales.orders,sales.items --dry-run
  steepctl node reinit node_b --tables sales.orders,sales.items
  steepctl node reinit node_b --schema sales --source node_a --confirm node_b
  steepctl node reinit node_b --tables events --in-place     no room for both
  steepctl node reinit node_b --full                         all of it, from the beginning";

/// Arguments of `node reinit`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("what").args(["tables", "schema", "full"]).required(true).multiple(true))]
pub struct ReinitArgs {
    /// The node whose tables are copied again
    pub node: NodeId,
    /// These tables, as schema.table; commas between them
    #[arg(long, value_name = "TABLES", value_parser = tables)]
    pub tables: Vec<Tables>,
    /// All tables of these schemas; commas between them
    #[arg(long, value_name = "SCHEMA", visible_alias = "schemas", value_parser = schemas)]
    pub schema: Vec<Schemas>,
    /// Everything: the node leaves replication, which waits until the others have what it wrote, and is initialized again
    #[arg(long, conflicts_with_all = ["tables", "schema", "in_place"])]
    pub full: bool,
    /// The node to copy from; auto takes the one it is least behind of, with the same schema
    #[arg(long, value_name = "SOURCE", default_value = "auto")]
    pub source: String,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Empty the tables first, for want of room: readers see that, and there is no way back
    #[arg(long)]
    pub in_place: bool,
    /// The node's name once more, to confirm without being asked
    #[arg(long, value_name = "NODE")]
    pub confirm: Option<NodeId>,
    /// Streams at once, 1 to 16 [default: copy.parallel of the node's agent]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub parallel: Option<u32>,
    /// Copy at most so many bytes a second: 50MB, 50MiB, 50000
    #[arg(long, value_name = "RATE", value_parser = units::parse_rate)]
    pub max_rate: Option<u64>,
    /// How rows travel: auto, none, lz4, zstd or zstd:LEVEL (-7 to 19)
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = compression)]
    pub compress: String,
    /// Print the operation's id and return; do not watch
    #[arg(long)]
    pub detach: bool,
    /// How to watch.
    #[command(flatten)]
    pub follow: FollowArgs,
}

/// Checked here, sent as typed.
fn compression(text: &str) -> Result<String, BadCompression> {
    text.parse::<Compression>().map(|_| text.to_owned())
}

/// Where the rows come from.
struct Chosen {
    source: NodeId,
    one_way: bool,
    /// Nobody named it.
    is_auto: bool,
    /// The node has a subscription to it. A failed node has none where its last initialization was undone.
    replicates: bool,
}

/// Shows what would be replaced, has it confirmed, starts, and follows to the end.
pub async fn run(args: &ReinitArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let chosen = choose(args, &mut client).await?;
    if args.full {
        return full::run(args, &chosen, &mut client, global, out).await;
    }
    let asked = request(args, &chosen, OperationId::generate().to_string(), true);
    let plan = client.reinit_node(&asked, false, PLAN_LIMIT).await?;
    let failed = plan::failed(&plan.checks, &format!("cannot copy tables of {} again", args.node));
    if args.dry_run && out.is_json() {
        out.json(&json::message("ReinitNodeReply", &plan))?;
    } else if args.dry_run {
        out.data(&source_line(args, &chosen))?;
        out.data(&plan::checks(&plan.checks, true, out.glyphs()))?;
        // What cannot begin deletes nothing.
        if failed.is_none() {
            out.data(&format!("\n{}", replaced(&plan, args, &chosen)))?;
        }
        out.talk("nothing was changed");
        out.via(&plan.served_by);
    }
    if let Some(failure) = failed {
        if !args.dry_run {
            out.talk(&plan::checks(&plan.checks, false, out.glyphs()));
        }
        return Err(failure);
    }
    if args.dry_run {
        return Ok(Exit::Success);
    }
    confirm(args, &replaced(&plan, args, &chosen), global, out)?;
    start(args, &chosen, &mut client, global, out).await
}

async fn start(
    args: &ReinitArgs,
    chosen: &Chosen,
    client: &mut Client<'_>,
    global: &Global,
    out: &Output,
) -> Result<Exit, Failure> {
    let op_id = OperationId::generate().to_string();
    let request = request(args, chosen, op_id.clone(), false);
    let started = client.reinit_node(&request, true, PLAN_LIMIT).await;
    let reply = started.map_err(|failure| client.perhaps_started(failure, &op_id))?;
    if args.detach {
        if out.is_json() {
            out.json(&json::message("ReinitNodeReply", &reply))?;
        } else {
            out.data(&reply.op_id)?;
        }
        return Ok(Exit::Success);
    }
    out.talk(&format!("op {} runs in the agents; Ctrl-C detaches, it does not stop it", safe(&reply.op_id)));
    out.talk(&source_line(args, chosen));
    out.via(&reply.served_by);
    let subject = Subject { op_id: reply.op_id, target: args.node.to_string(), source: chosen.source.to_string() };
    let followed = follow::until_ended(client, out, &subject, args.follow, !global.no_input).await?;
    ending::conclude(out, followed, ending::Wanted::Completion)
}

fn source_line(args: &ReinitArgs, chosen: &Chosen) -> String {
    let ways = if chosen.one_way { ", one way" } else { "" };
    match (chosen.replicates, chosen.is_auto) {
        (true, true) => {
            format!(
                "Source    {} (auto: lowest lag, same schema); {} replicates from it{ways}",
                chosen.source, args.node
            )
        }
        (true, false) => format!("Source    {}; {} replicates from it{ways}", chosen.source, args.node),
        (false, true) => format!("Source    {} (auto: as last time){ways}; {} is failed", chosen.source, args.node),
        (false, false) => format!("Source    {}{ways}; {} is failed", chosen.source, args.node),
    }
}

/// The source that was named, or the one the node is least behind of: it has to replicate from it either way, unless it has
/// failed and nothing is left of that.
async fn choose(args: &ReinitArgs, client: &mut Client<'_>) -> Result<Chosen, Failure> {
    let shown = client.get_node(args.node.as_str()).await?;
    let is_failed = shown.headline.as_ref().is_some_and(|it| it.state.parse() == Ok(NodeState::Failed));
    if is_failed && shown.subscriptions.iter().all(|found| found.source_node.is_empty()) {
        return failed::choose(args, client).await;
    }
    let nodes = client.list_nodes().await?.nodes;
    let digest = |name: &str| {
        let found = nodes.iter().find(|node| node.node_id == name);
        found.map(|node| node.schema_digest.clone()).unwrap_or_default()
    };
    let chosen = match args.source.as_str() {
        "auto" => best(&shown.subscriptions, &digest(args.node.as_str()), digest),
        named => shown.subscriptions.iter().find(|found| found.source_node == named),
    };
    let named = if args.source == "auto" { "any node".to_owned() } else { safe(&args.source) };
    let none = || {
        let text = format!("{} does not replicate from {named}", args.node);
        Failure::new(Code::NotReplicated, text).hint(format!("steepctl node show {}", args.node))
    };
    let chosen = chosen.ok_or_else(none)?;
    let source = chosen.source_node.parse().map_err(|_| none())?;
    Ok(Chosen { source, one_way: !chosen.mutual, is_auto: args.source == "auto", replicates: true })
}

/// The same schema first, one that runs, then the least behind.
fn best<'a>(
    subscriptions: &'a [v1::SubscriptionView],
    own: &str,
    digest: impl Fn(&str) -> String,
) -> Option<&'a v1::SubscriptionView> {
    let ours = subscriptions.iter().filter(|found| !found.source_node.is_empty());
    ours.min_by_key(|found| {
        let theirs = digest(&found.source_node);
        let differs = !own.is_empty() && !theirs.is_empty() && own != theirs;
        (differs, !found.enabled, found.lag_bytes.unwrap_or(u64::MAX), found.source_node.clone())
    })
}

/// What is replaced, table by table, and what that touches.
fn replaced(plan: &v1::ReinitNodeReply, args: &ReinitArgs, chosen: &Chosen) -> String {
    let mut table = Table::new(&[
        ("TABLE", Side::Left),
        ("ROWS NOW", Side::Right),
        ("ROWS ON SOURCE", Side::Right),
        ("", Side::Left),
        ("SIZE", Side::Right),
    ]);
    for one in &plan.tables {
        let name = one.table.clone().unwrap_or_default();
        table.row([
            Cell::new(TableName::new(name.schema, name.name).to_string()),
            Cell::new(units::count(one.target_rows)).tone(Tone::Bad),
            Cell::new(
                one.source_rows.map_or_else(|| format!("about {}", units::count(one.rows_estimate)), units::count),
            ),
            Cell::new(difference(one, args)),
            Cell::new(units::bytes(one.bytes)),
        ]);
    }
    let mut lines = vec![
        format!("This {} on {} and copies again from {}:", Tone::Bad.paint("DELETES"), args.node, chosen.source),
        table.render(),
        String::new(),
        format!("{} more of its tables go on replicating.", units::count(plan.other_tables)),
    ];
    if plan.tables.iter().any(|one| !difference(one, args).is_empty()) {
        let told = "Counted one node after the other: while the tables are written to, some rows may be on their way.";
        lines.insert(2, told.to_owned());
    }
    if !plan.foreign_keys.is_empty() {
        let count = units::counted(plan.foreign_keys.len() as u64, "foreign key");
        lines.push(format!("{count} will be looked at again afterwards; no other table is emptied:"));
        lines.extend(plan.foreign_keys.iter().map(|key| format!("  {}", safe(key))));
    }
    if !chosen.one_way {
        lines.push(format!("Until they are copied, nobody can change these tables on {}.", args.node));
    }
    if args.in_place {
        lines.push("In place: they are empty for readers until they are filled, and there is no way back.".into());
    }
    lines.join("\n")
}

/// How many rows more or fewer the node holds than its source, where both were counted and it is not as many.
fn difference(table: &v1::PlannedTable, args: &ReinitArgs) -> String {
    match table.source_rows.map(|there| (table.target_rows, there)) {
        Some((here, there)) if here > there => format!("{} more on {}", units::count(here - there), args.node),
        Some((here, there)) if here < there => format!("{} fewer on {}", units::count(there - here), args.node),
        _ => String::new(),
    }
}

/// Goes on only if what is `shown` is confirmed with the node's name.
fn confirm(args: &ReinitArgs, shown: &str, global: &Global, out: &Output) -> Result<(), Failure> {
    let node = &args.node;
    let refused = |message: String| {
        let hint = format!("--dry-run shows what is there; then add --confirm {node}");
        Failure::new(Code::ConfirmationNeeded, message).hint(hint)
    };
    match &args.confirm {
        Some(name) if name != node => {
            return Err(refused(format!("--confirm names {name}, but rows of {node} would be replaced")));
        }
        None if global.no_input || !out.can_ask() => {
            return Err(refused(format!("rows of {node} would be replaced, and nobody can be asked")));
        }
        _ => {}
    }
    out.say(shown);
    if args.confirm.is_some() {
        return Ok(());
    }
    match out.ask("Type the node name to continue: ") {
        Some(answer) if answer == node.as_str() => Ok(()),
        Some(answer) if !answer.is_empty() => Err(refused(format!("{answer:?} is not {node}; nothing was changed"))),
        _ => Err(refused("nothing was typed; nothing was changed".into())),
    }
}

fn request(args: &ReinitArgs, chosen: &Chosen, op_id: String, dry_run: bool) -> v1::ReinitNodeRequest {
    v1::ReinitNodeRequest {
        target: args.node.to_string(),
        source: chosen.source.to_string(),
        op_id,
        selection: Some(selection::of(&args.tables, &args.schema, &[])),
        one_way: chosen.one_way,
        parallel: args.parallel.unwrap_or(0),
        dry_run,
        in_place: args.in_place,
        max_rate: args.max_rate.unwrap_or(0),
        compress: args.compress.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        reinit: ReinitArgs,
    }

    fn parse(line: &str) -> Result<ReinitArgs, clap::Error> {
        let words = std::iter::once("reinit").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.reinit)
    }

    fn subscription(source: &str, lag: Option<u64>, enabled: bool) -> v1::SubscriptionView {
        v1::SubscriptionView {
            name: format!("steep_from_{source}"),
            source_node: source.into(),
            enabled,
            lag_bytes: lag,
            ..Default::default()
        }
    }

    #[test]
    fn tables_or_a_schema_have_to_be_named() {
        let told = parse("node_b").expect_err("nothing is named").to_string();
        for option in ["--tables", "--schema", "--full"] {
            assert!(told.contains(option), "{option} is not in:\n{told}");
        }
        for bad in ["node_b", "node_b --source node_a", "node_b --tables a,,b", "node_b --full --tables a"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let args = parse("node_b --schema sales --tables a --in-place").expect("a good line");
        let chosen =
            Chosen { source: "node_a".parse().expect("a node"), one_way: true, is_auto: true, replicates: true };
        let asked = request(&args, &chosen, "0192".into(), false);
        let selection = asked.selection.expect("always sent");
        assert_eq!((selection.schemas, selection.tables.len()), (vec!["sales".to_owned()], 1));
        assert!(asked.in_place && asked.one_way && !asked.dry_run);
    }

    #[test]
    fn a_table_with_as_many_rows_on_both_nodes_is_told_from_one_with_more_or_fewer() {
        let args = parse("node_b --tables a").expect("a good line");
        let table = |here, there| v1::PlannedTable { target_rows: here, source_rows: there, ..Default::default() };
        assert_eq!(difference(&table(1_500, Some(1_088)), &args), "412 more on node_b");
        assert_eq!(difference(&table(0, Some(3)), &args), "3 fewer on node_b");
        assert_eq!(difference(&table(3, Some(3)), &args), "");
        assert_eq!(difference(&table(3, None), &args), "", "an older agent does not count");
    }

    #[test]
    fn the_source_has_the_same_schema_runs_and_is_the_one_we_are_least_behind_of() {
        let digest = |name: &str| if name == "node_d" { "other".to_owned() } else { "same".to_owned() };
        let name = |found: &[v1::SubscriptionView]| best(found, "same", digest).map(|it| it.source_node.clone());
        let (a, c) = (subscription("node_a", Some(7), true), subscription("node_c", Some(3), true));
        let (d, e) = (subscription("node_d", Some(0), true), subscription("node_e", None, false));
        assert_eq!(name(&[a.clone(), c.clone()]).as_deref(), Some("node_c"));
        assert_eq!(name(&[a.clone(), d, e]).as_deref(), Some("node_a"));
        assert_eq!(name(&[subscription("", Some(0), true)]), None, "not made by Steep");
    }
}
