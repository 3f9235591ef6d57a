//! What kvctl remembers of a local cluster is lost, damaged or wrong while the nodes run: nothing is guessed.

mod support;

use std::fs;
use std::net::TcpListener;

use serde_json::Value;
use support::{Cluster, until};

fn cluster(name: &str, block: u8) -> Cluster {
    Cluster::new(name, &["--runtime", "local", "--subnet", &format!("10.{}.{block}.0/24", second())])
}

fn second() -> u8 {
    80 + (std::process::id() % 100) as u8
}

fn record(cluster: &Cluster) -> Value {
    serde_json::from_str(&fs::read_to_string(cluster.state().join("cluster.json")).expect("a record")).expect("JSON")
}

/// The nodes' states, by `cluster status`.
fn states(cluster: &Cluster) -> Vec<(String, String)> {
    let text = |node: &Value, field: &str| node[field].as_str().expect("text").to_owned();
    let status = cluster.status();
    status["nodes"].as_array().expect("nodes").iter().map(|node| (text(node, "name"), text(node, "state"))).collect()
}

#[test]
fn a_lost_record_is_made_again_from_the_nodes_that_run() {
    let cluster = cluster("record", 70);
    cluster.up();
    cluster.ok(&["node", "add", "zoe"]);
    cluster.ok(&["put", "x", "1"]);
    let before = record(&cluster);
    fs::remove_file(cluster.state().join("cluster.json")).expect("removed");

    for command in [&["get", "x"][..], &["cluster", "status"], &["cluster", "down", "--yes"], &["node", "kill", "bob"]]
    {
        let said = cluster.run(command);
        assert_eq!(said.code, 5, "{command:?}: {said:?}");
        for word in ["cluster.json", "alice (process ", "kvctl cluster up"] {
            assert!(said.err.contains(word), "{command:?}, {word}: {said:?}");
        }
    }
    // Whatever the engine: the nodes are processes.
    for other in [&[][..], &["--nodes", "4"], &["--nodes", "8"], &["--shards", "3"], &["--drill"]] {
        let command = if other.is_empty() { cluster.command(&["cluster", "up"]) } else { cluster.up_command() };
        let mut command = command;
        let said = support::Said::from(command.args(other).output().expect("it starts"));
        assert_eq!(said.code, 5, "{other:?}: {said:?}");
        assert!(said.err.contains("was started with") && said.err.contains("`kill "), "{other:?}: {said:?}");
    }
    assert!(!cluster.state().join("cluster.json").exists() && cluster.state().join("data/alice").exists());

    let said = cluster.try_up();
    assert!(said.code == 0 && said.err.contains("taking over"), "{said:?}");
    assert_eq!(record(&cluster), before);
    cluster.ok(&["node", "kill", "bob"]);
    cluster.up();
    // Zoe is in no shard.
    assert_eq!(cluster.ok(&["wait", "--for", "ready"]), "ready\n");
    assert_eq!(cluster.ok(&["get", "x", "--via", "bob"]), "1\n");
    assert_eq!(cluster.ok(&["put", "x", "2", "--via", "bob"]), "replaced (2 replicas)\n");
    until("zoe serves reads of the others", || cluster.run(&["get", "x", "--via", "zoe"]).out == "2\n");
}

/// All that kvctl keeps of it is gone, the data that the nodes have open included.
#[test]
fn a_lost_folder_is_made_again_around_the_nodes_that_run() {
    let cluster = cluster("folder", 77);
    cluster.up();
    fs::remove_dir_all(cluster.state()).expect("removed");
    let said = cluster.run(&["cluster", "down", "--yes"]);
    assert!(said.code == 5 && said.err.contains("alice (process "), "{said:?}");
    cluster.up();
    assert_eq!(cluster.ok(&["node", "kill", "bob"]), "bob missing\n");
    cluster.up();
    assert!(cluster.all_ready(), "{}", cluster.status());
}

