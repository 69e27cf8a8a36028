//! `steepctl seq …`

pub mod check;
pub mod sync;

use clap::Subcommand;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    names::TableName,
    v1,
};

use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        style::Tone,
        table::{Cell, Side, Table},
    },
};

/// The verbs of `seq`.
#[derive(Debug, Subcommand)]
pub enum SeqCommand {
    /// Compare the sequences of two nodes: would the second hand out what the first has?
    Check(check::CheckArgs),
    /// Move a node's sequences ahead of another's; only show it without --apply
    Sync(sync::SyncArgs),
}

/// Does what the verb says.
pub async fn run(command: SeqCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        SeqCommand::Check(args) => check::run(&args, global, out).await,
        SeqCommand::Sync(args) => sync::run(&args, global, out).await,
    }
}

/// Two nodes to compare are two nodes.
fn refuse_same(source: &NodeId, target: &NodeId) -> Result<(), Failure> {
    match source == target {
        true => Err(Failure::new(Code::SourceIsTarget, format!("{source} was named twice"))),
        false => Ok(()),
    }
}

/// Sequences that need a look.
fn needs_a_look(check: &v1::SequenceCheck) -> bool {
    !matches!(check.verdict.as_str(), "ahead" | "apart")
}

fn name(check: &v1::SequenceCheck) -> String {
    let name = check.sequence.clone().unwrap_or_default();
    TableName::new(name.schema, name.name).to_string()
}

/// One line a sequence.
fn table(source: &NodeId, target: &NodeId, checks: &[&v1::SequenceCheck]) -> String {
    let mut table = Table::named(vec![
        ("VERDICT".into(), Side::Left),
        ("SEQUENCE".into(), Side::Left),
        (source.to_string(), Side::Right),
        (target.to_string(), Side::Right),
        ("STEP".into(), Side::Right),
        ("AHEAD BY".into(), Side::Right),
        ("WOULD BE".into(), Side::Right),
        ("WHY".into(), Side::Left),
    ]);
    for check in checks {
        let tone = match check.verdict.as_str() {
            "ahead" | "apart" => Tone::Good,
            "close" => Tone::Warn,
            _ => Tone::Bad,
        };
        let number = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
        table.row([
            Cell::new(check.verdict.to_uppercase()).tone(tone),
            Cell::new(name(check)),
            Cell::new(number(check.source.as_ref().map(|at| at.last_value))),
            Cell::new(number(check.target.as_ref().map(|at| at.last_value))),
            Cell::new(steps(check)),
            Cell::new(number(check.steps_ahead)),
            Cell::new(number(check.new_value)),
            Cell::new(&check.why),
        ]);
    }
    table.render()
}

/// `+1`, `-2`, `+1/+2` where the two differ; with a ring where one begins again at its end.
fn steps(check: &v1::SequenceCheck) -> String {
    let of = |at: &v1::SequencePosition| format!("{:+}{}", at.increment, if at.cycle { " cycles" } else { "" });
    match (&check.source, &check.target) {
        (Some(source), Some(target)) if (source.increment, source.cycle) != (target.increment, target.cycle) => {
            format!("{}/{}", of(source), of(target))
        }
        (Some(source), _) => of(source),
        (None, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstream::adapter::strip_str;

    #[test]
    fn a_line_shows_both_ends_and_where_the_target_would_go() {
        let at = |last_value, increment| v1::SequencePosition { last_value, increment, ..Default::default() };
        let check = v1::SequenceCheck {
            sequence: Some(v1::TableName { schema: "public".into(), name: "orders_id_seq".into() }),
            source: Some(at(500, 1)),
            target: Some(at(20, 1)),
            verdict: "behind".into(),
            steps_ahead: Some(-479),
            new_value: Some(1501),
            ..Default::default()
        };
        let (a, b) = ("node_a".parse().expect("a name"), "node_b".parse().expect("a name"));
        assert_eq!(
            strip_str(&table(&a, &b, &[&check])).to_string(),
            "VERDICT  SEQUENCE              node_a  node_b  STEP  AHEAD BY  WOULD BE  WHY\n\
             BEHIND   public.orders_id_seq     500      20    +1      -479      1501  -"
        );
        let other = v1::SequenceCheck { target: Some(at(1, -2)), source: Some(at(1, 1)), ..check };
        assert_eq!(steps(&other), "+1/-2");
    }
}
