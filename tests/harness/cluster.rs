//! Starts nodes for a spec, and ends them with it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Once,
        atomic::{AtomicUsize, Ordering},
    },
};

use xtask::{
    cluster::{self, Host, Options, agent::Life},
    process,
    workspace::Binaries,
};

use crate::{logs, node::Node};

const FOLDERS: &str = "steep-spec-";

/// What kind of nodes a spec wants: `Cluster::of(2).pg(&["18", "16"]).start().await`.
#[derive(Debug, Clone)]
#[must_use = "nothing runs before start()"]
pub struct Cluster {
    nodes: usize,
    versions: Vec<u32>,
    settings: Vec<(String, String)>,
    mesh_toml: String,
    agent_toml: String,
    agents: bool,
    hosts: Vec<Host>,
}

impl Cluster {
    /// `nodes` nodes, `node_a`, `node_b`, … on the version `cargo x test --pg` names, 18 if none.
    pub fn of(nodes: usize) -> Self {
        let default = std::env::var(xtask::test::DEFAULT_VERSION).ok().and_then(|text| text.parse().ok());
        Self {
            nodes,
            versions: vec![default.unwrap_or(18)],
            // A worker that died comes back in one second, not five.
            settings: vec![("wal_retrieve_retry_interval".into(), "1s".into())],
            mesh_toml: String::new(),
            agent_toml: String::new(),
            agents: true,
            hosts: Vec::new(),
        }
    }

    /// PostgreSQL major versions, given to the nodes in turn.
    pub fn pg(mut self, versions: &[&str]) -> Self {
        self.versions = versions.iter().map(|version| version.parse().expect("a major version")).collect();
        self
    }

    /// Servers that write to disk as in production.
    pub fn fsync(self) -> Self {
        self.setting("fsync", "on")
    }

    /// A server setting for every node.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Lines for `[mesh]` of every agent.toml.
    pub fn mesh_toml(mut self, lines: &str) -> Self {
        self.mesh_toml.push_str(lines);
        self.mesh_toml.push('\n');
        self
    }

    /// Lines for the end of every agent.toml: whole sections, `[copy]` or `[log]`.
    pub fn agent_toml(mut self, lines: &str) -> Self {
        self.agent_toml.push_str(lines);
        self.agent_toml.push('\n');
        self
    }

    /// The agents run on these hosts, one each.
    pub fn on(mut self, hosts: Vec<Host>) -> Self {
        self.hosts = hosts;
        self
    }

    /// No certificates and no agents: for specs about servers and the harness itself.
    pub fn servers_only(mut self) -> Self {
        self.agents = false;
        self
    }

    /// Starts it; the nodes are ready when this returns.
    pub async fn start<const N: usize>(self) -> [Node; N] {
        assert_eq!(N, self.nodes, "as many names as nodes");
        sweep();
        let running = tokio::task::spawn_blocking(move || self.up()).await.expect("starting nodes does not panic");
        let running = Arc::new(running.unwrap_or_else(|error| panic!("the nodes did not start: {error:#}")));
        std::array::from_fn(|index| Node::new(Arc::clone(&running), index))
    }

    fn up(self) -> Result<Running, Box<dyn std::error::Error + Send + Sync>> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a unix socket has 107 bytes.
        let dir = std::env::temp_dir().join(format!("{FOLDERS}{}-{number}", std::process::id()));
        let binaries = match self.agents {
            true => Binaries::beside_us()?,
            false => Binaries { agent: PathBuf::new(), steepctl: PathBuf::new() },
        };
        let mut options = Options::new(&dir, self.nodes, &self.versions, binaries);
        options.settings.extend(self.settings);
        options.mesh_toml = self.mesh_toml;
        options.agent_toml = self.agent_toml;
        options.life = Life::WithUs;
        options.agents = self.agents;
        options.hosts = self.hosts;
        Ok(Running { cluster: cluster::Cluster::up(&options)? })
    }
}

/// A cluster that runs, shared by its nodes; ended with the last of them.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) cluster: cluster::Cluster,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cluster.end();
        let failed = std::thread::panicking();
        let mut violations = Vec::new();
        for node in &self.cluster.nodes {
            if failed {
                eprintln!("--- the agent of {} said last:\n{}", node.node_id, process::tail(&node.agent.log, 25));
                eprintln!("--- PostgreSQL of {} said last:\n{}", node.node_id, process::tail(&node.server.log, 10));
            } else {
                violations.extend(logs::violations(&node.agent.log));
            }
        }
        if failed && std::env::var_os("STEEP_KEEP").is_some() {
            eprintln!("--- kept: {}", self.cluster.dir().display());
            return;
        }
        self.cluster.take_down();
        assert!(violations.is_empty(), "log lines that break the schema of log events:\n{}", violations.join("\n"));
    }
}

/// Ends clusters whose spec was killed before it could.
fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for folder in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
            if let Some(pid) = owner(&folder.path())
                && process::command_line(pid).is_none()
                && std::env::var_os("STEEP_KEEP").is_none()
            {
                // Another spec may be sweeping it as well; then there is nothing left to end.
                let _ = cluster::down(&folder.path());
            }
        }
    });
}

/// The process that a spec's folder is named after.
fn owner(folder: &Path) -> Option<u32> {
    let name = folder.file_name()?.to_str()?;
    name.strip_prefix(FOLDERS)?.split('-').next()?.parse().ok()
}