#[test]
fn nodes_whose_pid_files_are_lost_are_found_and_ended() {
    let cluster = cluster("pids", 71);
    cluster.up();
    let lose = || fs::remove_dir_all(cluster.state().join("pids")).expect("removed");
    lose();
    assert!(states(&cluster).iter().all(|(_, state)| state == "running"), "{:?}", states(&cluster));
    assert_eq!(cluster.ok(&["node", "pause", "erin"]), "erin paused\n");
    assert_eq!(cluster.ok(&["node", "kill", "bob"]), "bob stopped\n");
    cluster.up();
    assert!(cluster.all_ready(), "{}", cluster.status());
    lose();
    cluster.ok(&["node", "start", "carol"]);
    assert_eq!(
        cluster.ok(&["cluster", "down", "--yes"]).trim(),
        format!("cluster '{}' is gone, and its data with it", cluster.name)
    );
    for last in 2..8 {
        let address = format!("127.{}.71.{last}:8090", second());
        assert!(TcpListener::bind(&address).is_ok(), "somebody still serves at {address}");
    }
}

#[test]
fn a_record_that_can_not_be_used_names_itself_and_the_way_out() {
    let cluster = cluster("damaged", 72);
    cluster.up();
    let path = cluster.state().join("cluster.json");
    let good = fs::read_to_string(&path).expect("a record");
    let damages = [
        (String::new(), "EOF"),
        (good[..good.len() / 2].to_owned(), "EOF"),
        (good.replace("\"nodes\": 6", "\"nodes\": 0"), "--nodes is 1"),
        (good.replace(&cluster.name, "other"), "it is of cluster 'other'"),
        (good.replace("24\n", "240\n"), "a /240 subnet"),
    ];
    for (damage, why) in damages {
        assert_ne!(damage, good, "{why}");
        fs::write(&path, damage).expect("written");
        for command in [&["cluster", "up"][..], &["cluster", "down", "--yes"], &["get", "x"]] {
            let said = cluster.run(command);
            assert_eq!(said.code, 10, "{command:?}: {said:?}");
            for word in [&path.display().to_string(), "mv ", "kvctl cluster up", why] {
                assert!(said.err.contains(word), "{command:?}, {word}: {said:?}");
            }
        }
    }
    // The way out.
    fs::rename(&path, path.with_extension("json.damaged")).expect("moved");
    cluster.up();
    assert_eq!(fs::read_to_string(&path).expect("a record"), good);
}

#[test]
fn a_record_of_another_secret_starts_no_node() {
    let cluster = cluster("secret", 73);
    cluster.up();
    let path = cluster.state().join("cluster.json");
    let good = fs::read_to_string(&path).expect("a record");
    cluster.ok(&["node", "kill", "bob"]);
    let secret = record(&cluster)["secret"].as_str().expect("text").to_owned();
    fs::write(&path, good.replace(&secret, "another")).expect("written");
    for command in [&["cluster", "up"][..], &["node", "start", "bob"], &["node", "add"]] {
        let said = cluster.run(command);
        assert_eq!(said.code, 5, "{command:?}: {said:?}");
        for word in ["another secret", &path.display().to_string(), "kvctl cluster up"] {
            assert!(said.err.contains(word), "{command:?}, {word}: {said:?}");
        }
    }
    let said = cluster.run(&["cluster", "status"]);
    assert!(said.code == 0 && said.err.contains("another secret"), "{said:?}");
    assert_eq!(states(&cluster)[1], ("bob".into(), "stopped".into()));
    fs::remove_file(&path).expect("removed");
    cluster.up();
    assert_eq!(record(&cluster)["secret"], secret.as_str());
}

/// The nodes whose data was taken away, as a person or a disk would.
fn lose_data(cluster: &Cluster, nodes: &[&str]) {
    for node in nodes {
        fs::remove_dir_all(cluster.state().join("data").join(node)).expect("removed");
    }
}

