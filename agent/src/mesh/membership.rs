//! Who is there: SWIM, as foca plays it, with time handed in and packets handed out.
//!
//! A member is probed by somebody every second; one that answers neither directly nor through others is suspect,
//! and dead when it does not object for some seconds. Which run of an agent a member is, its generation tells: a
//! later one wins over all that is said of earlier ones. Members that are dead or have left are kept, so that they can
//! be shown and tried again, until somebody has them forgotten.
//!
//! Pure: no clock, no transport. The only file that names foca.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Codec as _, Config, Foca, Header, Identity, NoCustomBroadcast, OwnedNotification as Told,
    PeriodicParams, PostcardCodec, State, Timer,
};
use rand::{SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};
use steep_protocol::{ids::NodeId, wire::datagram::LARGEST_DATAGRAM};
use xxhash_rust::xxh3::xxh3_128;

/// Longer pauses between two looks at the clock were no time in which others could have answered us.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// From suspicion to death, at most, in meshes of up to [`SMALL`] members; foca's own measure for larger ones.
const PATIENCE: Duration = Duration::from_secs(4);
const SMALL: usize = 64;
/// Told so often more than foca would: everybody tells a piece of news to so many at random, so with foca's own seven
/// at 50 members one time in twenty somebody is never told.
const SURPLUS: u8 = 6;
/// How often dead members are tried again: after a partition both sides hold each other for dead.
const TRY_DEAD: Duration = Duration::from_secs(10);
/// How often foca is asked whom it suspects.
const SCAN: Duration = Duration::from_millis(500);

/// One run of one agent, as others know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RunTold")]
pub struct Run {
    /// Its node.
    pub node: NodeId,
    /// `host:port` at which it is reached.
    pub address: String,
    /// Milliseconds since 1970 at its start, by its own clock, or a little more: later runs have higher ones.
    pub generation: u64,
    /// The node's name in short: foca asks for it at every step of its walks over all members.
    #[serde(skip_serializing)]
    short: u128,
}

/// As it travels.
#[derive(Deserialize)]
struct RunTold {
    node: NodeId,
    address: String,
    generation: u64,
}

impl Run {
    /// The run of `node` that is reached at `address`.
    pub fn new(node: NodeId, address: String, generation: u64) -> Self {
        let short = xxh3_128(node.as_str().as_bytes());
        Self { node, address, generation, short }
    }
}

impl From<RunTold> for Run {
    fn from(told: RunTold) -> Self {
        Self::new(told.node, told.address, told.generation)
    }
}

impl Identity for Run {
    type Addr = u128;

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation + 1, ..self.clone() })
    }

    fn addr(&self) -> u128 {
        self.short
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

/// How a member fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It answers, directly or through others.
    Alive,
    /// It has not answered, and has not objected yet.
    Suspect,
    /// It was given up.
    Dead,
    /// It has said goodbye.
    Left,
    /// It was a member once, and was not heard of since this agent started.
    Unknown,
}

impl Liveness {
    /// The word for it in messages, SQL and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
            Self::Unknown => "unknown",
        }
    }

    /// It counts as a member.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }

    /// Asking it is no waste of time.
    pub fn may_answer(self) -> bool {
        !matches!(self, Self::Dead | Self::Left)
    }
}

/// A member and how it fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Which run of it.
    pub run: Run,
    /// How it fares.
    pub liveness: Liveness,
    /// Since when, on the clock that is handed in.
    pub since: Duration,
}

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A member, or a new run of one, is there.
    Up(NodeId),
    /// A member does not answer.
    Suspect(NodeId),
    /// A member was given up, or has left.
    Down(NodeId),
    /// Others had given us up; we go on as this generation.
    Renewed(u64),
}

/// Why a packet was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Its sender is another than it says.
    #[error("a packet from {from} claims to be from {claimed}")]
    Impostor {
        /// By certificate.
        from: NodeId,
        /// In the packet.
        claimed: NodeId,
    },
    /// It makes no sense.
    #[error("a packet from {from} makes no sense: {reason}")]
    Malformed {
        /// By certificate.
        from: NodeId,
        /// What is wrong with it.
        reason: String,
    },
}

/// Who is there, as one agent sees it.
pub struct Membership {
    foca: Foca<Run, PostcardCodec, StdRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Run>,
    timers: BinaryHeap<Reverse<Due>>,
    planned: u64,
    members: BTreeMap<NodeId, Member>,
    /// How many of them are up.
    up: usize,
    outgoing: Vec<(Run, Bytes)>,
    changes: Vec<Change>,
    looked: Duration,
    scanned: Duration,
    /// Pauses in which this agent stood still: its timers wait for as long.
    lost: Duration,
    has_left: bool,
    configured_for: usize,
}

