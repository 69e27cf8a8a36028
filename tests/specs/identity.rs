//! Who somebody is, and what they may do, stands in their certificate alone.
//!
//! What the wire refuses, certificate by certificate, is tried in `protocol/tests/certificates`; here an operator
//! and a whole agent meet it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use steep_tests::{Cluster, Node, Outcome, PATIENCE, shop, until};

/// Runs `steepctl pki …` in a folder of its own, copied from the mesh's or empty.
struct Pki<'a> {
    node: &'a Node,
    dir: PathBuf,
}

impl<'a> Pki<'a> {
    /// With the authorities of the mesh.
    fn of_mesh(node: &'a Node, name: &str) -> Self {
        let pki = Self { node, dir: node.agent_toml().with_file_name(name) };
        fs::create_dir_all(&pki.dir).expect("a folder can be made");
        for file in fs::read_dir(node.pki()).expect("it is there") {
            let file = file.expect("it can be read");
            let name = file.file_name();
            if ["ca.", "nodes-ca.", "operators-ca."].iter().any(|start| name.to_string_lossy().starts_with(start)) {
                fs::copy(file.path(), pki.dir.join(name)).expect("it can be copied");
            }
        }
        pki
    }

    /// With authorities of its own.
    fn of_another_mesh(node: &'a Node, name: &str, mesh: &str) -> Self {
        let pki = Self { node, dir: node.agent_toml().with_file_name(name) };
        pki.run(&["init", "--mesh", mesh]);
        pki
    }

