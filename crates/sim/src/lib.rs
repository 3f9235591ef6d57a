//! Simulated clusters under faults. A seed that fails is printed with the command that replays it.
//!
//! `KV_SEEDS=10000` runs more seeds, `KV_FIRST=n` those from there on; `KV_SEED=n` runs one and prints what the nodes said;
//! `KV_OPERATIONS=10000` makes each history so long, with more clients at once.

// Nothing of it is in a build without tests.
#![cfg(test)]

/// A simulation allocates more than it does anything else.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod arrivals;
mod corpus;
mod deadlines;
mod digest;
mod exhaustive;
mod growth;
mod known;
mod lost_data;
mod naive;
mod operators;
mod proof;
mod quiet;
mod reshard;
mod rng;
mod scenarios;
mod schedule;
mod store;
mod world;
mod written_off;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kvnode_core::settings::Mutant;

use crate::proof::Proof;
use crate::schedule::Load;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn who_drops_what_it_has_takes_no_requests() {
    assert_eq!(written_off::who_drops_what_it_has_takes_no_requests(), Ok(()));
}

#[test]
fn who_does_not_wait_is_told_at_once_what_runs() {
    assert_eq!(operators::who_does_not_wait_is_told_at_once_what_runs(), Ok(()));
}

#[test]
fn a_removal_while_a_node_is_down_is_over_when_it_is_started_again() {
    assert_eq!(arrivals::who_is_removed_while_it_is_down_joins_when_it_is_started_again(), Ok(()));
    assert_eq!(arrivals::who_is_killed_right_after_its_removal_joins_when_it_is_started_again(), Ok(()));
}

#[test]
fn a_removal_while_a_node_runs_holds_until_it_is_started_again() {
    assert_eq!(arrivals::who_is_removed_while_it_runs_stays_outside_until_it_is_started_again(), Ok(()));
    assert_eq!(arrivals::who_is_cut_off_and_removed_stays_outside_when_it_is_heard_again(), Ok(()));
    assert_eq!(arrivals::who_was_back_before_a_recovery_is_known_after_it(), Ok(()));
}

#[test]
fn waits_do_not_add_up() {
    assert_eq!(deadlines::silences_do_not_add_up(), Ok(()));
    assert_eq!(deadlines::the_wait_for_dependencies_counts_from_the_arrival(), Ok(()));
}

#[test]
fn seeds() {
    let load = number("KV_OPERATIONS").map(Load::dense);
    if let Some(seed) = number("KV_SEED") {
        let (digest, outcome) = schedule::run(seed, load, None);
        let outcome = outcome.unwrap_or_else(|offence| panic!("seed {seed}: {offence}"));
        println!(
            "seed {seed}: {} answered, {} refused, {} lost by right, digest {digest:016x}",
            outcome.answered, outcome.refused, outcome.lost
        );
        return;
    }
    let count = number("KV_SEEDS").unwrap_or(1_000);
    let first = number("KV_FIRST").unwrap_or(0);
    let next = AtomicU64::new(first);
    let total = Mutex::new(Total::default());
    let proof = Proof::of("seeds");
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            // Whatever thread is faster: the smallest seed that fails is the one that is told.
            let past = |total: &Total| total.failed.as_ref().is_some_and(|(failed, _)| *failed < seed);
            if seed >= first + count || past(&total.lock().expect("no other panics")) {
                return;
            }
            // A node's panic is an offence like any other.
            let run = AssertUnwindSafe(|| schedule::run(seed, load, None));
            let (digest, outcome) = catch_unwind(run).unwrap_or_else(|_| (0, Err("a panic, told above".to_owned())));
            if load.is_none() {
                proof.found(seed.to_string(), digest);
            }
            total.lock().expect("no other panics").add(seed, outcome);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let Total { answered, refused, lost, absences, layouts, failed, .. } = total.into_inner().expect("no other panics");
    if let Some((seed, offence)) = failed {
        panic!("seed {seed}: {offence}\nreplay: KV_SEED={seed} cargo test -p kvnode-sim seeds")
    }
    proof.hold();
    println!(
        "{count} seeds: {answered} answered, {refused} refused, {lost} lost by right, {absences} reads of known deletions, \
         {layouts} changes of layout"
    );
    assert!(answered > 100 * count, "most requests must be answered for the judge to see anything");
    assert!(absences > count, "absences must be read from known deletions for the judge to see anything");
    assert!(layouts > count / 2, "layouts must change for the judge to see anything");
}

