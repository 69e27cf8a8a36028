//! `cargo x extension`: the SQL extension `steep_repl`, made from the agent's own migrations.
//!
//! The extension's version is the number of its last migration. Its script applies the migrations that are missing,
//! as the agent does, and remembers them with the same checksums: so either may come first and the other goes on from
//! there, and an upgrade script has nothing to do where the agent was earlier. What is made lies in the project, so
//! that packagers need nothing of ours; tidy finds it stale.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{say, workspace};

/// The first version that was an extension: upgrades begin there.
const FIRST: u32 = 8;

/// A migration as the agent applies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    pub version: u32,
    pub name: String,
    pub text: String,
}

/// A file of the extension: its name, and what must be in it.
pub type Made = (String, String);

/// The folder it lies in, which PostgreSQL 18 can use as it is (`extension_control_path` names its parent).
pub fn folder() -> PathBuf {
    workspace::root().join("deploy/extension")
}

/// `cargo x extension`.
pub fn run() -> Result<()> {
    let folder = folder();
    let files = files()?;
    for old in scripts(&folder)? {
        if !files.iter().any(|(name, _)| *name == old) {
            fs::remove_file(folder.join(&old))?;
            say::step(format!("removed {old}"));
        }
    }
    for (name, text) in &files {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        say::good(path.display());
    }
    Ok(())
}

/// Names of files that are not as the migrations make them.
pub fn stale() -> Result<Vec<String>> {
    let folder = folder();
    let files = files()?;
    let is_as_made = |(name, text): &&Made| fs::read_to_string(folder.join(name)).is_ok_and(|found| found == *text);
    let mut stale: Vec<String> = files.iter().filter(|file| !is_as_made(file)).map(|(name, _)| name.clone()).collect();
    stale.extend(scripts(&folder)?.into_iter().filter(|old| !files.iter().any(|(name, _)| name == old)));
    Ok(stale)
}

/// All files that are made.
pub fn files() -> Result<Vec<Made>> {
    let sql = workspace::root().join("agent/sql/store");
    let adopt = fs::read_to_string(sql.join("adopt_objects.sql")).context("cannot read adopt_objects.sql")?;
    made(&migrations(&sql)?, &unix(&adopt), FIRST)
}

/// The migrations in `folder`, in order.
pub fn migrations(folder: &Path) -> Result<Vec<Migration>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Some((number, name)) = stem.split_once('_') else { continue };
        let Ok(version) = number.parse() else { continue };
        let text = unix(&fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
        found.push(Migration { version, name: name.to_owned(), text });
    }
    found.sort_by_key(|migration| migration.version);
    Ok(found)
}

/// The files of an extension of `migrations`, whose upgrades begin with version `first`.
pub fn made(migrations: &[Migration], adopt: &str, first: u32) -> Result<Vec<Made>> {
    let Some(last) = migrations.last() else { bail!("there are no migrations") };
    for text in migrations.iter().map(|migration| migration.text.as_str()).chain([adopt]) {
        // PostgreSQL puts something else in their place.
        for special in ["@extschema", "@extowner@", "MODULE_PATHNAME", "$apply_", "$migration_"] {
            if text.contains(special) {
                bail!("a migration contains {special}, which means something in the script of an extension");
            }
        }
    }
    let mut files = vec![
        ("steep_repl.control".to_owned(), control(last.version)),
        (format!("steep_repl--{}.sql", last.version), script("create extension steep_repl", migrations, adopt)),
    ];
    for (before, migration) in migrations.iter().zip(migrations.iter().skip(1)) {
        if before.version >= first {
            let name = format!("steep_repl--{}--{}.sql", before.version, migration.version);
            files.push((name, script("alter extension steep_repl update", std::slice::from_ref(migration), adopt)));
        }
    }
    Ok(files)
}

fn control(version: u32) -> String {
    format!(
        "# Made by `cargo x extension` from agent/sql/store.
comment = 'Steep: fingerprints of tables, and the memory of the agent of this node'
default_version = '{version}'
schema = steep_repl
relocatable = false
superuser = false
encoding = UTF8
"
    )
}

/// Applies those of `migrations` that are missing, then makes all of the schema the extension's.
fn script(command: &str, migrations: &[Migration], adopt: &str) -> String {
    let mut text = format!(
        "-- Made by `cargo x extension` from agent/sql/store: change the files there.\n\
         \\echo Use \"{command}\" to load this file. \\quit\n"
    );
    for migration in migrations {
        text.push('\n');
        text.push_str(&applied(migration));
    }
    text.push('\n');
    text.push_str(adopt);
    text
}

fn applied(migration: &Migration) -> String {
    let Migration { version, name, text } = migration;
    let checksum = checksum(text);
    let is_missing = match version {
        1 => "pg_catalog.to_regclass('steep_repl.migrations') is null".to_owned(),
        _ => format!("not exists (select from steep_repl.migrations m where m.version = {version})"),
    };
    let mut block = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        block,
        "do $apply_{version}$
begin
    if {is_missing} then
        execute $migration_{version}$
{text}$migration_{version}$;
        insert into steep_repl.migrations (version, name, checksum)
        values ({version}, '{name}', '{checksum}');
    elsif (select m.checksum from steep_repl.migrations m where m.version = {version}) <> '{checksum}' then
        raise exception 'migration {version} ({name}) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_{version}$;
"
    );
    block
}

/// As the agent takes it of the same text.
fn checksum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A checkout may have turned the line ends.
fn unix(text: &str) -> String {
    text.replace("\r\n", "\n")
}

/// The scripts that lie in `folder`.
fn scripts(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<std::io::Result<_>>()?;
    let is_script = |name: &String| name.starts_with("steep_repl--") && name.ends_with(".sql");
    Ok(names.into_iter().filter(is_script).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(versions: std::ops::RangeInclusive<u32>) -> Vec<Migration> {
        let one = |version| Migration { version, name: format!("m{version}"), text: format!("select {version};\n") };
        versions.map(one).collect()
    }

    #[test]
    fn every_version_since_the_first_can_be_upgraded_to_the_next() {
        let files = made(&some(1..=10), "select 'adopt';\n", 8).expect("they can be made");
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["steep_repl.control", "steep_repl--10.sql", "steep_repl--8--9.sql", "steep_repl--9--10.sql"]
        );
        assert!(files[0].1.contains("default_version = '10'"));
        assert!(files[1].1.contains("select 1;") && files[1].1.contains("select 10;"));
        assert!(files[2].1.contains("select 9;") && !files[2].1.contains("select 10;"));
        assert!(files.iter().skip(1).all(|(_, text)| text.trim_end().ends_with("'adopt';")), "the schema stays whole");
    }

    #[test]
    fn what_would_change_its_meaning_in_a_script_is_refused() {
        let mut migrations = some(1..=2);
        migrations[1].text = "select '@extschema@';".into();
        assert!(made(&migrations, "", 1).is_err());
    }

    #[test]
    fn the_files_in_the_project_are_those_that_are_made() {
        assert_eq!(stale().expect("they can be read"), Vec::<String>::new(), "mend: cargo x extension");
    }
}
