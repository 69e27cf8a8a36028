//! Brings schema `steep_repl` up to date: numbered texts under `agent/sql/store`, applied in order and remembered
//! with their checksum. All that are missing are applied in one transaction, or none is.

use sha2::{Digest as _, Sha256};

use super::{
    Error,
    control::{LOCK_CLASS, doing},
    identity::Identity,
};
use crate::postgres::{Session, connect::field, sql};

/// The lock under which the schema is changed; held until the transaction ends.
const LOCK: i32 = 2;

struct Migration {
    version: i32,
    name: &'static str,
    text: &'static str,
}

const MIGRATIONS: [Migration; 12] = [
    Migration { version: 1, name: "schema", text: sql!("store/0001_schema.sql") },
    Migration { version: 2, name: "nodes", text: sql!("store/0002_nodes.sql") },
    Migration { version: 3, name: "operations", text: sql!("store/0003_operations.sql") },
    Migration { version: 4, name: "audit", text: sql!("store/0004_audit.sql") },
    Migration { version: 5, name: "mesh", text: sql!("store/0005_mesh.sql") },
    Migration { version: 6, name: "signed_intents", text: sql!("store/0006_signed_intents.sql") },
    Migration { version: 7, name: "removals", text: sql!("store/0007_removals.sql") },
    Migration { version: 8, name: "fingerprints", text: sql!("store/0008_fingerprints.sql") },
    Migration { version: 9, name: "operation_notes", text: sql!("store/0009_operation_notes.sql") },
    Migration { version: 10, name: "watching", text: sql!("store/0010_watching.sql") },
    Migration { version: 11, name: "snapshots", text: sql!("store/0011_snapshots.sql") },
    Migration { version: 13, name: "preparations", text: sql!("store/0013_preparations.sql") },
];

impl Migration {
    /// SHA-256 of its text, in hexadecimal.
    fn checksum(&self) -> String {
        // A checkout may have turned the line ends.
        let digest = Sha256::digest(self.text.replace("\r\n", "\n"));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

struct Applied {
    version: i32,
    name: String,
    checksum: String,
}

/// How far the schema is there, and what it is in.
pub(super) struct Found {
    /// The server is a standby.
    pub(super) in_recovery: bool,
    /// The database, as it is.
    pub(super) database: Identity,
    /// The table that says whose it is exists.
    pub(super) has_identity: bool,
    has_migrations: bool,
}

/// Looks how far the schema is there.
pub(super) async fn find(session: &Session) -> Result<Found, Error> {
    let row = session.one(doing("look for schema steep_repl"), sql!("store/find_schema.sql"), &[]).await?;
    Ok(Found {
        in_recovery: field(&row, "in_recovery")?,
        database: Identity::parse(field(&row, "system_identifier")?, field(&row, "database")?)?,
        has_identity: field(&row, "has_identity")?,
        has_migrations: field(&row, "has_migrations")?,
    })
}

/// Applies what is missing and returns how many migrations that were.
///
/// Fails with [`Error::TooNew`] when a newer agent has been here, and with [`Error::OtherHistory`] when a migration
/// was applied that reads otherwise here; nothing is changed then.
pub(super) async fn migrate(session: &Session) -> Result<usize, Error> {
    session.begin().await?;
    let migrated = migrate_within(session).await;
    match &migrated {
        Ok(_) => session.commit().await?,
        // The error in hand says more than a failed rollback could; the session ends with it.
        Err(_) => drop(session.rollback().await),
    }
    migrated
}

async fn migrate_within(session: &Session) -> Result<usize, Error> {
    let locking = "select pg_catalog.pg_advisory_xact_lock($1::integer, $2::integer)";
    session.one(doing("lock schema steep_repl"), locking, &[&LOCK_CLASS, &LOCK]).await?;
    let found = find(session).await?;
    let applied = if found.has_migrations { applied(session).await? } else { Vec::new() };
    let missing = missing(&applied, &found.database.database)?;
    for migration in missing {
        let Migration { version, name, text } = migration;
        session.batch(doing(format!("apply migration {version} ({name})")), text).await?;
        let recording = doing("remember a migration");
        let sql = sql!("store/record_migration.sql");
        session.execute(recording, sql, &[version, name, &migration.checksum()]).await?;
    }
    if !missing.is_empty() {
        // Made by the extension before, the schema stays whole: drop extension takes all of it, or nothing.
        session.batch(doing("add to extension steep_repl"), sql!("store/adopt_objects.sql")).await?;
    }
    Ok(missing.len())
}

async fn applied(session: &Session) -> Result<Vec<Applied>, Error> {
    let rows = session.rows(doing("list the migrations"), sql!("store/list_migrations.sql"), &[]).await?;
    let read = |row| {
        Ok(Applied { version: field(row, "version")?, name: field(row, "name")?, checksum: field(row, "checksum")? })
    };
    rows.iter().map(read).collect()
}

/// What is left to apply after `applied`, which comes in order.
fn missing(applied: &[Applied], database: &str) -> Result<&'static [Migration], Error> {
    let known = MIGRATIONS.last().map_or(0, |last| last.version);
    if let Some(last) = applied.last()
        && last.version > known
    {
        return Err(Error::TooNew { database: database.to_owned(), found: last.version, known });
    }
    for (at, there) in applied.iter().enumerate() {
        let ours = &MIGRATIONS[at];
        if (there.version, &there.checksum) != (ours.version, &ours.checksum()) {
            let name = there.name.clone();
            return Err(Error::OtherHistory { database: database.to_owned(), version: there.version, name });
        }
    }
    Ok(&MIGRATIONS[applied.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(count: usize) -> Vec<Applied> {
        let applied = |migration: &Migration| Applied {
            version: migration.version,
            name: migration.name.to_owned(),
            checksum: migration.checksum(),
        };
        MIGRATIONS.iter().take(count).map(applied).collect()
    }

    #[test]
    fn migrations_are_numbered_upwards_from_one() {
        let numbers: Vec<_> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert!(numbers[0] == 1 && numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    }

    #[test]
    fn migrations_are_ascii_so_that_a_database_of_any_encoding_takes_them() {
        for migration in &MIGRATIONS {
            assert!(migration.text.is_ascii(), "{}", migration.name);
        }
    }

    #[test]
    fn only_what_was_not_applied_is_missing() {
        for count in 0..=MIGRATIONS.len() {
            let left = missing(&history(count), "shop").expect("a history of ours");
            assert_eq!(left.len(), MIGRATIONS.len() - count);
            let next = MIGRATIONS.get(count).map(|migration| migration.version);
            assert_eq!(left.first().map(|first| first.version), next);
        }
    }

    #[test]
    fn a_schema_of_a_newer_agent_is_refused_with_both_versions() {
        let mut newer = history(MIGRATIONS.len());
        newer.push(Applied { version: 99, name: "later".to_owned(), checksum: String::new() });
        match missing(&newer, "shop") {
            Err(Error::TooNew { found: 99, known, .. }) => {
                assert_eq!(Some(known), MIGRATIONS.last().map(|last| last.version));
            }
            _ => panic!("a newer schema was taken"),
        }
    }

    #[test]
    fn a_migration_that_reads_otherwise_is_refused_by_name() {
        let mut other = history(2);
        other[1].checksum = "0".repeat(64);
        assert!(
            matches!(missing(&other, "shop"), Err(Error::OtherHistory { version: 2, name, .. }) if name == "nodes")
        );
        let gap = history(3).split_off(1);
        assert!(matches!(missing(&gap, "shop"), Err(Error::OtherHistory { version: 2, .. })));
    }
}
