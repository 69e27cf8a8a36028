//! Where a rule does not hold, and why not. One list, short on purpose.

use super::{Finding, Rule};

/// A finding that is allowed: rule, path and a part of what stands there.
struct Exception {
    rule: &'static str,
    path: &'static str,
    what: &'static str,
    /// For whoever wonders; empty is not an answer.
    why: &'static str,
}

const EXCEPTIONS: &[Exception] = &[];

const NEEDED: Rule = Rule { name: "exceptions are needed", why: "a list of stale exceptions hides the next mistake" };

/// The findings that no exception allows, and the exceptions that allow nothing.
pub(super) fn applied(found: Vec<Finding>) -> Vec<Finding> {
    allowed_by(EXCEPTIONS, found)
}

fn allowed_by(exceptions: &[Exception], found: Vec<Finding>) -> Vec<Finding> {
    let allows = |exception: &Exception, finding: &Finding| {
        exception.rule == finding.rule.name && exception.path == finding.path && finding.what.contains(exception.what)
    };
    let stale: Vec<Finding> = exceptions
        .iter()
        .filter(|exception| exception.why.is_empty() || !found.iter().any(|finding| allows(exception, finding)))
        .map(|exception| Finding {
            rule: NEEDED,
            path: "tools/xtask/src/tidy/exceptions.rs".into(),
            line: 0,
            what: format!("the exception for {} ({}) allows nothing, or has no why", exception.path, exception.what),
            mend: "remove it".into(),
        })
        .collect();
    let remain = found.into_iter().filter(|finding| !exceptions.iter().any(|exception| allows(exception, finding)));
    remain.chain(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_allows_its_finding_and_nothing_else() {
        let rule = Rule { name: "r", why: "w" };
        let finding =
            |path: &str| Finding { rule, path: path.into(), line: 1, what: "fn long".into(), mend: "m".into() };
        let list = [Exception { rule: "r", path: "a.rs", what: "fn long", why: "because" }];
        assert_eq!(allowed_by(&list, vec![finding("a.rs"), finding("b.rs")]), [finding("b.rs")]);
        assert_eq!(allowed_by(&list, vec![])[0].rule, NEEDED, "a stale exception is a finding");
    }
}
