//! Runs pg_dump and pg_restore: the schema out of one database, and into another.
//!
//! Programs are started directly, never through a shell; names are quoted as the programs' patterns need it;
//! passwords travel by PGPASSFILE only. Every child carries a name of ours (PGAPPNAME), so that its sessions can
//! be ended with it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    pin::Pin,
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
};

use steep_protocol::{
    failure::Code,
    ids::OperationId,
    names::{TableName, escape_controls, quote_identifier},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader, ReadBuf},
    process::{Child, ChildStderr, ChildStdout, Command},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use super::archive::{Section, TocEntry};
use super::{
    activity,
    archive::{parse_dependencies, parse_list, write_list},
    connect::{Database, PostgresConfig, Purpose},
    conninfo::Conninfo,
    ddl::{MARK_SCHEMA, OWN_SCHEMA, Statement, startup_options},
    error::Error,
    version::Version,
};

/// Lines of a program's complaints that are kept.
const COMPLAINTS: usize = 8;

/// A pair of pg_dump and pg_restore of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pg_dump: PathBuf,
    pg_restore: PathBuf,
    version: Version,
}

impl Programs {
    /// Finds the pair whose major version is `needed` or the next after it.
    ///
    /// Looks into `bin_dir` alone where it is configured; else into PATH, where `pg_config` points, and into Debian's
    /// versioned directories.
    pub async fn find(config: &PostgresConfig, needed: u16) -> Result<Self, Error> {
        let directories = match &config.bin_dir {
            Some(directory) => vec![directory.clone()],
            None => usual_directories().await,
        };
        let mut found = Vec::new();
        for directory in directories {
            found.extend(Self::look_into(&directory).await);
        }
        let known = match found.as_slice() {
            [] => "none".to_owned(),
            some => some.iter().map(Self::describe).collect::<Vec<_>>().join(", "),
        };
        found.retain(|programs| programs.major() >= needed);
        found.sort_by_key(|programs| (programs.major(), std::cmp::Reverse(programs.version)));
        found.into_iter().next().ok_or(Error::ProgramsMissing { needed, found: known })
    }

    async fn look_into(directory: &Path) -> Option<Self> {
        let program = |name: &str| directory.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
        let (pg_dump, pg_restore) = (program("pg_dump"), program("pg_restore"));
        let version = version_of(&pg_dump).await?;
        (version_of(&pg_restore).await? == version).then_some(Self { pg_dump, pg_restore, version })
    }

    fn describe(&self) -> String {
        format!("{} ({})", self.version, self.pg_dump.display())
    }

    /// Their major version.
    pub fn major(&self) -> u16 {
        self.version.major()
    }

