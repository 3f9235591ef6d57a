//! What the fuzz targets do with their input. `fuzz/` runs it on random input, `tests/corpus.rs` on the seeds that are kept.
//! Nothing here may panic, whatever the input.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use kvnode::storage::durable::DurableStore;
use kvnode_core::loss::Past;
use kvnode_core::messages::{Batch, decode, encode};
use kvnode_core::request::Op;
use kvnode_core::settings::Settings;
use kvnode_core::store::memory::MemoryStore;
use kvnode_core::store::{Fact, Store, Version};
use kvnode_core::token::Seal;
use kvnode_core::{Core, Event, Now};
use kvnode_types::causal::{Context, Vector};
use kvnode_types::ident::{Addr, Dot, Epoch, Incarnation, Key, NodeId, Origin, Slot};
use kvnode_types::stamp::Stamp;

const KEY: [u8; 32] = [7; 32];

/// A token's text, and a context's encoding inside a valid token.
pub fn token(input: &[u8]) {
    let seal = Seal::new(&KEY);
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(context) = seal.decode(text)
    {
        assert_eq!(seal.decode(&seal.encode(&context)), Some(context));
    }
    if let Ok(context) = postcard::from_bytes::<Context>(input) {
        let text = seal.encode(&context);
        assert_eq!(seal.decode(&text), Some(context).filter(|_| text.len() <= 65_536));
    }
}

/// A path with its query, a metadata header and a body, on a line each.
pub fn http_body(input: &[u8]) {
    kvnode::http::fuzz::take_apart(input);
}

fn addr(last: u8) -> Addr {
    format!("10.10.0.{last}:8090").parse().expect("an address")
}

/// A node that serves alone: the other two of its shard were said not to be waited for.
fn serving_core() -> Core {
    let (me, others) = (addr(2), vec![addr(3), addr(4)]);
    let settings = Settings {
        view: vec![me.clone(), addr(3), addr(4)],
        me,
        form_without: others,
        shard_count: 1,
        life: Incarnation(1_000),
        entropy: [9; 48],
        causal_wait_ms: 1_000,
        ack_wait_ms: 500,
        waiting_max: 100,
        forwards_max: 100,
        peer_queue_weight_max: 1 << 16,
        log_weight_max: 1 << 12,
        durable_at_commit: true,
        past: Past::InStore,
        mutant: None,
    };
    let mut core = Core::start(settings, Box::new(MemoryStore::new()), at(1)).expect("memory does not fail");
    let mut now_ms = 1;
    while core.ready().is_err() {
        now_ms += 25;
        turn(&mut core, now_ms, Event::Tick);
        assert!(now_ms < 10_000, "it serves: {:?}", core.ready());
    }
    for number in 0..3 {
        let op = Op::Put { key: format!("key-{number}").as_str().into(), value: Bytes::from_static(b"1") };
        turn(&mut core, now_ms, Event::Client { id: number, op, tokens: Vec::new(), arrived_ms: now_ms });
    }
    core
}

fn at(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: 1_900_000_000_000 + mono_ms }
}

/// One turn, and everything that a driver does after it.
fn turn(core: &mut Core, now_ms: u64, event: Event) {
    core.handle(at(now_ms), event).expect("memory does not fail");
    core.commit().expect("memory does not fail");
    core.take_effects();
    for peer in [addr(3), addr(4)] {
        if let Some(batch) = core.next_batch(at(now_ms), &peer) {
            assert_eq!(decode(&encode(&batch)).as_ref(), Ok(&batch));
        }
    }
}

/// A flag byte and a batch, several times; lengths before all but the last. Flags make a batch one that is heard.
pub fn peer_message(mut input: &[u8]) {
    let mut core = serving_core();
    let mut now_ms = 20_000;
    for _ in 0..8 {
        let Some((&flags, rest)) = input.split_first() else { break };
        let (bytes, rest) = if flags & 0x80 == 0 { (rest, &[][..]) } else { split(rest) };
        input = rest;
        now_ms += 1 + u64::from(flags >> 4 & 7) * 200;
        let Ok(batch) = decode(bytes) else { continue };
        let batch = addressed(&core, batch, flags, now_ms);
        let from = batch.from.clone();
        turn(&mut core, now_ms, Event::Batch(batch));
        core.answer_batch(at(now_ms), &from);
        turn(&mut core, now_ms + 25, Event::Tick);
    }
    let op = Op::Get { key: "key-0".into() };
    turn(&mut core, now_ms + 50, Event::Client { id: 100, op, tokens: Vec::new(), arrived_ms: now_ms + 50 });
    for late in 1..4 {
        turn(&mut core, now_ms + late * 1_000, Event::Tick);
    }
    core.status();
}

