//! An agent that does not belong to the cluster: one that should not start, or not be let in.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use xtask::process::{self, Signal};

use crate::{
    node::Node,
    wait::{PATIENCE, until},
};

/// A further agent; ended with this value.
#[derive(Debug)]
pub struct Stray {
    dir: PathBuf,
    child: Child,
}

impl Node {
    /// Starts a second agent with this node's configuration, as `edit` changes it. Its ports are its own unless
    /// `edit` says otherwise.
    pub fn stray_agent(&self, name: &str, edit: impl FnOnce(String) -> String) -> Stray {
        let dir = self.agent_toml().with_file_name(format!("stray-{name}"));
        fs::create_dir_all(&dir).expect("a folder can be made");
        let toml = fs::read_to_string(self.agent_toml()).expect("the agent is configured");
        let mut ports = free_ports().into_iter();
        let mut own_port = |line: &str| match line.starts_with("listen = ") {
            true => format!("listen = \"127.0.0.1:{}\"\n", ports.next().expect("an agent listens twice")),
            false if line.starts_with("state_dir = ") => format!("state_dir = {:?}\n", dir.display().to_string()),
            false => format!("{line}\n"),
        };
        let toml: String = toml.lines().map(&mut own_port).collect();
        let config = dir.join("agent.toml");
        fs::write(&config, edit(toml)).expect("a file can be written");
        let log = File::create(dir.join("agent.log")).expect("a file can be made");
        let mut command = Command::new(&self.parts().agent.program);
        command.args(["run", "--config"]).arg(&config).current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("it can be shared")).stderr(log);
        Stray { dir, child: command.spawn().expect("the agent can be run") }
    }
}

fn free_ports() -> [u16; 2] {
    let any = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    [any(), any()].map(|listener| listener.local_addr().expect("it is bound").port())
}

impl Stray {
    /// What it has logged and said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        process::signal(self.child.id(), Signal::Terminate);
    }

    /// Waits for its end.
    pub async fn ends(&mut self) -> ExitStatus {
        until("the stray agent ends", PATIENCE, async || {
            let status = self.child.try_wait().expect("it can be waited for");
            status.ok_or_else(|| self.log())
        })
        .await
    }

    /// Waits until its log has `words`.
    pub async fn says(&mut self, words: &str) {
        until(&format!("the stray agent says {words:?}"), PATIENCE, async || {
            let log = self.log();
            if log.contains(words) { Ok(()) } else { Err(log) }
        })
        .await;
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the stray agent said last:\n{}", process::tail(&self.dir.join("agent.log"), 15));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            process::signal(self.child.id(), Signal::Kill);
        }
        let _ = self.child.wait();
    }
}