    fn run(&self, words: &[&str]) {
        let mut command = self.node.bare_steepctl();
        let status = command.arg("pki").args(words).arg("--dir").arg(&self.dir).output().expect("it can be run");
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

fn ask(node: &Node, words: &str, cert: &str, key: &str, ca: &str) -> Outcome {
    node.steepctl(words).env("STEEPCTL_CERT", cert).env("STEEPCTL_KEY", key).env("STEEPCTL_CA", ca).outcome()
}

#[track_caller]
fn is_refused(outcome: &Outcome, code: &str, exit: i32, says: &[&str]) {
    assert_eq!((outcome.code().as_deref(), outcome.status), (Some(code), exit), "{outcome}");
    assert!(outcome.stderr.contains("Hint:"), "{outcome}");
    for word in says {
        assert!(outcome.stderr.contains(word), "{word:?} is not said: {outcome}");
    }
}

#[tokio::test]
async fn an_operator_with_a_bad_certificate_is_refused_and_told_why() {
    let [a] = Cluster::of(1).start().await;
    let pki = Pki::of_mesh(&a, "own-pki");
    let ca = pki.file("ca.pem");
    let issue = |name: &str, more: &[&str]| {
        pki.run(&[&["issue", "operator", name, "--role", "admin"], more].concat());
        [pki.file(&format!("operator-{name}.pem")), pki.file(&format!("operator-{name}.key"))]
    };
    let status = |[cert, key]: &[String; 2], ca: &str| ask(&a, "status", cert, key, ca);

    let good = issue("gina", &[]);
    assert_eq!(status(&good, &ca).status, 0, "a good one is let in: {}", status(&good, &ca));
    let expired = issue("eva", &["--not-before", "2020-01-01T00:00:00Z", "--not-after", "2020-02-01T00:00:00Z"]);
    is_refused(&status(&expired, &ca), "STP-1103", 7, &["expired"]);
    let early = issue("ed", &["--not-before", "2028-01-01T00:00:00Z", "--not-after", "2028-02-01T00:00:00Z"]);
    is_refused(&status(&early, &ca), "STP-1103", 7, &["is not valid before 2028"]);

    let other = Pki::of_another_mesh(&a, "other-pki", "elsewhere");
    other.run(&["issue", "operator", "olga", "--role", "admin"]);
    let olga = [other.file("operator-olga.pem"), other.file("operator-olga.key")];
    let outcome = status(&olga, &other.file("ca.pem"));
    assert_eq!(outcome.status, 7, "an operator of another mesh: {outcome}");
    let outcome = status(&olga, &ca);
    assert_eq!(outcome.status, 7, "… who trusts our root: {outcome}");
    let same_name = Pki::of_another_mesh(&a, "forged-pki", "demo");
    same_name.run(&["issue", "operator", "mallory", "--role", "admin"]);
    let mallory = [same_name.file("operator-mallory.pem"), same_name.file("operator-mallory.key")];
    is_refused(&status(&mallory, &ca), "STP-1101", 7, &[]);
    is_refused(&status(&good, &same_name.file("ca.pem")), "STP-1101", 7, &[]);

    is_refused(&status(&[good[0].clone(), mallory[1].clone()], &ca), "STP-1106", 1, &["do not belong together"]);
    is_refused(&status(&[good[0].clone(), pki.file("nowhere.key")], &ca), "STP-1106", 1, &["nowhere.key"]);
    is_refused(&status(&[good[1].clone(), good[1].clone()], &ca), "STP-1106", 1, &["holds no certificate"]);
    let authority = [pki.file("operators-ca.pem"), pki.file("operators-ca.key")];
    is_refused(&status(&authority, &ca), "STP-1101", 7, &["authority"]);
    fs::set_permissions(&good[1], fs::Permissions::from_mode(0o644)).expect("it is ours");
    is_refused(&status(&good, &ca), "STP-1105", 1, &["644", &format!("chmod 600 {}", good[1])]);
    fs::set_permissions(&good[1], fs::Permissions::from_mode(0o600)).expect("it is ours");

    // A node is no operator.
    let node = [pki_file(&a, "node_a.pem"), pki_file(&a, "node_a.key")];
    is_refused(&status(&node, &pki_file(&a, "ca.pem")), "STP-5003", 7, &["operator"]);
    let outcome = status(&good, &ca);
    assert_eq!(outcome.status, 0, "and the good one still works: {outcome}");
    assert!(a.log().contains("rpc.denied"), "refusals are logged");
}

fn pki_file(node: &Node, name: &str) -> String {
    node.pki().join(name).display().to_string()
}

#[tokio::test]
async fn an_agent_does_not_run_with_a_certificate_that_is_not_its_own() {
    let [a, _b] = Cluster::of(2).start().await;
    let toml = fs::read_to_string(a.agent_toml()).expect("it is there");
    let own = [pki_file(&a, "node_a.pem"), pki_file(&a, "node_a.key")];
    let open = a.agent_toml().with_file_name("open.key");
    fs::copy(&own[1], &open).expect("it can be copied");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o640)).expect("it is ours");
    let of = |name: &str| [pki_file(&a, &format!("{name}.pem")), pki_file(&a, &format!("{name}.key"))];
    let cases = [
        (of("node_b"), "STP-1102", 7, "node_b"),
        (of("operator-alice"), "STP-1102", 7, "alice (admin)"),
        ([own[0].clone(), of("node_b")[1].clone()], "STP-1106", 1, "do not belong together"),
        ([own[0].clone(), open.display().to_string()], "STP-1105", 1, "chmod 600"),
        (of("nodes-ca"), "STP-1101", 7, "authority"),
    ];
    let config = a.agent_toml().with_file_name("wrong.toml");
    for ([cert, key], code, exit, word) in cases {
        fs::write(&config, toml.replace(&own[0], &cert).replace(&own[1], &key)).expect("it can be written");
        for words in [&["config", "check"][..], &["run"]] {
            let mut command = a.agent_program();
            let output = command.args(words).arg("--config").arg(&config).output().expect("it can be run");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(exit), "{cert}: {said}");
            for part in [code, word, "Hint:"] {
                assert!(said.contains(part), "{cert}: {part:?} is not said: {said}");
            }
        }
    }
}