/// The longest a healed cluster may take until every node serves and replicas have the same values, in ms.
const CONVERGENCE_MS_MAX: u64 = 2_000;

/// The run for liveness: what counts is how soon all is well again once faults have ended. `KV_SEEDS` makes it longer.
#[test]
fn a_healed_cluster_converges_within_two_seconds() {
    let count = number("KV_SEEDS").unwrap_or(500);
    // Not the seeds that the run for safety takes.
    let seeds = 1_000_000..1_000_000 + count;
    let next = AtomicU64::new(seeds.start);
    let times = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                return;
            }
            let outcome = schedule::converge(seed, None);
            times.lock().expect("no other panics").push((seed, outcome));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let mut equal_ms = Vec::new();
    for (seed, outcome) in times.into_inner().expect("no other panics") {
        let converged = outcome.unwrap_or_else(|offence| panic!("seed {seed}: {offence}"));
        assert!(converged.equal_ms <= CONVERGENCE_MS_MAX, "seed {seed}: {converged:?}");
        equal_ms.push((converged.equal_ms, converged.settled_ms));
    }
    let (mut equal, mut settled): (Vec<u64>, Vec<u64>) = equal_ms.into_iter().unzip();
    equal.sort_unstable();
    settled.sort_unstable();
    let of = |times: &[u64]| [50, 90, 99, 100].map(|percent| times[(times.len() - 1) * percent / 100]);
    println!("ms until equal: p50, p90, p99, max {:?}; until settled: {:?}", of(&equal), of(&settled));
    assert!(
        equal[equal.len() / 2..].iter().any(|&ms| ms > 0),
        "something must have been amiss for the run to show anything"
    );
}

/// What an old member wrote reached one replica after it had been written off, and after that one had told what it had; the others
/// never heard of it.
#[test]
fn a_write_of_a_member_that_was_written_off_does_not_part_the_replicas() {
    let converged = schedule::converge(1_001_207, None);
    assert!(converged.is_ok(), "{converged:?}");
}

#[test]
fn nobody_is_filled_by_a_member_that_was_written_off() {
    shows(written_off::nobody_is_filled_by_a_member_that_was_written_off, Mutant::RepairsFromGivenUp);
}

#[test]
fn who_begins_anew_counts_under_another_name() {
    shows(written_off::who_begins_anew_counts_under_another_name, Mutant::LifeKept);
}

#[test]
fn what_a_replica_dropped_comes_with_the_next_write() {
    shows(scenarios::what_a_replica_dropped_comes_with_the_next_write, Mutant::GapUnnoticed);
}

#[test]
fn a_write_under_way_is_of_unknown_fate_where_its_node_begins_anew() {
    shows(written_off::a_write_under_way_is_of_unknown_fate_where_its_node_begins_anew, Mutant::DroppedIsDone);
}

#[test]
fn a_spare_goes_and_its_vote_before_it() {
    assert_eq!(operators::a_spare_goes_and_its_vote_before_it(), Ok(()));
}

#[test]
fn a_removal_goes_on_when_another_voter_is_lost() {
    assert_eq!(operators::a_removal_goes_on_when_another_voter_is_lost(), Ok(()));
}

#[test]
fn a_recovery_is_on_disk_before_it_is_told() {
    assert_eq!(operators::a_recovery_is_on_disk_before_it_is_told(), Ok(()));
}

#[test]
fn who_has_it_whole_and_is_silent_is_waited_for() {
    assert_eq!(reshard::who_has_it_whole_and_is_silent_is_waited_for(), Ok(()));
}

#[test]
fn an_old_member_without_its_data_makes_nobody_drop_theirs() {
    assert_eq!(reshard::an_old_member_without_its_data_makes_nobody_drop_theirs(), Ok(()));
}

#[test]
fn after_a_recovery_to_an_older_layout_nothing_is_named_twice() {
    assert_eq!(operators::after_a_recovery_to_an_older_layout_nothing_is_named_twice(), Ok(()));
}