/// A timer of foca's; earlier ones first, those of one moment in foca's order.
struct Due(Duration, Timer<Run>, u64);

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, &self.1, self.2).cmp(&(other.0, &other.1, other.2))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership").field("me", self.foca.identity()).field("members", &self.members).finish()
    }
}

fn config(members: usize) -> Config {
    let size = NonZeroU32::new(members.clamp(2, 4_096) as u32).expect("at least two");
    let lan = Config::new_lan(size);
    let few = |number| NonZeroUsize::new(number).expect("a constant above zero");
    let patience = if members <= SMALL { lan.suspect_to_down_after.min(PATIENCE) } else { lan.suspect_to_down_after };
    Config {
        // One byte is ours: what kind of datagram it is.
        max_packet_size: few(LARGEST_DATAGRAM - 1),
        suspect_to_down_after: patience,
        max_transmissions: lan.max_transmissions.saturating_add(SURPLUS),
        periodic_announce_to_down_members: Some(PeriodicParams { frequency: TRY_DEAD, num_members: few(2) }),
        ..lan
    }
}

impl Membership {
    /// Alone so far. `seed` decides who is probed when.
    pub fn new(me: Run, seed: u64) -> Self {
        let foca = Foca::new(me, config(2), StdRng::seed_from_u64(seed), PostcardCodec);
        Self {
            foca,
            runtime: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
            planned: 0,
            members: BTreeMap::new(),
            up: 0,
            outgoing: Vec::new(),
            changes: Vec::new(),
            looked: Duration::ZERO,
            scanned: Duration::ZERO,
            lost: Duration::ZERO,
            has_left: false,
            configured_for: 2,
        }
    }

    /// Which run of our agent this is; it changes when others had given us up.
    pub fn me(&self) -> &Run {
        self.foca.identity()
    }

    /// Whether we have said goodbye.
    pub fn has_left(&self) -> bool {
        self.has_left
    }

    /// How many others are up.
    pub fn up(&self) -> usize {
        self.up
    }

    /// Everybody else who is or was there.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One of them.
    pub fn member(&self, node: &NodeId) -> Option<&Member> {
        self.members.get(node)
    }

    /// Takes in a packet that came from `from`, by its certificate.
    pub fn receive(&mut self, from: &NodeId, packet: &[u8], now: Duration) -> Result<(), Refused> {
        let malformed = |reason: String| Refused::Malformed { from: from.clone(), reason };
        let header: Header<Run> = PostcardCodec.decode_header(packet).map_err(|error| malformed(error.to_string()))?;
        if header.src.node != *from {
            return Err(Refused::Impostor { from: from.clone(), claimed: header.src.node });
        }
        if self.has_left {
            return Ok(());
        }
        let taken = self.foca.handle_data(packet, &mut self.runtime);
        self.settle(now);
        taken.map_err(|error| malformed(error.to_string()))
    }

    /// Says to `to` that we want to be a member; of its generation nothing need be known.
    pub fn announce(&mut self, to: Run, now: Duration) {
        if !self.has_left {
            // Only a packet that cannot be encoded fails, and our own can.
            let _ = self.foca.announce(to, &mut self.runtime);
            self.settle(now);
        }
    }

    /// Says goodbye.
    pub fn leave(&mut self, now: Duration) {
        if !self.has_left {
            let _ = self.foca.leave_cluster(&mut self.runtime);
            self.has_left = true;
            self.settle(now);
        }
    }

    /// Becomes a member again after [`Membership::leave`], as a later run.
    pub fn come_back(&mut self, generation: u64, now: Duration) {
        self.has_left = false;
        self.renew(generation, now);
    }

    /// Goes on as `generation`, if that is later than ours.
    pub fn renew(&mut self, generation: u64, now: Duration) {
        if generation > self.me().generation {
            let later = Run { generation, ..self.me().clone() };
            let _ = self.foca.change_identity(later, &mut self.runtime);
            self.changes.push(Change::Renewed(generation));
            self.settle(now);
        }
    }

    /// A member's own word, over its own connection, that it is gone.
    pub fn is_gone(&mut self, node: &NodeId, now: Duration) {
        let Some(member) = self.members.get(node).filter(|member| member.liveness.is_up()) else { return };
        let down = foca::Member::down(member.run.clone());
        let _ = self.foca.apply_many(std::iter::once(down), true, &mut self.runtime);
        self.settle(now);
    }

    /// A member said goodbye: it is not dead but has left.
    pub fn has_said_goodbye(&mut self, node: &NodeId) {
        if let Some(member) = self.members.get_mut(node)
            && !member.liveness.is_up()
        {
            member.liveness = Liveness::Left;
        }
    }

    /// A node that was a member in an earlier run of this agent.
    pub fn remember(&mut self, run: Run, now: Duration) {
        if run.node != self.me().node {
            let node = run.node.clone();
            self.members.entry(node).or_insert(Member { run, liveness: Liveness::Unknown, since: now });
        }
    }

