//! What every node's agent has said, as a set of versioned keys that any two agents can bring to the same state.
//!
//! Each agent writes the entries of its own node and no others; it counts its writes (`version`), anew in each run
//! (`generation`). A digest says how much somebody holds, a delta brings what they lack; applied in any order, any
//! number of times, deltas lead everywhere to the same entries. A node that was forgotten stays so up to the
//! generation it had.
//!
//! Pure: knows no clock, no transport and nothing of what the values mean.

use std::collections::BTreeMap;

use bytes::Bytes;
use steep_protocol::{ids::NodeId, v1};
use xxhash_rust::xxh3::xxh3_64;

/// The longest key that is taken.
pub const LARGEST_KEY: usize = 32;
/// The largest value that is taken.
pub const LARGEST_VALUE: usize = 1_024;
/// Keys a node may have.
const MOST_KEYS: usize = 32;
/// Nodes that are remembered; whoever makes up more is not believed.
const MOST_NODES: usize = 4_096;
/// A delta for somebody who lacks much stops here; what is left comes with the next exchange.
const LARGEST_ANSWER: usize = 2 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    value: Bytes,
    version: u64,
    is_deleted: bool,
}

/// What is held of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Holding {
    generation: u64,
    version: u64,
    forgotten: u64,
    entries: BTreeMap<String, Entry>,
}

impl Holding {
    fn is_forgotten(&self) -> bool {
        self.generation <= self.forgotten
    }

    /// One number for how much is held of `node`; 0 for nothing.
    fn stamp(&self, node: &NodeId) -> u64 {
        if self.generation == 0 && self.forgotten == 0 {
            return 0;
        }
        let mut bytes = Vec::with_capacity(96);
        for number in [self.generation, self.version, self.forgotten] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(node.as_str().as_bytes());
        xxh3_64(&bytes)
    }
}

/// What a delta came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Something is known now that was not before.
    News,
    /// All of it was known.
    Nothing,
    /// It builds on something that is not held: ask its sender.
    Gap,
    /// It breaks a rule: too large, too many, no name, or about us.
    Refused,
}

/// The set. The same everywhere once everybody has heard everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    me: NodeId,
    nodes: BTreeMap<NodeId, Holding>,
    /// The stamps of all holdings, xored.
    hash: u64,
}

impl View {
    /// Holds nothing but that `me` writes as of `generation`.
    pub fn new(me: NodeId, generation: u64) -> Self {
        let own = Holding { generation, ..Holding::default() };
        let hash = own.stamp(&me);
        Self { nodes: BTreeMap::from([(me.clone(), own)]), me, hash }
    }

    /// Writes an entry of our own; says whether that changed anything. What is too large changes nothing.
    pub fn set(&mut self, key: &str, value: Bytes) -> bool {
        let fits = key.len() <= LARGEST_KEY && value.len() <= LARGEST_VALUE;
        debug_assert!(fits, "{key} is too large to be told");
        fits && self.write(key, Some(value))
    }

    /// Takes an entry of our own back.
    pub fn delete(&mut self, key: &str) -> bool {
        self.get(&self.me, key).is_some() && self.write(key, None)
    }

    fn write(&mut self, key: &str, value: Option<Bytes>) -> bool {
        let (is_deleted, value) = (value.is_none(), value.unwrap_or_default());
        self.change(&self.me.clone(), |own| {
            if own.entries.get(key).is_some_and(|old| old.value == value && old.is_deleted == is_deleted) {
                return false;
            }
            own.version += 1;
            let entry = Entry { value, version: own.version, is_deleted };
            own.entries.insert(key.to_owned(), entry);
            true
        })
    }

    /// Goes on as a later generation of ourselves, with the same entries.
    pub fn renew(&mut self, generation: u64) {
        self.change(&self.me.clone(), |own| own.generation = own.generation.max(generation));
    }

    /// An entry, where its node has written it and it was neither taken back nor forgotten.
    pub fn get(&self, node: &NodeId, key: &str) -> Option<&Bytes> {
        let held = self.nodes.get(node).filter(|held| !held.is_forgotten())?;
        held.entries.get(key).filter(|entry| !entry.is_deleted).map(|entry| &entry.value)
    }

    /// The generation `node`'s entries are of; 0: none is held.
    pub fn generation(&self, node: &NodeId) -> u64 {
        self.nodes.get(node).map_or(0, |held| held.generation)
    }

