use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvnode_core::store::memory::MemoryStore;
use kvnode_types::causal::Vector;
use kvnode_types::ident::{Dot, Epoch, Incarnation, NodeId, Origin};
use kvnode_types::stamp::Stamp;

use super::*;

fn version(number: u64) -> Version {
    let origin = Origin { node: NodeId(1), epoch: Epoch(1), incarnation: Incarnation(7) };
    let value = (!number.is_multiple_of(5)).then(|| Bytes::from(number.to_string()));
    Version { stamp: Stamp(number), dot: Dot { origin, seq: number }, value, deps: Vector::new() }
}

fn key(number: u64) -> Key {
    format!("key-{number}").as_str().into()
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)) % 1_000_003
}

fn change(store: &mut dyn Store, random: u64, step: u64) {
    let key = key(random % 60);
    // Most changes are decided on by a look at what is there.
    if !(random / 240).is_multiple_of(3) {
        store.head(Slot::of(&key), &key).unwrap();
    }
    match random / 60 % 4 {
        0 => store.remove(Slot::of(&key), &key),
        1 => store.set_fact(Fact("fact"), step.to_be_bytes().to_vec()),
        _ => store.put(Slot::of(&key), &key, &version(step)),
    }
}

fn everything(store: &dyn Store, random: u64) -> impl PartialEq + std::fmt::Debug + use<> {
    let some = key(random % 60);
    let (slot, limit) = (Slot::of(&some), 1 + random as usize % 7);
    (
        store.get(slot, &some).unwrap(),
        store.head(slot, &some).unwrap().map(|head| (head.stamp, head.dot, head.has_value)),
        store.slot(slot, None, limit).unwrap(),
        store.keys("key-", Some(&some), limit).unwrap(),
        store.keys("key-1", None, usize::MAX).unwrap(),
        store.fact(Fact("fact")).unwrap(),
    )
}

#[test]
fn answers_as_the_engine_in_memory_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut durable = DurableStore::open(folder.path()).unwrap();
    let mut memory = MemoryStore::new();
    let mut state = 1;
    for step in 1..3_000 {
        let random = next(&mut state);
        change(&mut durable, random, step);
        change(&mut memory, random, step);
        if random.is_multiple_of(7) {
            durable.commit().unwrap();
            memory.commit().unwrap();
        }
        if random.is_multiple_of(500) {
            durable.commit().unwrap();
            drop(durable);
            durable = DurableStore::open(folder.path()).unwrap();
        }
        assert_eq!(everything(&durable, random), everything(&memory, random), "step {step}");
    }
}

/// Commits versions 1 to `count`, one batch each.
fn filled(folder: &Path, count: u64) -> DurableStore {
    let mut store = DurableStore::open(folder).unwrap();
    for number in 1..=count {
        store.put(Slot::of(&key(number)), &key(number), &version(number));
        store.commit().unwrap();
    }
    store
}

/// What overwrites a few keys all the time does not fill the memory with what they had: what there is too much of is written out, and
/// nothing but the last versions is left.
#[test]
fn overwritten_versions_do_not_stay_in_memory() {
    const STEP: usize = 64 << 10;
    let folder = tempfile::tempdir().unwrap();
    let mut store = filled(folder.path(), 2);
    let large = |number: u64| Version { value: Some(vec![b'x'; STEP].into()), ..version(number) };
    let newest = 6 * UNFLUSHED_BYTES / STEP as u64;
    for number in 3..=newest {
        let key = key(number % 2);
        store.put(Slot::of(&key), &key, &large(number));
        store.commit().unwrap();
        store.syncer().unwrap().sync().unwrap();
        // The engine writes in threads of its own, as fast as the disk is.
        let end = Instant::now() + Duration::from_secs(60);
        while store.gauge.keyspaces.iter().any(|keyspace| keyspace.sealed_memtable_count() > 0) {
            assert!(Instant::now() < end, "what was to be written out is still in memory after a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(store.db.write_buffer_size() < UNFLUSHED_BYTES + 4 * STEP as u64, "at {number}");
    }
    let held = store.get(Slot::of(&key(newest % 2)), &key(newest % 2)).unwrap();
    assert_eq!(held, Some(large(newest)));
}

fn journal(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder.join("fjall")).unwrap().map(|entry| entry.unwrap().path());
    let mut journals: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "jnl")).collect();
    journals.sort();
    journals.pop().expect("fjall keeps its journal beside its keyspaces")
}

/// What a crash would leave on the disk: a copy made while the store is open.
fn copy_of(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let done = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to.path()).status().unwrap();
    assert!(done.success());
    to
}

fn newest(store: &DurableStore) -> u64 {
    let mut newest = 0;
    store.scan(&mut |_, _, version| newest = newest.max(version.dot.seq)).unwrap();
    newest
}

/// Bytes of the journal before which there are only zeroes.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn a_torn_tail_costs_only_the_tail() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 200);
    let crashed = copy_of(folder.path());
    drop(store);
    let path = journal(crashed.path());
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..used(&bytes) - 40]).unwrap();
    let (store, aside) = DurableStore::open_or_set_aside(crashed.path(), None).unwrap();
    assert_eq!(aside, None);
    assert!((195..200).contains(&newest(&store)), "{}", newest(&store));
}

