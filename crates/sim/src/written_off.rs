//! Schedules made by hand around an old member that is written off while a change of the layout settles, and is there all the
//! same: what only it has must reach all replicas of the shard or none.
//!
//! Nodes 0 to 2 are shard s1, nodes 3 to 5 shard s2; node 6 joins s2. Node 0 alone has a write of the layout before.

use kvnode_core::admin::AdminOp;
use kvnode_core::request::{Answer, Op};
use kvnode_core::settings::Mutant;
use kvnode_core::topology::Transition;
use kvnode_types::ident::{Dot, Key, ShardId};

use crate::reshard::{CUT, cluster, context_of, cut, epoch_at, holds, put, staying, wait_for};
use crate::scenarios::ask;
use crate::world::{Weather, World};

type Verdict = Result<(), String>;

fn connect(world: &mut World, some: &[usize], others: &[usize]) {
    for &one in some {
        for &other in others {
            world.weather.remove(&(one, other));
            world.weather.remove(&(other, one));
        }
    }
}

fn is_steady(world: &World) -> bool {
    world.topology().is_some_and(|topology| topology.transition == Transition::Steady)
}

fn knows_the_write_off(world: &World, node: usize) -> bool {
    let written_off = world.core(node).and_then(|core| core.topology()).and_then(|topology| topology.written_off());
    written_off.is_some_and(|written_off| !written_off.is_empty())
}

/// Up to where node 0 is out of everybody's view, the change settles, and waits for what node 0 has to hand over. Gives the node
/// that decides.
fn settling_without_node_0(world: &mut World, key: &Key) -> Result<usize, String> {
    joining_without_node_0(world, key, ShardId(2))
}

fn joining_without_node_0(world: &mut World, key: &Key, shard: ShardId) -> Result<usize, String> {
    cut(world, &[0], &[1, 2]);
    context_of(ask(world, 0, 1, put(key, "1"), None))?;
    world.start(6);
    let addr = world.nodes[6].addr.clone();
    world.run_until(3_000, |_| false);
    world.admin(3, 1, AdminOp::AddNode(addr.clone()));
    let is_listed = |world: &World| world.core(6).is_some_and(|core| core.topology().is_some());
    wait_for(world, 8_000, "the joiner in the view", is_listed)?;
    world.admin(3, 2, AdminOp::AddMember { shard, addr });
    wait_for(world, 8_000, "the flip", |world| (0..7).all(|node| epoch_at(world, node) == 2))?;
    cut(world, &[0], &[3, 4, 5, 6]);
    // Everybody tells how far it is; node 0 is missed, and another leads if it did.
    world.run_until(4_000, |_| false);
    if is_steady(world) || holds(world, 1, key) || holds(world, 2, key) {
        return Err("the change should wait for node 0".into());
    }
    let leader = world.core(3).and_then(|core| core.status().leader).ok_or("nobody leads")?;
    Ok(world.index_of(&leader))
}

/// Node 0 is written off, and both other replicas know it. Gives the node that the change still waits for, which does not decide.
fn written_off(world: &mut World, leader: usize) -> Result<usize, String> {
    let late = if leader == 5 { 4 } else { 5 };
    cut(world, &[late], &[1, 2, 3, 4, 5, 6]);
    let addr = world.nodes[0].addr.clone();
    world.admin(leader, 3, AdminOp::RemoveNode(addr));
    let both = |world: &World| knows_the_write_off(world, 1) && knows_the_write_off(world, 2);
    wait_for(world, 4_000, "nodes 1 and 2 hear", both)?;
    world.run_until(1_500, |_| false);
    Ok(late)
}

fn equal_in_the_end(world: &mut World, key: &Key) -> Verdict {
    world.weather.clear();
    wait_for(world, 20_000, "the end of all changes", World::all_ready)?;
    world.run_until(3_000, |_| false);
    match (holds(world, 1, key), holds(world, 2, key)) {
        (one, two) if one == two => Ok(()),
        (one, two) => Err(format!("node 1 has the write: {one}, node 2: {two}")),
    }
}

