//! A node that is removed leaves nothing of itself on any node, whether or not all can be reached; all data stays.

use steep_tests::{Cluster, Node, NodeState::*, PATIENCE, Stop, by_hand, shop, until};

/// Every node subscribes to every other.
async fn mesh(nodes: &[&Node]) {
    nodes[0].sql(&shop::orders(200)).await;
    nodes[0].sql("create table marks (name text primary key)").await;
    for node in &nodes[1..] {
        node.steepctl(&format!("node start {} --from {}", node.id(), nodes[0].id())).operation().completes().await;
    }
}

/// Whatever replication has left on `node` that has to do with `gone`; with nobody: anything.
async fn left_of(node: &Node, gone: Option<&Node>) -> Vec<String> {
    let name = gone.map(|gone| gone.id().to_owned()).unwrap_or_default();
    let query = format!(
        "select 'subscription ' || subname from pg_subscription where subname like 'steep_from_{name}%'
         union all select 'slot ' || slot_name from pg_replication_slots where slot_name like 'steep_{name}%'
         union all select 'publication ' || pubname from pg_publication
                    where pubname like 'steep_only_{name}%' or pubname = 'steep' and '{name}' = ''
         union all select 'origin ' || roname from pg_replication_origin where '{name}' = ''"
    );
    node.texts(&query).await
}

async fn is_gone_from(node: &Node, gone: Option<&Node>) {
    until(&format!("nothing is left on {}", node.id()), PATIENCE, async || {
        let left = left_of(node, gone).await;
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    })
    .await;
}

async fn replicate(nodes: &[&Node], round: &str) {
    for node in nodes {
        node.sql(&format!("insert into marks values ('{} {round}')", node.id())).await;
    }
    for node in &nodes[1..] {
        node.holds_the_same_as(nodes[0], "marks").await;
    }
}

#[tokio::test]
async fn a_node_that_lives_is_removed_after_the_others_have_all_it_wrote() {
    let [a, b, c] = Cluster::of(3).start().await;
    mesh(&[&a, &b, &c]).await;
    a.steepctl("node remove node_c").fails_with("STP-5009");
    a.steepctl("node remove node_c --confirm node_b").fails_with("STP-5009");
    a.steepctl("node remove node_c --confirm node_c").as_operator("vera").fails_with("STP-5003");
    a.steepctl("node remove node_x --confirm node_x").fails_with("STP-5002");
    c.sql("insert into marks select 'c ' || n from generate_series(1, 2000) n").await;
    let removed = b.steepctl("node remove node_c --confirm node_c").as_operator("otto").succeeds();
    assert!(removed.stdout.contains("node_c is removed"), "{removed}");
    for node in [&a, &b] {
        assert_eq!(node.count("marks").await, 2000, "{} had all of it before", node.id());
        assert_eq!(left_of(node, Some(&c)).await, Vec::<String>::new(), "{}", node.id());
        let audited = "select count(*) from steep_repl.audit_log where action = 'node.forgotten' and target = 'node_c'";
        assert_eq!(node.value::<i64>(audited).await, 1, "{}", node.id());
    }
    assert_eq!(left_of(&c, None).await, Vec::<String>::new());
    assert_eq!(c.state().await, Ok(Uninitialized));
    assert_eq!((c.count("marks").await, c.count("orders").await), (2000, 200), "its data stays");
    replicate(&[&a, &b], "without c").await;
    assert_eq!(c.count("marks").await, 2000);

    // It can come again at once, and nothing of its first life is in the way.
    c.steepctl("node start node_c --from node_b --force --confirm node_c").operation().completes().await;
    replicate(&[&a, &b, &c], "with c again").await;
    // Down to one: the last removal takes the shared publication with it.
    c.steepctl("node remove node_c --confirm node_c").succeeds();
    a.steepctl("node remove node_b --confirm node_b").succeeds();
    for node in [&a, &b, &c] {
        assert_eq!(left_of(node, None).await, Vec::<String>::new(), "{}", node.id());
        let open =
            "select count(*) from steep_repl.intents where state <> 'undone' and kind in ('slot', 'subscription')";
        assert_eq!(node.value::<i64>(open).await, 0, "{} remembers nothing that is there", node.id());
    }
    assert_eq!(a.state().await, Ok(Synchronized), "whoever is left has the data");
    b.steepctl("node start node_b --from node_a --force --confirm node_b").operation().completes().await;
    replicate(&[&a, &b], "a pair again").await;
}

