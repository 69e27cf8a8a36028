//! The agents find each other, see each other come and go, and any of them speaks of all.

use serde_json::Value;
use steep_tests::{Cluster, Node, PATIENCE, until};

fn members(node: &Node) -> Vec<Value> {
    let outcome = node.steepctl("mesh list -o json").succeeds();
    outcome.json()["members"].as_array().cloned().unwrap_or_default()
}

fn member(node: &Node, of: &str) -> Option<Value> {
    members(node).into_iter().find(|member| member["node_id"] == of)
}

/// Waits until `node` sees `other` as `liveness`.
async fn sees(node: &Node, other: &Node, liveness: &str) -> Value {
    let what = format!("{} sees {} as {liveness}", node.id(), other.id());
    until(&what, PATIENCE, async || match member(node, other.id()) {
        Some(member) if member["liveness"] == liveness => Ok(member),
        Some(member) => Err(member.to_string()),
        None => Err("it knows no such member".into()),
    })
    .await
}

async fn knows_only_itself(node: &Node) {
    until(&format!("{} is alone", node.id()), PATIENCE, async || match members(node) {
        alone if alone.len() == 1 => Ok(()),
        more => Err(Value::from(more).to_string()),
    })
    .await;
}

async fn all_see_all(nodes: &[&Node]) {
    for node in nodes {
        for other in nodes.iter().filter(|other| other.id() != node.id()) {
            sees(node, other, "alive").await;
        }
    }
}

/// Seeds of the agent's configuration become `seeds`; it starts with these alone, remembering nobody.
async fn starts_with_seeds(node: &Node, seeds: &[&str]) {
    node.stop_agent();
    node.sql("delete from steep_repl.nodes where is_hearsay").await;
    node.reconfigure_agent(|toml| {
        let lines = toml.lines().map(|line| match line.starts_with("seeds = ") {
            true => format!("seeds = {seeds:?}\n"),
            false => format!("{line}\n"),
        });
        lines.collect()
    });
}

#[tokio::test]
async fn any_agent_speaks_of_all_nodes_also_in_sql() {
    let [a, b, c] = Cluster::of(3).start().await;
    let all = [&a, &b, &c];
    all_see_all(&all).await;
    for node in all {
        let listed = node.steepctl("node list -o json").succeeds().json();
        assert_eq!(listed["served_by"], node.id());
        let nodes = listed["nodes"].as_array().expect("a list");
        assert_eq!(nodes.len(), 3, "{listed}");
        assert!(nodes.iter().all(|node| node["is_stale"] == false && node["health"] != "unknown"), "{listed}");
        assert!(nodes.iter().all(|node| node["changed_at"].is_string() && node["age_ms"].is_u64()), "{listed}");
        until(&format!("{} has all nodes in steep_repl.nodes", node.id()), PATIENCE, async || {
            let query = "select format('%s %s %s', node_id, is_hearsay, address) from steep_repl.nodes \
                         where liveness = 'alive' and health <> 'unknown' order by node_id";
            let rows = node.texts(query).await;
            let expected = all.map(|other| {
                let is_hearsay = if other.id() == node.id() { "f" } else { "t" };
                format!("{} {is_hearsay} {}", other.id(), other.address())
            });
            if rows == expected { Ok(()) } else { Err(format!("{rows:?}")) }
        })
        .await;
        let pinged = node.steepctl("mesh ping -o json").succeeds().json();
        let pinged = pinged["nodes"].as_array().expect("a list").clone();
        assert!(pinged.len() == 2 && pinged.iter().all(|node| node["answered_us"].is_u64()), "{pinged:?}");
    }
    // What is told of a node changes everywhere at once, and nobody but its own agent changes it.
    a.sql("create table t (id int primary key)").await;
    c.steepctl("node start node_b --from node_a").succeeds();
    for node in all {
        until(&format!("{} hears that node_b is synchronized", node.id()), PATIENCE, async || {
            let query = "select coalesce(init_state, '') from steep_repl.nodes where node_id = 'node_b'";
            let state: String = node.value(query).await;
            if state == "synchronized" { Ok(()) } else { Err(state) }
        })
        .await;
    }
    let matrix = until("the matrix is whole", PATIENCE, async || {
        let matrix = a.steepctl("mesh matrix -o json").succeeds().json();
        let rows = matrix["rows"].as_array().cloned().unwrap_or_default();
        let links = rows.iter().flat_map(|row| row["links"].as_array().cloned().unwrap_or_default());
        let reached = links.filter(|link| link["is_reachable"] == true && link["rtt_us"].is_u64()).count();
        if reached == 6 { Ok(matrix) } else { Err(matrix.to_string()) }
    });
    assert_eq!(matrix.await["missing_nodes"], serde_json::json!([]));
    let shown = a.steepctl("mesh matrix").succeeds();
    assert!(shown.stdout.contains("FROM\\TO") && shown.stdout.contains("ms"), "{shown}");
    assert!(a.steepctl("mesh list").succeeds().stdout.contains("ALIVE"));
    let unknown = a.steepctl("mesh ping node_x").fails_with("STP-5002");
    assert!(unknown.stderr.contains("node_b"), "{unknown}");
}

