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
