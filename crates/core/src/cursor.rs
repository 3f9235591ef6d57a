//! How far a mate has got with the writes of this node: what was handed to the link to it, and what it has acknowledged.
//!
//! Go-back-N (Tanenbaum and Wetherall, Computer Networks): a mate takes writes in order, so what it lacks is sent again from the
//! first that it lacks.

/// What was sent and not acknowledged for so long is sent again.
const RESEND_MS: u64 = 300;

#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// Handed to the link up to here, and from where on the last time. `held` ≤ `sent`.
    sent: u64,
    last_from: u64,
    /// Acknowledged up to here.
    held: u64,
    /// When an acknowledgement came, or began to be waited for.
    moved_ms: u64,
    /// What it held when a gap was last seen. Sent again once: what it has no room for until other writes come would go round.
    gap_at: Option<u64>,
    /// What it lacks next is not in the log any more: it was told, and gets nothing until it has caught up in another way.
    is_behind: bool,
}

impl Cursor {
    pub fn held(&self) -> u64 {
        self.held
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether there is something to send, if `last` is the newest write.
    pub fn lacks(&self, last: u64) -> bool {
        !self.is_behind && self.sent < last
    }

    /// Writes up to `last` are handed to the link.
    pub fn send(&mut self, last: u64, now_ms: u64) {
        if self.sent == self.held {
            self.moved_ms = now_ms;
        }
        (self.last_from, self.sent) = (self.sent, last);
    }

    /// The log does not reach back to what it lacks.
    pub fn fall_behind(&mut self, now_ms: u64) {
        (self.is_behind, self.moved_ms) = (true, now_ms);
    }

    /// It holds all writes up to `held`, and keeps `beyond` more that wait for others, if it told that. Whether something is to be sent
    /// at once: it has caught up, or it lacks writes before those that were sent last, so that what it was sent is of no use to it.
    pub fn acknowledge(&mut self, held: u64, beyond: Option<u64>, now_ms: u64) -> bool {
        let caught_up = self.is_behind && held > self.held;
        let gap = self.sent > self.held && beyond.is_some_and(|beyond| held.saturating_add(beyond) < self.last_from);
        if held > self.held {
            (self.held, self.moved_ms, self.is_behind) = (held, now_ms, false);
        }
        self.sent = self.sent.max(self.held);
        // An older acknowledgement may have been late.
        if gap && held == self.held && self.gap_at != Some(held) {
            self.gap_at = Some(held);
            self.go_back();
            return true;
        }
        caught_up
    }

    /// Goes back if an acknowledgement has been waited for long enough. Whether it did.
    pub fn give_up_waiting(&mut self, now_ms: u64) -> bool {
        let waits = self.sent > self.held || self.is_behind;
        let overdue = waits && now_ms.saturating_sub(self.moved_ms) >= RESEND_MS;
        if overdue {
            self.go_back();
            (self.is_behind, self.moved_ms) = (false, now_ms);
        }
        overdue
    }

    fn go_back(&mut self) {
        (self.sent, self.last_from) = (self.held, self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_before_the_last_batch_is_sent_again_at_once() {
        let mut cursor = Cursor::default();
        cursor.send(10, 0);
        // That batch is lost.
        cursor.send(12, 5);
        assert!(cursor.acknowledge(0, Some(0), 6));
        assert_eq!((cursor.sent(), cursor.held()), (0, 0));
        cursor.send(12, 6);
        assert!(!cursor.acknowledge(0, Some(0), 7), "once: it may wait for something else");
        assert!(!cursor.acknowledge(12, Some(0), 8));
        assert!(!cursor.lacks(12) && cursor.lacks(13));
    }

    #[test]
    fn a_gap_that_stays_is_left_to_time() {
        let mut cursor = Cursor::default();
        cursor.send(10, 0);
        cursor.send(12, 5);
        assert!(cursor.acknowledge(0, Some(4), 6));
        // It has room for no more than four until something else comes.
        cursor.send(10, 6);
        cursor.send(12, 7);
        assert!(!cursor.acknowledge(0, Some(4), 8));
        assert!(cursor.give_up_waiting(6 + RESEND_MS));
    }

    #[test]
    fn what_waits_there_for_other_writes_is_not_sent_again() {
        let mut cursor = Cursor::default();
        cursor.send(10, 0);
        cursor.send(12, 5);
        assert!(!cursor.acknowledge(3, Some(7), 6), "of the second batch nothing is known");
        assert!(!cursor.acknowledge(2, Some(0), 6), "a late one");
        assert!(!cursor.acknowledge(3, None, 6), "it does not tell");
        assert_eq!((cursor.sent(), cursor.held()), (12, 3));
    }

    #[test]
    fn an_acknowledgement_is_waited_for_however_much_is_sent() {
        let mut cursor = Cursor::default();
        cursor.send(1, 1_000);
        for now in (1_010..1_000 + RESEND_MS).step_by(10) {
            cursor.send(now, now);
            assert!(!cursor.give_up_waiting(now));
        }
        assert!(cursor.give_up_waiting(1_000 + RESEND_MS));
        assert_eq!(cursor.sent(), 0);
    }

    #[test]
    fn one_that_is_behind_gets_nothing_until_it_has_caught_up_or_has_been_told_again() {
        let mut cursor = Cursor::default();
        cursor.fall_behind(0);
        assert!(!cursor.lacks(5) && !cursor.acknowledge(0, Some(0), 10));
        assert!(cursor.acknowledge(3, Some(0), 20));
        assert!(cursor.lacks(5));
        cursor.fall_behind(20);
        assert!(cursor.give_up_waiting(20 + RESEND_MS) && cursor.lacks(5));
    }
}
