//! When operations begin.
//!
//! Closed loop: a connection begins its next operation when the last one is answered. If the server stalls, nobody asks, and the
//! stall counts as one slow operation per connection: *coordinated omission*. So in an open loop every operation has a
//! moment at which it is due, whatever the server does, and its latency counts from then: the operations that a stall
//! kept waiting count with their wait.
//!
//! Due operations are let go by a thread of its own, because the timers of the async runtime go by whole milliseconds, which
//! would be most of the latency measured. Below some ten microseconds between operations it lets go several at once.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// When operation `number` is due, counted from the start, at so many per second.
pub fn due(number: u64, rate: f64) -> Duration {
    Duration::from_secs_f64(number as f64 / rate)
}

/// How many operations are due up to `elapsed`; the first is due at once.
fn due_by(elapsed: Duration, rate: f64) -> u64 {
    (elapsed.as_secs_f64() * rate).floor() as u64 + 1
}

/// Says when the next operation begins.
pub enum Pace {
    Closed { end: Instant },
    Open(Open),
}

/// See the module's documentation.
pub struct Open {
    rate: f64,
    start: Instant,
    end: Instant,
    /// One permit for each operation that is due and was not taken.
    ripe: Arc<Semaphore>,
    taken: Cell<u64>,
}

impl Pace {
    /// Operations begin from `start` until `end`.
    pub fn new(rate: Option<f64>, start: Instant, end: Instant) -> Self {
        let Some(rate) = rate else { return Self::Closed { end } };
        let ripe = Arc::new(Semaphore::new(0));
        let let_go = ripe.clone();
        std::thread::spawn(move || release(&let_go, rate, start, end));
        Self::Open(Open { rate, start, end, ripe, taken: Cell::new(0) })
    }

    /// Waits for the next operation; the moment from which its latency counts. `None`: the time is over.
    pub async fn next(&self) -> Option<Instant> {
        match self {
            Self::Closed { end } => Some(Instant::now()).filter(|now| now < end),
            Self::Open(open) => open.next().await,
        }
    }

    /// The operations that were due before `end` and never begun, each by the moment when it was due. They waited at least until then.
    pub fn unsent(&self, end: Instant) -> Vec<Instant> {
        let Self::Open(open) = self else { return Vec::new() };
        let all = (open.taken.get()..).map(|number| open.start + due(number, open.rate));
        all.take_while(|due| *due < end.min(open.end)).collect()
    }
}

impl Open {
    async fn next(&self) -> Option<Instant> {
        if Instant::now() >= self.end {
            return None;
        }
        self.ripe.acquire().await.ok()?.forget();
        if Instant::now() >= self.end {
            return None;
        }
        let number = self.taken.get();
        self.taken.set(number + 1);
        Some(self.start + due(number, self.rate))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.ripe.close();
    }
}

/// Gives a permit for each operation as it becomes due, until the end or until nobody wants any more.
fn release(ripe: &Semaphore, rate: f64, start: Instant, end: Instant) {
    let mut released = 0;
    while !ripe.is_closed() {
        let now = Instant::now();
        if now >= end {
            break;
        }
        let ready = due_by(now.saturating_duration_since(start), rate);
        if ready > released {
            ripe.add_permits((ready - released) as usize);
            released = ready;
        }
        let next = start + due(released, rate);
        // Not longer than a moment at a time, so that a run that is broken off ends.
        let pause = next.min(end).saturating_duration_since(Instant::now()).min(Duration::from_millis(100));
        std::thread::sleep(pause);
    }
    ripe.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_due_at_even_distances() {
        assert_eq!(due(0, 100.0), Duration::ZERO);
        assert_eq!(due(250, 100.0), Duration::from_millis(2_500));
        for (elapsed, expected) in [(0, 1), (9, 1), (10, 2), (95, 10), (2_500, 251)] {
            assert_eq!(due_by(Duration::from_millis(elapsed), 100.0), expected, "{elapsed} ms");
        }
    }

    #[tokio::test]
    async fn what_is_due_does_not_wait_for_what_was_taken() {
        let start = Instant::now();
        let pace = Pace::new(Some(1_000.0), start, start + Duration::from_millis(200));
        let mut moments = Vec::new();
        while let Some(moment) = pace.next().await {
            if moments.is_empty() {
                // A stall: half of all operations come due meanwhile.
                std::thread::sleep(Duration::from_millis(100));
            }
            moments.push(moment);
        }
        let expected: Vec<Instant> = (0..moments.len() as u64).map(|number| start + due(number, 1_000.0)).collect();
        assert_eq!(moments, expected);
        assert_eq!(moments.len() + pace.unsent(start + Duration::from_secs(9)).len(), 200);
    }

    #[tokio::test]
    async fn what_nobody_took_is_not_forgotten() {
        let start = Instant::now();
        let pace = Pace::new(Some(1_000.0), start, start + Duration::from_millis(50));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(pace.next().await, None);
        assert_eq!(pace.unsent(start + Duration::from_millis(50)).len(), 50);
        assert_eq!(pace.unsent(start + Duration::from_millis(20)).len(), 20, "only those of a run that was broken off");
        assert!(Pace::new(None, start, start).unsent(start).is_empty());
    }
}
