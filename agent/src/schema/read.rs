//! Reads tables, objects and environments from their documents.

use serde_json::Value;
use steep_protocol::names::TableName;

use super::{
    catalog::{
        Attached, Attribute, Column, Constraint, Definition, Domain, Environment, Index, Object, ObjectKey, ObjectKind,
        Policy, Range, ReplicaIdentity, Sequence, SequencePlan, Shape, Table,
    },
    document::{BadDocument, Place},
};

impl Environment {
    /// Reads the document of `schema_environments.definition`.
    pub fn parse(definition: &Value) -> Result<Self, BadDocument> {
        let of = "the environment".to_owned();
        let whole = Place::whole(&of, "definition", definition);
        let extensions =
            whole.key("extensions")?.each(|row| Ok((row.nth(0)?.text()?, row.nth(1)?.text()?)))?.into_iter().collect();
        Ok(Self {
            encoding: whole.key("encoding")?.text()?,
            provider: whole.key("provider")?.text()?,
            collate: whole.key("collate")?.text()?,
            ctype: whole.key("ctype")?.text()?,
            locale: whole.key("locale")?.optional_text()?,
            collation_version: whole.key("collversion")?.optional_text()?,
            server_version_num: whole.key("server_version_num")?.number()?,
            extensions,
        })
    }
}

impl Table {
    /// Reads the documents of `schema_fingerprints` about table `name`, without their fingerprints.
    pub fn parse(name: &TableName, columns: &Value, shape: &Value) -> Result<Self, BadDocument> {
        let of = format!("table {name}");
        let columns = Place::whole(&of, "columns", columns).each(Column::read)?;
        let shape = Shape::read(&Place::whole(&of, "shape", shape))?;
        Ok(Self { columns, shape, ..Self::default() })
    }
}

impl Column {
    pub(super) fn read(row: &Place<'_>) -> Result<Self, BadDocument> {
        Ok(Self {
            name: row.nth(0)?.text()?,
            type_name: row.nth(1)?.text()?,
            default: row.nth(2)?.optional_text()?,
            not_null: row.nth(3)?.truth()?,
            identity: row.nth(4)?.optional_text()?,
            generated: row.nth(5)?.optional_text()?,
            expression: row.nth(6)?.optional_text()?,
            collation: row.nth(7)?.optional_text()?,
        })
    }
}

impl Shape {
    pub(super) fn read(whole: &Place<'_>) -> Result<Self, BadDocument> {
        let rls = whole.key("rls")?;
        let row_security = rls.maybe(|rls| Ok((rls.nth(0)?.truth()?, rls.nth(1)?.truth()?)))?.unwrap_or_default();
        Ok(Self {
            kind: whole.key("kind")?.text()?,
            persistence: whole.key("persistence")?.text()?,
            replica_identity: ReplicaIdentity::read(&whole.key("replident")?)?,
            partition_key: whole.key("partkey")?.optional_text()?,
            bound: whole.key("bound")?.optional_text()?,
            parents: whole.key("parents")?.each(Place::text)?,
            row_security,
            constraints: whole.key("cons")?.each(Constraint::read)?,
            indexes: whole.key("idx")?.each(Index::read)?,
            triggers: whole.key("trg")?.each(Attached::read)?,
            policies: whole.key("pol")?.each(Policy::read)?,
            rules: whole.key("rules")?.each(Attached::read)?,
        })
    }
}

impl ReplicaIdentity {
    pub(super) fn read(place: &Place<'_>) -> Result<Self, BadDocument> {
        if place.is_array() {
            return Ok(Self::Index(place.each(Place::text)?));
        }
        match place.optional_text()?.as_deref() {
            Some("d") => Ok(Self::Default),
            Some("n") => Ok(Self::Nothing),
            Some("f") => Ok(Self::Full),
            // The index it named was dropped: PostgreSQL then names rows by nothing.
            None => Ok(Self::Nothing),
            Some(_) => Err(place.bad("d, n, f or the columns of an index")),
        }
    }
}

