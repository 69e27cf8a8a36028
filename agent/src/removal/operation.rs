//! The operation that removes a node, watchable like any other.
//!
//! It runs on the removed node's own agent, where it cannot run beside another operation on that node. Where that agent or
//! its PostgreSQL cannot be reached, it runs on the agent that was asked.

use async_trait::async_trait;
use futures::FutureExt as _;
use jiff::Timestamp;
use serde_json::json;
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    intent::Verified,
    operation::{InitMethod, Phase},
    v1,
};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{part, spread};
use crate::{
    operations::{Context, Milestone, Recipe, Work},
    postgres::{self, Purpose, slots},
    rooms::Rooms,
    store::{self, Actor, operations::NewOperation, removals, removals::Removal},
    telemetry,
};

/// How often a waiting step looks again.
const LOOK: std::time::Duration = std::time::Duration::from_millis(100);

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

fn remember(error: store::Error) -> Failure {
    error.explain()
}

/// A removal under way.
pub struct Remove {
    rooms: Rooms,
    removal: Removal,
    pending: Vec<NodeId>,
}

/// Starts to remove `node`; the same request twice starts it once.
pub async fn start(
    rooms: &Rooms,
    request: &v1::RemoveNodeRequest,
    actor: &Actor,
    verified: &Verified,
) -> Result<OperationId, Failure> {
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    let op: OperationId = request.op_id.parse().map_err(|error| bad(format!("{error}")))?;
    let node: NodeId = request.node_id.parse().map_err(|_| rooms.peers.unknown(&request.node_id))?;
    if !rooms.peers.knows(&node) {
        return Err(rooms.peers.unknown(node.as_str()));
    }
    if let Some((running, newcomer)) = rooms.sessions.newcomer().filter(|(_, newcomer)| *newcomer != node) {
        let text = format!("{newcomer} is being made a part of the mesh through {}", rooms.me);
        let hint = format!("steepctl op watch {running} follows it; remove {node} when it has ended");
        return Err(Failure::new(Code::OperationRunning, text).hint(hint));
    }
    let new = NewOperation {
        op_id: op,
        kind: "remove".into(),
        target: node.clone(),
        source: rooms.me.clone(),
        method: InitMethod::Direct,
        request: json!({ "drop_slots": request.drop_slots }),
        started_by: actor.to_string(),
    };
    let pending: Vec<NodeId> = rooms.peers.names().collect();
    let (removed_by, asked_at) = (actor.to_string(), Timestamp::now());
    let (heard_at, is_done) = (asked_at, false);
    let signed = verified.signed.clone();
    let removal = Removal { op_id: op, node: node.clone(), removed_by, asked_at, heard_at, is_done, pending, signed };
    let work = Remove { rooms: rooms.clone(), removal, pending: Vec::new() };
    let waits = node == rooms.me && !request.drop_slots;
    rooms.operations.start(new, actor.clone(), 0, recipe(waits), work).await?;
    Ok(op)
}

fn recipe(waits: bool) -> Recipe<Remove> {
    let mut recipe = Recipe::<Remove>::new();
    if waits {
        recipe =
            recipe.step("send the rest", Phase::Preflight, |remove, context| remove.send_the_rest(context).boxed());
    }
    // From here on it is finished whatever becomes of this operation: it is written down, and others hear of it.
    recipe.step("tell the others", Phase::CatchingUp, |remove, context| remove.tell_the_others(context).boxed()).step(
        "take away",
        Phase::Verify,
        |remove, context| remove.take_away(context).boxed(),
    )
}

impl Remove {
    /// Waits until the others have received all that was written here by now.
    async fn send_the_rest(&mut self, context: &Context) -> Result<(), Failure> {
        let look = self.rooms.database.session(Purpose::Watch).await.map_err(explain)?;
        let marker = slots::emit_marker(&look, &context.op.to_string()).await.map_err(explain)?;
        let limit = self.rooms.config.copy.catch_up_timeout;
        let (mut moved, mut last) = (Instant::now(), None);
        loop {
            let mut behind = Vec::new();
            for name in part::own_slots(&self.rooms, &look).await? {
                let confirmed = slots::progress(&look, &name).await.map_err(explain)?;
                let confirmed = confirmed.and_then(|progress| progress.confirmed_flush).unwrap_or_default();
                if confirmed < marker {
                    behind.push((name, confirmed));
                }
            }
            let Some((slowest, _)) = behind.first() else { return Ok(()) };
            if last.as_ref() != Some(&behind) {
                moved = Instant::now();
            }
            if moved.elapsed() >= limit {
                let text = format!("slot {slowest} on {} still holds changes nobody has received", self.rooms.me);
                return Err(Failure::new(Code::NotDrained, text));
            }
            last = Some(behind);
            sleep(LOOK).await;
        }
    }

    async fn tell_the_others(&mut self, context: &Context) -> Result<(), Failure> {
        removals::hear(&self.rooms.store, &self.removal).await.map_err(remember)?;
        let left = spread::tell(&self.rooms, &self.removal, false).await?;
        for (node, why) in &left {
            let text = format!(
                "{node} has not heard of it yet ({}); it will be told as soon as it can be reached",
                why.message
            );
            context.announce(Milestone::new("remove.pending", text)).await;
        }
        self.pending = left.into_iter().map(|(node, _)| node).collect();
        // Each heard it together with all others; now they need to remember only those who are left.
        let told: Vec<_> = self.removal.pending.iter().filter(|node| !self.pending.contains(node)).cloned().collect();
        self.removal.pending = self.pending.clone();
        for node in &told {
            if let Err(failure) = spread::tell_one(&self.rooms, &self.removal, node, false).await {
                debug!(op_id = %context.op, peer = %node, error = telemetry::failure(&failure), "it will find out");
            }
        }
        Ok(())
    }

    async fn take_away(&mut self, context: &Context) -> Result<(), Failure> {
        part::hear(&self.rooms, &self.removal, false, &context.actor).await
    }
}

#[async_trait]
impl Work for Remove {
    async fn begin(&mut self, _: &Context) -> Result<(), Failure> {
        Ok(())
    }

    async fn resume(&mut self, _: &Context, _: &[String]) -> Result<(), Failure> {
        Ok(())
    }

    /// Not at all: what is written down is done by the janitor's side of it, whatever becomes of this operation.
    fn goes_on_after(&self, _: &Failure) -> Option<std::time::Duration> {
        None
    }

    fn outlives_the_agent(&self) -> bool {
        false
    }

    async fn complete(&mut self, _: &Context) -> Result<u64, Failure> {
        Ok(0)
    }

    fn done(&self) -> String {
        let node = &self.removal.node;
        match &self.pending[..] {
            [] => format!("{node} is removed"),
            pending => {
                let names: Vec<_> = pending.iter().map(NodeId::as_str).collect();
                format!("{node} is removed; {} will do so too when it can be reached", names.join(", "))
            }
        }
    }

    /// Nothing: what is written down goes on by itself, and before that nothing was changed.
    async fn undo(&mut self, _: &Context) -> Result<(), Failure> {
        Ok(())
    }

    async fn abandon(&mut self, _: &Context, _: &Failure) -> Result<(), Failure> {
        Ok(())
    }
}
