//! Signing revocation lists: `crl.pem` in the pki directory holds the newest of every authority.
//!
//! Each authority signs for itself what it has issued. The number of a list is the second it was signed in, or one
//! more than the last: also a directory that has lost its register never signs an older one.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use steep_protocol::wire::revocation::{RevocationList, Serial};

use super::{
    Error, Lifetime,
    authority::{self, Authority, Class},
    clock,
    files::{self, NewFile},
    inspect,
    register::{Entry, Named, Register},
};

/// The lists of all authorities of a directory.
pub const FILE: &str = "crl.pem";
/// A list should be replaced after so long, where nobody says.
pub const USUAL_DAYS: u32 = 30;
/// Certificates stay on the list for so long after they have expired.
const KEPT_SECONDS: i64 = 30 * 86_400;

/// What was revoked.
#[derive(Debug)]
pub struct Revoked {
    /// The certificates.
    pub entries: Vec<Entry>,
    /// Where the lists are.
    pub file: PathBuf,
}

/// Revokes what `words` name, and signs the lists of the authorities concerned.
///
/// Certificates that have expired or are revoked already are left as they are; it fails where no other is named.
/// After an error nothing is revoked.
pub fn revoke(dir: &Path, words: &[String], reason: Option<&str>, days: u32, now: Timestamp) -> Result<Revoked, Error> {
    let mut register = Register::open(dir)?;
    let named = register.named(words)?;
    let mut entries = Vec::new();
    let is_meant = |entry: &Entry| match &named {
        Named::All(_) => named.means(entry) && entry.is_good(now),
        Named::One(_) => named.means(entry) && entry.revoked_at.is_none(),
    };
    for entry in register.entries_mut().iter_mut().filter(|entry| is_meant(entry)) {
        (entry.revoked_at, entry.reason) = (Some(now), reason.map(str::to_owned));
        entries.push(entry.clone());
    }
    if entries.is_empty() {
        return Err(Error::NotIssued(format!("{} has no certificate that is still good", words.join(" "))));
    }
    let concerned = |authority: &Authority| entries.iter().any(|entry| entry.authority == authority.key_id);
    let authorities: Vec<_> = authorities(dir, now)?.into_iter().filter(concerned).collect();
    for entry in &entries {
        if !authorities.iter().any(|authority| authority.key_id == entry.authority) {
            return Err(Error::AuthorityAway { whose: entry.whose(), key_id: entry.authority.clone() });
        }
    }
    let file = sign(dir, &register, &authorities, days, now)?;
    register.save()?;
    Ok(Revoked { entries, file })
}

/// Signs fresh lists for every authority whose key is in `dir`, revoking nothing more.
pub fn sign_all(dir: &Path, days: u32, now: Timestamp) -> Result<PathBuf, Error> {
    let register = Register::open(dir)?;
    sign(dir, &register, &authorities(dir, now)?, days, now)
}

/// The authorities whose keys are in `dir`, those of a root that is being replaced among them.
fn authorities(dir: &Path, now: Timestamp) -> Result<Vec<Authority>, Error> {
    let mut found = Vec::new();
    for place in [dir.to_owned(), dir.join(authority::PREVIOUS)] {
        for class in [Class::Nodes, Class::Operators] {
            match authority::open(&place, class, now) {
                Ok(authority) => found.push(authority),
                Err(Error::NoAuthority { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    if found.is_empty() {
        return Err(Error::NoAuthority { dir: dir.to_owned(), file: "nodes-ca.pem" });
    }
    Ok(found)
}

fn sign(
    dir: &Path,
    register: &Register,
    authorities: &[Authority],
    days: u32,
    now: Timestamp,
) -> Result<PathBuf, Error> {
    let path = dir.join(FILE);
    let before = if path.symlink_metadata().is_ok() { read(dir, &path)? } else { Vec::new() };
    let mut lists = Vec::new();
    for authority in authorities {
        let last = before.iter().find(|list| list.authority() == authority.key_id).map(RevocationList::number);
        let number = last.map_or(0, |last| last + 1).max(now.as_second().max(1) as u64);
        lists.push(signed(register, authority, number, days, now)?);
    }
    let others = before.iter().filter(|list| !authorities.iter().any(|signed| signed.key_id == list.authority()));
    lists.extend(others.map(|list| list.pem().to_owned()));
    files::replace(&NewFile::certificate(path.clone(), lists.concat()))?;
    Ok(path)
}

fn signed(register: &Register, authority: &Authority, number: u64, days: u32, now: Timestamp) -> Result<String, Error> {
    let lifetime = Lifetime::of_days(days, now);
    let mut revoked_certs = Vec::new();
    for entry in register.entries().iter().filter(|entry| entry.authority == authority.key_id) {
        let Some(revoked_at) = entry.revoked_at else { continue };
        let Ok(serial) = entry.serial.parse::<Serial>() else { continue };
        if entry.not_after.as_second() + KEPT_SECONDS >= now.as_second() {
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial.to_bytes()),
                revocation_time: clock(revoked_at),
                reason_code: None,
                invalidity_date: None,
            });
        }
    }
    let params = CertificateRevocationListParams {
        this_update: clock(lifetime.from),
        next_update: clock(lifetime.until),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let failed = |source| Error::Signing { what: "a revocation list".into(), source };
    let list = params.signed_by(&authority.issuer).map_err(failed)?;
    Ok(format!("{}{}", list.pem().map_err(failed)?, authority.pem))
}

/// The lists in the file at `path`, judged by the root or roots in `dir`.
pub fn read(dir: &Path, path: &Path) -> Result<Vec<RevocationList>, Error> {
    let ca = dir.join("ca.pem");
    let roots = inspect::certificates(&ca)?;
    let unusable = |reason: String| Error::Unusable { path: path.to_owned(), reason };
    let root = inspect::file(&ca)?;
    let inspect::Class::Authority { mesh: Some(mesh), .. } = root.class else {
        return Err(Error::Unusable { path: ca, reason: format!("{:?} is no root of a mesh", root.subject) });
    };
    RevocationList::read(&files::read(path)?, &mesh, &roots).map_err(|error| unusable(error.to_string()))
}