#[test]
fn what_an_abandoned_repair_brought_reaches_all() {
    shows(scenarios::what_an_abandoned_repair_brought_reaches_all, Mutant::HalfRepairUntold);
}

#[test]
fn what_a_repair_brought_beyond_its_end_reaches_all() {
    shows(scenarios::what_a_repair_brought_beyond_its_end_reaches_all, Mutant::BroughtUntold);
}

#[test]
fn what_a_repair_brought_beyond_its_end_outlives_a_restart() {
    assert_eq!(scenarios::what_a_repair_brought_beyond_its_end_outlives_a_restart(), Ok(()));
}

#[test]
fn what_a_repair_brought_beyond_its_end_reaches_all_before_a_change_ends() {
    let reached = scenarios::what_a_repair_brought_beyond_its_end_reaches_all_before_a_change_ends();
    assert_eq!(reached, Ok(()));
}

#[test]
fn who_was_written_off_need_not_compare() {
    assert_eq!(scenarios::who_was_written_off_need_not_compare(), Ok(()));
}

#[test]
fn a_giver_that_comes_back_empty_ends_the_transfer() {
    shows(reshard::a_giver_that_comes_back_empty_ends_the_transfer, Mutant::TransferOutlivesGiver);
}

#[test]
fn what_a_new_member_took_before_the_write_off_reaches_all() {
    shows(written_off::what_a_new_member_took_before_the_write_off_reaches_all, Mutant::HeldUntold);
}

/// What many seeds have shown.
#[derive(Default)]
struct Total {
    runs: u64,
    answered: u64,
    refused: u64,
    lost: usize,
    absences: u64,
    layouts: u64,
    failed: Option<(u64, String)>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: Result<schedule::Outcome, String>) {
        match outcome {
            Ok(outcome) => {
                self.answered += outcome.answered;
                self.refused += outcome.refused;
                self.lost += outcome.lost;
                self.absences += outcome.absences;
                self.layouts += u64::from(outcome.layouts - 1);
            }
            Err(offence) if self.failed.as_ref().is_none_or(|(failed, _)| seed < *failed) => {
                self.failed = Some((seed, offence));
            }
            Err(_) => {}
        }
        self.runs += 1;
        if self.runs.is_multiple_of(500) {
            println!("{} seeds: {} answered", self.runs, self.answered);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 4, 9] {
        let digest = || schedule::run(seed, None, None).0;
        assert_eq!(digest(), digest());
    }
}

/// Mechanisms broken on purpose that must turn the judge red within so many seeds.
const MUTANT_SEEDS: u64 = 2_000;

/// Where the search begins for those that few seeds find; it goes on with all others.
fn first_seed(mutant: Mutant) -> u64 {
    match mutant {
        Mutant::LifeReused => 432,
        Mutant::CopyVectorFirst => 356,
        _ => 0,
    }
}

const MUTANTS: [Mutant; 17] = [
    Mutant::ReadUnchecked,
    Mutant::WriteUnchecked,
    Mutant::DepsDropped,
    Mutant::DepsUnread,
    Mutant::ExhaustedAlone,
    Mutant::OriginOrder,
    Mutant::WallClockWins,
    Mutant::StampFromSelf,
    Mutant::FillingLeftOutOfStable,
    Mutant::UnknownIsRetired,
    Mutant::ForwardTwice,
    Mutant::RepairVectorFirst,
    Mutant::TombstoneDroppedEarly,
    Mutant::LifeReused,
    Mutant::OldCopyDeletedEarly,
    Mutant::OriginKept,
    Mutant::CopyVectorFirst,
];

