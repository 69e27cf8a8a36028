//! The three files an identity is read from: certificate with chain, key, roots.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    identity::{Error, PeerId, identity_in, provider},
    trust::{Leaf, Trust},
};

/// The largest certificate or key file we read.
const MAX_PEM_BYTES: u64 = 256 * 1024;

/// What the three files hold.
pub(super) struct Read {
    pub(super) me: PeerId,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) leaf: Leaf,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Read {
    /// Reads them; the certificate must be one that names a member of a mesh, and its key must fit.
    pub(super) fn files(cert: &Path, key: &Path, ca: &Path) -> Result<Self, Error> {
        let chain = read_certificates(cert)?;
        refuse_open_key(key)?;
        let private = PrivateKeyDer::from_pem_slice(&read_pem(key)?)
            .map_err(|error| Error::Unusable { path: key.into(), reason: format!("holds no private key ({error})") })?;
        let mismatch = |source| Error::Mismatch { cert: cert.into(), key: key.into(), source };
        let me = identity_in(&chain[0])?;
        let impossible = || Error::Unusable { path: cert.into(), reason: "its times are impossible".into() };
        let leaf = Leaf::of(&chain[0]).ok_or_else(impossible)?;
        let certified = CertifiedKey::from_der(chain, private, &provider()).map_err(mismatch)?;
        let roots = read_certificates(ca)?;
        // A node's own certificate among the roots would be one more authority.
        if !roots.iter().all(is_authority) {
            let reason = "holds a certificate that is no authority's".into();
            return Err(Error::Unusable { path: ca.into(), reason });
        }
        Ok(Self { me, key: Arc::new(certified), leaf, roots })
    }

    /// Trust in the roots, made by `trust`; `ca` is for the error.
    pub(super) fn trusted(
        &self,
        ca: &Path,
        trust: impl FnOnce(Vec<CertificateDer<'static>>) -> Result<Trust, rustls::Error>,
    ) -> Result<Trust, Error> {
        trust(self.roots.clone()).map_err(|error| Error::Unusable {
            path: ca.into(),
            reason: format!("holds no usable root certificate ({error})"),
        })
    }
}

fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, cert)| cert.is_ca())
}

fn read_pem(path: &Path) -> Result<Vec<u8>, Error> {
    let unreadable = |source| Error::Unreadable { path: path.into(), source };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_PEM_BYTES {
        return Err(Error::Unusable { path: path.into(), reason: format!("{length} bytes is no PEM file") });
    }
    fs::read(path).map_err(unreadable)
}

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read_pem(path)?;
    let unusable = |reason: String| Error::Unusable { path: path.into(), reason };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(format!("holds a damaged certificate ({error})")))?;
    if chain.is_empty() {
        return Err(unusable("holds no certificate".into()));
    }
    Ok(chain)
}

#[cfg(unix)]
fn refuse_open_key(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = fs::metadata(path).map_err(|source| Error::Unreadable { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(Error::KeyOpen { path: path.into(), mode }) }
}

#[cfg(not(unix))]
fn refuse_open_key(_path: &Path) -> Result<(), Error> {
    Ok(())
}