    /// The highest version of `node`'s entries.
    pub fn version(&self, node: &NodeId) -> u64 {
        self.nodes.get(node).map_or(0, |held| held.version)
    }

    /// The generation up to which `node` was forgotten; 0: it was not.
    pub fn forgotten(&self, node: &NodeId) -> u64 {
        self.nodes.get(node).map_or(0, |held| held.forgotten)
    }

    /// Nodes that were heard of and not forgotten, ours included.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.iter().filter(|(_, held)| !held.is_forgotten()).map(|(node, _)| node)
    }

    /// Forgets `node` as of `generation` or what is held of it, whichever is higher.
    pub fn forget(&mut self, node: &NodeId, generation: u64) {
        if *node == self.me {
            return;
        }
        self.change(node, |held| {
            let forgotten = held.forgotten.max(generation).max(held.generation);
            *held = Holding { forgotten, ..Holding::default() };
        });
    }

    /// One number for everything held: equal on two agents that hold the same.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Changes what is held of `node`; the only way to.
    fn change<T>(&mut self, node: &NodeId, change: impl FnOnce(&mut Holding) -> T) -> T {
        let held = self.nodes.entry(node.clone()).or_default();
        self.hash ^= held.stamp(node);
        let changed = change(held);
        self.hash ^= held.stamp(node);
        changed
    }

    /// The generation that a run of `node` must have at least to be heard; 0: any.
    pub fn earliest(&self, node: &NodeId) -> u64 {
        let forgotten = self.forgotten(node);
        self.generation(node).max(if forgotten == 0 { 0 } else { forgotten + 1 })
    }

    /// How much is held of each node.
    pub fn digests(&self) -> Vec<v1::NodeDigest> {
        let digest = |(node, held): (&NodeId, &Holding)| v1::NodeDigest {
            node_id: node.to_string(),
            generation: held.generation,
            version: held.version,
            forgotten: held.forgotten,
        };
        self.nodes.iter().map(digest).collect()
    }

    /// What somebody with `digests` lacks. May stop short of all of it; then the next exchange goes on.
    pub fn lacking(&self, digests: &[v1::NodeDigest]) -> Vec<v1::NodeDelta> {
        let theirs: BTreeMap<&str, &v1::NodeDigest> =
            digests.iter().map(|digest| (digest.node_id.as_str(), digest)).collect();
        let (mut deltas, mut bytes) = (Vec::new(), 0);
        for (node, held) in &self.nodes {
            let known = theirs.get(node.as_str()).copied();
            let (generation, version, forgotten) =
                known.map_or((0, 0, 0), |known| (known.generation, known.version, known.forgotten));
            let is_newer = (held.generation, held.version) > (generation, version) && held.generation > forgotten;
            if !is_newer && held.forgotten <= forgotten {
                continue;
            }
            let since = if generation == held.generation { version } else { 0 };
            let delta = self.since(node, if is_newer { since } else { held.version });
            bytes += delta.entries.iter().map(|entry| entry.key.len() + entry.value.len() + 16).sum::<usize>() + 96;
            if bytes > LARGEST_ANSWER && !deltas.is_empty() {
                break;
            }
            deltas.push(delta);
        }
        deltas
    }

    /// The entries of `node` above version `since`.
    pub fn since(&self, node: &NodeId, since: u64) -> v1::NodeDelta {
        let nothing = Holding::default();
        let held = self.nodes.get(node).unwrap_or(&nothing);
        let entries = held.entries.iter().filter(|(_, entry)| entry.version > since);
        let entries = entries.map(|(key, entry)| v1::GossipEntry {
            key: key.clone(),
            value: entry.value.to_vec(),
            version: entry.version,
            is_deleted: entry.is_deleted,
        });
        v1::NodeDelta {
            node_id: node.to_string(),
            generation: held.generation,
            since,
            entries: entries.collect(),
            forgotten: held.forgotten,
        }
    }

    /// Takes in what somebody told. Generations above `latest` are of no clock that could be right, and refused.
    pub fn apply(&mut self, delta: &v1::NodeDelta, latest: u64) -> Applied {
        let Ok(node) = delta.node_id.parse::<NodeId>() else { return Applied::Refused };
        let is_sound = |entry: &v1::GossipEntry| {
            entry.key.len() <= LARGEST_KEY && entry.value.len() <= LARGEST_VALUE && entry.version > delta.since
        };
        let is_known = self.nodes.contains_key(&node);
        if node == self.me
            || delta.generation.max(delta.forgotten) > latest
            || delta.entries.len() > MOST_KEYS
            || !delta.entries.iter().all(is_sound)
            || (!is_known && self.nodes.len() >= MOST_NODES)
        {
            return Applied::Refused;
        }
        self.change(&node, |held| take_in(held, delta))
    }
}

