//! `steepctl events`

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;
use steep_protocol::{
    failure::{Code, Failure, Family},
    ids::NodeId,
    v1::{self, agent_event::What},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{
    cli::Global,
    client::{AgentEvents, Client},
    output::{Output, exit_code::Exit, safe, style::Tone},
    units,
};

const EXAMPLES: &str = "\
Events are what agents log, one line each; every agent remembers the last 8192
of its present run. With -o json they are the log's own records, one a line.

Examples:
  steepctl events --since 1h
  steepctl events --follow --type 'init.*' --node node_b
  steepctl events -o json | jq -r 'select(.level == \"error\") | .message'";

/// How long we look for an agent that can tell.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so long a silence a new connection has to show that the agent is still there.
const SILENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(500);

/// Arguments of `events`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(short, long)]
    pub follow: bool,
    /// Only what happened in this time (30s, 1h) [default: all that is
    /// remembered; with --follow nothing of the past]
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    pub since: Option<Duration>,
    /// Only these events: a name, or the beginning of names with a * behind
    /// it; repeat it for more
    #[arg(long = "type", value_name = "NAME", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Only of this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<NodeId>,
}

/// Prints what agents logged.
pub async fn run(args: &EventsArgs, global: &Global, out: &Output) -> Result<Exit, Failure> {
    let client = global.client(out)?;
    let deadline = client.deadline();
    let reader = Reader::new(args, client, out);
    match deadline {
        None => reader.read().await,
        Some(deadline) => match timeout_at(deadline, reader.read()).await {
            Ok(read) => read,
            Err(_) => Err(Failure::new(Code::Detached, "--timeout passed").hint("leave --timeout out to follow on")),
        },
    }
}

/// Reads events to the end, or for ever; takes up a broken stream where it ended.
struct Reader<'a> {
    args: &'a EventsArgs,
    client: Client<'a>,
    out: &'a Output,
    began: Instant,
    /// What was had of each node.
    cursors: BTreeMap<String, v1::EventCursor>,
    silent: BTreeSet<String>,
    lost_since: Option<Instant>,
}

impl<'a> Reader<'a> {
    fn new(args: &'a EventsArgs, client: Client<'a>, out: &'a Output) -> Self {
        let (cursors, silent) = Default::default();
        Self { args, client, out, began: Instant::now(), cursors, silent, lost_since: None }
    }

    async fn read(mut self) -> Result<Exit, Failure> {
        loop {
            let request = self.request();
            let failure = match self.client.events(&request).await {
                Ok(events) => match self.pass_on(events).await? {
                    Stopped::Ended if !self.args.follow => return Ok(Exit::Success),
                    Stopped::Ended => Failure::new(Code::StreamBroken, "the agent ended the stream"),
                    Stopped::Silent => {
                        self.client.hang_up();
                        continue;
                    }
                    Stopped::Broken(failure) => failure,
                },
                Err(failure) => failure,
            };
            self.client.hang_up();
            self.wait_or_give_up(failure).await?;
        }
    }

    /// What is to be asked now: after what was had, and of other nodes as far back as was meant at the beginning.
    fn request(&self) -> v1::EventsRequest {
        let since = self.args.since.or(self.args.follow.then_some(Duration::ZERO));
        v1::EventsRequest {
            node_id: self.args.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            types: self.args.types.clone(),
            since_seconds: since.map(|since| (since + self.began.elapsed()).as_secs()),
            after: self.cursors.values().cloned().collect(),
            follow: self.args.follow,
        }
    }

    async fn pass_on(&mut self, mut events: AgentEvents) -> Result<Stopped, Failure> {
        loop {
            let told = match timeout(SILENCE, events.next()).await {
                Ok(Ok(Some(told))) => told,
                Ok(Ok(None)) => return Ok(Stopped::Ended),
                Ok(Err(failure)) => return Ok(Stopped::Broken(failure)),
                Err(_) => return Ok(Stopped::Silent),
            };
            if self.lost_since.take().is_some() {
                self.out.talk("following again");
            }
            match told.what {
                Some(What::Logged(logged)) => self.show(logged)?,
                Some(What::Gap(gap)) => {
                    self.out.talk(&format!("! {}: {}", safe(&gap.node_id), safe(&gap.reason)));
                    self.note(gap.cursor);
                }
                Some(What::Silent(silent)) => {
                    if self.silent.insert(silent.node_id.clone()) {
                        let text = format!("! {} does not tell: {}", safe(&silent.node_id), safe(&silent.reason));
                        self.out.talk(&text);
                    }
                }
                Some(What::CaughtUp(_)) | None => {}
            }
        }
    }

