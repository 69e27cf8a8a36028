//! What the shape of tables says against replicating them: how their rows are named, and, where both nodes have a
//! table, how the two differ. Pure.

use std::collections::BTreeMap;

use steep_protocol::{failure::Code, names::TableName, v1};

use super::{findings::Findings, messages::table_name};
use crate::postgres::{
    tables::{Column, ReplicaIdentity, Table, TableKind},
    version::Version,
};

/// Why updates of `table` would fail once a server of version `publisher` publishes it, and what to do.
pub(super) fn unnamed(table: &TableName, identity: ReplicaIdentity, publisher: Version) -> Option<(String, String)> {
    let leave_out = format!("or --exclude '{table}'");
    match identity {
        ReplicaIdentity::Missing => Some((
            format!(
                "{table} has no primary key or replica identity: its updates and deletes would fail once published"
            ),
            format!(
                "alter table {table} add primary key (…); or alter table {table} replica identity full; {leave_out}"
            ),
        )),
        ReplicaIdentity::Generated => Some((
            format!(
                "the replica identity of {table} holds a generated column, which is never sent: its updates would fail"
            ),
            format!("alter table {table} replica identity using index …, one of columns that are stored; {leave_out}"),
        )),
        ReplicaIdentity::FullGenerated if publisher.major() >= 18 => Some((
            format!(
                "{table} has replica identity full and a generated column, which PostgreSQL {} does not publish: \
                 its updates and deletes would fail",
                publisher.major()
            ),
            format!("alter table {table} add primary key (…), replica identity default; {leave_out}"),
        )),
        ReplicaIdentity::Index | ReplicaIdentity::Full | ReplicaIdentity::FullGenerated => None,
    }
}

/// A source and this node as its target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// The source.
    pub(super) source: &'a str,
    /// Nothing is sent back.
    pub(super) one_way: bool,
    /// The target's version.
    pub(super) target: Version,
}