/// Node 1 has told how far it is, then takes the write from node 0, and only then hears that nobody waits for node 0. What it
/// told before must not count for node 2, or the change ends without the write at node 2.
pub fn what_was_told_before_the_write_off_does_not_count(mutant: Option<Mutant>) -> Verdict {
    let (mut world, key) = (cluster(mutant), staying());
    let leader = settling_without_node_0(&mut world, &key)?;
    if leader == 1 {
        return Err("the schedule wants another leader".into());
    }
    cut(&mut world, &[1], &[2, 3, 4, 5, 6]);
    connect(&mut world, &[0], &[1]);
    wait_for(&mut world, 4_000, "node 1 takes the write", |world| holds(world, 1, &key))?;
    cut(&mut world, &[0], &[1]);
    let addr = world.nodes[0].addr.clone();
    world.admin(leader, 3, AdminOp::RemoveNode(addr));
    wait_for(&mut world, 4_000, "node 2 hears", |world| knows_the_write_off(world, 2))?;
    world.run_until(1_000, |_| false);
    connect(&mut world, &[1], &[3, 4, 5, 6]);
    world.run_until(2_500, |_| false);
    equal_in_the_end(&mut world, &key)
}

/// The same with a joiner of the shard in node 1's place, which was no member before and has nothing to hand over. It has its copy from
/// node 0, has settled, and knows who counts; what it took from node 0 is at nobody else.
pub fn what_a_new_member_took_before_the_write_off_reaches_all(mutant: Option<Mutant>) -> Verdict {
    let (mut world, key) = (cluster(mutant), staying());
    cut(&mut world, &[6], &[1, 2]);
    let leader = joining_without_node_0(&mut world, &key, ShardId(1))?;
    let addr = world.nodes[0].addr.clone();
    world.admin(leader, 3, AdminOp::RemoveNode(addr));
    wait_for(&mut world, 4_000, "node 2 hears", |world| knows_the_write_off(world, 2))?;
    // It hears at once what the others hand over, and they hear late what it has.
    connect(&mut world, &[6], &[1, 2]);
    for other in [1, 2] {
        world.weather.insert((6, other), Weather { delay_ms: (400, 400), ..Weather::FAIR });
    }
    world.run_until(2_500, |_| false);
    if !holds(&world, 6, &key) {
        return Err("node 6 should have the write".into());
    }
    equal_in_the_end(&mut world, &key)?;
    match (holds(&world, 1, &key), holds(&world, 6, &key)) {
        (one, six) if one == six => Ok(()),
        (one, six) => Err(format!("node 1 has the write: {one}, node 6: {six}")),
    }
}

/// Both other replicas have settled without node 0's write; then node 0 can be reached by one of them. What that took now the
/// other would never hear of.
pub fn nothing_is_taken_from_a_member_that_was_written_off(mutant: Option<Mutant>) -> Verdict {
    let (mut world, key) = (cluster(mutant), staying());
    let leader = settling_without_node_0(&mut world, &key)?;
    let late = written_off(&mut world, leader)?;
    cut(&mut world, &[1], &[2]);
    connect(&mut world, &[0], &[1]);
    world.run_until(2_500, |_| false);
    cut(&mut world, &[0], &[1]);
    connect(&mut world, &[late], &[3, 4, 5, 6]);
    wait_for(&mut world, 8_000, "the end of the change", |world| !knows_the_write_off(world, 2))?;
    equal_in_the_end(&mut world, &key)
}

/// The same, but the one that can reach node 0 has lost its data, and is filled. Not by node 0, as long as another replica has data: that
/// one would never hear of what node 0 alone has.
pub fn nobody_is_filled_by_a_member_that_was_written_off(mutant: Option<Mutant>) -> Verdict {
    let (mut world, key) = (cluster(mutant), staying());
    let leader = settling_without_node_0(&mut world, &key)?;
    if leader == 1 {
        return Err("the schedule wants another leader".into());
    }
    let late = written_off(&mut world, leader)?;
    world.wipe(1);
    world.start(1);
    wait_for(&mut world, 4_000, "node 1 hears", |world| knows_the_write_off(world, 1))?;
    connect(&mut world, &[0], &[1]);
    wait_for(&mut world, 8_000, "node 1 is filled", |world| world.is_ready(1))?;
    cut(&mut world, &[1], &[0, 2]);
    connect(&mut world, &[late], &[3, 4, 5, 6]);
    wait_for(&mut world, 8_000, "the end of the change", |world| !knows_the_write_off(world, 2))?;
    equal_in_the_end(&mut world, &key)
}

