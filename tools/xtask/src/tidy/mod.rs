//! Rules a compiler cannot see, held by reading the sources.
//!
//! Every finding names the file, the rule, why there is such a rule, and the mend. Exceptions live in one list
//! ([`exceptions`]), each with its why; one that is no longer needed is itself a finding.

pub mod commands;
mod exceptions;
pub mod floors;
mod manifests;
mod shape;
mod source;
mod sql;
mod words;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use self::source::Source;
use crate::{extension, say, workspace};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the table of import floors, as ARCHITECTURE.md shows it
    #[arg(long)]
    floors: bool,
}

/// A rule, and what makes it worth having.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    name: &'static str,
    why: &'static str,
}

const MADE: Rule = Rule {
    name: "what is made from other files is fresh",
    why: "the extension and the agent must make the same schema",
};

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    rule: Rule,
    /// From the project's root.
    path: String,
    /// 0: the file as a whole.
    line: usize,
    /// What stands there; exceptions name it.
    what: String,
    mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}\n    rule: {} ({})\n    mend: {}", self.what, self.rule.name, self.rule.why, self.mend)
    }
}

/// Everything in the project that breaks a rule.
pub fn findings() -> Result<Vec<Finding>> {
    let root = workspace::root();
    let sources = sources(&root)?;
    let mut found = Vec::new();
    for source in &sources {
        shape::look(source, &mut found);
        words::look(source, &mut found);
    }
    shape::look_at_maps(&sources, &mut found);
    floors::look(&sources, &root, &mut found);
    sql::look(&sources, &root, &mut found)?;
    manifests::look(&root, &mut found)?;
    let stale = extension::stale()?.into_iter().map(|name| Finding {
        rule: MADE,
        path: format!("deploy/extension/{name}"),
        line: 0,
        what: "is not what agent/sql/store makes of it".into(),
        mend: "cargo x extension".into(),
    });
    found.extend(stale);
    Ok(exceptions::applied(found))
}

/// `cargo x tidy`.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.floors {
        print!("{}", floors::printed());
        return Ok(());
    }
    let findings = findings()?;
    for finding in &findings {
        say::bad(finding);
    }
    match findings.len() {
        0 => Ok(()),
        1 => bail!("tidy: one finding"),
        many => bail!("tidy: {many} findings"),
    }
}

/// Every Rust source of ours.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let files = files(root, "rs")?;
    files.iter().map(|path| Source::read(root, path)).collect()
}

/// Every file below `folder` that ends with `extension`, in order; built, hidden and version control's left out.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            if name == "target" || name.to_string_lossy().starts_with('.') {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_project_is_tidy() {
        let findings = super::findings().expect("the sources can be read");
        let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(list.is_empty(), "{} findings:\n{}", list.len(), list.join("\n"));
    }
}
