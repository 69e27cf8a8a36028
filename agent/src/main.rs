//! `steep-agent`: reads the command line, then hands over to [`steep_agent::agent`].

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use steep_agent::{
    agent::{self, Task},
    config::Config,
    keeper, telemetry,
};
use steep_protocol::{
    failure::{Explain as _, Failure},
    ids::OperationId,
};

/// The agent that runs beside each PostgreSQL node of a Steep mesh.
#[derive(Parser)]
#[command(name = "steep-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT; the first ends in order, the second at once.
    Run(ConfigFile),
    /// Take a physical copy of another node's server over for this node; ends when it is done. The agent must not run.
    AdoptCopy {
        #[command(flatten)]
        file: ConfigFile,
        /// The preparation the copy was made for, as steepctl node prepare has printed it.
        #[arg(long, value_name = "ID")]
        prepare_id: String,
    },
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version.
    Version,
    /// Keep the snapshot of one operation; started by the agent.
    #[command(hide = true)]
    Keep {
        #[command(flatten)]
        file: ConfigFile,
        /// The operation.
        #[arg(long, value_name = "ID")]
        op: OperationId,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration file and the files it names, then say what it means.
    Check(ConfigFile),
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file; deploy/agent.example.toml documents every key.
    #[arg(long, value_name = "FILE", default_value = "/etc/steep/agent.toml", env = "STEEP_AGENT_CONFIG")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(file) => run(&file, Task::Serve),
        Command::AdoptCopy { file, prepare_id } => run(&file, Task::AdoptCopy(prepare_id)),
        Command::Config(ConfigCommand::Check(file)) => check(&file.config),
        Command::Keep { file, op } => {
            Config::load(&file.config).map_err(|error| error.explain()).map(|config| keep(config, op))
        }
        Command::Version => {
            telemetry::say(&format!("steep-agent {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            telemetry::complain(&failure);
            ExitCode::from(failure.code.family() as u8)
        }
    }
}

fn run(file: &ConfigFile, task: Task) -> Result<(), Failure> {
    let config = Config::load(&file.config).map_err(|error| error.explain())?;
    let log = telemetry::init(&config);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("the system grants threads to a fresh process")
        .block_on(agent::run(config, log, task))
}

fn keep(config: Config, op: OperationId) {
    telemetry::init(&config);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system grants a fresh process what it needs")
        .block_on(keeper::run(config, op));
}

fn check(file: &std::path::Path) -> Result<(), Failure> {
    let config = Config::load(file).map_err(|error| error.explain())?;
    let identity = config.identity().map_err(|error| error.explain())?;
    telemetry::say(&format!(
        "{}: good\n  {} of mesh {}\n  listens on {}, PostgreSQL at {}:{} database {}\n  {} seeds",
        file.display(),
        identity.me(),
        identity.me().mesh,
        config.mesh.listen,
        config.postgres.host,
        config.postgres.port,
        config.postgres.dbname,
        config.mesh.seeds.len(),
    ));
    Ok(())
}
