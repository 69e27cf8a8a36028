//! An operator at the keyboard: one command line of steepctl, and what came of it.

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use xtask::{cluster::OPERATORS, process};

use crate::{node::Node, operation::Operation};

/// A command line that has not been run yet; a verb at its end runs it.
#[derive(Debug, Clone)]
#[must_use = "nothing is run before succeeds(), fails_with(), outcome() or operation()"]
pub struct Steepctl {
    node: Node,
    operator: String,
    words: Vec<String>,
    environment: Vec<(String, String)>,
}

/// What a command did: its exit status and what it printed.
#[derive(Debug, Clone)]
pub struct Outcome {
    command: String,
    /// The exit status; -1 when a signal ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Steepctl {
    pub(crate) fn new(node: &Node, words: &str) -> Self {
        let (operator, _) = OPERATORS[0];
        Self { node: node.clone(), operator: operator.into(), words: split(words), environment: Vec::new() }
    }

    /// As another operator: `otto` (operator) or `vera` (viewer).
    pub fn as_operator(mut self, name: &str) -> Self {
        self.operator = name.to_owned();
        self
    }

    /// One more word, taken as it is.
    pub fn arg(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
    }

    /// More words, taken as they are.
    pub fn args(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// An environment variable, over those of the operator.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The process to run, for specs that want to hold it themselves.
    pub fn command(&self) -> Command {
        let mut command = self.node.running.cluster.steepctl(self.node.parts(), &self.operator);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).args(&self.words);
        command.stdin(Stdio::null());
        command
    }

    /// Runs it to its end, whatever that is.
    pub fn outcome(self) -> Outcome {
        let mut command = self.command();
        let Output { status, stdout, stderr } = command.output().expect("steepctl can be run");
        Outcome {
            command: process::described(&command),
            status: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Runs it; it must succeed.
    #[track_caller]
    pub fn succeeds(self) -> Outcome {
        let outcome = self.outcome();
        assert_eq!(outcome.status, 0, "{outcome}");
        outcome
    }

    /// Runs it; it must fail with `code` (`STP-2301`) and say what to do next.
    #[track_caller]
    pub fn fails_with(self, code: &str) -> Outcome {
        let outcome = self.outcome();
        assert_ne!(outcome.status, 0, "it was to fail with {code}: {outcome}");
        assert_eq!(outcome.code().as_deref(), Some(code), "{outcome}");
        let hint = outcome.stderr.contains("Hint:") || outcome.stderr.contains("\"hint\"");
        assert!(hint, "no hint what to do next: {outcome}");
        outcome
    }

    /// Starts an operation and lets it run: `node start …` returns at once with its id.
    #[track_caller]
    pub fn operation(self) -> Operation {
        let node = self.node.clone();
        let outcome = self.arg("--detach").arg("-o").arg("json").succeeds();
        let id = outcome.json()["op_id"].as_str().map(str::to_owned);
        Operation::new(node, &id.unwrap_or_else(|| panic!("no op_id: {outcome}")))
    }
}

impl Outcome {
    /// What it printed on standard output, which must be JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// The code of the failure it printed.
    pub fn code(&self) -> Option<String> {
        let at = self.stderr.find("STP-")?;
        let code: String = self.stderr[at..].chars().take(8).collect();
        code[4..].bytes().all(|byte| byte.is_ascii_digit()).then_some(code)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        write!(f, "{command}\n  exit {status}\n  stdout: {}\n  stderr: {}", stdout.trim_end(), stderr.trim_end())
    }
}

/// Splits at blanks; single and double quotes hold a word together.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "a quote is open in: {line}");
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(split("node start  node_b"), ["node", "start", "node_b"]);
        assert_eq!(split(r#"--tables 'a b',"c d" ''"#), ["--tables", "a b,c d", ""]);
        assert_eq!(split(r#"--tables 'public."Odd Name"'"#), ["--tables", r#"public."Odd Name""#]);
    }
}
