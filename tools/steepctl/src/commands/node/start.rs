//! `steepctl node start`

use std::time::Duration;

use clap::{Args, builder::PossibleValuesParser};
use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    operation::InitMethod,
    v1,
    wire::compress::{BadCompression, Compression},
};

use super::{by_hand, plan};
use crate::{
    cli::Global,
    client::Client,
    commands::selection::{self, Schemas, Tables, schemas, tables},
    follow::{self, FollowArgs, ending},
    output::{Output, exit_code::Exit, json, progress::Subject, safe},
    units,
};

/// The preflight of a start asks both databases; with many tables that takes its time.
const START_LIMIT: Duration = Duration::from_secs(120);
/// A dry run also counts the target's rows.
const PLAN_LIMIT: Duration = Duration::from_secs(600);

const EXAMPLES: &str = "\
Both nodes are checked first; nothing is changed before all checks pass. The
operation lives in the agents: steepctl only watches it.

Examples:
  steepctl node start node_b --from node_a --dry-run
  steepctl node start node_b --from node_a
  steepctl node start node_b --from node_a --tables sales.orders,sales.items
  steepctl node start node_b --from node_a --force --confirm node_b";

/// Arguments of `node start`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct StartArgs {
    /// The node to initialize
    pub target: NodeId,
    /// The node to initialize it from
    #[arg(long, value_name = "SOURCE")]
    pub from: NodeId,
    /// How to copy; auto picks, and says which and why
    #[arg(long, default_value = "auto", value_parser = methods())]
    pub method: String,
    /// Streams at once, 1 to 16 [default: copy.parallel of the target's agent]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub parallel: Option<u32>,
    /// Replicate from source to target only, not back
    #[arg(long)]
    pub one_way: bool,
    /// Only these tables, as schema.table; commas between them
    #[arg(long, value_name = "TABLES", value_parser = tables)]
    pub tables: Vec<Tables>,
    /// Only tables of these schemas; commas between them
    #[arg(long, value_name = "SCHEMAS", value_parser = schemas)]
    pub schemas: Vec<Schemas>,
    /// Never these tables, whatever else selects them
    #[arg(long, value_name = "TABLES", value_parser = tables)]
    pub exclude: Vec<Tables>,
    /// Tables of the target that differ: strict refuses, auto first adds what is missing, manual writes the DDL into a
    /// file and waits until they match
    #[arg(long, value_name = "MODE", default_value = "strict", value_parser = ["strict", "auto", "manual"])]
    pub schema_sync: String,
    /// Check and show the plan; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Empty the target's tables first if they hold rows
    #[arg(long)]
    pub force: bool,
    /// The target's name once more, to confirm --force without being asked
    #[arg(long, value_name = "TARGET", requires = "force")]
    pub confirm: Option<NodeId>,
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

fn methods() -> PossibleValuesParser {
    PossibleValuesParser::new(InitMethod::of_start().map(InitMethod::as_str))
}

/// Checked here, sent as typed.
fn compression(text: &str) -> Result<String, BadCompression> {
    text.parse::<Compression>().map(|_| text.to_owned())
}

/// Starts an initialization and follows it to its end, or plans it.
pub async fn run(args: &StartArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    if args.dry_run {
        return dry_run(args, &mut client, out).await;
    }
    let request = request(args, OperationId::generate().to_string(), false);
    if args.force {
        confirm_destruction(&request, args.confirm.as_ref(), &mut client, global, out).await?;
    }
    if args.schema_sync == "manual" {
        by_hand::settle(args, &mut client, global, out).await?;
    }
    let follow = (!args.detach).then_some(args.follow);
    start(request, follow, &mut client, global, out).await
}

/// Starts what an earlier request asked for once more; `confirm`: the target's name, where its tables are to be emptied.
pub(crate) async fn again(
    request: v1::StartNodeRequest,
    confirm: Option<&NodeId>,
    follow: Option<FollowArgs>,
    client: &mut Client<'_>,
    global: &Global,
    out: &Output,
) -> Result<Exit, Failure> {
    let request = v1::StartNodeRequest { op_id: OperationId::generate().to_string(), dry_run: false, ..request };
    if request.force {
        confirm_destruction(&request, confirm, client, global, out).await?;
    }
    start(request, follow, client, global, out).await
}

