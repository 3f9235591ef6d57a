//! What must be done so that the nodes are as they are meant to be. Pure: what is there goes in, steps come out.

use crate::cluster::NodeSpec;
use crate::runtime::NodeState;

/// How a node's surroundings compare with what they are meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the cluster's network, at its address, published on its port.
    Right,
    /// On its network, but its port leads nowhere: Docker drops the mapping when a network is cut and healed.
    Unpublished,
    /// Not on the cluster's network, or at another address.
    Elsewhere,
}

/// What is there of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub state: NodeState,
    pub place: Place,
}

/// What repairs a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// There is none: make it and start it.
    Make,
    /// It can't be mended in place: a new one takes over its data.
    Replace,
    Start,
    Restart,
    Unpause,
}

impl Act {
    /// For people: `starting alice`.
    pub fn doing(self) -> &'static str {
        match self {
            Self::Make | Self::Start => "starting",
            Self::Replace => "replacing",
            Self::Restart => "restarting",
            Self::Unpause => "unpausing",
        }
    }
}

fn repair(found: Found) -> Option<Act> {
    match (found.state, found.place) {
        (NodeState::Missing, _) => Some(Act::Make),
        (_, Place::Elsewhere) => Some(Act::Replace),
        (NodeState::Stopped, _) => Some(Act::Start),
        (NodeState::Paused, _) => Some(Act::Unpause),
        (NodeState::Running, Place::Unpublished) => Some(Act::Restart),
        (NodeState::Running, Place::Right) => None,
    }
}

/// The steps that make every node run where it belongs. A node that does is not among them.
pub fn plan(found: Vec<(NodeSpec, Found)>) -> Vec<(NodeSpec, Act)> {
    found.into_iter().filter_map(|(node, found)| Some((node, repair(found)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeSpec {
        NodeSpec { name: format!("n{number}"), ip: [10, 10, 0, number].into(), port: 8080 + u16::from(number) }
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let fine = Found { state: NodeState::Running, place: Place::Right };
        assert_eq!(plan((2..8).map(|number| (node(number), fine)).collect()), []);
    }

    #[test]
    fn each_damage_has_its_repair_in_the_order_of_the_nodes() {
        let damages = [
            (NodeState::Missing, Place::Elsewhere, Act::Make),
            (NodeState::Stopped, Place::Right, Act::Start),
            (NodeState::Stopped, Place::Elsewhere, Act::Replace),
            (NodeState::Paused, Place::Right, Act::Unpause),
            (NodeState::Running, Place::Unpublished, Act::Restart),
            (NodeState::Running, Place::Elsewhere, Act::Replace),
        ];
        let found = |(n, (state, place, _))| (node(n), Found { state, place });
        let steps = plan((2..).zip(damages).map(found).collect());
        assert_eq!(steps, (2..).zip(damages).map(|(n, (_, _, act))| (node(n), act)).collect::<Vec<_>>());
    }
}
