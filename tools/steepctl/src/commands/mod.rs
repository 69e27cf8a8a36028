//! What steepctl can do: one file a command, with its help in its arguments' docs.

pub mod agent;
pub mod config;
pub mod events;
pub mod explain;
pub mod mesh;
pub mod node;
pub mod op;
pub mod pki;
pub mod schema;
pub mod selection;
pub mod seq;
pub mod slot;
pub mod snapshot;
pub mod status;
pub mod version;

use steep_protocol::failure::{Code, Failure};
use tokio::runtime::Builder;

use crate::{
    cli::{Cli, Command},
    output::{Output, exit_code::Exit},
};

/// Does what the command line says.
pub fn run(cli: Cli, out: &Output) -> Result<Exit, Failure> {
    let global = &cli.global;
    match cli.command.unwrap_or(Command::Status) {
        Command::Status => wait_for(status::run(global, out)),
        Command::Node(command) => wait_for(node::run(command, global, out)),
        Command::Op(command) => wait_for(op::run(command, global, out)),
        Command::Agent(command) => wait_for(agent::run(command, global, out)),
        Command::Events(args) => wait_for(events::run(&args, global, out)),
        Command::Config(command) => config::run(command, global, out),
        Command::Mesh(command) => wait_for(mesh::run(command, global, out)),
        Command::Schema(command) => wait_for(schema::run(command, global, out)),
        Command::Slot(command) => wait_for(slot::run(command, global, out)),
        Command::Snapshot(command) => wait_for(snapshot::run(command, global, out)),
        Command::Seq(command) => wait_for(seq::run(command, global, out)),
        Command::Pki(command) => wait_for(pki::run(command, global, out)),
        Command::Explain(args) => explain::run(&args, out),
        Command::Version => version::run(out),
    }
}

/// One thread is enough to ask and to watch, and starts fastest.
fn wait_for(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Internal, "cannot start the runtime").caused_by(&error))?;
    let result = runtime.block_on(command);
    // A name server that does not answer must not hold us here.
    runtime.shutdown_background();
    result
}
