//! `steepctl node reinit --full`: a node leaves replication, and is initialized again from another.
//!
//! Two operations, each of them whole: if this ends between them, the node holds its rows and replicates with nobody, and the
//! second can be asked for alone. A node that failed, and replicates with nobody, has the first behind it.

use steep_protocol::{
    failure::{Code, Failure},
    ids::OperationId,
    v1,
};

use super::{Chosen, PLAN_LIMIT, ReinitArgs, confirm, source_line};
use crate::{
    cli::Global,
    client::{ANSWER_LIMIT, Client},
    commands::node::plan,
    follow::{self, ending},
    output::{Output, exit_code::Exit, json, progress::Subject, safe},
};

/// Shows what would be destroyed, has it confirmed, and does both.
pub(super) async fn run(
    args: &ReinitArgs,
    chosen: &Chosen,
    client: &mut Client<'_>,
    global: &Global,
    out: &Output,
) -> Result<Exit, Failure> {
    let asked = request(args, chosen, OperationId::generate().to_string(), true);
    let plan = client.start_node(&asked, false, PLAN_LIMIT).await?;
    // That it replicates already speaks against a start, and ends with the first half.
    let replicates = Code::IllegalState.to_string();
    let checks: Vec<_> = plan.checks.into_iter().filter(|check| check.code != replicates).collect();
    let failed = plan::failed(&checks, &format!("cannot initialize {} again from {}", args.node, chosen.source));
    let shown = plan::destruction(&plan.tables, args.node.as_str());
    if args.dry_run && out.is_json() {
        let told = v1::StartNodeReply { checks, ..plan };
        out.json(&json::message("StartNodeReply", &told))?;
    } else if args.dry_run {
        out.data(&source_line(args, chosen))?;
        out.data(&plan::checks(&checks, true, out.glyphs()))?;
        // What cannot begin deletes nothing.
        if failed.is_none() {
            out.data(&format!("\n{shown}"))?;
        }
        out.talk("nothing was changed");
    }
    match failed {
        Some(failure) => return Err(failure),
        None if args.dry_run => return Ok(Exit::Success),
        None => {}
    }
    confirm(args, &shown, global, out)?;
    if chosen.replicates && !has_left(args, client, global, out).await? {
        return Ok(Exit::Detached);
    }
    let request = request(args, chosen, OperationId::generate().to_string(), false);
    let started = client.start_node(&request, true, PLAN_LIMIT).await.map_err(|failure| {
        let one_way = if chosen.one_way { " --one-way" } else { "" };
        let hint = format!(
            "{}; it has left replication: steepctl node start {} --from {} --force{one_way}",
            failure.hint, args.node, chosen.source
        );
        failure.hint(hint)
    })?;
    if args.detach {
        out.data(&started.op_id)?;
        return Ok(Exit::Success);
    }
    out.talk(&format!("op {} runs in the agents; Ctrl-C detaches, it does not stop it", safe(&started.op_id)));
    let subject = Subject { op_id: started.op_id, target: args.node.to_string(), source: chosen.source.to_string() };
    let followed = follow::until_ended(client, out, &subject, args.follow, !global.no_input).await?;
    ending::conclude(out, followed, ending::Wanted::Completion)
}

/// Takes the node out of replication, and follows that to its end; false: whoever watched has gone.
async fn has_left(args: &ReinitArgs, client: &mut Client<'_>, global: &Global, out: &Output) -> Result<bool, Failure> {
    let op_id = OperationId::generate().to_string();
    let leave = v1::RemoveNodeRequest { node_id: args.node.to_string(), op_id, drop_slots: false };
    let left = client.remove_node(&leave, ANSWER_LIMIT * 3).await?;
    out.talk(&format!("op {} takes {} out of replication first", safe(&left.op_id), args.node));
    let subject = Subject { op_id: left.op_id, target: args.node.to_string(), source: String::new() };
    let followed = follow::until_ended(client, out, &subject, args.follow, !global.no_input).await?;
    Ok(ending::conclude(out, followed, ending::Wanted::Completion)? == Exit::Success)
}

fn request(args: &ReinitArgs, chosen: &Chosen, op_id: String, dry_run: bool) -> v1::StartNodeRequest {
    v1::StartNodeRequest {
        target: args.node.to_string(),
        source: chosen.source.to_string(),
        op_id,
        selection: Some(v1::Selection::default()),
        one_way: chosen.one_way,
        parallel: args.parallel.unwrap_or(0),
        force: true,
        dry_run,
        max_rate: args.max_rate.unwrap_or(0),
        compress: args.compress.clone(),
        ..v1::StartNodeRequest::default()
    }
}