/// Node 0 is given up while a change settles in whose layout it has written already, and the removal that follows is taken back. It comes
/// back to the place that it has written under before. It drops what it has, and must not count anew under the same name.
pub fn who_begins_anew_counts_under_another_name(mutant: Option<Mutant>) -> Verdict {
    let (mut world, key) = (cluster(mutant), staying());
    world.start(6);
    let addr = world.nodes[6].addr.clone();
    world.admin(3, 3, AdminOp::AddNode(addr.clone()));
    wait_for(&mut world, 8_000, "the joiner", |world| world.core(6).is_some_and(|core| core.topology().is_some()))?;
    world.run_until(3_000, |_| false);
    // It hears of the flip, and nobody hears that it did.
    for other in 1..7 {
        world.weather.insert((0, other), CUT);
    }
    world.admin(3, 4, AdminOp::AddMember { shard: ShardId(2), addr });
    wait_for(&mut world, 8_000, "the flip", |world| (0..7).all(|node| epoch_at(world, node) == 2))?;
    cut(&mut world, &[0], &[1, 2, 3, 4, 5, 6]);
    let before = put_and_delete(&mut world, 10, &key)?;
    world.run_until(4_000, |_| false);
    if is_steady(&world) {
        return Err("the change should wait for node 0".into());
    }
    let leader = world.core(3).and_then(|core| core.status().leader).ok_or("nobody leads")?;
    let (leader, addr) = (world.index_of(&leader), world.nodes[0].addr.clone());
    world.admin(leader, 5, AdminOp::RemoveNode(addr));
    let goes = |world: &World| world.topology().is_some_and(|t| matches!(t.transition, Transition::Copying { .. }));
    wait_for(&mut world, 8_000, "the end of the change, and the beginning of the removal", goes)?;
    world.admin(leader, 6, AdminOp::Abort);
    wait_for(&mut world, 8_000, "the end of the removal", is_steady)?;
    world.weather.clear();
    let anew = |world: &World| {
        world.is_ready(0)
            && !holds(world, 0, &key)
            && world.core(0).is_some_and(|core| {
                core.topology()
                    .is_some_and(|topology| topology.layout.epoch.0 == 2 && topology.transition == Transition::Steady)
            })
    };
    wait_for(&mut world, 8_000, "node 0 anew in its place", anew)?;
    let after = put_and_delete(&mut world, 20, &key)?;
    if before == after { Err(format!("{before} names two deletions")) } else { Ok(()) }
}

/// Node 0 has a write under way, and learns that the change has ended without it. Whether others have taken the write it can't know any
/// more, and its own copy goes: its client must not be told that it is done.
pub fn a_write_under_way_is_of_unknown_fate_where_its_node_begins_anew(mutant: Option<Mutant>) -> Verdict {
    let (mut world, key) = (cluster(mutant), staying());
    let leader = settling_without_node_0(&mut world, &key)?;
    if leader == 1 {
        return Err("the schedule wants another leader".into());
    }
    let late = written_off(&mut world, leader)?;
    // Nodes 0 and 1 have contact, and don't hear of the end.
    cut(&mut world, &[1], &[2, 3, 4, 5, 6]);
    connect(&mut world, &[0], &[1]);
    connect(&mut world, &[late], &[3, 4, 5, 6]);
    wait_for(&mut world, 8_000, "the end of the change", |world| !knows_the_write_off(world, 2))?;
    wait_for(&mut world, 4_000, "node 0 hears of the change", |world| knows_the_write_off(world, 0))?;
    // Node 1 hears of the write when node 0 has heard the news.
    world.weather.insert((0, 1), Weather { delay_ms: (300, 300), ..Weather::FAIR });
    connect(&mut world, &[1], &[3, 4, 5, 6]);
    wait_for(&mut world, 4_000, "node 1 hears", |world| !knows_the_write_off(world, 1))?;
    if !knows_the_write_off(&world, 0) {
        return Err("node 0 should not have heard yet".into());
    }
    match ask(&mut world, 0, 2, put(&key, "2"), None) {
        Some(Answer::OutcomeUnknown) => Ok(()),
        other => Err(format!("a write at a node that drops what it has is answered {other:?}")),
    }
}

