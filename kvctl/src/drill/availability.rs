//! How much of what clients asked was answered, second by second.

use super::history::{History, Op};

const SECOND_MS: f64 = 1_000.0;
/// A request that took so long kept its client from asking others.
const LONG_MS: f64 = 1_000.0;

/// Of one second: what was asked, or would have been by clients that waited, and what was answered.
#[derive(Clone, Copy, Default)]
struct Second {
    due: f64,
    answered: f64,
}

/// The part of each second's requests that was answered; `None` where nobody wanted anything. A request counts where it ended.
/// One that took long counts, in every second that its client waited, for the requests that the client makes as a rule:
/// otherwise a second in which all wait would be one in which nothing fails.
pub fn per_second(history: &History, until_ms: f64) -> Vec<Option<f64>> {
    let mut seconds = vec![Second::default(); index(until_ms) + 1];
    let last = seconds.len() - 1;
    let ops = || history.ops.iter().filter(|op| op.at_ms <= until_ms);
    for op in ops() {
        let second = &mut seconds[index(op.at_ms + op.took_ms).min(last)];
        second.due += 1.0;
        second.answered += f64::from(u8::from(op.is_answered()));
    }
    let usual = usual(&seconds) / history.head.sessions.max(1) as f64;
    for op in ops().filter(|op| op.took_ms >= LONG_MS) {
        let (from, to) = (index(op.at_ms), index(op.at_ms + op.took_ms));
        for (number, second) in seconds.iter_mut().enumerate().take(to.saturating_add(1)).skip(from) {
            second.due += usual * within(op, number) / SECOND_MS;
        }
    }
    seconds.into_iter().map(|one| (one.due > 0.0).then(|| rounded(one.answered / one.due))).collect()
}

fn index(ms: f64) -> usize {
    (ms / SECOND_MS) as usize
}

/// How much of a second's milliseconds an operation took.
fn within(op: &Op, number: usize) -> f64 {
    let begin = number as f64 * SECOND_MS;
    let end = (op.at_ms + op.took_ms).min(begin + SECOND_MS);
    (end - op.at_ms.max(begin)).max(0.0)
}

/// What all clients get answered in a second in which they do: the middle of them.
fn usual(seconds: &[Second]) -> f64 {
    let mut counts: Vec<f64> = seconds.iter().map(|one| one.answered).filter(|count| *count > 0.0).collect();
    counts.sort_by(f64::total_cmp);
    counts.get(counts.len() / 2).copied().unwrap_or(1.0)
}

/// To four digits.
pub fn rounded(part: f64) -> f64 {
    (part * 1e4).round() / 1e4
}
