//! Certificates: making the authorities of a mesh, issuing for nodes and operators, looking into files.
//!
//! A root signs two sub-authorities, one for nodes and one for operators, and nothing else; those sign the
//! leaves. What a leaf may do stands in its one URI, and must agree with who issued it and with its key usage.
//! [`files`] writes without ever overwriting; key files are the owner's alone from their first byte. [`register`]
//! knows what was issued; [`renew`] issues it again, [`revoke`] takes it back, [`rotate`] replaces the root.

pub mod authority;
pub mod files;
pub mod inspect;
pub mod leaf;
pub mod register;
pub mod renew;
pub mod revoke;
pub mod rotate;

use std::{io, path::PathBuf};

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType};
use steep_protocol::failure::{Code, Explain};
use time::OffsetDateTime;

/// Why certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file we would write is there.
    #[error("{} is already there", .0.display())]
    Exists(PathBuf),
    /// A file could not be written.
    #[error("cannot write {}", .path.display())]
    Unwritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An authority's files are not where they should be.
    #[error("no authority in {}: {} is missing", .dir.display(), .file)]
    NoAuthority {
        /// The directory of `--dir`.
        dir: PathBuf,
        /// The file that is missing.
        file: &'static str,
    },
    /// A file holds something else than it should.
    #[error("{}: {reason}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing like it was issued here.
    #[error("{0}")]
    NotIssued(String),
    /// The authority that issued a certificate is not in the directory.
    #[error("the authority that issued the certificate of {whose} (key {key_id}) is not here")]
    AuthorityAway {
        /// Whose certificate.
        whose: String,
        /// The authority's key identifier.
        key_id: String,
    },
    /// The exchange of the root is at another step.
    #[error("{0}")]
    Rotation(String),
    /// Certificates would be worthless after the step asked for.
    #[error("only the old root stands above the certificates of {}", .0.join(", "))]
    StillOld(Vec<String>),
    /// The times asked for cannot be in a certificate.
    #[error("{0}")]
    Times(String),
    /// A name asked for cannot be in a certificate.
    #[error("{0:?} cannot stand in a certificate: a DNS name or an IP address is expected")]
    Name(String),
    /// The library could not make a key or sign.
    #[error("cannot make {what}")]
    Signing {
        /// Of what.
        what: String,
        /// What the library said.
        source: rcgen::Error,
    },
}

impl Explain for Error {
    fn code(&self) -> Code {
        match self {
            Self::Exists(_) => Code::FileExists,
            Self::Unwritable { .. } | Self::Unreadable { .. } | Self::Unusable { .. } | Self::NoAuthority { .. } => {
                Code::CertificateUnusable
            }
            Self::NotIssued(_) => Code::NotIssuedHere,
            Self::AuthorityAway { .. } => Code::CertificateUnusable,
            Self::Rotation(_) | Self::StillOld(_) => Code::RotationState,
            Self::Times(_) | Self::Name(_) => Code::Usage,
            Self::Signing { .. } => Code::Internal,
        }
    }

    fn better_hint(&self) -> Option<String> {
        match self {
            Self::Unwritable { .. } => {
                Some("check that the directory exists and is yours to write, or choose another --dir".into())
            }
            Self::Unreadable { path, .. } => Some(format!("ls -l {}", path.display())),
            Self::NoAuthority { .. } => Some(
                "steepctl pki init --mesh NAME makes the authorities; --dir DIR names the directory they are in".into(),
            ),
            Self::AuthorityAway { .. } => {
                Some("put that authority's -ca.pem and -ca.key files into the pki directory, then try again".into())
            }
            Self::StillOld(whose) => Some(format!(
                "steepctl pki renew {} and hand the new files over; or add --force if they are out of use",
                whose.first().map_or("NODE", String::as_str)
            )),
            _ => None,
        }
    }
}

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// The first moment.
    pub from: Timestamp,
    /// The last.
    pub until: Timestamp,
}

/// Clocks differ: what is issued now must be good on a machine a little behind.
const BACKDATED_SECONDS: i64 = 300;
const DAY_SECONDS: i64 = 86_400;

impl Lifetime {
    /// `days` from `now`, begun a little earlier.
    pub fn of_days(days: u32, now: Timestamp) -> Self {
        let shifted =
            |seconds: i64| Timestamp::from_second(now.as_second() + seconds).expect("at most some decades from now");
        Self { from: shifted(-BACKDATED_SECONDS), until: shifted(i64::from(days) * DAY_SECONDS) }
    }
}

/// Parameters every certificate of ours begins with: one common name, a lifetime, v3.
fn params(common_name: &str, lifetime: Lifetime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = clock(lifetime.from);
    params.not_after = clock(lifetime.until);
    params.use_authority_key_identifier_extension = true;
    params
}

fn clock(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).expect("both libraries know the same years")
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_change;
