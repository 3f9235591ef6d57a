//! The checker's rules in their simplest form, in time that grows with the square of the history: what the fast one must
//! agree with.

use std::collections::{BTreeMap, BTreeSet};

use kvnode_checker::Moment;

#[derive(Clone, Default)]
struct Past(Vec<u64>);

impl Past {
    fn has(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn add(&mut self, bit: usize) {
        if self.0.len() <= bit / 64 {
            self.0.resize(bit / 64 + 1, 0);
        }
        self.0[bit / 64] |= 1 << (bit % 64);
    }

    fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }
}

struct Write {
    id: u64,
    key: usize,
    delete: bool,
    past: Past,
    failed: bool,
    lost: bool,
}

pub struct Judge<'a> {
    lost: &'a BTreeSet<u64>,
    writes: Vec<Write>,
    by_id: BTreeMap<u64, usize>,
    sessions: BTreeMap<usize, Past>,
    /// Per key: (earlier, later) by arbitration.
    before: BTreeSet<(usize, usize)>,
    acknowledged: Past,
}

/// The first offence, in words.
pub fn judge(history: &[Moment], lost: &BTreeSet<u64>, last: &BTreeMap<usize, Option<u64>>) -> Result<(), String> {
    let mut judge = Judge {
        lost,
        writes: Vec::new(),
        by_id: BTreeMap::new(),
        sessions: BTreeMap::new(),
        before: BTreeSet::new(),
        acknowledged: Past::default(),
    };
    for (at, moment) in history.iter().enumerate() {
        judge.take(moment).map_err(|offence| format!("at {at}, {moment:?}: {offence}"))?;
    }
    let all = judge.acknowledged.clone();
    for (&key, saw) in last {
        judge.read(&all, key, *saw).map_err(|offence| format!("final state of key {key}, {saw:?}: {offence}"))?;
    }
    judge.cycles()
}

impl Judge<'_> {
    fn take(&mut self, moment: &Moment) -> Result<(), String> {
        match *moment {
            Moment::Invoke { session, key, write, delete } => {
                let past = self.sessions.entry(session).or_default().clone();
                let lost = self.lost.contains(&write);
                self.by_id.insert(write, self.writes.len());
                self.writes.push(Write { id: write, key, delete, past, failed: false, lost });
            }
            Moment::Done { session, write } => {
                let bit = self.by_id[&write];
                self.sessions.entry(session).or_default().add(bit);
                if !self.writes[bit].lost {
                    let past = self.writes[bit].past.clone();
                    self.acknowledged.merge(&past);
                    self.acknowledged.add(bit);
                }
            }
            Moment::Failed { write } => self.writes[self.by_id[&write]].failed = true,
            Moment::Read { session, key, saw } => {
                let past = self.sessions.entry(session).or_default().clone();
                self.read(&past, key, saw)?;
                if let Some(bit) = saw.map(|id| self.by_id[&id]).filter(|&bit| !self.writes[bit].lost) {
                    let seen = self.writes[bit].past.clone();
                    let session = self.sessions.entry(session).or_default();
                    session.merge(&seen);
                    session.add(bit);
                }
            }
            Moment::Hand { from, to } => {
                let past = self.sessions.entry(from).or_default().clone();
                self.sessions.entry(to).or_default().merge(&past);
            }
        }
        Ok(())
    }

    /// The writes to a key that count and are in a past.
    fn of_key<'a>(&'a self, past: &'a Past, key: usize) -> impl Iterator<Item = usize> + 'a {
        let counts = move |&bit: &usize| past.has(bit) && self.writes[bit].key == key && !self.writes[bit].lost;
        (0..self.writes.len()).filter(counts)
    }

    fn read(&mut self, past: &Past, key: usize, saw: Option<u64>) -> Result<(), String> {
        let Some(id) = saw else { return self.read_nothing(past, key) };
        let Some(&bit) = self.by_id.get(&id) else { return Err(format!("{id} was never written")) };
        if self.writes[bit].failed || self.writes[bit].key != key {
            return Err(format!("{id} was not written to this key, or its write was refused"));
        }
        let known: Vec<usize> = self.of_key(past, key).filter(|&other| other != bit).collect();
        for other in known {
            if self.writes[other].past.has(bit) {
                return Err(format!("the reader's past has {} that overwrote it", self.writes[other].id));
            }
            self.before.insert((other, bit));
        }
        Ok(())
    }

    /// "No such key" needs a deletion that no put of the reader's past came after.
    fn read_nothing(&self, past: &Past, key: usize) -> Result<(), String> {
        let puts: Vec<usize> = self.of_key(past, key).filter(|&bit| !self.writes[bit].delete).collect();
        let explains = |deletion: usize| {
            let write = &self.writes[deletion];
            write.delete
                && !write.failed
                && write.key == key
                && puts.iter().all(|&put| !self.writes[put].past.has(deletion))
        };
        if puts.is_empty() || (0..self.writes.len()).any(explains) {
            return Ok(());
        }
        Err(format!("the reader's past has {} and no deletion explains its absence", self.writes[puts[0]].id))
    }

    fn cycles(&self) -> Result<(), String> {
        let mut next: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for &(earlier, later) in &self.before {
            next.entry(earlier).or_default().insert(later);
        }
        for (later, write) in self.writes.iter().enumerate() {
            for earlier in self.of_key(&write.past, write.key) {
                next.entry(earlier).or_default().insert(later);
            }
        }
        let mut state = vec![0_u8; self.writes.len()];
        for start in 0..self.writes.len() {
            if let Some(at) = visit(start, &next, &mut state) {
                return Err(format!("two sessions disagree about the order of writes around {}", self.writes[at].id));
            }
        }
        Ok(())
    }
}

/// Depth-first search; gives a member of a cycle.
fn visit(start: usize, next: &BTreeMap<usize, BTreeSet<usize>>, state: &mut [u8]) -> Option<usize> {
    let successors =
        |node: usize| next.get(&node).map(|all| all.iter().copied().collect::<Vec<_>>()).unwrap_or_default();
    if state[start] != 0 {
        return None;
    }
    state[start] = 1;
    let mut stack = vec![(start, successors(start))];
    while let Some((node, rest)) = stack.last_mut() {
        match rest.pop() {
            Some(successor) if state[successor] == 1 => return Some(successor),
            Some(successor) if state[successor] == 0 => {
                state[successor] = 1;
                stack.push((successor, successors(successor)));
            }
            Some(_) => {}
            None => {
                state[*node] = 2;
                stack.pop();
            }
        }
    }
    None
}
