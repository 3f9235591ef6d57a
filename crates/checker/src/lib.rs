//! Judges a history of operations, knowing nothing of the store: values are unique, so every read names the write it saw.
//!
//! Causal order is session order, reads-from and handed-over contexts, closed transitively. A history is causally consistent,
//! with one arbitration order for all (causal convergence), if
//! - no read returns a write that the reader's causal past had already overwritten (this covers read-your-writes, monotonic
//!   reads and writes, writes-follow-reads, resurrection, and, asked of the final state, lost writes);
//! - causal order and "r saw w although w' was in its past, so w' comes before w" together have no cycle on any key
//!   (WriteCORead and CyclicCF of Bouajjani et al., "On verifying causal consistency", 2017).
//!
//! "No such key" is a read of a deletion like that of any write, where it is known which deletion was seen. Where it is not, some
//! deletion must explain it.
//!
//! Writes that were lost by right (every copy's node failed) neither overwrite anything nor carry causality.
//!
//! **Cost.** The moments come in the order in which they happened, so reads-from points backwards and one pass is enough. Writes
//! are strung on *chains*, each after the one before it: then whether one write is in the past of another is one look at a
//! vector clock over chains. A past is that clock and its *maximal* writes per key (whatever else is in it is dominated by one
//! of them and can neither be missed nor overwrite more). Both are persistent tries, so that what two pasts have in common is
//! stored once, and taking one over into the other costs what they differ in: about as much as is going on at a time, whatever
//! the history's length and its number of keys.

mod trie;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use trie::Trie;

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A session invokes a put or a delete; `write` is unique.
    Invoke { session: usize, key: usize, write: u64, delete: bool },
    /// That write was acknowledged.
    Done { session: usize, write: u64 },
    /// It certainly had no effect.
    Failed { write: u64 },
    /// A session read a key: the write it saw (a deletion, where it is known which), or that there is no such key.
    Read { session: usize, key: usize, saw: Option<u64> },
    /// `to` takes over the context of `from`.
    Hand { from: usize, to: usize },
}

/// Index of a write in the order of invocation.
type Index = u32;

/// Maximal writes to one key, sorted; `None`: none.
#[derive(Clone, Debug, Default)]
struct Maximal(Option<Rc<[Index]>>);

impl Maximal {
    fn all(&self) -> &[Index] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl PartialEq for Maximal {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Rc::ptr_eq(one, other) || one == other,
            (one, other) => one.is_none() && other.is_none(),
        }
    }
}

/// A causal past.
#[derive(Clone, Debug, Default)]
struct Past {
    /// Per chain: how many of its writes.
    clock: Trie<u32>,
    /// Per key the maximal writes.
    newest: Trie<Maximal>,
}

struct Write {
    id: u64,
    key: u32,
    delete: bool,
    failed: bool,
    lost: bool,
    /// Where it is: the chain, and its number there, from 1.
    chain: u32,
    number: u32,
    /// Its past, and the write itself.
    after: Past,
    /// The maximal writes to its key that it overwrote.
    below: Maximal,
}

impl Past {
    fn of_key(&self, key: u32) -> &[Index] {
        self.newest.get(key as usize).map_or(&[], Maximal::all)
    }

    fn has(&self, write: &Write) -> bool {
        self.clock.get(write.chain as usize).is_some_and(|&count| count >= write.number)
    }
}

#[derive(Default)]
struct Session {
    past: Past,
    /// The chain of what it wrote or learned last.
    chain: Option<u32>,
}

