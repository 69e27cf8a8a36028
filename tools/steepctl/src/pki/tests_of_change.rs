//! What happens to a pki directory after the first certificates: renewed, revoked, under another root.

use std::{collections::BTreeSet, fs};

use jiff::{SignedDuration, Timestamp};
use steep_protocol::{
    failure::{Code, Explain as _},
    operation::Role,
    wire::identity::{Identity, Who},
};

use super::{
    Error, inspect,
    leaf::Times,
    register::Register,
    renew, revoke, rotate,
    tests::{Scratch, now},
};

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

impl Scratch {
    fn identity(&self, stem: &str, ca: &str) -> Result<Identity, steep_protocol::wire::identity::Error> {
        let file = |ending: &str| self.path(&format!("{stem}.{ending}"));
        Identity::load(&file("pem"), &file("key"), &self.path(ca))
    }

    fn revoke(&self, who: &str) -> Result<revoke::Revoked, Error> {
        revoke::revoke(&self.0, &words(who), None, 30, now())
    }

    fn renew(&self, who: &str) -> Result<renew::Renewed, Error> {
        renew::renew(&self.0, &words(who), None, now())
    }

    /// Whose certificates the lists in the directory revoke, as an agent reads them.
    fn revoked(&self) -> BTreeSet<String> {
        let lists = revoke::read(&self.0, &self.path(revoke::FILE)).expect("good lists");
        let serials: BTreeSet<_> = lists.iter().flat_map(|list| list.serials()).map(ToString::to_string).collect();
        let register = Register::open(&self.0).expect("a register");
        register.entries().iter().filter(|entry| serials.contains(&entry.serial)).map(|entry| entry.whose()).collect()
    }

    fn numbers(&self) -> Vec<(String, u64)> {
        let lists = revoke::read(&self.0, &self.path(revoke::FILE)).expect("good lists");
        lists.iter().map(|list| (list.issuer().to_owned(), list.number())).collect()
    }
}

fn mesh() -> Scratch {
    let mesh = Scratch::mesh("acme");
    mesh.node("node_a", &["db1.example.com", "10.0.0.1"]).expect("issued");
    mesh.node("node_b", &[]).expect("issued");
    mesh.operator("alice", Role::Admin, Times::default()).expect("issued");
    mesh
}

#[test]
fn the_register_knows_what_was_issued_also_from_before_there_was_one() {
    let mesh = mesh();
    let whose = || {
        let register = Register::open(&mesh.0).expect("a register");
        register.entries().iter().map(|entry| entry.whose()).collect::<BTreeSet<_>>()
    };
    let all: BTreeSet<String> = ["node_a", "node_b", "operator alice"].map(str::to_owned).into();
    assert_eq!(whose(), all);
    fs::remove_file(mesh.path("issued.json")).expect("it was written");
    assert_eq!(whose(), all, "it is made anew from the files");
    fs::write(mesh.path("issued.json"), "{").expect("written");
    let damaged = Register::open(&mesh.0).expect_err("refused");
    assert!(damaged.code() == Code::CertificateUnusable && damaged.to_string().contains("issued.json"), "{damaged}");
    assert_eq!(mesh.node("node_c", &[]).expect_err("refused").code(), Code::CertificateUnusable);
    assert!(!mesh.path("node_c.pem").exists(), "nothing is issued that the register would not know");
}

