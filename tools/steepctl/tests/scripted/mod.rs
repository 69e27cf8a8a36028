//! An agent that speaks the protocol and plays a script: what steepctl does can be tried without any database.

mod schemas;

use std::{
    fs,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use steep_protocol::{
    failure::{Code, Failure},
    ids::OperationId,
    v1::{
        self,
        nodes_server::{Nodes, NodesServer},
        operation_event::What,
        operations_server::{Operations, OperationsServer},
        schemas_server::SchemasServer,
    },
    wire::{endpoint::Endpoint, identity::Identity, rpc},
};
use tokio::{runtime::Runtime, sync::oneshot};
use tonic::{Request, Response, Status, service::Routes};

pub(crate) use schemas::Schemas;

/// A directory with the certificates of a mesh, gone when dropped.
pub(crate) struct Mesh {
    dir: PathBuf,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("steepctl-test-{}", OperationId::generate().short()));
        fs::create_dir(&dir).expect("a new directory");
        let mesh = Self { dir };
        for line in ["pki init --mesh acme", "pki issue node node_a", "pki issue operator alice --role admin"] {
            mesh.run(line).succeeds();
        }
        mesh
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// steepctl with `line`'s words, alice's certificate and a clean environment, not yet started.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steepctl"));
        command.args(line.split_whitespace()).current_dir(&self.dir).env_clear();
        command.env("STEEPCTL_CERT", self.path("pki/operator-alice.pem")).stdin(Stdio::null());
        command
    }

    /// Runs steepctl to its end.
    pub(crate) fn run(&self, line: &str) -> Ended {
        Ended::of(self.command(line).output().expect("steepctl runs"))
    }

    fn identity(&self) -> Arc<Identity> {
        let file = |name: &str| self.dir.join("pki").join(name);
        let loaded = Identity::load(&file("node_a.pem"), &file("node_a.key"), &file("ca.pem"));
        Arc::new(loaded.expect("the identity of node_a"))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// How a run of steepctl ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        self.exits(0)
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} in stderr:\n{}", self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn prints(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "no {text:?} in stdout:\n{}", self.stdout);
        self
    }
}

/// What an agent plays.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    /// Events of the one operation, in order; the last is the end.
    pub(crate) events: Vec<v1::OperationEvent>,
    /// Between two events.
    pub(crate) pace: Duration,
    /// What a start answers instead of starting.
    pub(crate) refusal: Option<Failure>,
    /// What a start finds.
    pub(crate) checks: Vec<v1::Check>,
    /// What a dry run plans.
    pub(crate) planned: Vec<v1::PlannedTable>,
    /// What is answered about schemas.
    pub(crate) schemas: Schemas,
}

impl Script {
    /// An initialization that copies `tables` tables and ends with `status`.
    pub(crate) fn initialization(tables: u32, status: &str) -> Self {
        let mut events = vec![milestone("init.started", |_| {})];
        for table in 1..=tables {
            let percent = f64::from(table) * 100.0 / f64::from(tables);
            events.push(event(What::Progress(progress(table - 1, tables, percent * 0.9))));
            events.push(milestone("init.table_complete", |milestone| {
                milestone.phase = "copy".into();
                milestone.table = format!("public.t{table}");
                milestone.rows_copied = Some(1_000);
                milestone.overall_percent = percent;
            }));
        }
        let failure = (status == "failed").then(|| {
            let failure =
                Failure::new(Code::CountsDiffer, "row counts differ in public.t1").cause("1000 here, 999 there");
            v1::Failure::from(&failure)
        });
        let end = format!("init.{status}");
        events.push(milestone(&end, |milestone| {
            milestone.failure = failure.clone();
            milestone.rows_copied = Some(u64::from(tables) * 1_000);
        }));
        events.push(event(What::Ended(v1::Operation { failure, ..operation(status, None) })));
        let (checks, planned) = Default::default();
        Self { events, pace: Duration::ZERO, refusal: None, checks, planned, schemas: Schemas::default() }
    }

    #[must_use]
    pub(crate) fn paced(mut self, millis: u64) -> Self {
        self.pace = Duration::from_millis(millis);
        self
    }
}

pub(crate) const OP: &str = "0192f3ac-7d21-7c4e-9f0a-3d0c5b1e77aa";

