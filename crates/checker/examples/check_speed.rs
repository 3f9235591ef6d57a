//! How fast the checker judges: correct histories by 8 clients, 5 % of them fresh, half of the operations reads. Where reads
//! lag, a client sees a state that is up to so many writes old.
//!
//! Usage: cargo run --release -p kvnode-checker --example check_speed -- OPERATIONS KEYS LAG

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use kvnode_checker::{Moment, judge};

fn main() {
    let arguments: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let [count, keys, lag] = arguments[..] else {
        eprintln!("usage: check_speed OPERATIONS KEYS LAG");
        std::process::exit(2);
    };
    let mut state = 1_u64;
    let mut random = |end: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % end
    };
    // Writes in one order, and per key which of them; a session has seen a prefix.
    let (mut history, mut written, mut sessions) = (Vec::new(), 0, [(0_usize, 0_u64); 8]);
    let mut of_key: Vec<Vec<u64>> = vec![Vec::new(); keys as usize];
    (0..8).for_each(|slot| sessions[slot].0 = slot);
    for _ in 0..count {
        let (slot, key) = (random(8) as usize, random(keys) as usize);
        if random(100) < 5 {
            sessions[slot] = (sessions[slot].0 + 8, 0);
        }
        let (session, seen) = sessions[slot];
        if random(2) == 0 {
            written += 1;
            history.push(Moment::Invoke { session, key, write: written, delete: false });
            history.push(Moment::Done { session, write: written });
            of_key[key].push(written);
            sessions[slot].1 = written;
        } else {
            let state = seen.max(written - random(lag + 1).min(written));
            let older = of_key[key].partition_point(|&write| write <= state);
            history.push(Moment::Read { session, key, saw: older.checked_sub(1).map(|at| of_key[key][at]) });
            sessions[slot].1 = state;
        }
    }
    let begun = Instant::now();
    let verdict = judge(&history, &BTreeSet::new(), &BTreeMap::new());
    let each = begun.elapsed().as_secs_f64() * 1e6 / count as f64;
    println!("{count} operations on {keys} keys, reads up to {lag} writes old: {each:.1} us each, {verdict:?}");
}