/// Gives the name of the deletion.
fn put_and_delete(world: &mut World, id: u64, key: &Key) -> Result<Dot, String> {
    context_of(ask(world, 0, id, put(key, "1"), None))?;
    match ask(world, 0, id + 1, Op::Delete { key: key.clone() }, None) {
        Some(Answer::Deleted { tombstone, .. }) => Ok(tombstone),
        other => Err(format!("a deletion is answered {other:?}")),
    }
}

/// A node that was removed while it was down may have millions of versions: they go in parts, a turn each, and a crash in between costs
/// nothing. It joins when they are gone.
pub fn what_counts_no_more_is_dropped_in_steps() -> Result<(), String> {
    const KEYS: u64 = 7_000;
    const AT_ONCE: usize = 2_500;
    let mut world = cluster(None);
    for number in 0..KEYS {
        let op = Op::Put { key: format!("key-{number}").as_str().into(), value: "1".into() };
        world.request((number % 6) as usize, 1_000 + number, op, Vec::new());
        if number % 100 == 99 {
            world.run_until(30, |_| false);
        }
    }
    world.run_until(2_000, |_| false);
    let before = world.stored(5).len();
    if before < AT_ONCE {
        return Err(format!("only {before} keys to drop"));
    }
    world.kill(5);
    let addr = world.nodes[5].addr.clone();
    world.admin(0, 1, AdminOp::RemoveNode(addr.clone()));
    let gone = |world: &World| world.topology().is_some_and(|topology| topology.node_at(&addr).is_none());
    wait_for(&mut world, 20_000, "the removal", gone)?;
    world.start(5);
    wait_for(&mut world, 3_000, "the first part to be dropped", |world| world.stored(5).len() < before)?;
    if world.stored(5).is_empty() {
        return Err("all of it was dropped in one turn".into());
    }
    world.kill(5);
    // Whom it meets first does not know either that it counts no more: it must not be taken for one that never had anything.
    cut(&mut world, &[5], &[0, 1, 2, 3, 4]);
    world.start(5);
    world.run_until(2_000, |_| false);
    let why = world.core(5).and_then(|core| core.ready().err()).unwrap_or_default();
    if !why.contains("being dropped") {
        return Err(format!("a node that has dropped a part says {why:?}"));
    }
    world.weather.clear();
    wait_for(&mut world, 10_000, "the rest to be dropped", |world| world.stored(5).is_empty())?;
    let most = world.removed_at_once(5);
    if most > AT_ONCE {
        return Err(format!("{most} versions were dropped in one batch"));
    }
    wait_for(&mut world, 10_000, "the node to take its new place", |world| {
        let own = world.core(5).and_then(|core| core.topology());
        own.is_some_and(|own| world.topology().is_some_and(|newest| newest.version == own.version))
    })
}

/// A node that is removed while it runs has much to drop. Meanwhile it says so, instead of passing requests on to nodes that do not know
/// it any more.
pub fn who_drops_what_it_has_takes_no_requests() -> Result<(), String> {
    let mut world = cluster(None);
    for number in 0..7_000 {
        let op = Op::Put { key: format!("key-{number}").as_str().into(), value: "1".into() };
        world.request((number % 6) as usize, 1_000 + number, op, Vec::new());
        if number % 100 == 99 {
            world.run_until(30, |_| false);
        }
    }
    world.run_until(2_000, |_| false);
    world.answers.clear();
    let before = world.stored(5).len();
    let addr = world.nodes[5].addr.clone();
    world.admin(0, 1, AdminOp::RemoveNode(addr));
    wait_for(&mut world, 20_000, "the first part to be dropped", |world| world.stored(5).len() < before)?;
    if world.stored(5).is_empty() {
        return Err("all of it was dropped in one turn".into());
    }
    let begun = world.now_ms;
    match ask(&mut world, 5, 20_000, put(&staying(), "1"), None) {
        Some(Answer::NotReady { .. }) if world.now_ms - begun < 100 => Ok(()),
        other => Err(format!("answered {other:?} after {} ms", world.now_ms - begun)),
    }
}
