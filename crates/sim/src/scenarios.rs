//! Schedules made by hand, for what random ones hit too rarely.

use kvnode_core::admin::AdminOp;
use kvnode_core::request::{Answer, Op};
use kvnode_core::room::Room;
use kvnode_core::settings::Mutant;
use kvnode_core::store::Version;
use kvnode_core::topology::Transition;
use kvnode_types::ident::{Key, SLOT_COUNT, ShardId, Slot};

use crate::reshard::{VALUE, cluster, context_of, cut, epoch_at, holds, put, staying, wait_for};
use crate::world::{Weather, World};

/// Asks a node and gives its answer.
pub fn ask(world: &mut World, node: usize, id: u64, op: Op, token: Option<&String>) -> Option<Answer<String>> {
    world.request(node, id, op, token.cloned().into_iter().collect());
    world.run_until(5_000, |world| world.answers.iter().any(|(answered, _)| *answered == id));
    world.answers.pop().and_then(|(_, answer)| answer)
}

/// The key of a shard's node: the first that the node itself serves without asking others.
fn key_of_first_shard(world: &World) -> String {
    let slots = |key: &str| Slot::of(key).0 < SLOT_COUNT / 2;
    assert!(world.is_up(0));
    (0..).map(|number| format!("key-{number}")).find(|key| slots(key)).expect("half of all keys")
}

/// All replicas of a shard have received a write and none has it on its disk; one loses power, comes back without it, and is
/// cut off. It must not serve the writer from its older state: the write is durable nowhere there, so the writer's context
/// must still name it.
pub fn a_received_write_is_not_stable(mutant: Option<Mutant>) -> Result<(), String> {
    // Seed 10: nodes sync rarely.
    let mut world = World::new(10, 6, 2, 1 << 20, mutant);
    (0..6).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    // Just after a sync, so that the next one is far away.
    world.run_until(3_200 - world.now_ms, |_| false);
    let key = key_of_first_shard(&world);
    let put = |value: &'static str| Op::Put { key: key.as_str().into(), value: value.into() };
    let Some(Answer::Created { context, .. }) = ask(&mut world, 0, 1, put("1"), None) else {
        return Err("a healthy cluster refuses a write".into());
    };
    world.run_until(700, |_| false);
    // Another request hands out the context anew, less what the cluster takes for stable.
    let get = || Op::Get { key: key.as_str().into() };
    let Some(Answer::Found { context, .. }) = ask(&mut world, 0, 2, get(), Some(&context)) else {
        return Err("a healthy cluster does not have what was written".into());
    };
    world.lose_all_unsynced(1);
    for other in (0..6).filter(|&other| other != 1) {
        world.weather.insert((1, other), Weather { cut: true, ..Weather::FAIR });
        world.weather.insert((other, 1), Weather { cut: true, ..Weather::FAIR });
    }
    world.start(1);
    match ask(&mut world, 1, 3, get(), Some(&context)) {
        Some(Answer::Unsatisfied { .. }) => Ok(()),
        other => Err(format!("a replica without the write answers its writer {other:?}")),
    }
}

/// A replica has no room for a moment, and drops a write. When it has room again the next write shows what it lacks, and that comes at
/// once, not when an acknowledgement has been waited for or the lag has lasted.
pub fn what_a_replica_dropped_comes_with_the_next_write(mutant: Option<Mutant>) -> Result<(), String> {
    let (mut world, key) = (cluster(mutant), staying());
    world.request(0, 1, put(&key, "1"), Vec::new());
    wait_for(&mut world, 100, "the write at its node", |world| holds(world, 0, &key))?;
    // The batch is on its way.
    world.set_room(1, Room::None);
    world.run_until(8, |_| false);
    if holds(&world, 1, &key) {
        return Err("it had no room".into());
    }
    world.set_room(1, Room::Enough);
    world.request(0, 2, put(&key, "2"), Vec::new());
    wait_for(&mut world, 150, "the write that was dropped, and the one after it", |world| holds(world, 1, &key))
}

