//! What kvctl says while nodes are frozen, dead or gone, with real nodes as local processes.

mod support;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Cluster, Said, until};

fn cluster(name: &str, block: u8) -> Cluster {
    let second = 80 + (std::process::id() % 100) as u8;
    let cluster = Cluster::new(name, &["--runtime", "local", "--subnet", &format!("10.{second}.{block}.0/24")]);
    cluster.up();
    cluster
}

/// Starts a command; what it says is read when it has ended.
fn begin(cluster: &Cluster, arguments: &[&str]) -> Child {
    let mut command = cluster.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn end(child: Child) -> Said {
    child.wait_with_output().expect("it ends").into()
}

/// A key of shard s2.
fn key_of_s2(cluster: &Cluster) -> String {
    let count = || cluster.ok(&["shard", "key-count", "s2", "--via", "dave"]);
    let before = count();
    let keys = (0..).map(|number| format!("key-{number}"));
    keys.into_iter()
        .find(|key| {
            cluster.ok(&["put", key, "1", "--no-session"]);
            count() != before
        })
        .expect("half of all keys")
}

#[test]
fn who_waits_for_a_frozen_node_is_told_so_and_what_became_of_a_write() {
    let cluster = cluster("frozen", 90);
    cluster.ok(&["node", "pause", "bob"]);
    let all = [
        begin(&cluster, &["get", "x", "--via", "bob", "--no-session"]),
        begin(&cluster, &["put", "x", "1", "--via", "bob", "--no-session"]),
        begin(&cluster, &["delete", "x", "--via", "bob", "--no-session", "-o", "json"]),
        begin(&cluster, &["view", "--via", "bob"]),
    ]
    .map(end);
    for said in &all {
        assert_eq!(said.code, 6, "{said:?}");
        assert!(said.err.starts_with("waiting for bob to answer\n"), "{said:?}");
        assert!(said.err.contains("no answer in time from bob"), "{said:?}");
    }
    let [get, put, delete, view] = all;
    assert!(!get.err.contains("outcome") && !view.err.contains("outcome"), "a read has none");
    assert!(put.err.contains("the outcome of the write is unknown"), "{put:?}");
    let document: Value = serde_json::from_str(&delete.out).expect("one document");
    assert_eq!((&document["outcome"], &document["exit-code"]), (&json!("unknown"), &json!(6)));
}

#[test]
fn a_dead_shard_is_told_at_once_and_by_names() {
    let cluster = cluster("dead", 91);
    let key = key_of_s2(&cluster);
    cluster.ok(&["node", "kill", "dave"]);
    cluster.ok(&["node", "kill", "erin"]);
    cluster.ok(&["node", "pause", "frank"]);
    until("the others have noticed", || cluster.ok(&["view", "--via", "alice"]).lines().count() == 3);
    for command in [&["get", &key][..], &["put", &key, "2"], &["keys"], &["shard", "key-count", "s2"]] {
        let begun = Instant::now();
        let said = cluster.run(command);
        assert!(begun.elapsed() < Duration::from_millis(1_500), "{command:?} took {:?}", begun.elapsed());
        assert_eq!(said.code, 4, "{said:?}");
        let named = "No replica of shard s2 is reachable (said ";
        let names = ": dave (stopped), erin (stopped), frank (paused)\n";
        assert!(said.err.contains(named) && said.err.ends_with(names), "{said:?}");
    }
    let said = cluster.run(&["reshard", "1", "--dry-run"]);
    assert!(said.code == 4 && said.err.contains("warning: no replica of shard s2 can be reached"), "{said:?}");
    let text = cluster.ok(&["cluster", "status"]);
    let shard = |name: &str| text.lines().find(|line| line.starts_with(name)).map(|line| line.contains(" s2 "));
    assert_eq!(["dave", "erin", "frank"].map(shard), [Some(true); 3], "{text}");
    assert_eq!(text.lines().last(), Some("6 nodes, 3 ready; s1: 3 of 3; s2: 0 of 3, no majority"));
    let status = cluster.status();
    assert_eq!((&status["nodes"][3]["shard"], &status["nodes"][3]["ready"]), (&json!("s2"), &json!(false)));
    let gone = json!({ "id": "s2", "members": ["dave", "erin", "frank"], "serving": 0, "majority": false });
    assert_eq!(status["shards"][1], gone);
    until("the log tells it", || {
        let log = cluster.ok(&["cluster", "logs", "alice"]);
        let told = log.lines().find(|line| line.contains("no majority can be reached") && line.contains("shard s2"));
        told.is_some_and(|line| line.contains("WARN") && line.contains("reached=0 members=3"))
    });
    cluster.up();
    assert_eq!(cluster.ok(&["get", &key]), "1\n");
    assert_eq!(cluster.ok(&["cluster", "status"]).lines().last(), Some("6 nodes, 6 ready; s1: 3 of 3; s2: 3 of 3"));
}

#[test]
fn a_log_is_followed_through_a_restart_until_the_cluster_is_gone() {
    let cluster = cluster("follow", 92);
    let mut child = begin(&cluster, &["cluster", "logs", "bob", "-f"]);
    support::read_until(child.stdout.as_mut().expect("piped"), "serving shard s1");
    cluster.ok(&["node", "stop", "bob"]);
    cluster.ok(&["node", "start", "bob"]);
    support::read_until(child.stdout.as_mut().expect("piped"), "starting address=");
    cluster.ok(&["cluster", "down", "--yes"]);
    assert_eq!(end(child).code, 0);
}

#[test]
fn a_node_that_is_no_member_any_more_is_deleted() {
    let cluster = cluster("delete", 93);
    let names = || -> Vec<String> {
        let status = cluster.status();
        let nodes = status["nodes"].as_array().expect("nodes").iter();
        nodes.map(|node| node["name"].as_str().expect("a name").to_owned()).collect()
    };
    let said = cluster.run(&["node", "remove", "frank", "--yes"]);
    assert!(said.code == 5 && said.err.contains("kvctl view remove frank"), "{said:?}");
    cluster.ok(&["view", "remove", "frank"]);
    let status = cluster.ok(&["cluster", "status"]);
    assert!(status.contains("kvctl node remove frank") && status.contains("s2: 2 of 2"), "{status}");
    let said = cluster.run(&["node", "remove", "frank"]);
    assert!(said.code == 2 && said.err.contains("--yes"), "{said:?}");
    let pid = std::fs::read_to_string(cluster.state().join("pids/frank")).expect("it runs");
    assert_eq!(cluster.ok(&["node", "remove", "frank", "--yes"]), "frank is gone, and its data with it\n");
    let process = format!("/proc/{}", pid.split(' ').next().expect("a number"));
    // One that has ended may be there still, until its parent asks; it has no program any more.
    assert!(std::fs::read_link(format!("{process}/exe")).is_err(), "its process has ended");
    for what in ["pids", "data", "logs"] {
        assert!(!cluster.state().join(what).join("frank").exists(), "{what}");
    }
    assert_eq!(names(), ["alice", "bob", "carol", "dave", "erin"]);
    assert_eq!(cluster.run(&["node", "start", "frank"]).code, 3);
    cluster.up();
    assert_eq!(names().len(), 5, "up does not make it again");
    cluster.ok(&["node", "add", "frank"]);
    assert_eq!(names().len(), 6);
    for node in ["alice", "bob", "carol", "dave"] {
        cluster.ok(&["node", "kill", node]);
    }
    cluster.ok(&["node", "kill", "erin"]);
    let said = cluster.run(&["node", "remove", "frank", "--yes"]);
    assert!(said.code == 5 || said.code == 4, "nobody says that it is none: {said:?}");
}
