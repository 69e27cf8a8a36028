//! Certificates for agents that live as long as a test.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use steep_agent::config::Config;
use steep_protocol::{
    ids::NodeId,
    wire::identity::{Identity, authority_name},
};

/// The authority for the nodes of mesh `acme`; its files are gone with it.
pub(crate) struct Authority {
    dir: PathBuf,
    nodes: Branch,
    operators: Branch,
}

/// What signs certificates of one class.
struct Branch {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn params(name: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("steep-mesh-{}", uuid::Uuid::now_v7().simple()));
        fs::create_dir(&dir).expect("a new folder");
        let mesh = "acme".parse().expect("a name");
        let signs = |length| IsCa::Ca(BasicConstraints::Constrained(length));
        let root_key = KeyPair::generate().expect("a key");
        let mut root = params(&authority_name(&mesh, "root"), signs(1));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root_cert = root.self_signed(&root_key).expect("it can be signed");
        fs::write(dir.join("ca.pem"), root_cert.pem()).expect("a file");
        let root = Issuer::new(root, root_key);
        let branch = |class: &str| {
            let key = KeyPair::generate().expect("a key");
            let mut branch = params(&authority_name(&mesh, class), signs(0));
            branch.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let cert = branch.signed_by(&key, &root).expect("it can be signed");
            Branch { pem: cert.pem(), issuer: Issuer::new(branch, key) }
        };
        Self { nodes: branch("nodes"), operators: branch("operators"), dir }
    }

    /// Writes `<name>.pem` and `<name>.key` of somebody called by `uri`.
    fn issue(&self, branch: &Branch, name: &str, uri: String, purposes: Vec<ExtendedKeyUsagePurpose>) -> [PathBuf; 2] {
        let key = KeyPair::generate().expect("a key");
        let mut leaf = params(name, IsCa::ExplicitNoCa);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = purposes;
        leaf.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        let cert = leaf.signed_by(&key, &branch.issuer).expect("it can be signed");
        let files = ["pem", "key"].map(|ending| self.dir.join(format!("{name}.{ending}")));
        fs::write(&files[0], format!("{}{}", cert.pem(), branch.pem)).expect("a file");
        write_key(&files[1], &key.serialize_pem());
        files
    }

    /// Certificate, key and root of somebody who may look.
    pub(crate) fn viewer(&self) -> [PathBuf; 3] {
        let uri = "spiffe://acme/operator/viewer/eve".to_owned();
        let [cert, key] = self.issue(&self.operators, "eve", uri, vec![ExtendedKeyUsagePurpose::ClientAuth]);
        [cert, key, self.dir.join("ca.pem")]
    }

    /// Identity and configuration of a node's agent.
    pub(crate) fn identity(&self, node: &NodeId) -> (Identity, Arc<Config>) {
        let purposes = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("spiffe://acme/node/{node}");
        let [cert, key] = self.issue(&self.nodes, node.as_str(), uri, purposes);
        let identity = Identity::load(&cert, &key, &self.dir.join("ca.pem")).expect("an identity");
        let file = |ending: &str| self.dir.join(format!("{node}.{ending}"));
        let text = format!(
            "[node]\nid = \"{node}\"\nstate_dir = \"{node}.state\"\n\n[mesh]\n\n\
             [pki]\ncert = \"{node}.pem\"\nkey = \"{node}.key\"\nca = \"ca.pem\"\n"
        );
        fs::write(file("toml"), text).expect("a file");
        (identity, Arc::new(Config::load(&file("toml")).expect("a configuration")))
    }
}

fn write_key(path: &Path, pem: &str) {
    fs::write(path, pem).expect("a file");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
