//! A history as the judge of causal consistency takes it: what happened, in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kvnode_checker::Moment;

use super::fault::Kind;
use super::history::{Fate, Final, History, Op, Verb};

/// A write that was not answered may take effect for so long after the client has given up: a node may still hold it.
const LATE_MS: f64 = 15_000.0;

/// What happened, and to which operation each moment belongs.
pub struct Moments {
    pub all: Vec<Moment>,
    pub of: Vec<Option<usize>>,
}

/// No drill is longer than a month: what is counted by the second has room.
const TIME_MS_MAX: f64 = 31.0 * 24.0 * 3_600_000.0;

/// Whether something can have been at this time.
pub fn is_time(ms: f64) -> bool {
    (0.0..=TIME_MS_MAX).contains(&ms)
}

/// A hand-over goes by way of a session that does nothing else: what the giver learns after the send is not handed over.
fn between(hand: u32) -> usize {
    (1 << 40) + hand as usize
}

/// The number of a key.
pub fn keys(history: &History) -> BTreeMap<&str, usize> {
    history.head.keys.iter().enumerate().map(|(index, key)| (key.as_str(), index)).collect()
}

impl Moments {
    /// # Errors
    /// What of it can't have happened.
    pub fn of(history: &History) -> Result<Self, String> {
        let (keys, deletions) = (keys(history), deletions(history));
        let mut events: Vec<(u64, u8, Moment, Option<usize>)> = Vec::with_capacity(2 * history.ops.len());
        let mut written = BTreeSet::new();
        for (index, op) in history.ops.iter().enumerate() {
            let key = *keys.get(op.key.as_str()).ok_or_else(|| format!("the head names no key '{}'", op.key))?;
            if op.returned <= op.call {
                return Err(format!("event {} returns before its call", op.call));
            }
            if !is_time(op.at_ms) || !is_time(op.at_ms + op.took_ms) {
                return Err(format!("the operation at event {} is at no time that a drill can have", op.call));
            }
            if op.is_write() && !op.value.is_some_and(|value| written.insert(value)) {
                return Err(format!("the write at event {} has no value of its own", op.call));
            }
            let moments = moments(op, key, maker(&deletions, op.tombstone.as_deref()));
            let at = |(order, (returns, moment)): (usize, (bool, Moment))| {
                (if returns { op.returned } else { op.call }, order as u8, moment, Some(index))
            };
            events.extend(moments.into_iter().enumerate().map(at));
        }
        for send in &history.sends {
            let moment = Moment::Hand { from: send.session as usize, to: between(send.hand) };
            events.push((send.call, 0, moment, None));
        }
        for recv in &history.recvs {
            let moment = Moment::Hand { from: between(recv.hand), to: recv.session as usize };
            events.push((recv.call, 0, moment, None));
        }
        events.sort_by_key(|(event, order, ..)| (*event, *order));
        let (all, of) = events.into_iter().map(|(_, _, moment, op)| (moment, op)).unzip();
        Ok(Self { all, of })
    }
}

/// The deletions that were answered, by the tombstones that they made: one each, if the store is right.
pub fn deletions(history: &History) -> BTreeMap<&str, Vec<&Op>> {
    let mut all: BTreeMap<&str, Vec<&Op>> = BTreeMap::new();
    for op in history.ops.iter().filter(|op| op.verb == Verb::Delete && op.result == Fate::Ok) {
        if let Some(tombstone) = &op.tombstone {
            all.entry(tombstone).or_default().push(op);
        }
    }
    all
}

/// The number of the deletion that made a tombstone. One that got no answer did not tell which it made.
fn maker(deletions: &BTreeMap<&str, Vec<&Op>>, tombstone: Option<&str>) -> Option<u64> {
    match deletions.get(tombstone?)?.as_slice() {
        [one] => one.value,
        _ => None,
    }
}

