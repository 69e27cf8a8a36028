//! Orders that must not be believed: altered, out of time, signed by the wrong hand.

use std::{fs, path::PathBuf, time::Duration};

use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use steep_protocol::{
    failure::Code,
    ids::OperationId,
    intent::{self, Order},
    operation::Action,
    v1,
    wire::identity::Identity,
};
use time::OffsetDateTime;

/// A mesh's authorities, and the folder its identities are loaded from.
struct Mesh {
    name: &'static str,
    dir: PathBuf,
    root: Authority,
    nodes: Authority,
    operators: Authority,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn moment(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).expect("a date")
}

fn params(name: &str, from: Timestamp, until: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (moment(from), moment(until));
    params
}

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

fn authority(name: &str, above: Option<&Authority>) -> Authority {
    let now = Timestamp::now();
    let mut params = params(name, now - hours(999), now + hours(999));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(if above.is_none() { 1 } else { 0 }));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key can be made");
    let cert = match above {
        None => params.self_signed(&key),
        Some(above) => params.signed_by(&key, &above.issuer),
    };
    Authority { pem: cert.expect("it can be signed").pem(), issuer: Issuer::new(params, key) }
}

impl Mesh {
    fn new(name: &'static str) -> Self {
        let dir = std::env::temp_dir().join(format!("steep-intents-{}", OperationId::generate().short()));
        fs::create_dir(&dir).expect("a new folder");
        let root = authority(&format!("steep {name} root"), None);
        let nodes = authority(&format!("steep {name} nodes"), Some(&root));
        let operators = authority(&format!("steep {name} operators"), Some(&root));
        Self { name, dir, root, nodes, operators }
    }