#[test]
fn every_mutant_is_caught() {
    let load = number("KV_OPERATIONS").map(Load::dense);
    let left_out = |mutant: Mutant| std::env::var("KV_MUTANT").is_ok_and(|name| name != format!("{mutant:?}"));
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(Vec::new());
    let proof = Proof::of("mutants");
    let work = || {
        while let Some(&mutant) = MUTANTS.get(next.fetch_add(1, Ordering::Relaxed)) {
            if left_out(mutant) {
                continue;
            }
            let first = first_seed(mutant);
            let mut seeds = (first..MUTANT_SEEDS).chain(0..first);
            let caught = seeds.find_map(|seed| {
                let (digest, outcome) = schedule::run(seed, load, Some(mutant));
                Some((seed, digest, outcome.err()?))
            });
            match caught {
                Some((seed, digest, offence)) => {
                    if load.is_none() {
                        proof.found(format!("{mutant:?} {seed}"), digest);
                    }
                    println!("{mutant:?}: seed {seed}: {}", offence.chars().take(160).collect::<String>());
                }
                None => survivors.lock().expect("no other panics").push(mutant),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let survivors = survivors.into_inner().expect("no other panics");
    proof.hold();
    assert!(survivors.is_empty(), "not caught within {MUTANT_SEEDS} seeds: {survivors:?}");
}

#[test]
fn a_received_write_is_not_stable() {
    assert_eq!(scenarios::a_received_write_is_not_stable(None), Ok(()));
    let broken = scenarios::a_received_write_is_not_stable(Some(Mutant::StableFromReceived));
    assert!(broken.is_err(), "the mutant is not caught");
}

/// A schedule that must hold, and must not with the mechanism broken.
pub fn shows(schedule: fn(Option<Mutant>) -> Result<(), String>, mutant: Mutant) {
    assert_eq!(schedule(None), Ok(()));
    let broken = schedule(Some(mutant));
    assert!(broken.is_err(), "{mutant:?} is not caught");
    println!("{mutant:?}: {}", broken.unwrap_err());
}

#[test]
fn what_was_told_before_the_write_off_does_not_count() {
    shows(written_off::what_was_told_before_the_write_off_does_not_count, Mutant::ProgressOfAnyTime);
}

#[test]
fn nothing_is_taken_from_a_member_that_was_written_off() {
    shows(written_off::nothing_is_taken_from_a_member_that_was_written_off, Mutant::TakesFromWrittenOff);
}

#[test]
fn the_third_shard_is_made_of_nodes_two_and_five() {
    reshard::the_third_shard_is_made_of_nodes_two_and_five();
}

#[test]
fn a_node_behind_the_contexts_layout_does_not_answer_by_its_own() {
    shows(reshard::a_node_behind_the_contexts_layout_does_not_answer_by_its_own, Mutant::EpochIgnored);
}

#[test]
fn nothing_becomes_stable_while_slots_are_copied() {
    shows(reshard::nothing_becomes_stable_while_slots_are_copied, Mutant::StableDuringCopy);
}

#[test]
fn a_dependency_reaches_both_heirs() {
    shows(reshard::a_dependency_reaches_both_heirs, Mutant::HeirsForgotten);
}

#[test]
fn a_new_owner_without_copies_does_not_serve() {
    shows(reshard::a_new_owner_without_copies_does_not_serve, Mutant::ServeUncopied);
}

#[test]
fn a_deletion_is_remembered_until_the_last_old_member_has_handed_over() {
    shows(
        reshard::a_deletion_is_remembered_until_the_last_old_member_has_handed_over,
        Mutant::TombstoneDroppedWhileSettling,
    );
}

#[test]
fn what_an_old_member_covers_elsewhere_says_nothing_of_slots_it_gave_away() {
    shows(reshard::what_an_old_member_covers_elsewhere_says_nothing_of_slots_it_gave_away, Mutant::CoverageDuringCopy);
}

/// `KV_CHANGES=1000` makes as many.
#[test]
fn many_changes_leave_nothing_behind() {
    let changes = number("KV_CHANGES").unwrap_or(60) as u32;
    reshard::many_changes_leave_nothing_behind(changes);
}

#[test]
fn a_cluster_goes_on_without_its_majority() {
    assert_eq!(operators::a_cluster_goes_on_without_its_majority(), Ok(()));
}

#[test]
fn a_write_before_the_flip_is_answered_with_its_copies() {
    assert_eq!(operators::a_write_before_the_flip_is_answered_with_its_copies(), Ok(()));
}

#[test]
fn a_cluster_at_rest_says_little() {
    quiet::a_cluster_at_rest_says_little();
}

#[test]
fn a_death_at_rest_is_noticed_within_three_seconds() {
    quiet::a_death_at_rest_is_noticed_within_three_seconds();
}

#[test]
fn a_lost_majority_is_told_once() {
    quiet::a_lost_majority_is_told_once();
}

#[test]
fn a_shard_that_is_gone_is_told_at_once() {
    quiet::a_shard_that_is_gone_is_told_at_once();
}

#[test]
fn the_first_write_after_a_rest_gets_its_copies() {
    quiet::the_first_write_after_a_rest_gets_its_copies();
}

#[test]
fn an_empty_replica_does_not_serve() {
    shows(reshard::an_empty_replica_does_not_serve, Mutant::ServeUnfilled);
}

#[test]
fn what_counts_no_more_is_dropped_in_steps() {
    assert_eq!(written_off::what_counts_no_more_is_dropped_in_steps(), Ok(()));
}

#[test]
fn a_shard_that_has_lost_all_its_data_does_not_begin_anew() {
    shows(lost_data::a_shard_that_has_lost_all_its_data_does_not_begin_anew, Mutant::LostIsEmpty);
}

#[test]
fn one_that_knows_of_the_loss_is_enough() {
    shows(lost_data::one_that_knows_of_the_loss_is_enough, Mutant::LostIsEmpty);
}

#[test]
fn a_cluster_that_has_lost_all_its_data_is_not_formed_anew() {
    shows(lost_data::a_cluster_that_has_lost_all_its_data_is_not_formed_anew, Mutant::LostIsEmpty);
}

#[test]
fn a_loss_is_remembered_until_the_replica_is_whole() {
    shows(lost_data::a_loss_is_remembered_until_the_replica_is_whole, Mutant::LostIsEmpty);
}

#[test]
fn who_comes_back_with_nothing_says_so() {
    assert_eq!(lost_data::who_comes_back_with_nothing_says_so(), Ok(()));
}

#[test]
fn who_has_lost_its_data_is_filled_by_its_peers() {
    assert_eq!(lost_data::who_has_lost_its_data_is_filled_by_its_peers(), Ok(()));
}

#[test]
fn nobody_waits_for_a_reshard() {
    shows(reshard::nobody_waits_for_a_reshard, Mutant::EarlierWritesKept);
}

#[test]
fn deletions_are_forgotten_as_fast_as_they_come() {
    assert_eq!(scenarios::deletions_are_forgotten_as_fast_as_they_come(), Ok(()));
}

#[test]
fn what_a_large_slot_depends_on_is_forgotten() {
    assert_eq!(scenarios::what_a_large_slot_depends_on_is_forgotten(), Ok(()));
}

#[test]
fn a_slot_of_many_pages_is_compared_whole() {
    assert_eq!(scenarios::a_slot_of_many_pages_is_compared_whole(), Ok(()));
}

#[test]
fn a_replica_that_is_filled_does_not_make_way() {
    reshard::a_replica_that_is_filled_does_not_make_way();
}

#[test]
fn a_copy_makes_way() {
    shows(reshard::a_copy_makes_way, Mutant::RepairNeverRests);
}

/// `KV_NODES=300` goes up to as many, a hundred shards. (Twelve nodes found that a founder which does not vote called an election.)
#[test]
fn the_cost_of_an_operation_hardly_grows_with_the_cluster() {
    let most = number("KV_NODES").unwrap_or(24) as usize;
    println!("nodes  batches/op  bytes/op  context: mean  max  at rest  batches/s and node at rest");
    for nodes in [3, 6, 12, 24, 60, 150, 300].into_iter().filter(|&nodes| nodes <= most) {
        let growth::Cost { batches, bytes, context, context_max, context_rest, rest } = growth::cost(nodes);
        println!("{nodes:5} {batches:11.1} {bytes:9.0} {context:14.0} {context_max:4} {context_rest:8} {rest:28.1}");
        // Every node beats to every other, so together they say something quadratic in the cluster's size in the time that as many
        // operations take everywhere. A context names every replica at most.
        let size = nodes as f64;
        assert!(batches < 2.0 + 0.05 * size + size * size / 1_500.0, "{batches} batches per operation");
        assert!(context_max <= 32 + 15 * nodes && context_rest <= 40, "{context_max}, {context_rest} characters");
        assert!(rest <= 1.0 + 0.6 * nodes as f64, "{rest} batches per second and node at rest");
    }
}