/// A replica repairs from another in many steps, and that one is lost halfway, with all that it alone had. What was brought over is at one
/// replica only, and no vector tells: the others have to get it all the same.
pub fn what_an_abandoned_repair_brought_reaches_all(mutant: Option<Mutant>) -> Result<(), String> {
    const KEYS: u64 = 1_600;
    let mut world = World::new(11, 6, 2, 2_000, mutant);
    (0..6).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    cut(&mut world, &[0, 1], &[2]);
    world.run_until(3_000, |_| false);
    let own = |number: &u64| Slot::of(&format!("key-{number}")).0 < SLOT_COUNT / 2;
    for number in (0..).filter(own).take(KEYS as usize) {
        let key: Key = format!("key-{number}").as_str().into();
        world.request(2, number + 1, put(&key, "1"), Vec::new());
        world.run_until(5, |_| false);
    }
    world.run_until(1_000, |_| false);
    for (from, to) in [(0, 2), (2, 0)] {
        world.weather.insert((from, to), Weather { delay_ms: (40, 40), ..Weather::FAIR });
    }
    let count =
        |world: &World, node: usize| world.core(node).and_then(|core| core.contents().ok()).map_or(0, |all| all.len());
    wait_for(&mut world, 8_000, "a part of it", |world| count(world, 0) > 0)?;
    world.wipe(2);
    if count(&world, 0) as u64 == KEYS {
        return Err("all of it came at once".into());
    }
    world.weather.clear();
    world.start(2);
    wait_for(&mut world, 8_000, "the lost one is filled", |world| world.is_ready(2))?;
    wait_for(&mut world, 8_000, "equal replicas", |world| {
        let counts: Vec<usize> = (0..3).map(|node| count(world, node)).collect();
        counts[0] > 0 && counts.iter().all(|&other| other == counts[0])
    })
}

/// A replica has repaired from another all that this had when it began, and with it some of what came to that one meanwhile. No vector
/// covers the latter, and then the other is lost.
pub fn what_a_repair_brought_beyond_its_end_reaches_all(mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = brought_beyond_its_end(mutant)?;
    equal_when_node_2_is_back(&mut world)
}

/// The same where the one that has it starts again meanwhile, and the one that was lost never comes back: what it owes to the others is
/// on its disk.
pub fn what_a_repair_brought_beyond_its_end_outlives_a_restart() -> Result<(), String> {
    let mut world = brought_beyond_its_end(None)?;
    world.kill(0);
    world.start(0);
    world.weather.clear();
    equal_when_node_2_is_removed(&mut world)
}

/// The same where the one that was lost is removed: the layout before is over only when the others have it.
pub fn what_a_repair_brought_beyond_its_end_reaches_all_before_a_change_ends() -> Result<(), String> {
    let mut world = brought_beyond_its_end(None)?;
    world.weather.clear();
    // A comparison takes longer than a decision.
    for way in [(0, 1), (1, 0)] {
        world.weather.insert(way, Weather { delay_ms: (90, 90), ..Weather::FAIR });
    }
    equal_when_node_2_is_removed(&mut world)
}

fn equal_when_node_2_is_removed(world: &mut World) -> Result<(), String> {
    let addr = world.nodes[2].addr.clone();
    world.admin(3, 1, AdminOp::RemoveNode(addr));
    let removed =
        |world: &World| world.topology().is_some_and(|it| it.nodes.len() == 5 && it.transition == Transition::Steady);
    wait_for(world, 20_000, "the removal", removed)?;
    if contents(world, 0) == contents(world, 1) { Ok(()) } else { Err("the change is over, and they differ".into()) }
}

/// The same where the one that was lost is removed while another change is being finished: nobody waits for it to compare.
pub fn who_was_written_off_need_not_compare() -> Result<(), String> {
    let mut world = brought_beyond_its_end(None)?;
    world.weather.clear();
    world.start(6);
    let addr = world.nodes[6].addr.clone();
    world.admin(3, 1, AdminOp::AddNode(addr.clone()));
    wait_for(&mut world, 8_000, "the joiner", |world| world.core(6).is_some_and(|core| core.topology().is_some()))?;
    world.admin(3, 2, AdminOp::AddMember { shard: ShardId(1), addr });
    let living = [0, 1, 3, 4, 5, 6];
    wait_for(&mut world, 8_000, "the flip", |world| living.iter().all(|&node| epoch_at(world, node) == 2))?;
    world.run_until(2_000, |_| false);
    let addr = world.nodes[2].addr.clone();
    world.admin(3, 3, AdminOp::RemoveNode(addr));
    let removed =
        |world: &World| world.topology().is_some_and(|it| it.nodes.len() == 6 && it.transition == Transition::Steady);
    wait_for(&mut world, 20_000, "the end of both changes", removed)?;
    let equal = |world: &World| [1, 6].iter().all(|&node| contents(world, node) == contents(world, 0));
    if equal(&world) { Ok(()) } else { Err("both changes are over, and the replicas differ".into()) }
}

