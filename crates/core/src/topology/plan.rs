//! Plans of layouts: pure functions from what is to what is wanted. As little moves as can.
//!
//! Shards are made as even as they go, in nodes and in slots. A shard that stays keeps as many of its nodes and slots as
//! its even share allows; only what exceeds that moves, and only to where something is lacking. So from 2 to 3 shards
//! exactly a third of the slots moves, and a change of members moves none.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvnode_types::ident::{NodeId, SLOT_COUNT, ShardId};

use super::layout::{Layout, run_length};

/// Replicas that a shard must have for its loss to need more than one failure.
pub const REPLICAS_MIN: usize = 2;

/// The layout of `count` shards over the members of `before` and the nodes that are in no shard, `spare`.
///
/// `absent` nodes stay where they are if their shard stays, and are not given a new place otherwise; new shards are
/// numbered from `next_shard`. `None`: not enough nodes for two replicas a shard.
pub fn reshard(
    before: &Layout,
    spare: &[NodeId],
    absent: &BTreeSet<NodeId>,
    count: u32,
    next_shard: u32,
) -> Option<Layout> {
    let spare: Vec<NodeId> = spare.iter().copied().filter(|node| !absent.contains(node)).collect();
    let total = before.all_members().count() + spare.len();
    // First of all: a count is any number that a client thinks of, and every voter plans.
    if count == 0 || (count > 1 && total / REPLICAS_MIN < count as usize) {
        return None;
    }
    let ids: Vec<ShardId> = {
        let kept = before.shards.keys().copied().take(count as usize);
        let lacking = (count as usize).saturating_sub(before.shards.len()) as u32;
        kept.chain((0..lacking).map(|n| ShardId(next_shard + n))).collect()
    };
    let shards = spread_nodes(before, &ids, &spare, absent);
    if count > 1 && shards.values().any(|members| members.len() < REPLICAS_MIN) {
        return None;
    }
    Some(Layout::of(before.epoch.next(), shards, spread_slots(before, &ids)))
}

/// How much each of `ids` should have of `total`: even shares, the larger ones to those that have most already.
fn shares(ids: &[ShardId], total: usize, has: impl Fn(ShardId) -> usize) -> BTreeMap<ShardId, usize> {
    let mut order: Vec<ShardId> = ids.to_vec();
    order.sort_by_key(|&id| (std::cmp::Reverse(has(id)), id));
    let (base, more) = (total / ids.len(), total % ids.len());
    order.into_iter().enumerate().map(|(index, id)| (id, base + usize::from(index < more))).collect()
}

fn spread_nodes(
    before: &Layout,
    ids: &[ShardId],
    spare: &[NodeId],
    absent: &BTreeSet<NodeId>,
) -> BTreeMap<ShardId, Vec<NodeId>> {
    let total = before.all_members().count() + spare.len();
    let share = shares(ids, total, |id| before.members(id).len());
    let mut pool: Vec<NodeId> = spare.to_vec();
    let mut shards: BTreeMap<ShardId, Vec<NodeId>> = BTreeMap::new();
    for &id in ids {
        // Those that can't move stay first; of the others the last go.
        let (stay, free): (Vec<NodeId>, Vec<NodeId>) =
            before.members(id).iter().partition(|node| absent.contains(node));
        let keep = share[&id].saturating_sub(stay.len()).min(free.len());
        pool.extend(&free[keep..]);
        let kept: BTreeSet<NodeId> = stay.into_iter().chain(free[..keep].iter().copied()).collect();
        shards.insert(id, before.members(id).iter().copied().filter(|node| kept.contains(node)).collect());
    }
    let dissolved = before.shards.iter().filter(|(id, _)| !ids.contains(id));
    pool.extend(dissolved.flat_map(|(_, members)| members));
    // Absent members of dissolved shards come last: they get a place, too, where one is left.
    pool.sort_by_key(|node| absent.contains(node));
    for &id in ids {
        let members = shards.get_mut(&id).expect("made above");
        let lacking = share[&id].saturating_sub(members.len()).min(pool.len());
        members.extend(pool.drain(..lacking));
    }
    shards.values_mut().next().expect("at least one shard").extend(pool);
    shards
}

