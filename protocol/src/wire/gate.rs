//! Who may come in while many want to: handshakes under way, connections of each identity, requests of each identity.
//!
//! Nothing here waits. Whoever is one too many is told at once, or pushes out the oldest of its own kind.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    connection::Connection,
    identity::{PeerId, Who},
    limits::{
        CALLERS_PER_IDENTITY, CONNECTIONS_PER_NODE, HANDSHAKE_LIMIT, HANDSHAKES_AT_ONCE, HANDSHAKES_PER_ADDRESS,
        REFUSALS_A_SECOND, REFUSALS_IN_ONE_GO, REQUESTS_A_SECOND, REQUESTS_IN_ONE_GO, REQUESTS_PER_IDENTITY, Refusal,
        Refusals,
    },
};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The door of one endpoint. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    handshakes: Arc<Mutex<Handshakes>>,
    connections: Arc<Mutex<HashMap<PeerId, VecDeque<Connection>>>>,
    callers: Arc<Mutex<HashMap<Who, usize>>>,
    asked: Arc<Mutex<HashMap<Who, Asked>>>,
    refusals: Arc<Refusals>,
    complaints: Arc<Mutex<Option<Bucket>>>,
}

#[derive(Debug, Default)]
struct Handshakes {
    next: u64,
    total: usize,
    by_address: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
}

/// One handshake under way; its place is free again when this drops.
#[derive(Debug)]
pub(super) struct Handshake {
    gate: Gate,
    number: u64,
    from: IpAddr,
    pushed_out: CancellationToken,
}

/// What is known of one identity's requests.
#[derive(Debug)]
struct Asked {
    rate: Bucket,
    patience: Bucket,
    under_way: usize,
}

/// Whether a request may go on.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It may, and counts until the guard drops.
    Go(Asking),
    /// One too many.
    Refused(Refusal),
    /// Far too many: end the connection.
    Cut,
}

/// One request under way.
#[derive(Debug)]
pub(super) struct Asking {
    gate: Gate,
    who: Who,
}

/// One gRPC connection over TCP.
#[derive(Debug)]
pub(super) struct Calling {
    gate: Gate,
    who: Who,
}

impl Gate {
    /// How often each limit was met.
    pub(super) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// Counts a refusal.
    pub(super) fn count(&self, reason: Refusal) {
        self.refusals.count(reason);
    }

    /// Whether one more line about a stranger may be logged: one a second, twenty in one go.
    pub(super) fn may_complain(&self) -> bool {
        let now = Instant::now();
        locked(&self.complaints).get_or_insert_with(|| Bucket::new(1.0, 20.0, now)).take(now)
    }

    /// How many handshakes are under way.
    pub(super) fn handshakes(&self) -> usize {
        locked(&self.handshakes).total
    }

    /// Lets a handshake begin; where there are too many, the oldest is pushed out.
    pub(super) fn begin(&self, from: IpAddr) -> Handshake {
        let from = neighbourhood(from);
        let pushed_out = CancellationToken::new();
        let mut under_way = locked(&self.handshakes);
        let of_address = under_way.by_address.get(&from).map_or(0, VecDeque::len);
        if of_address >= HANDSHAKES_PER_ADDRESS {
            under_way.push_out(from);
        } else if under_way.total >= HANDSHAKES_AT_ONCE
            && let Some(busiest) = under_way.busiest()
        {
            under_way.push_out(busiest);
        }
        let number = under_way.next;
        under_way.next += 1;
        under_way.total += 1;
        under_way.by_address.entry(from).or_default().push_back((number, pushed_out.clone()));
        Handshake { gate: self.clone(), number, from, pushed_out }
    }

    /// Takes in a connection of an agent; where that agent has too many, its oldest is closed.
    pub(super) fn connected(&self, connection: Connection) {
        let oldest = {
            let mut all = locked(&self.connections);
            all.retain(|_, of_one| {
                of_one.retain(|connection| !connection.is_closed());
                !of_one.is_empty()
            });
            let of_one = all.entry(connection.peer().clone()).or_default();
            of_one.push_back(connection);
            (of_one.len() > CONNECTIONS_PER_NODE).then(|| of_one.pop_front()).flatten()
        };
        if let Some(oldest) = oldest {
            self.count(Refusal::Connections);
            oldest.close("this agent has newer connections");
        }
    }