fn now() -> Option<prost_types::Timestamp> {
    let now = Timestamp::now();
    Some(prost_types::Timestamp { seconds: now.as_second(), nanos: now.subsec_nanosecond() })
}

pub(crate) fn operation(status: &str, progress: Option<v1::Progress>) -> v1::Operation {
    v1::Operation {
        op_id: OP.into(),
        kind: "init".into(),
        target: "node_b".into(),
        source: "node_a".into(),
        method: "direct".into(),
        status: status.into(),
        step: "copy tables".into(),
        started_by: "alice (admin)".into(),
        started_at: now(),
        ended_at: if status == "running" { None } else { now() },
        failure: None,
        progress,
    }
}

fn event(what: What) -> v1::OperationEvent {
    v1::OperationEvent { cursor: 0, at: now(), what: Some(what) }
}

fn milestone(name: &str, fill: impl FnOnce(&mut v1::Milestone)) -> v1::OperationEvent {
    let mut milestone = v1::Milestone { event: name.into(), ..Default::default() };
    fill(&mut milestone);
    event(What::Milestone(milestone))
}

fn progress(done: u32, tables: u32, percent: f64) -> v1::Progress {
    let bytes = |percent: f64| (percent * 1e7) as u64;
    let workers = (1..=2).map(|worker| v1::WorkerProgress {
        worker,
        table: format!("public.t{}", done + worker),
        table_percent: percent,
        table_bytes: bytes(percent / 4.0),
        table_bytes_expected: bytes(25.0),
        rows_per_second: 120_000.0,
        bytes_per_second: 4e7,
    });
    v1::Progress {
        phase: if done == tables { "verify" } else { "copy" }.into(),
        overall_percent: percent,
        tables_total: tables,
        tables_done: done,
        rows_copied: u64::from(done) * 1_000,
        bytes_copied: bytes(percent),
        bytes_expected: bytes(100.0),
        rows_per_second: 240_000.0,
        bytes_per_second: 8e7,
        eta_seconds: Some((100.0 - percent) as u64),
        workers: if done == tables { Vec::new() } else { workers.collect() },
        retained_wal_bytes: 5 << 20,
        indexes_total: 4,
        indexes_done: 1,
    }
}

/// An agent at work; dropping it is a crash.
pub(crate) struct ScriptedAgent {
    runtime: Option<Runtime>,
    pub(crate) address: String,
    state: Arc<State>,
}

struct State {
    script: Script,
    /// When the operation began; nothing before a start.
    began: Mutex<Option<tokio::time::Instant>>,
    cancelled: Mutex<bool>,
    asked: Mutex<Vec<v1::StartNodeRequest>>,
    compared: Mutex<Vec<v1::CompareSchemasRequest>>,
    synced: Mutex<Vec<(v1::SyncSchemaRequest, v1::Intent)>>,
}

impl ScriptedAgent {
    pub(crate) fn start(mesh: &Mesh, script: Script) -> Self {
        let (began, cancelled, asked, compared, synced) = Default::default();
        let state = Arc::new(State { script, began, cancelled, asked, compared, synced });
        Self::serve(mesh, "127.0.0.1:0", state)
    }

    /// What was asked of `node start`, in order.
    pub(crate) fn asked(&self) -> Vec<v1::StartNodeRequest> {
        self.state.asked.lock().expect("no panic").clone()
    }

    /// Ends the agent; `start_again` on the result brings it back on its port, as if it had remembered all.
    pub(crate) fn crash(mut self) -> Crashed {
        drop(self.runtime.take());
        Crashed { address: self.address.clone(), state: Arc::clone(&self.state) }
    }

    fn serve(mesh: &Mesh, address: &str, state: Arc<State>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let identity = mesh.identity();
        let (told, bound) = oneshot::channel();
        let (address, serving) = (address.to_owned(), Arc::clone(&state));
        // It ends with the runtime.
        drop(runtime.spawn(async move {
            let (endpoint, arrivals) = Endpoint::bind(&address, identity).await.expect("a free port");
            told.send(endpoint.address().to_string()).expect("somebody waits");
            let routes = Routes::new(NodesServer::from_arc(Arc::new(Played(Arc::clone(&serving)))))
                .add_service(OperationsServer::from_arc(Arc::new(Played(Arc::clone(&serving)))))
                .add_service(SchemasServer::from_arc(Arc::new(Played(serving))));
            let served = rpc::serve(routes, arrivals.rpc, std::future::pending()).await;
            served.expect("served");
        }));
        let address = runtime.block_on(bound).expect("the address");
        Self { runtime: Some(runtime), address, state }
    }
}

