//! Which tables an operation concerns. Pure: decides over a list, asks nobody.

use std::collections::{HashMap, HashSet};

use steep_protocol::names::TableName;

/// What an operator asked for. All empty: every table of the database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Only these tables.
    pub tables: Vec<TableName>,
    /// Only tables of these schemas.
    pub schemas: Vec<String>,
    /// Never these, whatever else selects them.
    pub exclude: Vec<TableName>,
}

/// A table that could be selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) oid: u32,
    pub(super) name: TableName,
    /// The table at the top, for a partition.
    pub(super) root_oid: Option<u32>,
    /// Belongs to an extension that keeps the user's data in it.
    pub(super) is_extension_config: bool,
}

/// What a selection came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected<T> {
    /// The tables meant, partitions among them.
    pub tables: Vec<T>,
    /// Tables named, by `tables` or `exclude`, that are not there.
    pub unknown: Vec<TableName>,
    /// Schemas named that are not there.
    pub unknown_schemas: Vec<String>,
    /// Partitions left out or taken alone while the table at their top is not.
    pub torn: Vec<TornPartition>,
    /// Tables of extensions that hold the user's data; they are never among `tables`.
    pub extension_tables: Vec<TableName>,
}

/// A partition that is treated unlike the table it is part of, which a publication cannot express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornPartition {
    /// The partition.
    pub partition: TableName,
    /// The table at the top.
    pub root: TableName,
    /// The partition is selected and the table is not; else the other way round.
    pub is_selected: bool,
}

impl Selection {
    /// Every table of the database is meant.
    pub fn is_whole_database(&self) -> bool {
        self.tables.is_empty() && self.schemas.is_empty() && self.exclude.is_empty()
    }

    /// Whether `table` is meant by its own name or schema; a partition is not looked at as part of another table.
    pub fn holds(&self, table: &TableName) -> bool {
        let is_named = self.tables.contains(table) || self.schemas.contains(&table.schema);
        (is_named || (self.tables.is_empty() && self.schemas.is_empty())) && !self.exclude.contains(table)
    }

    /// A partition follows the table at its top, unless it is named itself.
    pub(super) fn choose<'a>(&self, candidates: &'a [Candidate], schemas: &HashSet<String>) -> Selected<&'a Candidate> {
        let named: HashSet<&TableName> = self.tables.iter().collect();
        let excluded: HashSet<&TableName> = self.exclude.iter().collect();
        let wanted_schemas: HashSet<&str> = self.schemas.iter().map(String::as_str).collect();
        let everything = self.tables.is_empty() && self.schemas.is_empty();
        let by_oid: HashMap<u32, &Candidate> = candidates.iter().map(|table| (table.oid, table)).collect();

        let asked = |table: &Candidate| {
            everything || named.contains(&table.name) || wanted_schemas.contains(table.name.schema.as_str())
        };
        let root = |table: &Candidate| table.root_oid.and_then(|oid| by_oid.get(&oid).copied());
        let is_selected = |table: &Candidate| {
            let asked = asked(table) || root(table).is_some_and(asked);
            let excluded =
                excluded.contains(&table.name) || root(table).is_some_and(|root| excluded.contains(&root.name));
            asked && !excluded && !table.is_extension_config
        };

        let torn = candidates.iter().filter_map(|table| {
            let root = root(table)?;
            let selected = is_selected(table);
            (selected != is_selected(root)).then(|| TornPartition {
                partition: table.name.clone(),
                root: root.name.clone(),
                is_selected: selected,
            })
        });
        let known: HashSet<&TableName> = candidates.iter().map(|table| &table.name).collect();
        let unknown = self.tables.iter().chain(&self.exclude).filter(|name| !known.contains(name));
        Selected {
            tables: candidates.iter().filter(|table| is_selected(table)).collect(),
            unknown: unknown.cloned().collect(),
            unknown_schemas: self.schemas.iter().filter(|schema| !schemas.contains(*schema)).cloned().collect(),
            torn: torn.collect(),
            extension_tables: candidates
                .iter()
                .filter(|t| t.is_extension_config && asked(t))
                .map(|t| t.name.clone())
                .collect(),
        }
    }
}

