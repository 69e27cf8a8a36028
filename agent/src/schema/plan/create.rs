//! Plans tables that the target lacks: columns, constraints, sequences, indexes; partitions after their parents.

use steep_protocol::names::{TableName, quote_identifier, quote_literal};

use super::{
    Planner, StepKind, collation_sql,
    effect::Effect,
    keys,
    objects::{checked_type, sequence_options},
};
use crate::schema::{
    catalog::{Column, Constraint, OWNED_SEQUENCE, Object, ObjectKey, Shape, Table},
    clause::{self, Unsafe},
    diff::Aspect,
};

/// Why a table, or a part of it, is not planned.
struct Refused {
    aspect: Aspect,
    name: String,
    why: String,
}

impl Refused {
    fn text(aspect: Aspect, name: &str, error: Unsafe) -> Self {
        Self { aspect, name: name.to_owned(), why: format!("{error}, so it is not put in a statement") }
    }
}

impl Planner<'_> {
    /// Tables the target lacks: those by themselves, or those below one that is there and first has to be as on the source.
    pub(super) fn create_tables(&mut self, below_old: bool) {
        for name in self.order.clone() {
            if self.target.tables.contains_key(&name) || self.is_below_old(&name) != below_old {
                continue;
            }
            let Some(table) = self.source.tables.get(&name) else { continue };
            if let Err(refused) = self.create_table(&name, table) {
                // The whole table stays away; the reason is told with it.
                let part = if refused.name.is_empty() { String::new() } else { format!("{}: ", refused.name) };
                let why = format!("{} {part}{}", refused.aspect.as_str().replace('_', " "), refused.why);
                self.refuse(&name, Aspect::Kind, "", why);
            }
        }
    }

    fn is_below_old(&self, name: &TableName) -> bool {
        let parents = self.source.tables.get(name).map(keys::parents_of).unwrap_or_default();
        parents.iter().any(|parent| self.target.tables.contains_key(parent) || self.is_below_old(parent))
    }

    /// A partition, and what inherits, has the columns of what it is below.
    fn fits(&self, table: &Table, parent: &TableName) -> bool {
        let Some(above) = self.model.tables.get(parent) else { return false };
        let is_partition = table.shape.bound.is_some();
        let has = |column: &Column| {
            table.column(&column.name).is_some_and(|own| {
                (&own.type_name, &own.collation, &own.generated)
                    == (&column.type_name, &column.collation, &column.generated)
                    && (own.not_null || !column.not_null)
            })
        };
        above.columns.iter().all(has) && (!is_partition || above.columns.len() == table.columns.len())
    }

    fn create_table(&mut self, name: &TableName, table: &Table) -> Result<(), Refused> {
        let parents = keys::parents_of(table);
        if let Some(absent) = parents.iter().find(|parent| !self.model.tables.contains_key(*parent)) {
            let why = format!("its parent {absent} is not there");
            return Err(Refused { aspect: Aspect::Parents, name: String::new(), why });
        }
        if let Some(other) = parents.iter().find(|parent| !self.fits(table, parent)) {
            let why = format!("the columns of {other} are not as on the source");
            return Err(Refused { aspect: Aspect::Parents, name: String::new(), why });
        }
        let owned = self.sequences_for(name, table)?;
        let sql = self.create_statement(name, table, &parents, &owned)?;
        let bound = self.attach_statement(name, table, &parents)?;
        for (_, key, object, sql) in &owned {
            if !self.model.objects.contains_key(key) && !sql.is_empty() {
                self.object_step(StepKind::CreateSequence, key, sql.clone(), unowned(object));
            }
        }
        let made = Box::new(as_made(table, !parents.is_empty() && table.shape.bound.is_some()));
        self.step(StepKind::CreateTable, name, sql, Effect::Table(name.clone(), made));
        self.own_sequences(name, &owned);
        if let (Some(sql), [parent]) = (bound, table.shape.parents.as_slice()) {
            let identities = table
                .columns
                .iter()
                .filter_map(|column| column.identity.as_ref().map(|identity| (column.name.clone(), identity.clone())));
            let effect = Effect::Attached {
                table: name.clone(),
                parent: parent.clone(),
                bound: table.shape.bound.clone().unwrap_or_default(),
                identities: identities.collect(),
            };
            self.step(StepKind::CreateTable, name, sql, effect);
        } else {
            self.drop_inherited_defaults(name, table, &parents);
        }
        self.unproven_checks(name, table);
        self.new_indexes(name, table);
        Ok(())
    }

    /// The sequences of columns filled by one, with the statement that makes each; none where identity does.
    fn sequences_for(
        &self,
        name: &TableName,
        table: &Table,
    ) -> Result<Vec<(String, ObjectKey, Object, String)>, Refused> {
        let mut found = Vec::new();
        let is_partition = table.shape.bound.is_some();
        for column in &table.columns {
            let is_owner = column.default.as_deref().is_some_and(|default| {
                // A sequence with a backslash in its name stands in documents by that name.
                let is_named = default.starts_with("nextval(") && self.owned_sequence(name, &column.name).is_some();
                default == OWNED_SEQUENCE || is_named
            });
            let has_identity = column.identity.is_some() && !is_partition;
            if !is_owner && !has_identity {
                continue;
            }
            match self.owned_sequence(name, &column.name) {
                Some((key, object, sql)) => {
                    let sql = if is_owner { sql } else { String::new() };
                    if is_owner && self.model.objects.contains_key(&key) {
                        let why = format!("sequence {} is there already and belongs to something else", key.name);
                        return Err(Refused { aspect: Aspect::Default, name: column.name.clone(), why });
                    }
                    found.push((column.name.clone(), key, object, sql));
                }
                None if is_owner => {
                    let why = "nothing is known of the sequence that fills it".to_owned();
                    return Err(Refused { aspect: Aspect::Default, name: column.name.clone(), why });
                }
                // PostgreSQL names and numbers it by itself.
                None => {}
            }
        }
        Ok(found)
    }

    fn create_statement(
        &self,
        name: &TableName,
        table: &Table,
        parents: &[TableName],
        owned: &[(String, ObjectKey, Object, String)],
    ) -> Result<String, Refused> {
        let is_partition = table.shape.bound.is_some();
        let mut parts = Vec::new();
        for column in &table.columns {
            let sequence = owned.iter().find(|(of, ..)| *of == column.name).map(|(_, key, object, _)| (key, object));
            let runs = column.expression.as_deref().and_then(|text| self.runs(text));
            if let Some(why) = self.needs_newer_column(column).or(runs) {
                return Err(Refused { aspect: Aspect::Generated, name: column.name.clone(), why });
            }
            parts.push(column_sql(column, sequence, is_partition)?);
        }
        let inherited = if is_partition { self.inherited_checks(parents) } else { Vec::new() };
        let own = table.shape.constraints.iter().filter(|constraint| is_made_with_its_table(constraint));
        for constraint in inherited.iter().chain(own) {
            if let Some(why) = self.needs_newer(constraint).or_else(|| self.constraint_runs(constraint)) {
                return Err(Refused { aspect: Aspect::Check, name: constraint.name.clone(), why });
            }
            let text =
                constraint_text(constraint).map_err(|error| Refused::text(Aspect::Check, &constraint.name, error))?;
            parts.push(format!("CONSTRAINT {} {text}", quote_identifier(&constraint.name)));
        }
        let unlogged = if table.shape.persistence == "u" { "UNLOGGED " } else { "" };
        let mut sql = format!("CREATE {unlogged}TABLE {} ({})", name.sql(), parts.join(", "));
        if !is_partition && !parents.is_empty() {
            let parents: Vec<_> = parents.iter().map(TableName::sql).collect();
            sql.push_str(&format!(" INHERITS ({})", parents.join(", ")));
        }
        if let Some(key) = &table.shape.partition_key {
            if let Some(why) = self.runs(key) {
                return Err(Refused { aspect: Aspect::PartitionKey, name: String::new(), why });
            }
            let begins = ["RANGE", "LIST", "HASH"].iter().find_map(|word| clause::clause(key, word).ok());
            let error = Unsafe("another beginning than is expected");
            let key = begins.ok_or_else(|| Refused::text(Aspect::PartitionKey, "", error))?;
            sql.push_str(&format!(" PARTITION BY {key}"));
        }
        Ok(sql)
    }

    fn attach_statement(
        &self,
        name: &TableName,
        table: &Table,
        parents: &[TableName],
    ) -> Result<Option<String>, Refused> {
        let (Some(bound), [parent]) = (&table.shape.bound, parents) else { return Ok(None) };
        let text = if bound == "DEFAULT" { Ok(bound.as_str()) } else { clause::clause(bound, "FOR VALUES") };
        let text = text.map_err(|error| Refused::text(Aspect::Bound, "", error))?;
        if let Some(why) = self.check_runs(text.strip_prefix("FOR VALUES").unwrap_or_default()) {
            return Err(Refused { aspect: Aspect::Bound, name: String::new(), why });
        }
        let parent = parent.sql();
        Ok(Some(format!("ALTER TABLE {parent} ATTACH PARTITION {} {text}", name.sql())))
    }

    /// The checks a partition must have before it can be attached.
    fn inherited_checks(&self, parents: &[TableName]) -> Vec<Constraint> {
        let mut found = Vec::new();
        for table in parents.iter().filter_map(|parent| self.model.tables.get(parent)) {
            found.extend(self.inherited_checks(&keys::parents_of(table)));
            let is_inherited = |it: &&Constraint| it.kind == "c" && !it.definition.contains(" NO INHERIT");
            found.extend(table.shape.constraints.iter().filter(is_inherited).cloned());
        }
        found
    }

    fn own_sequences(&mut self, name: &TableName, owned: &[(String, ObjectKey, Object, String)]) {
        for (column, key, object, made_by) in owned {
            if made_by.is_empty() {
                // An identity's sequence came with the table.
                let effect = Effect::Object(key.clone(), object.clone());
                effect.apply(&mut self.model);
                if let Some(step) = self.steps.iter_mut().rev().find(|step| step.table.as_ref() == Some(name)) {
                    step.effects.push(effect);
                }
                continue;
            }
            let owner = format!("{}.{}", name.sql(), quote_identifier(column));
            let sql = format!("ALTER SEQUENCE {} OWNED BY {owner}", key.name.sql());
            self.object_step(StepKind::CreateSequence, key, sql, object.clone());
        }
    }

    /// A table takes the defaults of what it inherits from, unless it has its own.
    fn drop_inherited_defaults(&mut self, name: &TableName, table: &Table, parents: &[TableName]) {
        for column in table.columns.iter().filter(|column| column.default.is_none() && column.generated.is_none()) {
            let has_default = |parent: &TableName| {
                let above = self.model.tables.get(parent).and_then(|above| above.column(&column.name));
                above.is_some_and(|above| above.default.is_some())
            };
            if parents.iter().any(has_default) {
                let column = quote_identifier(&column.name);
                let sql = format!("ALTER TABLE ONLY {} ALTER COLUMN {column} DROP DEFAULT", name.sql());
                self.step(StepKind::SetDefault, name, sql, Effect::Nothing);
            }
        }
    }

    /// Checks that the source itself has not proven for all rows.
    fn unproven_checks(&mut self, name: &TableName, table: &Table) {
        let is_later = |it: &&Constraint| it.kind == "c" && !is_made_with_its_table(it);
        for constraint in table.shape.constraints.iter().filter(is_later) {
            self.add_check(name, constraint);
        }
    }

    fn new_indexes(&mut self, name: &TableName, table: &Table) {
        for index in &table.shape.indexes {
            match clause::index(&index.definition, &index.name, &name.schema, &name.name) {
                Ok(text) => {
                    if let Some(why) = self.runs(text.rest) {
                        self.refuse(name, Aspect::Index, &index.name, why);
                        continue;
                    }
                    let sql = index_sql(&index.name, name, &text, "", text.only);
                    self.step(StepKind::CreateIndex, name, sql, Effect::Index(name.clone(), valid(index)));
                }
                Err(error) => self.refuse_text(name, Aspect::Index, &index.name, error),
            }
        }
    }
}

