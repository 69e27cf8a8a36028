//! Somebody who runs the commands that steepctl has printed: in a shell, on the host of a node, as whoever PostgreSQL runs as.

use std::{fs, path::Path, process::Output};

use xtask::{
    cluster::{account::Account, server::Stop},
    process::{self, Signal},
};

use crate::node::Node;

/// The commands among what was printed to be done next, in their order.
pub fn commands(printed: &str) -> Vec<String> {
    let next = printed.lines().skip_while(|line| *line != "Next");
    next.filter_map(|line| line.strip_prefix("     ")).map(str::to_owned).collect()
}

impl Node {
    /// Runs `command` in a shell of the account the server belongs to, with the programs of its version at hand.
    pub fn shell(&self, command: &str) {
        let account = Account::of_servers();
        let mut shell = account.command(Path::new("sh"));
        let bin = self.parts().server.bin_dir.display();
        let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
        let ran = shell.arg("-c").arg(command).env("PATH", path).output().expect("sh runs");
        assert!(ran.status.success(), "{}: {command}\n{}", self.id(), words(&ran));
    }

    /// PostgreSQL and agent end, and of the data directory nothing stays but itself; returns its postgresql.conf.
    pub fn is_emptied(&self) -> String {
        self.stop_agent();
        self.stop_postgres(Stop::Fast);
        let data = self.data_directory();
        let settings = fs::read_to_string(data.join("postgresql.conf")).expect("the server has settings");
        for entry in fs::read_dir(data).expect("it can be read").flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            removed.expect("it can be removed");
        }
        settings
    }

    /// All processes of the server stand still while `done` happens, as its files do in a snapshot of their storage.
    pub fn while_still<T>(&self, done: impl FnOnce() -> T) -> T {
        let pid_file = fs::read_to_string(self.data_directory().join("postmaster.pid")).expect("the server runs");
        let first: u32 = pid_file.lines().next().and_then(|line| line.trim().parse().ok()).expect("it has a pid");
        // The first one begins all others; once it stands no more come.
        let mut moving = vec![first];
        while !moving.is_empty() {
            for pid in &moving {
                process::signal(*pid, Signal::Stop);
            }
            moving = family(first).into_iter().filter(|(_, is_still)| !is_still).map(|(pid, _)| pid).collect();
        }
        let outcome = done();
        for (pid, _) in family(first) {
            process::signal(pid, Signal::Continue);
        }
        outcome
    }

    /// Runs `words` of the agent's own program, which is down, with its configuration.
    pub fn steep_agent(&self, words: &str) -> Output {
        let mut program = self.agent_program();
        program.args(words.split_whitespace()).env("STEEP_AGENT_CONFIG", self.agent_toml());
        program.output().expect("the program runs")
    }
}

/// A process and its children, and which of them are stopped.
fn family(first: u32) -> Vec<(u32, bool)> {
    let processes = fs::read_dir("/proc").expect("processes can be listed").flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (before, after) = stat.rsplit_once(')')?;
            let pid: u32 = before.split_whitespace().next()?.parse().ok()?;
            let mut words = after.split_whitespace();
            let (state, parent) = (words.next()?, words.next()?.parse::<u32>().ok()?);
            (pid == first || parent == first).then_some((pid, state == "T" || state == "Z"))
        })
        .collect()
}

/// What a program has said.
pub fn words(said: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}
