//! The replication link: PostgreSQL listens for nobody, and what a peer may do with ours is to read its own slot.

use std::{fs, path::PathBuf, process::Output, time::Duration};

use steep_protocol::{
    failure::{Code, Failure},
    v1,
    wire::{
        endpoint::{Connection, LINK_STREAM},
        link,
    },
};
use steep_tests::{Cluster, Ledger, Node, NodeState::*, PATIENCE, Stop, guest::Dialled, shop, until};
use xtask::cluster::account::Account;

const START: &str = "node start node_b --from node_a";

/// Only local connections to the one database, and none that replicates by itself.
async fn shut_the_door(node: &Node) {
    let hba = "local postgres postgres trust\nlocal all all reject\nhost all all all reject\n";
    fs::write(node.data_directory().join("pg_hba.conf"), hba).expect("the server's files are ours");
    node.sql("select pg_reload_conf()").await;
    let listens: String = node.value("select current_setting('listen_addresses')").await;
    assert_eq!(listens, "", "{} listens for other hosts", node.id());
}

/// The connection string of the one subscription of `node`.
async fn conninfo(node: &Node) -> String {
    node.value("select subconninfo from pg_subscription").await
}

/// The value of `key` in a connection string of ours, whose values hold no blanks but for options.
fn part(conninfo: &str, key: &str) -> String {
    let found = conninfo.split(' ').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
    found.unwrap_or_else(|| panic!("no {key} in {conninfo}")).to_owned()
}

/// Directories of links below the agent's state directory.
fn link_folders(node: &Node) -> Vec<PathBuf> {
    let folder = node.agent_toml().with_file_name("state").join("link");
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

async fn both_ways_behind_shut_doors(versions: &[&str]) {
    let [a, b] = Cluster::of(2).pg(versions).start().await;
    for node in [&a, &b] {
        shut_the_door(node).await;
    }
    let ledger = Ledger::on(&a, 1_000).await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(50).await;
    b.steepctl(START).operation().completes().await;
    on_a.write(50).await;
    on_b.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    for node in [&a, &b] {
        let conninfo = conninfo(node).await;
        assert!(PathBuf::from(part(&conninfo, "host")).join(".s.PGSQL.5432").exists(), "{}", part(&conninfo, "host"));
        assert_eq!(link_folders(node).len(), 1, "one link a peer");
    }
}

#[tokio::test]
async fn two_servers_that_listen_nowhere_replicate_both_ways() {
    both_ways_behind_shut_doors(&["18"]).await;
}

#[tokio::test]
async fn a_16_and_an_18_that_listen_nowhere_replicate_both_ways() {
    both_ways_behind_shut_doors(&["16", "18"]).await;
}

#[tokio::test]
async fn a_15_that_listens_nowhere_is_followed_by_an_18() {
    let [a, b] = Cluster::of(2).pg(&["15", "18"]).start().await;
    for node in [&a, &b] {
        shut_the_door(node).await;
    }
    let ledger = Ledger::on(&a, 1_000).await;
    let on_a = ledger.writers(4, &a);
    on_a.write(50).await;
    b.steepctl(START).arg("--one-way").operation().completes().await;
    on_a.write(50).await;
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;
    assert!(link_folders(&a).is_empty(), "a node that subscribes to nothing has no link");
}

#[tokio::test]
async fn agents_killed_under_load_lose_and_double_nothing() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 1_000).await;
    b.steepctl(START).operation().completes().await;
    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(3, node));
    for victims in [&[&a][..], &[&b], &[&a, &b]] {
        on_a.write(50).await;
        on_b.write(50).await;
        victims.iter().for_each(|node| node.kill_agent());
        on_a.write(100).await;
        on_b.write(100).await;
        victims.iter().for_each(|node| node.start_agent());
        for node in [&a, &b] {
            replicates(node).await;
        }
    }
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
}

/// Waits until a peer reads the slot on `node`.
async fn replicates(node: &Node) {
    until(&format!("the slot of {} is read", node.id()), PATIENCE, async || {
        let active: i64 = node.value("select count(*) from pg_replication_slots where active").await;
        if active == 1 { Ok(()) } else { Err(format!("{active} slots are active")) }
    })
    .await;
}

#[tokio::test]
async fn postgresql_restarted_on_either_side_goes_on_through_the_link() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 100).await;
    b.steepctl(START).operation().completes().await;
    let on_a = ledger.writers(2, &a);
    for node in [&a, &b] {
        on_a.write(50).await;
        node.stop_postgres(Stop::Immediate);
        node.start_postgres();
        on_a.write(50).await;
    }
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;
}

