//! What a node says of its tables, types and sequences, read from the documents its database wrote.
//!
//! The documents are those of `steep_repl.schema_fingerprints`, `schema_objects` and `schema_environments`: the same
//! text on every supported version of PostgreSQL. A [`Catalog`] may be a part of a node's: only the tables somebody asks
//! about.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use sha2::{Digest as _, Sha256};
use steep_protocol::names::TableName;

/// Tables and objects of one node at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Its tables, partitioned ones and partitions each by themselves.
    pub tables: BTreeMap<TableName, Table>,
    /// Its types and sequences.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// The database they are in.
    pub environment: Environment,
    /// 15 to 18.
    pub server_major: u16,
}

impl Catalog {
    /// One SHA-256 of all names, fingerprints and definitions of types in it, in hexadecimal: equal digests, nothing changed.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut line = |parts: &[&str]| {
            for part in parts {
                hash.update(part.len().to_be_bytes());
                hash.update(part.as_bytes());
            }
        };
        for (name, table) in &self.tables {
            line(&["table", &name.schema, &name.name, &table.fingerprint, &table.shape_fingerprint]);
        }
        for (key, object) in &self.objects {
            line(&[key.kind.as_str(), &key.name.schema, &key.name.name, &object.fingerprint]);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The part of it that is about `tables`, with all its types and sequences.
    pub fn about(&self, tables: &BTreeSet<TableName>) -> Self {
        let kept = self.tables.iter().filter(|(name, _)| tables.contains(*name));
        Self { tables: kept.map(|(name, table)| (name.clone(), table.clone())).collect(), ..self.clone() }
    }
}

/// A table as it would be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Of its columns in their order, 64 hexadecimal digits.
    pub fingerprint: String,
    /// Of its columns by name.
    pub fingerprint_sorted: String,
    /// Of its shape.
    pub shape_fingerprint: String,
    /// Its columns, in their order.
    pub columns: Vec<Column>,
    /// Everything else.
    pub shape: Shape,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type as PostgreSQL writes it, modifiers included: `numeric(10,2)`, `app.mood[]`.
    pub type_name: String,
    /// Its default; `nextval(owned)` where the column owns the sequence.
    pub default: Option<String>,
    /// Proven to hold no null.
    pub not_null: bool,
    /// `a` always, `d` by default.
    pub identity: Option<String>,
    /// `s` stored, `v` virtual.
    pub generated: Option<String>,
    /// What a generated column is generated from.
    pub expression: Option<String>,
    /// `schema.name`, where it is not its type's own.
    pub collation: Option<String>,
}

/// The default of a column that owns its sequence, whatever that is called.
pub const OWNED_SEQUENCE: &str = "nextval(owned)";

/// What a table is besides its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// `r` a table, `p` a partitioned one.
    pub kind: String,
    /// `p` permanent, `u` unlogged.
    pub persistence: String,
    /// How its rows are named in the WAL.
    pub replica_identity: ReplicaIdentity,
    /// How it is partitioned: `RANGE (created_at)`.
    pub partition_key: Option<String>,
    /// Which rows of its parent it takes: `FOR VALUES FROM (…) TO (…)`.
    pub bound: Option<String>,
    /// What it inherits from, as SQL names it.
    pub parents: Vec<String>,
    /// Row security is enabled, and forced upon the owner.
    pub row_security: (bool, bool),
    /// Its constraints but those for nulls.
    pub constraints: Vec<Constraint>,
    /// Its indexes but those of constraints.
    pub indexes: Vec<Index>,
    /// Its triggers.
    pub triggers: Vec<Attached>,
    /// Its policies.
    pub policies: Vec<Policy>,
    /// Its rules.
    pub rules: Vec<Attached>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            kind: "r".to_owned(),
            persistence: "p".to_owned(),
            replica_identity: ReplicaIdentity::Default,
            partition_key: None,
            bound: None,
            parents: Vec::new(),
            row_security: (false, false),
            constraints: Vec::new(),
            indexes: Vec::new(),
            triggers: Vec::new(),
            policies: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// How a table's rows are named in the WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// By the primary key.
    Default,
    /// Not at all.
    Nothing,
    /// By the whole row.
    Full,
    /// By the columns of a unique index.
    Index(Vec<String>),
}

impl fmt::Display for ReplicaIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("primary key"),
            Self::Nothing => f.write_str("nothing"),
            Self::Full => f.write_str("full"),
            Self::Index(columns) => write!(f, "index on ({})", columns.join(", ")),
        }
    }
}

/// A constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// Its name.
    pub name: String,
    /// `p` primary key, `u` unique, `f` foreign key, `c` check, `x` exclusion.
    pub kind: String,
    /// As PostgreSQL writes it: `CHECK ((total > 0))`.
    pub definition: String,
    /// Proven for the rows that were there before it.
    pub validated: bool,
    /// Looked at when rows change.
    pub enforced: bool,
}

