//! Comparisons: what a repair brought and no vector covers reaches the other replicas, too.
//!
//! Problem: a repair installs versions as they come. Its source goes on taking writes, so some of what comes is beyond what the source
//! had applied when the repair began; if the repair is given up, all of it is. Clients see such versions, and this replica's vector
//! does not name them. Their writer sends them to everybody in the end. But one that is lost does not, and then nobody would ever
//! compare, and replicas would differ for good.
//!
//! Rule: uncovered versions of origins that are not retired are noted, by the newest of each origin, on disk with the data. While a
//! replica reports some of an origin, that origin counts as exhausted for nobody, and nobody retires it: who has seen such a version
//! waits. Once the origin has ended and nobody can bring the rest, all mates compare what they have with this replica; when all have,
//! they have what it has, and the names go. At a change of the layout that comes before the replica has settled.
//!
//! A mate that can't compare, for want of room, keeps those waiting who have seen what is uncovered.

use kvnode_types::causal::Vector;
use kvnode_types::ident::{Addr, Dot, Epoch, Origin};
use serde::{Deserialize, Serialize};

use super::replica::Replica;
use super::settings::Mutant;
use super::topology::Transition;
use super::{Core, encode_fact};
use crate::messages::{Message, Stage};
use crate::store::Fact;

pub(super) const FACT_UNCOVERED: Fact = Fact("uncovered");

/// A mate that has to compare its data and has not done it is asked again after so long.
const COMPARE_AGAIN_MS: u64 = 1_000;

/// Whether a mate has to compare its data with this node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Compares {
    #[default]
    Unneeded,
    Wanted {
        asked_ms: u64,
        /// The comparison that it has begun since; one that began before does not count.
        begun: Option<u64>,
    },
}

impl Compares {
    const NEW: Self = Self::Wanted { asked_ms: 0, begun: None };

    /// For another life of the mate: it counts its repairs from the start again.
    pub fn begun_anew(self) -> Self {
        match self {
            Self::Unneeded => Self::Unneeded,
            Self::Wanted { .. } => Self::NEW,
        }
    }
}

/// Versions that are here and that this replica's vector does not cover: the newest of each origin.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Uncovered {
    brought: Vector,
    /// The mates are comparing because of these.
    told: Vector,
    /// All mates have compared, while slots were being copied: who is to be a mate may have copied them before.
    compared: Vector,
}

impl Uncovered {
    fn names(&self, origin: Origin) -> bool {
        self.brought.get(origin) > 0 || self.told.get(origin) > 0
    }

    fn is_empty(&self) -> bool {
        self.brought.is_empty() && self.told.is_empty() && self.compared.is_empty()
    }

    /// What an earlier life noted: nobody is comparing because of it now.
    pub fn recovered(mut self) -> Self {
        self.brought.merge(&self.told);
        Self { told: Vector::new(), ..self }
    }
}

impl Core {
    fn uncovered_changed(&mut self) {
        self.store.set_fact(FACT_UNCOVERED, encode_fact(&self.uncovered));
    }

    /// A repair from a mate has brought a version. Of what is retired all replicas have all there is.
    pub(super) fn note_brought(&mut self, dot: Dot) {
        let Some(replica) = &self.replica else { return };
        let known = replica.applied.covers(dot) || self.is_retired(replica, dot.origin);
        let untold = [Mutant::BroughtUntold, Mutant::HalfRepairUntold].into_iter().any(|it| self.settings.broken(it));
        if !known && !untold && self.uncovered.brought.get(dot.origin) < dot.seq {
            self.uncovered.brought.raise(dot.origin, dot.seq);
            self.uncovered_changed();
        }
    }

    /// What the vector covers now needs no name. To be done before the vector forgets what is retired.
    pub(super) fn drop_covered(&mut self) {
        let Some(replica) = self.replica.as_ref().filter(|_| !self.uncovered.brought.is_empty()) else { return };
        let before = self.uncovered.brought.len();
        self.uncovered.brought.retain(|origin, seq| replica.applied.get(origin) < seq);
        if self.uncovered.brought.len() != before {
            self.uncovered_changed();
        }
    }

    /// All data of this node is gone.
    pub(super) fn nothing_is_uncovered(&mut self) {
        if !self.uncovered.is_empty() {
            self.uncovered = Uncovered::default();
            self.uncovered_changed();
        }
    }

    /// What mates are told.
    pub(super) fn uncovered_now(&self) -> Vector {
        let mut all = self.uncovered.brought.clone();
        all.merge(&self.uncovered.told);
        all
    }

    /// Whether some of it was written under an earlier layout.
    pub(super) fn is_uncovered_of(&self, epoch: Epoch) -> bool {
        let Uncovered { brought, told, .. } = &self.uncovered;
        brought.iter().chain(told.iter()).any(|(origin, _)| origin.epoch == epoch)
    }

