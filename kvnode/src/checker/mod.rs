//! Judges a history of operations, knowing nothing of the store: values are unique, so every read names the write it saw.
//!
//! Causal order is session order, reads-from and handed-over contexts, closed transitively. A history is causally consistent,
//! with one arbitration order for all (causal convergence), if
//! - no read returns a write that the reader's causal past had already overwritten (this covers read-your-writes, monotonic
//!   reads and writes, writes-follow-reads, resurrection, and, asked of the final state, lost writes);
//! - causal order and "r saw w although w' was in its past, so w' comes before w" together have no cycle on any key
//!   (WriteCORead and CyclicCF of Bouajjani et al., "On verifying causal consistency", 2017).
//!
//! Writes that were lost by right (every copy's node failed) neither overwrite anything nor carry causality.
//!
//! **Cost.** The moments come in the order in which they happened, so reads-from points backwards and one pass is enough. A
//! causal past is kept as its *maximal* writes per key: whatever else is in it is dominated by one of them and can neither
//! be missed nor overwrite more. Whether one write dominates another is found by walking down that key's order from the later
//! one, never below the earlier one's level; reads are of recent writes, so walks are short. That makes the time per
//! operation proportional to the keys in use times the writes to one key that are concurrent, whatever the history's length.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A session invokes a put or a delete; `write` is unique.
    Invoke { session: usize, key: usize, write: u64, delete: bool },
    /// That write was acknowledged.
    Done { session: usize, write: u64 },
    /// It certainly had no effect.
    Failed { write: u64 },
    /// A session read a key: the write it saw, or that there is no such key.
    Read { session: usize, key: usize, saw: Option<u64> },
    /// `to` takes over the context of `from`.
    Hand { from: usize, to: usize },
}

/// Index of a write in the order of invocation.
type Index = u32;

/// Per key the maximal writes of a causal past. Small and sorted.
#[derive(Clone, Debug, Default)]
struct Past(Vec<(u32, Index)>);

struct Write {
    id: u64,
    key: u32,
    delete: bool,
    failed: bool,
    lost: bool,
    /// Longer than any chain of writes to the same key below it.
    level: u32,
    past: Past,
}

impl Past {
    fn of_key(&self, key: u32) -> impl Iterator<Item = Index> + '_ {
        let start = self.0.partition_point(|entry| entry.0 < key);
        self.0[start..].iter().take_while(move |entry| entry.0 == key).map(|entry| entry.1)
    }
}

#[derive(Default)]
struct Judge {
    writes: Vec<Write>,
    by_id: HashMap<u64, Index>,
    sessions: HashMap<usize, Past>,
    acknowledged: Vec<Index>,
    /// (earlier, later) of one key, from reads.
    before: Vec<(Index, Index)>,
    deletes: HashMap<u32, Vec<Index>>,
}

/// Judges a history and the state it ended in. `lost`: writes lost by right; `last`: what each key holds in the end.
///
/// # Errors
/// The first offence, in words.
pub fn judge(history: &[Moment], lost: &BTreeSet<u64>, last: &BTreeMap<usize, Option<u64>>) -> Result<(), String> {
    let mut judge = Judge::default();
    for (at, moment) in history.iter().enumerate() {
        judge.take(moment, lost).map_err(|offence| format!("at {at}, {moment:?}: {offence}"))?;
    }
    judge.end(last)?;
    judge.cycles()
}

impl Judge {
    fn take(&mut self, moment: &Moment, lost: &BTreeSet<u64>) -> Result<(), String> {
        match *moment {
            Moment::Invoke { session, key, write, delete } => {
                let past = self.sessions.get(&session).cloned().unwrap_or_default();
                self.invoke(key as u32, write, delete, lost.contains(&write), past);
            }
            Moment::Done { session, write } => {
                let index = self.by_id[&write];
                if !self.writes[index as usize].lost {
                    self.learn(session, index);
                    self.acknowledged.push(index);
                }
            }
            Moment::Failed { write } => {
                let index = self.by_id[&write];
                let Write { failed, key, .. } = &mut self.writes[index as usize];
                *failed = true;
                // What had no effect explains no absence.
                let deletes = self.deletes.entry(*key).or_default();
                if let Some(at) = deletes.iter().rposition(|&delete| delete == index) {
                    deletes.remove(at);
                }
            }
            Moment::Read { session, key, saw } => {
                let past = self.sessions.get(&session).cloned().unwrap_or_default();
                self.read(&past, key as u32, saw)?;
                if let Some(index) = saw.map(|id| self.by_id[&id]).filter(|&index| !self.writes[index as usize].lost) {
                    self.learn(session, index);
                }
            }
            Moment::Hand { from, to } => {
                let (giver, taker) = (self.sessions.get(&from), self.sessions.get(&to));
                let (giver, taker) = (giver.cloned().unwrap_or_default(), taker.cloned().unwrap_or_default());
                let past = self.merged(&taker, &giver);
                self.sessions.insert(to, past);
            }
        }
        Ok(())
    }