/// How many slots are whose, in turn. In runs, not slot by slot: every node plans when a change is decided, and meanwhile serves nobody.
fn spread_slots(before: &Layout, ids: &[ShardId]) -> Vec<(ShardId, usize)> {
    let share = shares(ids, usize::from(SLOT_COUNT), |id| before.slot_count(id));
    let lacks = |&id: &ShardId| (id, share[&id].saturating_sub(before.slot_count(id)));
    let mut lacking: VecDeque<(ShardId, usize)> = ids.iter().map(lacks).collect();
    let mut keeps = share;
    let mut spread = Vec::new();
    for (run, shard) in before.runs() {
        let length = run_length(run);
        let kept = keeps.get(&shard).map_or(0, |&left| left.min(length));
        if let Some(left) = keeps.get_mut(&shard) {
            *left -= kept;
        }
        spread.push((shard, kept));
        let mut free = length - kept;
        while free > 0 {
            let (id, lack) = lacking.front_mut().expect("the shares add up to all slots");
            let given = free.min(*lack);
            spread.push((*id, given));
            (free, *lack) = (free - given, *lack - given);
            if *lack == 0 {
                lacking.pop_front();
            }
        }
    }
    spread
}

/// The layout with `node` as another replica of `shard`.
pub fn add_member(before: &Layout, shard: ShardId, node: NodeId) -> Layout {
    let mut shards = before.shards.clone();
    shards.entry(shard).or_default().push(node);
    before.with_members(shards)
}

/// The layout without `node`; `None` if it is its shard's only replica.
pub fn remove(before: &Layout, node: NodeId) -> Option<Layout> {
    let mut shards = before.shards.clone();
    for members in shards.values_mut() {
        members.retain(|&member| member != node);
        if members.is_empty() {
            return None;
        }
    }
    Some(before.with_members(shards))
}

