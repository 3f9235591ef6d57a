//! Requests that meet one fault after another. The world judges how long each may take; here they are made to take long.

use kvnode_core::request::{Answer, Op};

use crate::reshard::{cluster, context_of, cut, get, key_in, put};
use crate::scenarios::ask;
use crate::world::World;

/// Asks node 0 for a key of the other shard whose replicas fall silent one after another, each just before its turn.
fn ask_while_all_fall_silent(op: Op) -> Option<Answer<String>> {
    let mut world = cluster(None);
    world.run_until(2_000, |_| false);
    world.request(0, 1, op, Vec::new());
    for replica in [4, 5, 3] {
        cut(&mut world, &[0], &[replica]);
        world.run_until(900, |_| false);
    }
    world.run_until(5_000, |world| !world.answers.is_empty());
    world.answers.pop().and_then(|(_, answer)| answer)
}

pub fn silences_do_not_add_up() -> Result<(), String> {
    let key = key_in(8_192..16_384);
    match ask_while_all_fall_silent(get(&key)) {
        Some(Answer::NoReplica { .. }) => {}
        other => return Err(format!("a read is answered {other:?}")),
    }
    match ask_while_all_fall_silent(put(&key, "1")) {
        Some(Answer::NoReplica { .. } | Answer::OutcomeUnknown) => Ok(()),
        other => Err(format!("a write is answered {other:?}")),
    }
}

/// When each answer came, in ms after the request.
fn took_ms(world: &mut World, node: usize, id: u64, op: Op, token: &String) -> (u64, Option<Answer<String>>) {
    let begun = world.now_ms;
    let answer = ask(world, node, id, op, Some(token));
    (world.now_ms - begun, answer)
}

/// A replica that was asked waits for a dependency, and leaves; the one that is asked next must not begin to wait anew.
pub fn the_wait_for_dependencies_counts_from_the_arrival() -> Result<(), String> {
    let mut world = cluster(None);
    world.run_until(2_000, |_| false);
    let (key, other) = (key_in(8_192..12_000), key_in(12_000..16_384));
    let known = context_of(ask(&mut world, 0, 1, put(&other, "1"), None))?;
    world.run_until(2_000, |_| false);
    // Only node 5 gets this, and nobody else hears of it.
    cut(&mut world, &[5], &[0, 1, 2, 3, 4]);
    let seen = context_of(ask(&mut world, 5, 2, put(&other, "2"), Some(&known)))?;
    world.run_until(4_000, |_| false);
    let (alone, answer) = took_ms(&mut world, 0, 3, get(&key), &seen);
    if !matches!(answer, Some(Answer::Unsatisfied { .. })) || !(900..1_300).contains(&alone) {
        return Err(format!("a dependency that nobody has is answered {answer:?} after {alone} ms"));
    }
    let begun = world.now_ms;
    world.request(0, 4, get(&key), vec![seen]);
    world.run_until(800, |_| false);
    let asked = [3, 4].into_iter().find(|&node| world.core(node).is_some_and(|core| core.status().parked > 0));
    let asked = asked.ok_or("nobody waits for the dependency")?;
    world.drain(asked);
    world.run_until(3_000, |world| !world.answers.is_empty());
    let took = world.now_ms - begun;
    match world.answers.pop() {
        Some((4, Some(Answer::Unsatisfied { .. }))) if took < 1_300 => Ok(()),
        other => Err(format!("answered {other:?} after {took} ms")),
    }
}
