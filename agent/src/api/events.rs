//! What agents logged, told to one reader: this agent's own events, or those of all nodes merged by time.
//!
//! Each agent answers for its own events; the one asked follows the others' streams, takes up broken ones where they
//! ended, and says which agents do not answer. Nothing waits for a slow reader but his own stream: when the agent has
//! forgotten what he has not read yet, he is told that there is a gap.

use std::{cmp::Reverse, collections::VecDeque, time::Duration};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    time,
    v1::{
        AgentEvent, CaughtUp, EventCursor, EventGap, EventsRequest, LoggedEvent, SilentNode, agent_event::What,
        agents_client::AgentsClient,
    },
    wire::rpc::failure_of,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::{Door, authorize::Caller};
use crate::telemetry::{Log, ring::Record};

/// Readers one agent serves at once: each holds a stream to every peer.
pub const READERS: usize = 32;
/// As many events are taken from the ring at a time.
const PAGE: usize = 256;
/// How long a peer may take to begin its answer.
const LIMIT: Duration = Duration::from_secs(3);
/// How long until a peer that does not answer is asked again.
const PAUSE: Duration = Duration::from_secs(1);

type Told = stream::BoxStream<'static, AgentEvent>;

/// What is told to a reader: of this node for a forwarded request and one that names it, of all nodes otherwise.
pub(super) fn told(door: &Door, caller: &Caller, request: EventsRequest) -> Result<Told, Failure> {
    for pattern in &request.types {
        check(pattern)?;
    }
    let own = Own::new(door, &request)?;
    let permit = door.readers.clone().try_acquire_owned().map_err(|_| {
        let text = format!("{} readers follow the events of {} already", READERS, door.me());
        Failure::new(Code::TooManyReaders, text)
    })?;
    let follow = request.follow;
    let told = if caller.through.is_some() || !request.node_id.is_empty() {
        own.stream()
    } else {
        let mut sources = vec![Source::new(own.stream())];
        for node in door.peers.names() {
            sources.push(Source::new(of_peer(door.clone(), caller.clone(), node.clone(), request.clone())));
        }
        Merged::new(sources, follow).stream()
    };
    Ok(kept(told, permit))
}

/// The stream, holding its place until it ends.
fn kept(told: Told, permit: OwnedSemaphorePermit) -> Told {
    told.map(move |event| {
        let _held = &permit;
        event
    })
    .boxed()
}

fn event(what: What) -> AgentEvent {
    AgentEvent { what: Some(what) }
}

/// `init.completed`, `init.*`, `*`.
fn check(pattern: &str) -> Result<(), Failure> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    let is_good = !pattern.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.');
    if is_good {
        return Ok(());
    }
    let text = format!("{pattern:?} is no name of an event, and no beginning of one with a * behind it");
    Err(Failure::new(Code::BadRequest, text).hint("names are like init.completed; init.* means all that begin so"))
}

fn fits(event: &str, patterns: &[String]) -> bool {
    let one = |pattern: &String| match pattern.strip_suffix('*') {
        Some(start) => event.starts_with(start),
        None => event == pattern,
    };
    patterns.is_empty() || patterns.iter().any(one)
}

/// This agent's own events.
struct Own {
    log: Log,
    node: String,
    types: Vec<String>,
    since: Option<Timestamp>,
    follow: bool,
    number: u64,
    queue: VecDeque<AgentEvent>,
    caught_up: bool,
}

