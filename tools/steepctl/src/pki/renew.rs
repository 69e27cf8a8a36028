//! A new certificate and key for somebody who has one: the old files are kept beside the new ones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use steep_protocol::wire::identity::{PeerId, Who};

use super::{
    Error, files,
    inspect::{self, Class},
    leaf::{self, For, Issued, Times},
    register::{Entry, Named, Register, alternative_names},
};

/// What was renewed.
#[derive(Debug)]
pub struct Renewed {
    /// The new certificate.
    pub issued: Issued,
    /// For whom.
    pub whom: For,
    /// The old certificate's serial number, and until when it stays good.
    pub old: Option<(String, Timestamp)>,
    /// Where the old files are now.
    pub aside: Vec<PathBuf>,
}

/// Issues for the one whom `words` name (`node_a`, `operator alice`) what they had, with a new key.
///
/// Names, role and length of life are those of the old certificate, unless `days` says otherwise. After an error
/// all files are as they were.
pub fn renew(dir: &Path, words: &[String], days: Option<u32>, now: Timestamp) -> Result<Renewed, Error> {
    let mut register = Register::open(dir)?;
    let named = register.named(words)?;
    if matches!(named, Named::One(_)) {
        return Err(Error::NotIssued("a node's id or operator NAME is expected, not a file or serial number".into()));
    }
    let newest = register.entries().iter().rfind(|entry| named.means(entry)).cloned();
    let newest = newest.ok_or_else(|| Error::NotIssued(format!("no certificate of {}", words.join(" "))))?;
    let whom = whom(&newest)?;
    let stem = whom.file_stem();
    let (cert, key) = (dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key")));
    let there = if cert.symlink_metadata().is_ok() { Some(inspect::file(&cert)?) } else { None };
    let whom = match (&there, whom) {
        // The file may be newer than the register, and another role's.
        (Some(found), For::Node { node, .. }) => For::Node { node, names: alternative_names(found) },
        (Some(found), For::Operator { name, role }) => match &found.class {
            Class::Peer(PeerId { who: Who::Operator { role, .. }, .. }) => For::Operator { name, role: *role },
            _ => For::Operator { name, role },
        },
        (None, whom) => whom,
    };
    let length = newest.not_after.as_second() - newest.not_before.as_second();
    let days = days.or_else(|| u32::try_from(length / 86_400).ok().filter(|days| *days > 0));
    let made = leaf::make(dir, &whom, Times { days, ..Times::default() }, now)?;

    let mark = there.as_ref().map_or_else(|| now.as_second().to_string(), |found| short(&found.serial));
    let mut aside = Vec::new();
    let mut moves = Vec::new();
    for path in [&key, &cert] {
        if path.symlink_metadata().is_ok() {
            let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            let old = path.with_extension(format!("{ending}.old-{mark}"));
            files::refuse_existing([old.as_path()])?;
            moves.push((path.clone(), old.clone()));
            aside.push(old);
        }
    }
    let [new_key, new_cert] = made.files(&key.with_extension("key.new"), &cert.with_extension("pem.new"));
    // What an interrupted renewal left was never in use.
    for new in [&new_key, &new_cert] {
        let _ = fs::remove_file(&new.path);
    }
    files::write_all(&[new_key, new_cert])?;
    for (from, to) in moves {
        rename(&from, &to)?;
    }
    rename(&key.with_extension("key.new"), &key)?;
    rename(&cert.with_extension("pem.new"), &cert)?;
    let issued = made.issued(cert.clone(), key);
    if let Some(entry) = Entry::of(&inspect::file(&cert)?) {
        register.add(entry);
    }
    register.save()?;
    let old = there.map(|found| (found.serial, found.until));
    Ok(Renewed { issued, whom, old, aside })
}

fn whom(entry: &Entry) -> Result<For, Error> {
    match entry.peer().map(|peer| peer.who) {
        Some(Who::Node(node)) => Ok(For::Node { node, names: entry.names.clone() }),
        Some(Who::Operator { role, name }) => {
            let unusable = || Error::NotIssued(format!("{name:?} is no name of an operator"));
            Ok(For::Operator { name: name.parse().map_err(|_| unusable())?, role })
        }
        None => Err(Error::NotIssued(format!("{} is no identity", entry.identity))),
    }
}

/// The beginning of a serial number, enough to tell files apart.
fn short(serial: &str) -> String {
    serial.chars().filter(|c| *c != ':').take(12).collect()
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::Unwritable { path: to.to_owned(), source })
}
