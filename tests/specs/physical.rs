//! A node can be made from a physical copy of its source: the source is prepared, the commands that are printed are run as they
//! are while it is written to, and the copy begins to replicate exactly where it left its source.

use std::fs;

use steep_tests::{
    Cluster, Ledger, Node,
    NodeState::*,
    PATIENCE,
    by_hand::{commands, words},
    shop, until,
};

/// What was printed to be done next.
struct Next {
    id: String,
    commands: Vec<String>,
}

/// Node `b` is to be made from a copy of `a`.
fn prepare(a: &Node, b: &Node, purpose: &str) -> Next {
    let (source, target) = (a.id(), b.id());
    let into = b.data_directory().display();
    let said = a.steepctl(&format!("node prepare {source} --for {purpose} --target {target} --into {into}")).succeeds();
    let commands = commands(&said.stdout);
    let id = commands.last().and_then(|line| line.rsplit(' ').next()).expect("it ends with the id").to_owned();
    Next { id, commands }
}

impl Next {
    /// The command that begins with `word`.
    fn command(&self, word: &str) -> &str {
        self.commands
            .iter()
            .find(|line| line.starts_with(word))
            .unwrap_or_else(|| panic!("{word}: {:?}", self.commands))
    }

    /// The commands between the copy and the agent's.
    fn start(&self, b: &Node, settings: &str) {
        configure(b, settings);
        b.shell(self.command("touch"));
        b.shell(self.first_start());
    }

    fn first_start(&self) -> &str {
        self.commands.iter().find(|line| line.ends_with("start")).expect("it is started")
    }

    fn adopt(&self) -> &str {
        self.command("steep-agent").strip_prefix("steep-agent ").expect("it begins like that")
    }

    fn complete(&self) -> &str {
        self.command("steepctl").strip_prefix("steepctl ").expect("it begins like that")
    }
}

/// Everything between the copy, which is there, and the agent that serves it.
fn becomes_a_node(b: &Node, next: &Next, settings: &str) {
    next.start(b, settings);
    let adopted = b.steep_agent(next.adopt());
    assert!(adopted.status.success(), "{}", words(&adopted));
    b.shell(next.commands.iter().find(|line| line.ends_with("stop")).expect("it is stopped"));
    b.start_postgres();
    b.start_agent();
}

/// The copy gets the settings that the node had before.
fn configure(b: &Node, settings: &str) {
    fs::write(b.data_directory().join("postgresql.conf"), settings).expect("settings can be written");
}

async fn nothing_is_left(nodes: [&Node; 2]) {
    for node in nodes {
        let marks: bool = node.value("select to_regnamespace('steep_mark') is not null").await;
        assert!(!marks, "{} still holds a mark", node.id());
        assert_eq!(node.count("steep_repl.intents where state in ('planned', 'live')").await, 0, "{}", node.id());
    }
}

async fn copied_under_writers(version: &str) {
    let [a, b] = Cluster::of(2).pg(&[version]).setting("max_prepared_transactions", "5").start().await;
    a.sql("create table held (id int primary key)").await;
    let ledger = Ledger::on(&a, 2_000).await;
    a.sql(&shop::orders(3_000)).await;
    let on_a = ledger.writers(8, &a);
    on_a.write(200).await;
    let next = prepare(&a, &b, "pg_basebackup");
    on_a.write(200).await;
    let settings = b.is_emptied();
    // Prepared before the copy is made, committed after.
    a.sql("begin; insert into held values (1); prepare transaction 'it''s'").await;
    b.shell(next.command("pg_basebackup"));
    on_a.write(200).await;
    becomes_a_node(&b, &next, &settings);
    a.sql("commit prepared 'it''s'").await;
    on_a.write(100).await;
    b.steepctl(next.complete()).operation().completes().await;
    b.becomes(Synchronized).await;
    let on_b = ledger.writers(4, &b);
    on_a.write(100).await;
    on_b.write(100).await;
    let accounts = [on_a.stop().await, on_b.stop().await];
    ledger.agrees(&[&a, &b], &accounts).await;
    b.holds_the_same_as(&a, "public.orders").await;
    assert_eq!(b.content("held").await, a.content("held").await, "what was prepared on the source is lost or doubled");
    assert!(accounts[0].refusals.is_empty(), "node_a's applications saw errors: {:?}", accounts[0].refusals);
    nothing_is_left([&a, &b]).await;
    let (ours, theirs): (String, String) = (
        b.value("select system_identifier::text from pg_control_system()").await,
        a.value("select system_identifier::text from pg_control_system()").await,
    );
    assert_eq!(ours, theirs, "a copy has its source's identifier");
    // A sequence goes on behind what the source has used.
    b.sql("insert into orders (customer_id, total, notes) select customer_id, 1, 'after' from orders limit 1").await;
    a.holds_the_same_as(&b, "public.orders").await;
}

