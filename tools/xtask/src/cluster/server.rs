//! One throwaway PostgreSQL server: made from a template, started, stopped, asked.
//!
//! It listens on a unix socket in its own folder only, trusts everybody who can reach it, and answers to the
//! superuser `postgres`. Its data belongs to the account of [`Account::of_servers`].

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{account::Account, template};
use crate::{
    postgres::Postgres,
    process::{self, Signal},
    workspace,
};

pub const USER: &str = "postgres";
pub const DATABASE: &str = "postgres";
const PORT: u16 = 5432;

/// How a server is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stop {
    /// Ends sessions, checkpoints.
    Fast,
    /// As if the power went: recovers at the next start.
    Immediate,
}

/// A server and its place on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Server {
    pub major: u32,
    /// As the server prints it, `18.4`.
    pub version: String,
    pub bin_dir: PathBuf,
    pub data: PathBuf,
    /// The folder of its socket, which is also the `host` to connect to.
    pub socket: PathBuf,
    pub port: u16,
    pub log: PathBuf,
}

impl Server {
    /// A server of `postgres` that keeps its data and log in `home` and its socket in `socket`. Makes nothing.
    pub fn new(postgres: &Postgres, home: &Path, socket: &Path) -> Self {
        Self {
            major: postgres.major,
            version: postgres.version.clone(),
            bin_dir: postgres.bin_dir.clone(),
            data: home.join("data"),
            socket: socket.to_owned(),
            port: PORT,
            log: home.join("server.log"),
        }
    }

    /// Makes the data directory from the template of `node_id`, with `settings` on top of what every node needs.
    pub fn create(&self, node_id: &str, settings: &[(String, String)]) -> Result<()> {
        template::copy(self, node_id)?;
        let mut lines = String::from("\n# What replication and throwaway nodes need.\n");
        for (name, value) in self.base_settings().iter().chain(settings) {
            // Of two lines for one setting the last one counts.
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        let file = self.data.join("postgresql.conf");
        let mut conf = std::fs::OpenOptions::new().append(true).open(&file)?;
        conf.write_all(lines.as_bytes()).with_context(|| format!("cannot write {}", file.display()))
    }

    fn base_settings(&self) -> Vec<(String, String)> {
        let socket = self.socket.display().to_string();
        let mut settings = vec![
            ("listen_addresses", ""),
            ("unix_socket_directories", socket.as_str()),
            ("log_line_prefix", "%m [%p] %a "),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_worker_processes", "16"),
            ("max_logical_replication_workers", "12"),
            ("max_wal_size", "2GB"),
        ];
        if self.major >= 18 {
            settings.push(("max_active_replication_origins", "40"));
        }
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        settings.into_iter().map(owned).chain([("port".to_owned(), self.port.to_string())]).collect()
    }

    /// Starts it and returns when it takes connections.
    pub fn start(&self) -> Result<()> {
        let mut pg_ctl = self.pg_ctl("start");
        pg_ctl.arg("-l").arg(&self.log).args(["-w", "-t", "60"]);
        process::output(&mut pg_ctl)
            .map(|_| ())
            .with_context(|| format!("PostgreSQL did not start; its log ends:\n{}", process::tail(&self.log, 15)))
    }

    /// Stops it and returns when it is gone.
    pub fn stop(&self, how: Stop) -> Result<()> {
        let mode = match how {
            Stop::Fast => "fast",
            Stop::Immediate => "immediate",
        };
        process::output(self.pg_ctl("stop").args(["-m", mode, "-w", "-t", "60"])).map(|_| ())
    }

    /// Makes sure that nothing of it runs any more, whatever state it is in.
    pub fn end(&self) {
        if !self.is_running() || self.stop(Stop::Immediate).is_ok() {
            return;
        }
        if let Some(pid) = self.postmaster() {
            process::signal(pid, Signal::Kill);
        }
    }

    pub fn is_running(&self) -> bool {
        self.postmaster().is_some()
    }

    /// The server's first process, if it is alive and really ours.
    fn postmaster(&self) -> Option<u32> {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().parse().ok()?;
        process::command_line(pid)?.contains(&*self.data.to_string_lossy()).then_some(pid)
    }

    fn pg_ctl(&self, verb: &str) -> Command {
        let mut command = Account::of_servers().command(&self.program("pg_ctl"));
        command.arg(verb).arg("-D").arg(&self.data);
        command
    }

    pub fn program(&self, name: &str) -> PathBuf {
        workspace::program(&self.bin_dir, name)
    }

    /// A client program of this version, pointed at this server and its database.
    pub fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        command.env("PGHOST", &self.socket).env("PGPORT", self.port.to_string());
        command.env("PGUSER", USER).env("PGDATABASE", DATABASE).env("PGOPTIONS", "-c client_min_messages=warning");
        command
    }

    /// psql that stops at the first error and prints bare values, one row a line.
    pub fn psql(&self) -> Command {
        let mut command = self.client("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        command
    }

    /// Runs `sql`, one or many statements, and returns what psql prints of it.
    pub fn sql(&self, sql: &str) -> Result<String> {
        let mut command = self.psql();
        let mut child = command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run psql")?;
        let _foreground = process::Foreground::enter(child.id());
        let mut stdin = child.stdin.take().expect("it was piped");
        let text = sql.to_owned();
        // A thread of its own: psql may print more than a pipe holds before it has read all.
        let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output().context("cannot wait for psql")?;
        let _ = writer.join();
        if !output.status.success() {
            let first = sql.trim().lines().next().unwrap_or_default();
            bail!("psql: {first}{}", process::printed(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// How libpq, and so the other nodes' servers, reach this one.
    pub fn conninfo(&self) -> String {
        format!("host={} port={} user={USER}", quoted(&self.socket.display().to_string()), self.port)
    }
}

/// A value as libpq's connection strings want it.
fn quoted(value: &str) -> String {
    let plain = !value.is_empty() && !value.contains([' ', '\'', '\\']);
    if plain { value.to_owned() } else { format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_a_blank_or_a_quote_is_quoted() {
        for (value, text) in [("/tmp/a", "/tmp/a"), ("", "''"), ("/tmp/a b", "'/tmp/a b'"), (r"it's\", r"'it\'s\\'")] {
            assert_eq!(quoted(value), text);
        }
    }
}