/// psql on the link of `node`, as its walreceiver would connect, with `change` made to the connection string.
async fn psql_on_link(node: &Node, change: impl FnOnce(String) -> String, command: &str) -> Output {
    let conninfo = change(format!("{} replication=database", conninfo(node).await));
    let mut psql = node.program("psql");
    psql.env_remove("PGOPTIONS").args(["-X", "-A", "-t", "-d", &conninfo, "-c", command]);
    psql.output().expect("psql can be run")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn a_link_opens_for_its_secret_alone_and_leads_to_its_own_place_alone() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    b.steepctl(START).arg("--one-way").succeeds();
    let good = psql_on_link(&b, |conninfo| conninfo, "IDENTIFY_SYSTEM").await;
    assert!(good.status.success() && said(&good).contains("|postgres"), "{}", said(&good));
    let secret = part(&conninfo(&b).await, "password");
    let with = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        move |conninfo: String| {
            assert!(conninfo.contains(&from), "{from} is not in the connection string");
            conninfo.replace(&from, &to)
        }
    };
    let cases = [
        (secret.clone(), "wrong".to_owned(), "password"),
        (secret.clone(), "''".into(), "password"),
        ("user=node_a".into(), "user=node_b".into(), "node_a"),
        ("dbname=postgres".into(), "dbname=template1".into(), "postgres"),
        ("replication=database".into(), "replication=true".into(), "logical"),
        ("replication=database".into(), String::new(), "logical"),
        ("row_security=off".into(), "session_preload_libraries=x".into(), "session_preload_libraries"),
    ];
    for (from, to, word) in cases {
        let refused = psql_on_link(&b, with(&from, &to), "IDENTIFY_SYSTEM").await;
        assert!(!refused.status.success() && said(&refused).contains(word), "{to}: {}", said(&refused));
    }
    assert!(!b.log().contains(&secret), "a secret is never logged");
    b.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn what_no_walreceiver_says_is_refused_and_audited() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    a.sql("create table private (secret text); insert into private values ('of node_a')").await;
    b.steepctl(START).args(&["--tables", "customers,orders", "--one-way"]).succeeds();
    let slot = a.slots().await.pop().expect("the slot of node_b");
    a.sql("create publication everything for table private").await;
    a.sql("select pg_create_logical_replication_slot('steep_node_c_0123456789ab', 'pgoutput')").await;
    let start = |slot: &str, publication: &str| {
        format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '2', publication_names '\"{publication}\"')"
        )
    };
    let commands = [
        "drop table private".to_owned(),
        "select * from private".into(),
        "copy private to stdout".into(),
        "select pg_read_file('PG_VERSION')".into(),
        "SHOW data_directory".into(),
        "CREATE_REPLICATION_SLOT \"mine\" LOGICAL pgoutput".into(),
        "DROP_REPLICATION_SLOT steep_node_c_0123456789ab".into(),
        start("steep_node_c_0123456789ab", "steep_only_node_b"),
        start(&slot, "everything"),
    ];
    let audited = async || a.count("steep_repl.audit_log where action = 'link.denied' and actor = 'node_b'").await;
    let mut before = audited().await;
    for command in commands {
        let refused = psql_on_link(&b, |conninfo| conninfo, &command).await;
        let said = said(&refused);
        assert!(!refused.status.success() && said.contains("STP-4212"), "{command}: {said}");
        assert!(!said.contains("of node_a"), "{command}: {said}");
        before = until("the denial is audited", PATIENCE, async || match audited().await {
            now if now > before => Ok(now),
            now => Err(format!("{now} rows after {command}")),
        })
        .await;
    }
    assert_eq!(a.count("private").await, 1);
    assert!(a.log().contains("mesh.link_denied"), "{}", a.log());
    // The link itself goes on.
    a.sql("insert into orders (customer_id, total) values (1, 5)").await;
    b.holds_the_same_as(&a, "orders").await;
}

async fn ask_for_link(connection: &Connection, database: &str, slot: &str) -> Result<(), Failure> {
    let request = v1::LinkRequest {
        database: database.into(),
        slot: slot.into(),
        subscription: "steep_from_node_a".into(),
        client_encoding: "UTF8".into(),
        ..v1::LinkRequest::default()
    };
    let io = connection.open(LINK_STREAM).await.expect("a stream opens");
    link::request(io, &request, Duration::from_secs(20)).await.map(drop)
}

