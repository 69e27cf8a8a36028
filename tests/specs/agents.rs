//! What an agent promises for itself: it waits for PostgreSQL, says what is wrong with its configuration, and ends
//! when told.

use std::{fs, os::unix::fs::PermissionsExt as _};

use steep_tests::{Cluster, Node, NodeState, PATIENCE, Stop, shop, until};

async fn http_says(node: &Node, path: &str, status: u16) -> String {
    until(&format!("{path} of {} answers {status}", node.id()), PATIENCE, async || {
        let (seen, body) = node.http(path);
        if seen == status { Ok(body) } else { Err(format!("{seen} {body}")) }
    })
    .await
}

#[tokio::test]
async fn an_agent_waits_for_postgresql_at_start_and_later_and_says_so() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(100)).await;
    // Later …
    b.stop_postgres(Stop::Fast);
    let why = http_says(&b, "/readyz", 503).await;
    assert!(!why.trim().is_empty(), "it says why it is not ready");
    assert_eq!(b.http("/livez").0, 200, "an agent without PostgreSQL is alive");
    assert!(http_says(&b, "/healthz", 503).await.contains("node_b"), "it says whose health it is");
    assert!(b.agent_runs() && b.log().contains("agent.unwell"), "the log says so");
    let shown = a.steepctl("node list").succeeds();
    assert!(shown.stdout.contains("node_b"), "{shown}");
    let refused = b.steepctl("node start node_b --from node_a").outcome();
    assert!(refused.status == 6 && refused.stderr.contains("STP-2000"), "{refused}");
    b.start_postgres();
    http_says(&b, "/readyz", 200).await;
    assert!(b.log().contains("agent.well"), "the log says so");
    // … and at start.
    b.stop_agent();
    b.stop_postgres(Stop::Fast);
    b.start_agent_unready();
    until("the log says that the agent waits", PATIENCE, async || {
        let log = b.log();
        if log.contains("agent.waiting") { Ok(()) } else { Err(log) }
    })
    .await;
    let refused = b.steepctl("node start node_b --from node_a").outcome();
    assert!([6, 1].contains(&refused.status) && refused.code().is_some(), "{refused}");
    b.start_postgres();
    http_says(&b, "/readyz", 200).await;
    b.steepctl("node start node_b --from node_a").succeeds();
    // Both servers restart under a mesh at work.
    for node in [&a, &b] {
        node.stop_postgres(Stop::Immediate);
        node.start_postgres();
        http_says(node, "/readyz", 200).await;
    }
    a.sql("insert into orders (customer_id, total) values (1, 5)").await;
    b.holds_the_same_as(&a, "orders").await;
    b.becomes(NodeState::Synchronized).await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_file_key_and_reason() {
    let [a] = Cluster::of(1).start().await;
    let toml = fs::read_to_string(a.agent_toml()).expect("it is there");
    let config = a.agent_toml().with_file_name("wrong.toml");
    let check = |toml: &str| {
        fs::write(&config, toml).expect("it can be written");
        a.agent_program().args(["config", "check", "--config"]).arg(&config).output().expect("it can be run")
    };
    let good = check(&toml);
    let said = String::from_utf8_lossy(&good.stdout).into_owned() + &String::from_utf8_lossy(&good.stderr);
    assert!(good.status.success() && said.contains("good") && said.contains("node_a"), "{said}");
    let cases = [
        (toml.replace("id = \"node_a\"", "id = \"Node A\""), "[node]", "Node A"),
        (toml.replace("[mesh]", "[mesh]\nsneeds = 1"), "[mesh]", "sneeds"),
        (toml.replace("port = 5432\n", "port = \"many\"\n"), "[postgres]", "many"),
        (format!("{toml}\n[copy]\nparallel = 17\n"), "copy.parallel", "between 1 and 16"),
        (format!("{toml}\n[copy]\nsession_lease = \"soon\"\n"), "[copy]", "no duration"),
        (format!("{toml}\n[copy]\non_blocked_ddl = \"shrug\"\n"), "[copy]", "shrug"),
        (format!("{toml}\n[log]\nlevel = \"loud\"\n"), "[log]", "loud"),
        (toml.replace("user=postgres", "user=postgres password=x"), "replication.conninfo", "password"),
        ("nonsense".to_owned(), "line 1", ""),
    ];
    for (text, key, reason) in cases {
        let output = check(&text);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{key}: {said}");
        for part in ["wrong.toml", key, reason, "STP-1001", "Hint:"] {
            assert!(said.contains(part), "{part:?} is not said: {said}");
        }
    }
    let missing = a.agent_program().args(["run", "--config", "/nowhere/agent.toml"]).output().expect("it can be run");
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere/agent.toml"));
    // A port that is taken.
    let taken = a.agent_program().args(["run", "--config"]).arg(a.agent_toml()).output().expect("it can be run");
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert_eq!(taken.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot listen on") && said.contains("STP-1001"), "{said}");
}

#[tokio::test]
async fn an_agent_told_to_end_ends_with_success() {
    let [a] = Cluster::of(1).start().await;
    a.sql("create database elsewhere").await;
    let mut another = a.stray_agent("another", |toml| toml.replace("dbname = \"postgres\"", "dbname = \"elsewhere\""));
    another.says("agent.ready").await;
    another.terminate();
    let status = another.ends().await;
    assert!(status.success(), "{status}: {}", another.log());
    assert!(another.log().contains("agent.stopping"), "{}", another.log());
    // One that still waits for PostgreSQL ends as well.
    let mut waiting = a.stray_agent("waiting", |toml| toml.replace("port = 5432\n", "port = 5433\n"));
    waiting.says("agent.waiting").await;
    waiting.terminate();
    assert!(waiting.ends().await.success(), "{}", waiting.log());
}

#[tokio::test]
async fn an_agent_signs_in_over_tcp_with_a_password_from_its_passfile() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(300)).await;
    // A loopback address of this spec's own, so that the usual port is free on it.
    let pid = std::process::id();
    let address = format!("127.77.{}.{}", pid / 250 % 250, pid % 250 + 1);
    a.sql(&format!("alter system set listen_addresses = '{address}'")).await;
    a.sql("create role steeper superuser login password 'se:cret\\'").await;
    let hba = "local all all trust\nlocal replication all trust\nhost all all all scram-sha-256\nhost replication all all scram-sha-256\n";
    fs::write(a.data_directory().join("pg_hba.conf"), hba).expect("the server's files are ours");
    a.stop_agent();
    a.stop_postgres(Stop::Fast);
    a.start_postgres();
    let passfile = a.agent_toml().with_file_name("pgpass");
    let write = |password: &str| {
        fs::write(&passfile, format!("# ours\n{address}:5432:*:steeper:{password}\n")).expect("it can be written");
        fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).expect("it is ours");
    };
    write("wrong");
    a.sql("drop schema steep_repl cascade").await;
    let host = a.host().display().to_string();
    let toml = fs::read_to_string(a.agent_toml()).expect("it is there");
    let toml = toml
        .replace(&format!("host = {host:?}"), &format!("host = {address:?}\npassfile = \"pgpass\""))
        .replace("user = \"postgres\"", "user = \"steeper\"");
    fs::write(a.agent_toml(), toml).expect("it can be written");
    a.start_agent_unready();
    until("the log says that the password is wrong", PATIENCE, async || {
        let log = a.log();
        // Trying again would change nothing: it ends.
        if log.contains("password authentication failed") && !a.agent_runs() { Ok(()) } else { Err(log) }
    })
    .await;
    write("se\\:cret\\\\");
    a.start_agent();
    http_says(&a, "/readyz", 200).await;
    b.sql("create role steeper").await;
    // Also the replication connection and pg_dump sign in.
    b.steepctl("node start node_b --from node_a --one-way").succeeds();
    b.holds_the_same_as(&a, "orders").await;
    assert!(!a.log().contains("se:cret"), "a password never reaches the log");
}
