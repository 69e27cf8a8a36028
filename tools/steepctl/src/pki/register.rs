//! The register of a pki directory: which certificates were issued, until when they are good, which are revoked.
//!
//! `issued.json` beside the authorities. Certificates that were issued before there was a register are taken up from
//! their files. While it is open nobody else can change it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::wire::{
    identity::{PeerId, Who},
    revocation::Serial,
};

use super::{
    Error,
    files::{self, NewFile},
    inspect::{self, Class, Inspected},
};

const FILE: &str = "issued.json";
const LOCK: &str = ".issued.lock";
const FORMAT: u32 = 1;

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The URI in it.
    pub identity: String,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// The key identifier of the authority that issued it.
    pub authority: String,
    /// First good moment.
    pub not_before: Timestamp,
    /// Last good moment.
    pub not_after: Timestamp,
    /// DNS names and addresses in it.
    #[serde(default)]
    pub names: Vec<String>,
    /// Since when it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// Why, as the operator said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Entry {
    /// What `found` is in the register; nothing where it is nobody's certificate.
    pub fn of(found: &Inspected) -> Option<Self> {
        let Class::Peer(peer) = &found.class else { return None };
        Some(Self {
            identity: peer.uri(),
            serial: serial_in(found)?.to_string(),
            authority: found.authority_key.clone()?,
            not_before: found.from,
            not_after: found.until,
            names: alternative_names(found),
            revoked_at: None,
            reason: None,
        })
    }

    /// Whose it is.
    pub fn peer(&self) -> Option<PeerId> {
        PeerId::from_uri(&self.identity).ok()
    }

    /// As an operator would name it: `node_a`, `operator alice`.
    pub fn whose(&self) -> String {
        match self.peer().map(|peer| peer.who) {
            Some(Who::Node(node)) => node.to_string(),
            Some(Who::Operator { name, .. }) => format!("operator {name}"),
            None => self.identity.clone(),
        }
    }

    /// Still good at `now`, and not revoked.
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && now <= self.not_after
    }
}

fn serial_in(found: &Inspected) -> Option<Serial> {
    found.serial.parse().ok()
}

/// The names of a certificate as `pki issue node --san` takes them.
pub fn alternative_names(found: &Inspected) -> Vec<String> {
    let name = |text: &String| text.strip_prefix("DNS:").or_else(|| text.strip_prefix("IP:")).map(str::to_owned);
    found.names.iter().filter_map(name).collect()
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    format: u32,
    issued: Vec<Entry>,
}

/// The register of one directory, open to be read and changed.
#[derive(Debug)]
pub struct Register {
    path: PathBuf,
    issued: Vec<Entry>,
    /// Held until the register is dropped.
    _lock: File,
}

impl Register {
    /// Opens the register of `dir`, waiting for whoever has it open.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let lock_path = dir.join(LOCK);
        let unwritable = |source| Error::Unwritable { path: lock_path.clone(), source };
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(unwritable)?;
        lock.lock().map_err(unwritable)?;
        let path = dir.join(FILE);
        let mut issued = Vec::new();
        if path.symlink_metadata().is_ok() {
            let unusable = |reason: String| Error::Unusable { path: path.clone(), reason };
            let content: Content = serde_json::from_str(&files::read(&path)?)
                .map_err(|error| unusable(format!("is no register of certificates ({error})")))?;
            if content.format != FORMAT {
                let reason = format!("is of format {}, this steepctl knows {FORMAT}", content.format);
                return Err(unusable(reason));
            }
            issued = content.issued;
        }
        let mut register = Self { path, issued, _lock: lock };
        register.take_up(dir);
        Ok(register)
    }

    /// Takes up what lies in `dir` and is not known yet; what cannot be read is no certificate of ours.
    fn take_up(&mut self, dir: &Path) {
        let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path());
        let found = files.filter(|path| path.extension().is_some_and(|ending| ending == "pem"));
        let mut entries: Vec<_> =
            found.filter_map(|path| inspect::file(&path).ok()).filter_map(|found| Entry::of(&found)).collect();
        entries.sort_by(|one, other| (one.not_before, &one.identity).cmp(&(other.not_before, &other.identity)));
        for entry in entries {
            self.add(entry);
        }
    }

    /// Writes a certificate down, unless it is known.
    pub fn add(&mut self, entry: Entry) {
        if !self.issued.iter().any(|known| (&known.serial, &known.authority) == (&entry.serial, &entry.authority)) {
            self.issued.push(entry);
        }
    }

    /// All certificates, in the order they were issued.
    pub fn entries(&self) -> &[Entry] {
        &self.issued
    }

    /// The same, to be changed.
    pub fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.issued
    }

    /// Puts it on disk.
    pub fn save(&self) -> Result<(), Error> {
        let content = Content { format: FORMAT, issued: self.issued.clone() };
        let text = serde_json::to_string_pretty(&content).expect("plain data is JSON");
        files::replace(&NewFile::certificate(self.path.clone(), format!("{text}\n")))
    }

    /// The certificates that `words` name: a node's id, `node ID`, `operator NAME`, a file, or a serial number.
    ///
    /// A name means all certificates of its owner, a file or a serial number exactly one.
    pub fn named(&mut self, words: &[String]) -> Result<Named, Error> {
        let unknown = |what: String| Error::NotIssued(what);
        match words {
            [word] if word.ends_with(".pem") || word.contains('/') => {
                let found = inspect::file(Path::new(word))?;
                let entry = Entry::of(&found).ok_or_else(|| {
                    unknown(format!("{word} is no certificate of a node or an operator of this mesh"))
                })?;
                self.add(entry.clone());
                Ok(Named::One(entry.serial))
            }
            [word] if self.has(&Whose::Node(word)) => Ok(Named::All(word.clone())),
            [word] => match word.parse::<Serial>() {
                Ok(serial) if self.issued.iter().any(|entry| entry.serial == serial.as_str()) => {
                    Ok(Named::One(serial.to_string()))
                }
                _ => Err(unknown(format!("no certificate of node {word}, and none with that serial number"))),
            },
            [kind, name] if kind == "node" && self.has(&Whose::Node(name)) => Ok(Named::All(name.clone())),
            [kind, name] if kind == "operator" && self.has(&Whose::Operator(name)) => {
                Ok(Named::All(format!("operator {name}")))
            }
            words => Err(unknown(format!("no certificate of {}", words.join(" ")))),
        }
    }

    fn has(&self, whose: &Whose<'_>) -> bool {
        let wanted = match whose {
            Whose::Node(node) => (*node).to_owned(),
            Whose::Operator(name) => format!("operator {name}"),
        };
        self.issued.iter().any(|entry| entry.whose() == wanted)
    }
}

enum Whose<'a> {
    Node(&'a str),
    Operator(&'a str),
}

/// Which certificates are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// All of one owner, see [`Entry::whose`].
    All(String),
    /// The one with this serial number.
    One(String),
}

impl Named {
    /// Whether it means `entry`.
    pub fn means(&self, entry: &Entry) -> bool {
        match self {
            Self::All(whose) => entry.whose() == *whose,
            Self::One(serial) => entry.serial == *serial,
        }
    }
}
