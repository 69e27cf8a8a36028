//! The table, held against the protocol and against callers of every kind.

use std::collections::BTreeSet;

use jiff::Timestamp;
use prost::Message as _;
use steep_protocol::{ids::OperationId, intent::Order, operation::Action};

use super::*;

const NODE: &str = "spiffe://m/node/node_a";
const VIEWER: &str = "spiffe://m/operator/viewer/v";
const OPERATOR: &str = "spiffe://m/operator/operator/o";
const ADMIN: &str = "spiffe://m/operator/admin/a";

fn peer(uri: &str) -> PeerId {
    PeerId::from_uri(uri).expect("an identity")
}

/// What `signer` signed, provided that it can be believed.
fn believed(signer: &str) -> Result<Verified, Failure> {
    let target = "node_b".parse().expect("a name");
    Ok(Verified {
        order: Order::new(Action::NodeCancel, OperationId::generate(), target),
        signer: peer(signer),
        not_after: Timestamp::now(),
        signed: v1::SignedIntent::default(),
    })
}

fn ask(uri: &str, forwarded_for: Option<&str>, signer: Option<&str>, rpc: Rpc) -> Result<Caller, Code> {
    let (peer, signed) = (peer(uri), v1::SignedIntent::default());
    let asked = Asked {
        peer: Some(&peer),
        rpc,
        forwarded_for: forwarded_for.map(str::as_bytes),
        intent: signer.map(|_| &signed),
    };
    admit(asked, |_| believed(signer.expect("somebody signed"))).map_err(|denied| denied.failure.code)
}

#[test]
fn every_method_of_the_protocol_stands_in_the_table_once_and_nothing_else_does() {
    let described = prost_types::FileDescriptorSet::decode(v1::DESCRIPTORS).expect("our own descriptors");
    let ours = described.file.iter().filter(|file| file.package() == PACKAGE);
    let methods: BTreeSet<String> = ours
        .flat_map(|file| &file.service)
        .flat_map(|service| {
            service.method.iter().map(|method| format!("{PACKAGE}.{}/{}", service.name(), method.name()))
        })
        .collect();
    let table: BTreeSet<String> = TABLE.iter().map(|(_, name, ..)| (*name).to_owned()).collect();
    assert_eq!(methods.difference(&table).collect::<Vec<_>>(), Vec::<&String>::new(), "methods nobody may call");
    assert_eq!(table.difference(&methods).collect::<Vec<_>>(), Vec::<&String>::new(), "rows for no method");
    assert_eq!(table.len(), TABLE.len(), "a method stands in the table twice");
    for (index, (rpc, name, ..)) in TABLE.iter().enumerate() {
        assert_eq!(Rpc::of_path(&format!("/{name}")), Some(*rpc));
        assert!(TABLE[..index].iter().all(|(earlier, ..)| earlier != rpc), "{rpc:?} has two rows");
    }
    assert_eq!(Rpc::of_path("/steep.v1.Nodes/Format"), None);
}

#[test]
fn every_call_is_open_to_exactly_whom_the_table_names() {
    let callers =
        [(NODE, None), (VIEWER, Some(Role::Viewer)), (OPERATOR, Some(Role::Operator)), (ADMIN, Some(Role::Admin))];
    for (rpc, name, allowed, _) in TABLE {
        for (uri, role) in callers {
            let expected = match allowed {
                Allowed::Nodes => role.is_none(),
                Allowed::From(least) => role.is_some_and(|role| role >= *least),
            };
            let signer = if role.is_some() { uri } else { OPERATOR };
            assert_eq!(ask(uri, None, Some(signer), *rpc).is_ok(), expected, "{uri} calling {name}");
        }
        let nobody = Asked { peer: None, rpc: *rpc, forwarded_for: None, intent: None };
        let nobody = admit(nobody, |_| believed(ADMIN));
        assert!(nobody.is_err(), "nobody may call {name}");
    }
}

#[test]
fn a_forwarded_request_has_its_operators_rights_and_no_others() {
    let other_admin = "spiffe://other/operator/admin/a";
    let cases = [
        (NODE, VIEWER, None, Rpc::NodesList, None),
        (NODE, VIEWER, Some(VIEWER), Rpc::NodesStart, Some(Code::Denied)),
        (NODE, OPERATOR, Some(OPERATOR), Rpc::NodesStart, None),
        (NODE, OPERATOR, Some(OPERATOR), Rpc::NodesCancel, None),
        // An agent's word is not enough to change anything.
        (NODE, OPERATOR, None, Rpc::NodesStart, Some(Code::IntentMissing)),
        (NODE, ADMIN, None, Rpc::NodesCancel, Some(Code::IntentMissing)),
        (NODE, ADMIN, None, Rpc::OperationsCancel, Some(Code::IntentMissing)),
        // Nor is what another operator has signed.
        (NODE, ADMIN, Some(OPERATOR), Rpc::NodesCancel, Some(Code::IntentMisdirected)),
        (NODE, ADMIN, Some(ADMIN), Rpc::PeersHello, Some(Code::Denied)),
        (NODE, other_admin, Some(other_admin), Rpc::NodesStart, Some(Code::Denied)),
        (NODE, "spiffe://m/node/node_b", None, Rpc::PeersHello, Some(Code::Denied)),
        (NODE, "nonsense", None, Rpc::NodesList, Some(Code::Denied)),
        (VIEWER, ADMIN, Some(ADMIN), Rpc::NodesStart, Some(Code::Denied)),
    ];
    for (caller, original, signer, rpc, expected) in cases {
        let code = ask(caller, Some(original), signer, rpc).err();
        assert_eq!(code, expected, "{caller} for {original}, signed by {signer:?}, calling {rpc:?}");
    }
}

#[test]
fn who_asks_directly_signs_only_what_others_must_believe() {
    let cases = [
        (OPERATOR, None, Rpc::NodesStart, Some(Code::IntentMissing)),
        (OPERATOR, Some(ADMIN), Rpc::NodesStart, Some(Code::IntentMisdirected)),
        (OPERATOR, Some(OPERATOR), Rpc::NodesStart, None),
        (OPERATOR, None, Rpc::NodesCancel, None),
        (OPERATOR, Some(ADMIN), Rpc::NodesCancel, Some(Code::IntentMisdirected)),
        (NODE, None, Rpc::PeersExamine, Some(Code::IntentMissing)),
        (NODE, None, Rpc::PeersOpenSession, Some(Code::IntentMissing)),
        (NODE, Some(OPERATOR), Rpc::PeersOpenSession, None),
        (NODE, None, Rpc::PeersRenewSession, None),
    ];
    for (caller, signer, rpc, expected) in cases {
        assert_eq!(ask(caller, None, signer, rpc).err(), expected, "{caller}, signed by {signer:?}, calling {rpc:?}");
    }
    let peer = peer(OPERATOR);
    let signed = v1::SignedIntent::default();
    let asked = Asked { peer: Some(&peer), rpc: Rpc::NodesStart, forwarded_for: None, intent: Some(&signed) };
    let denied = admit(asked, |_| Err(Failure::new(Code::IntentExpired, "too late")));
    assert_eq!(denied.expect_err("it is not believed").failure.code, Code::IntentExpired);
}