#[tokio::test]
async fn a_dead_node_is_removed_without_it_and_finishes_when_it_comes_back() {
    let [a, b, c] = Cluster::of(3).start().await;
    mesh(&[&a, &b, &c]).await;
    c.kill_agent();
    c.stop_postgres(Stop::Immediate);
    let refused = a.steepctl("node remove node_c --confirm node_c").fails_with("STP-4233");
    assert!(refused.stderr.contains("--drop-slots"), "{refused}");
    let removed = a.steepctl("node remove node_c --drop-slots --confirm node_c").succeeds();
    assert!(removed.stdout.contains("node_c will do so too when it can be reached"), "{removed}");
    for node in [&a, &b] {
        assert_eq!(left_of(node, Some(&c)).await, Vec::<String>::new(), "{}", node.id());
    }
    replicate(&[&a, &b], "without c").await;
    until("node_a is well", PATIENCE, async || {
        let shown = a.steepctl("node show node_a -o json").succeeds().json();
        if shown["headline"]["health"] == "ok" { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;

    // The agent that began it is gone when the dead one comes back: any other one tells it.
    a.kill_agent();
    c.start_postgres();
    c.start_agent();
    is_gone_from(&c, None).await;
    c.becomes(Uninitialized).await;
    assert!(!c.log().contains("node.diverged"), "slots that went with a removal are no alarm");
    assert_eq!(c.count("orders").await, 200, "its data stays");
    a.start_agent();
    until("node_c joins again", PATIENCE, async || {
        let started = c.steepctl("node start node_c --from node_a --force --confirm node_c").outcome();
        if started.status == 0 { Ok(()) } else { Err(started.to_string()) }
    })
    .await;
    replicate(&[&a, &b, &c], "with c again").await;
}

#[tokio::test]
async fn a_removal_waits_for_a_peer_that_is_down_and_says_so() {
    let [a, b, c] = Cluster::of(3).start().await;
    mesh(&[&a, &b, &c]).await;
    b.kill_agent();
    // Nothing reaches its PostgreSQL meanwhile, so what node_c has not sent is given up.
    let removed = c.steepctl("node remove node_c --drop-slots --confirm node_c").succeeds();
    assert!(removed.stdout.contains("remove.pending") && removed.stdout.contains("node_b"), "{removed}");
    assert_eq!(left_of(&a, Some(&c)).await, Vec::<String>::new());
    assert_eq!(left_of(&c, None).await, Vec::<String>::new());
    // Until node_b has done its part nothing new may begin between the two.
    let refused = c.steepctl("node start node_c --from node_a --force --confirm node_c").outcome();
    assert_ne!(refused.status, 0, "{refused}");
    assert!(refused.stderr.contains("STP-2023") || refused.stderr.contains("STP-2021"), "{refused}");
    b.start_agent();
    is_gone_from(&b, Some(&c)).await;
    until("node_c joins again", PATIENCE, async || {
        let started = c.steepctl("node start node_c --from node_a --force --confirm node_c").outcome();
        if started.status == 0 { Ok(()) } else { Err(started.to_string()) }
    })
    .await;
    replicate(&[&a, &b, &c], "with c again").await;
}

#[tokio::test]
async fn a_removal_can_be_cancelled_while_it_waits_for_the_others() {
    let [a, b, c] = Cluster::of(3).start().await;
    mesh(&[&a, &b, &c]).await;
    // node_b cannot apply what node_c writes now.
    let holder = b.connect().await;
    holder.batch_execute("begin; lock table marks in share mode").await.expect("it can be locked");
    c.sql("insert into marks values ('from c')").await;
    let op = c.steepctl("node remove node_c --confirm node_c").operation();
    op.reaches("send the rest").await;
    c.steepctl(&format!("op cancel {}", op.id())).succeeds();
    holder.batch_execute("rollback").await.expect("it answers");
    assert_eq!(c.state().await, Ok(Synchronized));
    replicate(&[&a, &b, &c], "as before").await;
}

#[tokio::test]
async fn a_node_made_by_hand_is_removed_with_the_slot_that_was_prepared_for_it() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key); create table other (id int primary key)").await;
    for chosen in ["--tables t", ""] {
        let before = a.inventory().await;
        let printed = a.steepctl(&format!("node prepare node_a --for pg_dump --target node_b {chosen}")).succeeds();
        let commands = by_hand::commands(&printed.stdout);
        let (last, first) = commands.split_last().expect("something is to be done");
        for command in first {
            b.shell(command);
        }
        let complete = last.strip_prefix("steepctl ").expect("it is steepctl's");
        b.steepctl(complete).arg("--one-way").operation().completes().await;
        assert_eq!(a.slots().await.len(), 1);
        b.steepctl("node remove node_b --confirm node_b").succeeds();
        a.inventory().await.is_as(&before);
        assert_eq!(a.slots().await, Vec::<String>::new(), "{chosen}");
        b.sql("drop table t; drop table if exists other; drop schema if exists steep_mark").await;
        b.shell(&format!("rm -rf {}", first.last().and_then(|line| line.rsplit(' ').next()).expect("the dump")));
    }
}

#[tokio::test]
async fn the_publication_of_a_snapshot_of_chosen_tables_goes_with_the_last_node_that_reads_it() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key); create table other (id int primary key)").await;
    let before = a.inventory().await;
    let folder = std::env::temp_dir().join(format!("steep-chosen-{}", std::process::id()));
    let folder = folder.display().to_string();
    a.steepctl("snapshot generate node_a --tables t --dir").arg(&folder).operation().completes().await;
    b.steepctl("snapshot apply node_b --one-way --input").arg(&folder).operation().completes().await;
    let listed = a.steepctl("snapshot list -o json").succeeds().json();
    let snapshot = listed["snapshots"][0]["snapshot_id"].as_str().expect("it is listed").to_owned();
    a.steepctl(&format!("snapshot delete {snapshot} --confirm {snapshot}")).succeeds();
    a.sql("insert into t values (1)").await;
    b.holds_the_same_as(&a, "t").await;
    a.sql("delete from t").await;
    b.steepctl("node remove node_b --confirm node_b").succeeds();
    a.inventory().await.is_as(&before);
}

