//! Which fault comes when: all of it follows from a seed. Pure.
//!
//! Faults come in rounds; each round has every kind once, in another order. Up to two faults overlap. A wipe comes alone:
//! what is acknowledged survives the loss of any *one* node, so no second one may be unable to tell what it has meanwhile.

use std::fmt::Write;

use super::fault::Kind;
use super::rng::Rng;

/// A colour for each kind, in the order of [`super::fault::KINDS`].
pub const KIND_COLOURS: [&str; 9] =
    ["#d1495b", "#edae49", "#2e86ab", "#66a5ad", "#8d99ae", "#8d5a97", "#3a7d44", "#222f5b", "#a0522d"];

/// What a fault does, with nodes by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    Kill(Vec<usize>),
    Pause(Vec<usize>),
    /// These against all others.
    Partition(Vec<usize>),
    /// From, to.
    OneWay(Vec<(usize, usize)>),
    /// From, to, delay in ms.
    Slow(Vec<(usize, usize, u64)>),
    Clock(usize, i64),
    /// To so many shards.
    Reshard(u32),
    Wipe(usize),
    DiskFull(usize),
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub from_ms: u64,
    pub to_ms: u64,
    pub deed: Deed,
}

impl Deed {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Kill(_) => Kind::Kill,
            Self::Pause(_) => Kind::Pause,
            Self::Partition(_) => Kind::Partition,
            Self::OneWay(_) => Kind::OneWay,
            Self::Slow(_) => Kind::Slow,
            Self::Clock(..) => Kind::Clock,
            Self::Reshard(_) => Kind::Reshard,
            Self::Wipe(_) => Kind::Wipe,
            Self::DiskFull(_) => Kind::DiskFull,
        }
    }

    /// The nodes that suffer most from it; none for what concerns all.
    pub fn nodes(&self) -> Vec<usize> {
        let mut nodes: Vec<usize> = match self {
            Self::Kill(nodes) | Self::Pause(nodes) | Self::Partition(nodes) => nodes.clone(),
            Self::OneWay(links) => links.iter().flat_map(|&(from, to)| [from, to]).collect(),
            Self::Slow(links) => links.iter().flat_map(|&(from, to, _)| [from, to]).collect(),
            Self::Clock(node, _) | Self::Wipe(node) | Self::DiskFull(node) => vec![*node],
            Self::Reshard(_) => Vec::new(),
        };
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// `bob, carol | the others`, for people.
    pub fn describe(&self, names: &[String]) -> String {
        let list = |nodes: &[usize]| nodes.iter().map(|&node| names[node].as_str()).collect::<Vec<&str>>().join(", ");
        match self {
            Self::Kill(nodes) | Self::Pause(nodes) => list(nodes),
            Self::Partition(nodes) => format!("{} | the others", list(nodes)),
            Self::OneWay(links) => {
                let link = |&(from, to): &(usize, usize)| format!("{} → {}", names[from], names[to]);
                links.iter().map(link).collect::<Vec<String>>().join(", ")
            }
            Self::Slow(links) => {
                let link = |&(from, to, ms): &(usize, usize, u64)| format!("{} → {} {ms} ms", names[from], names[to]);
                links.iter().map(link).collect::<Vec<String>>().join(", ")
            }
            Self::Clock(node, ms) => format!("{} {:+} s", names[*node], *ms as f64 / 1_000.0),
            Self::Reshard(1) => "to 1 shard".into(),
            Self::Reshard(count) => format!("to {count} shards"),
            Self::Wipe(node) => format!("{} loses all its data", names[*node]),
            Self::DiskFull(node) => format!("{} has no room", names[*node]),
        }
    }
}

/// Before the first fault, so that there is something to lose.
const BEGIN_MS: u64 = 1_000;
/// How long a fault lasts.
const LASTS_MS: (u64, u64) = (800, 6_000);
/// Until a wiped node is back and has its data, in the plan; if it takes longer, the rest comes later.
const WIPE_MS: u64 = 2_000;