#[tokio::test]
async fn a_base_backup_made_under_writers_misses_nothing_and_doubles_nothing() {
    copied_under_writers("18").await;
}

#[tokio::test]
async fn so_does_one_of_16() {
    copied_under_writers("16").await;
}

#[tokio::test]
async fn a_snapshot_of_the_storage_made_under_writers_misses_nothing_and_leaves_inherited_subscriptions_alone() {
    let [a, b, c] = Cluster::of(3).pg(&["15"]).start().await;
    c.sql("create table far (id int primary key); insert into far select generate_series(1, 100)").await;
    a.steepctl("node start node_a --from node_c --one-way").operation().completes().await;
    let ledger = Ledger::on(&a, 2_000).await;
    let on_a = ledger.writers(8, &a);
    on_a.write(200).await;
    let next = prepare(&a, &b, "storage-snapshot");
    on_a.write(200).await;
    let settings = b.is_emptied();
    let (from, to) = (a.data_directory().display(), b.data_directory().display());
    a.while_still(|| b.shell(&format!("cp -a {from}/. {to}/")));
    b.shell(next.command("rm"));
    c.sql("insert into far values (101)").await;
    becomes_a_node(&b, &next, &settings);
    on_a.write(100).await;
    assert_eq!(b.slots().await, Vec::<String>::new(), "slots came along");
    b.steepctl(&format!("{} --one-way", next.complete())).operation().completes().await;
    on_a.write(100).await;
    let account = on_a.stop().await;
    ledger.agrees(&[&a, &b], &[account]).await;
    // What node_a gets from node_c goes on, and goes through.
    c.sql("insert into far values (102)").await;
    a.holds_the_same_as(&c, "far").await;
    b.holds_the_same_as(&c, "far").await;
    assert_eq!(b.texts("select subname from pg_subscription").await, ["steep_from_node_a"]);
    nothing_is_left([&a, &b]).await;
}

/// Refused: the words are on the terminal, and the database is the source's as before.
fn adoption_is_refused(b: &Node, next: &Next, code: &str, because: &str) {
    let said = b.steep_agent(next.adopt());
    let printed = words(&said);
    assert!(
        !said.status.success() && printed.contains(code) && printed.contains(because),
        "{code} {because}:\n{printed}"
    );
}

async fn still_belongs_to(b: &Node, owner: &str) {
    assert_eq!(b.texts("select node_id from steep_repl.identity").await, [owner]);
    assert_eq!(b.count("pg_publication where pubname = 'steep'").await, 1, "its publication was dropped");
}

