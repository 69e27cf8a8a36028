//! Clusters for a while: N PostgreSQL servers with agents, certificates and operators, in one folder.
//!
//! The demo, the benchmarks, the specs' harness and scripts (`cargo x cluster`) all start their nodes here. What
//! was made is written to `cluster.json` before anything runs, so [`down`] can end a cluster that came up half.

pub mod account;
pub mod agent;
pub mod commands;
mod place;
mod ports;
pub mod server;
mod template;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use self::{
    agent::{Agent, Life},
    place::Place,
    server::Server,
};
use crate::{
    interrupt::{self, Cleanup},
    postgres::Postgres,
    process,
    workspace::Binaries,
};

/// The mesh all of a cluster's certificates belong to.
pub const MESH: &str = "demo";

/// The operators every cluster has: name and role.
pub const OPERATORS: [(&str, &str); 3] = [("alice", "admin"), ("otto", "operator"), ("vera", "viewer")];

const READY_WITHIN: Duration = Duration::from_secs(60);

/// What kind of cluster is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    /// The major version of each node's server; as many nodes as versions.
    pub versions: Vec<u32>,
    pub binaries: Binaries,
    /// Settings for every server, over the usual ones.
    pub settings: Vec<(String, String)>,
    /// Lines for `[mesh]` of every agent.toml.
    pub mesh_toml: String,
    /// Lines at the end of every agent.toml: whole sections that [`Agent::configure`] does not write.
    pub agent_toml: String,
    pub life: Life,
    /// Where the agents run, in the order of the nodes; those beyond run here.
    pub hosts: Vec<Host>,
    /// Certificates and agents too, not only servers.
    pub agents: bool,
}

impl Options {
    /// `nodes` nodes whose versions are taken from `versions` in turn; throwaway settings.
    pub fn new(dir: &Path, nodes: usize, versions: &[u32], binaries: Binaries) -> Self {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let settings = [("fsync", "off"), ("full_page_writes", "on"), ("synchronous_commit", "on")];
        Self {
            dir,
            versions: versions.iter().copied().cycle().take(nodes).collect(),
            binaries,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            mesh_toml: String::new(),
            agent_toml: String::new(),
            life: Life::OfItsOwn,
            hosts: Vec::new(),
            agents: true,
        }
    }

    /// One more server setting, over any earlier one of its name.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Another host, or another time, for an agent.
#[derive(Debug, Clone)]
pub struct Host {
    /// Words before a program's own on a command line.
    pub launcher: Vec<String>,
    /// Where the agent listens.
    pub ip: IpAddr,
}

/// One node: a server and its agent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Node {
    pub node_id: String,
    pub server: Server,
    pub agent: Agent,
}

