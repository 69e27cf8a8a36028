//! Certificates for nodes and operators: one URI that says who they are, and the key usage that goes with it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};
use steep_protocol::{
    ids::NodeId,
    operation::Role,
    wire::identity::{PeerId, Who},
};

use super::{
    Error, Lifetime,
    authority::{self, Class},
    files::{self, NewFile},
    inspect, params,
    register::{Entry, Register},
};

/// For whom a certificate is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum For {
    /// A node's agent.
    Node {
        /// Its id.
        node: NodeId,
        /// DNS names and IP addresses for people and foreign clients; they authorize nothing.
        names: Vec<String>,
    },
    /// Somebody who runs steepctl.
    Operator {
        /// Obeys the rule of node ids: it stands in logs and audit rows.
        name: NodeId,
        /// What they may do.
        role: Role,
    },
}

impl For {
    fn class(&self) -> Class {
        match self {
            Self::Node { .. } => Class::Nodes,
            Self::Operator { .. } => Class::Operators,
        }
    }

    fn common_name(&self) -> &str {
        match self {
            Self::Node { node, .. } => node.as_str(),
            Self::Operator { name, .. } => name.as_str(),
        }
    }

    /// How its files are called, without the ending.
    pub fn file_stem(&self) -> String {
        match self {
            Self::Node { node, .. } => node.to_string(),
            Self::Operator { name, .. } => format!("operator-{name}"),
        }
    }

    /// For how long where nobody says: the more it may do, the sooner it ends.
    fn usual_days(&self) -> u32 {
        match self {
            Self::Node { .. } => 365,
            Self::Operator { role: Role::Viewer, .. } => 90,
            Self::Operator { role: Role::Operator | Role::Admin, .. } => 30,
        }
    }
}

/// When a certificate should be good; what is not said is chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Days from now.
    pub days: Option<u32>,
    /// The first moment.
    pub not_before: Option<Timestamp>,
    /// The last moment.
    pub not_after: Option<Timestamp>,
}

/// What was issued.
#[derive(Debug)]
pub struct Issued {
    /// Who the certificate says they are.
    pub peer: PeerId,
    /// Certificate and chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// When it is good.
    pub lifetime: Lifetime,
    /// It ends earlier than asked, together with the authority.
    pub is_shortened: bool,
}

/// A certificate and its key that are in no file yet.
#[derive(Debug)]
pub struct Made {
    peer: PeerId,
    lifetime: Lifetime,
    is_shortened: bool,
    cert: String,
    key: String,
}

impl Made {
    /// The two files to write, at these places.
    pub fn files(&self, key: &Path, cert: &Path) -> [NewFile; 2] {
        [NewFile::key(key.to_owned(), self.key.clone()), NewFile::certificate(cert.to_owned(), self.cert.clone())]
    }

    /// Once they are written.
    pub fn issued(self, cert: PathBuf, key: PathBuf) -> Issued {
        Issued { peer: self.peer, cert, key, lifetime: self.lifetime, is_shortened: self.is_shortened }
    }
}

/// Issues a certificate from the authorities in `dir`, and writes it there with its key and into the register.
///
/// Fails with [`Error::Exists`] if either file is there; then nothing is written.
pub fn issue(dir: &Path, whom: &For, times: Times, now: Timestamp) -> Result<Issued, Error> {
    let stem = whom.file_stem();
    let (cert_path, key_path) = (dir.join(format!("{stem}.pem")), dir.join(format!("{stem}.key")));
    files::refuse_existing([cert_path.as_path(), key_path.as_path()])?;
    let made = make(dir, whom, times, now)?;
    let mut register = Register::open(dir)?;
    files::write_all(&made.files(&key_path, &cert_path))?;
    if let Some(entry) = Entry::of(&inspect::file(&cert_path)?) {
        register.add(entry);
    }
    register.save()?;
    Ok(made.issued(cert_path, key_path))
}

/// Makes a certificate by the authorities in `dir`; writes nothing.
pub fn make(dir: &Path, whom: &For, times: Times, now: Timestamp) -> Result<Made, Error> {
    let authority = authority::open(dir, whom.class(), now)?;

    let peer = PeerId {
        mesh: authority.mesh.clone(),
        who: match whom {
            For::Node { node, .. } => Who::Node(node.clone()),
            For::Operator { name, role } => Who::Operator { role: *role, name: name.to_string() },
        },
    };
    let usual = Lifetime::of_days(times.days.unwrap_or(whom.usual_days()), now);
    let mut lifetime =
        Lifetime { from: times.not_before.unwrap_or(usual.from), until: times.not_after.unwrap_or(usual.until) };
    let is_shortened = lifetime.until > authority.until;
    lifetime.until = lifetime.until.min(authority.until);
    if lifetime.from >= lifetime.until {
        return Err(Error::Times(format!(
            "a certificate cannot end at {} when it begins at {}",
            lifetime.until, lifetime.from
        )));
    }

    let mut params = params(whom.common_name(), lifetime);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.subject_alt_names = vec![SanType::URI(name(&peer.uri())?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if let For::Node { names, .. } = whom {
        params.extended_key_usages.insert(0, ExtendedKeyUsagePurpose::ServerAuth);
        for text in names {
            params.subject_alt_names.push(alternative_name(text)?);
        }
    }
    let failed = |source| Error::Signing { what: format!("the certificate of {peer}"), source };
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params.signed_by(&key, &authority.issuer).map_err(failed)?;
    let cert = format!("{}{}", cert.pem(), authority.pem);
    Ok(Made { peer, lifetime, is_shortened, cert, key: key.serialize_pem() })
}

fn alternative_name(text: &str) -> Result<SanType, Error> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let is_dns = text.len() <= 253 && text.strip_prefix("*.").unwrap_or(text).split('.').all(label);
    if is_dns { Ok(SanType::DnsName(name(text)?)) } else { Err(Error::Name(text.to_owned())) }
}

fn name(text: &str) -> Result<rcgen::string::Ia5String, Error> {
    text.try_into().map_err(|_| Error::Name(text.to_owned()))
}