    /// Every connection that was taken in and may still be open.
    pub(super) fn connections(&self) -> Vec<Connection> {
        locked(&self.connections).values().flatten().cloned().collect()
    }

    /// Takes in a gRPC connection of `who` over TCP, unless there are too many.
    pub(super) fn calling(&self, who: &Who) -> Option<Calling> {
        let mut callers = locked(&self.callers);
        let count = callers.entry(who.clone()).or_default();
        if *count >= CALLERS_PER_IDENTITY {
            self.count(Refusal::Connections);
            return None;
        }
        *count += 1;
        Some(Calling { gate: self.clone(), who: who.clone() })
    }

    /// Decides about a request of `who`.
    pub(super) fn asks(&self, who: &Who) -> Verdict {
        let now = Instant::now();
        let mut asked = locked(&self.asked);
        // Identities that rest need not be remembered.
        if asked.len() > 256 {
            asked.retain(|_, one| one.under_way > 0 || !one.rate.is_full(now) || !one.patience.is_full(now));
        }
        let one = asked.entry(who.clone()).or_insert_with(|| Asked {
            rate: Bucket::new(REQUESTS_A_SECOND, REQUESTS_IN_ONE_GO, now),
            patience: Bucket::new(REFUSALS_A_SECOND, REFUSALS_IN_ONE_GO, now),
            under_way: 0,
        });
        let reason = if one.under_way >= REQUESTS_PER_IDENTITY {
            Refusal::RequestsAtOnce
        } else if !one.rate.take(now) {
            Refusal::RequestRate
        } else {
            one.under_way += 1;
            drop(asked);
            return Verdict::Go(Asking { gate: self.clone(), who: who.clone() });
        };
        let is_patient = one.patience.take(now);
        drop(asked);
        self.count(reason);
        if is_patient {
            return Verdict::Refused(reason);
        }
        self.count(Refusal::Cut);
        Verdict::Cut
    }
}

impl Handshakes {
    fn busiest(&self) -> Option<IpAddr> {
        self.by_address.iter().max_by_key(|(_, waiting)| waiting.len()).map(|(address, _)| *address)
    }

    fn push_out(&mut self, address: IpAddr) {
        let Some(waiting) = self.by_address.get_mut(&address) else { return };
        if let Some((_, oldest)) = waiting.pop_front() {
            oldest.cancel();
            self.total -= 1;
        }
        if waiting.is_empty() {
            self.by_address.remove(&address);
        }
    }
}

impl Handshake {
    /// Waits for `shaken`, as long as a handshake may take and nobody pushes it out.
    pub(super) async fn hold<T, E>(self, shaken: impl Future<Output = Result<T, E>>) -> Option<Result<T, E>> {
        match self.pushed_out.run_until_cancelled(timeout(HANDSHAKE_LIMIT, shaken)).await {
            Some(Ok(shaken)) => return Some(shaken),
            Some(Err(_)) => self.gate.count(Refusal::HandshakeSlow),
            None => self.gate.count(Refusal::HandshakeCrowd),
        }
        None
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut under_way = locked(&self.gate.handshakes);
        let under_way = &mut *under_way;
        let Some(waiting) = under_way.by_address.get_mut(&self.from) else { return };
        let before = waiting.len();
        waiting.retain(|(number, _)| *number != self.number);
        under_way.total -= before - waiting.len();
        if waiting.is_empty() {
            under_way.by_address.remove(&self.from);
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(one) = locked(&self.gate.asked).get_mut(&self.who) {
            one.under_way -= 1;
        }
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        let mut callers = locked(&self.gate.callers);
        if let Some(count) = callers.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                callers.remove(&self.who);
            }
        }
    }
}