#[tokio::test]
async fn what_is_no_copy_for_this_preparation_is_left_as_it_is() {
    let [a, b, c] = Cluster::of(3).start().await;
    for node in [&a, &c] {
        node.sql("create table t (id int primary key); insert into t select generate_series(1, 100)").await;
    }
    // Restored in another way than it was prepared for.
    let dumped = prepare(&a, &b, "pg_basebackup");
    let place = |node: &Node| format!("-h {} -p {} -U postgres", node.host().display(), node.port());
    b.shell(&format!("pg_dump {} --exclude-schema=steep_repl --no-publications | psql -q {}", place(&a), place(&b)));
    is_refused(&a, &b, dumped.complete(), "STP-3517", "the target is none").await;

    // Older than the slot.
    let kept = b.data_directory().display().to_string();
    let first = prepare(&a, &b, "pg_basebackup");
    let settings = b.is_emptied();
    b.shell(first.command("pg_basebackup"));
    let next = prepare(&a, &b, "pg_basebackup");
    next.start(&b, &settings);
    adoption_is_refused(&b, &next, "STP-3512", &format!("{} of node_a", first.id));
    still_belongs_to(&b, "node_a").await;

    // Never promoted: what it writes is on its source's own timeline. Nor does it help to end that later.
    b.shell(&format!("pg_ctl -D {kept} -w -m fast stop"));
    b.shell(&format!("find {kept} -mindepth 1 -delete"));
    b.shell(next.command("pg_basebackup"));
    configure(&b, &settings);
    b.shell(next.first_start());
    adoption_is_refused(&b, &next, "STP-3515", "node_a's own");
    b.sql("insert into t values (1000)").await;
    b.shell(&format!("pg_ctl -D {kept} -w -m fast stop"));
    a.sql("insert into t select generate_series(101, 3000)").await;
    becomes_a_node(&b, &next, &settings);
    is_refused(&a, &b, next.complete(), "STP-3513", "is not what node_a has written there").await;

    // Of another node.
    let theirs = prepare(&c, &b, "pg_basebackup");
    b.is_emptied();
    b.shell(theirs.command("pg_basebackup"));
    theirs.start(&b, &settings);
    adoption_is_refused(&b, &next, "STP-3512", "of node_c");
    b.shell(&format!("pg_ctl -D {kept} -w -m fast stop"));

    // The source itself.
    let toml = fs::read_to_string(b.agent_toml()).expect("the agent is configured");
    let wrong = toml.replace(&format!("host = {:?}", b.host()), &format!("host = {:?}", a.host()));
    assert_ne!(toml, wrong);
    fs::write(b.agent_toml(), wrong).expect("it can be changed");
    let slots = a.slots().await;
    adoption_is_refused(&b, &next, "STP-3516", "not a copy of it");
    still_belongs_to(&a, "node_a").await;
    assert_eq!(a.slots().await, slots);
    // Nor while its own agent cannot say so.
    a.stop_agent();
    adoption_is_refused(&b, &next, "STP-1", "node_a");
    still_belongs_to(&a, "node_a").await;
    a.start_agent();
    fs::write(b.agent_toml(), toml).expect("it can be changed back");

    // Written to before it was completed.
    b.shell(&format!("find {kept} -mindepth 1 -delete"));
    b.shell(next.command("pg_basebackup"));
    becomes_a_node(&b, &next, &settings);
    b.sql("insert into t values (2000) on conflict (id) do update set id = 100000").await;
    until("the server has counted it", PATIENCE, async || {
        let counted: i64 = b.value("select n_tup_upd + n_tup_ins from pg_stat_user_tables where relname = 't'").await;
        if counted > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    is_refused(&a, &b, next.complete(), "STP-3518", "public.t").await;

    // And as it should be.
    b.is_emptied();
    b.shell(next.command("pg_basebackup"));
    becomes_a_node(&b, &next, &settings);
    let wrong = format!("{} --source-lsn 0/1234", next.complete());
    is_refused(&a, &b, &wrong, "STP-3513", "0/1234").await;
    b.steepctl(next.complete()).operation().completes().await;
    b.holds_the_same_as(&a, "t").await;
}

#[tokio::test]
async fn a_copy_whose_inherited_subscriptions_could_read_from_their_publishers_is_not_taken_over() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key)").await;
    a.sql("create database other").await;
    let subscription = "create subscription far connection 'host=/nonexistent' publication p with (connect = false)";
    a.sql(&format!("{subscription}; alter subscription far set (slot_name = 'far'); alter subscription far enable"))
        .await;
    a.try_connect("other")
        .await
        .expect("it is there")
        .batch_execute(&subscription.replace("far", "elsewhere"))
        .await
        .expect("it is made");
    let next = prepare(&a, &b, "pg_basebackup");
    let settings = b.is_emptied();
    b.shell(next.command("pg_basebackup"));
    configure(&b, &settings);
    b.shell(next.command("touch"));
    b.shell(&next.first_start().replace("max_logical_replication_workers=0", "max_logical_replication_workers=4"));
    adoption_is_refused(&b, &next, "STP-3518", "subscription far");
    still_belongs_to(&b, "node_a").await;
    let data = b.data_directory().display().to_string();
    b.shell(&format!("pg_ctl -D {data} -w -m fast stop"));
    b.shell(&format!("find {data} -mindepth 1 -delete"));
    b.shell(next.command("pg_basebackup"));
    next.start(&b, &settings);
    adoption_is_refused(&b, &next, "STP-3519", "elsewhere in other");
    still_belongs_to(&b, "node_a").await;
    // As the hint says.
    let other = b.try_connect("other").await.expect("it is there");
    let forgotten = "alter subscription elsewhere disable; \
                     alter subscription elsewhere connection 'host=/nonexistent'; \
                     alter subscription elsewhere set (slot_name = none)";
    other.batch_execute(forgotten).await.expect("it forgets its slot");
    other.batch_execute("drop subscription elsewhere").await.expect("it has no slot");
    drop(other);
    let adopted = b.steep_agent(next.adopt());
    assert!(adopted.status.success(), "{}", words(&adopted));
    assert_eq!(b.count("pg_subscription").await, 0);
    assert_eq!(a.count("pg_subscription").await, 2, "the source's own were touched");
    // Asked again, it is done already.
    let again = b.steep_agent(next.adopt());
    assert!(again.status.success(), "{}", words(&again));
}

/// Nothing is changed on either node but the state, and the slot stays for another try.
async fn is_refused(a: &Node, b: &Node, words: &str, code: &str, because: &str) {
    let op = b.steepctl(words).operation();
    op.fails_with(code).await;
    let shown = op.shown().await.expect("it is shown");
    let failure = shown["operation"]["failure"].to_string();
    assert!(failure.contains(because), "{because:?} is not in {failure}");
    assert_eq!(b.slots().await, Vec::<String>::new(), "node_b keeps a slot");
    assert_eq!(b.count("pg_subscription").await, 0);
    assert!(!a.slots().await.is_empty(), "the slot stays for another try");
}