fn take_in(held: &mut Holding, delta: &v1::NodeDelta) -> Applied {
    let mut news = Applied::Nothing;
    if delta.forgotten > held.forgotten {
        news = Applied::News;
        held.forgotten = delta.forgotten;
        if held.is_forgotten() {
            *held = Holding { forgotten: held.forgotten, ..Holding::default() };
        }
    }
    if delta.generation < held.generation || delta.generation <= held.forgotten {
        return news;
    }
    let is_new_run = delta.generation > held.generation;
    if delta.since > if is_new_run { 0 } else { held.version } {
        return Applied::Gap;
    }
    if is_new_run {
        news = Applied::News;
        *held = Holding { generation: delta.generation, forgotten: held.forgotten, ..Holding::default() };
    }
    for told in delta.entries.iter().filter(|told| told.version > held.version) {
        news = Applied::News;
        let entry = Entry { value: told.value.clone().into(), version: told.version, is_deleted: told.is_deleted };
        held.entries.insert(told.key.clone(), entry);
    }
    if held.entries.len() > MOST_KEYS {
        *held = Holding { forgotten: held.forgotten, ..Holding::default() };
        return Applied::Refused;
    }
    held.version = delta.entries.iter().map(|told| told.version).fold(held.version, u64::max);
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().expect("a name")
    }

    fn written(name: &str, generation: u64, entries: &[(&str, &str)]) -> View {
        let mut view = View::new(node(name), generation);
        for (key, value) in entries {
            view.set(key, Bytes::copy_from_slice(value.as_bytes()));
        }
        view
    }

    fn bring(from: &View, to: &mut View) {
        for delta in from.lacking(&to.digests()) {
            to.apply(&delta, u64::MAX);
        }
    }

    fn text(view: &View, name: &str, key: &str) -> Option<String> {
        view.get(&node(name), key).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Every order in which `items` can come.
    fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
        if items.is_empty() {
            return vec![Vec::new()];
        }
        (0..items.len())
            .flat_map(|at| {
                let mut rest = items.to_vec();
                let first = rest.remove(at);
                orders(&rest).into_iter().map(move |order| std::iter::once(first.clone()).chain(order).collect())
            })
            .collect()
    }

    #[test]
    fn deltas_lead_to_the_same_state_in_every_order_and_however_often_they_come() {
        let mut a = written("a", 5, &[("state", "copying"), ("lag", "1")]);
        let first = a.since(&node("a"), 0);
        a.set("state", Bytes::from_static(b"synchronized"));
        let second = a.since(&node("a"), 2);
        a.delete("lag");
        let third = a.since(&node("a"), 3);
        let old_run = written("a", 4, &[("state", "failed"), ("x", "y")]).since(&node("a"), 0);
        let b = written("b", 9, &[("state", "ok")]).since(&node("b"), 0);
        for order in orders(&[first, second, third, old_run, b]) {
            let mut seen = View::new(node("c"), 1);
            for _ in 0..2 {
                // What built on something missing is told again, as an exchange does.
                for delta in &order {
                    seen.apply(delta, u64::MAX);
                }
            }
            bring(&a, &mut seen);
            assert_eq!(text(&seen, "a", "state").as_deref(), Some("synchronized"), "{order:?}");
            assert_eq!((text(&seen, "a", "lag"), text(&seen, "a", "x")), (None, None), "{order:?}");
            let mut whole = View::new(node("c"), 1);
            bring(&a, &mut whole);
            bring(&written("b", 9, &[("state", "ok")]), &mut whole);
            assert_eq!(seen.hash(), whole.hash(), "{order:?}");
        }
    }

    #[test]
    fn any_two_views_are_equal_after_one_exchange_and_then_lack_nothing() {
        let mut all: Vec<View> = (0..6).map(|n| written(&format!("n{n}"), 10 + n, &[("k", "v"), ("l", "w")])).collect();
        for (one, other) in
            [(0, 1), (2, 3), (4, 5), (1, 2), (3, 4), (0, 5), (5, 1), (1, 3), (0, 2), (2, 4), (4, 0), (5, 3)]
        {
            let (mut left, mut right) = (all[one].clone(), all[other].clone());
            bring(&left, &mut right);
            bring(&right, &mut left);
            assert_eq!(left.hash(), right.hash());
            assert!(left.lacking(&right.digests()).is_empty() && right.lacking(&left.digests()).is_empty());
            (all[one], all[other]) = (left, right);
        }
        assert!(all.iter().all(|view| view.nodes().count() == 6 && view.hash() == all[0].hash()));
    }

    #[test]
    fn a_later_run_replaces_all_of_an_earlier_one_and_never_the_other_way() {
        let mut seen = View::new(node("c"), 1);
        bring(&written("a", 7, &[("state", "new")]), &mut seen);
        let old = written("a", 6, &[("state", "old"), ("op", "x"), ("more", "y")]);
        assert_eq!(seen.apply(&old.since(&node("a"), 0), u64::MAX), Applied::Nothing);
        assert_eq!(text(&seen, "a", "state").as_deref(), Some("new"));
        let mut renewed = old;
        renewed.renew(8);
        assert_eq!(seen.apply(&renewed.since(&node("a"), 0), u64::MAX), Applied::News);
        assert_eq!(text(&seen, "a", "op").as_deref(), Some("x"));
    }

    #[test]
    fn a_change_that_builds_on_one_that_was_lost_is_not_taken_half() {
        let mut a = written("a", 5, &[("one", "1")]);
        let mut seen = View::new(node("c"), 1);
        bring(&a, &mut seen);
        a.set("two", Bytes::from_static(b"2"));
        a.set("three", Bytes::from_static(b"3"));
        let hash = seen.hash();
        assert_eq!(seen.apply(&a.since(&node("a"), 2), u64::MAX), Applied::Gap);
        assert_eq!(seen.hash(), hash, "nothing of it was taken");
        bring(&a, &mut seen);
        assert_eq!(text(&seen, "a", "two").as_deref(), Some("2"));
    }

    #[test]
    fn a_forgotten_node_stays_forgotten_until_a_later_run_of_it() {
        let a = written("a", 5, &[("state", "ok")]);
        let (mut one, mut other) = (View::new(node("c"), 1), View::new(node("d"), 1));
        bring(&a, &mut one);
        bring(&a, &mut other);
        one.forget(&node("a"), 0);
        bring(&other, &mut one);
        assert_eq!(text(&one, "a", "state"), None, "nobody brings it back");
        bring(&one, &mut other);
        assert_eq!(text(&other, "a", "state"), None);
        bring(&written("a", 6, &[("state", "back")]), &mut other);
        bring(&other, &mut one);
        assert_eq!(text(&one, "a", "state").as_deref(), Some("back"));
        assert_eq!(one.forgotten(&node("a")), 5);
    }

    #[test]
    fn what_breaks_a_rule_is_refused_whole() {
        let good = written("a", 5, &[("state", "ok")]).since(&node("a"), 0);
        let entry = &good.entries[0];
        let with = |entry: v1::GossipEntry| v1::NodeDelta { entries: vec![entry], ..good.clone() };
        let many = (0..40).map(|n| v1::GossipEntry { key: format!("k{n}"), ..entry.clone() }).collect();
        let bad = [
            v1::NodeDelta { node_id: "Node A".into(), ..good.clone() },
            v1::NodeDelta { node_id: "c".into(), ..good.clone() },
            v1::NodeDelta { generation: 1_000, ..good.clone() },
            v1::NodeDelta { forgotten: 1_000, ..good.clone() },
            v1::NodeDelta { entries: many, ..good.clone() },
            with(v1::GossipEntry { key: "k".repeat(33), ..entry.clone() }),
            with(v1::GossipEntry { value: vec![0; 1_025], ..entry.clone() }),
            with(v1::GossipEntry { version: 0, ..entry.clone() }),
        ];
        let mut seen = View::new(node("c"), 1);
        let hash = seen.hash();
        for delta in bad {
            assert_eq!(seen.apply(&delta, 999), Applied::Refused, "{delta:?}");
            assert_eq!(seen.hash(), hash);
        }
        assert_eq!(seen.apply(&good, 999), Applied::News);
    }
}
