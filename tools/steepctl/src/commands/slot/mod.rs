//! `steepctl slot …`

pub mod drop;
pub mod extend;
pub mod list;
pub mod show;

use clap::Subcommand;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    v1,
};

use crate::{
    cli::Global,
    client::Client,
    output::{
        Output,
        exit_code::Exit,
        style::Tone,
        table::{Cell, Facts},
    },
    units,
};

/// The verbs of `slot`.
#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// List replication slots: what each is there for and what it keeps back
    List(list::ListArgs),
    /// Show one slot
    Show(show::ShowArgs),
    /// Keep a slot for longer that would expire
    Extend(extend::ExtendArgs),
    /// Drop a slot; refused while something needs it
    Drop(drop::DropArgs),
}

/// Does what the verb says.
pub async fn run(command: SlotCommand, global: &Global, out: &Output) -> Result<Exit, Failure> {
    match command {
        SlotCommand::List(args) => list::run(&args, global, out).await,
        SlotCommand::Show(args) => show::run(&args, global, out).await,
        SlotCommand::Extend(args) => extend::run(&args, global, out).await,
        SlotCommand::Drop(args) => drop::run(&args, global, out).await,
    }
}

/// One slot of one node.
async fn find(client: &mut Client<'_>, node: &NodeId, name: &str) -> Result<v1::ListSlotsReply, Failure> {
    let request =
        v1::ListSlotsRequest { node_id: node.to_string(), slot: name.to_owned(), ..v1::ListSlotsRequest::default() };
    let reply = client.list_slots(&request).await?;
    match reply.slots.is_empty() {
        true => Err(Failure::new(Code::SlotUnknown, format!("{node} has no slot {name}"))
            .hint(format!("steepctl slot list {node}"))),
        false => Ok(reply),
    }
}

/// All there is to say about one slot.
fn facts(slot: &v1::Slot) -> String {
    let mut facts = Facts::default();
    facts.add("slot", Cell::new(&slot.name).tone(Tone::Strong));
    facts.add("node", &slot.node_id);
    facts.add("kept for", &slot.target_node);
    facts.add("use", used_for(slot));
    facts.add("why", &slot.why);
    facts.add("operation", &slot.op_id);
    facts.add("read now", read(slot));
    facts.add("wal kept", units::bytes(slot.retained_bytes));
    let status = match slot.invalidation_reason.as_str() {
        "" => slot.wal_status.clone(),
        reason => format!("{}: {reason}", slot.wal_status),
    };
    facts.add("wal status", Cell::new(status).tone(of_status(&slot.wal_status)));
    let safe = slot.safe_wal_bytes.map(|bytes| units::bytes(u64::try_from(bytes).unwrap_or(0)));
    facts.add("until at risk", safe.unwrap_or_else(|| "no limit".into()));
    facts.add("confirmed", &slot.confirmed_lsn);
    facts.add("xmin age", slot.xmin_age.map(units::count).unwrap_or_default());
    facts.add("database", &slot.database);
    facts.add("plugin", &slot.plugin);
    facts.render()
}

fn used_for(slot: &v1::Slot) -> Cell {
    let cell = Cell::new(&slot.r#use);
    match slot.r#use.as_str() {
        "orphan" => cell.tone(Tone::Bad),
        "undecided" => cell.tone(Tone::Warn),
        _ => cell,
    }
}

/// Whether somebody reads it, or since when nobody does.
fn read(slot: &v1::Slot) -> Cell {
    if slot.active {
        return Cell::new("yes");
    }
    let since = units::moment(slot.inactive_since.as_ref()).map(|at| format!("no, since {}", units::date_time(at)));
    Cell::new(since.unwrap_or_else(|| "no".into())).tone(Tone::Warn)
}

fn of_status(status: &str) -> Tone {
    match status {
        "lost" => Tone::Bad,
        "unreserved" => Tone::Warn,
        _ => Tone::Plain,
    }
}
