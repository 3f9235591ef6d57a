//! When a write was made, as far as that decides between concurrent ones.

use serde::{Deserialize, Serialize};

/// A reading of the hybrid logical clock: milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp(pub u64);

impl Stamp {
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms << 16)
    }

    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }
}