struct Planner<'a> {
    rng: Rng,
    nodes: usize,
    /// Numbers of shards that there can be.
    counts: &'a [u32],
    count: u32,
}

/// A plan of faults of these kinds for a cluster of so many nodes that has `count` shards and can have any of `counts`.
/// Each kind comes at least once, if it must beyond `duration_ms`.
pub fn plan(seed: u64, kinds: &[Kind], duration_ms: u64, nodes: usize, counts: &[u32], count: u32) -> Vec<Planned> {
    let mut planner = Planner { rng: Rng::new(seed), nodes, counts, count };
    let longest = (duration_ms / (kinds.len() as u64 + 1).max(2)).clamp(LASTS_MS.0 * 3 / 2, LASTS_MS.1);
    let (mut all, mut at, mut free): (Vec<Planned>, u64, u64) = (Vec::new(), BEGIN_MS, 0);
    if kinds.is_empty() {
        return all;
    }
    loop {
        let mut round = kinds.to_vec();
        planner.rng.shuffle(&mut round);
        for kind in round {
            let lasts = planner.rng.between(LASTS_MS.0, longest);
            let alone = kind == Kind::Wipe;
            // The one before the last has ended: two at a time at most.
            let from_ms = if alone { free.max(at) } else { at };
            if from_ms + lasts > duration_ms && all.len() >= kinds.len() {
                return all;
            }
            let to_ms = from_ms + if alone { WIPE_MS } else { lasts };
            at = match (alone, all.last()) {
                (true, _) => to_ms,
                // Now and then the next begins while this one goes on.
                _ if planner.rng.percent(60) => (from_ms + lasts / 2).max(free),
                _ => to_ms.max(free),
            } + planner.rng.between(100, longest / 4);
            free = free.max(to_ms);
            let deed = planner.deed(kind);
            all.push(Planned { from_ms, to_ms, deed });
        }
    }
}

impl Planner<'_> {
    fn node(&mut self) -> usize {
        self.rng.below(self.nodes as u64) as usize
    }

    /// One node, now and then two.
    fn few(&mut self) -> Vec<usize> {
        let mut nodes = vec![self.node()];
        if self.nodes > 3 && self.rng.percent(30) {
            nodes.push(self.node());
        }
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    fn link(&mut self) -> (usize, usize) {
        let from = self.node();
        let step = 1 + self.rng.below(self.nodes as u64 - 1) as usize;
        (from, (from + step) % self.nodes)
    }

    fn deed(&mut self, kind: Kind) -> Deed {
        match kind {
            Kind::Kill => Deed::Kill(self.few()),
            Kind::Pause => Deed::Pause(self.few()),
            Kind::Partition => {
                let mut nodes: Vec<usize> = (0..self.nodes).collect();
                self.rng.shuffle(&mut nodes);
                nodes.truncate(self.rng.between(1, (self.nodes / 2) as u64) as usize);
                nodes.sort_unstable();
                Deed::Partition(nodes)
            }
            Kind::OneWay => {
                let mut links: Vec<_> = (0..self.rng.between(1, 3)).map(|_| self.link()).collect();
                links.sort_unstable();
                links.dedup();
                Deed::OneWay(links)
            }
            Kind::Slow => {
                let mut links: Vec<_> = (0..self.rng.between(2, 6)).map(|_| self.link()).collect();
                links.sort_unstable();
                links.dedup();
                Deed::Slow(links.into_iter().map(|(from, to)| (from, to, self.rng.between(20, 300))).collect())
            }
            Kind::Clock => {
                let ms = self.rng.between(1, 3_600) as i64 * 1_000;
                Deed::Clock(self.node(), if self.rng.percent(50) { ms } else { -ms })
            }
            Kind::Reshard => {
                let others: Vec<u32> = self.counts.iter().copied().filter(|&count| count != self.count).collect();
                self.count = others[self.rng.below(others.len() as u64) as usize];
                Deed::Reshard(self.count)
            }
            Kind::Wipe => Deed::Wipe(self.node()),
            Kind::DiskFull => Deed::DiskFull(self.node()),
        }
    }
}