#[tokio::test]
async fn an_agent_joins_through_any_seed_and_waits_for_one_that_is_down() {
    let [a, b, c] = Cluster::of(3).start().await;
    // Through the last one, which is nobody's seed, and a name that leads nowhere.
    starts_with_seeds(&b, &["nowhere.invalid:7432", c.address()]).await;
    all_see_all(&[&a, &b, &c]).await;
    // Alone: its seed is down, and nobody who left is called up.
    a.stop_agent();
    b.stop_agent();
    starts_with_seeds(&c, &[a.address()]).await;
    until("node_c says that its seed is down", PATIENCE, async || {
        let log = c.log();
        if log.contains("mesh.seed_unreachable") { Ok(()) } else { Err(log) }
    })
    .await;
    knows_only_itself(&c).await;
    assert_eq!(c.http("/readyz").0, 200, "it serves all the same");
    a.start_agent();
    sees(&c, &a, "alive").await;
    sees(&a, &c, "alive").await;
    b.start_agent();
    all_see_all(&[&a, &b, &c]).await;
}

#[tokio::test]
async fn an_operator_lets_an_agent_without_seeds_join() {
    let [a, b, c] = Cluster::of(3).start().await;
    all_see_all(&[&a, &b, &c]).await;
    starts_with_seeds(&c, &[]).await;
    knows_only_itself(&c).await;
    let denied = c.steepctl("mesh join").arg(b.address()).as_operator("vera").fails_with("STP-5003");
    assert_eq!(denied.status, 7, "{denied}");
    c.steepctl("mesh join nowhere.invalid:7432").fails_with("STP-1201");
    c.steepctl("mesh join").arg(c.address()).fails_with("STP-5001");
    let joined = c.steepctl("mesh join").arg(b.address()).as_operator("otto").succeeds();
    assert!(joined.stdout.contains("node_c has joined through node_b"), "{joined}");
    all_see_all(&[&a, &b, &c]).await;
    assert_eq!(c.count("steep_repl.audit_log where action = 'mesh.join'").await, 3);
}

#[tokio::test]
async fn a_killed_agent_is_seen_dead_with_its_age_and_comes_back_as_new() {
    let [a, b, c] = Cluster::of(3).start().await;
    all_see_all(&[&a, &b, &c]).await;
    let before = member(&a, "node_c").expect("it is known");
    c.kill_agent();
    for node in [&a, &b] {
        sees(node, &c, "dead").await;
        assert!(node.log().contains("mesh.peer_down"), "the log says so");
    }
    let status = a.steepctl("status").succeeds();
    let row = status.stdout.lines().find(|line| line.starts_with("node_c")).expect("it is still shown");
    assert!(row.contains('~') && row.contains("unknown"), "a stale row is marked: {status}");
    until("SQL says so", PATIENCE, async || {
        let liveness: String = b.value("select liveness from steep_repl.nodes where node_id = 'node_c'").await;
        if liveness == "dead" { Ok(()) } else { Err(liveness) }
    })
    .await;
    let unreachable = a.steepctl("node show node_c").outcome();
    assert_eq!(unreachable.status, 6, "{unreachable}");
    c.start_agent();
    all_see_all(&[&a, &b, &c]).await;
    let after = member(&a, "node_c").expect("it is known");
    assert!(after["generation"].as_u64() > before["generation"].as_u64(), "{before} {after}");
    a.steepctl("node show node_c").succeeds();
}