    /// Begins to dump the schema that `request` means. Dropping the [`Dump`] kills pg_dump.
    pub fn dump_schema(&self, database: &Database, request: &DumpRequest<'_>) -> Result<Dump, Error> {
        let mut command = child(&self.pg_dump, database.config(), Purpose::Dump(request.op), &[]);
        command.args(request.arguments(self.version)).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|source| dumping("run pg_dump", source))?;
        let stdout = child.stdout.take().ok_or_else(|| dumping("read from pg_dump", no_pipe()))?;
        let stderr = child.stderr.take().map(gather_complaints);
        Ok(Dump { child, stdout, stderr })
    }

    /// Lists what an archive holds, in the order pg_restore would make it.
    pub async fn list(&self, archive: &Path) -> Result<Vec<TocEntry>, Error> {
        let verbose = self.print_list(archive, &["--verbose"]).await?;
        let mut dependencies = parse_dependencies(&verbose);
        let mut entries = Vec::new();
        for section in [Section::PreData, Section::PostData] {
            let list = self.print_list(archive, &[&format!("--section={}", section.as_str())]).await?;
            entries.extend(parse_list(&list, section));
        }
        for entry in &mut entries {
            entry.depends_on = dependencies.remove(&entry.dump_id).unwrap_or_default();
        }
        Ok(entries)
    }

    async fn print_list(&self, archive: &Path, options: &[&str]) -> Result<String, Error> {
        let mut command = quiet(&self.pg_restore);
        command.arg("--list").args(options).arg(archive).stdout(Stdio::piped());
        let output = command.output().await.map_err(|source| restoring("run pg_restore", source))?;
        if !output.status.success() {
            let complaints = Complaints::of(String::from_utf8_lossy(&output.stderr).lines());
            return Err(program_failed("pg_restore", output.status, complaints));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the entries `request` names in the local database.
    ///
    /// With `single_transaction` all or nothing is made. After `cancelled` pg_restore and its sessions are ended
    /// before this returns [`Error::Cancelled`]. Tablespaces of the source are ignored.
    pub async fn restore(&self, database: &Database, request: &RestoreRequest<'_>) -> Result<(), Error> {
        if request.entries.is_empty() {
            return Ok(());
        }
        let list = ListFile::beside(request.archive);
        let written = tokio::fs::write(&list.0, write_list(request.entries.iter().copied())).await;
        written.map_err(|source| restoring("write the list for pg_restore", source))?;
        self.restore_list(database, request, &list.0).await
    }

    async fn restore_list(&self, database: &Database, request: &RestoreRequest<'_>, list: &Path) -> Result<(), Error> {
        let session = database.session(Purpose::Restore(request.op)).await?;
        if session.version().major() < self.major() || request.as_script || !request.then.is_empty() {
            let mut script = self.script(request, list).await?;
            for statement in request.then {
                script.push_str(statement.as_str());
                script.push_str(";\n");
            }
            return super::script::run(&session, &script, request.settings, request.cancelled).await;
        }
        session.close().await;
        let purpose = Purpose::Restore(request.op);
        let mut command = child(&self.pg_restore, database.config(), purpose, request.settings);
        command.arg("--exit-on-error").arg("--no-tablespaces").arg("--use-list").arg(list);
        match request.single_transaction {
            true => command.arg("--single-transaction"),
            // Only then it says at which entry it failed.
            false => command.arg("--verbose"),
        };
        command.arg(request.archive).stdout(Stdio::null());
        let mut child = command.spawn().map_err(|source| restoring("run pg_restore", source))?;
        let stderr = child.stderr.take().map(gather_complaints);
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|source| restoring("wait for pg_restore", source))?;
                ended("pg_restore", status, stderr).await
            }
            () = request.cancelled.cancelled() => {
                end(child, database, purpose).await?;
                Err(Error::Cancelled { doing: "restore the schema".to_owned() })
            }
        }
    }

    /// The entries as SQL, for a server older than the programs (pg_restore itself sets what it does not know), or to
    /// run more in the same transaction.
    async fn script(&self, request: &RestoreRequest<'_>, list: &Path) -> Result<String, Error> {
        let mut command = quiet(&self.pg_restore);
        command.args(["--no-tablespaces", "--file=-", "--use-list"]).arg(list).arg(request.archive);
        let output = command.stdout(Stdio::piped()).output().await;
        let output = output.map_err(|source| restoring("run pg_restore", source))?;
        if !output.status.success() {
            let complaints = Complaints::of(String::from_utf8_lossy(&output.stderr).lines());
            return Err(program_failed("pg_restore", output.status, complaints));
        }
        String::from_utf8(output.stdout).map_err(|error| {
            restoring("read what pg_restore wrote", std::io::Error::new(std::io::ErrorKind::InvalidData, error))
        })
    }
}

/// What to dump.
#[derive(Debug, Clone, Copy)]
pub struct DumpRequest<'a> {
    /// The exported snapshot to read in.
    pub snapshot: &'a str,
    /// Only these tables, with what belongs to them and nothing else; empty: everything.
    pub only: &'a [TableName],
    /// Leave these tables out.
    pub without: &'a [TableName],
    /// Only these schemas; empty: all. Our own is always left out.
    pub schemas: &'a [String],
    /// The operation it is for.
    pub op: OperationId,
}

impl DumpRequest<'_> {
    fn arguments(&self, version: Version) -> Vec<String> {
        // Within double quotes the programs' patterns mean every character as it is.
        let pattern = |option: &str, quoted: String| format!("{option}={quoted}");
        // Both sections and not "--schema-only", which would leave materialized views empty.
        let mut arguments =
            ["--format=custom", "--section=pre-data", "--section=post-data"].map(str::to_owned).to_vec();
        // UTF-8, as these patterns are, and as we read the archive.
        arguments.extend(["--encoding=UTF8", "--no-publications", "--no-subscriptions"].map(str::to_owned));
        arguments.push(if version.major() < 16 { "--no-blobs" } else { "--no-large-objects" }.to_owned());
        arguments.push(format!("--snapshot={}", self.snapshot));
        for ours in [OWN_SCHEMA, MARK_SCHEMA] {
            arguments.push(pattern("--exclude-schema", quote_identifier(ours)));
        }
        arguments.extend(self.schemas.iter().map(|schema| pattern("--schema", quote_identifier(schema))));
        arguments.extend(self.only.iter().map(|table| pattern("--table", table.sql())));
        arguments.extend(self.without.iter().map(|table| pattern("--exclude-table", table.sql())));
        if !self.only.is_empty() || !self.schemas.is_empty() {
            arguments.push("--strict-names".to_owned());
        }
        arguments
    }
}

