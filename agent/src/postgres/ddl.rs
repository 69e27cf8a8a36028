//! Renders the statements that cannot take parameters, from typed names. The only place that does.
//!
//! Nothing here talks to a server. A [`Statement`] knows what it does, so that a refusal can say so.

use std::fmt::Write as _;

pub mod switch;

pub use steep_protocol::names::quote_literal;
use steep_protocol::{
    failure::Code,
    names::{TableName, quote_identifier, readable_identifier},
};

use super::{
    conninfo::Conninfo,
    error::{Doing, Error, doing},
    version::Version,
};

/// Our own schema: never published, copied or dropped with the rest.
pub const OWN_SCHEMA: &str = "steep_repl";
/// The schema of marks, which dumps made by hand hold: never published or copied either.
pub const MARK_SCHEMA: &str = "steep_mark";

/// A statement ready to run. Only this file makes them.
#[derive(Clone)]
pub struct Statement {
    sql: String,
    doing: Doing,
}

/// Without its text: that of a subscription holds a secret.
impl std::fmt::Debug for Statement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Statement({:?})", self.doing)
    }
}

impl Statement {
    fn new(sql: impl Into<String>, doing: Doing) -> Self {
        Self { sql: sql.into(), doing }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.sql
    }

    pub(super) fn doing(&self) -> Doing {
        self.doing.clone()
    }
}

/// A table as statements need it that treat partitioned tables as a whole and all others alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRef {
    /// The table.
    pub name: TableName,
    /// It is a partitioned table, whose partitions go with it.
    pub is_partitioned: bool,
}

impl TableRef {
    /// `only` keeps tables that inherit from a plain table out; a partitioned table is its partitions.
    fn sql(&self) -> String {
        if self.is_partitioned { self.name.sql() } else { format!("only {}", self.name.sql()) }
    }
}

/// Settings for a start-up packet: `-c name=value …`, spaces and backslashes escaped.
pub(super) fn startup_options(settings: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace(' ', "\\ ");
    let options: Vec<_> = settings.iter().map(|(name, value)| format!("-c {name}={}", escaped(value))).collect();
    options.join(" ")
}

fn list<T>(items: &[T], one: impl Fn(&T) -> String) -> String {
    items.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn tables(names: &[TableName]) -> String {
    match names {
        [one] => format!("table {one}"),
        many => format!("{} tables", many.len()),
    }
}

/// `begin`.
pub fn begin() -> Statement {
    Statement::new("begin", doing("begin a transaction"))
}

/// Begins a transaction that only reads and keeps one snapshot.
pub fn begin_snapshot() -> Statement {
    Statement::new("begin isolation level repeatable read, read only", doing("begin a transaction"))
}

/// `commit`.
pub fn commit() -> Statement {
    Statement::new("commit", doing("commit").or(Code::CopyFailed))
}

/// `rollback`.
pub fn rollback() -> Statement {
    Statement::new("rollback", doing("roll back"))
}

/// Makes the transaction just begun see what the exported `snapshot` shows.
pub fn set_snapshot(snapshot: &str) -> Statement {
    Statement::new(format!("set transaction snapshot {}", quote_literal(snapshot)), doing("import the snapshot"))
}

/// Sets a setting for the session.
pub fn set_session(name: &'static str, value: &str) -> Statement {
    setting("session", name, value)
}

/// Sets a setting until the transaction ends.
pub fn set_local(name: &'static str, value: &str) -> Statement {
    setting("local", name, value)
}

fn setting(scope: &str, name: &'static str, value: &str) -> Statement {
    let sql = format!("set {scope} {} to {}", quote_identifier(name), quote_literal(value));
    Statement::new(sql, doing(format!("set {name}")))
}

/// Locks tables so that no DDL can touch them until the transaction ends; reads and writes go on.
pub fn lock_access_share(names: &[TableName]) -> Statement {
    let locking = doing(format!("lock {}", tables(names)));
    let locking = locking.privilege(Code::SelectPrivilege).missing(Code::SchemaChanged);
    let sql = format!("lock table {} in access share mode", list(names, |name| format!("only {}", name.sql())));
    Statement::new(sql, locking)
}

/// Empties tables; the partitions of a partitioned table with it.
pub fn truncate(names: &[TableRef]) -> Statement {
    let sql = format!("truncate {}", list(names, TableRef::sql));
    let what = match names {
        [one] => format!("empty table {}", one.name),
        many => format!("empty {} tables", many.len()),
    };
    Statement::new(sql, doing(what).or(Code::TargetNotEmpty))
}

/// Gathers the planner's statistics.
pub fn analyze(names: &[TableName]) -> Statement {
    Statement::new(format!("analyze {}", list(names, TableName::sql)), doing(format!("analyze {}", tables(names))))
}

/// How COPY writes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyFormat {
    /// PostgreSQL's binary form: faster; only for types whose binary form is the same on both ends.
    Binary,
    /// PostgreSQL's text form.
    Text,
    /// CSV with a header, for files; a header that names other columns is refused.
    Csv,
}

