//! Every number the agent tells Prometheus: names, labels and meaning stand here and nowhere else.
//!
//! Counters and histograms are moved where things happen; gauges are set when somebody asks ([`crate::api`]) or once in
//! a while. `deploy/metrics.md` documents the same names for operators; a test holds the two together. No metric has a
//! table's name as a label: there may be thousands.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::prometheus_text,
    metrics::{
        counter,
        family::Family,
        gauge,
        histogram::{self, exponential_buckets},
    },
    registry::{Metric, Registry},
};

pub mod process;

/// A number that goes up and down.
pub type Gauge = gauge::Gauge<f64, AtomicU64>;
/// A number that only grows.
pub type Counter = counter::Counter<u64, AtomicU64>;
/// Seconds that only grow.
pub type Seconds = counter::Counter<f64, AtomicU64>;
/// How long things took.
pub type Histogram = histogram::Histogram;

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// One metric with `N` labels.
#[derive(Debug, Clone)]
pub struct Labelled<const N: usize, M> {
    names: [&'static str; N],
    family: Family<[(&'static str, String); N], M>,
}

impl<const N: usize, M: Clone + 'static> Labelled<N, M> {
    fn new(names: [&'static str; N], make: fn() -> M) -> Self {
        Self { names, family: Family::new_with_constructor(make) }
    }

    /// The series with these values, in the order of the names; made when it is new.
    pub fn of(&self, values: [&str; N]) -> M {
        self.family.get_or_create_owned(&self.labels(values))
    }

    /// Takes one series away.
    pub fn remove(&self, values: [&str; N]) {
        self.family.remove(&self.labels(values));
    }

    /// Takes every series away: what is not set again is not known any more.
    pub fn clear(&self) {
        self.family.clear();
    }

    fn labels(&self, values: [&str; N]) -> [(&'static str, String); N] {
        std::array::from_fn(|at| (self.names[at], values[at].to_owned()))
    }
}

fn seconds_of_a_request() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 8))
}

fn seconds_of_an_initialization() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 4.0, 10))
}

