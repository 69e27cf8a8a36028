//! The life story of one run: read who we are, listen, reach PostgreSQL, clean up after the run before, serve,
//! and leave nothing running when told to end.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::SessionId,
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
use tracing::{error, info, warn};

use crate::{
    api::{Door, http},
    cleanup::Cleanup,
    config::Config,
    lifecycle::NodeEvent,
    mesh::{Facts, Peers},
    operations::Operations,
    postgres::{Database, PostgresConfig},
    rooms::Rooms,
    session::Sessions,
    snapshot::send::Sender,
    store::{self, Actor, Owner, Store, nodes, steps::StepStatus},
    telemetry, vitals,
};

/// How often the node is looked at.
const VITALS: Duration = Duration::from_secs(1);
/// How often the janitor looks for what ended operations left behind.
const JANITOR: Duration = Duration::from_secs(60);
/// How long another agent may hold the database when we start: a killed one's connection lingers for a moment.
const TAKE_OVER: Duration = Duration::from_secs(15);

/// Runs the agent until it is told to end, or finds that it must not run at all.
pub async fn run(config: Config) -> Result<(), Failure> {
    let config = Arc::new(config);
    let identity = config.identity().map_err(|error| error.explain())?;
    let me = config.node.id.clone();
    let (endpoint, arrivals) = Endpoint::bind_for(&config.mesh.listen, Arc::new(identity), config.mesh.transport)
        .await
        .map_err(|error| error.explain())?;
    let http = http::bind(config.http.listen).await?;
    let instance_id = SessionId::generate().to_string();
    let headline = vitals::bare(me.as_str(), config.advertised());
    let facts = watch::Sender::new(Facts { instance_id, headline, ..Facts::default() });
    let peers = Peers::new(endpoint.clone(), me.clone(), &config.mesh.peers, facts.subscribe());
    let rooms = watch::Sender::new(None);
    info!(event = "agent.started", details.listen = %endpoint.address(), details.mesh = %peers.mesh(), "agent started");

    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let Arrivals { rpc: calls, bulk, connections, .. } = arrivals;
    let door = Door::new(peers.clone(), rooms.subscribe());
    let serving = rpc::serve(door.routes(), calls, stop.clone().cancelled_owned());
    tasks.spawn(async move {
        if let Err(error) = serving.await {
            error!(reason = %error, "the gRPC server ended");
        }
    });
    tasks.spawn(http::serve(http, peers.clone(), stop.clone()));
    tasks.spawn(peers.clone().run(connections, stop.clone()));
    tasks.spawn(serve_bulk(bulk, rooms.subscribe(), stop.clone()));

    let ended = tokio::select! {
        ended = live(&config, &peers, &facts, &rooms) => ended,
        () = told_to_end() => Ok(()),
    };
    info!(event = "agent.stopping", "agent stops");
    let wound_up = async {
        if let Some(rooms) = rooms.borrow().clone() {
            wind_up(&rooms).await;
        }
        stop.cancel();
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

/// Reaches PostgreSQL, cleans up after the run before, then looks after the node for ever.
async fn live(
    config: &Arc<Config>,
    peers: &Peers,
    facts: &watch::Sender<Facts>,
    rooms: &watch::Sender<Option<Arc<Rooms>>>,
) -> Result<(), Failure> {
    let database = Database::new(PostgresConfig {
        host: config.postgres.host.clone(),
        port: config.postgres.port,
        dbname: config.postgres.dbname.clone(),
        user: config.postgres.user.clone(),
        passfile: config.postgres.passfile.clone(),
        bin_dir: config.postgres.bin_dir.clone(),
    });
    let owner = Owner { node: config.node.id.clone(), mesh: peers.mesh().clone() };
    let store = reach_postgres(&database, &owner, facts).await?;
    let identity = store.identity();
    facts.send_modify(|facts| {
        facts.system_identifier = identity.system_identifier;
        facts.database = identity.database.clone();
    });
    let cleanup = Cleanup::new(store.clone(), database.clone(), peers.clone());
    let made = Arc::new(Rooms {
        me: config.node.id.clone(),
        config: Arc::clone(config),
        sessions: Sessions::new(database.clone(), cleanup.clone(), config.copy.clone()),
        operations: Operations::new(store.clone(), &config.node.state_dir),
        store,
        database,
        peers: peers.clone(),
        cleanup,
    });
    recover(&made).await?;
    rooms.send_replace(Some(Arc::clone(&made)));
    info!(event = "agent.ready", "PostgreSQL is reached");
    tokio::join!(watch_vitals(&made, facts), janitor(&made));
    Ok(())
}

/// Opens the store, waiting for PostgreSQL as long as it takes; gives up only on what waiting cannot mend.
async fn reach_postgres(database: &Database, owner: &Owner, facts: &watch::Sender<Facts>) -> Result<Store, Failure> {
    let began = tokio::time::Instant::now();
    let mut pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(10))
        .without_max_times()
        .build();
    loop {
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

/// Ends what the run before left unfinished: marked failed, and everything it made undone.
async fn recover(rooms: &Rooms) -> Result<(), Failure> {
    let explain = |error: store::Error| error.explain();
    let actor = Actor::agent(&rooms.me);
    for unfinished in store::operations::unfinished(&rooms.store).await.map_err(explain)? {
        let op = unfinished.op_id;
        warn!(event = "init.interrupted", op_id = %op, "an operation was cut off by the end of the agent; cleaning up");
        let mut why = Failure::new(Code::Interrupted, "the agent ended while the operation ran")
            .hint(format!("steepctl node start {} --from {}", unfinished.target, unfinished.source));
        if let Err(failure) = rooms.cleanup.undo(op).await {
            why = why
                .cause(format!("not everything could be cleaned up yet, it will be tried again: {}", failure.message));
        }
        if nodes::own(&rooms.store).await.map_err(explain)?.init_state.is_active() {
            nodes::advance(&rooms.store, NodeEvent::Failed, Some(op), &actor).await.map_err(explain)?;
        }
        nodes::set_source(&rooms.store, None).await.map_err(explain)?;
        for step in store::steps::list(&rooms.store, op).await.map_err(explain)? {
            if step.status == StepStatus::Running {
                store::steps::mark(&rooms.store, op, &step.name, StepStatus::Failed).await.map_err(explain)?;
            }
        }
        store::operations::finish(&rooms.store, op, OperationStatus::Failed, Some(&why)).await.map_err(explain)?;
    }
    // What peers had this node make for them; their operations cannot go on without the lost session.
    rooms.cleanup.sweep(|_| false).await
}

async fn watch_vitals(rooms: &Rooms, facts: &watch::Sender<Facts>) {
    let mut tick = interval(VITALS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = None;
    let mut was_well = true;
    loop {
        tick.tick().await;
        let (headline, is_serving) = vitals::headline(rooms, &mut look).await;
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

async fn janitor(rooms: &Rooms) {
    let mut tick = interval(JANITOR);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let is_running = |op| rooms.sessions.serves(op) || rooms.operations.is_running(op);
        if let Err(failure) = rooms.cleanup.sweep(is_running).await {
            warn!(event = "agent.cleanup", error = telemetry::failure(&failure), "the janitor could not look");
        }
    }
}

async fn serve_bulk(
    mut arrivals: mpsc::Receiver<steep_protocol::wire::io::Io>,
    rooms: watch::Receiver<Option<Arc<Rooms>>>,
    stop: CancellationToken,
) {
    let streams = TaskTracker::new();
    while let Some(Some(io)) = stop.run_until_cancelled(arrivals.recv()).await {
        // Without rooms there can be no session to read from; dropping the stream says so.
        let Some(rooms) = rooms.borrow().clone() else { continue };
        let sender = Sender::new(rooms.sessions.clone(), rooms.peers.clone(), rooms.database.clone());
        let stop = stop.clone();
        streams.spawn(async move { stop.run_until_cancelled(sender.serve(io)).await });
    }
    streams.close();
    streams.wait().await;
}

/// Ends operations and sessions so that nothing keeps WAL back while no agent looks after it.
async fn wind_up(rooms: &Rooms) {
    rooms.operations.drain().await;
    let open = rooms.sessions.operations();
    rooms.sessions.end_all().await;
    for op in open {
        if let Err(failure) = rooms.cleanup.undo(op).await {
            warn!(event = "agent.cleanup", op_id = %op, error = telemetry::failure(&failure), "left for the next start");
        }
    }
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