impl CopyFormat {
    /// The word for it in SQL and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Text => "text",
            Self::Csv => "csv",
        }
    }
}

/// Heap pages `from..to` of a table; without `to`, to its end, however far it has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    /// The first page.
    pub from: u32,
    /// The first page that no longer belongs to it.
    pub to: Option<u32>,
}

fn columns_sql(columns: &[String]) -> String {
    list(columns, |column| quote_identifier(column))
}

/// Reads the rows of one table itself, or of some of its pages, without what inherits from it.
pub fn copy_out(table: &TableName, columns: &[String], format: CopyFormat, pages: Option<PageRange>) -> Statement {
    let mut condition = String::new();
    if let Some(PageRange { from, to }) = pages {
        let _ = write!(condition, " where ctid >= '({from},0)'::pg_catalog.tid");
        if let Some(to) = to {
            let _ = write!(condition, " and ctid < '({to},0)'::pg_catalog.tid");
        }
    }
    let sql = format!(
        "copy (select {} from only {}{condition}) to stdout (format {}{})",
        columns_sql(columns),
        table.sql(),
        format.as_str(),
        header(columns, format, "true")
    );
    let reading = doing(format!("read table {table}")).or(Code::CopyFailed).missing(Code::SchemaChanged);
    Statement::new(sql, reading.privilege(Code::SelectPrivilege))
}

/// A table without columns has no line that could name them.
fn header(columns: &[String], format: CopyFormat, how: &str) -> String {
    let has_one = format == CopyFormat::Csv && !columns.is_empty();
    if has_one { format!(", header {how}") } else { String::new() }
}

/// Loads rows into one table.
pub fn copy_in(table: &TableName, columns: &[String], format: CopyFormat) -> Statement {
    // A table without columns takes no column list, not even an empty one.
    let header = header(columns, format, "match");
    let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns_sql(columns)) };
    let sql = format!("copy {}{columns} from stdin (format {}{header})", table.sql(), format.as_str());
    Statement::new(sql, doing(format!("load table {table}")).or(Code::CopyFailed).missing(Code::SchemaChanged))
}

/// Counts the rows of many tables at once: one row a table, in the order given.
pub(super) fn count_rows(names: &[TableName]) -> Statement {
    let counts = names.iter().enumerate();
    let counts = counts.map(|(at, name)| format!("select {at} as at, count(*) as rows from only {}", name.sql()));
    let sql = format!("{} order by at", counts.collect::<Vec<_>>().join(" union all "));
    let what = format!("count the rows of {}", tables(names));
    Statement::new(sql, doing(what).privilege(Code::SelectPrivilege))
}

/// Which of many tables hold at least one row: a row for each such table, its position in the order given.
pub(super) fn tables_with_rows(names: &[TableName]) -> Statement {
    let asked = names.iter().enumerate();
    let asked = asked.map(|(at, name)| format!("select {at} as at where exists (select from only {})", name.sql()));
    let sql = format!("{} order by at", asked.collect::<Vec<_>>().join(" union all "));
    let what = format!("look for rows in {}", tables(names));
    Statement::new(sql, doing(what).privilege(Code::SelectPrivilege))
}

/// Where many sequences stand: one row a sequence, in the order given.
pub(super) fn read_sequences(names: &[TableName]) -> Statement {
    let reads = names.iter().enumerate();
    let reads = reads.map(|(at, name)| format!("select {at} as at, last_value, is_called from {}", name.sql()));
    let sql = format!("{} order by at", reads.collect::<Vec<_>>().join(" union all "));
    Statement::new(sql, doing("read where sequences stand").privilege(Code::SelectPrivilege))
}

fn published(members: &[TableRef]) -> Option<String> {
    let members: Vec<_> = members.iter().filter(|member| member.name.schema != OWN_SCHEMA).collect();
    (!members.is_empty()).then(|| list(&members, |member| member.sql()))
}

