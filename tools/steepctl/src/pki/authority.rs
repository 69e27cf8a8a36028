//! The authorities of a mesh: the root, and one sub-authority each for nodes and for operators.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{BasicConstraints, CertifiedIssuer, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _};
use steep_protocol::{ids::MeshName, wire::identity::authority_name};

use super::{
    Error, Lifetime,
    files::{self, NewFile},
    inspect, params,
};

const ROOT_DAYS: u32 = 3_653;
const SUB_DAYS: u32 = 1_826;

/// Which leaves a sub-authority signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Agents.
    Nodes,
    /// People and their automation.
    Operators,
}

impl Class {
    /// The word for it in the authority's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Operators => "operators",
        }
    }

    fn cert_file(self) -> &'static str {
        match self {
            Self::Nodes => "nodes-ca.pem",
            Self::Operators => "operators-ca.pem",
        }
    }

    fn key_file(self) -> &'static str {
        match self {
            Self::Nodes => "nodes-ca.key",
            Self::Operators => "operators-ca.key",
        }
    }
}

/// Where the authorities of a root that is being replaced are, below the pki directory.
pub const PREVIOUS: &str = "previous";

/// The files of the authorities of a directory, the root's first.
pub fn files() -> [&'static str; 6] {
    [
        "ca.pem",
        "ca.key",
        Class::Nodes.cert_file(),
        Class::Nodes.key_file(),
        Class::Operators.cert_file(),
        Class::Operators.key_file(),
    ]
}

/// Makes the root and both sub-authorities of `mesh` in `dir`, and returns the files written.
///
/// Fails with [`Error::Exists`] if any of the six files is there; then nothing is written.
pub fn create(mesh: &MeshName, dir: &Path, now: Timestamp) -> Result<Vec<PathBuf>, Error> {
    let at = |name: &str| dir.join(name);
    let paths = files().map(at);
    files::refuse_existing(paths.iter().map(PathBuf::as_path))?;

    let root_name = authority_name(mesh, "root");
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Signing { what, source }
    };
    let root = CertifiedIssuer::self_signed(
        authority_params(&root_name, 1, Lifetime::of_days(ROOT_DAYS, now)),
        KeyPair::generate().map_err(failed(&root_name))?,
    )
    .map_err(failed(&root_name))?;
    let mut new =
        vec![NewFile::certificate(at("ca.pem"), root.pem()), NewFile::key(at("ca.key"), root.key().serialize_pem())];
    for class in [Class::Nodes, Class::Operators] {
        let name = authority_name(mesh, class.as_str());
        let key = KeyPair::generate().map_err(failed(&name))?;
        let params = authority_params(&name, 0, Lifetime::of_days(SUB_DAYS, now));
        let cert = params.signed_by(&key, &root).map_err(failed(&name))?;
        new.push(NewFile::certificate(at(class.cert_file()), cert.pem()));
        new.push(NewFile::key(at(class.key_file()), key.serialize_pem()));
    }
    files::make_directory(dir)?;
    files::write_all(&new)?;
    Ok(paths.into())
}

/// `path_length`: how many authorities may stand between it and a leaf.
fn authority_params(name: &str, path_length: u8, lifetime: Lifetime) -> rcgen::CertificateParams {
    let mut params = params(name, lifetime);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A sub-authority, ready to sign leaves.
#[derive(Debug)]
pub struct Authority {
    /// The mesh it signs for.
    pub mesh: MeshName,
    /// What it signs with.
    pub issuer: Issuer<'static, KeyPair>,
    /// Its certificate, to stand behind every leaf.
    pub pem: String,
    /// Until when its own certificate is good: no leaf outlives it.
    pub until: Timestamp,
    /// The identifier of its key, in hexadecimal.
    pub key_id: String,
}

/// Reads the sub-authority for `class` from `dir`.
///
/// Its certificate must be what `pki init` made: the right name, the right to sign, its own key beside it,
/// and still good at `now`.
pub fn open(dir: &Path, class: Class, now: Timestamp) -> Result<Authority, Error> {
    for file in [class.cert_file(), class.key_file()] {
        if dir.join(file).symlink_metadata().is_err() {
            return Err(Error::NoAuthority { dir: dir.to_owned(), file });
        }
    }
    let (cert_path, key_path) = (dir.join(class.cert_file()), dir.join(class.key_file()));
    let cert_unusable = |reason: String| Error::Unusable { path: cert_path.clone(), reason };
    let key_unusable = |reason: &str| Error::Unusable { path: key_path.clone(), reason: reason.to_owned() };

    let pem = files::read(&cert_path)?;
    let found = inspect::file(&cert_path)?;
    let inspect::Class::Authority { mesh: Some(mesh), class: of } = &found.class else {
        return Err(cert_unusable(format!("{:?} is no authority of a mesh", found.subject)));
    };
    if of != class.as_str() {
        return Err(cert_unusable(format!("{:?} is not the authority for {}", found.subject, class.as_str())));
    }
    if let inspect::Validity::Expired { since } = found.validity_at(now) {
        return Err(cert_unusable(format!("the authority expired at {}", crate::units::date_time(since))));
    }
    let key = KeyPair::from_pem(&files::read(&key_path)?).map_err(|_| key_unusable("holds no private key"))?;
    if key.subject_public_key_info() != found.public_key {
        return Err(key_unusable("is not the key of the certificate beside it"));
    }
    let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|error| cert_unusable(error.to_string()))?;
    let key_id = found.key_id.ok_or_else(|| cert_unusable("has no key identifier".into()))?;
    Ok(Authority { mesh: mesh.clone(), issuer, pem, until: found.until, key_id })
}
