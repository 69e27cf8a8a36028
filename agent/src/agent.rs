//! The life story of one run: read who we are, listen, reach PostgreSQL, clean up after the run before, serve,
//! and leave nothing running when told to end.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    node::NodeState,
    operation::OperationStatus,
    wire::{
        endpoint::{Arrivals, Endpoint},
        rpc,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use crate::{
    api::{
        Door,
        http::{self, Web},
    },
    breakpoint::Breakpoints,
    cleanup::{Cleanup, held_tables},
    config::Config,
    drift::{Drift, watch as drift_watch},
    health::watcher,
    identity::Certificates,
    initialize::{adopt, prepare, reinit, resume, two_phase::shelf},
    keeper::Keepers,
    lifecycle::NodeEvent,
    link::{self, Links, Publisher},
    mesh::{Facts, Peers, Revocations},
    metrics::Metrics,
    mirror,
    operations::Operations,
    postgres::{Database, PostgresConfig},
    removal::spread,
    rooms::Rooms,
    session::{Sessions, Snapshots},
    slots,
    snapshot::send::Sender,
    store::{self, Actor, Owner, Store, denials::Denials, nodes, steps::StepStatus},
    telemetry,
    troubles::Troubles,
    upkeep::{Upkeep, measures},
    vitals,
};

/// How often the node is looked at.
const VITALS: Duration = Duration::from_secs(1);
/// The janitor looks for what ended operations left behind no more often than that, whatever is configured.
const SOONEST: Duration = Duration::from_secs(1);
/// How long after a peer has come back he looks as well.
const SETTLED: Duration = Duration::from_secs(2);
/// How long another agent may hold the database when we start: a killed one's connection lingers for a moment.
const TAKE_OVER: Duration = Duration::from_secs(15);

/// What a run of the agent is for.
#[derive(Debug, Clone)]
pub enum Task {
    /// To look after the node until it is told to end.
    Serve,
    /// To take the physical copy over that was made for the preparation of this id.
    AdoptCopy(String),
}

/// Runs the agent until its task is done, or it is told to end, or finds that it must not run at all.
pub async fn run(config: Config, log: telemetry::Log, task: Task) -> Result<(), Failure> {
    let config = Arc::new(config);
    let identity = config.identity().map_err(|error| error.explain())?;
    let (revocations, claims) = Revocations::open(identity.clone(), &config.node.state_dir);
    let certificates = Certificates::new(Arc::clone(&config), identity.clone(), revocations.clone());
    let me = config.node.id.clone();
    let (endpoint, arrivals) = Endpoint::bind_for(&config.mesh.listen, Arc::new(identity), config.mesh.transport)
        .await
        .map_err(|error| error.explain())?;
    let http = http::bind(config.http.listen).await?;
    let instance_id = log.instance_id().to_owned();
    let upkeep = Upkeep::new(Arc::clone(&config), log, certificates.clone());
    let address = config.advertised(endpoint.address().port());
    let headline = vitals::bare(me.as_str(), &address);
    let facts = watch::Sender::new(Facts { instance_id, headline, ..Facts::default() });
    let peers = Peers::new(endpoint.clone(), me.clone(), address, &config.mesh.seeds, facts.subscribe(), revocations);
    let rooms = watch::Sender::new(None);
    info!(event = "agent.started", details.listen = %endpoint.address(), details.mesh = %peers.mesh(), "agent started");

    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let Arrivals { rpc: calls, bulk, link, connections } = arrivals;
    let links = Links::new(&config, peers.clone(), stop.child_token());
    let door = Door::new(peers.clone(), rooms.subscribe(), upkeep.clone(), stop.clone());
    let serving = rpc::serve(door.routes(), calls, stop.clone().cancelled_owned());
    tasks.spawn(async move {
        if let Err(error) = serving.await {
            error!(reason = %error, "the gRPC server ended");
        }
    });
    let web = Web { peers: peers.clone(), rooms: rooms.subscribe(), upkeep: upkeep.clone() };
    tasks.spawn(http::serve(http, web, stop.clone()));
    let (reloading, stopped) = (upkeep.clone(), stop.clone());
    tasks.spawn(async move { stopped.run_until_cancelled(told_to_reload(&reloading)).await });
    tasks.spawn(peers.clone().run(connections, stop.clone()));
    tasks.spawn(claims.run(peers.clone(), stop.clone()));
    tasks.spawn(certificates.run(peers.clone(), stop.clone()));
    let metrics = upkeep.metrics.clone();
    tasks.spawn(serve_bulk(bulk, rooms.subscribe(), door.denials().clone(), metrics, stop.clone()));
    tasks.spawn(serve_links(link, rooms.subscribe(), stop.clone()));

    let ended = tokio::select! {
        ended = live(&upkeep, &peers, &links, &facts, &rooms, &task) => ended,
        () = told_to_end() => Ok(()),
    };
    info!(event = "agent.stopping", "agent stops");
    let wound_up = async {
        if let Some(rooms) = rooms.borrow().clone() {
            wind_up(&rooms).await;
        }
        peers.leave();
        stop.cancel();
        links.ended().await;
        endpoint.close().await;
        tasks.close();
        tasks.wait().await;
    };
    tokio::select! {
        () = wound_up => {}
        () = told_to_end() => warn!(event = "agent.stopping", "told twice: ends at once"),
    }
    ended
}

/// Reaches PostgreSQL, cleans up after the run before, then looks after the node for ever; or does its task.
async fn live(
    upkeep: &Upkeep,
    peers: &Peers,
    links: &Links,
    facts: &watch::Sender<Facts>,
    rooms: &watch::Sender<Option<Arc<Rooms>>>,
    task: &Task,
) -> Result<(), Failure> {
    let config = &upkeep.config;
    let database = Database::new(PostgresConfig::of(&config.postgres));
    if let Task::AdoptCopy(id) = task {
        return Box::pin(adopt::adopt(&database, peers, id)).await.map(|told| telemetry::say(&told));
    }
    let owner = Owner { node: config.node.id.clone(), mesh: peers.mesh().clone() };
    let store = reach_postgres(&database, &owner, links, facts).await?;
    let identity = store.identity();
    facts.send_modify(|facts| {
        facts.system_identifier = identity.system_identifier;
        facts.database = identity.database.clone();
    });
    mirror::recall(&store, peers).await.map_err(|error| error.explain())?;
    let keepers = Keepers::new(config);
    let cleanup =
        Cleanup::new(store.clone(), database.clone(), peers.clone(), links.clone(), &keepers, &config.snapshots);
    look_after_links(links, &database).await;
    let snapshots = Snapshots::new(keepers);
    let breakpoints = Breakpoints::new(&config.node.state_dir);
    let made = Arc::new(Rooms {
        me: config.node.id.clone(),
        config: Arc::clone(config),
        sessions: Sessions::new(database.clone(), cleanup.clone(), &snapshots, &config.copy, breakpoints.clone()),
        snapshots,
        operations: Operations::new(store.clone(), breakpoints, upkeep.metrics.clone()),
        links: links.clone(),
        publisher: Publisher::new(database.clone(), store.clone(), links),
        drift: Drift::new(config.node.id.clone(), store.clone(), peers.clone()),
        troubles: Troubles::default(),
        store,
        database,
        peers: peers.clone(),
        cleanup,
    });
    recover(&made).await?;
    rooms.send_replace(Some(Arc::clone(&made)));
    info!(event = "agent.ready", "PostgreSQL is reached");
    tokio::join!(
        watch_vitals(&made, facts, upkeep),
        janitor(&made),
        mirror::keep(&made.store, peers),
        spread::run(&made),
        drift_watch::keep(&made.drift, &upkeep.metrics),
        watcher::keep(&made, &upkeep.metrics),
        orphans(&made, &upkeep.metrics),
        measures::keep(&made, &upkeep.metrics)
    );
    Ok(())
}

/// Opens the store, waiting for PostgreSQL as long as it takes; gives up only on what waiting cannot mend.
///
/// Sockets of links are there as soon as PostgreSQL answers: its walreceivers wait for them.
async fn reach_postgres(
    database: &Database,
    owner: &Owner,
    links: &Links,
    facts: &watch::Sender<Facts>,
) -> Result<Store, Failure> {
    let began = tokio::time::Instant::now();
    let mut pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(10))
        .without_max_times()
        .build();
    loop {
        // Where the database turns out not to be ours, neither are its links: they were made by its own agent, elsewhere.
        drop(links.restore(database, false).await);
        let failure = match Store::open(database.clone(), owner.clone()).await {
            Ok(store) => return Ok(store),
            Err(error) => error.explain(),
        };
        let lingering = failure.code == Code::NodeIdTaken && began.elapsed() < TAKE_OVER;
        if !failure.retryable && !lingering {
            return Err(failure);
        }
        let pause = pauses.next().unwrap_or(Duration::from_secs(10));
        warn!(
            event = "agent.waiting",
            error = telemetry::failure(&failure),
            details.retry_ms = pause.as_millis() as u64,
            "PostgreSQL is not ready for this agent yet; trying again"
        );
        facts.send_modify(|facts| facts.headline.health_reason = failure.message.clone());
        sleep(pause).await;
    }
}