/// Starts it, and follows it to its end unless `follow` is none.
async fn start(
    request: v1::StartNodeRequest,
    follow: Option<FollowArgs>,
    client: &mut Client<'_>,
    global: &Global,
    out: &Output,
) -> Result<Exit, Failure> {
    let op_id = request.op_id.clone();
    let reply = client.start_node(&request, request.force, START_LIMIT).await;
    let reply = reply.map_err(|failure| client.perhaps_started(failure, &op_id))?;
    if let Some(failure) = plan::failed(&reply.checks, &cannot(&request)) {
        out.talk(&plan::checks(&reply.checks, false, out.glyphs()));
        return Err(failure);
    }
    // The agents may know this start under the id of whoever asked first with the same request.
    let op_id = if reply.op_id.is_empty() { op_id } else { reply.op_id.clone() };
    let Some(follow) = follow else {
        if out.is_json() {
            out.json(&json::message("StartNodeReply", &reply))?;
        } else {
            out.talk(&opening(&request, &reply, out));
            out.data(&op_id)?;
        }
        return Ok(Exit::Success);
    };
    out.talk(&format!("op {} runs in the agents; Ctrl-C detaches, it does not stop it", safe(&op_id)));
    out.talk(&opening(&request, &reply, out));
    out.via(&reply.served_by);
    let subject = Subject { op_id, target: request.target, source: request.source };
    let followed = follow::until_ended(client, out, &subject, follow, !global.no_input).await?;
    ending::conclude(out, followed, ending::Wanted::Completion)
}

fn cannot(request: &v1::StartNodeRequest) -> String {
    format!("cannot start {} from {}", safe(&request.target), safe(&request.source))
}

/// `init node_b <- node_a`, the method, and what the checks found.
fn opening(request: &v1::StartNodeRequest, reply: &v1::StartNodeReply, out: &Output) -> String {
    let ways = if request.one_way { ", one way" } else { "" };
    let (target, source) = (safe(&request.target), safe(&request.source));
    let mut lines = vec![format!("init {target} {} {source}{ways}", out.glyphs().from)];
    lines.extend(method(reply));
    lines.extend(mesh(reply, &target));
    if !reply.checks.is_empty() {
        lines.push(plan::checks(&reply.checks, false, out.glyphs()));
    }
    lines.join("\n")
}

/// The nodes of the mesh, where there are more than two.
fn mesh(reply: &v1::StartNodeReply, target: &str) -> Option<String> {
    let (last, others) = reply.mesh.split_last()?;
    (!others.is_empty()).then(|| {
        let with = safe(&format!("{} and {last}", others.join(", ")));
        format!("Mesh      {target} will replicate both ways with {with}")
    })
}

/// The method, and why it was taken where the operator left that open.
fn method(reply: &v1::StartNodeReply) -> Option<String> {
    let why = if reply.method_reason.is_empty() { String::new() } else { format!(" ({})", reply.method_reason) };
    (!reply.method.is_empty()).then(|| format!("Method    {}", safe(&format!("{}{why}", reply.method))))
}

async fn dry_run(args: &StartArgs, client: &mut Client<'_>, out: &Output) -> Result<Exit, Failure> {
    let reply = client.start_node(&request(args, OperationId::generate().to_string(), true), false, PLAN_LIMIT).await?;
    if out.is_json() {
        out.json(&json::message("StartNodeReply", &reply))?;
    } else {
        if let Some(method) = method(&reply) {
            out.data(&method)?;
        }
        if let Some(mesh) = mesh(&reply, args.target.as_str()) {
            out.data(&mesh)?;
        }
        out.data(&plan::checks(&reply.checks, true, out.glyphs()))?;
        out.data(&format!("\n{}", plan::tables(&reply.tables, args.target.as_str())))?;
        out.talk("nothing was changed");
        out.via(&reply.served_by);
    }
    match plan::failed(&reply.checks, &format!("cannot start {} from {}", args.target, args.from)) {
        Some(failure) => Err(failure),
        None => Ok(Exit::Success),
    }
}

