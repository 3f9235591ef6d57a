//! A node that is known to have had data, and has it no more.
//!
//! Problem: a cluster, or a shard that lost everything, begins empty once all say that they have nothing (see [`super::formation`]). A node
//! whose files were damaged, or did not come back, says that too; and then what was acknowledged is gone without a word.
//!
//! Rule: such a node has no part in any beginning. It is filled by who has its shard's data, as ever. Nobody begins beside it until an
//! operator has brought its files back, or has started it with the word that they are given up.
//!
//! The others learn of it without a message of its own: it seeks a cluster with an empty VIEW, with which nobody founds one, and it
//! names no stage of its replica, for which everybody waits. That it was lost is kept in the store that takes the place of the lost one,
//! until the replica is complete: the topology, which it may get from others before, tells nothing of data.

use kvnode_types::ident::Addr;
use serde::{Deserialize, Serialize};

use super::topology::{ClusterId, Topology};
use super::{Core, FACT_TOPOLOGY, Severity, encode_fact};
use crate::messages::Stage;
use crate::store::{Fact, Result, Store};

pub(super) const FACT_LOST: Fact = Fact("lost");
/// The two ways on.
const WAYS: &str =
    "bring its files back, or start it with ACCEPT_DATA_LOSS=1 (--accept-data-loss) to go on without them";

/// What was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Whose data it was, where that is known.
    pub cluster: Option<ClusterId>,
    /// What is gone and from where, for people.
    pub what: String,
    /// It counts no more under a newer topology, and is being dropped (see [`super::dropping`]): nobody has to bring it back.
    pub is_dropped: bool,
    /// What had been lost before it was dropped.
    pub earlier: Option<Box<Lost>>,
}

impl Lost {
    pub fn new(cluster: Option<ClusterId>, what: String) -> Self {
        Self { cluster, what, is_dropped: false, earlier: None }
    }

    /// What is being dropped, where `earlier` was lost.
    pub(super) fn dropped(cluster: ClusterId, earlier: Option<Self>) -> Self {
        let earlier = match earlier {
            Some(lost) if lost.is_dropped => lost.earlier,
            other => other.map(Box::new),
        };
        let what = "what it has counts no more and is being dropped".to_owned();
        Self { cluster: Some(cluster), what, is_dropped: true, earlier }
    }
}

/// What is known of a node's past from outside of its store.
#[derive(Clone, Debug, Default)]
pub enum Past {
    /// It is in the store, or there is none.
    #[default]
    InStore,
    /// There was data that is not in the store any more.
    Lost(Lost),
    /// Whatever was lost, an operator does without it.
    GivenUp,
}

/// Which cluster a store belongs to, as which node, and in which life: to be kept apart from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub node: kvnode_types::ident::NodeId,
    pub life: kvnode_types::ident::Incarnation,
}

/// Whether a store holds nothing of any cluster.
///
/// # Errors
/// If it can't be read.
pub fn is_blank(store: &dyn Store) -> Result<bool> {
    Ok(store.fact(FACT_TOPOLOGY)?.is_none())
}

/// What is to be told of a loss at the start of a life. It stays in the store for later ones.
pub(super) fn at_start(past: &Past, store: &mut dyn Store) -> Result<Option<Lost>> {
    let noted: Option<Lost> = super::read_fact::<Option<Lost>>(store, FACT_LOST)?.flatten();
    let lost = match past {
        Past::InStore => noted.clone(),
        Past::Lost(lost) => Some(lost.clone()),
        Past::GivenUp => None,
    };
    if lost != noted {
        store.set_fact(FACT_LOST, encode_fact(&lost));
    }
    Ok(lost)
}

impl Core {
    /// Who this node is, once it is in a cluster.
    pub fn identity(&self) -> Option<Identity> {
        let topology = self.topology.as_ref()?;
        Some(Identity { cluster: topology.cluster, node: self.me?, life: self.life })
    }

    /// Why this node begins nothing.
    pub(super) fn own_loss(&self) -> Option<String> {
        let lost = self.lost.as_ref()?;
        Some(if lost.is_dropped { lost.what.clone() } else { format!("{}: {WAYS}", lost.what) })
    }

    /// Why nothing begins beside another node.
    pub(super) fn loss_of(addr: &Addr) -> String {
        format!("{addr} has lost the data that it had: {WAYS}")
    }

    /// Whether a node has a replica under the present layout.
    pub(super) fn is_replica(&self, addr: &Addr) -> bool {
        let node = self.node_of(addr);
        self.topology.as_ref().zip(node).is_some_and(|(topology, node)| topology.layout.shard_of_node(node).is_some())
    }

    /// A node that keeps its data, and has none, comes into a cluster that knows it with some.
    pub(super) fn say_what_is_missing(&mut self, topology: &Topology) {
        let Some(me) = topology.node_at(&self.settings.me).filter(|_| self.store.outlives_process()) else { return };
        let knew = topology.births.get(&me).is_some_and(|birth| *birth != self.birth);
        if knew && topology.layout.shard_of_node(me).is_some() {
            let text =
                "the cluster knows this node with data that is not here: its shard's other replicas are to fill it";
            self.say(Severity::Warn, text);
        }
    }

    /// What the others are told of how far this replica is.
    pub(super) fn told_stage(&self, stage: Stage) -> Option<Stage> {
        (stage != Stage::Filling || self.lost.is_none()).then_some(stage)
    }

    /// Whether a topology is of the cluster whose data was here. With another one this node would forget that there was any.
    pub(super) fn is_of_lost_cluster(&mut self, topology: &Topology) -> bool {
        let known = self.lost.as_ref().and_then(|lost| lost.cluster);
        let fits = known.is_none_or(|known| known == topology.cluster);
        if !fits && !std::mem::replace(&mut self.office.another_cluster, true) {
            let text = format!("its peers are in another cluster ({:032x}) than its data was", topology.cluster.0);
            self.say(Severity::Warn, text);
        }
        fits
    }

    /// The replica is complete, or there is none to be.
    pub(super) fn is_whole_again(&mut self) {
        self.note_loss(None);
    }

    /// Also for a life that follows a crash.
    pub(super) fn note_loss(&mut self, lost: Option<Lost>) {
        if self.lost != lost {
            self.keep_loss(lost);
        }
    }

    pub(super) fn keep_loss(&mut self, lost: Option<Lost>) {
        self.store.set_fact(FACT_LOST, encode_fact(&lost));
        self.lost = lost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where a crash in the middle makes a node begin to drop what it has a second time.
    #[test]
    fn what_was_lost_before_stays_lost_when_the_rest_is_dropped() {
        let real = Lost::new(Some(ClusterId(7)), "the data is gone".into());
        let once = Lost::dropped(ClusterId(7), Some(real.clone()));
        let twice = Lost::dropped(ClusterId(7), Some(once.clone()));
        assert_eq!((&once, twice.earlier.as_deref()), (&twice, Some(&real)));
        assert_eq!(Lost::dropped(ClusterId(7), None).earlier, None);
        // As the store keeps it.
        let kept: Option<Lost> = postcard::from_bytes(&encode_fact(&Some(twice.clone()))).unwrap();
        assert_eq!(kept, Some(twice));
    }
}