/// Goes on with what the run before left unfinished, or ends it: marked failed, and everything it made undone.
async fn recover(rooms: &Rooms) -> Result<(), Failure> {
    let explain = |error: store::Error| error.explain();
    let actor = Actor::agent(&rooms.me);
    // Before anybody can ask for one: there must be no moment in which a session that goes on is unknown.
    rooms.sessions.take_up().await?;
    for unfinished in store::operations::unfinished(&rooms.store).await.map_err(explain)? {
        let op = unfinished.op_id;
        if Box::pin(resume::go_on(rooms, &unfinished)).await? {
            continue;
        }
        warn!(event = "init.interrupted", op_id = %op, "an operation was cut off by the end of the agent; cleaning up");
        let was_cancelled = unfinished.status == OperationStatus::Cancelling;
        let is_init = unfinished.kind == "init";
        let hint = match unfinished.kind.as_str() {
            "init" => format!("steepctl node resume {} starts it anew", unfinished.target),
            "reinit" => format!("steepctl node reinit {} --source {} …", unfinished.target, unfinished.source),
            "snapshot" => format!("steepctl snapshot generate {} --dir DIR", unfinished.target),
            kind => format!("steepctl node {kind} {}", unfinished.target),
        };
        let mut why = match was_cancelled {
            true => Failure::new(Code::Cancelled, "cancelled; the agent ended before all was undone"),
            false => Failure::new(Code::Interrupted, "the agent ended while the operation ran").hint(hint),
        };
        if unfinished.kind == "snapshot" {
            // Taken up before; it was for this operation alone.
            rooms.sessions.end(op).await;
            shelf::cut_off(rooms, op).await?;
        }
        if let Err(failure) = rooms.cleanup.undo(op).await {
            why = Failure { code: Code::Interrupted, ..why }
                .cause(format!("not everything could be cleaned up yet, it will be tried again: {}", failure.message));
        }
        let own = nodes::own(&rooms.store).await.map_err(explain)?;
        if own.init_state.is_active() {
            let event = match own.init_state {
                // Its other tables have replicated all the time.
                NodeState::Reinitializing => {
                    let was = unfinished.request["was"].as_str().and_then(|was| was.parse().ok());
                    reinit::state_after(
                        !held_tables(&rooms.database).await?.is_empty(),
                        was.unwrap_or(NodeState::Failed),
                    )
                }
                _ if why.code == Code::Cancelled => NodeEvent::Undone,
                _ => NodeEvent::Failed,
            };
            nodes::advance(&rooms.store, event, Some(op), &actor).await.map_err(explain)?;
        }
        store::notes::forget(&rooms.store, op).await.map_err(explain)?;
        if is_init {
            nodes::set_source(&rooms.store, None).await.map_err(explain)?;
        }
        for step in store::steps::list(&rooms.store, op).await.map_err(explain)? {
            if step.status == StepStatus::Running {
                store::steps::mark(&rooms.store, op, &step.name, StepStatus::Failed).await.map_err(explain)?;
            }
        }
        let status = if why.code == Code::Cancelled { OperationStatus::Cancelled } else { OperationStatus::Failed };
        store::operations::finish(&rooms.store, op, status, Some(&why)).await.map_err(explain)?;
    }
    prepare::take_up(rooms).await?;
    shelf::end_left(rooms).await;
    // What peers had this node make for them, where their session is lost.
    sweep(rooms).await?;
    rooms.sessions.end_strays().await;
    tell_standstill(rooms).await
}

