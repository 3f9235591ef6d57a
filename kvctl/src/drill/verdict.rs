//! Whether every promise was kept, from the history alone.

use std::collections::BTreeSet;

use kvnode_checker::judge;
use serde::Serialize;

use super::availability;
use super::history::{Fate, History, Op, Verb};
use super::moments::{self, Moments};
use crate::render::line;

/// Characters of a context in a cluster at rest, at most: nearly empty.
const QUIET_CONTEXT_MAX: usize = 64;
/// Operations shown with an offence, at most.
const SHOWN_MAX: usize = 12;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offence {
    pub what: String,
    /// The operations concerned, with their contexts.
    pub operations: Vec<String>,
}

/// What a drill has shown.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    pub kept: bool,
    pub seed: u64,
    pub operations: usize,
    pub sessions: usize,
    pub handed_over: usize,
    /// Operations that were answered as asked, that are of unknown fate, and that were refused.
    pub answered: usize,
    pub unknown: usize,
    pub refused: usize,
    pub faults: usize,
    /// Faults that could not be injected.
    pub left_out: usize,
    /// The part of the operations that was answered: of all, and of each second's, with those that clients could not ask because
    /// they waited (`None`: nobody wanted anything).
    pub availability: f64,
    pub availability_per_second: Vec<Option<f64>>,
    /// Writes that may be lost by right, whether they are or not: those in one copy whose only holder was wiped. Twice, because
    /// the first name says more than is known.
    pub lost_by_right: usize,
    pub may_be_lost: usize,
    /// Characters of the longest context, and of one in the end.
    pub context_max: usize,
    pub context_quiet: Option<usize>,
    /// From the end of the healing until all replicas were equal.
    pub converged_ms: Option<f64>,
    pub offences: Vec<Offence>,
}

/// Judges a history.
///
/// # Errors
/// Why it can't be judged.
pub fn of(history: &History) -> Result<Verdict, String> {
    let moments = Moments::of(history)?;
    let lost = moments::lost_by_right(history);
    let (last, differ) = moments::finals(history);
    let Some(end) = &history.end else { return Err("the drill was broken off: its end is not in the history".into()) };
    if !moments::is_time(end.stopped_ms) {
        return Err("its end is at no time that a drill can have".into());
    }
    let mut offences = Vec::new();
    if let Err(why) = judge(&moments.all, &lost, &last) {
        offences.push(causal_offence(history, &moments, why));
    }
    for (tombstone, made) in moments::deletions(history) {
        if made.len() > 1 {
            let what = format!("{} deletions are answered with the tombstone {tombstone}", made.len());
            offences.push(Offence { what, operations: made.into_iter().map(op_text).collect() });
        }
    }
    for (key, said) in differ {
        let said = said.iter().map(|(node, value)| format!("{node} has {}", value_text(*value))).collect();
        offences.push(Offence { what: format!("replicas differ on '{key}'"), operations: said });
    }
    if end.equal_ms.is_none() {
        let what = "the replicas did not become equal after all was healed".to_owned();
        offences.push(Offence { what, operations: end.unmet.clone() });
    }
    for trouble in &end.troubles {
        offences.push(Offence { what: trouble.clone(), operations: Vec::new() });
    }
    let unread: Vec<String> = history
        .finals
        .iter()
        .filter_map(|last| Some(format!("{} at {}: {}", last.key, last.node, last.error.as_ref()?)))
        .collect();
    if !unread.is_empty() {
        offences
            .push(Offence { what: "what some nodes have in the end could not be read".to_owned(), operations: unread });
    }
    let nonsense = |op: &&Op| op.verb == Verb::Get && op.status == Some(200) && op.result == Fate::Fail;
    let nonsense: Vec<String> = history.ops.iter().filter(nonsense).map(op_text).collect();
    if !nonsense.is_empty() {
        offences.push(Offence { what: "reads were answered with what nobody wrote".to_owned(), operations: nonsense });
    }
    let context_quiet = end.quiet_context.as_ref().map(String::len);
    if context_quiet.is_some_and(|length| length > QUIET_CONTEXT_MAX) {
        let what = format!("a context stays longer than {QUIET_CONTEXT_MAX} characters in the quiet cluster");
        offences.push(Offence { what, operations: end.quiet_context.iter().cloned().collect() });
    }
    let working: Vec<&Op> = history.ops.iter().filter(|op| op.at_ms <= end.stopped_ms).collect();
    let worked = working.iter().filter(|op| op.is_answered()).count();
    let count = |fate: Fate| history.ops.iter().filter(|op| op.result == fate).count();
    let contexts = history.ops.iter().filter_map(|op| op.answered.as_ref()).map(String::len);
    let left_out = history.faults.iter().filter(|one| one.problem.is_some()).count();
    Ok(Verdict {
        kept: offences.is_empty(),
        seed: history.head.seed,
        operations: history.ops.len(),
        sessions: history.ops.iter().map(|op| op.session).collect::<BTreeSet<u32>>().len(),
        handed_over: history.recvs.len(),
        answered: history.ops.iter().filter(|op| op.is_answered()).count(),
        unknown: count(Fate::Info),
        refused: history.ops.iter().filter(|op| op.result == Fate::Fail && !op.is_answered()).count(),
        faults: history.faults.len() - left_out,
        left_out,
        availability: availability::rounded(worked as f64 / working.len().max(1) as f64),
        availability_per_second: availability::per_second(history, end.stopped_ms),
        lost_by_right: lost.len(),
        may_be_lost: lost.len(),
        context_max: contexts.max().unwrap_or(0),
        context_quiet,
        converged_ms: end.equal_ms.map(|equal| (equal - end.healed_ms).max(0.0)),
        offences,
    })
}