/// An index that belongs to no constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its name.
    pub name: String,
    /// As PostgreSQL writes it: `CREATE INDEX name ON public.orders USING btree (id)`.
    pub definition: String,
    /// Not the leftover of a build that failed.
    pub valid: bool,
}

/// A trigger or rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// As PostgreSQL writes it.
    pub definition: String,
    /// `O` as usual, `D` disabled, `R` for replicated rows, `A` for all.
    pub enabled: String,
}

/// A policy of row security.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// `r`, `a`, `w`, `d` or `*`.
    pub command: String,
    /// Rows one such policy lets through are let through.
    pub permissive: bool,
    /// Which rows are seen.
    pub using: Option<String>,
    /// Which rows may be written.
    pub check: Option<String>,
    /// For whom.
    pub roles: Vec<String>,
}

/// What kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A type of labels.
    Enum,
    /// A type with conditions.
    Domain,
    /// A type of several attributes.
    Composite,
    /// A type of ranges.
    Range,
    /// A sequence.
    Sequence,
}

impl ObjectKind {
    /// All of them, in the order in which they can be made.
    pub const ALL: [Self; 5] = [Self::Enum, Self::Domain, Self::Composite, Self::Range, Self::Sequence];

    /// The word for it in documents and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enum => "enum",
            Self::Domain => "domain",
            Self::Composite => "composite",
            Self::Range => "range",
            Self::Sequence => "sequence",
        }
    }

    /// The kind of that name.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// Which object. Types and sequences may share a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// What kind.
    pub kind: ObjectKind,
    /// Where it is and what it is called.
    pub name: TableName,
}

impl fmt::Display for ObjectKey {
    /// `enum app.mood`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// A type or sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Of its definition, 64 hexadecimal digits; where a sequence begins is left out of it.
    pub fingerprint: String,
    /// What it is.
    pub definition: Definition,
}

/// What a type or sequence is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Definition {
    /// Labels in their order.
    Enum(Vec<String>),
    /// A domain.
    Domain(Domain),
    /// Name, type and collation of each attribute.
    Composite(Vec<Attribute>),
    /// A range.
    Range(Range),
    /// A sequence.
    Sequence(Sequence),
}

/// A type with conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domain {
    /// What it narrows.
    pub base: String,
    /// Takes no null.
    pub not_null: bool,
    /// Its default.
    pub default: Option<String>,
    /// Where it is not its base's own.
    pub collation: Option<String>,
    /// Its conditions.
    pub checks: Vec<Constraint>,
}

/// A part of a composite type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// Its type.
    pub type_name: String,
    /// Where it is not its type's own.
    pub collation: Option<String>,
}

/// A type of ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// What lies in it.
    pub subtype: String,
    /// How that is ordered, where not by its default.
    pub opclass: Option<String>,
    /// By which collation.
    pub collation: Option<String>,
    /// The type of several ranges.
    pub multirange: Option<String>,
}

/// A sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// `bigint` and its like.
    pub type_name: String,
    /// Begins again at its end.
    pub cycle: bool,
    /// Schema, table and column it goes with.
    pub owned_by: Option<(TableName, String)>,
    /// Its numbers, some of which differ from node to node by design.
    pub plan: Option<SequencePlan>,
}

/// A sequence's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequencePlan {
    /// Where it begins.
    pub start: i64,
    /// How far it steps.
    pub increment: i64,
    /// Its lowest number.
    pub min: i64,
    /// Its highest.
    pub max: i64,
    /// How many a session takes at once.
    pub cache: i64,
}

/// A database, as far as it decides what its tables mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `UTF8`.
    pub encoding: String,
    /// Who orders text: `c`, `i` or `b`.
    pub provider: String,
    /// Its order.
    pub collate: String,
    /// Its character classes.
    pub ctype: String,
    /// Its ICU or built-in locale.
    pub locale: Option<String>,
    /// The version of its collation.
    pub collation_version: Option<String>,
    /// `180004`.
    pub server_version_num: i64,
    /// Name and version of each extension.
    pub extensions: BTreeMap<String, String>,
}

impl Environment {
    /// 15 to 18.
    pub fn major(&self) -> u16 {
        u16::try_from(self.server_version_num / 10_000).unwrap_or_default()
    }
}

impl Table {
    /// The column called `name`.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Its columns by name, as `fingerprint_sorted` sees them.
    pub fn sorted_columns(&self) -> Vec<&Column> {
        let mut columns: Vec<_> = self.columns.iter().collect();
        columns.sort_by(|one, other| one.name.cmp(&other.name));
        columns
    }

    /// The primary key.
    pub fn primary_key(&self) -> Option<&Constraint> {
        self.shape.constraints.iter().find(|constraint| constraint.kind == "p")
    }

    /// Its rows are those of its partitions.
    pub fn is_partitioned(&self) -> bool {
        self.shape.kind == "p"
    }
}