#[test]
fn a_renewed_certificate_has_the_same_names_another_key_and_the_old_files_beside_it() {
    let mesh = mesh();
    let before = inspect::file(&mesh.path("node_a.pem")).expect("readable");
    let old_key = fs::read(mesh.path("node_a.key")).expect("there");
    let renewed = mesh.renew("node_a").expect("renewed");
    let after = inspect::file(&mesh.path("node_a.pem")).expect("readable");
    assert_eq!((before.names, before.issuer), (after.names.clone(), after.issuer.clone()));
    assert!(before.serial != after.serial && before.public_key != after.public_key);
    assert!(matches!(after.key, inspect::KeyBeside::Fits(_)));
    assert_eq!(renewed.aside.len(), 2);
    assert_eq!(fs::read(&renewed.aside[0]).expect("kept"), old_key);
    assert_eq!(renewed.old.expect("there was one").0, before.serial);
    mesh.identity("node_a", "ca.pem").expect("agents take it");

    mesh.renew("node node_a").expect("again");
    mesh.renew("operator alice").expect("an operator");
    let alice = mesh.identity("operator-alice", "ca.pem").expect("an identity").me().who.clone();
    assert_eq!(alice, Who::Operator { role: Role::Admin, name: "alice".into() });
    let days = |file: &str| {
        let found = inspect::file(&mesh.path(file)).expect("readable");
        (found.until.as_second() - found.from.as_second()) / 86_400
    };
    assert_eq!((days("node_a.pem"), days("operator-alice.pem")), (365, 30), "as long as the old one");
    // Without the old files the register still knows what was in them.
    for file in ["node_a.pem", "node_a.key"] {
        fs::remove_file(mesh.path(file)).expect("there");
    }
    mesh.renew("node_a").expect("renewed");
    assert_eq!(inspect::file(&mesh.path("node_a.pem")).expect("readable").names, after.names);
    for who in ["node_z", "operator node_a", "alice", &after.serial, "node_a.pem"] {
        let error = mesh.renew(who).expect_err(who);
        assert!(matches!(error.code(), Code::NotIssuedHere | Code::CertificateUnusable), "{who}: {error}");
    }
    assert!(!fs::read_dir(&mesh.0).expect("there").flatten().any(|file| file.path().ends_with(".new")));
}

#[test]
fn a_name_revokes_all_its_certificates_and_a_serial_number_or_file_one() {
    let mesh = mesh();
    let serial = |file: &str| inspect::file(&mesh.path(file)).expect("readable").serial;
    let first = serial("node_a.pem");
    mesh.renew("node_a").expect("renewed");
    mesh.revoke(&first).expect("one, by its serial number");
    assert_eq!(mesh.revoked(), ["node_a".to_owned()].into());
    let lists = revoke::read(&mesh.0, &mesh.path(revoke::FILE)).expect("good lists");
    assert_eq!(lists.iter().map(|list| list.serials().len()).sum::<usize>(), 1, "the new one is still good");

    let file = mesh.path("operator-alice.pem").display().to_string();
    mesh.revoke(&file).expect("one, by its file");
    assert_eq!(mesh.numbers().len(), 2, "each authority has a list of its own");
    let both = mesh.revoke("node_a").expect("what is left of it");
    assert_eq!(both.entries.len(), 1);
    assert_eq!(mesh.revoked(), ["node_a".to_owned(), "operator alice".into()].into());
    for who in ["node_a", first.as_str(), "node_z", "operator bob", "00:00"] {
        assert_eq!(mesh.revoke(who).expect_err(who).code(), Code::NotIssuedHere, "{who}");
    }
    // The authorities' own files are nobody's certificates.
    let authority = mesh.path("nodes-ca.pem").display().to_string();
    assert_eq!(mesh.revoke(&authority).expect_err("refused").code(), Code::NotIssuedHere);
}

#[test]
fn every_list_has_a_higher_number_than_the_one_before() {
    let mesh = mesh();
    let mut last = 0;
    for who in ["node_a", "node_b"] {
        mesh.revoke(who).expect("revoked");
        let [(issuer, number)] = &mesh.numbers()[..] else { panic!("one list") };
        assert_eq!(issuer, "steep acme nodes");
        assert!(*number > last, "{number} after {last}");
        last = *number;
    }
    revoke::sign_all(&mesh.0, 30, now()).expect("signed");
    assert!(
        mesh.numbers().iter().all(|(_, number)| *number > last || last == 0 || *number >= now().as_second() as u64)
    );
    assert_eq!(mesh.revoked().len(), 2, "nothing is forgotten");
    // Also one that has lost its files signs no older one, once a second has passed.
    let known = mesh.numbers();
    fs::remove_file(mesh.path(revoke::FILE)).expect("there");
    let later = Timestamp::now() + SignedDuration::from_secs(10);
    revoke::sign_all(&mesh.0, 30, later).expect("signed");
    for ((_, before), (_, after)) in known.iter().zip(mesh.numbers()) {
        assert!(after > *before);
    }
}

