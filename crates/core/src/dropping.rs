//! Dropping all that a node has, in bounded steps: it may be millions of versions, and a turn must not take longer for it.
//!
//! A node whose data counts no more (see [`super::adopt`]) takes over the topology that says so only once the data is gone. Until then it
//! goes by the one before, in the place that it had there, with a replica that is to be filled and has nothing: nobody is served from
//! what is left, or filled by it. A restart in between finds just that, is told the newer topology again, and goes on. Meanwhile it is a
//! node that has lost its data ([`super::loss`]): under the topology before, nothing may begin as if there had never been any.

use kvnode_types::ident::{Epoch, Key, Slot};

use super::loss::Lost;
use super::settings::Mutant;
use super::topology::Topology;
use super::{Core, Severity};
use crate::store::{Listed, Result};

/// Versions that a turn drops, and bytes of those that it sets aside.
const VERSIONS_PER_STEP: usize = 2_000;
const BYTES_PER_STEP: usize = 8 << 20;
/// Versions read at once.
const VERSIONS_AT_ONCE: usize = 500;

/// How far it is.
pub(super) struct Dropping {
    /// What is to be taken over then: the newest that was told.
    pub topology: Topology,
    /// The epoch that this life has written under.
    pub wrote_under: Option<Epoch>,
    /// The last key that was dropped.
    after: Option<Key>,
    /// Writes that may be nowhere else, and whether they are kept somewhere.
    unshared: u64,
    kept: bool,
}

impl Core {
    /// Nothing of what this node has counts under a newer topology.
    pub(super) fn drop_for(&mut self, topology: Topology) -> Result<()> {
        let wrote_under = self.replica.as_ref().map(|replica| replica.origin.epoch);
        let lost = Lost::dropped(topology.cluster, self.lost.clone());
        self.note_loss(Some(lost));
        self.dropping = Some(Dropping { topology, wrote_under, after: None, unshared: 0, kept: false });
        // What clients wait for may be nowhere any more, or have got to others.
        if !self.settings.broken(Mutant::DroppedIsDone) {
            self.give_up_unacknowledged();
        }
        if let Some(before) = self.topology.clone() {
            self.take_place(before);
        }
        self.transfer = None;
        self.has_nothing();
        self.reason = "dropping what it has from before it was given up".into();
        // Nobody is to pass requests on to it any more.
        self.beat_all();
        self.drop_step()
    }

    /// In the place that it has it is to be filled; what it would hand over is gone, or goes.
    pub(super) fn has_nothing(&mut self) {
        match self.replica.as_mut() {
            Some(replica) if replica.shard.is_some() => replica.handed = None,
            _ => self.replica = None,
        }
    }

    /// Drops a part, and takes over the topology when it was the last.
    pub(super) fn drop_step(&mut self) -> Result<()> {
        let Some(mut dropping) = self.dropping.take() else { return Ok(()) };
        if !self.drop_some(&mut dropping)? {
            self.dropping = Some(dropping);
            return Ok(());
        }
        let Dropping { topology, wrote_under, unshared, kept, .. } = dropping;
        let earlier = self.lost.take().and_then(|lost| lost.earlier);
        self.keep_loss(earlier.map(|lost| *lost));
        if unshared > 0 {
            let fate = if kept { "they are set aside in the data directory" } else { "they are lost" };
            let text = format!("{unshared} writes from before this node was given up may be nowhere else: {fate}");
            self.say(Severity::Warn, text);
        }
        self.adopt_with_nothing(topology, wrote_under)
    }

    /// Whether nothing is left.
    fn drop_some(&mut self, dropping: &mut Dropping) -> Result<bool> {
        let (mut versions, mut bytes) = (0, 0);
        while versions < VERSIONS_PER_STEP && bytes < BYTES_PER_STEP {
            let listed = self.store.list("", dropping.after.as_ref(), VERSIONS_AT_ONCE)?;
            if listed.is_empty() {
                return Ok(true);
            }
            for (key, listed) in listed {
                bytes += self.set_aside_if_unshared(&key, &listed, dropping)?;
                self.inventory.discard(&mut *self.store, &key, listed.dot, listed.has_value);
                versions += 1;
                dropping.after = Some(key);
                if bytes >= BYTES_PER_STEP {
                    break;
                }
            }
        }
        Ok(false)
    }

    /// Keeps what may be nowhere else where a person finds it, and tells how many bytes that took.
    ///
    /// It is not brought back under its old stamps: meanwhile those who saw it were served without it, and may have
    /// overwritten or deleted what they would then see again.
    fn set_aside_if_unshared(&mut self, key: &Key, listed: &Listed, dropping: &mut Dropping) -> Result<usize> {
        let Listed { dot, .. } = listed;
        if self.is_stable(dot.origin, dot.seq) || self.was_stable(*dot) {
            return Ok(0);
        }
        let Some(version) = self.store.get(Slot::of(key), key)? else { return Ok(0) };
        dropping.kept = self.store.set_aside(key, &version);
        dropping.unshared += 1;
        Ok(version.value.as_ref().map_or(0, bytes::Bytes::len))
    }
}
