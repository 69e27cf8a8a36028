//! Plans indexes, constraints and replica identities of tables that are there, without a lock that lasts.

use std::collections::BTreeSet;

use steep_protocol::names::{TableName, parse_table, quote_identifier};

use super::{
    Planner, Step, StepKind, Trial,
    create::{constraint_text, index_sql},
    effect::{Effect, children},
    keys,
};
use crate::schema::{
    catalog::{Constraint, Index, ReplicaIdentity, Table},
    clause::{self, IndexText, Kind},
    diff::Aspect,
};

impl Planner<'_> {
    pub(super) fn indexes(&mut self) {
        for (name, wanted, there) in self.pairs() {
            for index in &wanted.shape.indexes {
                let own = there.shape.indexes.iter().find(|own| own.name == index.name);
                match own {
                    None if index.valid => self.add_index(&name, &wanted, index),
                    None => self.refuse(&name, Aspect::Index, &index.name, "it is not valid on the source either"),
                    Some(own) if own.definition == index.definition && index.valid && !own.valid => {
                        self.rebuild_index(&name, &wanted, index);
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// The leftover of a build that failed makes room for the next.
    fn rebuild_index(&mut self, name: &TableName, wanted: &Table, index: &Index) {
        if wanted.is_partitioned() {
            let why = "an index of a partitioned table becomes valid when every partition has its part";
            return self.refuse(name, Aspect::Index, &index.name, why);
        }
        let quoted = TableName::new(&name.schema, &index.name).sql();
        let effect = Effect::IndexGone(name.clone(), index.name.clone());
        self.push(Step {
            kind: StepKind::DropInvalidIndex,
            table: Some(name.clone()),
            object: None,
            sql: format!("DROP INDEX CONCURRENTLY {quoted}"),
            outside_transaction: true,
            trial: Trial::IfSmall(format!("DROP INDEX {quoted}")),
            undo: None,
            effects: vec![effect],
        });
        self.add_index(name, wanted, index);
    }

    fn add_index(&mut self, name: &TableName, wanted: &Table, index: &Index) {
        let text = match clause::index(&index.definition, &index.name, &name.schema, &name.name) {
            Ok(text) => text,
            Err(error) => return self.refuse_text(name, Aspect::Index, &index.name, error),
        };
        if let Some(column) = self.needs_unsettled(name, text.rest) {
            return self.refuse(name, Aspect::Index, &index.name, format!("it needs column {column} as on the source"));
        }
        if let Some(why) = self.runs(text.rest) {
            return self.refuse(name, Aspect::Index, &index.name, why);
        }
        if !wanted.is_partitioned() {
            return self.concurrent_index(name, &index.name, &text, index.clone());
        }
        let mut parts = Vec::new();
        for leaf in self.leaves(name) {
            let part = keys::derived_name(&leaf.name, &[&name.schema, &name.name, &index.name, &leaf.schema]);
            let definition = format!("CREATE INDEX {part} ON {leaf} {}", text.rest);
            self.concurrent_index(&leaf, &part, &text, Index { name: part.clone(), definition, valid: true });
            parts.push((leaf, part));
        }
        // PostgreSQL finds the parts that are there and takes them over, instead of building its own.
        let sql = index_sql(&index.name, name, &text, "", false);
        let effect = Effect::IndexOver(name.clone(), index.clone(), parts);
        self.push(Step {
            kind: StepKind::CreateIndex,
            table: Some(name.clone()),
            object: None,
            trial: Trial::IfSmall(sql.clone()),
            sql,
            outside_transaction: false,
            undo: None,
            effects: vec![effect],
        });
    }

    fn concurrent_index(&mut self, name: &TableName, index: &str, text: &IndexText<'_>, after: Index) {
        let quoted = TableName::new(&name.schema, index).sql();
        self.push(Step {
            kind: StepKind::CreateIndex,
            table: Some(name.clone()),
            object: None,
            sql: index_sql(index, name, text, "CONCURRENTLY ", false),
            outside_transaction: true,
            trial: Trial::IfSmall(index_sql(index, name, text, "", false)),
            undo: Some(format!("DROP INDEX CONCURRENTLY IF EXISTS {quoted}")),
            effects: vec![Effect::Index(name.clone(), after)],
        });
    }

    /// The partitions below a partitioned table that hold rows.
    fn leaves(&self, name: &TableName) -> Vec<TableName> {
        let mut found = Vec::new();
        for child in children(&self.model, name) {
            let is_partitioned = self.model.tables.get(&child).is_some_and(Table::is_partitioned);
            if is_partitioned { found.extend(self.leaves(&child)) } else { found.push(child) }
        }
        found
    }

    /// A column of `name` that `text` speaks of and that is not as on the source.
    fn needs_unsettled(&self, name: &TableName, text: &str) -> Option<String> {
        let unsettled = self.unsettled_columns(name);
        let tokens = clause::tokens(text).ok()?;
        let names = tokens.iter().filter_map(|token| match token.kind {
            Kind::Word => Some(token.text.to_owned()),
            Kind::Quoted => Some(token.text.trim_matches('"').replace("\"\"", "\"")),
            _ => None,
        });
        names.into_iter().find(|name| unsettled.contains(name))
    }

    /// Unique constraints: an index built beside the work that goes on, then made a constraint.
    pub(super) fn unique_constraints(&mut self) {
        for (name, wanted, there) in self.pairs() {
            for constraint in missing(&wanted, &there).filter(|constraint| constraint.kind == "u") {
                if let Err(why) = self.unique_constraint(&name, &wanted, constraint) {
                    self.refuse(&name, Aspect::Unique, &constraint.name, why);
                }
            }
        }
    }

    fn unique_constraint(&mut self, name: &TableName, wanted: &Table, constraint: &Constraint) -> Result<(), String> {
        if wanted.is_partitioned() {
            return Err("the index of a partitioned table cannot be made without locking it".to_owned());
        }
        let text = constraint_text(constraint).map_err(|error| error.to_string())?;
        if let Some(column) = self.needs_unsettled(name, text) {
            return Err(format!("it needs column {column} as on the source"));
        }
        let open = text.find('(').ok_or("its definition cannot be read")?;
        let distinct = match text[..open].trim() {
            "UNIQUE" => "",
            "UNIQUE NULLS NOT DISTINCT" => " NULLS NOT DISTINCT",
            _ => return Err("its definition cannot be read".to_owned()),
        };
        let columns = clause::column_list(text).ok_or("its definition cannot be read")?;
        let mut rest = clause::after_list(text).unwrap_or_default();
        let mut include = String::new();
        if let Some(list) = rest.strip_prefix("INCLUDE ") {
            let columns = clause::column_list(list).ok_or("its definition cannot be read")?;
            include = format!(" INCLUDE ({})", quoted(&columns));
            rest = clause::after_list(list).unwrap_or_default();
        }
        let timing = ["", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"].into_iter().find(|words| *words == rest);
        let timing = timing.ok_or("its definition cannot be read")?;
        let using = format!("USING btree ({}){include}{distinct}", quoted(&columns));
        let index = IndexText { unique: true, only: false, rest: &using };
        let definition = format!("CREATE UNIQUE INDEX {} ON {name} {using}", constraint.name);
        let after = Index { name: constraint.name.clone(), definition, valid: true };
        self.concurrent_index(name, &constraint.name, &index, after);
        let own = quote_identifier(&constraint.name);
        let sql = format!("ALTER TABLE {} ADD CONSTRAINT {own} UNIQUE USING INDEX {own} {timing}", name.sql());
        let sql = sql.trim_end().to_owned();
        self.push(Step {
            kind: StepKind::AddConstraint,
            table: Some(name.clone()),
            object: None,
            trial: Trial::IfSmall(sql.clone()),
            sql,
            outside_transaction: false,
            undo: None,
            effects: vec![Effect::Constraint(name.clone(), constraint.clone())],
        });
        Ok(())
    }

    /// Checks of tables that were there, and foreign keys of all.
    pub(super) fn add_constraints(&mut self) {
        for name in self.shared_tables() {
            let (Some(wanted), Some(there)) = (self.source.tables.get(&name), self.model.tables.get(&name)) else {
                continue;
            };
            if wanted.shape.kind != there.shape.kind {
                continue;
            }
            let there = there.clone();
            for constraint in missing(wanted, &there) {
                match constraint.kind.as_str() {
                    "c" => self.add_check(&name, constraint),
                    "f" => self.add_foreign_key(&name, wanted, constraint),
                    _ => {}
                }
            }
            self.prove_what_the_source_has_proven(&name, wanted, &there);
        }
    }

    pub(super) fn add_check(&mut self, name: &TableName, constraint: &Constraint) {
        let refused = self.reason_against(name, constraint);
        match constraint_text(constraint) {
            _ if refused.is_some() => {
                self.refuse(name, Aspect::Check, &constraint.name, refused.unwrap_or_default());
            }
            Err(error) => self.refuse_text(name, Aspect::Check, &constraint.name, error),
            Ok(text) => self.add_unproven(name, constraint, text),
        }
    }

    /// Why the target's version cannot have the constraint.
    pub(super) fn needs_newer(&self, constraint: &Constraint) -> Option<String> {
        if self.target.server_major >= 18 {
            return None;
        }
        let is_of_periods = constraint.kind != "c"
            && [" WITHOUT OVERLAPS", "(PERIOD ", ", PERIOD "].iter().any(|words| constraint.definition.contains(words));
        match (constraint.enforced, is_of_periods) {
            (false, _) => Some("constraints that are not enforced need PostgreSQL 18".to_owned()),
            (_, true) => Some("keys over periods need PostgreSQL 18".to_owned()),
            _ => None,
        }
    }

    fn reason_against(&self, name: &TableName, constraint: &Constraint) -> Option<String> {
        if let Some(why) = self.needs_newer(constraint).or_else(|| self.constraint_runs(constraint)) {
            return Some(why);
        }
        let column = self.needs_unsettled(name, &constraint.definition)?;
        Some(format!("it needs column {column} as on the source"))
    }

    /// Adds a constraint for rows to come, and proves it later where the source has.
    fn add_unproven(&mut self, name: &TableName, constraint: &Constraint, text: &str) {
        let own = quote_identifier(&constraint.name);
        let bare = text.strip_suffix(" NOT VALID").unwrap_or(text);
        let suffix = if constraint.enforced { " NOT VALID" } else { "" };
        let sql = format!("ALTER TABLE {} ADD CONSTRAINT {own} {bare}{suffix}", name.sql());
        let unproven = Constraint { definition: format!("{bare}{suffix}"), validated: false, ..constraint.clone() };
        self.step(StepKind::AddConstraint, name, sql, Effect::Constraint(name.clone(), unproven));
        if constraint.validated && constraint.enforced {
            self.validate(name, &own, Effect::Constraint(name.clone(), constraint.clone()));
        }
    }

    fn add_foreign_key(&mut self, name: &TableName, wanted: &Table, constraint: &Constraint) {
        let text = match constraint_text(constraint) {
            Ok(text) => text,
            Err(error) => return self.refuse_text(name, Aspect::ForeignKey, &constraint.name, error),
        };
        let against = self.reason_against(name, constraint).or_else(|| self.reason_against_target(text));
        if let Some(why) = against {
            return self.refuse(name, Aspect::ForeignKey, &constraint.name, why);
        }
        let is_new = !self.target.tables.contains_key(name);
        if wanted.is_partitioned() && !is_new && self.target.server_major < 18 {
            let why = "up to PostgreSQL 17 every partition would be read under a lock";
            return self.refuse(name, Aspect::ForeignKey, &constraint.name, why);
        }
        if is_new && constraint.validated {
            // No row is there to be looked at.
            let own = quote_identifier(&constraint.name);
            let sql = format!("ALTER TABLE {} ADD CONSTRAINT {own} {text}", name.sql());
            let effect = Effect::Constraint(name.clone(), constraint.clone());
            return self.step(StepKind::AddConstraint, name, sql, effect);
        }
        self.add_unproven(name, constraint, text);
    }

    /// Why the table a foreign key points at cannot take it.
    fn reason_against_target(&self, text: &str) -> Option<String> {
        let after = text.split_once(" REFERENCES ")?.1;
        let open = after.find('(')?;
        let pointed_at = parse_table(&after[..open]).ok()?;
        let Some(table) = self.model.tables.get(&pointed_at) else {
            return Some(format!("it points at {pointed_at}, which is not there"));
        };
        let columns: BTreeSet<String> = clause::column_list(after)?.into_iter().collect();
        let is_key = |definition: &str| {
            clause::column_list(definition).is_some_and(|list| list.into_iter().collect::<BTreeSet<_>>() == columns)
        };
        let constraints = table.shape.constraints.iter().filter(|it| ["p", "u"].contains(&it.kind.as_str()));
        let has_key = constraints.into_iter().any(|it| is_key(&it.definition))
            || table.shape.indexes.iter().any(|it| {
                it.definition.starts_with("CREATE UNIQUE ") && {
                    it.definition.find(" USING ").is_some_and(|at| is_key(&it.definition[at..]))
                }
            });
        if !has_key {
            return Some(format!("it points at columns of {pointed_at} that no key names"));
        }
        let unsettled = self.unsettled_columns(&pointed_at);
        let column = columns.into_iter().find(|column| unsettled.contains(column))?;
        Some(format!("it needs column {column} of {pointed_at} as on the source"))
    }

    /// Constraints that are there, unproven, and that the source has proven.
    fn prove_what_the_source_has_proven(&mut self, name: &TableName, wanted: &Table, there: &Table) {
        for constraint in wanted.shape.constraints.iter().filter(|constraint| constraint.validated) {
            let same = there.shape.constraints.iter().any(|own| {
                (&own.kind, &own.name, own.validated) == (&constraint.kind, &constraint.name, false)
                    && own.definition.strip_suffix(" NOT VALID") == Some(&constraint.definition)
            });
            if let (true, Some(why)) = (same, self.constraint_runs(constraint)) {
                self.refuse(name, Aspect::Check, &constraint.name, why);
            } else if same {
                let effect = Effect::Constraint(name.clone(), constraint.clone());
                self.validate(name, &quote_identifier(&constraint.name), effect);
                // It was there before us and stays when the proof fails.
                if let Some(step) = self.validations.last_mut() {
                    step.undo = None;
                }
            }
        }
    }

    pub(super) fn replica_identities(&mut self) {
        for name in self.shared_tables() {
            let (Some(wanted), Some(there)) = (self.source.tables.get(&name), self.model.tables.get(&name)) else {
                continue;
            };
            let identity = wanted.shape.replica_identity.clone();
            if identity == there.shape.replica_identity || wanted.shape.kind != there.shape.kind {
                continue;
            }
            let change = match &identity {
                ReplicaIdentity::Default => Ok("DEFAULT".to_owned()),
                ReplicaIdentity::Nothing => Ok("NOTHING".to_owned()),
                ReplicaIdentity::Full => Ok("FULL".to_owned()),
                ReplicaIdentity::Index(columns) => identity_index(&name, there, columns),
            };
            match change {
                Err(why) => self.refuse(&name, Aspect::ReplicaIdentity, "", why),
                Ok(change) => {
                    let is_new = !self.target.tables.contains_key(&name);
                    let sql = format!("ALTER TABLE ONLY {} REPLICA IDENTITY {change}", name.sql());
                    let needs_rows = !is_new && matches!(identity, ReplicaIdentity::Index(_));
                    let trial = if needs_rows { Trial::IfSmall(sql.clone()) } else { Trial::Same };
                    self.push(Step {
                        kind: StepKind::ReplicaIdentity,
                        table: Some(name.clone()),
                        object: None,
                        sql,
                        outside_transaction: false,
                        trial,
                        undo: None,
                        effects: vec![Effect::ReplicaIdentity(name.clone(), identity)],
                    });
                }
            }
        }
    }
}

fn identity_index(name: &TableName, table: &Table, columns: &[String]) -> Result<String, String> {
    let nullable = columns.iter().find(|column| table.column(column).is_none_or(|column| !column.not_null));
    if let Some(column) = nullable {
        return Err(format!("column {column} of its index may hold null here"));
    }
    let index = keys::index_on(name, table, columns);
    let index = index.ok_or_else(|| format!("no unique index on ({}) is there", columns.join(", ")))?;
    Ok(format!("USING INDEX {}", quote_identifier(&index)))
}

/// The constraints of `wanted` that `there` has neither as they are nor otherwise.
fn missing<'a>(wanted: &'a Table, there: &Table) -> impl Iterator<Item = &'a Constraint> {
    let names: BTreeSet<String> = there.shape.constraints.iter().map(|constraint| constraint.name.clone()).collect();
    wanted.shape.constraints.iter().filter(move |constraint| !names.contains(&constraint.name))
}

fn quoted(columns: &[String]) -> String {
    columns.iter().map(|column| quote_identifier(column)).collect::<Vec<_>>().join(", ")
}
