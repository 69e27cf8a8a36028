//! What a start would do, as its dry run says: the checks, the tables, the rows it would destroy.

use steep_protocol::{
    failure::{Code, Failure},
    names::TableName,
    v1,
};

use crate::{
    output::{
        glyphs::Glyphs,
        safe,
        style::Tone,
        table::{Cell, Side, Table},
    },
    units,
};

/// The checks with their findings: all of them, or only those that need attention.
pub(crate) fn checks(checks: &[v1::Check], all: bool, glyphs: &Glyphs) -> String {
    let count = |severity: &str| checks.iter().filter(|check| check.severity == severity).count() as u64;
    let mut lines = Vec::new();
    for check in checks.iter().filter(|check| all || check.severity != "ok") {
        let mark = match check.severity.as_str() {
            "ok" => Tone::Good.paint(glyphs.ok),
            "warn" => Tone::Warn.paint(glyphs.warn),
            _ => Tone::Bad.paint(glyphs.bad),
        };
        let node = if check.node_id.is_empty() { String::new() } else { format!("{}: ", safe(&check.node_id)) };
        lines.push(format!("  {mark} {} {node}{}", safe(&check.code), safe(&check.message)));
        if !check.hint.is_empty() && check.severity != "ok" {
            lines.push(format!("      fix: {}", safe(&check.hint)));
        }
    }
    let (passed, warned, failed) = (count("ok"), count("warn"), count("error"));
    let warnings = if warned == 0 { String::new() } else { format!(", {}", units::counted(warned, "warning")) };
    lines.insert(0, format!("Checks    {passed} passed, {failed} failed{warnings}"));
    lines.join("\n")
}

/// The failure that the failed checks amount to; the first of them decides its code.
pub(super) fn failed(checks: &[v1::Check], what: &str) -> Option<Failure> {
    let failed: Vec<_> = checks.iter().filter(|check| check.severity == "error").collect();
    let first = failed.first()?;
    let code = first.code.parse().unwrap_or(Code::Internal);
    let number = units::counted(failed.len() as u64, "check");
    let failure = Failure::new(code, format!("{what}: {number} failed"));
    let failure = if first.hint.is_empty() { failure } else { failure.hint(first.hint.clone()) };
    Some(failed.iter().fold(failure, |failure, check| failure.cause(format!("{} {}", check.code, check.message))))
}

/// The tables that would be copied, largest first as the agent lists them, and their sum.
pub(super) fn tables(planned: &[v1::PlannedTable], target: &str) -> String {
    let mut table = Table::new(&[
        ("TABLE", Side::Left),
        ("ROWS (EST.)", Side::Right),
        ("SIZE", Side::Right),
        ("PARTS", Side::Right),
        ("FORMAT", Side::Left),
        ("ROWS ON TARGET", Side::Right),
    ]);
    for one in planned {
        let there = Cell::new(units::count(one.target_rows));
        table.row([
            Cell::new(name(one)),
            Cell::new(units::count(one.rows_estimate)),
            Cell::new(units::bytes(one.bytes)),
            Cell::new(one.parts.to_string()),
            Cell::new(&one.format),
            if one.target_rows > 0 { there.tone(Tone::Bad) } else { there },
        ]);
    }
    let rows = planned.iter().map(|one| one.rows_estimate).sum();
    let bytes = planned.iter().map(|one| one.bytes).sum();
    let sum = format!(
        "{}, about {}, {} to copy to {}",
        units::counted(planned.len() as u64, "table"),
        units::counted(rows, "row"),
        units::bytes(bytes),
        safe(target)
    );
    if table.is_empty() { sum } else { format!("{}\n\n{sum}", table.render()) }
}

/// What `--force` would destroy on the target, with counts.
pub(super) fn destruction(planned: &[v1::PlannedTable], target: &str) -> String {
    let filled: Vec<_> = planned.iter().filter(|one| one.target_rows > 0).collect();
    if filled.is_empty() {
        return format!("No selected table on {} holds rows now.", safe(target));
    }
    let mut table = Table::new(&[("TABLE", Side::Left), ("ROWS", Side::Right)]);
    for one in &filled {
        table.row([Cell::new(name(one)), Cell::new(units::count(one.target_rows))]);
    }
    let rows = filled.iter().map(|one| one.target_rows).sum();
    format!(
        "This {} on {}:\n{}\n{}, {}",
        Tone::Bad.paint("DELETES"),
        safe(target),
        table.render(),
        units::counted(filled.len() as u64, "table"),
        units::counted(rows, "row")
    )
}

/// The table as SQL would need it, escaped for people.
fn name(planned: &v1::PlannedTable) -> String {
    let table = planned.table.clone().unwrap_or_default();
    TableName::new(table.schema, table.name).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::glyphs;
    use anstream::adapter::strip_str;

    fn planned(name: &str, target_rows: u64) -> v1::PlannedTable {
        v1::PlannedTable {
            table: Some(v1::TableName { schema: "public".into(), name: name.into() }),
            rows_estimate: 1_204_332,
            bytes: 257_949_696,
            parts: 4,
            format: "binary".into(),
            target_rows,
            source_rows: None,
        }
    }

    fn check(severity: &str, code: &str) -> v1::Check {
        v1::Check {
            code: code.into(),
            severity: severity.into(),
            node_id: "node_a".into(),
            message: "wal_level is replica".into(),
            hint: "alter system".into(),
        }
    }

    #[test]
    fn checks_show_what_needs_attention_with_its_mend() {
        let found = [check("ok", "STP-2001"), check("error", "STP-2002"), check("warn", "STP-2008")];
        let text = strip_str(&checks(&found, false, &glyphs::ASCII)).to_string();
        assert_eq!(
            text,
            "Checks    1 passed, 1 failed, 1 warning\n  \
             x STP-2002 node_a: wal_level is replica\n      fix: alter system\n  \
             ! STP-2008 node_a: wal_level is replica\n      fix: alter system"
        );
        assert_eq!(checks(&found, true, &glyphs::ASCII).lines().count(), 6);
    }

    #[test]
    fn a_failed_check_makes_the_dry_run_fail_with_its_code() {
        let checks = [check("ok", "STP-2001"), check("error", "STP-2002")];
        let failure = failed(&checks, "cannot start node_b from node_a").expect("a check failed");
        assert_eq!(failure.code, Code::WalLevel);
        assert_eq!(failure.causes, ["STP-2002 wal_level is replica"]);
        assert_eq!(failed(&[], "cannot start node_b from node_a"), None);
    }

    #[test]
    fn what_would_be_destroyed_is_counted_table_by_table() {
        let text = strip_str(&destruction(&[planned("orders", 1_512_003), planned("empty", 0)], "node_b")).to_string();
        assert_eq!(
            text,
            "This DELETES on node_b:\n\
             TABLE               ROWS\n\
             public.orders  1,512,003\n\
             1 table, 1,512,003 rows"
        );
    }

    #[test]
    fn the_plan_fits_eighty_columns_and_ends_with_the_sum() {
        let text = strip_str(&tables(&[planned("orders", 0), planned("line_items", 7)], "node_b")).to_string();
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.ends_with("2 tables, about 2,408,664 rows, 492.0 MiB to copy to node_b"), "{text}");
    }
}