    fn invoke(&mut self, key: u32, id: u64, delete: bool, lost: bool, past: Past) {
        let index = self.writes.len() as Index;
        let level = past.of_key(key).map(|below| self.writes[below as usize].level + 1).max().unwrap_or(0);
        self.by_id.insert(id, index);
        if delete {
            self.deletes.entry(key).or_default().push(index);
        }
        self.writes.push(Write { id, key, delete, failed: false, lost, level, past });
    }

    /// A session's past grows by a write and all before it.
    fn learn(&mut self, session: usize, index: Index) {
        let past = self.sessions.get(&session).cloned().unwrap_or_default();
        let grown = self.merged(&past, &self.with(index));
        self.sessions.insert(session, grown);
    }

    /// The past of a write, and the write, which is then the only maximal one of its key.
    fn with(&self, index: Index) -> Past {
        let write = &self.writes[index as usize];
        let mut past = write.past.clone();
        past.0.retain(|entry| entry.0 != write.key);
        let at = past.0.partition_point(|entry| entry.0 < write.key);
        past.0.insert(at, (write.key, index));
        past
    }

    /// Whether `earlier` is in the causal past of `later`; both write to one key.
    fn dominates(&self, later: Index, earlier: Index) -> bool {
        let floor = self.writes[earlier as usize].level;
        let mut stack = vec![later];
        let mut seen = BTreeSet::new();
        while let Some(index) = stack.pop() {
            let write = &self.writes[index as usize];
            // What is in a past was invoked before.
            if write.level <= floor || index <= earlier {
                continue;
            }
            for below in write.past.of_key(write.key) {
                if below == earlier {
                    return true;
                }
                if seen.insert(below) {
                    stack.push(below);
                }
            }
        }
        false
    }

    /// The maximal writes of two pasts together.
    fn merged(&self, one: &Past, other: &Past) -> Past {
        let mut all: Vec<(u32, Index)> = Vec::with_capacity(one.0.len().max(other.0.len()));
        let (mut left, mut right) = (one.0.iter().peekable(), other.0.iter().peekable());
        while let Some(&&next) = [left.peek(), right.peek()].into_iter().flatten().min() {
            left.next_if(|entry| **entry == next);
            right.next_if(|entry| **entry == next);
            all.push(next);
        }
        let alone = |at: usize| {
            let key = all[at].0;
            (at == 0 || all[at - 1].0 != key) && all.get(at + 1).is_none_or(|entry| entry.0 != key)
        };
        let maximal = |at: &usize| {
            let (key, index) = all[*at];
            alone(*at) || !all.iter().any(|&(k, other)| k == key && other != index && self.dominates(other, index))
        };
        Past((0..all.len()).filter(maximal).map(|at| all[at]).collect())
    }

    fn read(&mut self, past: &Past, key: u32, saw: Option<u64>) -> Result<(), String> {
        let Some(id) = saw else { return self.read_nothing(past, key) };
        let Some(&index) = self.by_id.get(&id) else { return Err(format!("{id} was never written")) };
        let write = &self.writes[index as usize];
        if write.failed || write.key != key {
            return Err(format!("{id} was not written to this key, or its write was refused"));
        }
        for other in past.of_key(key).filter(|&other| other != index) {
            if self.dominates(other, index) {
                return Err(format!("the reader's past has {} that overwrote it", self.writes[other as usize].id));
            }
            self.before.push((other, index));
        }
        Ok(())
    }

