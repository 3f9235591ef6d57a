//! Whether a node that finds itself outside of the view asks to be in it.
//!
//! Problem: an operator removes a node. If it is down meanwhile, it joins when it is started again; if it runs, it is to stay outside
//! until it is started again. What it hears is the same: a topology that does not list it.
//!
//! Rule: a life of a node *asks* until a majority of the voters has told it that they go by a topology which lists it. A removal that it hears of
//! before that was decided before it was there, or while it could reach hardly anybody, which is the same to an operator. One that it hears
//! of afterwards is meant for it.

use std::collections::BTreeSet;

use kvnode_types::ident::{Addr, NodeId};

use super::Core;

#[derive(Debug)]
pub(super) enum Arrival {
    /// It asks; these voters go by the topology that it goes by, which lists it.
    Asks {
        known_by: BTreeSet<NodeId>,
    },
    Known,
}

impl Default for Arrival {
    fn default() -> Self {
        Self::Asks { known_by: BTreeSet::new() }
    }
}

impl Core {
    /// Whether it asks to be in the view where it is not.
    pub(super) fn asks_to_join(&self) -> bool {
        matches!(self.arrival, Arrival::Asks { .. })
    }

    /// A peer goes by the same topology, and speaks to this life of this node.
    pub(super) fn known_by(&mut self, from: &Addr) {
        let (Some(me), Some(topology)) = (self.me, &self.topology) else { return };
        let Some(peer) = self.bearings.node_at(from) else { return };
        let Arrival::Asks { known_by } = &mut self.arrival else { return };
        known_by.insert(peer);
        let voters = topology.electors();
        let agree = voters.iter().filter(|&voter| *voter == me || known_by.contains(voter)).count();
        if agree > voters.len() / 2 {
            self.arrival = Arrival::Known;
        }
    }
}