fn publishing(what: &str, name: &str) -> Doing {
    doing(format!("{what} publication {}", readable_identifier(name))).privilege(Code::PublishPrivilege)
}

/// Publishes tables; a partitioned table with all its partitions. Our own schema is left out, whoever asks.
pub fn create_publication(name: &str, members: &[TableRef]) -> Statement {
    let tables = published(members).map(|tables| format!(" for table {tables}")).unwrap_or_default();
    let sql = format!(
        "create publication {}{tables} with (publish = 'insert, update, delete, truncate', \
         publish_via_partition_root = false)",
        quote_identifier(name)
    );
    Statement::new(sql, publishing("create", name))
}

/// Adds tables to a publication; nothing to add is nothing to do, so there may be no statement.
pub fn add_to_publication(name: &str, members: &[TableRef]) -> Option<Statement> {
    let sql = format!("alter publication {} add table {}", quote_identifier(name), published(members)?);
    Some(Statement::new(sql, publishing("add tables to", name)))
}

/// Takes tables out of a publication.
pub fn remove_from_publication(name: &str, members: &[TableRef]) -> Option<Statement> {
    let sql = format!("alter publication {} drop table {}", quote_identifier(name), published(members)?);
    Some(Statement::new(sql, publishing("take tables out of", name)))
}

/// Makes a schema.
pub fn create_schema(name: &str) -> Statement {
    let sql = format!("create schema {}", quote_identifier(name));
    Statement::new(sql, doing(format!("create schema {}", readable_identifier(name))))
}

/// Drops a publication if it is there.
pub fn drop_publication(name: &str) -> Statement {
    Statement::new(format!("drop publication if exists {}", quote_identifier(name)), publishing("drop", name))
}

/// Which of the publisher's changes a subscription asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginFilter {
    /// Only those made there, not those that came from elsewhere: for two directions. PostgreSQL 16+.
    None,
    /// All.
    Any,
}

/// A subscription to be made on a slot that exists already.
#[derive(Debug, Clone)]
pub struct NewSubscription<'a> {
    /// Its name.
    pub name: &'a str,
    /// How this server reaches the publisher.
    pub conninfo: &'a Conninfo,
    /// The publication there.
    pub publication: &'a str,
    /// The slot there.
    pub slot: &'a str,
    /// Which changes it asks for.
    pub origin: OriginFilter,
    /// It copies the tables by itself first.
    pub copies: bool,
    /// The version of the server that will subscribe.
    pub version: Version,
}

/// Creates a subscription, disabled: it will begin where its slot stands. Where it copies tables by itself, each begins where
/// its own snapshot stands.
///
/// It stays enabled after an error and tries again: PostgreSQL counts a publisher's restart as an error too.
///
/// Fails with [`Error::Unsupported`] when 15 is asked to filter origins: it would send everything back for ever.
pub fn create_subscription(new: &NewSubscription<'_>) -> Result<Statement, Error> {
    let origin = match (new.origin, new.version.has_origin_filter()) {
        (OriginFilter::None, true) => ", origin = none",
        (OriginFilter::Any, true) => ", origin = any",
        (OriginFilter::Any, false) => "",
        (OriginFilter::None, false) => {
            return Err(Error::Unsupported { what: "origin filter in subscriptions", version: new.version });
        }
    };
    let sql = format!(
        "create subscription {} connection {} publication {} with (create_slot = false, copy_data = {}, \
         enabled = false, slot_name = {}, disable_on_error = false{origin})",
        quote_identifier(new.name),
        quote_literal(&new.conninfo.to_string()),
        quote_identifier(new.publication),
        new.copies,
        quote_identifier(new.slot),
    );
    Ok(Statement::new(sql, subscribing("create", new.name)))
}

fn subscribing(what: &str, name: &str) -> Doing {
    doing(format!("{what} subscription {}", readable_identifier(name)))
        .privilege(Code::SubscribePrivilege)
        .or(Code::SubscriptionFailing)
}

fn alter_subscription(what: &str, name: &str, change: &str) -> Statement {
    let sql = format!("alter subscription {} {change}", quote_identifier(name));
    Statement::new(sql, subscribing(what, name))
}

/// Gives a subscription another way to its publisher.
pub(super) fn move_subscription(name: &str, conninfo: &Conninfo) -> Statement {
    alter_subscription("move", name, &format!("connection {}", quote_literal(&conninfo.to_string())))
}

