//! Schedules made by hand around a reshard of six nodes from two shards to three, for what random ones hit too rarely.
//!
//! Nodes 0 to 2 are shard s1, nodes 3 to 5 shard s2. Node 2 and node 5 become shard s3: node 2 has to fetch slots from s2, and
//! node 5 from s1.

use std::collections::BTreeMap;

use kvnode_core::admin::AdminOp;
use kvnode_core::request::{Answer, Op};
use kvnode_core::settings::Mutant;
use kvnode_core::topology::Transition;
use kvnode_types::ident::{Key, ShardId, Slot};

use crate::scenarios::ask;
use crate::world::{Weather, World};

/// A number of eight kilobytes.
pub const VALUE: &str = {
    const BYTES: [u8; 8_192] = [b'0'; 8_192];
    match std::str::from_utf8(&BYTES) {
        Ok(text) => text,
        Err(_) => unreachable!(),
    }
};

pub const CUT: Weather = Weather { cut: true, ..Weather::FAIR };

pub fn cluster(mutant: Option<Mutant>) -> World {
    let mut world = World::new(11, 6, 2, 1 << 20, mutant);
    (0..6).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    // Everybody in contact, and a leader there.
    world.run_until(1_500, |_| false);
    world
}

pub fn cut(world: &mut World, some: &[usize], others: &[usize]) {
    for &one in some {
        for &other in others.iter().filter(|&&other| other != one) {
            world.weather.insert((one, other), CUT);
            world.weather.insert((other, one), CUT);
        }
    }
}

/// A key whose slot is in `range`.
pub fn key_in(range: std::ops::Range<u16>) -> Key {
    let found = (0..).map(|number| format!("key-{number}")).find(|key| range.contains(&Slot::of(key).0));
    found.expect("every slot has keys").as_str().into()
}

/// Of shard s1 before, of s3 after.
pub fn moving() -> Key {
    key_in(5_470..8_192)
}

/// Of shard s1 before and after.
pub fn staying() -> Key {
    key_in(0..5_460)
}

pub fn put(key: &Key, value: &'static str) -> Op {
    Op::Put { key: key.clone(), value: value.into() }
}

pub fn get(key: &Key) -> Op {
    Op::Get { key: key.clone() }
}

pub fn reshard(world: &mut World, at: usize) {
    world.admin(at, 1, AdminOp::Reshard { count: 3, epoch: None, at_once: false });
}

pub fn epoch_at(world: &World, node: usize) -> u32 {
    world.core(node).and_then(|core| core.topology()).map_or(0, |topology| topology.layout.epoch.0)
}

pub fn context_of(answer: Option<Answer<String>>) -> Result<String, String> {
    match answer {
        Some(
            Answer::Created { context, .. }
            | Answer::Replaced { context, .. }
            | Answer::Found { context, .. }
            | Answer::NotFound { context, .. },
        ) => Ok(context),
        other => Err(format!("a healthy replica answers {other:?}")),
    }
}

pub fn wait_for(world: &mut World, limit_ms: u64, what: &str, done: impl FnMut(&World) -> bool) -> Result<(), String> {
    if world.run_until(limit_ms, done) { Ok(()) } else { Err(format!("{what}: not within {limit_ms} ms")) }
}

/// A node that has missed the flip must not answer a client that has seen the new layout from what it has, even if nothing
/// else in the client's context tells.
pub fn a_node_behind_the_contexts_layout_does_not_answer_by_its_own(mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = cluster(mutant);
    let key = moving();
    context_of(ask(&mut world, 0, 1, put(&key, "1"), None))?;
    world.run_until(500, |_| false);
    // Out of everybody's view: it is not moved, and misses the flip.
    cut(&mut world, &[0], &[1, 2, 3, 4, 5]);
    world.run_until(4_000, |_| false);
    reshard(&mut world, 4);
    wait_for(&mut world, 8_000, "the flip", |world| (1..6).all(|node| epoch_at(world, node) == 2))?;
    let owner = |world: &World| world.shards()[2][0];
    let at = owner(&world);
    let context = context_of(ask(&mut world, at, 2, put(&key, "2"), None))?;
    // Once it is stable the context need not name it any more.
    world.run_until(1_500, |_| false);
    let context = context_of(ask(&mut world, at, 3, get(&key), Some(&context)))?;
    match ask(&mut world, 0, 4, get(&key), Some(&context)) {
        Some(Answer::Unsatisfied { .. }) => Ok(()),
        other => Err(format!("a node of the old layout answers {other:?}")),
    }
}