/// A host of IPv6 has a whole network of addresses to come from.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Lets `rate` through a second, and `burst` in one go.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: f64, burst: f64, now: Instant) -> Self {
        Self { rate, burst, tokens: burst, at: now }
    }

    fn fill(&mut self, now: Instant) {
        self.tokens = (self.tokens + self.rate * (now - self.at).as_secs_f64()).min(self.burst);
        self.at = now;
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }

    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let is_there = self.tokens >= 1.0;
        if is_there {
            self.tokens -= 1.0;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_pushes_out_its_own_oldest_handshakes_and_nobody_elses() {
        let gate = Gate::default();
        let honest = gate.begin(address(1));
        let mut flood: Vec<_> = (0..10 * HANDSHAKES_PER_ADDRESS).map(|_| gate.begin(address(2))).collect();
        assert_eq!(gate.handshakes(), HANDSHAKES_PER_ADDRESS + 1);
        assert!(flood[0].pushed_out.is_cancelled() && !honest.pushed_out.is_cancelled());
        assert!(!flood.last().expect("many").pushed_out.is_cancelled(), "the newest stays");
        // From many addresses: the busiest one pays.
        let many: Vec<_> = (3..=255).map(|last| gate.begin(address(last))).collect();
        assert_eq!(gate.handshakes(), HANDSHAKES_AT_ONCE);
        let left = flood.iter().filter(|handshake| !handshake.pushed_out.is_cancelled()).count();
        assert!(!honest.pushed_out.is_cancelled() && left < HANDSHAKES_PER_ADDRESS / 2, "{left} are left");
        assert_eq!(honest.hold(async { Ok::<_, ()>(1) }).await, Some(Ok(1)));
        flood.clear();
        drop(many);
        assert_eq!(gate.handshakes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_takes_too_long_or_is_pushed_out_is_counted() {
        let gate = Gate::default();
        let slow = gate.begin(address(1)).hold(std::future::pending::<Result<(), ()>>());
        assert_eq!(slow.await, None);
        let first = gate.begin(address(1));
        let _crowd: Vec<_> = (0..HANDSHAKES_PER_ADDRESS).map(|_| gate.begin(address(1))).collect();
        assert_eq!(first.hold(std::future::pending::<Result<(), ()>>()).await, None);
        let refusals = gate.refusals();
        assert_eq!((refusals.of(Refusal::HandshakeSlow), refusals.of(Refusal::HandshakeCrowd)), (1, 1));
    }

    #[test]
    fn an_ipv6_host_is_one_neighbour_and_a_mapped_address_is_its_ipv4() {
        let one: IpAddr = "2001:db8:1:2:3:4:5:6".parse().expect("an address");
        let other: IpAddr = "2001:db8:1:2:ffff::1".parse().expect("an address");
        assert_eq!(neighbourhood(one), neighbourhood(other));
        assert_eq!(neighbourhood("::ffff:10.0.0.1".parse().expect("an address")), address(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_identity_may_ask_in_bursts_then_at_its_rate_and_is_cut_when_it_never_stops() {
        let gate = Gate::default();
        let [loud, quiet] = ["node_a", "node_b"].map(|id| Who::Node(id.parse().expect("a node")));
        let mut gone = 0;
        while let Verdict::Go(asking) = gate.asks(&loud) {
            drop(asking);
            gone += 1;
        }
        assert_eq!(gone, REQUESTS_IN_ONE_GO as u32);
        assert!(matches!(gate.asks(&quiet), Verdict::Go(_)), "others are not held back");
        tokio::time::advance(Duration::from_secs(1)).await;
        let again = (0..300).filter(|_| matches!(gate.asks(&loud), Verdict::Go(_))).count();
        assert_eq!(again, REQUESTS_A_SECOND as usize);
        let cut_after = (0..10_000).position(|_| matches!(gate.asks(&loud), Verdict::Cut)).expect("it is cut");
        assert!(cut_after <= REFUSALS_IN_ONE_GO as usize, "{cut_after}");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_under_way_are_bounded_for_each_identity() {
        let gate = Gate::default();
        let who = Who::Node("node_a".parse().expect("a node"));
        let mut held: Vec<_> = (0..REQUESTS_PER_IDENTITY).map(|_| gate.asks(&who)).collect();
        assert!(held.iter().all(|verdict| matches!(verdict, Verdict::Go(_))));
        assert!(matches!(gate.asks(&who), Verdict::Refused(Refusal::RequestsAtOnce)));
        held.pop();
        assert!(matches!(gate.asks(&who), Verdict::Go(_)));
    }

    #[test]
    fn callers_are_counted_until_they_hang_up() {
        let gate = Gate::default();
        let who = Who::Node("node_a".parse().expect("a node"));
        let mut held: Vec<_> = (0..CALLERS_PER_IDENTITY).map(|_| gate.calling(&who).expect("there is room")).collect();
        assert!(gate.calling(&who).is_none());
        held.pop();
        assert!(gate.calling(&who).is_some());
    }
}