/// The judge names the moment; its operation and those on the same key before it are shown.
fn causal_offence(history: &History, moments: &Moments, why: String) -> Offence {
    let at = why.strip_prefix("at ").and_then(|rest| rest.split(',').next()).and_then(|number| number.parse().ok());
    let offender = at.and_then(|at: usize| moments.of.get(at).copied().flatten()).map(|index| &history.ops[index]);
    let named = |op: &&Op| op.value.is_some_and(|value| why.contains(&value.to_string()));
    let mut concerned: Vec<&Op> = history.ops.iter().filter(named).collect();
    if let Some(offender) = offender {
        let before = |op: &&Op| op.key == offender.key && op.call <= offender.call;
        let on_key: Vec<&Op> = history.ops.iter().filter(before).collect();
        concerned.extend(on_key.into_iter().rev().take(SHOWN_MAX));
    }
    concerned.sort_by_key(|op| op.call);
    concerned.dedup_by_key(|op| op.call);
    let what = why.split_once("}: ").map_or(why.as_str(), |(_, rest)| rest).to_owned();
    let skip = concerned.len().saturating_sub(2 * SHOWN_MAX);
    Offence { what, operations: concerned[skip..].iter().map(|op| op_text(op)).collect() }
}

fn value_text(value: Option<u64>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| value.to_string())
}

fn op_text(op: &Op) -> String {
    let verb = match op.verb {
        Verb::Put => "puts",
        Verb::Get => "gets",
        Verb::Delete => "deletes",
    };
    let fate = match op.result {
        Fate::Ok => "ok",
        Fate::Info => "unknown",
        Fate::Fail => "refused",
    };
    let Op { call, returned, session, key, node, .. } = op;
    let (value, context) = (value_text(op.value), op.context.join(" + "));
    let answered = op.answered.as_deref().unwrap_or("-");
    let tombstone = op.tombstone.as_ref().map_or_else(String::new, |tombstone| format!(" (tombstone {tombstone})"));
    format!(
        "{call}-{returned}: session {session} {verb} {key} at {node}: {value}{tombstone}, {fate}; context [{context}] -> {answered}"
    )
}

