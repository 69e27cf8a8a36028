//! `steepctl mesh join`

use clap::Args;
use steep_protocol::failure::Failure;

use crate::{
    cli::{Global, peer},
    output::{Output, exit_code::Exit, json, safe},
    units,
};

const EXAMPLES: &str = "\
The agent you ask (--peer) dials the seed and becomes a member; from there on
the agents find each other. To have it join at every start, add the seed to
mesh.seeds in its agent.toml.

Examples:
  steepctl mesh join db1.example.net:7432 --peer db3.example.net:7432";

/// Arguments of `mesh join`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct JoinArgs {
    /// Any agent of the mesh
    #[arg(value_name = "HOST:PORT", value_parser = peer)]
    pub seed: String,
}

/// Has the agent join.
pub async fn run(args: &JoinArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let reply = global.client(out)?.join(&args.seed).await?;
    if out.is_json() {
        out.json(&json::message("JoinReply", &reply))?;
    } else {
        let members = units::counted(u64::from(reply.members), "member");
        let (joined, seed) = (safe(&reply.served_by), safe(&reply.node_id));
        out.data(&format!("{joined} has joined through {seed}; it knows {members}"))?;
    }
    Ok(Exit::Success)
}