/// Where the file system orders nothing, a loss of power can leave the file of the mark empty beside all that was synced.
#[test]
fn a_mark_that_is_not_whole_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 200);
    store.syncer().unwrap().sync().unwrap();
    drop(store);
    for mark in [&b""[..], b"abc"] {
        fs::write(folder.path().join("synced"), mark).unwrap();
        let (store, aside) = DurableStore::open_or_set_aside(folder.path(), None).unwrap();
        assert_eq!((aside, newest(&store)), (None, 200));
        store.syncer().unwrap().sync().unwrap();
    }
    assert_eq!(fs::read(folder.path().join("synced")).unwrap().len(), 8);
}

#[test]
fn damage_before_what_was_synced_is_not_taken_for_a_torn_tail() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 200);
    store.syncer().unwrap().sync().unwrap();
    let crashed = copy_of(folder.path());
    drop(store);
    let path = journal(crashed.path());
    let mut bytes = fs::read(&path).unwrap();
    let middle = used(&bytes) / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    let (store, aside) = DurableStore::open_or_set_aside(crashed.path(), None).unwrap();
    assert!(aside.is_some_and(|aside| aside.place.join("fjall").is_dir()), "set aside, not deleted");
    assert_eq!(newest(&store), 0, "and an empty store takes its place");
}

/// The vector says what has been applied; if it were kept apart from the data, a crash between the two would lose a write for good,
/// or apply it twice. Cut at every place of the last batches, the store holds both or neither.
#[test]
fn a_crash_between_data_and_applied_index() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = DurableStore::open(folder.path()).unwrap();
    for number in 1..=12_u64 {
        store.put(Slot::of(&key(number)), &key(number), &version(number));
        store.set_fact(Fact("applied"), number.to_be_bytes().to_vec());
        store.commit().unwrap();
    }
    let crashed = copy_of(folder.path());
    drop(store);
    let path = journal(crashed.path());
    let bytes = fs::read(&path).unwrap();
    let mut seen = BTreeSet::new();
    for cut in (used(&bytes) - 420..used(&bytes)).step_by(11) {
        let torn = copy_of(crashed.path());
        fs::write(journal(torn.path()), &bytes[..cut]).unwrap();
        let (store, aside) = DurableStore::open_or_set_aside(torn.path(), None).unwrap();
        assert_eq!(aside, None, "cut at {cut}");
        let applied = decode_number(&store.fact(Fact("applied")).unwrap().expect("the first ones are whole")).unwrap();
        assert_eq!(newest(&store), applied, "cut at {cut}");
        seen.insert(applied);
    }
    assert!(seen.len() >= 3, "the cuts are in several batches: {seen:?}");
}

#[test]
fn only_a_failed_checksum_is_damage() {
    use fjall::{Error, JournalRecoveryError, LsmError};
    let io = |errno: i32| Error::Io(io::Error::from_raw_os_error(errno));
    let checksum = Error::JournalRecovery(JournalRecoveryError::ChecksumMismatch);
    assert!(matches!(of_engine(checksum), StoreError::Damaged(_)));
    let others = [
        Error::InvalidVersion(None),
        Error::InvalidTrailer,
        Error::InvalidTag(("", 9)),
        Error::Unrecoverable,
        Error::Locked,
        Error::Poisoned,
        Error::Storage(LsmError::InvalidVersion(4)),
        Error::Storage(LsmError::InvalidHeader("")),
        Error::Storage(LsmError::Unrecoverable),
        Error::JournalRecovery(JournalRecoveryError::InvalidFileName),
        // EACCES, EMFILE, ENOSPC, EIO.
        io(13),
        io(24),
        io(28),
        io(5),
        Error::Storage(LsmError::Io(ErrorKind::UnexpectedEof.into())),
    ];
    for other in others {
        let text = other.to_string();
        assert!(!matches!(of_engine(other), StoreError::Damaged(_)), "{text}");
    }
}

#[test]
fn a_damaged_block_of_a_table_is_a_failed_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path(), 200);
    store.versions.rotate_memtable_and_wait().unwrap();
    drop(store);
    let mut tables = 0;
    for keyspace in fs::read_dir(folder.path().join("fjall/keyspaces")).unwrap() {
        for table in fs::read_dir(keyspace.unwrap().path().join("tables")).unwrap() {
            let path = table.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            // In the middle of the first block.
            bytes[400] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            tables += usize::from(bytes.len() > 2_000);
        }
    }
    assert!(tables > 0);
    let read = DurableStore::open(folder.path()).and_then(|store| store.scan(&mut |_, _, _| {}));
    assert!(matches!(read, Err(StoreError::Damaged(_))), "{read:?}");
}

/// A repair lists thousands of slots in one turn, with as many changes staged by what it has brought so far.
#[test]
fn listing_a_slot_does_not_look_at_what_is_staged_elsewhere() {
    const STAGED: u64 = 30_000;
    let folder = tempfile::tempdir().unwrap();
    let mut store = DurableStore::open(folder.path()).unwrap();
    let list_all = |store: &DurableStore| {
        let began = Instant::now();
        let listed = |slot| store.slot(Slot(slot), None, usize::MAX).unwrap().len();
        let found: usize = (0..kvnode_types::ident::SLOT_COUNT).map(listed).sum();
        (found, began.elapsed())
    };
    let (none, alone) = list_all(&store);
    for number in 1..=STAGED {
        store.put(Slot::of(&key(number)), &key(number), &version(number));
    }
    let (all, staged) = list_all(&store);
    assert_eq!((none, all as u64), (0, STAGED));
    // What is looked at in vain takes hundreds of times as long.
    assert!(staged < 20 * alone + Duration::from_millis(100), "{staged:?} with changes staged, {alone:?} without");
}