    /// The layout has changed, and with it the mates: those of before may not have compared yet, and those of now have not.
    pub(super) fn uncovered_at_flip(&mut self) {
        if !self.uncovered.told.is_empty() || !self.uncovered.compared.is_empty() {
            let compared = std::mem::take(&mut self.uncovered.compared);
            self.uncovered.brought.merge(&compared);
            self.uncovered = std::mem::take(&mut self.uncovered).recovered();
            self.uncovered_changed();
        }
    }

    /// No change of the layout runs: nobody has copied anything.
    fn nothing_is_copied(&mut self) {
        let steady = self.topology.as_ref().is_some_and(|topology| topology.transition == Transition::Steady);
        if steady && !self.uncovered.compared.is_empty() {
            self.uncovered.compared = Vector::new();
            self.uncovered_changed();
        }
    }

    /// Whether this replica, or another by its last report, has versions of an origin that its vector does not cover.
    pub(super) fn is_uncovered_anywhere(&self, replica: &Replica, origin: Origin) -> bool {
        let told = |&node| self.valid_report(node).is_some_and(|report| report.uncovered.get(origin) > 0);
        self.uncovered.names(origin) || replica.others.iter().any(told)
    }

    /// All mates are to compare what they have with this replica.
    pub(super) fn want_comparisons(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.compares = Compares::NEW);
    }

    /// Has mates compare where they have to, and forgets what all have compared.
    pub(super) fn comparison_step(&mut self) {
        let serves = |replica: &Replica| replica.stage != Stage::Filling;
        if !self.replica.as_ref().is_some_and(serves) {
            return;
        }
        // Who was written off begins anew once the change has ended, which waits for this.
        let is_written_off = |core: &Self, addr: &Addr| {
            let node = core.node_of(addr);
            let written_off = core.topology.as_ref().and_then(|topology| topology.written_off());
            node.zip(written_off).is_some_and(|(node, written_off)| written_off.contains(&node))
        };
        let mut mates = self.mates();
        mates.retain(|addr| !is_written_off(self, addr));
        let compares = |core: &Self, addr| core.peers.get(addr).is_some_and(|peer| peer.compares != Compares::Unneeded);
        self.nothing_is_copied();
        if !self.uncovered.told.is_empty() && !mates.iter().any(|addr| compares(self, addr)) {
            let told = std::mem::take(&mut self.uncovered.told);
            if self.topology.as_ref().is_some_and(|topology| topology.transition != Transition::Steady) {
                self.uncovered.compared.merge(&told);
            }
            self.uncovered_changed();
        }
        self.drop_covered();
        self.tell_uncovered();
        let now = self.now.mono_ms;
        for addr in mates {
            let Some(peer) = self.peers.get_mut(&addr) else { continue };
            if let Compares::Wanted { asked_ms, .. } = &mut peer.compares
                && now.saturating_sub(*asked_ms) >= COMPARE_AGAIN_MS
            {
                *asked_ms = now;
                self.send(&addr, Message::Behind);
            }
        }
    }

    /// Wants comparisons where nobody can bring what is uncovered any more.
    fn tell_uncovered(&mut self) {
        let Some(replica) = self.replica.as_ref().filter(|_| self.uncovered.told.is_empty()) else { return };
        // All origins of the layout before end with it; what there is of them is here when all has been handed over.
        let has_all_of = |epoch: Epoch| epoch < replica.origin.epoch && self.has_taken_over();
        let is_left = |origin: Origin| {
            self.is_retired(replica, origin)
                || has_all_of(origin.epoch)
                || (self.has_ended(origin) && self.none_has_more(replica, origin))
        };
        let left: Vector = self.uncovered.brought.iter().filter(|&(origin, _)| is_left(origin)).collect();
        if left.is_empty() {
            return;
        }
        self.uncovered.brought.retain(|origin, _| left.get(origin) == 0);
        self.uncovered.told = left;
        self.uncovered_changed();
        self.want_comparisons();
    }

    /// A mate begins to compare its data with what there is here. (That it asks again tells nothing: it may have had the first answer.)
    pub(super) fn comparison_began(&mut self, from: &Addr, id: u64) {
        let Some(peer) = self.peers.get_mut(from).filter(|peer| id > peer.last_comparison) else { return };
        peer.last_comparison = id;
        if let Compares::Wanted { begun, .. } = &mut peer.compares {
            *begun = Some(id);
        }
    }

    /// A mate has compared all that it has with what there was here when it began.
    pub(super) fn compared_by(&mut self, from: &Addr, id: u64) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        if matches!(peer.compares, Compares::Wanted { begun, .. } if begun == Some(id)) {
            peer.compares = Compares::Unneeded;
        }
    }
}
