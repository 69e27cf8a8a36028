//! Wall clocks that are wrong: what only measures goes on, what depends on the time says so.

use steep_tests::{Clock, Cluster, Ledger, Node, NodeState, PATIENCE, clock::right_here, shop, until};

const HOUR: i64 = 3_600;

fn row(asked: &Node, of: &Node) -> serde_json::Value {
    let listed = asked.steepctl("node list -o json").succeeds().json();
    let nodes = listed["nodes"].as_array().cloned().unwrap_or_default();
    nodes.into_iter().find(|node| node["node_id"] == of.id()).unwrap_or_default()
}

async fn hears_freshly(asked: &Node, of: &Node) {
    until(&format!("{} hears of {} now", asked.id(), of.id()), PATIENCE, async || {
        let row = row(asked, of);
        let is_fresh = row["is_stale"] == false && row["age_ms"].as_u64().is_some_and(|age| age < 10_000);
        if is_fresh { Ok(()) } else { Err(row.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_clock_that_is_wrong_breaks_nothing_that_runs_and_refuses_what_it_cannot_judge() {
    let clock = Clock::right();
    let [a, b] = Cluster::of(2).on(vec![right_here(), clock.host()]).start().await;
    let ledger = Ledger::on(&a, 500).await;
    a.sql(&shop::orders(20_000)).await;
    // Some minutes are forgiven, whichever way; amid a copy they are not even noticed.
    clock.is_ahead(-4 * 60);
    hears_freshly(&a, &b).await;
    hears_freshly(&b, &a).await;
    let on_a = ledger.writers(2, &a);
    let op = b.steepctl("node start node_b --from node_a --max-rate 200kB").operation();
    op.reaches("copy tables").await;
    clock.is_ahead(4 * 60);
    op.completes().await;
    b.becomes(NodeState::Synchronized).await;
    let shown = b.steepctl("op show").arg(op.id()).arg("-o").arg("json").succeeds().json();
    let elapsed = shown["operation"]["elapsed_seconds"].as_f64();
    assert!(elapsed.is_none_or(|elapsed| (0.0..240.0).contains(&elapsed)), "{shown}");

    // Hours are told where they matter, and nothing stops.
    for ahead in [3 * HOUR, -3 * HOUR] {
        clock.is_ahead(ahead);
        hears_freshly(&a, &b).await;
        on_a.write(50).await;
        // An order of now is not one of then; nor is a certificate.
        let refused = a.steepctl("agent drain node_b").fails_with(if ahead > 0 { "STP-5022" } else { "STP-5026" });
        assert!(refused.stderr.contains("clock"), "{refused}");
    }
    // Where certificates are not valid yet nobody new is let in, and told why.
    let refused = b.steepctl("node list").fails_with("STP-1103");
    assert!(refused.stderr.contains("clock"), "{refused}");
    clock.is_ahead(0);
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;
    for node in [&a, &b] {
        node.becomes(NodeState::Synchronized).await;
    }
}