impl Constraint {
    pub(super) fn read(row: &Place<'_>) -> Result<Self, BadDocument> {
        Ok(Self {
            name: row.nth(0)?.text()?,
            kind: row.nth(1)?.text()?,
            definition: row.nth(2)?.text()?,
            validated: row.nth(3)?.truth()?,
            enforced: row.nth(4)?.maybe(Place::truth)?.unwrap_or(true),
        })
    }
}

impl Index {
    pub(super) fn read(row: &Place<'_>) -> Result<Self, BadDocument> {
        Ok(Self { name: row.nth(0)?.text()?, definition: row.nth(1)?.text()?, valid: row.nth(2)?.truth()? })
    }
}

impl Attached {
    pub(super) fn read(row: &Place<'_>) -> Result<Self, BadDocument> {
        Ok(Self { name: row.nth(0)?.text()?, definition: row.nth(1)?.text()?, enabled: row.nth(2)?.text()? })
    }
}

impl Policy {
    pub(super) fn read(row: &Place<'_>) -> Result<Self, BadDocument> {
        Ok(Self {
            name: row.nth(0)?.text()?,
            command: row.nth(1)?.text()?,
            permissive: row.nth(2)?.truth()?,
            using: row.nth(3)?.optional_text()?,
            check: row.nth(4)?.optional_text()?,
            roles: row.nth(5)?.each(Place::text)?,
        })
    }
}

impl Object {
    /// Reads the document of `schema_objects.definition` about the object `key`.
    pub fn parse(key: &ObjectKey, fingerprint: impl Into<String>, definition: &Value) -> Result<Self, BadDocument> {
        let of = key.to_string();
        let whole = Place::whole(&of, "definition", definition);
        let definition = match key.kind {
            ObjectKind::Enum => Definition::Enum(whole.key("labels")?.each(Place::text)?),
            ObjectKind::Domain => Definition::Domain(Domain::read(&whole)?),
            ObjectKind::Composite => Definition::Composite(whole.key("attributes")?.each(Attribute::read)?),
            ObjectKind::Range => Definition::Range(Range {
                subtype: whole.key("subtype")?.text()?,
                opclass: whole.key("opclass")?.optional_text()?,
                collation: whole.key("collation")?.optional_text()?,
                multirange: whole.key("multirange")?.optional_text()?,
            }),
            ObjectKind::Sequence => Definition::Sequence(Sequence::read(&whole)?),
        };
        Ok(Self { fingerprint: fingerprint.into(), definition })
    }
}

impl Domain {
    pub(super) fn read(whole: &Place<'_>) -> Result<Self, BadDocument> {
        let check = |row: &Place<'_>| {
            Ok(Constraint {
                name: row.nth(0)?.text()?,
                kind: "c".to_owned(),
                definition: row.nth(1)?.text()?,
                validated: row.nth(2)?.truth()?,
                enforced: true,
            })
        };
        Ok(Self {
            base: whole.key("base")?.text()?,
            not_null: whole.key("not_null")?.truth()?,
            default: whole.key("default")?.optional_text()?,
            collation: whole.key("collation")?.optional_text()?,
            checks: whole.key("checks")?.each(check)?,
        })
    }
}

impl Attribute {
    pub(super) fn read(row: &Place<'_>) -> Result<Self, BadDocument> {
        Ok(Self { name: row.nth(0)?.text()?, type_name: row.nth(1)?.text()?, collation: row.nth(2)?.optional_text()? })
    }
}

impl Sequence {
    pub(super) fn read(whole: &Place<'_>) -> Result<Self, BadDocument> {
        let owner =
            |row: &Place<'_>| Ok((TableName::new(row.nth(0)?.text()?, row.nth(1)?.text()?), row.nth(2)?.text()?));
        let plan = |plan: &Place<'_>| {
            Ok(SequencePlan {
                start: plan.key("start")?.number()?,
                increment: plan.key("increment")?.number()?,
                min: plan.key("min")?.number()?,
                max: plan.key("max")?.number()?,
                cache: plan.key("cache")?.number()?,
            })
        };
        Ok(Self {
            type_name: whole.key("type")?.text()?,
            cycle: whole.key("cycle")?.truth()?,
            owned_by: whole.key("owned_by")?.maybe(owner)?,
            plan: whole.key("plan")?.maybe(plan)?,
        })
    }
}
