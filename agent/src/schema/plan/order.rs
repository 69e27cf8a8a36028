//! In which order tables can be made: what they are parts of comes first.

use std::collections::BTreeSet;

use steep_protocol::names::TableName;

use super::keys::parents_of;
use crate::schema::catalog::Catalog;

/// The tables of `catalog`, each after its parents; otherwise by name.
pub(super) fn parents_first(catalog: &Catalog) -> Vec<TableName> {
    let mut placed = BTreeSet::new();
    let mut order = Vec::new();
    loop {
        let before = order.len();
        for (name, table) in &catalog.tables {
            let waits = parents_of(table)
                .iter()
                .any(|parent| parent != name && catalog.tables.contains_key(parent) && !placed.contains(parent));
            if !waits && placed.insert(name.clone()) {
                order.push(name.clone());
            }
        }
        if order.len() == before {
            break;
        }
    }
    // Only documents that contradict themselves leave a circle.
    order.extend(catalog.tables.keys().filter(|name| !placed.contains(*name)).cloned());
    order
}