/// What an undo finished late may have left tables that stand still: then the node has diverged.
async fn tell_standstill(rooms: &Rooms) -> Result<(), Failure> {
    let explain = |error: store::Error| error.explain();
    let own = nodes::own(&rooms.store).await.map_err(explain)?;
    if own.init_state != NodeState::Synchronized || held_tables(&rooms.database).await?.is_empty() {
        return Ok(());
    }
    warn!(event = "init.state_change", previous_state = "synchronized", new_state = "diverged", "tables stand still");
    nodes::advance(&rooms.store, NodeEvent::Diverged, None, &Actor::agent(&rooms.me)).await.map_err(explain).map(drop)
}

async fn watch_vitals(rooms: &Rooms, facts: &watch::Sender<Facts>, upkeep: &Upkeep) {
    let mut tick = interval(VITALS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = None;
    let mut was_well = true;
    loop {
        tick.tick().await;
        let (mut headline, is_serving) = vitals::headline(rooms, &mut look).await;
        upkeep.drain.tell(&mut headline);
        vitals::date(&mut headline, &facts.borrow().headline);
        let is_well = headline.health != "error";
        match (was_well, is_well) {
            (true, false) => {
                warn!(event = "agent.unwell", reason = headline.health_reason.as_str(), "the node is not well")
            }
            (false, true) => info!(event = "agent.well", "the node is well again"),
            _ => {}
        }
        was_well = is_well;
        facts.send_modify(|facts| {
            facts.headline = headline;
            facts.is_serving = is_serving;
        });
    }
}

/// Tells of slots that nobody needs; they are dropped by nobody but an operator.
async fn orphans(rooms: &Rooms, metrics: &Metrics) {
    let mut tick = interval(rooms.config.cleanup.every.max(SOONEST));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Vec::new();
    loop {
        tick.tick().await;
        match slots::list(rooms).await {
            Ok(listed) => {
                let found: Vec<_> = listed.iter().filter(|listed| listed.purpose == slots::Purpose::Orphan).collect();
                metrics.slot_orphans.of([]).set(found.len() as f64);
                for orphan in found.iter().filter(|orphan| !told.contains(&orphan.slot.name)) {
                    warn!(
                        event = "slot.orphan_found",
                        slot = orphan.slot.name,
                        reason = orphan.why,
                        details.retained_bytes = orphan.slot.progress.retained_bytes,
                        "a slot is needed by nobody"
                    );
                }
                told = found.iter().map(|orphan| orphan.slot.name.clone()).collect();
            }
            Err(failure) => {
                metrics.slot_orphans.clear();
                debug!(reason = %failure, "slots could not be looked at");
            }
        }
    }
}

async fn janitor(rooms: &Rooms) {
    let mut tick = interval(rooms.config.cleanup.every.max(SOONEST));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut arrivals = rooms.peers.arrivals();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // Whoever was away may have been what an undo was waiting for; its connection settles first.
            Ok(()) = arrivals.changed() => sleep(SETTLED).await,
        }
        if let Err(failure) = sweep(rooms).await {
            warn!(event = "agent.cleanup", error = telemetry::failure(&failure), "the janitor could not look");
        }
        rooms.sessions.end_strays().await;
        if let Err(failure) = shelf::expire(rooms).await {
            warn!(
                event = "agent.cleanup",
                error = telemetry::failure(&failure),
                "the janitor could not look at snapshots"
            );
        }
        if let Err(failure) = tell_standstill(rooms).await {
            warn!(event = "agent.cleanup", error = telemetry::failure(&failure), "the janitor could not look");
        }
        look_after_links(&rooms.links, &rooms.database).await;
    }
}

