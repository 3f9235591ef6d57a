//! Nodes whose data is gone, and who know that there was some: the file beside it is still there.

use kvnode_core::loss::Past;
use kvnode_core::request::Answer;
use kvnode_core::settings::Mutant;

use crate::reshard::{cluster, get, put, staying, wait_for};
use crate::scenarios::ask;
use crate::world::World;

/// The replicas of the shard that has [`staying`].
const SHARD: [usize; 3] = [0, 1, 2];
/// Long enough for anything to begin that is going to.
const WHILE_MS: u64 = 6_000;

fn with_a_key(mutant: Option<Mutant>) -> Result<World, String> {
    let mut world = cluster(mutant);
    let written = ask(&mut world, 0, 1, put(&staying(), "1"), None);
    if !matches!(written, Some(Answer::Created { .. })) {
        return Err(format!("a healthy cluster refuses a write: {written:?}"));
    }
    world.run_until(2_000, |_| false);
    Ok(world)
}

/// None of these is ready for a while, and each says what is gone and what to do.
fn stay_unready(world: &mut World, nodes: &[usize]) -> Result<(), String> {
    let ready = |world: &World| nodes.iter().copied().find(|&node| world.is_ready(node));
    if world.run_until(WHILE_MS, |world| ready(world).is_some()) {
        return Err(format!("node {:?} serves without the data of its shard", ready(world)));
    }
    for &node in nodes {
        let why = world.core(node).expect("it runs").ready().expect_err("it was just looked at");
        if !(why.contains("bring its files back") && why.contains("ACCEPT_DATA_LOSS")) {
            return Err(format!("node {node} does not say what to do: {why}"));
        }
    }
    Ok(())
}

fn start_again(world: &mut World, nodes: &[usize], past: &Past) {
    for &node in nodes {
        world.kill(node);
        world.nodes[node].past = past.clone();
        world.start(node);
    }
}

fn comes_back_empty(world: &mut World, nodes: &[usize]) -> Result<(), String> {
    start_again(world, nodes, &Past::GivenUp);
    wait_for(world, 5_000, "the shard, given up by the operator", World::all_ready)?;
    match ask(world, nodes[0], 99, get(&staying()), None) {
        Some(Answer::NotFound { .. }) => Ok(()),
        other => Err(format!("what was given up is answered {other:?}")),
    }
}

/// All replicas of a shard have lost their data; the rest of the cluster runs.
pub fn a_shard_that_has_lost_all_its_data_does_not_begin_anew(mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = with_a_key(mutant)?;
    SHARD.iter().for_each(|&node| world.lose_data(node));
    SHARD.iter().for_each(|&node| world.start(node));
    stay_unready(&mut world, &SHARD)?;
    // One that says so alone does not speak for the others.
    start_again(&mut world, &[0], &Past::GivenUp);
    stay_unready(&mut world, &SHARD)?;
    comes_back_empty(&mut world, &SHARD)
}

/// Two of them can't know that they had data: the third can.
pub fn one_that_knows_of_the_loss_is_enough(mutant: Option<Mutant>) -> Result<(), String> {
    for knows in SHARD {
        let mut world = with_a_key(mutant)?;
        SHARD.iter().for_each(|&node| if node == knows { world.lose_data(node) } else { world.wipe(node) });
        SHARD.iter().for_each(|&node| world.start(node));
        stay_unready(&mut world, &SHARD)?;
        comes_back_empty(&mut world, &[knows])?;
    }
    Ok(())
}

/// Nobody is left who could tell the topology.
pub fn a_cluster_that_has_lost_all_its_data_is_not_formed_anew(mutant: Option<Mutant>) -> Result<(), String> {
    let all = [0, 1, 2, 3, 4, 5];
    for knows in [0, 4] {
        let mut world = with_a_key(mutant)?;
        all.iter().for_each(|&node| if node == knows { world.lose_data(node) } else { world.wipe(node) });
        all.iter().for_each(|&node| world.start(node));
        stay_unready(&mut world, &all)?;
        comes_back_empty(&mut world, &[knows])?;
    }
    Ok(())
}

/// It learns the topology before it is filled, and is then started again.
pub fn a_loss_is_remembered_until_the_replica_is_whole(mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = with_a_key(mutant)?;
    SHARD.iter().for_each(|&node| world.kill(node));
    world.lose_data(0);
    world.start(0);
    wait_for(&mut world, 2_000, "the topology", |world| world.core(0).is_some_and(|core| core.topology().is_some()))?;
    world.wipe(1);
    world.wipe(2);
    start_again(&mut world, &[0], &Past::InStore);
    [1, 2].iter().for_each(|&node| world.start(node));
    stay_unready(&mut world, &SHARD)?;
    comes_back_empty(&mut world, &[0])
}

/// Where the others of its shard have the data, it gets it from them, and then what happens to it is like anybody's.
pub fn who_has_lost_its_data_is_filled_by_its_peers() -> Result<(), String> {
    let mut world = with_a_key(None)?;
    world.lose_data(1);
    world.start(1);
    // Meanwhile nobody waits for it.
    let began_ms = world.now_ms;
    let written = ask(&mut world, 0, 2, put(&staying(), "2"), None);
    if !matches!(written, Some(Answer::Replaced { .. })) || world.now_ms - began_ms > 300 {
        return Err(format!("answered {written:?} after {} ms", world.now_ms - began_ms));
    }
    wait_for(&mut world, 3_000, "the replica to be filled", World::all_ready)?;
    world.kill(0);
    world.kill(2);
    match ask(&mut world, 1, 3, get(&staying()), None) {
        Some(Answer::Found { .. }) => {}
        other => return Err(format!("it was filled, and answers {other:?}")),
    }
    start_again(&mut world, &[1], &Past::InStore);
    wait_for(&mut world, 3_000, "the replica that is whole again", |world| world.is_ready(1))
}

/// One that can't know that it had data learns it from the cluster: it is filled, and says so.
pub fn who_comes_back_with_nothing_says_so() -> Result<(), String> {
    let mut world = with_a_key(None)?;
    let says = |world: &World| world.said.iter().any(|said| said.contains("with data that is not here"));
    if says(&world) {
        return Err("it is said of nodes that start for the first time".into());
    }
    world.wipe(1);
    world.start(1);
    wait_for(&mut world, 3_000, "the replica to be filled", World::all_ready)?;
    if says(&world) { Ok(()) } else { Err("nobody says that data is missing".into()) }
}