/// What to restore.
#[derive(Debug, Clone, Copy)]
pub struct RestoreRequest<'a> {
    /// The archive; its directory takes a short-lived list.
    pub archive: &'a Path,
    /// The entries to make; pg_restore makes them in the archive's order.
    pub entries: &'a [&'a TocEntry],
    /// All or nothing.
    pub single_transaction: bool,
    /// Run as SQL by a session of ours, all or nothing, so that PostgreSQL's own words come back.
    pub as_script: bool,
    /// The operation it is for.
    pub op: OperationId,
    /// Settings for its sessions: `maintenance_work_mem`, `session_replication_role`.
    pub settings: &'a [(&'static str, &'a str)],
    /// Run after the entries, in the same transaction.
    pub then: &'a [Statement],
    /// Ends it.
    pub cancelled: &'a CancellationToken,
}

/// A running pg_dump; reading it yields the archive.
pub struct Dump {
    child: Child,
    stdout: ChildStdout,
    stderr: Option<JoinHandle<Complaints>>,
}

impl AsyncRead for Dump {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl Dump {
    /// Waits for pg_dump after its last byte was read. An archive is whole only when this succeeds.
    pub async fn finish(mut self) -> Result<(), Error> {
        let status = self.child.wait().await.map_err(|source| dumping("wait for pg_dump", source))?;
        ended("pg_dump", status, self.stderr.take()).await
    }

    /// Ends pg_dump and its sessions.
    pub async fn kill(self, database: &Database, op: OperationId) -> Result<(), Error> {
        end(self.child, database, Purpose::Dump(op)).await
    }
}

/// Kills a child and the sessions it opened: a session that waits for a lock does not notice that its client is gone.
async fn end(mut child: Child, database: &Database, purpose: Purpose) -> Result<(), Error> {
    if let Err(error) = child.kill().await {
        tracing::debug!(%purpose, error = &error as &dyn std::error::Error, "child had ended already");
    }
    let session = database.session(Purpose::Watch).await?;
    activity::terminate_named(&session, &purpose.to_string()).await.map(drop)
}

/// A program that inherits no PostgreSQL settings, speaks English, and ends with us.
fn quiet(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn child(program: &Path, config: &PostgresConfig, purpose: Purpose, settings: &[(&'static str, &str)]) -> Command {
    let mut command = quiet(program);
    command.arg("--no-password").arg(format!("--dbname={}", Conninfo::of(config)));
    command.env("PGAPPNAME", purpose.to_string()).env("PGOPTIONS", startup_options(settings));
    if let Some(passfile) = &config.passfile {
        command.env("PGPASSFILE", passfile);
    }
    command
}

async fn version_of(program: &Path) -> Option<Version> {
    let output = quiet(program).arg("--version").output().await.ok()?;
    Version::from_program_output(&String::from_utf8_lossy(&output.stdout))
}

async fn usual_directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(output) = quiet(Path::new("pg_config")).arg("--bindir").output().await {
        directories.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        directories.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let mut seen = HashSet::new();
    directories.retain(|directory| directory.is_absolute() && seen.insert(directory.clone()));
    directories
}

/// A list for pg_restore; goes with its owner, however that ends.
struct ListFile(PathBuf);

impl ListFile {
    fn beside(archive: &Path) -> Self {
        static LISTS: AtomicU64 = AtomicU64::new(0);
        // Several restores of one archive may run at once.
        Self(archive.with_extension(format!("{}.list", LISTS.fetch_add(1, Ordering::Relaxed))))
    }
}

impl Drop for ListFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), error = &error as &dyn std::error::Error, "list not removed");
        }
    }
}

fn gather_complaints(stderr: ChildStderr) -> JoinHandle<Complaints> {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stderr).lines();
        let mut complaints = Complaints::default();
        while let Ok(Some(line)) = lines.next_line().await {
            complaints.hear(&line);
        }
        complaints
    })
}

/// What a program wrote about its first error.
#[derive(Debug, Default)]
struct Complaints {
    /// The error and what follows to explain it, safe to print; until there is one, what was said last.
    lines: Vec<String>,
    has_error: bool,
    /// The entry of the archive it was at.
    entry: Option<i32>,
    /// The error was a deadlock that it lost.
    is_deadlock: bool,
}

