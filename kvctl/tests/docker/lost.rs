//! What kvctl remembers of a cluster is lost while its containers, or only its volumes, are there.

use std::fs;

use serde_json::Value;

use crate::support::Cluster;
use crate::{cluster, docker, docker_ok, engine};

fn record(cluster: &Cluster) -> Value {
    serde_json::from_str(&fs::read_to_string(cluster.state().join("cluster.json")).expect("a record")).expect("JSON")
}

#[test]
fn a_lost_record_is_made_again_from_the_containers_that_are_there() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("lost", 10);
    cluster.up();
    cluster.ok(&["node", "add", "zoe"]);
    cluster.ok(&["put", "x", "1"]);
    let before = record(&cluster);
    fs::remove_dir_all(cluster.state()).expect("removed");
    let said = cluster.command(&["cluster", "up", "--runtime", "docker", "--nodes", "4"]).output().expect("it starts");
    let said = crate::support::Said::from(said);
    assert!(said.code == 5 && said.err.contains("was started with") && said.err.contains("`docker rm -f "), "{said:?}");
    assert!(!cluster.state().exists());
    let said = cluster.try_up();
    assert!(said.code == 0 && said.err.contains("taking over"), "{said:?}");
    assert_eq!(record(&cluster), before);
    docker_ok(&["rm", "-f", &format!("{}-bob", cluster.name)]);
    cluster.up();
    // Zoe is in no shard.
    assert_eq!(cluster.ok(&["wait", "--for", "ready"]), "ready\n");
    assert_eq!(cluster.ok(&["get", "x", "--via", "bob"]), "1\n");

    // One that only has the name, as another user's would.
    let path = cluster.state().join("cluster.json");
    let good = fs::read_to_string(&path).expect("a record");
    let secret = before["secret"].as_str().expect("text");
    fs::write(&path, good.replace(secret, "another")).expect("written");
    for command in
        [&["cluster", "up"][..], &["cluster", "down", "--yes"], &["node", "kill", "bob"], &["node", "start", "bob"]]
    {
        let said = cluster.run(command);
        assert!(
            said.code == 5 && said.err.contains("docker rm -f") || said.err.contains("another secret"),
            "{command:?}: {said:?}"
        );
    }
    fs::write(&path, good).expect("written");
    assert_eq!(cluster.ok(&["wait", "--for", "ready"]), "ready\n");
    cluster.ok(&["cluster", "down", "--yes"]);
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", &format!("label=kvctl.cluster={}", cluster.name)]).out, "");
}

#[test]
fn a_shard_whose_volumes_are_gone_is_not_begun_anew_unasked() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("gone", 11);
    cluster.up();
    let lose = |node: &str| {
        docker_ok(&["rm", "-f", &format!("{}-{node}", cluster.name)]);
        docker_ok(&["volume", "rm", &format!("kvnode-{}-{node}", cluster.name)]);
    };
    lose("bob");
    cluster.up();
    assert!(cluster.all_ready(), "{}", cluster.status());
    for node in ["dave", "erin", "frank"] {
        lose(node);
    }
    let said = cluster.try_up();
    assert_eq!(said.code, 5, "{said:?}");
    let volume = format!("kvnode-{}-dave", cluster.name);
    for word in ["shard s2", "dave", "erin", "frank", &volume, "--accept-data-loss"] {
        assert!(said.err.contains(word), "{word}: {said:?}");
    }
    assert_eq!(docker(&["volume", "ls", "-q", "--filter", &format!("name={volume}")]).out, "");
    cluster.ok(&["cluster", "up", "--accept-data-loss"]);
    assert!(cluster.all_ready(), "{}", cluster.status());
}