/// The plan, a line a fault.
pub fn text(plan: &[Planned], names: &[String]) -> String {
    let mut text = String::new();
    for Planned { from_ms, to_ms, deed } in plan {
        let (from, lasts) = (*from_ms as f64 / 1e3, (to_ms - from_ms) as f64 / 1e3);
        let lasts =
            if matches!(deed, Deed::Reshard(_) | Deed::Wipe(_)) { String::new() } else { format!("{lasts:.1} s") };
        let _ = writeln!(text, "  {from:5.1} s  {lasts:>5}  {:<9}  {}", deed.kind().name(), deed.describe(names));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::fault::KINDS;
    use super::*;

    fn plans() -> impl Iterator<Item = Vec<Planned>> {
        (0..200).map(|seed| plan(seed, &KINDS, 60_000, 6, &[1, 2, 3], 2))
    }

    #[test]
    fn the_same_seed_plans_the_same() {
        assert_eq!(plan(7, &KINDS, 60_000, 6, &[1, 2, 3], 2), plan(7, &KINDS, 60_000, 6, &[1, 2, 3], 2));
        assert_ne!(plan(7, &KINDS, 60_000, 6, &[1, 2, 3], 2), plan(8, &KINDS, 60_000, 6, &[1, 2, 3], 2));
        assert!(plan(7, &[], 60_000, 6, &[2], 2).is_empty());
    }

    #[test]
    fn each_kind_comes_and_the_time_is_used() {
        for plan in plans() {
            assert!(KINDS.iter().all(|kind| plan.iter().any(|planned| planned.deed.kind() == *kind)));
            assert!(plan.windows(2).all(|pair| pair[0].from_ms <= pair[1].from_ms));
            let end = plan.iter().map(|planned| planned.to_ms).max().unwrap();
            assert!((30_000..80_000).contains(&end), "{end}");
        }
        let short = plan(1, &KINDS, 5_000, 2, &[1, 2], 1);
        assert_eq!(short.len(), KINDS.len());
    }

    #[test]
    fn a_wipe_is_alone() {
        for plan in plans() {
            for (at, wipe) in plan.iter().enumerate().filter(|(_, one)| matches!(one.deed, Deed::Wipe(_))) {
                let apart = |(other, one): (usize, &Planned)| {
                    other == at || one.to_ms <= wipe.from_ms || wipe.to_ms <= one.from_ms
                };
                assert!(plan.iter().enumerate().all(apart), "{plan:?}");
            }
        }
    }

    #[test]
    fn nodes_exist_links_have_two_ends_and_reshards_change_something() {
        for plan in plans() {
            let mut count = 2;
            for Planned { deed, .. } in &plan {
                assert!(deed.nodes().iter().all(|&node| node < 6));
                match deed {
                    Deed::OneWay(links) => assert!(links.iter().all(|(from, to)| from != to)),
                    Deed::Slow(links) => assert!(links.iter().all(|(from, to, ms)| from != to && *ms > 0)),
                    Deed::Partition(nodes) => assert!((1..=3).contains(&nodes.len())),
                    Deed::Reshard(to) => assert_ne!(std::mem::replace(&mut count, *to), *to),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_plan_reads_well() {
        let names: Vec<String> = ["alice", "bob", "carol"].map(str::to_owned).into();
        let plan = [
            Planned { from_ms: 1_000, to_ms: 3_500, deed: Deed::Partition(vec![0, 1]) },
            Planned { from_ms: 12_340, to_ms: 13_000, deed: Deed::Clock(2, -90_000) },
            Planned { from_ms: 14_000, to_ms: 15_000, deed: Deed::Reshard(3) },
        ];
        let wanted = "    1.0 s  2.5 s  partition  alice, bob | the others\n   12.3 s  0.7 s  clock      carol -90 s\n   \
                      14.0 s         reshard    to 3 shards\n";
        assert_eq!(text(&plan, &names), wanted);
    }
}
