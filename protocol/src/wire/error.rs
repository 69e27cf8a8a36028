//! Why an endpoint could not listen, or a peer could not be reached, in an operator's words.

use std::io;

use super::{
    identity::PeerId,
    verify::{explain_alert, explain_tls},
};
use crate::failure::{Code, Explain, Failure};

/// Why an endpoint could not listen, or a peer could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// As configured.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// TLS refuses our own settings.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The name does not resolve.
    #[error("cannot find {address}")]
    Unknown {
        /// As configured.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody answered.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// As dialled.
        address: String,
        /// What happened instead.
        reason: String,
    },
    /// One end refused the other's certificate.
    #[error("{address}: {}", .failure.message)]
    Refused {
        /// As dialled.
        address: String,
        /// Who refused whom, and why.
        failure: Failure,
    },
    /// The connection is gone.
    #[error("the connection to {peer} is gone: {reason}")]
    Gone {
        /// Who was at the other end.
        peer: PeerId,
        /// Why it ended.
        reason: String,
    },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Listen { .. } => Code::ConfigInvalid,
            Self::Tls(_) => Code::CertificateUnusable,
            Self::Unknown { .. } | Self::Unreachable { .. } => Code::PeerUnreachable,
            Self::Refused { failure, .. } => failure.code,
            Self::Gone { .. } => Code::StreamBroken,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::Listen { address, .. } => Some(format!("end what else listens on {address}, or change mesh.listen")),
            Self::Refused { failure, .. } => Some(failure.hint.clone()),
            _ => None,
        }
    }
}

impl Error {
    /// Nobody answered at `address`, for `reason`.
    pub(super) fn unreachable(address: &str, reason: impl Into<String>) -> Self {
        Self::Unreachable { address: address.to_owned(), reason: reason.into() }
    }

    /// What happened, for somebody who knows the address.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unreachable { reason, .. } => reason.clone(),
            other => other.to_string(),
        }
    }
}

pub(super) fn general(error: &dyn std::error::Error) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

/// The TLS error inside an I/O error, explained.
pub(super) fn tls_in(error: &io::Error) -> Option<Failure> {
    error.get_ref()?.downcast_ref::<rustls::Error>().map(explain_tls)
}

/// A refused certificate inside a QUIC error: TLS alerts are the codes 0x100 to 0x1ff (RFC 9001, section 4.8).
pub(super) fn refusal_in(error: &quinn::ConnectionError) -> Option<Failure> {
    let code = match error {
        quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        quinn::ConnectionError::TransportError(error) => u64::from(error.code),
        _ => return None,
    };
    u8::try_from(code.checked_sub(0x100)?).ok().map(explain_alert)
}