/// The moments of an operation, in order: whether it is at its return, and what. `deletion`: the one whose tombstone it names.
fn moments(op: &Op, key: usize, deletion: Option<u64>) -> Vec<(bool, Moment)> {
    let session = op.session as usize;
    let write = op.value.unwrap_or(0);
    let read = |saw| (true, Moment::Read { session, key, saw });
    match (op.verb, op.result) {
        (Verb::Get, Fate::Ok) => vec![read(op.value.or(deletion))],
        (Verb::Get, _) => Vec::new(),
        (verb, fate) => {
            let mut moments = vec![(false, Moment::Invoke { session, key, write, delete: verb == Verb::Delete })];
            match fate {
                Fate::Ok => moments.push((true, Moment::Done { session, write })),
                Fate::Info => {}
                Fate::Fail => moments.push((true, Moment::Failed { write })),
            }
            // Nothing was deleted because nothing was there: that is a read.
            if verb == Verb::Delete && fate == Fate::Fail && op.status == Some(404) {
                moments.push(read(deletion));
            }
            moments
        }
    }
}

/// The writes that may be lost by right: those that were in one copy only when that copy's node lost its data. A write that
/// was acknowledged with two copies is not among them, nor one that had come to all replicas before.
pub fn lost_by_right(history: &History) -> BTreeSet<u64> {
    let wipes: Vec<_> = history.faults.iter().filter(|one| one.fault == Kind::Wipe && one.problem.is_none()).collect();
    let may_be_lost = |op: &&Op| {
        let safe = op.result == Fate::Fail || (op.result == Fate::Ok && op.replicas.is_some_and(|copies| copies > 1));
        let late = if op.result == Fate::Info { LATE_MS } else { 0.0 };
        let ended = op.at_ms + op.took_ms + late;
        let hit = |wipe: &&super::history::Happened| {
            op.at_ms <= wipe.to_ms && wipe.equal_ms.is_none_or(|equal| ended >= equal)
        };
        op.is_write() && !safe && wipes.iter().any(hit)
    };
    history.ops.iter().filter(may_be_lost).filter_map(|op| op.value).collect()
}

/// What each key is in the end (its value, or the deletion that is known to have left its tombstone), where all nodes that
/// answered agree; and the keys where they don't, with what each says.
#[expect(clippy::type_complexity, reason = "two maps, used once")]
pub fn finals(history: &History) -> (BTreeMap<usize, Option<u64>>, Vec<(String, Vec<(String, Option<u64>)>)>) {
    let (keys, deletions) = (keys(history), deletions(history));
    let mut said: HashMap<&str, Vec<&Final>> = HashMap::new();
    for last in history.finals.iter().filter(|last| last.error.is_none()) {
        said.entry(last.key.as_str()).or_default().push(last);
    }
    let (mut agreed, mut differ) = (BTreeMap::new(), Vec::new());
    for (key, index) in keys {
        let Some(said) = said.remove(key) else { continue };
        if said.windows(2).all(|pair| pair[0].value == pair[1].value) {
            // Some nodes may have forgotten the deletion already.
            let deletion = said.iter().find_map(|last| maker(&deletions, last.tombstone.as_deref()));
            agreed.insert(index, said[0].value.or(deletion));
        } else {
            differ.push((key.to_owned(), said.into_iter().map(|last| (last.node.clone(), last.value)).collect()));
        }
    }
    (agreed, differ)
}

#[cfg(test)]
mod tests {
    use super::super::history::tests::{PUT, history};
    use super::super::history::{End, Happened};
    use super::*;