impl<T> Selected<T> {
    /// The same findings about tables in another form.
    pub(super) fn with_tables<U>(self, tables: Vec<U>) -> Selected<U> {
        let Self { unknown, unknown_schemas, torn, extension_tables, .. } = self;
        Selected { tables, unknown, unknown_schemas, torn, extension_tables }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> TableName {
        steep_protocol::names::parse_table(text).expect("a table name")
    }

    fn candidates() -> Vec<Candidate> {
        let candidate =
            |oid, name, root_oid| Candidate { oid, name: table(name), root_oid, is_extension_config: false };
        vec![
            candidate(1, "shop.orders", None),
            candidate(2, "shop.orders_1", Some(1)),
            candidate(3, "archive.orders_2", Some(1)),
            candidate(4, "shop.items", None),
            candidate(5, "public.notes", None),
            Candidate { is_extension_config: true, ..candidate(6, "public.spatial_ref_sys", None) },
        ]
    }

    #[test]
    fn tables_are_held_by_name_or_schema_and_left_out_by_name() {
        let chosen = selection(&["a.one"], &["b"], &["b.not"]);
        let cases = [("a.one", true), ("a.two", false), ("b.any", true), ("b.not", false), ("c.one", false)];
        for (name, expected) in cases {
            assert_eq!(chosen.holds(&table(name)), expected, "{name}");
        }
        assert!(Selection::default().holds(&table("c.one")));
    }

    fn chosen(selection: &Selection) -> (Vec<u32>, Selected<&'static Candidate>) {
        let candidates: &'static [Candidate] = candidates().leak();
        let schemas = ["shop", "archive", "public"].map(str::to_owned).into();
        let selected = selection.choose(candidates, &schemas);
        (selected.tables.iter().map(|table| table.oid).collect(), selected)
    }

    fn selection(tables: &[&str], schemas: &[&str], exclude: &[&str]) -> Selection {
        let names = |texts: &[&str]| texts.iter().map(|text| table(text)).collect();
        Selection {
            tables: names(tables),
            schemas: schemas.iter().map(|schema| (*schema).to_owned()).collect(),
            exclude: names(exclude),
        }
    }

    #[test]
    fn a_selection_means_these_tables() {
        let cases: [(Selection, &[u32]); 8] = [
            (selection(&[], &[], &[]), &[1, 2, 3, 4, 5]),
            (selection(&["shop.items"], &[], &[]), &[4]),
            (selection(&["shop.orders"], &[], &[]), &[1, 2, 3]),
            (selection(&[], &["shop"], &[]), &[1, 2, 3, 4]),
            (selection(&["notes"], &["shop"], &[]), &[1, 2, 3, 4, 5]),
            (selection(&[], &[], &["shop.orders"]), &[4, 5]),
            (selection(&["shop.items"], &[], &["shop.items"]), &[]),
            (selection(&["public.spatial_ref_sys"], &[], &[]), &[]),
        ];
        for (selection, expected) in cases {
            assert_eq!(chosen(&selection).0, expected, "{selection:?}");
        }
    }

    #[test]
    fn what_is_named_but_not_there_is_told() {
        let (_, selected) = chosen(&selection(&["shop.orders", "nothing"], &["nowhere"], &["gone"]));
        assert_eq!(selected.unknown, [table("nothing"), table("gone")]);
        assert_eq!(selected.unknown_schemas, ["nowhere"]);
    }

    #[test]
    fn a_partition_torn_from_its_table_is_told() {
        let torn = |partition: &str, is_selected| TornPartition {
            partition: table(partition),
            root: table("shop.orders"),
            is_selected,
        };
        assert_eq!(chosen(&selection(&[], &[], &["shop.orders_1"])).1.torn, [torn("shop.orders_1", false)]);
        assert_eq!(chosen(&selection(&[], &["archive"], &[])).1.torn, [torn("archive.orders_2", true)]);
        assert_eq!(chosen(&selection(&[], &[], &[])).1.torn, []);
    }

    #[test]
    fn tables_of_extensions_are_told_and_never_selected() {
        let (oids, selected) = chosen(&selection(&[], &[], &[]));
        assert!(!oids.contains(&6));
        assert_eq!(selected.extension_tables, [table("public.spatial_ref_sys")]);
    }
}
