//! What an agent tells over HTTP: probes, and numbers for Prometheus.

use steep_tests::{Cluster, Node, NodeState, PATIENCE, Stop, shop, until};

async fn answers(node: &Node, path: &str, status: u16, says: &str) {
    until(&format!("{path} of {} answers {status} and says {says:?}", node.id()), PATIENCE, async || {
        let (seen, body) = node.http(path);
        if seen == status && body.contains(says) { Ok(()) } else { Err(format!("{seen} {body}")) }
    })
    .await;
}

/// The value of a series, written as Prometheus writes it.
fn told(node: &Node, series: &str) -> Option<f64> {
    let (status, text) = node.http("/metrics");
    assert_eq!(status, 200, "{text}");
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map(|value| value.parse().unwrap_or_else(|_| panic!("{series} {value}")))
}

async fn tells(node: &Node, series: &str, wanted: impl Fn(Option<f64>) -> bool) {
    until(&format!("{} tells {series}", node.id()), PATIENCE, async || {
        let seen = told(node, series);
        if wanted(seen) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test]
async fn readiness_asks_for_a_state_and_for_a_lag_and_refuses_what_makes_no_sense() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(300)).await;
    answers(&b, "/readyz", 200, "ready").await;
    answers(&b, "/readyz?state=synchronized", 503, "the node is uninitialized").await;
    for (path, says) in [
        ("/readyz?state=well", "no state; there are"),
        ("/readyz?lag=far", "no size"),
        ("/readyz?lag=", "no size"),
        ("/readyz?mood=good", "there are state and lag"),
        ("/readyz?lag=1%0a2", "no size"),
    ] {
        answers(&b, path, 400, says).await;
    }
    b.steepctl("node start node_b --from node_a").succeeds();
    answers(&b, "/readyz?lag=10MB&state=synchronized", 200, "ready").await;
    answers(&b, "/readyz?state=copying", 503, "the node is synchronized").await;

    // What is written there and cannot be applied here is lag.
    let holding = b.connect().await;
    holding.batch_execute("begin; lock table orders in access exclusive mode").await.expect("it can be locked");
    // The worker waits before the large transaction comes: what is decoded of one that is not committed counts as received.
    a.sql("insert into orders (customer_id, total) values (1, 0)").await;
    until("the worker waits for the lock", PATIENCE, async || match b.count("pg_locks where not granted").await {
        0 => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    a.sql("insert into orders (customer_id, total) select 1, n from generate_series(1, 20000) n").await;
    answers(&b, "/readyz?lag=500kB", 503, "bytes behind").await;
    answers(&b, "/readyz?lag=10GB&state=synchronized", 200, "ready").await;
    let (status, health) = b.http("/healthz");
    let health: serde_json::Value = serde_json::from_str(&health).expect("it is JSON");
    assert!(status == 200 && health["lag_bytes"].as_u64().is_some_and(|lag| lag > 500_000), "{health}");
    holding.batch_execute("rollback").await.expect("it can end");
    answers(&b, "/readyz?lag=500kB", 200, "ready").await;

    let (_, health) = b.http("/healthz");
    let health: serde_json::Value = serde_json::from_str(&health).expect("it is JSON");
    assert_eq!((&health["node_id"], &health["peers"][0]["node_id"]), (&"node_b".into(), &"node_a".into()), "{health}");
    let checks = health["checks"].as_array().cloned().unwrap_or_default();
    let names: Vec<_> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    assert_eq!(names, ["postgresql", "node", "peers", "certificates", "takes_work"], "{health}");
    assert!(checks.iter().all(|check| check["ok"] == true), "{health}");
    a.stop_agent();
    answers(&b, "/readyz?lag=10MB", 503, "node_a, which the node follows, is not heard of").await;
    answers(&b, "/readyz?state=synchronized", 200, "ready").await;
    until("health names the peer that is silent", PATIENCE, async || {
        let (_, text) = b.http("/healthz");
        let health: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        let peers = health["checks"][2].clone();
        if peers["ok"] == false && peers["reason"] == "node_a" { Ok(()) } else { Err(text) }
    })
    .await;
}

#[tokio::test]
async fn metrics_follow_an_initialization_and_count_the_rows_of_the_ledger() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(&shop::orders(30_000)).await;
    assert_eq!(told(&b, "steep_init_rows_copied_total{target=\"node_b\"}"), None);
    b.hold_after("copy tables");
    let op = a.steepctl("node start node_b --from node_a").operation();
    b.is_held().await;
    let copied: i64 = b.value("select sum(row_count)::bigint from steep_repl.copied_parts").await;
    assert_eq!(told(&b, "steep_init_rows_copied_total{target=\"node_b\"}"), Some(copied as f64));
    assert_eq!(copied, a.count("orders").await + a.count("customers").await);
    let bytes = told(&b, "steep_init_bytes_copied_total{target=\"node_b\"}").expect("bytes are told");
    assert!(bytes > copied as f64, "{bytes}");
    assert_eq!(told(&b, "steep_init_running{method=\"direct\"}"), Some(1.0));
    tells(&b, "steep_init_progress_ratio{target=\"node_b\",source=\"node_a\"}", |seen| {
        seen.is_some_and(|ratio| (0.04..1.0).contains(&ratio))
    })
    .await;
    tells(&b, "steep_init_tables{target=\"node_b\",status=\"done\"}", |seen| seen == Some(2.0)).await;
    assert!(told(&b, "steep_init_last_progress_timestamp_seconds{target=\"node_b\"}").is_some_and(|at| at > 1.7e9));
    tells(&a, "steep_snapshot_keeper_sessions{source=\"node_a\"}", |seen| seen == Some(1.0)).await;
    b.let_go();
    op.completes().await;
    tells(&b, "steep_init_total{method=\"direct\",result=\"completed\"}", |seen| seen == Some(1.0)).await;
    assert_eq!(told(&b, "steep_init_running{method=\"direct\"}"), Some(0.0));
    assert_eq!(told(&b, "steep_init_progress_ratio{target=\"node_b\",source=\"node_a\"}"), None);
    assert_eq!(told(&b, "steep_init_duration_seconds_count{method=\"direct\",result=\"completed\"}"), Some(1.0));
    assert_eq!(told(&b, "steep_init_rows_copied_total{target=\"node_b\"}"), Some(copied as f64));
    b.becomes(NodeState::Synchronized).await;

    for node in [&a, &b] {
        for id in ["node_a", "node_b"] {
            tells(node, &format!("steep_agent_up{{node=\"{id}\"}}"), |seen| seen == Some(1.0)).await;
            let state = format!("steep_node_state{{node=\"{id}\",state=\"synchronized\"}}");
            tells(node, &state, |seen| seen == Some(1.0)).await;
        }
        let sub = if node.id() == "node_a" { "steep_from_node_b" } else { "steep_from_node_a" };
        tells(node, &format!("steep_subscription_enabled{{sub=\"{sub}\"}}"), |seen| seen == Some(1.0)).await;
        tells(node, &format!("steep_subscription_lag_bytes{{sub=\"{sub}\"}}"), |seen| seen.is_some()).await;
        tells(node, &format!("steep_subscription_errors_total{{sub=\"{sub}\",kind=\"apply\"}}"), |seen| seen.is_some())
            .await;
        if node.major() >= 18 {
            let conflicts = format!("steep_subscription_conflicts_total{{sub=\"{sub}\",type=\"insert_exists\"}}");
            tells(node, &conflicts, |seen| seen == Some(0.0)).await;
        }
        let slot = node.slots().await.remove(0);
        let peer = if node.id() == "node_a" { "node_b" } else { "node_a" };
        tells(node, &format!("steep_slot_retained_bytes{{slot=\"{slot}\",owner=\"{peer}\"}}"), |seen| seen.is_some())
            .await;
        tells(node, &format!("steep_slot_wal_status{{slot=\"{slot}\",status=\"reserved\"}}"), |seen| seen == Some(1.0))
            .await;
        tells(node, "steep_audit_chain_ok", |seen| seen == Some(1.0)).await;
        let audited = node.count("steep_repl.audit_log where action <> 'rpc.denied'").await;
        tells(node, "steep_audit_records_total{result=\"done\"}", |seen| seen == Some(audited as f64)).await;
        let moved = format!("steep_node_last_transition_timestamp_seconds{{node={:?}}}", node.id());
        tells(node, &moved, |seen| seen.is_some_and(|at| at > 1.7e9)).await;
    }
    tells(&a, "steep_mesh_members{state=\"alive\"}", |seen| seen == Some(2.0)).await;
    assert!(told(&a, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6));
    assert!(told(&a, "steep_tls_cert_expiry_timestamp_seconds{kind=\"node\"}").is_some_and(|at| at > 1.7e9));
    b.stop_agent();
    tells(&a, "steep_agent_up{node=\"node_b\"}", |seen| seen == Some(0.0)).await;
    tells(&a, "steep_mesh_members{state=\"dead\"}", |seen| seen == Some(1.0)).await;
}

#[tokio::test]
async fn metrics_count_requests_and_what_is_refused_and_forget_what_postgresql_does_not_tell() {
    let [a] = Cluster::of(1).start().await;
    let lists = "steep_rpc_requests_total{service=\"Nodes\",method=\"List\",code=\"ok\"}";
    let before = told(&a, lists).unwrap_or(0.0);
    for _ in 0..3 {
        a.steepctl("node list").succeeds();
    }
    tells(&a, lists, |seen| seen == Some(before + 3.0)).await;
    assert!(told(&a, "steep_rpc_duration_seconds_count{service=\"Nodes\",method=\"List\"}").is_some_and(|n| n >= 3.0));
    assert!(told(&a, "steep_rpc_inflight{service=\"Nodes\"}").is_some());
    a.steepctl("node start node_a --from node_b").as_operator("vera").fails_with("STP-5003");
    tells(&a, "steep_rpc_rejected_total{reason=\"authz\"}", |seen| seen == Some(1.0)).await;
    let denied = "steep_rpc_requests_total{service=\"Nodes\",method=\"Start\",code=\"permission_denied\"}";
    assert_eq!(told(&a, denied), Some(1.0));
    tells(&a, "steep_audit_records_total{result=\"denied\"}", |seen| seen == Some(1.0)).await;

    // An operator of a mesh of the same name that somebody else made.
    let pki = a.agent_toml().with_file_name("forged");
    for words in [&["init", "--mesh", "demo"][..], &["issue", "operator", "mallory", "--role", "admin"]] {
        let status = a.bare_steepctl().arg("pki").args(words).arg("--dir").arg(&pki).output().expect("it can be run");
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    }
    let file = |name: &str| pki.join(name).display().to_string();
    let ca = a.pki().join("ca.pem").display().to_string();
    let mallory = a.steepctl("status").env("STEEPCTL_CERT", &file("operator-mallory.pem"));
    let refused = mallory.env("STEEPCTL_KEY", &file("operator-mallory.key")).env("STEEPCTL_CA", &ca).outcome();
    assert_eq!(refused.status, 7, "{refused}");
    tells(&a, "steep_tls_handshake_failures_total{reason=\"refused\"}", |seen| seen.is_some_and(|n| n >= 1.0)).await;

    tells(&a, "steep_pg_connections{purpose=\"control\",state=\"idle\"}", |seen| seen == Some(1.0)).await;
    a.stop_postgres(Stop::Fast);
    tells(&a, "steep_pg_connections{purpose=\"control\",state=\"idle\"}", |seen| seen.is_none()).await;
    assert_eq!(a.http("/livez").0, 200);
    a.start_postgres();
    tells(&a, "steep_pg_connections{purpose=\"control\",state=\"idle\"}", |seen| seen == Some(1.0)).await;
}