/// What is written after a copy was made must stay in the contexts of those who saw it, however durable it is in the old shard:
/// the new owner does not have it yet.
pub fn nothing_becomes_stable_while_slots_are_copied(mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = cluster(mutant);
    let key = moving();
    context_of(ask(&mut world, 0, 1, put(&key, "1"), None))?;
    world.run_until(1_000, |_| false);
    // One of the new owners can't copy yet, so the flip has to wait.
    cut(&mut world, &[2], &[3, 4, 5]);
    reshard(&mut world, 0);
    let copied = |world: &World, node: usize| world.core(node).is_some_and(|core| core.has_copies());
    wait_for(&mut world, 3_000, "the copy", |world| copied(world, 5))?;
    // Its copy is made; what comes now does not reach it.
    cut(&mut world, &[5], &[0, 1, 2]);
    let context = context_of(ask(&mut world, 0, 2, put(&key, "2"), None))?;
    world.run_until(850, |_| false);
    let context = context_of(ask(&mut world, 1, 3, get(&key), Some(&context)))?;
    world.weather.retain(|&(from, to), _| from == 5 || to == 5);
    wait_for(&mut world, 3_000, "the flip", |world| epoch_at(world, 5) == 2)?;
    match ask(&mut world, 5, 4, get(&key), Some(&context)) {
        Some(Answer::Unsatisfied { .. }) => Ok(()),
        other => Err(format!("a new owner without the write answers its writer {other:?}")),
    }
}

/// The slots of one shard become two shards'. A write under the new layout that depends on one under the old carries that
/// dependency to the other heir, which the writer's own dot does not stand for.
pub fn a_dependency_reaches_both_heirs(mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = cluster(mutant);
    let (moves, stays) = (moving(), staying());
    context_of(ask(&mut world, 0, 1, put(&moves, "1"), None))?;
    world.run_until(1_000, |_| false);
    cut(&mut world, &[2], &[3, 4, 5]);
    reshard(&mut world, 0);
    let copied = |world: &World, node: usize| world.core(node).is_some_and(|core| core.has_copies());
    wait_for(&mut world, 3_000, "the copy", |world| copied(world, 5))?;
    // Neither of the new owners gets what is written now: node 2 is cut off from its old shard, too, once it has copied.
    cut(&mut world, &[5], &[0, 1, 2]);
    world.weather.retain(|&(from, to), _| from == 5 || to == 5);
    wait_for(&mut world, 2_000, "the other copy", |world| copied(world, 2))?;
    cut(&mut world, &[2], &[0, 1]);
    let context = context_of(ask(&mut world, 0, 2, put(&moves, "2"), None))?;
    wait_for(&mut world, 3_000, "the flip", |world| [0, 1, 2, 5].iter().all(|&node| epoch_at(world, node) == 2))?;
    context_of(ask(&mut world, 0, 3, put(&stays, "3"), Some(&context)))?;
    wait_for(&mut world, 1_000, "its copy", |world| holds(world, 1, &stays))?;
    // Somebody else reads only what depends on it.
    let context = context_of(ask(&mut world, 1, 4, get(&stays), None))?;
    match ask(&mut world, 5, 5, get(&moves), Some(&context)) {
        Some(Answer::Unsatisfied { .. }) => Ok(()),
        other => Err(format!("a new owner without the dependency answers {other:?}")),
    }
}

