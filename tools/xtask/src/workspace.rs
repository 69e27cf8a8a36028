//! Where the project lies, and its binaries, built when they are needed.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::say;

/// The folder that holds the workspace's `Cargo.toml`.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("xtask lies in tools/xtask").to_owned()
}

/// cargo, the one that runs us where one does.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// How the binaries are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    Dev,
    Release,
}

impl Profile {
    pub fn from_flag(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }
}

/// The two programs of Steep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binaries {
    pub agent: PathBuf,
    pub steepctl: PathBuf,
}

impl Binaries {
    /// Builds both; cargo's own output is seen on standard error.
    pub fn built(profile: Profile) -> Result<Self> {
        let mut command = cargo();
        command.args(["build", "--bins", "--message-format=json-render-diagnostics"]);
        match profile {
            // The whole workspace, as the tests build it, so that dependencies are compiled once.
            Profile::Dev => command.arg("--workspace"),
            Profile::Release => command.args(["--release", "-p", "steep-agent", "-p", "steepctl"]),
        };
        say::step(match profile {
            Profile::Dev => "building steep-agent and steepctl (development build)",
            Profile::Release => "building steep-agent and steepctl (release build; the first one takes minutes)",
        });
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
        if !output.status.success() {
            bail!("cargo build failed, see above");
        }
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let executable = |name: &str| {
            messages
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|message| message["target"]["name"] == name)
                .find_map(|message| message["executable"].as_str().map(PathBuf::from))
                .with_context(|| format!("cargo build made no {name}"))
        };
        Ok(Self { agent: executable("steep-agent")?, steepctl: executable("steepctl")? })
    }

    /// The binaries an earlier build left, as they are.
    pub fn left_by_build(profile: Profile) -> Result<Self> {
        let us = std::env::current_exe().context("cannot tell which program this is")?;
        let target = us.ancestors().nth(2).context("this program lies in no target folder")?;
        let folder = target.join(match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        });
        let both = Self { agent: program(&folder, "steep-agent"), steepctl: program(&folder, "steepctl") };
        if !both.agent.is_file() || !both.steepctl.is_file() {
            bail!("no steep-agent and steepctl in {}", folder.display());
        }
        Ok(both)
    }

    /// The binaries built beside the program that runs now (a test, or xtask itself).
    pub fn beside_us() -> Result<Self> {
        let us = std::env::current_exe().context("cannot tell which program this is")?;
        for folder in us.ancestors().skip(1).take(2) {
            let both = Self { agent: program(folder, "steep-agent"), steepctl: program(folder, "steepctl") };
            if both.agent.is_file() && both.steepctl.is_file() {
                return Ok(both);
            }
        }
        bail!("no steep-agent and steepctl beside {}; `cargo x test` builds them first", us.display())
    }
}

/// The path of program `name` in `folder`.
pub fn program(folder: &Path, name: &str) -> PathBuf {
    folder.join(name).with_extension(std::env::consts::EXE_EXTENSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("tools/xtask/Cargo.toml").is_file());
    }
}