/// An agent that is gone, with what it would remember.
pub(crate) struct Crashed {
    address: String,
    state: Arc<State>,
}

impl Crashed {
    pub(crate) fn start_again(self, mesh: &Mesh) -> ScriptedAgent {
        ScriptedAgent::serve(mesh, &self.address, self.state)
    }
}

struct Played(Arc<State>);

fn headline(node: &str, state: &str, health: &str) -> v1::NodeHeadline {
    v1::NodeHeadline {
        node_id: node.into(),
        state: state.into(),
        health: health.into(),
        postgres_version: "18.4".into(),
        agent_version: "0.1.0".into(),
        address: "127.0.0.1:7432".into(),
        postgres_address: "/run/postgresql".into(),
        as_of: now(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl Nodes for Played {
    async fn list(&self, _: Request<v1::ListNodesRequest>) -> Result<Response<v1::ListNodesReply>, Status> {
        let copying = v1::NodeHeadline {
            source_node: "node_a".into(),
            op_id: OP.into(),
            percent: Some(78.44),
            eta_seconds: Some(843),
            ..headline("node_b", "copying", "busy")
        };
        let failed = v1::NodeHeadline {
            health_reason: "slot lost".into(),
            lag_bytes: Some(4096),
            as_of: None,
            ..headline("node_c", "failed", "error")
        };
        let nodes = vec![failed, copying, headline("node_a", "synchronized", "ok")];
        Ok(Response::new(v1::ListNodesReply { served_by: "node_a".into(), mesh: "acme".into(), nodes }))
    }

    async fn get(&self, request: Request<v1::GetNodeRequest>) -> Result<Response<v1::GetNodeReply>, Status> {
        let asked = request.into_inner().node_id;
        if !asked.starts_with("node_") {
            let failure = Failure::new(Code::UnknownNode, format!("there is no node {asked}"));
            return Err(rpc::status_of(&failure));
        }
        let is_failed = asked.starts_with("node_c");
        let failure = Failure::new(Code::SlotLost, "the slot for node_c\u{1b}[2J was lost").cause("wal_removed");
        let running = self.0.began.lock().expect("no panic").is_some();
        Ok(Response::new(v1::GetNodeReply {
            served_by: "node_a".into(),
            headline: Some(v1::NodeHeadline {
                source_node: "node_a".into(),
                op_id: if running { OP.into() } else { String::new() },
                ..headline(
                    &asked,
                    if is_failed { "failed" } else { "synchronized" },
                    if is_failed { "error" } else { "ok" },
                )
            }),
            subscriptions: vec![v1::SubscriptionView {
                name: "steep_from_node_a".into(),
                source_node: "node_a".into(),
                enabled: true,
                lag_bytes: Some(0),
                apply_errors: 0,
                mutual: true,
            }],
            slots: vec![v1::SlotView {
                name: "steep_node_a".into(),
                target_node: "node_a".into(),
                active: true,
                retained_bytes: 1 << 20,
                wal_status: "reserved".into(),
            }],
            system_identifier: 7_710_788_945_299_280_709,
            database: "postgres".into(),
            last_failure: is_failed.then(|| (&failure).into()),
            init_started_at: now(),
            init_completed_at: now(),
        }))
    }

    async fn start(&self, request: Request<v1::StartNodeRequest>) -> Result<Response<v1::StartNodeReply>, Status> {
        let request = request.into_inner();
        self.0.asked.lock().expect("no panic").push(request.clone());
        if let Some(refusal) = &self.0.script.refusal {
            return Err(rpc::status_of(refusal));
        }
        let mut reply = v1::StartNodeReply {
            served_by: "node_b".into(),
            method: "direct".into(),
            method_reason: "the target is empty".into(),
            checks: self.0.script.checks.clone(),
            ..Default::default()
        };
        if request.dry_run {
            reply.tables = self.0.script.planned.clone();
        } else {
            reply.op_id = OP.into();
            *self.0.began.lock().expect("no panic") = Some(tokio::time::Instant::now());
        }
        Ok(Response::new(reply))
    }

    async fn cancel(&self, _: Request<v1::CancelNodeRequest>) -> Result<Response<v1::CancelNodeReply>, Status> {
        *self.0.cancelled.lock().expect("no panic") = true;
        Ok(Response::new(v1::CancelNodeReply { served_by: "node_b".into(), op_id: OP.into() }))
    }

    async fn remove(&self, _: Request<v1::RemoveNodeRequest>) -> Result<Response<v1::RemoveNodeReply>, Status> {
        Ok(Response::new(v1::RemoveNodeReply { served_by: "node_b".into(), op_id: OP.into() }))
    }

    async fn reinit(&self, request: Request<v1::ReinitNodeRequest>) -> Result<Response<v1::ReinitNodeReply>, Status> {
        let mut reply = v1::ReinitNodeReply {
            served_by: "node_b".into(),
            checks: self.0.script.checks.clone(),
            ..Default::default()
        };
        if request.into_inner().dry_run {
            reply.tables = self.0.script.planned.clone();
        } else {
            reply.op_id = OP.into();
            *self.0.began.lock().expect("no panic") = Some(tokio::time::Instant::now());
        }
        Ok(Response::new(reply))
    }
}

#[tonic::async_trait]
impl Operations for Played {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::OperationEvent, Status>> + Send>>;

    async fn list(&self, _: Request<v1::ListOperationsRequest>) -> Result<Response<v1::ListOperationsReply>, Status> {
        Ok(Response::new(v1::ListOperationsReply {
            served_by: "node_a".into(),
            operations: vec![operation("running", Some(progress(1, 4, 25.0)))],
            missing_nodes: vec!["node_c".into()],
        }))
    }

    async fn get(&self, request: Request<v1::GetOperationRequest>) -> Result<Response<v1::GetOperationReply>, Status> {
        if !OP.starts_with(&request.into_inner().op_id) {
            return Err(rpc::status_of(&Failure::new(Code::OperationUnknown, "there is no such operation")));
        }
        let step = v1::OperationStep { name: "check both nodes".into(), status: "done".into(), ..Default::default() };
        Ok(Response::new(v1::GetOperationReply {
            served_by: "node_b".into(),
            operation: Some(operation("running", Some(progress(1, 4, 25.0)))),
            steps: vec![step],
            start: None,
        }))
    }

    async fn watch(&self, request: Request<v1::WatchOperationRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let state = Arc::clone(&self.0);
        let after = request.into_inner().after;
        let began = *state.began.lock().expect("no panic").get_or_insert_with(tokio::time::Instant::now);
        let played = stream::unfold(after, move |cursor| {
            let state = Arc::clone(&state);
            async move { next(&state, began, cursor).await }
        });
        Ok(Response::new(played.map(Ok).boxed()))
    }

    async fn cancel(
        &self,
        _: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationReply>, Status> {
        *self.0.cancelled.lock().expect("no panic") = true;
        Ok(Response::new(v1::CancelOperationReply { served_by: "node_b".into(), op_id: OP.into() }))
    }
}

/// The event after `cursor`, when its time has come; a cancelled operation ends instead.
async fn next(state: &State, began: tokio::time::Instant, cursor: u64) -> Option<(v1::OperationEvent, u64)> {
    let index = usize::try_from(cursor).expect("few events");
    let mut event = state.script.events.get(index)?.clone();
    let due = began + state.script.pace * u32::try_from(index).expect("few events");
    while tokio::time::Instant::now() < due && !*state.cancelled.lock().expect("no panic") {
        tokio::time::sleep_until(due.min(tokio::time::Instant::now() + Duration::from_millis(20))).await;
    }
    event.at = now();
    event.cursor = cursor + 1;
    if *state.cancelled.lock().expect("no panic") {
        event.cursor = state.script.events.len() as u64;
        event.what = Some(What::Ended(operation("cancelled", None)));
    }
    let cursor = event.cursor;
    Some((event, cursor))
}

/// Waits until `path`'s text contains `text`, and fails with what it holds after a while.
pub(crate) fn wait_for(path: &Path, text: &str) {
    for _ in 0..400 {
        if fs::read_to_string(path).is_ok_and(|found| found.contains(text)) {
            return;
        }
        #[expect(clippy::disallowed_methods, reason = "the test has this thread to itself")]
        std::thread::sleep(Duration::from_millis(25));
    }
    panic!("no {text:?} in:\n{}", fs::read_to_string(path).unwrap_or_default());
}
