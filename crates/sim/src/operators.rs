//! Schedules made by hand around what operators do, and what their clients see of it.

use kvnode_core::admin::AdminOp;
use kvnode_core::request::Answer;
use kvnode_types::ident::ShardId;

use crate::reshard::{cluster, context_of, cut, epoch_at, get, key_in, put, reshard, staying, wait_for};
use crate::scenarios::ask;
use crate::world::{Weather, World};

/// The majority agrees on another layout that the rest does not hear of, and is lost for good. An operator says so at one of
/// the rest: the cluster goes on, all sessions with it, and who was given up joins it with no shard when it is started again.
pub fn a_cluster_goes_on_without_its_majority() -> Result<(), String> {
    let mut world = cluster(None);
    let (first, second) = (staying(), key_in(8_192..16_384));
    let old = context_of(ask(&mut world, 0, 1, put(&first, "1"), None))?;
    let old = context_of(ask(&mut world, 3, 2, put(&second, "2"), Some(&old)))?;
    world.run_until(1_500, |_| false);
    cut(&mut world, &[0, 3], &[1, 2, 4, 5, 6]);
    cut(&mut world, &[6], &[0, 3]);
    world.start(6);
    let joined = |world: &World| world.topology().is_some_and(|topology| topology.nodes.len() == 7);
    wait_for(&mut world, 8_000, "the joining", joined)?;
    let addr = world.nodes[6].addr.clone();
    world.admin(1, 1, AdminOp::AddMember { shard: ShardId(1), addr });
    wait_for(&mut world, 8_000, "the flip", |world| epoch_at(world, 6) == 2)?;
    wait_for(&mut world, 8_000, "serving", |world| world.is_ready(6))?;
    let lost = context_of(ask(&mut world, 6, 3, put(&first, "3"), Some(&old)))?;
    [1, 2, 4, 5, 6].into_iter().for_each(|node| world.kill(node));
    world.weather.clear();
    // Two of six can't decide anything.
    let dead: Vec<_> = [1, 2, 4, 5].into_iter().map(|node| world.nodes[node].addr.clone()).collect();
    world.admin(3, 2, AdminOp::RemoveNode(dead[0].clone()));
    world.run_until(9_000, |_| false);
    if world.topology().is_some_and(|topology| topology.version.generation > 0 || topology.nodes.len() != 6) {
        return Err("a minority changes the topology".into());
    }
    world.admin(0, 3, AdminOp::Recover);
    wait_for(&mut world, 4_000, "the recovery", |world| generation_at(world, 0) > 0 && generation_at(world, 3) > 0)?;
    // What the lost layout knew is lost; nobody waits for it.
    match ask(&mut world, 0, 4, get(&first), Some(&lost)) {
        Some(Answer::Found { value, .. }) if &value[..] == b"1" => {}
        other => return Err(format!("who has seen the lost layout is answered {other:?}")),
    }
    // The first removal can't end before the others are asked for: it waits for all old members that were not given up.
    for (id, addr) in (10..).zip(&dead) {
        world.admin(0, id, AdminOp::RemoveNode(addr.clone()));
        world.run_until(500, |_| false);
    }
    let removed = |world: &World| world.topology().is_some_and(|topology| topology.nodes.len() == 2);
    wait_for(&mut world, 30_000, "the removals", removed)?;
    wait_for(&mut world, 8_000, "two nodes that serve", World::all_ready)?;
    let context = context_of(ask(&mut world, 3, 20, put(&second, "4"), Some(&lost)))?;
    world.start(1);
    world.start(6);
    wait_for(&mut world, 8_000, "the news", |world| generation_at(world, 1) > 0 && generation_at(world, 6) > 0)?;
    world.run_until(3_000, |_| false);
    // Started again, both join; nobody gives them a shard, or takes their data for the cluster's.
    for node in [1, 6] {
        let addr = &world.nodes[node].addr;
        let at =
            world.topology().and_then(|topology| topology.node_at(addr).map(|id| topology.layout.shard_of_node(id)));
        if at != Some(None) {
            return Err(format!("a node that was given up is to join with no shard, and is in {at:?}"));
        }
    }
    for (node, key, expected) in [(0, &first, b"1"), (3, &second, b"4"), (0, &second, b"4")] {
        match ask(&mut world, node, 30 + node as u64, get(key), Some(&context)) {
            Some(Answer::Found { value, .. }) if value[..] == expected[..] => {}
            other => return Err(format!("node {node} answers {other:?} for {key}")),
        }
    }
    Ok(())
}

