//! Plans changes of the columns of tables that are there: added, relaxed, widened, their defaults, and null forbidden.

use std::collections::BTreeSet;

use steep_protocol::names::{TableName, quote_identifier, readable_identifier};

use super::{
    Planner, Step, StepKind, Trial, collation_sql, effect::Effect, keys, objects::checked_type, runs::stands_on,
};
use crate::schema::{
    catalog::{Column, Constraint, OWNED_SEQUENCE, Table},
    clause,
    diff::Aspect,
};

impl Planner<'_> {
    /// Tables of both that are of one kind, with both versions: the source's and the model's.
    pub(super) fn pairs(&self) -> Vec<(TableName, Table, Table)> {
        let both = self.old_tables().into_iter().filter_map(|name| {
            let (wanted, there) = (self.source.tables.get(&name)?, self.model.tables.get(&name)?);
            (wanted.shape.kind == there.shape.kind).then(|| (name.clone(), wanted.clone(), there.clone()))
        });
        both.collect()
    }

    /// Columns of the source's table that the model lacks or has in a way no step changes.
    pub(super) fn unsettled_columns(&self, name: &TableName) -> BTreeSet<String> {
        let (Some(wanted), Some(there)) = (self.source.tables.get(name), self.model.tables.get(name)) else {
            return BTreeSet::new();
        };
        let is_unsettled = |column: &&Column| {
            there.column(&column.name).is_none_or(|own| {
                (&own.type_name, &own.collation, &own.generated)
                    != (&column.type_name, &column.collation, &column.generated)
            })
        };
        wanted.columns.iter().filter(is_unsettled).map(|column| column.name.clone()).collect()
    }

    pub(super) fn add_columns(&mut self) {
        for name in self.old_tables() {
            let Some(wanted) = self.source.tables.get(&name) else { continue };
            for column in &wanted.columns {
                // Looked at anew each time: a column added to a parent is there in its children too.
                let Some(there) = self.model.tables.get(&name) else { continue };
                if there.shape.kind == wanted.shape.kind && there.column(&column.name).is_none() {
                    self.add_column(&name, column);
                }
            }
        }
    }

    fn add_column(&mut self, name: &TableName, column: &Column) {
        match self.added_column(name, column) {
            Err(why) => self.refuse(name, Aspect::Column, &column.name, why),
            Ok((sql, at_once, later)) => {
                self.step(StepKind::AddColumn, name, sql, Effect::Column(name.clone(), at_once));
                if let Some(default) = later {
                    self.set_default(name, &column.name, Some(&default));
                }
            }
        }
    }

    /// Why the target's version cannot have the column.
    pub(super) fn needs_newer_column(&self, column: &Column) -> Option<String> {
        let is_virtual = column.generated.as_deref() == Some("v");
        (is_virtual && self.target.server_major < 18).then(|| "virtual columns need PostgreSQL 18".to_owned())
    }

    /// The statement, the column it makes, and a default to be set for rows to come; or why there is none.
    fn added_column(&self, name: &TableName, column: &Column) -> Result<(String, Column, Option<String>), String> {
        if self.model.tables.get(name).is_some_and(|table| table.shape.bound.is_some()) {
            return Err("a partition has the columns of its partitioned table".to_owned());
        }
        if column.identity.is_some() || column.default.as_deref() == Some(OWNED_SEQUENCE) {
            return Err("numbering the rows that are there would rewrite the table".to_owned());
        }
        if column.generated.as_deref() == Some("s") {
            return Err("computing a stored column for the rows that are there would rewrite the table".to_owned());
        }
        if let Some(why) = self.needs_newer_column(column) {
            return Err(why);
        }
        if self.is_conditional(&column.type_name) {
            return Err("its type has conditions that every row there would be held against".to_owned());
        }
        if column.default.is_some() && !self.is_plain_type(&column.type_name) {
            return Err("making a value of its type may run functions with the agent's rights".to_owned());
        }
        if let Some(why) = column.expression.as_deref().and_then(|text| self.runs(text)) {
            return Err(why);
        }
        let is_constant = column.default.as_deref().is_none_or(clause::is_constant);
        if column.not_null && (column.default.is_none() || !is_constant) && column.generated.is_none() {
            return Err("rows that are there would need a value, and no constant default gives one".to_owned());
        }
        let text = |error: clause::Unsafe| format!("{error}, so it is not put in a statement");
        let mut sql = format!(
            "ALTER TABLE {} ADD COLUMN {} {}",
            name.sql(),
            quote_identifier(&column.name),
            checked_type(&column.type_name).map_err(text)?
        );
        if let Some(collation) = &column.collation {
            sql.push_str(&format!(" COLLATE {}", collation_sql(collation)));
        }
        let mut at_once = column.clone();
        let mut later = None;
        match &column.default {
            Some(default) if is_constant => {
                sql.push_str(&format!(" DEFAULT ({})", clause::expression(default).map_err(text)?));
            }
            // For rows to come only: evaluated for those that are there it would rewrite the table.
            Some(default) => {
                clause::expression(default).map_err(text)?;
                at_once.default = None;
                later = Some(default.clone());
            }
            None => {}
        }
        if let Some(expression) = &column.expression {
            let expression = clause::expression(expression).map_err(text)?;
            sql.push_str(&format!(" GENERATED ALWAYS AS ({expression}) VIRTUAL"));
        }
        if column.not_null {
            sql.push_str(" NOT NULL");
        }
        Ok((sql, at_once, later))
    }

    pub(super) fn relax(&mut self) {
        for name in self.old_tables() {
            let Some((wanted, there)) = self.pair(&name) else { continue };
            let key = there.primary_key().and_then(|key| clause::column_list(&key.definition)).unwrap_or_default();
            for column in &wanted.columns {
                let Some(own) = self.model.tables.get(&name).and_then(|table| table.column(&column.name)) else {
                    continue;
                };
                if column.not_null || !own.not_null || key.contains(&column.name) || own.identity.is_some() {
                    continue;
                }
                let sql = alter_column(&name, &column.name, "DROP NOT NULL");
                let effect = Effect::NotNull(name.clone(), column.name.clone(), false);
                self.step(StepKind::DropNotNull, &name, sql, effect);
            }
        }
    }

    fn pair(&self, name: &TableName) -> Option<(Table, Table)> {
        let (wanted, there) = (self.source.tables.get(name)?, self.model.tables.get(name)?);
        (wanted.shape.kind == there.shape.kind).then(|| (wanted.clone(), there.clone()))
    }

    pub(super) fn widen(&mut self) {
        for name in self.old_tables() {
            let Some((wanted, _)) = self.pair(&name) else { continue };
            for column in &wanted.columns {
                let Some(there) = self.model.tables.get(&name) else { continue };
                let Some(own) = there.column(&column.name) else { continue };
                let is_same_otherwise = own.collation == column.collation && own.generated == column.generated;
                if own.type_name == column.type_name || !is_same_otherwise {
                    continue;
                }
                let is_inherited = keys::parents_of(there).iter().any(|parent| {
                    self.model.tables.get(parent).is_some_and(|above| above.column(&column.name).is_some())
                });
                if is_inherited || !is_wider(&own.type_name, &column.type_name) {
                    continue;
                }
                if let Some(what) = stands_on(there, &column.name) {
                    let why = format!("{what} would be held against every row again, under a lock");
                    self.refuse(&name, Aspect::Type, &column.name, why);
                    continue;
                }
                let sql = alter_column(&name, &column.name, &format!("TYPE {}", column.type_name));
                let effect = Effect::Type(name.clone(), column.name.clone(), column.type_name.clone());
                self.step(StepKind::WidenType, &name, sql, effect);
            }
        }
    }

    pub(super) fn defaults(&mut self) {
        for (name, wanted, there) in self.pairs() {
            let unsettled = self.unsettled_columns(&name);
            for column in wanted.columns.iter().filter(|column| column.generated.is_none()) {
                let Some(own) = there.column(&column.name) else { continue };
                let own_default = own.default.clone();
                if own_default == column.default || own.identity.is_some() || column.identity.is_some() {
                    continue;
                }
                if unsettled.contains(&column.name) {
                    let why = "the column differs in more than its default";
                    self.refuse(&name, Aspect::Default, &column.name, why);
                } else if column.default.as_deref() == Some(OWNED_SEQUENCE) {
                    let why = "a new sequence would begin with numbers that rows there may hold";
                    self.refuse(&name, Aspect::Default, &column.name, why);
                } else {
                    self.set_default(&name, &column.name, column.default.as_deref());
                }
            }
        }
    }

    fn set_default(&mut self, name: &TableName, column: &str, default: Option<&str>) {
        let change = match default.map(clause::expression) {
            None => "DROP DEFAULT".to_owned(),
            Some(Ok(text)) => format!("SET DEFAULT ({text})"),
            Some(Err(error)) => return self.refuse_text(name, Aspect::Default, column, error),
        };
        let sql = format!("ALTER TABLE ONLY {} ALTER COLUMN {} {change}", name.sql(), quote_identifier(column));
        let effect = Effect::Default(name.clone(), column.to_owned(), default.map(str::to_owned));
        self.step(StepKind::SetDefault, name, sql, effect);
    }

    /// Forbids null where the source does, in two steps that hold no long lock: for rows to come, then proven for all.
    pub(super) fn require_not_null(&mut self) {
        // What is forbidden above is forbidden below, once it is proven.
        let mut forbidden: BTreeSet<(TableName, String)> = BTreeSet::new();
        for name in self.old_tables() {
            let Some((wanted, there)) = self.pair(&name) else { continue };
            let unsettled = self.unsettled_columns(&name);
            for column in wanted.columns.iter().filter(|column| column.not_null) {
                let own = there.column(&column.name);
                if own.is_none_or(|own| own.not_null) || unsettled.contains(&column.name) {
                    continue;
                }
                let parents = keys::parents_of(&there);
                if !parents.into_iter().any(|parent| forbidden.contains(&(parent, column.name.clone()))) {
                    self.forbid_null(&name, &column.name);
                }
                forbidden.insert((name.clone(), column.name.clone()));
            }
        }
    }

    fn forbid_null(&mut self, name: &TableName, column: &str) {
        let is_native = self.target.server_major >= 18;
        let quoted = quote_identifier(column);
        let (constraint, definition) = if is_native {
            (native_name(name, column), format!("NOT NULL {quoted}"))
        } else {
            let helper = keys::derived_name("steep_not_null", &[&name.schema, &name.name, column]);
            (helper, format!("CHECK ({quoted} IS NOT NULL)"))
        };
        let (table, own) = (name.sql(), quote_identifier(&constraint));
        let adding = format!("ALTER TABLE {table} ADD CONSTRAINT {own} {definition} NOT VALID");
        if is_native {
            let unproven = Constraint {
                kind: "n".to_owned(),
                name: constraint.clone(),
                definition: format!("NOT NULL {} NOT VALID", readable_identifier(column)),
                validated: false,
                enforced: true,
            };
            self.step(StepKind::AddConstraint, name, adding, Effect::Constraint(name.clone(), unproven));
            self.validate(name, &own, Effect::NotNull(name.clone(), column.to_owned(), true));
            if let Some(step) = self.validations.last_mut() {
                step.effects.push(Effect::ConstraintGone(name.clone(), "n".to_owned(), constraint));
            }
        } else {
            self.step(StepKind::AddConstraint, name, adding, Effect::Nothing);
            self.validate(name, &own, Effect::Nothing);
            self.unfinished.push((name.clone(), column.to_owned()));
        }
    }

    /// Proves a constraint, named as SQL wants it, that a step before has added.
    pub(super) fn validate(&mut self, name: &TableName, constraint: &str, effect: Effect) {
        let table = name.sql();
        let sql = format!("ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}");
        self.validations.push(Step {
            kind: StepKind::ValidateConstraint,
            table: Some(name.clone()),
            object: None,
            sql: sql.clone(),
            outside_transaction: true,
            trial: Trial::IfSmall(sql),
            undo: Some(format!("ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {constraint}")),
            effects: vec![effect],
        });
    }

    /// The proofs, after everything that is to be proven.
    pub(super) fn validations(&mut self) {
        for step in std::mem::take(&mut self.validations) {
            self.push(step);
        }
    }

    /// Turns proofs into marks of the columns, and drops them.
    pub(super) fn finish_not_null(&mut self) {
        for (name, column) in std::mem::take(&mut self.unfinished) {
            let helper = keys::derived_name("steep_not_null", &[&name.schema, &name.name, &column]);
            let marking = alter_column(&name, &column, "SET NOT NULL");
            let dropping = format!("ALTER TABLE {} DROP CONSTRAINT {}", name.sql(), quote_identifier(&helper));
            self.helpers.push((name.clone(), helper));
            let marked = Effect::NotNull(name.clone(), column.clone(), true);
            for (sql, effect) in [(marking, marked), (dropping, Effect::Nothing)] {
                self.push(Step {
                    kind: StepKind::SetNotNull,
                    table: Some(name.clone()),
                    object: None,
                    trial: Trial::IfSmall(sql.clone()),
                    sql,
                    outside_transaction: false,
                    undo: None,
                    effects: vec![effect],
                });
            }
        }
    }
}

