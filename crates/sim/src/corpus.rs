//! Seeds for fuzzing, from real messages: `KV_CORPUS=fuzz/corpus cargo test -p kvnode-sim corpus -- --ignored`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kvnode_core::admin::AdminOp;
use kvnode_core::messages::{decode, encode};
use kvnode_core::token::Seal;
use kvnode_types::causal::Context;
use kvnode_types::ident::{Epoch, Incarnation, NodeId, Origin};

use crate::reshard::{cluster, cut, get, key_in, put};
use crate::scenarios::ask;
use crate::world::World;

fn write(kind: &str, name: &str, bytes: &[u8]) {
    let root = PathBuf::from(std::env::var_os("KV_CORPUS").expect("KV_CORPUS names a folder"));
    // Tests run in their crate's folder.
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(root).join(kind);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join(name), bytes).expect("a file");
}

#[test]
#[ignore = "writes files"]
fn corpus() {
    peer_messages();
    for nodes in [0, 1, 6, 40] {
        let origin = |node| Origin { node: NodeId(node), epoch: Epoch(1), incarnation: Incarnation(1_900_000_000_000) };
        let seen = (1..=nodes).map(|node| (origin(node), u64::from(node) * 1_000)).collect();
        let context = Context { epoch: Epoch(1), seen };
        write("token", &format!("text-{nodes}"), Seal::new(&[7; 32]).encode(&context).as_bytes());
        write("token", &format!("context-{nodes}"), &postcard::to_stdvec(&context).expect("a context"));
    }
    let requests: [(&str, &[u8]); 8] = [
        ("put", b"/kvs/a%2Fb\nAQEBAQ\n{\"value\":{\"a\":[1,2.50,null,\"\\u00e9\"]},\"causal-metadata\":\"AQEBAQ\"}"),
        ("null", b"/kvs/x\n0\n{\"value\":null,\"causal-metadata\":null}"),
        ("list", b"/kvs?prefix=a%20b+c&limit=7&cursor=YWJj\n\n"),
        ("view", b"/view\n\n{\"socket-address\":\"10.10.0.8:8090\"}"),
        ("view6", b"/view\n\n{\"socket-address\":\"[::1]:8090\"}"),
        ("reshard", b"/shard/reshard?wait=false\n\n{\"shard-count\":3,\"epoch\":1}"),
        ("member", b"/shard/add-member/s1\n\n{\"socket-address\":\"kv-1.example:8090\"}"),
        ("big", b"/shard/key-count/s99999999999\nnull\n{\"shard-count\":1180591620717411303424,\"confirm\":true}"),
    ];
    requests.iter().for_each(|(name, bytes)| write("http_body", name, bytes));
    write("storage_recovery", "nothing", &[]);
    for file in 0..8_u8 {
        write("storage_recovery", &format!("flip-{file}"), &[file, 0, 40, 0x10]);
        write("storage_recovery", &format!("cut-{file}"), &[file | 0x80, 0x80, 0, 0]);
    }
}

/// The shortest batch of each kind of message, and whole conversations.
fn peer_messages() {
    let mut world = cluster(None);
    world.batches = Some(Vec::new());
    talk(&mut world);
    let mut kinds: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for bytes in world.batches.take().expect("just set") {
        let batch = decode(&bytes).expect("it was sent");
        for message in &batch.messages {
            let mut one = batch.clone();
            one.messages = vec![message.clone()];
            let name: String = format!("{message:?}").chars().take_while(char::is_ascii_alphanumeric).collect();
            let mut input = vec![0];
            input.extend_from_slice(&encode(&one));
            let shortest = kinds.entry(name).or_insert_with(|| input.clone());
            if input.len() < shortest.len() {
                *shortest = input;
            }
        }
    }
    kinds.iter().for_each(|(name, bytes)| write("peer_message", &name.to_lowercase(), bytes));
}

fn talk(world: &mut World) {
    let mut token = None;
    for number in 0..30 {
        let key = key_in(number * 500..number * 500 + 500);
        let id = 10 * u64::from(number) + 1;
        token = match ask(world, number as usize % 6, id, put(&key, "1"), token.as_ref()) {
            Some(kvnode_core::request::Answer::Created { context, .. }) => Some(context),
            other => panic!("{other:?}"),
        };
        ask(world, (number as usize + 1) % 6, id + 1, get(&key), token.as_ref());
    }
    // A short absence is pulled; one that outlasts the log, or loses everything, is repaired.
    cut(world, &[1], &[0]);
    ask(world, 0, 1_000, put(&key_in(0..100), "2"), None);
    world.run_until(1_000, |_| false);
    world.weather.clear();
    world.wipe(1);
    world.start(1);
    assert!(world.run_until(8_000, World::all_ready));
    world.start(6);
    world.run_until(3_000, |_| false);
    world.admin(3, 1, AdminOp::Reshard { count: 3, epoch: None, at_once: false });
    world.run_until(6_000, |_| false);
}
