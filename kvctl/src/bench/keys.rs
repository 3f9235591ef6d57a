//! Which key comes next, and what keys and values look like. Pure.

use crate::args::Distribution;

/// Draws numbers of keys, from 0.
#[derive(Clone, Debug)]
pub enum Picker {
    Uniform(u64),
    Zipfian(Zipfian),
}

impl Picker {
    pub fn new(distribution: Distribution, keys: u64) -> Self {
        match distribution {
            Distribution::Uniform => Self::Uniform(keys),
            Distribution::Zipfian(theta) => Self::Zipfian(Zipfian::new(keys, theta)),
        }
    }

    pub fn pick(&self, random: &mut fastrand::Rng) -> u64 {
        match self {
            Self::Uniform(keys) => random.u64(..*keys),
            Self::Zipfian(zipfian) => zipfian.pick(random),
        }
    }
}

/// Zipf's law over a bounded range, in constant time and memory, for any positive exponent: rejection-inversion, by Hörmann and
/// Derflinger (1996), "Rejection-inversion to generate variates from monotone discrete distributions".
///
/// The density is bounded from above by a curve whose integral H can be inverted. A point under that curve is drawn, and
/// taken if it is under the histogram, too, which it is more than nine times in ten.
#[derive(Clone, Debug)]
pub struct Zipfian {
    keys: f64,
    theta: f64,
    /// H at both ends.
    from: f64,
    to: f64,
    /// Points this close below a whole number need no further look.
    sure: f64,
}

/// `ln(1 + x) / x`, also where that is 0 / 0.
fn log_ratio(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

/// `(e^x - 1) / x`, also where that is 0 / 0.
fn exp_ratio(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

impl Zipfian {
    pub fn new(keys: u64, theta: f64) -> Self {
        let mut new = Self { keys: keys as f64, theta, from: 0.0, to: 0.0, sure: 0.0 };
        new.from = new.integral(1.5) - 1.0;
        new.to = new.integral(new.keys + 0.5);
        new.sure = 2.0 - new.inverse(new.integral(2.5) - new.density(2.0));
        new
    }

    fn density(&self, x: f64) -> f64 {
        (-self.theta * x.ln()).exp()
    }

    /// H: the integral of the density from 1 on.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        exp_ratio((1.0 - self.theta) * log) * log
    }

    fn inverse(&self, y: f64) -> f64 {
        let bend = (y * (1.0 - self.theta)).max(-1.0);
        (log_ratio(bend) * y).exp()
    }

    fn pick(&self, random: &mut fastrand::Rng) -> u64 {
        loop {
            let y = self.to + random.f64() * (self.from - self.to);
            let x = self.inverse(y);
            let rank = (x + 0.5).floor().clamp(1.0, self.keys);
            if rank - x <= self.sure || y >= self.integral(rank + 0.5) - self.density(rank) {
                return rank as u64 - 1;
            }
        }
    }
}

/// The key of a number: `k000000000000042`. Neighbours are of unlike shards, since slots come from a hash.
pub fn write_key(out: &mut Vec<u8>, number: u64, size: usize) {
    out.push(b'k');
    let at = out.len();
    out.resize(at + size - 1, b'0');
    let mut rest = number;
    for digit in out[at..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// Text that values are cut from, so that no two in a row are alike and none has to be made.
pub fn filler(value_size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(4711);
    (0..value_size + 4_096).map(|_| random.alphanumeric() as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(distribution: Distribution, keys: u64, draws: usize) -> Vec<f64> {
        let picker = Picker::new(distribution, keys);
        let mut random = fastrand::Rng::with_seed(7);
        let mut counts = vec![0.0; keys as usize];
        (0..draws).for_each(|_| counts[picker.pick(&mut random) as usize] += 1.0);
        counts
    }

    #[test]
    fn every_key_comes_up_as_often_as_its_distribution_says() {
        const DRAWS: usize = 400_000;
        for theta in [0.0, 0.5, 0.99, 1.0, 1.5, 3.0] {
            for keys in [1, 2, 3, 10, 100] {
                let distribution = if theta == 0.0 { Distribution::Uniform } else { Distribution::Zipfian(theta) };
                let weights: Vec<f64> = (1..=keys).map(|rank| f64::from(rank as u32).powf(-theta)).collect();
                let sum: f64 = weights.iter().sum();
                for (rank, count) in drawn(distribution, keys, DRAWS).into_iter().enumerate() {
                    let expected = DRAWS as f64 * weights[rank] / sum;
                    // Five standard deviations, and a little for keys that hardly ever come up.
                    let bound = 5.0 * expected.sqrt() + 5.0;
                    assert!((count - expected).abs() < bound, "{distribution} {keys} {rank}: {count}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn a_thousand_million_keys_cost_no_more_than_ten() {
        let picker = Picker::new(Distribution::Zipfian(0.99), 1_000_000_000);
        let mut random = fastrand::Rng::with_seed(7);
        let picks: Vec<u64> = (0..10_000).map(|_| picker.pick(&mut random)).collect();
        assert!(picks.iter().all(|pick| *pick < 1_000_000_000));
        assert!(picks.iter().any(|pick| *pick > 1_000_000), "the tail is there");
        assert!(picks.iter().filter(|pick| **pick == 0).count() > 200, "and the head");
    }

    #[test]
    fn keys_have_their_size_and_are_all_different() {
        let key = |number| {
            let mut out = b"/".to_vec();
            write_key(&mut out, number, 10);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(key(0), "/k000000000");
        assert_eq!(key(999_999_999), "/k999999999");
        assert_eq!(key(42), "/k000000042");
    }
}
