//! How fast something goes, and how long the rest will take.

use std::collections::VecDeque;
use std::time::Duration;

/// The rate is that of the last seconds: what was fast an hour ago says little about the rest.
const WINDOW: Duration = Duration::from_secs(5);

/// Counts over time. The time is an argument: any clock will do that does not go back.
#[derive(Debug, Default)]
pub struct Pace {
    samples: VecDeque<(Duration, u64)>,
}

impl Pace {
    /// `count` are done at the time `now`.
    pub fn sample(&mut self, now: Duration, count: u64) {
        self.samples.push_back((now, count));
        // The last one before the window is its beginning.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// So many a second; `None` before there are two samples.
    pub fn rate(&self) -> Option<f64> {
        let ((from, first), (to, last)) = (self.samples.front()?, self.samples.back()?);
        let seconds = to.saturating_sub(*from).as_secs_f64();
        (seconds > 0.0).then(|| last.saturating_sub(*first) as f64 / seconds)
    }

    /// How long the rest up to `total` takes at this rate; `None` if nothing moves.
    pub fn left(&self, total: u64) -> Option<Duration> {
        let (_, done) = self.samples.back()?;
        let seconds = total.saturating_sub(*done) as f64 / self.rate()?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// `1200 keys/s, 8 s left`; nothing once all is done.
    pub fn text(&self, total: u64) -> String {
        if self.samples.back().is_some_and(|(_, done)| *done >= total) {
            return String::new();
        }
        let rate = self.rate().map(|rate| format!("{rate:.0} keys/s"));
        let left = self.left(total).map(|left| format!("{} left", short(left)));
        [rate, left].into_iter().flatten().collect::<Vec<String>>().join(", ")
    }
}

/// `8 s`, `3 min`, `2 h`.
fn short(time: Duration) -> String {
    match time.as_secs_f64().ceil() as u64 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h", seconds.div_ceil(3600)),
    }
}

/// `45.7 kB`: powers of ten, as networks and disks are sold.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        assert_eq!((pace.rate(), pace.text(100)), (None, String::new()));
        pace.sample(at(0), 0);
        assert_eq!(pace.rate(), None);
        pace.sample(at(1), 1000);
        assert_eq!(pace.text(3000), "1000 keys/s, 2 s left");
        for second in 2..=20 {
            pace.sample(at(second), 1000 + (second - 1) * 10);
        }
        assert_eq!(pace.rate(), Some(10.0), "the fast start is forgotten");
        assert_eq!((pace.left(1190), pace.text(1190).as_str()), (Some(at(0)), ""));
        for second in 21..=30 {
            pace.sample(at(second), 1190);
        }
        assert_eq!((pace.rate(), pace.left(2000)), (Some(0.0), None), "at this rate it never ends");
    }

    #[test]
    fn times_and_bytes_are_short() {
        assert_eq!([1, 119, 120, 7199, 7200].map(|s| short(at(s))), ["1 s", "119 s", "2 min", "120 min", "2 h"]);
        assert_eq!([0, 999, 45_678, 1_000_000].map(bytes), ["0 B", "999 B", "45.7 kB", "1.0 MB"]);
        assert_eq!(bytes(5_000_000_000_000), "5.0 TB");
    }
}
