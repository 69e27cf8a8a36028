//! `steepctl slot list`

use clap::Args;
use steep_protocol::{failure::Failure, ids::NodeId, v1};

use super::{of_status, read, used_for};
use crate::{
    cli::Global,
    output::{
        Output,
        exit_code::Exit,
        json, safe,
        style::Tone,
        table::{Cell, Side, Table},
    },
    units,
};

const EXAMPLES: &str = "\
An orphan is named like Steep's, and no operation, no intent that is open and no
subscription of a known node needs it; the reason stands below the table. A slot
whose reader cannot be asked is undecided, never an orphan.

Examples:
  steepctl slot list                   all nodes
  steepctl slot list node_a
  steepctl slot list --orphans
  steepctl slot list -o json | jq -r '.slots[] | select(.use == \"orphan\") | .name'";

/// Arguments of `slot list`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ListArgs {
    /// Only slots of this node
    pub node: Option<NodeId>,
    /// Only slots that nobody needs
    #[arg(long)]
    pub orphans: bool,
}

/// Prints the slots of one node or of all.
pub async fn run(args: &ListArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let node_id = args.node.as_ref().map(ToString::to_string).unwrap_or_default();
    let request = v1::ListSlotsRequest { node_id, orphans: args.orphans, slot: String::new() };
    let reply = global.client(out)?.list_slots(&request).await?;
    if out.is_json() {
        out.json(&json::message("ListSlotsReply", &reply))?;
        return Ok(Exit::Success);
    }
    match (reply.slots.is_empty(), args.orphans) {
        (true, true) => out.talk("no orphans"),
        (true, false) => out.talk("no slots"),
        (false, _) => out.data(&table(&reply.slots))?,
    }
    for slot in reply.slots.iter().filter(|slot| matches!(slot.r#use.as_str(), "orphan" | "undecided")) {
        let (mark, tone) = if slot.r#use == "orphan" { ("!", Tone::Bad) } else { ("?", Tone::Warn) };
        let (node, name) = (safe(&slot.node_id), safe(&slot.name));
        out.data(&format!("{} {name}: {}", tone.paint(mark), safe(&slot.why)))?;
        if slot.r#use == "orphan" {
            out.talk(&format!("  next: steepctl slot drop {node} {name}"));
        }
    }
    for missing in &reply.missing_nodes {
        out.talk(&format!("! {} did not answer; its slots are missing", safe(missing)));
    }
    out.via(&reply.served_by);
    Ok(Exit::Success)
}

fn table(slots: &[v1::Slot]) -> String {
    let mut table = Table::new(&[
        ("NODE", Side::Left),
        ("SLOT", Side::Left),
        ("FOR", Side::Left),
        ("USE", Side::Left),
        ("READ", Side::Left),
        ("WAL KEPT", Side::Right),
        ("WAL STATUS", Side::Left),
    ]);
    for slot in slots {
        table.row([
            Cell::new(&slot.node_id),
            Cell::new(&slot.name),
            Cell::new(&slot.target_node),
            used_for(slot),
            read(slot),
            Cell::new(units::bytes(slot.retained_bytes)),
            Cell::new(&slot.wal_status).tone(of_status(&slot.wal_status)),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstream::adapter::strip_str;

    #[test]
    fn a_row_says_what_a_slot_is_for_and_what_it_keeps() {
        let slot = v1::Slot {
            node_id: "node_a".into(),
            name: "steep_node_b_0192f3ac7d21".into(),
            target_node: "node_b".into(),
            r#use: "orphan".into(),
            retained_bytes: 3 << 20,
            wal_status: "reserved".into(),
            ..v1::Slot::default()
        };
        let text = strip_str(&table(&[slot])).to_string();
        assert_eq!(
            text,
            "NODE    SLOT                       FOR     USE     READ  WAL KEPT  WAL STATUS\n\
             node_a  steep_node_b_0192f3ac7d21  node_b  orphan  no     3.0 MiB  reserved"
        );
    }
}
