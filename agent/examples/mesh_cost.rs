//! What a mesh costs and how fast it is: `cargo x bench mesh` runs this and prints what it prints.
//!
//! First many agents in memory, on a clock that jumps; then some dozens over real connections on loopback, which
//! steepctl is asked about; then some agents for minutes on cores that never rest.

#[path = "../tests/mesh/authority.rs"]
mod authority;
#[path = "../tests/mesh/fleet.rs"]
mod fleet;
#[expect(dead_code, reason = "tests ask it more")]
#[path = "../tests/mesh/network.rs"]
mod network;

use std::{
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fleet::Fleet;
use network::Network;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_secs(300);
const QUIET: Duration = Duration::from_secs(60);
/// Agents that have to get by on busy cores.
const SOAKED: usize = 10;
/// Nodes that are being initialized at once, at most.
const BUSY: usize = 10;

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let numbers = |at: usize, default: &[usize]| -> Vec<usize> {
        let named = words.get(at).map(|list| list.split(',').filter_map(|number| number.parse().ok()).collect());
        named.unwrap_or_else(|| default.to_vec())
    };
    let seed = words.get(2).and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "in memory, seed {seed}; seconds of the network's clock, bytes an agent sends with UDP, IP and QUIC"
    )?;
    writeln!(
        out,
        "{:>8} {:>6} {:>7} {:>9} {:>9} {:>8} {:>10} {:>7} {:>8} {:>8} {:>8} {:>8}",
        "members",
        "loss",
        "join",
        "join kB",
        "idle B/s",
        "idle p/s",
        "busy B/s",
        "exch/s",
        "change",
        "death",
        "heal",
        "wrongly"
    )?;
    for members in numbers(0, &[10, 50, 100, 200, 500, 1_000]) {
        for loss in [0.0, 0.05] {
            writeln!(out, "{}", simulated(members, loss, seed))?;
            out.flush()?;
        }
    }
    writeln!(out, "\nover QUIC on loopback, all in one process; seconds")?;
    writeln!(out, "{:>8} {:>7} {:>8} {:>9} {:>10}", "members", "join", "death", "goodbye", "status ms")?;
    for members in numbers(1, &[3, 50]) {
        writeln!(out, "{}", real(members))?;
        out.flush()?;
    }
    let minutes = words.get(3).and_then(|minutes| minutes.parse().ok()).unwrap_or(0);
    if minutes > 0 {
        writeln!(out, "\n{SOAKED} agents over QUIC for {minutes} min, each core busy with something else")?;
        writeln!(out, "{}", soaked(Duration::from_secs(60 * minutes)))?;
    }
    Ok(())
}

fn seconds(took: Option<Duration>) -> String {
    took.map_or_else(|| "never".into(), |took| format!("{:.1}", took.as_secs_f64()))
}

/// Joins, rests, works, loses one and is parted.
fn simulated(members: usize, loss: f64, seed: u64) -> String {
    let mut network = Network::new(members, seed);
    network.loss = loss;
    let joined = network.run_until(LIMIT, Network::is_whole);
    let join_bytes = network.bytes as f64 / members as f64 / 1e3;
    network.run(QUIET);
    let (before, packets) = (network.bytes, network.packets);
    network.run(QUIET);
    let idle = network.rate(before, QUIET);
    let idle_packets = (network.packets - packets) as f64 / QUIET.as_secs_f64() / members as f64;
    // One node in ten, ten at most, is being initialized and tells its percent every second.
    let (before, exchanges) = (network.bytes, network.exchanges);
    for second in 0..30 {
        (0..members)
            .step_by((members / BUSY).max(10))
            .for_each(|index| network.say(index, &format!("copying {second}")));
        network.run(Duration::from_secs(1));
    }
    let busy = network.rate(before, Duration::from_secs(30));
    let exchanges = (network.exchanges - exchanges) as f64 / 30.0 / members as f64;
    network.run(Duration::from_secs(5));
    network.say(3, "changed");
    let told = |network: &Network| {
        (0..members).filter(|at| *at != 3).all(|at| network.state_seen(at, 3).as_deref() == Some("changed"))
    };
    let changed = network.run_until(LIMIT, told);
    network.kill(members - 1);
    let noticed = network.run_until(LIMIT, |network| network.is_given_up(members - 1));
    network.restart(members - 1);
    network.run(QUIET);
    let wrongly = network.falsely_dead();
    network.split_at = Some(members / 2);
    network.run(QUIET);
    network.split_at = None;
    let healed = network.run_until(LIMIT, Network::is_whole);
    format!(
        "{members:>8} {:>5.0}% {:>7} {join_bytes:>9.0} {idle:>9.0} {idle_packets:>8.1} {busy:>10.0} {exchanges:>7.2} {:>8} {:>8} {:>8} {wrongly:>8}",
        loss * 100.0,
        seconds(joined),
        seconds(changed),
        seconds(noticed),
        seconds(healed),
    )
}

fn real(members: usize) -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads are granted");
    runtime.block_on(async {
        let (mut fleet, started) = Fleet::start(members).await;
        fleet.is_whole().await;
        let joined = started.elapsed();
        let status = status(&fleet).await;
        fleet.stop(members - 1, false).await;
        let died = fleet.sees(members - 1, "dead").await;
        fleet.restart(members - 1).await;
        fleet.is_whole().await;
        fleet.stop(members - 1, true).await;
        let left = fleet.sees(members - 1, "left").await;
        fleet.end().await;
        let [joined, died, left] = [joined, died, left].map(|took| format!("{:.2}", took.as_secs_f64()));
        format!("{members:>8} {joined:>7} {died:>8} {left:>9} {status:>10}")
    })
}

/// What `steepctl status` takes from one of the agents, half of 20 times; nothing where steepctl is not built.
async fn status(fleet: &Fleet) -> String {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("steepctl")));
    let Some(program) = beside.filter(|program| program.exists()) else { return "-".into() };
    let mut taken = Vec::new();
    for _ in 0..20 {
        let mut steepctl = fleet.steepctl(&program);
        let asked = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let output = steepctl.arg("status").output().expect("steepctl runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            began.elapsed()
        });
        taken.push(asked.await.expect("it was asked"));
    }
    taken.sort_unstable();
    format!("{:.0}", taken[taken.len() / 2].as_secs_f64() * 1e3)
}

/// Counts who was held for dead although nobody was.
fn soaked(time: Duration) -> String {
    let is_over = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let burners: Vec<_> = (0..2 * cores)
        .map(|_| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || while !is_over.load(Ordering::Relaxed) {})
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads are granted");
    let deaths = runtime.block_on(async {
        let (fleet, _) = Fleet::start(SOAKED).await;
        fleet.is_whole().await;
        let (began, mut deaths) = (Instant::now(), 0);
        while began.elapsed() < time {
            deaths += fleet.falsely_dead();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        fleet.end().await;
        deaths
    });
    is_over.store(true, Ordering::Relaxed);
    burners.into_iter().for_each(|burner| burner.join().expect("it only counts"));
    format!("{deaths} false deaths seen, looked for every 200 ms")
}
