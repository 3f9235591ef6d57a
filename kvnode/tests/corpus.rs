//! The seeds of the fuzz targets, replayed with the stable toolchain.

mod fuzzed;

use std::path::Path;

use kvnode_core::messages::{Batch, Message, Move, Progress, Report, Stage, Write, decode, encode};
use kvnode_core::request::Op;
use kvnode_core::store::Version;
use kvnode_types::causal::{Context, Vector};
use kvnode_types::ident::{Dot, Epoch, Incarnation, NodeId, Origin, ShardId};
use kvnode_types::stamp::Stamp;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is in the tree") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        run(&std::fs::read(path).expect("a file"));
        count += 1;
    }
    assert!(count > 5, "{count} seeds of {target}");
}

#[test]
fn tokens() {
    replay("token", fuzzed::token);
}

#[test]
fn http_bodies() {
    replay("http_body", fuzzed::http_body);
}

#[test]
fn peer_messages() {
    replay("peer_message", fuzzed::peer_message);
}

#[test]
fn storage_recovery() {
    replay("storage_recovery", fuzzed::storage_recovery);
}

const ENDS: [u64; 4] = [0, 1, u64::MAX - 1, u64::MAX];

/// Batches of a mate whose numbers are at the ends of what can be said, each to a node of its own.
fn of_a_mate(life: u64, sent_ms: u64, echo_ms: u64, messages: Vec<Message>) -> Vec<u8> {
    let batch = Batch {
        cluster: None,
        version: kvnode_core::topology::TopologyVersion { generation: 0, index: 1 },
        from: "10.10.0.3:8090".parse().expect("an address"),
        life: Incarnation(life),
        to_life: Some(Incarnation(1_000)),
        sent_ms,
        echo_ms,
        messages,
    };
    let bytes = encode(&batch);
    let length = u16::try_from(bytes.len()).expect("a small one").to_le_bytes();
    // What the node makes of it is seen when it has come twice, and others after it.
    let once = [&[0x81 | 0x70][..], &length, &bytes].concat();
    [&once[..], &once].concat()
}

/// What a mate tells of a change of the layout: as much as can be said of each of its moves.
fn of_a_change(number: u64) -> Message {
    let one = Move { from: ShardId(1), to: ShardId(2), keys: number, keys_total: number, bytes: number };
    let progress = Progress { moves: vec![one, one], ..Progress::default() };
    Message::Beat {
        wall_ms: 1_900_000_000_000,
        epoch: Epoch(1),
        birth: Incarnation(500),
        progress: Some(Box::new(progress)),
        stage: Some(Stage::Serving),
        stable: None,
    }
}

/// A peer that is wrong, or lies, must not end a node: with debug assertions a sum that is none panics.
#[test]
fn numbers_at_their_ends() {
    let beat = |wall_ms, birth| Message::Beat {
        wall_ms,
        epoch: Epoch(1),
        birth: Incarnation(birth),
        progress: None,
        stage: Some(Stage::Serving),
        stable: None,
    };
    for number in ENDS {
        let origin = |node| Origin { node: NodeId(node), epoch: Epoch(1), incarnation: Incarnation(number) };
        let dot = Dot { origin: origin(2), seq: number };
        let version = Version { stamp: Stamp(number), dot, value: Some("1".into()), deps: Vector::of(dot) };
        let write = Write { key: "key-1".into(), version, own_deps: Vector::new() };
        let report = Report {
            epoch: Epoch(1),
            oldest: Epoch(1),
            frozen: false,
            applied: Vector::of(dot),
            durable: Vector::of(dot),
            takes_writes: true,
            floors: vec![(NodeId(1), Epoch(1), Incarnation(number)), (NodeId(2), Epoch(1), Incarnation(number))],
            uncovered: Default::default(),
            lives: vec![(NodeId(3), Incarnation(number)), (NodeId(2), Incarnation(number))],
        };
        let context = Context { epoch: Epoch(1), seen: Vector::of(dot) };
        let op = Op::Put { key: "key-2".into(), value: "2".into() };
        let own = Origin { node: NodeId(1), epoch: Epoch(1), incarnation: Incarnation(1_000) };
        let messages = [
            beat(number, number),
            Message::Report(report),
            Message::Superseded { known: Incarnation(number) },
            of_a_change(number),
            Message::Held { origin: own, seq: number, beyond: u64::MAX },
            Message::Pull { have: Vector::of(Dot { origin: own, seq: number }), floors: Vec::new() },
            Message::Writes { writes: vec![write.clone(), write], pulled: false },
            Message::Forward { id: number, shard: ShardId(1), op, context, until_ms: number },
            Message::Compared { id: number },
        ];
        for life in [number, 500] {
            for message in &messages {
                for (sent_ms, echo_ms) in [(number, number), (1, number), (number, 1)] {
                    let told = vec![beat(1_900_000_000_000, 500), message.clone(), beat(number, 500)];
                    fuzzed::peer_message(&of_a_mate(life, sent_ms, echo_ms, told));
                }
            }
        }
    }
}

/// The bytes that real nodes have sent stand for their format: what is read from them is written as it was.
#[test]
fn messages_of_nodes_keep_their_bytes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/peer_message");
    let mut kinds = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is in the tree") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a file");
        // Before the batch stands a byte for the fuzzer.
        let Some(batch) = bytes.get(1..).and_then(|bytes| decode(bytes).ok()) else { continue };
        assert_eq!(encode(&batch), bytes[1..], "{}", path.display());
        let is_kind = |message: &Message| format!("{message:?}").to_lowercase().starts_with(&name(&path));
        kinds += usize::from(batch.messages.iter().any(is_kind));
    }
    assert!(kinds >= 15, "{kinds} kinds of messages are kept");
}

fn name(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}