impl Pair<'_> {
    /// Adds what speaks against the source's tables here, of which `existing` are there already.
    pub(super) fn check(
        &self,
        findings: &mut Findings,
        facts: &v1::ExamineReply,
        existing: &BTreeMap<TableName, Table>,
    ) {
        let there = Version::from_number(facts.server_version_num);
        for theirs in &facts.tables {
            let Some(name) = theirs.table.as_ref().map(table_name) else { continue };
            let ours = existing.get(&name);
            if missing_of(theirs, existing).is_some() {
                continue;
            }
            let differences = ours.map(|ours| self.differences(theirs, ours)).unwrap_or_default();
            if !differences.is_empty() {
                let text = format!("table {name} differs: {}", differences.join("; "));
                findings.error(Code::SchemaDiffers, text, Code::SchemaDiffers.hint());
                continue;
            }
            let identity = ReplicaIdentity::parse(&theirs.replica_identity);
            // What fails there is told there.
            if !self.one_way && theirs.kind == "r" && unnamed(&name, identity, there).is_none() {
                let identity = ours.map_or(identity, |ours| ours.replica_identity);
                if let Some((text, hint)) = unnamed(&name, identity, self.target) {
                    findings.error(Code::NoReplicaIdentity, text, hint);
                }
            }
        }
    }

    /// Adds partitions of tables here, of which `existing` are there already, that only one node has. `ours` is all that
    /// the partitioned ones are made of: a partition that the source does not have takes rows nobody sends, and gives rows
    /// nobody takes.
    pub(super) fn check_partitions(
        &self,
        findings: &mut Findings,
        facts: &v1::ExamineReply,
        existing: &BTreeMap<TableName, Table>,
        ours: &[Table],
    ) {
        for theirs in &facts.tables {
            if let Some((root, name)) = missing_of(theirs, existing) {
                let text = format!("table {root} differs: partition {name} is missing here");
                findings.error(Code::SchemaDiffers, text, Code::SchemaDiffers.hint());
            }
        }
        let is_theirs =
            |name: &TableName| facts.tables.iter().any(|t| t.table.as_ref().map(table_name).as_ref() == Some(name));
        for own in ours.iter().filter(|own| own.is_partition && !is_theirs(&own.name)) {
            let root = own.root.as_ref().unwrap_or(&own.name);
            let text = format!("table {root} differs: partition {} exists here only, not on {}", own.name, self.source);
            findings.error(Code::SchemaDiffers, text, Code::SchemaDiffers.hint());
        }
    }

    /// How an existing table of the target keeps rows of either node out of the other. Column order does not matter:
    /// rows go by name.
    fn differences(&self, theirs: &v1::SourceTable, ours: &Table) -> Vec<String> {
        let mut told = Vec::new();
        let kind = if ours.kind == TableKind::Partitioned { "p" } else { "r" };
        if theirs.kind != kind || !matches!(ours.kind, TableKind::Plain | TableKind::Partitioned) {
            told.push(format!("it is partitioned on one node only, or no plain table here (here {:?})", ours.kind));
        }
        for column in &theirs.columns {
            match ours.columns.iter().find(|own| own.name == column.name) {
                None => told.push(format!("column {} ({}) is missing here", column.name, column.r#type)),
                Some(own) if own.type_name != column.r#type => {
                    let (name, here, there) = (&column.name, &own.type_name, &column.r#type);
                    told.push(format!("column {name} is {here} here and {there} on {}", self.source));
                }
                Some(own) if own.generated != column.generated => {
                    told.push(format!("column {} is generated on one node only", column.name));
                }
                Some(own) if own.not_null && !column.not_null => {
                    told.push(format!("column {} is not null here only", column.name));
                }
                Some(_) => {}
            }
        }
        for own in ours.columns.iter().filter(|own| !theirs.columns.iter().any(|column| column.name == own.name)) {
            if !fills_itself(own) {
                told.push(format!("column {} exists here only and must be filled", own.name));
            } else if !self.one_way && own.generated.is_empty() {
                told.push(format!("column {} exists here only: rows written here could not be sent back", own.name));
            }
        }
        if kind == "r" && theirs.kind == "r" {
            told.extend(self.names_differ(theirs, ours));
        }
        told
    }

    /// How an updated row of one node would not be found on the other.
    fn names_differ(&self, theirs: &v1::SourceTable, ours: &Table) -> Option<String> {
        use ReplicaIdentity::{Full, FullGenerated, Generated, Index, Missing};
        let (named_by, named_here_by) = (&theirs.identity_columns, &ours.identity_columns);
        match (ReplicaIdentity::parse(&theirs.replica_identity), ours.replica_identity) {
            // Refused by the source itself.
            (Missing | Generated, _) => None,
            // A whole row is found without any key.
            (Full | FullGenerated, _) if self.one_way => None,
            (Full | FullGenerated, Full | FullGenerated) => None,
            (_, Missing | Generated) => Some("it has no primary key or replica identity of stored columns here".into()),
            (Full | FullGenerated, Index) | (Index, Full | FullGenerated) => {
                Some("its replica identity is full on one node only".into())
            }
            (Index, Index) => {
                let is_sent = named_here_by.iter().all(|column| named_by.contains(column));
                let is_sent_back = self.one_way || named_by.iter().all(|column| named_here_by.contains(column));
                (!is_sent || !is_sent_back).then(|| {
                    let (here, there) = (named_here_by.join(", "), named_by.join(", "));
                    format!("its rows are named by ({here}) here and by ({there}) on {}", self.source)
                })
            }
        }
    }
}

/// The root and the name of a partition that the source has and this node, which has the root, has not.
fn missing_of(theirs: &v1::SourceTable, existing: &BTreeMap<TableName, Table>) -> Option<(TableName, TableName)> {
    let name = theirs.table.as_ref().map(table_name).filter(|name| !existing.contains_key(name))?;
    let root = theirs.root.as_ref().map(table_name).filter(|root| existing.contains_key(root))?;
    Some((root, name))
}

fn fills_itself(own: &Column) -> bool {
    !own.not_null || own.has_default || !own.generated.is_empty() || !own.identity.is_empty()
}