/// A cluster as it lies on disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Of `cluster.json`: 1.
    format: u32,
    place: Place,
    binaries: Binaries,
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Brings a cluster up; when that fails, what had been started is taken down again.
    pub fn up(options: &Options) -> Result<Self> {
        let cluster = Self::planned(options)?;
        if let Err(error) = cluster.bring_up(options) {
            cluster.take_down();
            return Err(error);
        }
        Ok(cluster)
    }

    /// [`Cluster::up`] that is taken down again when the guard drops, and on an interrupt at any moment.
    pub fn guarded(options: &Options) -> Result<(Self, Cleanup)> {
        place::refuse_taken(&options.dir)?;
        let dir = options.dir.clone();
        let guard = interrupt::cleanup(move || {
            // There is nothing to end where nothing came up.
            let _ = down(&dir);
        });
        Ok((Self::up(options)?, guard))
    }

    /// The cluster whose files lie in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let record = place::record(dir);
        let text = match fs::read_to_string(&record) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("no cluster in {}: there is no cluster.json", dir.display())
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", record.display())),
        };
        let cluster: Self = serde_json::from_str(&text).with_context(|| format!("{} is damaged", record.display()))?;
        if cluster.format != 1 {
            bail!("{} is of format {}, this xtask knows 1", record.display(), cluster.format);
        }
        Ok(cluster)
    }

    /// Decides versions, places and ports, and writes them down. Starts nothing.
    fn planned(options: &Options) -> Result<Self> {
        if options.versions.is_empty() || options.versions.len() > 26 {
            bail!("a cluster has 1 to 26 nodes, not {}", options.versions.len());
        }
        let servers = options.versions.iter().map(|major| Postgres::of(*major)).collect::<Result<Vec<_>>>()?;
        let ids: Vec<String> = ('a'..='z').take(servers.len()).map(|letter| format!("node_{letter}")).collect();
        let ports = ports::free(servers.len() * 2)?;
        let place = Place::made(&options.dir, &ids)?;
        let mut nodes = Vec::new();
        for (index, (node_id, postgres)) in ids.iter().zip(&servers).enumerate() {
            let (home, socket) = place.of_server(node_id);
            let (agent, home_of_agent) = (&options.binaries.agent, place.of_node(node_id));
            let mut agent = Agent::new(node_id, agent, &home_of_agent, ports[index * 2], ports[index * 2 + 1]);
            if let Some(host) = options.hosts.get(index) {
                agent.launcher.clone_from(&host.launcher);
                agent.address = SocketAddr::new(host.ip, ports[index * 2]).to_string();
            }
            agent.socket_dir = place.of_links(node_id);
            nodes.push(Node { node_id: node_id.clone(), server: Server::new(postgres, &home, &socket), agent });
        }
        let cluster = Self { format: 1, place, binaries: options.binaries.clone(), nodes };
        if let Err(error) = cluster.write_down() {
            cluster.place.remove();
            return Err(error);
        }
        Ok(cluster)
    }

    fn write_down(&self) -> Result<()> {
        let record = place::record(self.dir());
        let text = serde_json::to_string_pretty(self)?;
        fs::write(&record, text).with_context(|| format!("cannot write {}", record.display()))
    }

    fn bring_up(&self, options: &Options) -> Result<()> {
        std::thread::scope(|scope| {
            let servers: Vec<_> = self
                .nodes
                .iter()
                .map(|node| {
                    scope.spawn(|| {
                        node.server.create(&node.node_id, &options.settings)?;
                        node.server.start().with_context(|| format!("cannot start {}", node.node_id))
                    })
                })
                .collect();
            if options.agents {
                self.issue_certificates()?;
            }
            servers.into_iter().try_for_each(|server| server.join().expect("starting a server does not panic"))
        })?;
        if !options.agents {
            return Ok(());
        }
        for node in &self.nodes {
            // The first two are everybody's seeds: one may be down.
            let others = self.nodes.iter().take(2).filter(|other| other.node_id != node.node_id);
            let seeds: Vec<_> = others.map(|other| other.agent.address.as_str()).collect();
            node.agent.configure(&self.pki(), &node.server, &seeds, [&options.mesh_toml, &options.agent_toml])?;
        }
        self.start_agents(options.life)
    }

    /// Starts every agent and waits until all are ready and hear of each other.
    pub fn start_agents(&self, life: Life) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.agent.start(life))?;
        self.nodes.iter().try_for_each(|node| node.agent.becomes_ready(READY_WITHIN))?;
        self.nodes.iter().try_for_each(|node| node.agent.hears_of(self.nodes.len() - 1, READY_WITHIN))
    }

    fn issue_certificates(&self) -> Result<()> {
        let pki = |words: &[&str]| {
            let mut command = self.steepctl_program();
            command.arg("pki").args(words).arg("--dir").arg(self.pki());
            process::output(&mut command)
        };
        pki(&["init", "--mesh", MESH])?;
        for node in &self.nodes {
            pki(&["issue", "node", &node.node_id, "--san", "127.0.0.1", "--san", "localhost"])?;
        }
        for (name, role) in OPERATORS {
            pki(&["issue", "operator", name, "--role", role])?;
        }
        Ok(())
    }

    fn steepctl_program(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.binaries.steepctl);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("STEEPCTL_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// steepctl, asking the agent of `node` as operator `name`.
    pub fn steepctl(&self, node: &Node, name: &str) -> std::process::Command {
        let mut command = self.steepctl_program();
        command.envs(self.environment(node, name));
        command
    }

    /// What a shell needs to run steepctl as operator `name` against the agent of `node`.
    pub fn environment(&self, node: &Node, name: &str) -> [(&'static str, String); 4] {
        let file = |name: String| self.pki().join(name).display().to_string();
        [
            ("STEEPCTL_PEER", node.agent.address.clone()),
            ("STEEPCTL_CERT", file(format!("operator-{name}.pem"))),
            ("STEEPCTL_KEY", file(format!("operator-{name}.key"))),
            ("STEEPCTL_CA", file("ca.pem".into())),
        ]
    }

    /// The contract for scripts: everything they need to know, in one object.
    pub fn description(&self) -> serde_json::Value {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|Node { node_id, server, agent }| {
                serde_json::json!({
                    "node_id": node_id,
                    "pg": {
                        "host": server.socket,
                        "port": server.port,
                        "dbname": server::DATABASE,
                        "user": server::USER,
                        "version": server.version,
                        "bin_dir": server.bin_dir,
                    },
                    "agent": {
                        "address": agent.address,
                        "http": agent.http,
                        "pid": agent.pid(),
                        "log": agent.log,
                    },
                })
            })
            .collect();
        let environment = self.environment(&self.nodes[0], OPERATORS[0].0);
        let environment: serde_json::Map<_, _> =
            environment.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        serde_json::json!({
            "dir": self.dir(),
            "nodes": nodes,
            "steepctl": { "bin": self.binaries.steepctl, "env": environment },
        })
    }

    pub fn node(&self, node_id: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.node_id == node_id).with_context(|| {
            let known: Vec<_> = self.nodes.iter().map(|node| node.node_id.as_str()).collect();
            format!("no node {node_id} in {}: there are {}", self.dir().display(), known.join(", "))
        })
    }

    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    pub fn pki(&self) -> PathBuf {
        self.dir().join("pki")
    }

    /// Uses other binaries from now on, for agents that are started later.
    pub fn replace_binaries(&mut self, binaries: Binaries) -> Result<()> {
        for node in &mut self.nodes {
            node.agent.program = binaries.agent.clone();
        }
        self.binaries = binaries;
        self.write_down()
    }

    /// Ends every agent and server, whatever state they are in; their files stay.
    pub fn end(&self) {
        std::thread::scope(|scope| {
            for node in &self.nodes {
                scope.spawn(|| {
                    node.agent.end(Duration::from_secs(5));
                    node.server.end();
                });
            }
        });
    }

    /// Ends everything and removes what [`Cluster::up`] made. Goes on whatever it meets.
    pub fn take_down(&self) {
        self.end();
        self.place.remove();
    }
}

/// Ends the cluster in `dir` and removes its files.
pub fn down(dir: &Path) -> Result<()> {
    Cluster::open(dir)?.take_down();
    Ok(())
}

#[cfg(test)]
mod tests;
