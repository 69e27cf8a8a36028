//! Tables and schemas as they are named on the command line.

use clap::Args;
use steep_protocol::{
    names::{TableName, parse_table},
    v1,
};

use crate::output::{safe, shell_word};

/// Tables named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables(Vec<TableName>);

/// Schemas named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schemas(Vec<String>);

/// Options that leave out some of two schemas.
#[derive(Debug, Clone, Default, Args)]
pub struct Selected {
    /// Only tables of these schemas; commas between them
    #[arg(long, value_name = "SCHEMAS", value_parser = schemas)]
    pub schemas: Vec<Schemas>,
    /// Only these tables, as schema.table; commas between them
    #[arg(long, value_name = "TABLES", value_parser = tables)]
    pub tables: Vec<Tables>,
}

impl Selected {
    /// As it travels; nothing where nothing is left out.
    pub fn selection(&self) -> Option<v1::Selection> {
        let is_all = self.tables.is_empty() && self.schemas.is_empty();
        (!is_all).then(|| of(&self.tables, &self.schemas, &[]))
    }

    /// The same options for another command line, with a space before each.
    pub fn words(&self) -> String {
        let schemas: Vec<_> = self.schemas.iter().flat_map(|list| &list.0).collect();
        let tables: Vec<_> = self.tables.iter().flat_map(|list| &list.0).map(ToString::to_string).collect();
        // A schema is quoted as it is before a table's name.
        let quoted =
            |schema: &&String| TableName::new(schema.as_str(), "t").to_string().trim_end_matches(".t").to_owned();
        let schemas: Vec<_> = schemas.iter().map(quoted).collect();
        let option = |name: &str, values: Vec<String>| match values.is_empty() {
            true => String::new(),
            false => format!(" --{name} {}", shell_word(&values.join(","))),
        };
        safe(&format!("{}{}", option("schemas", schemas), option("tables", tables)))
    }
}

/// What the three options of a selection amount to.
pub fn of(tables: &[Tables], schemas: &[Schemas], exclude: &[Tables]) -> v1::Selection {
    let names = |lists: &[Tables]| lists.iter().flat_map(|list| &list.0).map(message).collect();
    v1::Selection {
        tables: names(tables),
        schemas: schemas.iter().flat_map(|list| list.0.clone()).collect(),
        exclude: names(exclude),
    }
}

/// A name as it travels.
pub fn message(table: &TableName) -> v1::TableName {
    v1::TableName { schema: table.schema.clone(), name: table.name.clone() }
}

/// Reads `a,s.b,"x,y".z`.
pub fn tables(text: &str) -> Result<Tables, String> {
    split(text)
        .map(|name| parse_table(name.trim()).map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()
        .map(Tables)
}

/// Reads `a,"B"`.
pub fn schemas(text: &str) -> Result<Schemas, String> {
    // A schema is what stands before a table's dot: quoted and folded by the same rule.
    let parse = |name: &str| match parse_table(&format!("{}.t", name.trim())) {
        Ok(table) => Ok(table.schema),
        Err(_) => Err(format!("{name:?} names no schema: double quotes are needed where SQL needs them")),
    };
    split(text).map(parse).collect::<Result<_, _>>().map(Schemas)
}

/// The pieces between commas that stand in no double quotes.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |c| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_can_be_typed_again() {
        let selected = Selected {
            schemas: vec![schemas("s,\"T\"").expect("schemas")],
            tables: vec![tables("a,\"x,y\".z").expect("tables")],
        };
        assert_eq!(selected.words(), " --schemas 's,\"T\"' --tables 'public.a,\"x,y\".z'");
        let again = tables("public.a,\"x,y\".z").expect("tables");
        assert_eq!(again, selected.tables[0]);
        assert_eq!((Selected::default().words().as_str(), Selected::default().selection()), ("", None));
    }
}
