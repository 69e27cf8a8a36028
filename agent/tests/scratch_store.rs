//! scratch
use std::time::{Duration, Instant};
use serde_json::json;
use steep_agent::{lifecycle::{self, NodeEvent}, postgres::{Database, PostgresConfig, Purpose}, store::{self, *, operations::{Begun, NewOperation}, steps::StepStatus, ledger::CopiedPart, progress::InitProgress}};
use steep_protocol::{failure::{Code, Explain, Failure}, ids::OperationId, names::TableName, node::NodeState, operation::{InitMethod, OperationStatus}, v1};

fn config(dbname: &str) -> PostgresConfig {
    let port: u16 = std::env::var("STEEP_TEST_PG").unwrap().parse().unwrap();
    PostgresConfig { host: "/tmp/store-pg".into(), port, dbname: dbname.into(), user: "postgres".into(), passfile: None, bin_dir: None }
}
async fn admin(dbname: &str) -> tokio_postgres::Client {
    let c = config(dbname);
    let (client, conn) = tokio_postgres::Config::new().host(&c.host).port(c.port).user("postgres").dbname(dbname).connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(conn);
    client
}
async fn fresh(name: &str) -> Database {
    let a = admin("postgres").await;
    a.batch_execute(&format!("drop database if exists {name} with (force)")).await.unwrap();
    a.batch_execute(&format!("create database {name}")).await.unwrap();
    Database::new(config(name))
}
fn owner(node: &str, mesh: &str) -> Owner { Owner { node: node.parse().unwrap(), mesh: mesh.parse().unwrap() } }
fn new_op(op: OperationId) -> NewOperation {
    NewOperation { op_id: op, kind: "init".into(), target: "node_a".parse().unwrap(), source: "node_b".parse().unwrap(), method: InitMethod::Direct, request: json!({"a": [1, 2.5, "x"]}), started_by: "alice (admin)".into() }
}
fn show(e: &store::Error) { println!("   {:?}", e.explain()); }

