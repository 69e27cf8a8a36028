//! What objects a database has, what a restore added to them, and dropping exactly that again.
//!
//! An inventory is taken before the restore and kept; what is new afterwards and was made by the very transaction
//! that made the tables is the restore's. Objects that others made meanwhile are never touched.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use steep_protocol::names::{TableName, escape_controls};

use super::{
    connect::{Session, field},
    ddl,
    error::{Error, doing},
};

/// How long a drop waits for a lock before the object counts as not dropped.
const LOCK_TIMEOUT: &str = "5s";

/// The objects of a database at one time: catalog and oid.
///
/// Written down as pairs: a map with numbers for keys does not come back out of JSON everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(u32, BTreeSet<u32>)>", into = "Vec<(u32, BTreeSet<u32>)>")]
pub struct Inventory {
    /// Oids, by the oid of their catalog.
    objects: BTreeMap<u32, BTreeSet<u32>>,
}

impl From<Vec<(u32, BTreeSet<u32>)>> for Inventory {
    fn from(pairs: Vec<(u32, BTreeSet<u32>)>) -> Self {
        Self { objects: pairs.into_iter().collect() }
    }
}

impl From<Inventory> for Vec<(u32, BTreeSet<u32>)> {
    fn from(inventory: Inventory) -> Self {
        inventory.objects.into_iter().collect()
    }
}

impl Inventory {
    fn holds(&self, class_id: u32, object_id: u32) -> bool {
        self.objects.get(&class_id).is_some_and(|oids| oids.contains(&object_id))
    }
}

/// An object a restore made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CreatedObject {
    /// The oid of its catalog.
    pub class_id: u32,
    /// Its oid.
    pub object_id: u32,
    /// PostgreSQL's word for what it is: "table", "function", …
    pub kind: String,
    /// PostgreSQL's name for it, quoted for SQL.
    pub identity: String,
}

impl fmt::Display for CreatedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, escape_controls(&self.identity))
    }
}

/// An object that could not be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remaining {
    /// Which.
    pub object: CreatedObject,
    /// Why, in PostgreSQL's words.
    pub reason: String,
}

struct Found {
    class_id: u32,
    object_id: u32,
    made_by: i64,
}

/// Lists the objects there are now.
pub async fn take(session: &Session) -> Result<Inventory, Error> {
    let mut inventory = Inventory::default();
    for found in list(session).await? {
        inventory.objects.entry(found.class_id).or_default().insert(found.object_id);
    }
    Ok(inventory)
}

async fn list(session: &Session) -> Result<Vec<Found>, Error> {
    let rows = session.rows(doing("list the database's objects"), sql!("catalog/list_objects.sql"), &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Found {
                class_id: field(row, "class_id")?,
                object_id: field(row, "object_id")?,
                made_by: field(row, "made_by")?,
            })
        })
        .collect()
}

/// Objects that are new since `before` and were made in one transaction with one of the `tables`.
///
/// To be asked right after the restore: a later GRANT or ALTER makes an object look as if another transaction had
/// made it. Keep the answer for [`drop_objects`].
pub async fn created_since(
    session: &Session,
    before: &Inventory,
    tables: &[TableName],
) -> Result<Vec<CreatedObject>, Error> {
    let mut new = list(session).await?;
    new.retain(|found| !before.holds(found.class_id, found.object_id));
    let marks: HashSet<u32> = super::tables::find(session, tables).await?.into_iter().map(|table| table.oid).collect();
    let pg_class = 1259;
    let is_mark = |found: &&Found| found.class_id == pg_class && marks.contains(&found.object_id);
    let transactions: HashSet<i64> = new.iter().filter(is_mark).map(|found| found.made_by).collect();
    new.retain(|found| transactions.contains(&found.made_by));
    identify(session, new.iter().map(|found| (found.class_id, found.object_id))).await
}

async fn event_triggers(session: &Session, functions: &[u32]) -> Result<Vec<CreatedObject>, Error> {
    let looking = doing("look for event triggers");
    let rows = session.rows(looking, sql!("catalog/list_event_triggers.sql"), &[&functions]).await?;
    let objects = rows.iter().map(|row| Ok((field(row, "class_id")?, field(row, "object_id")?)));
    let objects = objects.collect::<Result<Vec<_>, Error>>()?;
    identify(session, objects.into_iter()).await
}

/// What objects, as (catalog, oid), are called; those that are gone are left out.
pub async fn identify(
    session: &Session,
    objects: impl Iterator<Item = (u32, u32)>,
) -> Result<Vec<CreatedObject>, Error> {
    let (classes, oids): (Vec<u32>, Vec<u32>) = objects.unzip();
    let naming = doing("read what objects are called");
    let rows = session.rows(naming, sql!("catalog/identify_objects.sql"), &[&classes, &oids]).await?;
    rows.iter()
        .map(|row| {
            Ok(CreatedObject {
                class_id: field(row, "class_id")?,
                object_id: field(row, "object_id")?,
                kind: field(row, "kind")?,
                identity: field(row, "identity")?,
            })
        })
        .collect()
}

/// Drops exactly these objects, as far as nothing else depends on them, and says what remains.
///
/// An object that is gone is fine; one that was renamed since is somebody's and remains. Event triggers go with their
/// functions. Goes over the list until a pass drops nothing more. No transaction may be open; what a pass dropped stays dropped after an error.
pub async fn drop_objects(session: &Session, objects: &[CreatedObject]) -> Result<Vec<Remaining>, Error> {
    session.run(&ddl::set_session("lock_timeout", LOCK_TIMEOUT)).await?;
    let remaining = drop_in_passes(session, objects).await;
    if !session.is_closed() {
        session.run(&ddl::set_session("lock_timeout", "0")).await?;
    }
    remaining
}

