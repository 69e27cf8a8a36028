//! `cargo x`: everything that is automated in this project, one word each.

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{bench, check, cluster, demo, extension, postgres, say, test, tidy};

/// Everything that is automated in this project
#[derive(Debug, Parser)]
#[command(name = "cargo x", bin_name = "cargo x")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See it work: two nodes, a shop database, writers on both sides, one initialized from the other
    Demo(demo::Arguments),
    /// Everything CI runs: check, unit tests, specs on real PostgreSQL
    Test(test::Arguments),
    /// The pre-push gate: format, tidy, clippy, dependencies
    Check,
    /// Rules a compiler cannot see
    Tidy(tidy::Arguments),
    /// Nodes for a while, with certificates and agents
    Cluster {
        #[command(subcommand)]
        command: cluster::commands::Command,
    },
    /// PostgreSQL versions on this machine
    Pg {
        #[command(subcommand)]
        command: PgCommand,
    },
    /// Make the SQL extension in deploy/extension from the agent's migrations
    Extension,
    /// Side by side against what one would use instead; prints ratios
    Bench {
        #[command(subcommand)]
        command: bench::Command,
    },
}

#[derive(Debug, Subcommand)]
enum PgCommand {
    /// Every version found, and how
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch a version (18 or 16) into the cache and print its bin folder
    Fetch {
        #[arg(default_value_t = 18)]
        major: u32,
    },
}

fn main() {
    if let Err(error) = run(Cli::parse().command) {
        say::bad(format!("{error:#}"));
        std::process::exit(1);
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Check => check::run(),
        Command::Tidy(arguments) => tidy::run(&arguments),
        Command::Cluster { command } => cluster::commands::run(command),
        Command::Pg { command: PgCommand::List { json } } => postgres::list(json),
        Command::Pg { command: PgCommand::Fetch { major } } => postgres::fetch(major),
        Command::Extension => extension::run(),
        Command::Bench { command } => bench::run(command),
    }
}
