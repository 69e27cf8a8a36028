//! Whatever anybody does at an agent's port, operators are answered meanwhile, and the agent's memory stays small.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use steep_protocol::wire::{
    endpoint::{BULK_STREAM, Connection, Endpoint, Preference, RPC_STREAM},
    identity::Identity,
};
use steep_tests::{
    Cluster, Node, PATIENCE, shop,
    stranger::{self, AGENTS, CALLERS, HTTP2, frame, headers, is_let_go, say, tcp, tls},
    until,
};
use tokio::{io::AsyncWriteExt as _, net::UdpSocket, task::JoinHandle, time::timeout};

/// What an agent under attack may take more than before; a debug build's, with room.
const MEMORY: u64 = 160 << 20;
/// For connections made by hand.
static NAMES: AtomicU64 = AtomicU64::new(1);
/// How long an operator waits at most.
const ANSWER: Duration = Duration::from_secs(5);

/// An attack that goes on until it is stopped.
struct Attack {
    stop: Arc<AtomicBool>,
    running: Vec<JoinHandle<()>>,
}

impl Attack {
    fn of<F: Future<Output = ()> + Send + 'static>(width: usize, once: impl Fn() -> F + Send + Sync + 'static) -> Self {
        let (stop, once) = (Arc::new(AtomicBool::new(false)), Arc::new(once));
        let running = (0..width)
            .map(|_| {
                let (stop, once) = (Arc::clone(&stop), Arc::clone(&once));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Acquire) {
                        once().await;
                    }
                })
            })
            .collect();
        Self { stop, running }
    }

    async fn stops(self) {
        self.stop.store(true, Ordering::Release);
        for running in self.running {
            running.await.expect("an attack does not panic");
        }
    }
}

/// An operator asks five times and is answered soon; then the agent's memory is looked at.
async fn is_unharmed(a: &Node, memory_before: u64, what: &str) {
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        // Which asks no other node: one that is down is waited for.
        let command = a.steepctl("node show node_a");
        let began = Instant::now();
        let outcome = tokio::task::spawn_blocking(move || command.outcome()).await.expect("steepctl can be run");
        assert_eq!(outcome.status, 0, "{what}: {outcome}");
        slowest = slowest.max(began.elapsed());
    }
    let memory = a.agent_memory();
    eprintln!(
        "{what}: an answer took {slowest:?} at most, memory {} MiB (before: {})",
        memory >> 20,
        memory_before >> 20
    );
    assert!(slowest < ANSWER, "{what}: an answer took {slowest:?}");
    assert!(memory < memory_before + MEMORY, "{what}: {memory_before} bytes became {memory}");
}

