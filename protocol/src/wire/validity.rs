//! Until when the certificates in a file are valid.

use std::path::Path;

use jiff::Timestamp;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{identity::Error, pem::read_certificates};

/// Until when the first certificate of a PEM file is valid: the own one, where its chain follows.
pub fn of_first(path: &Path) -> Result<Timestamp, Error> {
    ends(path)?.into_iter().next().ok_or_else(|| unusable(path))
}

/// Until when the first of a file's certificates to end is valid: for roots, of which each may be needed.
pub fn of_all(path: &Path) -> Result<Timestamp, Error> {
    ends(path)?.into_iter().min().ok_or_else(|| unusable(path))
}

fn ends(path: &Path) -> Result<Vec<Timestamp>, Error> {
    let end = |der: &[u8]| {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| unusable(path))?;
        Timestamp::from_second(certificate.validity().not_after.timestamp()).map_err(|_| unusable(path))
    };
    read_certificates(path)?.iter().map(|certificate| end(certificate)).collect()
}

fn unusable(path: &Path) -> Error {
    Error::Unusable { path: path.into(), reason: "its validity cannot be read".into() }
}
