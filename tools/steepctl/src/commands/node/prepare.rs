//! `steepctl node prepare`

use std::{path::PathBuf, time::Duration};

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId, names::TableName, node::NodeState, v1};

use super::physical;
use crate::{
    cli::Global,
    client::Client,
    commands::selection::{self, Schemas, Tables, schemas, tables},
    output::{
        Output,
        exit_code::Exit,
        json, safe, shell_word,
        table::{Cell, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
For a backup that you make yourself: the node keeps a slot from now on, and tells
the exact commands to back it up, to restore, and to complete the node restored.
What it keeps costs room for WAL until then; it expires, and can be taken back.
For pg_dump a snapshot is held too: DDL on the tables waits for it, and VACUUM does
not clean up behind it, until it is let go (--release) or the node's agent ends.
A dump is of the moment that is prepared; a physical copy (pg_basebackup, or a
snapshot of the running server's storage) ends later, at a point it knows itself.

Examples:
  steepctl node prepare node_a --for pg_dump --target node_b
  steepctl node prepare node_a --for pg_dump --tables sales.orders,sales.items --expires 24h
  steepctl node prepare node_a --for pg_basebackup --target node_b --into /srv/pg/18/node_b
  steepctl node prepare node_a --for storage-snapshot --target node_b
  steepctl node prepare node_a --list
  steepctl node prepare node_a --release 0192f3ac7d21     its dump is made
  steepctl node prepare node_a --cancel 0192f3ac7d21";

/// So long before its end the log tells of a preparation.
const NOTICE: Duration = Duration::from_secs(24 * 3600);

/// Arguments of `node prepare`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PrepareArgs {
    /// The node to be backed up
    pub node: NodeId,
    /// What the backup is made with
    #[arg(long = "for", value_name = "TOOL", value_parser = ["pg_dump", "pg_basebackup", "storage-snapshot"], required_unless_present_any = ["list", "cancel", "release"])]
    pub purpose: Option<String>,
    /// Where a physical copy is to have its data, on its own host [default: DATADIR, for you to fill in]
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// The name of the slot; it begins with steep_
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
    /// For how long slot and snapshot are kept: 90m, 72h or 7d, up to 366d
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = units::parse_lifetime)]
    pub expires: Duration,
    /// The node that will be restored and completed
    #[arg(long, value_name = "NODE")]
    pub target: Option<NodeId>,
    /// Only these tables, as schema.table; commas between them
    #[arg(long, value_name = "TABLES", value_parser = tables)]
    pub tables: Vec<Tables>,
    /// Only tables of these schemas; commas between them
    #[arg(long, value_name = "SCHEMAS", value_parser = schemas)]
    pub schemas: Vec<Schemas>,
    /// Never these tables, whatever else selects them
    #[arg(long, value_name = "TABLES", value_parser = tables)]
    pub exclude: Vec<Tables>,
    /// List what the node is prepared for
    #[arg(long, conflicts_with_all = ["purpose", "cancel", "release"])]
    pub list: bool,
    /// Take a preparation back: its slot is dropped
    #[arg(long, value_name = "ID", conflicts_with_all = ["purpose", "release"])]
    pub cancel: Option<String>,
    /// Let the snapshot of a preparation go, once its dump is made; the slot stays
    #[arg(long, value_name = "ID", conflicts_with = "purpose")]
    pub release: Option<String>,
}

/// Prepares a node, or shows and changes what it is prepared for.
pub async fn run(args: &PrepareArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let mut client = global.client(out)?;
    let node = &args.node;
    if args.list {
        return list(node, &mut client, out).await;
    }
    for (id, what) in [(&args.cancel, "cancel"), (&args.release, "release")] {
        if let Some(id) = id {
            return change(node, id, what, &mut client, out).await;
        }
    }
    let request = v1::PrepareRequest {
        node_id: node.to_string(),
        purpose: args.purpose.clone().unwrap_or_default(),
        slot: args.slot.clone().unwrap_or_default(),
        expires_seconds: args.expires.as_secs(),
        target: args.target.as_ref().map(ToString::to_string).unwrap_or_default(),
        selection: Some(selection::of(&args.tables, &args.schemas, &args.exclude)),
    };
    // Asked before anything is kept: what cannot be told how to restore is not prepared. A physical copy needs no server that is
    // there already.
    let target = match &args.target {
        Some(target) if request.purpose == "pg_dump" => Some(client.get_node(target.as_str()).await?),
        Some(target) => client.get_node(target.as_str()).await.ok(),
        None => None,
    };
    let reply = client.prepare(&request).await?;
    if out.is_json() {
        out.json(&json::message("PrepareReply", &reply))?;
        return Ok(Exit::Success);
    }
    let prepared = reply.preparation.unwrap_or_default();
    out.data(&told(&prepared))?;
    if let Some(first) = target.as_ref().and_then(first_out) {
        out.data(&first)?;
    }
    let next = match prepared.purpose.as_str() {
        "pg_dump" => next(&prepared, target.as_ref()),
        _ => physical::next(&prepared, args.into.as_deref()),
    };
    out.data(&next)?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

async fn list(node: &NodeId, client: &mut Client<'_>, out: &Output) -> Result<Exit, Failure> {
    let reply = client.list_preparations(node.as_str()).await?;
    if out.is_json() {
        out.json(&json::message("ListPreparationsReply", &reply))?;
        return Ok(Exit::Success);
    }
    if reply.preparations.is_empty() {
        out.talk(&format!("{node} is not prepared for a backup"));
        return Ok(Exit::Success);
    }
    let mut table = Table::new(&[
        ("ID", Side::Left),
        ("FOR", Side::Left),
        ("TARGET", Side::Left),
        ("SLOT", Side::Left),
        ("LSN", Side::Left),
        ("SNAPSHOT", Side::Left),
        ("WAL KEPT", Side::Right),
        ("EXPIRES", Side::Left),
    ]);
    for one in &reply.preparations {
        let or_dash = |text: &str| Cell::new(if text.is_empty() { "-" } else { text });
        table.row([
            Cell::new(&one.prepare_id),
            Cell::new(&one.purpose),
            or_dash(&one.target),
            Cell::new(&one.slot),
            Cell::new(&one.lsn),
            or_dash(&one.snapshot),
            Cell::new(units::bytes(one.retained_wal_bytes)),
            Cell::new(units::moment(one.expires_at.as_ref()).map(units::date_time).unwrap_or_default()),
        ]);
    }
    out.data(&table.render())?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

async fn change(node: &NodeId, id: &str, what: &str, client: &mut Client<'_>, out: &Output) -> Result<Exit, Failure> {
    let request = v1::ChangePreparationRequest {
        node_id: node.to_string(),
        prepare_id: id.to_owned(),
        what: what.to_owned(),
        expires_seconds: 0,
    };
    let reply = client.change_preparation(&request).await?;
    if out.is_json() {
        out.json(&json::message("ChangePreparationReply", &reply))?;
        return Ok(Exit::Success);
    }
    let changed = reply.preparation.unwrap_or_default();
    let (id, slot) = (safe(&changed.prepare_id), safe(&changed.slot));
    out.data(&match what {
        "cancel" => format!("preparation {id} of {node} is taken back: slot {slot} is dropped"),
        _ => format!("the snapshot of preparation {id} is let go; slot {slot} of {node} stays"),
    })?;
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

/// What has to be done first where the target replicates still, or is somebody's source: as it is it cannot be completed.
fn first_out(target: &v1::GetNodeReply) -> Option<String> {
    let headline = target.headline.as_ref()?;
    let state: NodeState = headline.state.parse().ok()?;
    let is_out = matches!(state, NodeState::Uninitialized | NodeState::Failed)
        && target.subscriptions.iter().all(|found| found.source_node.is_empty());
    if is_out {
        return None;
    }
    let name = safe(&headline.node_id);
    Some(format!(
        "First     {name} is {}: before what follows, while it still runs, take it out of replication:\n          \
         steepctl node remove {name}          (its rows stay: they have to go before the restore)",
        state.as_str().to_uppercase()
    ))
}

/// What is kept, until when, and what that costs.
fn told(prepared: &v1::Preparation) -> String {
    let node = safe(&prepared.node_id);
    let (made, ends) = (units::moment(prepared.prepared_at.as_ref()), units::moment(prepared.expires_at.as_ref()));
    let expires = ends.map(units::date_time).unwrap_or_default();
    let is_long = made.zip(ends).is_some_and(|(made, ends)| units::since(made, ends) > NOTICE);
    let warning = if is_long { ", with a warning a day ahead" } else { "" };
    let mut lines = vec![format!(
        "Prepared  id {}   slot {}   LSN {}   expires {expires} (then dropped{warning})",
        safe(&prepared.prepare_id),
        safe(&prepared.slot),
        safe(&prepared.lsn)
    )];
    if !prepared.snapshot.is_empty() {
        lines.push(format!(
            "Snapshot  {} is held until then, or until PostgreSQL on {node} ends: DDL on its tables and VACUUM wait for it",
            safe(&prepared.snapshot)
        ));
    }
    lines.push(wal(prepared));
    let id = safe(&prepared.prepare_id);
    lines.push(format!("Take back steepctl node prepare {node} --cancel {id}"));
    lines.join("\n")
}

/// How much WAL the slot keeps, and when there is no room for more.
fn wal(prepared: &v1::Preparation) -> String {
    let kept = units::bytes(prepared.retained_wal_bytes);
    let Some(a_day) = prepared.wal_bytes_a_day else {
        return format!("WAL       {kept} kept by the slot now; too little is known to say how much a day");
    };
    let mut line = format!("WAL       {kept} kept by the slot now, about {} a day", units::bytes(a_day));
    let limits = [
        prepared.wal_free_bytes.map(|free| (free, "pg_wal's disk is full")),
        prepared.wal_keep_bytes.map(|keep| (keep, "PostgreSQL gives the slot up (max_slot_wal_keep_size)")),
    ];
    if let Some((room, what)) = limits.into_iter().flatten().min_by_key(|(room, _)| *room)
        && a_day > 0
    {
        let days = room as f64 / a_day as f64;
        line.push_str(&format!("; {} more, in {days:.1} days, and {what}", units::bytes(room)));
    }
    line
}

/// The commands that come next, to be run as they are.
fn next(prepared: &v1::Preparation, target: Option<&v1::GetNodeReply>) -> String {
    let (node, id) = (safe(&prepared.node_id), safe(&prepared.prepare_id));
    let file = format!("/var/tmp/steep_{id}.dump");
    let name = match prepared.target.as_str() {
        "" => "TARGET".to_owned(),
        name => safe(name),
    };
    let into = shell_word(&connection(prepared, target));
    let mut lines = vec![
        "Next".to_owned(),
        format!("  1. on the host of {node}, dump:"),
        format!("     {}", dump(prepared, &file)),
        format!("  2. on the host of {name}, restore into its database, which is empty:"),
    ];
    let schemas = schemas_to_make(prepared);
    if !schemas.is_empty() {
        lines.push(format!("     psql -d {into} -c {}", shell_word(&schemas)));
    }
    lines.push(format!("     pg_restore -d {into} --jobs=4 --exit-on-error {file}"));
    lines.push(format!("  3. before anybody writes on {name}, make it replicate:"));
    lines.push(format!("     steepctl node complete {name} --source {node} --prepare-id {id}"));
    lines.join("\n")
}

fn dump(prepared: &v1::Preparation, file: &str) -> String {
    let selection = prepared.selection.clone().unwrap_or_default();
    let mut words = vec![
        "pg_dump".to_owned(),
        "-d".to_owned(),
        shell_word(&prepared.conninfo),
        format!("--snapshot={}", shell_word(&prepared.snapshot)),
        "--format=directory --jobs=4".to_owned(),
        format!("--file={file}"),
        "--exclude-schema=steep_repl --no-publications --no-subscriptions".to_owned(),
    ];
    let pattern = |option: &str, quoted: String| format!("--{option}={}", shell_word(&quoted));
    let name = |table: &v1::TableName| TableName::new(&table.schema, &table.name).sql();
    words.extend(selection.tables.iter().map(|table| pattern("table", name(table))));
    words.extend(selection.schemas.iter().map(|schema| pattern("schema", quoted(schema))));
    words.extend(selection.exclude.iter().map(|table| pattern("exclude-table", name(table))));
    // The mark, by which the node that is restored shows what it was restored from.
    match (selection.tables.is_empty(), selection.schemas.is_empty()) {
        (false, _) => words.push("--table=steep_mark.prepared".into()),
        (true, false) => words.push("--schema=steep_mark".into()),
        (true, true) => {}
    }
    safe(&words.join(" "))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A dump of single tables holds no schemas.
fn schemas_to_make(prepared: &v1::Preparation) -> String {
    let selection = prepared.selection.clone().unwrap_or_default();
    if selection.tables.is_empty() {
        return String::new();
    }
    let mut schemas: Vec<_> = selection.tables.iter().map(|table| quoted(&table.schema)).collect();
    schemas.push("steep_mark".into());
    schemas.sort();
    schemas.dedup();
    let make = |schema: &String| format!("create schema if not exists {schema}");
    safe(&schemas.iter().map(make).collect::<Vec<_>>().join("; "))
}

/// How the target's PostgreSQL is reached on its own host, as far as its agent has told.
fn connection(prepared: &v1::Preparation, target: Option<&v1::GetNodeReply>) -> String {
    let Some(target) = target else { return "dbname=DATABASE".into() };
    let address = target.headline.as_ref().map(|headline| headline.postgres_address.clone()).unwrap_or_default();
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => (host.to_owned(), format!(" port={port}")),
        _ => (address, String::new()),
    };
    let user = prepared.conninfo.split_whitespace().find(|word| word.starts_with("user=")).unwrap_or("user=postgres");
    safe(&format!("host={host}{port} {user} dbname={}", target.database))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_promised_only_where_there_is_time_for_one() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let told_of = |seconds| {
            told(&v1::Preparation { prepared_at: at(0), expires_at: at(seconds), ..v1::Preparation::default() })
        };
        assert!(told_of(72 * 3600).contains("(then dropped, with a warning a day ahead)"));
        for short in [3, 24 * 3600] {
            assert!(told_of(short).contains("(then dropped)"), "{}", told_of(short));
        }
    }

    #[test]
    fn a_target_that_replicates_is_to_be_taken_out_first() {
        let first = |state: &str, source: &str| {
            let subscription = v1::SubscriptionView { source_node: source.into(), ..v1::SubscriptionView::default() };
            let headline =
                v1::NodeHeadline { node_id: "node_b".into(), state: state.into(), ..v1::NodeHeadline::default() };
            first_out(&v1::GetNodeReply {
                headline: Some(headline),
                subscriptions: vec![subscription],
                ..v1::GetNodeReply::default()
            })
        };
        for (state, source) in [("synchronized", "node_a"), ("diverged", ""), ("failed", "node_a")] {
            let told = first(state, source).expect("it has to be taken out");
            assert!(told.contains("steepctl node remove node_b"), "{told}");
        }
        for state in ["uninitialized", "failed"] {
            assert_eq!(first(state, ""), None);
        }
    }

    #[test]
    fn the_commands_to_come_are_whole() {
        let prepared = v1::Preparation {
            prepare_id: "0192f3ac7d21".into(),
            node_id: "node_a".into(),
            target: "node_b".into(),
            snapshot: "00000003-0000001B-1".into(),
            conninfo: "host=/run port=5432 user=steep_agent dbname=shop".into(),
            selection: Some(v1::Selection {
                tables: vec![v1::TableName { schema: "Sales".into(), name: "it's".into() }],
                ..v1::Selection::default()
            }),
            ..v1::Preparation::default()
        };
        let target = v1::GetNodeReply {
            database: "shop".into(),
            headline: Some(v1::NodeHeadline { postgres_address: "db2:5433".into(), ..v1::NodeHeadline::default() }),
            ..v1::GetNodeReply::default()
        };
        let next = next(&prepared, Some(&target));
        for line in [
            "pg_dump -d 'host=/run port=5432 user=steep_agent dbname=shop' --snapshot=00000003-0000001B-1 ",
            r#"'"Sales"."it'\''s"' --table=steep_mark.prepared"#,
            r#"psql -d 'host=db2 port=5433 user=steep_agent dbname=shop' -c 'create schema if not exists "Sales"; "#,
            "steepctl node complete node_b --source node_a --prepare-id 0192f3ac7d21",
        ] {
            assert!(next.contains(line), "{line} is not in:\n{next}");
        }
    }
}