macro_rules! metrics {
    ($($field:ident: $kind:ty = $make:path, $name:literal, [$($label:literal),*], $help:literal;)+) => {
        /// Every metric there is.
        #[derive(Debug)]
        pub struct Families {
            $(#[doc = $help] pub $field: Labelled<{ count(&[$($label),*]) }, $kind>,)+
        }

        /// Name, labels and meaning of every metric, as Prometheus sees them.
        pub const DESCRIBED: &[(&str, &[&str], &str)] = &[$(($name, &[$($label),*], $help)),+];

        impl Families {
            fn registered(registry: &mut Registry) -> Self {
                $(let $field = Labelled::new([$($label),*], $make as fn() -> $kind);
                  register(registry, $name, $help, &$field);)+
                Self { $($field),+ }
            }
        }
    };
}

const fn count(labels: &[&str]) -> usize {
    labels.len()
}

/// Takes over what somebody else has counted.
pub fn counted(counter: &Counter, elsewhere: u64) {
    counter.inner().store(elsewhere, Ordering::Relaxed);
}

fn register<const N: usize, M>(registry: &mut Registry, name: &str, help: &str, labelled: &Labelled<N, M>)
where
    M: Clone + 'static,
    Family<[(&'static str, String); N], M>: Metric,
{
    // The library adds to a counter's name what Prometheus wants, and a full stop to its meaning.
    let name = name.strip_suffix("_total").unwrap_or(name);
    registry.register(name, help, labelled.family.clone());
}

metrics! {
    build_info: Gauge = Gauge::default, "steep_build_info", ["version", "protocol"], "1, with what this build is";
    start_time: Gauge = Gauge::default, "steep_agent_start_time_seconds", [], "When the agent started";
    agent_up: Gauge = Gauge::default, "steep_agent_up", ["node"], "1 while the agent of a node answers this one";
    drained: Gauge = Gauge::default, "steep_agent_drained", [], "1 while the agent takes no new work";
    reloads: Counter = Counter::default, "steep_config_reload_total", ["result"], "Times agent.toml was read again";
    node_state: Gauge = Gauge::default, "steep_node_state", ["node", "state"],
        "1 for the state a node is in, 0 for the others";
    node_healthy: Gauge = Gauge::default, "steep_node_healthy", ["node"],
        "1 while a node's health is ok or busy, 0 otherwise";
    last_transition: Gauge = Gauge::default, "steep_node_last_transition_timestamp_seconds", ["node"],
        "When the state of this node changed last, as far as this run of the agent saw";
    members: Gauge = Gauge::default, "steep_mesh_members", ["state"], "Nodes of the mesh by how this agent sees them";
    peer_reachable: Gauge = Gauge::default, "steep_mesh_peer_reachable", ["peer", "transport"],
        "1 while there is a connection to a peer that answers";
    rpc_requests: Counter = Counter::default, "steep_rpc_requests_total", ["service", "method", "code"],
        "Requests answered, by gRPC status";
    rpc_duration: Histogram = seconds_of_a_request, "steep_rpc_duration_seconds", ["service", "method"],
        "How long requests took; streams are not in it";
    rpc_inflight: Gauge = Gauge::default, "steep_rpc_inflight", ["service"], "Requests and streams under way";
    rpc_rejected: Counter = Counter::default, "steep_rpc_rejected_total", ["reason"],
        "Requests that were refused before they were looked at";
    cert_expiry: Gauge = Gauge::default, "steep_tls_cert_expiry_timestamp_seconds", ["kind"],
        "Until when the certificate, or the root it stands on, is valid";
    handshake_failures: Counter = Counter::default, "steep_tls_handshake_failures_total", ["reason"],
        "Incoming handshakes that failed";
    refusals: Counter = Counter::default, "steep_mesh_refusals_total", ["reason"],
        "Times somebody met a limit of this agent's port";
    init_running: Gauge = Gauge::default, "steep_init_running", ["method"], "Initializations of this node that run";
    inits: Counter = Counter::default, "steep_init_total", ["method", "result"],
        "Initializations of this node that ended";
    init_duration: Histogram = seconds_of_an_initialization, "steep_init_duration_seconds", ["method", "result"],
        "How long initializations of this node took";
    init_progress: Gauge = Gauge::default, "steep_init_progress_ratio", ["target", "source"],
        "How much of the running initialization is done, 0 to 1";
    init_eta: Gauge = Gauge::default, "steep_init_eta_seconds", ["target"],
        "Until the running initialization is done, by its rate so far";
    init_bytes: Counter = Counter::default, "steep_init_bytes_copied_total", ["target"],
        "Bytes of COPY data committed on this node";
    init_rows: Counter = Counter::default, "steep_init_rows_copied_total", ["target"], "Rows committed on this node";
    init_tables: Gauge = Gauge::default, "steep_init_tables", ["target", "status"],
        "Tables of the running initialization";
    init_last_progress: Gauge = Gauge::default, "steep_init_last_progress_timestamp_seconds", ["target"],
        "When the running initialization last came further";
    keeper_sessions: Gauge = Gauge::default, "steep_snapshot_keeper_sessions", ["source"],
        "Snapshots this node holds open for others";
    keeper_age: Gauge = Gauge::default, "steep_snapshot_keeper_age_seconds", ["source"],
        "How long the oldest snapshot is held for another node; 0 without one";
    files_sent: Counter = Counter::default, "steep_snapshot_file_bytes_sent_total", ["peer"],
        "Bytes of snapshots' files that other nodes were sent";
    slot_retained: Gauge = Gauge::default, "steep_slot_retained_bytes", ["slot", "owner"],
        "WAL a replication slot keeps back";
    slot_status: Gauge = Gauge::default, "steep_slot_wal_status", ["slot", "status"],
        "1 for the wal_status PostgreSQL gives a slot, 0 for the others";
    slot_orphans: Gauge = Gauge::default, "steep_slot_orphans", [],
        "Slots of this server that are named like Steep's and that nobody needs, looked for once a minute";
    budget_spent: Gauge = Gauge::default, "steep_budget_spent_ratio", ["budget"],
        "How much is spent of what slots for other nodes may cost this server; 1: all of it. Only budgets that are set";
    sub_enabled: Gauge = Gauge::default, "steep_subscription_enabled", ["sub"], "1 while a subscription is enabled";
    sub_lag: Gauge = Gauge::default, "steep_subscription_lag_bytes", ["sub"],
        "WAL of the source that is not yet applied, as the source says; as the worker says while the source is silent";
    sub_errors: Counter = Counter::default, "steep_subscription_errors_total", ["sub", "kind"],
        "Errors PostgreSQL counted for a subscription since its statistics were reset";
    sub_conflicts: Counter = Counter::default, "steep_subscription_conflicts_total", ["sub", "type"],
        "Conflicts PostgreSQL counted for a subscription since its statistics were reset (18 and later)";
    schema_tables: Gauge = Gauge::default, "steep_schema_tables", ["peer", "status"],
        "Tables that replicate with a peer by how they compare, when its schema last differed from this node's";
    schema_compared: Gauge = Gauge::default, "steep_schema_last_compare_timestamp_seconds", ["peer"],
        "When they were last compared; they are when either schema changes";
    schema_captured: Gauge = Gauge::default, "steep_schema_last_capture_timestamp_seconds", [],
        "When this node's schema was last captured";
    pg_connections: Gauge = Gauge::default, "steep_pg_connections", ["purpose", "state"],
        "Connections of the agent to its PostgreSQL";
    audit_records: Counter = Counter::default, "steep_audit_records_total", ["result"], "Rows of the audit log";
    audit_chain_ok: Gauge = Gauge::default, "steep_audit_chain_ok", [],
        "1 while every row of the audit log fits the row before it, when last checked";
    cpu: Seconds = Seconds::default, "process_cpu_seconds_total", [], "Processor time the agent used";
    resident: Gauge = Gauge::default, "process_resident_memory_bytes", [], "Memory the agent holds";
    open_files: Gauge = Gauge::default, "process_open_fds", [], "Files and sockets the agent has open";
    most_open_files: Gauge = Gauge::default, "process_max_fds", [], "As many files and sockets it may have open";
}

/// The numbers of one agent. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    families: Families,
    asking: Mutex<()>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let families = Families::registered(&mut registry);
        Self { inner: Arc::new(Inner { registry, families, asking: Mutex::new(()) }) }
    }
}

impl std::ops::Deref for Metrics {
    type Target = Families;

    fn deref(&self) -> &Families {
        &self.inner.families
    }
}

impl Metrics {
    /// Held while gauges are cleared and set again, so that nobody reads in between.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.inner.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the system says of this process.
    pub fn set_process(&self) {
        let usage = process::usage();
        self.cpu.of([]).inner().store(usage.cpu_seconds.to_bits(), Ordering::Relaxed);
        self.resident.of([]).set(usage.resident_bytes as f64);
        self.open_files.of([]).set(usage.open_files as f64);
        self.most_open_files.of([]).set(usage.most_open_files as f64);
    }

    /// Everything in Prometheus' text format, as [`CONTENT_TYPE`] says.
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.inner.registry).expect("a string takes everything");
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every sample line of the text format, as (name, labels, value); panics on a line that is none.
    fn samples(text: &str) -> Vec<(String, String, f64)> {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("open: {line}"))),
                None => (series, ""),
            };
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
            let value =
                if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap_or_else(|_| panic!("{line}")) };
            (name.to_owned(), labels.to_owned(), value)
        };
        text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
    }

    #[test]
    fn every_metric_is_documented_for_operators_with_its_labels_and_none_that_is_not_there() {
        let page = include_str!("../../../deploy/metrics.md");
        let rows: BTreeSet<(String, String)> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter(|row| row.split(" | ").count() == 4)
            .map(|row| {
                let (name, rest) = row.split_once('`').expect("a name in backticks");
                let labels = rest.split('|').nth(1).unwrap_or_default();
                (name.to_owned(), labels.replace('`', "").trim().to_owned())
            })
            .collect();
        let known: BTreeSet<(String, String)> =
            DESCRIBED.iter().map(|(name, labels, _)| ((*name).to_owned(), labels.join(", "))).collect();
        assert_eq!(rows, known);
    }

    #[test]
    fn what_is_told_is_prometheus_text_whatever_a_label_holds() {
        let metrics = Metrics::default();
        let hostile = "a\"b\\c\nd{e} 1\u{202e}";
        metrics.slot_retained.of([hostile, ""]).set(7.0);
        metrics.rpc_requests.of(["Nodes", "List", "ok"]).inc();
        metrics.rpc_duration.of(["Nodes", "List"]).observe(0.3);
        metrics.start_time.of([]).set(1.5e9);
        let text = metrics.text();
        let samples = samples(&text);
        let find = |name: &str| samples.iter().find(|(found, ..)| found == name).cloned();
        let (_, labels, value) = find("steep_slot_retained_bytes").expect("it was set");
        assert_eq!(value, 7.0);
        assert_eq!(labels, "slot=\"a\\\"b\\\\c\\nd{e} 1\u{202e}\",owner=\"\"");
        assert_eq!(find("steep_rpc_requests_total").map(|(.., value)| value), Some(1.0));
        assert_eq!(
            find("steep_agent_start_time_seconds"),
            Some(("steep_agent_start_time_seconds".into(), String::new(), 1.5e9,))
        );
        assert!(find("steep_rpc_duration_seconds_bucket").is_some(), "{text}");
        assert!(text.contains("# TYPE steep_rpc_requests_total counter"), "{text}");
    }

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        for (name, labels, help) in DESCRIBED {
            assert!(name.starts_with("steep_") || name.starts_with("process_"), "{name}");
            assert!(!help.ends_with('.') && !help.is_empty(), "{name}: the library adds the full stop");
            assert!(labels.iter().all(|label| label.chars().all(|c| c.is_ascii_lowercase())), "{name}");
        }
        let names: BTreeSet<_> = DESCRIBED.iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), DESCRIBED.len(), "a name stands once");
    }

    #[test]
    fn what_is_cleared_is_told_no_more() {
        let metrics = Metrics::default();
        metrics.sub_enabled.of(["steep_from_node_a"]).set(1.0);
        metrics.sub_enabled.clear();
        assert!(!metrics.text().contains("steep_from_node_a"));
    }
}
