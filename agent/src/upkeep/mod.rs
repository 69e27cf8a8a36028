//! What an operator does with a running agent, and what the agent looks at once in a while for whoever watches it.
//!
//! [`drain`] lets it take no new work; [`reload`] reads its configuration again; [`measures`] fills the metrics that
//! PostgreSQL has to be asked for. None of it belongs to an operation.

pub mod drain;
pub mod measures;
pub mod reload;

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use steep_protocol::{version, wire::validity};

use self::{drain::Drain, reload::Settled};
use crate::{config::Config, identity::Certificates, metrics::Metrics, telemetry::Log};

/// The agent as a program. Clones share it.
#[derive(Debug, Clone)]
pub struct Upkeep {
    /// As it was read at the start; what a reload took up is not in it.
    pub config: Arc<Config>,
    /// The log.
    pub log: Log,
    /// The numbers told to Prometheus.
    pub metrics: Metrics,
    /// Whether it takes new work.
    pub drain: Drain,
    /// When this run began.
    pub started_at: Timestamp,
    certificates: Certificates,
    settled: Arc<Mutex<Settled>>,
}

impl Upkeep {
    /// For a run that begins now.
    pub fn new(config: Arc<Config>, log: Log, certificates: Certificates) -> Self {
        let metrics = Metrics::default();
        let started_at = Timestamp::now();
        metrics.build_info.of([env!("CARGO_PKG_VERSION"), &version::PROTOCOL.to_string()]).set(1.0);
        metrics.start_time.of([]).set(started_at.as_duration().as_secs_f64());
        let drain = Drain::open(&config.node.state_dir);
        let settled = Arc::new(Mutex::new(Settled::read(&config)));
        let upkeep = Self { config, log, metrics, drain, started_at, certificates, settled };
        upkeep.look_at_certificates();
        upkeep
    }

    /// Until when the certificate and the root in use are valid; none: the file could not be read.
    pub fn validity(&self) -> (Option<Timestamp>, Option<Timestamp>) {
        (validity::of_first(&self.config.pki.cert).ok(), validity::of_all(&self.config.pki.ca).ok())
    }

    /// Tells the metrics until when the certificates are valid.
    pub fn look_at_certificates(&self) {
        let (certificate, root) = self.validity();
        for (kind, until) in [("node", certificate), ("ca", root)] {
            match until {
                Some(until) => {
                    self.metrics.cert_expiry.of([kind]).set(until.as_second() as f64);
                }
                None => self.metrics.cert_expiry.remove([kind]),
            }
        }
    }
}