#[test]
fn a_shard_whose_data_is_gone_is_not_begun_anew_unasked() {
    let cluster = cluster("shard", 74);
    cluster.up();
    cluster.ok(&["put", "x", "1"]);
    // What one replica has lost the others have.
    cluster.ok(&["node", "kill", "bob"]);
    lose_data(&cluster, &["bob"]);
    cluster.up();
    assert_eq!(cluster.ok(&["get", "x", "--via", "bob"]), "1\n");

    for running in [true, false] {
        for node in ["dave", "erin", "frank"] {
            cluster.ok(&["node", "kill", node]);
        }
        lose_data(&cluster, &["dave", "frank"]);
        // A folder without anything in it is no data.
        fs::remove_dir_all(cluster.state().join("data/erin")).expect("removed");
        fs::create_dir(cluster.state().join("data/erin")).expect("made");
        if !running {
            cluster.ok(&["cluster", "down", "--keep-data"]);
        }
        for command in [&["cluster", "up"][..], &["node", "start", "dave"]] {
            let said = cluster.run(command);
            assert_eq!(said.code, 5, "{command:?}: {said:?}");
            for word in ["shard s2", "dave", "erin", "frank", "state/kvctl", "--accept-data-loss"] {
                assert!(said.err.contains(word), "{command:?}, {word}: {said:?}");
            }
            assert!(!said.err.contains("alice") && !said.err.contains("taking back"), "{command:?}: {said:?}");
        }
        assert!(states(&cluster)[3..].iter().all(|(_, state)| state != "running"), "{:?}", states(&cluster));
        cluster.ok(&["cluster", "up", "--accept-data-loss"]);
        assert!(cluster.all_ready(), "{}", cluster.status());
    }

    cluster.ok(&["cluster", "down", "--keep-data"]);
    fs::remove_dir_all(cluster.state().join("data")).expect("removed");
    let said = cluster.try_up();
    assert!(said.code == 5 && said.err.contains("shards s1, s2") && said.err.contains("alice"), "{said:?}");
    cluster.ok(&["cluster", "up", "--accept-data-loss"]);
    assert!(cluster.all_ready(), "{}", cluster.status());
    assert_eq!(cluster.run(&["get", "x", "--no-session"]).code, 3, "that was accepted");
}

/// What an `up` made that never came to serve is nobody's loss.
#[test]
fn an_up_that_was_cut_short_is_given_again() {
    let cluster = cluster("short", 75);
    cluster.up();
    cluster.ok(&["cluster", "down", "--keep-data"]);
    // As it is when kvctl is killed before any node is there.
    for left in ["data", "layout.json"] {
        let path = cluster.state().join(left);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removed");
    }
    cluster.up();
}

#[test]
fn data_that_is_left_of_a_forgotten_cluster_is_not_used_unasked() {
    let cluster = cluster("left", 76);
    cluster.up();
    cluster.ok(&["put", "x", "1"]);
    let forget = || {
        cluster.ok(&["cluster", "down", "--keep-data"]);
        fs::remove_file(cluster.state().join("cluster.json")).expect("removed");
    };
    forget();
    let data = cluster.state().join("data").display().to_string();
    for command in [&["cluster", "up"][..], &["cluster", "status"], &["cluster", "down", "--yes"]] {
        let said = cluster.run(command);
        assert!(said.code == 5 || said.code == 10, "{command:?}: {said:?}");
        for word in [data.as_str(), "alice", "frank", " ago", "--adopt", "--wipe", &cluster.name] {
            assert!(said.err.contains(word), "{command:?}, {word}: {said:?}");
        }
    }
    // Whatever else fails: it is not taken away, nor by another runtime.
    let said = cluster.run(&["cluster", "up", "--runtime", "docker"]);
    assert!(said.code == 5 && said.err.contains("other runtime"), "{said:?}");
    let mut command = cluster.up_command();
    command.args(["--adopt", "--wait", "1"]).env("KVNODE", cluster.stand_in("exec /bin/sleep 100"));
    let said: support::Said = command.output().expect("it starts").into();
    assert_eq!(said.code, 6, "{said:?}");
    assert!(cluster.run(&["cluster", "status"]).err.contains("--adopt"), "what it started is ended");
    assert!(!cluster.state().join("cluster.json").exists() && cluster.state().join("data/alice").exists());

    let up = |flag: &str| support::Said::from(cluster.up_command().arg(flag).output().expect("it starts"));
    let said = up("--adopt");
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(cluster.ok(&["get", "x", "--no-session"]), "1\n");
    for flag in ["--adopt", "--wipe"] {
        let said = up(flag);
        assert!(said.code == 5 && said.err.contains("kvctl cluster down"), "{flag}: {said:?}");
    }
    forget();
    let said = up("--wipe");
    assert!(said.code == 0 && said.err.contains("deleting"), "{said:?}");
    assert_eq!(cluster.run(&["get", "x", "--no-session"]).code, 3);

    fs::remove_file(cluster.state().join("cluster.json")).expect("removed");
    let said = up("--wipe");
    assert!(said.code == 5 && said.err.contains("alice (process"), "its nodes run: {said:?}");
    // So that it can be taken down.
    cluster.up();
}