/// A new owner that lost its copies between saying that it has them and the flip must not serve.
pub fn a_new_owner_without_copies_does_not_serve(mutant: Option<Mutant>) -> Result<(), String> {
    // Seed 10: nodes sync rarely.
    let mut world = World::new(10, 6, 2, 1 << 20, mutant);
    (0..6).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    let key = moving();
    context_of(ask(&mut world, 0, 1, put(&key, "1"), None))?;
    // Just after a sync, so that the next one is far away.
    world.run_until(4_700 - world.now_ms, |_| false);
    reshard(&mut world, 0);
    let copied = |world: &World, node: usize| world.core(node).is_some_and(|core| core.has_copies());
    wait_for(&mut world, 1_000, "the copy", |world| copied(world, 5))?;
    // It says so, and hears no more: that the flip comes is not on its disk, and neither is what it copied.
    world.run_until(12, |_| false);
    cut(&mut world, &[5], &[0, 1, 2, 3, 4]);
    wait_for(&mut world, 1_000, "the flip", |world| epoch_at(world, 3) == 2)?;
    if epoch_at(&world, 5) == 2 {
        return Err("the schedule does not show it: the node flips too early".into());
    }
    world.lose_all_unsynced(5);
    world.weather.retain(|&(from, to), _| from < 3 || to < 3);
    world.start(5);
    wait_for(&mut world, 3_000, "the flip of the last", |world| epoch_at(world, 5) == 2)?;
    world.run_until(100, |_| false);
    let has_it = world.core(5).is_some_and(|core| core.contents().is_ok_and(|all| all.iter().any(|(k, _)| *k == key)));
    match (world.is_ready(5), has_it) {
        (true, false) => Err("a new owner serves slots that it does not have".into()),
        _ => Ok(()),
    }
}

/// An old member that slept through a deletion hands over what it has, the deleted value included: the new owners must still
/// know of the deletion then.
pub fn a_deletion_is_remembered_until_the_last_old_member_has_handed_over(
    mutant: Option<Mutant>,
) -> Result<(), String> {
    let mut world = cluster(mutant);
    let key = moving();
    let context = context_of(ask(&mut world, 0, 1, put(&key, "1"), None))?;
    world.run_until(1_000, |_| false);
    cut(&mut world, &[0], &[1, 2, 3, 4, 5]);
    // Something that only the sleeper has, so that there is a reason to fetch from it.
    let other = key_in(Slot::of(&key).0 + 1..8_192);
    context_of(ask(&mut world, 0, 2, put(&other, "2"), None))?;
    world.run_until(3_000, |_| false);
    match ask(&mut world, 1, 3, Op::Delete { key: key.clone() }, Some(&context)) {
        Some(Answer::Deleted { .. }) => {}
        other => return Err(format!("a healthy replica answers a deletion with {other:?}")),
    }
    reshard(&mut world, 4);
    wait_for(&mut world, 8_000, "the flip", |world| (1..6).all(|node| epoch_at(world, node) == 2))?;
    // Long enough for the deletion to be durable at all new owners, and forgotten if it could be.
    world.run_until(5_000, |_| false);
    // The sleeper hears of the deletion only after it has handed over.
    world.weather.clear();
    cut(&mut world, &[0], &[1]);
    wait_for(&mut world, 3_000, "the handing over", |world| holds(world, 5, &other))?;
    match ask(&mut world, 5, 4, get(&key), None) {
        Some(Answer::NotFound { .. }) => Ok(()),
        other => Err(format!("a deleted key is answered with {other:?}")),
    }
}

pub fn holds(world: &World, node: usize, key: &Key) -> bool {
    let all = world.core(node).and_then(|core| core.contents().ok()).unwrap_or_default();
    all.iter().any(|(other, _)| other == key)
}

/// An old member covers, as a replica of the shard that it is in now, writes whose slots it does not have. It must not tell a
/// new owner of those slots that they were deleted.
pub fn what_an_old_member_covers_elsewhere_says_nothing_of_slots_it_gave_away(
    mutant: Option<Mutant>,
) -> Result<(), String> {
    // A log so short that a replica that lags has to be repaired from the store.
    let mut world = World::new(11, 6, 2, 200, mutant);
    (0..6).for_each(|node| world.start(node));
    assert!(world.run_until(5_000, World::all_ready));
    world.run_until(1_500, |_| false);
    let key = moving();
    let other = key_in(Slot::of(&key).0 + 1..8_192);
    // Two old members don't hear each other, and each has something of its own.
    cut(&mut world, &[1], &[0, 2]);
    world.run_until(600, |_| false);
    context_of(ask(&mut world, 0, 1, put(&key, "1"), None))?;
    for (id, number) in (2..6).zip(0..) {
        let filler = key_in(number * 1_000..number * 1_000 + 1_000);
        context_of(ask(&mut world, 0, id, put(&filler, "9"), None))?;
    }
    context_of(ask(&mut world, 1, 10, put(&other, "2"), None))?;
    world.run_until(1_000, |_| false);
    // The new owners get everything of the first, nothing of the second.
    cut(&mut world, &[2, 5], &[1]);
    reshard(&mut world, 4);
    wait_for(&mut world, 8_000, "the flip", |world| (0..6).all(|node| epoch_at(world, node) == 2))?;
    wait_for(&mut world, 3_000, "the handing over", |world| holds(world, 5, &key))?;
    // The second is repaired from the first, in the slots that both still have.
    cut(&mut world, &[2, 5], &[0]);
    world.weather.remove(&(0, 1));
    world.weather.remove(&(1, 0));
    world.run_until(3_000, |_| false);
    // Now it hands over what it has.
    for new in [2, 5] {
        world.weather.remove(&(new, 1));
        world.weather.remove(&(1, new));
    }
    wait_for(&mut world, 3_000, "the rest of the handing over", |world| holds(world, 5, &other))?;
    if holds(&world, 5, &key) { Ok(()) } else { Err("an acknowledged write is taken for deleted".into()) }
}

