//! Causality: version vectors and contexts.
//!
//! A [`Vector`] says, for each origin, up to which number its writes are meant: "everything of A up to 7, of B up to 3".
//! A replica's vector says what it has applied; a context (what a client hands back as `causal-metadata`) says what the
//! client depends on. Both are the version vectors of Parker et al. (1983), keyed by origin instead of by node, so that a
//! node that lost its data never counts a number twice.

use serde::{Deserialize, Serialize};

use crate::ident::{Dot, Epoch, Origin};

/// For each origin the highest number meant; absent means 0. Sorted by origin, no zero entries: equal vectors are equal
/// bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(Origin, u64)>")]
pub struct Vector(Vec<(Origin, u64)>);

impl Vector {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// A vector of one dot.
    pub fn of(dot: Dot) -> Self {
        let mut vector = Self::new();
        vector.raise(dot.origin, dot.seq);
        vector
    }

    pub fn get(&self, origin: Origin) -> u64 {
        self.0.binary_search_by_key(&origin, |entry| entry.0).map_or(0, |at| self.0[at].1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Origin, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Whether the write that `dot` names is among those meant.
    pub fn covers(&self, dot: Dot) -> bool {
        self.get(dot.origin) >= dot.seq
    }

    /// Whether every entry of `other` is covered.
    pub fn includes(&self, other: &Self) -> bool {
        other.iter().all(|(origin, seq)| self.get(origin) >= seq)
    }

    /// Raises one entry to at least `seq`.
    pub fn raise(&mut self, origin: Origin, seq: u64) {
        match self.0.binary_search_by_key(&origin, |entry| entry.0) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(seq),
            Err(at) if seq > 0 => self.0.insert(at, (origin, seq)),
            Err(_) => {}
        }
    }

    /// The entrywise maximum.
    pub fn merge(&mut self, other: &Self) {
        for (origin, seq) in other.iter() {
            self.raise(origin, seq);
        }
    }

    /// The entrywise minimum: what both mean.
    pub fn meet(&self, other: &Self) -> Self {
        let both = self.0.iter().map(|&(origin, seq)| (origin, seq.min(other.get(origin))));
        Self(both.filter(|&(_, seq)| seq > 0).collect())
    }

    pub fn retain(&mut self, mut keep: impl FnMut(Origin, u64) -> bool) {
        self.0.retain(|&(origin, seq)| keep(origin, seq));
    }
}

impl TryFrom<Vec<(Origin, u64)>> for Vector {
    type Error = &'static str;

    /// What comes from outside keeps the invariant or is refused.
    fn try_from(entries: Vec<(Origin, u64)>) -> Result<Self, Self::Error> {
        let sorted = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let positive = entries.iter().all(|&(_, seq)| seq > 0);
        if sorted && positive { Ok(Self(entries)) } else { Err("a vector that is not in order") }
    }
}

impl FromIterator<(Origin, u64)> for Vector {
    fn from_iter<I: IntoIterator<Item = (Origin, u64)>>(entries: I) -> Self {
        let mut vector = Self::new();
        for (origin, seq) in entries {
            vector.raise(origin, seq);
        }
        vector
    }
}

/// What a client has seen: travels as `causal-metadata`. See [`super::token`] for its form on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The newest layout that the client has seen an answer from.
    pub epoch: Epoch,
    pub seen: Vector,
}

impl Context {
    /// "I have seen nothing yet."
    pub const fn nothing() -> Self {
        Self { epoch: Epoch(0), seen: Vector::new() }
    }

    pub fn merge(&mut self, other: &Self) {
        self.epoch = self.epoch.max(other.epoch);
        self.seen.merge(&other.seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{Incarnation, NodeId};

    fn origin(node: u32) -> Origin {
        Origin { node: NodeId(node), epoch: Epoch(1), incarnation: Incarnation(9) }
    }

    fn vector(entries: &[(u32, u64)]) -> Vector {
        entries.iter().map(|&(node, seq)| (origin(node), seq)).collect()
    }

    #[test]
    fn merge_is_the_least_upper_bound_and_meet_the_greatest_lower() {
        let (a, b) = (vector(&[(1, 5), (2, 2)]), vector(&[(2, 3), (3, 1)]));
        let mut join = a.clone();
        join.merge(&b);
        assert_eq!(join, vector(&[(3, 1), (2, 3), (1, 5)]));
        assert!(join.includes(&a) && join.includes(&b) && !a.includes(&b));
        assert_eq!(a.meet(&b), vector(&[(2, 2)]));
    }

    #[test]
    fn zero_entries_do_not_exist() {
        assert!(vector(&[(1, 0)]).is_empty());
        assert!(vector(&[]).covers(Dot { origin: origin(1), seq: 0 }));
    }
}
