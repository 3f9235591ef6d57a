//! Nodes that were refused, so that it is said, and not too often.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What goes on is said so often of each.
const AGAIN: Duration = Duration::from_secs(60);
/// So many are told apart; of more at once only some are named.
const REMEMBERED: usize = 256;

/// Where nodes came from that had another secret, and when that was said.
#[derive(Debug, Default)]
pub struct Strangers(Mutex<BTreeMap<IpAddr, Instant>>);

impl Strangers {
    /// One came from there. Whether it is time to say so.
    pub fn came(&self, from: IpAddr, now: Instant) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = |at: &Instant| now.saturating_duration_since(*at) < AGAIN;
        if said.get(&from).is_some_and(lately) {
            return false;
        }
        if said.len() >= REMEMBERED {
            said.retain(|_, at| lately(at));
        }
        if said.len() >= REMEMBERED {
            return false;
        }
        said.insert(from, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_said_once_a_minute_and_a_crowd_is_bounded() {
        let (strangers, begun) = (Strangers::default(), Instant::now());
        let from = |last: u16| IpAddr::from([10, 10, (last >> 8) as u8, last as u8]);
        assert!(strangers.came(from(1), begun) && strangers.came(from(2), begun));
        assert!(!strangers.came(from(1), begun + Duration::from_secs(59)));
        assert!(strangers.came(from(1), begun + AGAIN));
        let said = (0..1_000).filter(|&last| strangers.came(from(last), begun + AGAIN)).count();
        assert_eq!(said, REMEMBERED - 1, "one was said just now");
        assert!(strangers.came(from(999), begun + 2 * AGAIN), "when those are forgotten, others are said");
    }
}