#[tokio::test]
async fn a_removal_neither_waits_for_nor_takes_what_backups_and_snapshots_keep() {
    let [a, b] = Cluster::of(2).start().await;
    mesh(&[&a, &b]).await;
    let folder = std::env::temp_dir().join(format!("steep-removal-{}", std::process::id()));
    b.steepctl("snapshot generate node_b --dir").arg(&folder.display().to_string()).operation().completes().await;
    b.steepctl("node prepare node_b --for pg_dump").succeeds();
    b.sql("insert into marks values ('after')").await;
    b.steepctl("node remove node_b --confirm node_b").succeeds();
    b.becomes(Uninitialized).await;
    is_gone_from(&a, None).await;
    let listed = b.steepctl("snapshot list node_b -o json").succeeds().json();
    let snapshot = listed["snapshots"][0]["snapshot_id"].as_str().expect("it is still there").to_owned();
    let listed = b.steepctl("node prepare node_b --list -o json").succeeds().json();
    let prepared = listed["preparations"][0]["prepare_id"].as_str().expect("it is still there").to_owned();
    let kept = b.slots().await;
    assert_eq!(kept.len(), 2, "{kept:?}");
    // The snapshot is as good as before: whoever is made from it gets what was written since, too.
    a.steepctl("node remove node_a --confirm node_a").succeeds();
    a.steepctl("snapshot apply node_a --force --confirm node_a --one-way --input")
        .arg(&folder.display().to_string())
        .operation()
        .completes()
        .await;
    a.holds_the_same_as(&b, "marks").await;
    a.steepctl("node remove node_a --confirm node_a").succeeds();
    b.steepctl(&format!("snapshot delete {snapshot} --confirm {snapshot}")).succeeds();
    b.steepctl(&format!("node prepare node_b --cancel {prepared}")).succeeds();
    assert_eq!(b.slots().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_source_no_longer_misses_a_slot_once_its_reader_was_removed() {
    let [a, b] = Cluster::of(2).start().await;
    mesh(&[&a, &b]).await;
    let slot = a.slots().await.pop().expect("node_b reads one");
    b.stop_agent();
    until("nobody reads it and it is dropped", PATIENCE, async || {
        a.try_sql(&format!("select pg_drop_replication_slot('{slot}')")).await
    })
    .await;
    let missed = async |is_missed: bool| {
        until(&format!("node_a misses it: {is_missed}"), PATIENCE, async || {
            let said = a.steepctl("node show node_a").succeeds();
            if said.stdout.contains("STP-4206") == is_missed { Ok(()) } else { Err(said.stdout) }
        })
        .await;
    };
    missed(true).await;
    b.start_agent();
    b.becomes(Diverged).await;
    b.steepctl("node reinit node_b --full --confirm node_b").succeeds();
    b.becomes(Synchronized).await;
    missed(false).await;
}