impl Verdict {
    /// The part of what was asked, or should have been, that was answered in the worst second.
    fn worst_second(&self) -> f64 {
        self.availability_per_second.iter().copied().flatten().fold(1.0, f64::min)
    }

    /// How much was answered.
    fn summary(&self) -> String {
        format!(
            "answered {:.1} % (worst second {:.0} %), {} refused, {} of unknown fate, {} may be lost (one copy, wiped)",
            self.availability * 100.0,
            self.worst_second() * 100.0,
            self.refused,
            self.unknown,
            self.may_be_lost
        )
    }

    /// For people: a few lines.
    pub fn show(&self) {
        let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        match self.offences.len() {
            0 => line("every promise was kept"),
            count => line(&format!("BROKEN: {}", plural(count, "offence"))),
        }
        for Offence { what, operations } in &self.offences {
            line(&format!("\n{what}"));
            operations.iter().for_each(|operation| line(&format!("  {operation}")));
        }
        line(&format!(
            "\n{} by {}, {} handed on; {} injected, {} left out",
            plural(self.operations, "operation"),
            plural(self.sessions, "session"),
            plural(self.handed_over, "context"),
            plural(self.faults, "fault"),
            self.left_out
        ));
        line(&self.summary());
        let quiet = self.context_quiet.map_or_else(|| "-".to_owned(), |length| length.to_string());
        let equal = self.converged_ms.map_or_else(|| "never".to_owned(), |ms| format!("{:.1} s", ms / 1_000.0));
        line(&format!(
            "replicas equal after {equal}; contexts: {} characters at most, {quiet} at rest",
            self.context_max
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::tests::{PUT, history};
    use super::*;

    const END: &str =
        r#"{"kind":"end","stopped-ms":10.0,"healed-ms":11.0,"equal-ms":12.0,"unmet":[],"quiet-context":"T"}"#;

    #[test]
    fn a_history_that_keeps_all_promises() {
        let get = PUT.replace("put", "get").replace(r#""call":1,"return":2"#, r#""call":3,"return":4"#);
        let verdict = of(&history(&[PUT, &get, END].join("\n"))).unwrap();
        assert!(verdict.kept, "{verdict:?}");
        assert_eq!((verdict.operations, verdict.answered, verdict.availability), (2, 2, 1.0));
        assert_eq!(verdict.context_quiet, Some(1));
    }

    /// Two clients ask ten times a second each; then one waits for an answer that never comes, then both, then none.
    #[test]
    fn a_second_counts_what_should_have_been_asked_in_it() {
        let mut lines = Vec::new();
        let mut op = |at_ms: u32, took_ms: u32, is_answered: bool| {
            let number = lines.len() as u64;
            let events = format!(r#""call":{},"return":{}"#, 2 * number + 1, 2 * number + 2);
            let line = PUT
                .replace("1000001", &(1_000_001 + number).to_string())
                .replace(r#""call":1,"return":2"#, &events)
                .replace(r#""at-ms":1.5,"took-ms":2.0"#, &format!(r#""at-ms":{at_ms}.0,"took-ms":{took_ms}.0"#));
            lines.push(if is_answered {
                line
            } else {
                line.replace("\"ok\"", "\"info\"").replace("\"status\":201", "\"status\":503")
            });
        };
        for second in [0, 1, 2, 6, 7] {
            (0..20).for_each(|number| op(second * 1_000 + 50 * (number / 2), 10, true));
        }
        // From 3 to 6 s, and from 4 to 6 s.
        op(3_000, 3_000, false);
        (0..10).for_each(|number| op(3_000 + 100 * number, 10, true));
        op(4_000, 2_000, false);
        // A refusal at once is one, and so is a slow answer.
        op(7_900, 10, false);
        lines.push(END.replace("10.0", "8900.0").replace("11.0", "8900.0").replace("12.0", "8900.0"));
        let verdict = of(&history(&lines.join("\n"))).unwrap();
        let part = |number: f64| Some(number);
        let all = &verdict.availability_per_second;
        assert_eq!(all[..6], [part(1.0), part(1.0), part(1.0), part(0.5), part(0.0), part(0.0)], "{all:?}");
        assert_eq!(all[8], None, "nobody asked, and nobody was kept from it: {all:?}");
        assert!(all[7].is_some_and(|last| (0.9..1.0).contains(&last)), "{all:?}");
        assert_eq!(verdict.worst_second(), 0.0);
        assert!(verdict.summary().contains("worst second 0 %"), "{}", verdict.summary());
        assert!(verdict.summary().contains("0 may be lost"), "{}", verdict.summary());
    }

    #[test]
    fn offences_come_with_their_operations() {
        let second = PUT.replace("1000001", "1000002").replace(r#""call":1,"return":2"#, r#""call":3,"return":4"#);
        let stale = PUT.replace("put", "get").replace(r#""call":1,"return":2"#, r#""call":5,"return":6"#);
        let verdict = of(&history(&[PUT, &second, &stale, END].join("\n"))).unwrap();
        assert!(!verdict.kept);
        let Offence { what, operations } = &verdict.offences[0];
        assert!(what.contains("1000002 that overwrote it"), "{what}");
        assert_eq!(operations.len(), 3, "{operations:?}");
        assert!(operations[2].contains("session 3 gets a at alice: 1000001"), "{operations:?}");
    }

    /// A deletion, a put and an absence, one after the other, and somebody else's deletion, which explains no old tombstone.
    #[test]
    fn an_old_tombstone_that_comes_back_is_an_offence() {
        let line = |kind: &str, value: &str, call: u64, more: &str| {
            let events = format!(r#""call":{call},"return":{}"#, call + 1);
            let line = PUT.replace("put", kind).replace("1000001", value).replace(r#""call":1,"return":2"#, &events);
            line.replace('}', &format!("{more}}}"))
        };
        let tombstone = |number: u64| format!(r#","tombstone":"n1.e1.9:{number}""#);
        let deletion = line("delete", "1000002", 3, &tombstone(2));
        let put = line("put", "1000003", 5, "");
        let other = line("delete", "1000004", 7, &tombstone(4)).replace("\"session\":3", "\"session\":4");
        let absence = line("get", "null", 9, &tombstone(2)).replace("201", "404");
        let judged = |absence: &str| of(&history(&[PUT, &deletion, &put, &other, absence, END].join("\n"))).unwrap();
        let Verdict { offences, .. } = judged(&absence);
        assert!(offences[0].what.contains("1000003 that overwrote it"), "{offences:?}");
        assert!(offences[0].operations.iter().any(|op| op.contains("nothing (tombstone n1.e1.9:2)")), "{offences:?}");
        assert!(judged(&absence.replace("9:2", "9:4")).kept, "the other deletion's");
        assert!(judged(&absence.replace(&tombstone(2), "")).kept, "nothing tells which");
        let twice = judged(&deletion.replace("1000002", "1000005")).offences;
        assert!(twice[0].what.contains("2 deletions are answered with the tombstone n1.e1.9:2"), "{twice:?}");
    }

    #[test]
    fn replicas_that_differ_or_never_agree_and_long_contexts_are_offences() {
        let last = |node: &str, value: u64| format!(r#"{{"kind":"final","node":"{node}","key":"a","value":{value}}}"#);
        let end = END.replace("12.0", "null").replace("\"T\"", &format!("\"{}\"", "x".repeat(65)));
        let verdict = of(&history(&[PUT, &last("alice", 1_000_001), &last("bob", 7), &end].join("\n"))).unwrap();
        let all: Vec<&str> = verdict.offences.iter().map(|offence| offence.what.as_str()).collect();
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(of(&history(PUT)).unwrap_err().contains("broken off"));
        let endless = END.replace("10.0", "1e300");
        assert!(of(&history(&[PUT, &endless].join("\n"))).unwrap_err().contains("no time"));
    }
}
