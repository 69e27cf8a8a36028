//! Which crate may depend on what, read from the manifests and the lock file.
//!
//! `deny.toml` says the same to cargo-deny, which also knows licences; this holds on machines without it.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{Finding, Rule};

const DEPENDS: Rule =
    Rule { name: "a dependency only where it may be", why: "one crate speaks TLS and QUIC, and tools stay small" };
const BANNED: Rule = Rule { name: "no second TLS", why: "a bare cargo build needs no system library" };

const ONLY_IN: &[(&str, &[&str])] = &[
    ("quinn", &["protocol"]),
    // Specs speak it where no agent would.
    ("rustls", &["protocol", "tests"]),
    ("tokio-rustls", &["protocol", "tests"]),
    ("tokio-postgres", &["agent", "tests"]),
    ("clap", &["agent", "tools/steepctl", "tools/xtask"]),
];
const NEVER: [&str; 4] = ["openssl", "openssl-sys", "native-tls", "protoc-bin-vendored"];
const MEMBERS: [&str; 5] = ["protocol", "agent", "tools/steepctl", "tools/xtask", "tests"];

pub(super) fn look(root: &Path, found: &mut Vec<Finding>) -> Result<()> {
    for member in MEMBERS {
        let path = format!("{member}/Cargo.toml");
        let text = fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        for (line, name) in dependencies(&text) {
            let Some((_, allowed)) = ONLY_IN.iter().find(|(only, _)| *only == name) else { continue };
            if !allowed.contains(&member) {
                found.push(Finding {
                    rule: DEPENDS,
                    path: path.clone(),
                    line,
                    what: format!("depends on {name}; only {} may", allowed.join(", ")),
                    mend: "use what those crates offer".into(),
                });
            }
        }
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    for name in NEVER {
        if lock.contains(&format!("name = \"{name}\"\n")) {
            found.push(Finding {
                rule: BANNED,
                path: "Cargo.lock".into(),
                line: 0,
                what: format!("{name} came in"),
                mend: format!("cargo tree -i {name} shows through whom; turn that feature off"),
            });
        }
    }
    Ok(())
}

/// Line and name of every dependency, of whatever kind.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut in_section = false;
    let mut found = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        if let Some(section) = line.trim().strip_prefix('[') {
            in_section = section.trim_end_matches(']').ends_with("dependencies");
        } else if in_section && !line.trim_start().starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default().trim();
            if !name.is_empty() {
                found.push((index + 1, name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_every_kind_of_section() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\n# why\nquinn.workspace = true\na = { version = \"1\" }\n\
                        [target.'cfg(unix)'.dev-dependencies]\nb = \"1\"\n[lints]\nworkspace = true\n";
        let names: Vec<_> = dependencies(manifest).into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["quinn", "a", "b"]);
    }
}
