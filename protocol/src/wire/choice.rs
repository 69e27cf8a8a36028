//! QUIC or TCP: which one a dialler takes.
//!
//! QUIC comes first and has half a second for itself. Then TCP is dialled beside it, and waits: if QUIC has not
//! answered two seconds after the beginning, TCP is taken. An address whose UDP stayed silent is dialled over TCP alone
//! for some minutes, so that nobody waits for it again and again; whoever wants QUIC back asks for it by
//! [`Endpoint::dial_quic`].

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};

use super::{
    connection::{Connection, Why},
    endpoint::Endpoint,
    error::Error,
    identity::Expect,
};

/// How long QUIC is tried alone.
const HEAD_START: Duration = Duration::from_millis(500);
/// How long an open TCP connection waits for QUIC.
const QUIC_LIMIT: Duration = Duration::from_secs(2);
/// How long an address whose UDP was silent is dialled over TCP alone.
pub(super) const SILENCE_LASTS: Duration = Duration::from_secs(600);

/// `mesh.transport`: what an agent dials and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preference {
    /// QUIC, and TCP where UDP is blocked.
    #[default]
    Auto,
    /// QUIC alone. (gRPC clients are still answered over TCP.)
    Quic,
    /// TCP alone; no UDP port is opened.
    Tcp,
}

/// Dials whom we expect at `address` by `endpoint`'s preference.
pub(super) async fn dial(endpoint: &Endpoint, address: &str, expect: &Expect) -> Result<Connection, Error> {
    match endpoint.preference() {
        Preference::Quic => endpoint.dial_over_quic(address, expect).await,
        Preference::Tcp => endpoint.dial_over_tcp(address, expect, Why::Configured).await,
        Preference::Auto if endpoint.udp_is_silent(address) => {
            match endpoint.dial_over_tcp(address, expect, Why::UdpSilent).await {
                Ok(connection) => Ok(connection),
                // It may have moved to where UDP works.
                Err(_) => race(endpoint, address, expect).await,
            }
        }
        Preference::Auto => race(endpoint, address, expect).await,
    }
}

async fn race(endpoint: &Endpoint, address: &str, expect: &Expect) -> Result<Connection, Error> {
    let began = Instant::now();
    let mut quic = pin!(endpoint.dial_over_quic(address, expect));
    let mut quic_failed = match timeout(HEAD_START, &mut quic).await {
        // Judged: TCP would judge the same.
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error @ (Error::Refused { .. } | Error::Unknown { .. } | Error::Tls(_)))) => return Err(error),
        Ok(Err(error)) => Some(error),
        Err(_) => None,
    };
    let mut tcp = pin!(endpoint.dial_over_tcp(address, expect, Why::UdpSilent));
    let mut over_tcp: Option<Result<Connection, Error>> = None;
    let mut limit = pin!(sleep_until(began + QUIC_LIMIT));
    let mut is_late = false;
    loop {
        tokio::select! {
            dialled = &mut quic, if quic_failed.is_none() => match dialled {
                Ok(connection) => {
                    if let Some(Ok(needless)) = over_tcp {
                        needless.close("QUIC has answered");
                    }
                    return Ok(connection);
                }
                Err(error) => quic_failed = Some(error),
            },
            dialled = &mut tcp, if over_tcp.is_none() => over_tcp = Some(dialled),
            () = &mut limit, if !is_late => is_late = true,
        }
        if quic_failed.is_none() && !is_late {
            continue;
        }
        match over_tcp.take() {
            Some(Ok(connection)) => {
                endpoint.udp_was_silent(address);
                return Ok(connection);
            }
            Some(Err(error @ Error::Refused { .. })) => return Err(error),
            Some(Err(error)) => return Err(both_failed(address, quic_failed, &error)),
            None => {}
        }
    }
}

fn both_failed(address: &str, quic: Option<Error>, tcp: &Error) -> Error {
    let quic = quic.map_or_else(|| format!("no answer over UDP in {} s", QUIC_LIMIT.as_secs()), |error| error.reason());
    Error::unreachable(address, format!("{quic}; over TCP: {}", tcp.reason()))
}
