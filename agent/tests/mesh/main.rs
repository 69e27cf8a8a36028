//! What the mesh promises without any PostgreSQL: many agents in memory, and some over real connections.

mod authority;
#[expect(dead_code, reason = "the benchmark asks it more")]
mod fleet;
mod network;

use std::time::Duration;

use fleet::Fleet;
use network::Network;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_hundred_agents_find_each_other_through_two_seeds_though_packets_get_lost() {
    for (seed, loss) in [(1, 0.0), (2, 0.05), (3, 0.20)] {
        let mut network = Network::new(100, seed);
        network.loss = loss;
        let joined = network.run_until(MINUTE, Network::is_joined);
        assert!(joined.is_some(), "seed {seed}, loss {loss}: not joined in a minute: {}", network.described());
        // While a fifth of all packets gets lost, somebody is always just being suspected, and says that it lives.
        network.loss = network.loss.min(0.05);
        let agreed = network.run_until(MINUTE, Network::is_whole);
        assert!(agreed.is_some(), "seed {seed}, loss {loss}: not agreed in a minute: {}", network.described());
    }
}

#[test]
fn a_run_is_the_same_for_the_same_seed() {
    let run = |seed| {
        let mut network = Network::new(20, seed);
        network.loss = 0.1;
        network.run(Duration::from_secs(20));
        (network.bytes, network.packets, network.exchanges)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_change_reaches_everybody_and_a_lost_one_is_made_good() {
    for (count, loss) in [(50, 0.0), (50, 0.3), (100, 0.1)] {
        let mut network = Network::new(count, 11);
        assert!(network.run_until(MINUTE, Network::is_whole).is_some());
        network.loss = loss;
        network.say(7, "copying");
        let told = |network: &Network| (0..count).all(|at| network.state_seen(at, 7).as_deref() == Some("copying"));
        assert!(network.run_until(MINUTE, told).is_some(), "{count} agents, loss {loss}: somebody never heard");
    }
}

#[test]
fn a_change_in_a_large_mesh_is_told_on_by_everybody_once() {
    let mut network = Network::new(100, 31);
    assert!(network.run_until(MINUTE, Network::is_whole).is_some());
    network.run(MINUTE);
    let before = network.packets;
    network.run(MINUTE);
    let (quiet, before) = (network.packets - before, network.packets);
    (0..10).for_each(|index| network.say(index, "copying"));
    network.run(MINUTE);
    let told = (network.packets - before).saturating_sub(quiet);
    assert!(told < 10 * 100 * 6, "{told} packets for ten changes in a mesh of 100");
}

#[test]
fn a_quiet_mesh_costs_little_and_no_more_when_it_is_larger() {
    for count in [10, 50, 100] {
        let mut network = Network::new(count, 51);
        assert!(network.run_until(MINUTE, Network::is_whole).is_some());
        network.run(MINUTE);
        let before = network.bytes;
        network.run(MINUTE);
        let rate = network.rate(before, MINUTE);
        assert!(rate < 700.0, "{count} agents: {rate:.0} B/s each");
    }
}

#[test]
fn a_dead_agent_is_given_up_by_all_and_nobody_else_is() {
    let mut network = Network::new(50, 21);
    network.loss = 0.02;
    assert!(network.run_until(MINUTE, Network::is_whole).is_some());
    network.kill(13);
    let noticed = network.run_until(MINUTE, |network| network.is_given_up(13)).expect("it is given up");
    assert!(noticed < Duration::from_secs(10), "after {noticed:?} of the network's time");
    network.run(MINUTE);
    assert_eq!(network.falsely_dead(), 0);
    network.restart(13);
    assert!(network.run_until(MINUTE, Network::is_whole).is_some(), "it comes back as new");
}

#[test]
fn two_halves_that_were_parted_are_one_mesh_again_after_the_partition() {
    let mut network = Network::new(60, 31);
    assert!(network.run_until(MINUTE, Network::is_whole).is_some());
    network.split_at = Some(30);
    network.run(MINUTE);
    assert!(network.is_given_up(45) || network.falsely_dead() > 0, "the halves have given each other up");
    network.say(3, "failed");
    network.say(45, "copying");
    network.run(Duration::from_secs(10));
    network.split_at = None;
    assert!(
        network.run_until(2 * MINUTE, Network::is_whole).is_some(),
        "not whole two minutes after it healed: {}",
        network.described()
    );
    assert_eq!(network.state_seen(50, 3).as_deref(), Some("failed"));
    assert_eq!(network.state_seen(3, 45).as_deref(), Some("copying"));
}

#[test]
fn a_whole_mesh_that_restarts_is_whole_again() {
    let mut network = Network::new(30, 41);
    assert!(network.run_until(MINUTE, Network::is_whole).is_some());
    (0..30).for_each(|index| network.kill(index));
    (0..30).for_each(|index| network.restart(index));
    assert!(network.run_until(MINUTE, Network::is_whole).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_over_real_connections_find_each_other_notice_a_death_and_a_goodbye() {
    let (mut fleet, _) = Fleet::start(8).await;
    fleet.is_whole().await;
    fleet.stop(5, false).await;
    fleet.sees(5, "dead").await;
    fleet.restart(5).await;
    fleet.is_whole().await;
    fleet.stop(6, true).await;
    fleet.sees(6, "left").await;
    fleet.end().await;
}
