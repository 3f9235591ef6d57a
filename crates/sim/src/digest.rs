//! What a simulated run did, as one number: two builds that give the same number for a seed have done the same.
//!
//! It holds what others can see: every batch to its last byte, every answer and decision, every commit with its facts, and when all of
//! that was. Not what is told in the log, nor how anything looks inside.

use kvnode_core::admin::AdminAnswer;
use kvnode_core::request::{Answer, Op};
use kvnode_core::store::{Fact, Version};
use kvnode_types::ident::{Key, Slot};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

/// What is folded in, each with a number of its own that stays.
#[derive(Clone, Copy)]
pub enum Kind {
    Step = 1,
    Request = 2,
    Reply = 3,
    Decision = 4,
    Wake = 5,
    Batch = 6,
    Commit = 7,
    Fact = 8,
}

#[derive(Default)]
pub struct Digest(Xxh3);

impl Digest {
    pub fn value(&self) -> u64 {
        self.0.digest()
    }

    /// A kind, numbers that go with it, and some bytes. Lengths are folded in, so that no two things look the same.
    pub fn fold(&mut self, kind: Kind, numbers: &[u64], bytes: &[u8]) {
        self.0.update(&[kind as u8]);
        numbers.iter().for_each(|number| self.0.update(&number.to_le_bytes()));
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub fn request(&mut self, node: usize, id: u64, op: &Op, tokens: &[String]) {
        self.fold(Kind::Request, &[node as u64, id], &bytes_of(&(op, tokens)));
    }

    pub fn reply(&mut self, node: usize, id: u64, answer: Option<&Answer<String>>) {
        self.fold(Kind::Reply, &[node as u64, id], &bytes_of(&answer));
    }

    pub fn decision(&mut self, node: usize, id: u64, answer: &AdminAnswer) {
        let (variant, said) = match answer {
            AdminAnswer::Decided(outcome) => (0, bytes_of(outcome)),
            AdminAnswer::Unreachable(addr) => (1, bytes_of(addr)),
            AdminAnswer::Undecided(why) => (2, bytes_of(why)),
            AdminAnswer::NotReady(why) => (3, bytes_of(why)),
        };
        self.fold(Kind::Decision, &[node as u64, id, variant], &said);
    }

    pub fn commit(&mut self, node: usize, staged: Staged) {
        let Staged { mut versions, mut facts } = staged;
        // Of several changes of one key or fact the last counts; in which order the keys were staged does not.
        versions.reverse();
        versions.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        versions.dedup_by(|one, other| (one.0, &one.1) == (other.0, &other.1));
        facts.reverse();
        facts.sort_by_key(|(name, _)| name.0);
        facts.dedup_by_key(|(name, _)| name.0);
        for (slot, key, version) in &versions {
            self.fold(Kind::Commit, &[node as u64, u64::from(slot.0)], &bytes_of(&(key, version)));
        }
        for (name, value) in &facts {
            self.fold(Kind::Fact, &[node as u64], &bytes_of(&(name.0, value)));
        }
    }
}

fn bytes_of(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("nothing here that postcard refuses")
}

/// What goes into the store with the next commit; a version that is `None` is removed.
#[derive(Default)]
pub struct Staged {
    pub versions: Vec<(Slot, Key, Option<Version>)>,
    pub facts: Vec<(Fact, Vec<u8>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_gives_another_number() {
        let of = |parts: &[(Kind, &[u64], &[u8])]| {
            let mut digest = Digest::default();
            parts.iter().for_each(|(kind, numbers, bytes)| digest.fold(*kind, numbers, bytes));
            digest.value()
        };
        let all = [
            of(&[]),
            of(&[(Kind::Batch, &[1], b"ab")]),
            of(&[(Kind::Wake, &[1], b"ab")]),
            of(&[(Kind::Batch, &[2], b"ab")]),
            of(&[(Kind::Batch, &[1], b"a"), (Kind::Batch, &[1], b"b")]),
        ];
        assert_eq!(std::collections::BTreeSet::from(all).len(), all.len());
    }

    #[test]
    fn the_order_in_which_a_commit_was_staged_does_not_count_but_the_last_change_of_a_key_does() {
        let of = |staged: &[(u16, &str)]| {
            let versions = staged.iter().map(|&(slot, key)| (Slot(slot), Key::from(key), None)).collect();
            let mut digest = Digest::default();
            digest.commit(1, Staged { versions, facts: Vec::new() });
            digest.value()
        };
        assert_eq!(of(&[(1, "a"), (2, "b")]), of(&[(2, "b"), (1, "a"), (2, "b")]));
        assert_ne!(of(&[(1, "a"), (2, "b")]), of(&[(1, "a")]));
        let facts = |last: u8| {
            let facts = vec![(Fact("life"), vec![9]), (Fact("owner"), vec![1]), (Fact("life"), vec![last])];
            let mut digest = Digest::default();
            digest.commit(1, Staged { versions: Vec::new(), facts });
            digest.value()
        };
        assert_ne!(facts(1), facts(2));
    }
}