impl Complaints {
    fn of<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut complaints = Self::default();
        lines.for_each(|line| complaints.hear(line));
        complaints
    }

    fn hear(&mut self, line: &str) {
        if !self.has_error {
            let entry = line.strip_prefix("pg_restore: from TOC entry ").and_then(|rest| rest.split_once(';'));
            self.entry = entry.and_then(|(number, _)| number.parse().ok()).or(self.entry);
            self.has_error = ["pg_dump: error:", "pg_restore: error:"].iter().any(|start| line.starts_with(start));
            if self.has_error {
                self.is_deadlock = line.ends_with("ERROR:  deadlock detected");
                self.lines.clear();
            }
        }
        if line.trim().is_empty() || self.has_error && self.lines.len() == COMPLAINTS {
            return;
        }
        if self.lines.len() == COMPLAINTS {
            self.lines.remove(0);
        }
        self.lines.push(escape_controls(&line.chars().take(300).collect::<String>()));
    }
}

async fn ended(program: &'static str, status: ExitStatus, stderr: Option<JoinHandle<Complaints>>) -> Result<(), Error> {
    let complaints = match stderr {
        Some(task) => task.await.unwrap_or_default(),
        None => Complaints::default(),
    };
    if status.success() { Ok(()) } else { Err(program_failed(program, status, complaints)) }
}

/// What libpq and PostgreSQL say where a server goes down under a program's feet.
const LOST: [&str; 3] =
    ["server closed the connection unexpectedly", "terminating connection due to", "the database system is"];

fn program_failed(program: &'static str, status: ExitStatus, complaints: Complaints) -> Error {
    if complaints.lines.iter().any(|line| LOST.iter().any(|words| line.contains(words))) {
        let said = complaints.lines.join("; ");
        return Error::Lost { doing: format!("run {program}"), source: said.into() };
    }
    let deadlock_at = complaints.entry.filter(|_| complaints.is_deadlock);
    Error::Program { program, status: status.to_string(), complaints: complaints.lines, deadlock_at }
}

fn dumping(what: &str, source: std::io::Error) -> Error {
    Error::ProgramIo { doing: what.to_owned(), code: Code::DumpFailed, source }
}

fn restoring(what: &str, source: std::io::Error) -> Error {
    Error::ProgramIo { doing: what.to_owned(), code: Code::RestoreFailed, source }
}

fn no_pipe() -> std::io::Error {
    std::io::ErrorKind::BrokenPipe.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_reach_pg_dump_as_quoted_patterns() {
        let table = TableName::new("we*rd", "--help \"x\".y\n$(id)");
        let request = DumpRequest {
            snapshot: "00000003-00000002-1",
            only: std::slice::from_ref(&table),
            without: std::slice::from_ref(&table),
            schemas: &["a.b".to_owned()],
            op: OperationId::generate(),
        };
        let arguments = request.arguments(Version::from_number(180_004));
        assert!(arguments.contains(&"--exclude-schema=\"steep_repl\"".to_owned()));
        assert!(arguments.contains(&"--schema=\"a.b\"".to_owned()));
        let quoted = "\"we*rd\".\"--help \"\"x\"\".y\n$(id)\"";
        assert!(arguments.contains(&format!("--table={quoted}")));
        assert!(arguments.contains(&format!("--exclude-table={quoted}")));
    }

    #[test]
    fn complaints_begin_at_the_first_error_and_are_safe_to_print() {
        let before = "pg_restore: creating TABLE \"public.error: x\"\n".repeat(1000);
        let stderr = format!(
            "{before}pg_restore: error: could not execute query: ERROR:  role \"a\u{1b}\" does not exist\n\
             Command was: ALTER TABLE\n\npg_restore: error: more"
        );
        let kept = Complaints::of(stderr.lines());
        assert!(kept.lines[0].contains("role \"a\\u{1b}\" does not exist"), "{kept:?}");
        assert!(kept.lines[1].starts_with("Command was"), "{kept:?}");
        assert_eq!(kept.lines.len(), 3);
        assert!(!kept.is_deadlock);
        assert_eq!(Complaints::of(before.lines()).lines.len(), COMPLAINTS);
    }

    #[test]
    fn a_lost_deadlock_is_told_from_other_errors_and_at_which_entry_it_was() {
        let stderr = |error: &str| {
            let stderr = format!(
                "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 3475; 2606 16480 FK CONSTRAINT a b c\n\
                 pg_restore: error: could not execute query: ERROR:  {error}\nDETAIL:  Process 7 waits"
            );
            Complaints::of(stderr.lines())
        };
        let lost = stderr("deadlock detected");
        assert_eq!((lost.is_deadlock, lost.entry), (true, Some(3475)));
        assert!(!stderr("type \"deadlock detected\" is missing").is_deadlock);
    }
}
