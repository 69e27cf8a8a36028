//! Certificates change while the mesh works: they are renewed, the root is replaced, a stolen one is taken back.
//!
//! Which certificates and lists the wire refuses is tried in `protocol/tests/certificates`.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use steep_tests::{Cluster, Node, Outcome, PATIENCE, shop, until};

/// `steepctl pki …` in the mesh's own directory.
#[track_caller]
fn pki(node: &Node, words: &[&str]) -> String {
    let mut command = node.bare_steepctl();
    let output = command.arg("pki").args(words).arg("--dir").arg(node.pki()).output().expect("it can be run");
    assert!(output.status.success(), "pki {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How often an agent has logged `event` with all of `words` in the line.
fn logged(node: &Node, event: &str, words: &[&str]) -> usize {
    let name = format!("\"event\":\"{event}\"");
    let log = node.log();
    log.lines().filter(|line| line.contains(&name) && words.iter().all(|word| line.contains(word))).count()
}

async fn logs(node: &Node, event: &str, words: &[&str], times: usize) {
    until(&format!("{} logs {event} {words:?}", node.id()), PATIENCE, async || {
        let seen = logged(node, event, words);
        if seen >= times { Ok(()) } else { Err(format!("{seen} times so far")) }
    })
    .await;
}

/// Changes the pki directory, then waits until every agent has taken the change over.
async fn change(nodes: &[&Node], change: impl FnOnce()) {
    let before: Vec<_> = nodes.iter().map(|node| logged(node, "agent.reloaded", NEW)).collect();
    change();
    for (node, before) in nodes.iter().zip(before) {
        logs(node, "agent.reloaded", NEW, before + 1).await;
    }
}

const NEW: &[&str] = &["\"is_new\":true"];

/// Asks both agents about both nodes, without end.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    /// Held while the operator's own files change: two files cannot change as one.
    files: Arc<Mutex<()>>,
    asking: JoinHandle<Vec<Outcome>>,
}

impl Load {
    fn on(nodes: &[&Node]) -> Self {
        let nodes: Vec<Node> = nodes.iter().map(|node| (*node).clone()).collect();
        let (stop, asked, files) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::default());
        let (stopped, counted, held): (_, _, Arc<Mutex<()>>) = (stop.clone(), asked.clone(), Arc::clone(&files));
        let asking = std::thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                for asked in &nodes {
                    for about in &nodes {
                        let _held = held.lock().expect("nobody panics while holding it");
                        let outcome = asked.steepctl(&format!("node show {}", about.id())).outcome();
                        counted.fetch_add(1, Ordering::Relaxed);
                        if outcome.status != 0 {
                            failed.push(outcome);
                        }
                    }
                }
            }
            failed
        });
        Self { stop, asked, files, asking }
    }

    async fn goes_on(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        until("some more questions are asked", PATIENCE, async || {
            let asked = self.asked.load(Ordering::Relaxed);
            if asked > before + 8 { Ok(()) } else { Err(asked.to_string()) }
        })
        .await;
    }

    fn had_no_failure(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.asking.join().expect("asking does not panic");
        let asked = self.asked.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of {asked} calls failed, the first: {}", failed.len(), failed[0]);
        assert!(asked > 20, "there was some load: {asked}");
    }
}

fn file(node: &Node, name: &str) -> PathBuf {
    node.pki().join(name)
}

