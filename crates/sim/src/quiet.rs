//! A cluster at rest costs next to nothing, and still notices at once who dies.

use kvnode_core::request::{Answer, Op};
use kvnode_types::ident::{SLOT_COUNT, ShardId};

use crate::reshard::{cluster, get, key_in, put, staying};
use crate::scenarios::ask;
use crate::world::World;

/// Until the last write is everywhere and nobody has anything to tell.
const REST_MS: u64 = 6_000;

fn at_rest() -> World {
    let mut world = cluster(None);
    let answer = ask(&mut world, 0, 1, put(&staying(), "1"), None);
    assert!(matches!(answer, Some(Answer::Created { .. })), "{answer:?}");
    world.run_until(REST_MS, |_| false);
    world
}

/// Messages per second among six nodes: one per pair, and a few of the log's leader.
pub fn a_cluster_at_rest_says_little() {
    const SECONDS: u64 = 20;
    let mut world = at_rest();
    let (said, ticked) = (world.sent, world.ticks);
    world.run_until(SECONDS * 1_000, |_| false);
    assert!(world.all_ready(), "everybody serves all the time");
    let (batches, ticks) = ((world.sent - said) / SECONDS, (world.ticks - ticked) / SECONDS);
    assert!((10..=22).contains(&batches), "{batches} messages per second");
    assert!(ticks <= 6 * 5, "{ticks} ticks per second");
}

/// Whenever a node of a quiet cluster dies, all others have noticed within three seconds; the same when it comes back.
pub fn a_death_at_rest_is_noticed_within_three_seconds() {
    for phase in 0..20 {
        let mut world = at_rest();
        world.run_until(phase * 130, |_| false);
        let node = phase as usize % 6;
        let addr = world.nodes[node].addr.clone();
        let others: Vec<usize> = (0..6).filter(|&other| other != node).collect();
        let listed = |world: &World, other: usize| world.core(other).is_some_and(|core| core.view().contains(&addr));
        world.kill(node);
        let gone = world.run_until(3_000, |world| others.iter().all(|&other| !listed(world, other)));
        assert!(gone, "node {node} is still in a view 3 s after its death in phase {phase}");
        world.run_until(4_000, |_| false);
        world.start(node);
        let back = world.run_until(3_000, |world| others.iter().all(|&other| listed(world, other)));
        assert!(back, "node {node} is not in all views 3 s after its return in phase {phase}");
    }
}

/// The first write after a long rest finds out that a replica has died, and waits for the one that lives.
pub fn the_first_write_after_a_rest_gets_its_copies() {
    let mut world = at_rest();
    world.kill(1);
    match ask(&mut world, 0, 2, put(&staying(), "2"), None) {
        Some(Answer::Replaced { replicas: 2, .. }) => {}
        other => panic!("a write with one of three replicas dead is answered {other:?}"),
    }
    world.kill(2);
    let began = world.now_ms;
    match ask(&mut world, 0, 3, put(&staying(), "3"), None) {
        Some(Answer::Replaced { replicas: 1, .. }) => {}
        other => panic!("a write at the last replica is answered {other:?}"),
    }
    assert!(world.now_ms - began <= 550, "it waits no longer than --ack-wait");
    let answer = ask(&mut world, 4, 4, get(&staying()), None);
    assert!(matches!(answer, Some(Answer::Found { .. })), "passed on to the only replica left: {answer:?}");
}

/// Whoever reads the log of a node that lives finds which majorities were lost, once, and when they came back; a single death is none.
pub fn a_lost_majority_is_told_once() {
    let mut world = at_rest();
    let told = |world: &World, what: &str| -> Vec<String> {
        let lines = world.said.iter().filter(|line| line.contains(what));
        lines.map(|line| line.split_once(": ").map_or("", |(_, notice)| notice).to_owned()).collect()
    };
    world.kill(5);
    world.run_until(8_000, |_| false);
    assert_eq!(told(&world, "Majority"), [""; 0]);
    world.kill(4);
    world.run_until(8_000, |_| false);
    let away = format!("away: [{:?}, {:?}]", world.nodes[4].addr, world.nodes[5].addr);
    let lost = told(&world, "MajorityLost");
    assert_eq!(lost.len(), 4, "one of each that lives: {lost:?}");
    let of_s2 = |line: &String| line.contains("Shard(ShardId(2)), reached: 1, members: 3") && line.contains(&away);
    assert!(lost.iter().all(of_s2), "{lost:?}");
    world.kill(3);
    world.run_until(8_000, |_| false);
    let voters = told(&world, "Voters, reached: 3, members: 6");
    assert_eq!((voters.len(), told(&world, "MajorityLost").len()), (3, 7), "{:?}", told(&world, "MajorityLost"));
    (3..6).for_each(|node| world.start(node));
    world.run_until(4_000, |_| false);
    assert_eq!(told(&world, "MajorityBack").len(), 6, "three for the shard, three for the voters");
}

/// A shard all of whose replicas are known to be dead: whoever asks for its keys need not wait to hear that. As soon as one is back it is
/// asked.
pub fn a_shard_that_is_gone_is_told_at_once() {
    let mut world = at_rest();
    (3..6).for_each(|node| world.kill(node));
    let key = key_in(SLOT_COUNT - 5_460..SLOT_COUNT);
    let began = world.now_ms;
    let answer = ask(&mut world, 0, 2, get(&key), None);
    assert_eq!(answer, Some(Answer::NoReplica { shard: ShardId(2) }));
    assert!(world.now_ms - began > 1_000, "one may be back in a moment");
    world.run_until(1_000, |_| false);
    for (id, op) in [(3, get(&key)), (4, put(&key, "1")), (5, Op::KeyCount { shard: ShardId(2) })] {
        let began = world.now_ms;
        assert_eq!(ask(&mut world, 0, id, op, None), Some(Answer::NoReplica { shard: ShardId(2) }));
        assert!(world.now_ms - began < 50, "answered after {} ms", world.now_ms - began);
    }
    (3..6).for_each(|node| world.start(node));
    assert!(world.run_until(3_000, World::all_ready));
    world.run_until(500, |_| false);
    let answer = ask(&mut world, 0, 6, put(&key, "1"), None);
    assert!(matches!(answer, Some(Answer::Created { .. })), "{answer:?}");
}