/// The plan is what the schedules above rely on.
pub fn the_third_shard_is_made_of_nodes_two_and_five() {
    let mut world = cluster(None);
    reshard(&mut world, 1);
    assert!(world.run_until(10_000, |world| epoch_at(world, 0) == 2 && world.all_ready()));
    let topology = world.topology().expect("formed").clone();
    assert_eq!(topology.transition, Transition::Steady);
    assert_eq!(world.shards(), [vec![0, 1], vec![3, 4], vec![2, 5]]);
    assert_eq!(topology.layout.shard_of_slot(Slot::of(&moving())), ShardId(3));
    assert_eq!(topology.layout.shard_of_slot(Slot::of(&staying())), ShardId(1));
}

/// However often the layout changes, what is stored and what clients carry stays as small as after the first change, and a
/// client that was away for all of it is served by its old context.
pub fn many_changes_leave_nothing_behind(changes: u32) {
    let mut world = cluster(None);
    let (key, other) = (moving(), staying());
    let old = context_of(ask(&mut world, 0, 1, put(&key, "1"), None)).expect("a healthy cluster");
    let mut token = Some(old.clone());
    let (mut first, mut id) = (None, 10);
    for change in 0..changes {
        let count = if change % 2 == 0 { 3 } else { 2 };
        world.admin(change as usize % 6, u64::from(change), AdminOp::Reshard { count, epoch: None, at_once: false });
        // Written while it goes on, so that there is something to hand over.
        for _ in 0..3 {
            id += 1;
            let answer = ask(&mut world, id as usize % 6, id, put(&other, "2"), token.as_ref());
            token = Some(context_of(answer).expect("a healthy cluster"));
        }
        let done = |world: &World| (0..6).all(|node| epoch_at(world, node) == change + 2) && world.all_ready();
        assert!(world.run_until(20_000, done), "change {change} does not end");
        if change == 1 || change + 1 == changes {
            world.run_until(2_000, |_| false);
            let context = context_of(ask(&mut world, 1, id + 5, get(&other), token.as_ref())).expect("healthy");
            let entries: usize = (0..6).filter_map(|node| Some(world.core(node)?.status().vector_entries)).sum();
            let topology = world.topology().map(kvnode_size).expect("formed");
            let (short, few, early) = *first.get_or_insert((context.len(), entries, topology));
            assert_eq!(entries, few, "after {} changes", change + 1);
            // The number of the layout itself takes another byte now and then.
            assert!(context.len() <= short + 4, "after {} changes: {} characters", change + 1, context.len());
            // Numbers of epochs, nodes and jobs grow by a byte or two, and decisions are remembered up to a limit.
            assert!(topology < early + 64 * 128, "the topology grew from {early} to {topology} bytes");
        }
        id += 10;
    }
    assert_eq!(context_of(ask(&mut world, 3, 5, get(&key), Some(&old))).map(|_| ()), Ok(()));
}

fn kvnode_size(topology: &kvnode_core::topology::Topology) -> usize {
    postcard::to_stdvec(topology).expect("it can be stored").len()
}

