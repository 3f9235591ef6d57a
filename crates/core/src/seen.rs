//! Which of the numbers that a peer gives its requests were acted on: none is acted on twice.

use std::collections::BTreeSet;

/// Numbers that are remembered one by one.
const REMEMBERED: usize = 8_192;

/// Numbers that have come. They rise with every request, and arrive in about that order.
#[derive(Debug, Default)]
pub struct Seen {
    newest: BTreeSet<u64>,
    /// Everything up to here counts as seen: it was, or it comes later than so many others that its sender has given it up.
    below: u64,
}

impl Seen {
    /// Whether this number comes for the first time.
    pub fn first_time(&mut self, number: u64) -> bool {
        if number <= self.below || !self.newest.insert(number) {
            return false;
        }
        if self.newest.len() > REMEMBERED {
            self.below = self.newest.pop_first().unwrap_or(self.below);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_comes_for_the_first_time_twice() {
        let mut seen = Seen::default();
        let full = 3 * REMEMBERED as u64;
        for number in 1..=full {
            assert!(seen.first_time(number));
            // One that is remembered comes again: no other must be forgotten for it.
            assert!(!seen.first_time(number.saturating_sub(50).max(1)));
        }
        for number in 1..=full {
            assert!(!seen.first_time(number), "{number}");
        }
        assert!(seen.first_time(full + 10) && seen.first_time(full + 5) && !seen.first_time(full + 5));
        assert!(seen.first_time(u64::MAX) && !seen.first_time(u64::MAX) && !seen.first_time(0));
    }
}