    #[test]
    fn moments_come_in_the_order_of_events() {
        let get = PUT.replace("put", "get").replace(r#""call":1,"return":2"#, r#""call":4,"return":6"#);
        let gone = PUT
            .replace("put", "delete")
            .replace("1000001", "1000002")
            .replace(r#""ok","call":1,"return":2"#, r#""fail","call":3,"return":9"#)
            .replace("201", "404");
        let send = r#"{"kind":"send","session":3,"hand":1,"call":5,"at-ms":1.0,"context":"T2"}"#;
        let recv = r#"{"kind":"recv","session":4,"hand":1,"call":7,"at-ms":1.0,"context":"T2"}"#;
        let history = history(&[&gone, &get, PUT, recv, send].join("\n"));
        let moments = Moments::of(&history).unwrap();
        let wanted = [
            Moment::Invoke { session: 3, key: 0, write: 1_000_001, delete: false },
            Moment::Done { session: 3, write: 1_000_001 },
            Moment::Invoke { session: 3, key: 0, write: 1_000_002, delete: true },
            Moment::Hand { from: 3, to: between(1) },
            Moment::Read { session: 3, key: 0, saw: Some(1_000_001) },
            Moment::Hand { from: between(1), to: 4 },
            Moment::Failed { write: 1_000_002 },
            Moment::Read { session: 3, key: 0, saw: None },
        ];
        assert_eq!(moments.all, wanted);
        assert_eq!(moments.of[4], Some(1));
    }

    /// A delete or a get of the session's, answered at event `call` + 1.
    fn line(kind: &str, status: u16, session: u32, value: u64, call: u64, tombstone: &str) -> String {
        let result = if (kind, status) == ("delete", 404) { "fail" } else { "ok" };
        let value = if kind == "get" { "null".to_owned() } else { value.to_string() };
        PUT.replace("put", kind)
            .replace("1000001", &value)
            .replace("\"ok\"", &format!("\"{result}\""))
            .replace("\"session\":3", &format!("\"session\":{session}"))
            .replace(r#""call":1,"return":2"#, &format!(r#""call":{call},"return":{}"#, call + 1))
            .replace("201", &status.to_string())
            .replace('}', &format!(r#","tombstone":"{tombstone}"}}"#))
    }

    #[test]
    fn an_absence_is_a_read_of_the_deletion_whose_tombstone_it_names() {
        let lines = [
            line("delete", 200, 3, 1_000_002, 3, "n1.e1.9:2"),
            line("get", 404, 4, 0, 5, "n1.e1.9:2"),
            line("delete", 404, 4, 1_000_003, 7, "n1.e1.9:2"),
            // Of a deletion that was not answered.
            line("get", 404, 4, 0, 9, "n2.e1.9:1"),
            // Not told, as it was in earlier histories.
            line("get", 404, 4, 0, 11, "x").replace(r#","tombstone":"x""#, ""),
            r#"{"kind":"final","node":"alice","key":"a","value":null}"#.to_owned(),
            r#"{"kind":"final","node":"bob","key":"a","value":null,"tombstone":"n1.e1.9:2"}"#.to_owned(),
        ];
        let history = history(&lines.join("\n"));
        let reads = |moment: &Moment| match *moment {
            Moment::Read { session: 4, key: 0, saw } => Some(saw),
            _ => None,
        };
        let all: Vec<Option<u64>> = Moments::of(&history).unwrap().all.iter().filter_map(reads).collect();
        assert_eq!(all, [Some(1_000_002), Some(1_000_002), None, None]);
        assert_eq!(finals(&history).0, BTreeMap::from([(0, Some(1_000_002))]));
    }

    #[test]
    fn what_can_not_have_happened_is_said() {
        let refused = |line: &str| Moments::of(&history(line)).err().unwrap_or_default();
        assert!(refused(&format!("{PUT}\n{PUT}")).contains("no value of its own"));
        assert!(refused(&PUT.replace("\"return\":2", "\"return\":1")).contains("before its call"));
        assert!(refused(&PUT.replace("\"a\"", "\"z\"")).contains("no key 'z'"));
        for (time, other) in [("\"at-ms\":1.5", "\"at-ms\":-1.5"), ("\"took-ms\":2.0", "\"took-ms\":1e300")] {
            assert!(refused(&PUT.replace(time, other)).contains("no time"), "{other}");
        }
    }

    #[test]
    fn only_what_was_in_one_copy_may_be_lost() {
        let lost = |line: &str, equal_ms: Option<f64>, to_ms: f64| {
            let mut history = history(line);
            let nodes = vec!["bob".to_owned()];
            let (what, from_ms, problem) = (String::new(), 0.0, None);
            history.faults.push(Happened { fault: Kind::Wipe, nodes, what, from_ms, to_ms, problem, equal_ms });
            history.end = None::<End>;
            !lost_by_right(&history).is_empty()
        };
        let (one, unknown) = (PUT.replace("\"replicas\":2", "\"replicas\":1"), PUT.replace("\"ok\"", "\"info\""));
        assert!(!lost(PUT, None, 100.0), "two copies");
        assert!(lost(&one, None, 100.0) && lost(&unknown, None, 100.0));
        assert!(!lost(&one, Some(50.0), 100.0), "all replicas had it");
        assert!(lost(&unknown, Some(50.0), 100.0), "it may have come later");
        assert!(!lost(&one, None, 1.0), "it came after the wipe");
        assert!(!lost(&PUT.replace("\"ok\"", "\"fail\""), None, 100.0));
    }
}
