//! What a preflight finds, collected: each finding with code, node, words and what to do.

use steep_protocol::{
    failure::{Code, Failure},
    v1,
};

/// Findings about one node.
#[derive(Debug)]
pub struct Findings {
    node: String,
    checks: Vec<v1::Check>,
}

impl Findings {
    /// None yet about `node`.
    pub fn about(node: impl ToString) -> Self {
        Self { node: node.to_string(), checks: Vec::new() }
    }

    /// Something that speaks against it, unless `holds`; what is well is noted too.
    pub fn must(&mut self, holds: bool, code: Code, well: &str, wrong: impl FnOnce() -> String) {
        match holds {
            true => self.push("ok", code, well.to_owned(), String::new()),
            false => self.error(code, wrong(), code.hint()),
        }
    }

    /// Something that speaks against it.
    pub fn error(&mut self, code: Code, message: impl Into<String>, hint: impl Into<String>) {
        self.push("error", code, message.into(), hint.into());
    }

    /// Something to know.
    pub fn warn(&mut self, code: Code, message: impl Into<String>, hint: impl Into<String>) {
        self.push("warn", code, message.into(), hint.into());
    }

    fn push(&mut self, severity: &str, code: Code, message: String, hint: String) {
        let (severity, node_id) = (severity.to_owned(), self.node.clone());
        self.checks.push(v1::Check { code: code.to_string(), severity, node_id, message, hint });
    }

    /// What speaks against it by `code`.
    pub fn messages(&self, code: Code) -> Vec<String> {
        let code = code.to_string();
        let errors = self.checks.iter().filter(|check| check.code == code && check.severity == "error");
        errors.map(|check| check.message.clone()).collect()
    }

    /// Forgets everything found by `code`: somebody who knows better speaks.
    pub fn forget(&mut self, code: Code) {
        let code = code.to_string();
        self.checks.retain(|check| check.code != code);
    }

    /// All of them.
    pub fn into_checks(self) -> Vec<v1::Check> {
        self.checks
    }
}

/// The failure that the errors among `checks` amount to; the first decides code and hint.
pub fn verdict(what: &str, checks: &[v1::Check]) -> Result<(), Failure> {
    let mut errors = checks.iter().filter(|check| check.severity == "error");
    let Some(first) = errors.next() else { return Ok(()) };
    let code = first.code.parse().unwrap_or(Code::Internal);
    let failure = Failure::new(code, format!("{what}: {}: {}", first.node_id, first.message)).hint(&first.hint);
    Err(errors.fold(failure, |failure, other| {
        failure.cause(format!("also {} {}: {} ({})", other.code, other.node_id, other.message, other.hint))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_decides_and_the_others_are_told_too() {
        let mut findings = Findings::about("node_a");
        findings.must(true, Code::WalLevel, "wal_level is logical", String::new);
        findings.warn(Code::LongTransaction, "one is old", "wait");
        findings.error(Code::NoFreeSlot, "none of 10 slots is free", "raise it");
        findings.error(Code::RowSecurity, "public.t hides rows", "bypass it");
        let failure = verdict("cannot start", &findings.into_checks()).expect_err("there are errors");
        assert_eq!(failure.code, Code::NoFreeSlot);
        assert_eq!(failure.message, "cannot start: node_a: none of 10 slots is free");
        assert_eq!(failure.hint, "raise it");
        assert_eq!(failure.causes, ["also STP-2103 node_a: public.t hides rows (bypass it)"]);
    }
}