    fn load(&self, path: &str, usages: &[Usage], above: &Authority, valid: (Timestamp, Timestamp)) -> Identity {
        let mut params = params("leaf", valid.0, valid.1);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let uri = format!("spiffe://{}/{path}", self.name);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        let key = KeyPair::generate().expect("a key can be made");
        let cert = params.signed_by(&key, &above.issuer).expect("it can be signed");
        let file = |ending: &str| self.dir.join(format!("{}.{ending}", path.replace('/', "-")));
        fs::write(file("pem"), format!("{}{}", cert.pem(), above.pem)).expect("it can be written");
        fs::write(file("key"), key.serialize_pem()).expect("it can be written");
        fs::write(file("ca"), &self.root.pem).expect("it can be written");
        #[cfg(unix)]
        fs::set_permissions(file("key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
        Identity::load(&file("pem"), &file("key"), &file("ca")).expect("an identity")
    }

    fn node(&self, name: &str) -> Identity {
        let now = Timestamp::now();
        let both = [Usage::ServerAuth, Usage::ClientAuth];
        self.load(&format!("node/{name}"), &both, &self.nodes, (now - hours(1), now + hours(99)))
    }

    fn operator(&self, name: &str) -> Identity {
        let now = Timestamp::now();
        self.operator_valid(name, now - hours(1), now + hours(99))
    }

    fn operator_valid(&self, name: &str, from: Timestamp, until: Timestamp) -> Identity {
        self.load(&format!("operator/{name}"), &[Usage::ClientAuth], &self.operators, (from, until))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn order() -> Order {
    let name = |name: &str| v1::TableName { schema: "public".into(), name: name.into() };
    Order {
        source: Some("node_a".parse().expect("a name")),
        selection: v1::Selection { tables: vec![name("orders")], ..Default::default() },
        one_way: true,
        ..Order::new(Action::NodeStart, OperationId::generate(), "node_b".parse().expect("a name"))
    }
}

fn sign(by: &Identity, at: Timestamp) -> v1::SignedIntent {
    intent::sign(by, &order(), at, intent::LIFETIME).expect("it can be signed")
}

#[track_caller]
fn refused(by: &Identity, signed: &v1::SignedIntent, now: Timestamp, code: Code, says: &str) {
    let failure = intent::verify(by, signed, now).expect_err("it must not be believed");
    assert_eq!(failure.code, code, "{failure:?}");
    let said = format!("{} {}", failure.message, failure.causes.join(" "));
    assert!(said.contains(says), "{says:?} is not said: {failure:?}");
    assert!(!failure.hint.is_empty());
}

#[test]
fn what_an_operator_signed_is_believed_as_it_was_signed() {
    let mesh = Mesh::new("acme");
    let (node, alice, order, now) = (mesh.node("node_a"), mesh.operator("admin/alice"), order(), Timestamp::now());
    let signed = intent::sign(&alice, &order, now, intent::LIFETIME).expect("it can be signed");
    let verified = intent::verify(&node, &signed, now).expect("it is believed");
    assert_eq!((&verified.order, &verified.signer, &verified.signed), (&order, alice.me(), &signed));
    let mut request = tonic::Request::new(());
    intent::attach(&mut request, &signed);
    assert_eq!(intent::carried(request.metadata()).expect("it can be read"), Some(signed));
}

#[test]
fn not_one_byte_may_change() {
    let mesh = Mesh::new("acme");
    let (node, alice, now) = (mesh.node("node_a"), mesh.operator("operator/alice"), Timestamp::now());
    let signed = sign(&alice, now);
    for at in 0..signed.intent.len() {
        let mut altered = signed.clone();
        altered.intent[at] ^= 1;
        refused(&node, &altered, now, Code::IntentInvalid, "does not fit");
    }
    for at in [0, signed.signature.len() / 2, signed.signature.len() - 1] {
        let mut altered = signed.clone();
        altered.signature[at] ^= 1;
        refused(&node, &altered, now, Code::IntentInvalid, "does not fit");
    }
    let without = |change: fn(&mut v1::SignedIntent)| {
        let mut altered = signed.clone();
        change(&mut altered);
        altered
    };
    refused(&node, &without(|it| it.signature.clear()), now, Code::IntentInvalid, "does not fit");
    refused(&node, &without(|it| it.chain.clear()), now, Code::IntentInvalid, "does not fit");
    refused(&node, &without(|it| it.scheme = 0x0804), now, Code::IntentInvalid, "does not fit");
    refused(&node, &without(|it| it.scheme = 77_777), now, Code::IntentInvalid, "does not fit");
    refused(&node, &without(|it| drop(it.chain.pop())), now, Code::SignerRefused, "root");
    refused(&node, &without(|it| it.chain[0] = vec![1, 2, 3]), now, Code::SignerRefused, "");
    refused(&node, &without(|it| it.intent = vec![0; 1 << 20]), now, Code::IntentInvalid, "bytes");
    // Another's certificate over the same signature.
    let mut swapped = signed.clone();
    swapped.chain = sign(&mesh.operator("admin/bob"), now).chain;
    refused(&node, &swapped, now, Code::IntentInvalid, "does not fit");
}

#[test]
fn an_order_has_its_time() {
    let mesh = Mesh::new("acme");
    let (node, alice, now) = (mesh.node("node_a"), mesh.operator("operator/alice"), Timestamp::now());
    let signed = sign(&alice, now);
    let minutes = SignedDuration::from_mins;
    for good in [minutes(-4), minutes(0), minutes(5)] {
        intent::verify(&node, &signed, now + good).unwrap_or_else(|error| panic!("{good}: {error:?}"));
    }
    refused(&node, &signed, now + minutes(5) + SignedDuration::from_secs(1), Code::IntentExpired, "was good until");
    refused(&node, &signed, now - minutes(6), Code::IntentExpired, "not good before");
    let long = intent::sign(&alice, &order(), now, Duration::from_secs(7200)).expect("it can be signed");
    refused(&node, &long, now, Code::IntentExpired, "longer than an hour");
}

#[test]
fn only_operators_of_this_mesh_with_a_valid_certificate_and_a_role_that_suffices_give_orders() {
    let (mesh, other, forged) = (Mesh::new("acme"), Mesh::new("other"), Mesh::new("acme"));
    let (node, now) = (mesh.node("node_a"), Timestamp::now());
    let minutes = SignedDuration::from_mins;
    refused(&node, &sign(&mesh.operator("viewer/vera"), now), now, Code::SignerRefused, "role operator");
    refused(&node, &sign(&mesh.node("node_b"), now), now, Code::SignerRefused, "may not order");
    refused(&node, &sign(&other.operator("admin/olga"), now), now, Code::SignerRefused, "root");
    refused(&node, &sign(&forged.operator("admin/mallory"), now), now, Code::SignerRefused, "root");
    let expired = mesh.operator_valid("admin/eva", now - hours(9), now - minutes(6));
    refused(&node, &sign(&expired, now), now, Code::SignerRefused, "expired");
    let early = mesh.operator_valid("admin/ed", now + minutes(6), now + hours(9));
    refused(&node, &sign(&early, now), now, Code::SignerRefused, "not valid yet");
    // Clocks may stand five minutes apart.
    for (name, from, until) in
        [("admin/ann", now - hours(9), now - minutes(4)), ("admin/abe", now + minutes(4), now + hours(9))]
    {
        let near = mesh.operator_valid(name, from, until);
        intent::verify(&node, &sign(&near, now), now).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

#[test]
fn an_order_of_a_later_version_or_in_another_name_is_not_believed() {
    let mesh = Mesh::new("acme");
    let (node, alice, now) = (mesh.node("node_a"), mesh.operator("operator/alice"), Timestamp::now());
    let resigned = |change: fn(&mut v1::Intent)| {
        let mut intent = v1::Intent::decode(&sign(&alice, now).intent[..]).expect("our own");
        change(&mut intent);
        let bytes = intent.encode_to_vec();
        let made = steep_protocol::wire::signature::sign(&alice, "steep signed intent 1", &bytes).expect("signed");
        v1::SignedIntent { intent: bytes, signature: made.bytes, scheme: made.scheme.into(), chain: made.chain }
    };
    intent::verify(&node, &resigned(|_| {}), now).expect("unchanged, it is believed");
    refused(&node, &resigned(|it| it.version = 2), now, Code::IntentInvalid, "version 2");
    refused(&node, &resigned(|it| it.mesh = "other".into()), now, Code::SignerRefused, "other");
    let admin = "spiffe://acme/operator/admin/alice";
    refused(
        &node,
        &resigned(|it| it.signer = "spiffe://acme/operator/admin/alice".into()),
        now,
        Code::SignerRefused,
        admin,
    );
    refused(&node, &resigned(|it| it.action = "node.paint".into()), now, Code::IntentInvalid, "node.paint");
    refused(&node, &resigned(|it| it.target.clear()), now, Code::IntentInvalid, "makes no sense");
    refused(&node, &resigned(|it| it.not_after = None), now, Code::IntentInvalid, "when it is good");
    // The same key, the same bytes, signed for another purpose.
    let mut reused = sign(&alice, now);
    let made = steep_protocol::wire::signature::sign(&alice, "something else", &reused.intent).expect("signed");
    reused.signature = made.bytes;
    refused(&node, &reused, now, Code::IntentInvalid, "does not fit");
}

#[test]
fn an_order_that_names_too_many_tables_is_not_signed() {
    let mesh = Mesh::new("acme");
    let alice = mesh.operator("operator/alice");
    let mut order = order();
    order.selection.tables =
        (0..3_000).map(|n| v1::TableName { schema: "public".into(), name: format!("a_table_number_{n}") }).collect();
    let failure = intent::sign(&alice, &order, Timestamp::now(), intent::LIFETIME).expect_err("it is too long");
    assert_eq!(failure.code, Code::IntentTooLong);
}
