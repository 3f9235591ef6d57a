//! How fast the checker judges: a correct history of N operations by 8 clients, 5 % of them fresh, on 10 keys.
//!
//! Usage: cargo run --release -p kvnode --example check_speed -- 1000000

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use kvnode::checker::{Moment, judge};

fn main() {
    let count: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let mut state = 1_u64;
    let mut random = |end: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    let (mut history, mut newest, mut sessions) = (Vec::new(), [None; 10], [0_usize, 1, 2, 3, 4, 5, 6, 7]);
    for write in 0..count {
        let (slot, key) = (random(8) as usize, random(10) as usize);
        if random(100) < 5 {
            sessions[slot] += 8;
        }
        let session = sessions[slot];
        if random(2) == 0 {
            history.push(Moment::Invoke { session, key, write, delete: false });
            history.push(Moment::Done { session, write });
            newest[key] = Some(write);
        } else {
            history.push(Moment::Read { session, key, saw: newest[key] });
        }
    }
    let begun = Instant::now();
    let verdict = judge(&history, &BTreeSet::new(), &BTreeMap::new());
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    println!("{count} operations: {rate:.0} per second, {verdict:?}");
}