    /// Takes a member that is not up off the list.
    pub fn forget(&mut self, node: &NodeId) {
        if self.members.get(node).is_some_and(|member| !member.liveness.is_up()) {
            self.members.remove(node);
        }
    }

    /// Does what is due. Call it at [`Membership::next_due`], or more often.
    pub fn tick(&mut self, now: Duration) {
        let paused = now.saturating_sub(self.looked);
        self.looked = now;
        self.lost += paused.saturating_sub(LONGEST_PAUSE);
        while let Some(Reverse(Due(at, ..))) = self.timers.peek()
            && *at + self.lost <= now
            && let Some(Reverse(Due(_, timer, _))) = self.timers.pop()
        {
            // A probe that a pause has torn is begun anew; that is the only error there is.
            let _ = self.foca.handle_timer(timer, &mut self.runtime);
            self.settle(now);
        }
        if now >= self.scanned + SCAN {
            self.scanned = now;
            self.look_for_suspects(now);
        }
    }

    /// When something is due next.
    pub fn next_due(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse(Due(at, ..))| *at + self.lost)
    }

    /// What is to be sent, to whom; a run with an empty address is one we know by name alone.
    pub fn outgoing(&mut self) -> Vec<(Run, Bytes)> {
        std::mem::take(&mut self.outgoing)
    }

    /// What has changed since the last time.
    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Takes over what foca wants done.
    fn settle(&mut self, now: Duration) {
        let mut has_changed = false;
        while let Some(told) = self.runtime.to_notify() {
            has_changed = true;
            match told {
                Told::MemberUp(run) => self.note(run, Liveness::Alive, now),
                Told::MemberDown(run) => {
                    self.note(run, Liveness::Dead, now);
                    // Bad news travels at once, not with the next round.
                    let _ = self.foca.gossip(&mut self.runtime);
                }
                Told::Rename(before, after) => {
                    // Where both are up foca says no more than this; else what became of the new run comes next.
                    match self.members.get_mut(&before.node) {
                        Some(member) if member.liveness.is_up() => self.note(after, Liveness::Alive, now),
                        Some(member) => member.run = after,
                        None => {}
                    }
                }
                Told::Rejoin(run) => self.changes.push(Change::Renewed(run.generation)),
                Told::Active | Told::Idle | Told::Defunct => {}
            }
        }
        if has_changed {
            self.reconfigure();
        }
        self.plan(now);
    }

    fn plan(&mut self, now: Duration) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.planned += 1;
            self.timers.push(Reverse(Due((now + after).saturating_sub(self.lost), timer, self.planned)));
        }
        while let Some(sent) = self.runtime.to_send() {
            self.outgoing.push(sent);
        }
    }

    /// foca does not tell whom it suspects: it is asked. All else it tells, so nobody else is looked up: this walks over
    /// all members twice a second.
    fn look_for_suspects(&mut self, now: Duration) {
        let is_suspect = |member: &&foca::Member<Run>| member.state() == State::Suspect;
        let suspects: Vec<_> = self.foca.iter_members().filter(is_suspect).map(|member| member.id().clone()).collect();
        let has_objected = |member: &&Member| member.liveness == Liveness::Suspect && !suspects.contains(&member.run);
        let objected: Vec<_> = self.members.values().filter(has_objected).map(|member| member.run.clone()).collect();
        for run in suspects {
            self.note(run, Liveness::Suspect, now);
        }
        for run in objected {
            self.note(run, Liveness::Alive, now);
        }
    }

    fn note(&mut self, run: Run, liveness: Liveness, now: Duration) {
        let node = run.node.clone();
        let before = self.members.get(&node);
        if before.is_some_and(|before| before.run == run && before.liveness == liveness) {
            return;
        }
        let counted = usize::from(before.is_some_and(|before| before.liveness.is_up()));
        self.up = self.up - counted + usize::from(liveness.is_up());
        let was_up = before.is_some_and(|before| before.run == run && before.liveness.is_up());
        match liveness {
            // An objection, which others need not hear of.
            Liveness::Alive if was_up => {}
            Liveness::Alive => self.changes.push(Change::Up(node.clone())),
            Liveness::Suspect => self.changes.push(Change::Suspect(node.clone())),
            _ => self.changes.push(Change::Down(node.clone())),
        }
        self.members.insert(node, Member { run, liveness, since: now });
    }

    /// Fits spreading and patience to the number of members.
    fn reconfigure(&mut self) {
        let members = self.foca.num_members() + 1;
        if members > self.configured_for * 3 / 2 || members < self.configured_for / 2 {
            self.configured_for = members;
            // Refused only where other settings change than those that may.
            let _ = self.foca.set_config(config(members));
        }
    }
}
