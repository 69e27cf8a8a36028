//! What is in the ledger's tables, as known by writers or as read from a node.

use std::collections::{BTreeMap, BTreeSet};

use super::Refusals;
use crate::node::Node;

/// An entry without its key: the amount and a digest of the body.
pub(super) type Entry = (i64, String);

/// What the tables hold, or must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) places: BTreeMap<String, i64>,
    /// Of each writer, every line of the journal and how often it is there.
    pub(super) journal: BTreeMap<(String, i64), i64>,
    /// Errors the writers met that were no lost connections: what applications would have seen.
    pub refusals: Refusals,
}

impl Account {
    /// What `node` holds now.
    pub(super) async fn read(node: &Node) -> Result<Self, String> {
        let client = node.try_connect("postgres").await.map_err(|error| error.to_string())?;
        // One snapshot for the three tables.
        client.batch_execute("begin isolation level repeatable read").await.map_err(|error| error.to_string())?;
        let rows = async |query| client.query(query, &[]).await.map_err(|error| error.to_string());
        let entries = rows("select key, amount, md5(coalesce(body, '')) from ledger.entries").await?;
        let places = rows("select key, generation from ledger.places").await?;
        let journal = rows("select writer, seq, count(*) from ledger.journal group by 1, 2").await?;
        let mut found = Self::default();
        for row in &entries {
            if found.entries.insert(row.get(0), (row.get(1), row.get(2))).is_some() {
                return Err(format!("entry {} is there twice", row.get::<_, String>(0)));
            }
        }
        for row in &places {
            if found.places.insert(row.get(0), row.get(1)).is_some() {
                return Err(format!("place {} is there twice", row.get::<_, String>(0)));
            }
        }
        found.journal = journal.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        Ok(found)
    }

    /// Both together; their keys are different by design.
    pub(super) fn with(mut self, other: &Self) -> Self {
        self.entries.extend(other.entries.clone());
        self.places.extend(other.places.clone());
        self.journal.extend(other.journal.clone());
        for (reason, times) in &other.refusals {
            *self.refusals.entry(reason.clone()).or_default() += times;
        }
        self
    }

    /// The transactions the writers were told are committed.
    pub fn transactions(&self) -> usize {
        self.journal.len()
    }

    /// Where `found` is not what it must be: counts, and the first of each kind.
    pub(super) fn difference(&self, found: &Self) -> Vec<String> {
        let mut lines = compared("entries", &self.entries, &found.entries);
        lines.extend(compared("places", &self.places, &found.places));
        lines.extend(compared("lines of the journal", &self.journal, &found.journal));
        lines
    }
}

fn compared<K: Ord + Clone + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) -> Vec<String> {
    let keys = |map: &BTreeMap<K, V>| map.keys().cloned().collect::<BTreeSet<K>>();
    let (must, are) = (keys(expected), keys(found));
    let lost: Vec<_> = must.difference(&are).collect();
    let extra: Vec<_> = are.difference(&must).collect();
    let other: Vec<_> = must.intersection(&are).filter(|key| expected[key] != found[key]).collect();
    let mut lines = Vec::new();
    if let Some(first) = lost.first() {
        lines.push(format!("{} {what} lost, the first {first:?}", lost.len()));
    }
    if let Some(first) = extra.first() {
        lines.push(format!("{} {what} that must not be, the first {first:?}", extra.len()));
    }
    if let Some(first) = other.first() {
        let (must, is) = (&expected[first], &found[first]);
        lines.push(format!("{} {what} with another value, the first {first:?}: {is:?}, not {must:?}", other.len()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(entries: &[(&str, i64)], journal: &[(i64, i64)]) -> Account {
        Account {
            entries: entries.iter().map(|(key, amount)| ((*key).to_owned(), (*amount, String::new()))).collect(),
            journal: journal.iter().map(|(seq, times)| (("w".to_owned(), *seq), *times)).collect(),
            ..Account::default()
        }
    }

    #[test]
    fn lost_doubled_foreign_and_changed_rows_are_told_apart() {
        let must = account(&[("a", 1), ("b", 2), ("c", 3)], &[(1, 1), (2, 1)]);
        assert!(must.difference(&must.clone()).is_empty());
        let is = account(&[("a", 1), ("b", 9), ("x", 3)], &[(1, 2), (2, 1)]);
        let lines = must.difference(&is);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].contains("1 entries lost") && lines[0].contains("\"c\""));
        assert!(lines[1].contains("must not be") && lines[1].contains("\"x\""));
        assert!(lines[2].contains("another value") && lines[2].contains("\"b\""));
        assert!(lines[3].contains("journal") && lines[3].contains("2, not 1"));
    }
}
