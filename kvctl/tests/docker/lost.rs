//! What kvctl remembers of a cluster is lost while its containers, or only its volumes, are there.

use std::fs;
use std::net::TcpListener;

use serde_json::Value;

use crate::support::Cluster;
use crate::{cluster, docker, docker_ok, engine, port};

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

#[test]
fn volumes_that_are_left_of_a_forgotten_cluster_are_not_used_unasked() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("left", 12);
    cluster.up();
    cluster.ok(&["put", "x", "1"]);
    let label = format!("label=kvctl.cluster={}", cluster.name);
    let forget = || {
        cluster.ok(&["cluster", "down", "--keep-data"]);
        fs::remove_dir_all(cluster.state()).expect("removed");
    };
    forget();
    let volume = format!("kvnode-{}-alice", cluster.name);
    let made = docker_ok(&["volume", "inspect", "-f", "{{.CreatedAt}}", &volume]);
    let up: Vec<&str> = vec!["cluster", "up"];
    for command in [&up[..], &["cluster", "status"], &["cluster", "down", "--yes"]] {
        let said = if command == up { cluster.try_up() } else { cluster.run(command) };
        assert!(said.code == 5 || said.code == 10, "{command:?}: {said:?}");
        for word in [volume.as_str(), made.trim(), "--adopt", "--wipe", &cluster.name] {
            assert!(said.err.contains(word), "{command:?}, {word}: {said:?}");
        }
        assert_eq!(docker_ok(&["ps", "-aq", "--filter", &label]), "", "{command:?}");
        assert!(!cluster.state().exists(), "{command:?}");
    }
    // An `up` that fails takes away nothing that was there.
    let up = |flag: &str| crate::support::Said::from(cluster.up_command().arg(flag).output().expect("it starts"));
    let holder = TcpListener::bind(("127.0.0.1", port(20 * 12))).expect("a free port");
    let said = up("--adopt");
    assert!(said.code == 10 && said.err.contains("alice needs"), "{said:?}");
    drop(holder);
    assert_eq!(docker_ok(&["volume", "ls", "-q", "--filter", &label]).lines().count(), 6);
    assert_eq!(up("--adopt").code, 0);
    assert_eq!(cluster.ok(&["get", "x"]), "1\n");
    forget();
    let said = up("--wipe");
    assert!(said.code == 0 && said.err.contains(&volume), "{said:?}");
    assert_eq!(cluster.run(&["get", "x"]).code, 3);
    cluster.ok(&["cluster", "down", "--yes"]);

    // One of the name that nobody marked, and one of another cluster.
    for label in [&[][..], &["--label", "kvctl.cluster=somebody"]] {
        docker_ok(&[&["volume", "create"], label, &[volume.as_str()]].concat());
        let said = cluster.try_up();
        assert!(said.code == 5 && said.err.contains(&volume), "{label:?}: {said:?}");
        let said = up("--wipe");
        assert!(said.code == 5 && said.err.contains(&format!("docker volume rm {volume}")), "{label:?}: {said:?}");
        docker_ok(&["volume", "rm", &volume]);
    }
}
