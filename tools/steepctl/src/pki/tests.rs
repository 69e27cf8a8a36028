//! What was issued, read back with another library than the one that wrote it.

use std::{fs, path::PathBuf};

use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Explain as _},
    ids::OperationId,
    operation::Role,
    wire::identity::{Identity, Who},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::Pem};

use super::{
    Error, authority, inspect,
    leaf::{self, For, Times},
};

/// A directory of our own, gone when dropped.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("steepctl-pki-{}", OperationId::generate().short()));
        fs::create_dir(&dir).expect("a new directory");
        Self(dir)
    }

    pub(super) fn mesh(name: &str) -> Self {
        let scratch = Self::new();
        authority::create(&name.parse().expect("a mesh name"), &scratch.0, now()).expect("authorities");
        scratch
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn node(&self, node: &str, names: &[&str]) -> Result<leaf::Issued, Error> {
        let whom = For::Node {
            node: node.parse().expect("a node id"),
            names: names.iter().map(|name| name.to_string()).collect(),
        };
        leaf::issue(&self.0, &whom, Times::default(), now())
    }

    pub(super) fn operator(&self, name: &str, role: Role, times: Times) -> Result<leaf::Issued, Error> {
        let whom = For::Operator { name: name.parse().expect("a name"), role };
        leaf::issue(&self.0, &whom, times, now())
    }

    /// Hands every certificate of a file to `check`, in order.
    fn certificates(&self, file: &str, mut check: impl FnMut(usize, &X509Certificate<'_>)) {
        let text = fs::read(self.path(file)).expect("the file");
        for (at, pem) in Pem::iter_from_buffer(&text).enumerate() {
            let pem = pem.expect("PEM");
            check(at, &pem.parse_x509().expect("a certificate"));
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn now() -> Timestamp {
    Timestamp::now()
}

fn uris(cert: &X509Certificate<'_>) -> Vec<String> {
    let names = cert.subject_alternative_name().expect("readable").expect("there").value;
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.general_names.iter().filter_map(uri).collect()
}

fn common_name<'a>(name: &'a x509_parser::x509::X509Name<'_>) -> &'a str {
    name.iter_common_name().next().expect("a common name").as_str().expect("text")
}

#[test]
fn the_authorities_form_a_chain_that_can_go_no_deeper() {
    let mesh = Scratch::mesh("acme");
    let cases = [
        ("ca.pem", "steep acme root", "steep acme root", 1, 3_653),
        ("nodes-ca.pem", "steep acme nodes", "steep acme root", 0, 1_826),
        ("operators-ca.pem", "steep acme operators", "steep acme root", 0, 1_826),
    ];
    for (file, subject, issuer, path_length, days) in cases {
        let mut seen = 0;
        mesh.certificates(file, |_, cert| {
            seen += 1;
            assert_eq!((common_name(cert.subject()), common_name(cert.issuer())), (subject, issuer));
            assert_eq!(cert.subject().iter_attributes().count(), 1, "the common name is all there is");
            let constraints = cert.basic_constraints().expect("readable").expect("there");
            assert!(constraints.critical && constraints.value.ca);
            assert_eq!(constraints.value.path_len_constraint, Some(path_length), "{file}");
            let usage = cert.key_usage().expect("readable").expect("there");
            assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
            assert!(!usage.value.digital_signature());
            assert_eq!(cert.version(), x509_parser::x509::X509Version::V3);
            let validity = cert.validity();
            let length = validity.not_after.timestamp() - validity.not_before.timestamp();
            assert_eq!(length / 86_400, days, "{file}");
        });
        assert_eq!(seen, 1, "{file}");
    }
}

#[test]
fn a_node_certificate_has_one_uri_and_both_purposes_and_its_chain_behind_it() {
    let mesh = Scratch::mesh("acme");
    mesh.node("node_a", &["db1.example.com", "10.0.1.11", "::1", "db_1"]).expect("issued");
    mesh.certificates("node_a.pem", |at, cert| {
        if at == 1 {
            assert_eq!(common_name(cert.subject()), "steep acme nodes");
            return;
        }
        assert_eq!(uris(cert), ["spiffe://acme/node/node_a"]);
        assert_eq!(common_name(cert.issuer()), "steep acme nodes");
        let purposes = cert.extended_key_usage().expect("readable").expect("there").value;
        assert!(purposes.server_auth && purposes.client_auth && !purposes.any && purposes.other.is_empty());
        let usage = cert.key_usage().expect("readable").expect("there");
        assert!(usage.critical && usage.value.flags == 1, "digital signature and nothing else");
        assert!(!cert.is_ca());
    });
    let found = inspect::file(&mesh.path("node_a.pem")).expect("readable");
    assert_eq!(
        found.names,
        ["URI:spiffe://acme/node/node_a", "DNS:db1.example.com", "IP:10.0.1.11", "IP:::1", "DNS:db_1"]
    );
    assert_eq!(found.chain, ["steep acme nodes"]);
    assert_eq!(found.key, inspect::KeyBeside::Fits(mesh.path("node_a.key")));
    assert_eq!(found.validity_at(now()), inspect::Validity::Valid { seconds_left: 365 * 86_400 - 1 });
}

#[test]
fn an_operator_certificate_can_only_ask() {
    let mesh = Scratch::mesh("acme");
    for (role, days) in [(Role::Viewer, 90), (Role::Operator, 30), (Role::Admin, 30)] {
        let issued = mesh.operator(role.as_str(), role, Times::default()).expect("issued");
        let file = format!("operator-{role}.pem");
        mesh.certificates(&file, |at, cert| {
            if at == 1 {
                return;
            }
            assert_eq!(uris(cert), [format!("spiffe://acme/operator/{role}/{role}")]);
            assert_eq!(common_name(cert.issuer()), "steep acme operators");
            let purposes = cert.extended_key_usage().expect("readable").expect("there").value;
            assert!(purposes.client_auth && !purposes.server_auth && !purposes.any);
        });
        let length = issued.lifetime.until.as_second() - issued.lifetime.from.as_second();
        assert_eq!(length / 86_400, days, "{role}");
    }
}

#[test]
fn what_is_issued_is_what_agents_accept() {
    let mesh = Scratch::mesh("acme");
    mesh.node("node_a", &[]).expect("issued");
    mesh.operator("alice", Role::Admin, Times::default()).expect("issued");
    let load = |stem: &str| {
        let file = |ending: &str| mesh.path(&format!("{stem}.{ending}"));
        Identity::load(&file("pem"), &file("key"), &mesh.path("ca.pem")).expect("an identity")
    };
    assert_eq!(load("node_a").me().uri(), "spiffe://acme/node/node_a");
    let Who::Operator { role, name } = load("operator-alice").me().who.clone() else { panic!("an operator") };
    assert_eq!((role, name.as_str()), (Role::Admin, "alice"));
}

#[cfg(unix)]
#[test]
fn keys_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let mesh = Scratch::new();
    let dir = mesh.path("new/pki");
    authority::create(&"acme".parse().expect("a mesh name"), &dir, now()).expect("authorities");
    let mode = |path: PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    for key in ["ca.key", "nodes-ca.key", "operators-ca.key"] {
        assert_eq!(mode(dir.join(key)), 0o600, "{key}");
    }
    assert_eq!(mode(dir), 0o700);
}

#[test]
fn nothing_is_ever_overwritten_and_nothing_is_half_written() {
    let mesh = Scratch::mesh("acme");
    let name = "acme".parse().expect("a mesh name");
    let before = fs::read(mesh.path("ca.pem")).expect("there");
    let again = authority::create(&name, &mesh.0, now()).expect_err("refused");
    assert_eq!(again.code(), Code::FileExists);
    assert_eq!(fs::read(mesh.path("ca.pem")).expect("there"), before);

    // One of six files is there: none of the others may be made.
    let partly = Scratch::new();
    fs::write(partly.path("operators-ca.key"), "mine").expect("written");
    assert!(matches!(authority::create(&name, &partly.0, now()), Err(Error::Exists(_))));
    assert_eq!(fs::read_dir(&partly.0).expect("there").count(), 1);

    mesh.node("node_a", &[]).expect("issued");
    let before = fs::read(mesh.path("node_a.key")).expect("there");
    assert_eq!(mesh.node("node_a", &[]).expect_err("refused").code(), Code::FileExists);
    fs::remove_file(mesh.path("node_a.pem")).expect("removed");
    assert_eq!(mesh.node("node_a", &[]).expect_err("the key is still there").code(), Code::FileExists);
    assert_eq!(fs::read(mesh.path("node_a.key")).expect("there"), before);
    assert!(!mesh.path("node_a.pem").exists(), "the certificate was made although the key could not be");

    // A node may bear the name of an authority's file.
    assert_eq!(mesh.node("nodes-ca", &[]).expect_err("refused").code(), Code::FileExists);
}

#[test]
fn issuing_needs_an_authority_that_is_whole() {
    let empty = Scratch::new();
    assert!(matches!(empty.node("node_a", &[]), Err(Error::NoAuthority { file: "nodes-ca.pem", .. })));

    let mesh = Scratch::mesh("acme");
    let other = Scratch::mesh("other");
    fs::copy(other.path("nodes-ca.key"), mesh.path("nodes-ca.key")).expect("copied");
    let refused = mesh.node("node_a", &[]).expect_err("refused");
    assert!(refused.to_string().contains("not the key of the certificate"), "{refused}");

    fs::copy(mesh.path("ca.pem"), mesh.path("operators-ca.pem")).expect("copied");
    let refused = mesh.operator("alice", Role::Admin, Times::default()).expect_err("refused");
    assert!(refused.to_string().contains("not the authority for operators"), "{refused}");
}

#[test]
fn no_leaf_outlives_its_authority_and_none_ends_before_it_begins() {
    let mesh = Scratch::mesh("acme");
    let long = mesh.operator("long", Role::Viewer, Times { days: Some(3_650), ..Times::default() }).expect("issued");
    assert!(long.is_shortened);
    let authority = inspect::file(&mesh.path("operators-ca.pem")).expect("readable");
    assert_eq!(long.lifetime.until, authority.until);

    let at = |text: &str| Some(text.parse().expect("a moment"));
    let expired = Times { not_before: at("2020-01-01T00:00:00Z"), not_after: at("2020-02-01T00:00:00Z"), days: None };
    mesh.operator("expired", Role::Viewer, expired).expect("issued, for tests of expired certificates");
    let found = inspect::file(&mesh.path("operator-expired.pem")).expect("readable");
    assert!(matches!(found.validity_at(now()), inspect::Validity::Expired { .. }));

    let backwards = Times { not_before: at("2020-02-01T00:00:00Z"), not_after: at("2020-01-01T00:00:00Z"), days: None };
    assert!(matches!(mesh.operator("backwards", Role::Viewer, backwards), Err(Error::Times(_))));
}

#[test]
fn only_names_that_can_stand_in_a_certificate_are_taken() {
    let mesh = Scratch::mesh("acme");
    for bad in ["", "a b", "spiffe://acme/node/other", "a..b", "-a", "a/b", "é.example", "*"] {
        assert!(matches!(mesh.node("node_a", &[bad]), Err(Error::Name(_))), "{bad:?}");
    }
    assert!(!mesh.path("node_a.pem").exists());
    assert!(mesh.node("node_a", &["*.example.com"]).is_ok());
}

#[test]
fn inspecting_says_what_is_wrong_with_a_file() {
    let mesh = Scratch::mesh("acme");
    mesh.node("node_a", &[]).expect("issued");
    mesh.node("node_b", &[]).expect("issued");
    let reason = |file: &str| inspect::file(&mesh.path(file)).expect_err("refused").to_string();
    assert!(reason("node_a.key").contains("is a private key"));
    fs::write(mesh.path("text.pem"), "hello").expect("written");
    assert!(reason("text.pem").contains("no certificate"));
    fs::write(mesh.path("broken.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .expect("written");
    assert!(reason("broken.pem").contains("damaged"));
    assert!(reason("gone.pem").contains("cannot read"));

    fs::remove_file(mesh.path("node_a.key")).expect("removed");
    fs::copy(mesh.path("node_b.key"), mesh.path("node_a.key")).expect("copied");
    let found = inspect::file(&mesh.path("node_a.pem")).expect("readable");
    assert!(matches!(found.key, inspect::KeyBeside::Wrong(..)));
    let root = inspect::file(&mesh.path("ca.pem")).expect("readable");
    let mesh_name = "acme".parse().expect("a mesh name");
    assert_eq!(root.class, inspect::Class::Authority { mesh: Some(mesh_name), class: "root".into() });
}
