//! Which agents are asked, and with which certificate: contexts of steepctl.toml.

use std::{fs, path::PathBuf, process::Command};

use steep_tests::{Cluster, Node};

struct Operator<'a> {
    node: &'a Node,
    file: PathBuf,
}

struct Said {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Operator<'_> {
    fn types(&self, words: &str, environment: &[(&str, &str)]) -> Said {
        let mut command: Command = self.node.bare_steepctl();
        command.env("STEEPCTL_CONFIG", &self.file).envs(environment.iter().copied());
        let output = command.args(words.split_whitespace()).output().expect("steepctl can be run");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { status: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

#[track_caller]
fn is(said: &Said, status: i32, words: &[&str]) {
    let Said { stdout, stderr, .. } = said;
    assert_eq!(said.status, status, "{stdout}\n{stderr}");
    for word in words {
        assert!(stdout.contains(word) || stderr.contains(word), "{word:?} is not said:\n{stdout}\n{stderr}");
    }
}

#[tokio::test]
async fn a_context_says_which_agents_to_ask_and_as_whom() {
    let [a, b] = Cluster::of(2).start().await;
    let file = a.agent_toml().with_file_name("steepctl.toml");
    let cert = |name: &str| a.pki().join(format!("operator-{name}.pem")).display().to_string();
    let (alice, vera) = (cert("alice"), cert("vera"));
    let good = format!(
        "default_context = \"all\"\n\
         [contexts.all]\npeers = [\"127.0.0.1:1\", {:?}]\ncert = {alice:?}\n\
         [contexts.looking]\npeers = [{:?}]\ncert = {vera:?}\n",
        b.address(),
        a.address(),
    );
    fs::write(&file, &good).expect("it can be written");
    let me = Operator { node: &a, file: file.clone() };
    // The first agent of the default context is not there; who answered instead is said.
    is(&me.types("node list", &[]), 0, &["node_a", "node_b", "via node_b"]);
    let looking = me.types("--context looking node list", &[]);
    is(&looking, 0, &["node_a"]);
    assert!(!looking.stderr.contains("via"), "the first one answered: {}", looking.stderr);
    is(&me.types("node cancel node_b --context looking", &[]), 7, &["STP-5003", "vera"]);
    is(&me.types("node list", &[("STEEPCTL_CONTEXT", "looking")]), 0, &["node_a"]);
    let unknown = me.types("status --context live", &[]);
    is(&unknown, 1, &["STP-5041", "live", "it has all, looking", "Hint:"]);

    let shown = me.types("config show --origin", &[]);
    is(&shown, 0, &["default_context", "context all", "beside the certificate", b.address(), &alice]);
    let shown = me.types("config show --origin --context looking", &[("STEEPCTL_PEER", b.address())]);
    is(&shown, 0, &["--context", "context looking", a.address(), &vera]);
    let shown = me.types("config show --origin --peer 10.0.0.1:7", &[("STEEPCTL_CERT", &vera)]);
    is(&shown, 0, &["--peer", "STEEPCTL_CERT", "10.0.0.1:7"]);
    let json: serde_json::Value = serde_json::from_str(&me.types("config show -o json", &[]).stdout).expect("JSON");
    assert_eq!(json["contexts"], serde_json::json!(["all", "looking"]), "{json}");

    is(&me.types("config check", &[]), 0, &["all (default)", "alice (admin) of mesh demo", "vera (viewer)"]);
    let node_cert = a.pki().join("node_a.pem").display().to_string();
    let cases = [
        (good.replace(&vera, &node_cert), "STP-5042", "not of an operator"),
        (good.replace(&vera, "nowhere.pem"), "STP-5042", "nowhere.pem"),
        (good.replace("[contexts.looking]\npeers", "[contexts.looking]\npears"), "STP-5042", "pears"),
        (good.replace("\"127.0.0.1:1\"", "\"127.0.0.1\""), "STP-5042", "it has no port"),
        (good.replace("default_context = \"all\"", "default_context = \"none\""), "STP-5041", "it has all, looking"),
        ("nonsense".into(), "STP-5042", "line 1"),
    ];
    for (text, code, reason) in cases {
        fs::write(&file, &text).expect("it can be written");
        is(&me.types("config check", &[]), 1, &[code, reason, "Hint:"]);
    }
    // A file that is wrong harms only what needs it.
    is(&me.types("status", &[]), 1, &["STP-5042"]);
    is(&me.types("status", &[("STEEPCTL_PEER", a.address()), ("STEEPCTL_CERT", &alice)]), 0, &["node_a"]);
    is(&me.types("explain STP-5041", &[]), 0, &["no such context"]);
    fs::remove_file(&file).expect("it is there");
    is(&me.types("config show", &[]), 1, &["STP-5042", "steepctl.toml"]);
}