#[tokio::test]
async fn a_node_gets_no_other_nodes_slot_and_no_other_database() {
    let [a, b, c] = Cluster::of(3).start().await;
    a.sql(&shop::orders(50)).await;
    b.steepctl(START).arg("--one-way").succeeds();
    let slot = a.slots().await.pop().expect("the slot of node_b");
    c.stop_agent();
    let Dialled { endpoint, connection, .. } = &a.dialled_by(&a.identity("node_c")).await;
    for (database, slot) in [("postgres", slot.as_str()), ("template1", slot.as_str()), ("postgres", "nobodys")] {
        let failure = ask_for_link(connection, database, slot).await.expect_err("it is not node_c's");
        assert_eq!(failure.code, Code::LinkDenied, "{failure:?}");
    }
    let audited = a.count("steep_repl.audit_log where action = 'link.denied' and actor = 'node_c'").await;
    assert_eq!(audited, 3);
    endpoint.close().await;
    a.sql("insert into orders (customer_id, total) values (1, 5)").await;
    b.holds_the_same_as(&a, "orders").await;
}

#[tokio::test]
async fn the_secret_of_a_link_is_shown_and_logged_nowhere() {
    let [a, b] = Cluster::of(2)
        .setting("log_statement", "all")
        .setting("log_min_duration_statement", "0")
        .setting("log_error_verbosity", "verbose")
        .setting("log_replication_commands", "on")
        .agent_toml("[log]\nlevel = \"trace\"")
        .start()
        .await;
    a.sql(&shop::orders(50)).await;
    b.steepctl(START).operation().completes().await;
    for node in [&a, &b] {
        let secret = part(&conninfo(node).await, "password");
        assert_eq!(secret.len(), 64);
        let server_log = fs::read_to_string(node.data_directory().with_file_name("server.log")).expect("it has a log");
        assert!(server_log.contains("steep_from_"), "statements are logged");
        let shown = node.texts("select coalesce(query, '') from pg_stat_activity").await.join("\n");
        let recorded = node
            .texts("select row_to_json(i)::text from steep_repl.intents i union all select row_to_json(l)::text from steep_repl.audit_log l")
            .await
            .join("\n");
        for (place, text) in [
            ("PostgreSQL's log", server_log),
            ("the agent's log", node.log()),
            ("pg_stat_activity", shown),
            ("steep_repl", recorded),
        ] {
            assert!(!text.contains(&secret), "{} of {} holds the secret", place, node.id());
        }
    }
}

#[tokio::test]
async fn a_link_goes_with_its_subscription() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(500)).await;
    b.hold_after("catch up");
    let op = b.steepctl(START).operation();
    b.is_held().await;
    assert_eq!(link_folders(&b).len(), 1);
    b.steepctl("node cancel node_b").succeeds();
    assert_eq!(op.ends().await, "cancelled");
    assert!(link_folders(&b).is_empty(), "{:?}", link_folders(&b));
    assert!(a.slots().await.is_empty());

    // Dropped by hand, as the guide says, a subscription drops its slot through the link.
    b.steepctl(START).arg("--one-way").succeeds();
    assert_eq!((link_folders(&b).len(), a.slots().await.len()), (1, 1));
    b.sql("drop subscription steep_from_node_a").await;
    assert!(a.slots().await.is_empty(), "{:?}", a.slots().await);
    b.stop_agent();
    b.start_agent();
    until("what is left of the link is removed", PATIENCE, async || {
        let left = link_folders(&b);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_link_follows_a_changed_socket_dir() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    b.steepctl(START).arg("--one-way").succeeds();
    let other = b.agent_toml().with_file_name("l");
    b.reconfigure_agent(|toml| toml.replace("[replication]\n", "[replication]\nsocket_dir = \"l\"\n"));
    a.sql("insert into orders (customer_id, total) values (1, 5)").await;
    b.holds_the_same_as(&a, "orders").await;
    let host = part(&conninfo(&b).await, "host");
    assert!(host.starts_with(&other.display().to_string()), "{host}");
    assert!(!b.log().contains(&part(&conninfo(&b).await, "password")));
}

#[tokio::test]
async fn a_socket_that_postgresql_cannot_reach_is_found_before_anything_changes() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    let before = [a.inventory().await, b.inventory().await];
    let long = format!("/tmp/{}", "x".repeat(100));
    let with = |dir: &str| format!("[replication]\nsocket_dir = {dir:?}\n");
    b.reconfigure_agent(|toml| toml.replace("[replication]\n", &with(&long)));
    let refused = b.steepctl(START).fails_with("STP-4211");
    assert!(refused.stderr.contains("107") && refused.stderr.contains("socket_dir"), "{refused}");
    // The way back needs one on the other node.
    b.reconfigure_agent(|toml| toml.replace(&with(&long), "[replication]\n"));
    a.reconfigure_agent(|toml| toml.replace("[replication]\n", &with(&long)));
    b.steepctl(START).fails_with("STP-4211");
    a.reconfigure_agent(|toml| toml.replace(&with(&long), "[replication]\n"));
    // Where agent and server are one account, nothing is closed to the server that is open to the agent.
    if Account::of_servers().is_another() {
        let closed = b.agent_toml().with_file_name("closed");
        fs::create_dir(&closed).expect("a folder can be made");
        fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("it is ours");
        let inner = closed.join("l").display().to_string();
        b.reconfigure_agent(|toml| toml.replace("[replication]\n", &with(&inner)));
        let refused = b.steepctl(START).fails_with("STP-4210");
        assert!(refused.stderr.contains(&closed.display().to_string()), "{refused}");
        b.reconfigure_agent(|toml| toml.replace(&with(&inner), "[replication]\n"));
    }
    a.inventory().await.is_as(&before[0]);
    b.inventory().await.is_as(&before[1]);
    b.steepctl(START).succeeds();
}

