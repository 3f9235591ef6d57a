//! A history as the judge of causal consistency takes it: what happened, in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kvnode::checker::Moment;

use super::fault::Kind;
use super::history::{Fate, History, Op, Verb};

/// A write that was not answered may take effect for so long after the client has given up: a node may still hold it.
const LATE_MS: f64 = 15_000.0;

/// What happened, and to which operation each moment belongs.
pub struct Moments {
    pub all: Vec<Moment>,
    pub of: Vec<Option<usize>>,
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
        let keys = keys(history);
        let mut events: Vec<(u64, u8, Moment, Option<usize>)> = Vec::with_capacity(2 * history.ops.len());
        let mut written = BTreeSet::new();
        for (index, op) in history.ops.iter().enumerate() {
            let key = *keys.get(op.key.as_str()).ok_or_else(|| format!("the head names no key '{}'", op.key))?;
            if op.returned <= op.call {
                return Err(format!("event {} returns before its call", op.call));
            }
            if op.is_write() && !op.value.is_some_and(|value| written.insert(value)) {
                return Err(format!("the write at event {} has no value of its own", op.call));
            }
            let moments = moments(op, key);
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

/// The moments of an operation, in order: whether it is at its return, and what.
fn moments(op: &Op, key: usize) -> Vec<(bool, Moment)> {
    let session = op.session as usize;
    let write = op.value.unwrap_or(0);
    let read = |saw| (true, Moment::Read { session, key, saw });
    match (op.verb, op.result) {
        (Verb::Get, Fate::Ok) => vec![read(op.value)],
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
                moments.push(read(None));
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

/// What each key is in the end, where all nodes that answered agree; and the keys where they don't, with what each says.
#[expect(clippy::type_complexity, reason = "two maps, used once")]
pub fn finals(history: &History) -> (BTreeMap<usize, Option<u64>>, Vec<(String, Vec<(String, Option<u64>)>)>) {
    let keys = keys(history);
    let mut said: HashMap<&str, Vec<(String, Option<u64>)>> = HashMap::new();
    for last in history.finals.iter().filter(|last| last.error.is_none()) {
        said.entry(last.key.as_str()).or_default().push((last.node.clone(), last.value));
    }
    let (mut agreed, mut differ) = (BTreeMap::new(), Vec::new());
    for (key, index) in keys {
        let Some(said) = said.remove(key) else { continue };
        if said.windows(2).all(|pair| pair[0].1 == pair[1].1) {
            agreed.insert(index, said[0].1);
        } else {
            differ.push((key.to_owned(), said));
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

    #[test]
    fn what_can_not_have_happened_is_said() {
        let refused = |line: &str| Moments::of(&history(line)).err().unwrap_or_default();
        assert!(refused(&format!("{PUT}\n{PUT}")).contains("no value of its own"));
        assert!(refused(&PUT.replace("\"return\":2", "\"return\":1")).contains("before its call"));
        assert!(refused(&PUT.replace("\"a\"", "\"z\"")).contains("no key 'z'"));
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