    fn show(&mut self, logged: v1::LoggedEvent) -> Result<(), Failure> {
        let record: Value = serde_json::from_str(&logged.record).unwrap_or_default();
        match self.out.is_json() {
            true => self.out.json_line(&record)?,
            false => self.out.data(&line(&logged, &record))?,
        }
        self.note(logged.cursor);
        Ok(())
    }

    fn note(&mut self, cursor: Option<v1::EventCursor>) {
        if let Some(cursor) = cursor {
            self.silent.remove(&cursor.node_id);
            self.cursors.insert(cursor.node_id.clone(), cursor);
        }
    }

    async fn wait_or_give_up(&mut self, failure: Failure) -> Result<(), Failure> {
        let may_pass = matches!(failure.code.family(), Family::Connection | Family::Timeout);
        if !may_pass || !self.args.follow {
            return Err(failure);
        }
        let lost_since = *self.lost_since.get_or_insert_with(|| {
            self.out.talk(&format!("! {}; trying again", safe(&failure.message)));
            Instant::now()
        });
        if lost_since.elapsed() >= PATIENCE {
            return Err(failure);
        }
        sleep(PAUSE).await;
        Ok(())
    }
}

/// Why a stream brings no more events.
enum Stopped {
    /// The agent has no more to say.
    Ended,
    /// None came for long, which says nothing; a new connection tells whether the agent is there.
    Silent,
    /// It broke.
    Broken(Failure),
}

/// `2026-11-22T10:04:31Z info  node_b  init.started  init of node_b from node_a  op=0192f3ac-7d21`
fn line(logged: &v1::LoggedEvent, record: &Value) -> String {
    let at = units::moment(logged.at.as_ref()).unwrap_or(Timestamp::UNIX_EPOCH);
    let node = logged.cursor.as_ref().map(|cursor| cursor.node_id.as_str()).unwrap_or_default();
    let level = format!("{:5}", safe(&logged.level));
    let level = match logged.level.as_str() {
        "error" => Tone::Bad.paint(&level),
        "warn" => Tone::Warn.paint(&level),
        _ => Tone::Faint.paint(&level),
    };
    let event = Tone::Strong.paint(&format!("{:22}", safe(&logged.event)));
    let mut line = format!("{} {level} {} {event} {}", units::rfc3339(at), safe(node), safe(&logged.message));
    let text = |name: &str| record[name].as_str().filter(|text| !text.is_empty());
    if let Some(op) = text("op_id") {
        line += &format!(" op={}", safe(op.get(..13).unwrap_or(op)));
    }
    for (name, word) in [("phase", "phase"), ("table", "table")] {
        if let Some(value) = text(name) {
            line += &format!(" {word}={}", safe(value));
        }
    }
    if let (Some(before), Some(after)) = (text("previous_state"), text("new_state")) {
        line += &format!(" {}->{}", safe(before), safe(after));
    }
    if let Some(rows) = record["rows_copied"].as_u64() {
        line += &format!(" rows={rows}");
    }
    if let Some(took) = record["duration_ms"].as_u64() {
        line += &format!(" took={}", units::duration(Duration::from_millis(took)));
    }
    if let Some(message) = record["error"]["message"].as_str() {
        let code = record["error"]["code"].as_str().unwrap_or_default();
        line += &format!(": {} [{}]", safe(message), safe(code));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstream::adapter::strip_str;
    use serde_json::json;

    #[test]
    fn an_event_is_one_line_that_cannot_redraw_a_terminal() {
        let logged = v1::LoggedEvent {
            cursor: Some(v1::EventCursor { node_id: "node_b".into(), ..v1::EventCursor::default() }),
            at: Some(prost_types::Timestamp { seconds: 1_000, nanos: 0 }),
            level: "error".into(),
            event: "init.failed".into(),
            message: "init of node_b failed\u{1b}[2J".into(),
            ..v1::LoggedEvent::default()
        };
        let record = json!({
            "op_id": "0192f3ac-7d21-7c4e-9f0a-3d0c5b1e77aa", "phase": "copy", "table": "public.\u{202e}t", "duration_ms": 61_000,
            "error": { "code": "STP-3002", "message": "copying failed\nhere" },
        });
        let text = strip_str(&line(&logged, &record)).to_string();
        assert_eq!(
            text,
            "1970-01-01T00:16:40Z error node_b init.failed            init of node_b failed\\u{1b}[2J op=0192f3ac-7d21 \
             phase=copy table=public.\\u{202e}t took=1m01s: copying failed\\u{a}here [STP-3002]"
        );
    }
}