fn generation_at(world: &World, node: usize) -> u64 {
    world.core(node).and_then(|core| core.topology()).map_or(0, |topology| topology.version.generation)
}

/// A write that waits for its copies when the layout flips is answered when they are there, not before.
pub fn a_write_before_the_flip_is_answered_with_its_copies() -> Result<(), String> {
    let mut world = cluster(None);
    let key = staying();
    // Copies of what node 0 writes take long, but less than an answer waits for them.
    for mate in [1, 2] {
        world.weather.insert((0, mate), Weather { delay_ms: (30, 35), ..Weather::FAIR });
        world.weather.insert((mate, 0), Weather { delay_ms: (30, 35), ..Weather::FAIR });
    }
    world.run_until(1_000, |_| false);
    reshard(&mut world, 4);
    let mut written = 0;
    while epoch_at(&world, 0) == 1 && written < 200 {
        written += 1;
        world.request(0, written, put(&key, "1"), Vec::new());
        world.run_until(20, |_| false);
    }
    let open = written.saturating_sub(world.answers.len() as u64);
    if epoch_at(&world, 0) != 2 || open == 0 {
        return Err("no write is open when the layout has flipped".into());
    }
    wait_for(&mut world, 1_000, "the answers", |world| world.answers.len() as u64 == written)?;
    let copies = |answer: &Option<Answer<String>>| match answer {
        Some(Answer::Created { replicas, .. } | Answer::Replaced { replicas, .. }) => *replicas,
        _ => 0,
    };
    match world.answers.iter().find(|(_, answer)| copies(answer) < 2) {
        None => Ok(()),
        Some(few) => Err(format!("a write that two others can be reached for is answered {few:?}")),
    }
}

fn nodes_of(world: &World) -> usize {
    world.topology().map_or(0, |topology| topology.nodes.len())
}

/// A cluster of so many nodes in one shard.
fn one_shard(nodes: usize) -> World {
    let mut world = World::new(11, nodes, 1, 1 << 20, None);
    (0..nodes).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    world.run_until(1_500, |_| false);
    world
}

/// A node in no shard votes like any other. When it is removed its vote has to be taken away while it can still agree to that: of two
/// voters one alone decides nothing.
pub fn a_spare_goes_and_its_vote_before_it() -> Result<(), String> {
    let mut world = one_shard(1);
    world.start(1);
    let (spare, next) = (world.nodes[1].addr.clone(), world.nodes[2].addr.clone());
    wait_for(&mut world, 8_000, "the spare", |world| nodes_of(world) == 2 && world.votes_are_as_planned())?;
    world.admin(0, 1, AdminOp::RemoveNode(spare.clone()));
    let reason = format!("{spare} to lose its vote");
    let says_why = |world: &World| {
        world.core(0).is_some_and(|core| core.change().is_ok_and(|it| it.waiting_for.contains(&reason)))
    };
    wait_for(&mut world, 8_000, "a word of why", says_why)?;
    wait_for(&mut world, 8_000, "the removal", |world| nodes_of(world) == 1)?;
    world.kill(1);
    world.admin(0, 2, AdminOp::AddNode(next));
    wait_for(&mut world, 4_000, "the next decision", |world| nodes_of(world) == 2)
}