async fn sweep(rooms: &Rooms) -> Result<(), Failure> {
    prepare::expire(rooms).await?;
    let kept = prepare::kept(rooms).await?;
    let is_running = |op| rooms.sessions.serves(op) || rooms.operations.is_running(op) || kept.contains(&op);
    rooms.cleanup.sweep(is_running).await
}

/// Links follow their subscriptions, also those that were dropped by hand.
async fn look_after_links(links: &Links, database: &Database) {
    if let Err(failure) = links.restore(database, true).await {
        warn!(event = "agent.cleanup", error = telemetry::failure(&failure), "links could not be looked after");
    }
}

async fn serve_bulk(
    mut arrivals: mpsc::Receiver<steep_protocol::wire::io::Io>,
    rooms: watch::Receiver<Option<Arc<Rooms>>>,
    denials: Denials,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let streams = TaskTracker::new();
    while let Some(Some(io)) = stop.run_until_cancelled(arrivals.recv()).await {
        // Without rooms there can be no session to read from; dropping the stream says so.
        let Some(rooms) = rooms.borrow().clone() else { continue };
        let sender = Sender::new(
            rooms.sessions.clone(),
            rooms.peers.clone(),
            rooms.database.clone(),
            rooms.store.clone(),
            denials.clone(),
            metrics.clone(),
        );
        let stop = stop.clone();
        streams.spawn(async move { stop.run_until_cancelled(sender.serve(io)).await });
    }
    streams.close();
    streams.wait().await;
}

