//! What a disk that fills up changes.
//!
//! The engine can't go on after a batch that did not fit, so room is judged before anything is staged: the driver measures and
//! says how much there is ([`Event::Room`](super::Event::Room)), and the core takes no more than that.
//!
//! - [`Room::Low`]: clients' puts are refused. What other replicas have accepted is still taken, so that replicas with disks
//!   of one size fill up together instead of one losing touch. Deletions are accepted, for they are small, at most one for
//!   every key there is, and the only way in which clients can make room.
//! - [`Room::None`]: nothing is taken that grows with the data: no deletions, no writes of other replicas, no copies. What is
//!   not taken is not acknowledged either; its writer keeps it and sends it again, or is compared with, once there is room.
//!   Facts (the topology, the log of it, lives) are few and small, and go on.
//!
//! Reads go on throughout. One that depends on a write that was not taken is told so, as with any replica that lags.

use super::request::{Answer, Op};
use super::{Core, Severity};

/// How much room a store has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    #[default]
    Enough,
    /// Only for what must not be refused, and for what makes room.
    Low,
    /// For small facts alone.
    None,
}

impl Room {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enough => "enough",
            Self::Low => "low",
            Self::None => "none",
        }
    }
}

impl Core {
    /// How much room there is, as the driver said last.
    pub fn room(&self) -> Room {
        self.room
    }

    /// The driver has measured.
    pub(super) fn room_is(&mut self, room: Room) {
        if room == self.room {
            return;
        }
        let before = std::mem::replace(&mut self.room, room);
        match room {
            Room::Enough => self.say(Severity::Info, "there is room again: writes are taken"),
            Room::Low => self.say(Severity::Warn, "room runs out: puts are refused"),
            Room::None => self.say(Severity::Warn, "there is no room left: no writes are taken"),
        }
        if !self.takes_writes() {
            self.abandon_repair();
            self.transfer = None;
        }
        if (before == Room::None) != (room == Room::None) {
            // The other replicas stop sending what is not taken, or go on with it, at once.
            self.beat_all();
        }
    }

    /// Whether this replica takes what others have written.
    pub(super) fn takes_writes(&self) -> bool {
        self.room != Room::None
    }

    /// Why a request can't be served for want of room.
    pub(super) fn no_room_for(&self, op: &Op) -> Option<Answer> {
        let refused = match op {
            Op::Put { .. } => self.room != Room::Enough,
            Op::Delete { .. } => self.room == Room::None,
            Op::Get { .. } | Op::List { .. } | Op::KeyCount { .. } => false,
        };
        refused.then(|| Answer::Full { reason: format!("No room left to store data at {}", self.settings.me) })
    }
}
