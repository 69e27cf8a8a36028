//! The manifest: what a snapshot holds, down to the hash of every file, signed with the key of the node it is of.
//!
//! It is written last: without it there is no snapshot. What is signed are its fields in their order, as JSON without
//! spaces, so that a manifest may be laid out anew but not changed by a letter. A reader refuses fields it does not know:
//! they may be a limit. It carries the signer's certificates, so that whoever trusts the mesh's root can judge it.

use std::collections::HashSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use steep_protocol::{
    failure::{Code, Failure},
    ids::{NodeId, OperationId},
    lsn::Lsn,
    wire::{
        identity::{Identity, PeerId, Who},
        signature::{self, GRACE, Signature},
    },
};

use super::codec::Codec;
use crate::storage::{SCHEMA, SEQUENCES, SOURCE, part_name};

/// The version of the format this agent writes, and the only one it reads. Rows of 1 were UTF-8 whatever their database was;
/// those of 2 are in its encoding.
pub const FORMAT_VERSION: u32 = 2;
/// A manifest is no larger; some 200,000 files.
pub const MOST_BYTES: u64 = 128 << 20;
const CONTEXT: &str = "steep snapshot manifest 1";

/// What a snapshot is and holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The layout of the directory and of this file.
    pub format_version: u32,
    /// The mesh of the node.
    pub mesh: String,
    /// The node whose rows these are.
    pub node: String,
    /// "snap_0192f3ac7d21".
    pub snapshot_id: String,
    /// The operation that made it.
    pub op_id: String,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When its slot is dropped.
    pub expires_at: Timestamp,
    /// All that was committed before this point of the node's WAL is in it, and nothing later.
    pub lsn: String,
    /// The slot on the node that sends what was committed since.
    pub slot: String,
    /// The publication on the node that holds its tables.
    pub publication: String,
    /// PostgreSQL's server_version_num, 180004.
    pub server_version_num: u32,
    /// Of the node's server.
    pub system_identifier: String,
    /// The database on it.
    pub database: String,
    /// The node received changes from others when it was made.
    pub has_neighbours: bool,
    /// Every table of the database was selected.
    pub whole_database: bool,
    /// none, gzip, lz4 or zstd.
    pub compression: String,
    /// `schema.dump`, `sequences.json` and `source.pb`, in this order.
    pub files: Vec<FileEntry>,
    /// The tables that hold rows.
    pub tables: Vec<TableEntry>,
    /// Nothing is missing.
    pub complete: bool,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of it, in hexadecimal.
    pub sha256: String,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableEntry {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its oid on the node.
    pub oid: u32,
    /// SHA-256 of its columns, as steep_repl computes it.
    pub fingerprint: String,
    /// The columns in the files, in their order.
    pub columns: Vec<ColumnEntry>,
    /// Rows of all parts.
    pub rows: u64,
    /// Bytes of all parts' files.
    pub bytes: u64,
    /// The files of its rows.
    pub parts: Vec<PartEntry>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnEntry {
    /// Its name.
    pub name: String,
    /// Its type, as format_type() writes it.
    pub r#type: String,
}

/// A part of a table: a range of its heap pages, in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartEntry {
    /// Its file: CSV with a header.
    pub file: FileEntry,
    /// The first heap page; the part ends where the next begins.
    pub first_page: u32,
    /// Rows in it.
    pub rows: u64,
    /// Bytes once expanded.
    pub expanded_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    manifest: Manifest,
    signature: SignatureEntry,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureEntry {
    scheme: u16,
    bytes: String,
    chain: Vec<String>,
}

/// The id under which people know the snapshot that `op` made.
pub fn snapshot_id(op: OperationId) -> String {
    format!("snap_{}", op.short())
}

/// A digest as the manifest has it.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    if digits.len().is_multiple_of(2) { pairs.collect() } else { None }
}

/// SHA-256 of `bytes`, as the manifest has it.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

impl Manifest {
    /// Signs it as `identity`; returns what `manifest.json` holds.
    pub fn sign(self, identity: &Identity) -> Result<Vec<u8>, Failure> {
        let Signature { scheme, bytes, chain } = signature::sign(identity, CONTEXT, &self.signed_bytes())
            .map_err(|error| Failure::new(Code::CertificateUnusable, error.to_string()))?;
        let chain = chain.iter().map(|der| hex(der)).collect();
        let signed = Signed { manifest: self, signature: SignatureEntry { scheme, bytes: hex(&bytes), chain } };
        Ok(serde_json::to_vec_pretty(&signed).expect("a manifest is plain data"))
    }