#[tokio::test(flavor = "multi_thread")]
async fn everything() {
    let db = fresh("s_all").await;
    let t = Instant::now();
    let s = Store::open(db.clone(), owner("node_a", "acme")).await.unwrap();
    println!("open {:?}  {s:?}", t.elapsed());
    let agent = Actor::agent(&s.owner().node);
    let own = nodes::own(&s).await.unwrap();
    assert_eq!(own.init_state, NodeState::Uninitialized);
    println!("{own:?}");
    // legal pairs agree
    let a = admin("s_all").await;
    let rows = a.query("select from_state, to_state from steep_repl.legal_moves where subject = 'node' order by 1, 2", &[]).await.unwrap();
    let theirs: Vec<(String, String)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
    let mut ours: Vec<(String, String)> = lifecycle::legal_moves().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    ours.sort();
    assert_eq!(ours, theirs);
    // every pair, in the database
    for from in NodeState::ALL { for to in NodeState::ALL {
        a.batch_execute(&format!("set session_replication_role=replica; alter table steep_repl.nodes disable trigger legal_moves_only; update steep_repl.nodes set init_state='{from}'; alter table steep_repl.nodes enable always trigger legal_moves_only")).await.unwrap();
        let r = a.batch_execute(&format!("update steep_repl.nodes set init_state='{to}'")).await;
        assert_eq!(r.is_ok(), from == to || lifecycle::may_move(from, to), "{from} {to}");
        if let Err(e) = r { assert_eq!(e.code().unwrap().code(), "23514"); }
    } }
    a.batch_execute("alter table steep_repl.nodes disable trigger legal_moves_only; update steep_repl.nodes set init_state='uninitialized'; alter table steep_repl.nodes enable always trigger legal_moves_only").await.unwrap();
    // moves
    let op = OperationId::generate();
    let m = nodes::advance(&s, NodeEvent::Started, Some(op), &Actor::operator("alice", steep_protocol::operation::Role::Admin)).await.unwrap();
    println!("{m:?}");
    let e = nodes::advance(&s, NodeEvent::CaughtUp, Some(op), &agent).await.unwrap_err();
    show(&e); assert_eq!(e.code(), Code::IllegalState);
    nodes::advance(&s, NodeEvent::RowsInPlace, None, &agent).await.unwrap();
    nodes::advance(&s, NodeEvent::CaughtUp, None, &agent).await.unwrap();
    nodes::set_source(&s, Some(&"node_b".parse().unwrap())).await.unwrap();
    nodes::set_health(&s, "warn", "lag").await.unwrap();
    let e = nodes::set_health(&s, "fine", "").await.unwrap_err(); show(&e);
    println!("{:?}", nodes::own(&s).await.unwrap());
    // operations
    let Begun::New(o) = operations::begin(&s, &new_op(op)).await.unwrap() else { panic!() };
    println!("{o:?}");
    let Begun::Same(_) = operations::begin(&s, &new_op(op)).await.unwrap() else { panic!() };
    let other = NewOperation { request: json!({}), ..new_op(op) };
    let e = operations::begin(&s, &other).await.unwrap_err(); show(&e);
    let op2 = OperationId::generate();
    let e = operations::begin(&s, &new_op(op2)).await.unwrap_err(); show(&e);
    assert_eq!(e.code(), Code::OperationRunning);
    operations::set_status(&s, op, OperationStatus::Cancelling).await.unwrap();
    operations::set_status(&s, op, OperationStatus::Cancelling).await.unwrap();
    let e = operations::set_status(&s, op, OperationStatus::Running).await.unwrap_err(); show(&e);
    assert_eq!(e.code(), Code::IllegalState);
    // steps
    steps::plan(&s, op, &["one", "two"]).await.unwrap();
    steps::plan(&s, op, &["one", "two"]).await.unwrap();
    steps::mark(&s, op, "one", StepStatus::Running).await.unwrap();
    steps::mark(&s, op, "one", StepStatus::Done).await.unwrap();
    steps::mark(&s, op, "two", StepStatus::Running).await.unwrap();
    show(&steps::mark(&s, op, "three", StepStatus::Running).await.unwrap_err());
    println!("{:?}", steps::list(&s, op).await.unwrap());
    assert_eq!(operations::find(&s, op).await.unwrap().unwrap().step.as_deref(), Some("two"));
    // events
    let c1 = events::append(&s, op, "init.started", &json!({"a": "ü"})).await.unwrap();
    let c2 = events::append(&s, op, "init.x", &json!({})).await.unwrap();
    assert!(c2 > c1);
    assert_eq!(events::after(&s, op, c1, 10).await.unwrap().len(), 1);
    assert_eq!(events::after(&s, op, 0, 1).await.unwrap()[0].cursor, c1);
    assert_eq!(events::after(&s, op, u64::MAX, 1).await.unwrap().len(), 0);
    // intents
    let i1 = intents::plan(&s, op, "one", "slot", "steep_x", &json!({"kind":"slot"})).await.unwrap();
    let i2 = intents::plan(&s, op, "one", "publication", "steep", &json!({})).await.unwrap();
    let i3 = intents::plan(&s, op2, "one", "publication", "steep", &json!({})).await.unwrap();
    intents::live(&s, i1).await.unwrap();
    let p = intents::pending(&s, op).await.unwrap();
    assert_eq!(p.iter().map(|i| (i.id, i.is_live)).collect::<Vec<_>>(), [(i2, false), (i1, true)]);
    assert!(intents::used_by_others(&s, op, "publication", "steep").await.unwrap());
    intents::undone(&s, i3).await.unwrap();
    assert!(!intents::used_by_others(&s, op, "publication", "steep").await.unwrap());
    assert_eq!(intents::open_operations(&s).await.unwrap(), [op]);
    intents::keep(&s, op).await.unwrap();
    assert_eq!(intents::pending(&s, op).await.unwrap().len(), 1);
    intents::undone(&s, i2).await.unwrap();
    intents::undone(&s, i1).await.unwrap();
    assert!(intents::used_by_others(&s, op2, "slot", "steep_x").await.unwrap());
    assert!(intents::open_operations(&s).await.unwrap().is_empty());
    // ledger
    let copy = db.session(Purpose::CopyIn(op)).await.unwrap();
    let part = CopiedPart { op_id: op, table: TableName::new("public", "we\"ird"), part: 3, rows: 10, bytes: 100, hash: u64::MAX - 5 };
    copy.begin().await.unwrap();
    ledger::record(&copy, &part).await.unwrap();
    assert!(ledger::parts(&s, op).await.unwrap().is_empty());
    copy.commit().await.unwrap();
    assert_eq!(ledger::parts(&s, op).await.unwrap(), [part.clone()]);
    copy.begin().await.unwrap();
    show(&ledger::record(&copy, &part).await.unwrap_err());
    copy.rollback().await.unwrap();
    println!("{:?}", ledger::totals(&s, op).await.unwrap());
    // progress
    assert!(progress::load(&s).await.unwrap().is_none());
    let view = v1::Progress { phase: "copy".into(), overall_percent: 12.5, tables_total: 4, rows_copied: 7, eta_seconds: Some(9), ..Default::default() };
    let row = InitProgress::of(op, &view);
    progress::save(&s, &row).await.unwrap();
    progress::save(&s, &row.clone().ended(Some("oh".into()), false)).await.unwrap();
    println!("{:?}", progress::load(&s).await.unwrap().unwrap());
    // end
    let why = Failure::new(Code::Cancelled, "cancelled by alice");
    operations::finish(&s, op, OperationStatus::Cancelled, Some(&why)).await.unwrap();
    operations::finish(&s, op, OperationStatus::Cancelled, Some(&why)).await.unwrap();
    show(&operations::finish(&s, op, OperationStatus::Completed, None).await.unwrap_err());
    show(&operations::finish(&s, OperationId::generate(), OperationStatus::Completed, None).await.unwrap_err());
    let ended = operations::find(&s, op).await.unwrap().unwrap();
    assert_eq!(ended.failure, Some(why)); assert!(ended.ended_at.is_some());
    operations::begin(&s, &new_op(op2)).await.unwrap();
    assert_eq!(operations::unfinished(&s).await.unwrap().len(), 1);
    assert_eq!(operations::list(&s, 10).await.unwrap()[0].op_id, op2);
    assert_eq!(operations::find_prefix(&s, &op.to_string()).await.unwrap().op_id, op);
    assert_eq!(operations::find_prefix(&s, &op.short()).await.unwrap().op_id, op);
    show(&operations::find_prefix(&s, &op.to_string()[..6]).await.unwrap_err());
    show(&operations::find_prefix(&s, "ffff").await.unwrap_err());
    // audit
    for n in 0..10 { audit::append(&s, &agent, "test", "x", None, &json!({"n": n, "t": "a\"b"})).await.unwrap(); }
    assert_eq!(audit::verify(&s).await.unwrap(), None);
    a.batch_execute("set timezone='Asia/Tokyo'; set extra_float_digits=0; set datestyle='German'").await.unwrap();
    assert_eq!(a.query_one("select count(*) from steep_repl.audit_log x where hash <> steep_repl.audit_hash(x)", &[]).await.unwrap().get::<_, i64>(0), 0);
    a.batch_execute("alter table steep_repl.audit_log disable trigger all; update steep_repl.audit_log set actor='eve' where id=5").await.unwrap();
    assert_eq!(audit::verify(&s).await.unwrap(), Some(5));
    a.batch_execute("update steep_repl.audit_log set actor='node_a' where id=5; delete from steep_repl.audit_log where id=7; alter table steep_repl.audit_log enable always trigger sealed").await.unwrap();
    assert_eq!(audit::verify(&s).await.unwrap(), Some(8));
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_is_one_chain_under_concurrency() {
    let db = fresh("s_audit").await;
    let s = Store::open(db.clone(), owner("node_a", "acme")).await.unwrap();
    let mut tasks = vec![];
    for w in 0..6 { tasks.push(tokio::spawn(async move {
        let a = admin("s_audit").await;
        for n in 0..200 { a.execute("insert into steep_repl.audit_log(actor_kind,actor,action,target,detail) values ('system',$1,'x','y','{}')", &[&format!("{w}-{n}")]).await.unwrap(); }
    })); }
    for t in tasks { t.await.unwrap(); }
    assert_eq!(audit::verify(&s).await.unwrap(), None);
    let a = admin("s_audit").await;
    // Many pages.
    a.batch_execute("insert into steep_repl.audit_log(actor_kind,actor,action,target,detail) select 'system','x','x','y',jsonb_build_object('n', n) from generate_series(1,12000) n").await.unwrap();
    let t = Instant::now();
    assert_eq!(audit::verify(&s).await.unwrap(), None);
    println!("verify 13200 {:?}", t.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_and_taken() {
    let db = fresh("s_own").await;
    let s = Store::open(db.clone(), owner("node_a", "acme")).await.unwrap();
    show(&Store::open(db.clone(), owner("node_b", "acme")).await.unwrap_err());
    show(&Store::open(db.clone(), owner("node_a", "other")).await.unwrap_err());
    let t = Instant::now();
    let e = Store::open(db.clone(), owner("node_a", "acme")).await.unwrap_err();
    println!("taken after {:?}", t.elapsed()); show(&e); assert_eq!(e.code(), Code::NodeIdTaken);
    drop(s);
    let t = Instant::now();
    let s = Store::open(db.clone(), owner("node_a", "acme")).await.unwrap();
    println!("again after {:?}", t.elapsed());
    drop(s);
    // A clone.
    let a = admin("postgres").await;
    a.batch_execute("drop database if exists s_clone with (force)").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    a.batch_execute("create database s_clone template s_own").await.unwrap();
    let e = Store::open(Database::new(config("s_clone")), owner("node_a", "acme")).await.unwrap_err(); show(&e);
    assert_eq!(e.code(), Code::ForeignDatabase);
    // newer, altered
    let o = admin("s_own").await;
    o.batch_execute("insert into steep_repl.migrations(version,name,checksum) values (99,'later','x')").await.unwrap();
    let e = Store::open(db.clone(), owner("node_a", "acme")).await.unwrap_err(); show(&e); assert_eq!(e.code(), Code::StoreTooNew);
    o.batch_execute("delete from steep_repl.migrations where version = 99; update steep_repl.migrations set checksum='x' where version=2").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    show(&Store::open(db.clone(), owner("node_a", "acme")).await.unwrap_err());
    // strangers cannot look
    let db2 = fresh("s_priv").await;
    let p = admin("s_priv").await;
    p.batch_execute("drop role if exists s_low; create role s_low login").await.unwrap();
    let low = Database::new(PostgresConfig { user: "s_low".into(), ..config("s_priv") });
    show(&Store::open(low.clone(), owner("node_a", "acme")).await.unwrap_err());
    p.batch_execute("create schema steep_repl authorization s_low").await.unwrap();
    let s = Store::open(low, owner("node_a", "acme")).await.unwrap();
    println!("low: {s:?}");
    drop(s); let _ = db2;
    show(&Store::open(Database::new(PostgresConfig { port: 1, ..config("x") }), owner("node_a", "acme")).await.unwrap_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_and_lost_sessions() {
    let db = fresh("s_lost").await;
    let (x, y) = tokio::join!(Store::open(db.clone(), owner("node_a", "acme")), Store::open(db.clone(), owner("node_b", "acme")));
    println!("{x:?}\n{y:?}");
    assert!(x.is_ok() != y.is_ok());
    let s = x.or(y).unwrap();
    let a = admin("s_lost").await;
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where application_name='steep-control' and datname='s_lost'";
    for _ in 0..5 {
        a.query(kill, &[]).await.unwrap();
        s.check().await.unwrap();
    }
    a.query(kill, &[]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    nodes::own(&s).await.unwrap();
    // dropped half-way
    let agent = Actor::agent(&s.owner().node);
    for micros in (0..6000).step_by(37) {
        let _ = tokio::time::timeout(Duration::from_micros(micros), audit::append(&s, &agent, "dropped", "x", None, &json!({}))).await;
        if micros % 5 == 0 { nodes::own(&s).await.unwrap(); }
    }
    s.check().await.unwrap();
    let open: i64 = a.query_one("select count(*) from pg_stat_activity where state like 'idle in transaction%' and datname='s_lost'", &[]).await.unwrap().get(0);
    assert_eq!(open, 0);
    println!("dropped: {}", a.query_one("select count(*) from steep_repl.audit_log", &[]).await.unwrap().get::<_, i64>(0));
    assert_eq!(audit::verify(&s).await.unwrap(), None);
    // lock held by somebody
    a.batch_execute("begin; lock table steep_repl.nodes").await.unwrap();
    let t = Instant::now();
    let e = nodes::own(&s).await.unwrap_err(); println!("after {:?}", t.elapsed()); show(&e);
    assert!(e.explain().retryable);
    a.batch_execute("commit").await.unwrap();
    nodes::own(&s).await.unwrap();
    // cancelled by an administrator
    a.batch_execute("begin; lock table steep_repl.nodes").await.unwrap();
    let s2 = s.clone();
    let j = tokio::spawn(async move { nodes::own(&s2).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    a.query("select pg_cancel_backend(pid) from pg_stat_activity where application_name='steep-control' and datname='s_lost'", &[]).await.unwrap();
    let e = j.await.unwrap().unwrap_err(); show(&e); assert_eq!(e.code(), Code::StoreFailed);
    a.batch_execute("commit").await.unwrap();
    // another took over while we were away
    a.query(kill, &[]).await.unwrap();
    let thief = a.query_one("select pg_advisory_lock(1937007984, 1)", &[]).await; assert!(thief.is_ok());
    tokio::time::sleep(Duration::from_millis(100)).await;
    show(&s.check().await.unwrap_err());
    a.query_one("select pg_advisory_unlock(1937007984, 1)", &[]).await.unwrap();
    s.check().await.unwrap();
    // speed
    let op = OperationId::generate();
    operations::begin(&s, &NewOperation { target: s.owner().node.clone(), ..new_op(op) }).await.unwrap();
    let t = Instant::now();
    for _ in 0..500 { events::append(&s, op, "x", &json!({})).await.unwrap(); }
    println!("event {:?}", t.elapsed() / 500);
}
