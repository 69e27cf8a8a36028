//! `cargo x cluster …`: clusters for scripts and for people who want to look around.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{Cluster, Options, agent::Life, down, place, server::Stop};
use crate::{
    say,
    workspace::{Binaries, Profile},
};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start nodes with certificates and agents, in the background
    Up(Up),
    /// End a cluster and remove its files
    Down {
        #[command(flatten)]
        at: At,
    },
    /// Kill an agent, or start it again
    Agent {
        #[command(subcommand)]
        what: AgentCommand,
    },
    /// Stop or start a node's PostgreSQL
    Pg {
        #[command(subcommand)]
        what: PgCommand,
    },
}

#[derive(Debug, Args)]
pub struct At {
    /// The cluster's folder
    #[arg(long)]
    dir: PathBuf,
    /// Use (and build) release binaries
    #[arg(long)]
    release: bool,
}

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    at: At,
    /// How many nodes: node_a, node_b, …
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// PostgreSQL major versions, given to the nodes in turn
    #[arg(long, value_delimiter = ',', default_value = "18")]
    pg: Vec<u32>,
    /// Print one JSON object that says where everything is
    #[arg(long)]
    json: bool,
    /// Take the binaries as an earlier build left them
    #[arg(long)]
    no_build: bool,
    /// Keep fsync on
    #[arg(long)]
    fsync: bool,
}

#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// SIGKILL, as a crash would
    Kill {
        node: String,
        #[command(flatten)]
        at: At,
    },
    /// Stop it if it runs, then start it again
    Restart {
        node: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Subcommand)]
pub enum PgCommand {
    Stop {
        node: String,
        #[command(flatten)]
        at: At,
        /// fast lets it finish; immediate is a crash
        #[arg(long, value_enum, default_value = "fast")]
        mode: Stop,
    },
    Start {
        node: String,
        #[command(flatten)]
        at: At,
    },
}

/// Runs one `cargo x cluster` command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(up) => self::up(&up),
        Command::Down { at } => {
            down(&at.dir)?;
            say::good(format!("the cluster in {} is gone", at.dir.display()));
            Ok(())
        }
        Command::Agent { what: AgentCommand::Kill { node, at } } => {
            Cluster::open(&at.dir)?.node(&node)?.agent.kill()?;
            say::good(format!("the agent of {node} is killed"));
            Ok(())
        }
        Command::Agent { what: AgentCommand::Restart { node, at } } => restart_agent(&node, &at),
        Command::Pg { what: PgCommand::Stop { node, at, mode } } => {
            Cluster::open(&at.dir)?.node(&node)?.server.stop(mode)?;
            say::good(format!("PostgreSQL of {node} is stopped"));
            Ok(())
        }
        Command::Pg { what: PgCommand::Start { node, at } } => {
            Cluster::open(&at.dir)?.node(&node)?.server.start()?;
            say::good(format!("PostgreSQL of {node} is started"));
            Ok(())
        }
    }
}

fn up(up: &Up) -> Result<()> {
    place::refuse_taken(&up.at.dir)?;
    let profile = Profile::from_flag(up.at.release);
    let binaries = if up.no_build { Binaries::left_by_build(profile)? } else { Binaries::built(profile)? };
    let options =
        Options::new(&up.at.dir, up.nodes, &up.pg, binaries).set("fsync", if up.fsync { "on" } else { "off" });
    say::step(format!("starting {} nodes in {}", up.nodes, options.dir.display()));
    let (cluster, guard) = Cluster::guarded(&options)?;
    guard.keep();
    if up.json {
        println!("{}", cluster.description());
    } else {
        explain(&cluster);
    }
    Ok(())
}

fn restart_agent(node_id: &str, at: &At) -> Result<()> {
    let mut cluster = Cluster::open(&at.dir)?;
    if at.release {
        cluster.replace_binaries(Binaries::built(Profile::Release)?)?;
    }
    let agent = &cluster.node(node_id)?.agent;
    if agent.pid().is_some() {
        agent.stop()?;
    }
    agent.start(Life::OfItsOwn)?;
    agent.becomes_ready(super::READY_WITHIN)?;
    say::good(format!("the agent of {node_id} runs (pid {})", agent.pid().unwrap_or_default()));
    Ok(())
}

/// The same for people: commands to copy.
pub fn explain(cluster: &Cluster) {
    for node in &cluster.nodes {
        let server = &node.server;
        println!("{}  PostgreSQL {}  agent {}", node.node_id, server.version, node.agent.address);
        println!(
            "  {} -h {} -p {} -U postgres",
            server.program("psql").display(),
            server.socket.display(),
            server.port
        );
        println!("  tail -f {}", node.agent.log.display());
    }
    println!("\nexport {}", exports(cluster));
    println!("{} status", cluster.binaries.steepctl.display());
    println!("{} node start node_b --from node_a", cluster.binaries.steepctl.display());
    println!("\ncargo x cluster down --dir {}", cluster.dir().display());
}

fn exports(cluster: &Cluster) -> String {
    let environment = cluster.environment(&cluster.nodes[0], super::OPERATORS[0].0);
    environment.map(|(name, value)| format!("{name}={value}")).join(" \\\n  ")
}