    /// "No such key" needs a deletion that no put of the reader's past came after.
    fn read_nothing(&self, past: &Past, key: u32) -> Result<(), String> {
        let known: Vec<Index> = past.of_key(key).collect();
        let Some(&first) = known.first() else { return Ok(()) };
        let explains = |&deletion: &Index| known.iter().all(|&put| put == deletion || !self.dominates(put, deletion));
        let deletions = self.deletes.get(&key).map(Vec::as_slice).unwrap_or_default();
        // The newest first: what explains an absence is rarely old.
        if known.iter().any(|&index| self.writes[index as usize].delete) || deletions.iter().rev().any(explains) {
            return Ok(());
        }
        let id = self.writes[first as usize].id;
        Err(format!("the reader's past has {id} and no deletion explains its absence"))
    }

    /// The final state is what a reader sees who knows all acknowledged writes and all that these knew.
    fn end(&mut self, last: &BTreeMap<usize, Option<u64>>) -> Result<(), String> {
        let (mut known, mut overwritten) = (vec![false; self.writes.len()], vec![None; self.writes.len()]);
        let mut stack = self.acknowledged.clone();
        for &index in &self.acknowledged {
            stack.extend(self.writes[index as usize].past.0.iter().map(|entry| entry.1));
        }
        while let Some(index) = stack.pop() {
            if !std::mem::replace(&mut known[index as usize], true) {
                let write = &self.writes[index as usize];
                for below in write.past.of_key(write.key) {
                    overwritten[below as usize] = Some(index);
                    stack.push(below);
                }
            }
        }
        let known: Vec<Index> = (0..self.writes.len() as Index).filter(|&index| known[index as usize]).collect();
        for (&key, &saw) in last {
            let offence = match saw {
                Some(id) => self.end_with(key as u32, id, &known, &overwritten),
                None => self.end_without(key as u32, &known, &overwritten),
            };
            offence.map_err(|offence| format!("final state of key {key}, {saw:?}: {offence}"))?;
        }
        Ok(())
    }

    fn end_with(&mut self, key: u32, id: u64, known: &[Index], overwritten: &[Option<Index>]) -> Result<(), String> {
        self.read(&Past::default(), key, Some(id))?;
        let index = self.by_id[&id];
        if let Some(by) = overwritten[index as usize] {
            return Err(format!("{} had overwritten it", self.writes[by as usize].id));
        }
        let others = known.iter().filter(|&&other| other != index && self.writes[other as usize].key == key);
        self.before.extend(others.map(|&other| (other, index)));
        Ok(())
    }

    fn end_without(&self, key: u32, known: &[Index], overwritten: &[Option<Index>]) -> Result<(), String> {
        let put = known.iter().find(|&&index| {
            let write = &self.writes[index as usize];
            write.key == key && !write.delete
        });
        let mut deletions = self.deletes.get(&key).into_iter().flatten();
        match put {
            Some(&put) if deletions.all(|&deletion| overwritten[deletion as usize].is_some()) => {
                Err(format!("{} is acknowledged and no deletion explains its absence", self.writes[put as usize].id))
            }
            _ => Ok(()),
        }
    }

    /// Looks for a cycle in causal order and arbitration together.
    fn cycles(&self) -> Result<(), String> {
        let mut next: Vec<Vec<Index>> = vec![Vec::new(); self.writes.len()];
        for &(earlier, later) in &self.before {
            next[earlier as usize].push(later);
        }
        for (later, write) in self.writes.iter().enumerate() {
            write.past.of_key(write.key).for_each(|earlier| next[earlier as usize].push(later as Index));
        }
        // What has no predecessor left can be taken away; what remains is on a cycle or behind one.
        let mut waiting = vec![0_u32; next.len()];
        next.iter().flatten().for_each(|&later| waiting[later as usize] += 1);
        let mut free: Vec<usize> = (0..next.len()).filter(|&index| waiting[index] == 0).collect();
        let mut taken = 0;
        while let Some(index) = free.pop() {
            taken += 1;
            for &later in &next[index] {
                waiting[later as usize] -= 1;
                if waiting[later as usize] == 0 {
                    free.push(later as usize);
                }
            }
        }
        let stuck = (taken < next.len()).then(|| waiting.iter().position(|&count| count > 0)).flatten();
        stuck.map_or(Ok(()), |index| {
            Err(format!("two sessions disagree about the order of writes around {}", self.writes[index].id))
        })
    }
}

#[cfg(test)]
mod tests;
