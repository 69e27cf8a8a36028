//! `steepctl explain`

use clap::Args;
use serde_json::{Value, json};
use steep_protocol::failure::{Code, Failure, Family};

use crate::output::{
    Output,
    exit_code::{self, Exit},
    style::Tone,
    table::{Facts, Side, Table},
};

const EXAMPLES: &str = "\
Examples:
  steepctl explain STP-2201
  steepctl explain 2201
  steepctl explain               all codes";

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExplainArgs {
    /// The code, as in STP-2201 or 2201; without it, all codes are listed
    pub code: Option<Code>,
}

/// Prints what a code means, or all codes.
pub fn run(args: &ExplainArgs, out: &Output) -> Result<Exit, Failure> {
    match args.code {
        Some(code) if out.is_json() => out.json(&as_json(code))?,
        Some(code) => out.data(&page(code))?,
        None if out.is_json() => out.json(&Code::ALL.iter().map(|code| as_json(*code)).collect::<Vec<_>>())?,
        None => out.data(&list())?,
    }
    Ok(Exit::Success)
}

fn page(code: Code) -> String {
    let mut facts = Facts::default();
    facts.add("what to do", code.hint());
    facts.add("kind", format!("{}; steepctl exits with {}", kind(code.family()), exit(code)));
    facts.add("try again", if code.is_retryable() { "may help without any change" } else { "only after a change" });
    format!("{}  {}\n\n{}", Tone::Strong.paint(&code.to_string()), code.title(), facts.render())
}

fn list() -> String {
    let mut table = Table::new(&[("CODE", Side::Left), ("EXIT", Side::Right), ("MEANING", Side::Left)]);
    for code in Code::ALL {
        table.row([code.to_string().into(), exit(*code).to_string().into(), code.title().into()]);
    }
    table.render()
}

fn as_json(code: Code) -> Value {
    json!({
        "code": code,
        "title": code.title(),
        "hint": code.hint(),
        "exit_code": exit(code),
        "retryable": code.is_retryable(),
    })
}

fn exit(code: Code) -> u8 {
    exit_code::of(&Failure::new(code, ""))
}

fn kind(family: Family) -> &'static str {
    match family {
        Family::General => "general error",
        Family::Schema => "schemas differ",
        Family::Cancelled => "cancelled",
        Family::Timeout => "timeout",
        Family::Connection => "no connection",
        Family::Permission => "permission",
        Family::Precondition => "precondition: a check failed, nothing was changed",
        Family::Conflict => "conflict: something runs already, or the state does not allow it",
        Family::Integrity => "integrity: checksums or counts do not agree",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page() {
        for code in Code::ALL {
            let page = page(*code);
            assert!(page.contains(code.title()) && page.contains(code.hint()), "{page}");
        }
        assert_eq!(list().lines().count(), Code::ALL.len() + 1);
    }
}