/// The name PostgreSQL itself would give.
fn native_name(table: &TableName, column: &str) -> String {
    let usual = format!("{}_{column}_not_null", table.name);
    if usual.len() <= 63 { usual } else { keys::derived_name(&table.name, &[&table.schema, &table.name, column]) }
}

fn alter_column(name: &TableName, column: &str, change: &str) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {} {change}", name.sql(), quote_identifier(column))
}

/// Every value of type `from` is one of type `to`, stored the same: PostgreSQL changes the catalog and no row.
pub(super) fn is_wider(from: &str, to: &str) -> bool {
    let (Some(from), Some(to)) = (clause::type_text(from), clause::type_text(to)) else { return false };
    if from.is_array || to.is_array || from.named.is_some() || to.named.is_some() {
        return false;
    }
    let number = |text: &str| text.parse::<u32>().ok();
    match (from.built_in.as_str(), to.built_in.as_str()) {
        ("character varying", "text") => to.modifiers.is_none(),
        ("character varying", "character varying") => match (&from.modifiers, &to.modifiers) {
            (Some(_), None) => true,
            (Some(from), Some(to)) => number(from).zip(number(to)).is_some_and(|(from, to)| to > from),
            _ => false,
        },
        ("numeric", "numeric") => {
            let parts = |text: &Option<String>| {
                let (precision, scale) = text.as_ref()?.split_once(',')?;
                Some((number(precision)?, scale.to_owned()))
            };
            let both = parts(&from.modifiers).zip(parts(&to.modifiers));
            both.is_some_and(|((from, scale), (to, other))| to > from && scale == other)
        }
        _ => false,
    }
}