#[derive(Default)]
struct Judge {
    writes: Vec<Write>,
    by_id: HashMap<u64, Index>,
    sessions: HashMap<usize, Session>,
    /// Writes per chain.
    chains: Vec<u32>,
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
                self.invoke(session, key as u32, write, delete, lost.contains(&write));
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
                let past = self.sessions.entry(session).or_default().past.clone();
                self.read(&past, key as u32, saw)?;
                if let Some(index) = saw.map(|id| self.by_id[&id]).filter(|&index| !self.writes[index as usize].lost) {
                    self.learn(session, index);
                }
            }
            Moment::Hand { from, to } => {
                let given = self.sessions.entry(from).or_default().past.clone();
                let taker = std::mem::take(&mut self.sessions.entry(to).or_default().past);
                let past = self.merged(taker, &given);
                self.sessions.entry(to).or_default().past = past;
            }
        }
        Ok(())
    }

    fn invoke(&mut self, session: usize, key: u32, id: u64, delete: bool, lost: bool) {
        let Session { past, chain } = self.sessions.entry(session).or_default();
        let mut after = past.clone();
        // A chain goes on only with what comes after its last write.
        let goes_on = |chain: &u32| after.clock.get(*chain as usize) == Some(&self.chains[*chain as usize]);
        let on = chain.filter(goes_on).unwrap_or_else(|| {
            self.chains.push(0);
            self.chains.len() as u32 - 1
        });
        *chain = Some(on);
        self.chains[on as usize] += 1;
        let number = self.chains[on as usize];
        let index = self.writes.len() as Index;
        let below = after.newest.get(key as usize).cloned().unwrap_or_default();
        after.clock.set(on as usize, number);
        after.newest.set(key as usize, Maximal(Some(Rc::new([index]))));
        self.by_id.insert(id, index);
        if delete {
            self.deletes.entry(key).or_default().push(index);
        }
        self.writes.push(Write { id, key, delete, failed: false, lost, chain: on, number, after, below });
    }

    /// A session's past grows by a write and all before it.
    fn learn(&mut self, session: usize, index: Index) {
        let past = std::mem::take(&mut self.sessions.entry(session).or_default().past);
        let write = &self.writes[index as usize];
        let grown = self.merged(past, &write.after);
        let chain = Some(write.chain);
        self.sessions.insert(session, Session { past: grown, chain });
    }

    /// Whether `earlier` is in the causal past of `later`.
    fn dominates(&self, later: Index, earlier: Index) -> bool {
        later != earlier && self.writes[later as usize].after.has(&self.writes[earlier as usize])
    }

    /// Two pasts together.
    fn merged(&self, mut one: Past, other: &Past) -> Past {
        one.clock.merge(&other.clock, &|left, right| *left.max(right));
        one.newest.merge(&other.newest, &|left, right| self.maximal(left, right));
        one
    }

    fn maximal(&self, one: &Maximal, other: &Maximal) -> Maximal {
        let (left, right) = match (one.all(), other.all()) {
            (left, []) if !left.is_empty() => return one.clone(),
            ([], _) => return other.clone(),
            both => both,
        };
        let stays = |index: &Index, others: &[Index]| !others.iter().any(|&other| self.dominates(other, *index));
        let mut all: Vec<Index> = left.iter().copied().filter(|index| stays(index, right)).collect();
        all.extend(right.iter().copied().filter(|index| stays(index, left)));
        all.sort_unstable();
        all.dedup();
        Maximal(Some(all.into()))
    }

    fn read(&mut self, past: &Past, key: u32, saw: Option<u64>) -> Result<(), String> {
        let Some(id) = saw else { return self.read_nothing(past, key) };
        let Some(&index) = self.by_id.get(&id) else { return Err(format!("{id} was never written")) };
        let write = &self.writes[index as usize];
        if write.failed || write.key != key {
            return Err(format!("{id} was not written to this key, or its write was refused"));
        }
        for &other in past.of_key(key).iter().filter(|&&other| other != index) {
            if self.dominates(other, index) {
                return Err(format!("the reader's past has {} that overwrote it", self.writes[other as usize].id));
            }
            self.before.push((other, index));
        }
        Ok(())
    }

    /// "No such key" needs a deletion that no put of the reader's past came after.
    fn read_nothing(&self, past: &Past, key: u32) -> Result<(), String> {
        let known = past.of_key(key);
        let Some(&put) = known.iter().find(|&&index| !self.writes[index as usize].delete) else { return Ok(()) };
        let explains = |&deletion: &Index| known.iter().all(|&put| put == deletion || !self.dominates(put, deletion));
        let deletions = self.deletes.get(&key).map(Vec::as_slice).unwrap_or_default();
        // The newest first: what explains an absence is rarely old.
        if known.iter().any(|&index| self.writes[index as usize].delete) || deletions.iter().rev().any(explains) {
            return Ok(());
        }
        let id = self.writes[put as usize].id;
        Err(format!("the reader's past has {id} and no deletion explains its absence"))
    }

    /// Per key the maximal ones of all acknowledged writes and all that these knew.
    fn known(&self) -> Past {
        let mut counts = vec![0; self.chains.len()];
        let mut looked_at = HashSet::new();
        for &index in &self.acknowledged {
            let clock = &self.writes[index as usize].after.clock;
            clock.visit(&mut looked_at, &mut |chain, &count| {
                if count > 0 {
                    counts[chain] = count.max(counts[chain]);
                }
            });
        }
        let known = |write: &Write| write.number <= counts[write.chain as usize];
        let mut overwritten = vec![false; self.writes.len()];
        for write in self.writes.iter().filter(|write| known(write)) {
            write.below.all().iter().for_each(|&below| overwritten[below as usize] = true);
        }
        let mut newest: BTreeMap<u32, Vec<Index>> = BTreeMap::new();
        for (index, write) in self.writes.iter().enumerate().filter(|(_, write)| known(write)) {
            if !overwritten[index] {
                newest.entry(write.key).or_default().push(index as Index);
            }
        }
        let mut past = Past::default();
        newest.into_iter().for_each(|(key, all)| past.newest.set(key as usize, Maximal(Some(all.into()))));
        past
    }

    /// The final state is what a reader sees who knows all acknowledged writes and all that these knew.
    fn end(&mut self, last: &BTreeMap<usize, Option<u64>>) -> Result<(), String> {
        let known = self.known();
        for (&key, &saw) in last {
            self.read(&known, key as u32, saw)
                .map_err(|offence| format!("final state of key {key}, {saw:?}: {offence}"))?;
        }
        Ok(())
    }

    /// Looks for a cycle in causal order and arbitration together.
    fn cycles(&self) -> Result<(), String> {
        let mut next: Vec<Vec<Index>> = vec![Vec::new(); self.writes.len()];
        for &(earlier, later) in &self.before {
            next[earlier as usize].push(later);
        }
        for (later, write) in self.writes.iter().enumerate() {
            write.below.all().iter().for_each(|&earlier| next[earlier as usize].push(later as Index));
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