#[test]
fn revoking_needs_the_authority_that_issued() {
    let mesh = mesh();
    fs::remove_file(mesh.path("operators-ca.key")).expect("there");
    mesh.revoke("node_a").expect("the nodes' authority is there");
    let away = mesh.revoke("operator alice").expect_err("the operators' is not");
    assert_eq!(away.code(), Code::CertificateUnusable, "{away}");
    let register = Register::open(&mesh.0).expect("a register");
    let alice = register.entries().iter().find(|entry| entry.whose() == "operator alice").expect("known");
    assert_eq!(alice.revoked_at, None, "after an error nothing is revoked");
}

#[test]
fn the_root_is_replaced_in_three_steps_and_in_no_other_order() {
    let mesh = mesh();
    let none = rotate::finish(&mesh.0, false, now()).expect_err("nothing was begun");
    assert_eq!(none.code(), Code::RotationState, "{none}");
    fs::copy(mesh.path("ca.pem"), mesh.path("old-ca.pem")).expect("copied");
    fs::copy(mesh.path("node_a.pem"), mesh.path("old.pem")).expect("copied");
    fs::copy(mesh.path("node_a.key"), mesh.path("old.key")).expect("copied");
    // The old root's key is where it belongs: away.
    fs::remove_file(mesh.path("ca.key")).expect("there");

    rotate::begin(&mesh.0, now()).expect("begun");
    assert_eq!(rotate::begin(&mesh.0, now()).expect_err("twice").code(), Code::RotationState);
    assert_eq!(inspect::certificates(&mesh.path("ca.pem")).expect("readable").len(), 2, "both are trusted");
    let good = |stem: &str, ca: &str| {
        let identity = mesh.identity(stem, ca).expect("readable");
        let file = |ending: &str| mesh.path(&format!("{stem}.{ending}"));
        // Reading again judges the chain by the roots; other roots make it something new.
        fs::copy(mesh.path(ca), mesh.path("judge.pem")).expect("copied");
        let doubled = fs::read_to_string(mesh.path(ca)).expect("readable").repeat(2);
        fs::write(mesh.path("judge.pem"), doubled).expect("written");
        identity.reload(&file("pem"), &file("key"), &mesh.path("judge.pem"), now()).is_ok()
    };
    assert!(good("node_a", "ca.pem") && good("node_a", "old-ca.pem"));
    // What the old authority issued can still be revoked, and what the new one issues is good under both.
    mesh.revoke("node_b").expect("by the old authority");
    assert_eq!(mesh.revoked(), ["node_b".to_owned()].into());
    let old = rotate::finish(&mesh.0, false, now()).expect_err("nobody has a new certificate");
    let Error::StillOld(whose) = &old else { panic!("{old}") };
    assert_eq!(whose, &["node_a", "operator alice"], "the revoked one counts no more");
    mesh.renew("node_a").expect("renewed");
    mesh.renew("operator alice").expect("renewed");
    assert!(good("node_a", "ca.pem") && !good("node_a", "old-ca.pem"));

    let finished = rotate::finish(&mesh.0, false, now()).expect("finished");
    assert!(finished.retired.join("nodes-ca.key").exists() && !mesh.path("previous").exists());
    assert_eq!(inspect::certificates(&mesh.path("ca.pem")).expect("readable").len(), 1);
    assert!(good("node_a", "ca.pem") && !good("old", "ca.pem"));
    assert!(!mesh.path(revoke::FILE).exists(), "the old authority's list went with it");
    mesh.node("node_c", &[]).expect("issued under the new root");
    assert!(good("node_c", "ca.pem"));
    rotate::begin(&mesh.0, now()).expect("and once more");
    rotate::finish(&mesh.0, true, now()).expect("by force");
}