fn valid(index: &crate::schema::catalog::Index) -> crate::schema::catalog::Index {
    crate::schema::catalog::Index { valid: true, ..index.clone() }
}

/// An index's statement with the parts in their places.
pub(super) fn index_sql(
    index: &str,
    table: &TableName,
    text: &clause::IndexText<'_>,
    concurrently: &str,
    only: bool,
) -> String {
    let unique = if text.unique { "UNIQUE " } else { "" };
    let only = if only { "ONLY " } else { "" };
    let index = quote_identifier(index);
    format!("CREATE {unique}INDEX {concurrently}{index} ON {only}{} {}", table.sql(), text.rest)
}

/// Primary keys, unique and exclusion constraints, and the checks that hold for all rows. Foreign keys come when all tables are there.
fn is_made_with_its_table(constraint: &Constraint) -> bool {
    match constraint.kind.as_str() {
        "p" | "u" | "x" => true,
        "c" => constraint.validated,
        _ => false,
    }
}

/// A constraint's definition, if it is one of its kind.
pub(super) fn constraint_text(constraint: &Constraint) -> Result<&str, Unsafe> {
    let words = match constraint.kind.as_str() {
        "p" => "PRIMARY KEY",
        "u" => "UNIQUE",
        "f" => "FOREIGN KEY",
        "x" => "EXCLUDE",
        _ => "CHECK",
    };
    clause::clause(&constraint.definition, words)
}

