//! All that a session is, as it stands in its intent row for the agent's next run.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use steep_protocol::{
    ids::{NodeId, OperationId, SessionId},
    lsn::Lsn,
    names::TableName,
};

use super::{Held, Moment, Role, Scope};
use crate::{parts::TablePlan, postgres::selection::Selection};

/// Of the record below. One with another number is not understood, and its session ends.
const FORMAT: u32 = 1;

/// A session, without what it does at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub(super) id: SessionId,
    pub(super) opened_at: Timestamp,
    pub(super) target: NodeId,
    pub(super) slot: String,
    pub(super) lsn: Lsn,
    pub(super) publication: String,
    scope: SignedScope,
    pub(super) snapshot: String,
    pub(super) tables: Vec<PlannedTable>,
    role: KeptRole,
    pub(super) one_way: bool,
    pub(super) parallel: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gate: Option<Lsn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gate_positions: Vec<(NodeId, Lsn)>,
    /// Its last row was read: there is no snapshot any more, and no keeper.
    pub(super) is_released: bool,
}

/// A table of the session, and its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlannedTable {
    pub(super) oid: u32,
    starts: Vec<u32>,
    pages: u32,
}

impl PlannedTable {
    pub(super) fn plan(&self) -> TablePlan {
        TablePlan { starts: self.starts.clone(), pages: self.pages }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SignedScope {
    tables: Vec<TableName>,
    schemas: Vec<String>,
    exclude: Vec<TableName>,
    one_way: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
enum KeptRole {
    Source { positions: Vec<(NodeId, Lsn)> },
    Member { source_slot: String, marker: Lsn },
    Prepared,
    Files { snapshot: OperationId },
}

impl Record {
    pub(super) fn of(held: &Held, is_released: bool) -> Self {
        let Scope { selection, one_way } = held.scope.clone();
        let Selection { tables, schemas, exclude } = selection;
        let planned = |plan: &TablePlan, oid| PlannedTable { oid, starts: plan.starts.clone(), pages: plan.pages };
        Self {
            format: FORMAT,
            id: held.id,
            opened_at: held.opened_at,
            target: held.target.clone(),
            slot: held.slot.clone(),
            lsn: held.lsn,
            publication: held.publication.clone(),
            scope: SignedScope { tables, schemas, exclude, one_way },
            snapshot: held.snapshot.clone(),
            tables: held.tables.iter().map(|(table, plan)| planned(plan, table.oid)).collect(),
            role: match held.role.clone() {
                Role::Source { positions } => KeptRole::Source { positions },
                Role::Member { source_slot, marker } => KeptRole::Member { source_slot, marker },
                Role::Prepared => KeptRole::Prepared,
                Role::Files { snapshot } => KeptRole::Files { snapshot },
            },
            one_way: held.one_way,
            parallel: held.parallel,
            gate: held.gate.as_ref().map(|gate| gate.lsn),
            gate_positions: held.gate.as_ref().map(|gate| gate.positions.clone()).unwrap_or_default(),
            is_released,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("a record is plain data")
    }

    /// What was written down; none: nothing, or by a version that means something else by it.
    pub(super) fn read(json: Value) -> Option<Self> {
        serde_json::from_value(json).ok().filter(|record: &Self| record.format == FORMAT)
    }

    pub(super) fn scope(&self) -> Scope {
        let SignedScope { tables, schemas, exclude, one_way } = self.scope.clone();
        Scope { selection: Selection { tables, schemas, exclude }, one_way }
    }

    pub(super) fn role(&self) -> Role {
        match self.role.clone() {
            KeptRole::Source { positions } => Role::Source { positions },
            KeptRole::Member { source_slot, marker } => Role::Member { source_slot, marker },
            KeptRole::Prepared => Role::Prepared,
            KeptRole::Files { snapshot } => Role::Files { snapshot },
        }
    }

    /// What the snapshot shows, if that is later than where the slot begins.
    pub(super) fn gate(&self) -> Option<Moment> {
        self.gate.map(|lsn| Moment { lsn, positions: self.gate_positions.clone() })
    }

    /// It has, or should have, a keeper. That of a prepared session is the preparation's.
    pub(super) fn is_kept(&self) -> bool {
        !self.is_released && !self.snapshot.is_empty() && self.role != KeptRole::Prepared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(role: KeptRole) -> Record {
        let table = TableName::new("a b", "c\"d");
        Record {
            format: FORMAT,
            id: SessionId::generate(),
            opened_at: Timestamp::now(),
            target: "node_b".parse().expect("a node"),
            slot: "steep_node_b_0123456789ab".into(),
            lsn: Lsn(77),
            publication: "steep".into(),
            scope: SignedScope { tables: vec![table], schemas: vec![], exclude: vec![], one_way: true },
            snapshot: "00000003-0000001B-1".into(),
            tables: vec![PlannedTable { oid: 16384, starts: vec![0, 128], pages: 200 }],
            role,
            one_way: true,
            parallel: 4,
            gate: Some(Lsn(99)),
            gate_positions: vec![("node_c".parse().expect("a node"), Lsn(7))],
            is_released: false,
        }
    }

    #[test]
    fn a_session_comes_back_as_it_was_written_down_and_another_format_does_not() {
        let positions = vec![("node_c".parse().expect("a node"), Lsn(5))];
        for role in [KeptRole::Source { positions }, KeptRole::Member { source_slot: "s".into(), marker: Lsn(9) }] {
            let record = record(role);
            assert_eq!(Record::read(record.to_json()), Some(record.clone()));
            let newer = Record { format: FORMAT + 1, ..record };
            assert_eq!(Record::read(newer.to_json()), None);
        }
        assert_eq!(Record::read(Value::Null), None, "it was not open yet");
    }
}