#[tokio::test]
async fn an_agent_that_stood_still_is_a_member_again_when_it_goes_on() {
    let [a, b, c] = Cluster::of(3).start().await;
    all_see_all(&[&a, &b, &c]).await;
    c.freeze_agent();
    sees(&a, &c, "dead").await;
    sees(&b, &c, "dead").await;
    c.thaw_agent();
    all_see_all(&[&a, &b, &c]).await;
    for (asked, of) in [(&c, "node_a"), (&a, "node_c"), (&b, "node_c")] {
        asked.steepctl(&format!("node show {of}")).succeeds();
    }
}

#[tokio::test]
async fn a_node_that_has_left_is_shown_as_left_until_it_is_forgotten() {
    let [a, b, c] = Cluster::of(3).start().await;
    all_see_all(&[&a, &b, &c]).await;
    let alive = a.steepctl("mesh forget node_c").fails_with("STP-1211");
    assert!(alive.stderr.contains("alive") && alive.stderr.contains("mesh leave"), "{alive}");
    a.steepctl("mesh leave node_c").as_operator("vera").fails_with("STP-5003");
    let left = a.steepctl("mesh leave node_c -o json").as_operator("otto").succeeds().json();
    assert_eq!(left["served_by"], "node_c", "its own agent answered");
    for node in [&a, &b] {
        sees(node, &c, "left").await;
    }
    assert!(a.steepctl("status").succeeds().stdout.contains("left the mesh"), "status says why it knows nothing");
    a.steepctl("mesh forget node_c").as_operator("otto").fails_with("STP-5003");
    a.steepctl("mesh forget node_x").fails_with("STP-5002");
    a.steepctl("mesh forget node_c").succeeds();
    for node in [&a, &b] {
        until(&format!("{} has forgotten node_c", node.id()), PATIENCE, async || match member(node, "node_c") {
            None => Ok(()),
            Some(member) => Err(member.to_string()),
        })
        .await;
        until("so has its database", PATIENCE, async || {
            let rows = node.count("steep_repl.nodes where node_id = 'node_c'").await;
            if rows == 0 { Ok(()) } else { Err(rows.to_string()) }
        })
        .await;
        node.steepctl("node show node_c").fails_with("STP-5002");
    }
    assert_eq!(a.count("steep_repl.audit_log where action = 'mesh.forget' and target = 'node_c'").await, 2);
    // It is let in as new.
    c.stop_agent();
    c.start_agent();
    all_see_all(&[&a, &b, &c]).await;
    // Told to end, it says goodbye by itself.
    c.stop_agent();
    sees(&a, &c, "left").await;
    c.start_agent();
    all_see_all(&[&a, &b, &c]).await;
}

#[tokio::test]
async fn a_whole_mesh_that_stops_and_starts_is_whole_again() {
    let [a, b, c] = Cluster::of(3).start().await;
    let all = [&a, &b, &c];
    all_see_all(&all).await;
    all.iter().for_each(|node| node.stop_agent());
    // In any order, also the one that is nobody's seed first.
    for node in [&c, &a, &b] {
        node.start_agent();
    }
    all_see_all(&all).await;
    all.iter().for_each(|node| node.kill_agent());
    for node in [&b, &c, &a] {
        node.start_agent();
    }
    all_see_all(&all).await;
}
