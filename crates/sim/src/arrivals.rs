//! Nodes that an operator removes, while they are down or while they run.

use kvnode_core::admin::AdminOp;

use crate::reshard::{cluster, cut, wait_for};
use crate::world::World;

const GONE: usize = 2;

fn is_listed(world: &World) -> bool {
    world.topology().is_some_and(|topology| topology.node_at(&world.nodes[GONE].addr).is_some())
}

fn is_in_a_shard(world: &World) -> bool {
    let at = world.topology().and_then(|topology| topology.node_at(&world.nodes[GONE].addr));
    world.topology().zip(at).is_some_and(|(topology, node)| topology.layout.shard_of_node(node).is_some())
}

fn remove(world: &mut World) -> Result<(), String> {
    let addr = world.nodes[GONE].addr.clone();
    world.admin(0, 1, AdminOp::RemoveNode(addr));
    wait_for(world, 20_000, "the removal", |world| !is_listed(world))
}

/// It has the data of its earlier life, and the topology that lists it.
pub fn who_is_removed_while_it_is_down_joins_when_it_is_started_again() -> Result<(), String> {
    let mut world = cluster(None);
    world.kill(GONE);
    world.run_until(4_000, |_| false);
    remove(&mut world)?;
    world.start(GONE);
    wait_for(&mut world, 8_000, "the view with it", is_listed)?;
    world.run_until(2_000, |_| false);
    if is_in_a_shard(&world) { Err("it is in a shard, and nobody has added it to one".into()) } else { Ok(()) }
}

/// The news has not reached it when it is killed.
pub fn who_is_killed_right_after_its_removal_joins_when_it_is_started_again() -> Result<(), String> {
    let mut world = cluster(None);
    cut(&mut world, &[GONE], &[0, 1, 3, 4, 5]);
    world.run_until(4_000, |_| false);
    remove(&mut world)?;
    world.kill(GONE);
    world.weather.clear();
    world.start(GONE);
    wait_for(&mut world, 8_000, "the view with it", is_listed)
}

pub fn who_is_removed_while_it_runs_stays_outside_until_it_is_started_again() -> Result<(), String> {
    let mut world = cluster(None);
    world.run_until(2_000, |_| false);
    remove(&mut world)?;
    if world.run_until(5_000, is_listed) {
        return Err("it has asked to be in the view again, and still runs".into());
    }
    world.kill(GONE);
    world.start(GONE);
    wait_for(&mut world, 8_000, "the view with it", is_listed)
}

/// It was back while the voters that are left were too few, and an operator has gone on without the rest since.
pub fn who_was_back_before_a_recovery_is_known_after_it() -> Result<(), String> {
    let mut world = cluster(None);
    world.run_until(2_000, |_| false);
    [1, 4, 5].into_iter().for_each(|node| world.kill(node));
    world.kill(GONE);
    world.start(GONE);
    world.run_until(3_000, |_| false);
    world.admin(0, 2, AdminOp::Recover);
    world.run_until(3_000, |_| false);
    for (id, node) in (3..).zip([1, 4, 5]) {
        let addr = world.nodes[node].addr.clone();
        world.admin(0, id, AdminOp::RemoveNode(addr));
        world.run_until(4_000, |_| false);
    }
    let left = |world: &World| world.topology().map_or(0, |topology| topology.electors().len());
    wait_for(&mut world, 20_000, "the other voters", |world| left(world) == 3)?;
    world.run_until(3_000, |_| false);
    remove(&mut world)?;
    if world.run_until(5_000, is_listed) {
        return Err("it has asked to be in the view again, and still runs".into());
    }
    Ok(())
}

/// An operator removes a node that nobody can reach, and that runs all the while.
pub fn who_is_cut_off_and_removed_stays_outside_when_it_is_heard_again() -> Result<(), String> {
    let mut world = cluster(None);
    world.run_until(2_000, |_| false);
    cut(&mut world, &[GONE], &[0, 1, 3, 4, 5]);
    world.run_until(4_000, |_| false);
    remove(&mut world)?;
    world.weather.clear();
    if world.run_until(8_000, is_listed) {
        return Err("it has asked to be in the view again, and still runs".into());
    }
    Ok(())
}