/// Shows what `--force` would destroy, and goes on only if that is confirmed with the target's name.
async fn confirm_destruction(
    request: &v1::StartNodeRequest,
    confirm: Option<&NodeId>,
    client: &mut Client<'_>,
    global: &Global,
    out: &Output,
) -> Result<(), Failure> {
    let (target, source) = (request.target.as_str(), request.source.as_str());
    let refused = |message: String| {
        Failure::new(Code::ConfirmationNeeded, message).hint(format!(
            "steepctl node start {target} --from {source} --dry-run shows what it holds; then add --confirm {target}"
        ))
    };
    match confirm {
        Some(name) if name.as_str() != target => {
            return Err(refused(format!("--confirm names {name}, but {target} would be emptied")));
        }
        None if global.no_input || !out.can_ask() => {
            return Err(refused(format!("--force would empty tables on {target}, and nobody can be asked")));
        }
        _ => {}
    }
    let op_id = OperationId::generate().to_string();
    let planned = v1::StartNodeRequest { op_id, dry_run: true, ..request.clone() };
    let plan = client.start_node(&planned, false, PLAN_LIMIT).await?;
    if let Some(failure) = plan::failed(&plan.checks, &cannot(request)) {
        return Err(failure);
    }
    out.say(&plan::destruction(&plan.tables, target));
    if confirm.is_some() {
        return Ok(());
    }
    match out.ask("Type the node name to continue: ") {
        Some(answer) if answer == target => Ok(()),
        Some(answer) if !answer.is_empty() => Err(refused(format!("{answer:?} is not {target}; nothing was changed"))),
        _ => Err(refused("nothing was typed; nothing was changed".into())),
    }
}

fn request(args: &StartArgs, op_id: String, dry_run: bool) -> v1::StartNodeRequest {
    v1::StartNodeRequest {
        target: args.target.to_string(),
        source: args.from.to_string(),
        op_id,
        method: args.method.clone(),
        selection: Some(selection::of(&args.tables, &args.schemas, &args.exclude)),
        one_way: args.one_way,
        parallel: args.parallel.unwrap_or(0),
        force: args.force,
        dry_run,
        max_rate: args.max_rate.unwrap_or(0),
        compress: args.compress.clone(),
        // What was settled by hand is held to as strictly.
        schema_sync: if args.schema_sync == "auto" { "auto".into() } else { String::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        start: StartArgs,
    }

    fn parse(line: &str) -> Result<v1::StartNodeRequest, clap::Error> {
        let words = std::iter::once("start").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| request(&line.start, "0192".into(), false))
    }

    #[test]
    fn a_request_says_what_the_command_line_says() {
        let asked = parse(
            "node_b --from node_a --one-way --parallel 8 --max-rate 50MiB --compress zstd:3 --force --confirm node_b \
             --tables a,Sales.Orders --tables \"x,y\".z --schemas s,\"T\" --exclude b",
        )
        .expect("a good line");
        let selection = asked.selection.expect("always sent");
        let names: Vec<String> = selection.tables.iter().map(|t| format!("{}|{}", t.schema, t.name)).collect();
        assert_eq!(names, ["public|a", "sales|orders", "x,y|z"]);
        assert_eq!(selection.schemas, ["s", "T"]);
        assert_eq!(selection.exclude.len(), 1);
        assert_eq!((asked.parallel, asked.max_rate, asked.compress.as_str()), (8, 52_428_800, "zstd:3"));
        assert!(asked.one_way && asked.force && !asked.dry_run);
    }

    #[test]
    fn nothing_said_means_the_agents_choose() {
        let asked = parse("node_b --from node_a").expect("a good line");
        assert_eq!(
            (asked.parallel, asked.max_rate, asked.method.as_str(), asked.compress.as_str()),
            (0, 0, "auto", "auto")
        );
    }

    #[test]
    fn a_line_that_makes_no_sense_is_refused_before_anybody_is_asked() {
        for bad in [
            "node_b",
            "--from node_a",
            "Node_B --from node_a",
            "node_b --from node_a --parallel 0",
            "node_b --from node_a --parallel 17",
            "node_b --from node_a --max-rate fast",
            "node_b --from node_a --compress zstd:99",
            "node_b --from node_a --compress gzip",
            "node_b --from node_a --method magic",
            "node_b --from node_a --tables a,,b",
            "node_b --from node_a --tables a.b.c",
            "node_b --from node_a --schemas a.b",
            "node_b --from node_a --confirm node_b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
