//! What a configuration says, and what is said of a wrong one.

use std::collections::BTreeSet;

use super::*;

const LEAST: &str = "[node]\nid = \"node_a\"\n[mesh]\n[pki]\ncert = \"a\"\nkey = \"b\"\nca = \"c\"\n";

fn refused(text: &str) -> String {
    Config::parse(text, Path::new("agent.toml")).expect_err("should be refused").to_string()
}

#[test]
fn an_error_names_file_key_and_reason() {
    let cases = [
        ("[node]\nid = \"Node A\"\n", "agent.toml: line 2, in [node]: \"Node A\" is no node name"),
        (
            &LEAST.replace("[mesh]", "[mesh]\nlisten = \"10.0.0.7\""),
            "agent.toml: mesh.listen: \"10.0.0.7\" has no port",
        ),
        (&LEAST.replace("[mesh]", "[mesh]\nsneeds = []"), "unknown field `sneeds`"),
        (&LEAST.replace("[mesh]", "[mesh]\ntransport = \"pigeon\""), "unknown variant `pigeon`"),
        (&format!("{LEAST}[copy]\nparallel = 17\n"), "agent.toml: copy.parallel: 17 is not between 1 and 16"),
        (&format!("{LEAST}[copy]\npart_size = \"many\"\n"), "\"many\" is no size"),
        (&format!("{LEAST}[replication]\nconninfo = \"password=x\"\n"), "replication.conninfo: it holds a password"),
        (&format!("{LEAST}[replication]\nlink = \"pigeon\"\n"), "unknown variant `pigeon`"),
        (
            &format!("{LEAST}[replication]\nlocal_conninfo = \"sslpassword=x\"\n"),
            "replication.local_conninfo: it holds a password",
        ),
        (
            &format!("{LEAST}[snapshots.s3]\nendpoint = \"http://store:9000\"\n"),
            "snapshots.s3.endpoint: \"http://store:9000\" is not encrypted",
        ),
        (&format!("{LEAST}[http]\nlisten = \"0.0.0.0:80\"\n"), "not a loopback address"),
        (
            &LEAST.replace("[mesh]", "[mesh]\nseeds = [\"a:1\", \"10.0.0.7\"]"),
            "agent.toml: mesh.seeds: \"10.0.0.7\" has no port",
        ),
    ];
    for (text, expected) in cases {
        let message = refused(text);
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

#[test]
fn sizes_and_durations_read_as_operators_write_them() {
    assert_eq!(parse_size("64MiB"), Ok(64 << 20));
    assert_eq!(parse_size("50MB"), Ok(50_000_000));
    assert_eq!(parse_size("4096"), Ok(4096));
    assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
    assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
    for bad in ["", "MiB", "-1", "1.5GB", "3 parsecs", "99999999999999GiB"] {
        assert!(parse_size(bad).is_err(), "{bad}");
    }
    assert!(parse_duration("15").is_err(), "a duration without a unit is a guess");
}

/// Every key the example documents, commented out or not, and every key `Config` knows.
#[test]
fn the_example_documents_exactly_the_keys_there_are() {
    let example = include_str!("../../../deploy/agent.example.toml");
    let mut documented = BTreeSet::new();
    let mut section = String::new();
    for line in example.lines() {
        let line = line.strip_prefix("#").unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            documented.insert(format!("{section}.{key}"));
        }
    }
    let known: BTreeSet<_> = KEYS.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(documented, known);
    let all: String = example
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect();
    Config::parse(&all, Path::new("agent.example.toml")).expect("the example with every key uncommented parses");
}

/// `deny_unknown_fields` and the test above hold this list and the structs together: a key missing here is
/// missing in the example, a key that is no field does not parse.
const KEYS: &[&str] = &[
    "node.id",
    "node.state_dir",
    "mesh.listen",
    "mesh.advertise",
    "mesh.transport",
    "mesh.seeds",
    "pki.cert",
    "pki.key",
    "pki.ca",
    "pki.crl",
    "pki.crl_overdue_limit",
    "postgres.host",
    "postgres.port",
    "postgres.dbname",
    "postgres.user",
    "postgres.passfile",
    "postgres.bin_dir",
    "replication.conninfo",
    "replication.link",
    "replication.socket_dir",
    "replication.local_conninfo",
    "schema.share",
    "schema.sync_role",
    "copy.parallel",
    "copy.session_lease",
    "copy.part_size",
    "copy.on_blocked_ddl",
    "copy.maintenance_work_mem",
    "copy.sequence_margin",
    "copy.slot_timeout",
    "copy.catch_up_timeout",
    "copy.snapshot_above",
    "copy.large_table_threshold",
    "copy.large_table_method",
    "snapshots.s3.endpoint",
    "snapshots.s3.region",
    "snapshots.s3.allow_http",
    "snapshots.s3.credentials",
    "snapshots.s3.ca",
    "snapshots.s3.timeout",
    "snapshots.s3.patience",
    "watch.lag_limit",
    "watch.lag_for",
    "watch.drift_for",
    "budget.retained_wal",
    "budget.disk_free",
    "budget.xmin_age",
    "budget.on_exceeded",
    "cleanup.every",
    "http.listen",
    "log.level",
    "log.format",
];