/// Clients at all nodes write back to back through a reshard, on links of 1 to 5 ms. None of them waits much longer than at other times,
/// and none is answered with one copy: what was written under the layout before and not acknowledged yet goes on to the others.
pub fn nobody_waits_for_a_reshard(mutant: Option<Mutant>) -> Result<(), String> {
    const CLIENTS: usize = 24;
    const LONGEST_MS: u64 = 150;
    let mut world = cluster(mutant);
    let began = world.now_ms;
    let (mut open, mut asked) = (BTreeMap::new(), 1_000);
    let mut ask_one = |world: &mut World, open: &mut BTreeMap<u64, u64>| {
        asked += 1;
        let key = format!("key-{}", world.rng.below(300)).as_str().into();
        world.request(asked as usize % 6, asked, put(&key, "1"), Vec::new());
        open.insert(asked, world.now_ms);
    };
    (0..CLIENTS).for_each(|_| ask_one(&mut world, &mut open));
    while world.now_ms < began + 3_000 {
        world.run_until(1, |_| false);
        if world.now_ms == began + 300 {
            reshard(&mut world, 1);
        }
        for (id, answer) in std::mem::take(&mut world.answers) {
            let since = open.remove(&id).expect("it was asked");
            let (at, took) = (since - began, world.now_ms - since);
            match answer {
                Some(Answer::Created { replicas, .. } | Answer::Replaced { replicas, .. })
                    if replicas >= 2 && took <= LONGEST_MS => {}
                other => return Err(format!("a write begun {at} ms after the clients has {other:?} after {took} ms")),
            }
            ask_one(&mut world, &mut open);
        }
    }
    assert!((0..6).all(|node| epoch_at(&world, node) == 2), "it was resharded");
    Ok(())
}

/// A cluster whose data takes many answers of a repair.
fn with_many_answers_to_copy(mutant: Option<Mutant>) -> World {
    let mut world = cluster(mutant);
    for number in 0..1_500 {
        let key = format!("key-{number}").as_str().into();
        world.request(number % 6, 1_000 + number as u64, put(&key, VALUE), Vec::new());
        world.run_until(10, |_| false);
    }
    world.run_until(1_000, |_| false);
    assert_eq!(world.answers.drain(..).filter(|(_, it)| matches!(it, Some(Answer::Created { .. }))).count(), 1_500);
    world
}

/// Where answers are late now and then, something else wants the same processors or links, and copies make way; where they always
/// take the same time, they don't rest.
pub fn a_copy_makes_way(mutant: Option<Mutant>) -> Result<(), String> {
    let copying_takes = |delay_ms: (u64, u64), mutant: Option<Mutant>| {
        let mut world = with_many_answers_to_copy(mutant);
        let pairs = (0..6).flat_map(|one| (0..6).map(move |other| (one, other)));
        world.weather.extend(pairs.map(|pair| (pair, Weather { delay_ms, ..Weather::FAIR })));
        let began = world.now_ms;
        reshard(&mut world, 1);
        assert!(world.run_until(30_000, |world| (0..6).all(|node| epoch_at(world, node) == 2)), "it is copied");
        (world.now_ms - began, world.digest.value())
    };
    let without_rest = |delay_ms| copying_takes(delay_ms, Some(Mutant::RepairNeverRests));
    let (steady, unsteady) = ((8, 8), (1, 30));
    assert_eq!(copying_takes(steady, mutant), without_rest(steady), "nothing is late");
    let ((with, _), (without, _)) = (copying_takes(unsteady, mutant), without_rest(unsteady));
    let rested = 4 * with >= 5 * without;
    if rested { Ok(()) } else { Err(format!("{with} ms, {without} ms without a rest")) }
}

/// A replica that lost its data is filled as fast as can be, however late answers are: the others write on meanwhile.
pub fn a_replica_that_is_filled_does_not_make_way() {
    let filling = |mutant: Option<Mutant>| {
        let mut world = with_many_answers_to_copy(mutant);
        world.wipe(2);
        let pairs = (0..6).flat_map(|one| (0..6).map(move |other| (one, other)));
        world.weather.extend(pairs.map(|pair| (pair, Weather { delay_ms: (1, 30), ..Weather::FAIR })));
        world.start(2);
        let began = world.now_ms;
        assert!(world.run_until(20_000, |world| world.is_ready(2)), "it is filled");
        (world.now_ms - began, world.digest.value())
    };
    assert_eq!(filling(None), filling(Some(Mutant::RepairNeverRests)));
}

