//! `steepctl pki issue node` and `steepctl pki issue operator`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, builder::PossibleValuesParser, builder::TypedValueParser as _};
use jiff::Timestamp;
use serde_json::json;
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::NodeId,
    operation::Role,
};

use super::{init::USUAL_DIR, paths, word};
use crate::{
    output::{Output, exit_code::Exit, table::Facts},
    pki::leaf::{self, For, Issued, Times},
    units,
};

const NODE_EXAMPLES: &str = "\
DNS names and addresses are for people and foreign gRPC clients; agents go by
the node id alone.

Examples:
  steepctl pki issue node node_a
  steepctl pki issue node node_a --san db1.example.com --san 10.0.1.11";

const OPERATOR_EXAMPLES: &str = "\
Roles: viewer looks; operator also starts and cancels; admin may do everything.

Examples:
  steepctl pki issue operator alice --role admin
  steepctl pki issue operator ci --role viewer --days 7";

/// For whom.
#[derive(Debug, Subcommand)]
pub enum IssueCommand {
    /// Issue the certificate of a node's agent
    Node(NodeArgs),
    /// Issue the certificate of somebody who runs steepctl
    Operator(OperatorArgs),
}

/// Arguments of `pki issue node`.
#[derive(Debug, Args)]
#[command(after_help = NODE_EXAMPLES)]
pub struct NodeArgs {
    /// The node's id, as node.id in its agent.toml
    pub node: NodeId,
    /// DNS name or IP address to add; may be repeated
    #[arg(long = "san", value_name = "DNS|IP", value_delimiter = ',')]
    pub names: Vec<String>,
    /// Where and for how long.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `pki issue operator`.
#[derive(Debug, Args)]
#[command(after_help = OPERATOR_EXAMPLES)]
pub struct OperatorArgs {
    /// The operator's name, as it will stand in logs
    pub name: NodeId,
    /// What they may do
    #[arg(long, value_parser = role_parser())]
    pub role: Role,
    /// Where and for how long.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of both.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Where the authorities are, and where the new files go
    #[arg(long, value_name = "DIR", default_value = USUAL_DIR)]
    pub dir: PathBuf,
    /// Good for so many days [default: nodes 365, viewers 90, others 30]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub days: Option<u32>,
    /// Good from this moment on (RFC 3339)
    #[arg(long, hide = true, value_name = "TIME")]
    pub not_before: Option<Timestamp>,
    /// Good until this moment (RFC 3339)
    #[arg(long, hide = true, value_name = "TIME", conflicts_with = "days")]
    pub not_after: Option<Timestamp>,
}

fn role_parser() -> impl clap::builder::TypedValueParser<Value = Role> {
    PossibleValuesParser::new(Role::ALL.iter().map(|role| role.as_str()))
        .map(|word| word.parse().expect("only the words of roles pass"))
}

/// Issues a certificate.
pub fn run(command: &IssueCommand, out: &Output) -> Result<Exit, Failure> {
    let (whom, common) = match command {
        IssueCommand::Node(args) => (For::Node { node: args.node.clone(), names: args.names.clone() }, &args.common),
        IssueCommand::Operator(args) => (For::Operator { name: args.name.clone(), role: args.role }, &args.common),
    };
    let times = Times { days: common.days, not_before: common.not_before, not_after: common.not_after };
    let now = Timestamp::now();
    let issued = leaf::issue(&common.dir, &whom, times, now).map_err(|error| error.explain())?;
    if issued.is_shortened {
        out.talk("it ends earlier than asked, together with the authority that issued it");
    }
    if out.is_json() {
        out.json(&json!({
            "identity": issued.peer.uri(),
            "mesh": issued.peer.mesh,
            "files": paths(&[issued.cert.clone(), issued.key.clone()]),
            "not_before": issued.lifetime.from,
            "not_after": issued.lifetime.until,
        }))?;
        return Ok(Exit::Success);
    }
    let mut facts = Facts::default();
    facts.add("wrote", format!("{} and {}", issued.cert.display(), issued.key.display()));
    facts.add("identity", issued.peer.uri());
    let days = units::since(issued.lifetime.from, issued.lifetime.until).as_secs() / 86_400;
    let until = units::date_time(issued.lifetime.until);
    facts.add(
        "valid",
        format!("{} to {until} ({})", units::date_time(issued.lifetime.from), units::counted(days, "day")),
    );
    out.data(&facts.render())?;
    out.data(&next(&whom, &issued, &common.dir))?;
    Ok(Exit::Success)
}

fn next(whom: &For, issued: &Issued, dir: &Path) -> String {
    match whom {
        For::Node { node, .. } => format!(
            "Next: copy {}, {} and {} to the machine of {node}, name them under [pki] in its agent.toml, then\n  \
             steep-agent config check --config agent.toml",
            word(&issued.cert),
            word(&issued.key),
            word(&dir.join("ca.pem"))
        ),
        For::Operator { .. } => {
            let cert = std::path::absolute(&issued.cert).unwrap_or_else(|_| issued.cert.clone());
            // The key and ca.pem are found beside the certificate.
            format!("Next:\n  export STEEPCTL_CERT={} STEEPCTL_PEER=HOST:PORT\n  steepctl status", word(&cert))
        }
    }
}