fn split(rest: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = rest.split_first_chunk::<2>() else { return (rest, &[]) };
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).unwrap_or((rest, &[]))
}

/// The batch as a peer that knows this node would send it.
fn addressed(core: &Core, mut batch: Batch, flags: u8, now_ms: u64) -> Batch {
    if flags & 1 == 0 {
        batch.from = if flags & 2 == 0 { addr(3) } else { addr(4) };
        batch.life = Incarnation(500);
        batch.to_life = Some(Incarnation(core.life()));
        let topology = core.topology().expect("it serves");
        (batch.cluster, batch.version) = (Some(topology.cluster), topology.version);
        (batch.sent_ms, batch.echo_ms) = (now_ms, now_ms - 1);
    }
    batch
}

fn version(number: u64) -> Version {
    let origin = Origin { node: NodeId(1), epoch: Epoch(1), incarnation: Incarnation(7) };
    let value = (!number.is_multiple_of(5)).then(|| Bytes::from(number.to_string()));
    Version { stamp: Stamp(number), dot: Dot { origin, seq: number }, value, deps: Vector::new() }
}

fn put(store: &mut DurableStore, number: u64) {
    let key: Key = format!("key-{number}").as_str().into();
    store.put(Slot::of(&key), &key, &version(number));
    store.set_fact(Fact("applied"), number.to_be_bytes().to_vec());
    store.commit().expect("there is room");
}

/// Files of a data directory whose first writes were synced, as a crash leaves them.
fn template() -> &'static [(PathBuf, Vec<u8>)] {
    static FILES: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = DurableStore::open(folder.path()).expect("it opens");
        (1..=20).for_each(|number| put(&mut store, number));
        store.syncer().expect("it is durable").sync().expect("it syncs");
        // Opened again, it has tables, too.
        drop(store);
        let mut store = DurableStore::open(folder.path()).expect("it opens");
        (21..=30).for_each(|number| put(&mut store, number));
        let mut files = Vec::new();
        collect(folder.path(), folder.path(), &mut files);
        files.sort();
        files
    })
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if let Ok(mut bytes) = fs::read(&path) {
            // The journal's end is a hole.
            let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            bytes.truncate((used + 64).min(bytes.len()));
            files.push((path.strip_prefix(root).expect("within").to_owned(), bytes));
        }
    }
}

/// The daemon, as the program that tries a store first: built with the tests; the fuzzer is told by the variable `KVNODE`.
fn prober() -> &'static Path {
    static PROBER: OnceLock<PathBuf> = OnceLock::new();
    PROBER.get_or_init(|| {
        let told = std::env::var_os("KVNODE").map(PathBuf::from);
        told.or_else(|| option_env!("CARGO_BIN_EXE_kvnode").map(PathBuf::from)).expect("KVNODE names the daemon")
    })
}

/// Four bytes per damage: which file (with the upper bit: cut off), where in it (a part of 65,536), and what is changed.
pub fn storage_recovery(input: &[u8]) {
    let mut files = template().to_vec();
    for damage in input.chunks_exact(4).take(8) {
        let count = files.len();
        let bytes = &mut files[usize::from(damage[0] & 0x7f) % count].1;
        let at = bytes.len() * usize::from(u16::from_be_bytes([damage[1], damage[2]])) / 65_536;
        match bytes.get_mut(at) {
            _ if damage[0] & 0x80 != 0 => bytes.truncate(at),
            Some(byte) => *byte ^= damage[3],
            None => {}
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (path, bytes) in &files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("within")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }
    let Ok((mut store, aside)) = DurableStore::open_or_set_aside(folder.path(), Some(prober())) else { return };
    let mut newest = 0;
    store.scan(&mut |_, _, version| newest = newest.max(version.dot.seq)).expect("what opens can be read");
    // The file `synced` is damaged, too, at times: then it may say less, never more.
    let intact = files.iter().zip(template()).all(|(now, then)| now.0 != Path::new("synced") || now == then);
    assert!(aside.is_some() || newest >= 20 || !intact, "synced writes are gone, and nobody says so: {newest}");
    put(&mut store, newest + 1);
    drop(store);
    let (store, _) = DurableStore::open_or_set_aside(folder.path(), Some(prober())).expect("it opens again");
    let key: Key = format!("key-{}", newest + 1).as_str().into();
    assert_eq!(store.get(Slot::of(&key), &key).expect("it can be read"), Some(version(newest + 1)));
}