#[tokio::test]
async fn certificates_are_renewed_while_a_node_is_initialized_and_no_call_fails() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(500)).await;
    let load = Load::on(&[&a, &b]);
    b.hold_after("copy tables");
    let op = b.steepctl("node start node_b --from node_a").operation();
    b.is_held().await;
    let dialled = logged(&a, "mesh.connected", &["\"dialled\":true"]);
    for round in 0..2 {
        change(&[&a], || drop(pki(&a, &["renew", "node_a"]))).await;
        change(&[&b], || drop(pki(&a, &["renew", "node", "node_b"]))).await;
        {
            let _held = load.files.lock().expect("nobody panics while holding it");
            pki(&a, &["renew", "operator", "alice", "--days", "7"]);
        }
        load.goes_on().await;
        assert!(b.agent_runs() && a.agent_runs(), "round {round}");
    }
    // With a new certificate it has dialled anew.
    logs(&a, "mesh.connected", &["\"dialled\":true"], dialled + 2).await;
    b.let_go();
    op.completes().await;
    b.holds_the_same_as(&a, "orders").await;
    load.had_no_failure();
    // The old files are kept, the new ones are used, and both are known.
    let kept = fs::read_dir(a.pki()).expect("it is there").flatten();
    let kept = kept.filter(|file| file.file_name().to_string_lossy().contains(".old-")).count();
    assert_eq!(kept, 12, "two files of three certificates, twice");
    let listed = pki(&a, &["list"]);
    assert_eq!(listed.lines().filter(|line| line.starts_with("node_b")).count(), 3, "{listed}");
}