fn equal_when_node_2_is_back(world: &mut World) -> Result<(), String> {
    world.weather.clear();
    world.start(2);
    wait_for(world, 8_000, "the lost one is filled", |world| world.is_ready(2))?;
    let equal = |world: &World| (1..3).all(|node| contents(world, node) == contents(world, 0));
    wait_for(world, 8_000, "equal replicas", equal)
}

fn contents(world: &World, node: usize) -> Vec<(Key, Version)> {
    world.core(node).and_then(|core| core.contents().ok()).unwrap_or_default()
}

/// Node 0 has what node 2 alone had, and something that came to that meanwhile; node 1 has the former. Node 2 is down, without its data.
fn brought_beyond_its_end(mutant: Option<Mutant>) -> Result<World, String> {
    const KEYS: usize = 1_600;
    let mut world = World::new(11, 6, 2, 2_000, mutant);
    (0..6).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    cut(&mut world, &[0, 1, 2], &[0, 1, 2]);
    world.run_until(3_000, |_| false);
    let own = |key: &String| Slot::of(key).0 < SLOT_COUNT / 2;
    let keys: Vec<Key> =
        (0..).map(|number| format!("key-{number}")).filter(own).take(KEYS).map(|key| key.as_str().into()).collect();
    for (id, key) in (1..).zip(&keys) {
        world.request(2, id, put(key, "1"), Vec::new());
        world.run_until(5, |_| false);
    }
    world.run_until(1_000, |_| false);
    let connect = |world: &mut World, one: usize, delay_ms: u64| {
        for way in [(one, 2), (2, one)] {
            world.weather.insert(way, Weather { delay_ms: (delay_ms, delay_ms), ..Weather::FAIR });
        }
    };
    connect(&mut world, 1, 1);
    wait_for(&mut world, 8_000, "node 1 has all", |world| contents(world, 1).len() == KEYS)?;
    cut(&mut world, &[1], &[2]);
    connect(&mut world, 0, 40);
    wait_for(&mut world, 8_000, "a part of it", |world| !contents(world, 0).is_empty())?;
    // In slots that are still to come.
    let late = keys.iter().filter(|key| Slot::of(key).0 > SLOT_COUNT / 2 - 500).take(20);
    for (id, key) in (10_000..).zip(late) {
        world.request(2, id, put(key, "2"), Vec::new());
    }
    wait_for(&mut world, 8_000, "all of it", |world| contents(world, 0).len() == KEYS)?;
    world.wipe(2);
    if contents(&world, 0) == contents(&world, 1) {
        return Err("nothing came that was written meanwhile".into());
    }
    Ok(world)
}

/// A replica that was away compares a slot of many pages with another's: equal versions, stale ones and lacking ones, on all pages, and
/// more than one answer holds. It ends with all of them, and loses none.
pub fn a_slot_of_many_pages_is_compared_whole() -> Result<(), String> {
    const KEYS: usize = 200;
    // The log holds one of the values.
    let mut world = World::new(11, 6, 2, 8 << 10, None);
    (0..6).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    world.run_until(1_500, |_| false);
    let slot = Slot::of(&staying());
    let of_slot = (0..).map(|number| Key::from(format!("key-{number}"))).filter(|key| Slot::of(key) == slot);
    let keys: Vec<Key> = of_slot.take(KEYS).collect();
    let is_lacking = |at: usize| at % 7 == 3;
    let is_stale = |at: usize| !at.is_multiple_of(5);
    let mut id = 1_000;
    let mut put_all = |world: &mut World, value, which: &dyn Fn(usize) -> bool| {
        for key in keys.iter().enumerate().filter(|(at, _)| which(*at)).map(|(_, key)| key) {
            id += 1;
            world.request(0, id, put(key, value), Vec::new());
            world.run_until(10, |_| false);
        }
        world.run_until(1_000, |_| false);
        world.answers.clear();
    };
    put_all(&mut world, "1", &|at| !is_lacking(at));
    world.kill(2);
    put_all(&mut world, VALUE, &|at| is_lacking(at) || is_stale(at));
    world.start(2);
    wait_for(&mut world, 10_000, "all are ready", World::all_ready)?;
    world.run_until(2_000, |_| false);
    for (at, key) in keys.iter().enumerate() {
        let wanted = if is_lacking(at) || is_stale(at) { VALUE } else { "1" };
        match ask(&mut world, 2, 10 + at as u64, Op::Get { key: key.clone() }, None) {
            Some(Answer::Found { value, .. }) if value == wanted => {}
            other => return Err(format!("key {at}: {:.80}", format!("{other:?}"))),
        }
    }
    Ok(())
}

