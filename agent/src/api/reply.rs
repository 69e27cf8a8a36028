//! Rows and findings as messages.

use steep_protocol::{ids::NodeId, time, v1};

use crate::{
    operations::Milestone,
    postgres::{slots::Slot, subscriptions::Subscription},
    store::{operations::Operation, progress::InitProgress, steps::OperationStep},
};

/// An operation; `progress` where it is known.
pub fn operation(row: &Operation, progress: Option<v1::Progress>) -> v1::Operation {
    v1::Operation {
        op_id: row.op_id.to_string(),
        kind: row.kind.clone(),
        target: row.target.to_string(),
        source: row.source.to_string(),
        method: row.method.to_string(),
        status: row.status.as_str().into(),
        step: row.step.clone().unwrap_or_default(),
        started_by: row.started_by.clone(),
        started_at: Some(time::message(row.started_at)),
        ended_at: row.ended_at.map(time::message),
        failure: row.failure.as_ref().map(Into::into),
        progress,
    }
}

/// A step of an operation.
pub fn step(row: &OperationStep) -> v1::OperationStep {
    v1::OperationStep {
        name: row.name.clone(),
        status: row.status.as_str().into(),
        started_at: row.started_at.map(time::message),
        ended_at: row.ended_at.map(time::message),
    }
}

/// The last progress of an operation that has ended.
pub fn progress(row: &InitProgress) -> v1::Progress {
    v1::Progress {
        phase: row.phase.as_str().into(),
        overall_percent: row.overall_percent,
        tables_total: row.tables_total,
        tables_done: row.tables_completed,
        rows_copied: row.rows_copied,
        bytes_copied: row.bytes_copied,
        bytes_expected: row.bytes_copied,
        ..v1::Progress::default()
    }
}

/// A milestone.
pub fn milestone(told: Milestone) -> v1::Milestone {
    v1::Milestone {
        event: told.event,
        phase: told.phase,
        table: told.table,
        rows_copied: told.rows_copied,
        bytes_copied: told.bytes_copied,
        duration_ms: told.duration_ms,
        overall_percent: told.overall_percent,
        previous_state: told.previous_state,
        new_state: told.new_state,
        failure: told.failure.as_ref().map(Into::into),
        message: told.message,
    }
}

/// A subscription of this node.
pub fn subscription(found: &Subscription) -> v1::SubscriptionView {
    v1::SubscriptionView {
        name: found.name.clone(),
        source_node: found.name.strip_prefix("steep_from_").unwrap_or_default().into(),
        enabled: found.is_enabled,
        lag_bytes: found.lag_bytes(),
        apply_errors: found.apply_errors,
        mutual: found.is_mutual,
    }
}

/// A slot of this node; `peers` tell for whom Steep keeps it.
pub fn slot(found: &Slot, peers: &[NodeId]) -> v1::SlotView {
    let kept_for = |peer: &&NodeId| found.is_kept_for(peer);
    v1::SlotView {
        name: found.name.clone(),
        target_node: peers.iter().find(kept_for).map(ToString::to_string).unwrap_or_default(),
        active: found.progress.is_active,
        retained_bytes: found.progress.retained_bytes,
        wal_status: found.progress.wal_status.clone(),
    }
}
