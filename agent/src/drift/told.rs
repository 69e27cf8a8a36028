//! Schemas as messages between agents, and back.

use serde_json::Value;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    names::TableName,
    time, v1,
};

use crate::store::fingerprints::{EnvironmentFingerprint, Hashes, ObjectFingerprint, TableFingerprint};

/// Of documents in one page: a page must fit into a message.
pub(super) const PAGE_BYTES: usize = 1 << 20;
/// The largest document that is believed.
const LARGEST_DOCUMENT: usize = 2 << 20;

pub fn name(table: &TableName) -> v1::TableName {
    v1::TableName { schema: table.schema.clone(), name: table.name.clone() }
}

fn named(name: Option<&v1::TableName>) -> Result<TableName, Failure> {
    let name = name.ok_or_else(|| unreadable("something without a name"))?;
    Ok(TableName::new(name.schema.clone(), name.name.clone()))
}

fn unreadable(what: &str) -> Failure {
    Failure::new(Code::SchemaUnreadable, format!("a peer told of its schema {what}"))
}

pub fn table(row: &TableFingerprint) -> v1::TableSchema {
    v1::TableSchema {
        table: Some(name(&row.table)),
        column_count: row.column_count,
        fingerprint: row.fingerprint.clone(),
        fingerprint_sorted: row.fingerprint_sorted.clone(),
        shape: row.shape.clone(),
        columns: row.columns.to_string(),
        definition: row.definition.to_string(),
        captured_at: Some(time::message(row.captured_at)),
    }
}

pub fn object(row: &ObjectFingerprint) -> v1::ObjectSchema {
    v1::ObjectSchema {
        kind: row.kind.clone(),
        object: Some(name(&row.object)),
        fingerprint: row.fingerprint.clone(),
        definition: row.definition.to_string(),
        captured_at: Some(time::message(row.captured_at)),
    }
}

pub fn environment(row: &EnvironmentFingerprint) -> v1::SchemaEnvironment {
    v1::SchemaEnvironment {
        node_id: row.node_id.to_string(),
        fingerprint: row.fingerprint.clone(),
        definition: row.definition.to_string(),
        digest: row.digest.clone(),
        tables: row.tables,
        is_complete: row.is_complete,
        captured_at: Some(time::message(row.captured_at)),
    }
}

pub fn hash(row: &Hashes) -> v1::SchemaHash {
    v1::SchemaHash {
        kind: row.kind.clone().unwrap_or_default(),
        name: Some(name(&row.name)),
        fingerprint: row.fingerprint.clone(),
        shape: row.shape.clone().unwrap_or_default(),
    }
}

/// 64 hexadecimal digits, as anything else would be refused by the database, less readably.
fn digest(text: &str) -> Result<String, Failure> {
    let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
    if is_digest { Ok(text.to_owned()) } else { Err(unreadable("a fingerprint that is none")) }
}

fn document(text: &str) -> Result<Value, Failure> {
    if text.len() > LARGEST_DOCUMENT {
        return Err(unreadable(&format!("a document of {} bytes", text.len())));
    }
    serde_json::from_str(text).map_err(|error| unreadable(&format!("a document that is no JSON: {error}")))
}

fn moment(at: Option<&prost_types::Timestamp>) -> Result<jiff::Timestamp, Failure> {
    let at = at.and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok());
    at.ok_or_else(|| unreadable("something of no time"))
}

pub fn read_table(told: &v1::TableSchema) -> Result<TableFingerprint, Failure> {
    Ok(TableFingerprint {
        table: named(told.table.as_ref())?,
        column_count: told.column_count,
        fingerprint: digest(&told.fingerprint)?,
        fingerprint_sorted: digest(&told.fingerprint_sorted)?,
        shape: digest(&told.shape)?,
        columns: document(&told.columns)?,
        definition: document(&told.definition)?,
        captured_at: moment(told.captured_at.as_ref())?,
    })
}

pub fn read_object(told: &v1::ObjectSchema) -> Result<ObjectFingerprint, Failure> {
    Ok(ObjectFingerprint {
        kind: told.kind.clone(),
        object: named(told.object.as_ref())?,
        fingerprint: digest(&told.fingerprint)?,
        definition: document(&told.definition)?,
        captured_at: moment(told.captured_at.as_ref())?,
    })
}

/// `node` told it, whatever it says its name is.
pub fn read_environment(node: &NodeId, told: &v1::SchemaEnvironment) -> Result<EnvironmentFingerprint, Failure> {
    Ok(EnvironmentFingerprint {
        node_id: node.clone(),
        fingerprint: digest(&told.fingerprint)?,
        definition: document(&told.definition)?,
        digest: digest(&told.digest)?,
        tables: told.tables,
        is_complete: told.is_complete,
        captured_at: moment(told.captured_at.as_ref())?,
    })
}

/// What is gone, as kind (empty: a table) and name.
pub fn read_gone(told: &v1::SchemaHash) -> Result<(String, TableName), Failure> {
    Ok((told.kind.clone(), named(told.name.as_ref())?))
}