    /// Reads and judges what `manifest.json` holds: it was signed by the node it names, which is of our mesh, and says what
    /// a manifest can say.
    ///
    /// The certificate has to be one we would have let in when the snapshot was made; one that was revoked is none.
    /// Fails with [`Code::ManifestRefused`], [`Code::SnapshotIncomplete`] or [`Code::SnapshotUnsafe`].
    pub fn read(text: &[u8], identity: &Identity, now: Timestamp) -> Result<Self, Failure> {
        let refused = |text: String| Failure::new(Code::ManifestRefused, text);
        let Signed { manifest, signature } = serde_json::from_slice(text)
            .map_err(|error| refused("the manifest cannot be read".into()).caused_by(&error))?;
        if manifest.format_version != FORMAT_VERSION {
            let found = manifest.format_version;
            let text = format!("the snapshot is of format {found}, this agent reads {FORMAT_VERSION}");
            return Err(refused(text).hint("upgrade the agent, or write the snapshot again with one of its version"));
        }
        let unreadable = || refused("the manifest's signature cannot be read".into());
        let chain: Option<Vec<_>> = signature.chain.iter().map(|der| unhex(der)).collect();
        let signature = Signature {
            scheme: signature.scheme,
            bytes: unhex(&signature.bytes).ok_or_else(unreadable)?,
            chain: chain.ok_or_else(unreadable)?,
        };
        let grace = jiff::SignedDuration::try_from(GRACE).unwrap_or_default();
        if manifest.created_at > now + grace {
            return Err(refused(format!("the snapshot was made at {}, which is still to come", manifest.created_at)));
        }
        let signed = manifest.signed_bytes();
        let signer =
            signature::verify(identity, CONTEXT, &signed, &signature, manifest.created_at).map_err(|error| {
                let failure = refused(format!("the manifest's signature is not believed: {error}"));
                match error {
                    signature::Error::Chain(why) => why.causes.into_iter().fold(failure, Failure::cause),
                    _ => failure.cause("it was edited, or another key has signed it"),
                }
            })?;
        manifest.check_signer(&signer, identity.me())?;
        manifest.check_names()?;
        Ok(manifest)
    }

    fn signed_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is plain data")
    }

    fn check_signer(&self, signer: &PeerId, me: &PeerId) -> Result<(), Failure> {
        let refused = |text: String| Err(Failure::new(Code::ManifestRefused, text));
        if signer.mesh != me.mesh || self.mesh != me.mesh.as_str() {
            return refused(format!("the snapshot is of mesh {}, this is mesh {}", self.mesh, me.mesh));
        }
        match &signer.who {
            Who::Node(node) if node.as_str() == self.node => Ok(()),
            _ => refused(format!("the snapshot is of {}, and {signer} has signed it", self.node)),
        }
    }

    /// Whether every file has the name it must have, so that none can be anything else.
    fn check_names(&self) -> Result<(), Failure> {
        let wrong = |text: String| Err(Failure::new(Code::SnapshotUnsafe, text));
        if !self.complete {
            return Err(Failure::new(Code::SnapshotIncomplete, "the manifest says that the snapshot is not complete"));
        }
        let Ok(codec) = self.compression.parse::<Codec>() else {
            return wrong(format!("the manifest names the compression {:?}", self.compression));
        };
        let fixed: Vec<_> = self.files.iter().map(|file| file.name.as_str()).collect();
        if fixed != [SCHEMA, SEQUENCES, SOURCE] {
            return wrong(format!("the manifest names the files {fixed:?}"));
        }
        let mut seen = HashSet::new();
        let count = self.parts().count();
        for part in self.parts() {
            let name = part.file.name.strip_suffix(codec.end()).and_then(|name| name.rsplit('/').next());
            let number = name.and_then(|digits| digits.parse().ok()).unwrap_or(0);
            let is_ordinal = (1..=count).contains(&number) && part.file.name == part_name(number, codec.end());
            if !is_ordinal || !seen.insert(number) {
                return wrong(format!("the manifest names a file {:?}", part.file.name));
            }
        }
        let mut tables = HashSet::new();
        match self.tables.iter().find(|table| table.parts.is_empty() || !tables.insert(table.oid)) {
            Some(table) => wrong(format!("the manifest names no rows of {}.{}, or twice", table.schema, table.name)),
            None => Ok(()),
        }
    }

    /// The files of the rows.
    pub fn parts(&self) -> impl Iterator<Item = &PartEntry> {
        self.tables.iter().flat_map(|table| &table.parts)
    }

    /// Every file but the manifest.
    pub fn all_files(&self) -> impl Iterator<Item = &FileEntry> {
        self.files.iter().chain(self.parts().map(|part| &part.file))
    }

    /// One of the files that hold no rows.
    pub fn file(&self, name: &str) -> &FileEntry {
        self.files.iter().find(|file| file.name == name).expect("a manifest that was read names it")
    }

    /// How the rows are compressed.
    pub fn codec(&self) -> Codec {
        self.compression.parse().expect("a manifest that was read names a compression")
    }

    /// Rows of all tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.all_files().map(|file| file.bytes).sum()
    }

    /// The node, the operation and the point it is of.
    ///
    /// Fails with [`Code::ManifestRefused`] on words that are none.
    pub fn origin(&self) -> Result<(NodeId, OperationId, Lsn), Failure> {
        let refused = |error: &dyn std::error::Error| {
            Failure::new(Code::ManifestRefused, "the manifest's origin cannot be read").caused_by(error)
        };
        Ok((
            self.node.parse().map_err(|error| refused(&error))?,
            self.op_id.parse().map_err(|error| refused(&error))?,
            self.lsn.parse().map_err(|error| refused(&error))?,
        ))
    }
}

/// Reads a file that is small enough to be held whole, and holds it against its entry.
pub(super) fn matching(entry: &FileEntry, bytes: &[u8]) -> Result<(), Failure> {
    let damaged = |expected: &str, actual: &str| {
        Failure::new(Code::SnapshotDamaged, format!("{}: expected {expected}, found {actual}", entry.name))
    };
    if bytes.len() as u64 != entry.bytes {
        return Err(damaged(&format!("{} bytes", entry.bytes), &bytes.len().to_string()));
    }
    let found = digest(bytes);
    if found == entry.sha256 { Ok(()) } else { Err(damaged(&format!("SHA-256 {}", entry.sha256), &found)) }
}
