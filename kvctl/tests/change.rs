//! A cluster that changes while it runs, with real nodes as local processes.

mod support;

use serde_json::Value;
use support::{Cluster, until};

/// Whether the nodes can do it: an older kvnode knows no such path.
fn can_change(cluster: &Cluster) -> bool {
    let said = cluster.run(&["reshard", "2", "--dry-run"]);
    let can = said.code == 0;
    assert!(can || said.err.contains("newer kvnode"), "{said:?}");
    if !can {
        eprintln!("SKIPPED: this kvnode can't change its topology");
    }
    can
}

fn keys(cluster: &Cluster) -> usize {
    cluster.ok(&["keys"]).lines().count()
}

/// Every node tells of the reshard, from its beginning to its end; who took the request also from whom it came.
fn changes_are_logged(cluster: &Cluster) {
    let log = |node: &str| cluster.ok(&["cluster", "logs", node]);
    let line = |node: &str, what: &str| -> String {
        let log = log(node);
        let found = log
            .lines()
            .find(|line| line.contains(what) && (line.contains("(reshard)") || line.contains("/shard/reshard?wait")));
        found.unwrap_or_else(|| panic!("{node} says nothing of '{what}': {log}")).to_owned()
    };
    let is_done = |line: &str| line.contains("a change is done") && line.contains("(reshard)");
    until("all have heard", || ["alice", "erin", "grace"].iter().all(|node| log(node).lines().any(is_done)));
    for node in ["alice", "erin", "grace"] {
        assert!(line(node, "a change has begun").contains("asked_at="), "by which node it was asked for");
        assert!(line(node, "the layout of a change is in force").contains("epoch="));
        line(node, "a change is done");
    }
    let nodes = ["alice", "bob", "carol", "dave", "erin", "frank", "grace"];
    let asked = |node: &&str| log(node).contains("target=/shard/reshard?wait=false");
    let node = nodes.into_iter().find(asked).expect("one was asked");
    assert!(line(node, "a change is asked for").contains("client=127."), "and by whom");
    assert!(log(node).contains("asked=\"reshard to 3\" answer=\"job "), "{}", log(node));
}

#[test]
fn a_cluster_grows_is_resharded_and_loses_a_member() {
    let second = 80 + (std::process::id() % 100) as u8;
    let cluster = Cluster::new("change", &["--runtime", "local", "--subnet", &format!("10.{second}.70.0/24")]);
    cluster.up();
    if !can_change(&cluster) {
        return;
    }
    for number in 0..60 {
        cluster.ok(&["put", &format!("key-{number}"), &number.to_string()]);
    }
    cluster.ok(&["node", "add", "grace"]);
    assert_eq!(cluster.ok(&["shard", "add-member", "s2", "grace"]), "node added to shard\n");
    assert_eq!(cluster.ok(&["shard", "node", "grace"]), "s2\n");

    let said = cluster.run(&["reshard", "3", "--yes", "-o", "json"]);
    let document: Value = serde_json::from_str(&said.out).expect("one document");
    assert_eq!((said.code, &document["phase"]), (0, &"done".into()), "{said:?}");
    assert_eq!((&document["receipt"]["keys"], &document["receipt"]["converged"]), (&60.into(), &true.into()));
    cluster.ok(&["wait", "--for", &format!("epoch={}", document["epoch"])]);
    assert_eq!(cluster.ok(&["shard", "ids"]).lines().count(), 3);

    changes_are_logged(&cluster);

    assert_eq!(cluster.ok(&["view", "remove", "frank"]), "deleted\n");
    cluster.ok(&["node", "stop", "frank"]);
    cluster.ok(&["wait", "--for", "ready"]);
    cluster.ok(&["wait", "--for", "converged"]);
    cluster.up();
    assert_eq!(cluster.status()["nodes"][5]["state"], "stopped", "up leaves alone what was taken out");
    for number in 60..80 {
        cluster.ok(&["put", &format!("key-{number}"), &number.to_string()]);
    }
    assert_eq!(keys(&cluster), 80);

    cluster.ok(&["node", "start", "frank"]);
    cluster.ok(&["view", "add", "frank"]);
    until("frank is in the view", || cluster.ok(&["view"]).contains(".7:8090"));
    cluster.ok(&["reshard", "2", "--yes"]);
    assert_eq!(keys(&cluster), 80);
    assert_eq!(cluster.ok(&["get", "key-42", "--via", "grace"]), "42\n");
    assert_eq!(cluster.run(&["reshard", "abort"]).code, 5, "none runs");
    assert_eq!(cluster.run(&["reshard", "9", "--yes"]).code, 2, "not enough nodes");
}
