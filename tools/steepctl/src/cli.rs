//! The command line: nouns, verbs, and the options they share.

use std::{path::PathBuf, time::Duration};

use clap::{ArgMatches, Args, Parser, Subcommand, parser::ValueSource};
use steep_protocol::failure::{Code, Failure};

use crate::{
    client::{Client, Files},
    commands::{
        agent::AgentCommand, config::ConfigCommand, events::EventsArgs, explain::ExplainArgs, mesh::MeshCommand,
        node::NodeCommand, op::OpCommand, pki::PkiCommand, schema::SchemaCommand, seq::SeqCommand, slot::SlotCommand,
        snapshot::SnapshotCommand,
    },
    contexts::{File, Given, Origin, Setting, Settings},
    output::{Color, Format, Output, Talk},
    units,
};

const EXAMPLES: &str = "\
Examples:
  steepctl status                              how the mesh fares
  steepctl node start node_b --from node_a     initialize node_b from node_a
  steepctl op list                             what runs and what ran
  steepctl explain STP-2201                    what an error code means

Exit codes:
  0 success            4 cancelled     7 permission      10 integrity
  1 general error      5 timeout       8 precondition    12 differs (--exit-code)
  2 usage error        6 no agent      9 conflict       130 detached
  3 schemas differ";

/// Ask any Steep agent about any node.
#[derive(Debug, Parser)]
// Clap takes doc comments of an enum's values into its help, and then spends a screen on options alone: those of
// our value enums are plain comments.
#[command(name = "steepctl", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do; without it, `status`.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The nouns, and what needs none.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how the mesh fares: every node on one screen (the default)
    Status,
    /// Look at nodes, initialize them, cancel what runs on them
    #[command(subcommand)]
    Node(NodeCommand),
    /// Look at operations, follow them, cancel them
    #[command(subcommand)]
    Op(OpCommand),
    /// Look at agents as programs, reload and drain them
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Show what agents logged lately, and follow it
    Events(EventsArgs),
    /// Show which agents are asked and with which certificate, and check the contexts file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at the mesh, join it, leave it, forget nodes
    #[command(subcommand)]
    Mesh(MeshCommand),
    /// Compare the schemas of nodes, and bring one up to date with another
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Look at replication slots, find orphans, drop them
    #[command(subcommand)]
    Slot(SlotCommand),
    /// Write snapshots into files, check them, initialize nodes from them
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Compare the sequences of two nodes, and move one's ahead
    #[command(subcommand)]
    Seq(SeqCommand),
    /// Make, issue, renew and revoke certificates
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Say what an error code means and what to do (asks no agent)
    Explain(ExplainArgs),
    /// Print the version of steepctl and of the protocol it speaks
    Version,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Context of steepctl.toml that says which agents to ask, and with which certificate
    #[arg(long, value_name = "NAME", env = "STEEPCTL_CONTEXT", hide_env_values = true, global = true)]
    pub context: Option<String>,
    /// Agent to ask; repeat it to name others to try when one does not answer
    #[arg(long = "peer", value_name = "HOST:PORT", env = "STEEPCTL_PEER", hide_env_values = true, value_delimiter = ',',
          value_parser = peer, global = true)]
    pub peers: Vec<String>,
    /// Your certificate, as `steepctl pki issue operator` wrote it
    #[arg(long, value_name = "FILE", env = "STEEPCTL_CERT", hide_env_values = true, global = true)]
    pub cert: Option<PathBuf>,
    /// Its key [default: the .key file beside the certificate]
    #[arg(long, value_name = "FILE", env = "STEEPCTL_KEY", hide_env_values = true, global = true)]
    pub key: Option<PathBuf>,
    /// The mesh's root certificate [default: ca.pem beside the certificate]
    #[arg(long, value_name = "FILE", env = "STEEPCTL_CA", hide_env_values = true, global = true)]
    pub ca: Option<PathBuf>,
    /// How data is printed
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        env = "STEEPCTL_OUTPUT",
        hide_env_values = true,
        default_value = "table",
        global = true
    )]
    pub output: Format,
    /// Give up after this long (30s, 5m); operations go on without you
    #[arg(long, value_name = "DURATION", env = "STEEPCTL_TIMEOUT", hide_env_values = true, value_parser = units::parse_duration,
          global = true)]
    pub timeout: Option<Duration>,
    /// Never ask questions; fail where an answer would be needed
    #[arg(long, env = "STEEPCTL_NO_INPUT", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new(),
          global = true)]
    pub no_input: bool,
    /// Print data, failures and questions only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Also say which agents were tried and which answered
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// When to use colours; NO_COLOR is respected
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true)]
    pub color: Color,
    /// Which of these stand on the command line, and which in the environment.
    #[arg(skip)]
    pub sources: Sources,
}