impl Own {
    fn new(door: &Door, request: &EventsRequest) -> Result<Self, Failure> {
        let log = door.upkeep.log.clone();
        let mut own = Self {
            node: door.me(),
            types: request.types.clone(),
            since: None,
            follow: request.follow,
            number: 0,
            queue: VecDeque::new(),
            caught_up: false,
            log,
        };
        match request.after.iter().find(|cursor| cursor.node_id == own.node) {
            Some(cursor) if cursor.instance_id == own.log.instance_id() => own.number = cursor.number,
            Some(_) => own.tell_gap("its agent was started again; what it logged last before may be missing"),
            None => {
                if let Some(seconds) = request.since_seconds {
                    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                    let since = Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds));
                    own.since = Some(since.unwrap_or(Timestamp::MIN));
                }
            }
        }
        Ok(own)
    }

    fn tell_gap(&mut self, reason: &str) {
        let cursor = Some(self.cursor(self.number));
        let gap = EventGap { node_id: self.node.clone(), reason: reason.to_owned(), cursor };
        self.queue.push_back(event(What::Gap(gap)));
    }

    fn cursor(&self, number: u64) -> EventCursor {
        let (node_id, instance_id) = (self.node.clone(), self.log.instance_id().to_owned());
        EventCursor { node_id, instance_id, number }
    }

    fn stream(self) -> Told {
        stream::unfold(self, |mut own| async move {
            let told = own.next().await?;
            Some((told, own))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<AgentEvent> {
        loop {
            if let Some(told) = self.queue.pop_front() {
                return Some(told);
            }
            let mut changes = self.log.ring().changes();
            let read = self.log.ring().after(self.number, PAGE);
            if read.missed > 0 {
                self.number += read.missed;
                self.tell_gap(&format!("{} events were forgotten before they were read", read.missed));
            }
            for record in &read.records {
                self.number = record.number;
                if fits(&record.event, &self.types) && self.since.is_none_or(|since| record.at >= since) {
                    let cursor = self.cursor(record.number);
                    self.queue.push_back(event(What::Logged(logged(record, cursor))));
                }
            }
            if !read.records.is_empty() || !self.queue.is_empty() {
                continue;
            }
            if !self.caught_up {
                self.caught_up = true;
                return Some(event(What::CaughtUp(CaughtUp {})));
            }
            if !self.follow {
                return None;
            }
            let number = self.number;
            changes.wait_for(|last| *last > number).await.ok()?;
        }
    }
}

fn logged(record: &Record, cursor: EventCursor) -> LoggedEvent {
    LoggedEvent {
        cursor: Some(cursor),
        at: Some(time::message(record.at)),
        level: record.level.to_owned(),
        event: record.event.clone(),
        message: record.message.clone(),
        record: record.json.to_string(),
    }
}

/// A peer's events, taken up again and again while they are followed.
fn of_peer(door: Door, caller: Caller, node: NodeId, request: EventsRequest) -> Told {
    let (tell, told) = mpsc::channel(PAGE);
    let after = request.after.iter().find(|cursor| cursor.node_id == node.as_str()).cloned();
    let reader =
        Reader { door, caller, node, request, after, began: Instant::now(), is_silent: false, caught_up: false };
    let task = AbortOnDropHandle::new(tokio::spawn(reader.read(tell)));
    ReceiverStream::new(told)
        .map(move |event| {
            let _owned = &task;
            event
        })
        .boxed()
}

struct Reader {
    door: Door,
    caller: Caller,
    node: NodeId,
    request: EventsRequest,
    after: Option<EventCursor>,
    began: Instant,
    is_silent: bool,
    caught_up: bool,
}

impl Reader {
    async fn read(mut self, tell: mpsc::Sender<AgentEvent>) {
        loop {
            let ended = self.read_once(&tell).await;
            let Err(reason) = ended else { return };
            if !self.is_silent {
                self.is_silent = true;
                let silent = SilentNode { node_id: self.node.to_string(), reason };
                if tell.send(event(What::Silent(silent))).await.is_err() {
                    return;
                }
            }
            if !self.request.follow {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    /// Reads until the peer has no more to say; says why where the stream broke.
    async fn read_once(&mut self, tell: &mpsc::Sender<AgentEvent>) -> Result<(), String> {
        let opening = async {
            let channel = self.door.peers.channel(&self.node).await?;
            let asked = self.door.on_behalf_of(&self.caller, self.again());
            AgentsClient::new(channel).events(asked).await.map_err(|status| failure_of(&status))
        };
        let opened = timeout(LIMIT, opening).await;
        let opened = opened.map_err(|_| format!("no answer in {} s", LIMIT.as_secs()))?;
        let mut events = opened.map_err(|failure| failure.message)?.into_inner();
        loop {
            let next = events.message().await.map_err(|status| failure_of(&status).message)?;
            let Some(told) = next else {
                return if self.request.follow { Err("the agent ended the stream".into()) } else { Ok(()) };
            };
            self.is_silent = false;
            match &told.what {
                Some(What::Logged(logged)) => self.after = logged.cursor.clone(),
                Some(What::Gap(gap)) => self.after = gap.cursor.clone(),
                // Once is enough, also when the stream is taken up again.
                Some(What::CaughtUp(_)) if std::mem::replace(&mut self.caught_up, true) => continue,
                _ => {}
            }
            if tell.send(told).await.is_err() {
                return Ok(());
            }
        }
    }

    /// The request as it has to be asked now: after what was had, or as far back as it meant when it was made.
    fn again(&self) -> EventsRequest {
        let passed = self.began.elapsed().as_secs();
        EventsRequest {
            node_id: String::new(),
            types: self.request.types.clone(),
            since_seconds: self.request.since_seconds.map(|since| since.saturating_add(passed)),
            after: self.after.iter().cloned().collect(),
            follow: self.request.follow,
        }
    }
}

struct Source {
    told: Told,
    head: Option<LoggedEvent>,
    /// Its past is told.
    is_past: bool,
}

impl Source {
    fn new(told: Told) -> Self {
        Self { told, head: None, is_past: false }
    }
}

/// The streams of several nodes: the past in the order of time, then what happens as it comes.
struct Merged {
    sources: Vec<Source>,
    follow: bool,
}

impl Merged {
    fn new(sources: Vec<Source>, follow: bool) -> Self {
        Self { sources, follow }
    }

    fn stream(self) -> Told {
        let follow = self.follow;
        let (give_back, given_back) = tokio::sync::oneshot::channel();
        let past = stream::unfold((self, Some(give_back)), |(mut merged, mut give_back)| async move {
            match merged.next_of_the_past().await {
                Some(told) => Some((told, (merged, give_back))),
                None => {
                    if let Some(give_back) = give_back.take() {
                        // Nobody wants them when the reader is gone.
                        let _ = give_back.send(merged.sources);
                    }
                    None
                }
            }
        });
        let caught_up = stream::once(async { event(What::CaughtUp(CaughtUp {})) });
        let live = stream::once(async move {
            match given_back.await {
                Ok(sources) if follow => stream::select_all(sources.into_iter().map(|source| source.told)).boxed(),
                _ => stream::empty().boxed(),
            }
        });
        let live = live.flatten().filter(|told| {
            let is_news = !matches!(told.what, Some(What::CaughtUp(_)));
            async move { is_news }
        });
        past.chain(caught_up).chain(live).boxed()
    }

    async fn next_of_the_past(&mut self) -> Option<AgentEvent> {
        for source in self.sources.iter_mut().filter(|source| source.head.is_none()) {
            while !source.is_past && source.head.is_none() {
                match source.told.next().await.map(|told| told.what) {
                    Some(Some(What::Logged(logged))) => source.head = Some(logged),
                    Some(Some(What::Gap(gap))) => return Some(event(What::Gap(gap))),
                    Some(Some(What::Silent(silent))) => {
                        source.is_past = true;
                        return Some(event(What::Silent(silent)));
                    }
                    Some(Some(What::CaughtUp(_))) | None => source.is_past = true,
                    // Something of a newer agent.
                    Some(None) => {}
                }
            }
        }
        let at = |source: &Source| {
            let head = source.head.as_ref()?;
            head.at.as_ref().map(|at| Reverse((at.seconds, at.nanos)))
        };
        // The oldest; an event without its time comes first.
        let heads = self.sources.iter_mut().filter(|source| source.head.is_some());
        let oldest =
            heads.max_by_key(|source| (source.head.as_ref().is_some_and(|head| head.at.is_none()), at(source)))?;
        oldest.head.take().map(|logged| event(What::Logged(logged)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_beginnings_of_names_fit() {
        let patterns = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (event, words, expected) in [
            ("init.started", &[][..], true),
            ("init.started", &["init.*"], true),
            ("initx.started", &["init.*"], false),
            ("init.started", &["init.started"], true),
            ("init.started", &["init.start"], false),
            ("init.started", &["agent.*", "*"], true),
            ("rpc.denied", &["init.*", "agent.*"], false),
        ] {
            assert_eq!(fits(event, &patterns(words)), expected, "{event} {words:?}");
        }
        for bad in ["", "init.*.x", "Init.*", "init started", "**", "a;b"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for good in ["*", "init.*", "init.table_complete", "ag*"] {
            assert!(check(good).is_ok(), "{good:?}");
        }
    }

    fn at(node: &str, second: i64) -> AgentEvent {
        let cursor = EventCursor { node_id: node.into(), instance_id: "x".into(), number: second as u64 };
        event(What::Logged(LoggedEvent {
            cursor: Some(cursor),
            at: Some(prost_types::Timestamp { seconds: second, nanos: 0 }),
            message: format!("{node}{second}"),
            ..LoggedEvent::default()
        }))
    }

    fn words(told: &[AgentEvent]) -> Vec<String> {
        told.iter()
            .map(|told| match told.what.as_ref().expect("it tells something") {
                What::Logged(logged) => logged.message.clone(),
                What::Gap(gap) => format!("gap {}", gap.node_id),
                What::Silent(silent) => format!("silent {}", silent.node_id),
                What::CaughtUp(_) => "caught up".into(),
            })
            .collect()
    }

    #[tokio::test]
    async fn the_past_of_several_nodes_is_told_in_order_and_then_what_comes() {
        let caught_up = || event(What::CaughtUp(CaughtUp {}));
        let silent = event(What::Silent(SilentNode { node_id: "c".into(), reason: "x".into() }));
        let sources = || {
            vec![
                Source::new(stream::iter([at("a", 1), at("a", 4), caught_up(), at("a", 6)]).boxed()),
                Source::new(stream::iter([at("b", 2), at("b", 3), at("b", 5), caught_up()]).boxed()),
                Source::new(stream::iter([silent.clone(), at("c", 0), caught_up()]).boxed()),
            ]
        };
        let told: Vec<_> = Merged::new(sources(), true).stream().collect().await;
        let mut said = words(&told);
        let live = said.split_off(said.iter().position(|word| word == "caught up").expect("it caught up"));
        assert_eq!(said, ["silent c", "a1", "b2", "b3", "a4", "b5"]);
        let mut live = live;
        live.sort();
        assert_eq!(live, ["a6", "c0", "caught up"], "the rest is told as it comes, and catching up once");
        let told: Vec<_> = Merged::new(sources(), false).stream().collect().await;
        assert_eq!(words(&told), ["silent c", "a1", "b2", "b3", "a4", "b5", "caught up"]);
    }
}
