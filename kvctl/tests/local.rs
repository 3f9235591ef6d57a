//! kvctl with nodes as local processes: needs nothing but this host.

mod support;

use std::io::Read;
use std::net::TcpListener;
use std::process::Stdio;

use serde_json::Value;
use support::{Cluster, chain, until};

/// A cluster on loopback addresses of its own.
fn cluster(name: &str, block: u8) -> Cluster {
    let second = 80 + (std::process::id() % 100) as u8;
    Cluster::new(name, &["--runtime", "local", "--subnet", &format!("10.{second}.{block}.0/24")])
}

#[test]
fn up_use_and_down() {
    let cluster = cluster("use", 1);
    let table = cluster.up();
    assert_eq!(table.lines().count(), 7, "{table}");
    assert!(table.lines().nth(1).is_some_and(|line| line.starts_with("alice") && line.contains("ready")), "{table}");
    let before = cluster.status();
    cluster.up();
    assert_eq!(cluster.status(), before, "a second up changes nothing");

    assert_eq!(cluster.ok(&["put", "x", "1", "--via", "alice"]), "created (2 replicas)\n");
    assert_eq!(cluster.ok(&["get", "x", "--via", "frank"]), "1\n");
    cluster.ok(&["put", "big", "12345678901234567890.12345678901234567890"]);
    assert_eq!(cluster.ok(&["get", "big"]), "12345678901234567890.12345678901234567890\n");
    cluster.ok(&["put", "a/b c", "plain text"]);
    assert_eq!(cluster.ok(&["get", "a/b c"]), "plain text\n");
    assert_eq!(cluster.ok(&["keys"]), "a/b c\nbig\nx\n");
    assert_eq!(cluster.ok(&["keys", "--prefix", "b", "--limit", "1"]), "big\n");
    assert_eq!(cluster.ok(&["delete", "x"]), "deleted (2 replicas)\n");
    assert_eq!(cluster.run(&["get", "x"]).code, 3);
    assert_eq!(cluster.ok(&["shard", "ids"]), "s1\ns2\n");
    assert_eq!(cluster.ok(&["shard", "node", "erin"]), "s2\n");
    assert_eq!(cluster.ok(&["shard", "members", "s1"]).lines().count(), 3);
    assert_eq!(cluster.ok(&["view"]).lines().count(), 6);
    assert_eq!(cluster.run(&["shard", "members", "s9"]).code, 3);
    assert_eq!(cluster.run(&["get", "x", "--via", "nobody"]).code, 3);

    let refused = cluster.run(&["cluster", "down"]);
    assert_eq!((refused.code, refused.err.contains("--yes")), (2, true), "{refused:?}");
    cluster.ok(&["cluster", "down", "--keep-data"]);
    cluster.up();
    assert_eq!(cluster.ok(&["get", "a/b c"]), "plain text\n", "the data was kept");
}

#[test]
fn json_is_one_document_on_every_command() {
    let cluster = cluster("json", 2);
    cluster.up();
    let commands: [&[&str]; 9] = [
        &["cluster", "up"],
        &["cluster", "status"],
        &["put", "x", "{\"a\":[1,2]}"],
        &["get", "x"],
        &["keys"],
        &["view"],
        &["shard", "key-count", "s1"],
        &["node", "pause", "bob"],
        &["node", "unpause", "bob"],
    ];
    for command in commands {
        let out = cluster.ok(&[command, &["-o", "json"]].concat());
        let documents: Vec<_> = serde_json::Deserializer::from_str(&out).into_iter::<Value>().collect();
        assert!(documents.len() == 1 && documents[0].is_ok(), "{command:?}: {out}");
    }
}

#[test]
fn nodes_come_and_go_and_up_repairs() {
    let cluster = cluster("nodes", 3);
    cluster.up();
    cluster.ok(&["put", "x", "1"]);
    assert_eq!(cluster.ok(&["node", "kill", "bob"]), "bob stopped\n");
    assert_eq!(cluster.ok(&["node", "stop", "erin"]), "erin stopped\n");
    assert_eq!(cluster.run(&["node", "kill", "bob"]).code, 5, "it does not run");
    cluster.ok(&["put", "x", "2", "--via", "carol"]);
    cluster.up();
    assert!(cluster.all_ready());
    assert_eq!(cluster.ok(&["get", "x", "--via", "bob"]), "2\n");
    assert_eq!(cluster.ok(&["node", "pause", "dave"]), "dave paused\n");
    cluster.ok(&["get", "x", "--via", "alice"]);
    cluster.ok(&["node", "unpause", "dave"]);
    until("all are ready again", || cluster.all_ready());
    assert!(cluster.ok(&["cluster", "logs", "alice"]).contains("serving shard s1"));
}

#[test]
fn a_chain_of_600_keys_with_a_node_killed_half_way() {
    let cluster = cluster("chain", 4);
    cluster.up();
    let endpoints = cluster.endpoints();
    chain(&endpoints, || {
        cluster.ok(&["node", "kill", "bob"]);
        let left = |node: &&String| **node != endpoints[1];
        endpoints.iter().filter(left).cloned().collect()
    });
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_left() {
    let cluster = cluster("taken", 5);
    let second = 80 + (std::process::id() % 100) as u8;
    let _holder = TcpListener::bind(format!("127.{second}.5.4:8090")).expect("a free address");
    let said = cluster.try_up();
    assert_eq!(said.code, 10, "{said:?}");
    let me = format!("process {}", std::process::id());
    assert!(said.err.contains("carol") && said.err.contains(&me), "{said:?}");
    assert_eq!(cluster.run(&["cluster", "status"]).code, 10, "no cluster is left");
    assert!(TcpListener::bind(format!("127.{second}.5.2:8090")).is_ok(), "no process is left");
}

#[test]
fn mistakes_have_their_exit_codes() {
    let cluster = cluster("none", 6);
    let said = cluster.run(&["get", "x"]);
    assert_eq!((said.code, said.err.contains("kvctl cluster up")), (10, true), "{said:?}");
    assert_eq!(cluster.run(&["frobnicate"]).code, 2);
    let said = cluster.run(&["cluster", "up", "--runtime", "local", "--shards", "4"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("Not enough nodes"), "{said:?}");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let cluster = cluster("pipe", 7);
    cluster.up();
    for number in 0..30 {
        cluster.ok(&["put", &format!("key-{number}"), "1"]);
    }
    let mut child =
        cluster.command(&["keys"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!((child.wait().expect("it ends").code(), said.as_str()), (Some(0), ""));
}