/// For each shard whose replicas or slots differ: what a person should know before it is done.
pub fn warnings(before: &Layout, after: &Layout) -> Vec<String> {
    let fewer = |(id, members): (&ShardId, &Vec<NodeId>)| {
        let had = before.members(*id).len();
        let survives = |replicas: usize| replicas.saturating_sub(1);
        let weaker = if had == 0 { members.len() < 3 } else { members.len() < had };
        weaker.then(|| match members.len() {
            1 => format!("shard {id} has one replica: if it is lost, so are the shard's keys"),
            count => format!("shard {id} has {count} replicas: it survives the loss of {}", survives(count)),
        })
    };
    after.shards.iter().filter_map(fewer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvnode_types::ident::Slot;

    fn nodes(count: u32) -> Vec<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    fn sizes(layout: &Layout) -> Vec<(u32, usize, usize)> {
        layout.shards.iter().map(|(id, members)| (id.0, members.len(), layout.slot_count(*id))).collect()
    }

    #[test]
    fn from_two_to_three_shards_moves_a_third_of_the_slots_and_the_new_node() {
        let before = Layout::first(&nodes(6), 2);
        let after = reshard(&before, &[NodeId(7)], &BTreeSet::new(), 3, 3).unwrap();
        assert_eq!(sizes(&after), [(1, 3, 5462), (2, 2, 5461), (3, 2, 5461)]);
        assert_eq!(before.slots_moved(&after), 5461);
        assert_eq!(after.members(ShardId(1)), [NodeId(1), NodeId(2), NodeId(3)]);
        assert!(after.members(ShardId(3)).contains(&NodeId(7)));
        let back = reshard(&after, &[], &BTreeSet::new(), 2, 4).unwrap();
        assert_eq!(sizes(&back), [(1, 4, 8192), (2, 3, 8192)]);
        assert_eq!(after.slots_moved(&back), 5461);
    }

    #[test]
    fn a_shard_needs_two_nodes() {
        let before = Layout::first(&nodes(5), 2);
        assert_eq!(reshard(&before, &[], &BTreeSet::new(), 3, 3), None);
        assert_eq!(reshard(&before, &[], &BTreeSet::new(), 0, 3), None);
        assert!(reshard(&before, &[], &BTreeSet::new(), 1, 3).is_some());
    }

    #[test]
    fn the_same_count_moves_nothing_that_is_even() {
        let before = Layout::first(&nodes(6), 2);
        let after = reshard(&before, &[], &BTreeSet::new(), 2, 3).unwrap();
        assert_eq!(before.slots_moved(&after), 0);
        assert_eq!(after.shards, before.shards);
    }

    #[test]
    fn a_node_that_is_away_is_not_moved() {
        let before = Layout::first(&nodes(6), 2);
        let after = reshard(&before, &[NodeId(7)], &BTreeSet::from([NodeId(6), NodeId(7)]), 3, 3).unwrap();
        assert!(after.members(ShardId(2)).contains(&NodeId(6)));
        assert_eq!(after.shard_of_node(NodeId(7)), None);
        assert_eq!(after.all_members().count(), 6);
    }

    /// Any number of shards to any other: even, complete, and no more moved than the shares demand.
    #[test]
    fn every_step_moves_the_minimum() {
        for from in 1..=10_u32 {
            for to in 1..=10_u32 {
                let before = Layout::first(&nodes(20), from);
                let after = reshard(&before, &[], &BTreeSet::new(), to, 100).unwrap();
                let slots: Vec<usize> = after.shards.keys().map(|&id| after.slot_count(id)).collect();
                assert_eq!(slots.iter().sum::<usize>(), usize::from(SLOT_COUNT));
                assert!(slots.iter().max().unwrap() - slots.iter().min().unwrap() <= 1, "{from} to {to}: {slots:?}");
                assert_eq!(after.all_members().collect::<BTreeSet<_>>().len(), 20);
                let surplus = |id: &ShardId| before.slot_count(*id).saturating_sub(after.slot_count(*id));
                let least: usize = before.shards.keys().map(surplus).sum();
                assert_eq!(before.slots_moved(&after), least, "{from} to {to}");
            }
        }
    }

    /// The same spread slot by slot: each shard keeps its first ones, and the others go, in order, to whoever lacks some.
    fn slot_by_slot(before: &Layout, ids: &[ShardId]) -> Vec<ShardId> {
        let mut keeps = shares(ids, usize::from(SLOT_COUNT), |id| before.slot_count(id));
        let lacks = |&id: &ShardId| std::iter::repeat_n(id, keeps[&id].saturating_sub(before.slot_count(id)));
        let mut lacking = ids.iter().flat_map(lacks).collect::<Vec<_>>().into_iter();
        let owner = |slot| {
            let shard = before.shard_of_slot(Slot(slot));
            match keeps.get_mut(&shard).filter(|left| **left > 0) {
                Some(left) => {
                    *left -= 1;
                    shard
                }
                None => lacking.next().unwrap(),
            }
        };
        (0..SLOT_COUNT).map(owner).collect()
    }

    #[test]
    fn a_spread_in_runs_is_that_of_the_single_slots() {
        let mut layout = Layout::first(&nodes(40), 4);
        for (step, count) in [7, 3, 20, 2, 1, 13, 5, 19, 6].into_iter().enumerate() {
            let after = reshard(&layout, &[], &BTreeSet::new(), count, 100 * (step as u32 + 1)).unwrap();
            let ids: Vec<ShardId> = after.shards.keys().copied().collect();
            let wanted = slot_by_slot(&layout, &ids);
            let owners: Vec<ShardId> = (0..SLOT_COUNT).map(|slot| after.shard_of_slot(Slot(slot))).collect();
            assert!(owners == wanted, "to {count} shards");
            let moved = (0..SLOT_COUNT).filter(|&slot| layout.shard_of_slot(Slot(slot)) != owners[usize::from(slot)]);
            assert_eq!(moved.count(), layout.slots_moved(&after));
            layout = after;
        }
    }
}
