//! A failure as an operator reads it: what, where, why, and the next command.

use serde_json::{Value, json};
use steep_protocol::failure::Failure;

use super::{Output, safe, style::Tone};

impl Output {
    /// Says what went wrong, on stderr.
    pub fn failure(&self, failure: &Failure) {
        if self.is_json() {
            self.say(&json!({ "error": as_json(failure) }).to_string());
        } else {
            self.say(&text(failure));
        }
    }
}

/// The failure as lines:
/// ```text
/// Error: cannot start node_b from node_a: table public.orders differs [STP-2202]
///   Caused by: column loyalty_tier (text) is missing on node_b
///   Hint: steepctl schema diff node_a node_b public.orders
/// ```
pub fn text(failure: &Failure) -> String {
    let mut lines = vec![format!("{} {} [{}]", Tone::Bad.paint("Error:"), indented(&failure.message), failure.code)];
    for cause in failure.causes.iter().filter(|cause| !cause.trim().is_empty()) {
        lines.push(format!("  {} {}", Tone::Faint.paint("Caused by:"), indented(cause)));
    }
    if !failure.hint.is_empty() {
        lines.push(format!("  {} {}", Tone::Strong.paint("Hint:"), indented(&failure.hint)));
    }
    lines.join("\n")
}

/// The failure as JSON; all fields are always there.
pub fn as_json(failure: &Failure) -> Value {
    json!({
        "code": failure.code,
        "message": failure.message,
        "causes": failure.causes,
        "hint": failure.hint,
        "retryable": failure.retryable,
        "sqlstate": failure.sqlstate,
    })
}

/// Escaped; the lines of a longer text (PostgreSQL's DETAIL, a program's output) stand under each other.
fn indented(text: &str) -> String {
    text.trim_end().lines().map(safe).collect::<Vec<_>>().join("\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstream::adapter::strip_str;
    use steep_protocol::failure::Code;

    #[test]
    fn a_failure_says_what_why_and_what_next_each_on_its_own_line() {
        let failure = Failure::new(Code::SchemaDiffers, "cannot start node_b from node_a: table public.orders differs")
            .cause("column loyalty_tier (text) is missing on node_b")
            .cause("ERROR: two\nDETAIL: lines")
            .hint("steepctl schema diff node_a node_b public.orders");
        assert_eq!(
            strip_str(&text(&failure)).to_string(),
            "Error: cannot start node_b from node_a: table public.orders differs [STP-2202]\n  \
             Caused by: column loyalty_tier (text) is missing on node_b\n  \
             Caused by: ERROR: two\n    DETAIL: lines\n  \
             Hint: steepctl schema diff node_a node_b public.orders"
        );
    }

    #[test]
    fn a_failure_with_hostile_names_cannot_redraw_the_terminal() {
        let failure = Failure::new(Code::CopyFailed, "table \u{1b}[2J").cause("\u{202e}").hint("\u{7}");
        let plain = strip_str(&text(&failure)).to_string();
        assert!(
            plain.contains(r"table \u{1b}[2J") && plain.contains(r"\u{202e}") && plain.contains(r"\u{7}"),
            "{plain}"
        );
    }

    #[test]
    fn every_field_of_a_failure_is_in_its_json() {
        let failure = Failure::new(Code::Denied, "no");
        let json = as_json(&failure);
        assert_eq!(json["code"], "STP-5003");
        assert_eq!(json["causes"], json!([]));
        assert_eq!(json["retryable"], false);
        assert!(json["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
    }
}