/// Everything that contexts were relieved of is at every replica that serves: so one that lost its data serves nothing before it is
/// filled, or a client would not find what it wrote and what its context no longer names.
pub fn an_empty_replica_does_not_serve(mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = cluster(mutant);
    let key = staying();
    let context = context_of(ask(&mut world, 0, 1, put(&key, "1"), None))?;
    // Until it is stable, and nothing of it is left in the context.
    world.run_until(2_000, |_| false);
    let context = context_of(ask(&mut world, 0, 2, get(&key), Some(&context)))?;
    world.wipe(2);
    world.start(2);
    for id in 3..200 {
        match ask(&mut world, 2, id, get(&key), Some(&context)) {
            Some(Answer::NotFound { .. }) => return Err("a replica without data has answered".into()),
            Some(Answer::Found { .. }) if world.is_ready(2) => return Ok(()),
            _ => {}
        }
    }
    Err("it is never filled".into())
}

/// Both replicas of a shard lose everything while a change settles, and are filled by the members before. Those are cut off at any
/// moment of that: what they have is not lost, so the shard does not begin empty.
pub fn who_has_it_whole_and_is_silent_is_waited_for() -> Result<(), String> {
    for cut_at in (20..1_500).step_by(20) {
        let (mut world, key) = (cluster(None), moving());
        context_of(ask(&mut world, 0, 1, put(&key, "1"), None))?;
        world.run_until(1_000, |_| false);
        reshard(&mut world, 3);
        wait_for(&mut world, 8_000, "the flip", |world| (0..6).all(|node| epoch_at(world, node) == 2))?;
        for node in [2, 5] {
            world.wipe(node);
            world.start(node);
        }
        world.run_until(cut_at, |_| false);
        cut(&mut world, &[2, 5], &[0, 1, 3, 4]);
        world.run_until(4_000, |_| false);
        for node in [2, 5] {
            if world.is_ready(node) && !holds(&world, node, &key) {
                return Err(format!("cut off after {cut_at} ms, node {node} serves without what there is elsewhere"));
            }
        }
        world.weather.clear();
        wait_for(&mut world, 15_000, "the end", |world| world.all_ready() && holds(world, 2, &key))?;
    }
    Ok(())
}

/// An old member lost its data, was filled with what its shard has now, and then hears of a write that had to be handed over. New owners
/// compare what they have of the old shard with it: that it has nothing of their slots does not mean that it was deleted.
pub fn an_old_member_without_its_data_makes_nobody_drop_theirs() -> Result<(), String> {
    let mut world = cluster(None);
    world.start(6);
    let joiner = world.nodes[6].addr.clone();
    wait_for(&mut world, 8_000, "the joiner", |world| world.topology().is_some_and(|t| t.nodes.len() == 7))?;
    let key = key_in(0..8_192);
    // All keys of s1 that go to s3 will do; the plan tells which.
    let keys: Vec<Key> = (0..400).map(|number| Key::from(format!("key-{number}").as_str())).collect();
    for (id, key) in keys.iter().enumerate().filter(|(_, key)| Slot::of(key).0 < 8_192) {
        world.request(0, id as u64 + 1, put(key, "1"), Vec::new());
    }
    world.run_until(3_000, |_| false);
    // What was written before is of an epoch that is over.
    world.admin(3, 500, AdminOp::AddMember { shard: ShardId(2), addr: joiner });
    wait_for(&mut world, 10_000, "the first change", |world| epoch_at(world, 0) == 2 && world.all_ready())?;
    world.run_until(2_000, |_| false);
    world.start(7);
    wait_for(&mut world, 8_000, "the next", |world| world.topology().is_some_and(|t| t.nodes.len() == 8))?;
    world.run_until(3_000, |_| false);
    // Node 1 alone has a write that is to be handed over.
    cut(&mut world, &[1], &[0, 2, 3, 4, 5, 6, 7]);
    context_of(ask(&mut world, 1, 600, put(&key, "2"), None))?;
    reshard(&mut world, 3);
    wait_for(&mut world, 10_000, "the flip", |world| {
        [0, 2, 3, 4, 5, 6, 7].into_iter().all(|node| epoch_at(world, node) == 3)
    })?;
    world.run_until(1_000, |_| false);
    let topology = world.topology().expect("formed").clone();
    let old = topology.from().ok_or("it should settle still")?.clone();
    let heir = topology.layout.shards.iter().find(|(id, _)| !old.shards.contains_key(id)).ok_or("a third shard")?;
    let owners: Vec<usize> = heir.1.iter().map(|node| world.index_of(&topology.nodes[node])).collect();
    let moved: Vec<&Key> = keys
        .iter()
        .filter(|key| {
            old.shard_of_slot(Slot::of(key)) == ShardId(1) && topology.layout.shard_of_slot(Slot::of(key)) == *heir.0
        })
        .collect();
    let lacking = |world: &World| {
        let lacks = |key: &&&Key| owners.iter().any(|&owner| !holds(world, owner, key));
        moved.iter().filter(lacks).count()
    };
    if moved.is_empty() || lacking(&world) > 0 || owners.iter().any(|&owner| owner < 3) {
        return Err(format!("{} keys moved to {owners:?}, {} are lacking", moved.len(), lacking(&world)));
    }
    world.wipe(0);
    world.start(0);
    wait_for(&mut world, 8_000, "node 0 filled", |world| world.is_ready(0))?;
    world.weather.remove(&(0, 1));
    world.weather.remove(&(1, 0));
    wait_for(&mut world, 8_000, "node 0 takes the write", |world| {
        let all = world.core(0).and_then(|core| core.contents().ok()).unwrap_or_default();
        all.iter().any(|(other, version)| *other == key && version.value.as_deref() == Some(b"2"))
    })?;
    world.run_until(3_000, |_| false);
    match lacking(&world) {
        0 => Ok(()),
        lost => Err(format!("{lost} of {} keys are gone at their owners", moved.len())),
    }
}

