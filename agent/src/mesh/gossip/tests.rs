//! What members tell each other, and what comes of it.

use super::*;

const NOW: Duration = Duration::from_secs(1);

fn run(name: &str, generation: u64) -> Run {
    Run::new(name.parse().expect("a name"), format!("{name}:1"), generation)
}

fn agent(name: &str, generation: u64) -> Gossip {
    let mut gossip = Gossip::new(run(name, generation), generation);
    gossip.publish(HEADLINE, Bytes::from_static(b"ok"));
    gossip
}

/// Carries datagrams between agents, and exchanges, until nobody has anything to say.
fn talk(agents: &mut [&mut Gossip]) {
    loop {
        let mut sent: Vec<(NodeId, NodeId, Bytes)> = Vec::new();
        for agent in agents.iter_mut() {
            let from = agent.me().node.clone();
            for output in agent.outputs() {
                if let Output::Datagram { to, bytes } = output {
                    sent.push((from.clone(), to.node, bytes));
                }
            }
        }
        if sent.is_empty() {
            return;
        }
        for (from, to, bytes) in sent {
            if let Some(agent) = agents.iter_mut().find(|agent| agent.me().node == to) {
                agent.receive(&from, &bytes, u64::MAX, NOW);
            }
        }
    }
}

fn joined(one: &mut Gossip, other: &mut Gossip) {
    let to = other.me().clone();
    one.announce(to.node, to.address, NOW);
    talk(&mut [one, other]);
    assert_eq!((one.up(), other.up()), (1, 1));
}

fn liveness(gossip: &Gossip, name: &str) -> Option<Liveness> {
    gossip.member(&name.parse().expect("a name")).map(|member| member.liveness)
}

fn first(gossip: &mut Gossip) -> Bytes {
    let outputs = gossip.outputs();
    let sent = outputs.into_iter().find_map(|output| match output {
        Output::Datagram { bytes, .. } => Some(bytes),
        _ => None,
    });
    sent.expect("it sends something")
}

#[test]
fn a_message_that_claims_another_id_changes_nothing() {
    let (mut a, mut b, mut mallory) = (agent("a", 5), agent("b", 5), agent("c", 9));
    joined(&mut a, &mut b);
    mallory.announce("a".parse().expect("a name"), "a:1".into(), NOW);
    let announced = first(&mut mallory);
    a.receive(&"m".parse().expect("a name"), &announced, u64::MAX, NOW);
    assert_eq!(liveness(&a, "c"), None, "c did not say that it is there; m did");
    // m's word on b's state.
    let mut false_b = agent("b", 7);
    false_b.publish(HEADLINE, Bytes::from_static(b"failed"));
    let told = changes(vec![false_b.view().since(&false_b.me().node.clone(), 0)]).expect("it fits");
    a.receive(&"m".parse().expect("a name"), &told, u64::MAX, NOW);
    let b_id = "b".parse().expect("a name");
    assert_eq!(a.view().get(&b_id, HEADLINE).map(|value| &value[..]), Some(&b"ok"[..]));
    assert_eq!(liveness(&a, "b"), Some(Liveness::Alive));
}

#[test]
fn garbage_and_truncated_messages_change_nothing() {
    let (mut a, mut b) = (agent("a", 5), agent("b", 5));
    joined(&mut a, &mut b);
    b.publish(HEADLINE, Bytes::from_static(b"news"));
    let good = first(&mut b);
    let from: NodeId = "b".parse().expect("a name");
    let hash = a.view().hash();
    for length in 0..good.len() {
        a.receive(&from, &good[..length], u64::MAX, NOW);
    }
    for kind in 0..=255_u8 {
        a.receive(&from, &[&[kind][..], &[0xff; 90]].concat(), u64::MAX, NOW);
        a.receive(&from, &[kind], u64::MAX, NOW);
    }
    assert_eq!((a.view().hash(), a.up()), (hash, 1));
    a.receive(&from, &good, u64::MAX, NOW);
    assert_ne!(a.view().hash(), hash);
}

#[test]
fn an_agent_that_left_is_left_and_one_that_is_gone_is_dead() {
    let (mut a, mut b) = (agent("a", 5), agent("b", 5));
    joined(&mut a, &mut b);
    b.leave(NOW);
    talk(&mut [&mut a, &mut b]);
    assert_eq!(liveness(&a, "b"), Some(Liveness::Left));
    b.come_back(6, NOW);
    joined(&mut b, &mut a);
    a.was_left_by(&"b".parse().expect("a name"), NOW);
    assert_eq!(liveness(&a, "b"), Some(Liveness::Left));
}

#[test]
fn an_earlier_run_is_not_believed_and_grows_out_of_it_where_it_is_the_one_that_lives() {
    let (mut a, mut b) = (agent("a", 5), agent("b", 50));
    joined(&mut a, &mut b);
    // b starts again, and its clock goes wrong.
    let mut again = agent("b", 40);
    let told = changes(vec![again.view().since(&again.me().node.clone(), 0)]).expect("it fits");
    let id: NodeId = "b".parse().expect("a name");
    a.receive(&id, &told, u64::MAX, NOW);
    assert_eq!(a.view().generation(&id), 50, "what an earlier run says is old");
    let reply = again.answer(&"a".parse().expect("a name"), &a.question(), u64::MAX, NOW);
    assert!(reply.digests.iter().any(|digest| digest.node_id == "b" && digest.generation == 51), "{reply:?}");
    assert_eq!(again.me().generation, 51);
}

#[test]
fn what_it_said_itself_and_hears_again_makes_an_agent_no_later_run() {
    let (mut a, mut b) = (agent("a", 5), agent("b", 5));
    joined(&mut a, &mut b);
    let from: NodeId = "b".parse().expect("a name");
    let own = a.view().since(&a.me().node.clone(), 0);
    a.receive(&from, &changes(vec![own.clone()]).expect("it fits"), u64::MAX, NOW);
    assert_eq!(a.apply(&from, &own, u64::MAX, NOW), Applied::Nothing);
    assert_eq!(a.me().generation, 5);
    let mut more = own;
    more.entries[0].version = 9;
    assert_eq!(a.apply(&from, &more, u64::MAX, NOW), Applied::Refused, "of a run that wrote more");
    assert_eq!(a.me().generation, 6);
    a.outgrow(6, u64::MAX, NOW);
    assert_eq!(a.me().generation, 6, "a peer that knows this very run");
}

#[test]
fn a_forgotten_node_is_gone_and_one_that_is_up_cannot_be_forgotten() {
    let (mut a, mut b) = (agent("a", 5), agent("b", 5));
    joined(&mut a, &mut b);
    let id: NodeId = "b".parse().expect("a name");
    a.forget(&id);
    assert_eq!(liveness(&a, "b"), Some(Liveness::Alive));
    a.was_left_by(&id, NOW);
    a.forget(&id);
    assert_eq!((liveness(&a, "b"), a.view().get(&id, HEADLINE)), (None, None));
    let mut later = agent("b", 6);
    joined(&mut later, &mut a);
    assert_eq!(liveness(&a, "b"), Some(Liveness::Alive), "a later run is new");
    assert!(a.view().get(&id, HEADLINE).is_some());
}