/// Keeps what follows in the transaction out of the server's log, values of parameters included.
pub(super) fn silence_log() -> Statement {
    let settings = [
        ("log_statement", "none"),
        ("log_duration", "off"),
        ("log_min_duration_statement", "-1"),
        ("log_min_duration_sample", "-1"),
        ("log_transaction_sample_rate", "0"),
        ("log_parameter_max_length", "0"),
        ("log_parameter_max_length_on_error", "0"),
    ];
    let sql = settings.map(|(name, value)| format!("set local {name} to {}", quote_literal(value))).join("; ");
    Statement::new(sql, doing("keep a secret out of the log").or(Code::SubscribePrivilege))
}

/// Runs what the transaction was handed over in `steep.statement`.
pub(super) fn run_handed_over(doing: Doing) -> Statement {
    let sql = "do $steep$
declare
    said text; more text; advice text;
begin
    execute pg_catalog.current_setting('steep.statement');
exception when others then
    get stacked diagnostics said = message_text, more = pg_exception_detail, advice = pg_exception_hint;
    raise exception using errcode = sqlstate, message = said, detail = more, hint = advice;
end
$steep$";
    Statement::new(sql, doing)
}

/// Lets a subscription's worker run.
pub fn enable_subscription(name: &str) -> Statement {
    alter_subscription("enable", name, "enable")
}

/// Stops a subscription's worker.
pub fn disable_subscription(name: &str) -> Statement {
    alter_subscription("disable", name, "disable")
}

/// Makes a disabled subscription forget its slot, so that dropping it does not ask the publisher.
pub fn detach_subscription_slot(name: &str) -> Statement {
    alter_subscription("detach the slot of", name, "set (slot_name = none)")
}

/// Makes a subscription forget its publisher: whoever drops it then cannot reach slots there, those of its tables included.
pub(super) fn strand_subscription(name: &str) -> Statement {
    alter_subscription("strand", name, "connection 'host=/nonexistent port=1 password=none connect_timeout=1'")
}

/// Takes back a prepared transaction.
pub(super) fn rollback_prepared(gid: &str) -> Statement {
    Statement::new(format!("rollback prepared {}", quote_literal(gid)), doing("roll back a prepared transaction"))
}

/// Drops a subscription if it is there.
pub fn drop_subscription(name: &str) -> Statement {
    Statement::new(format!("drop subscription if exists {}", quote_identifier(name)), subscribing("drop", name))
}

/// How long a slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotLife {
    /// Until it is dropped.
    Lasting,
    /// As long as the connection that made it.
    Temporary,
}

/// `CREATE_REPLICATION_SLOT`, for a replication connection: makes the slot and exports what it begins after.
pub(super) fn create_exporting_slot(slot: &SlotName, life: SlotLife) -> Statement {
    // The replication grammar knows its keywords in capitals only.
    let name = quote_identifier(slot.as_str());
    let temporary = if life == SlotLife::Temporary { " TEMPORARY" } else { "" };
    let sql = format!("CREATE_REPLICATION_SLOT {name}{temporary} LOGICAL pgoutput (SNAPSHOT 'export')");
    let creating = doing(format!("create slot {}", slot.as_str())).privilege(Code::ReplicationPrivilege);
    Statement::new(sql, creating.limit(Code::NoFreeSlot))
}

/// A schema as SQL that pg_restore wrote, to run as it is.
pub(super) fn restore_script(script: &str) -> Statement {
    Statement::new(script, doing("restore the schema").or(Code::RestoreFailed))
}

/// Drops one object or several of one kind, never what depends on them. `identities` are PostgreSQL's own
/// (`pg_identify_object`), which quotes them; `kind` is one of [`super::inventory`]'s.
pub(super) fn drop_objects(kind: &'static str, identities: &[&str]) -> Statement {
    let what = match identities {
        [one] => format!("drop {kind} {one}"),
        many => format!("drop {} objects ({kind})", many.len()),
    };
    Statement::new(format!("drop {kind} {} restrict", identities.join(", ")), doing(what))
}

/// A name PostgreSQL takes for slots and origins: 1 to 63 of a-z, 0-9 and '_'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotName(String);

impl SlotName {
    pub(super) fn parse(name: &str) -> Result<Self, Error> {
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if plain && (1..=63).contains(&name.len()) {
            Ok(Self(name.to_owned()))
        } else {
            Err(Error::BadSlotName(name.to_owned()))
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests;