#[tokio::test]
async fn the_root_is_replaced_while_the_mesh_works_and_no_call_fails() {
    let [a, b] = Cluster::of(2).start().await;
    let old = [file(&a, "old-alice.pem"), file(&a, "old-alice.key"), file(&a, "old-ca.pem")];
    for (from, to) in ["operator-alice.pem", "operator-alice.key", "ca.pem"].iter().zip(&old) {
        fs::copy(file(&a, from), to).expect("it can be copied");
    }
    let load = Load::on(&[&a, &b]);
    load.goes_on().await;
    change(&[&a, &b], || drop(pki(&a, &["rotate"]))).await;
    load.goes_on().await;
    let refused = a.bare_steepctl().args(["pki", "rotate", "--dir"]).arg(a.pki()).output().expect("it can be run");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("STP-1116"), "one exchange at a time: {refused:?}");
    let early =
        a.bare_steepctl().args(["pki", "rotate", "--finish", "--dir"]).arg(a.pki()).output().expect("it can be run");
    let said = String::from_utf8_lossy(&early.stderr);
    assert!(said.contains("STP-1116") && said.contains("node_a") && said.contains("operator vera"), "{said}");
    for node in [&a, &b] {
        change(&[node], || drop(pki(&a, &["renew", node.id()]))).await;
        load.goes_on().await;
    }
    for name in ["alice", "otto", "vera"] {
        let _held = load.files.lock().expect("nobody panics while holding it");
        pki(&a, &["renew", "operator", name]);
    }
    load.goes_on().await;
    change(&[&a, &b], || drop(pki(&a, &["rotate", "--finish"]))).await;
    load.goes_on().await;
    load.had_no_failure();
    for node in [&a, &b] {
        // With the old root's certificates nobody comes in any more, and nobody is believed.
        let as_before = node
            .steepctl("status")
            .env("STEEPCTL_CERT", &old[0].display().to_string())
            .env("STEEPCTL_KEY", &old[1].display().to_string());
        let outcome = as_before.clone().outcome();
        assert_eq!((outcome.status, outcome.code().as_deref()), (7, Some("STP-1101")), "{outcome}");
        let outcome = as_before.env("STEEPCTL_CA", &old[2].display().to_string()).outcome();
        assert_eq!(outcome.status, 7, "{outcome}");
    }
    // A restarted agent goes on under the new root alone.
    b.stop_agent();
    b.start_agent();
    until("node_a hears of node_b", PATIENCE, async || {
        let shown = a.steepctl("node show node_b -o json").outcome();
        if shown.status == 0 && !shown.stdout.contains("\"unknown\"") { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
}

async fn is_unknown_to(node: &Node, other: &Node) {
    until(&format!("{} loses {}", node.id(), other.id()), PATIENCE, async || {
        let listed = node.steepctl("node list -o json").succeeds().json();
        let nodes = listed["nodes"].as_array().cloned().unwrap_or_default();
        let found = nodes.iter().find(|found| found["node_id"] == other.id()).cloned().unwrap_or_default();
        if found["health"] == "unknown" { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_by_every_agent_and_stays_out() {
    let [a, b, c] = Cluster::of(3).start().await;
    for node in [&a, &b] {
        until("all are connected", PATIENCE, async || {
            let listed = node.steepctl("node list -o json").succeeds().stdout;
            if listed.contains("\"unknown\"") { Err(listed) } else { Ok(()) }
        })
        .await;
    }
    a.steepctl("pki crl --publish --dir").arg(&a.pki().display().to_string()).fails_with("STP-1115");
    let revoked = pki(&a, &["revoke", "node_c", "--reason", "its disk was stolen"]);
    assert!(revoked.contains("node_c") && revoked.contains("pki crl --publish"), "{revoked}");
    let listed = pki(&a, &["list", "-o", "json"]);
    assert!(listed.contains("its disk was stolen") && listed.contains("\"revoked\""), "{listed}");
    let publish = |node: &Node, who: &str| {
        node.steepctl("pki crl --publish --dir").arg(&a.pki().display().to_string()).as_operator(who)
    };
    // Only admins may; nothing has changed yet.
    publish(&a, "otto").fails_with("STP-5003");
    publish(&a, "vera").fails_with("STP-5003");
    assert_eq!(logged(&a, "pki.revocations_learnt", &[]), 0);

    publish(&a, "alice").succeeds();
    assert_eq!(a.count("steep_repl.audit_log where action = 'pki.revocations_published'").await, 1);
    assert!(publish(&a, "alice").succeeds().stderr.contains("already"), "the same list is no news");
    // It travels by itself, and connections end.
    logs(&b, "pki.revocations_learnt", &[], 1).await;
    for node in [&a, &b] {
        is_unknown_to(node, &c).await;
    }
    // node_c cannot come back, also not with a new start, and knows why.
    logs(&c, "mesh.peer_refused", &["STP-1110"], 1).await;
    c.stop_agent();
    c.start_agent();
    logs(&c, "mesh.peer_refused", &["STP-1110"], 2).await;
    // An operator who has the list beside ca.pem does not believe its agent; one without it sees it alone.
    c.steepctl("node list").fails_with("STP-1110");
    let elsewhere = c.agent_toml().with_file_name("ca.pem");
    fs::copy(file(&a, "ca.pem"), &elsewhere).expect("it can be copied");
    let seen = c.steepctl("node list -o json").env("STEEPCTL_CA", &elsewhere.display().to_string()).succeeds().stdout;
    assert!(seen.contains("\"unknown\""), "{seen}");
    // The others go on; they remember through a restart, before they hear anything.
    a.stop_agent();
    b.stop_agent();
    b.start_agent();
    let kept = b.agent_toml().with_file_name("state").join("revocations");
    assert_eq!(fs::read_dir(&kept).expect("lists are kept").count(), 1);
    is_unknown_to(&b, &c).await;
    a.start_agent();
    b.steepctl("node show node_a").succeeds();

    // Back with a new certificate, which the old list does not name.
    change(&[&c], || drop(pki(&a, &["renew", "node_c"]))).await;
    until("node_c is back", PATIENCE, async || {
        let listed = a.steepctl("node list -o json").succeeds().stdout;
        if listed.contains("\"unknown\"") { Err(listed) } else { Ok(()) }
    })
    .await;
    logs(&c, "pki.revocations_learnt", &[], 1).await;
}

#[tokio::test]
async fn a_revoked_operator_is_refused_and_bad_lists_are_too() {
    let [a, b] = Cluster::of(2).start().await;
    let toml = fs::read_to_string(b.agent_toml()).expect("it is there");
    let handed = b.agent_toml().with_file_name("handed.pem");
    b.reconfigure_agent(|_| toml.replace("[pki]\n", &format!("[pki]\ncrl = {:?}\n", handed.display().to_string())));
    logs(&b, "pki.reload_failed", &["STP-1111", "handed.pem"], 1).await;
    a.steepctl("status").as_operator("otto").succeeds();

    // A list in a file, taken up while the agent runs; the other agent fetches it.
    pki(&a, &["revoke", "operator", "otto"]);
    let first = fs::read_to_string(file(&a, "crl.pem")).expect("it was signed");
    pki(&a, &["crl", "--export", &handed.display().to_string()]);
    for node in [&b, &a] {
        logs(node, "pki.revocations_learnt", &["steep demo operators"], 1).await;
        let outcome = node.steepctl("status").as_operator("otto").fails_with("STP-1110");
        assert_eq!(outcome.status, 7, "{outcome}");
        node.steepctl("status").as_operator("alice").succeeds();
    }
    // A damaged file, and one that is older: told, and the list in force stays.
    fs::write(&handed, first.replace("MI", "IM")).expect("it can be written");
    b.hang_up_agent();
    logs(&b, "pki.reload_failed", &["SIGHUP", "STP-1111"], 1).await;
    pki(&a, &["crl", "--sign"]);
    let publish = || a.steepctl("pki crl --publish --dir").arg(&a.pki().display().to_string());
    publish().succeeds();
    logs(&b, "pki.revocations_learnt", &["steep demo operators"], 2).await;
    fs::write(file(&a, "crl.pem"), &first).expect("it can be written");
    publish().fails_with("STP-1112");
    b.steepctl("status").as_operator("otto").fails_with("STP-1110");
    // Whoever is not there cannot be revoked, and nobody twice.
    for words in ["pki revoke node_z", "pki revoke operator otto", "pki revoke 0badcafe"] {
        a.steepctl(words).arg("--dir").arg(&a.pki().display().to_string()).fails_with("STP-1115");
    }
}

#[tokio::test]
async fn an_agent_speaks_up_before_its_certificate_ends_and_takes_over_nothing_bad() {
    let [a] = Cluster::of(1).start().await;
    let health = async |health: &str, says: &str| {
        until(&format!("health is {health}"), PATIENCE, async || {
            let (_, body) = a.http("/healthz");
            if body.contains(&format!("\"status\":\"{health}\"")) && body.contains(says) { Ok(()) } else { Err(body) }
        })
        .await;
    };
    health("ok", "").await;
    change(&[&a], || drop(pki(&a, &["renew", "node_a", "--days", "9"]))).await;
    logs(&a, "pki.cert_expiring", &["STP-1114", "8 days", "pki renew node_a"], 1).await;
    health("warn", "STP-1114").await;

    // Somebody else's certificate, put in the place of ours.
    pki(&a, &["issue", "node", "node_x"]);
    let own = ["node_a.pem", "node_a.key"].map(|name| fs::read(file(&a, name)).expect("it is there"));
    for (ours, theirs) in [("node_a.pem", "node_x.pem"), ("node_a.key", "node_x.key")] {
        fs::copy(file(&a, theirs), file(&a, ours)).expect("it can be copied");
    }
    logs(&a, "pki.reload_failed", &["STP-1102", "node_x"], 1).await;
    fs::write(file(&a, "node_a.key"), "no key").expect("it can be written");
    logs(&a, "pki.reload_failed", &["STP-1106", "node_a.key"], 1).await;
    a.steepctl("status").succeeds();
    for (name, text) in [("node_a.pem", &own[0]), ("node_a.key", &own[1])] {
        fs::write(file(&a, name), text).expect("it can be written");
    }

    change(&[&a], || drop(pki(&a, &["renew", "node_a", "--days", "300"]))).await;
    health("ok", "").await;
    a.hang_up_agent();
    logs(&a, "agent.reloaded", &["SIGHUP", "\"is_new\":false"], 1).await;
}
