//! `cargo x test`: everything CI runs. Check, then unit tests and specs on real PostgreSQL.

use std::process::Stdio;

use anyhow::{Result, bail};

use crate::{
    check,
    postgres::Postgres,
    process, say, tidy,
    workspace::{self, Binaries, Profile},
};

/// Tells the specs' harness which major version to use where a spec does not say.
pub const DEFAULT_VERSION: &str = "STEEP_TEST_PG";
/// Tells the specs that die at crash points to die at every one they name; otherwise they take the few they chose.
pub const EVERY_CRASH_POINT: &str = "STEEP_TEST_EVERY_CRASH_POINT";
/// The word that asks for every crash point.
const CRASH: &str = "crash";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// PostgreSQL major version for specs that do not name one
    #[arg(long, default_value_t = 18)]
    pg: u32,
    /// Only tests whose name holds this word; the check is then left out. "crash" dies at every crash point, not at a chosen few
    word: Option<String>,
}

/// Runs the tests; the runner's own closing lines come last.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.word.is_none() {
        check::run()?;
    }
    say::heading("test");
    for major in [arguments.pg, 18, 16] {
        Postgres::of(major)?;
    }
    let binaries = Binaries::built(Profile::Dev)?;
    if arguments.word.is_none() {
        commands_are_documented(&binaries)?;
    }
    let with_nextest = nextest_is_here();
    let mut tests = workspace::cargo();
    tests.env(DEFAULT_VERSION, arguments.pg.to_string());
    if arguments.word.as_deref() == Some(CRASH) {
        tests.env(EVERY_CRASH_POINT, "1");
    }
    match with_nextest {
        true => tests.args(["nextest", "run", "--workspace"]),
        false => {
            say::step("cargo-nextest is not installed, so this takes longer (cargo install cargo-nextest)");
            // As many specs at once as the runner's own settings allow: nothing else keeps the number of clusters down.
            tests.args(["test", "--workspace", "--all-targets", "--no-fail-fast"])
        }
    };
    tests.args(&arguments.word);
    if !with_nextest {
        tests.args(["--", "--test-threads=4"]);
    }
    if !process::on_our_terminal(tests.stdin(Stdio::null()))? {
        bail!("tests failed, see above");
    }
    Ok(())
}

fn nextest_is_here() -> bool {
    let mut nextest = workspace::cargo();
    nextest.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    nextest.status().is_ok_and(|status| status.success())
}

fn commands_are_documented(binaries: &Binaries) -> Result<()> {
    let missing = tidy::commands::undocumented(&binaries.steepctl)?;
    if !missing.is_empty() {
        bail!("deploy/README.md, the operator's guide, does not name: steepctl {}", missing.join(", steepctl "));
    }
    Ok(())
}