/// What versions depend on is dropped once everybody has it, in a slot that is too large to be looked through at once, too, and
/// whatever is written meanwhile.
pub fn what_a_large_slot_depends_on_is_forgotten() -> Result<(), String> {
    const KEYS: usize = 1_500;
    let mut world = World::new(12, 6, 2, 64 << 20, None);
    (0..6).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    let slot = Slot::of(&staying());
    let of_slot = (0..).map(|number| Key::from(format!("key-{number}"))).filter(|key| Slot::of(key) == slot);
    let keys: Vec<Key> = of_slot.take(KEYS).collect();
    let is_elsewhere = |key: &Key| (Slot::of(key).0 < SLOT_COUNT / 2) != (slot.0 < SLOT_COUNT / 2);
    let other = (0..).map(|number| Key::from(format!("other-{number}"))).find(is_elsewhere).expect("there are enough");
    let mut id = 1_000;
    let mut put_after_another = |world: &mut World, key: &Key| {
        id += 2;
        let token = context_of(ask(world, 3, id, put(&other, "1"), None)).expect("a healthy cluster");
        world.request(0, id + 1, put(key, "1"), vec![token]);
    };
    for key in &keys {
        put_after_another(&mut world, key);
    }
    let replicas: Vec<usize> =
        (0..6).filter(|&node| !contents(&world, node).iter().any(|(key, _)| *key == other)).collect();
    assert_eq!(replicas.len(), 3, "those of the other shard");
    let dependent = |world: &World| -> usize {
        let all = replicas.iter().flat_map(|&node| contents(world, node));
        all.filter(|(_, version)| !version.deps.is_empty()).count()
    };
    assert!(dependent(&world) > 100, "{} versions depend on something", dependent(&world));
    wait_for(&mut world, 10_000, "none depends on anything", |world| dependent(world) == 0)?;
    for round in 0..30 {
        put_after_another(&mut world, &keys[KEYS - 1]);
        // In one of the rounds this is in the middle of the last look through the slot that the write before makes necessary.
        world.run_until(50 * round, |_| false);
        put_after_another(&mut world, &keys[0]);
        world.run_until(4_000, |_| false);
        if dependent(&world) > 0 {
            return Err(format!("round {round}: {} versions still depend on something", dependent(&world)));
        }
    }
    Ok(())
}

/// Tombstones of more deletions than a tick looks at when nothing is deleted: the sweep keeps up with them.
pub fn deletions_are_forgotten_as_fast_as_they_come() -> Result<(), String> {
    const TICKS: usize = 180;
    const PER_TICK: usize = 600;
    /// Few, so that what looking at a slot costs beside its versions does not count.
    const SLOTS: u16 = 400;
    let mut world = World::new(13, 1, 1, 1 << 20, None);
    world.start(0);
    assert!(world.run_until(5_000, World::all_ready));
    let of_few_slots = (0..).map(|number| Key::from(format!("key-{number}"))).filter(|key| Slot::of(key).0 < SLOTS);
    let keys: Vec<Key> = of_few_slots.take(TICKS * PER_TICK).collect();
    let mut id = 1_000;
    for of_tick in keys.chunks(PER_TICK) {
        for op in [|key: &Key| put(key, "1"), |key: &Key| Op::Delete { key: key.clone() }] {
            for key in of_tick {
                id += 1;
                world.request(0, id, op(key), Vec::new());
            }
            world.run_until(12, |_| false);
        }
    }
    let kept = contents(&world, 0).len();
    // What was deleted in the last second is not settled yet.
    if kept > keys.len() / 2 { Err(format!("{kept} of {} tombstones are kept", keys.len())) } else { Ok(()) }
}