/// A live node is being removed, and another is lost meanwhile: two of three voters are there, and must get both out.
pub fn a_removal_goes_on_when_another_voter_is_lost() -> Result<(), String> {
    let mut world = one_shard(3);
    world.kill(1);
    let (live, dead) = (world.nodes[2].addr.clone(), world.nodes[1].addr.clone());
    world.admin(0, 1, AdminOp::RemoveNode(live));
    wait_for(&mut world, 12_000, "the flip", |world| epoch_at(world, 0) == 2)?;
    // Until it is known to be away.
    world.run_until(4_000, |_| false);
    world.admin(0, 2, AdminOp::RemoveNode(dead));
    wait_for(&mut world, 20_000, "both removals", |world| nodes_of(world) == 1)
}

/// The node that goes on alone dies as soon as it has said so.
pub fn a_recovery_is_on_disk_before_it_is_told() -> Result<(), String> {
    let mut world = one_shard(3);
    world.kill(1);
    world.kill(2);
    world.admin(0, 1, AdminOp::Recover);
    wait_for(&mut world, 1_000, "the recovery", |world| generation_at(world, 0) > 0 && !world.decisions_are_due())?;
    world.lose_all_unsynced(0);
    world.start(0);
    let other = world.nodes[3].addr.clone();
    world.admin(0, 2, AdminOp::AddNode(other));
    wait_for(&mut world, 8_000, "a decision", |world| nodes_of(world) == 4)
}

/// A node has written under a layout, and goes by the next one, when an operator recovers the cluster where only the first is known. It
/// begins anew in that, and must not count on where a replica that lacks its last writes is.
pub fn after_a_recovery_to_an_older_layout_nothing_is_named_twice() -> Result<(), String> {
    let mut world = cluster(None);
    let key = staying();
    context_of(ask(&mut world, 0, 1, put(&key, "1"), None))?;
    world.run_until(1_500, |_| false);
    cut(&mut world, &[1], &[0, 2, 3, 4, 5, 6]);
    for id in 2..6 {
        context_of(ask(&mut world, 0, id, put(&key, "2"), None))?;
    }
    world.start(6);
    wait_for(&mut world, 8_000, "the joiner", |world| nodes_of(world) == 7)?;
    let addr = world.nodes[6].addr.clone();
    world.admin(0, 1, AdminOp::AddMember { shard: ShardId(2), addr });
    wait_for(&mut world, 8_000, "the flip", |world| epoch_at(world, 0) == 2)?;
    (2..7).for_each(|node| world.kill(node));
    world.admin(1, 2, AdminOp::Recover);
    wait_for(&mut world, 4_000, "the recovery", |world| generation_at(world, 1) > 0)?;
    world.weather.clear();
    wait_for(&mut world, 8_000, "the news", |world| generation_at(world, 0) > 0 && epoch_at(world, 0) == 1)?;
    wait_for(&mut world, 15_000, "node 0 serving", |world| world.is_ready(0))?;
    for id in 20..24 {
        context_of(ask(&mut world, 0, id, put(&key, "3"), None))?;
    }
    match world.losses.used_twice {
        None => Ok(()),
        Some(dot) => Err(format!("{dot} names two writes")),
    }
}

/// While an earlier change is being finished, who does not want to wait is told so at once.
pub fn who_does_not_wait_is_told_at_once_what_runs() -> Result<(), String> {
    let mut world = cluster(None);
    world.run_until(1_500, |_| false);
    reshard(&mut world, 4);
    wait_for(&mut world, 8_000, "the flip", |world| epoch_at(world, 0) == 2)?;
    world.kill(5);
    world.run_until(200, |_| false);
    let decided = |world: &World, id: u64| world.said.iter().any(|line| line.contains(&format!("request {id}:")));
    world.admin(0, 20, AdminOp::Reshard { count: 2, epoch: None, at_once: true });
    wait_for(&mut world, 500, "the answer", |world| decided(world, 20))?;
    world.admin(0, 21, AdminOp::Reshard { count: 2, epoch: None, at_once: false });
    if world.run_until(4_000, |world| decided(world, 21)) {
        return Err("who wants to wait is told before its turn".into());
    }
    Ok(())
}
