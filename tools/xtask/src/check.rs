//! `cargo x check`: the pre-push gate in one word. Format, tidy, clippy, dependencies.

use std::{
    process::{Command, Output, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{say, tidy, workspace};

/// Its name, and what it does.
type Check = (&'static str, fn() -> Result<Verdict>);

/// Runs every check, also after one failed, and says which did.
pub fn run() -> Result<()> {
    say::heading("check");
    let checks: [Check; 4] = [("format", format), ("tidy", tidy), ("clippy", clippy), ("dependencies", dependencies)];
    let mut failed = Vec::new();
    for (name, check) in checks {
        let started = Instant::now();
        match check()? {
            Verdict::Good => say::good(format!("{name} ({})", say::seconds(started.elapsed()))),
            Verdict::NotHere(why) => say::step(format!("{name}: not checked, {why}")),
            Verdict::Bad { printed, mend } => {
                say::bad(name);
                eprintln!("{}", printed.trim_end());
                say::detail(format!("mend: {mend}"));
                failed.push(name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("check failed: {}", failed.join(", ")) }
}

enum Verdict {
    Good,
    /// The tool for it is not installed.
    NotHere(&'static str),
    Bad {
        printed: String,
        mend: &'static str,
    },
}

fn format() -> Result<Verdict> {
    judged(workspace::cargo().args(["fmt", "--all", "--", "--check", "-l"]), "cargo fmt")
}

fn tidy() -> Result<Verdict> {
    let findings: Vec<String> = tidy::findings()?.iter().map(ToString::to_string).collect();
    if findings.is_empty() {
        return Ok(Verdict::Good);
    }
    Ok(Verdict::Bad { printed: findings.join("\n"), mend: "see each" })
}

fn clippy() -> Result<Verdict> {
    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--quiet", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"]);
    judged(&mut clippy, "see each; an exception is #[expect(lint, reason = \"…\")]")
}

fn dependencies() -> Result<Verdict> {
    let there = workspace::cargo().args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        return Ok(Verdict::NotHere("cargo-deny is not installed (cargo install cargo-deny)"));
    }
    // Advisories need a download that a working day without network should not fail on; CI's schedule asks for them.
    let mut deny = workspace::cargo();
    deny.args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]);
    judged(&mut deny, "see deny.toml, which says why")
}

fn judged(command: &mut Command, mend: &'static str) -> Result<Verdict> {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().context("cannot run cargo")?;
    if status.success() {
        return Ok(Verdict::Good);
    }
    let printed = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok(Verdict::Bad { printed, mend })
}