async fn attacked(a: &Node, what: &str, attack: Attack) {
    let before = a.agent_memory();
    is_unharmed(a, before, what).await;
    attack.stops().await;
    assert!(a.agent_runs(), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_without_a_certificate_hold_nothing_up() {
    let [a] = Cluster::of(1).start().await;
    let before = a.agent_memory();
    let node = a.clone();
    // Thousands of connections that never say anything.
    let mut silent = VecDeque::new();
    for _ in 0..4_000 {
        silent.push_back(tcp(&node).await.expect("it is accepted"));
        if silent.len() > 300 {
            silent.pop_front();
        }
    }
    is_unharmed(&a, before, "half-open connections").await;
    drop(silent);

    let (garbage, node) = (Arc::new(vec![0x47; 64 << 10]), a.clone());
    let attack = Attack::of(8, move || {
        let (garbage, node) = (Arc::clone(&garbage), node.clone());
        async move {
            if let Ok(mut stream) = tcp(&node).await {
                let _ = stream.write_all(&garbage).await;
                is_let_go(stream).await;
            }
        }
    });
    attacked(&a, "garbage before TLS", attack).await;

    // A TLS record that is announced, and trickles in.
    let node = a.clone();
    let attack = Attack::of(100, move || {
        let node = node.clone();
        async move {
            let Ok(mut stream) = tcp(&node).await else { return };
            for byte in [0x16, 0x03, 0x01, 0x3f, 0xff, 0x01, 0, 0x3f] {
                if stream.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
            is_let_go(stream).await;
        }
    });
    attacked(&a, "a handshake that trickles", attack).await;

    let address = a.address().to_owned();
    let attack = Attack::of(4, move || {
        let address = address.clone();
        async move {
            let Ok(socket) = UdpSocket::bind("127.0.0.1:0").await else { return };
            // Long headers of versions there are and are not, and noise.
            for (first, version) in [(0xc0u8, [0, 0, 0, 1]), (0xc3, [0xba; 4]), (0xff, [0; 4]), (0x40, [7; 4])] {
                let mut packet = vec![0x5a; 1_200];
                packet[0] = first;
                packet[1..5].copy_from_slice(&version);
                packet[5] = 8;
                for _ in 0..50 {
                    let _ = socket.send_to(&packet, &address).await;
                }
            }
            tokio::task::yield_now().await;
        }
    });
    attacked(&a, "garbage over UDP", attack).await;
    // One second's worth of complaints at most, whatever comes.
    let denied = a.log().matches("rpc.denied").count();
    assert!(denied < 500, "{denied} lines about strangers");
    a.steepctl("status").succeeds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_misbehave_over_grpc_harm_themselves_alone() {
    let [a] = Cluster::of(1).start().await;
    let before = a.agent_memory();
    // Connections that never ask anything: as many as one identity may have, then none.
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(tls(&a, "operator-vera", CALLERS).await.expect("a member's handshake goes well"));
    }
    is_unharmed(&a, before, "silent members").await;
    for stream in held.drain(..) {
        // Told apart from live ones by their first byte, which never comes.
        is_let_go(stream).await;
    }

    // HTTP/2 rapid reset.
    let node = a.clone();
    let attack = Attack::of(4, move || {
        let node = node.clone();
        async move {
            let Ok(mut stream) = tls(&node, "operator-vera", CALLERS).await else { return };
            if say(&mut stream, HTTP2).await.is_err() {
                return;
            }
            let headers = headers("/steep.v1.Nodes/List");
            for number in 0..5_000u32 {
                let both = [frame(1, 4, 2 * number + 1, &headers), frame(3, 0, 2 * number + 1, &[0, 0, 0, 8])].concat();
                if stream.write_all(&both).await.is_err() {
                    return;
                }
            }
        }
    });
    attacked(&a, "rapid reset", attack).await;

    // Requests with the largest message announced, and never sent.
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut stream = tls(&a, "operator-vera", CALLERS).await.expect("a member's handshake goes well");
        say(&mut stream, HTTP2).await.expect("it is taken");
        for number in 0..64u32 {
            let opening = frame(1, 4, 2 * number + 1, &headers("/steep.v1.Nodes/List"));
            let length = (4u32 << 20).to_be_bytes();
            let begun = frame(0, 0, 2 * number + 1, &[&[0][..], &length, &[1; 8_000]].concat());
            if say(&mut stream, &[opening, begun].concat()).await.is_err() {
                break;
            }
        }
        slow.push(stream);
    }
    is_unharmed(&a, before, "requests that do not end").await;
    drop(slow);

    // Headers without an end, settings and pings without a pause, a frame larger than allowed.
    let node = a.clone();
    let attack = Attack::of(4, move || {
        let node = node.clone();
        async move {
            let Ok(mut stream) = tls(&node, "operator-vera", CALLERS).await else { return };
            let mut words = HTTP2.to_vec();
            words.extend(frame(1, 0, 1, &[0x83; 100]));
            for _ in 0..2_000 {
                words.extend(frame(9, 0, 1, &[0x83; 4_000]));
            }
            let _ = say(&mut stream, &words).await;
            is_let_go(stream).await;
            let Ok(mut stream) = tls(&node, "operator-vera", CALLERS).await else { return };
            let mut words = HTTP2.to_vec();
            for _ in 0..5_000 {
                words.extend(frame(6, 0, 0, &[1; 8]));
                words.extend(frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]));
            }
            words.extend([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
            let _ = say(&mut stream, &words).await;
            is_let_go(stream).await;
        }
    });
    attacked(&a, "frames without end", attack).await;
    // Vera herself may come in again.
    until("vera is answered", PATIENCE, async || {
        let command = a.steepctl("status").as_operator("vera");
        let outcome = tokio::task::spawn_blocking(move || command.outcome()).await.expect("steepctl can be run");
        if outcome.status == 0 { Ok(()) } else { Err(outcome.to_string()) }
    })
    .await;
}

/// Dials `a` as `node_b`, whose own agent is down.
async fn as_node_b(a: &Node, preference: Preference) -> (Endpoint, Connection) {
    let file = |name: &str| a.pki().join(name);
    let identity = Identity::load(&file("node_b.pem"), &file("node_b.key"), &file("ca.pem")).expect("a good identity");
    let (endpoint, _) = Endpoint::bind_for("127.0.0.1:0", Arc::new(identity), preference).await.expect("a free port");
    let node_a = "node_a".parse().expect("a node");
    let connection = endpoint.dial(a.address(), &node_a).await.expect("node_a listens");
    (endpoint, connection)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_misbehaves_on_its_streams_harms_itself_alone() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(&shop::orders(1_000)).await;
    b.stop_agent();
    let before = a.agent_memory();
    for preference in [Preference::Quic, Preference::Tcp] {
        let (endpoint, connection) = as_node_b(&a, preference).await;
        // Kinds nobody knows, requests cut short, too large or nonsense, requests for what is not there.
        for number in 0..200u32 {
            let Ok(mut io) = connection.open(0x70).await else { break };
            let _ = io.write_all(&[number as u8; 1_000]).await;
            let Ok(mut io) = connection.open(BULK_STREAM).await else { break };
            let words: &[u8] = match number % 4 {
                0 => &[0xff, 0xff, 0xff, 0x7f],
                1 => &[9, 0, 0, 0, 1],
                2 => &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
                _ => &[0, 0, 0, 0],
            };
            let _ = io.write_all(words).await;
            if number % 2 == 0 {
                let _ = io.shutdown().await;
            }
            let Ok(mut io) = connection.open(RPC_STREAM).await else { break };
            let _ = io.write_all(&[0x99; 4_096]).await;
        }
        is_unharmed(&a, before, "streams of nonsense").await;
        // As many streams as there may be, held open.
        let mut held = Vec::new();
        while let Ok(Ok(io)) = timeout(Duration::from_secs(2), connection.open(RPC_STREAM)).await {
            held.push(io);
            if held.len() > 300 {
                break;
            }
        }
        assert!(held.len() < 300, "there is a limit");
        is_unharmed(&a, before, "as many streams as there may be").await;
        drop(held);
        endpoint.close().await;
    }
    // Control streams by hand: frames that cannot be, and datagrams without a pause.
    let node = a.clone();
    let attack = Attack::of(4, move || {
        let node = node.clone();
        async move {
            let Ok(mut stream) = tls(&node, "node_b", AGENTS).await else { return };
            let name = u128::from(NAMES.fetch_add(1, Ordering::Relaxed)).to_le_bytes();
            let mut words = [&[4u8][..], &name, &[1]].concat();
            for _ in 0..2_000 {
                words.extend([2, 200, 0]);
                words.extend([7; 200]);
            }
            words.extend([1, 0xff, 0xff]);
            let _ = say(&mut stream, &words).await;
            is_let_go(stream).await;
        }
    });
    attacked(&a, "control streams of nonsense", attack).await;
    // What comes in order still works.
    b.start_agent();
    b.steepctl("node start node_b --from node_a").succeeds();
    b.holds_the_same_as(&a, "orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_or_goes_away_amid_a_part_leaves_nothing_at_work() {
    for transport in ["quic", "tcp"] {
        let [a, b] = Cluster::of(2)
            .mesh_toml(&format!("transport = {transport:?}"))
            .agent_toml("[copy]\nsession_lease = \"8s\"")
            .start()
            .await;
        a.sql(
            "create table wide (id bigint primary key, text text not null);
               insert into wide select n, repeat(md5(n::text), 30) from generate_series(1, 60000) n; analyze",
        )
        .await;
        let before = a.agent_memory();
        let readers = async |what: &str| {
            until(what, PATIENCE, async || {
                let at_work: i64 = a
                    .value("select count(*) from pg_stat_activity where application_name like 'steep-copy-out-%'")
                    .await;
                if at_work == 0 { Ok(()) } else { Err(at_work) }
            })
            .await;
        };
        // It reads so slowly that it stands still, then its whole process does.
        let op = b.steepctl("node start node_b --from node_a --parallel 8").arg("--max-rate").arg("20kB").operation();
        op.reaches("copy tables").await;
        is_unharmed(&a, before, "a slow reader").await;
        b.freeze_agent();
        is_unharmed(&a, before, "a reader that stands still").await;
        readers("the parts of a frozen target end").await;
        b.thaw_agent();
        assert_eq!(op.ends().await, "failed", "{transport}");
        // And one that is gone.
        until("the target can begin again", PATIENCE, async || {
            let outcome = b.steepctl("node start node_b --from node_a --max-rate 20kB --detach").outcome();
            if outcome.status == 0 { Ok(()) } else { Err(outcome.to_string()) }
        })
        .await;
        until("a part is read", PATIENCE, async || {
            let at_work: i64 =
                a.value("select count(*) from pg_stat_activity where application_name like 'steep-copy-out-%'").await;
            if at_work > 0 { Ok(()) } else { Err("nobody reads") }
        })
        .await;
        b.kill_agent();
        readers("the parts of a dead target end").await;
        a.steepctl("status").succeeds();
        let _ = stranger::tcp(&a).await.expect("it still listens");
    }
}