async fn serve_links(
    mut arrivals: mpsc::Receiver<steep_protocol::wire::io::Io>,
    rooms: watch::Receiver<Option<Arc<Rooms>>>,
    stop: CancellationToken,
) {
    let streams = TaskTracker::new();
    while let Some(Some(io)) = stop.run_until_cancelled(arrivals.recv()).await {
        let publisher = rooms.borrow().as_ref().map(|rooms| rooms.publisher.clone());
        let stop = stop.clone();
        streams.spawn(async move {
            let served = async {
                match publisher {
                    Some(publisher) => publisher.serve(io).await,
                    None => link::not_yet(io).await,
                }
            };
            Box::pin(stop.run_until_cancelled(served)).await
        });
    }
    streams.close();
    streams.wait().await;
}

/// Leaves operations that can be gone on with, and sessions of peers, to the next run of the agent; ends all others.
async fn wind_up(rooms: &Rooms) {
    rooms.operations.drain().await;
    rooms.sessions.leave().await;
}

/// Reads the configuration again at every SIGHUP.
#[cfg(unix)]
async fn told_to_reload(upkeep: &Upkeep) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup()).expect("signals can be listened for");
    while hangup.recv().await.is_some() {
        // What is wrong stands in the log.
        let _ = upkeep.reload();
    }
}

#[cfg(not(unix))]
async fn told_to_reload(_: &Upkeep) {
    std::future::pending::<()>().await;
}

#[cfg(unix)]
async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened for");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

#[cfg(not(unix))]
async fn told_to_end() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
