//! What a core tells about the change of the layout that runs, or ran last.

use kvnode_types::ident::Addr;
use serde::Serialize;

use crate::Core;
use crate::messages::Move;
use crate::topology::{Change, ChangeKind, Ended, Layout, Topology, Transition};

/// The change that runs, or the last one.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChangeStatus {
    /// `None`: there never was one.
    pub job: Option<u32>,
    pub kind: Option<&'static str>,
    /// `idle` (there was none), `copying`, `settling`, `done` or `aborted`.
    pub phase: &'static str,
    pub epoch: u32,
    pub moves: Vec<MoveStatus>,
    /// Keys of all moves, and bytes of their values; the bytes of all are estimated from the keys that have come.
    pub keys: u64,
    pub keys_total: u64,
    pub bytes: u64,
    pub bytes_total: u64,
    /// Keys and bytes a second since this node heard of it; 0 once it is over.
    pub rate: Rate,
    pub waiting_for: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rate {
    pub keys: u64,
    pub bytes: u64,
}

/// What one node has fetched from one shard.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MoveStatus {
    pub from: String,
    pub to: String,
    pub node: Addr,
    pub keys: u64,
    pub keys_total: u64,
    pub bytes: u64,
}

/// A layout as it is or would be.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanStatus {
    pub shards: Vec<PlanShard>,
    pub moved_slots: usize,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanShard {
    pub id: String,
    pub members: Vec<Addr>,
    pub members_before: Vec<Addr>,
    pub slots: usize,
    pub slots_before: usize,
}

fn kind_name(change: &Change) -> &'static str {
    match change.kind {
        ChangeKind::Reshard => "reshard",
        ChangeKind::AddMember(_) => "add-member",
        ChangeKind::Remove(_) => "remove",
    }
}

fn describe(topology: &Topology) -> (Option<&Change>, &'static str) {
    match (&topology.transition, &topology.last) {
        (Transition::Copying { change, .. }, _) => (Some(change), "copying"),
        (Transition::Settling { change, .. }, _) => (Some(change), "settling"),
        (Transition::Steady, Some((change, Ended::Done))) => (Some(change), "done"),
        (Transition::Steady, Some((change, Ended::Aborted))) => (Some(change), "aborted"),
        (Transition::Steady, None) => (None, "idle"),
    }
}

impl Core {
    /// # Errors
    /// The reason, while there is no cluster.
    pub fn change(&self) -> Result<ChangeStatus, String> {
        let topology = self.topology.as_ref().ok_or_else(|| self.reason.clone())?;
        let (change, phase) = describe(topology);
        let name = |addr: &Addr, one: &Move| MoveStatus {
            from: one.from.to_string(),
            to: one.to.to_string(),
            node: addr.clone(),
            keys: one.keys.min(one.keys_total),
            keys_total: one.keys_total,
            bytes: one.bytes,
        };
        let own = (&self.settings.me, self.own_moves());
        let told = self.peers.iter().map(|(addr, peer)| (addr, peer.moves.clone()));
        let mut all: Vec<(&Addr, Vec<Move>)> = std::iter::once(own).chain(told).collect();
        all.sort_by_key(|&(addr, _)| (self.node_of(addr).is_none(), self.node_of(addr)));
        let moves: Vec<MoveStatus> =
            all.into_iter().flat_map(|(addr, moves)| moves.into_iter().map(move |one| name(addr, &one))).collect();
        let sum = |of: fn(&MoveStatus) -> u64| moves.iter().map(of).fold(0, u64::saturating_add);
        let (keys, keys_total, bytes) = (sum(|one| one.keys), sum(|one| one.keys_total), sum(|one| one.bytes));
        let part = |of: u64, times: u64, per: u64| {
            let part = u128::from(of) * u128::from(times) / u128::from(per.max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let heard_ms = match topology.transition {
            Transition::Steady => None,
            _ => self.office.change_heard,
        };
        let since_ms = heard_ms.map(|(_, at)| self.now.mono_ms.saturating_sub(at).max(1));
        let rate = |count: u64| since_ms.map_or(0, |since_ms| part(count, 1_000, since_ms));
        Ok(ChangeStatus {
            job: change.map(|change| change.job),
            kind: change.map(kind_name),
            phase,
            epoch: topology.layout.epoch.0,
            keys,
            keys_total,
            bytes,
            bytes_total: part(bytes, keys_total, keys),
            rate: Rate { keys: rate(keys), bytes: rate(bytes) },
            moves,
            waiting_for: self.change_waits_for(),
        })
    }

    /// A layout beside the present one.
    pub fn describe_plan(&self, before: &Layout, after: &Layout) -> PlanStatus {
        let addrs = |layout: &Layout, shard| -> Vec<Addr> {
            let members = layout.members(shard).iter().copied();
            self.topology.as_ref().map(|topology| topology.addrs_as_joined(members)).unwrap_or_default()
        };
        let ids = before.shards.keys().chain(after.shards.keys()).copied().collect::<std::collections::BTreeSet<_>>();
        let one = |shard| PlanShard {
            id: format!("{shard}"),
            members: addrs(after, shard),
            members_before: addrs(before, shard),
            slots: after.slot_count(shard),
            slots_before: before.slot_count(shard),
        };
        PlanStatus { shards: ids.into_iter().map(one).collect(), moved_slots: before.slots_moved(after) }
    }
}