/// A table as its statements make it, before it is attached and all that comes later.
fn as_made(table: &Table, will_be_attached: bool) -> Table {
    let columns = table.columns.iter().map(|column| {
        let mut column = column.clone();
        if will_be_attached {
            column.identity = None;
        }
        column
    });
    let own = table.shape.constraints.iter().filter(|it| is_made_with_its_table(it)).cloned();
    Table {
        columns: columns.collect(),
        shape: Shape {
            kind: table.shape.kind.clone(),
            persistence: table.shape.persistence.clone(),
            partition_key: table.shape.partition_key.clone(),
            parents: if will_be_attached { Vec::new() } else { table.shape.parents.clone() },
            constraints: own.collect(),
            ..Shape::default()
        },
        ..Table::default()
    }
}

/// A sequence before it is given to its column.
fn unowned(object: &Object) -> Object {
    use crate::schema::catalog::{Definition, Sequence};
    match &object.definition {
        Definition::Sequence(sequence) => Object {
            fingerprint: String::new(),
            definition: Definition::Sequence(Sequence { owned_by: None, ..sequence.clone() }),
        },
        _ => object.clone(),
    }
}

/// A column as it stands in CREATE TABLE.
fn column_sql(column: &Column, sequence: Option<(&ObjectKey, &Object)>, is_partition: bool) -> Result<String, Refused> {
    use crate::schema::catalog::Definition;
    let refused = |aspect| move |error| Refused::text(aspect, &column.name, error);
    let type_name = checked_type(&column.type_name).map_err(refused(Aspect::Type))?;
    let mut sql = format!("{} {type_name}", quote_identifier(&column.name));
    if let Some(collation) = &column.collation {
        sql.push_str(&format!(" COLLATE {}", collation_sql(collation)));
    }
    match (column.default.as_deref(), sequence) {
        (Some(_), Some((key, _))) => {
            sql.push_str(&format!(" DEFAULT nextval({}::regclass)", quote_literal(&key.name.sql())));
        }
        (Some(default), _) => {
            let default = clause::expression(default).map_err(refused(Aspect::Default))?;
            sql.push_str(&format!(" DEFAULT ({default})"));
        }
        (None, _) => {}
    }
    if let Some(letter) = &column.generated {
        let text = column.expression.as_deref().unwrap_or_default();
        let text = clause::expression(text).map_err(refused(Aspect::Generated))?;
        let kept = if letter == "v" { "VIRTUAL" } else { "STORED" };
        sql.push_str(&format!(" GENERATED ALWAYS AS ({text}) {kept}"));
    }
    if let Some(letter) = column.identity.as_ref().filter(|_| !is_partition) {
        let when = if letter == "a" { "ALWAYS" } else { "BY DEFAULT" };
        sql.push_str(&format!(" GENERATED {when} AS IDENTITY"));
        if let Some((key, object)) = sequence
            && let Definition::Sequence(sequence) = &object.definition
        {
            sql.push_str(&format!(" (SEQUENCE NAME {}{})", key.name.sql(), sequence_options(sequence)));
        }
    }
    if column.not_null {
        sql.push_str(" NOT NULL");
    }
    Ok(sql)
}