/// Where the values of options come from.
#[derive(Debug, Clone, Default)]
pub struct Sources(Vec<(&'static str, ValueSource)>);

/// Options that contexts give too: clap's id, option, environment variable.
const SETTINGS: [(&str, &str, &str); 5] = [
    ("context", "--context", "STEEPCTL_CONTEXT"),
    ("peers", "--peer", "STEEPCTL_PEER"),
    ("cert", "--cert", "STEEPCTL_CERT"),
    ("key", "--key", "STEEPCTL_KEY"),
    ("ca", "--ca", "STEEPCTL_CA"),
];

impl Sources {
    /// As clap has found them.
    pub fn of(matches: &ArgMatches) -> Self {
        // An option for every command may stand behind a command's name; clap tells it to all of them.
        Self(SETTINGS.iter().filter_map(|(id, ..)| Some((*id, matches.value_source(id)?))).collect())
    }

    fn origin(&self, id: &str) -> Origin {
        let (_, flag, variable) = SETTINGS.iter().find(|(known, ..)| *known == id).expect("one of the settings");
        match self.0.iter().find(|(known, _)| *known == id) {
            Some((_, ValueSource::EnvVariable)) => Origin::Environment(variable),
            Some((_, ValueSource::CommandLine)) => Origin::Flag(flag),
            _ => Origin::Nowhere,
        }
    }
}

impl Global {
    /// How much to say on stderr.
    pub fn talk(&self) -> Talk {
        match (self.quiet, self.verbose) {
            (true, _) => Talk::Quiet,
            (_, true) => Talk::Verbose,
            _ => Talk::Normal,
        }
    }

    /// Which agents are asked and with which certificate; with `file` where the contexts are known already.
    pub fn settings(&self, file: Option<&File>) -> Result<Settings, Failure> {
        let from = |id: &str| self.sources.origin(id);
        let given = Given {
            context: Setting { value: self.context.clone(), origin: from("context") },
            peers: Setting { value: self.peers.clone(), origin: from("peers") },
            cert: Setting { value: self.cert.clone(), origin: from("cert") },
            key: Setting { value: self.key.clone(), origin: from("key") },
            ca: Setting { value: self.ca.clone(), origin: from("ca") },
        };
        match file {
            Some(file) => given.settle(file),
            None if given.needs_file() => given.settle(&File::load(None)?),
            None => given.settle(&File::default()),
        }
    }

    /// A client for the agents and with the certificate these options name.
    pub fn client<'a>(&self, out: &'a Output) -> Result<Client<'a>, Failure> {
        let settings = self.settings(None)?;
        if settings.peers.value.is_empty() {
            return Err(Failure::new(Code::NoPeerConfigured, "no agent to ask: no --peer is given, and no context"));
        }
        let files = (settings.cert.value, settings.key.value, settings.ca.value);
        let (Some(cert), Some(key), Some(ca)) = files else {
            let text = "no certificate to show to the agents: no --cert is given, and no context with one";
            let hint = "give --cert FILE or set STEEPCTL_CERT; steepctl pki issue operator NAME --role ROLE makes one";
            return Err(Failure::new(Code::CertificateUnusable, text).hint(hint));
        };
        Client::new(&settings.peers.value, Files { cert, key, ca }, self.timeout, out)
    }
}

/// `host:port`, `[::1]:port`.
pub(crate) fn peer(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (host, port) = text.rsplit_once(':').ok_or("it has no port: HOST:PORT is expected")?;
    if port.parse::<u16>().is_ok_and(|port| port != 0) {
        match host {
            "" => Err("it has no host: HOST:PORT is expected".into()),
            host if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) => {
                Err("an IPv6 address stands in brackets: [::1]:7432".into())
            }
            _ => Ok(text.to_owned()),
        }
    } else {
        Err(format!("{port:?} is no port"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_peer_has_a_host_and_a_port() {
        for good in ["node-a:7432", "10.0.0.1:7432", "[::1]:7432", " a:1"] {
            assert!(peer(good).is_ok(), "{good}");
        }
        for bad in ["", "node_a", ":7432", "a:0", "a:70000", "a:b", "::1:7432", "10.0.0.1:"] {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_command_and_option_says_what_it_does() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} --{} has no help", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