#[tokio::test]
async fn an_agent_of_another_mesh_or_with_an_expired_certificate_reaches_nobody() {
    let [a, b] = Cluster::of(2).start().await;
    b.sql("create database elsewhere").await;
    let other = Pki::of_another_mesh(&b, "other-pki", "elsewhere");
    other.run(&["issue", "node", "node_b"]);
    let own = Pki::of_mesh(&b, "own-pki");
    own.run(&[
        "issue",
        "node",
        "node_b",
        "--not-before",
        "2020-01-01T00:00:00Z",
        "--not-after",
        "2020-02-01T00:00:00Z",
    ]);
    let pki = b.pki().display().to_string();
    for (dir, code) in [(&other.dir, "STP-1101"), (&own.dir, "STP-1103")] {
        let before = denied(&a);
        let mut stray = b.stray_agent("bad", |toml| with_pki(&toml, &pki, dir));
        until(&format!("node_a refuses the agent of {}", dir.display()), PATIENCE, async || {
            if denied(&a) > before { Ok(()) } else { Err(stray.log()) }
        })
        .await;
        stray.says(code).await;
    }
    a.sql("create table t (id int primary key)").await;
    b.steepctl("node start node_b --from node_a").succeeds();
}

fn with_pki(toml: &str, from: &str, to: &Path) -> String {
    toml.replace(&format!("{from}/"), &format!("{}/", to.display()))
        .replace("dbname = \"postgres\"", "dbname = \"elsewhere\"")
}

/// How many handshakes an agent has refused.
fn denied(node: &Node) -> usize {
    node.log().lines().filter(|line| line.contains("rpc.denied")).count()
}

#[tokio::test]
async fn each_role_may_do_what_it_may_and_nothing_else_through_every_agent() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    b.hold_after("copy tables");
    let op = b.steepctl("node start node_b --from node_a").operation();
    b.is_held().await;
    let looking = [
        "status".to_owned(),
        "node list".into(),
        "node show node_a".into(),
        "node show node_b".into(),
        "node progress node_b".into(),
        "op list".into(),
        format!("op show {}", op.id()),
    ];
    let changing = [
        "node start node_b --from node_a --dry-run".to_owned(),
        "node start node_b --from node_a --detach".into(),
        "node start node_a --from node_b --detach".into(),
        "node cancel node_a --detach".into(),
        // Cancelled by one who may, it would end: an operation nobody knows is enough to see who may ask.
        "op cancel 01900000-0000-7000-8000-000000000000 --detach".into(),
    ];
    for node in [&a, &b] {
        for who in ["vera", "otto", "alice"] {
            for words in &looking {
                let outcome = node.steepctl(words).as_operator(who).outcome();
                assert_eq!(outcome.status, 0, "{who}: {outcome}");
            }
            for words in &changing {
                let outcome = node.steepctl(words).as_operator(who).outcome();
                if who == "vera" && words.starts_with("op cancel") {
                    let outcome = node.steepctl("op cancel").arg(op.id()).arg("--detach").as_operator(who).outcome();
                    is_refused(&outcome, "STP-5003", 7, &["vera"]);
                } else if who == "vera" {
                    is_refused(&outcome, "STP-5003", 7, &["vera", "operator"]);
                } else {
                    assert_ne!(outcome.status, 7, "{who} may: {outcome}");
                }
            }
        }
        let audited = node.count("steep_repl.audit_log where action = 'rpc.denied'").await;
        assert!(audited >= 1, "{}: what was denied is audited", node.id());
    }
    let outcome = b.steepctl("node cancel node_b").as_operator("vera").outcome();
    is_refused(&outcome, "STP-5003", 7, &[]);
    assert_eq!(op.shown().await.expect("it is known")["operation"]["status"], "running", "a viewer stops nothing");
    b.let_go();
    op.completes().await;
    let by: String = b.value("select started_by from steep_repl.operations").await;
    assert!(by.contains("alice"), "{by}");
}