/// Node 5 takes over from node 0 what was written after its copy was made, in several steps; after the first, node 0 is wiped, and is back
/// at once with nothing. That it has nothing must not be taken for all there is.
pub fn a_giver_that_comes_back_empty_ends_the_transfer(mutant: Option<Mutant>) -> Result<(), String> {
    const KEYS: usize = 1_500;
    let mut world = cluster(mutant);
    cut(&mut world, &[2], &[3, 4, 5]);
    reshard(&mut world, 0);
    let copied = |world: &World, node: usize| world.core(node).is_some_and(|core| core.has_copies());
    wait_for(&mut world, 3_000, "the copy", |world| copied(world, 5))?;
    cut(&mut world, &[5], &[0, 1, 2]);
    let numbers = (0..).map(|number| format!("key-{number}"));
    let keys: Vec<Key> = numbers
        .filter(|key| (5_470..8_192).contains(&Slot::of(key).0))
        .take(KEYS)
        .map(|key| key.as_str().into())
        .collect();
    for (id, key) in (10..).zip(&keys) {
        world.request(0, id, put(key, "1"), Vec::new());
        // Before node 5 is missed.
        if id % 100 == 0 {
            world.run_until(10, |_| false);
        }
    }
    world.weather.retain(|&(from, to), _| from == 5 || to == 5);
    wait_for(&mut world, 4_000, "the flip", |world| epoch_at(world, 5) == 2)?;
    // From node 0 alone, and slowly.
    for (from, to) in [(0, 5), (5, 0)] {
        world.weather.insert((from, to), Weather { delay_ms: (40, 40), ..Weather::FAIR });
    }
    let count = |world: &World, node: usize| keys.iter().filter(|key| world.stored(node).contains(key)).count();
    wait_for(&mut world, 4_000, "a part of it", |world| !world.stored(5).is_empty())?;
    if count(&world, 5) == KEYS {
        return Err("all of it came at once".into());
    }
    world.wipe(0);
    world.start(0);
    wait_for(&mut world, 4_000, "node 0 in the cluster", |world| epoch_at(world, 0) == 2)?;
    world.run_until(2_000, |_| false);
    world.weather.clear();
    let steady = |world: &World| world.topology().is_some_and(|topology| topology.transition == Transition::Steady);
    wait_for(&mut world, 20_000, "the end of the change", steady)?;
    world.run_until(1_000, |_| false);
    match count(&world, 5) {
        KEYS => Ok(()),
        some => Err(format!("a new owner has {some} of {KEYS} acknowledged keys")),
    }
}