async fn drop_in_passes(session: &Session, objects: &[CreatedObject]) -> Result<Vec<Remaining>, Error> {
    let mut left = objects.to_vec();
    // pg_restore makes event triggers last, in a transaction of their own; one that calls our function is ours.
    let functions: Vec<u32> = objects.iter().filter(|o| o.kind == "function").map(|o| o.object_id).collect();
    left.extend(event_triggers(session, &functions).await?);
    loop {
        let now = identify(session, left.iter().map(|object| (object.class_id, object.object_id))).await?;
        let now: HashMap<_, _> = now.into_iter().map(|object| ((object.class_id, object.object_id), object)).collect();
        left.retain(|object| now.contains_key(&(object.class_id, object.object_id)));
        let (mut ours, renamed): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|object| now.get(&(object.class_id, object.object_id)) == Some(object));
        ours.sort_by_key(|object| rank(&object.kind));
        let mut remaining = drop_once(session, &ours).await?;
        let progressed = remaining.len() < ours.len();
        remaining.extend(renamed.into_iter().map(|object| Remaining {
            reason: format!("it is now called {}", now[&(object.class_id, object.object_id)]),
            object,
        }));
        if !progressed {
            return Ok(remaining);
        }
        left = remaining.into_iter().map(|remaining| remaining.object).collect();
    }
}

/// One pass: tables together, since foreign keys may run in circles; all else one by one.
async fn drop_once(session: &Session, objects: &[CreatedObject]) -> Result<Vec<Remaining>, Error> {
    let mut remaining = Vec::new();
    let tables: Vec<&CreatedObject> = objects.iter().filter(|object| object.kind == "table").collect();
    let mut tables_dropped = tables.is_empty();
    for object in objects {
        if object.kind == "table" && !tables_dropped {
            tables_dropped = true;
            let identities: Vec<&str> = tables.iter().map(|table| table.identity.as_str()).collect();
            if try_drop(session, "table", &identities).await?.is_none() {
                continue;
            }
        }
        let Some(kind) = drop_kind(&object.kind) else {
            let reason = format!("Steep does not drop objects of kind {}", object.kind);
            remaining.push(Remaining { object: object.clone(), reason });
            continue;
        };
        if let Some(reason) = try_drop(session, kind, &[&object.identity]).await? {
            remaining.push(Remaining { object: object.clone(), reason });
        }
    }
    Ok(remaining)
}

/// None: dropped, or gone already. Else why not.
async fn try_drop(session: &Session, kind: &'static str, identities: &[&str]) -> Result<Option<String>, Error> {
    match session.run(&ddl::drop_objects(kind, identities)).await {
        Ok(()) => Ok(None),
        Err(error) => match error.refusal() {
            Some(refusal) if !error.is_connection_loss() => {
                // Class 42: it does not exist (any more), such as a partition dropped with its table.
                let gone = ["42P01", "42704", "42883", "3F000"].contains(&refusal.sqlstate.as_str());
                Ok((!gone).then(|| escape_controls(&refusal.message)))
            }
            _ => Err(error),
        },
    }
}

/// Kinds in an order in which most objects can be dropped in the first pass.
fn rank(kind: &str) -> usize {
    const ORDER: &[&str] = &["event trigger", "view", "materialized view", "table", "foreign table", "sequence"];
    const LAST: &[&str] = &["type", "server", "foreign-data wrapper", "language", "extension", "schema"];
    match (ORDER.iter().position(|known| *known == kind), LAST.iter().position(|known| *known == kind)) {
        (Some(at), _) => at,
        (None, Some(at)) => ORDER.len() + 1 + at,
        (None, None) => ORDER.len(),
    }
}

/// What DROP calls a kind that `pg_identify_object` named.
fn drop_kind(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "aggregate" | "function" | "procedure" => "routine",
        "cast" => "cast",
        "collation" => "collation",
        "composite type" | "type" => "type",
        "conversion" => "conversion",
        "event trigger" => "event trigger",
        "extension" => "extension",
        "foreign table" => "foreign table",
        "foreign-data wrapper" => "foreign data wrapper",
        "language" => "language",
        "materialized view" => "materialized view",
        "operator" => "operator",
        "operator class" => "operator class",
        "operator family" => "operator family",
        "schema" => "schema",
        "sequence" => "sequence",
        "server" => "server",
        "table" => "table",
        "text search configuration" => "text search configuration",
        "text search dictionary" => "text search dictionary",
        "text search parser" => "text search parser",
        "text search template" => "text search template",
        "view" => "view",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_reads_back_as_it_was_kept() {
        let mut inventory = Inventory::default();
        inventory.objects.entry(1259).or_default().extend([16384, 16390]);
        let kept = serde_json::to_string(&inventory).expect("to be written");
        let back: Inventory = serde_json::from_str(&kept).expect("to be read");
        assert!(back.holds(1259, 16390) && !back.holds(1259, 16391) && !back.holds(1255, 16384));
        assert_eq!(back, inventory);
    }

    #[test]
    fn schemas_go_last_and_views_before_tables() {
        let mut kinds = ["schema", "table", "function", "view", "type", "sequence"];
        kinds.sort_by_key(|kind| rank(kind));
        assert_eq!(kinds, ["view", "table", "sequence", "function", "type", "schema"]);
    }
}
