//! Who votes next. A pure function, so that all small cases can be tried.

use std::collections::BTreeSet;

use super::Seat;

/// One change of the voters; Raft makes them one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Is told the log, and does not vote yet.
    Teach(Seat),
    /// A learner that has caught up votes.
    Promote(Seat),
    /// A voter or learner is neither any more.
    Dismiss(Seat),
    /// The leader is to go, and this one should lead.
    HandOver(Seat),
}

/// What a leader knows of the seats.
pub(super) struct Electorate<'a> {
    /// The leader's own seat, a voter.
    pub leader: Seat,
    pub wanted: &'a BTreeSet<Seat>,
    pub voters: &'a BTreeSet<Seat>,
    pub learners: &'a BTreeSet<Seat>,
    /// Whether somebody may answer for a seat: its node was heard lately, in that life.
    pub speaks: &'a dyn Fn(Seat) -> bool,
    /// Whether somebody does: it has all that is agreed on. Who died a moment ago lacks what was agreed on since.
    pub agrees: &'a dyn Fn(Seat) -> bool,
}

impl Electorate<'_> {
    /// The next step towards the wanted voters. A majority that agrees is never given up on the way: seats for which nobody speaks go
    /// first (that is agreed on without them, so by a majority of the others), and another goes only where the others can decide
    /// without it.
    pub fn next(&self) -> Option<Step> {
        let unwanted = |seat: &&Seat| !self.wanted.contains(seat);
        let speaks = |seat: &&Seat| (self.speaks)(**seat);
        let new = |seat: &&Seat| !self.voters.contains(seat) && !self.learners.contains(seat);

        let stray = self.learners.iter().find(unwanted).map(|&seat| Step::Dismiss(seat));
        let mute = || self.dismissible().find(|seat| !speaks(seat)).map(|&seat| Step::Dismiss(seat));
        let ready = || self.learners.iter().find(|&&seat| self.is_sure(seat));
        let missing = || self.wanted.iter().filter(new).find(speaks).map(|&seat| Step::Teach(seat));
        let surplus = || self.dismissible().find(|&&seat| self.decide_without(seat)).map(|&seat| Step::Dismiss(seat));
        stray
            .or_else(mute)
            .or_else(|| ready().map(|&seat| Step::Promote(seat)))
            .or_else(missing)
            .or_else(surplus)
            .or_else(|| self.successor().map(Step::HandOver))
    }

    fn dismissible(&self) -> impl Iterator<Item = &Seat> {
        self.voters.iter().filter(|&&seat| !self.wanted.contains(&seat) && seat != self.leader)
    }

    /// Whether the voters other than this one are enough of themselves to decide.
    fn decide_without(&self, seat: Seat) -> bool {
        let others = || self.voters.iter().filter(move |&&other| other != seat);
        let sure = others().filter(|&&other| self.is_sure(other)).count();
        2 * sure > others().count()
    }

    fn is_sure(&self, seat: Seat) -> bool {
        seat == self.leader || ((self.speaks)(seat) && (self.agrees)(seat))
    }

    /// Who leads instead of a leader that is to go: one that stays, or the office would go to and fro.
    fn successor(&self) -> Option<Seat> {
        let goes = !self.wanted.contains(&self.leader);
        let mut stay = self.voters.intersection(self.wanted).copied();
        goes.then(|| stay.find(|&seat| self.is_sure(seat))).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvnode_types::ident::{Incarnation, NodeId};

    fn seats(bits: u32) -> BTreeSet<Seat> {
        (0..SEATS).filter(|n| bits >> n & 1 == 1).map(seat).collect()
    }

    fn seat(n: u32) -> Seat {
        Seat::of(NodeId(n + 1), Incarnation(1))
    }

    const SEATS: u32 = 5;
    const ALL: u32 = 1 << SEATS;

    fn majority(voters: &BTreeSet<Seat>, of: &BTreeSet<Seat>) -> bool {
        2 * voters.intersection(of).count() > voters.len()
    }

    /// Takes all steps; the voters in the end.
    fn settle(
        wanted: &BTreeSet<Seat>,
        voters: &BTreeSet<Seat>,
        speaking: &BTreeSet<Seat>,
        agreeing: &BTreeSet<Seat>,
    ) -> BTreeSet<Seat> {
        let (mut voters, mut learners) = (voters.clone(), BTreeSet::new());
        let mut leader = *voters.intersection(agreeing).next().expect("a majority agrees");
        for _ in 0..6 * SEATS {
            let electorate = Electorate {
                leader,
                wanted,
                voters: &voters,
                learners: &learners,
                speaks: &|seat| speaking.contains(&seat),
                agrees: &|seat| agreeing.contains(&seat),
            };
            match electorate.next() {
                Some(Step::Teach(seat)) => assert!(learners.insert(seat)),
                Some(Step::Promote(seat)) => assert!(learners.remove(&seat) && voters.insert(seat)),
                Some(Step::Dismiss(seat)) => assert!(learners.remove(&seat) || voters.remove(&seat)),
                Some(Step::HandOver(seat)) => leader = seat,
                None => return voters,
            }
            assert!(voters.contains(&leader));
            assert!(majority(&voters, agreeing), "wanted {wanted:?}, voters {voters:?}, {agreeing:?} agree");
        }
        panic!("no end: wanted {wanted:?}, voters {voters:?}, {speaking:?} speak, {agreeing:?} agree");
    }

    /// All sets of five seats. (Found by seed 124 of 10,000 operations: of seven voters three were lost, and the leader dismissed a
    /// fourth that was to leave, before them.)
    #[test]
    fn a_majority_that_agrees_is_kept_on_the_way_to_any_voters() {
        for (wanted, voters) in (1..ALL).flat_map(|wanted| (1..ALL).map(move |voters| (seats(wanted), seats(voters)))) {
            for speaking in (1..ALL).filter(|&speaking| majority(&voters, &seats(speaking))) {
                let fewer = (1..=speaking).filter(|agreeing| agreeing & speaking == *agreeing).map(seats);
                for agreeing in fewer.filter(|agreeing| majority(&voters, agreeing)) {
                    let speaking = seats(speaking);
                    let last = settle(&wanted, &voters, &speaking, &agreeing);
                    if speaking == agreeing && majority(&wanted, &speaking) {
                        let kept = last.difference(&wanted).next();
                        assert_eq!(kept, None, "wanted {wanted:?}, voters {voters:?}, {speaking:?} speak");
                        assert!(wanted.intersection(&speaking).all(|seat| last.contains(seat)));
                    }
                }
            }
        }
    }
}