fn directly(toml: String) -> String {
    toml.replace("[replication]\n", "[replication]\nlink = \"direct\"\n")
}

#[tokio::test]
async fn postgresql_reaches_postgresql_directly_where_that_is_configured() {
    let [a, b] = Cluster::of(2).start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.reconfigure_agent(directly);
    // A local side that cannot be is told before anything changes.
    let before = b.inventory().await;
    b.reconfigure_agent(|toml| {
        directly(toml).replace("[replication]\n", "[replication]\nlocal_conninfo = \"host=x\"\n")
    });
    let refused = b.steepctl(START).fails_with("STP-1001");
    assert!(refused.stderr.contains("local_conninfo") && refused.stderr.contains("sslrootcert"), "{refused}");
    b.inventory().await.is_as(&before);
    b.reconfigure_agent(|toml| toml.replace("local_conninfo = \"host=x\"", "local_conninfo = \"connect_timeout=7\""));

    let [on_a, on_b] = [&a, &b].map(|node| ledger.writers(2, node));
    on_a.write(50).await;
    b.steepctl(START).operation().completes().await;
    on_b.write(50).await;
    let on_b_side = conninfo(&b).await;
    assert_eq!(part(&on_b_side, "host"), a.host().display().to_string());
    assert!(on_b_side.contains("connect_timeout=7") && !on_b_side.contains("password"), "{on_b_side}");
    assert!(link_folders(&a).is_empty() && link_folders(&b).is_empty(), "no link is made");
    // Replication goes on without the agents.
    for node in [&a, &b] {
        node.stop_agent();
    }
    on_a.write(50).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
}

#[tokio::test]
async fn each_way_goes_as_its_publisher_says() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    a.reconfigure_agent(directly);
    b.steepctl(START).succeeds();
    assert_eq!(part(&conninfo(&b).await, "host"), a.host().display().to_string(), "node_a is reached directly");
    assert_eq!((link_folders(&a).len(), link_folders(&b).len()), (1, 0), "node_b through the mesh");
    a.sql("insert into orders (customer_id, total) values (1, 5)").await;
    b.holds_the_same_as(&a, "orders").await;
    b.sql("delete from orders where total = 5").await;
    a.holds_the_same_as(&b, "orders").await;
    b.becomes(Synchronized).await;
}

#[tokio::test]
async fn a_direct_way_that_leads_nowhere_is_told_in_the_servers_own_words() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(50)).await;
    let nowhere = "conninfo = \"host=/nowhere port=5432 user=postgres\"";
    a.reconfigure_agent(|toml| {
        let lines: Vec<_> =
            toml.lines().map(|line| if line.starts_with("conninfo") { nowhere } else { line }).collect();
        directly(lines.join("\n") + "\n")
    });
    let op = b.steepctl(START).operation();
    op.fails_with("STP-2000").await;
    let shown = op.shown().await.expect("it is known").to_string();
    assert!(shown.contains("/nowhere") && shown.contains("replication.conninfo"), "{shown}");
    b.becomes(Failed).await;
}
