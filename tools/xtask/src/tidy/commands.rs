//! Every command of steepctl stands in the operator's guide.
//!
//! The commands are asked of the program itself (`--help`, and so on down), so this needs a build; `cargo x test`
//! does it after building.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{process, workspace};

/// The commands of `steepctl` that the guide does not name.
pub fn undocumented(steepctl: &Path) -> Result<Vec<String>> {
    let guide = workspace::root().join("deploy/README.md");
    let guide = fs::read_to_string(&guide).with_context(|| format!("cannot read {}", guide.display()))?;
    let commands = all(steepctl, &[])?;
    Ok(commands.into_iter().filter(|command| !guide.contains(&format!("steepctl {command}"))).collect())
}

/// Every command without commands of its own, as one types it behind `steepctl`.
fn all(steepctl: &Path, words: &[String]) -> Result<Vec<String>> {
    let help = process::output(Command::new(steepctl).args(words).arg("--help").stdin(Stdio::null()))?;
    let below = listed(&help);
    if below.is_empty() {
        return Ok(if words.is_empty() { Vec::new() } else { vec![words.join(" ")] });
    }
    let mut commands = Vec::new();
    for word in below {
        let words: Vec<String> = words.iter().cloned().chain([word]).collect();
        commands.extend(all(steepctl, &words)?);
    }
    Ok(commands)
}

/// The words under "Commands:" in a help text.
fn listed(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| line.trim() != "Commands:").skip(1);
    lines
        .take_while(|line| !line.trim().is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help")
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_from_help() {
        let help = "Asks\n\nUsage: x\n\nCommands:\n  node    Nodes\n          and more\n  op      Work\n  help    Print\n\nOptions:\n  -v  x\n";
        assert_eq!(listed(help), ["node", "op"]);
        assert!(listed("Usage: x\n\nOptions:\n  -v\n").is_empty());
    }
}
