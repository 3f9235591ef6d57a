//! kvctl with nodes as local processes: needs nothing but this host.

mod support;

use std::net::TcpListener;
use std::process::Stdio;

use serde_json::Value;
use support::{Cluster, Said, chain, hear, interrupt, kvnode, unread, until};

/// A cluster on loopback addresses of its own.
fn cluster(name: &str, block: u8) -> Cluster {
    let second = 80 + (std::process::id() % 100) as u8;
    Cluster::new(name, &["--runtime", "local", "--subnet", &format!("10.{second}.{block}.0/24")])
}

#[test]
fn up_use_and_down() {
    let cluster = cluster("use", 1);
    let table = cluster.up();
    assert_eq!(table.lines().count(), 8, "{table}");
    assert!(table.lines().nth(1).is_some_and(|line| line.starts_with("alice") && line.contains("ready")), "{table}");
    let before = cluster.status();
    cluster.up();
    assert_eq!(cluster.status(), before, "a second up changes nothing");

    assert_eq!(cluster.ok(&["put", "x", "1", "--via", "alice"]), "created (2 replicas)\n");
    assert_eq!(cluster.ok(&["get", "x", "--via", "frank"]), "1\n");
    cluster.ok(&["put", "big", "12345678901234567890.12345678901234567890"]);
    assert_eq!(cluster.ok(&["get", "big"]), "12345678901234567890.12345678901234567890\n");
    cluster.ok(&["put", "minus", "-5"]);
    assert_eq!(cluster.ok(&["get", "minus"]), "-5\n");
    assert_eq!(cluster.ok(&["delete", "minus"]), "deleted (2 replicas)\n");
    assert_eq!(cluster.run(&["put", "..", "1"]).code, 2, "no URL can name it");
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
    let commands: [&[&str]; 10] = [
        &["cluster", "up"],
        &["cluster", "status"],
        &["put", "x", "{\"a\":[1,2]}"],
        &["get", "x"],
        &["keys"],
        &["view"],
        &["shard", "key-count", "s1"],
        &["node", "pause", "bob"],
        &["node", "unpause", "bob"],
        &["cluster", "logs", "bob"],
    ];
    let refusals: [&[&str]; 3] = [&["get", "nothing"], &["cluster", "down"], &["cluster", "logs", "bob", "-f"]];
    for (command, succeeds) in commands.map(|one| (one, true)).into_iter().chain(refusals.map(|one| (one, false))) {
        let Said { code, out, .. } = cluster.run(&[command, &["-o", "json"]].concat());
        assert_eq!(code == 0, succeeds, "{command:?}: {out}");
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
    for _ in 0..6 {
        cluster.ok(&["get", "x"]);
    }
    cluster.ok(&["node", "unpause", "dave"]);
    until("all are ready again", || cluster.all_ready());
    cluster.ok(&["node", "pause", "dave"]);
    cluster.up();
    assert!(cluster.all_ready(), "up unpauses");
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
    assert!(!said.err.contains("taking back"), "nothing was made: {said:?}");
    assert_eq!(cluster.run(&["cluster", "status"]).code, 10, "no cluster is left");
    assert!(TcpListener::bind(format!("127.{second}.5.2:8090")).is_ok(), "no process is left");
}

#[test]
fn mistakes_have_their_exit_codes() {
    let cluster = cluster("none", 6);
    let said = cluster.run(&["get", "x"]);
    assert_eq!((said.code, said.err.contains("kvctl cluster up")), (10, true), "{said:?}");
    assert_eq!(cluster.run(&["frobnicate"]).code, 2);
    for output in [&["-o", "json"][..], &["--output=json"]] {
        let said = cluster.run(&[output, &["frobnicate"]].concat());
        let document: Value = serde_json::from_str(&said.out).expect("one document");
        assert_eq!((said.code, &document["exit-code"]), (2, &2.into()), "{said:?}");
    }
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
    let said: Said = cluster.command(&["keys"]).stdout(unread()).output().expect("it starts").into();
    assert_eq!((said.code, said.err.as_str()), (0, ""));
}

#[test]
fn data_that_can_not_be_written_is_a_failure() {
    let cluster = cluster("full", 8);
    cluster.up();
    cluster.ok(&["put", "x", "1"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let said: Said = cluster.command(&["get", "x"]).stdout(full).output().expect("it starts").into();
    assert_eq!((said.code, said.err.contains("standard output")), (10, true), "{said:?}");
}

#[test]
fn commands_at_once_lose_nothing_of_a_session() {
    let cluster = cluster("session", 9);
    cluster.up();
    // Names that differ after a dot only, and by the suffixes of the files they are kept in.
    let sessions = ["a.b", "a.c", "a", "a.lock", "a.context"];
    std::thread::scope(|scope| {
        for (number, session) in sessions.iter().cycle().take(15).enumerate() {
            let cluster = &cluster;
            scope.spawn(move || cluster.ok(&["put", &format!("key-{number}"), "1", "--session", session]));
        }
    });
    for (number, session) in sessions.iter().cycle().take(15).enumerate() {
        assert_eq!(cluster.ok(&["get", &format!("key-{number}"), "--session", session]), "1\n");
    }
    cluster.ok(&["put", "y", "1", "--no-session"]);
    assert!(!cluster.state().join("sessions/default.context").exists(), "--no-session remembers nothing");
}

#[test]
fn an_interrupted_up_leaves_nothing_and_a_second_kvctl_names_the_first() {
    let cluster = cluster("int", 10);
    let never_ready = cluster.stand_in("exec /bin/sleep 100");
    let mut up = cluster.up_command();
    let mut child = up.env("KVNODE", never_ready).stderr(Stdio::piped()).spawn().expect("it starts");
    hear(&mut child, "waiting until ready: alice, bob, carol, dave, erin, frank");
    let said = cluster.try_up();
    let first = format!("process {}", child.id());
    assert_eq!((said.code, said.err.contains(&first)), (5, true), "{said:?}");
    let pids: Vec<String> = ["alice", "frank"]
        .map(|node| std::fs::read_to_string(cluster.state().join("pids").join(node)).expect("it was started"))
        .map(|text| text.split(' ').next().expect("a number").to_owned())
        .into();
    interrupt(&child);
    hear(&mut child, "interrupted");
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
    assert!(!cluster.state().exists(), "nothing is left");
    for pid in pids {
        let gone = || std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or(true, |name| name.trim() != "sleep");
        until("the processes are gone", gone);
    }
}

#[test]
fn a_cluster_that_does_not_get_ready_says_who_and_why() {
    let cluster = cluster("late", 11);
    let never_ready = cluster.stand_in("exec /bin/sleep 100");
    let said: Said =
        cluster.up_command().env("KVNODE", never_ready).args(["--wait", "1"]).output().expect("starts").into();
    assert_eq!((said.code, said.out.as_str()), (6, ""), "{said:?}");
    assert!(said.err.contains("alice: no node can be reached"), "{said:?}");

    let dies = cluster.stand_in("echo its last words; exit 1");
    let said: Said = cluster.up_command().env("KVNODE", dies).output().expect("starts").into();
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    assert!(said.err.contains("ended by itself") && said.err.contains("its last words"), "{said:?}");
    assert!(!cluster.state().exists(), "nothing is left");
}

#[test]
fn a_kvnode_that_was_named_once_is_used_again() {
    let mut cluster = cluster("named", 12);
    cluster.set_apart(Some(&kvnode()));
    let named = cluster.home().join("named-kvnode");
    std::fs::copy(kvnode(), &named).expect("a copy");
    // Named from where it is, used from anywhere.
    let mut up = cluster.up_command();
    let said: Said = up.current_dir(cluster.home()).args(["--kvnode", "named-kvnode"]).output().expect("starts").into();
    assert_eq!(said.code, 0, "{said:?}");
    let program = |node: &str| {
        let noted = std::fs::read_to_string(cluster.state().join("pids").join(node)).expect("it was started");
        let pid = noted.split(' ').next().expect("a number").to_owned();
        std::fs::read_link(format!("/proc/{pid}/exe")).expect("it runs")
    };
    let named = std::fs::canonicalize(named).expect("it is there");
    for command in [&["cluster", "up"][..], &["node", "start", "bob"]] {
        cluster.ok(&["node", "kill", "bob"]);
        cluster.ok(command);
        assert_eq!(program("bob"), named, "{command:?}");
    }
    cluster.ok(&["node", "add"]);
    assert_eq!(program("grace"), named);

    cluster.ok(&["node", "kill", "bob"]);
    std::fs::remove_file(&named).expect("removed");
    let said = cluster.run(&["cluster", "up"]);
    let path = named.display().to_string();
    assert!(said.code == 2 && said.err.contains(&path) && said.err.contains("--kvnode"), "{said:?}");
    let other = cluster.home().join("bin/kvnode");
    cluster.ok(&["cluster", "up", "--kvnode", other.to_str().expect("UTF-8")]);
    assert_eq!(program("bob"), std::fs::canonicalize(other).expect("it is there"));
}
