use super::*;

fn put(session: usize, key: usize, write: u64) -> [Moment; 2] {
    [Moment::Invoke { session, key, write, delete: false }, Moment::Done { session, write }]
}

fn delete(session: usize, key: usize, write: u64) -> [Moment; 2] {
    [Moment::Invoke { session, key, write, delete: true }, Moment::Done { session, write }]
}

fn read(session: usize, key: usize, saw: Option<u64>) -> [Moment; 1] {
    [Moment::Read { session, key, saw }]
}

fn verdict(parts: &[&[Moment]]) -> bool {
    judge(&parts.concat(), &BTreeSet::new(), &BTreeMap::new()).is_ok()
}

#[test]
fn what_is_allowed() {
    assert!(verdict(&[&put(1, 0, 1), &read(2, 0, None), &read(2, 0, Some(1))]), "late, but never back");
    assert!(verdict(&[&put(1, 0, 1), &put(2, 0, 2), &read(3, 0, Some(2)), &read(4, 0, Some(1))]), "concurrent writes");
    assert!(verdict(&[&put(1, 0, 1), &delete(1, 0, 2), &read(1, 0, None)]));
    assert!(verdict(&[&put(1, 0, 1), &delete(2, 0, 2), &read(1, 0, None)]), "a deletion of somebody else");
}

#[test]
fn read_your_writes() {
    assert!(!verdict(&[&put(1, 0, 1), &put(1, 0, 2), &read(1, 0, Some(1))]));
    assert!(!verdict(&[&put(1, 0, 1), &read(1, 0, None)]));
}

#[test]
fn monotonic_reads() {
    let writes = [put(1, 0, 1), put(1, 0, 2)].concat();
    assert!(!verdict(&[&writes, &read(2, 0, Some(2)), &read(2, 0, Some(1))]));
}

#[test]
fn writes_follow_reads_across_keys_and_sessions() {
    let chain = [put(1, 0, 1).as_slice(), &put(1, 0, 2), &put(1, 1, 3), &read(2, 1, Some(3)), &put(2, 2, 4)].concat();
    assert!(!verdict(&[&chain, &read(3, 2, Some(4)), &read(3, 0, Some(1))]));
    assert!(verdict(&[&chain, &read(3, 2, Some(4)), &read(3, 0, Some(2))]));
}

#[test]
fn a_context_that_is_handed_on_counts() {
    let handed = [put(1, 0, 1).as_slice(), &[Moment::Hand { from: 1, to: 2 }]].concat();
    assert!(!verdict(&[&handed, &read(2, 0, None)]));
}

#[test]
fn which_deletion_an_absence_was_read_from_counts() {
    // Somebody's concurrent deletion would explain an absence as such.
    let writes = [put(1, 0, 1).as_slice(), &delete(1, 0, 2), &put(1, 0, 3), &delete(2, 0, 4)].concat();
    assert!(verdict(&[&writes, &read(1, 0, None)]) && verdict(&[&writes, &read(1, 0, Some(4))]));
    assert!(!verdict(&[&writes, &read(1, 0, Some(2))]), "a put of the reader's past came after it");
    assert!(verdict(&[&writes, &read(3, 0, Some(2))]), "somebody who has seen nothing");
    assert!(verdict(&[&writes, &read(3, 0, Some(2)), &read(3, 0, Some(3))]));
    assert!(!verdict(&[&writes, &read(3, 0, Some(3)), &read(3, 0, Some(2))]));
    assert!(!verdict(&[&writes, &read(3, 1, Some(2))]), "a deletion of another key");
}

#[test]
fn a_deletion_that_was_seen_hands_on_its_past() {
    let writes = [put(1, 1, 1).as_slice(), &put(1, 0, 2), &delete(1, 0, 3)].concat();
    assert!(verdict(&[&writes, &read(2, 0, None), &read(2, 1, None)]), "the key may never have been");
    assert!(!verdict(&[&writes, &read(2, 0, Some(3)), &read(2, 1, None)]));
    assert!(!verdict(&[&writes, &read(2, 0, Some(3)), &read(2, 0, Some(2))]), "back to life");
    let lost = |parts: &[&[Moment]]| judge(&parts.concat(), &BTreeSet::from([3]), &BTreeMap::new()).is_ok();
    assert!(lost(&[&writes, &read(2, 0, Some(3)), &read(2, 1, None)]), "lost by right");
    assert!(lost(&[&writes, &read(2, 0, Some(3)), &read(2, 0, Some(2))]), "lost by right");
}

#[test]
fn two_orders_of_a_put_and_a_concurrent_deletion() {
    let writes = [put(1, 0, 1), delete(2, 0, 2)].concat();
    let one = [read(3, 0, Some(1)), read(3, 0, Some(2))].concat();
    let other = [read(4, 0, Some(2)), read(4, 0, Some(1))].concat();
    assert!(verdict(&[&writes, &one]) && verdict(&[&writes, &other]));
    assert!(!verdict(&[&writes, &one, &other]));
}

#[test]
fn resurrection() {
    assert!(!verdict(&[&put(1, 0, 1), &delete(1, 0, 2), &read(1, 0, Some(1))]));
}

#[test]
fn two_orders_of_concurrent_writes() {
    let writes = [put(1, 0, 1), put(2, 0, 2)].concat();
    let one = [read(3, 0, Some(1)), read(3, 0, Some(2))].concat();
    let other = [read(4, 0, Some(2)), read(4, 0, Some(1))].concat();
    assert!(verdict(&[&writes, &one]));
    assert!(!verdict(&[&writes, &one, &other]));
}

#[test]
fn thin_air_and_refused_writes() {
    assert!(!verdict(&[&read(1, 0, Some(9))]));
    let refused = [Moment::Invoke { session: 1, key: 0, write: 1, delete: false }, Moment::Failed { write: 1 }];
    assert!(!verdict(&[&refused, &read(2, 0, Some(1))]));
    let refused = [Moment::Invoke { session: 2, key: 0, write: 2, delete: true }, Moment::Failed { write: 2 }];
    assert!(!verdict(&[&put(1, 0, 1), &refused, &read(1, 0, None)]), "a refused deletion explains nothing");
}

#[test]
fn an_acknowledged_write_must_be_in_the_end() {
    let history = [put(1, 0, 1), put(1, 0, 2)].concat();
    let ends = |saw: Option<u64>, lost: &[u64]| {
        judge(&history, &lost.iter().copied().collect(), &BTreeMap::from([(0, saw)])).is_ok()
    };
    assert!(ends(Some(2), &[]) && !ends(Some(1), &[]) && !ends(None, &[]));
    assert!(ends(Some(1), &[2]), "lost by right");
    let history = [put(1, 0, 1).as_slice(), &delete(1, 0, 2), &put(1, 0, 3), &delete(2, 0, 4)].concat();
    let ends = |saw: u64, lost: &[u64]| {
        judge(&history, &lost.iter().copied().collect(), &BTreeMap::from([(0, Some(saw))])).is_ok()
    };
    assert!(ends(4, &[]) && ends(3, &[]) && !ends(2, &[]), "an old deletion is no end");
    assert!(ends(2, &[3]), "what came after it was lost by right");
}
